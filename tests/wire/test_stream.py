"""The stream: what a peer and a caller see of reads, writes, deadlines, TLS and closing.

Also tests: `sockets`, `tls`, `waits`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import queue
import resource
import select
import signal
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic, perf_counter
from typing import Any

import pytest

from jetsocket.wire.stream import Stream
from jetsocket.wire.waits import Watcher, take
from tests.awake import awake
from tests.conftest import Tls
from tests.servers import HandmadeTls, drip, read_exactly, reset, wait_until

MANY = bytes(range(256)) * 49152  # 12 MiB: more than the kernel takes, however large it makes its buffers


def soon(seconds: float = 5.0) -> float:
    return monotonic() + seconds


def tcp() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection on 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    far.settimeout(5)
    return near, far


@pytest.fixture
def pair() -> Iterator[tuple[Stream, socket.socket]]:
    near, far = tcp()
    stream = Stream(near)
    yield stream, far
    stream.close()
    far.close()


@pytest.fixture
def tls_pair(tls: Tls, pair: tuple[Stream, socket.socket]) -> Iterator[tuple[Stream, ssl.SSLSocket]]:
    stream, far = pair
    with ThreadPoolExecutor(1) as pool:
        wrapped = pool.submit(tls.server_context.wrap_socket, far, server_side=True)
        stream.start_tls(tls.client_context, "localhost", soon())
        stream.flush_now()
        server = wrapped.result(5)
    yield stream, server
    server.close()


@pytest.fixture(params=["poll", "select"])
def waiting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `select.poll`, and as on a platform that has none."""
    if request.param == "select":
        monkeypatch.delattr(select, "poll")


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Future[Any]]]:
    """Run a function in another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


def read(stream: Stream, size: int) -> bytes:
    """Read until `size` bytes or the end have come."""
    deadline = soon(20)
    data = bytearray()
    while len(data) < size:
        piece = stream.read_now()
        if piece is None:
            assert stream.wait_readable(deadline), f"{len(data)} of {size} bytes came in time"
        elif not piece:
            break
        else:
            data += piece
    return bytes(data)


def read_end(stream: Stream) -> bytes | None:
    """What a read returns once there is something to tell."""
    while (data := stream.read_now()) is None:
        assert stream.wait_readable(soon())
    return data


def fill(sock: socket.socket) -> int:
    """Send until neither the kernel nor the peer's takes another byte; how many they took."""
    taken = 0
    quiet_since = monotonic()
    while monotonic() - quiet_since < 0.1:
        for size in (65536, 1):  # POLLOUT wants more room than a byte needs
            with contextlib.suppress(BlockingIOError):
                taken += sock.send(bytes(size))
                quiet_since = monotonic()
    return taken


