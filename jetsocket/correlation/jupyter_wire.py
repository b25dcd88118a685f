"""How a Jupyter message goes over a WebSocket: as JSON, or in parts with offsets in front of them.

The formats are those of https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html:
`v1.kernel.websocket.jupyter.org`, and the default protocol: JSON, binary only for messages with buffers.
"""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from jetsocket.exceptions import DecodeError
from jetsocket.interrupts import is_alarm
from jetsocket.wire.redaction import raise_alone

__all__ = ["V1", "pack_default", "pack_v1", "unpack_binary", "unpack_v1"]

V1 = "v1.kernel.websocket.jupyter.org"

_PARTS = ("header", "parent_header", "metadata", "content")
_json_text = json.JSONEncoder(ensure_ascii=False).encode


def pack_v1(message: Mapping[str, Any]) -> bytes:
    """The payload of a message: the channel, the four parts in JSON, and the buffers."""
    parts = [str(message.get("channel") or "").encode()]
    parts += [_json_text(message.get(name) or {}).encode() for name in _PARTS]
    parts += [bytes(each) for each in message.get("buffers") or ()]
    offsets = _offsets(8 * (len(parts) + 2), parts)  # as many as parts, and the end
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


def unpack_v1(payload: bytes) -> dict[str, Any]:
    """The message of a payload.

    Raises:
        DecodeError: It is broken.
    """
    try:
        offsets = _read_offsets(payload, "<", 8)
        parts = [payload[start:end] for start, end in itertools.pairwise(offsets)]
        channel, header, parent_header, metadata, content, *buffers = parts
        message: dict[str, Any] = {"channel": channel.decode()}
        for name, part in zip(_PARTS, (header, parent_header, metadata, content), strict=True):
            message[name] = json.loads(part)
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        _refuse(payload, V1)
    return message | {"buffers": buffers}


def pack_default(message: Mapping[str, Any]) -> str | bytes:
    """The payload of a message in the default protocol: JSON, and the buffers if there are any."""
    text = _json_text({name: value for name, value in message.items() if name != "buffers"})
    buffers = [bytes(each) for each in message.get("buffers") or ()]
    if not buffers:
        return text
    parts = [text.encode(), *buffers]
    offsets = _offsets(4 * (len(parts) + 1), parts)[:-1]
    return struct.pack(f"!{len(offsets) + 1}I", len(offsets), *offsets) + b"".join(parts)


def unpack_binary(payload: bytes) -> dict[str, Any]:
    """The message of a binary payload, in the default protocol.

    Raises:
        DecodeError: It is broken.
    """
    try:
        offsets = [*_read_offsets(payload, "!", 4), len(payload)]
        text, *buffers = (payload[start:end] for start, end in itertools.pairwise(offsets))
        message: dict[str, Any] = json.loads(text)
        if not isinstance(message, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        _refuse(payload, "the default protocol of Jupyter")
    return message | {"buffers": buffers}


def _offsets(first: int, parts: Sequence[bytes]) -> list[int]:
    """Where each part begins, and where the last one ends."""
    offsets = [first]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    return offsets


def _read_offsets(payload: bytes, order: str, size: int) -> list[int]:
    number = int.from_bytes(payload[:size], "little" if order == "<" else "big")
    head = size * (number + 1)
    if not number or len(payload) < head:
        raise ValueError("cut off")
    offsets = list(struct.unpack(f"{order}{number}{'Q' if size == 8 else 'I'}", payload[size:head]))
    if sorted(offsets) != offsets or offsets[0] < head or offsets[-1] > len(payload):
        raise ValueError("offsets that lead nowhere")
    return offsets


def _refuse(payload: bytes, form: str) -> None:
    text = f"binary message of {len(payload)} bytes could not be decoded: it is not as {form} says"
    raise_alone(DecodeError(text, payload=payload))
