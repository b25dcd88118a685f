"""`flask jetsocket`: with an application's pools, and as a command of a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flask")
from flask import Flask

from jetsocket.contrib.flask import JetSocket
from tests.servers import Connection, EchoServer, refusing_port, wait_until


def run(arguments: list[str], **config: Any) -> Any:
    app = Flask("app")
    app.config.update(config)
    JetSocket(app)
    return app.test_cli_runner().invoke(args=["jetsocket", *arguments])


def test_status_shows_all_pools_or_one() -> None:
    config = {"JETSOCKET_BASE_URI": "wss://u:hunter2@h/", "JETSOCKET_POOLS": {"feeds": {}}}
    result = run(["status"], **config)
    assert result.exit_code == 0
    assert [line for line in result.output.splitlines() if not line.startswith(" ")] == ["default", "feeds"]
    assert "wss://h/" in result.output and "hunter2" not in result.output
    assert run(["status", "feeds"], **config).output.startswith("feeds\n")


def test_check_ends_with_1_where_a_server_cannot_be_reached(echo: EchoServer) -> None:
    assert run(["check"], JETSOCKET_BASE_URI=echo.uri).exit_code == 0
    with refusing_port() as port:
        config = {
            "JETSOCKET_BASE_URI": echo.uri,
            "JETSOCKET_POOLS": {"lost": {"BASE_URI": f"ws://127.0.0.1:{port}"}},
        }
        result = run(["check"], **config)
        assert result.exit_code == 1
        assert [line.split()[0] for line in result.output.splitlines()] == ["ok", "FAIL"]
        assert run(["check", "default", "--path", "/x"], **config).exit_code == 0
    assert echo.paths[-1] == "/x"


def test_pools_that_are_in_use_in_this_process_stay(echo: EchoServer, tmp_path: Path) -> None:
    app = Flask("app")
    app.config.update(
        JETSOCKET_BASE_URI=echo.uri,
        JETSOCKET_POOLS={"other": {"BASE_URI": echo.uri}},
        JETSOCKET_STATUS_DIR=tmp_path,
    )
    jet = JetSocket(app)
    with jet.pool.acquire("/") as conn:
        assert app.test_cli_runner().invoke(args=["jetsocket", "check"]).exit_code == 0
        assert conn.request([1]) == [1]
    assert list(app.extensions["jetsocket"].made()) == ["default"]
    assert app.extensions["jetsocket"].publishes
    jet.close_all()


def test_call_prints_the_reply(echo: EchoServer) -> None:
    assert run(["call", "/", '{"id": 1}'], JETSOCKET_BASE_URI=echo.uri).output == '{"id": 1}\n'
    sections = {"one": {}, "two": {"BASE_URI": echo.uri}}
    assert run(["call", "--pool", "two", "/two", "[2]"], JETSOCKET_POOLS=sections).output == "[2]\n"
    assert echo.paths[-1] == "/two"


def test_the_only_pool_needs_no_name(echo: EchoServer) -> None:
    assert run(["call", "/", "[1]"], JETSOCKET_POOLS={"nodes": {"BASE_URI": echo.uri}}).output == "[1]\n"


def test_ping_shows_each_pong(echo: EchoServer) -> None:
    result = run(["ping", "-c", "2"], JETSOCKET_BASE_URI=echo.uri)
    assert result.exit_code == 0
    assert result.output.count("pong") == echo.pings == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status"], "Error: JETSOCKET_MAX_CONECTIONS is unknown"),
        (["check", "nodes"], "Error: there is no pool 'nodes'; known are 'default'"),
        (["call", "/", "[1]"], "Error: JETSOCKET_MAX_CONECTIONS is unknown"),
    ],
)
def test_wrong_settings_are_told_without_a_traceback(arguments: list[str], told: str) -> None:
    result = run(arguments, JETSOCKET_MAX_CONECTIONS=1)
    assert result.exit_code == 1
    assert told in result.output


@pytest.mark.slow
@pytest.mark.once
def test_flask_itself_finds_the_command(tmp_path: Path) -> None:
    """And its connection gets a close frame at the end."""
    codes: list[int | None] = []

    def answer(conn: Connection) -> None:
        for text in conn:
            conn.send(text)
        codes.append(conn.close_code)

    (tmp_path / "app.py").write_text(
        "from flask import Flask\nfrom jetsocket.contrib.flask import JetSocket\n"
        "app = Flask(__name__)\napp.config.from_prefixed_env()\nJetSocket(app)\n",
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "flask", "jetsocket", "call", "/", "[1]"]
    with EchoServer(answer) as server:
        environment["FLASK_JETSOCKET_BASE_URI"] = server.uri
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=50, check=False
        )
        assert (ended.returncode, ended.stdout) == (0, "[1]\n"), ended.stderr
        wait_until(lambda: codes == [1001])
