"""What the callers in line need: which connections are ordered, and whom one that comes back serves.

The decisions that need no state are in `dial_limits`; what makes room is found in `eviction`.
All is called with the lock held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.dial_limits import dials_allowed
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionError
from jetsocket.state.eviction import DIAL_GRACE, MOST_OVERTAKEN, Eviction, is_under
from jetsocket.state.moves import NEVER, TICK
from jetsocket.state.slots import EVICTED
from jetsocket.stuck_threads import refusal, too_many
from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.quotas import Quota


class Planning(Eviction):
    """Orders dials, and makes room for them."""

    def _served_by(self, entry: Entry) -> Borrower | None:
        """Who gets this connection; None: it becomes idle, or its slot is another URI's now."""
        assert self.lock.locked()
        first = self.line.first(entry.key)
        if first is None or not self.line.has_others:
            return first
        now = monotonic()
        for head in self.line.heads():
            if head.key == entry.key or head.overtaken < MOST_OVERTAKEN or not self._wanted(head):
                continue
            if now >= self._dialled_again_at(head.key) and now >= self._room_allowed_at(head, entry):
                head.overtaken = 0
                self._retire(entry, EVICTED)
                self._order(head, room=entry, evicts=True)
                return None
        return first

    def _plan(self) -> None:
        """Order what the callers in line need and the limits allow, and say when to look again."""
        assert self.lock.locked()
        if self.closed or self.draining:
            return
        now = monotonic()
        for head in self.line.heads():
            self._look_again_at(self._plan_for(head, now))

    def _plan_anew(self) -> None:
        """Plan, and look at the times of all dials: of a crowd, too many to be done at each step."""
        assert self.lock.locked()
        self._plan()
        under_way = [*self.dials, *self.asking.values()]
        self._look_again_at(min((dial.overdue_at for dial in under_way), default=NEVER))

    def _look_again_at(self, when: float) -> None:
        """Have the housekeeper come by then; it comes every `TICK` anyway. See `State.plan`."""
        assert self.lock.locked()
        if when < self.plan_at:
            self.plan_at = when
            if when < monotonic() + TICK:
                self.doorbell.put("plan")

    def _plan_for(self, head: Borrower, now: float) -> float:
        """Order what the callers of one URI need; return when more may be allowed (monotonic, s)."""
        assert self.lock.locked()
        again_at = max(self._dialled_again_at(head.key), self.idle.paced_until(head.key))
        if now < again_at:
            return again_at
        if self.left_behind and (error := self._why_not_dialled(head.key)) is not None:
            for borrower in self.line.all(head.key):
                self._turn_away(borrower, error)
            return NEVER
        self.idle.pace(head.key, 0.0)
        quota = self._quota_of(head.target)
        if quota is not None and quota in self.asking:
            return self._plan_under(quota, head, now)
        for _ in range(self._wanted(head)):
            room, evicts = self._closing_one_of(head.key), False
            if room is None and self.slots.acquire(blocking=False):
                self._order(head, has_slot=True)
                continue
            if self.owed:
                break  # the first slots that are given back pay for `resize`
            if room is None:
                room = next((entry for entry in self.closing if entry.wanted_by is None), None)
            if room is None:
                # Its limiter may have none for it: then no other URI's connection is closed in vain.
                room = self._room_elsewhere(head.key, quota if quota is not None and quota.is_full else None)
                if room is None and quota is not None and quota.is_full:
                    self._order(head)  # it asks without a slot
                    return NEVER
                if room is None:
                    return self._take_slot_of_a_dial(head, now)
                allowed_at = self._room_allowed_at(head, room)
                if now < allowed_at:
                    return allowed_at
                self._retire(room, EVICTED)
                head.overtaken, evicts = 0, True
            self._order(head, room=room, evicts=evicts)
        return NEVER

    def _quota_of(self, target: Target | None) -> Quota | None:
        """What the pool has of the limiter that counts for a URI; None: there is none, or it is not known."""
        assert self.lock.locked()
        return None if self.quotas is None else self.quotas.known(target)

    def _plan_under(self, quota: Quota, head: Borrower, now: float) -> float:
        """`_plan_for` while a dial waits for that limiter: other connections that it counts may make room."""
        assert self.lock.locked()
        for _ in range(self._wanted(head)):
            if self.owed:
                break  # as in `_plan_for`
            room, evicts = self._closing_under(quota), False
            if room is None:
                room = self._room_elsewhere(head.key, quota)
                if room is None:
                    break
                allowed_at = self._room_allowed_at(head, room)
                if now < allowed_at:
                    return allowed_at
                self._retire(room, EVICTED)
                head.overtaken, evicts = 0, True
            self._order(head, room=room, evicts=evicts)
        return NEVER

    def _closing_under(self, quota: Quota) -> Entry | None:
        """A connection that is closing to make room, and whose slot of that limiter's no dial has."""
        assert self.lock.locked()
        for entry in self.closing:
            is_free = entry.wanted_by is None and entry.closed_for == EVICTED
            if is_free and is_under(entry, quota) and entry.grant is not None and not entry.grant.is_lost:
                return entry
        return None

    def _take_slot_of_a_dial(self, head: Borrower, now: float) -> float:
        """Break off another URI's dial for the head of a line that has none; return when that may be done.

        Or a server that accepts and never answers would take all slots of a pool that has no connection yet.
        """
        assert self.lock.locked()
        if self.idle.open(head.key) or self.idle.opening(head.key):
            return NEVER
        dial = self._dial_too_many(head.key)
        if dial is None or dial.entry is None:
            return NEVER
        trouble = self.troubles.of(head.key)
        allowed_at = max(head.asked_at + DIAL_GRACE, 0.0 if trouble is None else trouble.next_eviction_at)
        if now < allowed_at:
            return allowed_at
        room, dial.entry = dial.entry, None
        self.left_behind[dial] = None  # until its thread comes back, which may be in a callable of the user's
        self._retire(room, EVICTED)
        room.close_by = 0.0  # it is not open: there is no closing handshake
        self._order(head, room=room, evicts=True)
        self._end_dial(dial)
        return NEVER

    def _dialled_again_at(self, key: str) -> float:
        """When a URI may be dialled for callers who wait (monotonic, s): its last dial may have failed.

        As long as a connection to it is open or being opened, the next dial comes after a pause. Where none
        is open, and time was over for the one that failed, those that began before that are waited for: else
        each that fails would find a later one under way, and no caller would be told. So is one that rests
        between two attempts, whose slot is free meanwhile; and with `connect_cooldown`, the one that tests
        whether the server is back.
        """
        assert self.lock.locked()
        trouble = self.troubles.of(key)
        if trouble is None and not self.resting:  # nearly always
            return 0.0
        is_open, opening = self.idle.open(key) > 0, self.idle.opening(key) > 0
        if opening and not is_open and any(dial.key == key for dial in self.resting):
            return NEVER
        if trouble is None:
            return 0.0
        if opening and not is_open:
            if self.config.connect_cooldown:
                return NEVER
            if not all(dial.is_over for dial in trouble.beside):
                return NEVER
        return trouble.next_dial_at if is_open or opening else 0.0

    def _why_not_dialled(self, key: str) -> ConnectionError | None:
        """Why callers need not wait for a connection to that URI: none is open, and too many threads hang."""
        assert self.lock.locked()
        if not too_many(self.left_behind, key) or self.idle.open(key) or self.idle.opening(key):
            return None
        return refusal(self.left_behind, key)

    def _wanted(self, head: Borrower) -> int:
        """How many more dials the callers of that URI need: after a cooldown, one that tests it."""
        assert self.lock.locked()
        key, more = head.key, self._needed(head.key)
        if self.config.connect_cooldown and self.troubles.of(key) is not None and not self.idle.open(key):
            more = min(more, 1 - self.idle.opening(key))
        return self._allowed(key, more)

    def _needed(self, key: str) -> int:
        """How many connections the callers in line need beside those that are being opened."""
        assert self.lock.locked()
        needed = self.line.connections_needed(key, self.config.max_in_flight)
        return needed - self.idle.opening(key)

    def _allowed(self, key: str, more: int) -> int:
        """How many of so many more dials of a URI the limits allow, slots aside."""
        assert self.lock.locked()
        if self.left_behind and too_many(self.left_behind, key):
            return 0
        opening, open_now, config = self.idle.opening(key), self.idle.open(key), self.config
        return dials_allowed(
            more,
            opening=opening,
            open_now=open_now,
            most_opening=config.max_connecting,
            most=config.max_per_uri,
        )

    def _order(
        self, head: Borrower, *, has_slot: bool = False, room: Entry | None = None, evicts: bool = False
    ) -> Dial:
        """Order a dial for the first of those who wait for that URI."""
        assert self.lock.locked()
        assert head.target is not None
        dial = Dial(head.key, head.target, "line", head.context)
        dial.has_evicted = evicts
        if evicts:
            self.troubles.count_eviction(head.key, monotonic())
        return self._enqueue(dial, has_slot=has_slot, room=room)

    def _enqueue(self, dial: Dial, *, has_slot: bool, room: Entry | None = None) -> Dial:
        assert self.lock.locked()
        dial.has_slot, dial.quota = has_slot, self._quota_of(dial.target)
        if room is not None:
            dial.room, room.wanted_by = room, dial
        self.dials[dial] = None
        self.idle.count_opening(dial.key, 1)
        self.queued.append(dial)
        if self.parked >= len(self.queued):
            self.wake_opener.put(None)
        else:
            self.doorbell.put("openers")
        return dial


__all__ = ["Planning"]
