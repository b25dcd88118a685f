"""The clock that all deadlines go by: monotonic, in seconds, and out of reach of tests that freeze time.

freezegun replaces the `time.monotonic` of every module, found by its identity, with a clock that stands
still: a wait would never end. So this is a copy of it, from a module object that is in no table.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
from collections.abc import Callable
from importlib.machinery import BuiltinImporter
from types import ModuleType

__all__ = ["SHORTEST_SLEEP", "deadline_in", "monotonic", "sleep", "slept", "with_sleep"]

SHORTEST_SLEEP = 0.5
"""s; what is less is taken for no suspend of the machine."""


def _own_time() -> ModuleType:
    spec = BuiltinImporter.find_spec("time")
    if spec is None or spec.loader is None:  # not CPython: take what there is
        import time

        return time
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_time = _own_time()
monotonic: Callable[[], float] = _time.monotonic
sleep: Callable[[float], None] = _time.sleep


def _with_sleep() -> Callable[[], float]:
    # Linux has a clock that goes on while the machine is suspended; where there is none, no suspend is seen.
    clock = getattr(_time, "CLOCK_BOOTTIME", None)
    return monotonic if clock is None else functools.partial(_time.clock_gettime, clock)


with_sleep: Callable[[], float] = _with_sleep()
"""Like `monotonic`, but goes on while the machine is suspended."""


def slept() -> float:
    """For how long the machine was suspended since it was started (s); never too much."""
    # This clock first: a thread that is stopped between the two makes it less.
    return max(with_sleep() - monotonic() for _ in range(3))


def deadline_in(seconds: float) -> float:
    """The time so many seconds from now, though no later than a lock is willing to wait: centuries."""
    # An int may be too large for a float.
    return monotonic() + max(-threading.TIMEOUT_MAX, min(threading.TIMEOUT_MAX, seconds))
