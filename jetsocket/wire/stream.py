"""One connected byte stream, plain or TLS, on which every wait has a deadline.

The kernel's socket is always a plain, non-blocking one; TLS is done in memory, beside it (why: `tls`).
Deadlines are absolute `time.monotonic()` values in seconds; None waits for ever.

Who may call what at once: one reader and one writer (the callers hold a read lock and a send lock of
their own), and anybody, at any time, `abort` and `close`.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Callable

from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.process_id import PID, getpid
from jetsocket.wire.sockets import CLOSED, ClosedSocket, Socket, acknowledge, stopped_answering
from jetsocket.wire.tls import Tls
from jetsocket.wire.waits import Poll, ask_kernel, pollers, wait_for, waiting

_READ_SIZE = 65536  # bytes asked of the kernel at once
_ENCRYPT_SIZE = 262144  # bytes encrypted at once: a reader waits for the TLS lock no longer than that takes
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)  # also for programs that set SIGPIPE back to deadly
_NOTHING = memoryview(b"")


class Stream:
    """One connected byte stream: reads and writes that never wait, and waits that end at a deadline.

    Closing has to wake a thread that waits on the descriptor, and must not let the kernel give the
    descriptor's number to another connection under that thread. So `close` shuts the socket down and
    drops it, and the reference count of the socket object counts who is inside a call: the last one out
    closes the descriptor. For this, no method leaves the socket in a local variable when it raises.

    Attributes:
        bytes_in: Bytes received from the kernel (ciphertext, if the stream is encrypted).
        bytes_out: Bytes the kernel took. Unchanged after a failed write: no byte of it left.
        blocked_since: When a writer last began to wait (monotonic, s).
        broken: A read or write failed half-way, so bytes are lost or half a frame is out. Never usable again.
        unsent: What waits for `flush_now` (ciphertext, if the stream is encrypted); the writer's.
        leaves_rest: Set before a `write`: what is half out if it gives up stays `unsent`; false then.
        look: Tells for 0 ms what `has_begun` does, to one thread at a time, the reader or not; None before
            that was asked, and where it takes more.
    """

    def __init__(self, sock: socket.socket) -> None:
        """Take over ``sock``; the object handed in is detached, unless it is a `Socket`.

        Args:
            sock: A connected stream socket, blocking or not.

        Raises:
            ValueError: ``sock`` is closed.
        """
        if sock.fileno() < 0:
            raise ValueError("cannot make a stream of a closed socket")
        if not isinstance(sock, Socket):  # an interrupt just here would lose the descriptor
            sock = Socket(fileno=sock.detach())
        self._sock: Socket | ClosedSocket = sock
        if sock.gettimeout() != 0.0:
            sock.setblocking(False)
        self._pid = PID[0] or getpid()
        self._tls: Tls | None = None
        self.unsent = _NOTHING
        self.look: Poll | None = None
        self._poll_readable: Poll | None = None  # the reader's, for looks
        self._wait_readable: Poll | None = None  # and for waits
        self._poll_writable: Poll | None = None  # the writer's, for waits
        self.bytes_in = self.bytes_out = 0
        self.blocked_since = 0.0
        self.broken = self.leaves_rest = False

    @property
    def closed(self) -> bool:
        """Whether `close` or `disown` was called."""
        return self._sock is CLOSED

    @property
    def tls_session(self) -> ssl.SSLObject | None:
        """The TLS session, for what it tells of itself, also after it failed; None without one."""
        return None if self._tls is None else self._tls.session

    @property
    def has_replies(self) -> bool:
        """Whether reading has produced something for `flush_now` to send, such as a KeyUpdate's answer."""
        return self._tls is not None and self._tls.has_output

    def fileno(self) -> int:
        """The descriptor, or -1 when the stream is closed."""
        return self._sock.fileno()

    @property
    def waiting(self) -> int:
        """How many B the kernel has for the reader; 0 where it does not tell."""
        return waiting(self.fileno())

    def acknowledge(self) -> None:
        """See `sockets.acknowledge`; for the reader."""
        acknowledge(self._sock)

    @property
    def untaken(self) -> int:
        """How many B that the kernel took the peer's has not taken yet; 0 where it does not tell."""
        return ask_kernel(self._sock.fileno(), "TIOCOUTQ")

    def start_tls(
        self,
        context: ssl.SSLContext,
        server_hostname: str,
        deadline: float | None,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        """Do the TLS handshake, once, before sharing the stream; its end leaves with what is written first.

        Args:
            context: What to trust and to offer.
            server_hostname: The name or address that the certificate has to be for.
            deadline: When to give up.
            meanwhile: Called once, while the peer has yet to answer.

        Raises:
            TimeoutError: The deadline passed.
            ssl.SSLError: The handshake failed; `ssl.SSLCertVerificationError` if the certificate was refused.
            OSError: The connection was lost.
        """
        self._tls = tls = Tls(context, server_hostname)
        self.look = None
        try:
            while not tls.handshake():
                self._flush(deadline)
                if meanwhile is not None:
                    meanwhile()
                    meanwhile = None
                if not self.wait_readable(deadline):
                    raise TimeoutError("the deadline passed during the TLS handshake")
                ciphertext = self._receive()
                if ciphertext == b"":
                    told = "the peer closed the connection during the TLS handshake"
                    raise ConnectionResetError(errno.ECONNRESET, told)
                tls.feed(ciphertext or b"")
        except BaseException as error:
            if isinstance(error, ssl.SSLError) and not is_alarm(error):
                with suppress(OSError):  # an alert, a courtesy: the connection is lost either way
                    self.flush_now()
            self.broken = True
            raise

    # ---- the reading side: one reader at a time

    def read_now(self) -> bytes | None:
        """Read without waiting, in one system call at most.

        Returns:
            What has come, up to 64 KiB; None when there is nothing now; b"" at the end of the stream.

        Raises:
            OSError: The connection is lost, or the stream closed; `ssl.SSLError` if it is no valid TLS.
        """
        if self._tls is None:
            return self._receive()
        self._tls.refuse_reentry()
        try:
            return self._read_tls(self._tls)
        except BaseException:
            self.broken = True  # also for a signal handler's exception: plaintext may have gone with it
            raise

    def readable_now(self) -> bool:
        """Whether `read_now` has something to tell already: data, the end, an error. Never waits."""
        poll = self._poll_readable
        if poll is None or self._tls is not None or self._sock is CLOSED:
            return self._poll_reader(None)
        return bool(poll(0))  # without the reference that a wait needs: at worst it tells of a closed socket

    @property
    def half_read(self) -> bool:
        """Whether part of a TLS record was read, and waits for the rest."""
        return self._tls is not None and self._tls.mid_record

    def has_begun(self) -> bool:
        """Whether there is something to read, or half a TLS record was read. Never waits.

        The next time, `look` may tell the same.
        """
        has_begun = self._poll_reader(None) or self.half_read
        if self._tls is None and not has_begun and (sock := self._sock) is not CLOSED:
            self.look = pollers(sock.fileno(), writing=False)[0]  # `sock` keeps the descriptor ours
        return has_begun or self._sock is CLOSED  # by another thread, just now: the end is to be told

    def wait_readable(self, deadline: float | None) -> bool:
        """Wait until `read_now` has something to tell: data, the end, an error.

        A call with a deadline in the past never succeeds, so that a peer that drips cannot hold a reader.
        `abort` and `close` in another thread end the wait too.

        Returns:
            False when the deadline passed.
        """
        return self._poll_reader(lambda poll: wait_for(poll, deadline))

    def _poll_reader(self, wait: Callable[[Poll], bool] | None) -> bool:
        if self._tls is not None and self._tls.has_input:
            return True
        if self._pid != PID[0]:
            self.disown()
        sock = self._sock  # keeps the descriptor ours while it is polled
        try:
            if isinstance(sock, ClosedSocket):
                return True
            if self._poll_readable is None or self._wait_readable is None:
                self._poll_readable, self._wait_readable = pollers(sock.fileno(), writing=False)
            return bool(self._poll_readable(0)) if wait is None else wait(self._wait_readable)
        finally:
            del sock

    def _read_tls(self, tls: Tls) -> bytes | None:
        if tls.has_input and (plaintext := tls.decrypt()) is not None:
            return plaintext
        if tls.is_flooded:
            told = "the peer asks for ever more TLS answers, and takes none"
            raise ConnectionAbortedError(errno.ECONNABORTED, told)
        ciphertext = self._receive()
        if not ciphertext:  # nothing now, or the end: one without close_notify is an end too
            return ciphertext
        tls.feed(ciphertext)
        return tls.decrypt()

    def _receive(self) -> bytes | None:
        if self._pid != PID[0]:
            self.disown()
        try:
            received = self._sock.recv(_READ_SIZE)
            self.bytes_in += len(received)
        except BaseException as error:
            if isinstance(error, BlockingIOError) and not is_alarm(error):
                return None
            self.broken = True
            if isinstance(error, TimeoutError) and not is_alarm(error):
                raise stopped_answering(error) from error
            raise
        return received

    # ---- the writing side: one writer at a time

    def write_now(self, data: bytes) -> bool:
        """Queue ``data`` behind what is unsent, and push what the kernel takes; otherwise as `flush_now`."""
        if self.broken:
            raise BrokenPipeError(errno.EPIPE, "an earlier read or write failed half-way: connect anew")
        if self._tls is not None:
            self._tls.refuse_reentry()
        try:
            self._queue(memoryview(data))
        except BaseException:
            self.broken = True
            raise
        return self._push()

    def flush_now(self) -> bool:
        """Push what the kernel takes of what is unsent, and of what reading has produced. Never waits.

        Returns:
            True when nothing is left unsent; else call it again later.

        Raises:
            OSError: The connection is lost, the stream broken or closed.
        """
        if self.unsent and not self.broken and not self._push():
            return False  # replies stay where they are counted
        return self.write_now(b"")

    def write(self, data: bytes, deadline: float | None) -> None:
        """Send what is unsent, then all of ``data``.

        If this fails before a byte of ``data`` left (on an encrypted stream: before it was encrypted),
        ``data`` is taken back and the stream stays usable; else the stream is `broken`.

        Raises:
            TimeoutError: The deadline passed.
            OSError: The connection is lost, the stream broken or closed.
        """
        if self.unsent or self.broken or self._tls is not None:
            self._write_behind(data, deadline)
            return
        if self._pid != PID[0]:
            self.disown()
        try:
            # Nearly always the kernel takes all at once: no more calls than that.
            sent = self._sock.send(data, _SEND_FLAGS)
            self.bytes_out += sent
            if sent == len(data):
                return
            self.unsent = memoryview(data)[sent:]
        except BaseException as error:
            if isinstance(error, BlockingIOError) and not is_alarm(error):
                self.unsent = memoryview(data)
            else:
                self.broken = True
                if isinstance(error, TimeoutError) and not is_alarm(error):
                    raise stopped_answering(error) from error
                raise
        self._flush_or_take_back(len(data), deadline)

    def _write_behind(self, data: bytes, deadline: float | None) -> None:
        """`write` where something is unsent or encrypted."""
        if self.unsent or self.broken:
            self._flush(deadline)
        elif self._tls is not None:
            self._tls.refuse_reentry()  # before any of it counts as encrypted
        view = memoryview(data)
        while view:
            part = view if self._tls is None else view[:_ENCRYPT_SIZE]
            try:
                self._queue(part)
            except BaseException:
                self._take_back(len(data))
                raise
            self._flush_or_take_back(len(data), deadline)
            view = view[len(part) :]

    def _flush_or_take_back(self, size: int, deadline: float | None) -> None:
        try:
            self._flush(deadline)
        except BaseException:
            self._take_back(size)
            raise

    def _flush(self, deadline: float | None) -> None:
        while not self.flush_now():
            if not self._wait_writable(deadline):
                raise TimeoutError("the deadline passed before the peer took all that was to be sent")

    def _queue(self, data: memoryview) -> None:
        """Put ``data`` behind what is unsent, encrypted if need be."""
        if self._tls is not None and (data or self._tls.has_output):
            data = memoryview(self._tls.encrypt(data))
        if data:
            self.unsent = memoryview(b"".join((self.unsent, data))) if self.unsent else data

    def _push(self) -> bool:
        """Hand the kernel what it takes; True when nothing is left."""
        if self._pid != PID[0]:
            self.disown()
        while self.unsent:
            try:
                sent = self._sock.send(self.unsent, _SEND_FLAGS)
                self.bytes_out += sent
                self.unsent = self.unsent[sent:] or _NOTHING  # an empty slice would keep all of it alive
            except BaseException as error:
                if isinstance(error, BlockingIOError) and not is_alarm(error):
                    return False
                self.broken = True
                if isinstance(error, TimeoutError) and not is_alarm(error):
                    raise stopped_answering(error) from error
                raise
        return True

    def _take_back(self, size: int) -> None:
        if self._tls is None and len(self.unsent) == size and not self.broken:
            self.unsent = _NOTHING
        else:
            self.broken, self.leaves_rest = self.broken or not self.leaves_rest, False

    def _wait_writable(self, deadline: float | None) -> bool:
        sock = self._sock  # keeps the descriptor ours while it is polled
        try:
            if isinstance(sock, ClosedSocket):
                return True
            if self._poll_writable is None:
                _, self._poll_writable = pollers(sock.fileno(), writing=True)
            self.blocked_since = monotonic()
            return wait_for(self._poll_writable, deadline)
        finally:
            del sock

    # ---- any thread, any time, from finalizers and signal handlers too: no lock, no wait, no error

    def abort(self) -> None:
        """Shut the connection down both ways: blocked readers and writers wake, the peer sees the end."""
        if self._pid != PID[0]:
            self.disown()
        with suppress(OSError):  # not connected any more: the peer knows
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Abort, and give the socket up; the last thread to leave a call closes the descriptor."""
        try:
            self.abort()
        finally:
            self._sock = CLOSED

    def disown(self) -> None:
        """After a fork, in the child: close this descriptor; the connection, which is the parent's, lives."""
        # Explicitly, for the frames of the parent's other threads hold references for ever here.
        sock, self._sock = self._sock, CLOSED
        with suppress(OSError):  # a descriptor that is gone is what was asked for
            sock.close()
