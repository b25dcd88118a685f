"""`manage.py jetsocket` looks at the pools of the settings, and ends with exit codes."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("django")
from django.core.management import CommandError, call_command

from jetsocket.contrib.django import pools
from tests.servers import EchoServer, refusing_port

Use = Callable[..., None]
ROOT = Path(__file__).parents[5]


def run(*words: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    try:
        call_command("jetsocket", *words, stdout=out, stderr=err, no_color=True)
    except SystemExit as ended:
        code = int(ended.code or 0)
    return code, out.getvalue(), err.getvalue()


def test_status_shows_the_settings_in_force_without_secrets(use: Use) -> None:
    use(
        default={"BASE_URI": "wss://user:secret@example.com/?key=secret", "CONFIG": {"max_connections": 7}},
        nodes={"OPTIONS": {"cookie": "a=secret"}},
    )
    code, out, _ = run("status")
    assert code == 0
    assert "default" in out
    assert "nodes" in out
    assert "max_connections       7" in out
    assert "secret" not in out
    assert "nodes" not in run("status", "default")[1]


def test_check_tells_whether_servers_can_be_reached(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri})
    code, out, _ = run("check")
    assert (code, out.startswith("ok    default: ")) == (0, True)
    assert pools.made() == {}
    with refusing_port() as port:
        use(default={"BASE_URI": echo.uri}, gone={"BASE_URI": f"ws://127.0.0.1:{port}"})
        code, out, _ = run("check")
    assert code == 1
    assert "ok    default: " in out
    assert "FAIL  gone: " in out


def test_pools_that_are_in_use_in_this_process_stay(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri}, other={"BASE_URI": echo.uri})
    with pools["default"].acquire("/") as conn:
        assert run("check")[0] == run("status")[0] == 0
        assert conn.request([1]) == [1]
    assert list(pools.made()) == ["default"]


def test_call_prints_the_reply_and_ping_the_times(use: Use, echo: EchoServer) -> None:
    use(nodes={"BASE_URI": echo.uri})
    assert run("call", "/", '{"n": 1}')[:2] == (0, '{"n": 1}\n')  # the only one
    use(nodes={"BASE_URI": echo.uri}, others={"BASE_URI": echo.uri})
    assert run("call", "--pool", "nodes", "/", '{"n": 1}')[:2] == (0, '{"n": 1}\n')
    code, out, _ = run("ping", "--pool", "nodes", "-c", "2")
    assert (code, out.count("pong ")) == (0, 2)


def test_what_is_wrong_is_said_without_a_traceback(use: Use) -> None:
    use(default={})
    with pytest.raises(CommandError, match="has no pool 'other'; known are 'default'"):
        run("check", "other")
    with pytest.raises(CommandError):
        run("ping", "-c", "0")


def test_a_closed_pipe_ends_it_quietly() -> None:
    """As in `manage.py jetsocket status | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "manage.py", "jetsocket", "status"]
    example = ROOT / "docs" / "examples" / "django"
    try:
        with subprocess.Popen(
            command, cwd=example, env=environment, stdout=writing, stderr=subprocess.PIPE, text=True
        ) as ended:
            _, err = ended.communicate(timeout=50)
    finally:
        os.close(writing)
    assert (ended.returncode, err) == (141, "")
