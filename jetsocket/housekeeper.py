"""Housekeeper: the one lasting daemon thread of a pool keeps connections alive and tidies up.

It knows the state but not the pool, so that a pool which is not referred to any more can be collected; the
pool's finalizer then rings, and the housekeeper closes what is left and ends. It runs no user code and
nothing that may
block: log records, warnings and `check` go to the workers, dials to the openers, both of which it starts.
"""

from __future__ import annotations

import itertools
import logging
import math
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import Empty

from jetsocket.borrower import Borrower
from jetsocket.clean import stale
from jetsocket.clock import monotonic
from jetsocket.closing import close_all
from jetsocket.demand import Dial
from jetsocket.entry import Entry
from jetsocket.exceptions import TimeoutError
from jetsocket.limits import Limiter
from jetsocket.moves import TICK
from jetsocket.opening import Opening
from jetsocket.places import CHECKING, IDLE
from jetsocket.state import State
from jetsocket.threads import keep_house, rest_if_forked
from jetsocket.wire.waits import Watcher, take, waiting
from jetsocket.wire.websocket import WebSocket
from jetsocket.workers import Workers

STOP = "stop"
ABANDONED = "abandoned"

_SOON = 0.05  # s, while a connection is closing, or one had to be passed over
_BUDGET = 0.1  # s that a chore may spend on what comes, over all connections
_LITTLE = 4096  # B: as much as an honest server sends unasked, a ping above all
_START_PATIENCE = 1.0  # s, after which a thread that does not run is taken for one that never will
_RETURN_PATIENCE = 0.3  # s that a return may take from its claim to its booking
_STOP_PATIENCE = 1.0  # s that workers have to empty their queues

_log = logging.getLogger("jetsocket.pool")

Check = Callable[[Entry], bool]


