"""How a borrower gets a connection: an idle one, looked at before it is lent, or by waiting in line."""

from __future__ import annotations

import logging
import sys
from typing import Any, NoReturn

from jetsocket.borrower import Borrower
from jetsocket.clean import may_be_lent, owes_a_ping, why_not_lent
from jetsocket.clock import SHORTEST_SLEEP, monotonic, with_sleep
from jetsocket.entry import Entry
from jetsocket.exceptions import (
    ConnectionError,
    PoolClosedError,
    PoolExhaustedError,
    TimeoutError,
    raise_copy,
)
from jetsocket.exhausted import exhausted
from jetsocket.housekeeper import Check, Housekeeper
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.lease import Lease, Terms
from jetsocket.logs import POOL_LOG
from jetsocket.on_push import PushHandler
from jetsocket.opening import START_PATIENCE, Opening
from jetsocket.prewarming import Prewarming
from jetsocket.process_id import PID
from jetsocket.pushes import OnPush
from jetsocket.replacement import Replacing
from jetsocket.returning import close_now
from jetsocket.state import Answer, State
from jetsocket.suspects import ended_silently, patience, ping_after_sleep, ping_siblings
from jetsocket.threads import Forked

_OWES_A_PONG = "owes a pong"
_LOOK_PATIENCE = 0.05  # s for looking at idle connections, whatever the acquire's deadline


