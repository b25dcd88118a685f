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
DELAYS = (0, 5, 50)  # ms
CROWDS = (1, 4, 16, 40, CALLERS)


def pool_of(name: str, place: Place) -> Any:
    """A pool of that size, all of whose connections are open."""
    from jetsocket import ConnectionPool, ConnectionPoolConfig
    from jetsocket.correlation import ById

    connections, in_flight = SIZES[name]
    config = ConnectionPoolConfig(
        max_connections=connections, max_in_flight=in_flight, max_connecting=connections, acquire_timeout=60
    )
    return ConnectionPool(config, base_uri=place.plain, correlation=ById("id"))


def ask_together(
    pool: Any, path: str, callers: int, seconds: float, timer: Callable[[], float]
) -> tuple[float, list[float]]:
    """So many threads call for so long: the time of that by the timer, and how long each call took (s)."""
    durations: list[list[float]] = [[] for _ in range(callers)]
    failures: list[BaseException] = []
    start, done = threading.Barrier(callers + 1), threading.Event()

    def call(number: int) -> None:
        took = durations[number].append
        try:
            start.wait(60)
            while True:  # once at least, however late it begins
                began = perf_counter()
                pool.request(path, {"n": number}, 60)
                took(perf_counter() - began)
                if done.is_set():
                    break
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    start.wait(60)
    clock = timer()
    done.wait(seconds)
    done.set()
    for thread in threads:
        thread.join()
    took = timer() - clock
    if failures:
        raise failures[0]
    return took, [each for own in durations for each in own]


def calls(name: str, place: Place, seconds: float, *, delay: int, timer: Callable[[], float]) -> Figures:
    """100 threads call a service that answers after `delay` ms: time, or CPU time, for one call over all."""
    path = f"/late/{delay}"
    with pool_of(name, place) as pool:
        pool.prewarm(path, SIZES[name][0])
        took, durations = ask_together(pool, path, CALLERS, max(seconds, 3 * delay / 1000), timer)
    return {"time": took / len(durations)}


def by_callers(name: str, place: Place, seconds: float) -> Figures:
    """Time of a call over all, and how long a caller waits, by the service's time and number of callers."""
    figures: Figures = {}
    for delay in DELAYS:
        path = f"/late/{delay}"
        with pool_of(name, place) as pool:
            pool.prewarm(path, SIZES[name][0])
            for callers in CROWDS:
                took, durations = ask_together(
                    pool, path, callers, max(seconds, 3 * delay / 1000), perf_counter
                )
                durations.sort()
                figures[f"{delay} ms, {callers}"] = took / len(durations)
                figures[f"{delay} ms, {callers} median"] = durations[len(durations) // 2]
                figures[f"{delay} ms, {callers} p99"] = durations[len(durations) * 99 // 100]
    return figures


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
    "multiplex": Work(
        "1 to 100 threads, answers after 0 to 50 ms", "call", tuple(SIZES), by_callers, rounds=1
    ),
}

__all__ = ["CROWDS", "DELAYS", "EIGHT", "HUNDRED", "MULTIPLEX", "SHARED"]