class Housekeeper:
    """The thread, and what it remembers between two rounds.

    Attributes:
        state: Of the pool that it looks after.
        workers: What it has to run what may block.
        runs: Whether the thread runs.
    """

    def __init__(
        self, state: State, opening: Opening, check: Check | None = None, limiter: Limiter | None = None
    ) -> None:
        """Look after the connections of that pool; `check` replaces the protocol's ping."""
        self.state = state
        self.workers = Workers(state.name)
        self._opening = opening
        self._check = check
        self._limiter = limiter
        self._thread = threading.Thread(
            target=self._run, name=f"jetsocket-housekeeper-{state.name}", daemon=True
        )
        self._made_at = monotonic()
        # Not Thread.is_alive(): before Python 3.13, an interrupt within it makes it say no for ever.
        self.runs = False
        self._watcher = Watcher()
        self._watched: dict[int, Entry] = {}
        self._watch_version = -1
        self._passed_over: set[int] = set()  # descriptors for which the last round had no time
        self._next_ping_round = 0.0
        self._unreturned: dict[Borrower, float] = {}  # since when their return is seen under way
        self._failures_seen: set[str] = set()
        self._logging = False

    def start(self) -> None:
        """Start the thread."""
        try:
            self._thread.start()
        except BaseException:
            self._made_at = -math.inf  # it has died
            raise

    @property
    def has_died(self) -> bool:
        """Whether the thread ended, or was never started."""
        return not self.runs and monotonic() - self._made_at > _START_PATIENCE

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
        self.runs = True
        keep_house()
        try:
            self._keep_house()
        finally:
            self.runs = False

    def _keep_house(self) -> None:
        doorbell = self.state.doorbell
        next_round = monotonic()
        while True:
            try:
                ring: object = take(doorbell, min(next_round, self.state.plan_at) - monotonic())
            except Empty:
                ring = None
            if ring in (STOP, ABANDONED):
                doorbell.put(STOP)  # for one that was late, and was replaced
                if ring == ABANDONED:
                    self._do(self._close_abandoned)
                self._end()
                return
            if isinstance(ring, Borrower):
                self._do(partial(self._reclaim, ring))
            elif ring == "closing":
                next_round = min(next_round, monotonic() + _SOON)
            elif ring == "openers":
                self._do(self._opening.start_threads)
            if monotonic() >= self.state.plan_at:
                self._do(self._mind_the_times)
            if monotonic() >= next_round:
                self._round()
                is_busy = self.state.closing or self._passed_over or self._unreturned
                next_round = monotonic() + (_SOON if is_busy else TICK)

    def _end(self) -> None:
        self._do(self._emit)
        self.workers.stop(monotonic() + _STOP_PATIENCE)
        rest_if_forked(self.state.pid)

    def _round(self) -> None:
        for chore in (
            self._emit,
            self._listen,
            self._keep_alive,
            self._hear_suspects,
            self._expire,
            self._keep_floors,
            self._finish_closing,
            self._report_leaks,
            self._find_dropped,
            self._find_unreturned,
            self._release_tokens,
            self._opening.start_threads,
            self.state.settle,
        ):
            self._do(chore)

    def _do(self, chore: Callable[[], object]) -> None:
        """Run a chore; if it raises, log it once per kind with the traceback, and go on."""
        try:
            chore()
        except Exception as error:  # noqa: BLE001  # whatever it is, the other connections need looking after
            name = getattr(chore, "__name__", "reclaim")
            kind = f"{name}: {type(error).__name__}"
            if kind not in self._failures_seen:
                self._failures_seen.add(kind)
                told = "[%s] housekeeping failed in %s; it goes on"
                self.state.log.note(logging.ERROR, told, self.state.name, kind, failure=error)

    # --- chores ----------------------------------------------------------------------------------------

    def _emit(self) -> None:
        """Have a worker emit what is to be logged."""
        if self.state.log.has_lines and self.workers.log.is_idle:
            self.workers.log.submit(self.state.log.emit)

    def _mind_the_times(self) -> None:
        """Do what is due: a URI may be dialled again, a caller has waited long enough, a dial is overdue."""
        for dial in self.state.overdue_dials(monotonic()):
            self._give_dial_up(dial)
        self.state.plan()

    def _give_dial_up(self, dial: Dial) -> None:
        entry = dial.entry
        if entry is None:
            return
        entry.wire.cut("it was not opened in time")
        where, lasted = dial.target.redacted, monotonic() - dial.began_at
        told = (
            f"cannot connect to {where}: {lasted:.3g} s were not enough for a name look-up or a callback that"
            " does not end; see what the resolver and your callables do, or allow more time (connect_timeout)"
        )
        self.state.failed(dial, entry, TimeoutError(told, operation="connect", timeout=lasted))

    def _listen(self) -> None:
        """Read what came where no borrower is reading: answer pings, notice ends and foreign messages.

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
        for wire in self.state.unfinished.copy():
            self.state.unfinished.discard(wire)  # first: it may put itself there again
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
        if entry.place in (IDLE, CHECKING):
            self._retire_if_stale(entry, -math.inf)
        return entry.wire.wants_reading

    def _sync_watcher(self) -> None:
        version = self.state.watch_version
        if version == self._watch_version:
            return
        # Not those that still shake hands: what comes there is not for us.
        wanted = {entry.wire.fileno(): entry for entry in self.state.open_entries() if entry.created}
        wanted.pop(-1, None)
        for fd in self._watched.keys() - wanted.keys():
            self._watcher.remove(fd)
        for fd, entry in wanted.items():
            if self._watched.get(fd) is not entry:
                self._watcher.remove(fd)
                self._watcher.add(fd)
        self._watched = wanted
        self._watch_version = version

    def _retire_if_stale(self, entry: Entry, now: float) -> None:
        """Take an idle connection out of service if it must not be lent; a lent one is its borrower's."""
        if (reason := stale(entry, self.state.config.reuse, now)) is not None:
            self._retire(entry, reason)

    def _retire(self, entry: Entry, reason: str) -> None:
        if self.state.retire_if_idle(entry, reason):
            self.state.known.note_idle(entry, reason)
            entry.wire.start_close(1001 if reason in ("idle", "lifetime") else 1000)
            self.state.log.note(
                logging.DEBUG, "[%s] connection %d closed: %s", self.state.name, entry.id, reason
            )

    def _keep_alive(self) -> None:
        """Ping what has been silent for health_check_interval; end what owes a pong for too long."""
        now = monotonic()
        if now < self._next_ping_round:
            return
        config = self.state.config
        due = now + config.health_check_interval
        for entry in list(self._watched.values()):
            wire = entry.wire
            if wire.is_over:
                continue  # its borrower has not noticed yet, or it is closing
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
        return monotonic() - max(since, wire.last_heard) >= self.state.config.health_check_timeout

    def _mind_the_pong(self, entry: Entry) -> None:
        """A pong is overdue: end the connection, unless it is this side that holds the ping or pong up."""
        wire = entry.wire
        looked = wire.tend(0.0)  # this thread may have been stopped since it listened, and the pong be there
        if wire.is_over or not self._is_overdue(wire):
            return
        taken, before = wire.bytes_taken, entry.taken_at_ping
        ping_waits = before < taken < wire.bytes_out  # behind a large message, and the server is at it
        if (looked and wire.has_backlog) or ping_waits:  # the pong may be behind what is not read yet
            entry.taken_at_ping = taken
            wire.last_heard = monotonic()
        else:
            self._give_up(entry, "no pong came")

    def _ask(self, entry: Entry) -> bool:
        """Ask whether the server is alive; False: not possible, because it takes nothing just now."""
        if self._check is None:
            entry.taken_at_ping = entry.wire.bytes_taken
            return entry.wire.send_ping()
        if self.state.take_for_check(entry):
            try:
                self.workers.checks.submit(partial(self._run_check, self._check, entry))
            except RuntimeError:  # no more threads: it was not asked, and stays as it was
                self.state.put_back(entry)
                raise
        return True

    def _run_check(self, check: Check, entry: Entry) -> None:
        """In a worker."""
        healthy = False
        try:
            healthy = check(entry)
        finally:
            if healthy:
                entry.wire.last_heard = monotonic()
                self.state.put_back(entry)
            else:
                self._retire(entry, "check failed")

    def _mind_the_stall(self, entry: Entry, now: float) -> None:
        """A borrower's send is under way and leaves no room for a ping: then bytes must move instead."""
        taken = entry.wire.bytes_taken
        if entry.stalled_at_bytes != taken:
            entry.stalled_at_bytes, entry.stalled_since = taken, now
        elif now - entry.stalled_since >= self.state.config.health_check_timeout:
            self._give_up(entry, "the server took nothing")

    def _give_up(self, entry: Entry, why: str) -> None:
        """No sign of life for too long: end the connection, whichever borrower has it."""
        told = f"{why} within health_check_timeout={self.state.config.health_check_timeout:g} s"
        self._cut(entry, told)

    def _cut(self, entry: Entry, told: str) -> None:
        entry.wire.cut(told)
        self.state.log.note(logging.WARNING, "[%s] connection %d: %s", self.state.name, entry.id, told)
        if self.state.retire_if_idle(entry, "pong overdue"):
            entry.wire.shutdown()
            self.state.forget([entry])

    def _hear_suspects(self) -> None:
        """Those that had to answer a ping before they are lent again: have they?"""
        now = monotonic()
        for entry in self.state.suspects():
            wire = entry.wire
            if wire.is_over:
                self._retire(entry, "closed")
            elif wire.ping_due_since is None:
                self.state.put_back(entry)
            elif now >= entry.answer_by:
                self._cut(entry, "no pong came in time, after another connection to its URI was found dead")

    def _expire(self) -> None:
        """Close what has been idle for max_idle_time or has lived for max_lifetime."""
        now = monotonic()
        self.state.idle_too_long(now)
        if self.state.config.max_lifetime is not None:
            for entry in self.state.open_entries():
                if now >= entry.expires and entry.place == IDLE:
                    self._retire_if_stale(entry, now)

    def _keep_floors(self) -> None:
        """Open what `prewarm(keep=True)` wants and is not there."""
        if self.state.floors:
            self.state.fill_floors()

    def _finish_closing(self) -> None:
        """Let go of connections whose closing handshake is over, or has taken too long."""
        entries = self.state.closing_entries()
        if not entries:
            return
        now, share = monotonic(), _BUDGET / len(entries)
        over = []
        for entry in entries:
            entry.wire.start_close(1001)  # unless it was started before
            if now >= entry.close_by or entry.wire.poll_close(monotonic() + share):
                entry.wire.shutdown()
                over.append(entry)
        self.state.forget(over)

    def _report_leaks(self) -> None:
        """Warn of leases that have been out for leak_threshold, once each."""
        threshold = self.state.config.leak_threshold
        if threshold is None:
            return
        now = monotonic()
        for borrower in list(self.state.lent):
            if not borrower.warned and now - borrower.taken_at >= threshold:
                borrower.warned = True
                self._warn_of_leak(borrower, now - borrower.taken_at, threshold)

    def _warn_of_leak(self, borrower: Borrower, out_for: float, threshold: float) -> None:
        stack = "" if borrower.stack is None else "".join(borrower.stack.format())
        entry = borrower.entry
        which = "?" if entry is None else f"{entry.id} to {entry.target.redacted}"
        told = f"it has been out for {out_for:.3g} s (leak_threshold={threshold:g} s)"
        self.state.log.note(
            logging.WARNING,
            "[%s] connection %s leaked: %s, acquired by thread %s at\n%s",
            self.state.name,
            which,
            told,
            borrower.thread_name,
            stack,
        )

    # --- what was dropped or struck --------------------------------------------------------------------

    def _find_dropped(self) -> None:
        """Return what a lease held whose finalizer an exception has struck."""
        for borrower in self.state.dropped():
            self._reclaim(borrower)

    def _find_unreturned(self) -> None:
        """Return what a lease held whose `release` an exception has struck, though the lease may be kept."""
        now = monotonic()
        under_way = self.state.unreturned()
        self._unreturned = {each: self._unreturned.get(each, now) for each in under_way}
        for borrower, since in self._unreturned.items():
            if now >= max(since + _RETURN_PATIENCE, borrower.returning_until):
                self._take_back(borrower, "interrupted")

    def _reclaim(self, borrower: Borrower) -> None:
        """Return what a lease held that was dropped without release."""
        was_lent = self.state.claim(borrower)
        if not was_lent and borrower.entry is not None and borrower.entry.borrower is borrower:
            return  # its return is under way, or `_find_unreturned` finds it
        self._take_back(borrower, "dropped")
        if was_lent:
            self._warn_of_drop(borrower)

    def _take_back(self, borrower: Borrower, reason: str) -> None:
        entry = borrower.entry
        if entry is not None:
            entry.wire.holder = None
            entry.wire.start_close()
            borrower.lent_for = max(1e-9, monotonic() - borrower.taken_at)
        borrower.reason = reason
        self.state.come_back(borrower)

    def _warn_of_drop(self, borrower: Borrower) -> None:
        file, line, function = borrower.where()
        text = (
            f"a lease of pool {self.state.name!r} was dropped without release, acquired in {function}"
            f" ({file}:{line}); its connection was closed. Use `with pool.acquire(…) as conn:`"
        )
        self.state.log.note(logging.WARNING, "[%s] %s", self.state.name, text)
        # A warnings hook is the user's code: not here.
        self.workers.log.submit(partial(warnings.warn_explicit, text, ResourceWarning, file, max(1, line)))

    def _release_tokens(self) -> None:
        """Give the limiter back what it gave for connections that are closed."""
        while self._limiter is not None and self.state.spent_tokens:
            self.workers.limiter.submit(partial(self._limiter.release, self.state.spent_tokens.popleft()))

    def _close_abandoned(self) -> None:
        """The pool object is gone: close all of its connections, side by side."""
        self.state.close()  # perhaps for the second time: the pool's own close() was interrupted
        entries = self.state.open_entries()
        close_all(entries, self.state.close_timeout)
        self.state.forget(entries)


__all__ = ["ABANDONED", "STOP", "Check", "Housekeeper"]
