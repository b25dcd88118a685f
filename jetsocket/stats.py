"""What a pool counts, and the histograms it keeps of its times."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

_UNIT = 1e-6  # s
_AT_ONCE = 64  # durations
_PER_OCTAVE = 8  # buckets for each doubling, of equal width: a percentile is exact to 13 %


def bucket_of(seconds: float) -> int:
    """Which bucket of a histogram a duration (s) falls into; 0 for half a microsecond and less."""
    fraction, octave = math.frexp(seconds / _UNIT)
    if octave < 0 or not fraction:
        return 0
    return octave * _PER_OCTAVE + int(fraction * (2 * _PER_OCTAVE)) - _PER_OCTAVE


def upper_bound(bucket: int) -> float:
    """The duration (s) that a bucket ends before."""
    octave, part = divmod(bucket, _PER_OCTAVE)
    return math.ldexp((part + 1 + _PER_OCTAVE) / (2 * _PER_OCTAVE), octave) * _UNIT


@dataclass(frozen=True)
class Histogram:
    """How often which durations occurred.

    Attributes:
        counts: Occurrences by bucket; `upper_bound` tells what a bucket means.
        total: Sum of all durations (s).
        longest: The longest of all (s).
    """

    counts: Mapping[int, int] = field(default_factory=dict)
    total: float = 0.0
    longest: float = 0.0

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Their mean (s), 0.0 when there is none."""
        return self.total / self.count if self.counts else 0.0

    def percentile(self, percent: float) -> float:
        """The duration (s) that so many percent did not exceed, to within 13 %; 0.0 when there is none."""
        wanted = math.ceil(self.count * percent / 100)
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(upper_bound(bucket), self.longest)
        return 0.0

    @property
    def p50(self) -> float:
        """The median (s)."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """What 95 % did not exceed (s)."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """What 99 % did not exceed (s)."""
        return self.percentile(99)


class Recorder:
    """A histogram in the making. Not thread-safe: the ledger's lock guards it."""

    def __init__(self) -> None:
        """Begin empty."""
        self._counts: dict[int, int] = {}
        self._total = 0.0
        self._longest = 0.0
        self._fresh: list[float] = []  # not counted yet: many at once cost a third of one by one

    def add(self, seconds: float) -> None:
        """Count one duration (s)."""
        self._fresh.append(seconds)
        if len(self._fresh) >= _AT_ONCE:
            self._count()

    def _count(self) -> None:
        fresh, self._fresh = self._fresh, []
        counts = self._counts
        for bucket in map(bucket_of, fresh):
            counts[bucket] = counts.get(bucket, 0) + 1
        self._total += sum(fresh)
        self._longest = max(self._longest, *fresh)

    def copy(self) -> Recorder:
        """A second one that begins where this one is."""
        new = Recorder()
        new._fresh = self._fresh.copy()
        new._counts, new._total, new._longest = self._counts.copy(), self._total, self._longest
        return new

    def histogram(self) -> Histogram:
        """What was counted so far."""
        if self._fresh:
            self._count()
        return Histogram(dict(self._counts), self._total, self._longest)


@dataclass(frozen=True)
class PoolStats:
    """The figures of a pool at one moment. Totals keep counting connections that are gone.

    Attributes:
        total_connections: Connections ever opened.
        active_connections: Lent now.
        idle_connections: Idle now.
        total_messages_sent: Messages that borrowers sent.
        total_messages_received: Messages that came for borrowers, whether read or not.
        total_reconnects: Connections opened in place of one that was lost.
        waiting: Callers in line now.
        acquires: Leases given out.
        reuses: Leases of a connection that had another borrower before.
        timeouts: Callers who got `PoolExhaustedError`.
        connect_errors: Attempts to connect that failed.
        discards: Connections given up, by reason.
        bytes_sent: B sent over all connections, TLS and upgrades included.
        bytes_received: B received likewise.
        wait_time: From `acquire` to the lease, connecting included.
        lend_time: From the lease to its return.
    """

    total_connections: int
    active_connections: int
    idle_connections: int
    total_messages_sent: int
    total_messages_received: int
    total_reconnects: int
    waiting: int = 0
    acquires: int = 0
    reuses: int = 0
    timeouts: int = 0
    connect_errors: int = 0
    discards: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    wait_time: Histogram = field(default_factory=Histogram)
    lend_time: Histogram = field(default_factory=Histogram)


class Totals:
    """The running sums behind `PoolStats`. Not thread-safe: the ledger's lock guards them."""

    def __init__(self) -> None:
        """Begin at nought."""
        self.connections = 0
        self.lost = 0  # connections lost and not yet replaced
        self.reconnects = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.acquires = 0
        self.reuses = 0
        self.timeouts = 0
        self.connect_errors = 0
        self.discards: Counter[str] = Counter()
        self.wait_time = Recorder()
        self.lend_time = Recorder()