class TestReading:
    def test_nothing_then_data_then_the_end(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        assert stream.read_now() is None
        peer.sendall(b"hello")
        assert stream.wait_readable(soon())
        assert stream.read_now() == b"hello"
        assert stream.read_now() is None
        peer.sendall(b"bye")
        peer.close()
        assert read(stream, 99) == b"bye"
        assert stream.read_now() == b""
        assert stream.read_now() == b""
        assert stream.bytes_in == 8
        assert not stream.broken

    def test_a_read_takes_64_kib_at_most(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        with ThreadPoolExecutor(1) as pool:
            pool.submit(peer.sendall, MANY)
            sizes: list[int] = []
            while sum(sizes) < len(MANY):
                assert stream.wait_readable(soon())
                sizes.append(len(stream.read_now() or b""))
        assert max(sizes) <= 65536

    def test_after_a_reset_the_error_comes_through(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        reset(peer)
        assert stream.wait_readable(soon())
        with pytest.raises(ConnectionResetError):
            stream.read_now()
        assert stream.broken
        with pytest.raises(BrokenPipeError, match="connect anew"):
            stream.write(b"x", soon())

    @pytest.mark.usefixtures("waiting")
    def test_waiting_ends_at_the_deadline(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, _ = pair
        start = perf_counter()
        assert not stream.wait_readable(soon(0.1))
        assert 0.09 < perf_counter() - start < 1.0
        assert not stream.readable_now()

    @pytest.mark.usefixtures("waiting")
    def test_waiting_ends_with_data(
        self, pair: tuple[Stream, socket.socket], elsewhere: Callable[..., Future[bool]]
    ) -> None:
        stream, peer = pair
        waits = elsewhere(stream.wait_readable, None)
        peer.sendall(b"x")
        assert waits.result(5)
        assert stream.readable_now()
        assert stream.read_now() == b"x"

    def test_after_the_deadline_a_dripping_peer_holds_nobody(
        self, pair: tuple[Stream, socket.socket]
    ) -> None:
        stream, peer = pair
        peer.sendall(b"x")
        assert stream.wait_readable(soon())
        assert not stream.wait_readable(monotonic() - 1)

    def test_far_deadlines_are_no_overflow(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        peer.sendall(b"x")
        assert stream.wait_readable(float("inf"))
        assert stream.wait_readable(monotonic() + 1e12)

    def test_an_interrupted_wait_leaves_the_stream_usable(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        interrupt = threading.Timer(0.1, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            stream.wait_readable(soon())
        interrupt.join()
        assert not stream.broken
        peer.sendall(b"still here")
        assert read(stream, 10) == b"still here"
        stream.write(b"so am I", soon())
        assert read_exactly(peer, 7) == b"so am I"


class TestWriting:
    def test_bytes_arrive_and_are_counted(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        stream.write(b"one ", soon())
        assert stream.write_now(b"two")
        assert stream.flush_now()
        stream.write(b"", soon())
        assert read_exactly(peer, 7) == b"one two"
        assert stream.bytes_out == 7
        assert not stream.unsent

    @pytest.mark.usefixtures("waiting")
    def test_more_than_the_kernel_takes_at_once(
        self, pair: tuple[Stream, socket.socket], elsewhere: Callable[..., Future[bytes]]
    ) -> None:
        stream, peer = pair
        received = elsewhere(read_exactly, peer, len(MANY))
        stream.write(MANY, soon(20))
        assert received.result(20) == MANY
        assert stream.bytes_out == len(MANY)

    def test_what_is_left_goes_first(
        self, pair: tuple[Stream, socket.socket], elsewhere: Callable[..., Future[bytes]]
    ) -> None:
        stream, peer = pair
        assert not stream.write_now(MANY)
        assert not stream.write_now(b"then this")
        assert stream.unsent
        received = elsewhere(read_exactly, peer, len(MANY) + 12)
        stream.write(b"end", soon(20))
        assert received.result(20) == MANY + b"then thisend"

    def test_a_write_that_timed_out_before_its_first_byte_is_taken_back(self) -> None:
        near, peer = tcp()
        with near.dup() as other_handle, contextlib.closing(Stream(near)) as stream, peer:
            taken = bytes(fill(other_handle))
            with pytest.raises(TimeoutError, match="deadline"):
                while True:  # on a busy machine some room may come late
                    stream.write(b"more", soon(0.1))
                    taken += b"more"
            assert not stream.broken
            assert not stream.unsent
            assert stream.bytes_out == 4 * taken.count(b"more")
            assert read_exactly(peer, len(taken)) == taken
            stream.write(b"kept", soon())
            assert read_exactly(peer, 4) == b"kept"

    def test_a_write_that_timed_out_behind_older_bytes_leaves_those_whole(
        self, pair: tuple[Stream, socket.socket], elsewhere: Callable[..., Future[bytes]]
    ) -> None:
        stream, peer = pair
        assert not stream.write_now(MANY)
        with pytest.raises(TimeoutError):
            stream.write(b"lost", soon(0.1))
        assert not stream.broken
        received = elsewhere(read_exactly, peer, len(MANY) + 4)
        stream.write(b"kept", soon(20))
        assert received.result(20) == MANY + b"kept"

    def test_a_write_cut_off_half_way_breaks_the_stream(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, _ = pair
        with pytest.raises(TimeoutError):
            stream.write(MANY, soon(0.1))
        assert stream.broken
        assert 0 < stream.bytes_out < len(MANY)
        for write in (lambda: stream.write(b"x", soon()), lambda: stream.write_now(b"x"), stream.flush_now):
            with pytest.raises(BrokenPipeError):
                write()

    def test_writing_to_a_peer_that_is_gone(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        reset(peer)
        assert stream.wait_readable(soon())
        with pytest.raises(ConnectionError):
            stream.write(b"x", soon())
        assert stream.broken
        assert stream.bytes_out == 0

    @pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel never gives up early")
    def test_when_the_kernel_gives_up_it_does_not_look_like_a_deadline(self) -> None:
        def write(stream: Stream, _: socket.socket) -> None:
            while True:
                stream.write(MANY, soon(20))

        def read(stream: Stream, other_handle: socket.socket) -> None:
            fill(other_handle)
            while stream.read_now() is None:
                assert stream.wait_readable(soon(20))

        for use in (write, read):
            near, peer = tcp()
            near.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 300)
            with near.dup() as other_handle, contextlib.closing(Stream(near)) as stream, peer:
                with pytest.raises(ConnectionAbortedError, match="stopped answering"):
                    use(stream, other_handle)
                assert stream.broken


class TestTls:
    def test_both_ways(self, tls_pair: tuple[Stream, ssl.SSLSocket]) -> None:
        stream, server = tls_pair
        stream.write(b"ping", soon())
        assert read_exactly(server, 4) == b"ping"
        server.sendall(b"pong")
        assert read(stream, 4) == b"pong"
        assert stream._tls is not None and stream._tls.version == "TLSv1.3"
        assert stream.bytes_in > 4
        assert stream.bytes_out > 4

    def test_a_plain_stream_has_no_version(self, pair: tuple[Stream, socket.socket]) -> None:
        assert pair[0]._tls is None

    def test_many_small_records_cost_few_reads(self, tls_pair: tuple[Stream, ssl.SSLSocket]) -> None:
        stream, server = tls_pair
        for _ in range(1000):
            server.sendall(b"x")
        reads = received = 0
        while received < 1000:
            assert stream.wait_readable(soon())
            received += len(stream.read_now() or b"")
            reads += 1
        assert reads < 100

    def test_a_record_in_pieces(self, tls: Tls) -> None:
        near, far = tcp()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server = tls.server_context.wrap_bio(incoming, outgoing, server_side=True)

        def serve() -> None:
            with far:
                while True:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        server.do_handshake()
                        break
                    far.sendall(outgoing.read())
                    incoming.write(far.recv(65536))
                server.write(b"piecemeal")
                drip(far, outgoing.read(), 0.001)

        with ThreadPoolExecutor(1) as pool, contextlib.closing(Stream(near)) as stream:
            served = pool.submit(serve)
            stream.start_tls(tls.client_context, "127.0.0.1", soon())
            stream.flush_now()
            assert read(stream, 9) == b"piecemeal"
            assert read_end(stream) == b""
            served.result(5)

    def test_large_messages_both_ways_at_once(
        self, tls_pair: tuple[Stream, ssl.SSLSocket], elsewhere: Callable[..., Future[Any]]
    ) -> None:
        stream, server = tls_pair

        def echo() -> None:
            for _ in range(len(MANY) // 65536):
                server.sendall(read_exactly(server, 65536))

        echoing = elsewhere(echo)
        writing = elsewhere(stream.write, MANY, soon(20))
        assert read(stream, len(MANY)) == MANY
        writing.result(5)
        echoing.result(5)
        assert not stream.unsent

    def test_tickets_are_no_data(self, tls_pair: tuple[Stream, ssl.SSLSocket]) -> None:
        stream, server = tls_pair
        server.sendall(b"x")
        assert read(stream, 1) == b"x"  # behind the tickets that the server sends after the handshake
        assert stream.read_now() is None
        assert not stream.wait_readable(soon(0.05))
        assert not stream.broken

    def test_it_knows_where_records_end(self, tls: Tls, pair: tuple[Stream, socket.socket]) -> None:
        stream, far = pair
        with ThreadPoolExecutor(1) as pool:
            made = pool.submit(HandmadeTls, far, tls.server_context)
            stream.start_tls(tls.client_context, "localhost", soon())
            stream.flush_now()
            session = made.result(5)
        session.sendall(b"x")
        assert read(stream, 1) == b"x"  # behind the session tickets
        assert not stream.has_begun() and not stream.half_read
        records = [session.seal(text) for text in (b"one", b"two" * 100, b"three")]
        far.sendall(records[0] + records[1] + records[2][:-1])
        assert read(stream, 303) == b"one" + b"two" * 100
        assert stream.half_read and stream.has_begun()
        far.sendall(records[2][-1:])
        assert read(stream, 5) == b"three"
        assert not stream.has_begun() and not stream.half_read
        record = session.seal(b"byte by byte")
        for sent in range(1, len(record)):
            far.sendall(record[sent - 1 : sent])
            assert stream.wait_readable(soon())
            assert stream.read_now() is None
            assert stream.half_read and stream.has_begun()
        far.sendall(record[-1:])
        assert read(stream, 12) == b"byte by byte"
        assert not stream.has_begun() and not stream.half_read

    def test_close_notify_is_the_end_after_all_data(
        self, tls_pair: tuple[Stream, ssl.SSLSocket], elsewhere: Callable[..., Future[Any]]
    ) -> None:
        stream, server = tls_pair
        server.sendall(b"last words")
        unwrapping = elsewhere(server.unwrap)  # sends close_notify, and leaves TCP open
        assert read(stream, 10) == b"last words"
        assert read_end(stream) == b""
        assert stream.wait_readable(soon())
        assert stream.read_now() == b""
        stream.close()
        with contextlib.suppress(OSError):
            unwrapping.result(5)

    def test_an_end_without_close_notify_is_an_end_too(self, tls_pair: tuple[Stream, ssl.SSLSocket]) -> None:
        stream, server = tls_pair
        server.sendall(b"last words")
        server.shutdown(socket.SHUT_RDWR)
        assert read(stream, 10) == b"last words"
        assert read_end(stream) == b""

    def test_garbage_is_an_error_after_the_data_before_it(
        self, tls_pair: tuple[Stream, ssl.SSLSocket]
    ) -> None:
        stream, server = tls_pair
        with socket.socket(fileno=os.dup(server.fileno())) as bare:
            server.sendall(b"good")
            bare.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert read(stream, 4) == b"good"
        with pytest.raises(ssl.SSLError):
            read_end(stream)
        assert stream.broken

    def test_a_write_that_timed_out_breaks_the_stream(self, tls_pair: tuple[Stream, ssl.SSLSocket]) -> None:
        stream, _ = tls_pair
        with pytest.raises(TimeoutError):
            stream.write(MANY, soon(0.1))
        assert stream.broken

    @pytest.mark.slow
    def test_unsent_records_go_out_in_order(
        self, tls_pair: tuple[Stream, ssl.SSLSocket], elsewhere: Callable[..., Future[bytes]]
    ) -> None:
        stream, server = tls_pair
        assert not stream.write_now(MANY)
        assert stream.unsent
        received = elsewhere(read_exactly, server, len(MANY) + 3)
        stream.write(b"end", soon(20))
        assert received.result(20) == MANY + b"end"


class TestHandshake:
    def shake(
        self, tls: Tls, script: Callable[[socket.socket], object], name: str = "localhost", **kwargs: Any
    ) -> Stream:
        """Start TLS with a server that runs `script`; the stream, for what is to be seen on it afterwards."""
        near, far = tcp()
        stream = Stream(near)
        with far, ThreadPoolExecutor(1) as pool:
            served = pool.submit(script, far)
            try:
                stream.start_tls(tls.client_context, name, kwargs.get("deadline", soon()))
            finally:
                assert stream.broken
                stream.close()
                self.served = served.exception(5)
        return stream

    def test_the_wrong_name(self, tls: Tls) -> None:
        context = tls.issue("elsewhere.example")
        with pytest.raises(ssl.SSLCertVerificationError, match="localhost"):
            self.shake(tls, lambda sock: context.wrap_socket(sock, server_side=True))
        assert "alert" in str(self.served).lower()  # the server was told why

    def test_a_stranger_s_certificate(self, tls: Tls) -> None:
        stranger = Tls()
        with pytest.raises(ssl.SSLCertVerificationError, match="issuer"):
            self.shake(tls, lambda sock: stranger.server_context.wrap_socket(sock, server_side=True))
        assert "alert" in str(self.served).lower()

    def test_a_server_that_speaks_no_tls(self, tls: Tls) -> None:
        with pytest.raises(ssl.SSLError):
            self.shake(tls, lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))

    def test_a_server_that_hangs_up(self, tls: Tls) -> None:
        def hang_up(sock: socket.socket) -> None:
            sock.recv(65536)
            sock.shutdown(socket.SHUT_WR)

        with pytest.raises(ConnectionResetError, match="during the TLS handshake"):
            self.shake(tls, hang_up)

    def test_a_server_that_says_nothing(self, tls: Tls) -> None:
        start = awake()
        with pytest.raises(TimeoutError, match="deadline"):
            self.shake(tls, lambda sock: sock.recv(65536), deadline=soon(0.2))
        assert awake() - start < 1.0

    def test_a_server_that_drips(self, tls: Tls) -> None:
        start = awake()
        with pytest.raises(TimeoutError, match="deadline"):
            self.shake(
                tls, lambda sock: drip(sock, b"\x16\x03\x03\x40\x00" + bytes(200), 0.01), deadline=soon(0.2)
            )
        assert awake() - start < 1.0


class TestClosing:
    @pytest.mark.usefixtures("waiting")
    @pytest.mark.parametrize("end", [Stream.close, Stream.abort])
    def test_a_waiting_reader_wakes(
        self,
        pair: tuple[Stream, socket.socket],
        elsewhere: Callable[..., Future[bool]],
        end: Callable[[Stream], None],
    ) -> None:
        stream, peer = pair
        waits = elsewhere(stream.wait_readable, None)
        wait_until(waits.running)
        end(stream)
        assert waits.result(1)
        assert peer.recv(1) == b""

    @pytest.mark.usefixtures("waiting")
    @pytest.mark.parametrize("end", [Stream.close, Stream.abort])
    def test_a_waiting_writer_wakes(
        self,
        pair: tuple[Stream, socket.socket],
        elsewhere: Callable[..., Future[None]],
        end: Callable[[Stream], None],
    ) -> None:
        stream, _ = pair
        writes = elsewhere(stream.write, MANY, None)
        wait_until(lambda: stream.bytes_out)
        end(stream)
        assert isinstance(writes.exception(1), OSError)
        assert stream.broken

    def test_a_waiting_reader_of_tls_wakes_and_the_writer_is_not_disturbed(
        self, tls_pair: tuple[Stream, ssl.SSLSocket], elsewhere: Callable[..., Future[bool]]
    ) -> None:
        stream, server = tls_pair
        server.sendall(b"x")
        assert read(stream, 1) == b"x"
        waits = elsewhere(stream.wait_readable, None)
        wait_until(waits.running)
        stream.write(b"ping", soon())
        assert read_exactly(server, 4) == b"ping"
        stream.abort()
        assert waits.result(1)
        assert stream.read_now() == b""

    def test_every_call_fails_after_close(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, _ = pair
        assert not stream.closed
        for _ in range(2):
            stream.close()
            stream.abort()
            assert stream.closed
        assert stream.fileno() == -1
        assert stream.wait_readable(None)
        with pytest.raises(OSError, match="closed") as caught:
            stream.read_now()
        assert caught.value.errno == errno.EBADF

    def test_writing_fails_after_close(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, _ = pair
        stream.close()
        with pytest.raises(OSError, match="closed"):
            stream.write(b"x", None)

    def test_a_writer_that_comes_to_wait_on_a_closed_stream_is_told(
        self, pair: tuple[Stream, socket.socket]
    ) -> None:
        stream, _ = pair
        assert not stream.write_now(MANY)
        stream.close()
        with pytest.raises(OSError, match="closed"):
            stream.write(b"x", None)

    def test_closing_after_a_reset(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        reset(peer)
        assert stream.wait_readable(soon())
        stream.abort()
        stream.close()
        assert stream.closed

    def test_the_descriptor_stays_taken_while_a_thread_is_inside(
        self,
        pair: tuple[Stream, socket.socket],
        elsewhere: Callable[..., Future[bool]],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        stream, _ = pair
        fd = stream.fileno()
        woken, leave = threading.Event(), threading.Event()
        real_poll = select.poll

        class SlowPoll:
            def __init__(self) -> None:
                self._poll = real_poll()
                self.register = self._poll.register

            def poll(self, timeout: float | None) -> list[tuple[int, int]]:
                events = self._poll.poll(timeout)
                woken.set()
                assert leave.wait(5)
                return events

        monkeypatch.setattr(select, "poll", SlowPoll)
        waits = elsewhere(stream.wait_readable, None)
        stream.close()
        assert woken.wait(5)
        os.fstat(fd)  # raises if it were closed, and its number free for the next connection
        leave.set()
        assert waits.result(5)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    def test_no_reader_ever_gets_another_connection_s_data(
        self, elsewhere: Callable[..., Future[Any]]
    ) -> None:
        def read_after_waking(stream: Stream) -> bytes | None:
            stream.wait_readable(None)
            try:
                return stream.read_now()
            except OSError:
                return b""

        for _ in range(200):
            near, far = socket.socketpair()
            stream = Stream(near)
            reading = elsewhere(read_after_waking, stream)
            stream.close()
            ours, theirs = socket.socketpair()  # would get the number of a descriptor that is free
            with ours, theirs, far:
                theirs.sendall(b"for somebody else")
                assert reading.result(5) == b""

    def test_a_dropped_stream_closes_without_a_word(self) -> None:
        near, far = tcp()
        fd = near.fileno()
        with warnings.catch_warnings(), far:
            warnings.simplefilter("error")
            stream = Stream(near)
            del stream
            gc.collect()
            assert far.recv(1) == b""
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(fd)

    def test_ctrl_c_while_a_stream_is_dropped_costs_no_descriptor(self) -> None:
        def interrupt(frame: object, event: str, arg: object) -> None:
            if event == "call":  # where the interpreter looks for signals: at the start of a Python function
                raise KeyboardInterrupt

        near, far = tcp()
        fd = near.fileno()
        stream = Stream(near)
        before = sys.getprofile()
        sys.setprofile(interrupt)
        del stream
        sys.setprofile(before)
        with far, pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    def test_a_failed_read_keeps_no_descriptor_open(self, pair: tuple[Stream, socket.socket]) -> None:
        stream, peer = pair
        fd = stream.fileno()
        reset(peer)
        assert stream.wait_readable(soon())
        with pytest.raises(ConnectionResetError) as caught:
            stream.read_now()
        stream.close()
        assert caught.value.__traceback__ is not None  # alive, with all frames it went through
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)

    def test_a_closed_socket_makes_no_stream(self) -> None:
        sock = socket.socket()
        sock.close()
        with pytest.raises(ValueError, match="closed socket"):
            Stream(sock)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="the platform has no fork")
    @pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
    def test_disown_leaves_the_connection_to_the_parent(self, tls_pair: tuple[Stream, ssl.SSLSocket]) -> None:
        stream, server = tls_pair
        child = os.fork()
        if child == 0:
            fd = stream.fileno()
            stream.disown()
            try:
                os.fstat(fd)
            except OSError:
                os._exit(0 if stream.closed else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        stream.write(b"ping", soon())
        assert read_exactly(server, 4) == b"ping"
        server.sendall(b"pong")
        assert read(stream, 4) == b"pong"


class TestTake:
    def test_what_is_there_needs_no_time(self) -> None:
        box: queue.SimpleQueue[int] = queue.SimpleQueue()
        box.put(1)
        box.put(2)
        assert take(box, 0.0) == 1
        assert take(box, -1.0) == 2

    def test_what_comes_in_time(self) -> None:
        box: queue.SimpleQueue[int] = queue.SimpleQueue()
        timer = threading.Timer(0.05, box.put, (1,))
        timer.start()
        assert take(box, 5.0) == 1
        timer.join()

    @pytest.mark.slow
    @pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e-9, 1e-6])
    def test_it_never_waits_for_ever(self, seconds: float) -> None:
        end = soon(0.3)

        def hammer(_: int) -> None:
            while monotonic() < end:
                with pytest.raises(queue.Empty):
                    take(queue.SimpleQueue(), seconds)

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(hammer, range(4), timeout=10))


@pytest.mark.usefixtures("waiting")
class TestWatcher:
    def test_data_an_end_and_a_reset_are_ready_and_silence_is_not(self) -> None:
        watcher = Watcher()
        pairs = [tcp() for _ in range(4)]
        for near, _ in pairs:
            watcher.add(near.fileno())
        assert watcher.ready() == []
        (_, _silent), (_, talking), (_, leaving), (_, resetting) = pairs
        talking.sendall(b"x")
        leaving.close()
        reset(resetting)
        expected = sorted(near.fileno() for near, _ in pairs[1:])
        wait_until(lambda: sorted(watcher.ready()) == expected)
        watcher.remove(pairs[1][0].fileno())
        assert sorted(watcher.ready()) == sorted(near.fileno() for near, _ in pairs[2:])
        for near, far in pairs:
            near.close()
            far.close()

    def test_a_descriptor_closed_behind_its_back_is_ready(self) -> None:
        watcher = Watcher()
        ours, theirs = socket.socketpair()
        quiet = socket.socketpair()
        closed = ours.fileno()
        watcher.add(closed)
        watcher.add(quiet[0].fileno())
        ours.close()
        assert watcher.ready() == [closed]
        watcher.remove(closed)
        watcher.remove(closed)
        assert watcher.ready() == []
        for sock in (theirs, *quiet):
            sock.close()

    def test_what_was_never_added_is_removed_without_harm(self) -> None:
        watcher = Watcher()
        watcher.remove(12345)
        watcher.remove(-1)
        assert watcher.ready() == []

    def test_a_closed_stream_cannot_be_watched(self) -> None:
        with pytest.raises(ValueError, match="closed stream"):
            Watcher().add(-1)


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="the platform has no epoll")
class TestManyWatched:
    """Where epoll does most of the looking."""

    @pytest.fixture
    def many(self) -> Iterator[tuple[Watcher, list[tuple[socket.socket, socket.socket]]]]:
        watcher, pairs = Watcher(), [socket.socketpair() for _ in range(300)]
        for near, _ in pairs:
            watcher.add(near.fileno())
        for _ in range(3):
            assert watcher.ready() == []
        yield watcher, pairs
        for pair in pairs:
            for sock in pair:
                sock.close()

    def test_what_comes_and_goes_is_seen_at_every_look(self, many: Any) -> None:
        watcher, pairs = many
        (talking, far), (leaving, other), late = pairs[0], pairs[1], socket.socketpair()
        pairs.append(late)
        far.sendall(b"x")
        other.close()
        expected = {talking.fileno(), leaving.fileno()}
        for _ in range(50):  # also when it is poll's turn
            assert set(watcher.ready()) == expected
        watcher.add(late[0].fileno())
        late[1].sendall(b"x")
        watcher.remove(talking.fileno())
        for _ in range(50):
            assert set(watcher.ready()) == {leaving.fileno(), late[0].fileno()}
        assert set(watcher.ready(1.0)) == {leaving.fileno(), late[0].fileno()}

    def test_one_closed_behind_its_back_is_seen_now_and_then_and_its_number_is_free(self, many: Any) -> None:
        watcher, pairs = many
        near, far = pairs.pop()
        fd = near.fileno()
        near.close()
        assert any(watcher.ready() == [fd] for _ in range(50))
        watcher.remove(fd)
        twin, other = pairs[0]
        os.dup2(twin.fileno(), fd)
        try:
            watcher.add(fd)
            other.sendall(b"x")
            assert all(sorted(watcher.ready()) == sorted([fd, twin.fileno()]) for _ in range(50))
            watcher.remove(fd)
            assert all(watcher.ready() == [twin.fileno()] for _ in range(50))
        finally:
            os.close(fd)
            far.close()

    @pytest.mark.parametrize("struck", ["epoll", "register"])
    def test_without_epoll_poll_does_it(
        self, many: Any, monkeypatch: pytest.MonkeyPatch, struck: str
    ) -> None:
        _, pairs = many

        class Full:
            def register(self, *_: object) -> None:
                raise OSError(errno.ENOSPC, "no more may be watched")

        def none() -> Full:
            if struck == "epoll":
                raise OSError(errno.EMFILE, "no descriptor is free")
            return Full()

        monkeypatch.setattr(select, "epoll", none)
        watcher = Watcher()
        for near, _ in pairs:
            watcher.add(near.fileno())
        pairs[0][1].sendall(b"x")
        assert all(watcher.ready() == [pairs[0][0].fileno()] for _ in range(50))


@pytest.mark.skipif(not hasattr(select, "poll"), reason="the platform has no poll")
def test_a_look_at_a_stream_that_another_thread_closes_tells_of_it(
    pair: tuple[Stream, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, _ = pair

    def closed_meanwhile(_stream: Stream, _wait: object) -> bool:
        stream.close()
        return False

    monkeypatch.setattr(Stream, "_poll_reader", closed_meanwhile)
    assert stream.has_begun()


def test_thousands_of_descriptors_are_looked_at_in_milliseconds() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 5000 if hard == resource.RLIM_INFINITY else min(5000, hard - 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted + 200), hard))
    watcher = Watcher()
    ours, theirs = socket.socketpair()
    fds = [os.dup(ours.fileno()) for _ in range(wanted)]
    try:
        for fd in fds:
            watcher.add(fd)
        times = []
        for _ in range(50):
            start = perf_counter()
            assert watcher.ready() == []
            times.append(perf_counter() - start)
        assert min(times) < 0.005
        theirs.sendall(b"x")
        assert sorted(watcher.ready()) == sorted(fds)
    finally:
        for fd in fds:
            os.close(fd)
        ours.close()
        theirs.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_a_program_that_made_sigpipe_deadly_survives(pair: tuple[Stream, socket.socket]) -> None:
    stream, peer = pair
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        peer.close()
        assert read_end(stream) == b""
        with pytest.raises(ConnectionError):  # the first write is answered with a reset, which the next meets
            for _ in range(100):
                stream.write(b"x", soon())
                stream.wait_readable(soon(0.01))
    finally:
        signal.signal(signal.SIGPIPE, before)
