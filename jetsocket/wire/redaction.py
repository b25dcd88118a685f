"""What a stranger says, fit for a message: without the secrets of the request that it may repeat."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from urllib.parse import unquote_plus

_SHORTEST = 4  # characters; what is shorter can be guessed, and hiding it would blot out half a text
_PUBLIC = frozenset({
    "host",
    "upgrade",
    "connection",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
})  # fmt: skip


def hide(text: str, secrets: Iterable[str]) -> str:
    """`text` with *** in place of each of `secrets`."""
    # The longest first: one may be a part of another.
    for secret in sorted({each for each in secrets if len(each) >= _SHORTEST}, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def secrets_of(request: bytes) -> set[str]:
    """What may be secret in a request: query values, header values, and what these are made of.

    Args:
        request: Its head; b"" while none was sent.
    """
    first, *lines = request.decode("latin-1").split("\r\n")
    found = set(_of_target(first.partition(" ")[2].rpartition(" ")[0]))
    for line in lines:
        name, _, value = line.partition(":")
        if name.lower() not in _PUBLIC:
            found.update(_of_header(name.lower(), value.strip()))
    return found


def secrets_of_login(username: str, password: str) -> set[str]:
    """The same of a user name and a password."""
    return {username, password, *_both_ways(f"{username}:{password}")}


def _both_ways(login: str) -> tuple[str, str]:
    return login, base64.b64encode(login.encode()).decode()


def _of_target(target: str) -> Iterator[str]:
    query = target.partition("?")[2]
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        yield value if equals else name
        yield unquote_plus(value if equals else name)


def _of_header(name: str, value: str) -> Iterator[str]:
    yield value
    if name in ("authorization", "proxy-authorization"):
        credentials = value.partition(" ")[2].strip()
        yield credentials
        yield from _of_basic(credentials)
    elif name == "cookie":
        for pair in value.split(";"):
            yield pair.partition("=")[2].strip()
    elif name == "sec-websocket-protocol":  # browsers have no other place for a token
        yield from value.split(", ")


def _of_basic(credentials: str) -> Iterator[str]:
    try:
        login = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError):  # of another scheme, as "Bearer"
        return
    yield login
    yield from login.split(":", 1)
