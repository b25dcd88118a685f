"""`jetsocket ping`: how long it takes, and what is lost."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from jetsocket.cli.ping import Tally
from jetsocket.cli.steps import Stepped
from tests.cli.terminal import run
from tests.servers import EchoServer, RawServer, upgrade, wait_until


def test_connection_pongs_and_summary(echo: EchoServer) -> None:
    ran = run("ping", echo.uri, "-c", "3", "-i", "10ms")
    assert (ran.code, ran.err) == (0, "")
    first, *pongs, last = ran.lines
    assert first.startswith(f"{echo.uri}/: dns ") and ", tcp " in first and ", upgrade " in first
    assert [line.split("=")[1].split()[0] for line in pongs] == ["1", "2", "3"]
    assert last.startswith("3 pings, 3 pongs, 0 % lost; min/avg/p50/p99/max ")
    assert (echo.opened, echo.pings) == (1, 3)
    wait_until(lambda: not echo.open_now)


def test_what_json_shows(echo: EchoServer) -> None:
    records = run("ping", echo.uri, "-c", "2", "-i", "1ms", "--json").records
    assert [record["type"] for record in records] == ["step", "step", "step", "pong", "pong", "summary"]
    assert [record["name"] for record in records[:3]] == ["dns", "tcp", "upgrade"]
    summary = records[-1]
    assert (summary["sent"], summary["received"], summary["loss"]) == (2, 2, 0)
    assert 0 < summary["min"] <= summary["avg"] <= summary["max"] < 60
    assert {record["seconds"] for record in records[3:5]} == {summary["min"], summary["max"]}


def deaf(sock: socket.socket) -> None:
    """Accept the upgrade, and answer nothing any more."""
    upgrade(sock)
    while sock.recv(4096):
        pass


@pytest.mark.slow
def test_no_pong_at_all_is_exit_5(raw_server: Callable[..., RawServer]) -> None:
    ran = run("ping", raw_server(deaf).uri, "-c", "2", "-i", "1ms", "-t", "50ms")
    assert ran.code == 5
    assert ran.lines[1:] == [
        "seq=1 no pong within 50.0 ms",
        "seq=2 no pong within 50.0 ms",
        "2 pings, 0 pongs, 100 % lost",
    ]
    assert "no pong came to 2 pings" in ran.err
    ran = run("ping", raw_server(deaf).uri, "-c", "1", "-t", "50ms", "--json")
    assert [record["type"] for record in ran.records][-3:] == ["pong", "summary", "error"]
    assert ran.records[-2]["p99"] is None and ran.error["exit"] == 5


def test_what_comes_meanwhile_is_read(echo_server: Callable[..., EchoServer]) -> None:
    server = echo_server(ping_interval=0.02, ping_timeout=0.5)
    assert run("ping", server.uri_for("/push?every=0.001"), "-c", "2", "-i", "700ms").code == 0


def test_a_server_that_closes(echo_server: Callable[..., EchoServer]) -> None:
    ran = run("ping", echo_server(lambda conn: conn.close(4000, "enough")).uri, "-i", "10ms")
    assert ran.code == 6 and "4000" in ran.err
    assert "lost" in ran.lines[-1]


def test_arguments_that_make_no_sense(echo: EchoServer) -> None:
    assert run("ping", echo.uri, "x").code == 2
    assert run("ping", echo.uri, "-c", "0").code == 2
    assert echo.opened == 0


def test_after_ctrl_c_there_is_a_summary(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    measure, made = Stepped.measure_latency, [0]

    def interrupted(ws: Stepped, *args: float) -> float:
        made[0] += 1
        if made[0] == 3:
            raise KeyboardInterrupt
        return measure(ws, *args)

    monkeypatch.setattr(Stepped, "measure_latency", interrupted)
    ran = run("ping", echo.uri, "-i", "1ms")
    assert (ran.code, ran.err) == (130, "")
    assert ran.lines[-1].startswith("3 pings, 2 pongs, 33 % lost; min/avg/p50/p99/max ")
    wait_until(lambda: not echo.open_now)


def test_a_tally() -> None:
    tally = Tally(4, [0.003, 0.001, 0.002])
    assert tally.shown() == (
        "4 pings, 3 pongs, 25 % lost; min/avg/p50/p99/max 1.00 ms / 2.00 ms / 2.00 ms / 3.00 ms / 3.00 ms"
    )
    assert tally.record()["loss"] == 0.25
    assert Tally().loss == 0
