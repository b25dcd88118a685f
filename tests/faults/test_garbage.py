"""The garbage collector at its worst: it may run a finalizer anywhere, inside the pool too (DESIGN §4.8).

Leases, generators that hold one, and whole pools are dropped in cycles while the collector runs at nearly
every allocation, in every thread. `storm` and what it uses run in a process of their own, which shows all
stacks and dies if it is stuck.
"""

from __future__ import annotations

import gc
import json
import queue
import random
import threading
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from jetsocket import (
    ConnectionPool,
    ConnectionPoolConfig,
    InvalidStateError,
    PoolClosedError,
    PoolExhaustedError,
)
from tests import scripts
from tests.books import faults
from tests.faults.conftest import Report
from tests.servers import EchoServer, open_fds, wait_until

ROW = "garbage collector"
CAP = 4
THREADS = 4
HEALED = 5.0  # s: two ticks of the housekeeper, and a busy machine
SECONDS = 60.0  # of the long form
# What a finalizer may be told that comes inside the pool, or asks for what is not there.
REFUSALS = (InvalidStateError, PoolExhaustedError, PoolClosedError)


def litter(echo: EchoServer, other: EchoServer, seconds: float) -> dict[str, Any]:
    script = "import sys; from tests.faults.test_garbage import storm; storm(*sys.argv[1:])"
    ended = scripts.run(script, echo.uri, other.uri, str(seconds), watchdog=seconds + 90, measured=False)
    assert (ended.status, ended.err) == (0, ""), f"{ended.out}\n{ended.err}"
    assert echo.most_open <= CAP
    wait_until(lambda: other.open_now == 0, HEALED, "pools that were dropped are closed")
    figures: dict[str, Any] = json.loads(ended.out)
    return figures


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_second_of_litter(echo_server: Callable[..., EchoServer]) -> None:
    figures = litter(echo_server(), echo_server(), 1.0)
    assert figures["dropped"] > THREADS


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_minute_of_litter(echo_server: Callable[..., EchoServer], depth: float, report: Report) -> None:
    report(ROW, **litter(echo_server(), echo_server(), max(3.0, SECONDS * depth)))


class Node:
    """An object that refers to itself: only the collector finds it."""

    def __init__(self, **things: Any) -> None:
        self.me = self
        self.things = things


class Finalized(Node):
    """Calls something when it is found."""

    def __del__(self) -> None:
        try:
            self.things["call"]()
        except REFUSALS:
            Litterer.refused += 1


class Litterer:
    """Leaves leases, generators and pools about, in ways that differ in who finds them and when."""

    refused = 0

    def __init__(self, pool: ConnectionPool[Any], other: str) -> None:
        self.pool = pool
        self.other = other
        self.local = threading.local()
        self.dropped: Counter[str] = Counter()
        self.trouble: list[str] = []
        self.over = threading.Event()
        # To a thread that drops what others have made.
        self.heap: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.ways: list[Callable[[str], None]] = [
            self.lease,
            self.generator,
            self.used_generator,
            self.traceback_that_holds_a_lease,
            self.lease_that_a_finalizer_releases,
            self.lease_that_a_weak_reference_releases,
            self.generator_that_a_finalizer_closes,
            self.finalizer_that_asks_the_pool,
            self.finalizer_that_borrows,
            self.lease_of_a_thread_that_ends,
            self.lease_for_another_thread,
            self.generator_for_another_thread,
            self.pool_with_all_it_has,
            self.pool_that_a_finalizer_closes,
            self.connection,
        ]

    def borrow(self, path: str) -> Iterator[Any]:
        with self.pool.acquire(path) as conn:
            while True:
                yield conn.request(1, timeout=20)

    def begun(self, path: str) -> Iterator[Any]:
        stream = self.borrow(path)
        next(stream)
        return stream

    def lease(self, path: str) -> None:
        Node(conn=self.pool.acquire(path))

    def generator(self, path: str) -> None:
        Node(stream=self.begun(path))

    def used_generator(self, path: str) -> None:
        node = Node(stream=self.begun(path))
        assert next(node.things["stream"]) == 1

    def traceback_that_holds_a_lease(self, path: str) -> None:
        node = Node()
        try:
            conn = self.pool.acquire(path)
            node.things["conn"] = conn
            raise ZeroDivisionError
        except ZeroDivisionError as error:
            node.things["error"] = error

    def lease_that_a_finalizer_releases(self, path: str) -> None:
        Finalized(call=self.pool.acquire(path).release)

    def lease_that_a_weak_reference_releases(self, path: str) -> None:
        weakref.finalize(Node(), self.pool.acquire(path).release)

    def generator_that_a_finalizer_closes(self, path: str) -> None:
        Finalized(call=self.begun(path).close)  # type: ignore[attr-defined]

    def finalizer_that_asks_the_pool(self, path: str) -> None:
        Finalized(call=self.pool.stats, conn=self.pool.acquire(path))

    def finalizer_that_borrows(self, path: str) -> None:
        Finalized(call=lambda: self.pool.acquire(path, timeout=0).release())

    def lease_of_a_thread_that_ends(self, path: str) -> None:
        def keep() -> None:
            self.local.conn = Node(conn=self.pool.acquire(path))

        thread = threading.Thread(target=keep)
        thread.start()
        thread.join(30)

    def lease_for_another_thread(self, path: str) -> None:
        self.heap.put(self.pool.acquire(path))

    def generator_for_another_thread(self, path: str) -> None:
        self.heap.put(self.begun(path))

    def pool_with_all_it_has(self, path: str) -> None:
        mine = ConnectionPool[Any](ConnectionPoolConfig(max_connections=2), base_uri=self.other)
        Node(pool=mine, lent=mine.acquire(path), idle=mine.acquire(path).release())

    def pool_that_a_finalizer_closes(self, path: str) -> None:
        mine = ConnectionPool[Any](ConnectionPoolConfig(max_connections=1), base_uri=self.other)
        mine.acquire(path).release()
        Finalized(call=lambda: mine.close(timeout=0))

    def connection(self, path: str) -> None:
        conn = self.pool.acquire(path)
        Node(conn=conn, entry=conn._entry)  # what is below the lease dies with it, or later

    # --- the threads

    def work(self) -> None:
        chance = random.Random(random.random())
        try:
            while not self.over.is_set():
                way = chance.choice(self.ways)
                way(f"/{chance.randrange(6)}")
                self.dropped[way.__name__] += 1
                number = chance.random()
                with self.pool.acquire("/mine") as conn:
                    assert conn.request(number, timeout=20) == number
        except BaseException as error:
            self.trouble.append(f"{way.__name__}: {error!r}")

    def drop_for_others(self) -> None:
        while self.heap.get() is not None:
            pass

    def collect(self) -> None:
        """Collect though all threads stand in line for what lies in garbage."""
        while not self.over.wait(0.01):
            gc.collect()


