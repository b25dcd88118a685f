"""A lock that no thread holds is found, and one that a thread holds for long is left alone."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import ConnectionClosedError, ConnectionPool, TimeoutError
from jetsocket.lock_watch import LockWatch
from tests.servers import EchoServer, wait_until


class Wire:
    """What is looked at of a connection."""

    def __init__(self) -> None:
        self.lock, self.readlock = threading.Lock(), threading.Lock()
        self.is_writing = self.is_composing = self.was_struck = False
        self.bytes_out = self.messages_sent = 0
        self.waits_since: float | None = None


@pytest.fixture
def wire() -> Wire:
    return Wire()


def watch(wire: Any) -> LockWatch:
    return LockWatch(wire)


@pytest.mark.parametrize("name", ["lock", "readlock"])
def test_a_lock_that_no_thread_holds_is_found_within_a_second(wire: Wire, name: str) -> None:
    looks = watch(wire)
    assert not looks.is_stuck(0.0)
    getattr(wire, name).acquire()
    assert not looks.is_stuck(0.5)
    assert looks.is_stuck(1.0)
    getattr(wire, name).release()
    assert not looks.is_stuck(1.5)


@pytest.mark.parametrize("name", ["lock", "readlock"])
def test_one_that_is_seen_held_once_is_not(wire: Wire, name: str) -> None:
    """However long ago the last look was: this machine may have slept."""
    looks = watch(wire)
    assert not looks.is_stuck(0.0)
    getattr(wire, name).acquire()
    assert not looks.is_stuck(1000.0)
    getattr(wire, name).release()
    assert not looks.is_stuck(1000.5)
    getattr(wire, name).acquire()
    assert not looks.is_stuck(1001.0)


def test_once_a_strike_was_seen_it_takes_less(wire: Wire) -> None:
    looks = watch(wire)
    wire.was_struck = True
    wire.lock.acquire()
    assert not looks.is_stuck(0.0)
    assert looks.is_stuck(0.15)
    wire.lock.release()
    assert not looks.is_stuck(0.2)
    assert not wire.was_struck


@pytest.mark.parametrize("sign", ["is_writing", "is_composing", "bytes_out", "messages_sent"])
def test_a_thread_that_sends_holds_it_for_as_long_as_it_takes(wire: Wire, sign: str) -> None:
    looks = watch(wire)
    wire.lock.acquire()
    for number in range(1, 20):
        setattr(wire, sign, number)
        assert not looks.is_stuck(number * 0.5)


def test_a_thread_that_waits_for_what_comes_holds_it_for_as_long_as_it_takes(wire: Wire) -> None:
    looks = watch(wire)
    wire.readlock.acquire()
    wire.waits_since = 0.0
    for number in range(20):
        assert not looks.is_stuck(number * 0.5)


# --- on a lease, where who waits for the lock finds out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lock", "readlock"])
def test_who_waits_for_a_lock_that_no_thread_holds_is_told(echo: EchoServer, name: str) -> None:
    """As an alarm leaves it that comes between `acquire` and the `try` behind it."""
    with ConnectionPool[Any](base_uri=echo.uri) as pool, pool.acquire("/") as conn:
        conn.request(1, 5)
        getattr(conn._told().wire, name).acquire()
        with pytest.raises(ConnectionClosedError, match="an exception struck a thread in its use"):
            conn.recv() if name == "readlock" else conn.send("x")


@pytest.mark.slow
def test_a_lock_that_is_held_by_one_who_waits_is_waited_for(echo: EchoServer) -> None:
    with (
        ConnectionPool[Any](base_uri=echo.uri) as pool,
        pool.acquire("/") as conn,
        ThreadPoolExecutor(1) as threads,
    ):
        reading = threads.submit(conn.recv)
        wait_until(lambda: conn._told().wire.waits_since is not None)
        with pytest.raises(TimeoutError):
            conn.recv(3.0)
        conn.send_raw('"x"')
        assert reading.result(5) == "x"
