"""Housekeeper: the one daemon thread of a pool keeps connections alive and tidies up; one function a chore.

It knows the ledger but not the pool, so that a pool which nobody refers to can be collected; the pool's
finalizer then rings, and the housekeeper closes what is left and ends.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from os import getpid
from queue import Empty, SimpleQueue
from types import FrameType

from jetsocket.clock import monotonic
from jetsocket.entry import Entry, stale
from jetsocket.ledger import ABANDONED, NEWS, STOP, Ledger, Ring
from jetsocket.permits import Permit
from jetsocket.wire.stream import Watcher, take, waiting
from jetsocket.wire.websocket import WebSocket

TICK = 0.5
"""s between two rounds of all chores."""

_SOON = 0.05  # s, while a connection says goodbye, or one had to be passed over
_BUDGET = 0.1  # s that a chore may spend on what comes, over all connections
_LITTLE = 4096  # B: as much as an honest server sends unasked, a ping above all
_AUDIT_EVERY = 10.0  # s, between two recounts without a suspicion
_START_PATIENCE = 1.0  # s, after which a thread that does not run is taken for one that never will

_log = logging.getLogger("jetsocket.pool")

Check = Callable[[Entry], bool]

_here = threading.local()


class Housekeeper:
    """The thread, and what it remembers between two rounds."""

    def __init__(self, ledger: Ledger, check: Check | None = None) -> None:
        """Look after the connections of `ledger`; `check` replaces the protocol's ping."""
        self.ledger = ledger
        self.check = check
        self._thread = threading.Thread(
            target=self._run, name=f"jetsocket-housekeeper-{ledger.name}", daemon=True
        )
        self._made_at = monotonic()
        self._runs = False
        self._watcher = Watcher()
        self._watched: dict[int, Entry] = {}
        self._watch_version = -1
        self._passed_over: set[int] = set()  # descriptors for which the last round had no time
        self._next_ping_round = 0.0
        self._next_audit = 0.0  # at once: something may have been lost before this one came
        self._failures_seen: set[str] = set()

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        # Not Thread.is_alive(): before Python 3.13, an interrupt within it makes it say no for ever.
        return self._runs

    @property
    def has_died(self) -> bool:
        """Whether the thread ended, or whoever was to start it never did."""
        return not self._runs and monotonic() - self._made_at > _START_PATIENCE

    @property
    def is_this_thread(self) -> bool:
        """Whether the caller is the housekeeper itself, running a finalizer perhaps."""
        return self._thread.ident == threading.get_ident()

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, at most `timeout` (s); one that was never started has."""
        if self._thread.is_alive() and not sys.is_finalizing():  # then no thread ever ends
            self._thread.join(timeout)

    # --- the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._runs = _here.keeps_house = True
        try:
            self._keep_house()
        finally:
            self._runs = False

    def _keep_house(self) -> None:
        doorbell = self.ledger.doorbell
        next_round = monotonic()
        while True:
            try:
                ring: Ring | None = take(doorbell, next_round - monotonic())
            except Empty:
                ring = None
            if ring in (STOP, ABANDONED):
                doorbell.put(STOP)  # for one that was late, and was replaced
            if ring == ABANDONED:
                self._do(self._close_abandoned)
            if isinstance(ring, Permit):
                self._do(functools.partial(self._reclaim, ring))
            if ring in (STOP, ABANDONED, NEWS):
                self._do(self.ledger.journal.emit)
            if ring in (STOP, ABANDONED):
                if self.ledger.pid != getpid():
                    # A greenlet in a forked child: `threading` has forgotten it, and its end would fail.
                    SimpleQueue[None]().get()
                return
            if monotonic() >= next_round:
                self._round()
                next_round = monotonic() + (_SOON if self.ledger.closing or self._passed_over else TICK)

    def _round(self) -> None:
        for chore in (
            self.ledger.journal.emit,
            self._listen,
            self._keep_alive,
            self._expire,
            self._finish_goodbyes,
            self._report_leaks,
            self._find_forsaken,
            self._audit,
            self.ledger.settle,
        ):
            self._do(chore)

    def _do(self, chore: Callable[[], None]) -> None:
        """Run a chore; if it raises, tell once per kind with the traceback, and go on."""
        try:
            chore()
        except Exception as error:  # noqa: BLE001  # whatever it is, the other connections need looking after
            name = getattr(chore, "__name__", "reclaim")
            kind = f"{name}: {type(error).__name__}"
            if kind not in self._failures_seen:
                self._failures_seen.add(kind)
                _log.exception("[%s] housekeeping failed in %s; it goes on", self.ledger.name, kind)

    # --- chores ----------------------------------------------------------------------------------------

    def _listen(self) -> None:
        """Read what came where nobody is reading: answer pings, notice ends and foreign messages.

        They take turns of one read each: of those that never stop sending there may be many.
        """
        self._sync_watcher()
        until = monotonic() + _BUDGET
        turns = deque(self._in_turn(self._watcher.ready()))
        unheard = len(turns)
        while turns:
            fd = turns.popleft()
            unheard -= 1
            if self._hear(self._watched.get(fd)):
                turns.append(fd)
            if monotonic() >= until:
                break
        self._passed_over = set(itertools.islice(turns, max(0, unheard)))
        for wire in self.ledger.unfinished.copy():
            self.ledger.unfinished.discard(wire)  # first: it may put itself there again
            wire.finish(until)

    def _in_turn(self, ready: list[int]) -> list[int]:
        """In which order they are heard: first where there is little to read, then who was passed over."""
        if len(ready) < 2:
            return ready
        return sorted(ready, key=lambda fd: (waiting(fd) > _LITTLE, fd not in self._passed_over))

    def _hear(self, entry: Entry | None) -> bool:
        """Read once from a connection that has something to read; True if there is more."""
        if entry is None or not entry.wire.tend(0.0):
            return False
        if stale(entry, self.ledger.config.reuse, -math.inf) is not None:
            self._retire_if_stale(entry)
        return entry.wire.wants_reading

    def _sync_watcher(self) -> None:
        version = self.ledger.watch_version
        if version == self._watch_version:
            return
        # Not those that still shake hands: what comes there is not for us.
        wanted = {entry.wire.fileno(): entry for entry in self.ledger.open_entries() if entry.created}
        wanted.pop(-1, None)
        for fd in self._watched.keys() - wanted.keys():
            self._watcher.remove(fd)
        for fd, entry in wanted.items():
            if self._watched.get(fd) is not entry:
                self._watcher.remove(fd)
                self._watcher.add(fd)
        self._watched = wanted
        self._watch_version = version

    def _retire_if_stale(self, entry: Entry) -> None:
        """Take an idle connection out of service if it must not be lent; a lent one is its borrower's."""
        if not self.ledger.take_if_idle(entry):
            return
        reason = stale(entry, self.ledger.config.reuse, monotonic())
        if reason is None:
            self.ledger.put_back(entry)
        else:
            self._retire(entry, reason)

    def _retire(self, entry: Entry, reason: str) -> None:
        """Close a connection that is ours."""
        self.ledger.known.note_idle(entry, reason)
        entry.wire.start_close(1001 if reason in ("idle", "lifetime") else 1000)
        gone = entry.wire.poll_close()
        if gone:
            entry.wire.shutdown()
        self.ledger.retire(entry, reason, gone=gone)
        _log.debug("[%s] connection %d closed: %s", self.ledger.name, entry.id, reason)

    def _keep_alive(self) -> None:
        """Ping what has been silent for health_check_interval; end what owes a pong for too long."""
        now = monotonic()
        if now < self._next_ping_round:
            return
        config = self.ledger.config
        due = now + config.health_check_interval
        for entry in list(self._watched.values()):
            wire = entry.wire
            if wire.is_over:
                continue  # its borrower has not noticed yet, or it says goodbye
            if wire.ping_due_since is not None:
                if self._is_overdue(wire):
                    if monotonic() >= now + _BUDGET:  # the rest in the next round
                        due = now
                        break
                    self._mind_the_pong(entry)
                due = now
            elif now - wire.last_heard >= config.health_check_interval:
                if not self._ask(entry):
                    self._mind_the_stall(entry, now)
                due = now
            else:
                due = min(due, wire.last_heard + config.health_check_interval)
        self._next_ping_round = due

    def _is_overdue(self, wire: WebSocket) -> bool:
        since = wire.ping_due_since
        if since is None:
            return False
        return monotonic() - max(since, wire.last_heard) >= self.ledger.config.health_check_timeout

    def _mind_the_pong(self, entry: Entry) -> None:
        """A pong is overdue: end the connection, unless it is this side that holds the ping or pong up."""
        wire = entry.wire
        looked = wire.tend(0.0)  # this thread may have been stopped since it listened, and the pong be there
        if wire.is_over or not self._is_overdue(wire):
            return
        taken, before = wire.bytes_taken, entry.taken_at_ping
        ping_waits = before < taken < wire.bytes_out  # behind a large message, and the server is at it
        if (looked and wire.has_backlog) or ping_waits:  # the pong may be behind what nobody reads yet
            entry.taken_at_ping = taken
            wire.last_heard = monotonic()
        else:
            self._give_up(entry, "no pong came")

    def _ask(self, entry: Entry) -> bool:
        """Ask whether the server is alive; False: not possible, because it takes nothing just now."""
        if self.check is None:
            entry.taken_at_ping = entry.wire.bytes_taken
            return entry.wire.send_ping()
        if not entry.checking and self.ledger.take_if_idle(entry):
            # In a thread of its own: the user's code may take its time, and other pings can't wait.
            entry.checking = True
            name = f"jetsocket-check-{self.ledger.name}"
            try:
                threading.Thread(target=self._run_check, args=(entry,), name=name, daemon=True).start()
            except RuntimeError:  # no more threads: it was not asked, and stays as it was
                entry.checking = False
                self.ledger.put_back(entry)
                raise
        return True

    def _mind_the_stall(self, entry: Entry, now: float) -> None:
        """A borrower's send is under way and leaves no room for a ping: then bytes must move instead."""
        taken = entry.wire.bytes_taken
        if entry.stalled_at_bytes != taken:
            entry.stalled_at_bytes, entry.stalled_since = taken, now
        elif now - entry.stalled_since >= self.ledger.config.health_check_timeout:
            self._give_up(entry, "the server took nothing")

    def _run_check(self, entry: Entry) -> None:
        assert self.check is not None
        healthy = False
        try:
            healthy = self.check(entry)
        finally:
            entry.checking = False
            if healthy:
                entry.wire.last_heard = monotonic()
                self.ledger.put_back(entry)
            else:
                self._retire(entry, "check failed")

    def _give_up(self, entry: Entry, why: str) -> None:
        """No sign of life for too long: end the connection, whoever has it."""
        told = f"{why} within health_check_timeout={self.ledger.config.health_check_timeout:g} s"
        entry.wire.cut(told)
        _log.warning("[%s] connection %d: %s", self.ledger.name, entry.id, told)
        if self.ledger.take_if_idle(entry):
            entry.wire.shutdown()
            self.ledger.retire(entry, "pong overdue", gone=True)

    def _expire(self) -> None:
        """Close what has been idle for max_idle_time or has lived for max_lifetime."""
        now = monotonic()
        for entry in self.ledger.idle_too_long(now):
            self._retire(entry, "idle")
        if self.ledger.config.max_lifetime is not None:
            for entry in self.ledger.open_entries():
                if now >= entry.expires:
                    self._retire_if_stale(entry)

    def _finish_goodbyes(self) -> None:
        """Let go of connections whose closing handshake is over, or has taken too long."""
        entries = self.ledger.say_goodbye()
        if not entries:
            return
        now, share = monotonic(), _BUDGET / len(entries)
        over = [
            entry for entry in entries if now >= entry.close_by or entry.wire.poll_close(monotonic() + share)
        ]
        for entry in over:
            entry.wire.shutdown()
        self.ledger.forget_closed(over)

    def _report_leaks(self) -> None:
        """Warn of leases that have been out for leak_threshold, once each."""
        threshold = self.ledger.config.leak_threshold
        if threshold is None:
            return
        now = monotonic()
        for permit in self.ledger.lent.copy():
            if not permit.warned and now - permit.taken_at >= threshold:
                permit.warned = True
                out_for = now - permit.taken_at
                told = f"it has been out for {out_for:.3g} s (leak_threshold={threshold:g} s)"
                stack = "" if permit.stack is None else "".join(permit.stack.format())
                _log.warning("[%s] connection leaked: %s, acquired at\n%s", self.ledger.name, told, stack)

    def _find_forsaken(self) -> None:
        """Return what a lease held whose finalizer or release an exception has struck."""
        for permit in self.ledger.forsaken():
            self._reclaim(permit)

    def _audit(self) -> None:
        """Find what else an exception between two bytecodes has lost, and give it back."""
        now = monotonic()
        if not self.ledger.suspect and now < self._next_audit:
            return
        self._next_audit = now + _AUDIT_EVERY
        lost = self.ledger.recount()
        if lost:
            _log.warning("[%s] %d permits were lost to an interrupt and are back", self.ledger.name, lost)

    # --- what was dropped ------------------------------------------------------------------------------

    def _reclaim(self, permit: Permit) -> None:
        """Return what a lease held that was dropped without release."""
        was_lent = self.ledger.claim(permit)
        permit.claimed = True
        if permit.room is not None:
            permit.room.wire.shutdown()
        if permit.entry is not None:
            self._hang_up(permit.entry.wire)
        permit.reason = "dropped"
        permit.gone = permit.entry is None or permit.entry.wire.poll_close()
        if permit.gone and permit.entry is not None:
            permit.entry.wire.shutdown()
        permit.lent_for = max(1e-9, monotonic() - permit.taken_at) if was_lent else 0.0
        self.ledger.give_back(permit)
        if was_lent:
            self._warn_of_drop(permit)

    @staticmethod
    def _hang_up(wire: WebSocket) -> None:
        wire.holder = None
        if wire.connected:
            wire.start_close()
        else:
            wire.cut("the acquire that opened it was interrupted")

    def _warn_of_drop(self, permit: Permit) -> None:
        file, line, function = permit.where()
        text = (
            f"a lease of pool {self.ledger.name!r} was dropped without release, acquired in {function}"
            f" ({file}:{line}); its connection was closed. Use `with pool.acquire(…) as conn:`"
        )
        _log.warning("[%s] %s", self.ledger.name, text)
        warnings.warn_explicit(text, ResourceWarning, file, max(1, line))

    def _close_abandoned(self) -> None:
        """The pool object is gone: say goodbye to all of its connections, side by side."""
        self.ledger.close()  # perhaps for the second time: the pool's own close() was interrupted
        entries = self.ledger.open_entries()
        close_all(entries, self.ledger.close_timeout)
        self.ledger.forget_closed(entries)


