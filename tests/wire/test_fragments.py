"""Messages that are sent in several frames (`max_frame_size`, RFC 6455 §5.4)."""

from __future__ import annotations

import builtins
import contextlib
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.exceptions import ConnectionClosedError, ConnectionError, TimeoutError
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.servers import ClientFrame, EchoServer, RawServer, read_client_frame, wait_until
from tests.wire.conftest import in_background, soon

RawFactory = Callable[..., RawServer]
PoolFactory = Callable[..., ConnectionPool[Any]]
Connect = Callable[..., WebSocket]

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
DEFLATE = [("Sec-WebSocket-Extensions", "permessage-deflate")]


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open connections with frames of at most so many B; they are closed at the end."""
    opened: list[WebSocket] = []

    def open_one(uri: str, size: int, **options: Any) -> WebSocket:
        threshold = options.pop("compression_threshold", 0)
        opened.append(WebSocket(max_frame_size=size, compression_threshold=threshold))
        opened[-1].connect(uri, timeout=5, **options)
        return opened[-1]

    yield open_one
    for ws in opened:
        ws.shutdown()


class Frames:
    """A script that notes the frames that come, up to the close frame."""

    def __init__(self, headers: list[tuple[str, str]] | None = None) -> None:
        self.headers = headers or []
        self.frames: list[ClientFrame] = []
        self.ended = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        try:
            servers.upgrade(sock, self.headers)
            while (frame := read_client_frame(sock)).opcode != CLOSE:
                self.frames.append(frame)
            sock.sendall(servers.frame(CLOSE, frame.payload))
        finally:
            self.ended.set()

    def messages(self) -> list[tuple[list[int], bytes]]:
        """The sizes of each message's frames, and what they carry; no two messages may mix."""
        found: list[tuple[list[int], bytes]] = []
        whole = True
        for frame in self.frames:
            if frame.opcode >= CLOSE:
                continue
            assert (frame.opcode == CONTINUATION) == (not whole)
            if whole:
                found.append(([], b""))
            sizes, payload = found.pop()
            found.append(([*sizes, len(frame.payload)], payload + frame.payload))
            whole = bool(frame.fin)
        assert whole
        return found


@pytest.mark.parametrize(
    ("size", "sizes"),
    [
        (10, [0]),
        (10, [9]),
        (10, [10]),
        (10, [10, 1]),
        (10, [10, 10, 10]),
        (1, [1, 1, 1]),
        (32 * 1024, [32768, 32768, 32768, 1696]),
        (70_000, [70_000, 30_000]),
    ],
)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_how_a_message_is_cut(
    raw_server: RawFactory, connect: Connect, opcode: int, size: int, sizes: list[int]
) -> None:
    script, message = Frames(), b"x" * sum(sizes)
    ws = connect(raw_server(script).uri, size)
    ws.send_message(message.decode() if opcode == TEXT else message, soon())
    ws.send_message("next" if size > 3 else "n", soon())
    ws.close()
    assert script.messages()[0] == (sizes, message)
    assert [frame.opcode for frame in script.frames] == [opcode, *[CONTINUATION] * (len(sizes) - 1), TEXT]
    assert [frame.fin for frame in script.frames] == [*[0] * (len(sizes) - 1), 1, 1]
    assert all(frame.masked and not frame.rsv for frame in script.frames)


def test_characters_may_be_cut_through(echo: EchoServer, connect: Connect) -> None:
    ws = connect(echo.uri, 3)
    ws.send_message("žluťoučký kůň 🐎", soon())
    assert ws.recv_message(soon()) == "žluťoučký kůň 🐎"


