"""Connections that may be dead have to answer a ping before they are lent again."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

import pytest

from jetsocket import ConnectionPool, JetSocketError, PoolExhaustedError, TimeoutError, clean, clock, lending
from tests.books import faults, state_of
from tests.crowds import crowd, errors
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, frame, read_client_frame, upgrade, wait_until

MakePool = Callable[..., ConnectionPool[Any]]
MakeRaw = Callable[..., RawServer]
MakeProxy = Callable[..., FaultProxy]

PING, PONG = 9, 10


class Lazy:
    """Echoes; answers pings as soon, and from connections that are, allowed to."""

    def __init__(self) -> None:
        self.may_pong = threading.Event()
        self.may_pong.set()
        self.pings = 0
        self.lock = threading.Lock()

    def __call__(self, sock: socket.socket) -> None:
        upgrade(sock)
        while True:
            came = read_client_frame(sock)
            if came.opcode == PING:
                with self.lock:
                    self.pings += 1
                self.may_pong.wait(20)
                sock.sendall(frame(PONG, came.payload))
            else:
                sock.sendall(frame(came.opcode, came.payload))
                if came.opcode == 8:
                    return


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """They have all the time: on a busy machine a pong may come late, and is to be waited for."""
    monkeypatch.setattr("jetsocket.suspects._PATIENCE", 30.0)


def warm(pool: ConnectionPool[Any], count: int) -> list[int]:
    """Have so many idle connections that have been lent; their ids."""
    leases = [pool.acquire("/") for _ in range(count)]
    for lease in leases:
        assert lease.request({"hello": 1}, 5) == {"hello": 1}
        lease.release()
    return [lease.id for lease in leases]


def places(pool: ConnectionPool[Any]) -> dict[int, str]:
    return {each.id: each.place for each in pool.connections()}


# --- siblings


def test_twelve_silently_dead_connections_cost_one_caller(
    echo: EchoServer, proxy: MakeProxy, make_pool: MakePool
) -> None:
    """A firewall has forgotten them: nothing that is sent gets anywhere, and nothing tells of it."""
    between = proxy(echo)
    pool = make_pool(between.uri(), max_connections=12)
    warm(pool, 12)
    between.black_hole()
    failures = 0
    began = monotonic()
    with pytest.raises(TimeoutError):
        pool.request("/", {"hello": 1}, 0.5)
    failures += 1
    wait_until(lambda: "idle" not in places(pool).values())
    between.resume()  # for new connections; those from before stay dead, as their bytes are lost
    for _ in range(11):
        try:
            assert pool.request("/", {"hello": 1}, 5) == {"hello": 1}
        except JetSocketError:
            failures += 1
    assert failures == 1
    assert monotonic() - began < 5
    assert faults(pool) == []


def test_twelve_that_were_warmed_and_never_lent_cost_one_caller_too(
    echo: EchoServer, proxy: MakeProxy, make_pool: MakePool
) -> None:
    """That caller discards what timed out, as it should."""
    between = proxy(echo)
    pool = make_pool(between.uri(), max_connections=12)
    pool.prewarm("/", 12)
    between.black_hole()
    conn = pool.acquire("/", 5)
    with pytest.raises(TimeoutError):
        conn.request({"hello": 1}, 0.3)
    conn.discard()
    conn.release()
    wait_until(lambda: "idle" not in places(pool).values())
    between.resume()
    for _ in range(11):
        assert pool.request("/", {"hello": 1}, 5) == {"hello": 1}
    assert faults(pool) == []


def test_twelve_dead_without_a_fin_cost_one_caller(
    echo: EchoServer, proxy: MakeProxy, make_pool: MakePool
) -> None:
    """They are reset when the first byte comes."""
    between = proxy(echo)
    pool = make_pool(between.uri(), max_connections=12)
    warm(pool, 12)
    between.reset()  # at the next byte that passes
    failures = 0
    for _ in range(12):
        try:
            pool.request("/", {"hello": 1}, 5)
        except JetSocketError:
            failures += 1
            between.resume()
    assert failures <= 1
    assert faults(pool) == []


@pytest.mark.usefixtures("patience")
def test_siblings_are_pinged_at_once_and_lent_again(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=6, health_check_interval=60)
    ids = warm(pool, 5)
    lazy.may_pong.clear()
    with pytest.raises(TimeoutError), pool.acquire("/") as conn:
        conn.recv(0.1)  # silent from when it was lent until its borrower gave up
    wait_until(lambda: lazy.pings == 4)
    others = set(ids) - {conn.id}
    assert all(places(pool)[each] == "checking" for each in others)
    lazy.may_pong.set()
    wait_until(lambda: all(places(pool)[each] == "idle" for each in others))
    with pool.acquire("/") as again:
        assert again.id in others
        assert again.request(1, 5) == 1


def test_a_suspect_that_does_not_answer_is_closed(
    raw_server: MakeRaw, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    lazy = Lazy()
    server = raw_server(lazy)
    pool = make_pool(server, max_connections=6, health_check_interval=60, health_check_timeout=0.5)
    warm(pool, 4)
    lazy.may_pong.clear()
    with caplog.at_level(logging.WARNING, "jetsocket"):
        with pytest.raises(TimeoutError), pool.acquire("/") as conn:
            conn.recv(0.05)
        wait_until(lambda: not pool.connections())
        wait_until(lambda: caplog.text.count("no pong came in time") == 3)
    lazy.may_pong.set()
    assert pool.stats().discards["pong overdue"] == 3


@pytest.mark.usefixtures("patience")
def test_a_suspect_whose_slot_is_wanted_is_cut(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=3, health_check_interval=60)
    warm(pool, 3)
    lazy.may_pong.clear()
    with pytest.raises(TimeoutError), pool.acquire("/") as conn:
        conn.recv(0.05)
    wait_until(lambda: lazy.pings == 2)
    outcomes = crowd(3, lambda _: pool.acquire("/", 20))
    assert errors(outcomes) == []  # within less than what the suspects have to answer
    lazy.may_pong.set()
    for each in outcomes:
        each.value.release()


def test_an_end_with_a_close_frame_casts_no_suspicion(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=4, health_check_interval=60)
    warm(pool, 3)
    victim = echo.connections[0]
    pings = echo.pings
    victim.close(1000)
    wait_until(lambda: pool.stats().idle_connections == 2)
    warm(pool, 2)
    assert echo.pings == pings


@pytest.mark.slow
def test_an_overdue_pong_puts_the_others_under_suspicion(raw_server: MakeRaw, make_pool: MakePool) -> None:
    """The housekeeper finds out about the first; those that were used since are asked at once."""
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=4, health_check_interval=0.8, health_check_timeout=1.0)
    warm(pool, 1)
    sleep(0.6)
    held = pool.acquire("/")
    other = pool.acquire("/")
    assert other.request(1, 5) == 1
    lazy.may_pong.clear()
    other.release()
    wait_until(lambda: not held.is_connected, 5)
    # Not after another interval and another time-out.
    wait_until(lambda: other.id not in places(pool), 1.6)
    lazy.may_pong.set()
    held.release()


# --- idle for long


@pytest.mark.usefixtures("patience")
def test_one_that_was_idle_for_long_answers_a_ping_first(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, ping_after_idle=0.3)
    (kept,) = warm(pool, 1)
    with pool.acquire("/") as conn:
        assert conn.id == kept
    assert echo.pings == 0
    sleep(0.4)
    with pool.acquire("/") as conn:
        assert conn.id == kept
        wait_until(lambda: echo.pings == 1)
        assert conn.latency_ms is not None
        assert conn.request(1, 5) == 1


def test_one_that_does_not_answer_is_not_lent(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lazy = Lazy()
    server = raw_server(lazy)
    pool = make_pool(server, ping_after_idle=0.1, health_check_timeout=0.4, health_check_interval=60)
    (dead,) = warm(pool, 1)
    lazy.may_pong.clear()
    sleep(0.15)
    with pool.acquire("/", 5) as conn:
        assert conn.id != dead
        assert conn.request(1, 5) == 1
    lazy.may_pong.set()


@pytest.mark.usefixtures("patience")
def test_without_time_it_is_pinged_and_counts_as_not_there(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lazy = Lazy()
    server = raw_server(lazy)
    pool = make_pool(server, max_connections=2, ping_after_idle=0.3, health_check_interval=60)
    ids = warm(pool, 2)
    lazy.may_pong.clear()
    sleep(0.4)
    with pytest.raises(PoolExhaustedError, match="timeout=0"):
        pool.acquire("/", 0)
    wait_until(lambda: lazy.pings == 2)
    assert server.accepted == 2
    lazy.may_pong.set()
    wait_until(lambda: set(places(pool).values()) == {"idle"})
    with pool.acquire("/", 0) as conn:  # it has answered, and owes nothing any more
        assert conn.id in ids
        assert conn.request(1, 5) == 1
    assert pool.stats().discards == {}


@pytest.mark.usefixtures("patience")
def test_too_little_time_for_a_pong_costs_no_connection(raw_server: MakeRaw, make_pool: MakePool) -> None:
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=1, ping_after_idle=0.2, health_check_interval=60)
    (kept,) = warm(pool, 1)
    lazy.may_pong.clear()
    sleep(0.3)
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/", 0.1)
    lazy.may_pong.set()
    # Not at once: a caller that wants the slot of a suspect at a full pool gets it after a moment.
    wait_until(lambda: places(pool) == {kept: "idle"})
    with pool.acquire("/", 5) as conn:
        assert conn.id == kept
        assert conn.request(1, 5) == 1


@pytest.mark.parametrize("check", [None, lambda conn: conn.request({"are": "up"})], ids=["pong", "check"])
def test_each_borrower_has_one_answer_before_its_connection(
    echo: EchoServer,
    make_pool: MakePool,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[..., object] | None,
) -> None:
    """What has answered since a caller asked is lent, however little time `ping_after_idle` permits."""
    monkeypatch.setattr("jetsocket.state.eviction.GRACE", 30.0)  # s, else another is opened for a late answer
    pool = make_pool(echo, ping_after_idle=0, check=check, max_connections=1)
    for number in range(3):
        with pool.acquire("/", 5) as conn:
            assert conn.request(number, 5) == number
    assert (echo.pings > 0) == (check is None)
    assert (echo.opened, pool.stats().discards) == (1, {})


# --- after a suspend


class Sleep:
    """A machine that was suspended: the clock that goes on is ahead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slept = 1000.0
        for module in (clean, clock, lending):
            monkeypatch.setattr(module, "with_sleep", lambda: clock.monotonic() + self.slept)


