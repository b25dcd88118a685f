"""`jetsocket serve`: it echoes, or does what a script says, until Ctrl-C.

Also tests: `served`.
"""

from __future__ import annotations

import io
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.cli import serve
from jetsocket.cli.main import main
from jetsocket.cli.output import Terminal
from tests.cli.terminal import run
from tests.scripts import ROOT
from tests.servers import wait_until


@dataclass
class Served:
    """A `serve` that runs in a thread of this process."""

    out: io.BytesIO = field(default_factory=io.BytesIO)
    err: io.StringIO = field(default_factory=io.StringIO)
    code: int | None = None

    @property
    def lines(self) -> list[str]:
        return self.out.getvalue().decode().splitlines()

    @property
    def uri(self) -> str:
        return self.lines[0]


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Serve while a block runs; its end is as Ctrl-C is."""
    stop = threading.Event()

    def until_stopped(terminal: Terminal) -> None:
        stop.wait()
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "wait_for_ever", until_stopped)

    @contextmanager
    def begin(*arguments: str) -> Iterator[Served]:
        served = Served()

        def run_it() -> None:
            served.code = main(["serve", *arguments], io.BytesIO(), served.out, served.err)

        thread = threading.Thread(target=run_it)
        thread.start()
        try:
            wait_until(
                lambda: served.err.getvalue().endswith("Ctrl-C ends it\n") or not thread.is_alive(), 20
            )
            yield served
        finally:
            stop.set()
            thread.join()
            stop.clear()

    return begin


def test_it_sends_everything_back_as_it_is(serving: Callable[..., Any]) -> None:
    with serving() as served, ConnectionPool(base_uri=served.uri) as pool, pool.acquire("/any") as conn:
        for payload in ('{"id":1,"a": [1.50]}', "text", b"\0\xff{}", ""):
            conn.send_raw(payload)
            assert conn.recv_raw(5) == payload
    assert served.code == 130
    assert "echoes every message" in served.err.getvalue()


def test_tls_with_an_authority_of_its_own(serving: Callable[..., Any]) -> None:
    with serving("--tls") as served:
        uri, authority = served.lines
        assert uri.startswith("wss://localhost:")
        assert run("call", uri, "hello", "--ca", authority).out == b"hello\n"
        assert f"jetsocket call {uri} hello --ca {authority}" in served.err.getvalue()
    assert not Path(authority).exists()


SCRIPT = """
server.on({"method": "height"}).reply({"result": 7})
server.on({"method": "once"}).reply({"result": 1}).times(1)
server.script("/feed").expect({"subscribe": "x"}).send("tick").close(1000)
"""


def test_a_script_says_what_to_do(serving: Callable[..., Any], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    with serving(str(script)) as served:
        assert run("call", served.uri, "--jsonrpc", "height").out == b"7\n"
        ran = run("listen", f"{served.uri}/feed", "--send", '{"subscribe": "x"}')
        assert (ran.code, ran.out) == (0, b"tick\n")
        for _ in range(2):  # what is unexpected is told, and ends neither the server nor the connection
            with ConnectionPool(base_uri=served.uri) as pool, pool.acquire("/") as conn:
                conn.send({"id": 1, "method": "nope\x1b"})
                conn.send({"id": 2, "method": "height"})
                assert conn.recv(5) == {"id": 2, "result": 7}
    assert served.code == 130
    told = served.err.getvalue()
    assert told.count("a message came to / that no rule matches") == 2
    assert "\x1b" not in told


def test_verbose_tells_each_message(serving: Callable[..., Any]) -> None:
    with serving("-v") as served:
        run("call", f"{served.uri}/a", "hello\x1b")
        wait_until(lambda: "closed" in served.err.getvalue())
    told = served.err.getvalue()
    assert "/a: connected" in told and "/a: 'hello\\x1b'" in told and "/a: closed with 100" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("server.on(", "is no Python"),
        ("server.on({}).nope()", "line 1: AttributeError: 'Rule' object has no attribute 'nope'"),
        ("raise OSError('x')", "line 1: OSError: x"),
    ],
)
def test_a_script_that_fails_is_exit_2(tmp_path: Path, text: str, told: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(text, encoding="utf-8")
    ran = run("serve", str(script))
    assert ran.code == 2 and told in ran.err and "Traceback" not in ran.err


def test_what_can_not_be_served(tmp_path: Path) -> None:
    assert run("serve", str(tmp_path / "none.py")).code == 2
    assert run("serve", "a.py", "b.py").code == 2
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ran = run("serve", "--port", str(taken.getsockname()[1]))
    assert ran.code == 2 and "can't listen at" in ran.err and "another --port" in ran.err
    for host in ("nope.invalid", "192.0.2.1"):  # no name; an address of no machine (RFC 5737)
        ran = run("serve", "--host", host)
        assert ran.code == 2 and "choose another --host" in ran.err


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jetsocket.testing.hub", None)
    monkeypatch.setitem(sys.modules, "websockets", None)
    for name in list(sys.modules):
        if name.startswith(("websockets.", "jetsocket.testing.hub", "jetsocket.testing.endpoint")):
            monkeypatch.setitem(sys.modules, name, None)
    ran = run("serve")
    assert ran.code == 2 and "pip install" in ran.err


@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is another thing there")
def test_as_a_process_it_prints_its_address_first_and_ends_at_ctrl_c() -> None:
    command = [sys.executable, "-m", "jetsocket", "serve", "-q"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        uri = process.stdout.readline().decode().strip()
        assert run("call", uri, "hello").out == b"hello\n"
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
