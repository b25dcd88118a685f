"""The clock that all deadlines go by: monotonic, in seconds, and out of reach of tests that freeze time.

freezegun replaces the `time.monotonic` of every module, found by its identity, with a clock that stands
still: a wait would never end. So this is a copy of it, from a module object that is in no table.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Callable
from importlib.machinery import BuiltinImporter
from types import ModuleType

__all__ = ["deadline_in", "monotonic", "sleep"]


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


def deadline_in(seconds: float) -> float:
    """The time so many seconds from now, though no later than a lock is willing to wait: centuries."""
    # An int may be too large for a float.
    return monotonic() + max(-threading.TIMEOUT_MAX, min(threading.TIMEOUT_MAX, seconds))
