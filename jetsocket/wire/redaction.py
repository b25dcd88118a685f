"""What a stranger says, fit for a message: without the secrets of the request that it may repeat.

Also the one way in which an error of a library below this one, or of the user's, becomes the `__cause__` of
an error of ours: `as_cause` makes a stand-in for it, and `raise_alone` raises without `__context__`. The
original cannot be reached from what is raised: its text, arguments, attributes and the frames of its
traceback may hold payloads and passwords, and a traceback goes to logs.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable, Iterator
from typing import NoReturn
from urllib.parse import quote, unquote_plus

from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern
from jetsocket.text import printable

_PIECE = 10  # characters of a secret in a row that tell too much of it; many a word has 8
_SHORTEST = 4  # characters; what is shorter can be guessed, and hiding it would blot out half a text
_MADE_OF_MORE = frozenset({
    "UnicodeDecodeError",
    "UnicodeEncodeError",
    "UnicodeTranslateError",
    "BaseExceptionGroup",
    "ExceptionGroup",
})  # fmt: skip
_FROM_OPENSSL = (
    "library",
    "reason",
    "verify_code",
    "verify_message",
)  # attributes; none says anything of the peer
_TOKEN = pattern(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
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


def censored(text: str, secrets: Iterable[str] = (), *, cut: bool = False) -> str:
    """What a stranger says, fit for a message: without `secrets`, on one line, printable, and short.

    Args:
        text: What it said.
        secrets: What is not to be shown.
        cut: More was said than `text`, so it may end within a secret.
    """
    secrets = set(secrets)
    # In this order: half a secret would not be found. Where the stranger has cut one, its pieces are.
    shown = _without_pieces(hide(text, secrets), secrets)
    return printable(_without_half(shown, secrets) if cut else shown)


def _without_pieces(text: str, secrets: Iterable[str]) -> str:
    """`text` with *** in place of each run of characters that is a part of a secret, 10 of them or more."""
    pieces = {secret[at : at + _PIECE] for secret in secrets for at in range(len(secret) - _PIECE + 1)}
    shown, at = [], 0
    while at < len(text):
        end = at
        while text[end : end + _PIECE] in pieces:
            end += 1
        shown.append("***" if end > at else text[at])
        at = end + _PIECE - 1 if end > at else at + 1
    return "".join(shown)


def _without_half(text: str, secrets: Iterable[str]) -> str:
    """`text` with *** in place of the beginning of a secret at its end."""
    for secret in secrets:
        for size in range(min(len(secret) - 1, len(text)), _SHORTEST - 1, -1):
            if text.endswith(secret[:size]):
                return text[:-size] + "***"
    return text


def as_cause(error: BaseException, secrets: Iterable[str] = (), *, text: str | None = None) -> BaseException:
    """A stand-in for `error` that shows nothing secret, to be the `__cause__` of an error of ours.

    It is of the same type where that is one of Python's own for the system's errors (`OSError` and its
    subclasses, `ssl.SSLError`, `socket.gaierror`; ``errno`` is kept), else of the nearest built-in type, with
    the name of the original's in front of the text. It has no traceback, cause and context of its own, and
    does not refer to `error`.

    Args:
        error: What was raised.
        secrets: What is replaced by *** in its text.
        text: What to say instead of its text, as for one that quotes a message.
    """
    if isinstance(error, OSError) and error.errno is not None:
        said = str(error.strerror or "") if text is None else text
        return _system_error(error, censored(said, secrets))
    said = censored(str(error) if text is None else text, secrets)
    kind = next(each for each in type(error).__mro__ if _is_made_of_text(each))
    if kind is not type(error):
        said = f"{type(error).__qualname__}: {said}" if said else type(error).__qualname__
    stand_in: BaseException = kind(said)
    return stand_in


def raise_alone(failure: BaseException, cause: BaseException | None = None) -> NoReturn:
    """Raise `failure` from `cause`, within an ``except`` block too, without what is being handled there.

    ``raise … from …`` would keep it as the `__context__`, where whatever logs an error finds it.
    """
    try:
        raise failure from cause
    finally:
        failure.__context__ = None
        del failure, cause  # this frame is in its traceback: a cycle


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
    return found.union(*map(_quoted, found))


def secrets_of_cookies(set_cookies: Iterable[str]) -> set[str]:
    """The values of cookies that a server sets."""
    return {each.partition(";")[0].partition("=")[2].strip() for each in set_cookies}


def secrets_of_login(username: str, password: str) -> set[str]:
    """The same of a user name and a password, in the forms in which they may come back."""
    plain = {username, password, f"{username}:{password}"}
    found = plain | {quote(each, safe="", errors="surrogateescape") for each in plain}
    for each in plain:
        raw = each.encode("utf-8", "surrogateescape")
        found |= {raw.decode("latin-1"), raw.decode("utf-8", "replace"), base64.b64encode(raw).decode()}
    return found.union(*map(_quoted, found))


def _quoted(secret: str) -> set[str]:
    """How a server writes it that quotes it in JSON, in HTML or in a URI."""
    import html  # the names of two thousand characters

    in_json = {json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    in_json |= {each.replace("/", "\\/") for each in in_json}  # PHP does
    in_html = {html.escape(secret), html.escape(secret, quote=False)}
    return in_json | in_html | {quote(secret, safe="", errors="surrogateescape")}


def _system_error(error: OSError, said: str) -> OSError:
    kind = next(each for each in type(error).__mro__ if each.__module__ in ("builtins", "socket", "ssl"))
    stand_in: OSError = kind(error.errno, said)
    for name in _FROM_OPENSSL:
        value = getattr(error, name, None)
        if value is not None:
            setattr(stand_in, name, printable(value) if isinstance(value, str) else value)
    return stand_in


def _is_made_of_text(kind: type) -> bool:
    return kind.__module__ == "builtins" and kind.__name__ not in _MADE_OF_MORE


def _of_target(target: str) -> Iterator[str]:
    query = target.partition("?")[2]
    for pair in query.split("&"):
        name, equals, value = pair.partition("=")
        yield value if equals else name
        yield unquote_plus(value if equals else name)


def _of_header(name: str, value: str) -> Iterator[str]:
    yield value
    scheme, _, credentials = map(str.strip, value.partition(" "))
    if name in ("authorization", "proxy-authorization"):
        yield credentials
        yield from _of_basic(credentials)
    elif name == "cookie":
        for pair in value.split(";"):
            content = pair.partition("=")[2].strip()
            yield content
            yield content.strip('"')  # the quotes are said to be a part of it, and servers drop them
    elif name == "sec-websocket-protocol":  # browsers have no other place for a token
        yield from value.split(", ")
    if name != "cookie" and _TOKEN.fullmatch(scheme):  # "Token …" in a header of any name, say
        if " " not in credentials:
            yield credentials
        for parameter in credentials.split(","):  # token="…", RFC 9110 §11.4
            yield parameter.partition("=")[2].strip(' "')


def _of_basic(credentials: str) -> Iterator[str]:
    try:
        login = base64.b64decode(credentials, validate=True).decode()
    except (binascii.Error, ValueError) as error:
        if is_alarm(error):
            raise
        return  # of another scheme, as "Bearer"
    yield login
    yield from login.split(":", 1)
