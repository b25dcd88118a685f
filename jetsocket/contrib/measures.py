"""What metrics are made of: the figures of pools, summed by their names, in buckets that all rooms share."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeAlias
from urllib.parse import urlsplit

from jetsocket import ConnectionPool, Histogram
from jetsocket.correlation import JsonRpc
from jetsocket.interrupts import is_alarm
from jetsocket.logs import POOL_LOG
from jetsocket.user_errors import told

BOUNDS = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Upper bounds (s) of the buckets of every duration."""

NAME, ADDRESS, PORT = "jetsocket.pool.name", "server.address", "server.port"
"""The attributes that every figure has; the last two as far as the pool has a `base_uri`."""

LIMITER = "jetsocket.limiter.name"
"""The attribute that the figures of limiters have, too."""

SUM = -1
"""The place of a duration's sum (s), beside those of its buckets."""

Pool: TypeAlias = ConnectionPool[Any]
Labels: TypeAlias = tuple[str, ...]
Identity: TypeAlias = tuple[str, str, str]
"""Values of NAME, ADDRESS and PORT; "" where there is none."""

Key: TypeAlias = tuple[str, Labels, int]
"""What is counted: its name, values of its labels, and the bucket (or SUM) of a duration; else 0."""

Figures: TypeAlias = dict[Key, float]


@dataclass(frozen=True)
class Measure:
    """One thing that is measured.

    Attributes:
        key: What this package calls it.
        name: What it is called elsewhere.
        kind: "now" (it rises and falls), "most" (likewise, and of what several tell the largest counts),
            "ever" (it only grows) or "times" (a duration, in buckets).
        unit: By UCUM.
        labels: The attributes that it has beside the name of its pool.
        text: What it is.
    """

    key: str
    name: str
    kind: str
    unit: str
    labels: tuple[str, ...]
    text: str


MEASURES = (
    Measure("count", "jetsocket.connection.count", "now", "{connection}", ("state",), "Open connections"),
    Measure("max", "jetsocket.connection.max", "now", "{connection}", (), "Most connections allowed"),
    Measure(
        "pending_requests", "jetsocket.connection.pending_requests", "now", "{request}", (), "Callers in line"
    ),
    Measure(
        "wait_time",
        "jetsocket.connection.wait_time",
        "times",
        "s",
        ("error.type",),
        "From acquire to the connection, or to the error",
    ),
    Measure(
        "use_time", "jetsocket.connection.use_time", "times", "s", (), "From the connection to its return"
    ),
    Measure("create_time", "jetsocket.connection.create_time", "times", "s", (), "To open a connection"),
    Measure(
        "timeouts", "jetsocket.connection.timeouts", "ever", "{timeout}", (), "Callers who got none in time"
    ),
    Measure(
        "closed", "jetsocket.connection.closed", "ever", "{connection}", ("reason",), "Connections given up"
    ),
    Measure("messages", "jetsocket.messages", "ever", "{message}", ("direction",), "Messages of borrowers"),
    Measure("io", "jetsocket.io", "ever", "By", ("direction",), "Bytes, TLS and upgrades included"),
    Measure(
        "call",
        "rpc.client.call.duration",
        "times",
        "s",
        ("rpc.system.name",),
        "From a request to its reply",
    ),
    Measure("limiter_max", "jetsocket.limiter.max", "most", "{slot}", (LIMITER,), "Most slots there are"),
    Measure("limiter_held", "jetsocket.limiter.held", "now", "{slot}", (LIMITER,), "Slots of this process"),
    Measure("limiter_others", "jetsocket.limiter.others", "most", "{slot}", (LIMITER,), "Slots of others"),
    Measure("limiter_waiting", "jetsocket.limiter.waiting", "most", "{waiter}", (LIMITER,), "Who waits"),
    Measure("limiter_lost", "jetsocket.limiter.lost", "ever", "{slot}", (LIMITER,), "Slots that were lost"),
    Measure("limiter_errors", "jetsocket.limiter.errors", "ever", "{error}", (LIMITER,), "Errors of it"),
)

