"""Header fields of the user's, checked: what a head may hold, and what the handshake writes itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jetsocket.patterns import pattern

TOKEN = pattern(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110 §5.6.2
_FIELD_VALUE = pattern(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5: no CR, LF, NUL or other control

# Header fields that the handshake writes itself, and the key to use instead where there is one.
_OWNED_HEADERS = {
    "upgrade": "",
    "connection": "",
    "sec-websocket-key": "",
    "sec-websocket-version": "",
    "sec-websocket-accept": "",
    "sec-websocket-extensions": '; set manager_kwargs["compress"]',
    "sec-websocket-protocol": '; set manager_kwargs["subprotocols"]',
    "content-length": " (an upgrade has no body)",
    "transfer-encoding": " (an upgrade has no body)",
}
_SINGLE_HEADERS = ("host", "origin", "authorization")  # twice: servers refuse, or each reads another one


def header_pairs(name: str, value: Any) -> tuple[tuple[str, str], ...]:
    """Check header fields given as a mapping or as pairs; values are never quoted, they may be secret."""
    items = tuple(value.items()) if isinstance(value, Mapping) else value
    if isinstance(items, (str, bytes)) or not isinstance(items, Sequence):
        raise TypeError(
            f"{name} must be a mapping or a list of (name, value) pairs, not {type(value).__name__}"
        )
    pairs = tuple(_header_pair(name, item) for item in items)
    counts = Counter(field.lower() for field, _ in pairs)
    for field in _SINGLE_HEADERS:
        if counts[field] > 1:
            raise ValueError(f"{name}: header {field.title()} is given {counts[field]} times; give it once")
    return pairs


def _header_pair(name: str, item: Any) -> tuple[str, str]:
    if not (
        isinstance(item, (tuple, list)) and len(item) == 2 and all(isinstance(part, str) for part in item)
    ):
        raise TypeError(f"{name} must hold (name, value) pairs of two str each; one is {type(item).__name__}")
    field, text = item
    if not TOKEN.fullmatch(field):
        raise ValueError(f"{name}: header name {field!r} is not a token (RFC 9110 §5.6.2)")
    if field.lower() in _OWNED_HEADERS:
        raise ValueError(f"{name}: header {field} belongs to the handshake{_OWNED_HEADERS[field.lower()]}")
    return field, field_value(f"{name}: the value of header {field}", text)


def field_value(name: str, text: str) -> str:
    """Check the value of a header field; it is never quoted, it may be secret."""
    if not _FIELD_VALUE.fullmatch(text):
        raise ValueError(f"{name} must be Latin-1 without CR, LF, NUL or other control characters")
    return text
