"""The two steps that nearly every lease is made of: an idle connection is lent, a clean one becomes idle.

Each is one function, because its calls were most of what lending costs. They do what `State.enter` and
`Steps.settle` would do in the usual case, and leave it to those wherever anything is unusual.
"""

from __future__ import annotations

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.entry import Entry
from jetsocket.keeping import Keeping
from jetsocket.locking import written_out
from jetsocket.places import IDLE, LENT


class FastPath(Keeping):
    """What `State` does for nearly every lease."""

    @written_out
    def take(self, borrower: Borrower) -> Entry | None:
        """Lend the idle connection to a borrower's URI that was used last; None: ask `State.enter`."""
        if self.lock.locked():  # by this very thread, perhaps
            return None
        try:
            with self.lock:
                queue = self.idle.queues.get(borrower.key)
                if (
                    queue is None
                    or not queue.queue
                    or self.torn
                    or self.returned
                    or self.draining
                    or self.line.order
                ):
                    return None
                self.torn = True
                entry = queue.queue.popitem()[0]
                del self.idle.by_age[entry]
                # As in `_lend`: the order counts.
                self.lent[borrower] = None
                borrower.entry = entry
                entry.borrower = borrower
                assert entry.place == IDLE
                entry.place = LENT
                self.torn = False
        finally:
            if self.returned:
                self.settle()
        return entry

    @written_out
    def come_back(self, borrower: Borrower) -> None:
        """Return what a borrower held. Never waits for the lock, so it may run anywhere."""
        returned = self.returned
        returned.append(borrower)
        if self.lock.locked():
            return  # whoever holds it books this, too
        with self.lock:
            entry = borrower.entry
            if (
                borrower.reason is None
                and entry is not None
                and entry.borrower is borrower
                and entry.place == LENT
                and returned
                and returned[0] is borrower
                and not (self.torn or self.draining or self.owed or entry.is_outdated or self.line.order)
            ):
                self.torn = True
                if borrower.lent_for:
                    self.totals.count_lease(borrower)
                # As in `_rest`.
                entry.borrower = None
                entry.idle_since = monotonic()
                entry.place = IDLE
                self.idle.queues[entry.key].queue[entry] = None
                self.idle.by_age[entry] = None
                borrower.entry = None
                returned.popleft()
                self.torn = False
        if returned:
            self.settle()


__all__ = ["FastPath"]