class Lending(Replacing, Prewarming):
    """What leases reach of their pool, and the threads that serve them; one for each process.

    It does not refer to the pool, which must be collectable while its threads run.
    """

    def __init__(
        self,
        state: State,
        terms: Terms[Any],
        opening: Opening,
        *,
        reset: Any = None,
        check: Check | None = None,
        on_push: OnPush[Any] | None = None,
    ) -> None:
        """Lend the connections of that state."""
        super().__init__(state, terms, reset)
        self.opening = opening
        self.housekeeper: Housekeeper | None = None
        self._check = check
        state.has_check = check is not None
        state.has_dispatchers = terms.matching is not None
        self._handler: PushHandler | None = None
        if on_push is not None:
            self._handler = PushHandler(state, terms.pushes, on_push, terms.send_timeout)

    # --- the way in ------------------------------------------------------------------------------------

    def lend(self, lease: Lease[Any], deadline: float) -> None:
        """Give a lease its connection.

        Raises:
            PoolClosedError: The pool is closed or drained, or was while waiting.
            PoolExhaustedError: None within the time.
            ConnectionError: The last connection that was being opened to there has failed, and none is open.
        """
        borrower, state = lease._borrower, self.state
        slept = state.slept
        entry = state.take(borrower)
        if entry is None or not may_be_lent(entry, state.config, state.known, borrower.asked_at, slept):
            entry = self._find(borrower, entry, deadline, slept)
            if entry.uses:  # what comes unasked on a new one counts, however early it came
                entry.count_from_here()
        keeper = self.housekeeper
        if keeper is None or not keeper.runs:  # it may have ended, and idle connections need it, too
            self.ensure_housekeeper()
        wire, uses = entry.wire, entry.uses
        if uses:
            borrower.reused = True
        entry.uses = uses + 1
        wire.holder = borrower
        if entry.dispatcher is not None:
            entry.dispatcher.begin_lease()
        lease._entry = lease._shown = entry
        if entry.ids is not None and entry.ids.owes:
            lease._account = lease._watched = lease._new_account(entry.ids)
        if state.closed:
            wire.cut("the pool was closed")
            raise state.closed_error()
        if POOL_LOG.isEnabledFor(logging.DEBUG):
            how = "reused" if uses else "opened"
            text = "[%s] connection %d %s for %s"
            state.log.tell(text, state.name, entry.id, how, entry.target.redacted)

    def share(self, lease: Lease[Any], deadline: float) -> None:
        """Give a lease a place on a connection that others may use, too; with the errors of `lend`."""
        borrower, state = lease._borrower, self.state
        entry = state.join(borrower)
        if entry is None:
            entry = self._find(borrower, None, deadline, state.slept)
        keeper = self.housekeeper
        if keeper is None or not keeper.runs:
            self.ensure_housekeeper()
        borrower.reused = entry.uses > 0
        entry.uses += 1
        entry.wire.holder = entry.dispatcher
        lease._entry = lease._shown = entry
        if state.closed:
            entry.wire.cut("the pool was closed")
            raise state.closed_error()

    def tell_asked(self, borrower: Borrower) -> None:
        """Tell listeners that a caller asks for a connection."""
        if self.state.events is not None and borrower.target is not None:
            borrower.marks = self.state.events.begin("acquiring", borrower.target.redacted)

    def tell_acquired(self, borrower: Borrower) -> None:
        """Tell them that it has got one."""
        entry, events = borrower.entry, self.state.events
        if events is None or borrower.marks is None or entry is None or not events.wants("acquired"):
            return
        waited = borrower.taken_at - borrower.asked_at
        info = events.info_of(entry, monotonic())
        events.end("acquired", borrower.marks, info, waited, borrower.reused)

    def _find(self, borrower: Borrower, idle: Entry | None, deadline: float, slept: float) -> Entry:
        """Get a borrower a connection; `idle` is one that it was given, though perhaps not fit to be lent."""
        now = borrower.asked_at
        answer = self.state.enter(borrower, deadline > now) if idle is None else Answer(idle)
        return self._one_that_is_fit(borrower, answer, now, deadline, slept)

    def _one_that_is_fit(
        self, borrower: Borrower, answer: Answer, now: float, deadline: float, slept: float
    ) -> Entry:
        """Look at what a borrower was given, and wait for another until one may be lent.

        Args:
            borrower: Who asks.
            answer: What the state had for it.
            now: Monotonic, s.
            deadline: Likewise.
            slept: What the state knew of suspends before it was asked (s).
        """
        state = self.state
        config, known = state.config, state.known
        while True:
            entry = answer.entry
            if entry is None:
                entry = self._wait(borrower, answer, deadline)
                now = monotonic()
            if not entry.idle_since or len(entry.sharers) > 1:
                borrower.taken_at = now
                return entry  # new: no other borrower has had it; or others use it at this moment
            why = why_not_lent(entry, config, known, now)
            if why == "idle" and entry.key in state.floors:
                why = None  # as long as it is kept, that is no reason
            if why is None and (
                owes_a_ping(entry, config, borrower.asked_at)  # one that has answered since owes nothing
                or (with_sleep() - now >= slept + SHORTEST_SLEEP and ping_after_sleep(state, slept))
            ):
                why, now = self._ping(borrower, entry, deadline), monotonic()
            if why is None:
                borrower.taken_at = now
                return entry
            if why == _OWES_A_PONG:
                until = monotonic() + patience(state)
                slept = state.slept  # what it gives from now on has answered since
                answer = state.set_aside(borrower, entry, until, may_wait=deadline > now)
                if not state.has_check:
                    entry.wire.send_ping()
            else:
                known.note_idle(entry, why)
                if why == "closed" and ended_silently(entry):
                    ping_siblings(state, entry)
                gone = close_now(entry.wire)
                now = monotonic()
                answer = state.refuse(borrower, entry, why, gone=gone, may_wait=deadline > now)
            state.log.tell("[%s] connection %d not reused: %s", state.name, entry.id, why)
            if answer.entry is not None and now >= max(deadline, borrower.asked_at + _LOOK_PATIENCE):
                self._refuse(borrower)  # the others may send as much as this one

    def _ping(self, borrower: Borrower, entry: Entry, deadline: float) -> str | None:
        """Have a connection answer a ping that it owes; why it must not be lent, None: it may."""
        now = monotonic()
        until = now + patience(self.state)
        if deadline <= now or self.state.has_check:  # the housekeeper has it called
            return _OWES_A_PONG
        holder = entry.wire.holder = entry.dispatcher if borrower.shares else None  # others may join it
        try:
            entry.wire.measure_latency(min(until, deadline), holder)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            if deadline < until:
                return _OWES_A_PONG
            entry.wire.cut("no pong came before it was to be lent")
            return "closed"
        except ConnectionError as error:
            if is_alarm(error):
                raise
            return "closed"
        return None

    def _wait(self, borrower: Borrower, answer: Answer, deadline: float) -> Entry:
        """Wait in line for a connection."""
        state = self.state
        if not answer.is_waiting:
            if not self.ensure_housekeeper():
                state.cancel_polls()
            self._refuse(borrower, answer.error, at_once=answer.is_refused)
        while True:
            if not self.ensure_housekeeper() or sys.is_finalizing():
                state.plan()  # no other thread looks at the times
                self._dial_oneself(borrower)
            keeper, left = self.housekeeper, deadline - monotonic()
            if keeper is None or not keeper.runs:  # it may never, and then no thread takes up orders
                left = min(left, START_PATIENCE)
            is_roused = borrower.wait(left)
            if state.pid != PID[0]:
                raise Forked
            if borrower.entry is not None:
                return borrower.entry
            if borrower.error is not None:
                self._refuse(borrower, borrower.error)
            if state.closed or state.draining:  # an exception struck the thread that was to tell
                self._refuse(borrower, state.closed_error())
            if monotonic() >= deadline:
                if (entry := state.leave_line(borrower)) is not None:
                    return entry
                self._refuse(borrower, borrower.error)
            if is_roused:  # without a result: no thread could be started
                self._dial_oneself(borrower)

    def _dial_oneself(self, borrower: Borrower) -> None:
        """Open the connection in the borrower's own thread, where no other runs."""
        if (dial := self.state.take_own_dial(borrower)) is not None:
            self.opening.open(dial)

    def _refuse(
        self, borrower: Borrower, error: BaseException | None = None, *, at_once: bool = False
    ) -> NoReturn:
        if error is not None:
            raise_copy(error)
        raise exhausted(self.state, borrower, at_once=at_once)

    def fail(self, borrower: Borrower, error: BaseException) -> None:
        """`give_up`, for who raises that error then.

        Raises:
            PoolClosedError: The pool is closed: in place of what `close` has made of it.
        """
        self.give_up(borrower, error)
        is_ours = isinstance(error, (ConnectionError, TimeoutError)) and not is_alarm(error)
        told = self.state.closed_error() if is_ours and self.state.closed else error
        self.state.totals.note_refusal(type(told).__name__, monotonic() - borrower.asked_at)
        if borrower.marks is not None and self.state.events is not None:
            self.state.events.end("refused", borrower.marks, told)
        if told is not error:
            raise told from error

    def give_up(self, borrower: Borrower, error: BaseException) -> None:
        """An acquire failed or was struck: what it was about to get comes back, unused."""
        self.state.claim(borrower)
        entry = borrower.entry
        if entry is not None and entry.wire.holder is borrower:
            entry.wire.holder = None
        self.state.come_back(borrower)
        borrower.lease = None  # last: by this it is found where an exception strikes above
        if not isinstance(error, (PoolExhaustedError, PoolClosedError)):
            self.state.log.tell("[%s] acquire failed: %s", self.state.name, type(error).__name__)

    def ensure_housekeeper(self) -> bool:
        """Start the housekeeper, if none runs; False if no thread can be started."""
        keeper = self.housekeeper
        if keeper is not None and keeper.runs:
            return True
        if sys.is_finalizing():
            return False  # up to Python 3.11, start() would wait for ever for a thread that never runs
        candidate = Housekeeper(self.state, self.opening, self._check, self._handler)
        if self.state.appoint(candidate):
            self.housekeeper = candidate
            try:
                candidate.start()
            except (KeyError, RuntimeError) as error:
                # An alarm makes a KeyError of start(). Else it is the system's limit; or, since Python 3.12,
                # the main thread has ended.
                raise_alarm_behind(error)
                if isinstance(error, KeyError):
                    raise
                self.state.log.tell("[%s] no thread for the housekeeper", self.state.name)
                return False
        return True


__all__ = ["Lending"]
