"""One connected byte stream, plain or TLS, on which every wait has a deadline.

The kernel's socket is always a plain, non-blocking one. TLS is done in memory, beside it, so that many
TLS records cost one system call and shutting the socket down never touches the TLS session.

Deadlines are absolute `time.monotonic()` values in seconds; None waits for ever.

Who may call what at once: one reader and one writer (the callers hold a read lock and a send lock of
their own), and anybody, at any time, `abort` and `close`.
"""

from __future__ import annotations

import errno
import os
import queue
import select
import socket
import ssl
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from os import getpid
from types import FrameType
from typing import TypeAlias, TypeVar

from jetsocket.clock import monotonic, sleep
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.wire.certificates import names_of

if sys.platform != "win32":
    import fcntl
    import termios

_T = TypeVar("_T")
_Poll: TypeAlias = Callable[["float | None"], object]  # ms to wait; true: there is something

_READ_SIZE = 65536  # bytes asked of the kernel at once
_RECORD_SIZE = 16384  # most plaintext bytes in one TLS record, RFC 8446 §5.1
_RECORD_HEAD = 5  # bytes before a record's payload, their last two its length, RFC 8446 §5.1
_MOST_REPLIES = 65536  # bytes that reading has produced (KeyUpdates' answers), and the peer does not take
_ENCRYPT_SIZE = 262144  # bytes encrypted at once: a reader waits for the TLS lock no longer than that takes
_LONGEST_POLL = 3600.0  # s; poll() takes its milliseconds as a C int, which far deadlines overflow
_FORK_PATIENCE = 1.0  # s that a fork waits for threads that are inside OpenSSL: for milliseconds, as a rule
_SELECT_AT_ONCE = 500  # descriptors; Windows' select() takes 512
_SEND_FLAGS = getattr(socket, "MSG_NOSIGNAL", 0)  # also for programs that set SIGPIPE back to deadly
_NOTHING = memoryview(b"")
_INT = struct.Struct("i")


class Socket(socket.socket):
    """A socket that closes without a word when the last reference to it goes."""

    # Not a function of Python's: a Ctrl-C that comes inside one would be swallowed, and the descriptor lost.
    __del__ = socket.SocketType.close


class _Closed:
    """What stands in for the socket of a closed stream: every call fails as on a closed descriptor."""

    def recv(self, size: int) -> bytes:
        raise OSError(errno.EBADF, "the stream is closed")

    def send(self, data: bytes | memoryview, flags: int) -> int:
        raise OSError(errno.EBADF, "the stream is closed")

    def shutdown(self, how: int) -> None:
        pass

    def fileno(self) -> int:
        return -1

    def close(self) -> None:
        pass


_CLOSED = _Closed()


def frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of a stack from that one down; without the line numbers that `traceback` looks up."""
    while frame is not None:
        yield frame
        frame = frame.f_back


class _ForkGate:
    """Lets a fork wait for a moment in which no thread is inside OpenSSL.

    OpenSSL has locks of its own. One that is held at the fork stays locked in the child for ever, whose next
    handshake would hang. Nothing is held meanwhile: other hooks that run before a fork wait for locks of
    theirs, `logging` for one, and whoever has such a lock may need a session. So in the instants between the
    moment that was found and the fork a thread may enter all the same; hardly ever one does.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a forked child: forget the parent's sessions."""
        # No lock, which an interrupt could leave locked: CPython adds, discards and copies in one go each.
        self._sessions: set[weakref.ref[_Tls]] = set()

    def enroll(self, session: _Tls) -> None:
        """Wait for that session, too."""
        self._sessions.add(weakref.ref(session, self._sessions.discard))

    def wait(self) -> None:
        """Before a fork. In vain for a signal handler that came inside a session, hence the patience."""
        deadline = monotonic() + _FORK_PATIENCE
        while self._is_busy() and monotonic() < deadline:
            sleep(0.001)  # its lock is not waited for: an interrupt could leave that locked, too

    def _is_busy(self) -> bool:
        sessions = [ref() for ref in list(self._sessions)]
        return any(session is not None and session.is_busy for session in sessions)


