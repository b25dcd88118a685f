"""docs/tutorial.md: its files and commands, in an empty folder, print what the page shows.

What it installs is installed in tests/integration/test_packaging.py.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.scripts import ROOT
from tests.walkthrough import PAGE, Walk, environment, shown_as

PROGRAMS = {"python": "", "jetsocket": " -m jetsocket"}


@pytest.mark.slow
@pytest.mark.once
def test_the_tutorial_does_what_it_says(tmp_path: Path) -> None:
    programs, folder = tmp_path / "bin", tmp_path / "heights"
    programs.mkdir()
    folder.mkdir()
    for name, module in PROGRAMS.items():
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable}{module} "$@"\n', encoding="utf-8")
        (programs / name).chmod(0o755)
    env = environment(
        PYTHONPATH=str(ROOT),
        PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",  # the others of this environment; ours is named
        PYTEST_PLUGINS="jetsocket.testing.plugin",
    )
    env["PATH"] = f"{programs}:{env['PATH']}"
    written = PAGE.read_text(encoding="utf-8").partition("## 2. ")[2]
    with Walk(folder, env, {}) as walk:
        walk.go(written)
    assert len(walk.printed) == written.count("\n$ ")
    assert {path.name for path in folder.glob("*.py")} == {
        "first.py",
        "heights.py",
        "main.py",
        "node.py",
        "test_heights.py",
    }


def test_what_is_shown_may_differ_in_times_and_where_the_page_says_so() -> None:
    assert shown_as("2 passed in 0.11s")("2 passed in 12.34s")
    assert shown_as("to …: ended")("to ws://h:1/: ended")
    assert not shown_as("2 passed in 0.11s")("3 passed in 0.11s")
    assert not shown_as("7")("7\nDeprecationWarning: …")
