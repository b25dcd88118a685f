"""URIs on which something came unasked: counts alone speak for none of their connections any more."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.known_uris import MOST, MOST_CHARACTERS, KnownUris, Remembered
from tests.books import state_of
from tests.conftest import Tls
from tests.servers import (
    EchoServer,
    RawServer,
    answer_close,
    frame,
    read_client_frame,
    read_request,
    scripted,
    upgrade,
    upgrade_response,
    wait_until,
)

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]


@pytest.fixture
def server(echo_server: MakeServer) -> EchoServer:
    return echo_server(scripted)


def warnings_of(pool: ConnectionPool[Any], caplog: pytest.LogCaptureFixture, count: int) -> list[str]:
    """The warnings of a pool, once so many are written and no more wait to be; there must be no others."""

    def warnings() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return [line for line in lines if f"[{pool.name}]" in line]

    wait_until(lambda: not state_of(pool).log._records and len(warnings()) >= count)
    assert len(warnings()) == count
    return warnings()


def balanced_request(pool: ConnectionPool[Any]) -> None:
    assert pool.request("/?key=secret", [1], 5) == [1]


def while_idle(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    balanced_request(pool)
    server.broadcast('"news"')
    wait_until(lambda: server.open_now == 0)


def before_anything_was_sent(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/?key=secret") as conn:
        wait_until(lambda: server.connections)
        server.broadcast('"news"')
        assert conn.recv(5) == "news"
        conn.send([1])
        conn.discard()


def more_came_than_went(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/?key=secret") as conn:
        conn.send({"say": [1, 2]})
        assert [conn.recv(5), conn.recv(5)] == [1, 2]


def before_the_first_send_and_unread(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/?key=secret") as conn:
        wait_until(lambda: server.connections)
        server.broadcast('"news"')
        wait_until(lambda: conn.ping(5) and conn._entry.wire.unread)
        conn.send([1])


UNASKED = [while_idle, before_anything_was_sent, more_came_than_went, before_the_first_send_and_unread]


@pytest.mark.parametrize("comes", UNASKED)
def test_where_something_came_unasked_counts_alone_do_not_do(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, comes: Any
) -> None:
    pool = make_pool(server, name="mine", max_connections=2)
    comes(server, pool)
    opened = server.opened
    for _ in range(3):
        balanced_request(pool)
    assert pool.stats().discards["counts alone"] == 3
    assert server.opened == opened + 3
    for number in range(3):  # ids are proof
        assert pool.request("/?key=secret", {"id": number}, 5) == {"id": number}
    pool.acquire("/?key=secret").release()  # nor does one count on which nothing was sent
    assert server.opened == opened + 4
    comes(server, pool)
    (warning,) = warnings_of(pool, caplog, 1)
    for part in ("ws://127.0.0.1", "counts", "'id'", "reset", "configure", "pool"):
        assert part in warning
    assert "secret" not in warning
    other = make_pool(server, name="other")
    for _ in range(2):
        balanced_request(other)
    assert other.stats().reuses == 1
    opened = server.opened
    for _ in range(2):
        assert pool.request("/elsewhere", [1], 5) == [1]
    assert server.opened == opened + 1


def test_connections_that_came_back_by_counts_before_are_not_lent_again(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_connections=3)
    leases = [pool.acquire("/") for _ in range(3)]
    for number, conn in enumerate(leases):
        conn.request({"id": number} if number == 0 else [number], 5)
        if number == 2:
            conn.request({"id": 3}, 5)
    for conn in leases:
        conn.release()
    with pool.acquire("/") as conn:
        conn.send({"id": 9, "say": ["me", 1]})
        assert [conn.recv(5)["id"], conn.recv(5)] == [9, 1]
    for number in range(10, 13):
        assert pool.request("/", {"id": number}, 5) == {"id": number}
    assert pool.stats().discards["counts alone"] >= 1
    with pool.acquire("/") as one, pool.acquire("/") as two:
        ids = {one.id, two.id}
        assert leases[1].id not in ids
        assert leases[2].id not in ids


def iterates(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"say": [1, 2, 3]})
        for message in conn:
            if message == 3:
                return


def fails(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(KeyError), pool.acquire("/") as conn:
        conn.send({"say": [1, 2]})
        raise KeyError([conn.recv(5), conn.recv(5)])


def discards(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"say": [1, 2]})
        assert [conn.recv(5), conn.recv(5)] == [1, 2]
        conn.discard()


def steps(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"say": [1, 2]})
        assert [next(conn), next(conn)] == [1, 2]


def feeds(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn, ThreadPoolExecutor(1) as threads:
        got = threads.submit(lambda: list(itertools.islice(conn, 2)))
        wait_until(lambda: conn._iterated)
        conn.send_raw('{"say": [1, 2]}')
        assert got.result(5) == [1, 2]


@pytest.mark.parametrize("behaves", [iterates, fails, discards, steps, feeds])
def test_who_expects_more_is_sent_nothing_unasked(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, behaves: Any
) -> None:
    pool = make_pool(server, max_connections=1)
    behaves(pool)
    for _ in range(3):
        assert pool.request("/", [1], 5) == [1]
    assert pool.stats().reuses == 2
    warnings_of(pool, caplog, 0)


@pytest.mark.parametrize("given", [{"reuse": "quiet"}, {"reuse": "always"}, {"reset": lambda conn: None}])
def test_only_who_goes_by_counts_remembers(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    pool = make_pool(server, **given)
    more_came_than_went(server, pool)
    for _ in range(3):
        balanced_request(pool)
    assert pool.stats().reuses == 3
    warnings_of(pool, caplog, 0)


@pytest.mark.slow
def test_pings_tickets_and_half_a_message_are_no_message(
    raw_server: MakeRaw, make_pool: MakePool, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    released, go_on = threading.Event(), threading.Event()

    def script(sock: Any) -> None:
        upgrade(sock)
        sock.sendall(frame(1, read_client_frame(sock).payload))
        assert released.wait(5)
        for _ in range(5):
            sock.sendall(frame(9, b"ping"))
            read_client_frame(sock)
        if not go_on.is_set():
            sock.sendall(frame(1, b'"half', fin=0))
            assert go_on.wait(5)
        answer_close(sock)

    server = raw_server(script, ssl_context=tls.server_context)
    pool = make_pool(server, manager_kwargs={"ssl_context": tls.client_context})
    assert pool.request("/", 1, 5) == 1
    released.set()
    wait_until(lambda: pool.stats().discards == {"unread while idle": 1})
    go_on.set()
    assert pool.request("/", 1, 5) == 1
    assert state_of(pool).known.unasked == {}
    warnings_of(pool, caplog, 0)


@pytest.mark.slow
def test_what_is_remembered_is_bounded(echo: EchoServer, make_pool: MakePool, caplog: Any) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        entry, known = conn._entry, state_of(pool).known
        for number in range(MOST * 2):
            entry.key = f"ws://h/{number}"
            known.note_unasked(entry, "in this test")
            known.note_echo(entry.key)
        assert list(known.unasked) == list(known.echoing) == [f"ws://h/{n}" for n in range(MOST, MOST * 2)]
        entry.key = f"{echo.uri}/"
    warnings_of(pool, caplog, MOST * 2)


def test_of_long_ones_fewer_are_remembered() -> None:
    remembered, size = Remembered(), MOST_CHARACTERS // 10
    for number in range(100):
        key = f"{number:05}".ljust(size)
        remembered.items[key] = None
        remembered.added(key)
        assert sum(map(len, remembered.items)) <= MOST_CHARACTERS
        assert key in remembered.items
    kept = list(remembered.items)
    assert len(kept) >= 7
    remembered.items["x" * (MOST_CHARACTERS + 1)] = None
    remembered.added("x" * (MOST_CHARACTERS + 1))
    assert list(remembered.items) == kept


def test_threads_that_remember_at_once_keep_the_limits() -> None:
    remembered = Remembered(10)

    def add(thread: int) -> None:
        for number in range(3000):
            key = f"{thread} {number}"
            remembered.items[key] = None
            remembered.added(key)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(add, range(8)))
    remembered.items["last"] = None
    remembered.added("last")
    assert len(remembered.items) == 10
    assert "last" in remembered.items


def test_threads_that_find_out_at_once_warn_once(echo: EchoServer, make_pool: MakePool, caplog: Any) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn, ThreadPoolExecutor(8) as threads:
        together = threading.Barrier(8)

        def finds(_number: int) -> None:
            together.wait()
            state_of(pool).known.note_unasked(conn._entry, "in this test")

        list(threads.map(finds, range(8)))
    warnings_of(pool, caplog, 1)


def test_a_pool_that_remembers_and_is_dropped_closes_itself(server: EchoServer) -> None:
    pool = ConnectionPool(ConnectionPoolConfig(max_connections=2), base_uri=server.uri)
    more_came_than_went(server, pool)
    pool.request("/", {"id": 1}, 5)
    pool.request("/elsewhere", {"id": 1}, 5)
    gone = weakref.ref(pool)
    gc.disable()
    try:
        del pool
        assert gone() is None  # without the collector: nothing that it has refers back to it
    finally:
        gc.enable()
    wait_until(lambda: server.open_now == 0)


def test_what_the_parent_knew_a_child_knows(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        state_of(pool).known.note_unasked(conn._entry, "in this test")
        state_of(pool).known.note_echo("ws://h/")
    child = KnownUris(state_of(pool).log, "child")
    child.learn_from(state_of(pool).known)
    assert child.minds
    assert list(child.unasked) == [f"{echo.uri}/"]
    assert list(child.echoing) == ["ws://h/"]


def test_a_forked_child_goes_on_with_what_the_parent_knew(make_pool: MakePool) -> None:
    pool = make_pool("ws://127.0.0.1:1")
    state_of(pool).known.unasked["ws://127.0.0.1:1/"] = None
    before = state_of(pool)
    before.pid = -1  # as a child finds it
    pool._begin_anew()
    assert state_of(pool) is not before
    assert pool._lending.terms.known is state_of(pool).known is not before.known
    assert list(state_of(pool).known.unasked) == ["ws://127.0.0.1:1/"]


def test_a_greeting_that_is_there_before_the_first_send_is_noticed(
    raw_server: MakeRaw, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    def script(sock: Any) -> None:
        request = read_request(sock)
        sock.sendall(upgrade_response(request) + frame(1, b'"hello"'))
        sock.sendall(frame(1, read_client_frame(sock).payload))
        answer_close(sock)

    server = raw_server(script)
    pool = make_pool(server)
    assert pool.request("/", [1], 5) == "hello"  # the next message: counts tell no better
    (warning,) = warnings_of(pool, caplog, 1)
    assert "before anything was sent" in warning
    assert list(state_of(pool).known.unasked) == [f"{server.uri}/"]
    swallows = make_pool(raw_server(script), configure=lambda conn: conn.recv())
    assert swallows.request("/", [1], 5) == [1]
    warnings_of(swallows, caplog, 0)
    assert state_of(swallows).known.unasked == {}
