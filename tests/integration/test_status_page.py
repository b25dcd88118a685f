"""The status page in Chromium: in both themes, narrow and wide, by keyboard, without scripts; axe-core."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest

from jetsocket import ConnectionError, ConnectionPool
from jetsocket.contrib import status
from jetsocket.correlation import Cdp
from tests.integration import test_chromium
from tests.integration.running import PATIENCE, node_module
from tests.integration.test_chromium import Page, ask, new_page
from tests.servers import LOCALHOST, EchoServer, refusing_port, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

browser = test_chromium.browser

MakePool = Callable[..., ConnectionPool[Any]]
KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39}
AXE = """axe.run().then(found => JSON.stringify(found.violations.map(
    each => [each.id, each.nodes.map(node => node.html)])))"""


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


class Threading(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class Site:
    """The page, served; its two pools, one with a lease out, an error and a discarded connection."""

    def __init__(self, echo: EchoServer, make_pool: MakePool) -> None:
        self.pool = make_pool(echo, name="nodes", max_connections=8)
        self.other = make_pool(echo, name="a name that has no place to break: " + "x" * 60)
        app = status.app([self.pool, self.other], permission=lambda environ: True, clear=True)
        self.requests: list[str] = []

        def counted(environ: dict[str, Any], start_response: Any) -> Any:
            self.requests.append(environ["REQUEST_METHOD"] + " " + environ["PATH_INFO"])
            return app(environ, start_response)

        self.server = make_server(LOCALHOST, 0, counted, Threading, Quiet)
        self.url = f"http://{LOCALHOST}:{self.server.server_port}/"


@pytest.fixture
def site(echo: EchoServer, make_pool: MakePool) -> Iterator[Site]:
    site = Site(echo, make_pool)
    thread = threading.Thread(target=site.server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield site
    finally:
        site.server.shutdown()
        thread.join()
        site.server.server_close()
        site.server.set_app(None)  # pytest keeps the fixture's value for a while


class Tab:
    """A page of the browser, and what its reader does."""

    def __init__(self, conn: Any) -> None:
        self.conn = conn
        self.page: Page = new_page(conn)

    def do(self, method: str, **params: Any) -> Any:
        return self.conn.request(self.page.command(method, **params), PATIENCE)["result"]

    def value(self, expression: str) -> Any:
        found = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def look(self, url: str, theme: str, width: int) -> None:
        self.do("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.do("Emulation.setDeviceMetricsOverride", **size)
        self.do("Page.navigate", url=url)
        wait_until(lambda: self.value(f"location.href === {url!r} && document.readyState === 'complete'"))

    def press(self, key: str) -> None:
        for kind in ("keyDown", "keyUp"):
            told = {"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            if key == "Enter" and kind == "keyDown":
                told["text"] = "\r"
            self.do("Input.dispatchKeyEvent", **told)

    def focused(self) -> str:
        """What has the focus, in a word."""
        told: str = self.value("document.activeElement.tagName + ' ' + (document.activeElement.ariaLabel || "
                               "document.activeElement.textContent.slice(0, 20))")  # fmt: skip
        return told


@pytest.fixture
def tab(browser: str, make_pool: MakePool) -> Iterator[Tab]:
    pool = make_pool(browser, correlation=Cdp(), max_connections=1)
    with pool.acquire("") as conn:
        tab = Tab(conn)
        yield tab
        ask(conn, "Target.closeTarget", targetId=tab.page.target)


def test_it_is_readable_by_all_in_both_themes_and_at_any_width(tab: Tab, site: Site, tmp_path: Path) -> None:
    axe = (node_module("axe-core") / "axe.min.js").read_text(encoding="utf-8")
    paper = {}
    with tab.conn.subscribe(tab.page.command("Log.enable"), timeout=PATIENCE) as log, site.pool.acquire("/a"):
        tab.look(site.url, "light", 1280)  # from here on, errors are remembered
        with refusing_port() as port, pytest.raises(ConnectionError):
            site.pool.acquire(f"ws://{LOCALHOST}:{port}/")
        for theme in ("light", "dark"):
            for width in (360, 1280):
                tab.look(site.url, theme, width)
                tab.value(axe + "; 0")
                assert json.loads(tab.value(AXE)) == [], (theme, width)
                assert tab.value("document.documentElement.scrollWidth") <= width  # less by a scroll bar
                paper[theme] = tab.value("getComputedStyle(document.body).backgroundColor")
                picture = base64.b64decode(
                    tab.do("Page.captureScreenshot", captureBeyondViewport=True)["data"]
                )
                (tmp_path / f"{theme}-{width}.png").write_bytes(picture)  # to be looked at
        assert "Last errors" in tab.value("document.body.innerText")
        tab.value("fetch('favicon.ico').then(answer => answer.status)")  # whatever is logged has come now
        said: list[Any] = []
        while not said or "favicon" not in said[-1]:
            said.append(json.dumps(log.get(PATIENCE)["params"]["entry"]))
        assert [entry for entry in said if "Content Security Policy" in entry] == []
    assert paper["light"] != paper["dark"]


def test_who_holds_it_is_in_sight_beside_a_long_uri(tab: Tab, site: Site) -> None:
    with site.pool.acquire("/" + "a-part-of-it/" * 9):
        tab.look(site.url, "light", 1280)
        right = "getBoundingClientRect().right"
        end_of_head = (
            f"[...document.querySelectorAll('th')].find(each => each.textContent == 'Doing').{right}"
        )
        assert tab.value(end_of_head) <= tab.value(f"document.querySelector('.scroll').{right}")


def test_by_keyboard_and_refreshed_in_place(tab: Tab, site: Site) -> None:
    with site.pool.acquire("/a"):
        tab.look(site.url, "light", 360)
        began = tab.value("performance.timeOrigin")
        for expected in ("A Pause", "A JSON", "DIV Connections of nodes"):
            tab.press("Tab")
            assert tab.focused() == expected
        tab.press("ArrowRight")
        wait_until(lambda: tab.value("document.activeElement.scrollLeft") > 0)
        lent = "document.querySelectorAll('.cards b')[2].textContent"
        assert tab.value(lent) == "1"
        with site.pool.acquire("/b"):
            wait_until(lambda: tab.value(lent) == "2", PATIENCE)
            assert "/b" in tab.value("document.activeElement.textContent")
        assert tab.focused() == "DIV Connections of nodes"
        assert tab.value("document.activeElement.scrollLeft") > 0
        assert tab.value("performance.timeOrigin") == began
    tab.press("Tab")
    assert tab.focused().startswith("BUTTON Close what is idle")
    tab.press("Enter")
    wait_until(lambda: site.pool.stats().discards.get("cleared") == 2)
    loaded = f"performance.timeOrigin > {began} && document.readyState === 'complete'"
    wait_until(lambda: tab.value(f"{loaded} && location.href === {site.url!r}"))
    tab.press("Tab")
    assert tab.focused() == "A Pause"
    tab.press("Enter")
    wait_until(lambda: tab.value("location.search === '?pause' && document.readyState === 'complete'"))
    assert tab.value("document.scripts.length") == 0


def test_without_scripts_it_is_loaded_again(tab: Tab, site: Site) -> None:
    tab.do("Emulation.setScriptExecutionDisabled", value=True)
    tab.do("Page.navigate", url=site.url)
    wait_until(lambda: site.requests.count("GET /") >= 2, PATIENCE, "it is loaded again")


def test_what_fails_is_said(tab: Tab, site: Site) -> None:
    tab.look(site.url, "light", 360)
    site.server.shutdown()
    site.server.server_close()
    note = "document.getElementById('note').textContent"
    wait_until(lambda: "Not refreshed any more" in tab.value(note), PATIENCE)
