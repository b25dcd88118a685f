"""The state of a pool in random steps, struck at random bytecodes: nothing is lost, and all lists agree.

The state does no I/O, so its connections are stand-ins here. What the threads of a pool do with it is done in
turn: borrowers acquire, wait, release and drop leases, openers take up orders, the housekeeper scans for what
was lost.

Also tests: `fields`, `slots`, `moves`, `planning`, `repair`, `dialling`, `limiting`, `housekeeping`.
"""

from __future__ import annotations

import gc
import linecache
import os
import random
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from functools import partial
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionPoolConfig, PoolClosedError
from jetsocket import quotas as quotas_module
from jetsocket.borrower import UNTIL_BOOKED, Borrower
from jetsocket.clock import monotonic
from jetsocket.connection_states import LENT
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry, key_of
from jetsocket.exceptions import ConnectionError
from jetsocket.limits import Limiter
from jetsocket.quotas import Grant, Quota, Quotas
from jetsocket.state import State
from jetsocket.state.locking import TORN
from jetsocket.uris import parse
from tests.books import faults_in
from tests.moments import changes_what_is_handled

TARGETS = [parse(f"ws://h/{number}") for number in range(3)]
NEVER = float("inf")
PACKAGE = os.path.dirname(jetsocket.__file__)
SEEDS = int(os.environ.get("JETSOCKET_SEEDS", "2000"))  # of the long form


class Reader:
    received = 0


class Wire:
    """What the state asks of a connection."""

    messages_sent = messages_received = bytes_out = bytes_in = 0
    failure = None
    reader = Reader()


class Struck(BaseException):
    """An exception that came from outside, as Ctrl-C does."""


class Lease:
    """What a borrower holds; the borrower does not keep it alive."""

    def __init__(self, number: int) -> None:
        self.borrower = Borrower()
        self.borrower.target = TARGETS[number]
        self.borrower.key = key_of(TARGETS[number])
        self.borrower.lease = weakref.ref(self)

    @property
    def is_served(self) -> bool:
        return self.borrower.entry is not None


class Strike:
    """Raises at the so-manieth bytecode or line of the state's code, or of the semaphore's.

    But not where the lock is taken and given back: CPython runs signal handlers behind calls, where functions
    begin and where loops jump back, and no such place is between a `with`, its lock, and its block; nor at a
    `try`, which does nothing, and which the compiler leaves out of the block that it is in.
    """

    def __init__(self, left: int, event: str) -> None:
        self.left = left
        self.event = event

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        file = frame.f_code.co_filename
        if file == quotas_module.__file__:  # outside of the state: what it does is its own
            return None
        if not (file.startswith(PACKAGE) or file == threading.__file__ or frame.f_code in STRUCK_HERE):
            return None
        frame.f_trace_opcodes = True
        return self.step

    def step(self, frame: FrameType, event: str, arg: Any) -> Any:
        if event == self.event and not is_at_the_lock(frame) and not changes_what_is_handled(frame):
            self.left -= 1
            if self.left <= 0:
                sys.settrace(None)
                raise Struck(f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}")
        return self.step


def is_at_the_lock(frame: FrameType) -> bool:
    number: int | None = frame.f_lineno  # None: an instruction that stands for no line
    if number is None:
        return True
    line = linecache.getline(frame.f_code.co_filename, number).strip()
    return line in ("with self.lock:", "try:")


def acquire(state: State, lease: Lease, may_wait: bool) -> bool:
    """What an acquire does to the state; whether it stands in line."""
    if state.take(lease.borrower) is not None:
        return False
    return state.enter(lease.borrower, may_wait).is_waiting


def give_back(state: State, borrower: Borrower, reason: str | None, gone: bool) -> None:
    """What a release does to it."""
    if state.claim(borrower):
        for _ in range(10):  # to judge what it did takes a while
            borrower.reason = "interrupted"
        borrower.reason, borrower.gone = reason, gone
        borrower.lent_for = UNTIL_BOOKED if reason is None else 0.1
        state.come_back(borrower)


STRUCK_HERE = {acquire.__code__, give_back.__code__}