def storm(uri: str, other: str, seconds: str) -> None:
    """Litter for so long; then all must be as it was."""
    warnings.simplefilter("ignore", ResourceWarning)
    pool = ConnectionPool[Any](ConnectionPoolConfig(max_connections=CAP, acquire_timeout=30), base_uri=uri)
    litterer = Litterer(pool, other)
    for way in litterer.ways[:CAP]:  # what is imported late is imported now
        way("/")
    gc.collect()
    gc.freeze()  # what pytest and others hold need not be looked through each time
    gc.set_threshold(1, 1, 1)
    works = [litterer.work] * THREADS + [litterer.collect, litterer.drop_for_others]
    threads = [threading.Thread(target=work, name=work.__name__, daemon=True) for work in works]
    end = monotonic() + float(seconds)
    for thread in threads:
        thread.start()
    litterer.over.wait(end - monotonic())
    stop(litterer, threads)
    slowest = whole_again(pool)
    pool.close()
    figures = {
        "seconds": float(seconds),
        "dropped": litterer.dropped.total(),
        "ways": len(litterer.dropped),
        "finalizers_refused": Litterer.refused,
        "permits_lost": 0,
        "back_in_s": round(slowest, 2),
    }
    print(json.dumps(figures))


def stop(litterer: Litterer, threads: list[threading.Thread]) -> None:
    *workers, collector, dropper = threads
    litterer.over.set()
    collector.join(30)
    gc.set_threshold(700, 10, 10)
    end = monotonic() + 60
    while any(thread.is_alive() for thread in workers) and monotonic() < end:
        gc.collect()  # as `collect` did
        workers[0].join(0.01)
    litterer.heap.put(None)
    dropper.join(30)
    stuck = [thread.name for thread in threads if thread.is_alive()]
    assert not stuck and not litterer.trouble, f"stuck: {stuck}; {litterer.trouble}"


def whole_again(pool: ConnectionPool[Any]) -> float:
    """Every permit is back, in how many seconds; no socket and no thread is left over."""
    gc.unfreeze()
    gc.collect()
    start = monotonic()
    held = [pool.acquire("/all", timeout=HEALED) for _ in range(CAP)]
    took = monotonic() - start
    for number, conn in enumerate(held):
        assert conn.request(number, timeout=HEALED) == number
        conn.release()
    assert not faults(pool)
    wait_until(lambda: gc.collect() >= 0 and sockets() == pool.stats().idle_connections, HEALED, "sockets")
    wait_until(lambda: len(keepers()) == 1, HEALED, "threads")
    return took


def sockets() -> int:
    return sum(what.startswith("socket:") for what in open_fds().values())


def keepers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("jetsocket")]
