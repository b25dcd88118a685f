"""An open WebSocket connection: messages, pings and the closing handshake, over a stream.

What is done differently from websocket-client, and why, stands in the table in docs/how-it-works.md.

Locks of a connection, none of them ever waited for while another lock is held:

- `readlock` guards everything that is read: the stream's reading side and `reader`. Held while waiting for
  the server, by a reader; taken without waiting by anybody else.
- `lock` guards everything that is sent: the stream's writing side. Held while a message goes out. A pong
  never waits for it: the thread that holds it sends the pongs that are due when done.
"""

from __future__ import annotations

import builtins
import copy
import logging
import math
import os
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from jetsocket.clock import monotonic
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    InvalidStateError,
    MessageTooBigError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.uris import Target
from jetsocket.wire import deflate
from jetsocket.wire.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    NO_STATUS,
    PING,
    PING_BURST,
    PONG,
    TEXT,
    MessageReader,
    encode_close,
    encode_frame,
)
from jetsocket.wire.redaction import censored, secrets_of
from jetsocket.wire.stream import Stream
from jetsocket.wire.tls import frames_from

ABNORMAL = 1006
"""Stands for a connection that ended without a close frame (RFC 6455 §7.4.1); never sent."""

_LINGER = 0.2  # s that a server has, after the closing handshake, to close TCP first (RFC 6455 §7.1.1)
_READ_AHEAD = 1024 * 1024  # B that are read for a borrower who does not
_LAST_LOOK = 0.05  # s for taking in what is there, past a reader's deadline, by the way or while closing: a
# megabyte of empty frames takes a second to parse, and others want tending, too
_TOO_MUCH = "no pong came before more messages than are kept unread (receive them first)"
_TOO_MANY = "no reply came before more messages than are kept unread (receive them first)"
_PER_MESSAGE = 64  # B that a message takes besides its payload
_LITTLE = 16 * 1024  # B that always are looked at: pings, a late reply, a goodbye; more costs too much
_PING_SIZE = 4  # B, random
_TEND_PATIENCE = _PUSH_PATIENCE = 1.0  # s
_KEYS = struct.Struct("4s" * 32)  # as many are drawn at once

_log = logging.getLogger("jetsocket.wire")
_GLOBALS = globals()


class _Ping:
    """A ping that waits for its pong."""

    __slots__ = ("answered", "round_trip", "sent_at")

    def __init__(self) -> None:
        self.sent_at = monotonic()
        self.round_trip: float | None = None
        self.answered = threading.Lock()  # held until the pong is there; whoever waits, waits for it
        self.answered.acquire()

    def is_answered(self) -> bool:
        return self.round_trip is not None


