"""`on_push`: in order, bounded, typed, and never again once the pool is closed."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import pytest

from tests import service_fixtures
from tests.servers import EchoServer, wait_until
from tests.services import MakePool, Plain

server = service_fixtures.server


def pushing(count: int) -> dict[str, Any]:
    return {"do": "push", "say": [{"note": number} for number in range(count)], "n": 1}


def test_one_that_is_slow_loses_the_oldest_and_is_told_so(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def on_push(uri: str, message: Any) -> None:
        got.append(message["note"])
        begun.set()
        go_on.wait(10)

    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    pool._lending.terms.pushes._most = 5  # type: ignore[union-attr]  # it has one
    pool.request("/", pushing(1), 5)
    assert begun.wait(5)
    pool.request("/", pushing(9), 5)
    go_on.set()
    wait_until(lambda: len(got) == 6)
    assert got == [0, 4, 5, 6, 7, 8]
    wait_until(lambda: any("4 messages had to be dropped" in each.getMessage() for each in caplog.records))


def test_what_waits_when_the_pool_is_cut_is_not_handed_over(server: EchoServer, make_pool: MakePool) -> None:
    got: list[int] = []
    begun, go_on = threading.Event(), threading.Event()

    def on_push(uri: str, message: Any) -> None:
        got.append(message["note"])
        begun.set()
        go_on.wait(10)

    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    conn = pool.acquire("/")
    conn.request(pushing(5), 5)
    assert begun.wait(5)
    pool.close(0.1)
    go_on.set()
    conn.release()
    wait_until(lambda: not any(each.name.startswith("jetsocket-push") for each in threading.enumerate()))
    assert got == [0]


@dataclass
class Note:
    note: int
    id: int | None = None
    n: int | None = None


def test_messages_are_of_the_message_type_and_those_that_are_none_are_told(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[Any] = []
    pool = make_pool(
        server,
        correlation=Plain(),
        on_push=lambda uri, each: got.append(each),
        manager_kwargs={"message_type": Note},
    )
    with pool.acquire("/") as conn:
        conn.send(
            {"do": "push", "say": [{"note": 1}, {"note": "x"}, {"note": 2}, {"note": 3, "n": 9}], "id": 50}
        )
        wait_until(lambda: pool.stats().discards == {} and conn.is_connected)
        assert conn.recv(5) == Note(1)
    server.broadcast('{"note": 4}')
    server.broadcast('{"note": "x"}')
    server.broadcast('{"note": 5}')
    if pool.stats().idle_connections == 0:
        pool.prewarm("/", 1)
    pool.request("/", {"note": 0}, 5)
    server.broadcast('{"note": 6}')
    wait_until(lambda: Note(6) in got)
    assert all(isinstance(each, Note) for each in got)


@pytest.mark.parametrize("raised", [ValueError, SystemExit, KeyboardInterrupt])
def test_whatever_it_raises_is_told_and_delays_nothing(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, raised: type[BaseException]
) -> None:
    threads: set[int] = set()

    def on_push(uri: str, message: Any) -> None:
        threads.add(threading.get_ident())
        raise raised("no")

    def told() -> list[str]:
        return [text for each in caplog.records if "on_push() failed" in (text := each.getMessage())]

    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    pool.request("/", pushing(20), 5)
    wait_until(lambda: len(told()) == 20, 5)  # one a round of the housekeeper's would take twice as long
    assert len(threads) == 1


def test_an_answer_that_cannot_be_sent_is_told(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server, correlation=Plain(), on_push=lambda uri, each: {"bad": object()})
    pool.request("/", pushing(1), 5)
    wait_until(lambda: any("could not be sent" in each.getMessage() for each in caplog.records))
    assert pool.request("/", {"n": 1}, 5)["n"] == 1


@pytest.mark.parametrize("listens", [True, False])
def test_what_cannot_be_read_is_counted_and_told_once(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, listens: bool
) -> None:
    got: list[Any] = []
    on_push = (lambda uri, message: got.append(message)) if listens else None
    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    with pool.acquire("/") as conn:
        for text in ("{", '"secret', '{"note": 1}'):
            server.broadcast(text)
        assert conn.request({"n": 1}, 5)["n"] == 1
    assert pool.stats().unasked_messages == 3
    assert pool.request("/", {"n": 2}, 5)["n"] == 2
    wait_until(lambda: any("can't be read" in each.getMessage() for each in caplog.records))
    wait_until(lambda: not listens or got == [{"note": 1}])
    told = [each.getMessage() for each in caplog.records if "can't be read" in each.getMessage()]
    assert len(told) == 1
    assert "DecodeError" in told[0] or "JSONDecodeError" in told[0]
    assert "secret" not in told[0]
    assert server.opened == 1
