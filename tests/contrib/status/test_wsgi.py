"""The page: closed unless it is opened, what it shows, and what it never shows.

Also tests: `page`, `plots`, `style`, `lines`.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Hashable
from html import unescape
from html.parser import HTMLParser
from types import FrameType
from typing import Any
from xml.etree import ElementTree

import pytest

from jetsocket import ConnectionError, ConnectionPool, PoolExhaustedError, ReplyError
from jetsocket.contrib import status
from jetsocket.contrib.status.lines import duration
from jetsocket.contrib.status.plots import plot
from jetsocket.correlation import JsonRpc
from jetsocket.limits import Limiter
from tests.contrib.status.client import ask, shown, told
from tests.servers import Connection, EchoServer, refusing_port

MakePool = Callable[..., ConnectionPool[Any]]
PATHS = ("/", "/status.json", "/clear", "", "/other")


# --- who may see it


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
def test_it_is_closed_unless_it_is_opened(make_pool: MakePool, path: str, method: str) -> None:
    pool = make_pool("ws://localhost")
    for app in (status.app(pool, clear=True), status.app(pool, permission=lambda environ: False)):
        answer = ask(app, path, method)
        assert (answer.status, answer.body) == (403, "")


def test_permission_is_asked_at_every_request(make_pool: MakePool) -> None:
    asked: list[str] = []

    def permission(environ: dict[str, Any]) -> bool:
        asked.append(environ["PATH_INFO"])
        return len(asked) != 2

    app = status.app(make_pool("ws://localhost"), permission=permission)
    assert [ask(app).status, ask(app, "/status.json").status, ask(app).status] == [200, 403, 200]
    assert asked == ["/", "/status.json", "/"]


async def later(environ: dict[str, Any]) -> bool:
    return True


@pytest.mark.parametrize(
    "permission",
    [lambda environ: 1, lambda environ: "yes", lambda environ: None, lambda environ: 1 / 0, later],
    ids=["1", "str", "None", "raises", "async"],
)
def test_anything_but_true_closes_and_is_logged(
    make_pool: MakePool, permission: Any, caplog: pytest.LogCaptureFixture
) -> None:
    app = status.app(make_pool("ws://localhost"), permission=permission)
    with caplog.at_level(logging.ERROR, "jetsocket.status"):
        answer = ask(app)
    assert (answer.status, answer.body) == (403, "")
    assert len(caplog.records) == 1 and "closed" in caplog.text


def test_an_alarm_that_strikes_the_permission_surfaces(make_pool: MakePool) -> None:
    class Alarm(Exception):
        pass

    def ring(number: int, frame: FrameType | None) -> None:
        raise Alarm

    def permission(environ: dict[str, Any]) -> bool:
        signal.raise_signal(signal.SIGUSR1)
        return True

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        with pytest.raises(Alarm):
            ask(status.app(make_pool("ws://localhost"), permission=permission))
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"permission": "yes"}, "permission must be callable"),
        ({"clear": 1}, "clear must be True or False"),
    ],
)
def test_wrong_arguments(make_pool: MakePool, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        status.app(make_pool("ws://localhost"), **options)


@pytest.mark.parametrize("pools", ["ws://localhost", 7, [7], {"a": 7}, None])
def test_what_is_no_pool_is_refused(pools: Any) -> None:
    with pytest.raises(TypeError, match="pools must be"):
        status.app(pools)


# --- what is answered


@pytest.mark.parametrize(
    ("clear", "asked", "expected"),
    [
        (False, "POST /", (405, "GET, HEAD")),
        (False, "POST /clear", (405, "GET, HEAD")),
        (False, "GET /clear", (404, None)),
        (True, "GET /clear", (405, "POST")),
        (True, "PUT /clear", (405, "GET, HEAD")),
        (True, "OPTIONS /status.json", (405, "GET, HEAD")),
        (True, "GET /other", (404, None)),
        (True, "GET //", (404, None)),
    ],
)
def test_other_methods_and_paths(
    make_pool: MakePool, clear: bool, asked: str, expected: tuple[int, str | None]
) -> None:
    method, path = asked.split()
    answer = ask(shown(make_pool("ws://localhost"), clear=clear), path, method)
    assert (answer.status, answer.headers.get("Allow")) == expected
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    ("mount", "where"), [("/pools", "/pools/"), ("//evil.example", "/evil.example/"), ("", "/"), ("//", "/")]
)
def test_the_mount_itself_leads_to_the_page(make_pool: MakePool, mount: str, where: str) -> None:
    answer = ask(shown(make_pool("ws://localhost")), "", SCRIPT_NAME=mount)
    assert (answer.status, answer.headers["Location"]) == (302, where)


@pytest.mark.parametrize("path", ["/", "/status.json"])
def test_head_is_get_without_the_body(make_pool: MakePool, path: str) -> None:
    answer = ask(shown(make_pool("ws://localhost")), path, "HEAD")
    assert (answer.status, answer.body) == (200, "")
    assert int(answer.headers["Content-Length"]) > 100


class Elements(HTMLParser):
    """Tags with their attributes, and what is in style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "path"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.inline[self.open[-1]] = data


