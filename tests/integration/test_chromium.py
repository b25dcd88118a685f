"""Chromium by its DevTools protocol: pages opened and read side by side, and their events."""

from __future__ import annotations

import http.server
import os
import re
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionPool, ReplyError
from jetsocket.correlation import Cdp
from tests.crowds import crowd, errors
from tests.faults import conftest
from tests.integration.running import PATIENCE, program, running
from tests.servers import LOCALHOST, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

report = conftest.report

PoolFactory = Callable[..., ConnectionPool[Any]]

PAGES = 4
EVALUATIONS = 25  # of each page
ENDPOINT = re.compile(rb"DevTools listening on (ws://\S+)")


class Pages(http.server.BaseHTTPRequestHandler):
    """At /NAME, a page that says its name, in a file and in the console."""

    def do_GET(self) -> None:
        name = urllib.parse.urlsplit(self.path).path[1:]
        body = f"<title>{name}</title><script>console.log('this is', '{name}')</script>".encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    """The URL of a web server with pages."""
    with http.server.ThreadingHTTPServer((LOCALHOST, 0), Pages) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{LOCALHOST}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of a running browser."""
    directory = tmp_path_factory.mktemp("chromium")
    name = program("chromium-headless-shell", "chromium", package="chromium-headless-shell")
    command = [
        name,
        "--headless",
        "--remote-debugging-port=0",
        f"--user-data-dir={directory}",
        "--disable-gpu",
    ]
    command += ["--no-proxy-server", "--disable-dev-shm-usage", "--disable-background-networking"]
    command += ["--no-sandbox"] if os.geteuid() == 0 else []  # as root it does not start otherwise
    log = directory / "log"
    with running(command, log, HOME=str(directory)) as process:

        def endpoint() -> str | None:
            assert process.poll() is None, "it did not start"
            found = ENDPOINT.search(log.read_bytes())
            return found[1].decode() if found else None

        yield wait_until(endpoint, PATIENCE, "the browser listens")


class Page(NamedTuple):
    """A page, as commands name it."""

    target: str
    session: str

    def command(self, method: str, **params: Any) -> dict[str, Any]:
        return {"method": method, "params": params, "sessionId": self.session}


def ask(conn: Any, method: str, **params: Any) -> Any:
    return conn.request({"method": method, "params": params}, PATIENCE)["result"]


def new_page(conn: Any) -> Page:
    target = ask(conn, "Target.createTarget", url="about:blank")["targetId"]
    return Page(target, ask(conn, "Target.attachToTarget", targetId=target, flatten=True)["sessionId"])


def value_of(conn: Any, page: Page, expression: str) -> Any:
    reply = conn.request(page.command("Runtime.evaluate", expression=expression), PATIENCE)
    return reply["result"]["result"]["value"]


def test_pages_are_read_side_by_side_over_one_connection(
    browser: str, site: str, make_pool: PoolFactory, report: conftest.Report
) -> None:
    unasked: list[str] = []
    pool = make_pool(
        browser,
        correlation=Cdp(),
        on_push=lambda uri, message: unasked.append(message["method"]),
        max_connections=1,
    )
    with pool.acquire("") as conn:
        pages = [new_page(conn) for _ in range(PAGES)]

        def one(number: int) -> tuple[int, list[str]]:
            """Go to a page of this thread's own; what it says, and the events of its loading."""
            page = pages[number]
            with (
                conn.subscribe(page.command("Page.enable"), timeout=PATIENCE) as loading,
                conn.subscribe(page.command("Runtime.enable"), timeout=PATIENCE) as running,
            ):
                conn.request(page.command("Page.navigate", url=f"{site}/page-{number}"), PATIENCE)
                events = []
                while "Page.loadEventFired" not in events:
                    event = loading.get(PATIENCE)
                    assert event["sessionId"] == page.session
                    events.append(event["method"])
                said: list[str] = []
                while not said:
                    event = running.get(PATIENCE)
                    assert event["sessionId"] == page.session
                    if event["method"] == "Runtime.consoleAPICalled":
                        said += [each["value"] for each in event["params"]["args"]]
            assert said == ["this is", f"page-{number}"]
            right = 0
            for count in range(EVALUATIONS):
                expression = f"document.title + ' {count} ' + {count} * {number}"
                right += value_of(conn, page, expression) == f"page-{number} {count} {count * number}"
            return right, events

        begun = monotonic()
        outcomes = crowd(PAGES, one)
        took = monotonic() - begun
        assert errors(outcomes) == []
        right = sum(outcome.value[0] for outcome in outcomes)
        assert right == PAGES * EVALUATIONS
        for page in pages:
            assert ask(conn, "Target.closeTarget", targetId=page.target) == {"success": True}
    stats = pool.stats()
    assert stats.late_replies == stats.in_flight == 0
    events = sum(len(outcome.value[1]) for outcome in outcomes)
    report(
        "Chromium",
        evaluations=right,
        events=events,
        others=len(unasked),
        connections=stats.total_connections,
        evaluations_per_s=round(right / took),
    )