class Channel:
    """One connection, once it is open; every operation has one deadline.

    Safe with one thread sending, one receiving and one looking after it, over TLS too. How it is opened is a
    subclass's business, which sets `target`, `_stream` and `connected`.

    Attributes:
        target: Where it leads; None before it is known.
        connected: Whether it is open, as far as is known.
        failure: Why it is over; None while it is not.
        holder: Who may use it now; an operation that names another is refused. None: nobody in particular.
        messages_sent: Messages sent so far, one that is on its way out included.
        last_heard: When data or a due pong last came (monotonic, s).
        ping_due_since: When the ping was sent that has no pong yet (monotonic, s); None when there is none.
        latency: Round trip of the last `measure_latency` (s).
        waits_since: When a reader last began to wait (monotonic, s); None before.
        unfinished: Where it puts itself when something that came could not be dealt with at once: a pong that
            the server does not take, or compressed messages too large to be inflated all at once. Whoever
            looks after many connections calls `finish` on those.
        tell_end: What is called with `failure` when it is set, anywhere, in a finalizer too; logs it.
    """

    def __init__(
        self, max_message_size: int, compression_threshold: int, max_frame_size: int | None = None
    ) -> None:
        """Prepare for a connection.

        Args:
            max_message_size: Limit of one incoming message, decompressed (B).
            compression_threshold: Messages of less than this (B) are sent as they are.
            max_frame_size: Longer messages (B, compressed) are sent in several frames; None: in one.
        """
        self.lock, self.readlock = threading.Lock(), threading.Lock()
        self.target: Target | None = None
        self.connected = False
        self.failure: ConnectionError | None = None
        self.holder: object = None
        self.messages_sent = 0
        self.last_heard = monotonic()
        self.latency: float | None = None
        self.waits_since: float | None = None
        self.unfinished: set[Channel] | None = None
        self.tell_end: Callable[[ConnectionError], None] = _log_end
        self.reader = MessageReader(max_message_size)
        self._max_message_size = max_message_size
        self._compression_threshold = compression_threshold
        self._max_frame_size = sys.maxsize if max_frame_size is None else max_frame_size
        self._deflater: deflate.Deflater | None = None  # guarded by `lock`
        self._keys: Iterator[bytes] = iter(())  # likewise
        self._stream: Stream | None = None
        self._request = b""  # the upgrade's; what it has of secrets is not shown in what the server says
        self._sent_before: set[str] = set()  # what was secret in requests that were redirected
        self._pings: dict[bytes, _Ping] = {}
        self._close_sent = False
        self._reply_at: float | None = None  # when the server's close frame was seen
        self._reading = False  # True while bytes are between the socket and `reader`
        self._sending = False  # True while a frame, or a message of several, may be half on its way
        self._left_unread = False  # whether the last look had to stop before the end
        self._ahead = 0  # B read since a borrower last asked
        self._drained = 0  # B thrown away since the goodbye
        self._tended_by = 0  # the thread that is in `tend`
        self._pushed_by = 0  # the thread that sends a ping or pong by the way
        self._left_by = 0  # the thread that has taken leave

    # --- what it is ------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """The socket's file descriptor, -1 without one."""
        return -1 if self._stream is None else self._stream.fileno()

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended, by either side; `failure` says why."""
        return self.failure is not None

    @property
    def bytes_in(self) -> int:
        """B received, of the whole stream (TLS and the upgrade included)."""
        return 0 if self._stream is None else self._stream.bytes_in

    @property
    def bytes_out(self) -> int:
        """B sent, of the whole stream (TLS and the upgrade included)."""
        return 0 if self._stream is None else self._stream.bytes_out

    @property
    def bytes_taken(self) -> int:
        """B sent that have reached the other side, as far as the kernel tells; all of `bytes_out` at most."""
        return 0 if self._stream is None else self._stream.bytes_out - self._stream.untaken

    def at_rest(self) -> bool:
        """Whether it is certainly as a connection should be that nobody uses. Never waits, reads nothing.

        That is: open, with nothing to read, nothing unread, nothing half-way in either direction, and nobody
        inside. False may only mean that it can't be told this way: `look`, and ask one by one.
        """
        stream, reader = self._stream, self.reader
        if stream is None or self.lock.locked() or not self.readlock.acquire(False):
            return False
        try:
            look = stream.look
            return not (
                self.failure is not None
                or (stream.has_begun() if look is None else look(0))
                or stream.broken
                or stream.unsent
                or reader.messages
                or reader.rest
                or reader.paused
                or reader.kind
                or self._reading
                or self._sending
                or self._left_unread
            )
        finally:
            self.readlock.release()

    @property
    def _taken_in(self) -> int:
        """B of memory that what came would take, had nobody read any of it."""
        inflated = 0 if self.reader.inflater is None else self.reader.inflater.inflated
        return self.bytes_in + inflated + _PER_MESSAGE * self.reader.received

    @property
    def messages_received(self) -> int:
        """Messages received so far, whether read or not."""
        return self.reader.received

    @property
    def unread(self) -> bool:
        """Whether a whole message waits to be read, or bytes wait that nobody has looked at."""
        return bool(self.reader.messages) or self._left_unread

    @property
    def has_backlog(self) -> bool:
        """Whether the last look had to stop before the end."""
        return self._left_unread

    @property
    def wants_reading(self) -> bool:
        """Whether the last look had to stop before the end, and another one would find more."""
        return self._left_unread and self._ahead < _READ_AHEAD and self.failure is None

    @property
    def half_read(self) -> bool:
        """Whether part of a message (or of a TLS record) has come, or bytes were lost to an interrupt."""
        stream = self._stream
        return self.reader.mid_message or self._reading or (stream is not None and stream.half_read)

    @property
    def half_sent(self) -> bool:
        """Whether part of a frame went out and the rest did not; a ping under way is half of nothing soon."""
        return self._is_mid_frame() and (self.is_sending() or self._is_mid_frame())

    def _is_mid_frame(self) -> bool:
        stream = self._stream
        return self._sending or (stream is not None and (stream.broken or bool(stream.unsent)))

    # --- receiving -------------------------------------------------------------------------------------

    def recv_message(self, deadline: float | None = None, holder: object = None) -> str | bytes:
        """Receive one whole message, however slowly it comes.

        Args:
            deadline: Monotonic time; None waits for ever. One that has passed takes only what is there.
            holder: Who asks.

        Returns:
            `str` for a text message, `bytes` for a binary one.

        Raises:
            TimeoutError: No whole message by the deadline; what has come of one is kept for the next call.
            ConnectionClosedError: The connection has ended, by either side.
            ProtocolError: The server broke RFC 6455.
            MessageTooBigError: The message is longer than max_message_size.
            InvalidStateError: `holder` is not who may use it.
        """
        if not self.readlock.acquire(blocking=False):
            self._wait_for(self.readlock, deadline, "recv")
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            return self._read_message(deadline)
        finally:
            self.readlock.release()

    def await_queue(self, deadline: float | None = None, holder: object = None) -> deque[str | bytes]:
        """Wait until there is a message; as `recv_message`, but the caller takes it, and what else is there.

        Returns:
            The queue of messages. It is the caller's to take from, without a lock, until `recall_queue`.
        """
        if not self.readlock.acquire(blocking=False):
            self._wait_for(self.readlock, deadline, "recv")
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            self._await_message(deadline)
            return self.reader.lend()
        finally:
            self.readlock.release()

    def lend_queue(self, holder: object = None) -> deque[str | bytes] | None:
        """What `await_queue` returns, without waiting; None when that is not possible."""
        if not self.readlock.acquire(blocking=False):
            return None
        try:
            return self.reader.lend() if holder is self.holder else None
        finally:
            self.readlock.release()

    def recall_queue(self) -> None:
        """End what `await_queue` has allowed: what nobody has taken is unread. For any thread, any time."""
        self.reader.recall()

    def _await_message(self, deadline: float | None) -> None:
        while not self.reader.messages:
            self._ahead = 0
            if self.failure is not None:
                self.raise_failure()
            if not self._fill(deadline) and not self.reader.messages and not self.is_over:
                raise self._late("recv", deadline)

    def _read_message(self, deadline: float | None) -> str | bytes:
        while True:
            self._await_message(deadline)
            try:
                return self.reader.messages.popleft()
            except IndexError as error:  # another thread has taken it from the queue
                if is_alarm(error):
                    raise

    def recv_answer(
        self,
        judge: Callable[[str | bytes], bool | None],
        since: int,
        deadline: float | None = None,
        holder: object = None,
        patience: float | None = None,
    ) -> str | bytes:
        """Receive the one message that is wanted; what comes before it stays for `recv_message`, in order.

        Args:
            judge: Says of a message: it is the one (True), to be dropped (False), to stay (None).
            since: What `reader.received` was before the question left: what came earlier answers it not.
            deadline: As for `recv_message`, and so is `holder`.
            holder: Who asks.
            patience: s to wait from the first message on that is not wanted; None: no limit.

        Raises:
            TimeoutError: Not by the deadline, or not before more messages than are kept unread.
            ConnectionClosedError: As `recv_message`, and so are the others.
        """
        if not self.readlock.acquire(blocking=False):
            self._wait_for(self.readlock, deadline, "recv")
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            return self._find_message(judge, since, deadline, patience)
        finally:
            self.readlock.release()

    def _find_message(
        self,
        judge: Callable[[str | bytes], bool | None],
        since: int,
        deadline: float | None,
        patience: float | None,
    ) -> str | bytes:
        self.reader.recall()  # nothing may be taken meanwhile
        messages = self.reader.messages
        kept = max(0, len(messages) - (self.reader.received - since))
        enough = self._taken_in + _READ_AHEAD + self._max_message_size
        while True:
            wanted = None
            try:
                while kept < len(messages):
                    message = messages[kept]
                    wanted = judge(message)
                    if wanted is None:
                        kept += 1
                        if patience is not None:
                            until, patience = monotonic() + patience, None
                            deadline = until if deadline is None else min(until, deadline)
                        continue
                    messages.remove(message)  # or one like it, which is as good
                    if wanted:
                        return message
            except (IndexError, ValueError) as error:  # another thread takes messages, too
                if is_alarm(error):
                    raise
                if wanted:
                    return message
                kept = min(kept, len(messages))
                continue
            self._ahead = 0
            if self.failure is not None:
                self.raise_failure()
            if self._taken_in >= enough:
                raise self._late("recv", deadline, _TOO_MANY)
            if not self._fill(deadline) and kept >= len(messages) and not self.is_over:
                raise self._late("recv", deadline, "no reply came in time")

    def _fill(self, deadline: float | None) -> bool:
        """Wait for bytes and take them in; after the deadline take in what is there, and return False."""
        self.waits_since = monotonic()
        if self.reader.paused or self._live_stream().wait_readable(deadline):
            self._read_once()
            return True
        self.read_available()
        return False

    def _read_once(self) -> bool:
        """Take in what there is now, without waiting; False when there was nothing."""
        if self._reading:  # an interrupt struck here before: bytes are lost, and nobody knows how many
            self._lose("reading was interrupted half-way")
        if self.failure is not None:
            return False
        self._reading = True
        data: bytes | None = None
        try:
            paused = self.reader.paused  # then the rest of the last read comes first
            stream = self._live_stream()
            data = b"" if paused else stream.read_now()
            if stream.has_replies:
                self._flush()
            if data or paused:
                self._feed(data or b"")
            elif data is not None:
                self._lose("the server closed the connection without a close frame")
        except OSError as error:
            if is_alarm(error):
                raise
            self._lose(f"the connection was lost: {error}", error)
        self._reading = False
        return data is not None and not self.is_over

    def _lose(self, why: str, cause: BaseException | None = None) -> None:
        """Nothing will ever come or go again."""
        self._fail(self._closed(why, cause=cause))
        if self.lock.locked():  # in a send: the sender must not wait for the server to take it, nor a reader
            self._live_stream().abort()

    def read_available(self, until: float | None = None, *, quick: bool = False) -> None:
        """Take in what is there, without waiting; the caller holds `readlock`.

        Reads at most 1 MiB ahead of a borrower who does not read, each message counted with 64 B of overhead:
        the rest is left to TCP's flow control. What is left counts as unread.

        Args:
            until: Begin no read after that (monotonic, s) once 16 KiB have come; None: 50 ms from now.
            quick: As for `look`.
        """
        if self._reading:  # before others get it: with reuse="always" nobody else would notice
            self._lose("reading was interrupted half-way")
        stream, paused = self._stream, self.reader.paused
        if stream is not None and self.failure is None and not paused and not stream.readable_now():
            self._left_unread = False  # nearly always: at each acquire and release
            return
        self._left_unread = True
        if quick and stream is not None and stream.waiting > _LITTLE:
            return
        if not self.reader.holds_data:
            self._ahead = 0  # nothing is kept: it was pings, and a year of them must not add up
        until, enough = monotonic() + _LAST_LOOK if until is None else until, self._ahead + _LITTLE
        while self._ahead < _READ_AHEAD and self.failure is None:
            before = self._taken_in
            if not self._has_more(self._live_stream()) or not self._read_once():
                self._left_unread = False
                return
            self._ahead += self._taken_in - before
            # Not for the time alone: the system may have let this thread wait for long.
            if self._ahead >= enough and monotonic() >= until:
                break
        if self.failure is None and not self._has_more(self._live_stream()):
            self._left_unread = False

    def _has_more(self, stream: Stream) -> bool:
        return self.reader.paused or stream.readable_now()

    def tend(self, until: float | None = None) -> bool:
        """Do what a reader does by the way (answer pings, notice a close), unless somebody is reading.

        Args:
            until: As for `read_available`.

        Returns:
            False when somebody is.
        """
        self._tended_by = threading.get_ident()  # for longer than the lock is held: see `_outlast_tend`
        try:
            if not self.readlock.acquire(blocking=False):
                return False
            try:
                self.read_available(until)
            finally:
                self.readlock.release()
        finally:
            self._tended_by = 0
        return True

    def look(self, *, quick: bool = False) -> bool:
        """Take in what is there, without waiting, but for another thread's `tend`.

        Args:
            quick: More than 16 KiB need not be taken in: that so much is unread says all.

        Returns:
            False when somebody is reading: another thread, or this one, interrupted by a finalizer.
        """
        if not self.readlock.acquire(blocking=False) and not self._outlast_tend():
            return False
        try:
            self.read_available(0.0 if quick else None, quick=quick)
        finally:
            self.readlock.release()
        return True

    def _outlast_tend(self) -> bool:
        """Get `readlock` after another thread's `tend`; False if it is a reader's, or this very thread's."""
        tended_by = self._tended_by
        if tended_by == threading.get_ident():
            return False
        # `tend` never waits for anything, so it is over at once; or it was, before we asked whose it is.
        return self.readlock.acquire(timeout=_TEND_PATIENCE if tended_by else 0.0)

    def _feed(self, data: bytes) -> None:
        reader = self.reader
        frames = reader.data_frames
        try:
            reader.feed(data)
        except (ProtocolError, MessageTooBigError) as error:
            if is_alarm(error):
                raise
            if reader.pings:  # they came before the fault
                self.answer_ping()
            self._refuse(error)
        if data and reader.data_frames != frames:
            self.last_heard = monotonic()
        if reader.pongs:
            self._match_pongs()
        if reader.pings:  # before a close is: each came before it, and wants its pong (RFC 6455 §5.5.2)
            self.answer_ping()
        if reader.close is not None:
            self._closed_by_server(*reader.close)
        if reader.paused:
            self._put_off()

    def _put_off(self) -> None:
        if self.unfinished is not None and self.failure is None:
            self.unfinished.add(self)

    def finish(self, until: float = math.inf) -> None:
        """Go on with what was left `unfinished`, without waiting; if that is in vain, it is there again.

        Args:
            until: Inflate nothing after that (monotonic, s).
        """
        if self.reader.paused:  # of this the socket does not tell: it was taken from there
            if monotonic() < until:
                self.tend(0.0)
            else:
                self._put_off()
        self._flush()
        if self.reader.pings:
            self.answer_ping()

    def _flush(self) -> None:
        """Hand over what the kernel did not take of a control frame, and what TLS has to answer.

        Unless somebody is sending: then they do it by the way, or it is for a later try.
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
                self._lose(f"the connection was lost: {error}", error)
            finally:
                self.lock.release()
        finally:
            self._pushed_by = 0

    def _closed_by_server(self, code: int, reason: str) -> None:
        if self._reply_at is not None:
            return
        self._reply_at = monotonic()
        secrets = secrets_of(self._request) | self._sent_before
        shown = censored(reason, secrets, cut=True) if reason else ""
        told = f"with {code} {shown!r}" if shown else f"with {code}"
        if code == NO_STATUS:  # which no server can send: it says that there was none
            told = "without a status code"
        error = self._closed(f"the server closed the connection {told}", code, reason)
        error.args = (*error.args[:2], shown)  # it may repeat what is secret
        self._fail(error)
        self._send_close(1000 if code == NO_STATUS else code)

    # --- sending ---------------------------------------------------------------------------------------

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
            InvalidStateError: `holder` is not who may use it.
        """
        if isinstance(payload, str):
            self._send_frame(BINARY if text is False else TEXT, payload.encode("utf-8"), deadline, holder)
        else:
            self._send_frame(TEXT if text else BINARY, payload, deadline, holder)

    def _send_frame(
        self, opcode: int, data: bytes, deadline: float | None, holder: object, ping: _Ping | None = None
    ) -> None:
        if not self.lock.acquire(blocking=False):
            self._wait_for(self.lock, deadline, "send")
        out = -1
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            if ping is not None:  # only now: its pong is not due while it waits for another's long message
                ping.sent_at = monotonic()
                self._pings[data] = ping
            if opcode < CLOSE:  # before it can leave: what strikes behind its last byte must find it counted
                out = self.bytes_out
                self.messages_sent += 1
            deflater, compressed = self._deflater, False
            if deflater is not None and opcode < CLOSE and deflater.worth(data):
                data, compressed = deflater.deflate(data), True  # under `lock`, for their order counts
            if len(data) > self._max_frame_size and opcode < CLOSE:
                self._write_fragments(opcode, data, compressed, deadline)
            else:
                self._write(encode_frame(opcode, data, self._key(), rsv1=compressed), deadline)
        except BaseException as error:
            is_told = isinstance(error, (TimeoutError, ConnectionError)) and not is_alarm(error)
            if is_told and out == self.bytes_out:
                self.messages_sent -= 1  # nothing has left
            if self._deflater is not None:
                self._deflater.forget()  # the server may not have got what the next message would refer to
            raise
        finally:
            self.lock.release()
            if self.reader.pings:
                self.answer_ping()

    def _write_fragments(self, opcode: int, data: bytes, compressed: bool, deadline: float | None) -> None:
        """Write a message in frames of at most `max_frame_size` B (RFC 6455 §5.4); the caller holds `lock`.

        Nothing of another message can come between them, but the pongs that are due do: a message may be on
        its way for long.
        """
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
        if self._sending and not begun:
            self._lose("sending was interrupted half-way")
        if self.failure is not None:
            self.raise_failure()
        stream = self._stream or self._live_stream()
        self._sending = True
        try:
            stream.write(frame, deadline)
        except OSError as error:
            if is_alarm(error):
                raise
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

    def _look_for_reason(self) -> None:
        """After a failed send: the server's close frame may be there, unread, and say why."""
        if self.readlock.acquire(blocking=False):
            try:
                self.read_available()
            finally:
                self.readlock.release()

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
        frames: list[bytes] = []
        # A reader may add pings meanwhile, and take the latest back for a later one.
        with suppress(IndexError):
            while len(frames) < PING_BURST:
                frames.append(encode_frame(PONG, self.reader.pings.popleft(), self._key()))
        return b"".join(frames)

    def is_sending(self) -> bool:
        """Whether a message goes out just now. A ping or pong, which never waits, is waited for."""
        if not self.lock.locked():
            return False
        pushed_by = self._pushed_by
        if pushed_by == threading.get_ident():  # this very thread, interrupted by a finalizer
            return True
        # Likewise when nobody is named: a ping may have been over before we asked whose the lock is.
        if not self.lock.acquire(timeout=_PUSH_PATIENCE if pushed_by else 0.0):
            return True
        self.lock.release()
        return False

    def _push(self, opcode: int, payload: bytes) -> bool:
        """Write a control frame without waiting, the caller holding `lock`; False: not taken, try later."""
        return self._push_frames(lambda: encode_frame(opcode, payload, self._key()))

    def _push_frames(self, make: Callable[[], bytes]) -> bool:
        """`_push` of what `make` returns, which is asked only once there is room for it."""
        stream = self._stream
        if stream is None or self._sending:
            return False
        self._sending = True
        try:
            taken = stream.flush_now()
            if taken and not stream.write_now(make()):
                self._put_off()
        except OSError as error:
            if is_alarm(error):
                raise
            self._lose(f"the connection was lost: {error}", error)
            taken = True
        self._sending = False
        return taken

    # --- pings -----------------------------------------------------------------------------------------

    @property
    def ping_due_since(self) -> float | None:
        """When the oldest ping without a pong was sent (monotonic, s)."""
        if not self._pings:  # nearly always, and the housekeeper asks every connection
            return None
        pings = list(self._pings.values())
        return pings[0].sent_at if pings else None

    def send_ping(self) -> bool:
        """Send a ping without waiting; False when somebody is sending just now."""
        self._pushed_by = threading.get_ident()  # as in `answer_ping`
        try:
            if not self.lock.acquire(blocking=False):
                return False
            try:
                payload = os.urandom(_PING_SIZE)
                self._pings[payload] = _Ping()
                if not self._push(PING, payload):
                    self._pings.pop(payload, None)
                    return False
                return True
            finally:
                self.lock.release()
        finally:
            self._pushed_by = 0

    def measure_latency(self, deadline: float | None = None, holder: object = None) -> float:
        """Send a ping and wait for its pong; messages that come meanwhile are kept for `recv_message`.

        Returns:
            The round trip (s).

        Raises:
            TimeoutError: No pong by the deadline, or before more messages than are kept unread: what one of
                the longest takes, and 1 MiB.
            ConnectionClosedError: The connection has ended.
            InvalidStateError: `holder` is not who may use it.
        """
        payload = os.urandom(_PING_SIZE)
        ping = _Ping()
        try:
            self._send_frame(PING, payload, deadline, holder, ping)
            self._await_pong(ping, deadline, holder)
        finally:
            self._pings.pop(payload, None)
        assert ping.round_trip is not None
        self.latency = ping.round_trip
        return ping.round_trip

    def _await_pong(self, ping: _Ping, deadline: float | None, holder: object) -> None:
        # All that comes meanwhile has to be kept, so a stream can't be read for ever.
        enough = self._taken_in + _READ_AHEAD + self._max_message_size
        while not ping.is_answered():
            if self.readlock.acquire(blocking=False):
                try:
                    if ping.is_answered():
                        return
                    if self.is_over:
                        self.raise_failure()
                    if holder is not self.holder:  # released by another thread: what comes is for the next
                        raise not_held(self.target)
                    in_time = self._fill(deadline)
                    full = self._taken_in >= enough
                    if (full or not in_time) and not ping.is_answered() and not self.is_over:
                        raise self._late("ping", deadline, _TOO_MUCH if full else "")
                finally:
                    self.readlock.release()
            elif deadline is not None and monotonic() >= deadline:
                raise self._late("ping", deadline)
            else:
                # Another thread reads and will see the pong; it may also stop reading before that.
                ping.answered.acquire(timeout=0.05)

    def _match_pongs(self) -> None:
        now = monotonic()
        pongs = self.reader.pongs
        while pongs:
            payload = pongs.popleft()
            if payload not in self._pings:
                continue  # unsolicited, or late: allowed, and worth nothing (RFC 6455 §5.5.3)
            self.last_heard = now
            for earlier in list(self._pings):  # a pong answers all pings before it, too
                ping = self._pings.pop(earlier, None)
                if ping is not None:
                    ping.round_trip = now - ping.sent_at
                    with suppress(RuntimeError):  # `_fail` was faster
                        ping.answered.release()
                if earlier == payload:
                    break

    # --- ending ----------------------------------------------------------------------------------------

    def start_close(self, code: int = 1000, reason: str = "") -> None:
        """Say goodbye without waiting; if that can't be done now, cut the connection.

        Takes no lock that it would have to wait for, so it may run anywhere.
        """
        self._fail(self._closed("closed by this side", code, reason))
        self._send_close(code, reason)

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
        self._flush()  # our own close frame, perhaps
        self.reader.frames_only = True
        if self.reader.paused:  # what was left there may end with its close frame
            self._note_reply(b"")
        enough = self._drained + _LITTLE
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
            return True  # reset: there is nobody left to wait for
        return self._reply_at is not None and monotonic() - self._reply_at >= _LINGER

    def _note_reply(self, data: bytes) -> None:
        # Of a server that sends a lot all the same, only the end of the stream is waited for: looking for its
        # close frame would cost more than the whole connection is worth.
        if self._reply_at is None and not self.reader.broken and self._drained <= _LITTLE:
            try:
                self.reader.feed(data)
            except (ProtocolError, MessageTooBigError) as error:
                if is_alarm(error):
                    raise
                return  # it was being closed anyway; only the end of the stream matters now
            self.reader.messages.clear()
            if self.reader.close is not None:
                self._reply_at = monotonic()

    def finish_close(self, deadline: float) -> None:
        """Wait for the server's side of the closing handshake, at most until `deadline`; then let go."""
        stream = self._stream
        if stream is not None and self.readlock.acquire(timeout=max(0.0, deadline - monotonic())):
            try:
                while not self._drain(stream, min(deadline, monotonic() + _LAST_LOOK)):
                    if monotonic() >= deadline:
                        break
                    soon = monotonic() + _LAST_LOOK if stream.unsent else math.inf
                    stream.wait_readable(min(deadline, self._patience(), soon))
            finally:
                self.readlock.release()
        self.shutdown()

    def _patience(self) -> float:
        """Until when the server may still close TCP itself."""
        return math.inf if self._reply_at is None else self._reply_at + _LINGER

    def take_leave(self) -> bool:
        """Say goodbye as the process ends (1001), if nobody is inside; and let nobody in any more.

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
        self._fail(self._closed("closed by this side"))
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

    def _is_inside(self) -> bool:
        """Whether this very thread uses this connection, below us on the stack."""
        return any(
            frame.f_globals is _GLOBALS and frame.f_locals.get("self") is self
            for frame in frames_from(sys._getframe(2))
        )

    # --- errors ----------------------------------------------------------------------------------------

    def _refuse(self, error: ProtocolError | MessageTooBigError) -> None:
        """Fail the connection (RFC 6455 §7.1.7): what is whole can still be read, then comes the error."""
        code = 1009 if isinstance(error, MessageTooBigError) else (error.code or 1002)
        where = "" if self.target is None else f" (at {self.target.redacted})"
        told = copy.copy(error)
        told.args = (f"{error}{where}", *error.args[1:])
        told.__cause__ = error.__cause__
        self._fail(told)
        self._send_close(code)

    def _fail(self, failure: ConnectionError) -> None:
        """Note the first reason why this connection is over."""
        if self.failure is None:
            self.failure = failure
            self.connected = False
            self.tell_end(failure)
        for ping in list(self._pings.values()):
            with suppress(RuntimeError):  # released already: whoever waits is awake
                ping.answered.release()

    def raise_failure(self) -> NoReturn:
        """Tell why the connection is over, which it has to be."""
        assert self.failure is not None
        # A copy each: two threads raising one object would write into each other's traceback.
        raise copy.copy(self.failure) from self.failure.__cause__

    def _closed(
        self, why: str, code: int = ABNORMAL, reason: str = "", cause: BaseException | None = None
    ) -> ConnectionClosedError:
        where = "the connection" if self.target is None else f"the connection to {self.target.redacted}"
        error = ConnectionClosedError(f"{where} is over: {why}", code=code, reason=reason)
        if cause is not None:
            # Without its traceback, whose frames lead back to this object: only the GC could end that cycle.
            error.__cause__ = cause.with_traceback(None)
        return error

    def _live_stream(self) -> Stream:
        if self._stream is None:
            raise InvalidStateError("not connected; call connect() first", current_state="new")
        return self._stream

    def _wait_for(self, lock: Any, deadline: float | None, operation: str) -> None:
        if self._left_by == threading.get_ident():
            self.raise_failure()  # a hook or finalizer that runs after that: it would wait for itself
        timeout = -1 if deadline is None else min(threading.TIMEOUT_MAX, max(0.0, deadline - monotonic()))
        if not lock.acquire(timeout=timeout):
            raise self._late(operation, deadline)

    def _late(self, operation: str, deadline: float | None, why: str = "") -> TimeoutError:
        where = "" if self.target is None else f" at {self.target.redacted}"
        doing = {"recv": "no whole message came", "send": "the server takes no more", "ping": "no pong came"}
        told = why or f"{doing[operation]} in time"
        return TimeoutError(f"{told}{where}", operation=operation, timeout=None)


def _log_end(failure: ConnectionError) -> None:
    _log.debug("%s", failure)


def not_held(target: Target | None) -> InvalidStateError:
    """What to tell whoever uses a connection that was lent to him, and is not any more."""
    where = "" if target is None else f" to {target.redacted}"
    return InvalidStateError(
        f"this lease of a connection{where} was released; acquire a new one",
        current_state="released",
        required_states=["lent"],
    )
