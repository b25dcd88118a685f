"""The ledger: whatever happens in whatever order, the books agree; nobody waits for the lock to give back."""

from __future__ import annotations

import gc
import math
import threading
import weakref
from collections.abc import Callable
from typing import Any

import jetsocket.ledger
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from jetsocket.ledger import Ledger
from jetsocket.permits import Permit

from jetsocket.config import ConnectionPoolConfig
from jetsocket.entry import Entry
from jetsocket.exceptions import InvalidStateError, PoolClosedError
from jetsocket.idle import IdleConnections
from jetsocket.uris import parse
from jetsocket.wire.websocket import WebSocket
from tests.servers import wait_until

URIS = ("ws://a.example/", "ws://b.example/", "ws://c.example/x")
CAP = 3
IDLE_FOR = 60.0


def new_ledger(cap: int = CAP, **fields: Any) -> Ledger:
    config = ConnectionPoolConfig(max_connections=cap, max_idle_time=IDLE_FOR, **fields)
    return Ledger(config, "books", close_timeout=5.0)


def new_entry(uri: str = URIS[0]) -> Entry:
    return Entry(parse(uri), WebSocket(), math.inf)


def hand_out(ledger: Ledger, permit: Permit) -> None:
    """The lease is the borrower's."""
    permit.lent = True
    ledger.lent.add(permit)


def borrow(ledger: Ledger, uri: str = URIS[0]) -> Permit:
    """A permit that is lent a new connection, or an idle one."""
    permit = Permit()
    if ledger.enter(permit, new_entry(uri).key, False) is None:
        ledger.open_slot(permit, new_entry(uri))
        ledger.room_made(permit)
        assert permit.entry is not None
        ledger.opened(permit.entry)
    hand_out(ledger, permit)
    return permit


def wait_in_line(ledger: Ledger) -> Permit:
    permit = Permit()
    ledger.enter(permit, new_entry().key, True)
    assert permit.wake is not None and not permit.held
    return permit


def give_back(ledger: Ledger, permit: Permit, reason: str | None = None, *, gone: bool = False) -> bool:
    if not ledger.claim(permit):
        return False
    permit.reason, permit.gone = reason, gone
    ledger.give_back(permit)
    return True


# --- whatever happens in whatever order


