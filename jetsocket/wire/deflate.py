"""permessage-deflate (RFC 7692): what is offered, what may be accepted, and the two compression streams."""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

from jetsocket.exceptions import MessageTooBigError, ProtocolError
from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern

NAME = "permessage-deflate"

WINDOW_BITS = 12
"""Of what we compress, at most: 4 KiB of history. It costs little compression on small messages, and with the
memory level below it takes some 40 KiB in place of 260."""

_INFLATE_BITS = 15  # always: there are servers that agree to less, and refer to all of 32 KiB
_MEM_LEVEL = 5
_TAIL = b"\x00\x00\xff\xff"  # left off by the sender, put back by the receiver (§7.2.1, §7.2.2)
_INFLATE_STEP = 65536  # B asked of zlib at once, so that little is in memory past the limit
_SHOWN = 100  # characters of a server's header that go into a message
_SMALLEST_DEFLATE_BITS = 9  # zlib can't compress with a window of 256 B

OFFER = f"{NAME}; client_max_window_bits"
"""The Sec-WebSocket-Extensions of the request.

It asks nothing of the server: one that can't limit its window must decline an offer that does
(RFC 7692 §7.1.2.1), and servers refuse the whole upgrade then. Without a value, the server may limit ours
(§7.1.2.2), or leave it out."""

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_EXTENSION = pattern(
    rf"[ \t,]*({_TOKEN})((?:[ \t]*;[ \t]*{_TOKEN}(?:[ \t]*=[ \t]*(?:{_TOKEN}|\"{_TOKEN}\"))?)*)[ \t]*(?:,|$)"
)
_PARAMETER = pattern(rf";[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*\"?({_TOKEN})\"?)?")
_BITS = pattern(r"[89]|1[0-5]")


class Agreement(NamedTuple):
    """What client and server agreed on (§7.1).

    Attributes:
        server_no_context_takeover: The server starts each message with an empty window.
        client_no_context_takeover: We have to.
        server_max_window_bits: 8 to 15; what it says, which is not relied on.
        client_max_window_bits: 8 to WINDOW_BITS: as far as we make use of what it allows.
    """

    server_no_context_takeover: bool = False
    client_no_context_takeover: bool = False
    server_max_window_bits: int = 15
    client_max_window_bits: int = WINDOW_BITS


def agree(header: str) -> Agreement:
    """Read the server's Sec-WebSocket-Extensions, several of them joined by commas, in answer to `OFFER`.

    Raises:
        ValueError: It names another extension, one twice, an unknown or repeated parameter, or a bad value
            (§7.1: the client must fail the connection).
    """
    extensions = _split(header)
    if [name for name, _ in extensions] != [NAME]:
        raise ValueError(f"it chose the extensions {_shown(header)} (offered was {NAME}, once)")
    found: dict[str, str | None] = {}
    for name, value in extensions[0][1]:
        if name in found:
            raise ValueError(f"it gave the parameter {_shown(name)} of {NAME} twice")
        found[name] = value
    return _checked(found)


def _split(header: str) -> list[tuple[str, list[tuple[str, str | None]]]]:
    extensions = []
    header = header.rstrip(" \t,")  # empty elements of a list mean nothing (RFC 9110 §5.6.1)
    position = 0
    while position < len(header):
        match = _EXTENSION.match(header, position)
        if match is None:
            raise ValueError(f"its Sec-WebSocket-Extensions is malformed: {_shown(header)}")
        parameters = [(name, value or None) for name, value in _PARAMETER.findall(match[2])]
        extensions.append((match[1], parameters))
        position = match.end()
    return extensions


def _checked(found: dict[str, str | None]) -> Agreement:
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name in ("server_no_context_takeover", "client_no_context_takeover"):
            if value is not None:
                raise ValueError(f"it gave {name} of {NAME} the value {_shown(value)} (it takes none)")
            values[name] = True
        elif name in ("server_max_window_bits", "client_max_window_bits"):
            if value is None or not _BITS.fullmatch(value):
                raise ValueError(f"it gave {name} of {NAME} the value {_shown(value)} (8 to 15 are allowed)")
            values[name] = int(value)
        else:
            raise ValueError(f"it gave {NAME} the unknown parameter {_shown(name)}")
    values["client_max_window_bits"] = min(WINDOW_BITS, values.get("client_max_window_bits", WINDOW_BITS))
    return Agreement(**values)


