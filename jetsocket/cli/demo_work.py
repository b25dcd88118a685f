"""The demo's work: threads that make calls, and what they count."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jetsocket.clock import monotonic
from jetsocket.exceptions import JetSocketError, PoolClosedError
from jetsocket.pool import ConnectionPool
from jetsocket.uris import parse

_CALL_PATIENCE = 10.0  # s for one attempt at a call, waiting for a connection included
_PATIENCE = 30.0  # s for a call with all its attempts
_PAUSE = 0.05  # s between two attempts at a call
_BURST = 50  # calls to one path, before the next path has its turn


class Plan(NamedTuple):
    """What is to be done."""

    calls: int = 4000
    threads: int = 32
    connections: int = 8
    uri: str | None = None
    """A server of the user's, which sends every message back; None: start one."""


@dataclass
class Tally:
    """What the threads counted; `Workload` guards it."""

    made: int = 0
    wrong: int = 0
    retried: set[int] = field(default_factory=set)  # the calls that failed during the restart
    unexplained: set[int] = field(default_factory=set)  # and those that failed though the server was up
    gave_up: str | None = None


@dataclass
class Outage:
    """When the server was down (monotonic, s)."""

    began: float = float("inf")
    ended: float = float("inf")

    @property
    def over(self) -> bool:
        """Whether the server went and came back."""
        return self.ended < float("inf")

    def explains(self, began: float, ended: float) -> bool:
        """Whether an attempt between these two moments may fail."""
        return began <= self.ended and ended >= self.began


@dataclass
class Workload:
    """Threads that make calls through one pool until all are made.

    Attributes:
        pool: What they borrow connections of.
        uris: Where to: a burst of calls to each in turn.
        plan: How many of each.
        tells_path: Whether replies name the path that they came by.
    """

    pool: ConnectionPool[Any]
    uris: Sequence[str]
    plan: Plan
    tells_path: bool
    tally: Tally = field(default_factory=Tally)
    outage: Outage = field(default_factory=Outage)

    def __post_init__(self) -> None:
        """Make the threads."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._calls = itertools.count(1)
        self._threads = [
            threading.Thread(target=self._work, name=f"demo-{number}") for number in range(self.plan.threads)
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def is_over_within(self, timeout: float) -> bool:
        """Wait for the threads, at most `timeout` s; whether all have ended."""
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                return False
        return True

    def stop(self) -> None:
        """Have the threads end after the attempts that are under way."""
        self._stopping.set()

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._lock:
                    call = next(self._calls)
                if call > self.plan.calls:
                    return
                self._make_call(call)
        except BaseException as error:
            self._give_up(f"a thread ended with {error!r}")
            raise

    def _make_call(self, call: int) -> None:
        """Make one call, with as many attempts as it takes within the patience."""
        uri = uri_of(call, self.plan.calls, self.uris)
        asked = {"id": call, "text": f"call {call}"}
        expected = {**asked, "path": parse(uri).resource} if self.tells_path else asked
        deadline = monotonic() + _PATIENCE
        while not self._stopping.is_set():
            began = monotonic()
            try:
                reply = self.pool.request(uri, asked, timeout=_CALL_PATIENCE)
            except PoolClosedError:
                return
            except JetSocketError as error:
                self._count_failure(call, began, error, deadline)
                self._stopping.wait(_PAUSE)
            else:
                with self._lock:
                    self.tally.made += 1
                    self.tally.wrong += reply != expected
                return

    def _count_failure(self, call: int, began: float, error: JetSocketError, deadline: float) -> None:
        now = monotonic()
        with self._lock:
            tally, explained = self.tally, self.outage.explains(began, now)
            (tally.retried if explained else tally.unexplained).add(call)
        if now >= deadline:
            self._give_up(f"a call failed for {_PATIENCE:g} s, at last with {error}")

    def _give_up(self, why: str) -> None:
        with self._lock:
            if self.tally.gave_up is None:
                self.tally.gave_up = why
        self._stopping.set()


def uri_of(call: int, calls: int, uris: Sequence[str]) -> str:
    """Where the so-manieth call (from 1) goes: to each URI in turn a burst, at least two to each in all."""
    burst = max(1, min(_BURST, calls // (2 * len(uris))))
    return uris[(call - 1) // burst % len(uris)]
