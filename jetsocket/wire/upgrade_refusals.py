"""What a server says when it refuses the upgrade, and what to do about it.

The first line of its answer mostly names the cause; advice that goes by the status alone may mislead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern

__all__ = ["advice", "first_words"]

_CHARSETS = pattern(
    r"utf-?8|(?:us-)?ascii|iso-8859-(?:1|2|15)|latin-?1|windows-125[0-2]|koi8-r|shift_jis|euc-(?:jp|kr)"
    r"|gb2312|gbk|gb18030|big5"
)
_CHARSET = pattern(r"(?i)charset\s*=\s*\"?([\w.-]{1,20})")
_NO_TEXT = ("image/", "audio/", "video/", "font/", "application/octet-stream", "application/zip")
_UNSEEN = pattern(r"(?si)<!--.*?(?:-->|$)|<(script|style)\b.*?(?:</\1\s*>|$)")
_TAG = pattern(r"<[^>]*>?")
# Where APIs put what is wrong; an "error" may be an object that has one of the others.
_MEMBERS = ("message", "error_description", "detail", "error", "reason", "msg", "description", "title")

_CREDENTIALS = 'manager_kwargs["auth"] or ["extra_headers"]'
_CHECK = "check the URI and the headers"
_NO_WEBSOCKET = "check the path; something else than a WebSocket is served there"
_ELSEWHERE = frozenset({404, 405, 410, 501})
_BUSY = frozenset({408, 429, 502, 503, 504})
_TRY_WITHOUT_DEFLATE = (
    'if it does not know the offer to compress, manager_kwargs["compress"] = False leaves that out'
)


def first_words(body: bytes, headers: Mapping[str, str], known: str = "", *, is_quotable: bool = True) -> str:
    """The first line of a body that says more than `known`; "" if there is none, or it is no text.

    Args:
        body: The beginning of it.
        headers: Of the answer; names are case-insensitive.
        known: The status line, which many bodies repeat.
        is_quotable: Whether JSON that has no words for people may be shown as it is.
    """
    kind = headers.get("content-type", "").lower()
    if headers.get("content-encoding", "identity").lower() != "identity" or kind.startswith(_NO_TEXT):
        return ""
    text = _decoded(body, kind).lstrip("\ufeff \t\r\n")
    if "json" in kind or text.startswith(("{", "[")):
        lines = _of_json(text, is_quotable)
    elif "html" in kind or text.startswith("<"):
        import html

        lines = iter(html.unescape(_TAG.sub("\n", _UNSEEN.sub("\n", text))).splitlines())
    else:
        lines = iter(text.splitlines())
    for line in lines:
        words = " ".join(line.split())
        if words and words.rstrip(".").lower() not in known.lower():
            return "" if sum(not char.isprintable() for char in words) * 4 > len(words) else words
    return ""


def _decoded(body: bytes, kind: str) -> str:
    found = _CHARSET.search(kind)
    if found and _CHARSETS.fullmatch(found[1]):  # others are not text, or slow
        return body.decode(found[1], "replace")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        if is_alarm(error):
            raise
        if error.start >= len(body) - 3:  # it ends within a character
            return body[: error.start].decode("utf-8")
    return body.decode("latin-1")


def _of_json(text: str, is_quotable: bool) -> Iterator[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        value = None
    yield from _messages(value, 3)
    if is_quotable:
        yield text.replace("\n", " ")


def _messages(value: object, depth: int) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list) and depth:
        for each in value[:3]:
            yield from _messages(each, depth - 1)
    elif isinstance(value, dict) and depth:
        for member in _MEMBERS:
            if member in value:
                yield from _messages(value[member], depth - 1)


def advice(status: int, headers: Mapping[str, str], said: str, *, compressed: bool, secure: bool) -> str:
    """What to do about a refusal. It does not contradict what the server says itself, which stands before it.

    Args:
        status: Of the answer.
        headers: Of the answer; names are case-insensitive.
        said: Its first words.
        compressed: Whether compression was offered.
        secure: Whether it was asked through TLS.
    """
    if status == 400:
        return _of_bad_request(said, compressed=compressed, secure=secure)
    if status == 401:
        return f"check the credentials in the URI or in {_CREDENTIALS}"
    if status == 403:
        if "origin" in said.lower():
            return 'set manager_kwargs["origin"] to one that it takes, or let it take this one'
        return f'it may want credentials ({_CREDENTIALS}), or another manager_kwargs["origin"]'
    if status in _ELSEWHERE or 200 <= status < 300:
        return _NO_WEBSOCKET
    if status == 407:
        return "a proxy on the way asks for credentials"
    if status == 426:
        if "sec-websocket-version" in headers:
            return "it speaks another version of WebSocket than 13"
        return "does a gateway on the way drop the Upgrade header?"
    if status in _BUSY:
        return "it may be busy or restarting; try again later, or less often"
    return "the server failed; its own log may say why" if status >= 500 else _CHECK


def _of_bad_request(said: str, *, compressed: bool, secure: bool) -> str:
    if not secure and "https" in said.lower():
        return "does it want wss://?"
    if "subprotocol" in said.lower():
        return 'offer one that it knows in manager_kwargs["subprotocols"]'
    return f"{_CHECK}; {_TRY_WITHOUT_DEFLATE}" if compressed else _CHECK
