"""The pools of a soak and what happens to them: closed, drained, forgotten and made anew while in use."""

from __future__ import annotations

import gc
import itertools
import os
import ssl
import threading
import weakref
from collections import Counter, deque
from random import Random
from time import monotonic
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig, JetSocketError, PooledConnection
from tests.books import faults, state_of
from tests.servers import wait_until
from tests.soak.plan import Kind, Step
from tests.soak.tally import Failure

_AFTER_CLOSE = 10.0  # s until a closed pool has let go of everything
_HINDSIGHT = 3.0  # s after which a failure is judged: what explains it may be told a moment later

_syncs = itertools.count(1)


def sync(conn: PooledConnection[Any]) -> None:
    """A `reset`: whatever is still to come comes before the answer to this."""
    ident = f"sync-{next(_syncs)}"
    conn.send({"id": ident, "do": "echo"})
    while conn.recv()["id"] != ident:
        pass


class Windows:
    """Times in which calls may fail: something was done to the server, or to the pool."""

    def __init__(self) -> None:
        self._spans: deque[list[float]] = deque(maxlen=1000)

    def begin(self, at: float | None = None) -> None:
        """One begins, now if not told otherwise: on the clock that all processes share."""
        self._spans.append([monotonic() if at is None else at, float("inf")])

    def end(self, at: float | None = None) -> None:
        self._spans[-1][1] = monotonic() if at is None else at

    def overlap(self, began: float, ended: float) -> bool:
        """Whether any of that time was in here."""
        return any(begin <= ended and end >= began for begin, end in list(self._spans))

    def longest_outside(self, moments: list[float]) -> float:
        """The longest time between two moments (s) that has nothing to do with any window."""
        seen = sorted(moment for moment in moments if moment)
        pauses = itertools.pairwise(seen)
        return max((b - a for a, b in pauses if not self.overlap(a, b)), default=0.0)


class Slot:
    """The place of one kind of pool; the pool in it changes."""

    def __init__(self, kind: Kind, bases: tuple[str, str], context: ssl.SSLContext) -> None:
        """`bases` are the ws:// and the wss:// URI that it reaches the server by."""
        self.kind = kind
        self._bases = bases
        self._context = context
        self._numbers = itertools.count(1)
        self.windows = Windows()
        self.ends: Counter[str] = Counter()
        self.discards: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()
        self.broken: list[str] = []
        self.longest_close = 0.0
        self._forgotten: list[tuple[weakref.ref[Any], float]] = []
        self.pool = self._make()

    def uri(self, step: Step) -> str:
        return self._bases[step.secure] + step.path

    def _make(self) -> ConnectionPool[Any]:
        kind, name = self.kind, f"{self.kind.name}#{next(self._numbers)}"
        manager = {
            "ssl_context": self._context,
            "extra_headers": lambda: {"X-Pool": f"{name}/{os.getpid()}"},
            "cross_origin_headers": True,  # wss:// is another origin than ws://
            "send_timeout": 15.0,
            "recv_timeout": 15.0,
            "close_timeout": 1.0,
            **kind.manager,
        }
        return ConnectionPool(
            ConnectionPoolConfig(max_connections=kind.cap, **kind.config),
            base_uri=self._bases[0],
            manager_kwargs=manager,
            reset=sync if kind.synced else None,
            name=name,
        )

    def renew(self, rng: Random) -> None:
        """End the pool in one way or another and put a new one in its place."""
        # Where connections are counted by the way they take, the old ones are to be gone first.
        ways = ["close", "drain", "close at once"] + ["forget"] * (not self.kind.proxied)
        way = rng.choice(ways)
        self.ends[way] += 1
        self.windows.begin()
        try:
            if way == "forget":
                self._note_totals()
                self._forgotten.append((weakref.ref(self.pool), monotonic()))
            else:
                if way == "drain":
                    self.pool.drain(timeout=rng.random())
                self.close(0.0 if way == "close at once" else None)
            self.pool = self._make()
        finally:
            self.windows.end()

    def close(self, timeout: float | None = None) -> None:
        """Close the pool; soon after, it holds nothing."""
        began = monotonic()
        self.pool.close(timeout)
        self.longest_close = max(self.longest_close, monotonic() - began)
        entries = state_of(self.pool).entries

        def still_open() -> list[str]:
            return [
                f"{entry!r} {entry.wire.failure!r}" for entry in entries.copy() if entry.wire.fileno() >= 0
            ]

        try:
            wait_until(lambda: not still_open(), _AFTER_CLOSE)
        except AssertionError:
            self.broken.append(f"{self.pool.name} has {still_open()} {_AFTER_CLOSE:g} s after close()")
        self._note_totals()

    def _note_totals(self) -> None:
        stats = self.pool.stats()
        self.discards.update(stats.discards)
        for name in (
            "total_connections",
            "acquires",
            "reuses",
            "timeouts",
            "connect_errors",
            "total_reconnects",
        ):
            self.totals[name] += getattr(stats, name)
        self.broken += [f"{self.pool.name}: {fault}" for fault in faults(self.pool)]

    def still_forgotten(self) -> int:
        """How many of the pools that were forgotten are still there."""
        return sum(pool() is not None for pool, _ in self._forgotten)

    def lend_all(self, patience: float) -> int:
        """How many connections it lends at once; each is used."""
        held: list[PooledConnection[Any]] = []
        try:
            for number in range(self.kind.cap):
                conn = self.pool.acquire(f"{self._bases[0]}/last", timeout=patience)
                held.append(conn)
                asked = {"id": f"last-{number}", "do": "echo"}
                assert conn.request(asked, timeout=patience)["id"] == asked["id"]
        except JetSocketError as error:
            self.broken.append(f"{self.pool.name}: the {len(held) + 1}. of {self.kind.cap}: {error!r}")
            return len(held) - (len(held) > 0 and not held[-1].is_connected)
        finally:
            for conn in held:
                conn.release()
        return len(held)


class Judge:
    """Finds the failures that nothing explains."""

    def __init__(self, slots: list[Slot], outages: Windows) -> None:
        self._slots = slots
        self._outages = outages
        self.unexplained: list[str] = []
        self._waiting: list[tuple[Slot, Failure]] = []

    def hear(self, slot: Slot, failures: list[Failure]) -> None:
        """Take over what a worker has noted."""
        while failures:
            self._waiting.append((slot, failures.pop(0)))

    def judge(self, *, final: bool = False) -> None:
        """Decide about all that are old enough."""
        now, later = monotonic(), []
        for slot, failure in self._waiting:
            if not final and now - failure.ended < _HINDSIGHT:
                later.append((slot, failure))
            elif not any(w.overlap(failure.began, failure.ended) for w in (self._outages, slot.windows)):
                self.unexplained.append(failure.text)
        self._waiting = later


class Janitor(threading.Thread):
    """Ends and renews pools, and collects garbage, while everybody works."""

    def __init__(self, slots: list[Slot], rng: Random, stopping: threading.Event) -> None:
        super().__init__(name="janitor")
        self._slots, self._rng, self._stopping = slots, rng, stopping
        self.collections = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self.failed = error

    def _work(self) -> None:
        until_renewal = self._rng.randint(4, 12)
        while not self._stopping.wait(self._rng.uniform(0.05, 0.5)):
            gc.collect(self._rng.choice((0, 1, 2)))
            self.collections += 1
            until_renewal -= 1
            if until_renewal == 0:
                until_renewal = self._rng.randint(4, 12)
                self._rng.choice(self._slots).renew(self._rng)
