"""The steps of an opener: it takes up an order, begins, and tells how it went."""

from __future__ import annotations

from contextvars import copy_context
from typing import Any

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.connection_states import CLOSING, OPENING
from jetsocket.dial_limits import pause_before_more
from jetsocket.dial_order import Dial, Purpose
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.state.limiting import Limiting
from jetsocket.state.locking import step
from jetsocket.stuck_threads import LATE, is_only_late
from jetsocket.uris import Target


class Dialling(Limiting):
    """What openers do with the state of their pool."""

    @step
    def next_dial(self, *, is_new: bool) -> Dial | None:
        """Take up an order; None: park, and wait for `wake_opener`."""
        if is_new:
            self.starting -= 1
        if (dial := self._take_dial()) is None and not self.closed:
            self.parked += 1
        return dial

    def _take_dial(self) -> Dial | None:
        assert self.lock.locked()
        while self.queued:
            dial = self.queued.popleft()
            if dial in self.dials:
                dial.taken = True
                return dial
        return None

    @step
    def unpark(self, *, stay: bool) -> Dial | None:
        """An opener has waited: it takes up an order, or waits on (`stay`), or ends."""
        self.parked -= 1
        if (dial := self._take_dial()) is None and stay and not self.closed:
            self.parked += 1
        return dial

    @step
    def openers_wanted(self) -> int:
        """How many openers are to be started now; they count as being started from here on."""
        for _ in range(min(self.parked, len(self.queued))):
            self.wake_opener.put(None)  # an exception may have struck the one who was to do it
        wanted = max(0, len(self.queued) - self.parked - self.starting)
        self.starting += wanted
        return wanted

    @step
    def openers_not_started(self, count: int) -> None:
        """So many could not be started; wakes the callers that have to open their connection themselves."""
        self.starting -= count
        for dial in self.queued:
            if (head := self.line.first(dial.key)) is not None:
                head.rouse()

    @step
    def take_own_dial(self, borrower: Borrower) -> Dial | None:
        """Take up an order for the URI of a caller in line, where no thread runs that would."""
        for dial in self.queued:
            if dial.key == borrower.key:
                self.queued.remove(dial)
                dial.taken = True
                return dial
        return None

    @step
    def take_own(self, dial: Dial) -> bool:
        """Take up that very order, where no thread runs that would; False: one has, or it is over."""
        if dial not in self.queued:
            return False
        self.queued.remove(dial)
        dial.taken = True
        return True

    @step
    def begin(self, dial: Dial, entry: Entry, overdue_at: float) -> bool:
        """A dial has its slot, and begins; False: it is over, not wanted any more or without a slot."""
        if dial not in self.dials or dial.room is not None:
            return False
        is_wanted = dial.purpose != "line" or self.line.count(dial.key) > 0
        if not is_wanted or not (dial.has_slot or self.slots.acquire(blocking=False)):
            self._end_dial(dial)
            self._plan()
            return False
        self.resting.discard(dial)
        dial.entry, dial.began_at, dial.overdue_at, dial.is_late = entry, monotonic(), overdue_at, False
        self.entries.add(entry)
        entry.grant = dial.grant
        dial.grant = None
        dial.has_slot = False  # it is the entry's now
        self._look_again_at(overdue_at)
        return True

    @step
    def marks_in_line(self, key: str) -> list[list[Any] | None]:
        """What listeners returned when those asked that wait for a URI, the first in line first."""
        return [borrower.marks for borrower in self.line.all(key)]

    @step
    def room_is_closed(self, dial: Dial) -> None:
        """The connection whose slot a dial waited for is closed."""
        if dial.room is not None:
            self._forget(dial.room)

    @step
    def opened(self, dial: Dial, entry: Entry, *, parks: bool = False) -> bool:
        """A connection is open; False: it came too late, and is to be closed.

        If its thread `parks` after that, and there is no order for it, it counts as parked from here on:
        another step would keep the caller waiting that has got the connection.
        """
        self.totals.connections += 1  # the server has seen it, and listeners were told
        if dial not in self.dials or entry not in self.entries or entry.place == CLOSING:
            return False
        took = monotonic() - dial.began_at
        self.totals.connect_time.add(took)
        if self.totals.lost:
            self.totals.lost -= 1
            self.totals.reconnects += 1
        self.last_connect_error = None
        self.troubles.forget(dial.key)
        self.watch_version += 1
        dial.entry, dial.has_opened = None, True
        self._end_dial(dial)
        self._come_home(entry)
        if self.line:  # `max_connecting` allows another one
            if (now := monotonic()) >= self.idle.paced_until(dial.key):
                self.idle.pace(dial.key, now + pause_before_more(took, comes_back=False), took)
            self._plan()
        if parks and not self.queued and not self.closed:
            self.parked += 1
            dial.parks = True
        return True

    @step
    def attempt_failed(self, dial: Dial, entry: Entry, error: BaseException) -> bool:
        """An attempt failed, and another is to follow after a pause; False: the dial is over already."""
        dial.entry, dial.overdue_at = None, float("inf")
        if dial in self.dials:
            self._count_failure(error)
            self.resting.add(dial)
        self._forget_unopened(entry)
        if self.draining and dial in self.dials:
            dial.error = dial.error or self.closed_error()
            self._end_dial(dial)
        return dial in self.dials

    @step
    def failed(
        self, dial: Dial, entry: Entry | None, error: BaseException, retry_after: float | None = None
    ) -> None:
        """A dial has failed for good.

        As long as a connection to that URI is open, or another is being opened, its line goes on waiting.
        Else all that wait for it get this error.
        """
        is_asking = dial.quota is not None and self.asking.get(dial.quota) is dial
        if is_asking or dial in self.dials:  # else it was given up, and counted then
            self._count_failure(error)
            # All this first: the slot that comes free below is for no other dial to there.
            key, now = dial.key, monotonic()
            if dial.purpose == "prewarm":  # its caller looks; the frames of the opener refer to the dial
                dial.error = error
            trouble = self.troubles.note(
                key,
                error,
                began=dial.ordered_at,
                now=now,
                retry_after=retry_after,
                has_evicted=dial.has_evicted,
            )
            timed_out = isinstance(error, TimeoutError)
            trouble.beside = tuple(other for other in self.dials if timed_out and other.key == key)
            if not self.idle.open(key) and self.idle.opening(key) == (not is_asking):  # no other one
                for borrower in self.line.all(key):
                    self._turn_away(borrower, error)
        if entry is not None:
            self._forget_unopened(entry)
        if is_asking or dial in self.dials:
            dial.entry, dial.has_opened = None, False  # `opened` may have been struck
            self._end_dial(dial)
            self._plan()

    def _count_failure(self, error: BaseException) -> None:
        assert self.lock.locked()
        self.totals.connect_errors += 1
        self.last_connect_error = error

    @step
    def drop_dial(self, dial: Dial) -> None:
        """A dial ends without a connection and without an error."""
        entry, dial.entry, dial.has_opened = dial.entry, None, False
        if entry is not None:
            self._forget_unopened(entry)
        self._end_dial(dial)
        self._plan()

    @step
    def overdue_dials(self, now: float) -> list[Dial]:
        """The dials whose time is over though their thread has not come back; they are to be given up.

        One that is only late is waited for once more.
        From here on their connections are closing: one that opens at this moment comes too late.
        """
        overdue = [dial for dial in [*self.dials, *self.asking.values()] if now >= dial.overdue_at]
        for dial in [dial for dial in overdue if not dial.is_late and is_only_late(dial)]:
            dial.is_late, dial.overdue_at = True, now + LATE
            self._look_again_at(dial.overdue_at)
            overdue.remove(dial)
        for dial in overdue:
            self.left_behind[dial] = None
            if (entry := dial.entry) is not None and entry.place == OPENING:
                entry.move(CLOSING)
                self.closing[entry] = None
        return overdue

    @step
    def came_back(self, dial: Dial) -> bool:
        """The thread of a dial has ended it; True: it had been given up."""
        was_left_behind = dial in self.left_behind
        self.left_behind.pop(dial, None)
        if was_left_behind and self.line:
            self._plan()
        return was_left_behind

    @step
    def why_not_dialled(self, key: str) -> ConnectionError | None:
        """What to tell a caller of a URI for which none is open, and too many threads hang in dials."""
        return self._why_not_dialled(key)

    @step
    def warm(self, key: str, target: Target, count: int, most: int) -> tuple[list[Dial], list[Dial]]:
        """Order what lacks until so many are idle, at most so many, as far as free slots and limits allow.

        Returns:
            The dials that were ordered, and those that were under way already.

        Raises:
            PoolClosedError: The pool is closed or drained.
        """
        if self.closed or self.draining:
            raise self.closed_error()
        under_way = [dial for dial in self.dials if dial.key == key]
        quota = self._quota_of(target)
        if quota is not None and quota in self.asking:  # its end is waited for, too
            under_way.append(self.asking[quota])
        # Callers may take what was opened: it is not opened twice, hence `most`.
        missing = min(most, count - self.idle.count(key) - len(under_way))
        ordered = self._order_unasked(key, target, missing, "prewarm")
        return ordered, under_way if self.idle.count(key) < count else []

    def _order_unasked(self, key: str, target: Target, count: int, purpose: Purpose) -> list[Dial]:
        assert self.lock.locked()
        ordered: list[Dial] = []
        context = copy_context() if purpose == "prewarm" else None
        quota = self._quota_of(target)
        if quota is not None and (
            quota in self.asking or (purpose == "keep" and monotonic() < quota.keep_again_at)
        ):
            return ordered
        for _ in range(self._allowed(key, count)):
            room = self._closing_one_of(key)
            has_slot = room is None and self.slots.acquire(blocking=False)
            if not has_slot and self.owed:
                break  # as for callers: what is given back first pays for `resize`
            if not has_slot and room is None:  # the slot of one that is closing will do
                room = next((entry for entry in self.closing if entry.wanted_by is None), None)
                if room is None:
                    break
            dial = Dial(key, target, purpose, context)
            ordered.append(self._enqueue(dial, has_slot=has_slot, room=room))
        return ordered


__all__ = ["Dialling"]
