"""That a request to clear a pool was sent by the page: a token in a cookie, and the same in the form.

Another site can make a browser send the cookie, but neither read nor set it, so it can't fill in the form.
Nothing is remembered, so any worker may answer.
"""

from __future__ import annotations

import hmac
import re
import secrets
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from jetsocket.interrupts import is_alarm

_COOKIE = "jetsocket-status"
_TOKEN = re.compile(r"[0-9A-Za-z_-]{43}")


def token(environ: dict[str, Any]) -> tuple[str, str]:
    """The token for the form, and the value of the Set-Cookie header that goes with it."""
    known = _of_cookie(environ) or secrets.token_urlsafe(32)
    path = quote(environ.get("SCRIPT_NAME", ""), encoding="latin-1") + "/"
    secure = "; Secure" if environ.get("wsgi.url_scheme") == "https" else ""
    return known, f"{_COOKIE}={known}; Path={path}; HttpOnly; SameSite=Strict{secure}"


def wanted(environ: dict[str, Any]) -> str | None:
    """The name of the pool that the page asks to clear; None if it was not the page that did."""
    if not _is_of_this_site(environ):
        return None
    known = _of_cookie(environ)
    form = _form(environ)
    sent, names = form.get("token", []), form.get("pool", [])
    if known is None or len(sent) != 1 or len(names) != 1:
        return None
    return names[0] if hmac.compare_digest(sent[0].encode(), known.encode()) else None


def _is_of_this_site(environ: dict[str, Any]) -> bool:
    """Whether the browser says so; one that says nothing is an old one."""
    site = environ.get("HTTP_SEC_FETCH_SITE")
    if site is not None:
        return bool(site == "same-origin")
    origin = environ.get("HTTP_ORIGIN")
    return origin is None or urlsplit(origin).netloc == environ.get("HTTP_HOST")


def _of_cookie(environ: dict[str, Any]) -> str | None:
    try:
        found = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(_COOKIE)
    except CookieError as error:
        if is_alarm(error):
            raise
        return None
    return found.value if found is not None and _TOKEN.fullmatch(found.value) else None


def _form(environ: dict[str, Any]) -> dict[str, list[str]]:
    length = environ.get("CONTENT_LENGTH") or "0"
    if len(length) > 4 or not length.isdecimal():
        return {}
    # At most 9,999 bytes.
    content: bytes = environ["wsgi.input"].read(int(length))
    return parse_qs(content.decode("utf-8", "replace"), keep_blank_values=True)
