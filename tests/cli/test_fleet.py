"""`jetsocket fleet`: what it prints, and how it ends. With a real Redis: tests/integration/test_fleet.py."""

from __future__ import annotations

import builtins
import shlex
import socket
import sys
from typing import Any

import pytest

from jetsocket.cli.parsers import EXAMPLES
from tests.cli.terminal import run
from tests.servers import RawServer, refusing_port

pytest.importorskip("redis")

from redis.exceptions import AuthenticationError, ClusterDownError, NoPermissionError, ResponseError

from jetsocket.contrib import redis as room
from jetsocket.contrib.redis import FleetStatus, ProcessStatus

URL = "redis://user:secret@localhost:6379/0"


def process(id: str, held: int, *, waits: bool = False, label: str = "host:17") -> ProcessStatus:
    return ProcessStatus(id, label, held, waits, limit=20, lease=10.0, seen=1.5)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What Redis says, and what it was asked."""
    processes = (process("ab12", 5), process("PROCESS", 3, waits=True, label="other:4"))
    world: dict[str, Any] = {"status": FleetStatus("binance", 20, 8, 1, 99, processes), "forgotten": []}

    def status(url: str, name: str) -> FleetStatus:
        world["asked"] = url, name
        if isinstance(world["status"], Exception):
            raise world["status"]
        found = world["status"]
        assert isinstance(found, FleetStatus)
        return found

    def forget(url: str, name: str, process: str) -> int:
        world["forgotten"].append((url, name, process))
        return 5

    monkeypatch.setattr(room, "status", status)
    monkeypatch.setattr(room, "forget", forget)
    return world


def test_status_is_a_line_and_a_table(fleet: dict[str, Any]) -> None:
    ran = run("fleet", "status", URL, "binance")
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines == [
        "binance: 8 of 20 slots are held, by 2 processes, of which 1 wait",
        "process  where    held  limit  waits  heard of",
        "ab12     host:17  5     20     no     1.50 s ago",
        "PROCESS  other:4  3     20     yes    1.50 s ago",
    ]
    assert fleet["asked"] == (URL, "binance")


def test_status_in_json(fleet: dict[str, Any]) -> None:
    ran = run("fleet", "--json", "status", URL, "binance")
    assert ran.records == [
        {"type": "fleet", "name": "binance", "limit": 20, "held": 8, "waiting": 1, "fence": 99},
        {
            "type": "process", "process": "ab12", "where": "host:17", "held": 5, "waits": False,
            "limit": 20, "lease": 10.0, "heard": 1.5,
        },
        {
            "type": "process", "process": "PROCESS", "where": "other:4", "held": 3, "waits": True,
            "limit": 20, "lease": 10.0, "heard": 1.5,
        },
    ]  # fmt: skip


def test_a_group_with_nobody_in_it(fleet: dict[str, Any]) -> None:
    fleet["status"] = FleetStatus("binance", None, 2, 0, 0, ())
    ran = run("fleet", "status", URL, "binance")
    assert (ran.code, ran.lines) == (0, ["binance: no process is alive, 2 slots are held"])
    assert run("fleet", "status", URL, "binance", "--json").records[0]["limit"] is None


def test_what_others_have_written_moves_no_cursor(fleet: dict[str, Any]) -> None:
    fleet["status"] = FleetStatus("b", 1, 1, 0, 0, (process("\x1b[2Jab", 1, label="h\u202e:1"),))
    ran = run("fleet", "status", URL, "b", on_screen=True)
    assert "\x1b[2J" not in ran.out.decode() and "\u202e" not in ran.out.decode()


def test_forget(fleet: dict[str, Any]) -> None:
    ran = run("fleet", "forget", URL, "binance", "ab12")
    assert (ran.code, ran.lines) == (0, ["process ab12 had 5 slots, which are free now"])
    ran = run("fleet", "forget", URL, "binance", "ab12", "--json")
    assert ran.records == [{"type": "forgotten", "process": "ab12", "slots": 5}]
    assert fleet["forgotten"] == [(URL, "binance", "ab12")] * 2


def test_a_process_that_is_not_there_is_exit_1(fleet: dict[str, Any]) -> None:
    ran = run("fleet", "forget", URL, "binance", "host:17")
    assert (ran.code, ran.lines, fleet["forgotten"]) == (1, [], [])
    assert "group 'binance' has no process 'host:17'" in ran.err
    assert "jetsocket fleet status shows those that it has" in ran.err


@pytest.mark.parametrize("line", EXAMPLES["fleet"])
def test_the_examples_of_help_run(line: str, fleet: dict[str, Any]) -> None:
    ran = run(*shlex.split(line)[1:])
    assert (ran.code, ran.err) == (0, "")
    assert ran.out


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "what is fleet to do?"),
        (["look", URL, "n"], "fleet does not know 'look'"),
        (["status"], "fleet status takes the URL of a Redis and the name of a group"),
        (["status", URL, ""], "fleet status takes"),
        (["status", URL, "n", "x"], "fleet status takes"),
        (["forget", URL, "n"], "fleet forget takes the URL of a Redis, the name of a group and a process"),
        (["status", "ws://localhost", "n"], "that is no URL of a Redis"),
        (["status", "redis://localhost:port", "n"], "that is no URL of a Redis"),
        (["status", URL, "a{b}"], "name must be printable, not empty, and without braces, not 'a{b}'"),
        (["forget", URL, "a{b}", "p"], "name must be printable"),
        (["status", "--table", URL, "n"], "there is no option --table"),
    ],
)
def test_wrong_usage_is_exit_2(given: list[str], told: str) -> None:
    ran = run("fleet", *given)
    assert (ran.code, ran.lines) == (2, [])
    assert told in ran.err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (AuthenticationError("invalid username-password pair"), 4, "refuses: invalid username-password pair"),
        (NoPermissionError("this user has no permissions"), 4, "refuses: this user has no permissions"),
        (ResponseError("unknown command"), 4, "refuses: unknown command"),
        (ClusterDownError("the cluster is down"), 4, "refuses: "),
        (OSError(104, "Connection reset by peer"), 3, "is not there: "),
        (TimeoutError("timed out"), 5, "does not answer"),
    ],
)
def test_what_redis_says_against_it_is_an_exit_code(
    fleet: dict[str, Any], error: Exception, code: int, told: str
) -> None:
    fleet["status"] = error
    ran = run("fleet", "status", URL, "binance", "--json")
    assert (ran.code, ran.error["exit"]) == (code, code)
    assert f"Redis at localhost:6379 {told}" in ran.error["cause"]
    assert ran.error["remedy"]
    assert "secret" not in ran.out.decode()


def test_where_there_is_no_redis_it_is_exit_3() -> None:
    with refusing_port() as port:
        ran = run("fleet", "status", f"redis://127.0.0.1:{port}", "binance")
    assert (ran.code, ran.lines) == (3, [])
    assert f"Redis at 127.0.0.1:{port} is not there: " in ran.err


def test_where_something_else_is_it_is_an_error_too() -> None:
    def talk(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with RawServer(talk) as server:
        ran = run("fleet", "status", f"redis://127.0.0.1:{server.port}", "binance")
    assert ran.code in (3, 4)
    assert f"Redis at 127.0.0.1:{server.port} " in ran.err


def test_without_the_extra_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "redis":
            raise ImportError("No module named 'redis'")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith(("redis", "jetsocket.contrib.redis"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", refuse)
    ran = run("fleet", "status", URL, "binance")
    assert ran.code == 2
    assert 'jetsocket.contrib.redis needs redis: pip install "jetsocket[redis]"' in ran.err
