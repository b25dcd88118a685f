"""Bytes ↔ frames (RFC 6455 §5): encoding and parsing. No socket in here."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import NamedTuple

from websocket import ABNF

from jetsocket.exceptions import ProtocolError
from jetsocket.wire.masking import fastest_mask, mask_in_python

CONTINUATION = ABNF.OPCODE_CONT
TEXT = ABNF.OPCODE_TEXT
BINARY = ABNF.OPCODE_BINARY
CLOSE = ABNF.OPCODE_CLOSE
PING = ABNF.OPCODE_PING
PONG = ABNF.OPCODE_PONG

MAX_CONTROL_PAYLOAD = 125
"""B, of a control frame (RFC 6455 §5.5)."""

FIN = 0x80
"""The bit of a message's last frame."""

_RSV1, _RSV = 0x40, 0x70
_SHORT, _MEDIUM = struct.Struct("!BB4s"), struct.Struct("!BBH4s")
_LONG = struct.Struct("!BBQ4s")
_LENGTH_16, _LENGTH_64 = struct.Struct("!H"), struct.Struct("!Q")
_mask: Callable[[bytes, bytes], bytes] = mask_in_python


def mask_fast() -> None:
    """Mask in C from now on, where that is installed."""
    global _mask  # noqa: PLW0603  # the fastest for each frame to find
    _mask = fastest_mask()


def encode_frame(opcode: int, payload: bytes, key: bytes, *, fin: bool = True, rsv1: bool = False) -> bytes:
    """Make one masked client frame (RFC 6455 §5.2).

    Args:
        opcode: 0x0 to 0xF.
        payload: What the frame carries, unmasked.
        key: 4 B that mask it; never used twice (§5.3).
        fin: Whether this is the last frame of its message.
        rsv1: The bit that permessage-deflate sets on a compressed message (RFC 7692 §6).
    """
    first = opcode | (FIN if fin else 0) | (_RSV1 if rsv1 else 0)
    length = len(payload)
    if length < 126:
        return _SHORT.pack(first, 0x80 | length, key) + _mask(payload, key)
    if length < 0x10000:
        head = _MEDIUM.pack(first, 0x80 | 126, length, key)
    else:
        head = _LONG.pack(first, 0x80 | 127, length, key)
    return head + _mask(payload, key)


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
    fin, compressed = first >= FIN, may_compress and opcode in (TEXT, BINARY) and bool(first & _RSV1)
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
    elif opcode >= CLOSE and first < FIN:
        fault = f"a fragmented control frame, opcode 0x{opcode:X} (§5.5)"
    elif opcode >= CLOSE and length > MAX_CONTROL_PAYLOAD:
        fault = f"a control frame of more than {MAX_CONTROL_PAYLOAD} B, opcode 0x{opcode:X} (§5.5)"
    if fault is not None:
        raise ProtocolError(f"the server sent {fault}, RFC 6455", code=1002)
