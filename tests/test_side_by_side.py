"""Tests run in forked processes: each once, all told of, and what a worker's death costs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.side_by_side import CHUNK, chunks_of

ROOT = Path(__file__).parents[1]
CONFTEST = """
from tests.side_by_side import SideBySide

def pytest_configure(config):
    config.pluginmanager.register(SideBySide(3))
    config.addinivalue_line("markers", "slow: takes long")
"""
pytestmark = pytest.mark.once


def run(where: Path, *options: str, **files: str) -> tuple[int, str]:
    """Run the tests of these files, three at a time; pytest's status and what it says."""
    for name, text in {"conftest": CONFTEST, **files}.items():
        (where / f"{name}.py").write_text(text, encoding="utf-8")
    ended = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            os.devnull,
            "--rootdir",
            ".",
            "-p",
            "no:cacheprovider",
            *options,
        ],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def test_each_test_runs_once_in_one_of_so_many_processes(tmp_path: Path) -> None:
    text = """
import os, pytest

@pytest.mark.parametrize("n", range(40))
def test_it(n):
    with open("ran", "a") as ran:
        ran.write(f"{os.getpid()} {os.getppid()} {n}\\n")

@pytest.mark.slow
def test_that_is_slow(): pass
"""
    status, told = run(tmp_path, test_a=text, test_b=text)
    assert status == 0, told
    assert "82 passed" in told
    ran = [line.split() for line in (tmp_path / "ran").read_text(encoding="utf-8").splitlines()]
    assert sorted(int(n) for _, _, n in ran) == sorted([*range(40)] * 2)
    assert len({pid for pid, _, _ in ran}) <= 3
    assert len({parent for _, parent, _ in ran} - {pid for pid, _, _ in ran}) == 1


def test_failures_are_told_with_what_was_printed_and_the_rest_runs(tmp_path: Path) -> None:
    text = """
import pytest, warnings

def test_right(): print("is not shown")
def test_wrong(): print("is shown"); assert 1 == 2, "not equal"
def test_skipped(): pytest.skip("no reason")
def test_warns(): warnings.warn("watch out")

@pytest.fixture
def broken(): raise KeyError("broken")
def test_broken(broken): pass
"""
    status, told = run(tmp_path, "-ra", test_a=text)
    assert status == 1
    assert re.search("1 failed, 2 passed, 1 skipped, 1 warning, 1 error", told), told
    for part in ("not equal", "is shown", "KeyError: 'broken'", "watch out", "no reason"):
        assert part in told
    assert "is not shown" not in told


def test_what_modules_and_the_session_share_is_made_once_a_process_and_ended(tmp_path: Path) -> None:
    text = """
import os, pytest

def note(what):
    with open("noted", "a") as noted:
        noted.write(f"{what} {os.getpid()}\\n")

@pytest.fixture(scope="session")
def session():
    note("begin"); yield; note("end")

@pytest.fixture(scope="module")
def module(session):
    note("module"); yield; note("over")

@pytest.mark.parametrize("n", range(20))
def test_it(module, n): pass

@pytest.mark.slow
@pytest.mark.parametrize("n", range(3))
def test_slow(session, n): pass
"""
    status, told = run(tmp_path, test_a=text, test_b=text.replace("session()", "session_b()"))
    assert status == 1  # test_b's fixture is missing: its tests are errors
    noted = (tmp_path / "noted").read_text(encoding="utf-8").splitlines()
    assert len([line for line in noted if line.startswith("begin")]) <= 3
    for begin, end in (("begin", "end"), ("module", "over")):
        begun = sorted(line.split()[1] for line in noted if line.startswith(begin))
        assert begun == sorted(line.split()[1] for line in noted if line.startswith(end)), told


LEAVES_SOMEBODY = "os.fork() and os._exit(3) or time.sleep(3) or os._exit(0)"  # who has its pipe, too


@pytest.mark.parametrize("how", ["os._exit(3)", "os.kill(os.getpid(), 9)", LEAVES_SOMEBODY])
def test_a_worker_that_dies_costs_one_test(tmp_path: Path, how: str) -> None:
    text = f"""
import os, time, pytest

@pytest.mark.parametrize("n", range(30))
def test_it(n):
    if n == 4: {how}
"""
    status, told = run(tmp_path, test_a=text)
    assert status == 1
    assert "1 failed, 29 passed" in told
    assert re.search(r"FAILED test_a.py::test_it\[4\].*ended with status (3|-9)", told), told


def test_a_worker_that_fails_at_its_end_is_told(tmp_path: Path) -> None:
    text = "import atexit, os\ndef test_it(): atexit.register(os._exit, 7)\n"
    status, told = run(tmp_path, test_a=text)
    assert status == 1
    assert re.search(r"FAILED the end of gw0.*ended with status 7", told), told


def test_the_first_failure_may_end_it(tmp_path: Path) -> None:
    slow = "import time\ndef test_it(): assert False\ndef test_long(): time.sleep(40)\n"
    status, told = run(tmp_path, "-x", test_a=slow, test_b=slow, test_c=slow)
    assert status == 1
    assert "stopping after 1 failures" in told, told


def test_threads_that_would_be_missing_are_refused(tmp_path: Path) -> None:
    text = "import threading as t\nt.Thread(target=t.Event().wait, daemon=True).start()\ndef test(): pass"
    status, told = run(tmp_path, test_a=text)
    assert status == 4
    assert "which no forked process has" in told


def test_chunks_are_of_one_file_and_what_is_slow_comes_first_and_alone() -> None:
    class Item:
        def __init__(self, path: str, slow: bool) -> None:
            self.path, self.slow = Path(path), slow

        def get_closest_marker(self, name: str) -> str | None:
            return name if self.slow else None

    items: Any = [Item("a", n == 2) for n in range(CHUNK + 3)] + [Item("b", False)] * 2
    made = chunks_of(enumerate(items))
    assert [chunk.slow for chunk in made] == [True, False, False, False]
    assert [chunk.path.name for chunk in made] == ["a", "a", "a", "b"]
    assert made[0].tests == (2,)
    assert sorted(at for chunk in made for at in chunk.tests) == [*range(len(items))]
    assert max(len(chunk.tests) for chunk in made) == CHUNK
