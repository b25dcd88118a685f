"""The demo, run as a user runs it, and what it says when a promise breaks.

Also tests: `demo_work`, `demo_process`.
"""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from jetsocket.cli import demo, demo_work
from jetsocket.stats import PoolStats
from tests.servers import EchoServer, refusing_port

TINY = ("--calls", "200", "--threads", "12", "--connections", "3")
STATS = PoolStats(3, 0, 3, 0, 0, 0)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jetsocket", "demo", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture(scope="module")
def done() -> subprocess.CompletedProcess[str]:
    """A short demo, its output in a pipe."""
    return run(*TINY)


def figure(output: str, what: str) -> int:
    found = re.search(rf"^\s*{what}\s+([\d,]+)", output, re.MULTILINE)
    assert found, f"no {what!r} in:\n{output}"
    return int(found[1].replace(",", ""))


@pytest.mark.slow
def test_it_shows_that_every_promise_is_kept(done: subprocess.CompletedProcess[str]) -> None:
    assert (done.returncode, done.stderr) == (0, "")
    assert figure(done.stdout, "calls made") == 200
    assert figure(done.stdout, "wrong replies") == 0
    assert figure(done.stdout, "calls failed while the server was up") == 0
    assert 1 <= figure(done.stdout, "most open at once, as the server counted") <= 3
    assert figure(done.stdout, "connections opened, as the server counted") > 3
    assert figure(done.stdout, "reuses of a connection") > 0
    assert figure(done.stdout, "calls failed and retried during the restart") > 0
    for line in ("the server is stopped", "the server is back", "wait for a connection, p50", "p99"):
        assert line in done.stdout


@pytest.mark.slow
def test_where_there_is_no_terminal_the_progress_is_plain_lines(
    done: subprocess.CompletedProcess[str],
) -> None:
    assert "\x1b" not in done.stdout and "\r" not in done.stdout
    assert "of 200 calls, 0 wrong" in done.stdout


@pytest.mark.slow
def test_on_a_terminal_there_is_a_progress_bar() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    assert demo.run(demo.Plan(calls=64, threads=4, connections=2), console) == 0
    assert "━" in screen.getvalue() and "64/64" in screen.getvalue()


@pytest.mark.slow
def test_a_server_of_the_users(echo: EchoServer) -> None:
    done = run("--uri", echo.uri_for("/echo"), "--calls", "60", "--threads", "6", "--connections", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert "send every message back" in done.stdout
    assert "as the server counted" not in done.stdout  # nobody knows
    assert figure(done.stdout, "calls made") == 60
    assert (echo.messages, echo.most_open) == (60, 2)


@pytest.mark.slow
def test_wrong_replies_break_the_promise(echo: EchoServer) -> None:
    done = run("--uri", echo.uri_for("/ids"), "--calls", "4", "--threads", "2")
    assert done.returncode == 1
    assert figure(done.stdout, "wrong replies") == 4
    assert "Not as promised: wrong replies." in done.stdout


def test_calls_that_never_succeed_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_work, "_PATIENCE", 0.3)
    screen = io.StringIO()
    with refusing_port() as port:
        plan = demo.Plan(calls=4, threads=2, uri=f"ws://127.0.0.1:{port}/?token=secret")
        assert demo.run(plan, Console(file=screen, width=100)) == 1
    assert "Given up: a call failed for 0.3 s" in screen.getvalue()
    assert "secret" not in screen.getvalue()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is another thing there")
@pytest.mark.parametrize(("sent", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_ctrl_c_and_sigterm_end_it_cleanly(sent: str, code: int) -> None:
    command = [sys.executable, "-u", "-m", "jetsocket", "demo", "--calls", "100000"]
    # A process group of its own, so that its server gets the signal too, as from a terminal.
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert "threads make" in process.stdout.readline()
        os.killpg(process.pid, getattr(signal, sent))
        output, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, errors) == (code, "")
    assert output.endswith("Interrupted.\n")


@pytest.mark.parametrize("name", ["rich", "trustme", "websockets"])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert demo.missing_extra() is None
    monkeypatch.setattr(demo, "_EXTRA", (name, "no_such_package_at_all"))
    message = demo.missing_extra()
    assert message is not None
    assert 'pip install "jetsocket[demo]"' in message
    assert "no_such_package_at_all" in message and name not in message


# --- what the table says of figures that are not as promised


def broken(seen: demo.Sighting | None = None, **tally: Any) -> list[str]:
    plan = demo.Plan(calls=10, connections=8)
    figures = demo.Tally(**{"made": 10, **tally})
    lines = demo.report(plan, figures, STATS, seen or demo.Sighting(opened=9, most_open=8))
    return [line.what for line in lines if not line.kept]


def test_what_is_as_promised() -> None:
    assert broken(retried={5}) == []


def test_what_is_not_as_promised() -> None:
    assert broken(made=9) == ["calls made"]
    assert broken(wrong=1) == ["wrong replies"]
    assert broken(retried={5}, unexplained={5}) == ["calls failed while the server was up"]
    assert broken(demo.Sighting(9, 9)) == ["most open at once, as the server counted"]
    assert broken(demo.Sighting(0, 0)) == ["most open at once, as the server counted"]


@pytest.mark.parametrize(
    ("began", "ended", "explained"),
    [(1, 2, False), (1, 3.5, True), (3.5, 4, True), (3.5, 7, True), (6, 7, False), (1, 7, True)],
)
def test_an_outage_explains_what_overlaps_it(began: float, ended: float, explained: bool) -> None:
    assert demo.Outage(began=3, ended=5).explains(began, ended) is explained


def test_half_of_the_calls_go_over_tls_and_each_path_gets_as_many() -> None:
    uris = [f"{scheme}://h/{path}" for path in "abcd" for scheme in ("ws", "wss")]
    asked = [demo.uri_of(call, 4000, uris) for call in range(1, 4001)]
    assert {uri: asked.count(uri) for uri in uris} == dict.fromkeys(uris, 500)
    assert {demo.uri_of(call, 1, uris[:1]) for call in (1, 2, 3)} == {uris[0]}
