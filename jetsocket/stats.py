"""What a pool counts, and the histograms it keeps of its times."""

from __future__ import annotations

import math
import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING

from jetsocket.html_tables import grid, table
from jetsocket.places import IDLE, LENT, OPENING, SHARED

if TYPE_CHECKING:
    from jetsocket.entry import Entry

LEASES_AT_ONCE = 64
"""Leases that come back before they are counted: one by one it would cost several times as much."""

_REPLIES_AT_ONCE = 256
_UNIT = 1e-6  # s
_OCTAVES = 48  # of microseconds: up to nine years
_PER_OCTAVE = 8  # buckets for each doubling, of equal width: a percentile is exact to 13 %


def upper_bound(bucket: int) -> float:
    """The duration (s) that a bucket ends before."""
    octave, part = divmod(bucket, _PER_OCTAVE)
    return math.ldexp((part + 1 + _PER_OCTAVE) / (2 * _PER_OCTAVE), octave) * _UNIT


_BOUNDS = tuple(map(upper_bound, range(_OCTAVES * _PER_OCTAVE)))


def bucket_of(seconds: float) -> int:
    """Which bucket of a histogram a duration (s) falls into; 0 for half a microsecond and less."""
    return bisect_right(_BOUNDS, seconds)


@dataclass(frozen=True)
class Histogram:
    """How often which durations occurred.

    Attributes:
        counts: Occurrences by number of the bucket; `buckets` tells what durations it stands for.
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

    def buckets(self) -> list[tuple[float, int]]:
        """Pairs of an upper bound (s) and how many durations were at most that long, as Prometheus counts.

        Only bounds of buckets that hold something; the last pair has all durations. The bounds are the same
        in every process: eight for each doubling, from a microsecond on.
        """
        pairs, seen = [], 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            pairs.append((upper_bound(bucket), seen))
        return pairs

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
    """A histogram in the making. Not thread-safe: the lock of the pool's state guards it."""

    def __init__(self) -> None:
        """Begin empty."""
        self._counts: Counter[int] = Counter()
        self._total = 0.0
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration (s)."""
        self._counts[bucket_of(seconds)] += 1
        self._total += seconds
        self._longest = max(self._longest, seconds)

    def add_all(self, durations: Collection[float]) -> None:
        """Count durations (s), of which there is one at least; many at once cost a fifth of one by one."""
        self._counts.update(map(partial(bisect_right, _BOUNDS), durations))
        self._total += sum(durations)
        self._longest = max(self._longest, *durations)

    def copy(self) -> Recorder:
        """A second one that begins where this one is."""
        new = Recorder()
        new._counts, new._total, new._longest = self._counts.copy(), self._total, self._longest
        return new

    def histogram(self) -> Histogram:
        """What was counted so far."""
        return Histogram(dict(self._counts), self._total, self._longest)


class SharedRecorder:
    """A histogram in the making that any thread adds to, without the lock of the pool's state.

    What is added is kept for a while, and counted many at once. A signal handler or finalizer that comes
    while its own thread counts leaves that for the next.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self._lock = threading.Lock()  # guards `_recorder`; no other lock is taken with it
        self._recorder = Recorder()
        self._fresh: deque[float] = deque()

    def add(self, seconds: float) -> None:
        """Count one duration (s)."""
        self._fresh.append(seconds)
        if len(self._fresh) >= _REPLIES_AT_ONCE:
            self._count()

    def _count(self) -> None:
        if self._lock.locked():  # by this very thread, perhaps
            return
        with self._lock:
            if fresh := [self._fresh.popleft() for _ in range(len(self._fresh))]:
                self._recorder.add_all(fresh)

    def histogram(self) -> Histogram:
        """What was counted so far."""
        self._count()
        return self._recorder.histogram()


