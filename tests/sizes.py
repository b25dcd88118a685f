"""How much a test does: little in `make test`, all of it in `make soak`."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from typing import Any

LONG = "JETSOCKET_DEPTH" in os.environ  # set by `make soak`


def size(short: int, long: int) -> int:
    """How many turns, examples or threads a test takes that is marked `deep`."""
    return long if LONG else short


def pairs(first: Collection[Any], second: Collection[Any]) -> list[tuple[Any, Any]]:
    """Which pairs a test takes that is marked `deep`: so many that each of both occurs, or all."""
    if LONG:
        return list(itertools.product(first, second))
    count = max(len(first), len(second))
    return list(itertools.islice(zip(itertools.cycle(first), itertools.cycle(second), strict=False), count))
