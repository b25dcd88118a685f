"""The example of the documentation: its own tests pass, as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("flask")

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "flask"

pytestmark = pytest.mark.once


@pytest.mark.slow
def test_the_examples_tests_pass() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(EXAMPLE),
    ]
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*command, "-p", "jetsocket.testing.plugin", "test_app.py"],
        cwd=EXAMPLE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "2 passed" in ended.stdout
