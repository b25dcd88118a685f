"""The headers of an upgrade request: what may stand in them, and which there are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from jetsocket.uris import Target

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110 §5.6.2)."""

_FIELD_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")  # RFC 9110 §5.5


def header_fields(header: Mapping[str, str] | Iterable[str | tuple[str, str]]) -> list[tuple[str, str]]:
    """Request headers as (name, value) pairs, also of a mapping or of lines, as websocket-client takes them.

    Raises:
        ValueError: One that would forge other lines of the request. The message shows no value.
    """
    items = header.items() if isinstance(header, Mapping) else header
    fields = []
    for item in items:
        name, _, value = item.partition(":") if isinstance(item, str) else (item[0], "", item[1])
        value = value.strip(" \t")
        if not TOKEN.fullmatch(name) or not _FIELD_VALUE.fullmatch(value):
            raise ValueError(
                f"header {name!r} must have a token for its name, and a Latin-1 value without CR, LF, NUL"
            )
        fields.append((name, value))
    return fields


def offer(subprotocols: Sequence[str]) -> list[tuple[str, str]]:
    """The header that offers them; none for none."""
    return [("Sec-WebSocket-Protocol", ", ".join(subprotocols))] if subprotocols else []


def request_headers(
    target: Target, header: list[tuple[str, str]], offers: list[tuple[str, str]]
) -> tuple[str, list[str]]:
    """The Host value, and the lines that follow websocket-client's own."""
    given = {name.lower(): value for name, value in header}
    lines = [f"{name}: {value}" for name, value in header if name.lower() != "host"]
    if target.authorization is not None and "authorization" not in given:
        lines.append(f"Authorization: {target.authorization}")
    # Not through websocket-client's option: it lower-cases the answer and insists on one.
    lines += [f"{name}: {value}" for name, value in offers]
    return given.get("host", target.host_header), lines
