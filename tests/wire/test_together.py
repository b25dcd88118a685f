"""Several messages that leave in one go (`send_together`): all, none, or the connection is over."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest

from jetsocket.exceptions import ConnectionClosedError, InvalidStateError, TimeoutError
from jetsocket.wire.frames import BINARY, TEXT
from jetsocket.wire.link import Batch
from jetsocket.wire.stream import Stream
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.servers import RawServer, wait_until
from tests.wire.test_fragments import Frames

RawFactory = Callable[..., RawServer]
Connect = Callable[..., WebSocket]


class Struck(BaseException):
    """What strikes a thread that sends."""


@pytest.fixture
def frames() -> Frames:
    return Frames()


@pytest.fixture
def ws(connect: Connect, raw_server: RawFactory, frames: Frames) -> WebSocket:
    return connect(raw_server(frames).uri)


def texts(count: int, size: int = 5) -> Iterator[tuple[int, bytes]]:
    return ((TEXT, str(number).encode().rjust(size)) for number in range(count))


def test_they_leave_in_order_in_one_write(
    ws: WebSocket, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = Stream.write

    def counting(self: Stream, data: bytes, deadline: float | None) -> None:
        writes.append(len(data))
        write(self, data, deadline)

    monkeypatch.setattr(Stream, "write", counting)
    batch, before = Batch(), monotonic()
    ws.send_together(batch, [(TEXT, b"one"), (BINARY, b"two"), (TEXT, "drei €".encode())])
    assert batch.has_left
    assert before <= batch.left_at <= monotonic()
    ws.send("last")
    assert len(writes) == 2
    assert ws.messages_sent == 4
    ws.close()
    assert frames.ended.wait(5)
    assert [(frame.opcode, frame.payload.decode()) for frame in frames.frames] == [
        (1, "one"),
        (2, "two"),
        (1, "drei €"),
        (1, "last"),
    ]


def test_what_cannot_be_made_leaves_nothing_behind(ws: WebSocket, frames: Frames) -> None:
    def failing() -> Iterator[tuple[int, bytes]]:
        yield TEXT, b"one"
        raise KeyError("no second one")

    batch = Batch()
    with pytest.raises(KeyError):
        ws.send_together(batch, failing())
    assert (batch.has_left, ws.messages_sent) == (False, 0)
    ws.send_together(batch, texts(2))
    ws.close()
    assert frames.ended.wait(5)
    assert [frame.payload for frame in frames.frames] == [b"    0", b"    1"]


def test_only_who_holds_the_connection_sends(ws: WebSocket) -> None:
    ws.holder = "another"
    with pytest.raises(InvalidStateError, match="released"):
        ws.send_together(Batch(), texts(1), holder="this one")
    ws.holder = None


def not_reading(sock: socket.socket) -> None:
    """Upgrade, and read no more until the client leaves."""
    servers.upgrade(sock)
    done.wait(20)


done = threading.Event()


@pytest.fixture
def deaf(connect: Connect, raw_server: RawFactory) -> Iterator[WebSocket]:
    """A connection whose server takes nothing, and for which the kernel takes nothing more."""
    done.clear()
    ws = connect(raw_server(not_reading).uri)
    while ws._live_stream().write_now(b""):
        try:
            sock = ws._live_stream()._sock
            assert isinstance(sock, socket.socket)
            sock.send(bytes(1 << 16))
        except BlockingIOError:
            break
    yield ws
    done.set()


def test_a_deadline_before_the_first_byte_costs_nothing(deaf: WebSocket) -> None:
    batch = Batch()
    with pytest.raises(TimeoutError) as raised:
        deaf.send_together(batch, texts(3), monotonic() + 0.1)
    assert raised.value.operation == "send"
    assert (batch.has_left, deaf.messages_sent, deaf.failure) == (False, 0, None)


def reading_later(sock: socket.socket) -> None:
    """Upgrade, and read only once that is allowed."""
    servers.upgrade(sock)
    done.wait(20)
    with contextlib.suppress(EOFError, OSError):
        while (frame := servers.read_client_frame(sock)).opcode != 8:
            lengths.append(len(frame.payload))


lengths: list[int] = []


@pytest.mark.slow
@pytest.mark.parametrize("secure", [False, True])
def test_a_deadline_half_way_leaves_the_rest_to_who_comes_next(
    connect: Connect, raw_server: RawFactory, tls: Tls, secure: bool
) -> None:
    done.clear()
    lengths.clear()
    if secure:
        uri = raw_server(reading_later, ssl_context=tls.server_context).uri
        ws = connect(uri, ssl_context=tls.client_context)
    else:
        ws = connect(raw_server(reading_later).uri)
    sizes = list[int]()
    while not ws._live_stream().unsent:
        batch = Batch()
        ws.send_together(batch, texts(1, 200_000), monotonic() + 0.1)
        sizes.append(200_000)
        assert batch.has_left
        assert len(sizes) < 1000
    assert ws.failure is None
    outcomes = set()
    for _ in range(100):  # until not even the rest leaves: then what comes behind it has not begun to
        batch = Batch()
        try:
            ws.send_together(batch, texts(1, 200_000), monotonic() + 0.05)
            sizes.append(200_000)
        except TimeoutError:
            assert not batch.has_left
            outcomes.add("none")
            break
    assert outcomes == {"none"}
    done.set()
    ws.send_together(Batch(), texts(1, 5), monotonic() + 10)
    wait_until(lambda: lengths == [*sizes, 5], 10)
    assert ws.messages_sent == len(sizes) + 1


@pytest.mark.slow
def test_what_is_left_of_it_leaves_without_another_send(connect: Connect, raw_server: RawFactory) -> None:
    done.clear()
    lengths.clear()
    ws = connect(raw_server(reading_later).uri)
    ws.unfinished = set()
    count = 0
    while not ws.unfinished:
        ws.send_together(Batch(), texts(1, 200_000), monotonic() + 0.1)
        count += 1
        assert count < 1000
    done.set()

    def finished() -> bool:
        ws.finish()
        return len(lengths) == count

    wait_until(finished, 10)


def test_a_deadline_half_way_through_a_very_long_one_ends_the_connection(
    connect: Connect, raw_server: RawFactory
) -> None:
    done.clear()
    ws = connect(raw_server(not_reading).uri)
    batch = Batch()
    with pytest.raises(TimeoutError):
        ws.send_together(batch, texts(40, 1 << 20), monotonic() + 0.3)
    done.set()
    assert batch.has_left
    assert ws.failure is not None
    other = Batch()
    with pytest.raises(ConnectionClosedError):
        ws.send_together(other, texts(1))
    assert not other.has_left


def test_a_strike_half_way_ends_the_connection(ws: WebSocket, monkeypatch: pytest.MonkeyPatch) -> None:
    def strike(self: Stream, data: bytes, deadline: float | None) -> None:
        raise Struck

    monkeypatch.setattr(Stream, "write", strike)
    batch = Batch()
    with pytest.raises(Struck):
        ws.send_together(batch, texts(1))
    assert batch.has_left  # no one can tell
    assert ws.failure is not None
    assert not ws.lock.locked()


def test_a_strike_while_they_are_made_costs_nothing(ws: WebSocket) -> None:
    def struck() -> Iterator[tuple[int, bytes]]:
        yield TEXT, b"one"
        raise Struck

    batch = Batch()
    with pytest.raises(Struck):
        ws.send_together(batch, struck())
    assert (batch.has_left, ws.failure) == (False, None)
    ws.send_together(batch, texts(1))
    assert batch.has_left


def test_after_a_send_that_was_interrupted_nothing_more_is_made(
    ws: WebSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def strike(self: Stream, data: bytes, deadline: float | None) -> None:
        raise Struck

    monkeypatch.setattr(Stream, "write", strike)
    with pytest.raises(Struck):
        ws.send("half")
    asked: list[int] = []

    def source() -> Iterator[tuple[int, bytes]]:
        asked.append(1)
        yield TEXT, b"one"

    batch = Batch()
    with pytest.raises(ConnectionClosedError, match="half-way"):
        ws.send_together(batch, source())
    assert (asked, batch.has_left) == ([], False)


def test_a_long_one_goes_out_in_fragments_and_is_the_last(
    raw_server: RawFactory, frames: Frames, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws = WebSocket(max_frame_size=10)
    ws.connect(raw_server(frames).uri, timeout=5)
    asked: list[int] = []

    def source() -> Iterator[tuple[int, bytes]]:
        for size in (3, 25, 4):
            asked.append(size)
            yield TEXT, b"x" * size

    try:
        ws.send_together(Batch(), source())
        ws.send("y")
        ws.close()
        assert frames.ended.wait(5)
    finally:
        ws.shutdown()
    assert asked == [3, 25]
    assert [sizes for sizes, _ in frames.messages()] == [[3], [10, 10, 5], [1]]


@pytest.mark.parametrize("threshold", [0, 1000])
def test_compressed_or_not_the_server_reads_all(
    connect: Connect, echo_server: Callable[..., servers.EchoServer], threshold: int
) -> None:
    server = echo_server(compression="deflate") if threshold == 0 else echo_server()
    ws = WebSocket(compression_threshold=threshold)
    ws.connect(server.uri, timeout=5)
    try:
        for _ in range(2):
            ws.send_together(Batch(), texts(5, 200))
            assert [ws.recv() for _ in range(5)] == [data.decode() for _, data in texts(5, 200)]
    finally:
        ws.shutdown()
