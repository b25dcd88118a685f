"""Housekeeper: the one lasting daemon thread of a pool keeps connections alive and tidies up.

It knows the state but not the pool, so that a pool which is not referred to any more can be collected; the
pool's finalizer then rings, and the housekeeper closes what is left and ends. It runs no user code and
nothing that may block: log records, warnings and `check` go to the workers, dials to the openers, both of
which it starts.
"""

from __future__ import annotations

import logging
import math
import sys
import threading
from collections.abc import Callable
from functools import partial
from queue import Empty
from weakref import ref

from jetsocket import leaks, limiter_calls, overdue_dials
from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.delivery import Delivery
from jetsocket.entry import Entry
from jetsocket.expiry import close_expired
from jetsocket.keepalive import Liveness
from jetsocket.lease import is_being_returned
from jetsocket.on_push import PushHandler
from jetsocket.opening import Opening
from jetsocket.parallel_close import close_all
from jetsocket.returning import tell_released
from jetsocket.state import State
from jetsocket.state.moves import TICK
from jetsocket.state.slots import LIMITERS
from jetsocket.threads import frame_in, keep_house, rest_if_forked, start_for_a_borrower
from jetsocket.user_checks import Check
from jetsocket.user_errors import place_in
from jetsocket.wire.waits import take
from jetsocket.workers import Workers

STOP = "stop"
PUSHES = "pushes"
ABANDONED = "abandoned"

_SOON = 0.05  # s, while a connection is closing, or one had to be passed over
_AT_ONCE = 0.01  # s, while connections owe a pong before they can be lent
_BUDGET = 0.1  # s that closing handshakes may take of a round, all together
_START_PATIENCE = 1.0  # s, after which a thread that does not run is taken for one that never will
_RETURN_PATIENCE = 0.3  # s that a return may take from its claim to its booking
_SEEN_PATIENCE = 5.0  # s, while a thread is seen to be at it: it may be a signal handler that holds it up
_STOP_PATIENCE = 1.0  # s that workers have to empty their queues