class LedgerMachine(RuleBasedStateMachine):
    """Every step that a pool or a housekeeper takes, one at a time in any order, beside a plain model."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.real_clock = jetsocket.ledger.monotonic
        jetsocket.ledger.monotonic = lambda: self.now
        self.ledger = new_ledger(max_waiting=4)
        self.asked: list[tuple[Permit, str]] = []  # a permit, and no connection yet
        self.opening: list[Permit] = []
        self.lent: list[Permit] = []
        self.line: list[tuple[Permit, str]] = []
        self.in_care: list[Entry] = []
        self.open: set[Entry] = set()  # as the server counts
        self.closed = False

    def teardown(self) -> None:
        jetsocket.ledger.monotonic = self.real_clock

    # --- rules

    @rule(uri=st.sampled_from(URIS), may_wait=st.booleans())
    def acquire(self, uri: str, may_wait: bool) -> None:
        permit, key = Permit(), new_entry(uri).key
        if self.closed:
            with pytest.raises(PoolClosedError):
                self.ledger.enter(permit, key, may_wait)
            return
        room = len(self.holders) < CAP
        entry = self.ledger.enter(permit, key, may_wait)
        assert permit.held == room
        if not permit.held:
            assert (permit.wake is not None) == (may_wait and len(self.line) < 4)
            if permit.wake is not None:
                self.line.append((permit, key))
        elif entry is None:
            self.asked.append((permit, uri))
        else:
            self.lend(permit, entry, key)

    @precondition(lambda self: self.asked and not self.closed)
    @rule(data=st.data())
    def begin_to_open(self, data: st.DataObject) -> None:
        permit, uri = self.pick(data, self.asked)
        entry = new_entry(uri)
        self.ledger.open_slot(permit, entry)
        self.opening.append(permit)
        if permit.room is not None:
            assert permit.room in self.open
            assert permit.room not in {holder.entry for holder in self.holders}
            if permit.room in self.in_care:
                self.in_care.remove(permit.room)
            self.open.remove(permit.room)
            self.ledger.room_made(permit)
        self.open.add(entry)

    @precondition(lambda self: self.opening)
    @rule(data=st.data())
    def open_it(self, data: st.DataObject) -> None:
        permit = self.pick(data, self.opening)
        entry = permit.entry
        assert entry is not None
        entry.created = self.now
        self.ledger.opened(entry)
        self.lend(permit, entry, entry.key)

    @precondition(lambda self: self.opening)
    @rule(data=st.data())
    def fail_to_open(self, data: st.DataObject) -> None:
        permit = self.pick(data, self.opening)
        assert permit.entry is not None
        self.open.remove(permit.entry)
        self.ledger.open_failed(OSError("refused"))
        permit.reason, permit.gone = "connect failed", True
        self.ledger.give_back(permit)
        self.next_in_line()

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def give_up_before_opening(self, data: st.DataObject) -> None:
        permit, _ = self.pick(data, self.asked)
        permit.reason, permit.gone = "connect failed", True
        self.ledger.give_back(permit)
        self.next_in_line()

    @precondition(lambda self: self.lent)
    @rule(data=st.data(), reason=st.sampled_from([None, None, "discarded", "closed"]), gone=st.booleans())
    def release(self, data: st.DataObject, reason: str | None, gone: bool) -> None:
        permit = self.pick(data, self.lent)
        entry = permit.entry
        assert entry is not None
        assert give_back(self.ledger, permit, reason, gone=gone and reason is not None)
        assert not give_back(self.ledger, permit), "released twice"
        if gone and reason is not None:
            self.open.remove(entry)
        elif reason is None and not self.closed:
            assert entry in self.ledger.idle
        self.next_in_line()

    @precondition(lambda self: self.lent)
    @rule(data=st.data())
    def release_while_somebody_is_inside(self, data: st.DataObject) -> None:
        permit = self.pick(data, self.lent)
        with self.ledger.lock:
            assert give_back(self.ledger, permit)
            assert permit.held, "booked by somebody who was not inside"
        self.ledger.settle()
        assert not permit.held
        self.next_in_line()

    @precondition(lambda self: self.lent and not self.closed)
    @rule(data=st.data(), gone=st.booleans())
    def exchange_a_stale_one(self, data: st.DataObject, gone: bool) -> None:
        permit = self.pick(data, self.lent)
        entry = permit.entry
        assert entry is not None
        self.ledger.lent.discard(permit)
        permit.lent, permit.gone = False, gone
        self.ledger.swap(permit, "closed")
        if gone:
            self.open.remove(entry)
        found = self.ledger.take_idle(permit, entry.key)
        if found is None:
            self.asked.append((permit, entry.target.uri))
        else:
            self.lend(permit, found, entry.key)

    @precondition(lambda self: self.line)
    @rule(data=st.data())
    def stop_waiting(self, data: st.DataObject) -> None:
        permit, _ = self.pick(data, self.line)
        assert not self.ledger.leave_line(permit)

    @precondition(lambda self: len(self.ledger.idle))
    @rule(data=st.data())
    def look_after_one(self, data: st.DataObject) -> None:
        entry = data.draw(st.sampled_from(list(self.ledger.idle)))
        assert self.ledger.take_if_idle(entry)
        assert not self.ledger.take_if_idle(entry), "owned twice"
        self.in_care.append(entry)

    @precondition(lambda self: self.in_care)
    @rule(data=st.data(), fit=st.booleans(), gone=st.booleans())
    def end_of_care(self, data: st.DataObject, fit: bool, gone: bool) -> None:
        entry = self.pick(data, self.in_care)
        if fit:
            self.ledger.put_back(entry)
            assert (entry in self.ledger.idle) == (not self.closed)
        else:
            self.ledger.retire(entry, "check failed", gone=gone)
            if gone:
                self.open.remove(entry)

    @precondition(lambda self: not self.closed)
    @rule(seconds=st.sampled_from([1.0, 30.0, IDLE_FOR]))
    def time_goes_by(self, seconds: float) -> None:
        self.now += seconds
        should = {entry for entry in self.ledger.idle if self.now - entry.idle_since >= IDLE_FOR}
        overdue = self.ledger.idle_too_long(self.now)
        assert set(overdue) == should
        for entry in overdue:
            self.ledger.retire(entry, "idle", gone=False)

    @rule()
    def finish_goodbyes(self) -> None:
        said = self.ledger.say_goodbye()
        self.ledger.forget_closed(said)
        self.open -= set(said)

    @precondition(lambda self: not self.closed)
    @rule()
    def warm_one(self) -> None:
        permit, entry = Permit(), new_entry(URIS[1])
        if self.ledger.enter_for_new(permit, entry):
            assert len(self.open) < CAP and not self.line
            self.open.add(entry)
            self.opening.append(permit)

    @rule()
    def recount(self) -> None:
        assert self.ledger.recount() == 0

    @precondition(lambda self: not self.closed and self.ledger.stats().total_connections > 3)
    @rule()
    def close(self) -> None:
        taken = self.ledger.close()
        self.closed = True
        assert taken is not None
        assert not set(taken[0]) & set(taken[1])
        assert set(taken[0]) | set(taken[1]) == self.open
        assert self.ledger.close() is None
        for permit, _ in self.line:
            assert permit.wake is not None and not permit.wake.locked()

    # --- invariants

    @invariant()
    def the_books_agree(self) -> None:
        assert list(self.ledger.faults()) == []

    @invariant()
    def the_cap_is_hard(self) -> None:
        assert self.ledger.entries == self.open
        assert len(self.open) <= CAP

    @invariant()
    def permits_out_are_live_leases(self) -> None:
        assert self.ledger.permits.held == set(self.holders)
        stats = self.ledger.stats()
        assert stats.active_connections == len(self.lent)
        assert stats.waiting == len(self.line)

    @invariant()
    def nothing_is_lent_twice(self) -> None:
        entries = [permit.entry for permit in self.lent]
        assert len(entries) == len(set(entries)) and None not in entries

    @invariant()
    def idle_ones_stand_in_order_of_age(self) -> None:
        since = [entry.idle_since for entry in self.ledger.idle]
        assert since == sorted(since)

    # --- helpers

    @property
    def holders(self) -> list[Permit]:
        return [permit for permit, _ in self.asked] + self.opening + self.lent

    @staticmethod
    def pick(data: st.DataObject, things: list[Any]) -> Any:
        return things.pop(data.draw(st.integers(0, len(things) - 1)))

    def lend(self, permit: Permit, entry: Entry, key: str) -> None:
        assert entry.key == key and permit.entry is entry
        hand_out(self.ledger, permit)
        self.lent.append(permit)

    def next_in_line(self) -> None:
        """A permit came back: whoever has waited longest has it."""
        if not self.line:
            return
        permit, key = self.line.pop(0)
        assert permit.held and permit.wake is not None and not permit.wake.locked()
        assert not any(other.held for other, _ in self.line)
        entry = None if self.closed else self.ledger.take_idle(permit, key)
        if entry is None:
            self.asked.append((permit, next(uri for uri in URIS if new_entry(uri).key == key)))
        else:
            self.lend(permit, entry, key)


def test_the_books_agree_whatever_happens_in_whatever_order() -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )


# --- giving back never waits for the lock


def inside_a_step(ledger: Ledger, do: Callable[[], object]) -> None:
    """Run `do` in the midst of one of the ledger's steps, in this thread, as a finalizer would."""
    idle = ledger.idle  # a step that is interrupted is mended later, and may get another one

    def interrupted(key: str) -> int:
        do()
        return IdleConnections.count(idle, key)

    idle.count = interrupted  # type: ignore[method-assign]  # no other way in
    try:
        ledger.idle_count("")
    finally:
        del idle.count