def test_many_threads_share_a_page(browser: str, make_pool: PoolFactory) -> None:
    pool = make_pool(browser, correlation=Cdp(), max_connections=1, max_in_flight=8)
    create = {"method": "Target.createTarget", "params": {"url": "about:blank"}}
    target = pool.request("", create, timeout=PATIENCE)["result"]["targetId"]
    attach = {"method": "Target.attachToTarget", "params": {"targetId": target, "flatten": True}}
    page = Page(target, pool.request("", attach, timeout=PATIENCE)["result"]["sessionId"])

    def one(number: int) -> list[Any]:
        got = []
        for count in range(EVALUATIONS):
            expression = f"new Promise(done => setTimeout(done, {count % 3}, {number * EVALUATIONS + count}))"
            command = page.command("Runtime.evaluate", expression=expression, awaitPromise=True)
            reply = pool.request("", {**command, "id": number}, timeout=PATIENCE)
            assert reply["id"] == number
            got.append(reply["result"]["result"]["value"])
        return got

    outcomes = crowd(8, one)
    assert errors(outcomes) == []
    assert [value for outcome in outcomes for value in outcome.value] == [*range(8 * EVALUATIONS)]
    assert pool.stats().total_connections == 1 and pool.stats().late_replies == 0


def test_errors_and_what_comes_of_a_page_that_is_closed(
    browser: str, site: str, make_pool: PoolFactory
) -> None:
    pool = make_pool(browser, correlation=Cdp(), max_connections=1)
    with pool.acquire("") as conn:
        with pytest.raises(ReplyError, match=r"'No\.thing' wasn't found") as refused:
            ask(conn, "No.thing")
        assert refused.value.code == -32601
        discover = {"method": "Target.setDiscoverTargets", "params": {"discover": True}}
        with conn.subscribe(discover, timeout=PATIENCE) as targets:
            page = new_page(conn)
            conn.request(page.command("Page.navigate", url=f"{site}/some"), PATIENCE)
            failed = conn.request(page.command("Runtime.evaluate", expression="throw Error('no')"), PATIENCE)
            assert "Error: no" in failed["result"]["exceptionDetails"]["exception"]["description"]
            never = page.command("Runtime.evaluate", expression="new Promise(() => 0)", awaitPromise=True)
            first, second = conn.request_many([never, page.command("Page.close")], 3)
            assert isinstance(first, (ReplyError, TimeoutError)) and second["result"] == {}
            of_page = []
            while "Target.targetDestroyed" not in of_page:
                event = targets.get(PATIENCE)
                params = event["params"]
                if page.target in (params.get("targetId"), params.get("targetInfo", {}).get("targetId")):
                    of_page.append(event["method"])
            assert of_page[0] == "Target.targetCreated" and "Target.targetInfoChanged" in of_page
        with pytest.raises(ReplyError, match="Session with given id not found"):
            value_of(conn, page, "1")
        assert ask(conn, "Browser.getVersion")["protocolVersion"] == "1.3"
    assert pool.stats().total_connections == 1
