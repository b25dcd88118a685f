"""Messages as they go over the wire, and as tests speak of them. Pure."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

Payload: TypeAlias = str | bytes

_WRITE = json.JSONEncoder(ensure_ascii=False).encode
_LONGEST = 400  # characters of a message that are shown


def payload_of(value: Any) -> Payload:
    """What goes out for a value: `str` as text, bytes as binary, anything else as JSON.

    Raises:
        TypeError: It is nothing that JSON has.
        ValueError: It contains itself.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    return _WRITE(value)


def decoded(payload: Payload) -> Any:
    """What a message says: the value, if it is JSON; else the text or the bytes as they came.

    Of binary messages only objects and arrays are taken for JSON: a byte that is a digit is a byte.
    """
    if isinstance(payload, bytes) and payload.lstrip()[:1] not in (b"{", b"["):
        return payload
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload


def with_id(value: Any, request: Any, id_field: str | None) -> Any:
    """`value` with the request's id put in, if it is a dict that has none."""
    if (
        id_field is None
        or not isinstance(value, dict)
        or not isinstance(request, dict)
        or id_field in value
        or id_field not in request
    ):
        return value
    return {id_field: request[id_field], **value}


def shown(value: Any) -> str:
    """A message as a report shows it: on one line, not too long."""
    try:
        text = repr(value) if isinstance(value, (str, bytes)) else _WRITE(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"


def bare_path(path: str) -> str:
    """A path as it is compared: with a slash in front, percent-encoded, without a query.

    Raises:
        TypeError: It is no str.
        ValueError: It has a query: paths are compared without.
    """
    if not isinstance(path, str):
        raise TypeError(f"path must be a str, not {path!r}")
    if "?" in path:
        raise ValueError(f"path={path!r} has a query; paths are compared without it")
    from string import punctuation
    from urllib.parse import quote

    return quote(path if path.startswith("/") else f"/{path}", safe=punctuation)


__all__ = ["Payload", "bare_path", "decoded", "payload_of", "shown", "with_id"]
