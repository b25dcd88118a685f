"""A minute of the soak (`make soak`): everything at random, and nothing lost."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.test_soak import run_soak

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc"),
]


@pytest.mark.timeout(300)
def test_a_minute_of_it_leaves_a_flat_ledger(tmp_path: Path) -> None:
    found = run_soak(1.0, tmp_path / "ledger.json")
    assert found["found"]["answered"] > 500
    assert found["found"]["strikes"] > 50
