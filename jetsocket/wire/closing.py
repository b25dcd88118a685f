"""How a connection ends: the closing handshake (RFC 6455 §7), or at once."""

from __future__ import annotations

import copy
import math
import sys
import threading

from jetsocket.clock import monotonic
from jetsocket.exceptions import MessageTooBigError, ProtocolError
from jetsocket.interrupts import is_alarm
from jetsocket.wire.close_codes import ABNORMAL, NO_STATUS, encode_close
from jetsocket.wire.frames import CLOSE
from jetsocket.wire.link import LAST_LOOK, LITTLE, takes
from jetsocket.wire.own_pings import Pings
from jetsocket.wire.redaction import censored, secrets_of
from jetsocket.wire.stream import Stream

_LINGER = 0.2  # s that a server has, after the closing handshake, to close TCP first (RFC 6455 §7.1.1)


class Closing(Pings):
    """Ends a connection: in order, or at once."""

    def start_close(self, code: int = 1000, reason: str = "") -> None:
        """Send a close frame without waiting; if that can't be done now, cut the connection.

        Takes no lock that it would have to wait for, so it may run anywhere.
        """
        self._end("closed by this side", code, reason)
        self._send_close(code, reason)

    @takes("lock")
    def _send_close(self, code: int, reason: str = "") -> None:
        if self._close_sent or self._stream is None:
            return
        sent = False
        if self.lock.acquire(blocking=False):
            try:
                sent = not self.half_sent and self._push(CLOSE, encode_close(code, reason))
            finally:
                self.lock.release()
        self._close_sent = True
        if not sent:
            self._stream.abort()

    def _closed_by_server(self, code: int, reason: str) -> None:
        if self._reply_at is not None:
            return
        self._reply_at = monotonic()
        shown = ""
        if reason:
            shown = censored(reason, secrets_of(self._request) | self._sent_before, cut=True)
        told = f"with {code} {shown!r}" if shown else f"with {code}"
        if code == NO_STATUS:  # which no server can send: it says that there was none
            told = "without a status code"
        error = self._closed(f"the server closed the connection {told}", code, reason)
        error.args = (*error.args[:2], shown)  # it may repeat what is secret
        self._fail(error)
        self._send_close(1000 if code == NO_STATUS else code)

    def _refuse(self, error: ProtocolError | MessageTooBigError) -> None:
        """Fail the connection (RFC 6455 §7.1.7): what is whole can still be read, then comes the error."""
        code = 1009 if isinstance(error, MessageTooBigError) else (error.code or 1002)
        where = "" if self.target is None else f" (at {self.target.redacted})"
        told = copy.copy(error)
        told.args = (f"{error}{where}", *error.args[1:])
        told.__cause__ = error.__cause__
        self._fail(told)
        self._send_close(code)

    @takes("readlock")
    def poll_close(self, until: float = 0.0) -> bool:
        """Whether the closing handshake is over, without waiting: the server has closed, or never will.

        Args:
            until: Begin no read after that (monotonic, s) once 16 KiB have been thrown away.
        """
        stream = self._stream
        if stream is None or stream.closed:
            return True
        if not self.readlock.acquire(blocking=False):
            return self._left_by == threading.get_ident() and self._drain(stream, until)
        try:
            return self._drain(stream, until)
        finally:
            self.readlock.release()

    def _drain(self, stream: Stream, until: float) -> bool:
        """Throw away what still comes, up to the end of the stream; False: more may come."""
        assert self.readlock.locked(), "the caller holds `readlock`"
        self._flush()  # our own close frame, perhaps
        self.reader.frames_only = True
        if self.reader.paused:  # what was left there may end with its close frame
            self._note_reply(b"")
        enough = self._drained + LITTLE
        try:
            # A server that never stops sending must not keep us here.
            while self._drained < enough or monotonic() < until:
                data = stream.read_now() if stream.readable_now() else None
                if data is None:
                    break
                if not data:
                    return True
                self._drained += len(data)
                self._note_reply(data)
        except OSError as error:
            if is_alarm(error):
                raise
            return True  # reset: there is no end to wait for
        return self._reply_at is not None and monotonic() - self._reply_at >= _LINGER

    def _note_reply(self, data: bytes) -> None:
        # Of a server that sends a lot all the same, only the end of the stream is waited for: looking for its
        # close frame would cost more than the whole connection is worth.
        if self._reply_at is None and not self.reader.broken and self._drained <= LITTLE:
            try:
                self.reader.feed(data)
            except (ProtocolError, MessageTooBigError) as error:
                if is_alarm(error):
                    raise
                return  # it was being closed anyway; only the end of the stream matters now
            if self.holder is None:  # else what came before is still its own: others may share the connection
                self.reader.messages.clear()
            if self.reader.close is not None:
                self._reply_at = monotonic()

    @takes("readlock")
    def finish_close(self, deadline: float) -> None:
        """Wait for the server's side of the closing handshake, at most until `deadline`; then let go."""
        stream = self._stream
        if stream is not None and self._can_finish(deadline):
            try:
                while not self._drain(stream, min(deadline, monotonic() + LAST_LOOK)):
                    if monotonic() >= deadline:
                        break
                    soon = monotonic() + LAST_LOOK if stream.unsent else math.inf
                    stream.wait_readable(min(deadline, self._patience(), soon))
            finally:
                self.readlock.release()
        self.shutdown()

    def _can_finish(self, deadline: float) -> bool:
        """Get `readlock` for `finish_close`; in vain for a signal handler that has interrupted a reader."""
        if self.readlock.acquire(blocking=False):
            return True
        if self._is_held_below("readlock", sys._getframe(2)):
            return False
        return self.readlock.acquire(timeout=max(0.0, deadline - monotonic()))

    def _patience(self) -> float:
        """Until when the server may still close TCP itself."""
        return math.inf if self._reply_at is None else self._reply_at + _LINGER

    @takes("lock")
    @takes("readlock")
    def take_leave(self) -> bool:
        """Send a close frame as the process ends (1001), if no thread is inside; and let none in any more.

        A daemon thread that comes later waits, and ends with the process; an error it would print.

        Returns:
            Whether that was possible; then `poll_close`, in this thread.
        """
        if not self.connected or not self.lock.acquire(blocking=False):
            return False
        if self._is_mid_frame() or not self.readlock.acquire(blocking=False):
            self.lock.release()
            return False
        if not self._push(CLOSE, encode_close(1001)):
            self.readlock.release()
            self.lock.release()
            return False
        self._close_sent = True
        self._left_by = threading.get_ident()
        self._fail(self._closed("the process ends"))
        return True

    def cut(self, why: str, code: int = ABNORMAL) -> None:
        """End it now, in whatever state: blocked senders and readers wake with ConnectionClosedError.

        Takes no lock, never waits and never raises: for any thread, finalizer or signal handler.
        """
        self._fail(self._closed(why, code))
        self.abort()

    def dismiss(self, why: str) -> None:
        """End it now, but with a close frame (1001) if it is possible without waiting.

        Blocked senders and readers wake with ConnectionClosedError. For where `cut` may be called, too.
        """
        was_open = self.connected
        self._fail(self._closed(why))
        if was_open:
            self._send_close(1001)
        self.shutdown()

    def abort(self) -> None:
        """Wake every thread that is in `recv` or `send` on this connection; it is over then."""
        self.connected = False
        if (stream := self._stream) is not None:
            stream.abort()

    def shutdown(self) -> None:
        """Let go of the socket at once, without a word."""
        self._end("closed by this side")
        self.abort()
        if self._stream is not None:
            self._stream.close()

    def disown(self) -> None:
        """In a forked child: forget the parent's connection without touching it."""
        self._fail(self._closed("it belongs to the parent process, before the fork"))
        self._close_sent = True
        # A thread that was inside does not exist here, and would never let go. A greenlet does, and will, and
        # so does this thread, if a signal handler forked.
        if type(self.lock).__module__ == "_thread" and not self._is_inside():
            self.lock, self.readlock = threading.Lock(), threading.Lock()
        self._tended_by = self._pushed_by = self._left_by = 0
        if self._stream is not None:
            self._stream.disown()
