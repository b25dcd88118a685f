"""What the long forms of the suites share: how deep they go, and where their figures are kept."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

Figure = int | float | str
Report = Callable[..., None]


@pytest.fixture
def depth() -> float:
    """How much of the whole long form to do: 1.0 for `make soak MINUTES=10`, less in proportion for less."""
    return float(os.environ.get("JETSOCKET_DEPTH", "1"))


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Report:
    """Keep figures for the table of docs/reliability.md: `report("async exceptions", raised=20000, lost=0)`.

    The first argument names the row; the same row may be reported by several tests.
    """

    def keep(row: str, /, **figures: Figure) -> None:
        line = json.dumps({"row": row, "test": request.node.nodeid, "figures": figures})
        print(line)
        path = os.environ.get("JETSOCKET_FIGURES")
        if path:
            with Path(path).open("a", encoding="utf-8") as kept:
                kept.write(line + "\n")

    return keep
