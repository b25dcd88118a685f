"""Clearing from the page: it works, and no other site can make a browser do it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from jetsocket import ConnectionPool
from tests.contrib.status.client import SITE, Answer, ask, shown
from tests.servers import EchoServer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]


def visit(app: Any, **environ: str) -> tuple[str, str]:
    """The token in the form, and the cookie that came with it."""
    answer = ask(app, **environ)
    found = re.search(r'name="token" value="([^"]+)"', answer.body)
    assert found
    return found[1], answer.headers["Set-Cookie"].partition(";")[0]


def post(app: Any, fields: dict[str, str], cookie: str, **environ: str) -> Answer:
    return ask(app, "/clear", "POST", urlencode(fields).encode(), HTTP_COOKIE=cookie, **environ)


@pytest.fixture
def warm(echo: EchoServer, make_pool: MakePool) -> ConnectionPool[Any]:
    pool = make_pool(echo, name="näh & <so>")
    pool.prewarm("/", 2)
    return pool


@pytest.mark.parametrize(
    "environ",
    [{}, {"HTTP_SEC_FETCH_SITE": "same-origin", "HTTP_ORIGIN": "null"}, {"HTTP_ORIGIN": f"http://{SITE}"}],
    ids=["old browser", "new browser", "origin only"],
)
def test_the_page_clears(warm: ConnectionPool[Any], environ: dict[str, str]) -> None:
    app = shown(warm, clear=True)
    token, cookie = visit(app)
    answer = post(app, {"token": token, "pool": warm.name}, cookie, **environ)
    assert (answer.status, answer.headers["Location"]) == (303, "./")
    wait_until(lambda: warm.stats().discards == {"cleared": 2})


def test_another_worker_may_answer(warm: ConnectionPool[Any]) -> None:
    token, cookie = visit(shown(warm, clear=True))
    assert post(shown(warm, clear=True), {"token": token, "pool": warm.name}, cookie).status == 303
    assert warm.stats().idle_connections == 0


def test_two_tabs_have_one_token(warm: ConnectionPool[Any]) -> None:
    app = shown(warm, clear=True)
    token, cookie = visit(app)
    assert visit(app, HTTP_COOKIE=cookie) == (token, cookie)


def test_no_other_site_clears(warm: ConnectionPool[Any]) -> None:
    app = shown(warm, clear=True)
    token, cookie = visit(app)
    right = {"token": token, "pool": warm.name}
    for fields, given, environ in (
        ({"pool": warm.name}, cookie, {}),  # a form of another site can't know the token
        ({**right, "token": "x" * 43}, cookie, {}),
        ({**right, "token": "ä"}, cookie, {}),
        (right, "", {}),  # SameSite: no cookie comes
        (right, "jetsocket-status=" + "y" * 43, {}),
        ({**right, "token": ""}, "jetsocket-status=", {}),
        (right, cookie, {"HTTP_SEC_FETCH_SITE": "cross-site"}),
        (right, cookie, {"HTTP_SEC_FETCH_SITE": "same-site"}),
        (right, cookie, {"HTTP_ORIGIN": "https://evil.example"}),
        (right, cookie, {"HTTP_ORIGIN": "null"}),
        ({"token": token}, cookie, {}),
        ({**right, "more": "x" * 20_000}, cookie, {}),
    ):
        answer = post(app, fields, given, **environ)
        assert answer.status == 403, (fields, given, environ)
    assert warm.stats().idle_connections == 2


def test_a_pool_that_is_gone_is_nobodys(warm: ConnectionPool[Any]) -> None:
    app = shown(warm, clear=True)
    token, cookie = visit(app)
    assert post(app, {"token": token, "pool": "another"}, cookie).status == 303
    assert warm.stats().idle_connections == 2


@pytest.mark.parametrize(("scheme", "secure"), [("http", False), ("https", True)])
def test_the_cookie_is_for_the_page_alone(warm: ConnectionPool[Any], scheme: str, secure: bool) -> None:
    environ = {"SCRIPT_NAME": "/pools; Domain=evil", "wsgi.url_scheme": scheme}
    cookie = ask(shown(warm, clear=True), **environ).headers["Set-Cookie"]
    assert "; Path=/pools%3B%20Domain%3Devil/; HttpOnly; SameSite=Strict" in cookie
    assert cookie.endswith("; Secure") is secure


def test_no_form_and_no_cookie_unless_wanted(warm: ConnectionPool[Any]) -> None:
    answer = ask(shown(warm))
    assert "<form" not in answer.body and "Set-Cookie" not in answer.headers