class Few(Limiter):
    """A limiter in memory."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.given = 0
        self.out: set[Hashable] = set()

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        if len(self.out) >= self.most:
            return None
        self.given += 1
        self.out.add(self.given)
        return self.given

    def release(self, token: Hashable) -> None:
        self.out.remove(token)  # KeyError the second time


class Model:
    """A pool without I/O: its state, and all that its threads hold."""

    def __init__(self, seed: int, strikes: float = 0.2, *, limited: bool = False) -> None:
        self.random = rnd = random.Random(seed)
        self.strikes = strikes
        self.struck = 0
        self.last = ""
        self.state = State(
            ConnectionPoolConfig(
                max_connections=rnd.choice([1, 2, 3, 5]),
                max_connecting=rnd.choice([1, 2, 8]),
                max_per_uri=rnd.choice([None, None, 1, 2]),
                connect_cooldown=rnd.choice([0.0, 0.0, 0.01]),
                max_waiting=rnd.choice([None, None, 0, 3]),
            ),
            f"model-{seed}",
            1.0,
        )
        self.leases: list[Lease] = []
        self.waiting: list[Lease] = []
        self.kept: list[Lease] = []  # released, or struck: the user refers to them still
        self.dialling: list[tuple[Dial, Entry]] = []
        self.limiter: Few | None = None
        if limited:
            self.limiter = Few(rnd.choice([0, 1, 2, 3]))
            self.state.quotas = Quotas(self.limiter, lambda: None)

    # --- what threads do

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it, and strike it now and then; Struck instead of what it returns."""
        if self.random.random() >= self.strikes:
            return function(*args)
        return self.strike(150, function, *args)

    def strike(self, within: int, function: Callable[..., Any], *args: Any) -> Any:
        """Call it, and strike it within so many events, if it has as many."""
        sys.settrace(Strike(self.random.randrange(1, within), self.random.choice(["opcode", "line"])))
        try:
            return function(*args)
        except Struck as struck:
            self.struck += 1
            self.last = str(struck)
            return Struck
        finally:
            sys.settrace(None)

    def acquire(self) -> None:
        lease = Lease(self.random.randrange(len(TARGETS)))
        outcome = self.call(acquire, self.state, lease, self.random.random() < 0.8)
        if outcome is Struck:
            self.give_up(lease)
        elif outcome:
            self.waiting.append(lease)
        elif lease.is_served:
            self.leases.append(lease)

    def give_up(self, lease: Lease) -> None:
        """The thread was struck. What it does then may be struck, too: then only its lease tells of it."""
        if self.random.random() < 0.5:
            self.state.claim(lease.borrower)
            self.state.come_back(lease.borrower)

    def release(self) -> None:
        if self.leases:
            lease = self.take_one(self.leases)
            reason = self.random.choice([None, None, None, "unbalanced"])
            self.call(give_back, self.state, lease.borrower, reason, self.random.random() < 0.5)
            if self.random.random() < 0.5:  # the user refers to it still
                (self.leases if lease.borrower in self.state.lent else self.kept).append(lease)

    def drop(self) -> None:
        if self.leases:
            self.take_one(self.leases)

    def leave(self) -> None:
        if self.waiting:
            lease = self.take_one(self.waiting)
            if self.call(self.state.leave_line, lease.borrower) is Struck:
                self.give_up(lease)
            elif lease.is_served:
                self.leases.append(lease)

    def refuse(self) -> None:
        """A connection is found stale before its borrower gets it."""
        if self.leases:
            lease = self.take_one(self.leases)
            entry, gone = lease.borrower.entry, self.random.random() < 0.5

            def refuse() -> Any:
                return self.state.refuse(lease.borrower, entry, "closed", gone=gone, may_wait=True)

            outcome = self.call(refuse)
            if outcome is Struck:
                self.give_up(lease)
            elif outcome.is_waiting:
                self.waiting.append(lease)
            elif outcome.entry is not None:
                self.leases.append(lease)

    def begin_dial(self) -> None:
        dial = self.state.next_dial(is_new=False)
        if dial is None:
            self.state.unpark(stay=False)
            return
        self.work_on(dial, self._begin)

    def _begin(self, dial: Dial) -> None:
        quotas = self.state.quotas
        if quotas is not None and not self._has_grant(dial, quotas.all[0]):
            return
        if dial.room is not None:
            self.state.room_is_closed(dial)
        entry = Entry(dial.target, Wire())  # type: ignore[arg-type]  # a stand-in
        if self.state.begin(dial, entry, NEVER):
            self.dialling.append((dial, entry))

    def _has_grant(self, dial: Dial, quota: Quota) -> bool:
        """What `limiter_calls.get_grant` does; False: the dial is over, or waits."""
        state = self.state
        while True:
            if not state.asks_limiter(dial, quota, NEVER):
                return False
            if dial.room is not None and dial.room.grant is not None:
                state.room_is_closed(dial)
            if dial.grant is not None:
                return True
            if (grant := quota.acquire(0, bool)) is not None:
                return self._takes(dial, grant)
            if state.none_for(dial, quota) != "close room":
                return False
            state.room_is_closed(dial)

    def _takes(self, dial: Dial, grant: Grant) -> bool:
        try:
            return self.state.got_grant(dial, grant)
        except BaseException:
            sys.settrace(None)
            self.state.give_back(grant)
            raise

    def end_wait(self) -> None:
        """A dial has waited for the limiter."""
        for quota, dial in list(self.state.asking.items()):
            self.work_on(dial, self._waited, quota)

    def _waited(self, dial: Dial, quota: Quota) -> None:
        if not dial.is_wanted or self.random.random() < 0.1:
            self.state.drop_dial(dial)
        elif (grant := quota.acquire(0, bool)) is not None and self._takes(dial, grant):
            self._begin(dial)

    def mind_limiter(self) -> None:
        """The housekeeper reads what the limiter wants; a worker gives back what is not needed."""
        if self.limiter is None or self.state.quotas is None:
            return
        quota = self.state.quotas.all[0]
        what = self.random.choice(["release", "release", "give up", "take back", "lose", "other limit"])
        if what == "give up":
            returned = self.random.random() < 0.5
            self.call(partial(self.state.give_up, quota, self.random.choice([1, 2]), returned=returned))
        elif what == "take back":
            self.call(partial(self.state.give_up, quota, 0, returned=False))
        elif what == "lose" and self.limiter.out:
            entry = self.call(self.state.lose, quota, self.random.choice(sorted(self.limiter.out)))  # type: ignore[type-var]  # they are numbers
            if isinstance(entry, Entry):
                self.call(self.state.slot_is_free, entry)
        elif what == "other limit":
            self.limiter.most = self.random.choice([0, 1, 2, 3])
        self.release_grants()

    def release_grants(self) -> None:
        while self.state.spent:
            grant = self.state.spent.popleft()
            grant.quota.release(grant)

    def end_dial(self) -> None:
        if self.dialling:
            dial, entry = self.take_one(self.dialling)
            if self.random.random() < 0.8:
                self.work_on(dial, self._opened, entry)
            else:
                self.work_on(dial, self._failed, entry)

    def _opened(self, dial: Dial, entry: Entry) -> None:
        if not self.state.opened(dial, entry):
            self.state.drop_dial(dial)

    def _failed(self, dial: Dial, entry: Entry) -> None:
        if self.random.random() < 0.3 and self.state.attempt_failed(dial, entry, ConnectionError("again")):
            self._begin(dial)
        else:
            self.state.failed(dial, entry, ConnectionError("for good"))

    def work_on(self, dial: Dial, work: Callable[..., None], *args: Any) -> None:
        """As `Opening.open` does: whatever strikes it, the line must not wait for this dial."""
        if self.call(work, dial, *args) is Struck:
            self.dialling = [each for each in self.dialling if each[0] is not dial]
            if not dial.is_over:
                self.state.failed(dial, dial.entry, ConnectionError("struck"))

    def close_some(self) -> None:
        """The housekeeper has closed some of those that are closing."""
        entries = self.state.closing_entries()
        self.call(self.state.forget, entries[: self.random.randrange(len(entries) + 1)])

    def check(self) -> None:
        for entry in list(self.state.idle)[:1]:
            if self.call(self.state.take_for_check, entry) and entry.place == "checking":
                if self.random.random() < 0.7:
                    self.call(self.state.put_back, entry)
                if entry.place == "checking":
                    self.state.retire_if_idle(entry, "check failed")

    def suspect(self) -> None:
        self.call(self.state.suspect, key_of(self.random.choice(TARGETS)), NEVER)
        for entry in self.state.suspects():
            (self.state.put_back if self.random.random() < 0.5 else self.retire)(entry)

    def retire(self, entry: Entry) -> None:
        self.call(self.state.retire_if_idle, entry, "closed")

    def plan(self) -> None:
        self.call(self.state.plan)

    def others(self) -> None:
        """What is done seldom."""
        target = self.random.choice(TARGETS)
        key = key_of(target)
        config = replace(self.state.config, max_connections=self.random.choice([1, 2, 3, 5]))
        what: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
            (self.state.clear, (self.random.choice([None, key]),)),
            (self.state.idle_too_long, (1e18,)),
            (self.state.resize, (config,)),
            (self.state.warm, (key, target, 2, 4)),
            (self.state.keep, (key, target, self.random.choice([0, 1, 2]))),
            (self.state.fill_floors, ()),
        ]
        function, args = self.random.choice(what)
        self.call(function, *args)

    def take_one(self, some: list[Any]) -> Any:
        return some.pop(self.random.randrange(len(some)))

    # --- what finds what was lost

    def scan(self) -> None:
        """What the housekeeper does within a second: no thread is in the middle of anything here."""
        assert not self.state.lock.locked(), f"it was struck at {self.last}"
        while self.strikes and self.state.condition == TORN and self.random.random() < 0.5:
            self.strike(1000, self.state.open_entries)  # what puts it right may be struck as well
        self.state.settle()
        self.state.open_entries()  # a whole step puts right what the last one left half-done
        for borrower in self.state.dropped():
            was_lent = self.state.claim(borrower)
            if was_lent or borrower.entry is None or borrower.entry.borrower is not borrower:
                self.state.take_over(borrower, "dropped")
        for borrower in self.state.unreturned():
            self.state.take_over(borrower, "interrupted")
        for lease in [lease for lease in self.waiting if lease.is_served]:
            self.waiting.remove(lease)
            self.leases.append(lease)
        refused = [lease for lease in self.waiting if lease.borrower.error is not None]
        assert not any(lease.borrower.wake and lease.borrower.wake.locked() for lease in refused), self.last
        self.waiting = [lease for lease in self.waiting if lease not in refused]

    def wrong(self) -> list[str]:
        """What is wrong; nothing, ever."""
        found = list(faults_in(self.state))
        for lease in self.leases:
            entry = lease.borrower.entry
            if entry is None or entry.borrower is not lease.borrower or entry.place != LENT:
                found.append(f"a lease lost its connection: {entry}")
            if lease.borrower not in self.state.lent:
                found.append("a lease can't be released")
        found += ["a waiter was lost" for each in self.waiting if each.borrower not in self.state.line]
        if len(set(self.state.queued)) != len(self.state.queued):
            found.append("an order is queued twice")
        mine = {lease.borrower for lease in (*self.leases, *self.waiting)}
        for borrower in mine:
            has_been_told = borrower not in self.state.line
            if has_been_told and borrower.wake is not None and borrower.wake.locked():
                found.append("a waiter sleeps on")
        if self.limiter is not None:
            found += self.wrong_with_grants(self.limiter)
        lent_to = {entry.borrower for entry in self.state.entries if entry.place == LENT}
        if extra := {*self.state.lent, *self.state.line, *lent_to} - mine:
            found.append(f"{len(extra)} have or wait for a connection that no thread knows of")
        return found

    def wrong_with_grants(self, limiter: Few) -> Iterator[str]:
        state = self.state
        dials = [*state.dials, *state.asking.values()]
        held = [each.grant for each in [*state.entries, *dials] if each.grant is not None]
        if len(set(held)) != len(held):
            yield "a grant is held twice"
        lost = [grant for grant in held if grant.is_lost]
        held = [grant for grant in held if not grant.is_lost]
        if any(grant.is_back for grant in held) or set(held) & set(state.spent):
            yield "a grant is held that was given back"
        tokens = {grant.token for grant in [*lost, *held, *state.spent] if not grant.is_back}
        if tokens != limiter.out:
            yield f"{tokens} are known, {limiter.out} are out"
        if any(dial in state.dials for dial in state.asking.values()):
            yield "a dial waits for the limiter, and is being opened"
        if state.to_give_up != sum(quota.to_give_up for quota in state.quotas.all if state.quotas):
            yield "what is to be given up does not add up"

    # --- from beginning to end

    def run(self, steps: int) -> None:
        """Do so many steps, and look after each; then everybody leaves, and everything is as it began."""
        often = [self.acquire] * 4 + [self.release] * 4 + [self.begin_dial, self.end_dial] * 3
        seldom = [self.leave, self.close_some, self.drop, self.check, self.plan, self.refuse, self.suspect]
        if self.limiter is not None:
            seldom += [self.end_wait, self.mind_limiter] * 2
        for number in range(steps):
            what = self.random.choice([*often, *seldom, self.others])
            what()
            self.scan()
            wrong = self.wrong()
            assert not wrong, f"step {number}, {what.__name__}: {wrong}"
        self.end()

    def end(self) -> None:
        """Everybody leaves."""
        self.strikes = 0.0
        for target in TARGETS:
            self.state.keep(key_of(target), target, 0)
        while self.leases or self.waiting or self.dialling or self.state.dials or self.state.asking:
            self.end_wait()
            while self.waiting:
                self.leave()
            while self.leases:
                self.release()
            while self.dialling:
                dial, entry = self.dialling.pop()
                self.state.failed(dial, entry, ConnectionError("the end"))
            if self.state.dials:
                self.begin_dial()
            self.scan()
        for entry in self.state.open_entries():
            self.state.retire_if_idle(entry, "the end")
        self.state.forget(list(self.state.closing))
        self.release_grants()
        assert self.limiter is None or self.limiter.out == set()
        state, cap = self.state, self.state.config.max_connections
        assert self.wrong() == []
        assert (state.entries, state.lent, state.idle.keys, len(state.line)) == (set(), {}, [], 0)
        for _ in range(cap):
            assert state.slots.acquire(blocking=False), "a slot is lost"
        assert not state.slots.acquire(blocking=False), "there is a slot too many"


