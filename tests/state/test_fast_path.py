"""The two steps that nearly every lease is made of: how short the walk is, and what interrupts it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionPool, InvalidStateError, PoolExhaustedError
from jetsocket.borrower import UNTIL_BOOKED, Borrower
from jetsocket.state.fast_path import FastPath
from jetsocket.state.locking import BUSY, TORN
from tests.books import faults, state_of
from tests.conftest import Tls
from tests.servers import EchoServer

PACKAGE = Path(jetsocket.__file__).parent
MOST_CALLS = 14
MOST_FILES = {"acquire": 6, "release": 7}
CONDITIONS = {"torn": TORN, "busy": BUSY}
STEPS = {FastPath.take.__code__, FastPath.come_back.__code__}

Walk = list[tuple[str, str]]


@contextmanager
def walked() -> Iterator[Walk]:
    """Collect the file and name of each function of the package that is called."""
    walk: Walk = []

    def note(frame: FrameType, event: str, _arg: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and PACKAGE in path.parents:
            walk.append((path.relative_to(PACKAGE).as_posix(), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        yield walk
    finally:
        sys.setprofile(None)


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_acquire_and_release_walk_through_few_functions_and_files(
    secure: bool, request: pytest.FixtureRequest, make_pool: Callable[..., ConnectionPool], tls: Tls
) -> None:
    server: EchoServer = request.getfixturevalue("echo_tls" if secure else "echo")
    pool = make_pool(server, manager_kwargs={"ssl_context": tls.client_context})
    for _ in range(3):
        assert pool.request("/", {"id": 1}) == {"id": 1}
    with walked() as acquire:
        conn = pool.acquire("/")
    with walked() as release:
        conn.release()
    assert state_of(pool).stats().reuses == 3
    if not secure:  # TLS is asked for what it holds, too
        for name, walk in (("acquire", acquire), ("release", release)):
            assert len(walk) <= MOST_CALLS, (name, walk)
            assert len({file for file, _ in walk}) <= MOST_FILES[name], (name, walk)
    assert ("state/fast_path.py", "take") in acquire
    assert ("state/fast_path.py", "come_back") in release
    assert not faults(pool)


class Interrupter:
    """Runs something of the pool's at each line of the two steps, as a finalizer or signal handler may."""

    def __init__(self, pool: ConnectionPool, interrupt: Callable[[], object]) -> None:
        self.lock = state_of(pool).lock
        self.interrupt = interrupt
        self.inside = 0

    def __enter__(self) -> Interrupter:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_exc: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, _event: str, _arg: object) -> Any:
        return self._line if frame.f_code in STEPS else None

    def _line(self, _frame: FrameType, event: str, _arg: object) -> Any:
        if event == "line" and self.lock.locked():
            sys.settrace(None)
            self.inside += 1
            self.interrupt()
            sys.settrace(self._trace)
        return self._line


def test_what_interrupts_them_gets_an_error_and_no_hang(
    echo: EchoServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(echo)
    pool.acquire("/").release()

    def ask() -> None:
        with pytest.raises(InvalidStateError, match="interrupted"):
            pool.stats()

    def acquire() -> None:
        with pytest.raises(InvalidStateError, match="interrupted"):
            pool.acquire("/")

    with Interrupter(pool, acquire) as interrupter:
        pool.acquire("/").release()
    assert interrupter.inside
    with Interrupter(pool, ask) as interrupter:
        conn = pool.acquire("/")
        taken = interrupter.inside
        conn.release()
    assert taken > 5
    assert interrupter.inside - taken > 5
    assert not faults(pool)
    assert pool.stats().reuses == 2


def test_a_lease_that_comes_back_within_them_is_booked_by_them(
    echo: EchoServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(echo, max_connections=60)
    leases = [pool.acquire("/") for _ in range(60)]
    leases.pop().release()

    with Interrupter(pool, lambda: leases.pop().release()) as interrupter:
        conn = pool.acquire("/")
        conn.release()
    assert 5 < interrupter.inside < 60
    assert pool.stats().active_connections == len(leases)
    assert not faults(pool)
    for lease in leases:
        lease.release()


@pytest.mark.parametrize("what", ["torn", "busy", "returned", "locked", "waiting"])
def test_they_leave_what_is_unusual_to_the_other_steps(
    what: str, echo: EchoServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(echo)
    conn = pool.acquire("/")
    key = conn._borrower.key
    conn.release()
    state = state_of(pool)
    borrower, other = Borrower(), Borrower()
    borrower.key = other.key = key
    if what in CONDITIONS:
        state.condition = CONDITIONS[what]
    elif what == "returned":
        state.returned.append(other)
    elif what == "waiting":
        state.line.join(other)
        state.open_entries()
    if what == "locked":
        with state.lock:
            assert state.take(borrower) is None
    else:
        assert state.take(borrower) is None
    if what == "waiting":
        state.line.leave(other)
    state.open_entries()  # a whole step mends the rest
    entry = state.take(borrower)
    assert entry is not None
    assert entry.borrower is borrower
    assert state.claim(borrower)
    borrower.lent_for = UNTIL_BOOKED
    if what in CONDITIONS:
        state.condition = CONDITIONS[what]
    elif what == "locked":
        with state.lock:
            state.come_back(borrower)
            assert borrower.entry is not None
    elif what == "returned":
        state.returned.append(other)
    if what != "locked":
        state.come_back(borrower)
    state.settle()
    assert borrower.entry is None
    assert pool.stats().acquires == 2
    assert not faults(pool)


def test_take_finds_nothing_where_nothing_is_idle(
    echo: EchoServer, make_pool: Callable[..., ConnectionPool]
) -> None:
    pool = make_pool(echo, max_connections=1)
    with pool.acquire("/"), pytest.raises(PoolExhaustedError):
        pool.acquire("/", timeout=0)
    assert not faults(pool)
