"""Pools with thousands of idle connections; these run once, in processes of their own."""

from __future__ import annotations

import gc
import os
import statistics
import threading
from collections.abc import Callable
from time import monotonic, perf_counter, process_time
from typing import Any

from tests.benchmarks.machine import raise_descriptor_limit
from tests.benchmarks.peers import Place, new_pool
from tests.benchmarks.works import Figures, timed

SPARE = 300  # descriptors for everything else
CLOSED_AT_ONCE = 100


def affordable(count: int) -> int:
    """So many connections, or as many as the system allows."""
    return min(count, raise_descriptor_limit() - SPARE)


def resident() -> int:
    """B of memory that this process has now."""
    import psutil

    gc.collect()
    return int(psutil.Process().memory_info().rss)


def idle(place: Place, count: int, seconds: float) -> Figures:
    """What `count` idle connections cost: threads, CPU share, memory; and how soon a close is seen.

    `seconds` should be more than the default interval between two pings, 30 s.
    """
    count = affordable(count)
    others = threading.active_count()
    pool = new_pool(place, most=count)
    path = f"/idle-{os.getpid()}"  # its own: others use the server at the same time
    pool.prewarm(path, 1)
    before = resident()
    pool.prewarm(path, count)
    figures = {
        "connections": float(count),
        "rss": (resident() - before) / (count - 1),
        "threads": lasting_threads(others),
    }
    began, cpu = monotonic(), process_time()
    threading.Event().wait(seconds)
    figures["cpu"] = (process_time() - cpu) / (monotonic() - began)
    if pool.stats().idle_connections != count:
        raise AssertionError(f"{count - pool.stats().idle_connections} connections were lost meanwhile")
    figures["close seen"] = time_of_closing(pool, place, path, min(CLOSED_AT_ONCE, count // 2))
    return figures


def lasting_threads(others: int) -> float:
    """How many threads a pool has once those that opened its connections have ended, for want of work."""
    patience = monotonic() + 10
    while (count := threading.active_count() - others) > 1 and monotonic() < patience:
        threading.Event().wait(0.05)
    return float(count)


def time_of_closing(pool: Any, place: Place, path: str, closed: int) -> float:
    """How long after the server has closed some connections the pool knows of all of them (s)."""
    left = pool.stats().idle_connections - closed
    with new_pool(place) as other:
        other.acquire(f"/close/{closed}{path}").release()
        began = perf_counter()
    while pool.stats().idle_connections > left:
        if perf_counter() - began > 10:
            raise AssertionError("the pool does not see that its connections were closed")
        threading.Event().wait(0.005)
    return perf_counter() - began


def flat(place: Place, counts: list[int], seconds: float, *, by: str) -> Figures:
    """Time of acquire and release by number of idle connections: all to one URI, or each to its own.

    Of those that have their own, one is borrowed again and again, or each in turn.
    """
    figures: dict[str, list[float]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for count in map(affordable, counts):
        paths = ["/idle"] if by == "connections" else [f"/idle/{number}" for number in range(count)]
        pool = new_pool(place, most=count)
        for path in paths:
            pool.prewarm(path, count // len(paths))
        steps[str(count)] = borrower(pool, paths[:1])
        if by == "uris":
            steps[f"{count} in turn"] = borrower(pool, paths)
    for step in steps.values():
        timed(step, int(seconds * 20_000), perf_counter)
    gc.freeze()
    for _ in range(7):
        for label, step in steps.items():
            batch = max(100, int(seconds * 20_000))
            figures.setdefault(label, []).append(timed(step, batch, perf_counter) / batch)
    return {label: statistics.median(times) for label, times in figures.items()}


def borrower(pool: Any, paths: list[str]) -> Callable[[], None]:
    """What borrows and gives back a connection to each path in turn."""
    number = 0

    def step() -> None:
        nonlocal number
        number = (number + 7919) % len(paths)  # a prime: no path is near its predecessor
        with pool.acquire(paths[number]):
            pass

    return step
