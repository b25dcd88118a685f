"""The lease: what it sends and receives, how it ends, and that it is nobody else's.

Also tests: `lease`, `exchange`.
"""

from __future__ import annotations

import builtins
import dataclasses
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pydantic
import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    DecodeError,
    InvalidStateError,
    TimeoutError,
)
from tests.faults.proxy import FaultProxy
from tests.servers import (
    Connection,
    EchoServer,
    RawServer,
    after_upgrade,
    close_with,
    frame,
    read_client_frame,
    reset,
    upgrade,
    wait_until,
)

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]


# --- sending and receiving


def opcodes(sock: socket.socket) -> None:
    """Answer every message with the text `opcode payload`."""
    upgrade(sock)
    while (got := read_client_frame(sock)).opcode != 8:
        if got.opcode < 8:
            sock.sendall(frame(1, f"{got.opcode} {got.payload.decode()}".encode()))
    sock.sendall(frame(8, got.payload))


@pytest.mark.parametrize(
    ("data", "arrives"),
    [
        ("plain", "1 plain"),
        ("", "1 "),
        ("żółw", "1 żółw"),
        (b"bytes", "2 bytes"),
        (bytearray(b"array"), "2 array"),
        (memoryview(b"view"), "2 view"),
        ({"a": [1, None, "ü"]}, '1 {"a": [1, null, "ü"]}'),
        ([], "1 []"),
        (3, "1 3"),
        (None, "1 null"),
    ],
)
def test_send_text_binary_or_json(raw_server: MakeRaw, data: Any, arrives: str, make_pool: MakePool) -> None:
    with make_pool(raw_server(opcodes)).acquire("/") as conn:
        conn.send(data)
        assert conn.recv_raw(5) == arrives


@pytest.mark.parametrize(
    ("data", "binary", "arrives"),
    [
        ("t", None, "1 t"),
        (b"b", None, "2 b"),
        ("t", True, "2 t"),
        ("ü", True, "2 ü"),
        (b"b", False, "1 b"),
        ("t", False, "1 t"),
        (b"b", True, "2 b"),
    ],
)
def test_send_raw(
    raw_server: MakeRaw, data: str | bytes, binary: bool | None, arrives: str, make_pool: MakePool
) -> None:
    with make_pool(raw_server(opcodes)).acquire("/") as conn:
        conn.send_raw(data, binary=binary)
        assert conn.recv_raw(5) == arrives


