"""The console script: its first moments and its last."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.scripts import ROOT


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )


def test_an_interrupt_while_it_loads_shows_no_traceback() -> None:
    script = """
import sys

class Interrupting:
    def find_spec(self, name, path, target=None):
        if name == "jetsocket.exceptions":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupting())
from jetsocket.cli.console import console
sys.exit(console())
"""
    done = python(script)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_before_that_it_loads_next_to_nothing() -> None:
    done = python(
        "import sys; before = set(sys.modules); import jetsocket.cli.console;"
        "print(*sorted(name for name in set(sys.modules) - before if name.startswith('jetsocket')))"
    )
    expected = "jetsocket jetsocket.cli jetsocket.cli.console jetsocket.lazy_names"
    assert done.stdout.split() == expected.split(), done.stderr


def test_python_does_not_show_where_it_was_when_one_comes_as_it_ends() -> None:
    script = """
import signal, sys
sys.argv = ["jetsocket", "--version"]
from jetsocket.cli.console import console
console()
sys.stdout.flush()
signal.raise_signal(signal.NAME)
"""
    for name, code in (("SIGINT", 130), ("SIGTERM", 143)):
        done = python(script.replace("NAME", name))
        assert (done.returncode, done.stderr) == (code, "")


def test_an_interrupt_of_what_is_executed_as_text_ends_it_with_its_code_too(tmp_path: Path) -> None:
    """As in the body of a dataclass: Python would end by the signal."""
    (tmp_path / "as_module.py").write_text(
        "import sys\n"
        "import jetsocket.cli.main as main\n"
        "from jetsocket.cli.console import console\n"
        "def interrupted(*args):\n"
        "    exec('raise KeyboardInterrupt')\n"
        "main._run = interrupted\n"
        "sys.argv = ['jetsocket', 'call', 'ws://h']\n"
        "sys.exit(console())\n",
        encoding="utf-8",
    )
    done = subprocess.run(
        [sys.executable, "-m", "as_module"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
