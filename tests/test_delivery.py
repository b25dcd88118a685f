"""Where no borrower reads, a worker hands out what came."""

from __future__ import annotations

from typing import Any

import pytest

from tests import services
from tests.servers import EchoServer, wait_until
from tests.services import MakePool, Plain

server = services.server


@pytest.mark.parametrize("max_in_flight", [1, 10])
def test_what_comes_over_an_idle_connection_is_handed_out(
    server: EchoServer, make_pool: MakePool, max_in_flight: int
) -> None:
    got: list[Any] = []
    pool = make_pool(
        server, correlation=Plain(), max_in_flight=max_in_flight, on_push=lambda uri, each: got.append(each)
    )
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    for number in range(3):
        server.broadcast(f'{{"note": {number}}}')
    wait_until(lambda: got == [{"note": 0}, {"note": 1}, {"note": 2}])
    assert pool.stats().unasked_messages == 3
    assert pool.request("/", {"n": 2}, 5)["n"] == 2
    assert server.opened == 1


@pytest.mark.parametrize("max_in_flight", [1, 10])
def test_of_a_connection_whose_borrower_reads_nothing_too(
    server: EchoServer, make_pool: MakePool, max_in_flight: int
) -> None:
    got: list[Any] = []
    pool = make_pool(
        server, correlation=Plain(), max_in_flight=max_in_flight, on_push=lambda uri, each: got.append(each)
    )
    with pool.subscribe("/", {"do": "subscribe", "topic": "t"}) as subscription:
        server.broadcast('{"note": 1}')
        server.broadcast('{"topic": "t", "n": 1}')
        wait_until(lambda: got == [{"note": 1}])
        wait_until(lambda: bool(subscription._feed.arrived))
        assert subscription.get(0)["n"] == 1


def test_a_protocols_ping_is_answered_while_the_borrower_computes(
    server: EchoServer, make_pool: MakePool
) -> None:
    got: list[Any] = []
    pool = make_pool(server, correlation=Plain(), on_push=lambda uri, each: got.append(each))
    with pool.acquire("/") as conn:
        conn.request({"n": 1}, 5)
        server.broadcast('{"ping": 7}')
        wait_until(lambda: got == [{"pong": 7}])  # the service echoes it


def test_one_that_a_strike_has_left_locked_is_cut(server: EchoServer, make_pool: MakePool) -> None:
    """The thread got the lock, and was struck before it could know."""
    pool = make_pool(server, correlation=Plain(), max_in_flight=10)
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    (entry,) = pool._lending.state.open_entries()
    entry.wire.lock.acquire()
    entry.wire.was_struck = True
    try:
        wait_until(lambda: entry.wire.failure is not None)
    finally:
        entry.wire.lock.release()
    assert pool.request("/", {"n": 2}, 5)["n"] == 2
    assert server.opened == 2
