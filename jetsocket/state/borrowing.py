"""The steps of borrowers, and of those that look at or end the whole: what a step decides it returns."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextvars import copy_context
from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.connection_states import CLOSING, IDLE, LENT, SHARED
from jetsocket.counting import LEASES_AT_ONCE
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry
from jetsocket.events import Events, Listener
from jetsocket.exceptions import InvalidStateError
from jetsocket.interrupts import is_alarm
from jetsocket.state.fast_path import FastPath
from jetsocket.state.locking import step
from jetsocket.state.moves import NEVER

if TYPE_CHECKING:
    from jetsocket.stats import PoolStats


class Answer:
    """What an acquire gets at once.

    Attributes:
        entry: A connection that was idle; it has to be looked at.
        error: Why the URI is not dialled for now.
        is_waiting: Whether it stands in line.
        is_refused: Whether it would, but for `max_waiting`.
    """

    __slots__ = ("entry", "error", "is_refused", "is_waiting")

    def __init__(
        self,
        entry: Entry | None = None,
        error: BaseException | None = None,
        *,
        is_waiting: bool = False,
        is_refused: bool = False,
    ) -> None:
        """Nothing, but for what is given."""
        self.entry, self.error = entry, error
        self.is_waiting, self.is_refused = is_waiting, is_refused


class Exhaustion:
    """Why nothing was to be had, in figures.

    Attributes:
        waiting: Callers in line.
        idle: Connections that are idle.
        lent: The borrowers, the one that has had its connection for longest first.
        opening: Connections that are being opened.
        opening_since: Since when the oldest of them is (monotonic, s).
        last_connect_error: Of the last one that was not opened.
        open_there: Connections to the URI that was asked for.
    """

    def __init__(
        self,
        *,
        waiting: int = 0,
        idle: int = 0,
        lent: Sequence[Borrower] = (),
        opening: int = 0,
        opening_since: float | None = None,
        last_connect_error: BaseException | None = None,
        open_there: int = 0,
    ) -> None:
        """Nothing, but for what is given."""
        self.waiting, self.idle, self.lent = waiting, idle, lent
        self.opening, self.opening_since = opening, opening_since
        self.last_connect_error, self.open_there = last_connect_error, open_there


class State(FastPath):
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
        assert self.lock.locked()
        key = borrower.key
        if borrower.shares and (place := self._place_for(borrower)) is not None:
            self._lend(place, borrower)
            return Answer(place)
        entry = self.idle.take(key)
        if entry is not None:
            self._lend(entry, borrower)
            if self.line:
                self._count_overtaken(borrower)
            return Answer(entry)
        trouble = self.troubles.of(key)
        is_down = trouble is not None and not (self.idle.open(key) or self.idle.opening(key))
        if trouble is not None and is_down and monotonic() < trouble.refuse_until:
            return Answer(error=trouble.error)
        if self.draining:  # nothing is opened any more, and the line was told already
            raise self.closed_error()
        if self.left_behind and (error := self._why_not_dialled(key)) is not None:
            return Answer(error=error)
        borrower.context = copy_context()  # this is the borrower's thread
        if not may_wait:
            self._order_for_a_poller(borrower)
            return Answer()
        borrower.entry = borrower.error = None
        borrower.wake = threading.Lock()
        borrower.wake.acquire()
        (self.line.rejoin if again else self.line.join)(borrower)
        self.idle.pace(key, 0.0)
        if trouble is None and not self.asking and self._is_alone(key) and self.slots.acquire(blocking=False):
            self._order(borrower, has_slot=True)
        else:
            self._plan()
        if not again and self._is_line_too_long():
            self.line.leave(borrower)
            return Answer(is_refused=True)
        return Answer(is_waiting=True)

    def _is_alone(self, key: str) -> bool:
        """Whether one caller stands in line, and needs no plan: a free slot is all that it needs."""
        assert self.lock.locked()
        is_plain = not (self.left_behind or self.resting) and self.config.max_per_uri is None
        return is_plain and len(self.line) == 1 and not self.idle.opening(key)

    def _is_line_too_long(self) -> bool:
        """Whether more callers wait than `max_waiting`, without those for whom one is being opened."""
        assert self.lock.locked()
        limit = self.config.max_waiting
        if limit is None or len(self.line) <= limit:
            return False
        return sum(max(0, self.line.count(key) - self.idle.opening(key)) for key in self.line.keys) > limit

    def _order_for_a_poller(self, borrower: Borrower) -> None:
        """`acquire(timeout=0)` opens one, too, for its next try, or a poller would never get any."""
        assert self.lock.locked()
        key, target = borrower.key, borrower.target
        assert target is not None
        if self.idle.opening(key) or monotonic() < self._dialled_again_at(key):
            return
        if self.asking and self._quota_of(target) in self.asking:
            return
        if self._allowed(key, 1) and self._closing_one_of(key) is None and self.slots.acquire(blocking=False):
            self._enqueue(Dial(key, target, "poll", borrower.context), has_slot=True)

    @step
    def cancel_polls(self) -> None:
        """No thread runs that would open connections for callers who do not wait."""
        for dial in [dial for dial in self.queued if dial.purpose == "poll"]:
            self.queued.remove(dial)
            self._end_dial(dial)

    @step
    def refuse(self, borrower: Borrower, entry: Entry, reason: str, *, gone: bool, may_wait: bool) -> Answer:
        """Take a stale connection from its borrower, and give it another, or its place in line.

        Raises:
            PoolClosedError: The pool is closed, or drained and has no other idle one.
            InvalidStateError: Another thread has released the lease.
        """
        self._take_from(borrower, entry)
        self._retire(entry, reason, gone=gone)
        borrower.entry = None
        return self._take_or_wait(borrower, may_wait=may_wait, again=True)

    @step
    def set_aside(self, borrower: Borrower, entry: Entry, answer_by: float, *, may_wait: bool) -> Answer:
        """`refuse` of one whose pong the borrower had no time to wait for: it may be as good as before."""
        self._take_from(borrower, entry)
        borrower.entry = None
        if not entry.sharers:  # else others have joined it meanwhile, and see for themselves
            self._forget_share(entry)
            entry.borrower = None
            self._suspect(entry, answer_by)
        return self._take_or_wait(borrower, may_wait=may_wait, again=True)

    def _take_from(self, borrower: Borrower, entry: Entry) -> None:
        """That connection is not this borrower's any more."""
        assert self.lock.locked()
        if self.closed:
            raise self.closed_error()
        if borrower not in self.lent or borrower.entry is not entry:
            raise self._over()
        self.lent.pop(borrower, None)
        self._unshare(entry, borrower)

    @step
    def plan(self) -> None:
        """Look at the line again, for a time has come.

        Here alone `plan_at` becomes later: until then, one that has become needless does no harm.
        """
        self.plan_at = NEVER
        self._plan_anew()

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
        assert self.lock.locked()
        if borrower in self.lent:  # handed over at the last moment, and its thread may begin to use it
            del self.lent[borrower]
            borrower.reason = borrower.reason or "in use"
        if self.line and borrower in self.line:
            self._turn_away(borrower, borrower.error or self._over())
        if borrower.lent_for and not borrower.is_counted:
            borrower.is_counted = True
            taken_at, leases = borrower.taken_at, self.totals.leases
            lent_for = borrower.lent_for if borrower.lent_for > 0 else monotonic() - taken_at
            leases.append((taken_at - borrower.asked_at, lent_for, borrower.reused))
            if len(leases) >= LEASES_AT_ONCE:
                self.totals.count_leases()
        entry = borrower.entry
        if entry is not None and borrower in entry.sharers:
            self._leave_share(entry, borrower)
        elif entry is not None and entry.borrower is borrower and entry.place == LENT:
            if borrower.reason is not None:
                self._retire(entry, borrower.reason, gone=borrower.gone)
            else:
                self._come_home(entry)
        borrower.entry = None
        if self._drain_waiters and not self._has_leases():
            self._wake_drainers()

    def _has_leases(self) -> bool:
        assert self.lock.locked()
        return bool(self.lent) or any(entry.place in (LENT, SHARED) for entry in self.entries)

    def _over(self) -> InvalidStateError:
        return InvalidStateError(
            f"pool {self.name!r}: this lease is over, as another thread released it, or it is the parent"
            " process's; acquire a new one",
            current_state="released",
            required_states=["lent"],
        )

    # --- ending ----------------------------------------------------------------------------------------

    @step
    def drain(self) -> threading.Lock | None:
        """Give no more leases; the lock returned is released when all are back, None if they are."""
        self.draining = True
        self.floors.clear()
        self._turn_away_the_line()
        self._end_dials(begun=False)
        if not self._has_leases():
            return None
        waiter = threading.Lock()
        waiter.acquire()
        self._drain_waiters.append(waiter)
        return waiter

    @step
    def stop_draining(self, waiter: threading.Lock) -> None:
        """The caller of `drain` waits no longer."""
        if waiter in self._drain_waiters:
            self._drain_waiters.remove(waiter)

    def _turn_away_the_line(self) -> None:
        assert self.lock.locked()
        error = self.closed_error()
        for borrower in self.line:
            self._turn_away(borrower, borrower.error or error)

    def _end_dials(self, *, begun: bool) -> None:
        """Open nothing any more; what is being opened at this moment is over only if `begun`."""
        assert self.lock.locked()
        for dial in [*self.dials, *self.asking.values()]:
            if begun or dial.entry is None:
                dial.error = dial.error or self.closed_error()
                self._end_dial(dial)

    @step
    def close(self, *, again: bool = False) -> tuple[list[Entry], list[Entry]] | None:
        """Give no more leases and wake all who wait.

        Returns:
            The connections to be closed in order, and those that are lent or being opened, to be cut; None if
            the pool was closed before, unless that is to be done `again`.
        """
        if self.closed and not again:
            return None
        self.closed = self.draining = True
        self.floors.clear()
        self.cut = self.cut or any(borrower not in self.returned for borrower in list(self.lent))
        self._turn_away_the_line()
        self._wake_drainers()
        for entry in list(self.idle):
            self._retire(entry, "pool closed")
        self._end_dials(begun=True)
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
            if not self._has_too_many:
                break
            self._retire(entry, "resized")
        self._plan()

    # --- being told ------------------------------------------------------------------------------------

    @step
    def listen(self, listener: Listener) -> None:
        """Tell a listener what happens from now on."""
        before = self.events or Events((), self.log, self.name)
        self.events = before.with_one_more(listener)

    @step
    def listen_as(self, other: State) -> None:
        """Tell those that another state tells; what waits there is not this one's."""
        if other.events is not None:
            self.events = Events(other.events.listeners, self.log, self.name)

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
            open_there=self.idle.open(borrower.key),
        )

    @step
    def stats(self) -> PoolStats:
        """All figures at this moment."""
        return self.totals.figures(self.entries, waiting=len(self.line))


__all__ = ["Answer", "Exhaustion", "State"]
