"""The moves that the steps of a pool's state are made of.

A connection is lent, comes home, is retired, is forgotten; a dial is ordered and ends. All is called with the
lock held, by the steps. What is decided here and done elsewhere is put on a queue: `queued` for
the openers, `doorbell` for the housekeeper.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.connection_states import CLOSING, GONE, IDLE, LENT, OPENING, SHARED
from jetsocket.dial_limits import pause_before_more
from jetsocket.entry import Entry
from jetsocket.state.fields import NEVER, TICK
from jetsocket.state.slots import GIVEN_UP, Slots

if TYPE_CHECKING:
    from jetsocket.quotas import Quota

_YIELD_PATIENCE = 0.25  # s for the closing handshake of a connection whose slot others wait for
_LEAST_PAUSE, _LONGEST_PAUSE = 1.0, 5.0  # s before a limiter is asked again for what is only kept


class Moves(Slots):
    """What steps are made of; the caller of each method here holds the lock."""

    @abstractmethod
    def _served_by(self, entry: Entry) -> Borrower | None:
        """Who gets a connection that may be lent; None: it becomes idle, or its slot is another URI's now."""

    # --- moves -----------------------------------------------------------------------------------------

    def _lend(self, entry: Entry, borrower: Borrower) -> None:
        """Give a connection to a borrower. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        if entry.place == OPENING:
            self.idle.count_open(entry.key, 1)
        self.lent[borrower] = None
        borrower.entry = entry
        if borrower.shares:
            entry.borrower = None
            entry.sharers[borrower] = None
            entry.requests += not borrower.is_subscriber
            self.shared.setdefault(entry.key, {})[entry] = None
            entry.move(SHARED)
        else:
            entry.borrower = borrower
            entry.move(LENT)

    def _hand_over(self, entry: Entry, borrower: Borrower) -> None:
        """Give a connection to the first in line. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        if entry.place in (LENT, SHARED):
            entry.idle_since = now = monotonic()  # for no time, but it is not new any more
            if self.idle.paced_until(entry.key):
                pause = pause_before_more(self.idle.took_last(entry.key), comes_back=True)
                self.idle.pace(entry.key, now + pause)
        self._lend(entry, borrower)
        borrower.rouse()
        self.line.leave(borrower)
        if self.line:
            self._count_overtaken(borrower)
        if borrower.shares:
            self._fill(entry)

    def _turn_away(self, borrower: Borrower, error: BaseException) -> None:
        """Have a caller in line raise that error. The order counts: see `_rebuild`."""
        assert self.lock.locked()
        borrower.error = error
        borrower.rouse()
        self.line.leave(borrower)

    def _count_overtaken(self, served: Borrower) -> None:
        assert self.lock.locked()
        for head in self.line.heads():
            if head.asked_at < served.asked_at and head.key != served.key:
                head.overtaken += 1

    def _come_home(self, entry: Entry) -> None:
        """The one way of a connection that may be lent: to the first in line, the idle queue, or its end."""
        assert self.lock.locked()
        if self.closed or self.draining:
            self._retire(entry, "pool closed")
        elif self._has_too_many:
            self._retire(entry, "resized")
        elif entry.is_outdated:
            self._retire(entry, "cleared")
        elif self.to_give_up and entry.grant is not None and (quota := entry.grant.quota).to_give_up:
            quota.to_give_up -= 1
            self.to_give_up -= 1
            self._keep_later(quota)
            self._yield(entry)
        elif not self.line:
            self._rest(entry)
        elif (first := self._served_by(entry)) is not None:
            self._hand_over(entry, first)
        elif entry.place != CLOSING:
            self._rest(entry)
            self._plan()

    # --- sharing ---------------------------------------------------------------------------------------

    def _may_join(self, entry: Entry) -> bool:
        """Whether one more request may go over a shared connection."""
        assert self.lock.locked()
        return (
            entry.ends_with is None
            and not entry.is_outdated
            and entry.wire.failure is None
            and monotonic() < entry.expires
            and entry.requests < self.config.max_in_flight
        )

    def _place_for(self, borrower: Borrower) -> Entry | None:
        """A place on a shared connection to that URI: on the fullest, so that few are needed.

        For each caller that waits for a connection of its own, and for whom none is being opened, the one
        with the fewest requests is left to run empty.
        """
        assert self.lock.locked()
        shared = self.shared.get(borrower.key)
        if not shared or self.closed or self.draining:
            return None
        entries = sorted(shared, key=lambda entry: len(entry.sharers))
        promised = max(0, self.line.exclusive(borrower.key) - self.idle.opening(borrower.key))
        for entry in reversed(entries[promised:]):
            if self._may_join(entry):
                return entry
        return None

    def _fill(self, entry: Entry) -> None:
        """Give the places of a shared connection to those in line that may share it."""
        assert self.lock.locked()
        while (sharer := self.line.first_sharer(entry.key)) is not None:
            if self._place_for(sharer) is not entry:
                break
            self._lend(entry, sharer)
            sharer.rouse()
            self.line.leave(sharer)

    def _leave_share(self, entry: Entry, borrower: Borrower) -> None:
        """One of those that share a connection is done."""
        assert self.lock.locked()
        self._unshare(entry, borrower)
        if borrower.reason is not None:
            entry.ends_with = entry.ends_with or borrower.reason
        if entry.place != SHARED:
            return
        if not entry.sharers or entry.wire.failure is not None:
            self._end_sharing(entry)
        else:
            self._fill(entry)

    def _unshare(self, entry: Entry, borrower: Borrower) -> None:
        assert self.lock.locked()
        if borrower in entry.sharers:
            del entry.sharers[borrower]
            entry.requests -= not borrower.is_subscriber

    def _end_sharing(self, entry: Entry) -> None:
        """The last one has left, or the connection has ended."""
        assert self.lock.locked()
        if entry.wire.failure is not None:
            self._retire(entry, "closed")
        elif entry.ends_with is not None:
            self._retire(entry, entry.ends_with)
        else:
            self._forget_share(entry)
            self._come_home(entry)

    def _forget_share(self, entry: Entry) -> None:
        assert self.lock.locked()
        shared = self.shared.get(entry.key)
        if shared is not None:
            shared.pop(entry, None)
            if not shared:
                del self.shared[entry.key]

    def _rest(self, entry: Entry) -> None:
        """Let it wait for its next borrower."""
        assert self.lock.locked()
        if entry.place == OPENING:
            self.idle.count_open(entry.key, 1)
        entry.borrower = None
        entry.idle_since = monotonic()
        entry.move(IDLE)
        self.idle.put(entry)

    def _retire(self, entry: Entry, reason: str, *, gone: bool = False) -> None:
        """Take a connection out of service: it is closed already (`gone`), or the housekeeper closes it."""
        assert self.lock.locked()
        if entry.place in (CLOSING, GONE):
            if gone:
                self._forget(entry)
            return
        self.totals.discards[reason] += 1
        entry.closed_for = reason
        if reason in ("closed", "pong overdue", "check failed"):
            self.totals.lost += 1
        if entry.place == IDLE:
            self.idle.remove(entry)
        self.idle.pace(entry.key, 0.0)
        # One that was about to be counted as open, too: with the last of its URI the queue has to go.
        self.idle.count_open(entry.key, 0 if entry.place == OPENING else -1)
        entry.borrower = None
        if entry.place == SHARED:
            self._forget_share(entry)
        entry.close_by = monotonic() + self.close_timeout
        entry.move(CLOSING)
        self.closing[entry] = None
        if gone:
            self._forget(entry)
        elif len(self.closing) == 1:  # while there are others, it comes by soon anyway
            self.doorbell.put("closing")

    def _yield(self, entry: Entry) -> None:
        """Close a connection for others, who wait for the limiter's slot that it has."""
        assert self.lock.locked()
        self._retire(entry, GIVEN_UP)
        entry.close_by = min(entry.close_by, monotonic() + _YIELD_PATIENCE)

    def _keep_later(self, quota: Quota) -> None:
        """Ask a limiter that has none, or wants some back, only after a while for what is only kept."""
        assert self.lock.locked()
        quota.keep_pause = min(max(_LEAST_PAUSE, 2.0 * quota.keep_pause), _LONGEST_PAUSE)
        quota.keep_again_at = monotonic() + quota.keep_pause

    def _wake_drainers(self) -> None:
        assert self.lock.locked()
        for waiter in self._drain_waiters:
            if waiter.locked():
                waiter.release()
        self._drain_waiters.clear()


__all__ = ["NEVER", "TICK", "Moves"]
