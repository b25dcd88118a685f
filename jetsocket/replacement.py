"""A stale connection costs the borrower nothing: a lease that has not been used moves to another one."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from jetsocket.borrower import Borrower
from jetsocket.clean import why_not_lent
from jetsocket.clock import monotonic
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionClosedError
from jetsocket.lease import Lease
from jetsocket.process_id import getpid
from jetsocket.returning import Returning, close_now
from jetsocket.state import Answer
from jetsocket.suspects import ended_silently, ping_siblings


class Replacing(Returning):
    """How a lease moves, before its first message has left."""

    @abstractmethod
    def _one_that_is_fit(
        self, borrower: Borrower, answer: Answer, now: float, deadline: float, slept: float
    ) -> Entry:
        """Look at what a borrower was given, and wait for another until one may be lent."""

    @abstractmethod
    def give_up(self, borrower: Borrower, error: BaseException) -> None:
        """An acquire failed or was struck: what it was about to get comes back, unused."""

    def is_fit_for_first_use(self, lease: Lease[Any]) -> bool:
        """Whether one that was idle is still as clean as it was when it was lent, before its first use."""
        entry = lease._entry
        if entry is None:
            return False
        return why_not_lent(entry, self.state.config, self.state.known) in (None, "in use")

    def move(self, lease: Lease[Any], stale: Entry, deadline: float | None) -> None:
        """Give an unused lease another connection, for one that ended before its first use.

        Raises:
            ConnectionClosedError: Another thread uses the lease already, or it is the parent process's.
            InvalidStateError: Another thread has released the lease.
            PoolClosedError: The pool is closed.
            PoolExhaustedError: No other connection in time.
            ConnectionError: No other connection to be had.
        """
        borrower, state = lease._borrower, self.state
        if borrower.entry is not stale or borrower not in state.lent or state.pid != getpid():
            raise ConnectionClosedError(
                f"the connection to {stale.target.redacted} has ended, and the lease was not moved to"
                " another: another thread uses it, or it was lent before a fork",
                code=1006,
            )
        now, limit = monotonic(), state.config.acquire_timeout
        borrower.limit = limit if deadline is None else min(limit, deadline - now)
        until = now + borrower.limit
        taken_at = borrower.taken_at
        if not borrower.shares:  # the others are told by its failure
            stale.wire.holder = None
        why = why_not_lent(stale, state.config, state.known) or "closed"
        state.known.note_idle(stale, why)
        slept = state.slept
        try:
            if why == "closed" and ended_silently(stale):
                ping_siblings(state, stale)
            gone = close_now(stale.wire)
            answer = state.refuse(borrower, stale, why, gone=gone, may_wait=True)
            entry = self._one_that_is_fit(borrower, answer, now, until, slept)
        except BaseException as error:
            lease._detach()  # from what has ended: it stays without a connection until it is released
            borrower.taken_at = taken_at
            borrower.lent_for = monotonic() - taken_at or 1e-9  # for the statistics it was a lease
            self.give_up(borrower, error)
            raise
        if entry.uses:
            entry.count_from_here()
        borrower.reused, borrower.taken_at = entry.uses > 0, taken_at
        entry.uses += 1
        lease._attach(entry)
        if state.closed:
            entry.wire.cut("the pool was closed")
        if lease._released:  # by another thread meanwhile
            self._return_unused(lease, entry)
        state.log.tell("[%s] moved from connection %d to %d", state.name, stale.id, entry.id)

    def _return_unused(self, lease: Lease[Any], entry: Entry) -> None:
        """Close what a lease was moved to that has been released on the way."""
        borrower = lease._borrower
        if lease._detach() is entry:
            entry.wire.shutdown()
        if self.state.claim(borrower):
            borrower.reason, borrower.gone = "in use", True
            self.state.come_back(borrower)


__all__ = ["Replacing"]