_OF_LIMITERS = {
    "limiter_max": "limit",
    "limiter_held": "held",
    "limiter_others": "others",
    "limiter_waiting": "waiting",
    "limiter_lost": "lost",
    "limiter_errors": "errors",
}
"""Which figure of `Limiter.stats` each is. They are a process's: pools that share a limiter tell the same."""
_GROW = ("limiter_lost", "limiter_errors")


@dataclass
class Sums:
    """Figures of pools, added up.

    Attributes:
        now: What is so at this moment.
        ever: What only grows.
    """

    now: Figures = field(default_factory=dict)
    ever: Figures = field(default_factory=dict)

    def of(self, measure: Measure) -> Figures:
        """The figures among which a measure's are."""
        return self.now if measure.kind in ("now", "most") else self.ever


@dataclass(eq=False)
class _Known:
    """What is remembered of a pool, to tell of it once it is gone."""

    pool: weakref.ref[Pool]
    identity: Identity
    ever: Figures = field(default_factory=dict)
    has_failed: bool = False


@lru_cache(1024)
def server_of(uri: str) -> tuple[str, int | None]:
    """Name or address, and port, of the server that a URI leads to."""
    parts = urlsplit(uri)
    return parts.hostname or "", parts.port or {"ws": 80, "wss": 443}.get(parts.scheme)


def check_pool(pool: object) -> None:
    """Refuse what is none.

    Raises:
        TypeError: It is no pool.
    """
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"a jetsocket.ConnectionPool is needed, not {pool!r}")


def identity_of(pool: Pool) -> Identity:
    """What tells the figures of a pool from others': its name, and the server of its `base_uri`."""
    address, port = ("", None) if pool.base_uri is None else server_of(pool.base_uri)
    return pool.name, address, "" if port is None else str(port)


class Ledger:
    """The figures of pools by identity, which several may share. Thread-safe; keeps no pool open.

    Of a pool that is closed or collected nothing is told any more. What it has counted stays in the sums of
    its identity while another one has that, for what only grows must not fall.
    """

    def __init__(self, *, keeps_all: bool = False) -> None:
        """Begin empty; `keeps_all`: what was counted stays, with or without a pool of that identity."""
        # By process: in a forked child, the parent's may be held by a thread that is not there. The pools'
        # locks are taken with it.
        self._locks: dict[int, threading.Lock] = {}
        self._known: list[_Known] = []
        self._gone: dict[Identity, Figures] = {}
        self._keeps_all = keeps_all
        self._pid = os.getpid()

    def add(self, pool: Pool) -> None:
        """Tell of that pool, too, from now on.

        Raises:
            TypeError: It is no pool.
        """
        check_pool(pool)
        with self._lock:
            if not any(known.pool() is pool for known in self._known):
                self._known.append(_Known(weakref.ref(pool), identity_of(pool)))

    @property
    def has_pools(self) -> bool:
        """Whether there is a pool to tell of, or one that is gone since it was last told of."""
        return bool(self._known)

    @property
    def _lock(self) -> threading.Lock:
        return self._locks.setdefault(os.getpid(), threading.Lock())

    def read(self) -> dict[Identity, Sums]:
        """The sums of the pools of each identity."""
        limits = [(known, _limits_of(known)) for known in list(self._known)]  # not with the lock: users' code
        with self._lock:
            if self._pid != os.getpid():  # what was counted before the fork is the parent's
                self._pid, self._gone = os.getpid(), {}
                for known in self._known:
                    known.ever = {}
            found: dict[Identity, Sums] = {}
            for known, of_limiters in limits:
                if known in self._known:
                    self._read(known, of_limiters, found)
            for identity, gone in list(self._gone.items()):
                if identity in found or self._keeps_all:
                    _add(gone, found.setdefault(identity, Sums()).ever)
                else:
                    del self._gone[identity]
            return found

    def _read(self, known: _Known, of_limiters: Sums, found: dict[Identity, Sums]) -> None:
        """Add what a pool tells to what was found; of one that is gone, keep what it has counted."""
        pool = known.pool()
        is_closed = pool is None or pool.is_closed
        if pool is not None:
            figures = figures_of(pool)
            figures.now.update(of_limiters.now)
            figures.ever.update(of_limiters.ever)
            known.ever = figures.ever
            if not is_closed:
                sums = found.setdefault(known.identity, Sums())
                _add(figures.now, sums.now)
                _add(figures.ever, sums.ever)
        if is_closed:
            self._known.remove(known)
            _add(known.ever, self._gone.setdefault(known.identity, {}))