def test_what_comes_back_while_another_thread_is_inside_is_booked_by_that_thread() -> None:
    ledger = new_ledger(cap=1)
    permit = borrow(ledger)
    waiter = wait_in_line(ledger)
    inside, go_on = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        assert go_on.wait(5)

    holder = threading.Thread(target=inside_a_step, args=(ledger, stay))
    holder.start()
    assert inside.wait(5)
    assert give_back(ledger, permit)  # would hang here if it waited
    assert permit.held and not waiter.held
    go_on.set()
    assert waiter.wake is not None and waiter.wake.acquire(timeout=5)
    holder.join(5)
    assert waiter.held and not permit.held


def test_what_came_back_is_booked_before_anything_else_is_done() -> None:
    """Whoever was to book it has let go of the lock, and was stopped before it came to that."""
    ledger = new_ledger(cap=1)
    permit = borrow(ledger)
    with ledger.lock:
        assert give_back(ledger, permit)
    assert permit.held
    entry, again = permit.entry, Permit()
    assert entry is not None
    assert ledger.enter(again, entry.key, False) is entry
    assert again.held
    assert list(ledger.faults()) == []


def test_what_the_thread_inside_gives_back_itself_is_booked_when_it_leaves() -> None:
    ledger = new_ledger(cap=1)
    permit = borrow(ledger)
    waiter = wait_in_line(ledger)
    held_inside = []

    def finalizer() -> None:
        give_back(ledger, permit)
        held_inside.append(permit.held)

    inside_a_step(ledger, finalizer)
    assert held_inside == [True]
    assert waiter.held and not permit.held
    assert list(ledger.faults()) == []


