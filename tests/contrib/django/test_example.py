"""The example of the documentation: its own tests pass, as a reader runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("django")

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "docs" / "examples" / "django"

pytestmark = pytest.mark.once


@pytest.mark.slow
def test_the_examples_tests_pass() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "manage.py", "test"],
        cwd=EXAMPLE,
        env=environment,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "Ran 2 tests" in ended.stderr
