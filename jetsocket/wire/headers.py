"""The head of a response (RFC 9112): its status line, its headers, and a chunked body."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar, overload

from jetsocket.wire.retry_after import seconds_until
from jetsocket.wire.upgrade_request import TOKEN

_T = TypeVar("_T")

_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: ([^\r\n]*))?")
# The head of a 101 such as nearly all are; what is not like this is read line by line. Of so many lines only,
# for `re` keeps 270 B for each as long as it matches: 4 MiB for the most that one read may bring.
_SWITCH = re.compile(rb"HTTP/1\.1 101(?: [ -~]*)?\r\n((?:[A-Za-z0-9-]+:[ -~]*\r\n){1,64})\r\n")
_FIELD = re.compile(r"([^:]+): *([^\r]*)\r\n")  # of those

_BREAKS = re.compile(r"[\r\n\0]")  # dangerous in a value; to be refused, or replaced (RFC 9110 §5.5)
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")

_COMMON = frozenset({
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "date",
    "location",
    "retry-after",
    "sec-websocket-accept",
    "sec-websocket-extensions",
    "sec-websocket-protocol",
    "sec-websocket-version",
    "server",
    "set-cookie",
    "transfer-encoding",
    "upgrade",
    "via",
    "www-authenticate",
})  # fmt: skip


class Headers(Mapping[str, str]):
    """Response headers: names are case-insensitive; a repeated one is joined with ", " (RFC 9110 §5.3)."""

    def __init__(self, fields: Sequence[tuple[str, str]] = ()) -> None:
        """Hold (name, value) pairs in the order they came."""
        self._values: dict[str, list[str]] = {}
        for name, value in fields:
            self._values.setdefault(name.lower(), []).append(value)

    def get_all(self, name: str) -> list[str]:
        """Every value of that name, in order; `Set-Cookie` must be read this way."""
        return list(self._values.get(name.lower(), ()))

    def __getitem__(self, name: str) -> str:
        return ", ".join(self._values[name.lower()])

    @overload
    def get(self, name: str, /) -> str | None: ...

    @overload
    def get(self, name: str, /, default: str | _T) -> str | _T: ...

    def get(self, name: str, /, default: object = None) -> object:
        """The value of that name, or else `default`."""
        # Mapping's own method takes any KeyError for its own, also one that a signal handler raises.
        values = self._values.get(name.lower())
        return default if values is None else ", ".join(values)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        # Names only: a Set-Cookie or a token must not get into a log line. A server chooses names, too: of
        # those that are not common it is told how many there are.
        shown = sorted(self._values.keys() & _COMMON)
        more = len(self._values) - len(shown)
        return f"Headers({shown}{f' and {more} more' if more else ''})"


NO_HEADERS = Headers()
"""Those of a response that has not come."""


def parse_head(head: bytes, line_end: bytes = b"\r\n") -> tuple[int, str, Headers]:
    """Status, reason and headers of a response head.

    Args:
        head: Without the empty line at its end.
        line_end: What ends each of its lines, and may be in none.

    Raises:
        ValueError: It is not HTTP/1.x; the text says where.
    """
    first, *lines = head.split(line_end)
    status = _STATUS_LINE.fullmatch(first)
    if status is None:
        # No more than its first word: a server that echoes would have us show the request, secrets and all.
        raise ValueError(f"the first line is not a HTTP/1.1 status line: {first.split(b' ')[0][:32]!r}")
    headers = Headers()
    values = headers._values
    for line in lines:
        name, colon, value = line.decode("latin-1").partition(":")
        key = name.lower()
        if not colon or (key not in _COMMON and not TOKEN.fullmatch(name)):
            raise ValueError("a header line has no valid name")  # an echo may have a secret in its place
        if not value.isprintable() and _BREAKS.search(value):
            # websocket-client, and any code that writes the value into another head, would see two lines.
            raise ValueError(f"the header line {name[:32]} has a CR, LF or NUL in its value")
        values.setdefault(key, []).append(value.strip(" \t"))
    return int(status[1]), (status[2] or b"").decode("latin-1"), headers


def parse_switch(data: bytes) -> tuple[Headers, bytes] | None:
    """The headers of a 101 that is as most are, and what came behind it; None: ask `parse_head`.

    It takes a third of the time: there are two patterns, and no look at each line.
    """
    if (found := _SWITCH.match(data)) is None:
        return None
    headers = Headers()
    values = headers._values
    for name, value in _FIELD.findall(found[1].decode("ascii")):
        values.setdefault(name.lower(), []).append(value.rstrip(" "))
    return headers, data[found.end() :]


def unchunk(body: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body as far as it has come, and whether there is no more (RFC 9112 §7.1).

    A body that does not begin with a chunk is its own content.
    """
    parts: list[bytes] = []
    start = 0
    while (end := body.find(b"\r\n", start)) >= 0 and (found := _CHUNK_SIZE.match(body, start, end)):
        start = end + 2 + int(found[0], 16)
        if start == end + 2:
            return b"".join(parts), True
        parts.append(body[end + 2 : start])
        start += 2
    return (b"".join(parts) if parts else body), False


def is_status_line(line: bytes | bytearray) -> bool:
    """Whether a response may begin with that."""
    return _STATUS_LINE.fullmatch(line) is not None


def is_chunked(headers: Headers) -> bool:
    """Whether the body comes in chunks."""
    return headers.get("transfer-encoding", "").lower().endswith("chunked")


def location_of(headers: Headers) -> str | None:
    """Where a redirect leads, as the server wrote it; None: nowhere, or to several places."""
    told = set(headers.get_all("location"))
    return told.pop() if len(told) == 1 else None


def retry_after(headers: Headers) -> float | None:
    """S that the server asks for before another attempt; None where it does not."""
    return seconds_until(headers.get_all("retry-after"), headers.get("date", ""))
