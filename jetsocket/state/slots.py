"""Slots: the right of one connection to exist, and how it is given back when a dial or a connection ends.

A slot is taken when a connection is about to be opened (`planning`). Until it begins, a dial has the slot
itself (`_end_dial`); from then on its connection has it, and whatever becomes of that, a failure or a closing
handshake, leads to `_forget`. The slot is free then, or goes to the dial that waits for it. What a limiter
gave goes back on the same way. All is called with the lock held.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING

from jetsocket.clock import monotonic
from jetsocket.connection_states import CLOSING, GONE
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry
from jetsocket.state.fields import Fields

if TYPE_CHECKING:
    from jetsocket.events import Events
    from jetsocket.info import ConnectionInfo
    from jetsocket.quotas import Grant

LIMITERS = "limiters"
"""Tells the housekeeper that a limiter is to get something back, or has left a note."""

EVICTED = "evicted"
"""Why a connection is closed that makes room for another URI: its limiter's slot goes over with it. What ends
for any other reason gives it back, for who has waited for longest may be another pool, or another process."""

GIVEN_UP = "given up"
"""Why one is closed whose limiter's slot others wait for."""


class Slots(Fields):
    """What gives slots back; the caller of each method here holds the lock."""

    @abstractmethod
    def _plan(self) -> None:
        """Order what the callers in line need, and say when to look again."""

    def _end_dial(self, dial: Dial) -> None:
        """A dial is over; what it still holds goes back."""
        assert self.lock.locked()
        if dial.quota is not None and self.asking.get(dial.quota) is dial:
            dial.end()
            self._give_grant_back(dial)
            del self.asking[dial.quota]
            return
        if dial not in self.dials:
            return
        dial.end()  # first: see `_drop_ended_dials`
        self._give_grant_back(dial)
        del self.dials[dial]
        self.resting.discard(dial)
        self.idle.count_opening(dial.key, -1, opened=dial.has_opened)
        if dial.room is not None:
            dial.room.wanted_by = None
            dial.room = None
        if dial.has_slot:
            dial.has_slot = False
            self._free_slot()

    def _forget_unopened(self, entry: Entry) -> None:
        assert self.lock.locked()
        if entry in self.entries:
            if entry.place != CLOSING:
                entry.move(CLOSING)
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        """It is closed: its slot is free, or goes to the dial that wants it."""
        assert self.lock.locked()
        if entry.place == GONE:
            return
        entry.move(GONE)
        self.closing.pop(entry, None)
        self.watch_version += 1
        self.totals.add_up(entry)
        if self._leave_slot(entry):
            self._free_slot()
        elif self.line and self.config.max_per_uri is not None:
            self._plan()

    def _leave_slot(self, entry: Entry) -> bool:
        """A connection that is gone leaves its slot; False: to the dial that wants it."""
        assert self.lock.locked()
        dial, is_wanted, grant = entry.wanted_by, False, entry.grant
        if dial is not None and dial in self.dials and dial.room is entry:
            is_wanted = True
        if grant is not None:
            is_passed_on = entry.closed_for == EVICTED and not grant.is_lost
            if is_wanted and dial is not None and dial.quota is grant.quota and is_passed_on:
                dial.grant = dial.grant or grant
            if dial is None or dial.grant is not grant:
                self._give_back(grant)
                if entry.closed_for != GIVEN_UP and not grant.is_lost:  # else others get it
                    grant.quota.keep_again_at = 0.0
            entry.grant = None
        if entry.was_opened and self.events is not None:
            self.events.note("closed", partial(_told_of_end, self.events, entry, monotonic()))
            entry.was_opened = False
        if is_wanted and dial is not None:
            dial.has_slot = True
            dial.room = None
        self.entries.discard(entry)
        return not is_wanted

    def _give_back(self, grant: Grant) -> None:
        """A limiter's slot is not needed any more."""
        assert self.lock.locked()
        self.spent.append(grant)
        self.doorbell.put(LIMITERS)

    def _give_grant_back(self, dial: Dial) -> None:
        assert self.lock.locked()
        if dial.grant is not None:
            self._give_back(dial.grant)
            dial.grant = None

    def _free_slot(self) -> None:
        assert self.lock.locked()
        if self.owed:
            self.owed -= 1
        else:
            self.slots.release()
        if self.line:
            self._plan()

    @property
    def _has_too_many(self) -> bool:
        """Whether `resize` has taken away more slots than the connections that are closing will give back."""
        assert self.lock.locked()
        return self.owed > 0 and self.owed > sum(entry.wanted_by is None for entry in self.closing)

    def _renew_slots(self) -> None:
        """Make a semaphore that agrees with what holds a slot."""
        assert self.lock.locked()
        used = len(self.entries) + sum(dial.has_slot for dial in self.dials)
        self.slots = threading.BoundedSemaphore(self.config.max_connections)
        self.owed = max(0, used - self.config.max_connections)
        for _ in range(used - self.owed):
            self.slots.acquire(blocking=False)


def _told_of_end(events: Events, entry: Entry, closed_at: float) -> tuple[ConnectionInfo, str]:
    """What listeners are told of a connection that is closed."""
    return events.info_of(entry, closed_at), entry.closed_for


__all__ = ["EVICTED", "GIVEN_UP", "LIMITERS", "Slots"]
