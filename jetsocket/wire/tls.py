"""A TLS session in memory, beside the socket: ciphertext in, plaintext out, and back; and what it trusts.

So that many TLS records cost one system call, shutting the socket down never touches the session, and one
thread may send while another receives.
"""

from __future__ import annotations

import atexit
import errno
import os
import ssl
import sys
import threading
import weakref

from jetsocket.clock import monotonic, sleep
from jetsocket.interrupts import frames_from, is_alarm
from jetsocket.wire.reentry import ReentryError

_RECORD_SIZE = 16384  # most plaintext bytes in one TLS record, RFC 8446 §5.1
_RECORD_HEAD = 5  # bytes before a record's payload, their last two its length, RFC 8446 §5.1
_MOST_REPLIES = 65536  # bytes that reading has produced (KeyUpdates' answers), and the peer does not take
_GATE_PATIENCE = 1.0  # s that a fork and the exit wait for threads inside OpenSSL, mostly for milliseconds


class _Gate:
    """Lets a fork, and the interpreter's end, wait for a moment in which no thread is inside OpenSSL.

    OpenSSL has locks of its own. One that is held at the fork stays locked in the child for ever, whose next
    handshake would hang; and all are freed as the process ends, under a daemon thread that uses them, which
    is a segmentation fault. Nothing is held meanwhile: other hooks that run before a fork wait for locks of
    theirs, `logging` for one, and whoever has such a lock may need a session. So in the instants between the
    moment that was found and the fork, or the end, a thread may enter all the same; hardly ever one does.
    """

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """In a forked child: forget the parent's sessions."""
        # No lock, which an interrupt could leave locked: CPython adds, discards and copies in one go each.
        self._sessions: set[weakref.ref[Tls | _Loading]] = set()

    def enroll(self, session: Tls | _Loading) -> None:
        """Wait for that, too, as long as it is there and busy."""
        self._sessions.add(weakref.ref(session, self._sessions.discard))

    def wait(self) -> None:
        """Before that. In vain for a signal handler that came inside a session, hence the patience."""
        deadline = monotonic() + _GATE_PATIENCE
        while self._is_busy() and monotonic() < deadline:
            sleep(0.001)  # its lock is not waited for: an interrupt could leave that locked, too

    def _is_busy(self) -> bool:
        sessions = [ref() for ref in list(self._sessions)]
        return any(session is not None and session.is_busy for session in sessions)


class _Loading:
    """A thread reads authorities, which takes OpenSSL milliseconds, or many of them."""

    __slots__ = ("__weakref__", "is_busy")

    def __init__(self) -> None:
        self.is_busy = True
        _gate.enroll(self)


_gate = _Gate()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_gate.wait, after_in_child=_gate.renew)
atexit.register(_gate.wait)


class Tls:
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
        _gate.enroll(self)

    @property
    def session(self) -> ssl.SSLObject:
        """The session, to be asked what it is, not to be used."""
        return self._session

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
        """Take in what came."""
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

    def refuse_reentry(self) -> None:
        """Raise ReentryError where a call would, before anything is read or written that would be lost."""
        if self._lock.locked():
            self._refuse_reentry()

    def _refuse_reentry(self) -> None:
        # Inside any session, not only this one: two threads, each inside the other's, would wait in a circle.
        if any(frame.f_code in _TLS_CALLS for frame in frames_from(sys._getframe(2))):
            raise ReentryError

    @property
    def has_input(self) -> bool:
        """Whether `decrypt` has something to return or raise without more ciphertext."""
        return self._ended or self._error is not None or self._incoming.pending > 0

    @property
    def mid_record(self) -> bool:
        """Whether part of a record has come and the rest has not: what it carries is not known yet."""
        return self._missing > 0 or bool(self._head)

    @property
    def has_output(self) -> bool:
        """Whether reading has produced records that are to be sent (a KeyUpdate's answer, an alert)."""
        return self._outgoing.pending > 0


_TLS_CALLS = frozenset(call.__code__ for call in (Tls.handshake, Tls.feed, Tls.decrypt, Tls.encrypt))


_default_contexts: list[ssl.SSLContext] = []  # one, once it is good


def default_ssl_context() -> ssl.SSLContext:
    """What wss:// trusts unless told otherwise: the system's authorities, and names are checked.

    Made at first use, as loading the authorities takes milliseconds; one per process.
    """
    if _default_contexts:
        return _default_contexts[0]
    loading = _Loading()
    try:
        context = ssl.create_default_context()
    finally:
        loading.is_busy = False
    # With no descriptor free, OpenSSL can't open the file of authorities, and does not say so. A directory of
    # them is only looked into when a certificate is there.
    if context.cert_store_stats()["x509"] or ssl.get_default_verify_paths().cafile is None:
        _default_contexts[:] = [context]
    return context


_without: weakref.WeakKeyDictionary[ssl.SSLContext, ssl.SSLContext] = weakref.WeakKeyDictionary()


def without_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    """A context for clients that trusts what this one does, and has no certificate of ours to show.

    Whether a context has one can't be told, nor can it be taken away: so all that can be read of the first is
    carried over to another, and authorities that a directory holds, which can't, if they are the system's.
    """
    if (known := _without.get(context)) is not None:
        return known
    plain = type(context)(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname = False  # or verify_mode can't be set
    for name in (
        "verify_mode",
        "check_hostname",
        "verify_flags",
        "options",
        "minimum_version",
        "maximum_version",
    ):
        setattr(plain, name, getattr(context, name))
    plain.set_ciphers(":".join(each["name"] for each in context.get_ciphers()))
    try:
        authorities = context.get_ca_certs(binary_form=True)
    except NotImplementedError as error:  # of a subclass that asks the system, as truststore's
        if is_alarm(error):
            raise
        authorities = []
    loading = _Loading()
    try:
        if authorities:
            plain.load_verify_locations(cadata=b"".join(authorities))
        elif plain.verify_mode != ssl.CERT_NONE:
            plain.load_default_certs()
    finally:
        loading.is_busy = False
    _without[context] = plain
    return plain


__all__ = ["Tls", "default_ssl_context", "without_certificate"]