def test_only_the_first_says_that_a_message_is_compressed(raw_server: RawFactory, connect: Connect) -> None:
    script = Frames(DEFLATE)
    ws = connect(raw_server(script).uri, 50, compress=True)
    message = bytes(range(256)) * 4
    for _ in range(3):
        ws.send_message(message, soon())
    ws.close()
    inflate = zlib.decompressobj(wbits=-15)
    for sizes, payload in script.messages():
        assert all(size == 50 for size in sizes[:-1]) and sizes[-1] <= 50
        assert inflate.decompress(payload + b"\x00\x00\xff\xff") == message
    firsts = [frame.rsv for frame in script.frames if frame.opcode == BINARY]
    others = [frame.rsv for frame in script.frames if frame.opcode == CONTINUATION]
    assert firsts == [4] * 3 and others and not any(others)


def test_what_compresses_to_less_is_one_frame(raw_server: RawFactory, connect: Connect) -> None:
    script = Frames(DEFLATE)
    ws = connect(raw_server(script).uri, 1000, compress=True)
    ws.send_message(b"again " * 10_000, soon())
    ws.close()
    ((sizes, _),) = script.messages()
    assert len(sizes) == 1 and sizes[0] <= 1000


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_over_a_pool(
    echo_server: Callable[..., EchoServer], make_pool: PoolFactory, compression: str | None
) -> None:
    pool = make_pool(echo_server(compression=compression), manager_kwargs={"max_frame_size": 1000})
    message = {"text": "0123456789" * 1000}
    for _ in range(3):
        assert pool.request("/", message, 5) == message
    assert pool.stats().total_connections == 1
    assert pool.stats().total_messages_sent == 3


def test_control_frames_are_not_cut(raw_server: RawFactory, connect: Connect) -> None:
    script = Frames()
    ws = connect(raw_server(script).uri, 2)
    assert ws.send_ping()
    ws.close(1000, "a reason of some length")
    assert [(frame.opcode, len(frame.payload)) for frame in script.frames] == [(PING, 4)]


def test_threads_do_not_mix_their_messages(raw_server: RawFactory, connect: Connect) -> None:
    script = Frames()
    ws = connect(raw_server(script).uri, 7)
    texts = [f"{n}" * 100 for n in range(8)]
    threads = [
        threading.Thread(target=lambda text=text: [ws.send_message(text, soon()) for _ in range(20)])
        for text in texts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ws.close()
    got = [payload.decode() for _, payload in script.messages()]
    assert sorted(got) == sorted(texts * 20)


class Slow(Frames):
    """Reads nothing until it is told to, so that a long message gets stuck on its way."""

    def __init__(self, first: bytes = b"") -> None:
        super().__init__()
        self.first = first
        self.go_on = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        request = servers.read_request(sock)
        sock.sendall(servers.upgrade_response(request) + self.first)
        self.go_on.wait(10)
        try:
            while (frame := read_client_frame(sock)).opcode != CLOSE:
                self.frames.append(frame)
            sock.sendall(servers.frame(CLOSE, frame.payload))
        finally:
            self.ended.set()


SMALL_BUFFER = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 * 1024)]
LONG = b"x" * (4 << 20)  # more than the kernel takes of it


def is_stuck(ws: WebSocket) -> bool:
    """Whether a send has begun and goes no further."""
    before = ws.bytes_out
    time.sleep(0.05)
    return ws.lock.locked() and 0 < before == ws.bytes_out


@pytest.mark.slow
def test_a_pong_goes_between(raw_server: RawFactory, connect: Connect) -> None:
    """A server that pings is answered while a message of minutes is on its way."""
    script = Slow(first=servers.frame(PING, b"are you") + servers.frame(PING, b"there"))
    ws = connect(raw_server(script).uri, 16_000, socket_options=SMALL_BUFFER)
    sending = in_background(lambda: ws.send_message(LONG, soon(20)))
    wait_until(lambda: is_stuck(ws))
    assert ws.tend()  # as the housekeeper does
    script.go_on.set()
    sending.result(20)
    ws.close()
    opcodes = [frame.opcode for frame in script.frames]
    assert opcodes[-1] == CONTINUATION  # the pongs came before the last of the message
    pongs = [frame for frame in script.frames if frame.opcode == PONG]
    assert [(pong.fin, pong.payload) for pong in pongs] == [(1, b"are you"), (1, b"there")]
    assert b"".join(payload for _, payload in script.messages()) == LONG


