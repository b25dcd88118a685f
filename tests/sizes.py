"""How much a test does: little in `make test`, all of it in `make soak`."""

from __future__ import annotations

import os

LONG = "JETSOCKET_DEPTH" in os.environ  # set by `make soak`


def size(short: int, long: int) -> int:
    """How many turns, examples or threads a test takes that is marked `deep`."""
    return long if LONG else short
