"""What `manage.py jetsocket` and `flask jetsocket` print, and how they end."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.contrib import commands
from jetsocket.contrib.status import publish, read
from jetsocket.mapping import arguments_of
from tests.servers import Connection, EchoServer, refusing_port, wait_until

SECRET = "hunter2"


@pytest.fixture
def pool(echo: EchoServer) -> Iterator[ConnectionPool[Any]]:
    with ConnectionPool(ConnectionPoolConfig(acquire_timeout=5), base_uri=echo.uri) as made:
        yield made


def test_status_prints_the_settings_in_force_without_secrets() -> None:
    environ = {
        "J_BASE_URI": f"wss://desk:{SECRET}@stream.example.com/v1?token={SECRET}",
        "J_MAX_CONNECTIONS": "7",
        "J_OPTIONS": json.dumps({"cookie": SECRET, "connect_timeout": 3, "extra_headers": {"X-Key": SECRET}}),
        "J_CORRELATION": "jetsocket.correlation.JsonRpc",
        "J_CONFIGURE": "os.path.join",
    }
    out = io.StringIO()
    assert commands.status({"nodes": arguments_of(environ, "J"), "plain": {}}, out) == 0
    nodes, plain = out.getvalue().split("plain\n")
    told = dict(line.split(maxsplit=1) for line in nodes.splitlines()[1:])
    assert told["base_uri"].startswith("wss://stream.example.com/v1")
    assert told["max_connections"] == "7"
    assert told["correlation"] == "JsonRpc"
    assert told["configure"] == "join"
    assert "connect_timeout=3.0" in told["options"] and "X-Key" in told["options"]
    assert set(told) > {field.name for field in fields(ConnectionPoolConfig)}
    assert "base_uri" in plain
    assert SECRET not in out.getvalue()


def test_status_says_when_there_is_nothing() -> None:
    out = io.StringIO()
    assert commands.status({}, out) == 0
    assert out.getvalue() == "no pool is configured\n"


def test_check_tells_which_server_answers(pool: ConnectionPool[Any], echo: EchoServer) -> None:
    out = io.StringIO()
    with refusing_port() as port, ConnectionPool(base_uri=f"ws://127.0.0.1:{port}/") as lost:
        assert commands.check({"lost": lost, "here": pool}, out) == 1
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("FAIL  lost: ") and str(port) in lines[0]
    assert lines[1].startswith(f"ok    here: {echo.uri}")
    wait_until(lambda: echo.pings == 1)
    assert commands.check({"here": pool}, out, "/there") == 0
    assert echo.paths[-1] == "/there"


def test_check_of_a_pool_without_a_base_uri_fails() -> None:
    out = io.StringIO()
    with ConnectionPool() as pool:
        assert commands.check({"plain": pool}, out) == 1
    assert "needs base_uri" in out.getvalue()


@pytest.mark.parametrize(
    ("message", "printed"),
    [('{"id": 1, "é": "ü"}', '{"id": 1, "é": "ü"}'), ('"hi\\u009b2J"', "hi?2J"), ("[1]", "[1]")],
)
def test_call_prints_the_reply(pool: ConnectionPool[Any], message: str, printed: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert commands.call(pool, "/", message, out, err) == 0
    assert (out.getvalue(), err.getvalue()) == (f"{printed}\n", "")


@pytest.mark.parametrize("message", ["ping me", "NaN", "[" * 100_000])
def test_what_is_no_json_goes_out_as_text(message: str) -> None:
    def answer(conn: Connection) -> None:
        for text in conn:
            conn.send(json.dumps({"got": text}))

    out = io.StringIO()
    with EchoServer(answer) as server, ConnectionPool(base_uri=server.uri) as pool:
        assert commands.call(pool, "/", message, out, out) == 0
    assert out.getvalue() == json.dumps({"got": message}) + "\n"


def test_a_reply_that_is_no_json_is_shown_all_the_same(echo: EchoServer) -> None:
    out = io.StringIO()
    options = {"deserializer": lambda text: {1, text}}
    with ConnectionPool(base_uri=echo.uri, manager_kwargs=options) as pool:
        assert commands.call(pool, "/", "5", out, out) == 0
    assert out.getvalue() in ("{1, '5'}\n", "{'5', 1}\n")


def test_call_says_why_there_is_no_reply(pool: ConnectionPool[Any]) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert commands.call(pool, "/", "no json comes back", out, err) == 1
    assert out.getvalue() == ""
    assert err.getvalue().startswith("error: ") and "(DecodeError)" in err.getvalue()


def test_ping_shows_each_pong(pool: ConnectionPool[Any], echo: EchoServer) -> None:
    out, err = io.StringIO(), io.StringIO()
    assert commands.ping(pool, "/x", out, err, count=3) == 0
    assert [line.split()[0] for line in out.getvalue().splitlines()] == [
        f"{echo.uri_for('/x')}",
        *["pong"] * 3,
    ]
    wait_until(lambda: echo.pings == 3)


def test_ping_says_why_there_is_no_pong() -> None:
    out, err = io.StringIO(), io.StringIO()
    with refusing_port() as port, ConnectionPool(base_uri=f"ws://127.0.0.1:{port}/") as lost:
        assert commands.ping(lost, "", out, err) == 1
    assert out.getvalue() == "" and str(port) in err.getvalue()


def test_status_prints_what_workers_write(pool: ConnectionPool[Any], tmp_path: Path) -> None:
    directory = tmp_path / "status"
    publish(pool, directory)
    assert pool.request("/", [1]) == [1]
    wait_until(lambda: read(directory))
    out = io.StringIO()
    assert commands.status({}, out, [directory]) == 0
    assert str(directory) in out.getvalue() and f"{pool.name}: open" in out.getvalue()


def test_status_says_where_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = io.StringIO()
    assert commands.status({}, out, [tmp_path / "file"]) == 0
    assert "can't be read: Not a directory" in out.getvalue()
