"""`jetsocket bench`: the figures are those of what was measured, and thresholds make the exit code.

Also tests: `load`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from time import sleep
from xml.etree import ElementTree

import pytest

from jetsocket.cli.load import Load, due_at
from jetsocket.clock import monotonic
from jetsocket.exceptions import TimeoutError
from tests.cli.terminal import run
from tests.servers import Connection, EchoServer, refusing_port, wait_until


def test_a_table_of_latencies(echo: EchoServer) -> None:
    ran = run("bench", echo.uri, "hi", "-n", "60", "--callers", "4", "--connections", "2")
    assert (ran.code, ran.err) == (0, "")
    table = dict(line.split(None, 1) for line in ran.lines if line.startswith("  "))
    assert (table["requests"].strip(), table["failed"].strip()) == ("60", "0")
    assert set(table) == {"requests", "failed", "replies/s", "min", "avg", "p50", "p90", "p95", "p99", "max"}
    assert (echo.messages, echo.opened, echo.most_open) == (60, 2, 2)
    wait_until(lambda: not echo.open_now)


def test_what_json_shows(echo: EchoServer) -> None:
    (record,) = run("bench", echo.uri, "-n", "20", "--json").records
    assert (record["type"], record["requests"], record["errors"], record["failed"]) == ("summary", 20, 0, [])
    assert 0 < record["min"] <= record["p50"] <= record["p90"] <= record["p99"] <= record["max"]
    assert record["rate"] == pytest.approx(20 / record["seconds"], rel=0.01)


def test_it_ends_in_time(echo: EchoServer) -> None:
    (record,) = run("bench", echo.uri, "--for", "300ms", "--json", "--connections", "2").records
    assert record["requests"] == echo.messages > 2
    assert record["seconds"] > 0.2


def test_an_open_model_asks_at_its_rate(echo: EchoServer) -> None:
    (record,) = run("bench", echo.uri, "-n", "20", "-q", "50", "--callers", "4", "--json").records
    assert (record["requests"], record["unmade"]) == (20, 0)
    assert record["seconds"] >= 19 / 50


def test_a_stall_is_charged_to_all_that_were_due_meanwhile(echo_server: Callable[..., EchoServer]) -> None:
    """One connection, which stalls once for 0.4 s: at 50/s, twenty requests have had to wait for it."""

    def stall(conn: Connection) -> None:
        for number, message in enumerate(conn):
            if number == 5:
                conn.echo_server.stopping.wait(0.4)
            conn.send(message)

    uri = echo_server(stall).uri
    (record,) = run(
        "bench", uri, "-n", "40", "-q", "50", "--connections", "1", "--callers", "1", "--json"
    ).records
    assert record["max"] >= 0.38
    assert record["p90"] >= 0.25  # of a closed model, 39 of 40 would look fast
    assert record["behind"] >= 0.3


def test_what_was_due_and_never_made_is_told(echo: EchoServer) -> None:
    uri = echo.uri_for("/late")
    slow = '{"delay": 0.15}'
    ran = run("bench", uri, slow, "--for", "400ms", "-q", "100", "--connections", "1", "--json")
    record = ran.records[0]
    assert record["requests"] + record["unmade"] == 40
    assert record["unmade"] >= 30


def test_thresholds(echo: EchoServer) -> None:
    kept = run(
        "bench",
        echo.uri,
        "-n",
        "5",
        "--fail-if",
        "p99>50s",
        "--fail-if",
        "errors>0",
        "--fail-if",
        "rate<0.01",
    )
    assert (kept.code, kept.err) == (0, "")
    broken = run(
        "bench",
        echo.uri,
        "-n",
        "5",
        "-q",
        "1000",
        "--quiet",
        "--fail-if",
        "min>1us",
        "--fail-if",
        "errors<1%",
    )
    assert broken.code == 1
    assert "threshold min>1us: min is " in broken.err and "threshold errors<1%: errors is 0 %" in broken.err
    in_json = run("bench", echo.uri, "-n", "5", "--json", "--fail-if", "min>1us")
    assert [record["type"] for record in in_json.records] == ["summary", "error"]
    assert in_json.error["exit"] == in_json.code == 1


@pytest.mark.parametrize(
    "wrong",
    [
        ["--fail-if", "p99>50"], ["--fail-if", "p99"], ["--plot", "/nonexistent/x.svg"], ["a", "b"],
        ["-q", "0"], ["--header-file", "/nonexistent"], ["--base64", "x"],
    ],
)  # fmt: skip
def test_what_is_wrong_is_exit_2_before_anything_is_opened(echo: EchoServer, wrong: list[str]) -> None:
    ran = run("bench", echo.uri, "-n", "1", *wrong)
    assert (ran.code, ran.out, echo.opened) == (2, b"", 0)


def test_errors_are_counted_by_their_cause(echo: EchoServer) -> None:
    ran = run("bench", echo.uri_for("/silent"), "-n", "3", "-t", "50ms", "--connections", "3")
    assert ran.code == 5  # nothing was replied to
    assert "3 ×  no whole message came in time" in ran.err and "→" in ran.err
    (record, error) = run("bench", echo.uri_for("/silent"), "-n", "2", "-t", "50ms", "--json").records
    assert record["causes"][0]["count"] == record["errors"] == 2 and record["p99"] is None
    assert error["exit"] == 5


def test_some_that_fail_are_no_failure_without_a_threshold(echo_server: Callable[..., EchoServer]) -> None:
    lock, seen = threading.Lock(), [0]

    def unreliable(conn: Connection) -> None:
        for message in conn:
            with lock:
                seen[0] += 1
                number = seen[0]
            if number == 3:
                return
            conn.send(message)

    server = echo_server(unreliable)
    arguments = ("bench", server.uri, "-n", "10", "--connections", "2")
    assert run(*arguments).code == 0
    seen[0] = 0
    assert run(*arguments, "--fail-if", "errors>0").code == 1


def test_a_server_that_is_not_there_fails_at_once() -> None:
    with refusing_port() as port:
        ran = run("bench", f"ws://127.0.0.1:{port}", "-n", "1000000")
    assert ran.code == 3 and ran.out == b""


def test_fewer_connections_than_wanted(echo_server: Callable[..., EchoServer]) -> None:
    places = iter([None])

    def one_place(conn: Connection, request: object) -> object:
        return next(places, conn.respond(503, "full\n"))

    server = echo_server(process_request=one_place)
    ran = run("bench", server.uri, "-n", "6", "--connections", "2")
    assert ran.code == 0
    assert "only 1 of 2 connections" in ran.err and "503" in ran.err
    assert server.messages == 6


def test_a_picture(echo: EchoServer, tmp_path: Path) -> None:
    path = tmp_path / "latency.svg"
    assert run("bench", echo.uri, "-n", "20", "--plot", str(path), "--quiet").code == 0
    assert "20 replies" in ElementTree.parse(path).getroot().find("{*}text[2]").text  # type: ignore[union-attr, operator]  # it is there


def test_on_a_terminal_there_is_a_live_bar(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ran = run("bench", echo.uri, "--for", "300ms", on_screen=True)
    assert ran.code == 0
    assert "requests" in ran.err and "━" in ran.err
    assert "━" not in ran.out.decode() and "p99" in ran.out.decode()
    monkeypatch.setitem(__import__("sys").modules, "rich.progress", None)
    assert run("bench", echo.uri, "-n", "5", on_screen=True).err == ""


# --- the load


def test_when_requests_are_due() -> None:
    assert [due_at(number, 10.0, 4.0) for number in range(3)] == [10.0, 10.25, 10.5]
    assert due_at(7, 10.0, None) == 10.0


def test_no_more_is_under_way_than_there_are_callers() -> None:
    lock, now, most = threading.Lock(), [0], [0]

    def ask() -> None:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        sleep(0.005)
        with lock:
            now[0] -= 1

    load = Load(ask, callers=3, requests=30, duration=None, rate=10_000)
    load.start()
    assert load.is_over_within(10)
    assert (most[0], load.made, load.failed) == (3, 30, 0)
    assert load.share_done() == 1


def test_a_load_that_is_stopped_begins_nothing_more() -> None:
    load = Load(lambda: sleep(0.001), callers=2, requests=None, duration=None, rate=None)
    load.start()
    wait_until(lambda: load.made > 3)
    load.stop()
    assert load.is_over_within(5)
    made = load.made
    assert load.share_done() < 1 and load.made == made and len(load.recent(2)) == 2


def test_errors_are_outcomes_and_have_no_latency() -> None:
    def fail() -> None:
        raise TimeoutError("too late; allow more", "recv", 1)

    load = Load(fail, callers=1, requests=3, duration=None, rate=None)
    began = monotonic()
    load.start()
    assert load.is_over_within(5)
    ((outcome, count),) = load.errors.items()
    assert (outcome.exit, outcome.cause, count, len(load.times)) == (5, "too late", 3, 0)
    assert load.took <= monotonic() - began


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_ours_ends_it() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    load = Load(fail, callers=2, requests=None, duration=None, rate=None)
    load.start()
    assert load.is_over_within(5)
    assert isinstance(load.failure, ZeroDivisionError)


def test_at_ctrl_c_what_it_cuts_off_is_no_failure_of_the_server(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(load: Load, timeout: float) -> bool:
        wait_until(lambda: echo.messages == 2)
        raise KeyboardInterrupt

    monkeypatch.setattr(Load, "is_over_within", interrupted)
    ran = run("bench", echo.uri_for("/silent"), "--connections", "2", "--for", "60s")
    assert (ran.code, ran.err) == (130, "")
    assert b"failed                 0" in ran.out