def figures_of(pool: Pool) -> Sums:
    """The figures of one pool at this moment."""
    stats = pool.stats()
    now: Figures = {
        ("count", ("idle",), 0): stats.idle_connections,
        ("count", ("used",), 0): stats.active_connections,
        ("max", (), 0): pool.config.max_connections,
        ("pending_requests", (), 0): stats.waiting,
    }
    ever: Figures = {
        ("timeouts", (), 0): stats.timeouts,
        ("messages", ("sent",), 0): stats.total_messages_sent,
        ("messages", ("received",), 0): stats.total_messages_received,
        ("io", ("sent",), 0): stats.bytes_sent,
        ("io", ("received",), 0): stats.bytes_received,
    }
    ever.update({("closed", (reason,), 0): count for reason, count in stats.discards.items()})
    _add_times(ever, "wait_time", ("",), stats.wait_time)
    for error, times in stats.refused.items():
        _add_times(ever, "wait_time", (error,), times)
    _add_times(ever, "use_time", (), stats.lend_time)
    _add_times(ever, "create_time", (), stats.connect_time)
    if isinstance(pool.correlation, JsonRpc):
        _add_times(ever, "call", ("jsonrpc",), stats.reply_time)
    return Sums(now, ever)


def _limits_of(known: _Known) -> Sums:
    """What the limiters of a pool tell; if that fails, the log says so once."""
    sums, pool = Sums(), known.pool()
    try:
        limits = {} if pool is None else pool.limits()
    except Exception as error:  # the user's code
        if is_alarm(error, users_code=True):
            raise
        if not known.has_failed:
            known.has_failed = True
            text = "[%s] stats() of a limiter failed: metrics lack the figures of limiters: %s"
            POOL_LOG.warning(text, known.identity[0], told(error))
        return sums
    for limiter, stats in limits.items():
        for key, name in _OF_LIMITERS.items():
            value = stats.get(name)
            if isinstance(value, (int, float)):
                (sums.ever if key in _GROW else sums.now)[key, (limiter,), 0] = value
    return sums


def durations(figures: Mapping[Key, float], name: str) -> dict[Labels, tuple[list[int], float]]:
    """A duration, by its labels: how often it fell into each bucket, the last being the rest; its sum (s)."""
    found: dict[Labels, tuple[list[int], float]] = {}
    for (key, labels, place), value in figures.items():
        if key == name:
            counts, total = found.get(labels) or ([0] * (len(BOUNDS) + 1), 0.0)
            if place == SUM:
                total += value
            else:
                counts[place] += int(value)
            found[labels] = counts, total
    return found


def _add_times(figures: Figures, name: str, labels: Labels, times: Histogram) -> None:
    figures[name, labels, SUM] = times.total
    seen = 0
    for upper_bound, count in times.buckets():
        key = name, labels, bisect_left(BOUNDS, upper_bound)
        figures[key] = figures.get(key, 0) + count - seen
        seen = count


def _add(more: Figures, to: Figures) -> None:
    for key, value in more.items():
        if key[0] in _OF_LIMITERS:  # which tell the same to each pool
            to[key] = max(to.get(key, 0), value)
        else:
            to[key] = to.get(key, 0) + value


__all__ = [
    "ADDRESS",
    "BOUNDS",
    "LIMITER",
    "MEASURES",
    "NAME",
    "PORT",
    "SUM",
    "Figures",
    "Identity",
    "Key",
    "Labels",
    "Ledger",
    "Measure",
    "Pool",
    "Sums",
    "check_pool",
    "durations",
    "figures_of",
    "identity_of",
    "server_of",
]