_fork_gate = _ForkGate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_fork_gate.wait, after_in_child=_fork_gate.renew)


class _Tls:
    """A TLS session in memory: ciphertext in, plaintext out, and back.

    `_lock` guards every call to the session and its two buffers, and nothing else. It is taken only by
    the stream's reader or writer, never around a system call, and no other lock is taken under it. A
    finalizer or signal handler that comes inside a call is refused: it would wait for its own thread.
    """

    def __init__(self, context: ssl.SSLContext, server_hostname: str) -> None:
        self._lock = threading.Lock()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_hostname=server_hostname)
        self._error: ssl.SSLError | None = None  # met behind plaintext that had to be returned first
        self._ended = False  # the peer said close_notify
        self._head = b""  # the beginning of a record's head, if what was fed ends within one
        self._missing = 0  # bytes that the last record lacks
        self.is_flooded = False  # whether so many answers wait to be sent that no more should be read
        self.version: str | None = None
        _fork_gate.enroll(self)

    @property
    def names(self) -> list[str] | None:
        """What the peer's certificate is for; None if not known."""
        return names_of(self._session)

    @property
    def is_busy(self) -> bool:
        """Whether a thread is inside."""
        return self._lock.locked()

    def handshake(self) -> bool:
        """Go on with the handshake; True when it is done, False when the peer has to speak first."""
        if self._lock.locked():
            self._refuse_reentry()
        with self._lock:
            try:
                self._session.do_handshake()
            except ssl.SSLWantReadError as error:
                if is_alarm(error):
                    raise
                return False
            self.version = self._session.version()
            return True

    def feed(self, ciphertext: bytes) -> None:
        if self._lock.locked():
            self._refuse_reentry()
        with self._lock:
            self._incoming.write(ciphertext)
        # Where records end has to be counted: OpenSSL does not tell what it holds of one that is not whole.
        if self._head:
            ciphertext = self._head + ciphertext
        end, border = len(ciphertext), self._missing
        while (payload := border + _RECORD_HEAD) <= end:
            border = payload + (ciphertext[payload - 2] << 8 | ciphertext[payload - 1])
        self._head = ciphertext[border:]
        self._missing = border - end if border > end else 0

    def decrypt(self) -> bytes | None:
        """All plaintext there is; None when there is none now, b"" when there will never be more."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # or its traceback would keep the stream alive
        parts: list[bytes] = []
        if self._lock.locked():
            self._refuse_reentry()
        with self._lock:
            while not self._ended and (self._incoming.pending or self._session.pending()):
                try:
                    parts.append(self._session.read(_RECORD_SIZE))
                except ssl.SSLError as error:
                    if is_alarm(error):
                        raise
                    if not isinstance(error, ssl.SSLWantReadError):
                        if not parts:
                            raise
                        self._error = error
                    break  # else it was half a record, or one that carries no data
                self._ended = not parts[-1]  # the peer's close_notify reads as b""
            # Here, with the lock: while another thread encrypts, what it has done so far is in there, too.
            self.is_flooded = self._outgoing.pending > _MOST_REPLIES
        return b"".join(parts) or (b"" if self._ended else None)

    def encrypt(self, data: memoryview) -> bytes:
        """``data`` as TLS records, behind the records that reading has produced."""
        if self._lock.locked():
            self._refuse_reentry()
        with self._lock:
            while data:
                try:
                    data = data[self._session.write(data) :]
                except ssl.SSLWantReadError as error:
                    if is_alarm(error):
                        raise
                    told = "the peer renegotiates TLS, and nothing can be sent until that is over"
                    raise ConnectionAbortedError(errno.ECONNABORTED, told) from error
            return self._outgoing.read()

    def _refuse_reentry(self) -> None:
        # Inside any session, not only this one: two threads, each inside the other's, would wait in a circle.
        if any(frame.f_code in _TLS_CALLS for frame in frames_from(sys._getframe(2))):
            raise OSError(errno.EDEADLK, "a finalizer or signal handler has interrupted a TLS session")

    @property
    def has_input(self) -> bool:
        """Whether `decrypt` has something to return or raise without more ciphertext."""
        return self._ended or self._error is not None or self._incoming.pending > 0

    @property
    def mid_record(self) -> bool:
        """Whether part of a record has come and the rest has not: nobody knows yet what it carries."""
        return self._missing > 0 or bool(self._head)

    @property
    def has_output(self) -> bool:
        """Whether reading has produced records that are to be sent (a KeyUpdate's answer, an alert)."""
        return self._outgoing.pending > 0


_TLS_CALLS = frozenset(call.__code__ for call in (_Tls.handshake, _Tls.feed, _Tls.decrypt, _Tls.encrypt))


class Stream:
    """One connected byte stream: reads and writes that never wait, and waits that end at a deadline.

    Closing has to wake a thread that waits on the descriptor, and must not let the kernel give the
    descriptor's number to another connection under that thread. So `close` shuts the socket down and
    drops it, and the reference count of the socket object counts who is inside a call: the last one out
    closes the descriptor. For this, no method leaves the socket in a local variable when it raises.

    Attributes:
        bytes_in: Bytes received from the kernel (ciphertext, if the stream is encrypted).
        bytes_out: Bytes the kernel took. Unchanged after a failed write: no byte of it left.
        broken: A read or write failed half-way, so bytes are lost or half a frame is out. Never usable again.
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
        self._sock: Socket | _Closed = sock
        self._sock.setblocking(False)
        self._pid = getpid()
        self._tls: _Tls | None = None
        self._unsent = _NOTHING  # bytes for the kernel (ciphertext, if encrypted); the writer's
        self._poll_readable: _Poll | None = None  # the reader's, for looks
        self._wait_readable: _Poll | None = None  # and for waits
        self._poll_writable: _Poll | None = None  # the writer's, for waits
        self.bytes_in = 0
        self.bytes_out = 0
        self.broken = False

    @property
    def closed(self) -> bool:
        """Whether `close` or `disown` was called."""
        return self._sock is _CLOSED

    @property
    def tls_version(self) -> str | None:
        """The protocol spoken, such as "TLSv1.3"; None on a plain stream."""
        return self._tls.version if self._tls is not None else None

    @property
    def certificate_names(self) -> list[str] | None:
        """The names that the peer's certificate is for, also after it was refused; None if not known."""
        return None if self._tls is None else self._tls.names

    @property
    def unsent(self) -> bool:
        """Whether bytes that were written wait for `flush_now`."""
        return bool(self._unsent)

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
        return waiting(self._sock.fileno())

    @property
    def untaken(self) -> int:
        """How many B that the kernel took the peer's has not taken yet; 0 where it does not tell."""
        return _ask_kernel(self._sock.fileno(), "TIOCOUTQ")

    def start_tls(self, context: ssl.SSLContext, server_hostname: str, deadline: float | None) -> None:
        """Do the TLS handshake; from then on the stream is encrypted. To be called once, before sharing it.

        Args:
            context: What to trust and to offer.
            server_hostname: The name or address that the certificate has to be for.
            deadline: When to give up.

        Raises:
            TimeoutError: The deadline passed.
            ssl.SSLError: The handshake failed; `ssl.SSLCertVerificationError` if the certificate was refused.
            OSError: The connection was lost.
        """
        self._tls = tls = _Tls(context, server_hostname)
        try:
            while not tls.handshake():
                self._flush(deadline)
                if not self.wait_readable(deadline):
                    raise TimeoutError("the deadline passed during the TLS handshake")
                ciphertext = self._receive()
                if ciphertext == b"":
                    raise ConnectionResetError(
                        errno.ECONNRESET, "the peer closed the connection during the TLS handshake"
                    )
                tls.feed(ciphertext or b"")
            self._flush(deadline)
        except BaseException as error:
            if isinstance(error, ssl.SSLError) and not is_alarm(error):
                self._send_alert()
            self.broken = True
            raise

    # ---- the reading side: one reader at a time

    def read_now(self) -> bytes | None:
        """Return what can be read without waiting, in one system call at most.

        Returns:
            One byte or more (up to 64 KiB, as they come from the kernel); None when there is nothing
            now; b"" at the end of the stream.

        Raises:
            OSError: The connection is lost, or the stream closed; `ssl.SSLError` if it is no valid TLS.
        """
        if self._tls is None:
            return self._receive()
        try:
            return self._read_tls(self._tls)
        except BaseException:
            self.broken = True  # also for a signal handler's exception: plaintext may have gone with it
            raise

    def readable_now(self) -> bool:
        """Whether `read_now` has something to tell already: data, the end, an error. Never waits."""
        poll = self._poll_readable
        if poll is None or self._tls is not None or self._sock is _CLOSED:
            return self._poll_reader(None)
        return bool(poll(0))  # without the reference that a wait needs: at worst it tells of a closed socket

    @property
    def half_read(self) -> bool:
        """Whether part of a TLS record was read, and waits for the rest."""
        return self._tls is not None and self._tls.mid_record

    @property
    def at_rest(self) -> bool:
        """Whether it is open and whole, with nothing to read, half-read or unsent. Never waits."""
        poll = self._poll_readable
        if poll is None or self._tls is not None or self._sock is _CLOSED:
            return not (self._poll_reader(None) or self.half_read or self.broken or self.unsent)
        return not (poll(0) or self.broken or self._unsent)

    def wait_readable(self, deadline: float | None) -> bool:
        """Wait until `read_now` has something to tell: data, the end, an error.

        A call with a deadline in the past never succeeds, so that a peer that drips cannot hold a reader.
        `abort` and `close` in another thread end the wait too.

        Returns:
            False when the deadline passed.
        """
        return self._poll_reader(lambda poll: _wait(poll, deadline))

    def _poll_reader(self, wait: Callable[[_Poll], bool] | None) -> bool:
        if self._tls is not None and self._tls.has_input:
            return True
        if self._pid != getpid():
            self.disown()
        sock = self._sock  # keeps the descriptor ours while it is polled
        try:
            if isinstance(sock, _Closed):
                return True
            if self._poll_readable is None or self._wait_readable is None:
                self._poll_readable, self._wait_readable = _pollers(sock.fileno(), writing=False)
            return bool(self._poll_readable(0)) if wait is None else wait(self._wait_readable)
        finally:
            del sock

    def _read_tls(self, tls: _Tls) -> bytes | None:
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
        if self._pid != getpid():
            self.disown()
        try:
            received = self._sock.recv(_READ_SIZE)
            self.bytes_in += len(received)
        except BaseException as error:
            if isinstance(error, BlockingIOError) and not is_alarm(error):
                return None
            self.broken = True
            if isinstance(error, TimeoutError) and not is_alarm(error):
                raise _stopped_answering(error) from error
            raise
        return received

    # ---- the writing side: one writer at a time

    def write_now(self, data: bytes) -> bool:
        """Queue ``data`` behind what is unsent, and push what the kernel takes. Never waits.

        Returns:
            True when nothing is left unsent; else call `flush_now` later.

        Raises:
            OSError: The connection is lost, the stream broken or closed.
        """
        if self.broken:
            raise BrokenPipeError(errno.EPIPE, "an earlier read or write failed half-way: connect anew")
        try:
            self._queue(memoryview(data))
        except BaseException:
            self.broken = True
            raise
        return self._push()

    def flush_now(self) -> bool:
        """Do as `write_now` does, without new data; what reading has produced leaves, too.

        Returns:
            True when nothing is left unsent.

        Raises:
            OSError: The connection is lost, the stream broken or closed.
        """
        if self._unsent and not self.broken and not self._push():
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
        if self._unsent or self.broken or self._tls is not None:
            self._write_behind(data, deadline)
            return
        if self._pid != getpid():
            self.disown()
        try:
            # Nearly always the kernel takes all at once: no more calls than that.
            sent = self._sock.send(data, _SEND_FLAGS)
            self.bytes_out += sent
            if sent == len(data):
                return
            self._unsent = memoryview(data)[sent:]
        except BaseException as error:
            if isinstance(error, BlockingIOError) and not is_alarm(error):
                self._unsent = memoryview(data)
            else:
                self.broken = True
                if isinstance(error, TimeoutError) and not is_alarm(error):
                    raise _stopped_answering(error) from error
                raise
        self._flush_or_take_back(len(data), deadline)

    def _write_behind(self, data: bytes, deadline: float | None) -> None:
        """`write` where something is unsent or encrypted."""
        self._flush(deadline)
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

    def _send_alert(self) -> None:
        with suppress(OSError):  # a courtesy: the connection is lost either way
            self.flush_now()

    def _flush(self, deadline: float | None) -> None:
        while not self.flush_now():
            if not self._wait_writable(deadline):
                raise TimeoutError("the deadline passed before the peer took all that was to be sent")

    def _queue(self, data: memoryview) -> None:
        """Put ``data`` behind what is unsent, encrypted if need be."""
        if self._tls is not None and (data or self._tls.has_output):
            data = memoryview(self._tls.encrypt(data))
        if data:
            self._unsent = memoryview(b"".join((self._unsent, data))) if self._unsent else data

    def _push(self) -> bool:
        """Hand the kernel what it takes; True when nothing is left."""
        if self._pid != getpid():
            self.disown()
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent, _SEND_FLAGS)
                self.bytes_out += sent
                self._unsent = self._unsent[sent:] or _NOTHING  # an empty slice would keep all of it alive
            except BaseException as error:
                if isinstance(error, BlockingIOError) and not is_alarm(error):
                    return False
                self.broken = True
                if isinstance(error, TimeoutError) and not is_alarm(error):
                    raise _stopped_answering(error) from error
                raise
        return True

    def _take_back(self, size: int) -> None:
        if self._tls is None and len(self._unsent) == size and not self.broken:
            self._unsent = _NOTHING
        else:
            self.broken = True

    def _wait_writable(self, deadline: float | None) -> bool:
        sock = self._sock  # keeps the descriptor ours while it is polled
        try:
            if isinstance(sock, _Closed):
                return True
            if self._poll_writable is None:
                _, self._poll_writable = _pollers(sock.fileno(), writing=True)
            return _wait(self._poll_writable, deadline)
        finally:
            del sock

    # ---- any thread, any time, from finalizers and signal handlers too: no lock, no wait, no error

    def abort(self) -> None:
        """Shut the connection down both ways: blocked readers and writers wake, the peer sees the end."""
        if self._pid != getpid():
            self.disown()
        with suppress(OSError):  # not connected any more: the peer knows
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Abort, and give the socket up; the last thread to leave a call closes the descriptor."""
        try:
            self.abort()
        finally:
            self._sock = _CLOSED

    def disown(self) -> None:
        """After a fork, in the child: close this process's descriptor and let the connection live.

        Nothing is sent and nothing shut down, for the connection is the parent's.
        """
        # Explicitly, for the frames of the parent's other threads hold references for ever here.
        sock, self._sock = self._sock, _CLOSED
        with suppress(OSError):  # a descriptor that is gone is what was asked for
            sock.close()


def take(box: queue.SimpleQueue[_T], seconds: float) -> _T:
    """The next item of ``box``, waiting at most so many seconds for it.

    Raises:
        queue.Empty: None came.
    """
    try:
        # On Python 3.10, get(timeout=...) of an empty queue may find its time over before it has begun to
        # wait, and then waits for ever: unless the queue has been found empty before.
        return box.get_nowait()
    except queue.Empty as error:
        if seconds <= 0 or is_alarm(error):
            raise
    return box.get(timeout=seconds)


class Watcher:
    """Tells which of many descriptors have something to read, without waiting.

    One thread at a time may call `ready`.
    """

    def __init__(self) -> None:
        self._fds: set[int] = set()
        make_look, make_wait = _make_poll(), getattr(select, "poll", None)
        self._polls = []  # the first looks, the last waits; none on Windows
        if make_look is not None and make_wait is not None:
            self._polls = [make() for make in dict.fromkeys((make_look, make_wait))]

    def add(self, fd: int) -> None:
        """Watch ``fd`` from now on.

        Raises:
            ValueError: ``fd`` is negative, as that of a closed stream is.
        """
        if fd < 0:
            raise ValueError(f"cannot watch the descriptor of a closed stream ({fd})")
        self._fds.add(fd)
        for poll in self._polls:
            poll.register(fd, select.POLLIN)

    def remove(self, fd: int) -> None:
        """Watch ``fd`` no longer; harmless if it was not watched."""
        if fd in self._fds:
            self._fds.discard(fd)
            for poll in self._polls:
                poll.unregister(fd)

    def ready(self, timeout: float = 0.0) -> list[int]:
        """The descriptors with data, an end, an error, or that were closed without being removed.

        Args:
            timeout: How long to wait for the first one (s).
        """
        if self._polls:
            poll = self._polls[-1 if timeout > 0 else 0]
            return [fd for fd, _ in poll.poll(timeout * 1000)]
        fds = list(self._fds)
        groups = [fds[start : start + _SELECT_AT_ONCE] for start in range(0, len(fds), _SELECT_AT_ONCE)]
        return [fd for group in groups for fd in _select_readable(group, timeout / len(groups))]


def waiting(fd: int) -> int:
    """How many B the kernel holds for whoever reads ``fd``; 0 where it does not tell."""
    return _ask_kernel(fd, "FIONREAD")


def _ask_kernel(fd: int, what: str) -> int:
    if sys.platform == "win32":
        return 0
    if fd < 0 or not hasattr(termios, what):
        return 0
    try:
        return int(_INT.unpack(fcntl.ioctl(fd, getattr(termios, what), bytes(_INT.size)))[0])
    except OSError as error:
        if is_alarm(error):
            raise
        return 0  # closed meanwhile, or a system that answers this for terminals alone


def _select_readable(fds: list[int], timeout: float = 0.0) -> list[int]:
    try:
        readable, _, failed = select.select(fds, [], fds, timeout)
    except (OSError, ValueError) as error:
        if is_alarm(error):
            raise
        if len(fds) == 1:  # one that is closed spoils the call for all: ask one by one
            return fds
        return [ready for fd in fds for ready in _select_readable([fd])]
    return list({*readable, *failed})


def _make_poll() -> Callable[[], select.poll] | None:
    """`select.poll` itself: gevent's lets others run even with a timeout of 0, and fails in its hub."""
    make = getattr(select, "poll", None)  # not on Windows
    monkey = sys.modules.get("gevent.monkey")
    return make if make is None or monkey is None else monkey.get_original("select", "poll")


