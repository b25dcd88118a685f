"""Bytes ↔ frames (RFC 6455 §5): encoding, masking, parsing, and joining fragments. No socket in here."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, NoReturn

from websocket import ABNF, WebSocketProtocolException

from jetsocket.exceptions import MessageTooBigError, ProtocolError
from jetsocket.interrupts import is_alarm, raise_alarm_behind, suppress
from jetsocket.text import printable
from jetsocket.wire.deflate import Inflater, longest
from jetsocket.wire.redaction import as_cause, raise_alone

CONTINUATION = ABNF.OPCODE_CONT
TEXT = ABNF.OPCODE_TEXT
BINARY = ABNF.OPCODE_BINARY
CLOSE = ABNF.OPCODE_CLOSE
PING = ABNF.OPCODE_PING
PONG = ABNF.OPCODE_PONG

NO_STATUS = 1005
"""Stands for a close frame without a code (RFC 6455 §7.4.1); never sent."""

MAX_CONTROL_PAYLOAD = 125
"""B, of a control frame (RFC 6455 §5.5)."""

PING_BURST = 64
"""So many pings may wait, each for a pong of its own; of those beyond, for the latest (RFC 6455 §5.5.3)."""

_EMPTY_FRAGMENTS = 1000  # of one message; each fragment that carries something makes up for one of them

# B. Where four strided table look-ups begin to beat one big-integer XOR: measured between 1 and 4 KiB on
# CPython 3.10 to 3.13, and within 15 % of each other all along; at 1 MiB they take half the time.
_XOR_UP_TO = 3072

_MADE_AT_ONCE = 1024 * 1024  # B that are inflated before the rest of a read is left for later

_FIN, _RSV1, _RSV = 0x80, 0x40, 0x70
_FINAL_TEXT, _FINAL_BINARY = _FIN | TEXT, _FIN | BINARY
_SHORT, _MEDIUM = struct.Struct("!BB4s"), struct.Struct("!BBH4s")
_LONG = struct.Struct("!BBQ4s")
_LENGTH_16, _LENGTH_64 = struct.Struct("!H"), struct.Struct("!Q")


def encode_frame(opcode: int, payload: bytes, key: bytes, *, fin: bool = True, rsv1: bool = False) -> bytes:
    """Make one masked client frame (RFC 6455 §5.2).

    Args:
        opcode: 0x0 to 0xF.
        payload: What the frame carries, unmasked.
        key: 4 B that mask it; never used twice (§5.3).
        fin: Whether this is the last frame of its message.
        rsv1: The bit that permessage-deflate sets on a compressed message (RFC 7692 §6).
    """
    first = opcode | (_FIN if fin else 0) | (_RSV1 if rsv1 else 0)
    length = len(payload)
    if length < 126:
        return _SHORT.pack(first, 0x80 | length, key) + mask(payload, key)
    if length < 0x10000:
        head = _MEDIUM.pack(first, 0x80 | 126, length, key)
    else:
        head = _LONG.pack(first, 0x80 | 127, length, key)
    return head + mask(payload, key)


def _mask_in_python(payload: bytes, key: bytes) -> bytes:
    """XOR the payload with the 4 B key, repeated (RFC 6455 §5.3); the same call unmasks."""
    length = len(payload)
    if length <= _XOR_UP_TO:
        pad = (key * (length // 4 + 1))[:length]
        return (int.from_bytes(payload, "little") ^ int.from_bytes(pad, "little")).to_bytes(length, "little")
    masked = bytearray(length)
    for i in range(4):
        masked[i::4] = payload[i::4].translate(_xor_table(key[i]))
    return bytes(masked)


@lru_cache(maxsize=256)
def _xor_table(value: int) -> bytes:
    return bytes(value ^ i for i in range(256))


def _choose_mask() -> Callable[[bytes, bytes], bytes]:
    """The same in C where the extra `speed` is installed: thirty times as fast on large messages."""
    try:
        from websockets.speedups import apply_mask
    except ImportError:  # not installed, or without its C part
        return _mask_in_python
    return apply_mask


mask = _choose_mask()


class Header(NamedTuple):
    """The head of one frame from a server."""

    fin: bool
    compressed: bool
    opcode: int
    length: int
    """B of payload that follow."""
    size: int
    """B of the head itself."""


def parse_header(data: bytes, position: int, *, may_compress: bool = False) -> Header | None:
    """Read the frame head that begins at `position`; None while it is not all there.

    Args:
        data: What came.
        position: Where in it.
        may_compress: Whether permessage-deflate was agreed on, so that messages may set RSV1 (RFC 7692 §6).

    Raises:
        ProtocolError: A reserved bit or opcode, a masked frame, a fragmented or long control frame, a length
            of 2**63 or more (RFC 6455 §5.1, §5.2, §5.5).
    """
    available = len(data) - position
    if available < 2:
        return None
    first, second = data[position], data[position + 1]
    opcode, length = first & 0x0F, second & 0x7F
    fin, compressed = first >= _FIN, may_compress and opcode in (TEXT, BINARY) and bool(first & _RSV1)
    _check_head(first & ~_RSV1 if compressed else first, second, opcode, length)
    if length < 126:
        return Header(fin, compressed, opcode, length, 2)
    if length == 126:
        if available < 4:
            return None
        return Header(fin, compressed, opcode, _LENGTH_16.unpack_from(data, position + 2)[0], 4)
    if available < 10:
        return None
    length = _LENGTH_64.unpack_from(data, position + 2)[0]
    if length >> 63:
        raise ProtocolError("the server sent a frame length of 2**63 B or more (RFC 6455 §5.2)", code=1002)
    return Header(fin, compressed, opcode, length, 10)


def _check_head(first: int, second: int, opcode: int, length: int) -> None:
    fault = None
    if first & _RSV:
        fault = "a frame with a reserved bit set that no extension was negotiated for (§5.2)"
    elif second & 0x80:
        fault = "a masked frame; servers must not mask (§5.1)"
    elif opcode not in ABNF.OPCODES:
        fault = f"a frame with the reserved opcode 0x{opcode:X} (§5.2)"
    elif opcode >= CLOSE and first < _FIN:
        fault = f"a fragmented control frame, opcode 0x{opcode:X} (§5.5)"
    elif opcode >= CLOSE and length > MAX_CONTROL_PAYLOAD:
        fault = f"a control frame of more than {MAX_CONTROL_PAYLOAD} B, opcode 0x{opcode:X} (§5.5)"
    if fault is not None:
        raise ProtocolError(f"the server sent {fault}, RFC 6455", code=1002)


def parse_close(payload: bytes) -> tuple[int, str]:
    """The code and reason of a close frame; (1005, "") when it carries none.

    Raises:
        ProtocolError: A code that must not be sent, one lone byte, or a reason that is not UTF-8
            (RFC 6455 §5.5.1, §7.4), by websocket-client's own rules.
    """
    try:
        # Its check of UTF-8 lets a reason pass that ends within a character.
        ABNF(1, 0, 0, 0, CLOSE, 0, payload).validate(skip_utf8_validation=True)
    except WebSocketProtocolException as error:
        raise_alarm_behind(error)
        said = printable(str(error))
        raise_alone(ProtocolError(f"the server sent an invalid close frame: {said}", code=1002))
    if not payload:
        return NO_STATUS, ""
    try:
        return _LENGTH_16.unpack_from(payload)[0], payload[2:].decode("utf-8")
    except UnicodeDecodeError as error:
        if is_alarm(error):
            raise
        fault = "the server sent a close reason that is not UTF-8 (RFC 6455 §8.1)"
        raise_alone(ProtocolError(fault, code=1007), as_cause(error))


def encode_close(code: int, reason: str = "") -> bytes:
    """The payload of a close frame; the reason is cut at 123 B, between characters (RFC 6455 §5.5.1)."""
    return _LENGTH_16.pack(code) + reason.encode("utf-8")[:123].decode("utf-8", "ignore").encode("utf-8")


class MessageReader:
    """Turns what came from the socket into messages: frames, fragments and limits, but no I/O.

    One per connection, and fed by whoever holds that connection's read lock. After it raised once it is
    of no more use; what came whole before the fault is still in `messages`.

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
        frames_only: Set when nobody will read the messages any more: they come out empty, at no cost.
        rest: The beginning of a frame, of which more is to come.
        kind: TEXT or BINARY while inside a message of several pieces; else None.
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
        self._lent = False  # whether others may take from `messages`
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
        """Whether it keeps payload that nobody has read: whole messages, or the pieces of one."""
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
        self._lent = True
        return self.messages

    def recall(self) -> None:
        """Take the queue back: what was lent is empty for good, and what was in it is in another one.

        Takes no lock: each message is either taken by who has the queue, or moved.
        """
        if not self._lent:
            return
        lent, self.messages, self._lent = self.messages, deque(), False
        left: deque[str | bytes] = deque()
        with suppress(IndexError):
            while lent:
                left.appendleft(lent.pop())  # from the end: who takes meanwhile gets the first ones
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
