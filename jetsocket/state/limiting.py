"""The steps around a limiter: a dial waits for it, gets a slot of its, and connections are closed for others.

At most one dial for each limiter waits (`asking`), on behalf of all callers that the limiter counts for: what
it gets is for the one that has waited for longest. It holds no slot of the pool, and counts as being opened
for no URI.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Literal, TypeAlias

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.connection_states import CHECKING, CLOSING, IDLE, OPENING
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry
from jetsocket.state.eviction import is_under
from jetsocket.state.locking import step
from jetsocket.state.repair import Repair
from jetsocket.state.slots import EVICTED

if TYPE_CHECKING:
    from jetsocket.quotas import Grant, Quota

Next: TypeAlias = Literal["close room", "wait", "over"]
"""What an opener does whose limiter has none."""


class Limiting(Repair):
    """What openers and the housekeeper do with what limiters give, and want back."""

    @step
    def asks_limiter(self, dial: Dial, quota: Quota, overdue_at: float) -> bool:
        """A limiter is asked for a dial; by then (monotonic, s) it has answered, or hangs.

        Returns:
            Whether the dial is to ask; False: it is over.
        """
        if self.asking.get(quota) is not dial and dial not in self.dials:
            return False
        dial.quota = quota
        dial.began_at, dial.overdue_at = monotonic(), overdue_at
        self._look_again_at(overdue_at)
        return True

    @step
    def none_for(self, dial: Dial, quota: Quota) -> Next:
        """The limiter has none at once: a connection of another URI makes room, or the dial waits, or ends.

        Its slot is free meanwhile; one that is to make room brings its own.
        """
        quota.is_full = True
        if dial not in self.dials:
            return "over"
        if dial.has_slot:
            dial.has_slot = False
            self._free_slot()
        if dial.room is not None:  # it is closing, and makes room for others
            dial.room.wanted_by = None
            dial.room = None
        if dial.purpose == "line" and (room := self._room_under(dial, quota)) is not None:
            dial.room, room.wanted_by = room, dial
            return "close room"
        if dial.purpose in ("line", "prewarm") and quota not in self.asking:
            self.idle.count_opening(dial.key, -1)
            del self.dials[dial]
            self.resting.discard(dial)
            self.asking[quota] = dial
            self._plan()
            return "wait"
        if dial.purpose == "keep":
            self._keep_later(quota)
        self._end_dial(dial)
        self._plan()
        return "over"

    def _room_under(self, dial: Dial, quota: Quota) -> Entry | None:
        """What makes room for a dial now, among the connections that the same limiter counts."""
        assert self.lock.locked()
        room = self._closing_under(quota)
        head = self.line.first(dial.key)
        if room is not None or head is None:
            return room
        room = self._room_elsewhere(dial.key, quota)
        if room is None:
            return None
        # This dial is the only one under way to its URI, perhaps, which is no reason to wait for another.
        self.idle.count_opening(dial.key, -1, opened=True)
        allowed_at = self._room_allowed_at(head, room)
        self.idle.count_opening(dial.key, 1)
        if monotonic() < allowed_at:
            return None
        self._retire(room, EVICTED)
        head.overtaken = 0
        return room

    @step
    def got_grant(self, dial: Dial, grant: Grant) -> bool:
        """The limiter gave a slot: to this dial, or to another whose caller has waited for longer.

        Returns:
            Whether this dial goes on; False: it is over.
        """
        quota = grant.quota
        is_asking = self.asking.get(quota) is dial
        if not (is_asking or dial in self.dials):
            self._give_back(grant)
            return False
        dial.grant = grant  # first: it goes back with the end of the dial
        quota.is_full, quota.keep_pause = False, 0.0
        is_lost = grant.token in quota.lost_early
        if is_lost:
            quota.lost_early.remove(grant.token)
        if not self._is_asked(quota):
            quota.lost_early.clear()
        goes_on = not is_lost and (not is_asking or self._use(dial, quota, grant))
        if not goes_on:
            self._end_dial(dial)
        if not goes_on or is_asking:
            self._plan()
        return goes_on

    def _use(self, dial: Dial, quota: Quota, grant: Grant) -> bool:
        """Give a slot of a limiter's to who needs it; True: the dial that has it goes on with it.

        What no caller needs, or what no slot of the pool is free for, goes back with the end of that dial.
        """
        assert self.lock.locked()
        head = self._first_under(quota)
        if head is None and not (dial.purpose == "prewarm" and dial.is_wanted and self._allowed(dial.key, 1)):
            return False
        key = dial.key if head is None else head.key
        room = None
        has_slot = self.slots.acquire(blocking=False)
        if not has_slot:
            room = next((entry for entry in self.closing if entry.wanted_by is None), None)
            if room is None and head is not None:
                room = self._room_elsewhere(key)
                if room is not None and monotonic() < self._room_allowed_at(head, room):
                    room = None
                if room is not None:
                    self._retire(room, EVICTED)
                    head.overtaken = 0
            if room is None:
                return False
        if head is not None and (key != dial.key or dial.purpose != "line"):
            self._order(head, has_slot=has_slot, room=room).grant = grant
            dial.grant = None
            return False
        del self.asking[quota]
        dial.has_slot = has_slot
        if room is not None:
            dial.room, room.wanted_by = room, dial
        self.dials[dial] = None
        self.idle.count_opening(dial.key, 1)
        return True

    def _first_under(self, quota: Quota) -> Borrower | None:
        """The first in line that one limiter counts for, and for whom no connection is on its way."""
        assert self.lock.locked()
        now = monotonic()
        for head in self.line.heads():
            if self._quota_of(head.target) is not quota or self._wanted(head) <= 0:
                continue
            if now >= max(self._dialled_again_at(head.key), self.idle.paced_until(head.key)):
                return head
        return None

    def _see_who_is_wanted(self) -> None:
        assert self.lock.locked()
        for quota, dial in self.asking.items():
            if dial.purpose == "line":
                heads = (head for head in self.line.heads() if self._quota_of(head.target) is quota)
                dial.is_wanted = any(self._wanted(head) > 0 for head in heads)
            elif self.closed or self.draining:
                dial.is_wanted = False

    @step
    def want_no_more(self, dials: list[Dial]) -> bool:
        """`prewarm` waits no longer for these; True: those that are not over wait for a limiter."""
        for dial in dials:
            if dial.purpose == "prewarm":
                dial.is_wanted = False
        under_way = [dial for dial in dials if not dial.is_over]
        return all(dial.quota is not None and self.asking.get(dial.quota) is dial for dial in under_way)

    @step
    def give_back(self, grant: Grant) -> None:
        """What a limiter gave comes back, if no connection and no dial has it: its thread was struck."""
        held = [entry.grant for entry in self.entries]
        held += [dial.grant for dial in [*self.dials, *self.asking.values()]]
        if not any(each is grant for each in held):
            self._give_back(grant)

    # --- what limiters want ------------------------------------------------------------------------------

    @step
    def give_up(self, quota: Quota, count: int, *, returned: bool) -> None:
        """Others wait for slots: close idle connections, and what comes back if too few are idle."""
        if count <= 0:
            self.to_give_up -= quota.to_give_up
            quota.to_give_up = 0
            return
        under = [entry for entry in self.idle if is_under(entry, quota)]
        for entry in under[:count]:
            self._yield(entry)
        self._keep_later(quota)
        if returned:
            out = sum(is_under(entry, quota) and entry.place != CLOSING for entry in self.entries)
            more = max(0, min(count - len(under), out - quota.to_give_up))
            quota.to_give_up += more
            self.to_give_up += more

    @step
    def lose(self, quota: Quota, token: Hashable) -> Entry | None:
        """A limiter's slot is another's now.

        Returns:
            The connection that has it, to be closed at once; None: there is none.

        A grant whose dial has not begun goes back; one that is not known yet will when it is.
        """
        for entry in self.entries:
            if entry.grant is not None and entry.grant.quota is quota and entry.grant.token == token:
                entry.grant.is_lost = True
                if entry.place in (IDLE, CHECKING):
                    self._retire(entry, "slot lost")
                elif entry.place == OPENING:
                    self._break_off(entry)
                return entry
        for dial in self.dials:
            if dial.grant is not None and dial.grant.quota is quota and dial.grant.token == token:
                self._end_dial(dial)
                self._plan()
                return None
        if self._is_asked(quota):  # else it was released: its limiter may give an equal one again
            quota.lost_early.append(token)
        return None

    def _break_off(self, entry: Entry) -> None:
        """End the dial of a connection without an error: the caller that waits for it gets another."""
        assert self.lock.locked()
        for dial in [dial for dial in self.dials if dial.entry is entry]:
            self.left_behind[dial] = None
            entry.move(CLOSING)
            self.closing[entry] = None
            self._end_dial(dial)

    def _is_asked(self, quota: Quota) -> bool:
        """Whether a limiter may be giving a slot just now."""
        assert self.lock.locked()
        dials = [*self.dials, *self.asking.values()]
        return any(dial.quota is quota and dial.grant is None and dial.entry is None for dial in dials)

    @step
    def slot_is_free(self, entry: Entry) -> None:
        """The socket of a connection is closed whose slot was lost, though it may be lent still."""
        if entry.grant is not None:
            self._give_back(entry.grant)
            entry.grant = None
        if entry.place == CLOSING and not entry.was_opened:  # its dial was broken off
            self._forget(entry)
            self._plan()


__all__ = ["Limiting", "Next"]
