"""A lock that no thread holds is found, and one that a thread holds for long is left alone."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

from jetsocket import ConnectionClosedError, ConnectionPool, ConnectionPoolConfig, TimeoutError
from jetsocket.correlation import ById
from jetsocket.interrupts import frames_from
from jetsocket.lock_watch import LockWatch
from jetsocket.wire.websocket import WebSocket
from tests.servers import EchoServer, wait_until


class Wire:
    """What is looked at of a connection."""

    def __init__(self) -> None:
        self.lock, self.readlock = threading.Lock(), threading.Lock()
        self.is_writing = self.is_composing = self.was_struck = False
        self.bytes_out = self.messages_sent = self.bytes_in = 0
        self.reader = SimpleNamespace(received=0)
        self.waits_since: float | None = None
        self.used: set[str] = set()

    def is_in_use(self, name: str) -> bool:
        """Whether a thread is found that may hold it."""
        return name in self.used


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
def test_so_is_one_over_which_something_went_just_before(wire: Wire, name: str) -> None:
    looks = watch(wire)
    assert not looks.is_stuck(0.0)
    wire.messages_sent = wire.reader.received = 1
    getattr(wire, name).acquire()
    assert not looks.is_stuck(0.5)
    assert looks.is_stuck(1.0)


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


@pytest.mark.parametrize("sign", ["bytes_in", "received"])
def test_a_thread_that_reads_holds_it_for_as_long_as_something_comes(wire: Wire, sign: str) -> None:
    """One that hands out what comes all the time is seen between two waits as often as not."""
    looks = watch(wire)
    wire.readlock.acquire()
    for number in range(1, 20):
        setattr(wire if sign == "bytes_in" else wire.reader, sign, number)
        assert not looks.is_stuck(number * 0.5)


@pytest.mark.parametrize("name", ["lock", "readlock"])
def test_a_thread_that_is_stopped_while_it_holds_it_is_found(wire: Wire, name: str) -> None:
    looks = watch(wire)
    getattr(wire, name).acquire()
    wire.used = {name}
    for number in range(1, 20):
        assert not looks.is_stuck(number * 0.5)
    wire.used.clear()
    assert looks.is_stuck(10.0)


def test_a_thread_that_waits_for_what_comes_holds_it_for_as_long_as_it_takes(wire: Wire) -> None:
    looks = watch(wire)
    wire.readlock.acquire()
    wire.waits_since = 0.0
    for number in range(20):
        assert not looks.is_stuck(number * 0.5)


# --- on a shared connection, where the housekeeper finds out


@pytest.mark.slow
def test_who_reads_for_all_may_be_stopped_at_any_place(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not say that it waits, and nothing moves, for longer than the housekeeper's patience."""
    fill, stopped = WebSocket._fill, threading.Event()

    def fill_later(wire: WebSocket, deadline: float | None) -> bool:
        if not stopped.is_set():
            stopped.set()
            threading.Event().wait(2.0)
        return fill(wire, deadline)

    config = ConnectionPoolConfig(max_connections=1, max_in_flight=8)
    with ConnectionPool[Any](config, base_uri=echo.uri, correlation=ById("id")) as pool:
        assert pool.request("/", {"a": 0}, 5)["a"] == 0
        monkeypatch.setattr(WebSocket, "_fill", fill_later)
        with ThreadPoolExecutor(8) as threads:
            asked = [threads.submit(pool.request, "/", {"a": number}, 10) for number in range(8)]
            assert [each.result(10)["a"] for each in asked] == list(range(8))
    assert stopped.is_set()
    assert echo.opened == 1


def waits_for_a_lock(frame: FrameType) -> bool:
    return any(each.f_code is WebSocket._wait_for.__code__ for each in frames_from(frame))


def test_a_thread_that_holds_a_lock_is_told_from_one_that_waits_for_it(echo: EchoServer) -> None:
    with (
        ConnectionPool[Any](base_uri=echo.uri) as pool,
        pool.acquire("/") as conn,
        ThreadPoolExecutor(1) as threads,
    ):
        conn.request(1, 5)
        wire = conn._told().wire
        assert not wire.is_in_use("lock") and not wire.is_in_use("readlock")
        reading = threads.submit(conn.recv)
        wait_until(lambda: wire.waits_since is not None)
        assert wire.is_in_use("readlock") and not wire.is_in_use("lock")
        conn.send(2)
        assert reading.result(5) == 2
        wire.readlock.acquire()
        waiting = threads.submit(conn.recv, 1.0)
        wait_until(lambda: any(map(waits_for_a_lock, sys._current_frames().values())))
        assert not wire.is_in_use("readlock")
        with pytest.raises(TimeoutError):
            waiting.result(5)
        wire.readlock.release()


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
