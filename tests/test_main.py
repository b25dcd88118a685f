"""`python -m jetsocket`: what the command line takes and refuses."""

from __future__ import annotations

import subprocess
import sys

import pytest

import jetsocket
from jetsocket.cli import demo
from jetsocket.cli.main import main


def test_alone_it_prints_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "demo" in capsys.readouterr().out


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "jetsocket", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"jetsocket {jetsocket.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["demo", "--calls", "0"], "--calls: '0' is not a whole number of 1 or more"),
        (["demo", "--threads", "-1"], "--threads"),
        (["demo", "--connections", "many"], "--connections: 'many'"),
        (["demo", "--uri", "http://example.com/"], "ws://"),
        (["demo", "--uri", "/path"], "wss://host/path"),
        (["dance"], "dance"),
    ],
)
def test_a_wrong_command_line_is_status_2(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert named in capsys.readouterr().err


def test_a_missing_extra_is_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_EXTRA", ("no_such_package_at_all",))
    assert main(["demo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert 'pip install "jetsocket[demo]"' in captured.err


def test_what_is_asked_for_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    plans: list[demo.Plan] = []

    def run(plan: demo.Plan) -> int:
        plans.append(plan)
        return 1

    monkeypatch.setattr(demo, "run", run)
    assert main(["demo", "--calls", "5", "--threads", "4", "--connections", "3"]) == 1
    assert main(["demo", "--uri", "wss://example.com/ws"]) == 1
    assert plans == [demo.Plan(5, 4, 3, None), demo.Plan(4000, 32, 8, "wss://example.com/ws")]
