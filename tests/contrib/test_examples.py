"""The examples of the documentation: their own tests pass, as a reader runs them, and so does the command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from jetsocket.testing import FakeServer

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"

pytestmark = pytest.mark.once


def run(example: str, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        [sys.executable, "-W", "error", *command],
        cwd=EXAMPLES / example,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("example", "needs"), [("script", "jetsocket"), ("celery", "redis"), ("notebook", "IPython")]
)
def test_their_tests_pass(example: str, needs: str, tmp_path: Path) -> None:
    if find_spec(needs) is None:
        pytest.skip(f"no {needs}")
    own = [name.name for name in (EXAMPLES / example).glob("test_*.py")]
    options = ["-p", "no:cacheprovider", "-p", "jetsocket.testing.plugin", "-c", os.devnull, "--rootdir", "."]
    ended = run(example, "-m", "pytest", *options, *own, IPYTHONDIR=str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert " passed" in ended.stdout
    assert "skipped" not in ended.stdout


@pytest.mark.slow
def test_the_script_asks_the_service_beside_it() -> None:
    node = EXAMPLES / "script" / "node.py"
    with FakeServer() as server:
        exec(compile(node.read_text(encoding="utf-8"), node, "exec"), {"server": server})
        ended = run("script", "heights.py", "21", "22", HEIGHTS_BASE_URI=server.uri)
        assert (ended.returncode, ended.stdout, ended.stderr) == (0, "21 42\n22 44\n", "")
    ended = run("script", "heights.py", "21", HEIGHTS_BASE_URI="ws://127.0.0.1:1")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("21: ")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_three_processes_share_what_an_account_may_have() -> None:
    """In files; with a Redis: tests/integration/test_fleet.py."""
    ended = run("fleet", "fleet.py", "--file", SECONDS="4")
    assert (ended.returncode, ended.stderr) == (0, "")
    *workers, last = ended.stdout.splitlines()
    assert last == "the service had at most 3 connections at a time"
    assert len(workers) == 3
    assert all(re.fullmatch(r"process \d+ has asked [1-9]\d* times", each) for each in workers)


def test_they_share_one_service() -> None:
    nodes = {path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*/node.py")}
    assert len(nodes) == 1
