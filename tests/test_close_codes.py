"""Close codes: the borrower's own (`discard`), and the end that has none (RFC 6455 §7.1.5, §7.4).

Also tests: `wire/close_codes`.
"""

from __future__ import annotations

import enum
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, PooledConnection
from jetsocket.exceptions import ConnectionClosedError, ConnectionError, InvalidStateError
from tests import servers
from tests.servers import EchoServer, RawServer, after_upgrade, frame, read_client_frame, wait_until

MakePool = Callable[..., ConnectionPool[Any]]
MakeRaw = Callable[..., RawServer]


class Noting:
    """A script that echoes, and notes what the client's close frame says; None: the connection just ended."""

    def __init__(self) -> None:
        self.closes: list[bytes | None] = []
        self._lock = threading.Lock()

    def __call__(self, sock: socket.socket) -> None:
        said: bytes | None = None
        try:
            servers.upgrade(sock)
            while (received := read_client_frame(sock)).opcode != 8:
                sock.sendall(frame(received.opcode, received.payload))
            said = received.payload
            sock.sendall(frame(8, said))
        finally:
            with self._lock:
                self.closes.append(said)

    def wait(self) -> bytes | None:
        wait_until(lambda: self.closes)
        (said,) = self.closes
        return said


@pytest.fixture
def noting(raw_server: MakeRaw) -> tuple[RawServer, Noting]:
    script = Noting()
    return raw_server(script), script


def encoded(code: int, reason: str = "") -> bytes:
    return code.to_bytes(2, "big") + reason.encode()


class Codes(enum.IntEnum):
    OURS = 4321


# --- discard


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((), encoded(1000)),
        ((1000,), encoded(1000)),
        ((1000, "done"), encoded(1000, "done")),
        ((3000,), encoded(3000)),
        ((4999, "žluťoučký 🐎"), encoded(4999, "žluťoučký 🐎")),
        ((Codes.OURS, "é" * 61), encoded(4321, "é" * 61)),
        ((4000, "x" * 123), encoded(4000, "x" * 123)),
    ],
)
def test_a_borrower_s_own_code(
    noting: tuple[RawServer, Noting], make_pool: MakePool, given: tuple[Any, ...], said: bytes
) -> None:
    server, script = noting
    pool = make_pool(server)
    with pool.acquire("/", 5) as conn:
        assert conn.request({"id": 1}, 5) == {"id": 1}
        conn.discard(*given)
        assert conn.request({"id": 2}, 5) == {"id": 2}  # it is closed at release, not before
    assert script.wait() == said
    assert pool.stats().discards == {"discarded": 1}


def test_by_name_and_the_last_one_counts(noting: tuple[RawServer, Noting], make_pool: MakePool) -> None:
    server, script = noting
    lease = make_pool(server).acquire("/", 5)
    lease.discard(code=4001, reason="first")
    lease.discard(reason="second", code=4002)
    with pytest.raises(ValueError, match="1006"):
        lease.discard(1006)  # changes nothing
    lease.release()
    assert script.wait() == encoded(4002, "second")


def test_with_an_exception_on_its_way(noting: tuple[RawServer, Noting], make_pool: MakePool) -> None:
    server, script = noting
    with pytest.raises(KeyError), make_pool(server).acquire("/", 5) as conn:
        conn.discard(4000, "wrong answer")
        raise KeyError
    assert script.wait() == encoded(4000, "wrong answer")


@pytest.mark.parametrize("code", [-1, 0, 999, 1001, 1005, 1006, 1011, 1015, 2999, 5000, 65536, 10**400])
def test_codes_that_are_not_the_borrower_s(echo: EchoServer, make_pool: MakePool, code: int) -> None:
    pool = make_pool(echo)
    with pool.acquire("/", 5) as conn:
        with pytest.raises(ValueError, match="1000, or 3000 to 4999"):
            conn.discard(code)
        assert not conn._discarded
    assert pool.stats().idle_connections == 1


@pytest.mark.parametrize("reason", ["x" * 124, "é" * 62, "\ud800"])
def test_reasons_that_fit_in_no_close_frame(echo: EchoServer, make_pool: MakePool, reason: str) -> None:
    with make_pool(echo).acquire("/", 5) as conn, pytest.raises(ValueError, match="reason must"):
        conn.discard(4000, reason)


