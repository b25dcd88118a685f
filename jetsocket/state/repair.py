"""What puts the state right again after an exception ended a step half-way; see `locking`."""

from __future__ import annotations

from collections import deque

from jetsocket.borrower import Borrower
from jetsocket.connection_states import CHECKING, CLOSING, GONE, IDLE, LENT, OPENING, SHARED
from jetsocket.entry import Entry
from jetsocket.state.idle_queues import Idle, Shared
from jetsocket.state.planning import Planning


class Repair(Planning):
    """Derives all lists from what is written in one assignment each."""

    def _rebuild(self) -> None:
        """Put right what the last step left half-done, which an exception has ended.

        An interrupt may strike even within the semaphore, whose lock is held for ever then: so it is
        replaced, not repaired. What no dial and no borrower has any more is closed.
        """
        assert self.lock.locked()
        for borrower in list(self.lent):
            held = borrower.entry
            if held is None or not _holds(borrower, held):
                self.lent.pop(borrower, None)
                borrower.entry = None
        for entry in [entry for entry in self.entries if entry.place == GONE]:
            self._leave_slot(entry)
        self._drop_ended_dials()
        self._sort_by_place()
        open_now = [entry for entry in self.entries if entry.place in (IDLE, LENT, SHARED, CHECKING)]
        self.idle = Idle(Shared(self.lock))
        self.idle.rebuild([dial.key for dial in self.dials], open_now)
        self.queued = deque(dial for dial in self.dials if not dial.taken)
        self.resting = {dial for dial in self.dials if dial.rests}
        self._renew_slots()
        for borrower in self.line:
            if borrower.entry is not None or borrower.error is not None or self.closed or self.draining:
                borrower.rouse()
        self.line.rebuild()
        if not self.lent:
            self._wake_drainers()
        self.watch_version += 1
        for entry in list(self.idle):
            if (first := self.line.first(entry.key)) is not None:
                self.idle.remove(entry)
                self._hand_over(entry, first)
        self._count_sharers()
        self._plan_anew()
        self.doorbell.put("openers")

    def _drop_ended_dials(self) -> None:
        """Strike off what has ended; what was closed to make room for it makes room for others."""
        assert self.lock.locked()
        for dial in [dial for dial in self.dials if dial.is_over]:
            dial.end()
            self._give_grant_back(dial)
            del self.dials[dial]  # last: another exception may strike here
        self._sort_grants()
        for entry in self.entries:
            if entry.wanted_by is not None and entry.wanted_by not in self.dials:
                entry.wanted_by = None

    def _sort_grants(self) -> None:
        """What a limiter gave has one holder: the entry, or else the dial that counts as being opened."""
        assert self.lock.locked()
        held = {entry.grant for entry in self.entries}
        for dial in [*self.dials, *self.asking.values()]:
            if dial.grant in held:
                dial.grant = None
            elif dial.grant is not None:
                held.add(dial.grant)
        for quota, dial in list(self.asking.items()):
            if dial.is_over or dial in self.dials:
                if dial.is_over:
                    self._give_grant_back(dial)
                del self.asking[quota]
        self.to_give_up = 0 if self.quotas is None else sum(each.to_give_up for each in self.quotas.all)

    def _sort_by_place(self) -> None:
        """Put each connection into the list of its place; what no dial and no borrower has is closed."""
        assert self.lock.locked()
        for dial in self.dials:
            if dial.entry not in self.entries:
                dial.entry = None  # `begin` was struck: it has no slot, so it can't make room for another
        dialled = {dial.entry for dial in self.dials}
        self.closing, self.shared = {}, {}
        for entry in self.entries:
            has_owner = entry.borrower is not None and entry.borrower.entry is entry
            if (entry.place == LENT and not has_owner) or (entry.place == OPENING and entry not in dialled):
                entry.close_by = 0.0
                entry.place = CLOSING
            if entry.place == CLOSING:
                self.closing[entry] = None
            elif entry.place == IDLE:
                entry.borrower = None
            elif entry.place == SHARED:
                self.shared.setdefault(entry.key, {})[entry] = None

    def _count_sharers(self) -> None:
        """Find out who shares what, and give free places to those in line."""
        assert self.lock.locked()
        for entry in [entry for entry in self.entries if entry.place == SHARED]:
            entry.sharers = {each: None for each in entry.sharers if each.entry is entry}
            entry.requests = sum(not each.is_subscriber for each in entry.sharers)
            if entry.sharers:
                self._fill(entry)
            else:
                self._end_sharing(entry)


def _holds(borrower: Borrower, entry: Entry) -> bool:
    """Whether a borrower has that connection, by what is written in both."""
    if borrower.shares:
        return entry.place == SHARED and borrower in entry.sharers
    return entry.place == LENT and entry.borrower is borrower


__all__ = ["Repair"]
