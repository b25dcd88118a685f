"""The fields of a pool's state, and the moves that its steps are made of.

A connection is lent, comes home, is retired, is forgotten; a dial is ordered and ends. All is called with the
lock held, by the steps. What is decided here and done elsewhere is put on a queue: `queued` for
the openers, `doorbell` for the housekeeper.
"""

from __future__ import annotations

import os
import threading
import weakref
from abc import abstractmethod
from collections import deque
from collections.abc import Hashable
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic, slept
from jetsocket.config import ConnectionPoolConfig
from jetsocket.cooldown import Troubles, chance
from jetsocket.counting import Totals
from jetsocket.deferred_log import DeferredLog
from jetsocket.dials import PACE, Dial
from jetsocket.entry import Entry
from jetsocket.events import Events, info_of
from jetsocket.exceptions import PoolClosedError
from jetsocket.known_uris import KnownUris
from jetsocket.places import CLOSING, GONE, IDLE, LENT, OPENING, SHARED
from jetsocket.state.idle_queues import Idle, Shared
from jetsocket.state.line import Line
from jetsocket.state.locking import BUSY, CALM, Steps
from jetsocket.uris import Target
from jetsocket.wire.channel import Channel

if TYPE_CHECKING:
    from jetsocket.housekeeper import Housekeeper
    from jetsocket.info import ConnectionInfo

NEVER = float("inf")

TICK = 0.5
"""s between two rounds of the housekeeper."""