def test_a_deadline_in_the_middle_ends_the_connection(raw_server: RawFactory, connect: Connect) -> None:
    script = Slow()
    ws = connect(raw_server(script).uri, 16_000, socket_options=SMALL_BUFFER)
    with pytest.raises(TimeoutError) as caught:
        ws.send_message(LONG, soon(0.2))
    assert caught.value.operation == "send"
    assert ws.half_sent and ws.is_over
    with pytest.raises(ConnectionError):
        ws.send_message("anything", soon())
    script.go_on.set()


def test_one_between_two_frames_ends_it_too(raw_server: RawFactory, connect: Connect) -> None:
    """The stream is whole then, and yet the next message must not follow half of one."""
    script = Frames()
    ws = connect(raw_server(script).uri, 10)
    stream, written = ws._stream, []
    assert stream is not None
    real = stream.write

    def write(data: bytes, deadline: float | None) -> None:
        written.append(data)
        if len(written) == 3:  # as when the deadline passes before the kernel has taken a byte of it
            raise builtins.TimeoutError
        real(data, deadline)

    stream.write = write  # type: ignore[method-assign]  # it is watched
    with pytest.raises(TimeoutError):
        ws.send_message(b"x" * 100, soon())
    assert len(written) == 3
    assert ws.half_sent and ws.is_over
    with pytest.raises(ConnectionError):
        ws.send_message("anything", soon())
    assert script.ended.wait(5)
    assert len(script.frames) == 2


def test_an_interrupt_between_two_frames_ends_it_too(raw_server: RawFactory, make_pool: PoolFactory) -> None:
    script = Frames()
    pool = make_pool(raw_server(script), reuse="always", manager_kwargs={"max_frame_size": 10})
    lease = pool.acquire("/", 5)
    stream = lease._current().wire._stream
    assert stream is not None
    real = stream.write

    def write(data: bytes, deadline: float | None) -> None:
        real(data, deadline)
        signal.raise_signal(signal.SIGINT)

    stream.write = write  # type: ignore[method-assign]  # it is watched
    with contextlib.suppress(KeyboardInterrupt):
        lease.send_raw(b"x" * 100)
    del stream.write
    with pytest.raises(ConnectionClosedError, match="half-way"):
        lease.send_raw("anything")
    lease.release()
    assert script.ended.wait(5)
    assert [frame.fin for frame in script.frames] == [0]
    assert pool.stats().discards == {"closed": 1}


def test_a_lease_that_is_released_in_the_middle_is_not_kept(
    raw_server: RawFactory, make_pool: PoolFactory
) -> None:
    script = Slow()
    options = {"max_frame_size": 1000, "socket_options": SMALL_BUFFER}
    pool = make_pool(raw_server(script), reuse="always", manager_kwargs=options)
    lease = pool.acquire("/", 5)
    wire = lease._current().wire
    sending = in_background(lambda: lease.send_raw(LONG))
    wait_until(lambda: is_stuck(wire))
    lease.release()
    with pytest.raises(ConnectionClosedError):
        sending.result(5)
    script.go_on.set()
    assert pool.stats().discards == {"in use": 1}


def test_a_send_moves_only_before_the_first_frame(
    echo: EchoServer, make_pool: PoolFactory, raw_server: RawFactory
) -> None:
    """What has ended before anything left is not the borrower's business, with fragments neither."""
    pool = make_pool(echo, manager_kwargs={"max_frame_size": 10})
    message = {"text": "x" * 100}
    assert pool.request("/", message, 5) == message
    lease = pool.acquire("/", 5)
    echo.cut_all()
    lease.send(message)
    assert lease.recv(5) == message
    lease.release()
    assert echo.opened == 2
