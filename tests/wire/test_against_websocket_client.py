"""Why there is a class of our own: what websocket-client does, beside what we do (docs/how-it-works.md).

Each promise of ours has its twin, `test_websocket_client_still_…`, which fails when upstream has mended it.

No twin for, because it could not be shown cheaply or reliably:

- sending and receiving at once on one `SSLSocket`: breaks in about half of the runs (that ours holds is
  tested in test_channel.py);
- 16 MiB in 1 KiB fragments, and the check of UTF-8 in Python: seconds and minutes, shown by the benchmarks;
- system calls for each frame: shown by the benchmarks;
- a first address that times out ends the connect: needs an address that swallows packets.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any

import pytest
import websocket
from websocket._handshake import CookieJar

from jetsocket import ConnectionPool
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    HandshakeError,
    InvalidStateError,
    MessageTooBigError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.servers import EchoServer, RawServer, after_upgrade, close_frame, frame, wait_until

RawFactory = Callable[..., RawServer]


@pytest.fixture
def theirs() -> Iterator[Callable[..., websocket.WebSocket]]:
    """Connect with websocket-client as it is."""
    opened = []

    def connect(uri: str, timeout: float | None = 5, **options: Any) -> websocket.WebSocket:
        opened.append(websocket.create_connection(uri, timeout=timeout, **options))
        return opened[-1]

    yield connect
    for ws in opened:
        ws.shutdown()


@pytest.fixture
def ours() -> Iterator[Callable[..., WebSocket]]:
    """Connect with our class, through websocket-client's own function."""
    opened: list[WebSocket] = []

    def connect(uri: str, timeout: float | None = 5, **options: Any) -> WebSocket:
        opened.append(websocket.create_connection(uri, timeout=timeout, class_=WebSocket, **options))
        return opened[-1]

    yield connect
    for ws in opened:
        ws.shutdown()


Theirs = Callable[..., websocket.WebSocket]
Ours = Callable[..., WebSocket]


# --- timeouts are for each system call


def dripping_handshake(sock: socket.socket) -> None:
    request = servers.read_request(sock)
    servers.drip(sock, servers.upgrade_response(request), 0.01)  # 130 B: more than a second
    servers.hold(sock)


def test_one_deadline_over_the_handshake(raw_server: RawFactory, ours: Ours) -> None:
    with pytest.raises(TimeoutError):
        ours(raw_server(dripping_handshake).uri, timeout=0.4)


