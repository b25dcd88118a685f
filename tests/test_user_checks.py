"""The user's `check`: whatever it does, it costs no more than its connection and its thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.clock import monotonic
from jetsocket.workers import MOST_CHECKS
from tests.books import faults, state_of
from tests.servers import EchoServer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs in the tests; open at their end."""
    event = threading.Event()
    yield event
    event.set()


class Check:
    """A `check` that hangs while it is told to, until the gate opens."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.is_hanging = True
        self.begun: list[int] = []

    def __call__(self, conn: Any) -> None:
        self.begun.append(conn.id)
        if self.is_hanging:
            self.gate.wait(30)


def places(pool: ConnectionPool[Any]) -> list[str]:
    return sorted(each.place for each in pool.connections())


def checked_pool(make_pool: MakePool, server: EchoServer, check: Check, **fields: Any) -> ConnectionPool[Any]:
    return make_pool(server, check=check, health_check_interval=0.1, health_check_timeout=0.3, **fields)


@pytest.mark.slow
def test_one_that_hangs_costs_its_connection_and_its_thread(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    check = Check(gate)
    pool = checked_pool(make_pool, echo, check, max_connections=1)
    with caplog.at_level(logging.WARNING, "jetsocket.pool"):
        pool.request("/", 1, 5)
        wait_until(lambda: check.begun)
        began = monotonic()
        check.is_hanging = False
        assert pool.request("/", 2, 10) == 2  # with the only slot there is
        assert monotonic() - began < 5
        wait_until(lambda: "check() hangs in __call__ (test_user_checks.py:" in caplog.text)
        assert pool.stats().discards == {"check failed": 1}
        wait_until(lambda: len(check.begun) > 2)  # another thread goes on with checks
        assert faults(pool) == []
        gate.set()
        wait_until(lambda: "that hung has come back after" in caplog.text)
        assert pool.request("/", 3, 5) == 3


@pytest.mark.slow
def test_when_all_threads_hang_none_is_checked_and_the_pool_works(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    check = Check(gate)
    pool = checked_pool(make_pool, echo, check, max_connections=8)
    with caplog.at_level(logging.WARNING, "jetsocket.pool"):
        pool.prewarm("/", 8)
        wait_until(lambda: "connections are not checked until" in caplog.text)
        wait_until(lambda: places(pool) == ["idle"] * (8 - MOST_CHECKS))
        assert len(check.begun) == MOST_CHECKS
        assert pool.request("/", 1, 5) == 1
        assert faults(pool) == []
        checkers = [each for each in threading.enumerate() if each.name.startswith("jetsocket-check")]
        assert len(checkers) == MOST_CHECKS
        check.is_hanging = False
        gate.set()
        wait_until(lambda: len(check.begun) > MOST_CHECKS)  # and they are checked again
        wait_until(lambda: places(pool) == ["idle"] * (8 - MOST_CHECKS))


@pytest.mark.slow
def test_when_all_threads_hang_a_suspect_is_closed(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event
) -> None:
    check = Check(gate)
    pool = checked_pool(make_pool, echo, check, max_connections=6)
    pool.prewarm("/", 6)
    wait_until(lambda: len(check.begun) == MOST_CHECKS and places(pool) == ["idle"] * 3)
    state = state_of(pool)
    assert len(state.suspect(pool.connections()[0].uri, monotonic() + 1.0)) == 3
    wait_until(lambda: places(pool) == [])
    assert pool.request("/", 1, 5) == 1


def test_one_that_an_exception_struck_does_not_count_for_ever(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event
) -> None:
    check = Check(gate)
    check.is_hanging = False
    pool = checked_pool(make_pool, echo, check, max_connections=1)
    pool.request("/", 1, 5)
    wait_until(lambda: check.begun)
    lending: Any = pool._lending
    checking = lending.housekeeper._liveness.checking
    [entry] = state_of(pool).entries
    lost = checking._under_way[entry] = type("Run", (), {})()
    lost.began_at, lost.thread, lost.hangs = monotonic() - 10, threading.get_ident(), True
    wait_until(lambda: lost not in checking._under_way.values())
