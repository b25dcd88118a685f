"""Frames → messages: what came from the socket is parsed, and fragments are joined. No socket in here."""

from __future__ import annotations

from collections import deque
from typing import NoReturn

from jetsocket.exceptions import MessageTooBigError, ProtocolError
from jetsocket.interrupts import is_alarm, suppress
from jetsocket.wire.close_codes import parse_close
from jetsocket.wire.deflate import Inflater, longest
from jetsocket.wire.frames import (
    BINARY,
    CLOSE,
    CONTINUATION,
    FIN,
    MAX_CONTROL_PAYLOAD,
    PING,
    PONG,
    TEXT,
    Header,
    parse_header,
)
from jetsocket.wire.redaction import as_cause, raise_alone

PING_BURST = 64
"""So many pings may wait, each for a pong of its own; of those beyond, for the latest (RFC 6455 §5.5.3)."""

_EMPTY_FRAGMENTS = 1000  # of one message; each fragment that carries something makes up for one of them
_MADE_AT_ONCE = 1024 * 1024  # B that are inflated before the rest of a read is left for later
_FINAL_TEXT, _FINAL_BINARY = FIN | TEXT, FIN | BINARY


class MessageReader:
    """Turns what came from the socket into messages: frames, fragments and limits, but no I/O.

    One per connection, and fed by the thread that holds that connection's `readlock`. After it raised once it
    is of no more use; what came whole before the fault is still in `messages`.

    Attributes:
        messages: Whole messages not yet read, in order: `str` for text, `bytes` for binary.
        received: Messages that came in all.
        pings: The payloads of the pings that were not answered yet, in order: up to `PING_BURST`. Beyond
            that the latest takes the place of the one before it, as §5.5.3 allows.
        pongs: The payloads of the latest pongs.
        close: The server's close code and reason, once it said so; nothing is read after it.
        data_frames: Frames of messages that came in all, so that slow progress can be told from silence.
        broken: Whether `feed` has raised.
        inflater: Decompresses messages, if permessage-deflate was agreed on; set before the first frame.
        frames_only: Set when the messages will not be read any more: they come out empty, at no cost.
        rest: The beginning of a frame, of which more is to come.
        kind: TEXT or BINARY while inside a message of several pieces; else None.
        lent: Whether others may take from `messages`, see `lend`.
        paused: Whether something that came has not been looked at, because what came before it inflated to so
            much; `feed(b"")` goes on, and is what to do next. Nothing is when nothing was inflated.
    """

    def __init__(self, max_message_size: int) -> None:
        """Read messages of at most `max_message_size` B."""
        self.messages: deque[str | bytes] = deque()
        self.received = 0
        self.pings: deque[bytes] = deque()
        self.pongs: deque[bytes] = deque(maxlen=16)
        self.close: tuple[int, str] | None = None
        self.data_frames = 0
        self.broken = False
        self.inflater: Inflater | None = None
        self.frames_only = False
        self.paused = False
        self.lent = False
        self._burst = PING_BURST  # how many pings may wait by themselves
        self._flooded = False  # whether more came within this call of `feed`
        self._made = 0  # B inflated since the last pause
        self._compressed = False  # whether the message under way is
        self._limit = max_message_size
        self._short = min(MAX_CONTROL_PAYLOAD, max_message_size)
        self.rest = b""
        self.kind: int | None = None
        self._fresh: list[str | bytes] = []  # messages that this call of `feed` has found
        self._pieces = bytearray()  # grows linearly, however many pieces there are
        self._empty = 0  # fragments without payload, see `_count_fragment`
        self._missing = 0  # B that the current frame's payload still lacks
        self._last = False  # whether that frame ends its message

    @property
    def mid_message(self) -> bool:
        """Whether part of a frame or of a message has come and the rest has not."""
        return (bool(self.rest) and not self.paused) or self.kind is not None

    @property
    def holds_data(self) -> bool:
        """Whether it keeps payload that has not been read: whole messages, or the pieces of one."""
        return bool(self.messages) or self.kind is not None

    def feed(self, data: bytes) -> None:
        """Take in what came; see the attributes for what became of it, `paused` above all.

        Raises:
            ProtocolError: The server broke RFC 6455, or sends one message in fragments without payload, and
                no end; `code` is what to close with.
            MessageTooBigError: A message is longer than the limit, told from its head, before it is read.
        """
        # Behind a flood of pings one is answered for each read, until a read brings no more than that.
        self._burst, self._flooded = 1 if self._flooded else PING_BURST, False
        fresh: list[str | bytes] = []
        self._fresh = fresh
        try:
            if self._missing:
                data = self._continue_payload(data)
                if self._made and self._pause(data, 0):
                    return
            if (data or self.paused) and self.close is None:
                if self.rest:
                    data = self.rest + data
                    self.paused = False
                self.rest = data[self._parse(data) :]
        except (ProtocolError, MessageTooBigError):
            self.broken = True
            raise
        finally:
            if fresh:
                # In one go: no other thread comes between finding the queue and adding to it, see `recall`.
                self.messages.extend(fresh)
                self.received += len(fresh)
                self.data_frames += len(fresh)

    def lend(self) -> deque[str | bytes]:
        """The queue of messages, for one who takes from it without the read lock; until `recall`."""
        self.lent = True
        return self.messages

    def recall(self) -> None:
        """Take the queue back: what was lent is empty for good, and what was in it is in another one.

        Takes no lock: each message is either taken by who has the queue, or moved.
        """
        if not self.lent:
            return
        lent, self.messages, self.lent = self.messages, deque(), False
        left: deque[str | bytes] = deque()
        with suppress(IndexError):
            while lent:
                left.appendleft(lent.pop())  # from the end: a thread that takes meanwhile gets the first ones
        self.messages.extendleft(reversed(left))  # before what has come meanwhile

    def _parse(self, data: bytes) -> int:
        """Read all whole frames; return where the first one that is not whole begins."""
        position, end = 0, len(data)
        while end - position >= 2 and self.close is None:
            if self.kind is None:
                position = self._take_whole_messages(data, position)
                if end - position < 2:
                    break
                if data[position] in (_FINAL_TEXT, _FINAL_BINARY) and data[position + 1] <= self._short:
                    break  # a short one that is not all there
            header = parse_header(data, position, may_compress=self.inflater is not None)
            if header is None:
                break
            if header.opcode >= CLOSE:
                stop = position + header.size + header.length
                if stop > end:
                    break
                self._control(header.opcode, data[position + header.size : stop])
                position = stop
            else:
                position = self._data(header, data, position + header.size)
                if self._made and self._pause(data, position):
                    break
        return position

    def _take_whole_messages(self, data: bytes, position: int) -> int:
        """Take messages that are one frame of less than 64 KiB, not compressed, as long as they come.

        Nearly every frame of a stream is such a one. Here it costs a slice and a decode; everything else
        goes the long way, and so does what is wrong in any way.

        Returns:
            Where the first other frame begins, or one that is not whole.
        """
        end = len(data)
        last, short, medium = end - 1, self._short, min(self._limit, 0xFFFF)
        add = self._fresh.append
        try:
            while position < last:
                start = position + 2
                length = data[position + 1]
                if length > short:
                    if length != 126 or start + 2 > end:
                        break
                    length = data[start] << 8 | data[start + 1]
                    start += 2
                    if length > medium:
                        break
                stop = start + length
                if stop > end:
                    break
                first = data[position]
                if first == _FINAL_TEXT:
                    add(data[start:stop].decode())
                elif first == _FINAL_BINARY:
                    add(data[start:stop])
                else:
                    break
                position = stop
        except UnicodeDecodeError as error:
            if is_alarm(error):
                raise
            _fail_text(error)
        return position

    def _pause(self, data: bytes, position: int) -> bool:
        """Leave what begins at `position` for later, if so much was made: 64 KiB could make 64 MiB."""
        if self._made < _MADE_AT_ONCE:
            return False
        self._made = 0
        self.rest = data[position:]
        self.paused = bool(self.rest)
        return self.paused

    def _data(self, header: Header, data: bytes, start: int) -> int:
        """Take a data frame, or as much of it as is there; return where it ends in `data`."""
        self._begin(header)
        stop = start + header.length
        if header.fin and not self._pieces and stop <= len(data):
            self._finish(data[start:stop])
        else:
            self._pieces += data[start:stop]
            self._missing = max(0, stop - len(data))
            self._last = header.fin
            self.data_frames += 1
            if not self._missing and self._last:
                self._finish(self._pieces)
        return min(stop, len(data))

    def _begin(self, header: Header) -> None:
        if header.opcode == CONTINUATION:
            if self.kind is None:
                raise ProtocolError("the server continued a message that it had not begun (§5.4)", code=1002)
        elif self.kind is not None:
            raise ProtocolError("the server began a message within another one (§5.4)", code=1002)
        else:
            self.kind, self._compressed, self._empty = header.opcode, header.compressed, 0
        if not header.fin:
            self._count_fragment(header.length)
        size = len(self._pieces) + header.length
        # What does not compress gets longer by it; its real size is looked at while inflating.
        if size > (longest(self._limit) if self._compressed else self._limit):
            raise MessageTooBigError(
                f"the server sent a message of {size} B or more, over max_message_size={self._limit} B;"
                ' raise manager_kwargs["max_message_size"] if that is to be expected',
                limit=self._limit,
                size=size,
            )

    def _count_fragment(self, length: int) -> None:
        """Bound what no limit of size bounds: the fragments of a message that does not grow by them."""
        self._empty = max(0, self._empty - 1) if length else self._empty + 1
        if self._empty > _EMPTY_FRAGMENTS:
            fault = f"one message in more than {_EMPTY_FRAGMENTS} fragments that carry nothing, and went on"
            raise ProtocolError(f"the server sent {fault} (closed with 1008, RFC 6455 §7.4.1)", code=1008)

    def _continue_payload(self, data: bytes) -> bytes:
        """Give the open frame what it lacks; return what is left."""
        part = data[: self._missing]
        self._pieces += part
        self._missing -= len(part)
        self.data_frames += 1
        if not self._missing and self._last:
            self._finish(self._pieces)
        return data[len(part) :]

    def _finish(self, payload: bytes | bytearray) -> None:
        if self.frames_only:
            payload = b""
        elif self._compressed and self.inflater is not None:
            payload = self.inflater.inflate(payload)
            self._made += len(payload)
        message = _decode(payload) if self.kind == TEXT else bytes(payload)
        self.kind, self._pieces = None, bytearray()
        self._fresh.append(message)

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self._note_ping(payload)
        elif opcode == PONG:
            self.pongs.append(payload)
        else:
            self.close = parse_close(payload)

    def _note_ping(self, payload: bytes) -> None:
        pings = self.pings
        if len(pings) >= self._burst:
            self._flooded = True
            with suppress(IndexError):  # another thread has answered the last one meanwhile
                pings.pop()
        pings.append(payload)


def _decode(payload: bytes | bytearray) -> str:
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_alarm(error):
            raise
        _fail_text(error)


def _fail_text(error: UnicodeDecodeError) -> NoReturn:
    fault = f"the server sent a text message that is not UTF-8, at byte {error.start} (RFC 6455 §8.1)"
    raise_alone(ProtocolError(fault, code=1007), as_cause(error))
