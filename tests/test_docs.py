"""README and docs: every Python block runs as written, links lead somewhere, tables are complete."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import inspect
import json
import logging
import os
import pydoc
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import responses

import jetsocket
import jetsocket.auth
import jetsocket.contrib.status
import jetsocket.correlation
import jetsocket.testing
from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.manager_kwargs import Options
from jetsocket.wire import dial
from tests import protocols
from tests.conftest import Tls
from tests.servers import Connection, EchoServer, RawServer
from tests.wire.proxies import http_proxy

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "protocols").glob("*.md")]
)
BLOCK = re.compile(r"^```python[^\S\n]*(?P<mark>[^\n]*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[(?P<label>[^]]+)\]\((?P<where>[^)\s]+)\)")

EXTERNAL = re.compile(r"https://[\w-]+(\.[\w-]+)+(/[\w./~-]*)?(#[\w.-]+)?")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


# --- the blocks


def exchange(conn: Connection) -> None:
    """The server that the pages are written for: it logs in, subscribes, unsubscribes, answers calls."""
    assert conn.request is not None
    for text in conn:
        message = {} if text.endswith("\x1e") else json.loads(text)  # SignalR's
        if "login" in message:
            conn.send(json.dumps({"ok": True}))
        elif message.get("subscribe") == "trades":
            symbol = conn.request.path.rsplit("/", 1)[-1]
            for price in (1.0, 2.0, 3.0):
                conn.send(json.dumps({"symbol": symbol, "price": price}))
            return  # closes with 1000
        elif "unsubscribe" in message:
            conn.send(json.dumps({"unsubscribed": message["unsubscribe"]}))
        elif "method" in message:
            conn.send(json.dumps({"id": message["id"], "result": message["method"]}))
        else:
            conn.send(text)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tls: Tls) -> Iterator[list[EchoServer]]:
    """A world in which the pages' servers exist: names lead to local ones, whose certificate is trusted."""
    hosts = {"stream.example.com": exchange, **protocols.services()}

    def serve(conn: Connection) -> None:
        assert conn.request is not None
        hosts[conn.request.headers["Host"]](conn)

    names = {host.partition(":")[0] for host in hosts}
    asked: list[str] = []
    options: dict[str, Any] = {"select_subprotocol": protocols.choose}
    with (
        EchoServer(serve, ssl_context=tls.issue(*names), **options) as secure,
        EchoServer(serve, **options) as plain,
        RawServer(http_proxy(asked, user="user:p@ss")) as proxy,
    ):
        look_up = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host == "proxy.corp":
                return look_up(proxy.host, proxy.port, *args, **kwargs)
            place = f"{host}:{port}".removesuffix(":443")
            if host not in names or (host == "localhost" and place not in hosts):  # a FakeServer's
                return look_up(host, port, *args, **kwargs)
            assert place in hosts
            server = secure if port == 443 or place in protocols.ENCRYPTED else plain
            return look_up(server.host, server.port, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(dial, "default_ssl_context", lambda: tls.client_context)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        level = logging.getLogger("jetsocket").level
        with responses.RequestsMock(assert_all_requests_are_fired=False) as http:
            protocols.give_out_tickets(http)
            yield [secure, plain]
        logging.getLogger("jetsocket").setLevel(level)


def blocks(page: Path) -> list[tuple[int, str, str]]:
    """Line, mark and code of each Python block."""
    text = page.read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, found.start()) + 2, found["mark"].strip(), found["code"])
        for found in BLOCK.finditer(text)
    ]


_OF_EXTRAS = {"celery", "django", "flask", "opentelemetry", "prometheus_client"}  # of `make test`'s, too


def _need(blocks: list[tuple[int, str, str]]) -> None:
    """Skip where a page is of an extra that is not installed here."""
    nodes = [node for _, _, code in blocks for node in ast.walk(ast.parse(code))]
    named = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    named |= {each.name for node in nodes if isinstance(node, ast.Import) for each in node.names}
    for name in sorted({each.partition(".")[0] for each in named} & _OF_EXTRAS):
        pytest.importorskip(name)
    if "jetsocket.contrib.opentelemetry" in named:
        pytest.importorskip("opentelemetry")


# testing.md is run as a file of tests, in tests/testing/test_plugin.py; tutorial.md: tests/test_tutorial.py.
RUN = [page for page in PAGES if blocks(page) and page.name not in ("testing.md", "tutorial.md")]