def _pollers(fd: int, *, writing: bool) -> tuple[_Poll, _Poll]:
    """Two functions that tell whether ``fd`` is ready or has failed: one looks, the other waits so many ms.

    Not re-entrant, as poll objects are not: two for the reader, two for the writer. Without gevent, they are
    the same.
    """
    make_look, make_wait = _make_poll(), getattr(select, "poll", None)
    if make_look is None or make_wait is None:
        lists = ([], [fd], [fd]) if writing else ([fd], [], [fd])

        def ask(ms: float | None) -> bool:
            return any(select.select(*lists, None if ms is None else ms / 1000))

        return ask, ask
    look = _registered(make_look(), fd, writing)
    return look, look if make_look is make_wait else _registered(make_wait(), fd, writing)


def _registered(poll: select.poll, fd: int, writing: bool) -> _Poll:
    poll.register(fd, select.POLLOUT if writing else select.POLLIN)
    return poll.poll


def _wait(poll: _Poll, deadline: float | None) -> bool:
    if deadline is None:
        return bool(poll(None))
    while (remaining := deadline - monotonic()) > 0:
        if poll(min(remaining, _LONGEST_POLL) * 1000):
            return True
    return False


def _stopped_answering(error: OSError) -> OSError:
    """The kernel's ETIMEDOUT by another name: TimeoutError means a passed deadline here."""
    return ConnectionAbortedError(error.errno, f"the peer stopped answering: {error.strerror}")
