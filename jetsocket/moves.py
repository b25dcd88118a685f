"""The fields of a pool's state, and the moves that its steps are made of.

A connection is lent, comes home, is retired, is forgotten; a dial is ordered and ends. All is called with the
lock held, by the steps in `state`. What is decided here and done elsewhere is put on a queue: `queued` for
the openers, `doorbell` for the housekeeper.
"""

from __future__ import annotations

import os
import random
import threading
from collections import deque
from collections.abc import Hashable
from queue import SimpleQueue
from typing import Any

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.cooldown import Troubles
from jetsocket.deferred_log import DeferredLog
from jetsocket.demand import MOST_OVERTAKEN, Dial, dials_allowed, room_allowed_at
from jetsocket.entry import Entry
from jetsocket.exceptions import PoolClosedError
from jetsocket.idle import Idle, Shared
from jetsocket.known_uris import KnownUris
from jetsocket.line import Line
from jetsocket.locking import Steps
from jetsocket.places import CHECKING, CLOSING, GONE, IDLE, LENT, OPENING
from jetsocket.stats import Totals
from jetsocket.uris import Target
from jetsocket.wire.channel import Channel

_NEVER = float("inf")

TICK = 0.5
"""s between two rounds of the housekeeper."""


class Moves(Steps):
    """The fields, and the moves that all steps are made of; the caller of each method here holds the lock.

    Attributes:
        pid: The process it is of.
        slots: The right of a connection to exist: one for each entry, and for each dial that is about to
            begin.
        owed: Slots that connections still have though `resize` has taken them away.
        entries: All connections that have a slot, whatever their place.
        idle: Those that are idle, by URI and by age.
        closing: Those that are closing.
        line: Who waits.
        lent: The borrowers that have a connection. The return of a lease is claimed by removing it from here,
            in one call without the lock.
        dials: The orders to open a connection that are not over.
        queued: Those that no opener has taken up.
        troubles: The URIs whose last dial failed.
        floors: How many connections are to be kept open, by key, as `prewarm(keep=True)` asked.
        closed: No more leases, ever.
        draining: No more leases; those that are out may come back.
        cut: Whether `close` found leases out.
        watch_version: Changes whenever the set of open connections does.
        plan_at: When the line is to be looked at again (monotonic, s), by the housekeeper.
        doorbell: Wakes the housekeeper.
        log: What is to be logged, by a thread that may.
        known: What was found out about the URIs; touched without the lock.
        spent_tokens: The limiter's tokens of connections that are closed.
        unfinished: Connections that the housekeeper is to go on with; see `Channel.unfinished`.
    """

    def __init__(self, config: ConnectionPoolConfig, name: str, close_timeout: float) -> None:
        """Begin with all slots free and no connection."""
        super().__init__(name)
        self.pid = os.getpid()
        self.config = config
        self.close_timeout = close_timeout
        self.slots = threading.BoundedSemaphore(config.max_connections)
        self.owed = 0
        self.entries: set[Entry] = set()
        self.idle = Idle(Shared(self.lock))
        self.closing: dict[Entry, None] = {}
        self.line = Line()
        self.lent: dict[Borrower, None] = {}
        self.dials: dict[Dial, None] = {}
        self.queued: deque[Dial] = deque()
        self.troubles = Troubles(config.connect_cooldown, random.random)
        self.floors: dict[str, tuple[Target, int]] = {}
        self.closed = self.draining = self.cut = False
        self.watch_version = 0
        self.plan_at = _NEVER
        self.doorbell: SimpleQueue[object] = SimpleQueue()
        self.log = DeferredLog()
        self.known = KnownUris(self.log, name)
        self.unfinished: set[Channel] = set()
        self.last_connect_error: BaseException | None = None
        self.parked = self.starting = 0  # openers that wait for an order, and those that are being started
        self.wake_opener: SimpleQueue[None] = SimpleQueue()
        self.spent_tokens: deque[Hashable] = deque()
        self.totals = Totals()
        self._drain_waiters: list[threading.Lock] = []
        self._keeper: Any = None

    # --- moves -----------------------------------------------------------------------------------------

    def _lend(self, entry: Entry, borrower: Borrower) -> None:
        """Give a connection to a borrower. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        if entry.place == OPENING:
            self.idle.count_open(entry.key, 1)
        self.lent[borrower] = None
        borrower.entry = entry
        entry.borrower = borrower
        entry.move(LENT)

    def _hand_over(self, entry: Entry, borrower: Borrower) -> None:
        """Give a connection to the first in line."""
        self._lend(entry, borrower)
        self.line.leave(borrower)
        borrower.rouse()
        if self.line.has_others:
            self._count_overtaken(borrower)

    def _count_overtaken(self, served: Borrower) -> None:
        for head in self.line.heads():
            if head.asked_at < served.asked_at and head.key != served.key:
                head.overtaken += 1

    def _come_home(self, entry: Entry) -> None:
        """The one way of a connection that may be lent: to the first in line, the idle queue, or its end."""
        assert self.lock.locked()
        if self.closed or self.draining:
            self._retire(entry, "pool closed")
        elif self.owed:
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

    def _served_by(self, entry: Entry) -> Borrower | None:
        """Who gets this connection; None: it becomes idle, or its slot is another URI's now."""
        first = self.line.first(entry.key)
        if first is None or not self.line.has_others:
            return first
        for head in self.line.heads():
            if head.key != entry.key and head.overtaken >= MOST_OVERTAKEN and self._wanted(head):
                head.overtaken = 0
                self._retire(entry, "evicted")
                self._order(head, room=entry)
                return None
        return first

    def _rest(self, entry: Entry) -> None:
        """Let it wait for its next borrower."""
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
        if reason in ("closed", "pong overdue", "check failed"):
            self.totals.lost += 1
        if entry.place == IDLE:
            self.idle.remove(entry)
        if entry.place != OPENING:
            self.idle.count_open(entry.key, -1)
        entry.borrower = None
        entry.close_by = monotonic() + self.close_timeout
        entry.move(CLOSING)
        self.closing[entry] = None
        if gone:
            self._forget(entry)
        else:
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

    def _leave_slot(self, entry: Entry) -> bool:
        """A connection that is gone leaves its slot; False: to the dial that wants it."""
        if entry.token is not None:
            self.spent_tokens.append(entry.token)
            entry.token = None
            self.doorbell.put("tokens")
        dial, is_wanted = entry.wanted_by, False
        if dial is not None and dial in self.dials and dial.room is entry:
            dial.has_slot = is_wanted = True
            dial.room = None
        self.entries.discard(entry)
        return not is_wanted

    def _free_slot(self) -> None:
        if self.owed:
            self.owed -= 1
        else:
            self.slots.release()
        if self.line:
            self._plan()

    # --- what the line needs ---------------------------------------------------------------------------

    def _plan(self) -> None:
        """Order what the callers in line need and the limits allow, and say when to look again."""
        assert self.lock.locked()
        if self.closed or self.draining:
            return
        now, self.plan_at = monotonic(), _NEVER
        for head in self.line.heads():
            self._look_again_at(self._plan_for(head, now))
        for dial in self.dials:
            self._look_again_at(dial.overdue_at)

    def _look_again_at(self, when: float) -> None:
        """Have the housekeeper come by then; it comes every `TICK` anyway."""
        if when < self.plan_at:
            self.plan_at = when
            if when < monotonic() + TICK:
                self.doorbell.put("plan")

    def _plan_for(self, head: Borrower, now: float) -> float:
        """Order what the callers of one URI need; return when more may be allowed (monotonic, s)."""
        trouble = self.troubles.of(head.key)
        if trouble is not None and now < trouble.next_dial_at:
            return trouble.next_dial_at
        for _ in range(self._wanted(head)):
            if self.slots.acquire(blocking=False):
                self._order(head, has_slot=True)
                continue
            room = next((entry for entry in self.closing if entry.wanted_by is None), None)
            if room is None:
                room = self._room_elsewhere(head.key)
                if room is None:
                    break
                allowed_at = room_allowed_at(
                    asked_at=head.asked_at,
                    overtaken=head.overtaken,
                    has_connection=self.idle.open(head.key) > 0,
                    has_dial=self.idle.opening(head.key) > 0,
                    trouble=trouble,
                    is_checked=room.place == CHECKING and not room.answer_by,
                )
                if now < allowed_at:
                    return allowed_at
                self._retire(room, "evicted")
                head.overtaken = 0
            self._order(head, room=room)
        return _NEVER

    def _wanted(self, head: Borrower) -> int:
        """How many more dials the callers of that URI need."""
        return self._allowed(head.key, self.line.count(head.key) - self.idle.opening(head.key))

    def _allowed(self, key: str, more: int) -> int:
        """How many of so many more dials of a URI the limits allow, slots aside."""
        opening, open_now, config = self.idle.opening(key), self.idle.open(key), self.config
        return dials_allowed(
            more,
            opening=opening,
            open_now=open_now,
            most_opening=config.max_connecting,
            most=config.max_per_uri,
        )

    def _room_elsewhere(self, key: str) -> Entry | None:
        """The connection that may make room for that URI: to another URI, for which no caller waits.

        The one that has been idle for longest; else one that may be dead, of this URI too; else one that the
        user's `check` runs on.
        """
        for entry in self.idle:
            if entry.key != key and not self.line.count(entry.key):
                return entry
        checked = [entry for entry in self.entries if entry.place == CHECKING]
        for entry in sorted(checked, key=lambda each: not each.answer_by):
            if entry.answer_by or (entry.key != key and not self.line.count(entry.key)):
                return entry
        return None

    def _order(self, head: Borrower, *, has_slot: bool = False, room: Entry | None = None) -> Dial:
        """Order a dial for the first of those who wait for that URI."""
        assert head.target is not None
        dial = Dial(head.key, head.target, "line", head.context)
        return self._enqueue(dial, has_slot=has_slot, room=room)

    def _enqueue(self, dial: Dial, *, has_slot: bool, room: Entry | None = None) -> Dial:
        dial.has_slot = has_slot
        if room is not None:
            dial.room, room.wanted_by = room, dial
        self.dials[dial] = None
        self.idle.count_opening(dial.key, 1)
        self.queued.append(dial)
        if self.parked >= len(self.queued):
            self.wake_opener.put(None)
        else:
            self.doorbell.put("openers")
        return dial

    def _end_dial(self, dial: Dial) -> None:
        """A dial is over; a slot that it still holds goes back."""
        if dial not in self.dials:
            return
        del self.dials[dial]
        dial.end()
        self.idle.count_opening(dial.key, -1)
        if dial.room is not None:
            dial.room.wanted_by = None
            dial.room = None
        if dial.has_slot:
            dial.has_slot = False
            self._free_slot()

    # --- after an exception ----------------------------------------------------------------------------

    def _rebuild(self) -> None:
        """Put right what the last step left half-done, which an exception has ended.

        An interrupt may strike even within the semaphore, whose lock is held for ever then: so it is
        replaced, not repaired. What belongs to nobody any more is closed.
        """
        for borrower in list(self.lent):
            held = borrower.entry
            if held is None or held.borrower is not borrower or held.place != LENT:
                self.lent.pop(borrower, None)
                borrower.entry = None
        for entry in [entry for entry in self.entries if entry.place == GONE]:
            self._leave_slot(entry)
        dialled = {dial.entry for dial in self.dials}
        self.closing = {}
        for entry in self.entries:
            has_owner = entry.borrower is not None and entry.borrower.entry is entry
            if (entry.place == LENT and not has_owner) or (entry.place == OPENING and entry not in dialled):
                entry.close_by = 0.0
                entry.place = CLOSING
            if entry.place == CLOSING:
                self.closing[entry] = None
            elif entry.place == IDLE:
                entry.borrower = None
        open_now = [entry for entry in self.entries if entry.place in (IDLE, LENT, CHECKING)]
        self.idle = Idle(Shared(self.lock))
        self.idle.rebuild([dial.key for dial in self.dials], open_now)
        self.queued = deque(dial for dial in self.dials if not dial.taken)
        self._renew_slots()
        for borrower in self.line:
            if borrower.entry is not None or borrower.error is not None or self.closed or self.draining:
                borrower.rouse()
        self.line.rebuild()
        if not self.lent:
            self._wake_drainers()
        self.watch_version += 1
        for entry in list(self.idle):
            if (first := self.line.first(entry.key)) is not None:
                self.idle.remove(entry)
                self._hand_over(entry, first)
        self._plan()
        self.doorbell.put("openers")

    def _renew_slots(self) -> None:
        """Make a semaphore that agrees with what holds a slot."""
        used = len(self.entries) + sum(dial.has_slot for dial in self.dials)
        self.slots = threading.BoundedSemaphore(self.config.max_connections)
        self.owed = max(0, used - self.config.max_connections)
        for _ in range(used - self.owed):
            self.slots.acquire(blocking=False)

    def _wake_drainers(self) -> None:
        for waiter in self._drain_waiters:
            if waiter.locked():
                waiter.release()
        self._drain_waiters.clear()

    def closed_error(self) -> PoolClosedError:
        """What to tell a caller once there are no leases any more."""
        what = "closed" if self.closed else "drained"
        return PoolClosedError(f"pool {self.name!r} is {what}: it gives no more leases; make a new pool")


__all__ = ["TICK", "Moves"]