@pytest.mark.slow
def test_websocket_client_still_times_each_read_of_the_handshake(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    assert theirs(raw_server(dripping_handshake).uri, timeout=0.4).connected


# --- the head is read without limit, and so is an error body


def long_head(sock: socket.socket) -> None:
    request = servers.read_request(sock)
    sock.sendall(servers.upgrade_response(request, [("X", "x" * 1000)] * 100))
    servers.hold(sock)


def long_refusal(sock: socket.socket) -> None:
    servers.read_request(sock)
    body = b"x" * 300_000
    sock.sendall(servers.response("401 Unauthorized", [("Content-Length", str(len(body)))], body))


def test_head_and_error_body_have_limits(raw_server: RawFactory, ours: Ours) -> None:
    with pytest.raises(HandshakeError, match="65536"):
        ours(raw_server(long_head).uri)
    with pytest.raises(HandshakeError) as caught:
        ours(raw_server(long_refusal).uri)
    assert len(caught.value.body) == 4096


def test_websocket_client_still_reads_heads_and_error_bodies_without_limit(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    assert theirs(raw_server(long_head).uri).connected
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        theirs(raw_server(long_refusal).uri)
    assert len(caught.value.resp_body) == 300_000


# --- wss:// with a socket of the caller's is plaintext


def test_wss_is_tls(raw_server: RawFactory, ours: Ours) -> None:
    first: list[bytes] = []
    server = raw_server(lambda sock: first.append(sock.recv(1)))
    with pytest.raises(ConnectionError):
        ours(f"wss://{server.host}:{server.port}/")
    assert first == [b"\x16"]


def test_websocket_client_still_speaks_plaintext_over_a_given_socket(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    server = raw_server(after_upgrade())
    with socket.create_connection((server.host, server.port), 5) as sock:
        assert theirs(f"wss://{server.host}:{server.port}/", socket=sock).connected


# --- connected stays True


def not_reading(sock: socket.socket) -> None:
    poller = select.poll()
    poller.register(sock, 0)  # a hang-up only: the end of either side
    poller.poll(20_000)


def test_a_connection_that_failed_is_not_connected(raw_server: RawFactory, ours: Ours) -> None:
    idle = ours(raw_server(after_upgrade(then=not_reading)).uri)
    idle.settimeout(0.2)
    with pytest.raises(TimeoutError):
        idle.send(bytes(8_000_000))
    assert not idle.connected
    faulty = ours(raw_server(after_upgrade(frame(3))).uri)
    with pytest.raises(ProtocolError):
        faulty.recv()
    assert not faulty.connected


def test_websocket_client_still_takes_half_a_frame_for_connected(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    idle = theirs(raw_server(after_upgrade(then=not_reading)).uri)
    idle.settimeout(0.2)
    with pytest.raises(websocket.WebSocketTimeoutException):
        idle.send(bytes(8_000_000))
    assert idle.connected
    faulty = theirs(raw_server(after_upgrade(frame(3))).uri)
    with pytest.raises(websocket.WebSocketProtocolException):
        faulty.recv()
    assert faulty.connected


# --- a close looks like an empty message


def test_a_close_is_no_message(raw_server: RawFactory, ours: Ours) -> None:
    ws = ours(raw_server(after_upgrade(frame(1, b"") + close_frame())).uri)
    assert ws.recv() == ""
    with pytest.raises(ConnectionClosedError):
        ws.recv()


def test_websocket_client_still_returns_an_empty_message_at_a_close(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    ws = theirs(raw_server(after_upgrade(frame(1, b"") + close_frame())).uri)
    assert [ws.recv(), ws.recv()] == ["", ""]


# --- shutdown() and blocked readers, close() and Ctrl-C


def wakes(ws: websocket.WebSocket, wait: float) -> bool:
    with ThreadPoolExecutor(1) as pool:
        blocked = pool.submit(ws.recv)
        wait_until(ws.readlock.locked)
        time.sleep(0.1)  # until it is in the system call; nothing there to wait for
        sock = ws.sock
        ws.shutdown()
        try:
            blocked.exception(wait)
        except FutureTimeout:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            return False
        return True


def test_shutdown_wakes_a_blocked_reader(raw_server: RawFactory, ours: Ours) -> None:
    assert wakes(ours(raw_server(after_upgrade()).uri, timeout=None), 5)


@pytest.mark.slow
def test_websocket_client_still_leaves_a_blocked_reader_at_shutdown(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    def end_later(sock: socket.socket) -> None:
        servers.upgrade(sock)
        time.sleep(1.5)

    assert not wakes(theirs(raw_server(end_later).uri, timeout=None), 0.5)


@contextlib.contextmanager
def ctrl_c_after(seconds: float) -> Iterator[None]:
    """Strike the main thread with KeyboardInterrupt, as Ctrl-C does."""
    before = signal.signal(signal.SIGUSR1, signal.default_int_handler)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGUSR1))
    timer.start()
    try:
        yield
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_close_lets_ctrl_c_through(raw_server: RawFactory, ours: Ours) -> None:
    ws = ours(raw_server(after_upgrade()).uri)
    with pytest.raises(KeyboardInterrupt), ctrl_c_after(0.2):
        ws.close(timeout=5)


def test_websocket_client_still_swallows_ctrl_c_in_close(raw_server: RawFactory, theirs: Theirs) -> None:
    ws = theirs(raw_server(after_upgrade()).uri)
    with ctrl_c_after(0.2):
        ws.close(timeout=5)


# --- pings are answered only inside recv()


def ask_for_a_pong(answers: list[int | None], patience: float) -> servers.Script:
    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        sock.sendall(frame(9, b"?"))
        sock.settimeout(patience)
        try:
            answers.append(servers.read_client_frame(sock).opcode)
        except builtins.TimeoutError:
            answers.append(None)
        sock.settimeout(None)
        servers.hold(sock)

    return script


def test_pings_are_answered_while_nobody_reads(raw_server: RawFactory) -> None:
    answers: list[int | None] = []
    server = raw_server(ask_for_a_pong(answers, 10))
    with ConnectionPool(manager_kwargs={"close_timeout": 0.1}) as pool, pool.acquire(server.uri):
        wait_until(lambda: answers == [10])


def test_websocket_client_still_answers_pings_only_in_recv(raw_server: RawFactory, theirs: Theirs) -> None:
    answers: list[int | None] = []
    theirs(raw_server(ask_for_a_pong(answers, 0.5)).uri)
    wait_until(lambda: answers == [None])


# --- no limit on a message


def test_a_message_has_a_limit(raw_server: RawFactory, ours: Ours) -> None:
    ws = ours(raw_server(after_upgrade(frame(2, bytes(2_000_000)))).uri, max_message_size=1_000_000)
    with pytest.raises(MessageTooBigError):
        ws.recv()


def test_websocket_client_still_has_no_limit(raw_server: RawFactory, theirs: Theirs) -> None:
    ws = theirs(raw_server(after_upgrade(frame(2, bytes(2_000_000)))).uri, max_message_size=1_000_000)
    assert len(ws.recv()) == 2_000_000


# --- one cookie jar for the process


@pytest.fixture
def jar() -> Iterator[dict[str, Any]]:
    before = dict(CookieJar.jar)
    CookieJar.jar.clear()
    yield CookieJar.jar
    CookieJar.jar.clear()
    CookieJar.jar.update(before)


def set_cookie(cookies: list[str | None]) -> servers.Script:
    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        cookies.append(request.headers.get("cookie"))
        fields = [("Set-Cookie", f"session=of-A; Domain={servers.LOCALHOST}")]
        sock.sendall(servers.upgrade_response(request, fields))
        servers.hold(sock)

    return script


def test_cookies_go_to_nobody_else(raw_server: RawFactory, ours: Ours, jar: dict[str, Any]) -> None:
    cookies: list[str | None] = []
    server = raw_server(set_cookie(cookies))
    ws = ours(server.uri)
    assert "of-A" in ws.headers["set-cookie"]
    assert jar == {}
    CookieJar.set(f"session=by-hand; Domain={servers.LOCALHOST}")
    ours(server.uri)
    ours(server.uri, cookie="mine=1")
    assert cookies == [None, None, "mine=1"]


def test_websocket_client_still_has_one_jar_for_all(
    raw_server: RawFactory, theirs: Theirs, jar: dict[str, Any]
) -> None:
    cookies: list[str | None] = []
    server = raw_server(set_cookie(cookies))
    theirs(server.uri)
    theirs(server.uri)
    assert cookies == [None, "session=of-A"]


# --- redirects carry credentials anywhere


def redirected_with_credentials(
    raw_server: RawFactory, connect: Callable[..., Any], error: type[Exception] | None
) -> list[servers.Upgrade]:
    seen: list[servers.Upgrade] = []

    def elsewhere(sock: socket.socket) -> None:
        seen.append(servers.read_request(sock))
        sock.sendall(servers.upgrade_response(seen[-1]))
        servers.hold(sock)

    other = raw_server(elsewhere)
    first = raw_server(servers.answer("302 Found", [("Location", other.uri_for("/steal"))]))
    with contextlib.nullcontext() if error is None else pytest.raises(error, match=f":{other.port}/steal"):
        connect(first.uri, header=["Authorization: Bearer t"], cookie="c=1")
    if error is not None:
        assert other.accepted == 0
    return seen


def test_no_redirect_leads_to_another_origin(raw_server: RawFactory, ours: Ours) -> None:
    assert redirected_with_credentials(raw_server, ours, HandshakeError) == []


def test_websocket_client_still_carries_credentials_anywhere(raw_server: RawFactory, theirs: Theirs) -> None:
    [request] = redirected_with_credentials(raw_server, theirs, None)
    assert (request.headers["authorization"], request.headers["cookie"]) == ("Bearer t", "c=1")


# --- the request


def request_of(
    raw_server: RawFactory, connect: Callable[..., Any], rest: str, **options: Any
) -> servers.Upgrade:
    seen: list[servers.Upgrade] = []

    def script(sock: socket.socket) -> None:
        seen.append(servers.read_request(sock))
        sock.sendall(servers.upgrade_response(seen[0]))
        servers.hold(sock)

    server = raw_server(script)
    connect(f"ws://alice:pw@{server.host}:{server.port}{rest}", **options)
    return seen[0]


def test_the_request_says_what_was_meant_and_nothing_else(raw_server: RawFactory, ours: Ours) -> None:
    request = request_of(raw_server, ours, "/a;p=1?q=2")
    assert request.target == "/a;p=1?q=2"
    assert request.headers["authorization"].startswith("Basic ")
    with pytest.raises(ValueError, match="CR"):
        request_of(raw_server, ours, "/", header=["X: 1\r\nEvil: 2"])


def test_websocket_client_still_loses_and_adds_parts_of_the_request(
    raw_server: RawFactory, theirs: Theirs
) -> None:
    request = request_of(raw_server, theirs, "/a;p=1?q=2", header=["X: 1\r\nEvil: 2"])
    assert request.target == "/a?q=2"
    assert "authorization" not in request.headers
    assert request.headers["evil"] == "2"


# --- raw errors escape


def test_errors_are_ours(raw_server: RawFactory, ours: Ours) -> None:
    with servers.refusing_port() as port, pytest.raises(ConnectionError) as caught:
        ours(f"ws://127.0.0.1:{port}/")
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    with pytest.raises(ProtocolError) as fault:
        ours(raw_server(after_upgrade(frame(1, b"\xe2\x82"))).uri).recv()
    assert fault.value.code == 1007


def test_websocket_client_still_lets_raw_errors_out(raw_server: RawFactory, theirs: Theirs) -> None:
    with servers.refusing_port() as port, pytest.raises(ConnectionRefusedError):
        theirs(f"ws://127.0.0.1:{port}/")
    with pytest.raises(UnicodeDecodeError):
        theirs(raw_server(after_upgrade(frame(1, b"\xe2\x82"))).uri).recv()


# --- a reused object keeps half a frame


def half_then(sock: socket.socket) -> None:
    servers.upgrade(sock)
    sock.sendall(b"\x81\x05hel")


def test_an_object_is_one_connection(raw_server: RawFactory, ours: Ours, echo: EchoServer) -> None:
    ws = ours(raw_server(half_then).uri)
    with pytest.raises(ConnectionClosedError):
        ws.recv()
    with pytest.raises(InvalidStateError):
        ws.connect(echo.uri)


def test_websocket_client_still_keeps_half_a_frame(raw_server: RawFactory, theirs: Theirs) -> None:
    ws = theirs(raw_server(half_then).uri)
    with pytest.raises(websocket.WebSocketConnectionClosedException):
        ws.recv()
    ws.connect(raw_server(after_upgrade(frame(1, b"other"))).uri)
    with pytest.raises(websocket.WebSocketPayloadException, match="hel"):
        ws.recv()
