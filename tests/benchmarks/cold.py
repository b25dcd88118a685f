"""An empty pool, and many who want a connection at the same moment: beside as many threads that dial."""

from __future__ import annotations

import gc
import statistics
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter, sleep
from typing import Any

from tests.benchmarks.peers import OURS, Place, dial, without_speed
from tests.benchmarks.works import Figures, Work

CALLERS = 50
PLAIN = f"{CALLERS} threads with websocket-client"
PREWARM = f"jetsocket, prewarm({CALLERS})"
PATIENCE = 60.0  # s
SETTLING = 0.1  # s, in which the server sees that those of the last time were closed

Crowd = Callable[[], tuple[float, Callable[[], object]]]
"""Opens so many connections; how long that took (s), and what closes them."""


def together(open_one: Callable[[], Any]) -> tuple[float, list[Any]]:
    """What so many threads open that begin at once, and how long it takes until all have it (s)."""
    start, opened, failures = threading.Barrier(CALLERS + 1), list[Any](), list[BaseException]()

    def call() -> None:
        start.wait(PATIENCE)
        try:
            opened.append(open_one())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call) for _ in range(CALLERS)]
    for thread in threads:
        thread.start()
    while start.n_waiting < CALLERS:
        sleep(0.001)
    start.wait(PATIENCE)
    began = perf_counter()
    for thread in threads:
        thread.join()
    took = perf_counter() - began
    if failures:
        raise failures[0]
    return took, opened


def threads_that_dial(place: Place, tls: bool) -> Crowd:
    open_one = dial("websocket-client", place, tls=tls)

    def crowd() -> tuple[float, Callable[[], object]]:
        took, opened = together(lambda: open_one("/idle"))
        return took, lambda: [close() for _, close in opened]

    return crowd


def an_empty_pool(place: Place, tls: bool, *, prewarm: bool) -> Crowd:
    from jetsocket import ConnectionPool, ConnectionPoolConfig

    config = ConnectionPoolConfig(
        max_connections=CALLERS, max_connecting=CALLERS, acquire_timeout=PATIENCE, health_check_interval=300
    )
    options = {"ssl_context": place.context(), "close_timeout": 0.1}

    def crowd() -> tuple[float, Callable[[], object]]:
        pool = ConnectionPool(config, base_uri=place.tls if tls else place.plain, manager_kwargs=options)
        if prewarm:
            began = perf_counter()
            assert pool.prewarm("/idle", CALLERS) == CALLERS
            took = perf_counter() - began
        else:
            took, leases = together(lambda: pool.acquire("/idle"))
            for lease in leases:
                lease.release()
        assert pool.stats().total_connections == CALLERS
        return took, pool.close

    return crowd


def cold(name: str, place: Place, seconds: float, *, tls: bool) -> Figures:
    """Time until all have a connection; making the pool and the threads, and closing, are no part of it."""
    if name == PLAIN:
        crowd = threads_that_dial(place, tls)
    else:
        without_speed()
        crowd = an_empty_pool(place, tls, prewarm=name == PREWARM)
    times: list[float] = []
    until, is_first = perf_counter() + seconds, True
    while len(times) < 3 or perf_counter() < until:
        gc.collect()
        took, close = crowd()
        close()
        sleep(SETTLING)
        if not is_first:
            times.append(took)
        is_first = False
    return {"time": statistics.median(times)}


COLD = {
    "cold": Work(
        f"{CALLERS} connections at once, from none", "crowd", (OURS, PREWARM, PLAIN), partial(cold, tls=False)
    ),
    "cold-tls": Work(
        f"{CALLERS} connections at once, from none, over TLS",
        "crowd",
        (OURS, PREWARM, PLAIN),
        partial(cold, tls=True),
    ),
}

__all__ = ["COLD", "PLAIN", "PREWARM"]