@pytest.mark.parametrize("given", [("1000",), (1000.0,), (True,), (None,), (1000, b"bytes"), (1000, None)])
def test_what_is_neither_code_nor_reason(
    echo: EchoServer, make_pool: MakePool, given: tuple[Any, ...]
) -> None:
    with make_pool(echo).acquire("/", 5) as conn, pytest.raises(TypeError, match="must be"):
        conn.discard(*given)


def test_not_after_release(echo: EchoServer, make_pool: MakePool) -> None:
    lease = make_pool(echo).acquire("/", 5)
    lease.release()
    with pytest.raises(InvalidStateError):
        lease.discard(4000)


def test_configure_and_reset_may_say_why_too(noting: tuple[RawServer, Noting], make_pool: MakePool) -> None:
    server, script = noting
    pool = make_pool(server, configure=lambda conn: conn.discard(4001, "not today"))
    with pytest.raises(ConnectionError, match="configure"):
        pool.acquire("/", 5)
    assert script.wait() == encoded(4001, "not today")

    script.closes.clear()
    pool = make_pool(server, reset=lambda conn: conn.discard(4002, "not again"))
    pool.acquire("/", 5).release()
    assert script.wait() == encoded(4002, "not again")


# --- no code at all


EMPTY_CLOSE = frame(8)


def closing_without_a_code(*messages: bytes) -> servers.Script:
    return after_upgrade(*messages, EMPTY_CLOSE)


def test_iteration_stops(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(closing_without_a_code(frame(1, b"1"), frame(1, b"2")))
    pool = make_pool(server)
    with pool.acquire("/", 5) as conn:
        assert list(conn) == [1, 2]
        assert list(conn) == []
        with pytest.raises(StopIteration):
            next(conn)
        assert not conn.is_connected


def test_recv_says_what_it_was(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lease = make_pool(raw_server(closing_without_a_code())).acquire("/", 5)
    with lease as conn, pytest.raises(ConnectionClosedError) as caught:
        conn.recv(5)
    error = caught.value
    assert error.is_normal
    assert (error.code, error.reason) == (1005, "")
    assert "without a status code" in str(error)
    assert "1005" not in str(error)


@pytest.mark.parametrize(("code", "normal"), [(1000, True), (1001, True), (1011, False), (4000, False)])
def test_those_with_one_are_what_they_were(
    raw_server: MakeRaw, make_pool: MakePool, code: int, normal: bool
) -> None:
    server = raw_server(after_upgrade(servers.close_frame(code, b"why")))
    lease = make_pool(server).acquire("/", 5)
    with lease as conn, pytest.raises(ConnectionClosedError, match=f"with {code} 'why'") as caught:
        conn.recv(5)
    assert caught.value.is_normal == normal


def test_a_connection_that_is_lost_has_no_orderly_end(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lease = make_pool(raw_server(after_upgrade(then=servers.reset))).acquire("/", 5)
    with lease as conn, pytest.raises(ConnectionClosedError) as caught:
        list(conn)
    assert (caught.value.code, caught.value.is_normal) == (1006, False)


def test_the_answer_is_a_close_frame(raw_server: MakeRaw, make_pool: MakePool) -> None:
    answers: list[int] = []

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        sock.sendall(EMPTY_CLOSE)
        answers.append(read_client_frame(sock).opcode)

    with make_pool(raw_server(script)).acquire("/", 5) as conn:
        assert list(conn) == []
    wait_until(lambda: answers == [8])


def test_two_threads_see_the_same_end(raw_server: MakeRaw, make_pool: MakePool) -> None:
    go = threading.Event()

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        go.wait(5)
        sock.sendall(EMPTY_CLOSE)
        servers.hold(sock)

    def read(conn: PooledConnection[Any]) -> None:
        ends.append(list(conn))

    ends: list[list[Any]] = []
    with make_pool(raw_server(script)).acquire("/", 5) as conn:
        threads = [threading.Thread(target=read, args=(conn,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        go.set()
        for thread in threads:
            thread.join(5)
    assert ends == [[], []]