def test_what_came_back_counts_as_idle_before_it_is_booked() -> None:
    ledger = new_ledger()
    permit = borrow(ledger)
    assert permit.entry is not None
    key = permit.entry.key
    with ledger.lock:  # as another thread's step
        give_back(ledger, permit)
    assert permit.held
    assert ledger.idle_count(key) == 1  # or prewarm() would open one too many
    assert not permit.held
    assert ledger.idle_count(key) == 1


def test_a_step_that_raises_books_what_came_back_meanwhile() -> None:
    ledger = new_ledger(cap=1)
    permit = borrow(ledger)

    def finalizer() -> None:
        give_back(ledger, permit)
        raise RuntimeError("struck")

    with pytest.raises(RuntimeError, match="struck"):
        inside_a_step(ledger, finalizer)
    assert not permit.held


@pytest.mark.parametrize("what", ["enter", "close", "stats"])
def test_what_would_wait_for_its_own_thread_is_refused(what: str) -> None:
    ledger = new_ledger()
    calls: dict[str, Callable[[], object]] = {
        "enter": lambda: ledger.enter(Permit(), "", True),
        "close": ledger.close,
        "stats": ledger.stats,
    }

    def finalizer() -> None:
        with pytest.raises(InvalidStateError, match="books"):
            calls[what]()

    inside_a_step(ledger, finalizer)
    assert not ledger.closed


