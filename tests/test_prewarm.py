"""`prewarm`: connections opened ahead of their borrowers, side by side, and held at a number.

Also tests: `prewarming`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from time import monotonic, sleep
from typing import Any

import pytest

from jetsocket import (
    ConnectionError,
    ConnectionPool,
    HandshakeError,
    PoolClosedError,
    TimeoutError,
)
from tests.books import faults, state_of
from tests.crowds import crowd, errors
from tests.servers import (
    EchoServer,
    RawServer,
    after_upgrade,
    answer,
    frame,
    read_client_frame,
    read_request,
    upgrade_response,
    wait_until,
)
from tests.wire.conftest import in_background

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]


def echo_frames(sock: socket.socket) -> None:
    while True:
        came = read_client_frame(sock)
        sock.sendall(frame(came.opcode, came.payload))
        if came.opcode == 8:
            return


class Slow:
    """Takes its time for each upgrade, and notes how many were under way at once."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, sock: socket.socket) -> None:
        asked = read_request(sock)
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        sleep(self.seconds)
        with self.lock:
            self.now -= 1
        sock.sendall(upgrade_response(asked))
        echo_frames(sock)


@contextmanager
def ids_seen(pool: ConnectionPool[Any]) -> Iterator[set[int]]:
    """The ids of all connections that were idle at some moment of the block."""
    seen: set[int] = set()
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.update(each.id for each in pool.connections() if each.place == "idle")
            sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join(5)


# --- once


def test_it_opens_side_by_side_within_max_connecting(raw_server: MakeRaw, make_pool: MakePool) -> None:
    slow = Slow(0.3)
    pool = make_pool(raw_server(slow), max_connections=20, max_connecting=4)
    began = monotonic()
    assert pool.prewarm("/", 8) == 8
    assert monotonic() - began < 8 * 0.3  # as it would take one after the other
    assert slow.most == 4
    assert pool.stats().idle_connections == 8
    assert pool.prewarm("/", 8) == 0


def test_it_takes_no_slot_of_others_and_none_above_the_cap(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=5)
    pool.prewarm("/a", 3)
    assert pool.prewarm("/b", 9) == 2
    assert echo.open_now == 5
    assert sorted(echo.paths) == ["/a", "/a", "/a", "/b", "/b"]


def test_what_callers_take_meanwhile_is_not_opened_twice(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=30)
    held: list[Any] = []
    stop = threading.Event()

    def take() -> None:
        while not stop.is_set():
            try:
                held.append(pool.acquire("/", 0))
            except Exception:  # none was idle
                sleep(0.001)

    taking = threading.Thread(target=take)
    taking.start()
    pool.prewarm("/", 4)
    opened = echo.opened
    stop.set()
    taking.join(5)
    assert opened <= 4 + len(held)
    assert opened < 30
    for lease in held:
        lease.release()


@pytest.mark.parametrize("count", [-1, True, 2.0, None])
def test_bad_counts_are_refused(echo: EchoServer, make_pool: MakePool, count: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="count"):
        make_pool(echo).prewarm("/", count)


def test_a_server_that_refuses_is_told(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(answer("403 Forbidden")))
    with pytest.raises(HandshakeError):
        pool.prewarm("/", 3)
    assert faults(pool) == []


def test_what_takes_too_long_is_told_and_comes_all_the_same(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(Slow(0.6)), acquire_timeout=0.2)
    with pytest.raises(TimeoutError, match="prewarm") as caught:
        pool.prewarm("/", 2)
    assert caught.value.operation == "prewarm"
    wait_until(lambda: pool.stats().idle_connections == 2)


@pytest.mark.slow
def test_close_ends_it(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(Slow(2.0)))
    ended: list[float] = []

    def warm() -> None:
        with pytest.raises(PoolClosedError):
            pool.prewarm("/", 2)
        ended.append(monotonic())

    thread = threading.Thread(target=warm)
    thread.start()
    wait_until(lambda: pool.stats().connecting == 2)
    closed = monotonic()
    pool.close(timeout=1)
    thread.join(5)
    assert ended[0] - closed < 0.5


# --- held at a number


@pytest.mark.slow
def test_kept_ones_are_exempt_from_max_idle_time(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_idle_time=0.3)
    pool.prewarm("/", 3, keep=True)
    pool.prewarm("/", 5)
    before = {each.id for each in pool.connections()}
    wait_until(lambda: pool.stats().idle_connections == 3)
    assert pool.stats().discards == {"idle": 2}
    sleep(1.2)  # rounds of the housekeeper
    assert pool.stats().discards == {"idle": 2}
    with pool.acquire("/") as conn:  # it was idle for longer than max_idle_time, and is lent
        assert conn.id in before
        assert conn.request(1, 5) == 1
    assert echo.opened == 5