@pytest.mark.usefixtures("patience")
def test_after_a_suspend_each_idle_connection_answers_a_ping(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Sleep(monkeypatch)
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=5, health_check_interval=60)
    ids = warm(pool, 4)
    assert lazy.pings == 0
    machine.slept += 3600
    with pool.acquire("/") as conn:
        assert lazy.pings >= 1
        assert conn.id in ids
        wait_until(lambda: lazy.pings == 4)
        assert conn.request(1, 5) == 1
    wait_until(lambda: pool.stats().idle_connections == 4)
    warm(pool, 4)
    assert lazy.pings == 4  # once


@pytest.mark.usefixtures("patience")
def test_the_housekeeper_notices_a_suspend_by_itself(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Sleep(monkeypatch)
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=5, health_check_interval=60)
    warm(pool, 4)
    machine.slept += 3600
    wait_until(lambda: lazy.pings == 4)
    wait_until(lambda: pool.stats().idle_connections == 4)


def test_after_a_suspend_what_is_dead_is_not_lent(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Sleep(monkeypatch)
    lazy = Lazy()
    pool = make_pool(raw_server(lazy), max_connections=8, health_check_interval=60, health_check_timeout=0.5)
    dead = warm(pool, 4)
    lazy.may_pong.clear()
    machine.slept += 3600
    outcomes = crowd(4, lambda _: pool.acquire("/", 5))
    assert errors(outcomes) == []
    for each in outcomes:
        assert each.value.id not in dead
        assert each.value.request(1, 5) == 1
        each.value.release()
    lazy.may_pong.set()


def test_a_thread_that_was_stopped_is_no_suspend(
    echo: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(echo, health_check_interval=60)
    warm(pool, 3)
    real, stopped = clock.with_sleep, threading.Event()

    def late() -> float:
        stopped.set()
        sleep(0.8)  # between the two clocks
        return real()

    monkeypatch.setattr(clean, "with_sleep", late)
    with pool.acquire("/") as conn:
        assert conn.request(1, 5) == 1
    assert stopped.is_set()
    assert echo.pings == 0
    assert state_of(pool).slept < 0.5 + real() - time.monotonic()


# --- where the user's `check` takes the place of pings


class Silent:
    """Echoes, and answers no ping."""

    def __call__(self, sock: socket.socket) -> None:
        upgrade(sock)
        while True:
            came = read_client_frame(sock)
            if came.opcode != PING:
                sock.sendall(frame(came.opcode, came.payload))
                if came.opcode == 8:
                    return


def checks(conn: Any) -> None:
    assert conn.request({"check": 1}, 1) == {"check": 1}


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("why", ["sibling", "idle", "suspend", "without time"])
def test_a_check_takes_the_place_of_the_ping(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Of a server that answers no pings, no connection is lost to one."""
    machine = Sleep(monkeypatch)
    calls: list[int] = []

    def check(conn: Any) -> None:
        checks(conn)
        calls.append(conn.id)

    pool = make_pool(
        raw_server(Silent()),
        max_connections=4,
        check=check,
        health_check_interval=60,
        ping_after_idle=0.3 if why in ("idle", "without time") else None,
    )
    ids = warm(pool, 3)
    lost = 0
    if why == "sibling":
        with pytest.raises(TimeoutError), pool.acquire("/") as conn:
            conn.recv(0.05)
        lost = 1
    elif why == "suspend":
        machine.slept += 3600
    else:
        sleep(0.4)
    if why == "without time":
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", 0)
    for _ in range(3):
        with pool.acquire("/", 5) as conn:
            assert conn.request(1, 5) == 1
    wait_until(lambda: len(set(calls)) >= 1)
    wait_until(lambda: pool.stats().idle_connections >= 3 - lost)
    assert sum(places(pool).get(each, "closing") != "closing" for each in ids) == 3 - lost
    assert set(pool.stats().discards) <= {"timeout"}


def test_one_handed_from_caller_to_caller_was_not_idle(echo: EchoServer, make_pool: MakePool) -> None:
    """Neither for as long as it was lent, which is no reason to close it, nor is it as good as new."""
    pool = make_pool(echo, max_connections=1, max_idle_time=0.3)
    (kept,) = warm(pool, 1)
    held = pool.acquire("/")
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(pool.acquire("/", 10)))
    thread.start()
    wait_until(lambda: pool.stats().waiting == 1)
    sleep(0.5)
    held.release()
    thread.join(5)
    assert [each.id for each in got] == [kept]
    # Its first send is moved to another connection if this one has ended, as is that of any reused one.
    echo.cut_all()
    wait_until(lambda: echo.open_now == 0)
    assert got[0].request(1, 5) == 1
    got[0].release()
    assert pool.stats().discards.get("idle") is None
