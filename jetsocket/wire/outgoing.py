"""What goes out: messages, in one frame or several, and control frames that never wait."""

from __future__ import annotations

import builtins
import os
import struct
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

from jetsocket.clock import monotonic
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.wire.frames import BINARY, CLOSE, CONTINUATION, PONG, TEXT, encode_frame
from jetsocket.wire.link import Batch, Link, not_held, takes
from jetsocket.wire.message_reader import PING_BURST
from jetsocket.wire.reentry import ReentryError

_TOLD = (TimeoutError, ConnectionError)
_PUSH_PATIENCE = 1.0  # s
_REASON_PATIENCE = 0.25  # s that a thread may take to read what came before a send failed
_LEAVES = 256 * 1024  # B, of which a batch that the server does not take may be left behind
_KEYS = struct.Struct("4s" * 32)  # as many are drawn at once


class Outgoing(Link):
    """The sending half of a connection; `lock` guards it."""

    def send_message(
        self,
        payload: str | bytes,
        deadline: float | None = None,
        holder: object = None,
        text: bool | None = None,
    ) -> None:
        """Send one message.

        Args:
            payload: `str` goes out as text, `bytes` as binary.
            deadline: Monotonic time; None waits for ever.
            holder: Who asks.
            text: Send as text (True) or binary (False) whatever the type.

        Raises:
            TimeoutError: The server takes no more. If part of the message has left, the connection is over.
            ConnectionClosedError: The connection has ended.
            InvalidStateError: `holder` is not who may use it, or a signal handler calls this that has
                interrupted what it would wait for.
        """
        if isinstance(payload, str):
            self.send_data(BINARY if text is False else TEXT, payload.encode("utf-8"), deadline, holder)
        else:
            self.send_data(TEXT if text else BINARY, payload, deadline, holder)

    def send_made(
        self, make: Callable[[], str | bytes], deadline: float | None = None, holder: object = None
    ) -> None:
        """`send_message` of what `make` returns, which is asked only once it is this message's turn.

        For messages whose ids have to grow in the order in which they leave. What `make` raises comes out,
        and nothing is sent then. It is called with `lock` held, so it must not use this connection.
        """
        self.send_data(TEXT, b"", deadline, holder, _made_by, make)

    @takes("lock")
    def send_data(  # noqa: PLR0917 - names would cost time, at each message
        self,
        opcode: int,
        data: bytes,
        deadline: float | None,
        holder: object,
        begin: Callable[[Any], tuple[int, bytes]] | None = None,
        what: Any = None,
    ) -> None:
        """Send one message or control frame; as `send_message`, for what is encoded already.

        `begin` gives opcode and data for `what`, if they are only known once it is this one's turn.
        """
        if not self.lock.acquire(blocking=False):
            self._wait_for("lock", deadline, "send")
        out = -1
        try:
            self.is_composing = True
            if holder is not self.holder:
                raise not_held(self.target)
            if begin is not None:
                opcode, data = begin(what)
            if opcode < CLOSE:  # before it can leave: what strikes behind its last byte must find it counted
                stream = self._stream
                out = 0 if stream is None else stream.bytes_out
                self.messages_sent += 1
            deflater, compressed = self._deflater, False
            if deflater is not None and opcode < CLOSE and deflater.worth(data):
                data, compressed = deflater.deflate(data), True  # under `lock`, for their order counts
            if len(data) > self._max_frame_size and opcode < CLOSE:
                self._write_fragments(opcode, data, compressed, deadline)
            else:
                self._write(encode_frame(opcode, data, self._key(), rsv1=compressed), deadline)
        except BaseException as error:
            if isinstance(error, _TOLD) and not is_alarm(error) and out == self.bytes_out:
                self.messages_sent -= 1  # nothing has left
                error._is_unsent = True
            if self._deflater is not None:
                self._deflater.forget()  # the server may not have got what the next message would refer to
            raise
        finally:
            self.is_composing = False
            self.lock.release()
            if self.reader.pings:
                self.answer_ping()

    @takes("lock")
    def send_together(
        self,
        batch: Batch,
        messages: Iterable[tuple[int, bytes]],
        deadline: float | None = None,
        holder: object = None,
    ) -> None:
        """Send several messages in one go; as `send_message`.

        Args:
            batch: Is told what became of them. If this raises and `has_left` is true, the connection is over.
            messages: Opcodes and payloads, made one by one as they are asked for, once it is their turn; one
                that goes out in fragments is the last. What that raises comes out, and nothing is sent then.
            deadline: Monotonic time; None waits for ever.
            holder: Who asks.
        """
        if not self.lock.acquire(blocking=False):
            self._wait_for("lock", deadline, "send")
        out, count = self.bytes_out, 0
        try:
            self.is_composing = True
            self._check_before_sending(holder)
            frames: list[bytes] = []
            for opcode, data in messages:
                count += 1
                self.messages_sent += 1
                payload, compressed = data, False
                if self._deflater is not None and self._deflater.worth(data):
                    payload, compressed = self._deflater.deflate(data), True
                if len(payload) > self._max_frame_size:
                    self._write_batch(batch, frames, deadline)
                    self._write_fragments(opcode, payload, compressed, deadline)
                    break
                frames.append(encode_frame(opcode, payload, self._key(), rsv1=compressed))
            self._write_batch(batch, frames, deadline)
        except BaseException:
            if self._sending or out != self.bytes_out:  # no one can tell which of them have left
                self._lose("sending was interrupted half-way")
            else:
                batch.has_left = False
                self.messages_sent -= count
            if self._deflater is not None:
                self._deflater.forget()
            raise
        finally:
            self.is_composing = False
            self.lock.release()
            if self.reader.pings:
                self.answer_ping()

    def _check_before_sending(self, holder: object) -> None:
        """Raise what keeps that holder from sending; before anything is made, which an error would cost."""
        if holder is not self.holder:
            raise not_held(self.target)
        if self._sending:
            self._lose("sending was interrupted half-way")
        if self.failure is not None:
            self.raise_failure()

    def _write_batch(self, batch: Batch, frames: list[bytes], deadline: float | None) -> None:
        """Write what was made so far; the caller holds `lock`.

        What is half out at the deadline costs no connection: who sends next, or `finish`, sends the rest.
        """
        assert self.lock.locked(), "the caller holds `lock`"
        batch.left_at, batch.has_left = monotonic(), True
        data, stream = b"".join(frames), self._live_stream()
        if not data:
            return
        stream.leaves_rest = may_leave = len(data) <= _LEAVES
        try:
            self._write(data, deadline)
        except TimeoutError as error:
            if is_alarm(error) or self.failure is not None or stream.leaves_rest or not may_leave:
                raise
            self._put_off()
        finally:
            stream.leaves_rest = False
        frames.clear()

    def _write_fragments(self, opcode: int, data: bytes, compressed: bool, deadline: float | None) -> None:
        """Write a message in frames of at most `max_frame_size` B (RFC 6455 §5.4); the caller holds `lock`.

        Nothing of another message can come between them, but the pongs that are due do: a message may be on
        its way for long.
        """
        assert self.lock.locked(), "the caller holds `lock`"
        for start in range(0, len(data), self._max_frame_size):
            stop = start + self._max_frame_size
            frame = encode_frame(
                CONTINUATION if start else opcode,
                data[start:stop],
                self._key(),
                fin=stop >= len(data),
                rsv1=compressed and not start,  # of a message, not of a frame (RFC 7692 §6.1)
            )
            self._write(frame, deadline, begun=start > 0, more=stop < len(data))
            if self.reader.pings and stop < len(data):
                self._write(self._due_pongs(), deadline, begun=True, more=True)

    def _key(self) -> bytes:
        """The mask of one frame, never used again; drawn in blocks, for a system call costs more than XOR.

        The caller holds `lock`. Each connection has its own block, so a forked child repeats none of them.
        """
        for key in self._keys:
            return key
        self._keys = iter(_KEYS.unpack(os.urandom(_KEYS.size)))
        return self._key()

    def _write(
        self, frame: bytes, deadline: float | None, *, begun: bool = False, more: bool = False
    ) -> None:
        """Write one frame; the caller holds `lock`.

        Args:
            frame: What to write.
            deadline: Monotonic time; None waits for ever.
            begun: Earlier frames of its message have left: whatever keeps this one from leaving ends the
                connection.
            more: Further ones follow, and are as good as half sent until then.
        """
        assert self.lock.locked(), "the caller holds `lock`"
        if self._sending and not begun:
            self._lose("sending was interrupted half-way")
        if self.failure is not None:
            self.raise_failure()
        stream = self._stream or self._live_stream()
        self.stirred = self._sending = True
        try:
            stream.write(frame, deadline)
        except OSError as error:
            if is_alarm(error):
                raise
            if isinstance(error, ReentryError):
                self._sending = begun
                raise self._reentered("send") from None
            if isinstance(error, builtins.TimeoutError):
                if stream.broken or begun:
                    self._lose("a send ran out of time half-way")
                self._sending = stream.broken or begun
                raise self._late("send", deadline) from None
            self._look_for_reason()
            self._lose(f"the connection was lost: {error}", error)
            self._sending = False
            self.raise_failure()
        self._sending = more

    @abstractmethod
    def read_available(self, until: float | None = None, *, quick: bool = False) -> None:
        """Take in what is there, without waiting; the receiving half does."""

    @takes("readlock")
    def _look_for_reason(self) -> None:
        """After a failed send: what came before may be there, unread: replies, a close frame that says why.

        A thread that reads is about to find it. It is waited for: noted first, the failure would take from
        it, and from all for whom it reads, what has come.
        """
        if self.readlock.acquire(timeout=_REASON_PATIENCE):
            try:
                self.read_available()
            finally:
                self.readlock.release()

    @takes("lock")
    def answer_ping(self) -> None:
        """Send the pongs that are due, unless another thread is sending: then it does so when done."""
        pings = self.reader.pings
        self._pushed_by = threading.get_ident()  # for longer than the lock is held: see `is_sending`
        try:
            while pings and self.failure is None and self.lock.acquire(blocking=False):
                try:
                    if not self._push_frames(self._due_pongs):
                        return  # the server does not read: they stay for a later try
                finally:
                    self.lock.release()
        finally:
            self._pushed_by = 0
            if pings:
                self._put_off()

    def _due_pongs(self) -> bytes:
        """The pongs of all pings that wait, up to a burst of them; the caller holds `lock`."""
        assert self.lock.locked(), "the caller holds `lock`"
        frames: list[bytes] = []
        # A reader may add pings meanwhile, and take the latest back for a later one.
        with suppress(IndexError):
            while len(frames) < PING_BURST:
                frames.append(encode_frame(PONG, self.reader.pings.popleft(), self._key()))
        return b"".join(frames)

    def _push(self, opcode: int, payload: bytes) -> bool:
        """Write a control frame without waiting, the caller holding `lock`; False: not taken, try later."""
        return self._push_frames(lambda: encode_frame(opcode, payload, self._key()))

    def _push_frames(self, make: Callable[[], bytes]) -> bool:
        """`_push` of what `make` returns, which is asked only once there is room for it."""
        assert self.lock.locked(), "the caller holds `lock`"
        stream = self._stream
        if stream is None or self._sending:
            return False
        self.stirred = self._sending = True
        try:
            taken = not (stream.unsent or stream.has_replies) or stream.flush_now()
            if taken and not stream.write_now(make()):
                self._put_off()
        except OSError as error:
            if is_alarm(error):
                raise
            taken = not isinstance(error, ReentryError)
            if taken:
                self._lose(f"the connection was lost: {error}", error)
        self._sending = False
        return taken

    @takes("lock")
    def _flush(self) -> None:
        """Hand over what the kernel did not take of a control frame, and what TLS has to answer.

        Unless a thread is sending: then it does so by the way, or it is for a later try.
        """
        stream = self._stream
        if stream is None or not (stream.unsent or stream.has_replies):
            return
        self._pushed_by = threading.get_ident()  # as in `answer_ping`
        try:
            if not self.lock.acquire(blocking=False):
                self._put_off()
                return
            try:
                if not self._sending and not stream.flush_now():
                    self._put_off()
            except OSError as error:
                if is_alarm(error):
                    raise
                if isinstance(error, ReentryError):
                    self._put_off()
                else:
                    self._lose(f"the connection was lost: {error}", error)
            finally:
                self.lock.release()
        finally:
            self._pushed_by = 0

    def _put_off(self) -> None:
        if self.unfinished is not None and self.failure is None:
            self.unfinished.add(self)

    @takes("lock")
    def is_sending(self) -> bool:
        """Whether a message goes out just now. A ping or pong, which never waits, is waited for."""
        if not self.lock.locked():
            return False
        pushed_by = self._pushed_by
        if pushed_by == threading.get_ident():  # this very thread, interrupted by a finalizer
            return True
        # Likewise when none is named: a ping may have been over before we asked whose the lock is.
        if not self.lock.acquire(timeout=_PUSH_PATIENCE if pushed_by else 0.0):
            return True
        self.lock.release()
        return False

    @property
    def half_sent(self) -> bool:
        """Whether part of a frame went out and the rest did not; a ping under way is half of nothing soon."""
        return self._is_mid_frame() and (self.is_sending() or self._is_mid_frame())

    @property
    def is_writing(self) -> bool:
        """Whether a frame, or a message of several, is on its way into the socket."""
        return self._sending

    @property
    def left_half_way(self) -> bool:
        """Whether part of a frame went out, and no thread is sending the rest."""
        return self._is_mid_frame() and not self.lock.locked() and self._is_mid_frame()

    def _is_mid_frame(self) -> bool:
        stream = self._stream
        return self._sending or (stream is not None and (stream.broken or bool(stream.unsent)))


def _made_by(make: Callable[[], str | bytes]) -> tuple[int, bytes]:
    payload = make()
    return (TEXT, payload.encode("utf-8")) if isinstance(payload, str) else (BINARY, payload)
