"""The steps of the housekeeper: what it looks after between a connection's opening and its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.clock import SHORTEST_SLEEP, monotonic
from jetsocket.connection_states import CHECKING, CLOSING, IDLE, LENT, OPENING, SHARED
from jetsocket.entry import Entry
from jetsocket.state.dialling import Dialling
from jetsocket.state.locking import step
from jetsocket.state.moves import TICK
from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.housekeeper import Housekeeper

_REPLACED_BEFORE = 5.0  # s before its lifetime ends, a kept connection is replaced
_REPLACED_WITHIN = 0.25  # of a lifetime, unless that is short


class Housekeeping(Dialling):
    """What the housekeeper, and `prewarm`, do with the state of their pool."""

    @step
    def appoint(self, housekeeper: Housekeeper) -> bool:
        """Make this the housekeeper, unless there is one; the caller starts it."""
        if self.closed or (self._housekeeper is not None and not self._housekeeper.has_died):
            return False
        self._housekeeper = housekeeper
        return True

    @step
    def open_entries(self) -> list[Entry]:
        """All connections that have a slot, as of now."""
        return list(self.entries)

    @step
    def take_for_check(self, entry: Entry) -> bool:
        """Take an idle connection, so that it is lent to no one until `put_back` or `retire_if_idle`."""
        if entry.place != IDLE:
            return False
        self.idle.remove(entry)
        entry.answer_by = 0.0
        entry.move(CHECKING)
        return True

    @step
    def put_back(self, entry: Entry) -> None:
        """Return an entry that was taken by `take_for_check` and is as good as before."""
        if entry.place != CHECKING:
            return  # it made room meanwhile, or the pool was closed
        entry.answer_by = 0.0
        has_to_go = self.closed or self.draining or self.owed or entry.is_outdated or self.to_give_up
        if has_to_go or self.line.count(entry.key):
            self._come_home(entry)
            return
        entry.move(IDLE)
        self.idle.put_back(entry)
        if self.line:
            self._plan()

    @step
    def retire_if_idle(self, entry: Entry, reason: str) -> bool:
        """Take a connection out of service, unless a borrower has got it meanwhile."""
        if entry.place not in (IDLE, CHECKING):
            return False
        self._retire(entry, reason)
        return True

    @step
    def idle_too_long(self, now: float) -> None:
        """Retire all that have been idle for max_idle_time: the oldest come first, so few are looked at."""
        overdue: list[Entry] = []
        for entry in self.idle:
            if now - entry.idle_since < self.config.max_idle_time:
                break
            overdue.append(entry)
        for entry in overdue:
            if not self._is_kept(entry.key):
                self._retire(entry, "idle")

    def _is_kept(self, key: str) -> bool:
        assert self.lock.locked()
        floor = self.floors.get(key)
        return floor is not None and self.idle.open(key) <= floor[1]

    @step
    def suspect(self, key: str, answer_by: float) -> list[Entry]:
        """Take all idle connections to a URI, which have to answer a ping before they are lent."""
        suspects = [entry for entry in self.idle if entry.key == key]
        for entry in suspects:
            self._suspect(entry, answer_by)
        return suspects

    @step
    def suspect_all(self, slept: float, answer_by: float) -> list[Entry]:
        """`suspect` all idle connections, unless that was done since the machine last slept.

        Args:
            slept: For how long it has slept since it was started (s).
            answer_by: Monotonic, s.
        """
        if slept - self.slept < SHORTEST_SLEEP:
            return []
        suspects = list(self.idle)
        for entry in suspects:
            self._suspect(entry, answer_by)
        self.slept = slept  # last: a caller that read the old one before pings what it got
        return suspects

    def _suspect(self, entry: Entry, answer_by: float) -> None:
        assert self.lock.locked()
        # The place last: from then on it is looked after by what was written before.
        entry.suspected_at, entry.answer_by = monotonic(), answer_by
        if entry.place == IDLE:
            self.idle.remove(entry)
        entry.move(CHECKING)
        self.doorbell.put("suspects")

    @step
    def suspects(self) -> list[Entry]:
        """Those that have to answer a ping before they are lent."""
        return [e for e in self._not_idle() if e.answer_by and e.place == CHECKING]

    @step
    def hand_to_check(self, entry: Entry) -> None:
        """A suspect that answers no pings: the user's `check` says whether it may be lent."""
        entry.answer_by = 0.0

    @step
    def fill_floors(self) -> None:
        """Order what `prewarm(keep=True)` wants and is not there, as far as slots and limits allow."""
        now = monotonic()
        for key, (target, count) in self.floors.items():
            trouble = self.troubles.of(key)
            if trouble is not None and now < max(trouble.next_dial_at, trouble.refuse_until):
                continue
            missing = count - self.idle.open(key) - self.idle.opening(key) + self._ending_soon(key, now)
            if trouble is not None:
                missing = min(missing, 1 - self.idle.opening(key))  # it tests whether the server is back
            self._order_unasked(key, target, missing, "keep")

    def _ending_soon(self, key: str, now: float) -> int:
        """How many connections to a URI are to be replaced, as their lifetime ends: lent ones at release."""
        assert self.lock.locked()
        lifetime = self.config.max_lifetime
        if lifetime is None:
            return 0
        # The housekeeper comes by once in a `TICK`.
        at_least = min(2 * TICK, lifetime / 2)
        soon = now + min(_REPLACED_BEFORE, max(at_least, lifetime * _REPLACED_WITHIN))
        held = (IDLE, LENT, CHECKING)
        return sum(e.expires <= soon for e in self.entries if e.key == key and e.place in held)

    @step
    def closing_entries(self) -> list[Entry]:
        """Those that are closing, but for those that a dial waits for: its opener closes them."""
        return [entry for entry in self.closing if entry.wanted_by is None or not entry.wanted_by.taken]

    @step
    def forget(self, entries: list[Entry]) -> None:
        """Those are closed."""
        for entry in entries:
            if entry.place == CLOSING:
                self._forget(entry)

    @step
    def forget_cut(self, entries: list[Entry]) -> None:
        """The pool is closed, and those are cut: slots and tokens come back, though threads use them."""
        for entry in entries:
            if entry.place != OPENING:  # its opener ends it
                self._retire(entry, "pool closed", gone=True)

    def dropped(self) -> list[Borrower]:
        """The borrowers whose lease is gone and that no thread returns. Without the lock: it may be many."""
        all_of_them = [*list(self.lent), *self.waiting()]
        return [borrower for borrower in all_of_them if borrower.is_dropped and borrower not in self.returned]

    @step
    def waiting(self) -> list[Borrower]:
        """Who waits in line: an OrderedDict can't be copied while another thread changes it."""
        return list(self.line)

    def _not_idle(self) -> set[Entry]:
        """The connections in all other places. The idle ones may be thousands: none of them is looked at."""
        assert self.lock.locked()
        idle = self.idle.by_age
        return self.entries.difference(idle) if len(idle) < len(self.entries) else set()

    @step
    def unreturned(self) -> list[Borrower]:
        """The borrowers whose return has begun and is not booked: under way, or struck by an exception."""
        others = self._not_idle()
        held = [entry.borrower for entry in others if entry.place == LENT]
        held += [sharer for entry in others if entry.place == SHARED for sharer in entry.sharers]
        begun = [b for b in held if b is not None and (b.returns or b not in self.lent)]
        return [b for b in begun if b not in self.returned]

    @step
    def take_over(self, borrower: Borrower, reason: str) -> Entry | None:
        """Take what a borrower holds whose lease was dropped or whose return was struck; its connection.

        In one step, for the thread that was returning it may have been stopped only, and go on at any time.
        """
        entry = borrower.entry
        self.lent.pop(borrower, None)
        if entry is None or entry.borrower is not borrower or entry.place != LENT:
            entry = None  # what others share is not closed for one of them
        else:
            borrower.lent_for = max(1e-9, monotonic() - borrower.taken_at)
            borrower.reason = reason
            self._retire(entry, reason)
        self._book(borrower)
        return entry

    @step
    def keep(self, key: str, target: Target, count: int) -> None:
        """Hold so many connections to a URI open from now on; 0: as many as are used."""
        self.floors.pop(key, None)
        if count and not (self.closed or self.draining):
            self.floors[key] = (target, count)


__all__ = ["Housekeeping"]