def test_returns_from_many_threads_at_once_are_all_booked() -> None:
    ledger = new_ledger(cap=8)
    turns = [0] * 8

    def borrower(number: int) -> None:
        for _ in range(300):
            permit = borrow(ledger, URIS[number % 3])
            turns[number] += give_back(ledger, permit, None if number % 2 else "discarded", gone=True)

    threads = [threading.Thread(target=borrower, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert turns == [300] * 8
    # Nobody is left who could book anything: it must have been done.
    assert not ledger.returned and not ledger.permits.held
    assert list(ledger.faults()) == []
    assert ledger.stats().discards["discarded"] == 1200


# --- what an interrupt may lose, and how it is found


def test_a_permit_that_the_semaphore_lost_comes_back_with_a_recount() -> None:
    ledger = new_ledger()
    for _ in range(2):
        assert ledger.permits._semaphore.acquire(blocking=False)  # struck between taking and noting
    borrow(ledger)
    waiter = wait_in_line(ledger)
    assert ledger.recount() == 2
    assert waiter.held and waiter.wake is not None and not waiter.wake.locked()
    assert ledger.recount() == 0
    borrow(ledger)
    assert not ledger.permits.take(Permit())


def test_a_permit_that_was_given_back_by_half_is_counted_once() -> None:
    ledger = new_ledger(cap=1)
    permit = borrow(ledger)
    ledger.permits.held.discard(permit)  # struck between noting and releasing
    assert ledger.recount() == 1
    assert give_back(ledger, permit, "discarded", gone=True)
    assert ledger.recount() == 0
    assert ledger.permits.take(Permit()) and not ledger.permits.take(Permit())


def test_a_connection_that_an_interrupt_left_nowhere_is_closed() -> None:
    ledger = new_ledger(cap=1)
    permit = borrow(ledger)
    lost = permit.entry
    permit.entry = None  # struck between taking it from the permit and putting it anywhere
    assert give_back(ledger, permit)
    assert ledger.faults()
    ledger.recount()
    assert ledger.faults() == []
    assert ledger.say_goodbye() == [lost]
    ledger.forget_closed(ledger.say_goodbye())
    borrow(ledger)
    assert ledger.faults() == []


# --- age and room


def test_put_back_keeps_age(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(jetsocket.ledger, "monotonic", lambda: now)
    ledger = new_ledger()
    permits = [borrow(ledger) for _ in range(3)]
    entries = [permit.entry for permit in permits]
    for permit in permits:
        now += 10.0
        give_back(ledger, permit)
    for entry in (entries[0], entries[1]):
        assert entry is not None and ledger.take_if_idle(entry)
        ledger.put_back(entry)
    assert list(ledger.idle) == entries
    assert ledger.idle_too_long(now + IDLE_FOR - 20.0) == entries[:1]
    assert borrow(ledger).entry is entries[2]  # the most recently used one


def test_the_oldest_idle_connection_makes_room_whatever_its_uri() -> None:
    ledger = new_ledger()
    permits = [borrow(ledger, uri) for uri in URIS]
    oldest = permits[1].entry
    for number in (1, 2, 0):
        give_back(ledger, permits[number])
    permit = Permit()
    ledger.enter(permit, "ws://d.example/", False)
    ledger.open_slot(permit, new_entry("ws://d.example/"))
    assert permit.room is oldest


def test_ten_thousand_uris_leave_nothing_behind() -> None:
    ledger = new_ledger(cap=2)
    seen = weakref.WeakSet()  # type: ignore[var-annotated]
    for number in range(10_000):
        permit = borrow(ledger, f"ws://a.example/{number}")
        seen.add(permit)
        give_back(ledger, permit)
    del permit
    gc.collect()
    assert len(ledger.entries) == 2 == len(ledger.idle.keys)
    assert not seen


def test_the_last_return_wakes_whoever_drains() -> None:
    ledger = new_ledger()
    permits = [borrow(ledger), borrow(ledger)]
    waiter = ledger.drain()
    assert waiter is not None
    give_back(ledger, permits[0])
    assert not waiter.acquire(blocking=False)
    give_back(ledger, permits[1])
    assert waiter.acquire(timeout=5)
    wait_until(lambda: not ledger.permits.held)
    assert ledger.drain() is None
