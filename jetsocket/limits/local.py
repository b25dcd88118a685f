"""One cap over several pools of one process."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from jetsocket.argument_checks import int_from, seconds
from jetsocket.clock import deadline_in, monotonic
from jetsocket.limits.base import Limiter, Owner
from jetsocket.limits.call import Call
from jetsocket.process_id import PID, getpid
from jetsocket.text import short_repr

_TICK = 0.25  # s between two questions whether a slot is still wanted
_AGAIN = 0.5  # s after which a pool is asked again for an idle connection
_KEEPS_ITS_PLACE = 1.0  # s within which a pool that asks again stands where it stood


class LocalLimiter(Limiter):
    """A number of connections that several pools of this process may have open together.

    While one of them waits, the others close idle connections for it. When all are in use, the next slot goes
    to the pool that holds fewest of those that wait, and among equals to the one that has waited for longest.
    So that there is a next one, the pool that holds most closes the next connection that comes back to it, if
    it holds at least two more than the one that waits. If it holds one more, it does so after it has had that
    for a turn: what is left over when the slots are divided goes round.

    Each process has the whole number to itself: a forked child begins with all slots free.
    """

    def __init__(self, limit: int, *, turn: float = 1.0) -> None:
        """Make one, and give it to each pool as `limiter`.

        Args:
            limit: Connections, 1 or more.
            turn: s for which a pool may have one connection more than another one that waits.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: `limit` is less than 1, or `turn` not more than 0.
        """
        self._limit = int_from(1)("limit", limit)
        self._turn = seconds("turn", turn)
        # By process: in a forked child, the parent's lock and lists are as its other threads had them.
        self._by_process: dict[int, _Slots] = {}

    @property
    def limit(self) -> int:
        """How many slots there are."""
        return self._limit

    def __repr__(self) -> str:
        """As it is made."""
        return f"{type(self).__name__}({self._limit})"

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        """See `Limiter.acquire`."""
        slots = self._here()
        deadline = deadline_in(timeout)
        waiter = _Waiter(slots.holder_of(getattr(wanted, "owner", None)))
        slot = None
        try:
            slot = slots.take(waiter, waits=timeout > 0)
            while slot is None and slots.pid == PID[0] and (left := deadline - monotonic()) > 0 and wanted():
                waiter.wait(min(left, _TICK))
                slot = slots.look(waiter)
            return slot
        finally:
            if slots.pid == PID[0]:
                slots.leave(waiter, slot)

    def release(self, token: Hashable) -> None:
        """See `Limiter.release`.

        Raises:
            ValueError: The token is not out: it was released before, or is another limiter's.
        """
        if not (isinstance(token, Slot) and self._here().release(token)):
            raise ValueError(
                f"{short_repr(token)} is not out: it was released before, or {self!r} never gave it"
            )

    def bind(self, owner: Owner) -> None:
        """See `Limiter.bind`."""
        self._here().add(owner)

    def unbind(self, owner: Owner, timeout: float) -> None:
        """See `Limiter.unbind`."""
        self._here().remove(owner)

    def stats(self) -> Mapping[str, Any]:
        """Figures: `limit`, `held`, `waiting`; and `others`, `errors` and `lost`, which are 0."""
        slots = self._here()
        told = {"limit": self._limit, "held": len(slots.out), "waiting": len(slots.line)}
        return {**told, "others": 0, "errors": 0, "lost": 0}

    def _here(self) -> _Slots:
        """What there is in this process."""
        pid = PID[0] or getpid()
        found = self._by_process.get(pid)
        if found is None:  # single calls, no lock: the parent's may be held
            found = self._by_process.setdefault(pid, _Slots(pid, self._limit, self._turn))
            for other in list(self._by_process):
                if other != pid:
                    self._by_process.pop(other, None)
        return found


class _Holder:
    """A pool, as one of those that share.

    Attributes:
        owner: What can be asked to give up connections; None for all who have not said who they are.
        ticket: Its place among those that hold as many; None: it does not wait.
        left_at: When it last gave up waiting (monotonic, s).
        idle_asked_at: When it was last asked for an idle connection (monotonic, s).
        asked_at: Since when it is to close the next connection that comes back (monotonic, s), or None.
        may_owe: Whether it was asked for that since it was last told that it need not.
    """

    __slots__ = ("asked_at", "idle_asked_at", "left_at", "may_owe", "owner", "ticket")

    def __init__(self, owner: Owner | None) -> None:
        self.owner = owner
        self.ticket: int | None = None
        self.left_at = self.idle_asked_at = float("-inf")
        self.asked_at: float | None = None
        self.may_owe = False

    def ask(self, now: float) -> None:
        """Have it close the next connection that comes back, unless one is idle: one in all."""
        self.take_back()
        self.asked_at, self.may_owe = now, True
        if self.owner is not None:
            self.owner.give_up(1, returned=True)

    def take_back(self) -> None:
        """What it was asked for is not needed any more."""
        self.asked_at = None
        if self.may_owe and self.owner is not None:
            self.owner.give_up(0)
        self.may_owe = False


class _Waiter(Call):
    """One call of `acquire`, of a pool that shares."""

    __slots__ = ("holder", "ticket")

    def __init__(self, holder: _Holder) -> None:
        super().__init__()
        self.holder = holder
        self.ticket = 0


class Slot:
    """One slot that is out, which is its token.

    Attributes:
        number: Of all that were ever given out in this process, from 1.
        waiter: The call that it was given to.
        since: When (monotonic, s).
    """

    __slots__ = ("number", "since", "waiter")

    def __init__(self, number: int, waiter: _Waiter) -> None:
        """It is given out."""
        self.number = number
        self.waiter = waiter
        self.since = monotonic()

    def __repr__(self) -> str:
        """Which one it is."""
        return f"<slot {self.number}>"


class _Slots:
    """The slots of one limiter in one process.

    What is out is one set: how many each pool holds, and who in line has been served, follows from it. So an
    exception that strikes anywhere leaves nothing that the next call does not put right.

    Attributes:
        pid: The process.
        lock: Guards all below and the fields of holders. With it, only `Owner.give_up` is called, which
            leaves a note, and waiters are woken.
        out: The slots that were given out.
        line: The calls that wait, in the order in which they came.
    """

    def __init__(self, pid: int, limit: int, turn: float) -> None:
        self.pid = pid
        self.lock = threading.Lock()
        self.out: set[Slot] = set()
        self.line: list[_Waiter] = []
        self._limit = limit
        self._turn = turn
        self._holders: dict[int, _Holder] = {}
        self._nobody = _Holder(None)
        self._numbers, self._tickets = itertools.count(1), itertools.count()

    def add(self, owner: Owner) -> None:
        """A pool begins to share."""
        with self.lock:
            if id(owner) not in self._holders:
                self._holders[id(owner)] = _Holder(owner)

    def remove(self, owner: Owner) -> None:
        """A pool is closed: it is not asked any more."""
        with self.lock:
            gone = self._holders.pop(id(owner), None)
            for waiter in self.line:
                if waiter.holder is gone:
                    waiter.wake()  # to find that nothing is wanted any more
            self._ask()

    def holder_of(self, owner: Owner | None) -> _Holder:
        """Who that pool is here."""
        return self._nobody if owner is None else self._holders.get(id(owner), self._nobody)

    def take(self, waiter: _Waiter, *, waits: bool) -> Slot | None:
        """Take a free slot, or stand in line if there is none and the call waits."""
        with self.lock:
            self._grant()
            if len(self.out) < self._limit:
                waiter.holder.ticket = None
                slot = Slot(next(self._numbers), waiter)
                self.out.add(slot)
                return slot
            if waits:
                waiter.ticket = self._ticket(waiter.holder)
                self.line.append(waiter)
                self._ask()
            return None

    def look(self, waiter: _Waiter) -> Slot | None:
        """The slot that a call in line was given; None: it goes on waiting."""
        with self.lock:
            self._grant()
            slot = self._slot_of(waiter)
            if slot is None:
                self._ask()
            return slot

    def leave(self, waiter: _Waiter, slot: Slot | None) -> None:
        """A call ends with that slot; one that came at the last moment and does not go with it is free."""
        with self.lock:
            if slot is None and (late := self._slot_of(waiter)) is not None:
                self.out.discard(late)
            if waiter in self.line:
                self.line.remove(waiter)
                waiter.holder.left_at = monotonic()
            self._grant()
            self._ask()

    def release(self, slot: Slot) -> bool:
        """Take a slot back, and give it to who waits; False: it was not out."""
        with self.lock:
            if slot not in self.out:
                return False
            self.out.discard(slot)
            slot.waiter.holder.asked_at = None
            slot.waiter.holder.idle_asked_at = float("-inf")  # who has given one may have another
            self._grant()  # to a call that asks for the next one when it leaves
            return True

    # --- with the lock held

    def _ticket(self, holder: _Holder) -> int:
        """Where a pool stands; one that has just given up waiting, and asks again, stands where it stood."""
        if holder is self._nobody:
            return next(self._tickets)
        if holder.ticket is None or monotonic() > holder.left_at + _KEEPS_ITS_PLACE:
            holder.ticket = next(self._tickets)
        return holder.ticket

    def _slot_of(self, waiter: _Waiter) -> Slot | None:
        return next((slot for slot in self.out if slot.waiter is waiter), None)

    def _first(self, held: Mapping[_Holder, int]) -> _Waiter | None:
        """Whose turn it is: the pool's that holds fewest."""
        served = {slot.waiter for slot in self.out}
        waiting = (waiter for waiter in self.line if waiter not in served)
        return min(waiting, key=lambda each: (held.get(each.holder, 0), each.ticket), default=None)

    def _held(self) -> Counter[_Holder]:
        return Counter(slot.waiter.holder for slot in self.out)

    def _grant(self) -> None:
        """Give free slots to those in line."""
        assert self.lock.locked()
        while self.line and len(self.out) < self._limit and (first := self._first(self._held())) is not None:
            self.out.add(Slot(next(self._numbers), first))
            self.line.remove(first)
            first.holder.ticket = None
            first.wake()

    def _ask(self) -> None:
        """Have the other pools make room for whose turn it is, or tell them that no pool waits any more."""
        assert self.lock.locked()
        holders = self._holders.values()
        held = self._held() if self.line else Counter[_Holder]()
        first = self._first(held) if self.line and len(self.out) >= self._limit else None
        if first is None:
            for holder in holders:
                if holder.may_owe:
                    holder.take_back()
            return
        now, newest = monotonic(), dict[_Holder, float]()
        for slot in self.out:
            newest[slot.waiter.holder] = max(slot.since, newest.get(slot.waiter.holder, 0.0))

        def is_rich(holder: _Holder) -> bool:
            more = held[holder] - held[first.holder]
            return more > 1 or (more == 1 and now >= newest[holder] + self._turn)

        for holder in holders:
            if holder.may_owe and not is_rich(holder):
                holder.take_back()
        others = [holder for holder in holders if holder is not first.holder and held[holder]]
        for holder in sorted(others, key=lambda each: held[each], reverse=True):
            if holder.asked_at is not None:
                continue
            # One at a time. Its connections may not come back for long: after a turn, the next one is asked.
            asked = max((each.asked_at for each in others if each.asked_at is not None), default=None)
            if is_rich(holder) and (asked is None or now >= asked + self._turn):
                holder.ask(now)
            elif holder.owner is not None and now >= holder.idle_asked_at + _AGAIN:
                holder.idle_asked_at = now
                holder.owner.give_up(1)


__all__ = ["LocalLimiter", "Slot"]
