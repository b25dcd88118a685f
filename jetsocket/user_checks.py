"""Running the user's `check` in place of pings: in a few threads, of which none may hold the pool up.

One that does not return costs its connection, which is closed in time, and its thread. When all threads hang,
no connection is checked, and none waits for that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

from jetsocket.clock import monotonic
from jetsocket.connection_states import CHECKING
from jetsocket.entry import Entry
from jetsocket.process_id import getpid
from jetsocket.state import State
from jetsocket.threads import is_in
from jetsocket.workers import MOST_CHECKS, Run, Worker

Check = Callable[[Entry], bool]

_OVERDUE = 0.5  # s after which a check that has not ended by itself is given up


class Checking:
    """The checks of one pool: those that wait for a thread, those under way, those that hang.

    All but `_run` is the housekeeper's. A check that waits is begun by a worker, or withdrawn by the
    housekeeper: by whichever of them takes it out of `_waiting`, in one call that CPython makes atomic.
    """

    def __init__(
        self, state: State, worker: Worker, check: Check, retire: Callable[[Entry, str], None]
    ) -> None:
        """Check connections of that pool; `retire` closes one that is idle, and says why."""
        self._state = state
        self._worker = worker
        self._check = check
        self._retire = retire
        self._waiting: dict[Entry, object] = {}
        self._under_way: dict[Entry, Run] = {}

    @property
    def is_stuck(self) -> bool:
        """Whether all threads hang, so that a check would never begin."""
        return sum(run.hangs for run in list(self._under_way.values())) >= MOST_CHECKS

    def submit(self, entry: Entry) -> None:
        """Have a connection checked, which has been taken for that.

        Raises:
            RuntimeError: There are no more threads: it was not asked, and stays as it was.
        """
        self._waiting[entry] = None
        try:
            self._worker.submit(partial(self._run, entry))
        except RuntimeError:
            self._waiting.pop(entry, None)
            self._state.put_back(entry)
            raise

    def _run(self, entry: Entry) -> None:
        """In a worker."""
        if self._waiting.pop(entry, self) is self:
            return  # it was withdrawn
        run = self._under_way[entry] = Run()
        healthy = False
        try:
            healthy = self._check(entry)
        finally:
            self._under_way.pop(entry, None)
            if self._state.pid != getpid():
                pass  # the user's code has forked, and this is the child: the connection is the parent's
            elif run.hangs:
                self._tell_come_back(run)
            elif healthy:
                entry.wire.last_heard = monotonic()
                self._state.put_back(entry)
            else:
                self._retire(entry, "check failed")

    def _tell_come_back(self, run: Run) -> None:
        text = "[%s] a check() that hung has come back after %.3g s"
        self._state.log.note(logging.WARNING, text, self._state.name, monotonic() - run.began_at)

    def mind(self) -> None:
        """Give up checks that hang, and when all threads do, those that wait for one."""
        if not self._under_way:
            return
        now, limit = monotonic(), self._state.config.health_check_timeout
        for entry, run in list(self._under_way.items()):
            if run.hangs and not is_in(run.thread, [Checking._run.__code__]):
                self._under_way.pop(entry, None)  # an exception has struck it
            if not run.hangs and now - run.began_at >= limit + _OVERDUE:
                run.hangs = True
                self._give_up(entry, run)
        if self._waiting and self.is_stuck:
            for entry in list(self._waiting):
                if self._waiting.pop(entry, self) is not self:
                    self._state.put_back(entry)

    def _give_up(self, entry: Entry, run: Run) -> None:
        limit = self._state.config.health_check_timeout
        told = f"check() hangs{run.place}, beyond health_check_timeout={limit:g} s"
        more = "; connections are not checked until one of its threads comes back" if self.is_stuck else ""
        entry.wire.cut(told)
        text = "[%s] connection %d is closed: %s. Give what it waits for a timeout of its own%s"
        self._state.log.note(logging.WARNING, text, self._state.name, entry.id, told, more)
        if entry.place == CHECKING and self._state.retire_if_idle(entry, "check failed"):
            entry.wire.shutdown()
            self._state.forget([entry])


__all__ = ["Check", "Checking"]