@dataclass(frozen=True)
class PoolStats:
    """The figures of a pool at one moment. Totals keep counting connections that are gone.

    Attributes:
        total_connections: Connections ever opened.
        active_connections: Lent now, or shared.
        idle_connections: Idle now.
        total_messages_sent: Messages that borrowers sent.
        total_messages_received: Messages that came for borrowers, whether read or not.
        total_reconnects: Connections opened in place of one that was lost.
        connecting: Being opened now.
        waiting: Callers in line now.
        acquires: Leases given out.
        reuses: Leases of a connection that had another borrower before.
        timeouts: Callers who got `PoolExhaustedError`.
        refused: How long they had waited who got an error instead of a lease, by the name of its type.
        connect_errors: Attempts to connect that failed.
        discards: Connections given up, by reason.
        bytes_sent: B sent over all connections, TLS and upgrades included.
        bytes_received: B received likewise.
        in_flight: Requests under way now, with a correlation.
        late_replies: Replies that came after their request was given up, and were dropped.
        unasked_messages: Messages that belonged to no request, subscription or lease: `on_push` got them.
        wait_time: From `acquire` to the lease, connecting included.
        lend_time: From the lease to its return.
        connect_time: From the beginning of a dial to its connection, `configure` included.
        reply_time: From the moment that a `request` has left to its reply; those of callbacks not counted.
    """

    total_connections: int
    active_connections: int
    idle_connections: int
    total_messages_sent: int
    total_messages_received: int
    total_reconnects: int
    connecting: int = 0
    waiting: int = 0
    acquires: int = 0
    reuses: int = 0
    timeouts: int = 0
    connect_errors: int = 0
    discards: Mapping[str, int] = field(default_factory=dict)
    bytes_sent: int = 0
    bytes_received: int = 0
    in_flight: int = 0
    late_replies: int = 0
    unasked_messages: int = 0
    refused: Mapping[str, Histogram] = field(default_factory=dict)
    wait_time: Histogram = field(default_factory=Histogram)
    lend_time: Histogram = field(default_factory=Histogram)
    connect_time: Histogram = field(default_factory=Histogram)
    reply_time: Histogram = field(default_factory=Histogram)

    def as_dict(self) -> dict[str, int | float]:
        """All figures by name, flat: of the histograms count, mean, p50, p95, p99 and longest (s)."""
        flat: dict[str, int | float] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Histogram):
                for name in ("count", "mean", "p50", "p95", "p99", "longest"):
                    flat[f"{each.name}_{name}"] = getattr(value, name)
            elif isinstance(value, Mapping):
                counts = {k: v.count if isinstance(v, Histogram) else v for k, v in value.items()}
                flat[each.name] = sum(counts.values())
                flat.update({f"{each.name}_{key.replace(' ', '_')}": count for key, count in counts.items()})
            else:
                flat[each.name] = value
        return flat

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        counts = [(name, value) for name, value in self.as_dict().items() if isinstance(value, int)]
        told = [(name.replace("_", " "), value) for name, value in counts if not name.endswith("_count")]
        times = [
            (name.replace("_", " "), of.count, *(f"{of.percentile(p):.3g} s" for p in (50, 95, 99)))
            for name in ("wait_time", "lend_time", "connect_time", "reply_time")
            if (of := getattr(self, name)).count
        ]
        return table("PoolStats", told) + grid("Times", ("", "count", "p50", "p95", "p99"), times)

    def __str__(self) -> str:
        """Readable lines: what is now, what has been, and how long it took."""
        discards = ", ".join(f"{count} {reason}" for reason, count in sorted(self.discards.items())) or "none"
        times = ("wait", self.wait_time), ("lent", self.lend_time), ("connect", self.connect_time)
        told = [f"{name} {_told(of)}" for name, of in (*times, ("reply", self.reply_time)) if of.count]
        by_id = ""
        if self.in_flight or self.late_replies or self.unasked_messages:  # only with a correlation
            by_id = f"; {self.in_flight} in flight, {self.late_replies} late, {self.unasked_messages} unasked"
        return (
            f"now: {self.active_connections} lent, {self.idle_connections} idle, {self.connecting} being"
            f" opened, {self.waiting} waiting\n"
            f"so far: {self.acquires} acquires ({self.reuses} reused, {self.timeouts} timed out),"
            f" {self.total_connections} opened ({self.total_reconnects} for lost ones,"
            f" {self.connect_errors} connect errors), not kept: {discards}\n"
            f"messages: {self.total_messages_sent} sent, {self.total_messages_received} received"
            f" ({self.bytes_sent} and {self.bytes_received} B){by_id}\n"
            f"p50 / p99: {', '.join(told) or 'nothing yet'}"
        )