def is_housekeeping() -> bool:
    """Whether this thread is a housekeeper's, of whatever pool: nothing may hold it up."""
    return getattr(_here, "keeps_house", False)


def close_all(entries: Iterable[Entry], timeout: float) -> None:
    """Close connections side by side, all within `timeout` (s): each says goodbye, then all wait together."""
    pending = list(entries)
    deadline = monotonic() + timeout
    try:
        for entry in pending:
            entry.wire.start_close(1001)
        while pending := [entry for entry in pending if not _has_closed(entry.wire, deadline)]:
            remaining = deadline - monotonic()
            if remaining <= 0:
                break
            _wait_for_any(pending, min(remaining, _SOON))
    finally:  # after a Ctrl-C, too: closing twice does nothing
        for entry in pending:
            entry.wire.shutdown()


def _has_closed(wire: WebSocket, deadline: float) -> bool:
    if monotonic() >= deadline or not wire.poll_close():
        return False
    wire.shutdown()
    return True


def _wait_for_any(entries: Iterable[Entry], timeout: float) -> None:
    watcher = Watcher()
    for entry in entries:
        fd = entry.wire.fileno()
        if fd >= 0:
            watcher.add(fd)
    watcher.ready(timeout)


def stack_of(frame: FrameType | None) -> traceback.StackSummary:
    """The stack down to `frame`; source lines are read only when it is shown."""
    frames = [] if frame is None else list(traceback.walk_stack(frame))
    return traceback.StackSummary.extract(iter(reversed(frames)), lookup_lines=False)


__all__ = ["TICK", "Check", "Housekeeper", "close_all", "is_housekeeping", "stack_of"]