def test_the_policy_lets_in_what_the_page_needs_and_nothing_else(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo)
    with pool.acquire("/"):
        answer = ask(shown(pool, clear=True))
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    policy = dict(each.split(" ", 1) for each in answer.headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert policy["connect-src"] == policy["form-action"] == "'self'"
    page = Elements(answer.body)
    assert page.open == []
    for tag in ("style", "script"):
        digest = base64.b64encode(hashlib.sha256(page.inline[tag].encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    for tag, attributes in page.tags:
        assert not {"style", "src"} & attributes.keys(), tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert attributes.get("href", "./") in ("./", "?pause", "status.json")


def test_it_refreshes_itself_until_it_is_paused(make_pool: MakePool) -> None:
    app = shown(make_pool("ws://localhost"))
    page, paused = ask(app).body, ask(app, "/?pause").body
    assert '<noscript><meta http-equiv="refresh"' in page and "<script>" in page
    assert "refresh" not in paused.partition("<header>")[0] and "<script" not in paused
    assert 'href="./"' in paused and 'href="?pause"' not in paused


# --- what it shows


def text_of(page: str) -> str:
    """What a reader reads."""
    body = re.sub(r"<(style|script).*?</\1>", "", page, flags=re.DOTALL)
    return unescape(re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body)))


def test_who_holds_what_for_how_long_and_doing_what(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, name="nodes", max_connections=7)
    with pool.acquire("/b"):
        pass
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with pool.acquire("/a") as conn:
            conn.ping(5)
            holding.set()
            done.wait(30)

    thread = threading.Thread(target=hold, name="the <holder>")
    thread.start()
    try:
        assert holding.wait(30)
        page, told = ask(shown(pool)).body, ask(shown(pool), "/status.json").json
    finally:
        done.set()
        thread.join()
    nodes = told["workers"][0]["pools"][0]
    assert nodes["now"] == {"open": 2, "idle": 1, "lent": 1, "waiting": 0, "opening": 0}
    lease = nodes["leases"][0]
    assert lease["thread"] == "the <holder>" and lease["where"].startswith("hold (")
    by_id = {row["id"]: row for row in nodes["connections"]}
    lent = by_id[lease["id"]]
    assert (lent["place"], lent["uses"]) == ("lent", 1) and lent["uri"].endswith("/a")
    assert 0 < lent["latency"] < 5 and lent["age"] >= lease["age"] > 0
    read = text_of(page)
    assert "nodes at most 7 connections" in read and told["worker"] in read
    assert re.search(r"lent \S+ m?s 1 \S+ [mµ]?s the <holder> \S+ m?s in your code hold \(…/status/", read)
    assert re.search(r"2 open .* 1 idle .* 1 lent .* 0 waiting .* 0 opening", read)


def test_what_was_discarded_and_what_went_wrong(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    page = shown(pool)
    ask(page)  # from here on, errors are remembered
    with pool.acquire("/"), pytest.raises(PoolExhaustedError):
        pool.acquire("/", timeout=0.01)
    with pool.acquire("/") as conn:
        conn.discard()
    with refusing_port() as port, pytest.raises(ConnectionError):
        pool.acquire(f"ws://127.0.0.1:{port}/")
    told = ask(page, "/status.json").json["workers"][0]["pools"][0]
    assert told["discards"] == pool.stats().discards != {}
    what = [(each["doing"], each["text"].partition(":")[0]) for each in told["errors"]]
    assert what == [
        ("acquire", "ConnectionError"),
        ("connect", "ConnectionError"),
        ("acquire", "PoolExhaustedError"),
    ]
    assert str(port) in told["errors"][0]["text"]
    read = text_of(ask(page).body)
    assert "Last errors" in read and f"127.0.0.1:{port}" in read
    assert all(reason in read for reason in told["discards"])


class Account(Limiter):
    """Says of itself what it is told to."""

    name = "the <account>"
    told: Any = None

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        return object()

    def release(self, token: Hashable) -> None:
        pass

    def stats(self) -> Any:
        if isinstance(self.told, Exception):
            raise self.told
        return self.told


def test_what_limiters_say_of_their_slots(make_pool: MakePool) -> None:
    account = Account()
    account.told = {
        "limit": 20,
        "held": 3,
        "others": 12,
        "waiting": 1,
        "lost": 0,
        "errors": 0,
        "secret": "s3",
    }
    with ConnectionPool[Any](base_uri="ws://localhost", name="p", limiter=account) as pool:
        page = shown(pool)
        (limiter,) = ask(page, "/status.json").json["workers"][0]["pools"][0]["limiters"]
        assert limiter.pop("figures") == {key: account.told[key] for key in list(account.told)[:-1]}
        assert limiter == {"name": "the <account>", "away": False}
        said = "Limiter the <account>: 3 of 20 slots held here, 12 by others, 1 waiting, 0 lost, 0 errors."
        assert said in text_of(ask(page).body)
        account.told = {"limit": 5, "held": 0, "without_slot": 2, "away": True}
        said = "Limiter the <account>: 0 of 5 slots held here, 2 open without one, its server is away."
        assert said in text_of(ask(page).body)
        account.told = {"away": True, "held": True, "limit": -1, "others": None}
        body = ask(page).body
        assert 'class="bad">Limiter the &lt;account&gt;: its server is away.' in body
        account.told = {}
        assert "Limiter the <account>: it tells no figures." in text_of(ask(page).body)
        account.told = KeyError("s3")
        told = ask(page, "/status.json").json["workers"][0]["pools"][0]
        assert told["limiters"] == []
        assert [(each["doing"], each["text"]) for each in told["errors"]] == [
            ("stats() of a limiter", "KeyError")
        ]


def test_nothing_is_shown_as_it_came(make_pool: MakePool) -> None:
    evil = "<img src=x onerror=alert(1)>'\"&\x1b[31m"
    page = ask(shown({evil: make_pool("ws://localhost")}, clear=True)).body
    assert "<img" not in page and "\x1b" not in page
    assert {tag for tag, _ in Elements(page).tags} >= {"main", "form"}
    assert "<img src=x onerror=alert(1)>'\"&?[31m" in text_of(page)


def refuse(conn: Connection) -> None:
    for _ in conn:
        conn.send('{"jsonrpc": "2.0", "id": 1, "error": {"code": -32001, "message": "hush-5 is wrong"}}')


def test_no_secret_is_shown(echo_server: Callable[..., EchoServer], make_pool: MakePool) -> None:
    """Of requests, too: what a server says of a message may repeat it."""
    server = echo_server(refuse)
    pool = make_pool(
        server,
        correlation=JsonRpc(),
        manager_kwargs={"extra_headers": {"Authorization": "Bearer hush-1"}, "cookie": "session=hush-2"},
    )
    app = shown(pool, clear=True)
    ask(app)
    uri = server.uri.replace("ws://", "ws://user:hush-3@") + "/rpc?token=hush-4"
    with pytest.raises(ReplyError, match="hush-5"):
        pool.request(uri, {"method": "log_in", "params": ["hush-6"]}, timeout=5)
    with refusing_port() as port, pytest.raises(ConnectionError):
        pool.acquire(f"ws://user:hush-3@127.0.0.1:{port}/?token=hush-4")
    with pool.acquire(uri):
        shown_now = ask(app).body + ask(app, "/status.json").body
    assert "ReplyError: code -32001" in shown_now
    assert re.findall(r"hush-\d", shown_now) == []


def test_a_closed_pool_is_shown_as_such(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    pool.request("/", {"id": 1})
    pool.close()
    page = ask(shown(pool, clear=True)).body
    assert "closed" in text_of(page) and "<form" not in page
    assert " of 0" not in text_of(page) and 'class="cap"' not in page


@pytest.mark.slow
def test_many_connections_are_not_all_listed(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=105)
    pool.prewarm("/", 104)
    told_of = told(pool)
    assert (len(told_of["connections"]), told_of["not_listed"]) == (100, 4)
    assert "4 more are not listed" in text_of(ask(shown(pool)).body)


# --- plots


def test_a_plot_is_a_line_that_steps_and_has_gaps() -> None:
    drawn = plot([0, 4, 4, None, 2], highest=4, limit=4, told='"lent" & more')
    svg = ElementTree.fromstring(drawn)
    assert svg.attrib["aria-label"] == '"lent" & more'
    paths = {path.attrib["class"]: path.attrib["d"] for path in svg}
    assert paths["line"] == "M295 45H296V3H298V3M299 24H300V24"
    assert paths["area"] == "M295 45H296V3H298V3V48H295ZM299 24H300V24V48H299Z"
    assert paths["cap"] == "M0 3H300"


def test_a_plot_of_nothing() -> None:
    assert 'class="line" d=""' in plot([], highest=0, limit=None, told="")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.0000123, "12.3 µs"),
        (0.0123, "12.3 ms"),
        (12.34, "12.3 s"),
        (61, "1 min 01 s"),
        (7260, "2 h 01 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_times_are_said_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said
