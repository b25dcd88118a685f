"""What a pool counts while it works; `stats` is what it tells of that."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING

from jetsocket.connection_states import IDLE, LENT, OPENING, SHARED
from jetsocket.histogram_buckets import BOUNDS, bucket_of

if TYPE_CHECKING:
    from jetsocket.entry import Entry
    from jetsocket.histogram import Histogram
    from jetsocket.stats import PoolStats

LEASES_AT_ONCE = 64
"""Leases that come back before they are counted: one by one it would cost several times as much."""

_REPLIES_AT_ONCE = 256


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
        self._counts.update(map(partial(bisect_right, BOUNDS), durations))
        self._total += sum(durations)
        self._longest = max(self._longest, *durations)

    def copy(self) -> Recorder:
        """A second one that begins where this one is."""
        new = Recorder()
        new._counts, new._total, new._longest = self._counts.copy(), self._total, self._longest
        return new

    def histogram(self) -> Histogram:
        """What was counted so far."""
        from jetsocket.histogram import Histogram  # it is there since the pool was made

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
        from jetsocket.stats import PoolStats  # likewise

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