@pytest.fixture(autouse=True)
def no_collector(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Strikes come from here alone, in the same places each time."""
    monkeypatch.setattr("random.random", random.Random(0).random)  # jitter
    gc.disable()
    yield
    gc.enable()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(80))
def test_random_steps_that_are_struck_anywhere_lose_nothing(seed: int) -> None:
    model = Model(seed)
    model.run(150)
    assert model.struck > 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_under_a_limiter_nothing_is_lost_either(seed: int) -> None:
    for each in range(seed, seed + 4):
        Model(each, limited=True).run(150)


def test_under_a_limiter_without_strikes_nothing_has_to_be_found() -> None:
    for seed in range(12):
        Model(seed, strikes=0.0, limited=True).run(150)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_very_many_random_steps_lose_nothing() -> None:
    struck = 0
    for seed in range(1000, 1000 + SEEDS):
        model = Model(seed, limited=seed % 2 == 1)
        model.run(300)
        struck += model.struck
    assert struck > 10 * SEEDS


@pytest.mark.parametrize("scan", ["_rebuild", "unreturned", "dropped"])
def test_each_of_what_finds_what_was_lost_is_needed(scan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the test above would prove nothing."""
    monkeypatch.setattr(State, scan, lambda self: [])
    with pytest.raises((AssertionError, RuntimeError, KeyError)):
        for seed in range(24):
            Model(seed).run(150)


def test_without_strikes_nothing_has_to_be_found() -> None:
    for seed in range(12):
        model = Model(seed, strikes=0.0)
        model.drop = model.plan  # type: ignore[method-assign]
        rebuilt: list[bool] = []
        model.state._rebuild = lambda rebuilt=rebuilt: rebuilt.append(True)  # type: ignore[method-assign]
        model.run(150)
        assert not rebuilt


@pytest.mark.parametrize("seed", range(12))
def test_a_close_that_is_struck_is_made_good_by_the_next(seed: int) -> None:
    model = Model(seed)
    for _ in range(60):
        model.random.choice([model.acquire, model.acquire, model.begin_dial, model.end_dial, model.release])()
        model.scan()
    model.strikes = 1.0
    state = model.state
    model.call(state.close)
    model.strikes = 0.0
    _, out = state.close(again=True) or ([], [])
    for borrower in list(state.lent):
        assert state.claim(borrower)
        borrower.reason, borrower.gone = "pool closed", True
        state.come_back(borrower)
    assert {each for each in out if each.place == "lent"} == set()
    assert len(state.line) == 0
    assert all(lease.borrower.error for lease in model.waiting if not lease.is_served)
    for dial, entry in model.dialling:
        assert dial.is_over
        assert not state.opened(dial, entry)
        state.drop_dial(dial)
    state.forget(list(state.closing))
    state.forget([entry for entry in state.open_entries() if entry.place == "closing"])
    assert list(faults_in(state)) == []
    with pytest.raises(PoolClosedError):
        state.enter(Lease(0).borrower, True)


def opened(state: State, lease: Lease) -> tuple[Dial, Entry]:
    """Have a dial begin for this lease, which waits in line."""
    assert acquire(state, lease, True)
    dial = state.next_dial(is_new=False)
    assert dial is not None
    entry = Entry(dial.target, Wire())  # type: ignore[arg-type]  # a stand-in
    assert state.begin(dial, entry, 0.0)
    return dial, entry


def lent(state: State) -> tuple[Lease, Entry]:
    """Lend a new connection."""
    lease = Lease(0)
    dial, entry = opened(state, lease)
    assert state.opened(dial, entry)
    assert lease.borrower.entry is entry
    return lease, entry


@pytest.fixture
def state() -> State:
    return State(ConnectionPoolConfig(max_connections=2), "state", 1.0)


def test_a_connection_that_opens_while_its_dial_is_given_up_comes_too_late(state: State) -> None:
    """The housekeeper is about to cut it: no borrower may get it any more."""
    lease = Lease(0)
    dial, entry = opened(state, lease)
    assert state.overdue_dials(1.0) == [dial]
    assert not state.opened(dial, entry)
    state.failed(dial, entry, jetsocket.TimeoutError("late", operation="connect", timeout=1.0))
    assert lease.borrower.entry is None
    assert lease.borrower.error is not None
    assert (list(faults_in(state)), state.entries, state.idle.keys) == ([], set(), [])


def test_a_dial_that_is_struck_as_it_begins_has_no_connection_that_could_make_room(state: State) -> None:
    class Striking(set[Entry]):
        def add(self, _entry: Entry) -> None:
            raise Struck

    lease = Lease(0)
    assert state.enter(lease.borrower, may_wait=True).is_waiting
    dial = state.next_dial(is_new=False)
    assert dial is not None
    state.entries = Striking(state.entries)
    with pytest.raises(Struck):
        state.begin(dial, Entry(dial.target, Wire()), NEVER)  # type: ignore[arg-type]  # a stand-in
    state.entries = set(state.entries)
    state.open_entries()  # a whole step puts right what the last one left half-done
    assert dial.entry is None
    state.failed(dial, dial.entry, ConnectionError("struck"))
    assert list(faults_in(state)) == []


@pytest.mark.parametrize("where", ["end", "count_opening"])
def test_what_made_room_for_a_dial_whose_end_was_struck_is_closed_all_the_same(
    state: State, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Else its opener would be waited for, which has no more to do with it."""
    state.resize(ConnectionPoolConfig(max_connections=1))
    first, entry = lent(state)
    give_back(state, first.borrower, None, False)
    other = Lease(1)
    other.borrower.key += "/other"
    assert state.enter(other.borrower, may_wait=True).is_waiting
    dial = state.next_dial(is_new=False)
    assert dial is not None
    assert dial.room is entry
    assert state.closing_entries() == []  # it is the opener's to close

    def strike(*_: Any, **__: Any) -> None:
        raise Struck

    with monkeypatch.context() as struck, pytest.raises(Struck):
        target = Dial if where == "end" else state.idle
        struck.setattr(target, where, strike)
        state.drop_dial(dial)
    state.drop_dial(dial)
    assert dial.wait(0)
    assert state.closing_entries() == [entry]
    state.forget([entry])
    assert list(faults_in(state)) == []


def test_a_dial_that_never_began_counts_for_what_it_has_cost_another_uri(state: State) -> None:
    """Its caller was gone before a thread took it up, as on a busy machine; the next one has to wait."""
    state.resize(ConnectionPoolConfig(max_connections=1))

    def asks() -> tuple[Lease, Entry]:
        healthy, entry = lent(state)
        give_back(state, healthy.borrower, None, False)
        other = Lease(1)
        other.borrower.key += "/other"
        assert state.enter(other.borrower, may_wait=True).is_waiting
        return other, entry

    now = monotonic()
    key = f"{Lease(1).borrower.key}/other"
    state.troubles.note(key, ConnectionError("refused"), began=now - 60, now=now - 59, retry_after=None)
    other, entry = asks()
    dial = state.next_dial(is_new=False)
    assert dial is not None
    assert dial.room is entry
    state.leave_line(other.borrower)
    state.room_is_closed(dial)
    assert not state.begin(dial, Entry(dial.target, Wire()), NEVER)  # type: ignore[arg-type]  # a stand-in
    asks()
    assert state.next_dial(is_new=False) is None
    assert list(faults_in(state)) == []


def test_a_failure_is_counted_once_though_its_thread_comes_back_later(state: State) -> None:
    dial, entry = opened(state, Lease(0))
    state.failed(dial, entry, ConnectionError("given up"))
    state.failed(dial, entry, ConnectionError("its thread"))
    assert state.stats().connect_errors == 1
    assert str(state.last_connect_error) == "given up"


def test_a_dial_that_an_opener_takes_up_late_fails_as_one_with_those_ordered_beside_it(state: State) -> None:
    """On a busy machine it begins when they have failed; that is no second failure, which doubles a pause."""
    late = Lease(0)
    assert acquire(state, late, True)
    other = state.next_dial(is_new=False)
    assert other is not None
    dial, entry = opened(state, Lease(0))
    state.failed(dial, entry, ConnectionError("refused"))
    assert late.borrower.error is None  # another is under way
    entry = Entry(other.target, Wire())  # type: ignore[arg-type]  # a stand-in
    assert state.begin(other, entry, NEVER)
    state.failed(other, entry, ConnectionError("refused"))
    trouble = state.troubles.of(late.borrower.key)
    assert trouble is not None
    assert trouble.failures == 1


@pytest.mark.parametrize("set_aside", [False, True])
def test_a_borrower_whose_connection_is_stale_in_a_drained_pool_is_told_at_once(
    state: State, set_aside: bool
) -> None:
    lease, entry = lent(state)
    waiter = state.drain()
    assert waiter is not None
    with pytest.raises(PoolClosedError):
        if set_aside:
            state.set_aside(lease.borrower, entry, NEVER, may_wait=True)
        else:
            state.refuse(lease.borrower, entry, "closed", gone=True, may_wait=True)
    assert len(state.line) == 0
    state.come_back(lease.borrower)  # as `give_up` does
    assert waiter.acquire(blocking=False), "drain waits on"


def test_a_return_that_was_only_stopped_takes_nothing_from_the_next_borrower(state: State) -> None:
    """Its thread is stopped between the claim and the booking, is taken for struck, and goes on."""
    lease, entry = lent(state)
    assert state.claim(lease.borrower)
    assert state.unreturned() == [lease.borrower]
    assert state.take_over(lease.borrower, "interrupted") is entry
    lease.borrower.reason, lease.borrower.lent_for = None, UNTIL_BOOKED
    state.come_back(lease.borrower)
    assert entry.place == "closing"
    assert state.stats().acquires == 1
    assert list(faults_in(state)) == []


def test_what_another_borrower_has_by_now_is_not_taken_over(state: State) -> None:
    lease, entry = lent(state)
    give_back(state, lease.borrower, None, False)
    lease.borrower.entry = entry  # a strike has left it there
    other = Lease(0)
    acquire(state, other, False)
    assert other.borrower.entry is entry
    assert state.take_over(lease.borrower, "dropped") is None
    assert (entry.place, entry.borrower) == (LENT, other.borrower)


def test_a_wait_says_whether_it_was_roused() -> None:
    borrower = Borrower()
    borrower.wake = threading.Lock()
    borrower.wake.acquire()
    assert not borrower.wait(0.0)
    borrower.rouse()
    assert borrower.wait(0.0)


def test_an_opener_without_another_order_is_parked_in_the_step_that_hands_its_connection_over(
    state: State,
) -> None:
    """The caller waits for the opener to wait: a step of its own for that would hold it up."""
    lease, later = Lease(0), Lease(0)
    dial, entry = opened(state, lease)
    assert state.enter(later.borrower, may_wait=True).is_waiting
    assert state.opened(dial, entry, parks=True)
    assert not dial.parks  # there is an order
    assert state.parked == 0
    dial = state.next_dial(is_new=False)
    assert dial is not None
    entry = Entry(dial.target, Wire())  # type: ignore[arg-type]  # a stand-in
    assert state.begin(dial, entry, 0.0)
    assert state.opened(dial, entry, parks=True)
    assert dial.parks
    assert state.parked == 1
    state.close()
    state.wake_opener.get_nowait()  # it is woken
    assert state.unpark(stay=True) is None
    assert state.parked == 0
