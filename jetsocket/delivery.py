"""Workers hand out what came where no borrower reads, and call `on_push` with what was not asked for."""

from __future__ import annotations

from jetsocket.clock import monotonic
from jetsocket.on_push import PushHandler
from jetsocket.state import State
from jetsocket.workers import Workers


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
            if dispatcher.locks.is_stuck(now):
                entry.wire.cut("an exception struck a thread in its use")
            elif entry.wire.was_struck:
                self.is_watching = True
            elif dispatcher.wants_worker:
                dispatcher.has_worker = True
                self._workers.dispatch.submit(dispatcher.work)

    def run_on_push(self) -> None:
        """Have a worker call `on_push` for what waits."""
        handler = self._handler
        if handler is not None and handler.has_work:
            handler.is_scheduled = True
            self._workers.push.submit(handler.run)


__all__ = ["Delivery"]
