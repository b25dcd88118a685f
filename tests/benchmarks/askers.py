"""What finding one's reply costs: the change of who reads, a correlation, many subscriptions."""

from __future__ import annotations

import statistics
import threading
from collections.abc import Callable
from functools import partial
from time import perf_counter, process_time, thread_time
from typing import Any

from tests.benchmarks.peers import OURS, Place
from tests.benchmarks.works import Figures, Work, timed

SUBSCRIPTIONS = {"1 subscription": 1, "10 subscriptions": 10, "1,000 subscriptions": 1000}
ONE, MANY = "1 subscription", "1,000 subscriptions"
MESSAGES = 100_000
BATCH = 100  # requests by turns
PATIENCE = 60.0  # s


def hand_over(_name: str, _place: Place, seconds: float) -> Figures:
    """From the moment that the one who reads has its reply to that in which another thread reads.

    Two threads take turns. No socket is read: that is not what is measured.
    """
    from jetsocket.reading_turns import Mailbox, Reading
    from jetsocket.uris import Target, parse

    class Table(Reading):
        """A connection whose leader has its reply as soon as the other thread waits."""

        def __init__(self) -> None:
            super().__init__()
            self.left_at = 0.0
            self.times: list[float] = []

        @property
        def target(self) -> Target:
            return parse("ws://nowhere/")

        def _read(self, box: Mailbox[Any], deadline: float) -> None:
            if self.left_at:
                self.times.append(perf_counter() - self.left_at)
                reads.release()
            while not self._followers and not done.is_set():
                done.wait(0.0002)
            done.wait(0.0005)  # by then it sleeps
            box.arrived.append(1)
            self.left_at = perf_counter()

        def _read_what_is_there(self) -> None:
            raise AssertionError("no worker is here")

        def _send_for(self, box: Mailbox[Any], deadline: float) -> None:
            raise AssertionError("nothing is sent")

    table, done, reads = Table(), threading.Event(), threading.Semaphore(0)

    def take_turns() -> None:
        while not done.is_set():
            table.wait(Mailbox(), None, "recv")
            reads.acquire(timeout=0.5)  # else it would be the next one itself

    threads = [threading.Thread(target=take_turns) for _ in range(2)]
    for thread in threads:
        thread.start()
    until = perf_counter() + seconds
    while perf_counter() < until or len(table.times) < 3:
        done.wait(0.01)
    done.set()
    for thread in threads:
        thread.join(PATIENCE)
    return {"time": statistics.median(table.times)}


def correlated(_name: str, place: Place, seconds: float) -> Figures:
    """CPU time of a request over a lease, with a correlation and without one, by turns in one thread."""
    from jetsocket import ConnectionPool
    from jetsocket.correlation import ById

    steps: dict[str, Callable[[], object]] = {}
    for label, correlation in (("with", ById("id")), ("without", None)):
        pool = ConnectionPool[Any](base_uri=place.plain, correlation=correlation)
        lease = pool.acquire("/late/0")
        message = {"method": "time"} if correlation is not None else {"method": "time", "id": 7}
        steps[label] = partial(lease.request, message, PATIENCE)
    for step in steps.values():
        timed(step, BATCH, thread_time)
    times: dict[str, list[float]] = {label: [] for label in steps}
    until = perf_counter() + 2 * seconds
    while perf_counter() < until or not times["without"]:
        for label, step in steps.items():
            times[label].append(timed(step, BATCH, thread_time) / BATCH)
    return {label: statistics.median(found) for label, found in times.items()}


def subscriptions(name: str, place: Place, seconds: float) -> Figures:
    """CPU time of one message that is pushed, over all subscriptions of one connection."""
    from jetsocket import ConnectionPool, ConnectionPoolConfig
    from jetsocket.correlation import ById

    count = SUBSCRIPTIONS[name]
    messages = max(count, min(MESSAGES, int(seconds * 2.5 * MESSAGES)) // count * count)
    config = ConnectionPoolConfig(max_connections=1, max_in_flight=2, acquire_timeout=PATIENCE)
    correlation = ById("id", topic_path="topic", ack_topic_path="topic")
    pool = ConnectionPool[Any](config, base_uri=place.plain, correlation=correlation)
    feeds = [
        pool.subscribe("/topics", {"subscribe": topic}, timeout=PATIENCE, max_queue=messages)
        for topic in range(count)
    ]
    began = process_time()
    pool.request("/topics", {"push": messages, "topics": count}, PATIENCE)
    for feed in feeds:
        for _ in range(messages // count):
            feed.get(PATIENCE)
    took = process_time() - began
    assert pool.stats().total_connections == 1
    return {"time": took / messages}


ASKERS = {
    "hand-over": Work("Another thread becomes the one who reads", "change", (OURS,), hand_over),
    "correlation": Work("CPU time of a request over a lease", "request", (OURS,), correlated),
    "subscriptions": Work(
        "CPU time of a message for one of many subscriptions",
        "message",
        tuple(SUBSCRIPTIONS),
        subscriptions,
        rounds=3,
    ),
}

__all__ = ["ASKERS", "MANY", "ONE"]
