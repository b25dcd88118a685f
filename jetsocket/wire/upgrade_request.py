"""The headers of an upgrade request: what may stand in them, and which there are; and the request again."""

from __future__ import annotations

import binascii
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

from jetsocket.uris import Target

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A header's name (RFC 9110 §5.6.2)."""

KEY = re.compile(rb"\r\nSec-WebSocket-Key: *([^\r\n]+)\r\n", re.IGNORECASE)
"""The key, in a request."""

Shape: TypeAlias = "tuple[str, tuple[str, ...], str | None, str | None]"
"""What a request's headers are made of beside the key: host, further lines, cookie and origin."""

_MOST_WRITTEN = 16  # requests that are kept, of different hosts
_KEY_SIZE = 16  # B (RFC 6455 §4.1)

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
    if not header and target.authorization is None:  # mostly
        return target.host_header, [f"{name}: {value}" for name, value in offers]
    given = {name.lower(): value for name, value in header}
    lines = [f"{name}: {value}" for name, value in header if name.lower() != "host"]
    if target.authorization is not None and "authorization" not in given:
        lines.append(f"Authorization: {target.authorization}")
    # Not through websocket-client's option: it lower-cases the answer and insists on one.
    lines += [f"{name}: {value}" for name, value in offers]
    return given.get("host", target.host_header), lines


class Written(NamedTuple):
    """A request that websocket-client has written."""

    shape: Shape
    before: bytes
    """Its header fields up to the key, without the request line."""
    after: bytes
    """And from there on."""
    granted: Any
    """What websocket-client made of the answer that it took for granted."""

    def fields(self) -> bytes:
        """The header fields with another key."""
        key = binascii.b2a_base64(os.urandom(_KEY_SIZE), newline=False)
        return b"%b%b%b" % (self.before, key, self.after)

    def granted_for(self, accept: str) -> Any:
        """What websocket-client would make of an answer with that Sec-WebSocket-Accept."""
        granted = object.__new__(type(self.granted))  # copy.copy() takes thirty times as long
        vars(granted).update(vars(self.granted))
        granted.headers = {**granted.headers, "sec-websocket-accept": accept}
        return granted


class Requests:
    """The latest request to each host that websocket-client has written for a pool, to be sent again.

    Those of one shape differ by their key alone. To have it write another, and read the answer that every
    good one gets, takes an eighth of a connect. They hold what is secret in the headers: as long as their
    pool, and no longer than until there are others.
    """

    def __init__(self) -> None:
        """Begin with none."""
        # No lock: only touched by single calls, which CPython makes atomic.
        self._written: dict[str, Written] = {}

    def find(self, shape: Shape) -> Written | None:
        """One of that shape; None: websocket-client has to write it."""
        written = self._written.get(shape[0])
        return written if written is not None and written.shape == shape else None

    def keep(self, shape: Shape, request: bytes, granted: Any) -> None:
        """Keep one.

        Args:
            shape: What it was made of.
            request: All of it.
            granted: What websocket-client made of the answer that it took for granted.
        """
        begin = request.find(b"\r\n") + 2
        if (key := KEY.search(request)) is None:
            return
        if len(self._written) >= _MOST_WRITTEN and shape[0] not in self._written:
            self._written.clear()
        self._written[shape[0]] = Written(
            shape, request[begin : key.start(1)], request[key.end(1) :], granted
        )
