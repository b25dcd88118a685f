"""What sharing a connection brings: many threads, a server that answers after a while, and ids to tell by."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time
from typing import Any

from tests.benchmarks.peers import Place
from tests.benchmarks.works import Figures, Work

CALLERS = 100
SHARED, EIGHT, HUNDRED = "jetsocket, one shared", "jetsocket, 8 exclusive", "jetsocket, 100 exclusive"
SIZES = {SHARED: (1, CALLERS), EIGHT: (8, 1), HUNDRED: (CALLERS, 1)}
"""Connections, and requests at a time on each."""


def pool_of(name: str, place: Place) -> Any:
    """A pool of that size, all of whose connections are open."""
    from jetsocket import ConnectionPool, ConnectionPoolConfig
    from jetsocket.correlation import ById

    connections, in_flight = SIZES[name]
    config = ConnectionPoolConfig(
        max_connections=connections, max_in_flight=in_flight, max_connecting=connections, acquire_timeout=60
    )
    return ConnectionPool(config, base_uri=place.plain, correlation=ById("id"))


def calls(name: str, place: Place, seconds: float, *, delay: int, timer: Callable[[], float]) -> Figures:
    """100 threads call a service that answers after `delay` ms: time, or CPU time, for one call over all."""
    path, counts = f"/late/{delay}", [0] * CALLERS
    failures: list[BaseException] = []
    start, done = threading.Barrier(CALLERS + 1), threading.Event()
    with pool_of(name, place) as pool:
        pool.prewarm(path, SIZES[name][0])

        def call(number: int) -> None:
            try:
                start.wait(60)
                while not done.is_set():
                    pool.request(path, {"n": number}, 60)
                    counts[number] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(CALLERS)]
        for thread in threads:
            thread.start()
        start.wait(60)
        began, clock = perf_counter(), timer()
        done.wait(max(seconds, 3 * delay / 1000))
        done.set()
        for thread in threads:
            thread.join()
        took = timer() - clock
        assert perf_counter() > began
    if failures:
        raise failures[0]
    return {"time": took / sum(counts)}


MULTIPLEX = {
    "shared": Work(
        "100 threads, answers after 5 ms", "call", tuple(SIZES), partial(calls, delay=5, timer=perf_counter)
    ),
    "shared-cpu": Work(
        "CPU time of that", "call", (SHARED, HUNDRED), partial(calls, delay=5, timer=process_time)
    ),
    "shared-at-once": Work(
        "100 threads, answers at once", "call", (SHARED, EIGHT), partial(calls, delay=0, timer=perf_counter)
    ),
}

__all__ = ["EIGHT", "HUNDRED", "MULTIPLEX", "SHARED"]
