"""Where no borrower reads, a worker hands out what came."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionClosedError
from jetsocket.delivery import MOST_HANGING
from tests import service_fixtures
from tests.servers import EchoServer, wait_until
from tests.services import MakePool, Plain

server = service_fixtures.server


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


@pytest.mark.slow
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


@pytest.mark.slow
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


# --- what does not return


class Hanging(Plain):
    """Hangs over a message that says so."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.hangs = 0

    def key(self, message: Any) -> Any:
        if isinstance(message, dict) and message.get("note") == "hang":
            self.hangs += 1
            self.go_on.wait(30)
        return super().key(message)


@pytest.fixture
def correlation() -> Any:
    made = Hanging()
    yield made
    made.go_on.set()


def says(caplog: pytest.LogCaptureFixture, text: str) -> Callable[[], bool]:
    return lambda: any(text in each.getMessage() for each in caplog.records)


@pytest.mark.slow
def test_a_correlation_that_hangs_costs_its_connection_and_holds_up_no_other(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, correlation: Hanging
) -> None:
    got: list[Any] = []
    pool = make_pool(
        server,
        correlation=correlation,
        health_check_timeout=0.3,
        max_connections=4,
        on_push=lambda uri, each: got.append(each),
    )
    subscription = pool.subscribe("/hangs", {"do": "subscribe", "topic": "t"})
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    (hangs,) = [each for each in server.connections if each.request and each.request.path == "/hangs"]
    (other,) = [each for each in server.connections if each is not hangs]
    hangs.send('{"note": "hang"}')
    wait_until(lambda: correlation.hangs == 1)
    other.send('{"note": 1}')
    wait_until(lambda: got == [{"note": 1}])
    with pytest.raises(ConnectionClosedError, match=r"Hanging hangs in key \(test_delivery.py"):
        subscription.get(5)
    wait_until(says(caplog, "a method of Hanging hangs in key (test_delivery.py:"))
    subscription.unsubscribe()
    correlation.go_on.set()
    wait_until(says(caplog, "that hung has come back"))
    assert pool.request("/hangs", {"n": 2}, 5)["n"] == 2
    assert pool._lending.housekeeper.workers.dispatch._most == 1  # type: ignore[union-attr]  # it has one


@pytest.mark.slow
def test_at_most_so_many_threads_hang_and_those_who_read_go_on(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, correlation: Hanging
) -> None:
    got: list[Any] = []
    pool = make_pool(
        server,
        correlation=correlation,
        health_check_timeout=0.1,
        max_connections=8,
        on_push=lambda uri, each: got.append(each),
    )
    for number in range(1, MOST_HANGING + 1):
        pool.prewarm("/", 1)
        server.connections[-1].send('{"note": "hang"}')
        wait_until(lambda number=number: correlation.hangs == number)  # type: ignore[misc]  # bound at once
        wait_until(lambda: pool.stats().idle_connections == 0)
    wait_until(says(caplog, "3 threads hang so"))
    pool.prewarm("/", 1)
    server.broadcast('{"note": 1}')
    assert pool.request("/", {"n": 1}, 5)["n"] == 1  # it reads what has come, too
    wait_until(lambda: got == [{"note": 1}])
    server.broadcast('{"note": 2}')
    correlation.go_on.set()
    wait_until(lambda: {"note": 2} in got)


@pytest.mark.slow
def test_an_on_push_that_hangs_is_told_of(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    go_on = threading.Event()

    def on_push(uri: str, message: Any) -> None:
        go_on.wait(30)

    pool = make_pool(server, correlation=Plain(), health_check_timeout=0.1, on_push=on_push)
    pool.request("/", {"do": "push", "say": [{"note": 1}]}, 5)
    wait_until(says(caplog, "on_push() hangs in on_push (test_delivery.py:"))
    go_on.set()
    wait_until(says(caplog, "on_push() that hung has come back"))
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
