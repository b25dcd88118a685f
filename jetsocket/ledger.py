"""The ledger of a pool: all of its state, the one lock that guards it, and who gets what.

Each method is one step under the lock and takes microseconds. What it decides is returned; connecting,
closing, waiting, calling back and logging are done by the caller, outside.

The lock. `Ledger.lock` guards every field below but `returned`, `lent`, `unfinished`, `doorbell` and
`journal`, which are touched by single calls that CPython makes atomic. No other lock but those within
`BoundedSemaphore` and `Queue` is taken while it is held, and those are never taken otherwise.

The garbage collector may run a finalizer, or the `__exit__` of a dropped generator, in a thread that is
inside one of these methods, and a signal handler may run there too. So giving back never waits for the lock:
it puts the permit on `returned` and, if the lock is free, books it; if not, whoever holds the lock books it
after letting go. It is only ever taken as `with self.lock`, which CPython does not interrupt half-way.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import FrameType
from typing import Concatenate, NamedTuple, ParamSpec, Protocol, TypeAlias, TypeVar

from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.entry import Entry
from jetsocket.exceptions import InvalidStateError, PoolClosedError
from jetsocket.idle import IdleConnections
from jetsocket.interrupts import is_alarm
from jetsocket.journal import Journal
from jetsocket.known_uris import KnownUris
from jetsocket.permits import Permit, Permits
from jetsocket.stats import PoolStats, Totals
from jetsocket.wire.channel import Channel

STOP = "stop"
ABANDONED = "abandoned"
NEWS = "news"
Ring: TypeAlias = "Permit | str"
"""What can be put on the doorbell: a permit whose lease was dropped, or one of the words above."""


class Keeper(Protocol):
    """What the ledger needs to know of the housekeeper."""

    @property
    def has_died(self) -> bool:
        """Whether it does not work (any more)."""


class Exhaustion(NamedTuple):
    """Why nothing was to be had, in figures."""

    waiting: int
    idle: int
    own: list[Permit]
    """Permits that the asking thread itself holds."""
    last_connect_error: BaseException | None


P = ParamSpec("P")
R = TypeVar("R")


def _step(method: Callable[Concatenate[Ledger, P], R]) -> Callable[Concatenate[Ledger, P], R]:
    """Make a method one step under the lock; afterwards, what others left meanwhile is booked.

    Raises InvalidStateError where waiting for the lock would be waiting for oneself.
    """

    @functools.wraps(method)
    def step(self: Ledger, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.lock.locked() and _below(sys._getframe(1)):
            raise self._reentered()
        try:
            with self.lock:
                if self.torn:
                    self._mend()
                self.torn = True
                try:
                    if self.returned:  # whoever was to book it let go of the lock, and has not come to it yet
                        self._book_returned()
                    result = method(self, *args, **kwargs)
                except (PoolClosedError, InvalidStateError) as error:  # raised before anything is changed
                    self.torn = is_alarm(error)
                    raise
                self.torn = False
                return result
        finally:
            if self.returned:
                self.settle()

    return step


class Ledger:
    """The state of one pool.

    Attributes:
        pid: The process it is of.
        lock: Guards everything but `returned`, `lent`, `unfinished`, `doorbell` and `journal`.
        permits: The permits and the line.
        idle: The idle connections.
        entries: All connections that count against the cap: being opened, lent, idle, saying goodbye.
        closing: Those that say goodbye and belong to nobody.
        in_care: Those that the housekeeper has taken from the idle ones: being looked at, checked, retired.
        returned: Permits that came back and are not booked yet.
        lent: Permits whose lease is out. Whoever removes one claims its return.
        unfinished: What the housekeeper is to go on with; see `Channel.unfinished`.
        doorbell: Wakes the housekeeper.
        journal: What is to be logged, by whoever may.
        known: What was found out about the URIs; touched without the lock.
        closed: No more leases, ever.
        draining: No more leases; those that are out may come back.
        cut: Whether `close` found leases out: they did not come back.
        suspect: An exception struck somewhere in here: a lease may be lost, the semaphore wants recounting.
        torn: A step is under way; if the next one finds it so, an exception has ended it half-way.
        watch_version: Changes whenever the set of open connections does.
    """

    def __init__(self, config: ConnectionPoolConfig, name: str, close_timeout: float) -> None:
        """Begin with all permits free and no connection."""
        self.pid = os.getpid()
        self.config = config
        self.name = name
        self.close_timeout = close_timeout
        self.lock = threading.Lock()
        self.permits = Permits(config.max_connections)
        self.idle = IdleConnections()
        self.entries: set[Entry] = set()
        self.closing: dict[Entry, None] = {}
        self.in_care: dict[Entry, None] = {}
        self.returned: deque[Permit] = deque()
        self.lent: set[Permit] = set()
        self.unfinished: set[Channel] = set()
        self.doorbell: SimpleQueue[Ring] = SimpleQueue()
        self.journal = Journal(functools.partial(self.doorbell.put, NEWS))
        self.known = KnownUris(self.journal, name)
        self.closed = False
        self.draining = False
        self.cut = False
        self.suspect = False
        self.torn = False
        self.watch_version = 0
        self.last_connect_error: BaseException | None = None
        self._totals = Totals()
        self._keeper: Keeper | None = None
        self._drain_waiters: list[threading.Lock] = []

    # --- getting a permit ------------------------------------------------------------------------------

    @_step
    def enter(self, permit: Permit, key: str, may_wait: bool) -> Entry | None:
        """The first step of an acquire: a permit and an idle connection, a permit alone, or a place in line.

        Returns:
            The idle connection; without one, see `permit.held`. If that is false and `permit.wake` is
            None, too many are waiting already.

        Raises:
            PoolClosedError: The pool is closed or drained.
            InvalidStateError: A finalizer or a signal handler asks that has interrupted the ledger itself.
        """
        if self.closed or self.draining:
            raise self.closed_error()
        if self.permits.take(permit):
            permit.entry = entry = self.idle.take(key)
            return entry
        limit = self.config.max_waiting
        if may_wait and (limit is None or len(self.permits.line) < limit):
            self.permits.join(permit)
        return None

    @_step
    def enter_for_new(self, permit: Permit, entry: Entry) -> bool:
        """A permit and a slot for a connection that nobody has asked for yet, if both are free.

        Raises:
            PoolClosedError: The pool is closed or drained.
        """
        if self.closed or self.draining:
            raise self.closed_error()
        if len(self.entries) >= self.config.max_connections or not self.permits.take(permit):
            return False
        self._enter_slot(permit, entry)
        return True

    @_step
    def take_idle(self, permit: Permit, key: str) -> Entry | None:
        """The next idle connection for a permit that is held.

        Raises:
            PoolClosedError: The pool is closed.
            InvalidStateError: Another thread has given the permit back.
        """
        self._check_out(permit)
        permit.entry = entry = self.idle.take(key)
        return entry

    @_step
    def leave_line(self, permit: Permit) -> bool:
        """Stop waiting; True if the permit came at the last moment."""
        self.permits.leave(permit)
        return permit.held

    @_step
    def exhaustion(self, permit: Permit) -> Exhaustion:
        """Count a refusal, and tell what there was."""
        self._totals.timeouts += 1
        own = [held for held in self.permits.held if held.thread == permit.thread and held is not permit]
        return Exhaustion(len(self.permits.line), len(self.idle), own, self.last_connect_error)

    # --- opening ---------------------------------------------------------------------------------------

    @_step
    def open_slot(self, permit: Permit, entry: Entry) -> None:
        """Count a connection that is about to be opened; `permit.room` is what has to be closed before.

        Raises:
            PoolClosedError: The pool is closed.
            InvalidStateError: Another thread has given the permit back.
        """
        self._check_out(permit)
        if len(self.entries) >= self.config.max_connections:
            self._make_room(permit)
        self._enter_slot(permit, entry)

    def _enter_slot(self, permit: Permit, entry: Entry) -> None:
        permit.entry = entry
        self.entries.add(entry)
        self.idle.enroll(entry)

    def _make_room(self, permit: Permit) -> None:
        """Give up the slot of a connection that is being closed anyway, or has been idle for longest."""
        entry = next(iter(self.closing), None)
        if entry is None:
            # One in care goes last: a user's check may run on it, and ends with an error then.
            entry = self.idle.take_oldest() or next(iter(self.in_care), None)
            self._totals.discards["evicted"] += 1
        # Connections that are out hold a permit each, and the asking permit has none: one must be free.
        assert entry is not None, "at the cap without an idle connection"
        permit.room = entry  # first: whatever strikes, somebody closes it
        self._forget(entry)

    @_step
    def room_made(self, permit: Permit) -> None:
        """What `permit.room` was is closed."""
        permit.room = None

    @_step
    def opened(self, entry: Entry) -> None:
        """A connection is open.

        Raises:
            InvalidStateError: Meanwhile this process has forked, and it counts in the parent's books.
        """
        if entry not in self.entries:
            raise InvalidStateError(
                f"pool {self.name!r}: this process was forked while it connected; acquire a new lease"
            )
        self._totals.connections += 1
        self.last_connect_error = None
        self.watch_version += 1
        if self._totals.lost:
            self._totals.lost -= 1
            self._totals.reconnects += 1

    @_step
    def open_failed(self, error: BaseException) -> None:
        """An attempt to connect failed."""
        self._totals.connect_errors += 1
        self.last_connect_error = error

    @_step
    def appoint(self, keeper: Keeper) -> bool:
        """Make this the housekeeper, unless there is one; the caller starts it."""
        if self.closed or (self._keeper is not None and not self._keeper.has_died):
            return False
        self._keeper = keeper
        return True

    # --- coming back -----------------------------------------------------------------------------------

    def claim(self, permit: Permit) -> bool:
        """Claim the return of a lease; True for one caller only, ever. Takes no lock."""
        try:
            self.lent.remove(permit)
        except KeyError as error:
            if is_alarm(error):
                raise
            return False
        permit.claimed = True
        return True

    @_step
    def swap(self, permit: Permit, reason: str) -> None:
        """Take its stale connection from a permit that stays out."""
        entry, permit.entry = permit.entry, None
        if entry is not None:
            self._retire(entry, reason, permit.gone)
        permit.gone = False

    def give_back(self, permit: Permit) -> None:
        """Return a permit with all that hangs on it. Never waits for the lock."""
        self.returned.append(permit)
        self.settle()

    def settle(self) -> None:
        """Book what came back, unless somebody is inside: they will do it on their way out.

        If this thread is inside, below us on the stack, the lock shows as locked. If it shows as free, then
        waiting for it is waiting for another thread that slipped in and is there for microseconds; no
        circle of such waits can close, because each of its threads would hold the lock the next found free.
        """
        while self.returned and not self.lock.locked():
            with self.lock:
                if self.torn:
                    self._mend()
                self.torn = True
                self._book_returned()
                self.torn = False

    def _book_returned(self) -> None:
        while self.returned:
            # Booked first, removed after: an exception in between repeats what repeats harmlessly.
            permit = self.returned[0]
            try:
                self._book(permit)
            except Exception as error:
                if not is_alarm(error):
                    self.returned.popleft()
                raise
            self.returned.popleft()

    def _mend(self) -> None:
        """Put right what the last step left half-done, which an exception has ended.

        Everything is derived anew from what is written in one go: permits, `entries`, the order by age.

        An interrupt may strike anywhere, even within the semaphore or a queue, whose lock is held for ever
        then: so these are replaced, not repaired. What belongs to nobody any more is closed.
        """
        self.suspect = True
        out = {permit.entry for permit in self.permits.held}
        idle = [entry for entry in self.idle if entry in self.entries and entry not in out]
        self.closing = {entry: None for entry in self.closing if entry in self.entries and entry not in out}
        self.in_care = {entry: None for entry in self.in_care if entry in self.entries and entry not in out}
        for entry in self.entries.difference(out, idle, self.closing, self.in_care):
            entry.close_by = 0.0
            self.closing[entry] = None
        self.idle = IdleConnections.of(self.entries, idle)
        self.permits.renew()
        if self.closed or self.draining:
            self.permits.wake_all()
        if self.closed or not self.permits.held:
            self._wake_drainers()
        self.watch_version += 1

    def _book(self, permit: Permit) -> None:
        if self.permits.line:
            self.permits.leave(permit)
        if permit not in self.permits.held:
            return
        if permit.lent_for > 0:
            self._record(self._totals, permit)
            self._totals.lend_time.add(permit.lent_for)
        entry, permit.entry, permit.room = permit.entry, None, None
        if entry is not None:
            self._book_entry(permit, entry)
        self.permits.give_back(permit)
        if self._drain_waiters and not self.permits.held:
            self._wake_drainers()

    def _book_entry(self, permit: Permit, entry: Entry) -> None:
        if permit.reason is not None:
            self._retire(entry, permit.reason, permit.gone)
        elif self.closed or self.draining:
            self._retire(entry, "pool closed", permit.gone)
        elif entry in self.entries:
            entry.idle_since = monotonic()
            self.idle.put(entry)

    @staticmethod
    def _record(totals: Totals, permit: Permit) -> None:
        totals.acquires += 1
        totals.reuses += permit.reused
        totals.wait_time.add(permit.taken_at - permit.asked_at)

    def _retire(self, entry: Entry, reason: str, gone: bool) -> None:
        """Take a connection out of service: it is closed already, or is to say goodbye."""
        self.in_care.pop(entry, None)
        if entry not in self.entries:
            return
        if reason != "connect failed":
            self._totals.discards[reason] += 1
        if reason in ("closed", "pong overdue", "check failed"):
            self._totals.lost += 1
        if gone:
            self._forget(entry)
        else:
            entry.close_by = monotonic() + self.close_timeout
            self.closing[entry] = None

    def _forget(self, entry: Entry) -> None:
        if entry not in self.entries:
            return
        self.entries.discard(entry)
        self.closing.pop(entry, None)
        self.in_care.pop(entry, None)
        self.idle.strike(entry)
        self.watch_version += 1
        totals = self._totals
        totals.messages_sent += entry.messages_sent
        totals.messages_received += entry.messages_received
        totals.bytes_sent += entry.wire.bytes_out
        totals.bytes_received += entry.wire.bytes_in

    def rooms(self) -> list[Entry]:
        """Connections that are being closed to make room: still open, and not counted any more."""
        return [permit.room for permit in self.permits.held.copy() if permit.room is not None]

    # --- what the housekeeper does ---------------------------------------------------------------------

    @_step
    def open_entries(self) -> list[Entry]:
        """All connections, as of now."""
        return list(self.entries)

    @_step
    def take_if_idle(self, entry: Entry) -> bool:
        """Own that very entry, if nobody else does."""
        if not self.idle.remove(entry):
            return False
        self.in_care[entry] = None
        return True

    @_step
    def put_back(self, entry: Entry) -> None:
        """Return an entry that was taken by `take_if_idle` and is as good as before."""
        if entry not in self.in_care:
            return  # somebody took it as room meanwhile
        if self.closed:
            self._retire(entry, "pool closed", gone=False)
        else:
            del self.in_care[entry]
            self.idle.put_back(entry)

    @_step
    def retire(self, entry: Entry, reason: str, *, gone: bool) -> None:
        """Take a connection that the caller owns out of service."""
        self._retire(entry, reason, gone)

    @_step
    def idle_too_long(self, now: float) -> list[Entry]:
        """Take out all that have been idle for max_idle_time: the oldest come first, so few are looked at."""
        overdue: list[Entry] = []
        for entry in self.idle:
            if now - entry.idle_since < self.config.max_idle_time:
                break
            overdue.append(entry)
        for entry in overdue:
            self.idle.remove(entry)
            self.in_care[entry] = None
        return overdue

    @_step
    def say_goodbye(self) -> list[Entry]:
        """Those that say goodbye and belong to nobody."""
        return list(self.closing)

    @_step
    def forget_closed(self, entries: list[Entry]) -> None:
        """Those have said goodbye; one that somebody took as room meanwhile is his to forget."""
        for entry in entries:
            if entry in self.closing:
                self._forget(entry)

    @_step
    def out(self) -> list[Permit]:
        """The permits that are out."""
        return [*self.permits.held, *self.permits.line]

    def forsaken(self) -> list[Permit]:
        """The permits whose lease is gone and that nobody is returning. Takes no lock: it may be many."""
        everybody = [*self.permits.held.copy(), *list(self.permits.line)]
        return [permit for permit in everybody if permit.dropped and permit not in self.returned]

    @_step
    def recount(self) -> int:
        """Repair the semaphore; see `Permits.recount`. Connections that got lost in here are to be closed."""
        self.suspect = False
        out = {permit.entry for permit in self.permits.held}
        for entry in self.entries:
            if not (entry in out or entry in self.idle or entry in self.closing or entry in self.in_care):
                self.closing[entry] = None
        # Being returned now, or the return was struck and a traceback still holds the lease: look again.
        if any(permit.claimed and permit not in self.returned for permit in self.permits.held):
            self.suspect = True
        return self.permits.recount()

    # --- ending ----------------------------------------------------------------------------------------

    @_step
    def drain(self) -> threading.Lock | None:
        """Give no more leases; the lock returned is released when all are back, None if they are."""
        self.draining = True
        self.permits.wake_all()
        self.permits.line.clear()  # or a permit that comes back now would still go to one of them
        if not self.permits.held:
            return None
        waiter = threading.Lock()
        waiter.acquire()
        self._drain_waiters.append(waiter)
        return waiter

    def _wake_drainers(self) -> None:
        for waiter in self._drain_waiters:
            if waiter.locked():
                waiter.release()
        self._drain_waiters.clear()

    @_step
    def close(self, *, again: bool = False) -> tuple[list[Entry], list[Entry]] | None:
        """Give no more leases and wake all who wait.

        Returns:
            The connections to say goodbye to, and those that are out and to be cut; None if closed before,
            unless that is to be done `again`.
        """
        if self.closed and not again:
            return None
        self.closed = True
        self.cut = self.cut or any(permit not in self.returned for permit in self.permits.held)
        self.permits.wake_all()
        self._wake_drainers()
        idle = [*self.idle, *self.closing]
        out = [*self.entries.difference(idle), *self.rooms()]
        for entry in list(self.idle):
            self.idle.remove(entry)
            self._retire(entry, "pool closed", gone=False)
        return idle, out

    # --- figures ---------------------------------------------------------------------------------------

    @_step
    def stats(self) -> PoolStats:
        """All figures at this moment."""
        totals = self._totals
        lent = [permit for permit in self.permits.held if permit.lent]
        now_out = Totals()
        now_out.wait_time = totals.wait_time.copy()
        for permit in lent:
            self._record(now_out, permit)
        return PoolStats(
            total_connections=totals.connections,
            active_connections=len(lent),
            idle_connections=len(self.idle),
            total_messages_sent=totals.messages_sent + sum(e.messages_sent for e in self.entries),
            total_messages_received=totals.messages_received + sum(e.messages_received for e in self.entries),
            total_reconnects=totals.reconnects,
            waiting=len(self.permits.line),
            acquires=totals.acquires + now_out.acquires,
            reuses=totals.reuses + now_out.reuses,
            timeouts=totals.timeouts,
            connect_errors=totals.connect_errors,
            discards=dict(totals.discards),
            bytes_sent=totals.bytes_sent + sum(e.wire.bytes_out for e in self.entries),
            bytes_received=totals.bytes_received + sum(e.wire.bytes_in for e in self.entries),
            wait_time=now_out.wait_time.histogram(),
            lend_time=totals.lend_time.histogram(),
        )

    @_step
    def idle_count(self, key: str) -> int:
        """How many are idle under this key."""
        return self.idle.count(key)

    @_step
    def faults(self) -> list[str]:
        """What is wrong in the books: nothing, ever, if this library is right. For tests."""
        return list(self._faults())

    def _faults(self) -> Iterator[str]:
        if len(self.entries) > self.config.max_connections:
            yield f"{len(self.entries)} connections, the cap is {self.config.max_connections}"
        if len(self.permits.held) > self.config.max_connections:
            yield f"{len(self.permits.held)} permits out of {self.config.max_connections}"
        idle, closing = set(self.idle), set(self.closing)
        out = {permit.entry for permit in self.permits.held if permit.entry is not None}
        places = [*idle, *closing, *out, *self.in_care]
        if len(places) != len(set(places)):
            yield "a connection in two places at once"
        if set(places) - self.entries:
            yield "a connection that is not counted"
        if self.entries - set(places):
            yield "a connection that is counted and nowhere"
        keys = {entry.key for entry in self.entries}
        if keys != set(self.idle.keys):
            yield f"{len(set(self.idle.keys) ^ keys)} queues too many or too few"
        if sum(self.idle.count(key) for key in keys) != len(idle):
            yield "the queues and the age order disagree"

    def disown(self) -> None:
        """In a forked child: let go of the parent's connections without touching them; wake who waits."""
        self.doorbell.put(STOP)  # the housekeeper is here only if it is a greenlet
        for entry in [*self.entries, *self.rooms()]:
            entry.wire.disown()
        self.permits.wake_all()

    def interrupted(self) -> bool:
        """Whether this very thread is inside a pool, below us on the stack: a finalizer or handler asks."""
        return _below(sys._getframe(1))

    def _reentered(self) -> InvalidStateError:
        return InvalidStateError(
            f"pool {self.name!r} was called from a finalizer or signal handler that interrupted a pool"
            " itself; only release() can be called from there",
            current_state="busy",
        )

    def _check_out(self, permit: Permit) -> None:
        """Nothing is given to a permit that has come back: nobody would return it."""
        if self.closed:
            raise self.closed_error()
        if permit not in self.permits.held:  # nor, under gevent, to one of the ledger before a fork
            raise InvalidStateError(
                f"pool {self.name!r}: this lease is over, as another thread released it, or it is the parent"
                " process's; acquire a new one",
                current_state="released",
                required_states=["lent"],
            )

    def closed_error(self) -> PoolClosedError:
        """What to tell whoever asks for a lease once there are none any more."""
        what = "closed" if self.closed else "drained"
        return PoolClosedError(f"pool {self.name!r} is {what}: it gives no more leases; make a new pool")


def _below(frame: FrameType | None) -> bool:
    """Whether a step of a ledger, of this pool or another, is under way at or below that frame."""
    while frame is not None:
        if frame.f_globals is _GLOBALS:
            return True
        frame = frame.f_back
    return False


_GLOBALS = globals()

__all__ = ["ABANDONED", "NEWS", "STOP", "Exhaustion", "Keeper", "Ledger", "Ring"]