@pytest.mark.slow
@pytest.mark.once
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_run_as_written(page: Path, world: list[EchoServer]) -> None:
    """One after the other, as a reader would type them; `process` is what the reader does with a message."""
    processed: list[Any] = []
    names: dict[str, Any] = {"__name__": page.stem, "process": processed.append}
    _need(blocks(page))
    try:
        for line, mark, code in blocks(page):
            assert mark == "", f"{page.name}:{line}: a block that is not run"
            exec(compile("\n" * (line - 1) + code, str(page), "exec", dont_inherit=True), names)
    finally:
        for value in list(names.values()):
            if isinstance(value, ConnectionPool):
                value.close()
    assert sum(server.opened for server in world) > 0 or "FakeServer" in names
    if page.name in ("README.md", "index.md"):
        assert [message["price"] for message in processed] == [1.0, 2.0, 3.0]


@pytest.mark.once
@pytest.mark.timeout(240)  # the first time, mypy reads the standard library's stubs
def test_the_first_example_needs_no_annotation(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy (the extra lint)")
    program = tmp_path / "program.py"
    process = "from typing import Any\n\ndef process(msg: Any) -> None: ...\n\n"
    program.write_text(process + blocks(ROOT / "README.md")[0][2], encoding="utf-8")
    checked = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy",
            "--strict",
            "--cache-dir",
            str(ROOT / ".mypy_cache/docs"),
            str(program),
        ],
        check=False,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- the links


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for found in LINK.finditer(page.read_text(encoding="utf-8")):
        where, _, anchor = found["where"].partition("#")
        if "://" in found["where"]:  # no network here: its form only
            assert EXTERNAL.fullmatch(found["where"]), f"{page.name}: {found['where']}"
            continue
        target = (page.parent / where).resolve() if where else page
        assert target.exists(), f"{page.name}: {found['where']}"
        assert not anchor or anchor in headings(target), f"{page.name}: {found['where']}"