def test_what_cannot_be_sent_leaves_the_connection_clean(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    circle: list[Any] = []
    circle.append(circle)
    with pool.acquire("/") as conn:
        with pytest.raises(TypeError):
            conn.send({"a": object()})
        with pytest.raises(ValueError, match=r"[Cc]ircular"):
            conn.send(circle)
        with pytest.raises(TypeError, match="send_raw takes str or bytes"):
            conn.send_raw({"a": 1})  # type: ignore[arg-type]  # the point
        with pytest.raises(TypeError, match="binary must be True, False or None"):
            conn.send_raw(b"x", binary=0)  # type: ignore[arg-type]  # the point
        with pytest.raises(UnicodeDecodeError):
            conn.send_raw(b"\xff", binary=False)
        with pytest.raises(UnicodeEncodeError):
            conn.send("\ud800")
        first = conn.id
        assert conn.request("1", 5) == 1
    assert echo.messages == 1
    with pool.acquire("/") as conn:
        assert conn.id == first


def test_recv_decodes_and_recv_raw_does_not(echo: EchoServer, make_pool: MakePool) -> None:
    with make_pool(echo).acquire("/") as conn:
        for payload in ('{"a": 1}', b'{"a": 1}'):
            conn.send(payload)
            assert conn.recv(5) == {"a": 1}
            conn.send(payload)
            assert conn.recv_raw(5) == payload


def test_a_payload_that_does_not_decode_keeps_the_connection(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        for payload in ("not json", b"\xff\xfe\xfd"):
            conn.send_raw(payload)
            with pytest.raises(DecodeError) as raised:
                conn.recv(5)
            assert raised.value.payload == payload
            assert "not json" not in str(raised.value)
        assert conn.request([1], 5) == [1]
        first = conn.id
    with pool.acquire("/") as conn:
        assert conn.id == first
    assert echo.opened == 1


def test_iterating_goes_on_behind_a_message_that_does_not_decode(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    def handler(conn: Connection) -> None:
        for payload in ("1", "broken", "2"):
            conn.send(payload)

    with make_pool(echo_server(handler)).acquire("/") as conn:
        got = []
        with pytest.raises(DecodeError):
            got.extend(conn)
        messages = iter(conn)
        assert next(messages) == 2
        assert list(messages) == []


def test_recv_timeout(echo: EchoServer, make_pool: MakePool) -> None:
    with make_pool(echo).acquire("/silent") as conn:
        with pytest.raises(TimeoutError, match=r"0\.05 s") as raised:
            conn.recv(0.05)
        assert raised.value.operation == "recv"
        assert raised.value.timeout == 0.05
        assert isinstance(raised.value, builtins.TimeoutError)
        with pytest.raises(TimeoutError):
            conn.recv(0)
        assert conn.is_connected


def test_recv_with_no_time_takes_what_is_there(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(after_upgrade(frame(1, b"1") + frame(1, b"2")))
    with make_pool(server).acquire("/") as conn:
        assert conn.recv(5) == 1
        assert conn.recv(0) == 2
        with pytest.raises(TimeoutError):
            conn.recv(0)


@pytest.mark.parametrize("bad", [-1, float("nan"), True, "1"])
def test_timeouts_are_checked(echo: EchoServer, bad: Any, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        for call in (conn.recv, conn.recv_raw, conn.ping, lambda bad: conn.request(1, bad)):
            with pytest.raises((TypeError, ValueError), match="timeout"):
                call(bad)
        assert conn.request(1, 5) == 1
    for pool_call in (lambda: pool.acquire("/", bad), lambda: pool.drain(bad), lambda: pool.close(bad)):
        with pytest.raises((TypeError, ValueError), match="timeout"):
            pool_call()


@pytest.mark.parametrize("timeout", [1e7, 1e12, float("inf")])
def test_very_long_timeouts_are_fine(echo: EchoServer, timeout: float, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/late", timeout) as conn:
        conn.send({"delay": 0.1})
        assert conn.recv(timeout) == {"delay": 0.1}
        conn.ping(timeout)
        assert conn.request({"delay": 0.1}, timeout) == {"delay": 0.1}
    assert pool.request("/", 1, timeout) == 1
    assert pool.drain(timeout)


def test_options_set_the_default_timeouts(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, manager_kwargs={"recv_timeout": 0.05})
    with pool.acquire("/silent") as conn:
        for call in (conn.recv, conn.recv_raw, lambda: conn.request(1), lambda: list(conn)):
            with pytest.raises(TimeoutError, match=r"0\.05 s"):
                call()


# --- how it ends


@pytest.mark.parametrize("code", [1000, 1001])
def test_iteration_ends_at_a_normal_close(echo_server: MakeServer, code: int, make_pool: MakePool) -> None:
    with make_pool(echo_server(close_with(code, "bye", after=2))).acquire("/") as conn:
        conn.send(1)
        conn.send(2)
        assert list(conn) == [1, 2]
        with pytest.raises(ConnectionClosedError) as raised:
            conn.recv()
        assert (raised.value.code, raised.value.reason) == (code, "bye")


def test_a_lease_is_an_iterator(echo_server: MakeServer, make_pool: MakePool) -> None:
    with make_pool(echo_server(close_with(1000, after=4))).acquire("/") as conn:
        for number in range(4):
            conn.send(number)
        assert isinstance(conn, Iterator)
        assert next(conn) == 0
        assert next(iter(conn)) == 1
        assert next(conn) == 2
        assert list(conn) == [3]
        with pytest.raises(StopIteration):
            next(conn)
    other = make_pool(echo_server(close_with(1011, after=0)))
    with other.acquire("/") as conn, pytest.raises(ConnectionClosedError):
        next(conn)


@pytest.mark.parametrize("code", [1002, 1008, 1011, 1012, 3000, 4999])
def test_iteration_raises_at_any_other_close(echo_server: MakeServer, code: int, make_pool: MakePool) -> None:
    with make_pool(echo_server(close_with(code, "why"))).acquire("/") as conn:
        conn.send(1)
        got = []
        with pytest.raises(ConnectionClosedError) as raised:
            got.extend(conn)
        assert (raised.value.code, raised.value.reason) == (code, "why")
        assert not raised.value.is_normal


def test_what_came_before_the_close_can_be_read(echo_server: MakeServer, make_pool: MakePool) -> None:
    with make_pool(echo_server(close_with(1000, after=3))).acquire("/") as conn:
        for number in range(3):
            conn.send(number)
        wait_until(lambda: not conn.is_connected)
        assert list(conn) == [0, 1, 2]
        with pytest.raises(ConnectionClosedError):
            conn.send(4)


def test_a_cut_connection_is_abnormal(echo: EchoServer, make_pool: MakePool) -> None:
    with make_pool(echo).acquire("/") as conn:
        conn.request(1, 5)
        echo.cut_all()
        with pytest.raises(ConnectionClosedError) as raised:
            list(conn)
        assert raised.value.code == 1006
        assert isinstance(raised.value, builtins.ConnectionError)


# --- what it tells


def test_headers_subprotocol_uri_and_latency(echo_server: MakeServer, make_pool: MakePool) -> None:
    def process_response(_conn: Any, _request: Any, response: Any) -> None:
        response.headers["X-Region"] = "north"

    server = echo_server(subprotocols=["v2.json", "v1.json"], process_response=process_response)
    pool = make_pool(server, manager_kwargs={"subprotocols": ["v9.json", "v1.json"]})
    with pool.acquire("/a?token=secret") as conn:
        assert conn.subprotocol == "v1.json"
        assert conn.response_headers["x-region"] == conn.response_headers["X-REGION"] == "north"
        assert "x-ReGion" in conn.response_headers
        assert conn.uri == server.uri_for("/a?token=***")
        assert "secret" not in repr(conn)
        assert conn.latency_ms is None
        assert 0 < conn.ping(5) < 5
        assert conn.latency_ms == pytest.approx(conn.ping(5) * 1000) or conn.latency_ms > 0
        assert "connected" in repr(conn)
    assert "released" in repr(conn)
    assert not conn.is_connected
    assert conn.subprotocol == "v1.json"  # what it was can still be asked


def test_ping_keeps_messages_that_come_meanwhile(echo: EchoServer, make_pool: MakePool) -> None:
    with make_pool(echo).acquire("/") as conn:
        for number in range(5):
            conn.send(number)
        conn.ping(5)
        assert [conn.recv(5) for _ in range(5)] == [0, 1, 2, 3, 4]


# --- typed messages


class Tick(pydantic.BaseModel):
    price: float
    size: int = 1


class Trade(msgspec.Struct):
    price: float
    size: int = 1


@dataclasses.dataclass
class Quote:
    price: float
    size: int = 1


@pytest.mark.parametrize("kind", [Tick, Trade, Quote])
def test_message_type(echo: EchoServer, kind: Any, make_pool: MakePool) -> None:
    pool = make_pool(echo, manager_kwargs={"message_type": kind})
    with pool.acquire("/") as conn:
        assert conn.request(kind(price=1.5, size=2), 5) == kind(price=1.5, size=2)
        assert conn.request({"price": 3}, 5) == kind(price=3)
        conn.send({"price": "cheap"})
        with pytest.raises(DecodeError, match="price") as raised:
            conn.recv(5)
        assert json.loads(raised.value.payload) == {"price": "cheap"}
        assert conn.request({"price": 4}, 5).price == 4
    assert echo.opened == 1


# --- giving back


def test_release_twice_is_harmless(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    conn = pool.acquire("/")
    conn.release()
    conn.release()
    pool.release(conn)
    with conn:
        pass
    with pool.acquire("/") as next_one:
        conn.release()  # not the next borrower's business
        assert next_one.request(1, 5) == 1
        assert pool.stats().active_connections == 1
    assert pool.stats().acquires == 2


def test_a_lease_after_release_touches_nobody(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    old = pool.acquire("/")
    old.request(1, 5)
    old.release()
    with pool.acquire("/") as conn:
        assert conn.id == old.id
        conn.send("mine")
        for call in (
            lambda: old.send("foreign"),
            lambda: old.send_raw("foreign"),
            lambda: old.recv(1),
            lambda: old.recv_raw(1),
            lambda: old.request("foreign", 1),
            lambda: old.ping(1),
            lambda: next(iter(old)),
            lambda: next(old),
            old.discard,
        ):
            with pytest.raises(InvalidStateError, match=f"{echo.uri}/ was released"):
                call()
        old.release()
        assert conn.recv_raw(5) == "mine"
    assert echo.messages == 2
    with pool.acquire("/") as conn:
        assert conn.id == old.id


def test_discard_closes_at_release(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        conn.request(1, 5)
        conn.discard()
        assert conn.request(2, 5) == 2  # until then it works
        first = conn.id
    wait_until(lambda: echo.open_now == 0)
    with pool.acquire("/") as conn:
        assert conn.id != first
    assert pool.stats().discards == {"discarded": 1}


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["balanced", "quiet", "always"])
def test_a_blocked_reader_never_gets_the_next_borrowers_reply(
    echo: EchoServer, reuse: str, make_pool: MakePool
) -> None:
    pool = make_pool(echo, max_connections=1, reuse=reuse)
    with ThreadPoolExecutor(1) as other:
        for number in range(20):
            conn = pool.acquire("/")
            conn.request(0, 5)
            blocked = other.submit(conn.recv, 5)
            wait_until(blocked.running)
            conn.release()
            with pool.acquire("/") as mine:
                assert mine.request({"mine": number}, 5) == {"mine": number}
            with pytest.raises((ConnectionClosedError, InvalidStateError)):
                blocked.result(5)


def test_a_thread_that_goes_on_after_release_disturbs_nobody(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=2)

    def hammer(conn: Any) -> int:
        for number in range(100_000):
            try:
                assert conn.request({"old": number}, 5) == {"old": number}
            except (ConnectionClosedError, InvalidStateError):
                return number
        raise AssertionError("it was never refused")

    with ThreadPoolExecutor(2) as others:
        for number in range(50):
            conn = pool.acquire("/")
            running = others.submit(hammer, conn)
            wait_until(running.running)
            conn.release()
            with pool.acquire("/") as mine:
                for part in range(5):
                    assert mine.request([number, part], 5) == [number, part]
            running.result(10)
    assert echo.most_open <= 2


def test_a_ping_that_another_thread_waits_for_ends_with_the_lease(
    raw_server: MakeRaw, make_pool: MakePool
) -> None:
    pool = make_pool(raw_server(opcodes), max_connections=1)  # a server that answers no ping
    conn = pool.acquire("/")
    wire = conn._entry.wire
    with ThreadPoolExecutor(2) as threads:
        reply = threads.submit(conn.recv_raw, 10)
        wait_until(wire.readlock.locked)
        pinging = threads.submit(conn.ping, 10)
        wait_until(lambda: wire.ping_due_since)
        conn.send("mine")
        assert reply.result(5) == "1 mine"
        conn.release()
        with pytest.raises((InvalidStateError, ConnectionClosedError)):
            pinging.result(3)
    with pool.acquire("/") as conn:
        conn.send("next")
        assert conn.recv_raw(5) == "1 next"


@pytest.mark.parametrize("secure", [False, True])
def test_one_thread_sends_while_another_receives(
    echo: EchoServer, echo_tls: EchoServer, tls: Any, secure: bool, make_pool: MakePool
) -> None:
    server = echo_tls if secure else echo
    pool = make_pool(server, manager_kwargs={"ssl_context": tls.client_context})
    count = 500
    with pool.acquire("/") as conn, ThreadPoolExecutor(1) as other:
        received = other.submit(lambda: [conn.recv(10) for _ in range(count)])
        for number in range(count):
            conn.send({"n": number, "pad": "x" * (number * 7 % 3000)})
        assert [message["n"] for message in received.result(20)] == list(range(count))
        first = conn.id
    with pool.acquire("/") as conn:
        assert conn.id == first


# --- a stale connection costs the borrower nothing


@pytest.fixture(params=["cut", "close", "reset"])
def kill(request: pytest.FixtureRequest) -> Callable[[FaultProxy, EchoServer], None]:
    """Ends every connection, in one of the ways in which they end."""

    def end(proxy: FaultProxy, server: EchoServer) -> None:
        if request.param == "close":
            server.close_all()
        elif request.param == "cut":
            proxy.cut()
        else:
            proxy.reset()
        wait_until(lambda: server.open_now == 0)

    return end


def test_killed_while_idle(
    echo: EchoServer, proxy: Callable[..., FaultProxy], kill: Any, make_pool: MakePool
) -> None:
    between = proxy(echo)
    pool = make_pool(between.uri(), max_connections=3)
    assert pool.prewarm("/", 3) == 3
    wait_until(lambda: echo.open_now == 3)
    kill(between, echo)
    with pool.acquire("/", 5) as conn:
        assert conn.is_connected
        assert conn.request(1, 5) == 1
    assert pool.stats().total_reconnects == 1
    assert pool.stats().discards["closed"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["send", "send_raw", "request"])
@pytest.mark.parametrize("before", ["used", "prewarmed"])
def test_killed_between_acquire_and_first_send(
    echo: EchoServer,
    proxy: Callable[..., FaultProxy],
    kill: Any,
    make_pool: MakePool,
    *,
    way: str,
    before: str,
) -> None:
    between = proxy(echo)
    pool = make_pool(between.uri(), max_connections=1)
    if before == "used":
        pool.request("/", 0, 5)
    else:
        pool.prewarm("/", 1)
        wait_until(lambda: echo.open_now == 1)  # or there is nothing to kill yet
    with pool.acquire("/") as conn:
        first = conn.id
        kill(between, echo)
        if way == "request":
            assert conn.request(7, 5) == 7
        else:
            getattr(conn, way)("7")
            assert conn.recv(5) == 7
        assert conn.id != first
        second = conn.id
    stats = pool.stats()
    assert (stats.total_connections, stats.total_reconnects, stats.reuses) == (2, 1, 0)
    assert stats.acquires == (2 if before == "used" else 1)
    assert (stats.active_connections, stats.idle_connections) == (0, 1)
    with pool.acquire("/") as conn:
        assert conn.id == second
    assert echo.most_open == 1


def test_a_fresh_connection_that_dies_is_not_replaced(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        wait_until(lambda: echo.open_now == 1)
        echo.cut_all()
        with pytest.raises(ConnectionClosedError):
            conn.request(1, 5)
    assert echo.opened == 1


def test_after_a_use_it_is_not_replaced(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    pool.request("/", 0, 5)
    with pool.acquire("/") as conn:
        conn.request(1, 5)
        echo.cut_all()
        with pytest.raises(ConnectionClosedError):
            conn.request(2, 5)
    assert echo.opened == 1
    assert echo.messages == 2


def test_after_a_byte_has_left_the_caller_decides(
    echo: EchoServer, proxy: Callable[..., FaultProxy], make_pool: MakePool
) -> None:
    between = proxy(echo)
    pool = make_pool(between.uri())
    pool.request("/", 0, 5)
    with pool.acquire("/") as conn:
        between.cut(after=20, direction="up")
        with pytest.raises(ConnectionClosedError):
            conn.request("x" * 100, 5)
    assert echo.messages == 1
    assert echo.opened == 1


def test_idempotent_requests_are_sent_once_more(
    echo: EchoServer, proxy: Callable[..., FaultProxy], make_pool: MakePool
) -> None:
    between = proxy(echo)
    pool = make_pool(between.uri())
    pool.request("/", 0, 5)
    between.cut(after=20, direction="up")
    assert pool.request("/", ["x" * 100], 5, idempotent=True) == ["x" * 100]
    between.cut(after=20, direction="up")
    with pytest.raises(ConnectionClosedError):
        pool.request("/", ["x" * 100], 5)
    assert echo.opened == 2


def test_an_idempotent_request_gives_up_after_the_second_time(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server(lambda conn: conn.recv() and conn.cut())
    with pytest.raises(ConnectionClosedError):
        make_pool(server).request("/", 1, 5, idempotent=True)
    assert server.messages == 2


@pytest.mark.parametrize(("ends", "answered"), [(4, True), (5, False)])
def test_an_idempotent_request_tries_new_connections_as_often_as_a_dial(
    echo_server: MakeServer, make_pool: MakePool, ends: int, answered: bool
) -> None:
    """A server that is being restarted accepts, and closes, for a while."""
    connections = itertools.count(1)

    def end(conn: Connection) -> None:
        message = conn.recv()
        if next(connections) > ends:
            conn.send(message)

    server = echo_server(end)
    pool = make_pool(server, manager_kwargs={"connect_attempts": 5})
    if answered:
        assert pool.request("/", [1], 5, idempotent=True) == [1]
    else:
        with pytest.raises(ConnectionClosedError):
            pool.request("/", [1], 5, idempotent=True)
    assert server.opened == 5


def test_an_idempotent_request_outlives_all_idle_connections(
    raw_server: Callable[..., RawServer], make_pool: MakePool
) -> None:
    """What cuts one connection off without a word, a firewall say, has cut off those beside it."""
    accepted = itertools.count(1)

    def script(sock: socket.socket) -> None:
        number = next(accepted)
        upgrade(sock)
        while True:
            got = read_client_frame(sock)
            if number <= 3:
                reset(sock)
                return
            sock.sendall(frame(got.opcode, got.payload))

    pool = make_pool(raw_server(script), max_connections=4)
    assert pool.prewarm("/", 3) == 3
    assert pool.request("/", [1], 5, idempotent=True) == [1]
    assert pool.stats().total_connections == 4


def test_a_lease_released_while_it_moves_takes_no_connection_along(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    hold, dialled = threading.Event(), threading.Event()
    hold.set()

    def process_request(*_: Any) -> None:
        dialled.set()
        hold.wait(5)

    server = echo_server(process_request=process_request)
    pool = make_pool(server, max_connections=1)
    pool.request("/", 0, 5)
    conn = pool.acquire("/")
    server.cut_all()
    hold.clear()
    dialled.clear()
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(conn.send, "late")
        assert dialled.wait(5)  # it is on its way to another connection
        conn.release()
        hold.set()
        with pytest.raises((InvalidStateError, ConnectionClosedError)):
            sent.result(5)
    assert not conn.is_connected
    with pytest.raises(InvalidStateError):
        conn.send("later")
    with pool.acquire("/") as mine:
        assert mine.request("1", 5) == 1
    wait_until(lambda: server.open_now == 1)
    assert server.messages == 2


def test_a_move_that_fails_gives_everything_back(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    pool.request("/", 0, 5)
    with pool.acquire("/") as conn:
        echo.stop(abrupt=True)
        with pytest.raises(builtins.ConnectionError, match="cannot connect"):
            conn.request(1, 1)
        for use in (conn.recv, conn.ping, lambda: next(iter(conn)), lambda: conn.send(1)):
            with pytest.raises(ConnectionClosedError, match="is over"):  # by now it is as any that has ended
                use()
        assert not conn.is_connected
        assert "closed" in repr(conn)
    with pytest.raises(InvalidStateError, match="released"):
        conn.recv()
    stats = pool.stats()
    assert (stats.active_connections, stats.idle_connections, stats.acquires) == (0, 0, 2)
    assert (stats.total_connections, stats.discards) == (1, {"closed": 1})
    echo.restart()
    for number in range(3):
        assert pool.request("/", number, 5) == number
        echo.close_all()
        wait_until(lambda: echo.open_now == 0)
    assert pool.stats().total_reconnects == 3  # the one lost before the move, and two here


def test_a_move_that_fails_shows_nothing_that_came_unasked(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server()
    pool = make_pool(server)
    pool.request("/", 0, 5)
    with pool.acquire("/") as conn:
        server.broadcast('"for somebody else"')
        wait_until(lambda: conn._entry.wire.look() and conn._entry.wire.unread)
        server.stop()
        with pytest.raises(builtins.ConnectionError, match="cannot connect"):
            conn.send(1)
        with pytest.raises(ConnectionClosedError):
            conn.recv()
