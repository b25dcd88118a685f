"""What the tests of one connection share."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from jetsocket.wire.stream import Stream
from jetsocket.wire.websocket import WebSocket
from tests.awake import awake
from tests.servers import RawServer, echo_bytes, open_sockets, wait_until

RawFactory = Callable[..., RawServer]
Connect = Callable[..., WebSocket]
LATE = 3.0  # s; far from the deadlines below, and from every fallback


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open connections that are closed at the end of the test."""
    opened: list[WebSocket] = []

    def open_one(uri: str, *, max_message_size: int = 1 << 26, **options: Any) -> WebSocket:
        ws = WebSocket(max_message_size=max_message_size)
        opened.append(ws)
        ws.connect(uri, timeout=5, **options)
        return ws

    yield open_one
    for ws in opened:
        ws.shutdown()


@pytest.fixture
def nothing_left_open(no_leaked_threads: None) -> Iterator[None]:
    """Fail a test that leaves a socket open."""
    before = open_sockets()
    yield
    wait_until(lambda: open_sockets() <= before, message="every socket is closed")


@pytest.fixture
def server(nothing_left_open: None, raw_server: RawFactory) -> RawServer:
    """A server that sends back what it gets, without any upgrade."""
    return raw_server(echo_bytes)


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[tuple[str, int]]]:
    """A DNS for tests: the addresses of a name, in order; all other names as ever."""
    known: dict[str, list[tuple[str, int]]] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, family: int = 0, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in known:
            return real(host, port, family, *args, **kwargs)
        return [
            (kind, socket.SOCK_STREAM, 6, "", address)
            for address in known[host]
            for kind in [socket.AF_INET6 if ":" in address[0] else socket.AF_INET]
            if family in (0, kind)
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def without_python_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra `proxy` were not installed."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "python_socks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "python_socks", None)


def soon(seconds: float = 5.0) -> float:
    return monotonic() + seconds


def says_hello(stream: Stream) -> bool:
    """Whether an echo server answers at the other end."""
    stream.write(b"hello", soon())
    answer = b""
    while len(answer) < 5:
        assert stream.wait_readable(soon())
        data = stream.read_now()
        assert data != b"", "the stream has ended"
        answer += data or b""
    return answer == b"hello"


class Stopwatch:
    """Asserts that its block ends before `most` seconds."""

    def __init__(self, most: float = LATE) -> None:
        self.most = most

    def __enter__(self) -> None:
        self.start = awake()

    def __exit__(self, *exc_info: object) -> None:
        assert awake() - self.start < self.most


def in_background(work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a thread that ends with it."""
    with_one = ThreadPoolExecutor(1)
    future = with_one.submit(work)
    with_one.shutdown(wait=False)
    return future
