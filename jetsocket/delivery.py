"""Workers hand out what came where no borrower reads, and call `on_push` with what was not asked for.

A method of the correlation that does not return costs the connection whose message it looks at, and a thread,
not the pool: another thread goes on with what came over the others. An `on_push` that does not is told of.
"""

from __future__ import annotations

import logging
from functools import partial

from jetsocket.clock import monotonic
from jetsocket.dispatch import Dispatcher
from jetsocket.entry import Entry
from jetsocket.on_push import PushHandler
from jetsocket.state import State
from jetsocket.workers import Run, Workers

MOST_HANGING = 3
"""Threads that may hang in a correlation."""

_OVERDUE = 0.5  # s after which what has not ended by itself is given up


class Delivery:
    """The chores of the housekeeper for a pool with a correlation.

    Attributes:
        is_watching: Whether a strike was seen, so that it is to look again soon.
    """

    def __init__(self, state: State, workers: Workers, handler: PushHandler | None) -> None:
        """Have those workers do it; `handler` calls `on_push`, if there is one."""
        self._state = state
        self._workers = workers
        self._handler = handler
        self._under_way: dict[Run, Entry] = {}
        self._replaced: dict[Run, bool] = {}  # those that hang, and for which another thread was allowed
        self.is_watching = False

    def hand_out(self) -> None:
        """Have a worker hand out what came where no borrower reads; cut what a strike has left locked."""
        if not self._state.has_dispatchers:
            return
        now, self.is_watching = monotonic(), False
        for entry in self._state.open_entries():
            dispatcher = entry.dispatcher
            if dispatcher is None or entry.wire.failure is not None:
                continue
            if dispatcher.in_flight:
                dispatcher.forget_struck(entry.sharers)
            if dispatcher.locks.is_stuck(now):
                entry.wire.cut("an exception struck a thread in its use")
            elif entry.wire.was_struck:
                self.is_watching = True
            elif dispatcher.wants_worker:
                dispatcher.has_worker = True
                self._workers.dispatch.submit(partial(self._work, entry, dispatcher))

    def _work(self, entry: Entry, dispatcher: Dispatcher) -> None:
        """In a worker."""
        run = Run()
        self._under_way[run] = entry
        try:
            dispatcher.work()
        finally:
            self._under_way.pop(run, None)
            if run.hangs:
                if self._replaced.pop(run, None) is not None:
                    self._workers.dispatch.one_is_back()
                self._tell_come_back(run)

    def run_on_push(self) -> None:
        """Have a worker call `on_push` for what waits."""
        handler = self._handler
        if handler is not None and handler.has_work:
            handler.is_scheduled = True
            self._workers.push.submit(handler.run)

    # --- what does not return --------------------------------------------------------------------------

    def mind(self) -> None:
        """Give up what hangs in the correlation, and tell of an `on_push` that does."""
        limit = self._state.config.health_check_timeout
        overdue = monotonic() - limit - _OVERDUE
        for run, entry in list(self._under_way.items()):
            assert entry.dispatcher is not None, "it hands out"
            if not run.hangs and max(run.began_at, entry.dispatcher.last_read) <= overdue:
                run.hangs = True
                self._give_up(entry, entry.dispatcher, run, limit)
        handler = self._handler
        run_of_handler = None if handler is None else handler.under_way
        if run_of_handler is not None and not run_of_handler.hangs and run_of_handler.began_at <= overdue:
            run_of_handler.hangs = True
            text = "[%s] on_push() hangs%s, for more than %g s. Other messages wait until it returns"
            self._state.log.note(logging.WARNING, text, self._state.name, run_of_handler.place, limit)

    def _give_up(self, entry: Entry, dispatcher: Dispatcher, run: Run, limit: float) -> None:
        """Close the connection, and have another thread go on with the others."""
        state, name = self._state, type(dispatcher.matching.correlation).__name__
        told = f"a method of {name} hangs{run.place}, beyond health_check_timeout={limit:g} s"
        entry.wire.cut(told)
        if entry.wire.failure is not None:
            dispatcher.fail(entry.wire.failure)  # those who wait; the thread that hangs would tell them
        hanging = sum(each.hangs for each in list(self._under_way))
        more = ""
        if hanging < MOST_HANGING:
            self._replaced[run] = True
            self._workers.dispatch.replace_one()
        else:
            more = f"; {hanging} threads hang so, and what comes where nobody reads waits for one of them"
        text = "[%s] connection %d is closed: %s%s"
        state.log.note(logging.WARNING, text, state.name, entry.id, told, more)
        if state.retire_if_idle(entry, "correlation hangs"):
            entry.wire.shutdown()
            state.forget([entry])

    def _tell_come_back(self, run: Run) -> None:
        text = "[%s] a method of the correlation that hung has come back after %.3g s"
        self._state.log.note(logging.WARNING, text, self._state.name, monotonic() - run.began_at)


__all__ = ["MOST_HANGING", "Delivery"]
