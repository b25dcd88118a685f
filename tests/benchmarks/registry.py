"""All that is measured, by name."""

from __future__ import annotations

from tests.benchmarks import works
from tests.benchmarks.askers import ASKERS
from tests.benchmarks.cold import COLD
from tests.benchmarks.ethereum import ETHEREUM
from tests.benchmarks.multiplex import MULTIPLEX
from tests.benchmarks.watched import WATCHED

WORKS = {**works.WORKS, **COLD, **MULTIPLEX, **ASKERS, **ETHEREUM, **WATCHED}

__all__ = ["WORKS"]