def _told(times: Histogram) -> str:
    return f"{times.p50:.3g} / {times.p99:.3g} s"


class Totals:
    """The running sums behind `PoolStats`. Not thread-safe: the lock of the pool's state guards them.

    Attributes:
        leases: Those that came back and are not counted yet: how long they waited, how long they were lent,
            and whether their connection was reused.
    """

    def __init__(self) -> None:
        """Begin at nought."""
        self.connections = 0
        self.lost = 0  # connections lost and not yet replaced
        self.reconnects = 0
        self.messages_sent = 0
        self.messages_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0
        self.late_replies = 0
        self.unasked = 0
        self.timeouts = 0
        self.connect_errors = 0
        self.discards: Counter[str] = Counter()
        self.wait_time = Recorder()
        self.lend_time = Recorder()
        self.connect_time = Recorder()
        self.reply_time = SharedRecorder()
        self.refused: dict[str, SharedRecorder] = {}
        self._acquires = 0
        self._reuses = 0
        self.leases: list[tuple[float, float, bool]] = []

    def note_refusal(self, error: str, waited: float) -> None:
        """A caller gets that error, after so long (s). Needs no lock."""
        recorder = self.refused.get(error) or self.refused.setdefault(error, SharedRecorder())
        recorder.add(waited)

    def count_leases(self) -> None:
        """Count what has come together."""
        if not self.leases:
            return
        leases, self.leases = self.leases, []
        waits, lend_times, reuses = zip(*leases, strict=True)
        self._acquires += len(leases)
        self._reuses += sum(reuses)
        self.wait_time.add_all(waits)
        self.lend_time.add_all(lend_times)

    def add_up(self, entry: Entry) -> None:
        """A connection is gone: keep what went over it."""
        self.messages_sent += entry.messages_sent
        self.messages_received += entry.messages_received
        self.bytes_sent += entry.wire.bytes_out
        self.bytes_received += entry.wire.bytes_in
        if entry.dispatcher is not None:
            self.late_replies += entry.dispatcher.late_replies
            self.unasked += entry.dispatcher.unasked

    def figures(self, entries: Iterable[Entry], *, waiting: int) -> PoolStats:
        """All figures of a pool that has these connections now."""
        self.count_leases()
        entries = list(entries)
        dispatchers = [e.dispatcher for e in entries if e.dispatcher is not None]
        lent = [e.borrower for e in entries if e.place == LENT and e.borrower is not None]
        active = len(lent) + sum(e.place == SHARED for e in entries)
        lent += [sharer for e in entries if e.place == SHARED for sharer in list(e.sharers)]
        wait_time = self.wait_time.copy()
        for borrower in lent:
            wait_time.add(borrower.taken_at - borrower.asked_at)
        return PoolStats(
            total_connections=self.connections,
            active_connections=active,
            idle_connections=sum(e.place == IDLE for e in entries),
            total_messages_sent=self.messages_sent + sum(e.messages_sent for e in entries),
            total_messages_received=self.messages_received + sum(e.messages_received for e in entries),
            total_reconnects=self.reconnects,
            connecting=sum(e.place == OPENING for e in entries),
            waiting=waiting,
            acquires=self._acquires + len(lent),
            reuses=self._reuses + sum(borrower.reused for borrower in lent),
            timeouts=self.timeouts,
            connect_errors=self.connect_errors,
            discards=dict(self.discards),
            bytes_sent=self.bytes_sent + sum(e.wire.bytes_out for e in entries),
            bytes_received=self.bytes_received + sum(e.wire.bytes_in for e in entries),
            in_flight=sum(each.in_flight for each in dispatchers),
            late_replies=self.late_replies + sum(each.late_replies for each in dispatchers),
            unasked_messages=self.unasked + sum(each.unasked for each in dispatchers),
            refused={name: times.histogram() for name, times in list(self.refused.items())},
            wait_time=wait_time.histogram(),
            lend_time=self.lend_time.histogram(),
            connect_time=self.connect_time.histogram(),
            reply_time=self.reply_time.histogram(),
        )
