"""The state of a pool: its slots, its connections, who has which, who waits. Each method is one step.

What a step decides it returns; the moves that it is made of stand in `moves`, the rules of locking in
`locking`.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.demand import Dial
from jetsocket.dialling import Dialling
from jetsocket.entry import Entry
from jetsocket.exceptions import InvalidStateError
from jetsocket.interrupts import is_alarm
from jetsocket.locking import step
from jetsocket.places import CHECKING, CLOSING, IDLE, LENT
from jetsocket.stats import PoolStats
from jetsocket.uris import Target

_NEVER = float("inf")
_REPLACED_BEFORE = 5.0  # s before its lifetime ends, a kept connection is replaced


class Answer(NamedTuple):
    """What an acquire gets at once."""

    entry: Entry | None = None
    """A connection that was idle; it has to be looked at."""
    error: BaseException | None = None
    """Why the URI is not dialled for now."""
    is_waiting: bool = False
    """Whether it stands in line."""


class Exhaustion(NamedTuple):
    """Why nothing was to be had, in figures."""

    waiting: int
    idle: int
    lent: list[Borrower]
    """The borrowers, the one that has had its connection for longest first."""
    opening: int
    opening_since: float | None
    last_connect_error: BaseException | None


class Keeper(Protocol):
    """What the state needs to know of the housekeeper."""

    @property
    def has_died(self) -> bool:
        """Whether it does not work (any more)."""


class State(Dialling):
    """The steps."""

    # --- getting a connection --------------------------------------------------------------------------

    @step
    def enter(self, borrower: Borrower, may_wait: bool) -> Answer:
        """The first step of an acquire: an idle connection, or a place in line.

        Raises:
            PoolClosedError: The pool is closed or drained.
            InvalidStateError: A finalizer or a signal handler asks that has interrupted the state itself.
        """
        if self.closed or self.draining:
            raise self.closed_error()
        return self._take_or_wait(borrower, may_wait=may_wait, again=False)

    def _take_or_wait(self, borrower: Borrower, *, may_wait: bool, again: bool) -> Answer:
        key = borrower.key
        entry = self.idle.take(key)
        if entry is not None:
            self._lend(entry, borrower)
            if self.line:
                self._count_overtaken(borrower)
            return Answer(entry)
        trouble = self.troubles.of(key)
        if trouble is not None and not (self.idle.open(key) or self.idle.opening(key)):
            if monotonic() < trouble.refuse_until:
                return Answer(error=trouble.error)
            trouble.next_dial_at = 0.0
        if not may_wait:
            self._order_for_a_poller(borrower)
            return Answer()
        borrower.entry = borrower.error = None
        borrower.wake = threading.Lock()
        borrower.wake.acquire()
        (self.line.rejoin if again else self.line.join)(borrower)
        self._plan()
        if not again and self._is_line_too_long():
            self.line.leave(borrower)
            return Answer()
        return Answer(is_waiting=True)

    def _is_line_too_long(self) -> bool:
        limit = self.config.max_waiting
        return limit is not None and len(self.line) - len(self.dials) > limit

    def _order_for_a_poller(self, borrower: Borrower) -> None:
        """`acquire(timeout=0)` opens one, too, for its next try, or a poller would never get any."""
        key, target = borrower.key, borrower.target
        assert target is not None
        if not self.idle.opening(key) and self._allowed(key, 1) and self.slots.acquire(blocking=False):
            self._enqueue(Dial(key, target, "poll", borrower.context), has_slot=True)

    @step
    def refuse(self, borrower: Borrower, entry: Entry, reason: str, *, gone: bool, may_wait: bool) -> Answer:
        """Take a stale connection from its borrower, and give it another, or its place in line.

        Raises:
            PoolClosedError: The pool is closed.
            InvalidStateError: Another thread has released the lease.
        """
        if self.closed:
            raise self.closed_error()
        if borrower not in self.lent or borrower.entry is not entry:
            raise self._over()
        self.lent.pop(borrower, None)
        self._retire(entry, reason, gone=gone)
        borrower.entry = None
        return self._take_or_wait(borrower, may_wait=may_wait, again=True)

    @step
    def plan(self) -> None:
        """Look at the line again, for a time has come."""
        self.plan_at = _NEVER
        self._plan()

    @step
    def leave_line(self, borrower: Borrower) -> Entry | None:
        """Stop waiting; the connection if it came at the last moment."""
        if self.line.leave(borrower) and self.line:
            self._plan()
        return borrower.entry

    # --- coming back -----------------------------------------------------------------------------------

    def claim(self, borrower: Borrower) -> bool:
        """Claim the return of a lease; True for one caller only, ever. Takes no lock."""
        try:
            del self.lent[borrower]
        except KeyError as error:
            if is_alarm(error):
                raise
            return False
        return True

    def _book(self, borrower: Borrower) -> None:
        if borrower in self.lent:  # handed over at the last moment, and its thread may begin to use it
            del self.lent[borrower]
            borrower.reason = borrower.reason or "in use"
        if self.line and self.line.leave(borrower):
            borrower.error = borrower.error or self._over()
            borrower.rouse()
        if borrower.lent_for > 0:
            self.totals.count_lease(borrower)
            borrower.lent_for = 0.0
        entry = borrower.entry
        if entry is not None and entry.borrower is borrower and entry.place == LENT:
            if borrower.reason is not None:
                self._retire(entry, borrower.reason, gone=borrower.gone)
            else:
                self._come_home(entry)
        borrower.entry = None
        if self._drain_waiters and not self._has_leases():
            self._wake_drainers()

    def _has_leases(self) -> bool:
        return bool(self.lent) or any(entry.place == LENT for entry in self.entries)

    def _over(self) -> InvalidStateError:
        return InvalidStateError(
            f"pool {self.name!r}: this lease is over, as another thread released it, or it is the parent"
            " process's; acquire a new one",
            current_state="released",
            required_states=["lent"],
        )

    # --- what the housekeeper does ---------------------------------------------------------------------

    @step
    def appoint(self, keeper: Keeper) -> bool:
        """Make this the housekeeper, unless there is one; the caller starts it."""
        if self.closed or (self._keeper is not None and not self._keeper.has_died):
            return False
        self._keeper = keeper
        return True

    @step
    def open_entries(self) -> list[Entry]:
        """All connections that have a slot, as of now."""
        return list(self.entries)

    @step
    def take_for_check(self, entry: Entry) -> bool:
        """Take an idle connection, so that it is lent to no one until `put_back` or `retire`."""
        if entry.place != IDLE:
            return False
        self.idle.remove(entry)
        entry.move(CHECKING)
        return True

    @step
    def put_back(self, entry: Entry) -> None:
        """Return an entry that was taken by `take_for_check` and is as good as before."""
        if entry.place != CHECKING:
            return  # it made room meanwhile, or the pool was closed
        entry.answer_by = 0.0
        if self.closed or self.line.count(entry.key):
            self._come_home(entry)
            return
        entry.move(IDLE)
        self.idle.put_back(entry)
        if self.line:
            self._plan()

    @step
    def retire(self, entry: Entry, reason: str, *, gone: bool = False) -> None:
        """Take a connection out of service."""
        self._retire(entry, reason, gone=gone)

    @step
    def retire_if_idle(self, entry: Entry, reason: str) -> bool:
        """Take a connection out of service, unless a borrower has got it meanwhile."""
        if entry.place not in (IDLE, CHECKING):
            return False
        self._retire(entry, reason)
        return True

    @step
    def idle_too_long(self, now: float) -> None:
        """Retire all that have been idle for max_idle_time: the oldest come first, so few are looked at."""
        overdue: list[Entry] = []
        for entry in self.idle:
            if now - entry.idle_since < self.config.max_idle_time:
                break
            if not self._is_kept(entry.key):
                overdue.append(entry)
        for entry in overdue:
            self._retire(entry, "idle")

    def _is_kept(self, key: str) -> bool:
        floor = self.floors.get(key)
        return floor is not None and self.idle.open(key) <= floor[1]

    @step
    def suspect(self, key: str, answer_by: float) -> list[Entry]:
        """Take all idle connections to a URI, which have to answer a ping before they are lent."""
        suspects = [entry for entry in self.idle if entry.key == key]
        for entry in suspects:
            self.idle.remove(entry)
            entry.move(CHECKING)
            entry.answer_by = answer_by
        return suspects

    @step
    def suspects(self) -> list[Entry]:
        """Those that have to answer a ping before they are lent."""
        return [entry for entry in self.entries if entry.answer_by and entry.place == CHECKING]

    @step
    def fill_floors(self) -> None:
        """Order what `prewarm(keep=True)` wants and is not there, as far as slots and limits allow."""
        now = monotonic()
        for key, (target, count) in self.floors.items():
            trouble = self.troubles.of(key)
            if trouble is not None and now < trouble.next_dial_at:
                continue
            missing = count - self.idle.open(key) - self.idle.opening(key) + self._ending_soon(key, now)
            self._order_unasked(key, target, missing, "keep")

    def _ending_soon(self, key: str, now: float) -> int:
        """How many idle connections to a URI are to be replaced, as their lifetime ends."""
        soon = now + _REPLACED_BEFORE
        return sum(entry.expires <= soon for entry in self.idle if entry.key == key)

    @step
    def closing_entries(self) -> list[Entry]:
        """Those that are closing, but for those that a dial waits for: its opener closes them."""
        return [entry for entry in self.closing if entry.wanted_by is None or not entry.wanted_by.taken]

    @step
    def forget(self, entries: list[Entry]) -> None:
        """Those are closed."""
        for entry in entries:
            if entry.place == CLOSING:
                self._forget(entry)

    def dropped(self) -> list[Borrower]:
        """The borrowers whose lease is gone and that no thread returns. Takes no lock: it may be many."""
        everybody = [*list(self.lent), *self.line]
        return [borrower for borrower in everybody if borrower.is_dropped and borrower not in self.returned]

    @step
    def unreturned(self) -> list[Borrower]:
        """The borrowers whose return was claimed and is not booked: under way, or struck by an exception."""
        claimed = [entry.borrower for entry in self.entries if entry.place == LENT]
        return [b for b in claimed if b is not None and b not in self.lent and b not in self.returned]

    # --- ending ----------------------------------------------------------------------------------------

    @step
    def drain(self) -> threading.Lock | None:
        """Give no more leases; the lock returned is released when all are back, None if they are."""
        self.draining = True
        self.floors.clear()
        self._turn_away_the_line()
        if not self._has_leases():
            return None
        waiter = threading.Lock()
        waiter.acquire()
        self._drain_waiters.append(waiter)
        return waiter

    def _turn_away_the_line(self) -> None:
        error = self.closed_error()
        for borrower in self.line:
            borrower.error = borrower.error or error
            self.line.leave(borrower)
            borrower.rouse()

    @step
    def close(self, *, again: bool = False) -> tuple[list[Entry], list[Entry]] | None:
        """Give no more leases and wake all who wait.

        Returns:
            The connections to be closed in order, and those that are lent or being opened, to be cut; None if
            the pool was closed before, unless that is to be done `again`.
        """
        if self.closed and not again:
            return None
        self.closed = True
        self.floors.clear()
        self.cut = self.cut or any(borrower not in self.returned for borrower in self.lent)
        self._turn_away_the_line()
        self._wake_drainers()
        for entry in list(self.idle):
            self._retire(entry, "pool closed")
        for dial in list(self.dials):
            dial.error = dial.error or self.closed_error()
            self._end_dial(dial)
        for _ in range(self.parked):
            self.wake_opener.put(None)
        out = [entry for entry in self.entries if entry.place != CLOSING]
        return list(self.closing), out

    @step
    def clear(self, key: str | None) -> list[Entry]:
        """Retire the idle connections to a URI, or all; those lent or being opened, at their return."""
        idle = []
        for entry in list(self.entries):
            if key is None or entry.key == key:
                entry.is_outdated = True
                if entry.place == IDLE:
                    self._retire(entry, "cleared")
                    idle.append(entry)
        return idle

    @step
    def resize(self, config: ConnectionPoolConfig) -> None:
        """Have another number of slots."""
        self.config = config
        self._renew_slots()
        for entry in list(self.idle):
            if not self.owed:
                break
            self._retire(entry, "resized")
        self._plan()

    # --- figures ---------------------------------------------------------------------------------------

    @step
    def exhaustion(self, borrower: Borrower) -> Exhaustion:
        """Count a refusal, and tell what there was."""
        self.totals.timeouts += 1
        opening = [dial.began_at for dial in self.dials if dial.entry is not None]
        return Exhaustion(
            waiting=len(self.line),
            idle=len(self.idle),
            lent=sorted(self.lent, key=lambda each: each.taken_at),
            opening=len(self.dials),
            opening_since=min(opening, default=None),
            last_connect_error=self.last_connect_error,
        )

    @step
    def stats(self) -> PoolStats:
        """All figures at this moment."""
        return self.totals.figures(self.entries, waiting=len(self.line))

    @step
    def keep(self, key: str, target: Target, count: int) -> None:
        """Hold so many connections to a URI open from now on; 0: as many as are used."""
        self.floors.pop(key, None)
        if count and not (self.closed or self.draining):
            self.floors[key] = (target, count)


__all__ = ["Answer", "Exhaustion", "State"]
