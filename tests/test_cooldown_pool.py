"""`connect_cooldown`: after a dial has failed, acquires fail at once for a while; then one dial tests.

Also tests: `cooldown`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

import pytest

from jetsocket import (
    ConnectionError,
    ConnectionPool,
    HandshakeError,
    JetSocketError,
    PoolExhaustedError,
    TimeoutError,
)
from tests.awake import awake
from tests.books import faults, state_of
from tests.crowds import crowd, errors
from tests.servers import (
    EchoServer,
    RawServer,
    frame,
    read_client_frame,
    read_request,
    response,
    upgrade_response,
    wait_until,
)

MakePool = Callable[..., ConnectionPool[Any]]
MakeRaw = Callable[..., RawServer]


class Flaky:
    """A server that is up or down, and notes when it was asked."""

    def __init__(self, *, up: bool = False, retry_after: float | None = None, slow: float = 0.0) -> None:
        self.is_up = threading.Event()
        if up:
            self.is_up.set()
        self.retry_after = retry_after
        self.slow = slow
        self.asked: list[float] = []

    def __call__(self, sock: socket.socket) -> None:
        request = read_request(sock)
        self.asked.append(monotonic())
        if not self.is_up.is_set():
            headers = [] if self.retry_after is None else [("Retry-After", f"{self.retry_after:g}")]
            sock.sendall(response("503 Service Unavailable", headers))
            return
        sleep(self.slow)
        sock.sendall(upgrade_response(request))
        while True:
            came = read_client_frame(sock)
            sock.sendall(frame(came.opcode, came.payload))
            if came.opcode == 8:
                return


def test_acquires_fail_at_once_with_the_last_error(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky()
    pool = make_pool(raw_server(flaky), connect_cooldown=30.0)
    with pytest.raises(HandshakeError) as first:
        pool.acquire("/")
    outcomes = crowd(20, lambda number: pool.acquire("/", None if number % 2 else 0))
    assert [type(error) for error in errors(outcomes)] == [HandshakeError] * 20
    assert {str(error) for error in errors(outcomes)} == {str(first.value)}
    assert len({id(error) for error in errors(outcomes)}) == 20
    assert max(each.took for each in outcomes) < 0.5
    assert len(flaky.asked) == 1


def test_without_a_cooldown_the_next_one_dials_at_once(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky(retry_after=60)
    pool = make_pool(raw_server(flaky))
    for _ in range(3):
        with pytest.raises(HandshakeError):
            pool.acquire("/")
    assert len(flaky.asked) == 3
    flaky.is_up.set()
    pool.acquire("/").release()


@pytest.mark.slow
def test_then_one_dial_tests_whether_it_is_back(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky(slow=0.4)
    pool = make_pool(raw_server(flaky), connect_cooldown=0.3, max_connections=8)
    assert len(errors(crowd(8, lambda _: pool.acquire("/")))) == 8
    asked = len(flaky.asked)
    sleep(0.35)  # from when the last dial has failed: that is when all are told
    outcomes = crowd(8, lambda _: pool.acquire("/"))  # still down
    assert len(errors(outcomes)) == 8
    assert len(flaky.asked) == asked + 1
    flaky.is_up.set()
    sleep(0.65)  # doubled
    began = awake()
    outcomes = crowd(8, lambda _: pool.acquire("/", 10))
    assert errors(outcomes) == []
    test, *others = sorted(flaky.asked[asked + 1 :])
    assert all(each - test >= 0.39 for each in others)  # not before it was open
    assert awake() - began < 5
    for each in outcomes:
        each.value.release()


def test_those_who_stood_in_line_for_a_slot_are_tested_for_by_one_dial_too(
    raw_server: MakeRaw, echo: EchoServer, make_pool: MakePool
) -> None:
    flaky = Flaky(slow=0.2)
    pool = make_pool(raw_server(flaky), connect_cooldown=0.2, max_connections=4)
    with pytest.raises(HandshakeError):
        pool.acquire("/")
    held = [pool.acquire(echo.uri) for _ in range(4)]
    sleep(0.3)  # it is over
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(pool.acquire, "/", 10) for _ in range(4)]
        wait_until(lambda: pool.stats().waiting == 4)
        pool.resize(8)  # slots for all of them
        assert [type(each.exception(10)) for each in waiting] == [HandshakeError] * 4
    assert len(flaky.asked) == 2
    for conn in held:
        conn.release()


@pytest.mark.slow
def test_it_doubles_with_each_failure(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky()
    pool = make_pool(raw_server(flaky), connect_cooldown=0.2)
    until = monotonic() + 2.2
    while monotonic() < until:
        with pytest.raises(HandshakeError):
            pool.acquire("/")
        sleep(0.005)
    gaps = [late - early for early, late in zip(flaky.asked, flaky.asked[1:], strict=False)]
    assert len(gaps) == 3  # 0.2, 0.4, 0.8, less up to a tenth; 1.6 is not over
    for gap, expected in zip(gaps, (0.2, 0.4, 0.8), strict=True):
        assert expected * 0.9 <= gap < expected + 0.3


def test_retry_after_is_respected(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky(retry_after=1)
    pool = make_pool(raw_server(flaky), connect_cooldown=0.05)
    with pytest.raises(HandshakeError):
        pool.acquire("/")
    flaky.is_up.set()
    failures = 0
    while True:
        try:
            pool.acquire("/").release()
            break
        except HandshakeError:
            failures += 1
            sleep(0.01)
    assert failures >= 5
    assert flaky.asked[1] - flaky.asked[0] >= 0.99


def test_a_success_ends_it(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky()
    pool = make_pool(raw_server(flaky), connect_cooldown=0.2)
    with pytest.raises(HandshakeError):
        pool.acquire("/")
    flaky.is_up.set()
    sleep(0.25)
    with pool.acquire("/") as conn:
        assert conn.request(1, 5) == 1
        conn.discard()
    flaky.is_up.clear()
    with pytest.raises(HandshakeError):
        pool.acquire("/")
    began = awake()
    flaky.is_up.set()

    def comes_back() -> bool:
        try:
            pool.acquire("/").release()
        except HandshakeError:
            return False
        return True

    wait_until(comes_back)
    assert awake() - began < 0.4 + 0.3  # the first time again, not doubled


def test_other_uris_are_not_concerned(echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(Flaky()), connect_cooldown=30.0)
    with pytest.raises(HandshakeError):
        pool.acquire("/")
    with pool.acquire(echo.uri_for("/")) as conn:
        assert conn.request(1, 5) == 1


def test_what_is_open_is_lent_all_the_same(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky(up=True)
    pool = make_pool(raw_server(flaky), connect_cooldown=30.0)
    with pool.acquire("/") as held:
        flaky.is_up.clear()
        waiting: list[Any] = []

        def wait() -> None:
            with pool.acquire("/", 20) as conn:
                waiting.append(conn.request(["mine"], 5))

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: pool.stats().connect_errors == 1)
        assert held.request(1, 5) == 1
    thread.join(5)
    assert waiting == [["mine"]]
    with pool.acquire("/") as conn:
        assert conn.request(2, 5) == 2


@pytest.mark.slow
def test_floors_wait_for_its_end(raw_server: MakeRaw, make_pool: MakePool) -> None:
    flaky = Flaky()
    pool = make_pool(raw_server(flaky), connect_cooldown=1.5)
    with pytest.raises(JetSocketError):
        pool.prewarm("/", 3, keep=True)
    asked = len(flaky.asked)
    flaky.is_up.set()
    wait_until(lambda: pool.stats().idle_connections == 3, 10)
    assert flaky.asked[asked] - flaky.asked[0] >= 1.5 * 0.9


def test_many_uris_that_are_down_are_not_all_kept(make_pool: MakePool) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        pool = make_pool(f"ws://127.0.0.1:{reserved.getsockname()[1]}", connect_cooldown=60.0)
        for number in range(60):
            with pytest.raises(ConnectionError):
                pool.acquire(f"/{number}" + "x" * 100_000)
        kept = state_of(pool).troubles._by_key
        assert sum(map(len, kept)) <= 1_100_000
        with pytest.raises(ConnectionError):  # the latest ones are
            pool.acquire("/59" + "x" * 100_000)
        assert pool.stats().connect_errors == 60


# --- a URI that is dead, beside a healthy one


@pytest.mark.slow
@pytest.mark.parametrize("how", ["refuses", "mute"])
def test_a_dead_uri_costs_a_healthy_one_no_deadline(
    echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool, how: str
) -> None:
    def mute(sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    dead = raw_server(Flaky() if how == "refuses" else mute)
    pool = make_pool(echo, max_connections=4, acquire_timeout=3, manager_kwargs={"connect_timeout": 1.0})
    until = monotonic() + 2.5
    failures: list[Exception] = []

    def healthy() -> int:
        calls = 0
        while monotonic() < until:
            with pool.acquire("/") as conn:
                assert conn.request(calls, 5) == calls
                sleep(0.002)
            calls += 1
        return calls

    def call(number: int) -> Any:
        if number < 4:
            return healthy()
        while monotonic() < until:
            try:
                pool.acquire(dead.uri_for("/"), 1.0).release()
            except JetSocketError as error:
                failures.append(error)
                sleep(0.01)
        return 1

    pool.prewarm("/", 4)
    wait_until(lambda: echo.opened == 4)
    outcomes = crowd(12, call)
    assert errors(outcomes) == []
    assert failures
    # One connection at a time, and another only after 1 s, 2 s, ...
    evicted = pool.stats().discards.get("evicted", 0)
    assert evicted <= 3  # the last callers are there for 3.5 s
    assert echo.opened - 4 <= evicted
    assert min(each.value for each in outcomes[:4]) > 50
    assert faults(pool) == []


@pytest.mark.slow
def test_a_dead_uri_evicts_one_idle_connection(
    echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool
) -> None:
    dead = raw_server(Flaky())
    pool = make_pool(echo, max_connections=4)
    pool.prewarm("/", 4)
    until = monotonic() + 0.9
    while monotonic() < until:
        with pytest.raises((HandshakeError, PoolExhaustedError)):
            pool.acquire(dead.uri_for("/"), 0.1)
    assert pool.stats().discards["evicted"] == 1
    assert pool.stats().idle_connections == 3


@pytest.mark.slow
def test_a_dead_uri_that_was_first_leaves_a_slot_to_a_healthy_one(
    echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool
) -> None:
    """All slots are taken by dials to a server that accepts and never answers, and no connection is open."""

    def mute(sock: socket.socket) -> None:
        while sock.recv(65536):
            pass

    dead = raw_server(mute)
    pool = make_pool(echo, max_connections=4, manager_kwargs={"connect_timeout": 2.5})
    failures: list[BaseException] = []

    def call() -> None:
        with pytest.raises(JetSocketError) as caught:
            pool.acquire(dead.uri_for("/"), 10)
        failures.append(caught.value)

    callers = [threading.Thread(target=call) for _ in range(6)]
    for caller in callers:
        caller.start()
    wait_until(lambda: pool.stats().connecting == 4)
    outcomes = crowd(3, lambda number: pool.request("/", number, 2.0))
    assert errors(outcomes) == []
    assert pool.stats().discards == {"evicted": 1}
    assert dead.accepted <= 4
    assert faults(pool) == []
    for caller in callers:
        caller.join(10)
    assert [type(error) for error in failures] == [TimeoutError] * 6  # once, as the three that were left
    assert pool.stats().connect_errors == 3
