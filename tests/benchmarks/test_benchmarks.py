"""The benchmarks run, in a tiny form; their figures are nobody's concern here."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.__main__ import running_server, table
from tests.benchmarks.contenders import BENCHMARKS

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def uri() -> Iterator[str]:
    with running_server() as uri:
        yield uri


def run(*arguments: str, only: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks", "--rounds", "1", "--scale", "0.001", *arguments]
    environment = {**os.environ, "ONLY": only}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False, cwd=ROOT, env=environment
    )


def test_stream() -> None:
    done = run("--only", "stream")
    assert done.returncode == 0, done.stderr
    for contender in BENCHMARKS["stream"].contenders:
        assert f"\n  {contender}  " in done.stdout


@pytest.mark.parametrize("contender", BENCHMARKS["borrow"].contenders)
def test_borrow(contender: str, uri: str) -> None:
    if "SQLAlchemy" in contender:
        pytest.importorskip("sqlalchemy")
    assert BENCHMARKS["borrow"].contenders[contender](uri, 20) > 0


def test_an_unknown_name_is_refused() -> None:
    done = run(only="dance")
    assert done.returncode == 2
    assert "ONLY=dance: choose from borrow, stream" in done.stderr


def test_ratios_are_to_the_first() -> None:
    lines = table(BENCHMARKS["stream"], {"jetsocket": 2e-6, "other": 5e-6})
    assert lines[-2].split() == ["jetsocket", "2.00", "500,000", "1.00"]
    assert lines[-1].split() == ["other", "5.00", "200,000", "2.50"]