def _shown(text: str | None) -> str:
    """What the server wrote, for a message: not 64 KiB of it."""
    return repr(text if text is None or len(text) <= _SHOWN else text[:_SHOWN] + "…")


def longest(limit: int) -> int:
    """How long (B) a message of `limit` B can get by compression, as far as zlib's worst settings go."""
    return limit + limit // 8 + 64


class Deflater:
    """Compresses what we send. One per connection, used under its send lock, in the order of sending."""

    def __init__(self, agreement: Agreement, threshold: int) -> None:
        """Compress messages of at least `threshold` B as agreed."""
        self._bits = agreement.client_max_window_bits
        self._forgets = agreement.client_no_context_takeover
        self._threshold = threshold
        self._stream: Any = None  # made at the first message that is worth it

    def worth(self, payload: bytes) -> bool:
        """Whether to compress this message."""
        return len(payload) >= self._threshold and self._bits >= _SMALLEST_DEFLATE_BITS

    def deflate(self, payload: bytes) -> bytes:
        """The payload of the compressed message (§7.2.1)."""
        stream, self._stream = self._stream, None
        if stream is None:
            stream = zlib.compressobj(wbits=-self._bits, memLevel=_MEM_LEVEL)
        data = stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH)
        if not self._forgets:
            self._stream = stream
        return bytes(data[: -len(_TAIL)])

    def forget(self) -> None:
        """Start anew: the last message was not sent, so the server must not be referred to it."""
        self._stream = None


class Inflater:
    """Decompresses what comes. One per connection, used under its read lock.

    Attributes:
        inflated: B that it made of what came.
    """

    def __init__(self, agreement: Agreement, limit: int) -> None:
        """Inflate messages to at most `limit` B, as agreed."""
        self._forgets = agreement.server_no_context_takeover
        self._limit = limit
        self._stream: Any = None
        self.inflated = 0  # B in all

    def inflate(self, payload: bytes | bytearray) -> bytes:
        """The message behind a compressed payload (§7.2.2); stops as soon as it gets longer than the limit.

        Raises:
            MessageTooBigError: It is longer.
            ProtocolError: The payload is not what deflate makes.
        """
        if not payload:  # it should be one zero byte (§7.2.3.6); zlib would take the tail for half a block
            return b""
        stream, self._stream = self._stream, None
        if stream is None:
            stream = zlib.decompressobj(wbits=-_INFLATE_BITS)
        try:
            message = self._run(stream, bytes(payload) + _TAIL)
        except zlib.error as error:
            if is_alarm(error):
                raise
            fault = f"the server sent a message that does not decompress: {error} (RFC 7692 §7.2.2)"
            raise ProtocolError(fault, code=1007) from error
        if not self._forgets and not stream.eof:
            self._stream = stream
        self.inflated += len(message)
        return message

    def _run(self, stream: Any, payload: bytes) -> bytes:
        parts: list[bytes] = []
        left = self._limit
        # In pieces, since zlib copies the rest of its input at every step of its output.
        for start in range(0, len(payload), _INFLATE_STEP):
            stop = start + _INFLATE_STEP
            left -= self._run_piece(stream, payload[start:stop], left, parts)
            if stream.eof:
                # It said that a block was its last one: only an empty one may follow (§7.2.3.4).
                if stream.unused_data + payload[stop:] not in (_TAIL, b"\x00" + _TAIL):
                    raise zlib.error("data behind the last block")
                break
        return b"".join(parts)

    def _run_piece(self, stream: Any, data: bytes, left: int, parts: list[bytes]) -> int:
        """Add to `parts` what this input gives, at most `left` B; return how much it was."""
        size = 0
        while True:
            step = min(_INFLATE_STEP, left - size + 1)
            part = stream.decompress(data, step)
            size += len(part)
            if size > left:
                raise MessageTooBigError(
                    f"the server sent a compressed message that inflates to more than max_message_size="
                    f'{self._limit} B; raise manager_kwargs["max_message_size"] if that is to be expected',
                    limit=self._limit,
                )
            parts.append(part)
            data = stream.unconsumed_tail
            if not data and len(part) < step:  # as long as it fills what it was given, zlib may hold more
                return size


def offer(compress: bool) -> list[tuple[str, str]]:
    """The request header that offers compression, if it is wanted."""
    return [("Sec-WebSocket-Extensions", OFFER)] if compress else []