class Housekeeper:
    """The thread, and what it remembers between two rounds.

    Attributes:
        state: Of the pool that it looks after.
        workers: What it has to run what may block.
        runs: Whether the thread runs.
    """

    def __init__(
        self,
        state: State,
        opening: Opening,
        check: Check | None = None,
        handler: PushHandler | None = None,
    ) -> None:
        """Look after the connections of that pool; `check` replaces the protocol's ping."""
        self.state = state
        self.workers = Workers(state.name)
        self._opening = opening
        self._liveness = Liveness(state, self.workers.checks, check)
        self._delivery = Delivery(state, self.workers, handler)
        self._thread = threading.Thread(
            target=self._run, name=f"jetsocket-housekeeper-{state.name}", daemon=True
        )
        self._made_at = monotonic()
        # Not Thread.is_alive(): before Python 3.13, an interrupt within it makes it say no for ever.
        self.runs = False
        self._unreturned: dict[Borrower, float] = {}  # since when their return is seen under way
        self._failures_seen: set[str] = set()
        self._logging = False

    def start(self) -> None:
        """Start the thread; for a borrower.

        Raises:
            RuntimeError: It could not be started.
        """
        try:
            start_for_a_borrower(self._thread)
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

    @property
    def tells(self) -> bool:
        """Whether a worker is telling log or listeners something: for long, if one of them hangs."""
        return not self.workers.log.is_idle

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
            if isinstance(ring, ref):  # of a lease that was dropped
                self._do(self._find_dropped)
            elif ring == "closing":
                next_round = min(next_round, monotonic() + _SOON)
            elif ring == "suspects":
                next_round = min(next_round, monotonic() + _AT_ONCE)
            elif ring == "openers":
                self._do(self._opening.start_threads)
            elif ring == LIMITERS:
                self._do(self._mind_limiters)
            elif ring == PUSHES:
                self._do(self._delivery.run_on_push)
            if monotonic() >= self.state.plan_at:
                self._do(self._mind_the_times)
            if monotonic() >= next_round:
                self._round()
                next_round = monotonic() + self._until_next_round()

    def _until_next_round(self) -> float:
        if self._liveness.has_suspects:  # callers may wait for their pongs
            return _AT_ONCE
        is_busy = self.state.closing or self._liveness.passed_over or self._unreturned
        return _SOON if is_busy or self._delivery.is_watching else TICK

    def _end(self) -> None:
        self._do(self._emit_all)
        self._do(self._mind_limiters)
        self._do(partial(limiter_calls.end, self.state, self.workers.limiter))
        self.workers.stop(monotonic() + _STOP_PATIENCE)
        rest_if_forked(self.state.pid)

    def _round(self) -> None:
        for chore in (
            self._emit,
            self._liveness.listen,
            self._delivery.hand_out,
            self._delivery.run_on_push,
            self._delivery.mind,
            self._liveness.mind_sleep,
            self._liveness.keep_alive,
            self._liveness.hear_suspects,
            self._mind_checks,
            partial(close_expired, self.state, self._liveness.retire_if_stale),
            self._keep_floors,
            self._finish_closing,
            partial(leaks.report, self.state),
            self._find_dropped,
            self._find_unreturned,
            partial(overdue_dials.mind_left_behind, self.state),
            self._find_abandoned,
            self._mind_limiters,
            self._opening.start_threads,
            self.state.settle,
        ):
            self._do(chore)

    def _do(self, chore: Callable[[], object]) -> None:
        """Run a chore; if it raises, log it once per kind with the traceback, and go on."""
        try:
            chore()
        except Exception as error:  # noqa: BLE001  # whatever it is, the other connections need looking after
            name = getattr(getattr(chore, "func", chore), "__name__", "reclaim")
            kind = f"{name}: {type(error).__name__}"
            if kind not in self._failures_seen:
                self._failures_seen.add(kind)
                told = "[%s] housekeeping failed in %s; it goes on"
                self.state.log.note(logging.ERROR, told, self.state.name, kind, failure=error)

    # --- chores ----------------------------------------------------------------------------------------

    def _emit(self) -> None:
        """`_emit_all`, unless a worker emits just now: behind one that hangs, no more is to pile up."""
        if self.workers.log.is_idle:
            self._emit_all()

    def _emit_all(self) -> None:
        """Have a worker emit what is to be logged, and tell listeners what waits for that."""
        events = self.state.events
        if self.state.log.has_lines:
            self.workers.log.submit(self.state.log.emit)
        if events is not None and events.has_pending:
            self.workers.log.submit(events.emit)

    def _mind_the_times(self) -> None:
        """Do what is due: a URI may be dialled again, a caller has waited long enough, a dial is overdue."""
        overdue_dials.give_up(self.state)
        self.state.plan()

    def _mind_checks(self) -> None:
        if self._liveness.checking is not None:
            self._liveness.checking.mind()

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

    # --- what was dropped or struck --------------------------------------------------------------------

    def _find_dropped(self) -> None:
        """Return what leases held that are gone."""
        for borrower in self.state.dropped():
            self._reclaim(borrower)

    def _find_unreturned(self) -> None:
        """Return what a lease held whose `release` an exception has struck, though the lease may be kept."""
        now = monotonic()
        under_way = self.state.unreturned()
        self._unreturned = {each: self._unreturned.get(each, now) for each in under_way}
        for borrower, since in self._unreturned.items():
            if now < max(since + _RETURN_PATIENCE, borrower.returning_until):
                continue
            if not borrower.returning_until and now < since + _SEEN_PATIENCE and is_being_returned(borrower):
                continue  # not struck: on a busy machine it has not had its turn
            if borrower.returning_until and borrower.entry is not None:
                self._warn_of_reset(borrower, borrower.entry)
                self._take_back(borrower, "reset failed")
            else:
                self._take_back(borrower, "interrupted")

    def _warn_of_reset(self, borrower: Borrower, entry: Entry) -> None:
        place = place_in(frame_in(borrower.returning_thread))
        self.state.log.note(
            logging.WARNING,
            "[%s] connection %d is closed: reset() hangs%s, beyond health_check_timeout=%g s. Give what it"
            " waits for a timeout of its own",
            self.state.name,
            entry.id,
            f" in {place}" if place else "",
            self.state.config.health_check_timeout,
        )

    def _find_abandoned(self) -> None:
        """Close a pool that is referred to no more, and whose finalizer an exception has struck."""
        pool = self.state.pool
        if pool is not None and pool() is None:
            self.state.doorbell.put(ABANDONED)

    def _reclaim(self, borrower: Borrower) -> None:
        """Return what a lease held that was dropped without release."""
        was_lent, entry = self.state.claim(borrower), borrower.entry
        if borrower.shares:
            if entry is not None and entry.dispatcher is not None:
                entry.dispatcher.topics.abandon(borrower)
                borrower.reason = "dropped" if entry.dispatcher.topics.leaves_open(borrower) else None
            self.state.come_back(borrower)
            if was_lent:
                tell_released(self.state, borrower, entry)
            if was_lent and borrower.is_subscriber:
                leaks.warn_of_drop(self.state, self.workers, borrower, entry)
            return
        if not was_lent and entry is not None and entry.borrower is borrower:
            return  # its return is under way, or `_find_unreturned` finds it
        self._take_back(borrower, "dropped")
        if was_lent:
            leaks.warn_of_drop(self.state, self.workers, borrower, entry)

    def _take_back(self, borrower: Borrower, reason: str) -> None:
        entry = self.state.take_over(borrower, reason)
        if entry is None:
            return
        entry.wire.holder = None
        entry.wire.start_close()
        tell_released(self.state, borrower, entry)
        if borrower.warned and reason != "dropped":  # of those that were dropped a warning tells
            leaks.tell_end(self.state, borrower, entry, reason)

    def _mind_limiters(self) -> None:
        """Do what limiters ask for, and have them given back what no connection has any more."""
        limiter_calls.hear(self.state)
        if self.state.spent:
            limiter_calls.release(self.state, self.workers.limiter)

    def _close_abandoned(self) -> None:
        """The pool object is gone: close all of its connections, side by side."""
        taken = self.state.close(again=True)  # if the pool's own close() was interrupted
        assert taken is not None
        closing, out = taken
        for entry in out:  # its opener perhaps reads from it at this moment
            entry.wire.dismiss("the pool was closed")
        close_all(closing, self.state.close_timeout)
        self.state.forget_cut([*closing, *out])


__all__ = ["ABANDONED", "PUSHES", "STOP", "Check", "Housekeeper"]
