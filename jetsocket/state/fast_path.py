"""The steps that nearly every lease is made of: an idle connection is lent, a clean one becomes idle.

And of a shared one: a place on it is taken, and given up. Each is one function, because its calls were most
of what lending costs. They do what `State.enter` and `Steps.settle` would do in the usual case, and leave it
to those wherever anything is unusual.
"""

from __future__ import annotations

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.connection_states import IDLE, LENT, SHARED
from jetsocket.counting import LEASES_AT_ONCE
from jetsocket.entry import Entry
from jetsocket.state.housekeeping import Housekeeping
from jetsocket.state.locking import CALM, TORN, written_out
from jetsocket.state.moves import NEVER


class FastPath(Housekeeping):
    """What `State` does for nearly every lease."""

    @written_out
    def take(self, borrower: Borrower) -> Entry | None:
        """Lend the idle connection to a borrower's URI that was used last; None: ask `State.enter`."""
        entry: Entry | None = None
        if not self.lock.locked():  # else by this very thread, perhaps
            with self.lock:
                queue = self.idle.queues.get(borrower.key)
                if queue is not None and queue.queue and not (self.condition or self.returned):
                    self.condition = TORN
                    entry = queue.queue.popitem()[0]
                    del self.idle.by_age[entry]
                    # As in `_lend`: the order counts.
                    self.lent[borrower] = None
                    borrower.entry = entry
                    entry.borrower = borrower
                    entry.place = LENT
                    self.condition = CALM
        if self.returned:
            self.settle()
        return entry

    @written_out
    def join(self, borrower: Borrower) -> Entry | None:
        """A place on a connection that others share, the fullest with room; None: ask `State.enter`."""
        found: Entry | None = None
        if not self.lock.locked():  # else by this very thread, perhaps
            with self.lock:
                shared = self.shared.get(borrower.key)
                if shared and not (self.condition or self.returned):
                    self.condition = TORN
                    most = self.config.max_in_flight
                    for entry in shared:
                        if (  # `_may_join`, written out
                            entry.requests < most
                            and (found is None or len(entry.sharers) > len(found.sharers))
                            and entry.ends_with is None
                            and not entry.is_outdated
                            and entry.wire.failure is None
                            and (entry.expires == NEVER or monotonic() < entry.expires)
                        ):
                            found = entry
                    if found is not None:
                        # As in `_lend`: the order counts.
                        self.lent[borrower] = None
                        borrower.entry = found
                        found.sharers[borrower] = None
                        found.requests += not borrower.is_subscriber
                    self.condition = CALM
        if self.returned:
            self.settle()
        return found

    @written_out
    def part(self, borrower: Borrower) -> None:
        """`come_back` of one that has shared a connection, and has claimed its return."""
        is_booked = False
        if borrower.reason is None and not self.lock.locked():
            with self.lock:
                entry = borrower.entry
                if (
                    entry is not None
                    and entry.place == SHARED
                    and len(entry.sharers) > 1
                    and borrower in entry.sharers
                    and entry.wire.failure is None
                    and not (self.condition or self.returned)
                ):
                    self.condition = TORN
                    leases = self.totals.leases
                    leases.append((borrower.taken_at - borrower.asked_at, borrower.lent_for, borrower.reused))
                    del entry.sharers[borrower]
                    entry.requests -= not borrower.is_subscriber
                    borrower.entry = None
                    if len(leases) >= LEASES_AT_ONCE:
                        self.totals.count_leases()
                    is_booked = True
                    self.condition = CALM
        if not is_booked:
            self.returned.append(borrower)
        if self.returned:
            self.settle()

    @written_out
    def come_back(self, borrower: Borrower) -> None:
        """Return what a borrower held. Never waits for the lock, so it may run anywhere."""
        is_booked = False
        if borrower.lent_for < 0 and not self.lock.locked():  # it is UNTIL_BOOKED
            with self.lock:
                entry = borrower.entry
                if (
                    entry is not None
                    and entry.borrower is borrower
                    and not (self.condition or self.returned or entry.is_outdated)
                ):
                    self.condition = TORN
                    now, taken_at, leases = monotonic(), borrower.taken_at, self.totals.leases
                    leases.append((taken_at - borrower.asked_at, now - taken_at, borrower.reused))
                    # As in `_rest`: the order counts.
                    entry.borrower = borrower.entry = None
                    entry.idle_since = now
                    entry.place = IDLE
                    self.idle.queues[entry.key].queue[entry] = None
                    self.idle.by_age[entry] = None
                    if len(leases) >= LEASES_AT_ONCE:
                        self.totals.count_leases()
                    is_booked = True
                    self.condition = CALM
        if not is_booked:
            self.returned.append(borrower)
        if self.returned:
            self.settle()


__all__ = ["FastPath"]
