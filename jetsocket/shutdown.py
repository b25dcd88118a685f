"""How a pool ends: `close`, the end of the interpreter, or when it is referred to no more."""

from __future__ import annotations

from logging import DEBUG, WARNING

from jetsocket import limiter_calls
from jetsocket.clock import monotonic
from jetsocket.connection_states import IDLE
from jetsocket.forking import all_pools
from jetsocket.housekeeper import ABANDONED, STOP
from jetsocket.lending import Lending
from jetsocket.parallel_close import close_all
from jetsocket.returning import tell_released

_EXIT_PATIENCE = 0.1  # s, for the closing handshakes of all pools together when the interpreter ends
_JOIN_PATIENCE = 1.0  # s for the pool's threads to end


class Ending(Lending):
    """The inner side of a pool, and how it ends."""

    def close(self, limit: float, *, again: bool) -> None:
        """Close all connections within `limit` (s), those that are lent at once.

        Args:
            limit: s for all closing handshakes together.
            again: Whether an exception struck the last try.
        """
        state = self.state
        taken = state.close(again=again)
        if taken is None:
            return
        until = monotonic() + limit
        closing, out = taken
        for entry in out:
            entry.wire.dismiss("the pool was closed")
        released = []
        for borrower in list(state.lent):  # the leases hold nothing any more, and may never be released
            held = borrower.entry
            if state.claim(borrower):
                if borrower.warned and borrower.entry is not None:
                    text = "[%s] the leaked connection %d was cut after %.3g s: the pool is closed"
                    out_for = monotonic() - borrower.taken_at
                    state.log.note(WARNING, text, state.name, borrower.entry.id, out_for)
                borrower.reason, borrower.gone = "pool closed", True
                borrower.lent_for = max(1e-9, monotonic() - borrower.taken_at)
                state.come_back(borrower)
                released.append((borrower, held))
        state.forget_cut(out)  # those whose return or `check` is under way, which may take long
        for entry in closing:
            entry.close_by = until  # of an interrupted close() the housekeeper does the rest
        close_all(closing, limit)
        state.forget(closing)
        for borrower, held in released:
            tell_released(state, borrower, held)
        state.log.note(DEBUG, "[%s] closed", state.name)
        state.doorbell.put(STOP)
        keeper, self.housekeeper = self.housekeeper, None
        if keeper is not None and not keeper.is_this_thread:
            keeper.join(_JOIN_PATIENCE)
        self.opening.join(monotonic() + _JOIN_PATIENCE)
        if keeper is None or not (keeper.is_this_thread or keeper.tells):  # it has had a worker tell the rest
            self._tell_the_rest()

    def _tell_the_rest(self) -> None:
        """Tell log and listeners what no worker has told: there was none, or it has ended."""
        if not self.state.log.muted:
            self.state.log.emit()
            if self.state.events is not None:
                self.state.events.emit()

    def abandon(self) -> None:
        """The pool object is gone: the housekeeper closes what is left. Without one, nothing is open."""
        # It is there yet when close() was interrupted, too: then it has not been told to stop.
        if not (self.state.closed and self.housekeeper is None):
            self.state.doorbell.put(ABANDONED)

    def leave(self, deadline: float) -> None:
        """When the interpreter ends: close each connection that no thread is using just now.

        No caller is woken and nothing is refused: a daemon thread would have time to print the error.
        """
        state = self.state
        state.log.muted = True
        if not state.entries:
            return
        closing = list(state.closing_entries())
        idle = [
            entry for entry in state.open_entries() if entry.place == IDLE and state.take_for_check(entry)
        ]
        lent = [borrower.entry for borrower in list(state.lent) if borrower.entry is not None]
        unused = [entry for entry in lent if entry.wire.take_leave()]
        close_all([*closing, *idle, *unused], max(0.0, deadline - monotonic()))


def close_at_exit() -> None:
    """What is to be done when the interpreter ends, with all pools."""
    deadline = monotonic() + _EXIT_PATIENCE
    pools = [pool._begin_anew() for pool in all_pools()]
    for each in pools:
        each.leave(deadline)
    deadline = monotonic() + _EXIT_PATIENCE
    for each in pools:
        limiter_calls.leave(each.state, deadline)


__all__ = ["Ending", "close_at_exit"]