class Moves(Steps):
    """The fields, and the moves that all steps are made of; the caller of each method here holds the lock.

    Attributes:
        pid: The process it is of.
        pool: The pool that it is of, which it does not keep alive; None: of no pool.
        slots: The right of a connection to exist: one for each entry, and for each dial that is about to
            begin.
        owed: Slots that connections still have though `resize` has taken them away.
        entries: All connections that have a slot, whatever their place.
        idle: Those that are idle, by URI and by age.
        closing: Those that are closing.
        line: Who waits.
        lent: The borrowers that have a connection. The return of a lease is claimed by removing it from here,
            in one call without the lock.
        shared: The connections that are shared, by key.
        dials: The orders to open a connection that are not over.
        resting: Those of which an attempt has failed, and the next one is to come.
        queued: Those that no opener has taken up.
        left_behind: Those that ended before their thread came back from them; see `hanging`.
        troubles: The URIs whose last dial failed.
        floors: How many connections are to be kept open, by key, as `prewarm(keep=True)` asked.
        closed: No more leases, ever.
        draining: No more leases; those that are out may come back.
        cut: Whether `close` found leases out.
        slept: For how long the machine had slept since it was started, when that was last looked at (s).
        has_dispatchers: Whether the pool has a correlation.
        has_check: Whether the user's `check` takes the place of pings, which the server may not answer.
        watch_version: Changes whenever the set of open connections does.
        plan_at: When the line is to be looked at again (monotonic, s), by the housekeeper.
        doorbell: Wakes the housekeeper.
        log: What is to be logged, by a thread that may.
        known: What was found out about the URIs; touched without the lock.
        spent_tokens: The limiter's tokens of connections that are closed.
        unfinished: Connections that the housekeeper is to go on with; see `Channel.unfinished`.
        events: Who is told what the pool does; None: no listener is attached.
    """

    def __init__(self, config: ConnectionPoolConfig, name: str, close_timeout: float) -> None:
        """Begin with all slots free and no connection."""
        super().__init__(name)
        self.pid = os.getpid()
        self.pool: weakref.ref[object] | None = None
        self.config = config
        self.close_timeout = close_timeout
        self.slots = threading.BoundedSemaphore(config.max_connections)
        self.owed = 0
        self.entries: set[Entry] = set()
        self.idle = Idle(Shared(self.lock))
        self.closing: dict[Entry, None] = {}
        self.line = Line()
        self.lent: dict[Borrower, None] = {}
        self.shared: dict[str, dict[Entry, None]] = {}
        self.dials: dict[Dial, None] = {}
        self.resting: set[Dial] = set()
        self.queued: deque[Dial] = deque()
        self.left_behind: dict[Dial, None] = {}
        self.troubles = Troubles(config.connect_cooldown, chance)
        self.floors: dict[str, tuple[Target, int]] = {}
        self.closed = self.draining = self.cut = False
        self.slept = slept()
        self.has_check = self.has_dispatchers = False
        self.watch_version = 0
        self.plan_at = NEVER
        self.doorbell: SimpleQueue[object] = SimpleQueue()
        self.log = DeferredLog()
        self.known = KnownUris(self.log, name)
        self.unfinished: set[Channel] = set()
        self.events: Events | None = None
        self.last_connect_error: BaseException | None = None
        self.parked = self.starting = 0  # openers that wait for an order, and those that are being started
        self.wake_opener: SimpleQueue[None] = SimpleQueue()
        self.spent_tokens: deque[Hashable] = deque()
        self.totals = Totals()
        self._drain_waiters: list[threading.Lock] = []
        self._housekeeper: Housekeeper | None = None

    def _condition(self) -> int:
        return BUSY if self.draining or self.owed or self.line.order else CALM

    def end_as(self, other: Moves) -> None:
        """Begin closed or drained, if another one is."""
        self.closed, self.draining = other.closed, other.draining
        self.condition = self._condition()

    @abstractmethod
    def _plan(self) -> None:
        """Order what the callers in line need, and say when to look again."""

    @abstractmethod
    def _served_by(self, entry: Entry) -> Borrower | None:
        """Who gets a connection that may be lent; None: it becomes idle, or its slot is another URI's now."""

    # --- moves -----------------------------------------------------------------------------------------

    def _lend(self, entry: Entry, borrower: Borrower) -> None:
        """Give a connection to a borrower. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        if entry.place == OPENING:
            self.idle.count_open(entry.key, 1)
        self.lent[borrower] = None
        borrower.entry = entry
        if borrower.shares:
            entry.borrower = None
            entry.sharers[borrower] = None
            entry.requests += not borrower.is_subscriber
            self.shared.setdefault(entry.key, {})[entry] = None
            entry.move(SHARED)
        else:
            entry.borrower = borrower
            entry.move(LENT)

    def _hand_over(self, entry: Entry, borrower: Borrower) -> None:
        """Give a connection to the first in line. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        if entry.place in (LENT, SHARED):
            entry.idle_since = now = monotonic()  # for no time, but it is not new any more
            if self.idle.paced_until(entry.key):
                self.idle.pace(entry.key, now + PACE)
        self._lend(entry, borrower)
        borrower.rouse()
        self.line.leave(borrower)
        if self.line:
            self._count_overtaken(borrower)
        if borrower.shares:
            self._fill(entry)

    def _turn_away(self, borrower: Borrower, error: BaseException) -> None:
        """Have a caller in line raise that error. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        borrower.error = error
        borrower.rouse()
        self.line.leave(borrower)

    def _count_overtaken(self, served: Borrower) -> None:
        assert self.lock.locked()
        for head in self.line.heads():
            if head.asked_at < served.asked_at and head.key != served.key:
                head.overtaken += 1

    def _come_home(self, entry: Entry) -> None:
        """The one way of a connection that may be lent: to the first in line, the idle queue, or its end."""
        assert self.lock.locked()
        if self.closed or self.draining:
            self._retire(entry, "pool closed")
        elif self._has_too_many:
            self._retire(entry, "resized")
        elif entry.is_outdated:
            self._retire(entry, "cleared")
        elif not self.line:
            self._rest(entry)
        elif (first := self._served_by(entry)) is not None:
            self._hand_over(entry, first)
        elif entry.place != CLOSING:
            self._rest(entry)
            self._plan()

    # --- sharing ---------------------------------------------------------------------------------------

    def _may_join(self, entry: Entry) -> bool:
        """Whether one more request may go over a shared connection."""
        assert self.lock.locked()
        return (
            entry.ends_with is None
            and not entry.is_outdated
            and entry.wire.failure is None
            and monotonic() < entry.expires
            and entry.requests < self.config.max_in_flight
        )

    def _place_for(self, borrower: Borrower) -> Entry | None:
        """A place on a shared connection to that URI: on the fullest, so that few are needed.

        For each caller that waits for a connection of its own, and for whom none is being opened, the one
        with the fewest requests is left to run empty.
        """
        assert self.lock.locked()
        shared = self.shared.get(borrower.key)
        if not shared or self.closed or self.draining:
            return None
        entries = sorted(shared, key=lambda entry: len(entry.sharers))
        promised = max(0, self.line.exclusive(borrower.key) - self.idle.opening(borrower.key))
        for entry in reversed(entries[promised:]):
            if self._may_join(entry):
                return entry
        return None

    def _fill(self, entry: Entry) -> None:
        """Give the places of a shared connection to those in line that may share it."""
        assert self.lock.locked()
        while (sharer := self.line.first_sharer(entry.key)) is not None:
            if self._place_for(sharer) is not entry:
                break
            self._lend(entry, sharer)
            sharer.rouse()
            self.line.leave(sharer)

    def _leave_share(self, entry: Entry, borrower: Borrower) -> None:
        """One of those that share a connection is done."""
        assert self.lock.locked()
        self._unshare(entry, borrower)
        if borrower.reason is not None:
            entry.ends_with = entry.ends_with or borrower.reason
        if entry.place != SHARED:
            return
        if not entry.sharers or entry.wire.failure is not None:
            self._end_sharing(entry)
        else:
            self._fill(entry)

    def _unshare(self, entry: Entry, borrower: Borrower) -> None:
        assert self.lock.locked()
        if borrower in entry.sharers:
            del entry.sharers[borrower]
            entry.requests -= not borrower.is_subscriber

    def _end_sharing(self, entry: Entry) -> None:
        """The last one has left, or the connection has ended."""
        assert self.lock.locked()
        if entry.wire.failure is not None:
            self._retire(entry, "closed")
        elif entry.ends_with is not None:
            self._retire(entry, entry.ends_with)
        else:
            self._forget_share(entry)
            self._come_home(entry)

    def _forget_share(self, entry: Entry) -> None:
        assert self.lock.locked()
        shared = self.shared.get(entry.key)
        if shared is not None:
            shared.pop(entry, None)
            if not shared:
                del self.shared[entry.key]

    @property
    def _has_too_many(self) -> bool:
        """Whether `resize` has taken away more slots than the connections that are closing will give back."""
        assert self.lock.locked()
        return self.owed > 0 and self.owed > sum(entry.wanted_by is None for entry in self.closing)

    def _rest(self, entry: Entry) -> None:
        """Let it wait for its next borrower."""
        assert self.lock.locked()
        if entry.place == OPENING:
            self.idle.count_open(entry.key, 1)
        entry.borrower = None
        entry.idle_since = monotonic()
        entry.move(IDLE)
        self.idle.put(entry)

    def _retire(self, entry: Entry, reason: str, *, gone: bool = False) -> None:
        """Take a connection out of service: it is closed already (`gone`), or the housekeeper closes it."""
        assert self.lock.locked()
        if entry.place in (CLOSING, GONE):
            if gone:
                self._forget(entry)
            return
        self.totals.discards[reason] += 1
        entry.closed_for = reason
        if reason in ("closed", "pong overdue", "check failed"):
            self.totals.lost += 1
        if entry.place == IDLE:
            self.idle.remove(entry)
        self.idle.pace(entry.key, 0.0)
        # One that was about to be counted as open, too: with the last of its URI the queue has to go.
        self.idle.count_open(entry.key, 0 if entry.place == OPENING else -1)
        entry.borrower = None
        if entry.place == SHARED:
            self._forget_share(entry)
        entry.close_by = monotonic() + self.close_timeout
        entry.move(CLOSING)
        self.closing[entry] = None
        if gone:
            self._forget(entry)
        elif len(self.closing) == 1:  # while there are others, it comes by soon anyway
            self.doorbell.put("closing")

    def _forget(self, entry: Entry) -> None:
        """It is closed: its slot is free, or goes to the dial that wants it."""
        assert self.lock.locked()
        if entry.place == GONE:
            return
        entry.move(GONE)
        self.closing.pop(entry, None)
        self.watch_version += 1
        self.totals.add_up(entry)
        if self._leave_slot(entry):
            self._free_slot()
        elif self.line and self.config.max_per_uri is not None:
            self._plan()

    def _leave_slot(self, entry: Entry) -> bool:
        """A connection that is gone leaves its slot; False: to the dial that wants it."""
        assert self.lock.locked()
        if entry.token is not None:
            self.spent_tokens.append(entry.token)
            entry.token = None
            self.doorbell.put("tokens")
        if entry.was_opened and self.events is not None:
            self.events.note("closed", partial(_told_of_end, entry, monotonic()))
            entry.was_opened = False
        dial, is_wanted = entry.wanted_by, False
        if dial is not None and dial in self.dials and dial.room is entry:
            dial.has_slot = is_wanted = True
            dial.room = None
        self.entries.discard(entry)
        return not is_wanted

    def _free_slot(self) -> None:
        assert self.lock.locked()
        if self.owed:
            self.owed -= 1
        else:
            self.slots.release()
        if self.line:
            self._plan()

    def _wake_drainers(self) -> None:
        assert self.lock.locked()
        for waiter in self._drain_waiters:
            if waiter.locked():
                waiter.release()
        self._drain_waiters.clear()

    def closed_error(self) -> PoolClosedError:
        """What to tell a caller once there are no leases any more."""
        what = "closed" if self.closed else "drained"
        return PoolClosedError(f"pool {self.name!r} is {what}: it gives no more leases; make a new pool")


def _told_of_end(entry: Entry, closed_at: float) -> tuple[ConnectionInfo, str]:
    """What listeners are told of a connection that is closed."""
    return info_of(entry, closed_at), entry.closed_for


__all__ = ["NEVER", "TICK", "Moves"]