def test_what_is_lost_is_opened_again(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    pool.prewarm("/", 3, keep=True)
    echo.cut_all()
    wait_until(lambda: echo.opened == 6 and pool.stats().idle_connections == 3)
    with pool.acquire("/") as conn:
        conn.discard()
    wait_until(lambda: echo.opened == 7 and pool.stats().idle_connections == 3)


def test_it_backs_off_from_a_server_that_is_down(raw_server: MakeRaw, make_pool: MakePool) -> None:
    is_down = threading.Event()
    times: list[float] = []

    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        if is_down.is_set():
            times.append(monotonic())
            sock.sendall(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\r\n")
            return
        sock.sendall(upgrade_response(asked))
        while not is_down.wait(0.01):
            pass

    pool = make_pool(raw_server(script), max_connections=8)
    pool.prewarm("/", 4, keep=True)
    is_down.set()
    wait_until(lambda: len(times) >= 3, 10)
    first_round, rest = times[0], times[1:]
    assert rest[0] - first_round < 1.5
    later = [each for each in times if each > first_round + 0.9]
    assert all(late - early >= 0.9 for early, late in pairwise(later))  # one at a time, after Retry-After
    pool.prewarm("/", 0, keep=True)


@pytest.mark.slow
def test_a_lifetime_that_ends_is_replaced_before(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_lifetime=3.0, max_connections=10)
    pool.prewarm("/", 2, keep=True)
    first = {each.id for each in pool.connections()}
    lowest, highest = [], []
    until = monotonic() + 5.0
    with ids_seen(pool) as seen:
        while monotonic() < until:
            count = pool.stats().idle_connections
            lowest.append(count)
            highest.append(count)
            sleep(0.01)
    assert min(lowest) == 2  # a new one is open before the old one goes
    assert max(highest) <= 4
    wait_until(lambda: not first & {each.id for each in pool.connections()})
    assert len(seen) <= 2 * (5.0 / 2.0 + 1)


@pytest.mark.slow
def test_those_that_are_lent_all_the_time_are_replaced_before_too(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo, max_lifetime=3.0, max_connections=9)
    pool.prewarm("/", 3, keep=True)
    until, lowest = monotonic() + 5.0, 9

    def work(number: int) -> None:
        while monotonic() < until:
            with pool.acquire("/", 5) as conn:
                conn.request(number, 5)
                sleep(0.03)

    with ThreadPoolExecutor(3) as threads:
        working = [threads.submit(work, number) for number in range(3)]
        while monotonic() < until:
            open_now = [each.place for each in pool.connections() if each.place in ("idle", "lent")]
            lowest = min(lowest, len(open_now))
            sleep(0.005)
        for each in working:
            each.result(10)
    assert pool.stats().discards["lifetime"] >= 3
    assert lowest >= 3


@pytest.mark.slow
def test_at_the_cap_the_old_one_goes_first(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_lifetime=2.0, max_connections=2)
    pool.prewarm("/", 2, keep=True)
    first = {each.id for each in pool.connections()}
    wait_until(lambda: not first & {each.id for each in pool.connections()}, 6)
    wait_until(lambda: pool.stats().idle_connections == 2)
    assert echo.most_open <= 2


def test_kept_ones_make_room_for_a_waiting_caller(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=3)
    pool.prewarm("/kept", 3, keep=True)
    with pool.acquire("/other", 2) as conn:
        assert conn.request(1, 5) == 1
        sleep(1.2)  # the number can't be held now
        assert echo.most_open <= 3
        assert pool.stats().idle_connections == 2
        conn.discard()
    wait_until(lambda: pool.stats().idle_connections == 3)
    wait_until(lambda: sum(path == "/kept" for path in echo.paths) == 4)


@pytest.mark.slow
def test_nought_ends_it(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_idle_time=0.2)
    pool.prewarm("/", 3, keep=True)
    sleep(0.8)
    assert pool.stats().idle_connections == 3
    assert pool.prewarm("/", 0, keep=True) == 0
    wait_until(lambda: pool.stats().idle_connections == 0)
    sleep(0.8)
    assert echo.opened == 3


def test_another_number_takes_the_place_of_the_first(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_idle_time=0.2)
    pool.prewarm("/", 4, keep=True)
    pool.prewarm("/", 2, keep=True)
    wait_until(lambda: pool.stats().idle_connections == 2)
    sleep(0.8)
    assert pool.stats().idle_connections == 2
    assert pool.prewarm("/", 3, keep=True) >= 1 or pool.stats().idle_connections == 3


def test_clear_closes_and_opens_again(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    pool.prewarm("/", 3, keep=True)
    before = {each.id for each in pool.connections()}
    assert pool.clear() == 3
    wait_until(lambda: echo.opened == 6 and pool.stats().idle_connections == 3)
    wait_until(lambda: not before & {each.id for each in pool.connections()})  # the last may be closing still


@pytest.mark.slow
@pytest.mark.parametrize("how", ["close", "drain"])
def test_close_and_drain_end_it(echo: EchoServer, make_pool: MakePool, how: str) -> None:
    pool = make_pool(echo)
    pool.prewarm("/", 3, keep=True)
    opened = echo.opened
    getattr(pool, how)()
    if how == "drain":
        echo.cut_all()
    sleep(1.2)
    assert echo.opened == opened
    with pytest.raises(PoolClosedError):
        pool.prewarm("/", 1, keep=True)
    assert state_of(pool).floors == {}


def test_it_does_not_wait_in_front_of_callers(raw_server: MakeRaw, make_pool: MakePool) -> None:
    """What was ordered for the number goes to a caller who waits."""
    pool = make_pool(raw_server(Slow(0.3)), max_connections=2)
    warming = threading.Thread(target=lambda: pool.prewarm("/", 2, keep=True))
    warming.start()
    wait_until(lambda: pool.stats().connecting == 2)
    outcomes = crowd(2, lambda _: pool.acquire("/", 5))
    assert errors(outcomes) == []
    assert max(each.took for each in outcomes) < 1
    for each in outcomes:
        each.value.release()
    warming.join(10)


def test_keep_must_be_a_bool(echo: EchoServer, make_pool: MakePool) -> None:
    with pytest.raises(TypeError, match="keep"):
        make_pool(echo).prewarm("/", 1, keep=1)  # type: ignore[arg-type]


def test_a_number_that_cannot_be_had_now_is_had_later(raw_server: MakeRaw, make_pool: MakePool) -> None:
    is_up = threading.Event()

    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        if not is_up.is_set():
            return
        sock.sendall(upgrade_response(asked))
        echo_frames(sock)

    pool = make_pool(raw_server(script))
    with pytest.raises(ConnectionError):
        pool.prewarm("/", 3, keep=True)
    is_up.set()
    wait_until(lambda: pool.stats().idle_connections == 3, 10)


def test_the_slots_of_those_that_are_closing_will_do(raw_server: MakeRaw, make_pool: MakePool) -> None:
    """A server that does not answer a close frame holds its slot for a while: not from who wants it."""
    pool = make_pool(raw_server(after_upgrade()), max_connections=3, manager_kwargs={"close_timeout": 20})
    assert pool.prewarm("/", 3) == 3
    assert pool.clear() == 3
    assert {each.place for each in pool.connections()} == {"closing"}
    assert pool.prewarm("/", 2) == 2


# --- together with `resize` and `drain`


@pytest.mark.parametrize("keep", [False, True])
def test_what_resize_has_taken_away_is_not_opened_again(
    echo: EchoServer, make_pool: MakePool, *, keep: bool
) -> None:
    pool = make_pool(echo, max_connections=5, max_per_uri=5)
    pool.prewarm("/a", 5, keep=keep)
    pool.resize(3)
    assert pool.prewarm("/a", 5, keep=keep) == 0
    wait_until(lambda: echo.open_now == 3)
    held = [pool.acquire("/a") for _ in range(3)]  # rounds go by
    wait_until(lambda: pool.stats().active_connections == 3 and not faults(pool))
    for conn in held:
        conn.release()
    assert pool.prewarm("/a", 5, keep=keep) == 0
    assert (echo.opened, echo.open_now) == (5, 3)
    assert pool.stats().discards == {"resized": 2}


@pytest.mark.parametrize("keep", [False, True])
def test_drain_ends_a_prewarm_that_rests_between_attempts(
    raw_server: MakeRaw, make_pool: MakePool, *, keep: bool
) -> None:
    def busy(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(b"HTTP/1.1 503 Busy\r\nRetry-After: 8\r\nContent-Length: 0\r\n\r\n")

    server = raw_server(busy)
    pool = make_pool(server, max_connections=4, manager_kwargs={"connect_attempts": 5})
    warming = in_background(lambda: pool.prewarm("/a", 2, keep=keep))
    wait_until(lambda: pool.stats().connect_errors == 2)
    began = monotonic()
    assert pool.drain(5)
    with pytest.raises(PoolClosedError):
        warming.result(5)
    assert monotonic() - began < 4  # s; the next attempt would come after 8
    assert server.accepted == 2
    assert not faults(pool)