@cache
def names_in(path: Path) -> frozenset[str]:
    """Names of the tests and test classes of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(
        node.name
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name.lower().startswith("test")
    )


def promised_tests() -> list[tuple[str, str]]:
    """Promise number, and link text with the file, of every test in README's table of promises."""
    rows = re.findall(r"^\| (\d+) \|(.+)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    return [(number, found[0]) for number, row in rows for found in re.finditer(r"\[`.+?`\]\(.+?\)", row)]


def test_every_promise_is_shown_by_tests_that_exist() -> None:
    links = promised_tests()
    assert {int(number) for number, _ in links} == set(range(1, 12))
    for number, link in links:
        found = re.fullmatch(r"\[`(\w+)`\]\((tests/[\w/]+\.py)\)", link)
        assert found, f"promise {number}: {link}"
        assert found[1] in names_in(ROOT / found[2]), f"promise {number}: no {found[1]} in {found[2]}"


# --- the tables


def table(page: Path, heading: str) -> dict[str, str]:
    """First and second cell of each row of the first table under a heading."""
    section = page.read_text(encoding="utf-8").split(f"# {heading}\n", 1)[1].split("\n#", 1)[0]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \|", section, re.MULTILINE)
    return dict(rows)


def shown(value: object) -> str:
    return str(value) if not isinstance(value, (str, tuple)) else f"`{json.dumps(value)}`".replace("[]", "()")


def test_the_table_of_config_fields_is_complete_and_right() -> None:
    fields = {field.name: shown(field.default) for field in dataclasses.fields(ConnectionPoolConfig)}
    assert table(ROOT / "README.md", "Configuration") == fields


def test_the_table_of_options_is_complete_and_right() -> None:
    options = {field.name: shown(field.default) for field in dataclasses.fields(Options)}
    assert table(ROOT / "docs/options.md", "Options of the connections") == options


def test_everything_public_is_in_the_api_reference() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    named = re.findall(r"auto(?:class|exception):: jetsocket\.([\w.]+)$", page, re.MULTILINE)
    assert {name for name in named if "." not in name} == set(jetsocket.__all__)
    for package in (jetsocket.auth, jetsocket.contrib.status, jetsocket.correlation, jetsocket.testing):
        directive = rf"auto(?:class|function|data):: {re.escape(package.__name__)}\.(\w+)$"
        assert set(re.findall(directive, page, re.MULTILINE)) == set(package.__all__)


@pytest.mark.parametrize(
    "kind",
    [jetsocket.ConnectionPool, jetsocket.PooledConnection, jetsocket.Subscription, jetsocket.Histogram],
    ids=lambda k: k.__name__,
)
def test_every_public_member_is_in_the_api_reference(kind: type) -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    members = page.split(f"jetsocket.{kind.__name__}\n", 1)[1].split("..", 1)[0].split("```", 1)[0]
    listed = set(re.findall(r"\w+", members)) - {"members"}
    internal = {"take_back", "fit_for_first_use", "replace"}  # between the lease and its pool
    data = {
        "counts",
        "total",
        "longest",
        "discarded",
        "timed_out",
    }  # told by the class's own text, or internal
    public = {name for name in vars(kind) if not name.startswith("_")} - internal - data
    assert public <= listed


def test_the_page_on_pool_size_tells_what_was_measured() -> None:
    """After `python docs/pool_size.py` the sentences are to be written anew, too."""
    page = " ".join((ROOT / "docs/pool-size.md").read_text(encoding="utf-8").split())
    found = json.loads((ROOT / "docs/pool-size/results.json").read_text(encoding="utf-8"))
    waits, calls = found["waits"], found["latencies"]
    fair, barging = found["turns"]["the pool"], found["turns"]["a semaphore and a stack"]

    def ms(seconds: float) -> str:
        return f"{float(f'{seconds * 1e3:.2g}'):g} ms"

    for told in (
        f"With 8, half of the callers wait for more than {ms(waits['8']['p50'])}",
        f"go from {ms(waits['10']['p99'])} with 10 to {ms(waits['16']['p99'])} with 16",
        f"20 ms away, a call takes {ms(calls['0.02']['reused'])} on an open connection and"
        f" {ms(calls['0.02']['new'])} on one of its own",
        f"on the same machine, {ms(calls['0.0']['reused'])} and {ms(calls['0.0']['new'])}",
        f"each thread has {min(fair)} to {max(fair)} turns",
        f"four have {round(barging[3], -2):,} each and the other sixteen one each",
    ):
        assert told in page
    assert set(barging[4:]) == {1}
    for name in re.findall(r"pool-size/[\w-]+\.svg", page):
        assert (ROOT / "docs" / name).exists()


# --- what is public


@pytest.mark.parametrize("kind", ["ConnectionPool", "PooledConnection"])
def test_help_dir_and_the_reference_show_the_same_names(echo: EchoServer, kind: str) -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    found = re.search(rf"autoclass:: jetsocket\.{kind}\n +:members: ([\w, \n]+?)\n(?:\.\.|```)", text)
    assert found is not None
    documented = {name for name in re.findall(r"\w+", found[1]) if not name.startswith("_")}
    cls = getattr(jetsocket, kind)
    helped = {
        each.name for each in inspect.classify_class_attrs(cls) if pydoc.visiblename(each.name, obj=cls)
    }
    assert {name for name in helped if not name.startswith("__")} == documented
    with ConnectionPool(base_uri=echo.uri) as pool, pool.acquire("/") as conn:
        shown = dir(pool if kind == "ConnectionPool" else conn)
        assert {name for name in shown if not name.startswith("__")} == documented
        assert {"__enter__", "__exit__", "__repr__"} <= set(shown)  # which specs of mocks are made of


# --- the house


def test_the_picture_of_the_floors_is_of_this_house() -> None:
    found = importlib.util.spec_from_file_location("floors", ROOT / "docs" / "floors.py")
    assert found is not None and found.loader is not None
    floors = importlib.util.module_from_spec(found)
    found.loader.exec_module(floors)
    assert floors.PICTURE.read_text(encoding="utf-8") == floors.draw(), "run: python docs/floors.py"
    drawn = {box.removeprefix("· ").removesuffix("/") for _, boxes in floors.floors() for box in boxes}
    modules = [path for path in (ROOT / "jetsocket").rglob("*.py") if path.name != "__init__.py"]
    assert drawn >= {path.stem for path in modules if path.parent.name in ("jetsocket", "state", "wire")}


def test_files_that_the_pages_name_exist() -> None:
    """In the table that says where something is decided, and in the one that says where it is tested."""
    sources = {path: path.read_text(encoding="utf-8") for path in (ROOT / "jetsocket").rglob("*.py")}
    text = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    wheres = _wheres(text)
    assert len(wheres) > 20
    for name in re.findall(r"`([\w/]+)`", "\n".join(wheres)):
        path = ROOT / "jetsocket" / name
        is_function = any(f"def {name}(" in source for source in sources.values())
        assert path.with_suffix(".py") in sources or path.is_dir() or is_function or name == "check", name
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:tests/)?(?:[a-z]+/)?test_\w+\.py)`", page):
        assert any((ROOT / folder / name).exists() for folder in (".", "tests", "tests/faults")), name


def _wheres(text: str) -> list[str]:
    """The second column of the table that says where something is decided."""
    table = re.search(r"^\| where is it decided[^\n]*\n\|[-|]+\n((?:\|[^\n]*\n)+)", text, re.MULTILINE)
    return [] if table is None else [row.rsplit("|", 2)[1] for row in table[1].splitlines()]
