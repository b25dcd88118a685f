"""All that is measured, by name."""

from __future__ import annotations

from tests.benchmarks import works
from tests.benchmarks.multiplex import MULTIPLEX

WORKS = {**works.WORKS, **MULTIPLEX}

__all__ = ["WORKS"]
