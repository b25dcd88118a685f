"""Threads that hang in dials: they are told of, bounded in number, and cost the pool nothing else.

Also tests: `overdue_dials`.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
from collections.abc import Callable, Hashable, Iterator
from time import sleep
from typing import Any

import pytest

from jetsocket import ConnectionError, ConnectionPool, ConnectionPoolConfig, PoolExhaustedError, TimeoutError
from jetsocket.clock import monotonic
from jetsocket.dial_order import Dial
from jetsocket.limits import Limiter
from jetsocket.stuck_threads import MOST, MOST_THERE, have_come_back, refusal, too_many, why
from jetsocket.uris import parse
from jetsocket.wire.upgrade import Upgrade
from tests.awake import awake
from tests.books import faults, state_of
from tests.servers import EchoServer, RawServer, after_upgrade, hold, wait_until

MakePool = Callable[..., ConnectionPool[Any]]

TARGET = parse("ws://h.example/?key=secret")


def hung(key: str, overdue_at: float = 0.0) -> Dial:
    dial = Dial(key, TARGET, "line", None)
    dial.overdue_at = overdue_at
    return dial


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What hangs in the tests; open at their end."""
    event = threading.Event()
    yield event
    event.set()


class Hangs:
    """A callable for `extra_headers` that hangs when it is asked for, until the gate opens."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.is_hanging = True
        self.calls = 0

    def __call__(self) -> dict[str, str]:
        self.calls += 1
        if self.is_hanging:
            self.gate.wait(30)
        return {}


def patiently(work: Callable[[], Any]) -> Any:
    """What that returns, tried again where connect_timeout, which is short here, is over too soon."""
    while True:
        try:
            return work()
        except TimeoutError as error:
            if error.operation != "connect":
                raise


def openers() -> int:
    return sum(thread.name.startswith("jetsocket-opener") for thread in threading.enumerate())


# --- the decision


def test_a_uri_has_so_many_threads_and_no_more() -> None:
    dials = [hung("a") for _ in range(MOST_THERE - 1)]
    assert not too_many(dials, "a")
    assert too_many([*dials, hung("a")], "a")
    assert not too_many([*dials, hung("a")], "b")
    assert not too_many([*dials, hung("a", monotonic() + 60)], "a")  # its thread has time still
    assert not too_many([], "a")


def test_where_very_many_hang_each_uri_has_one() -> None:
    dials = [hung(str(number)) for number in range(MOST)]
    assert too_many(dials, "3")
    assert not too_many(dials, "new")
    assert not too_many(dials[1:], "3")


def test_the_refusal_says_where_and_no_secret() -> None:
    dials = [hung("a"), hung("a"), hung("b")]
    assert "in a name look-up, or in a callable" in str(refusal(dials, "a"))
    dials[0].hangs_in = dials[1].hangs_in = "get_token (auth.py:7)"
    told = str(refusal(dials, "a"))
    assert "2 threads that were to do so hang in get_token (auth.py:7);" in told
    assert "ws://h.example/?key=***" in told


# --- in a pool


@pytest.mark.slow
def test_a_callable_that_hangs_keeps_so_many_threads_and_the_pool_works(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    headers = Hangs(gate)
    manager_kwargs = {"extra_headers": headers, "connect_timeout": 0.1}
    pool = make_pool(echo, max_connections=2, name="patient", manager_kwargs=manager_kwargs)
    with caplog.at_level(logging.WARNING, "jetsocket.pool"):
        for number in range(MOST_THERE):
            with pytest.raises(
                TimeoutError, match=r"hangs in __call__ \(test_stuck_threads.py:\d+\)"
            ) as timed_out:
                pool.acquire("/")
            assert timed_out.value.operation == "connect"
            wait_until(lambda expected=number + 1: len(state_of(pool).left_behind) == expected)
        began = monotonic()
        for refused in (
            lambda: pool.acquire("/"),
            lambda: pool.acquire("/", 0),
            lambda: pool.prewarm("/", 1),
        ):
            with pytest.raises(ConnectionError, match="8 threads that were to do so hang in __call__"):
                refused()
        assert monotonic() - began < 5  # and not three connect_timeouts with their acquires
        assert headers.calls == MOST_THERE
        headers.is_hanging = False
        assert patiently(lambda: pool.request("/other", 1, 5)) == 1  # with both slots free
        assert openers() <= MOST_THERE + 1
        assert faults(pool) == []
        wait_until(lambda: caplog.text.count("hangs in __call__ (test_stuck_threads.py:") == MOST_THERE)
        assert "8 such threads are left behind, and none is started for it" in caplog.text
        gate.set()
        wait_until(lambda: not state_of(pool).left_behind)
        assert patiently(lambda: pool.request("/", 2, 5)) == 2
        wait_until(lambda: caplog.text.count("has come back after") == MOST_THERE)


@pytest.mark.slow
def test_as_long_as_one_is_open_its_line_waits_for_that(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event
) -> None:
    headers = Hangs(gate)
    headers.is_hanging = False
    pool = make_pool(
        echo, max_connections=4, manager_kwargs={"extra_headers": headers, "connect_timeout": 0.05}
    )
    with patiently(lambda: pool.acquire("/")) as conn:
        calls = _leave_behind(pool, headers)
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", 0.3)
        assert headers.calls == calls
        conn.ping(5)
    assert pool.request("/", 1, 5) == 1


def _leave_behind(pool: ConnectionPool[Any], headers: Hangs) -> int:
    """Have as many threads hang as may be left behind; returns how often the headers were asked for then."""
    headers.is_hanging, calls = True, headers.calls + MOST_THERE
    wait_until(lambda: _try(pool) or headers.calls == calls, 30)
    wait_until(lambda: len(state_of(pool).left_behind) == MOST_THERE)
    return calls


def _try(pool: ConnectionPool[Any]) -> bool:
    with pytest.raises((TimeoutError, ConnectionError)):
        pool.acquire("/", 0.1)
    return False


@pytest.mark.slow
def test_callers_in_line_are_told_when_the_last_open_one_goes(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event
) -> None:
    headers = Hangs(gate)
    headers.is_hanging = False
    pool = make_pool(
        echo, max_connections=4, manager_kwargs={"extra_headers": headers, "connect_timeout": 0.05}
    )
    conn = patiently(lambda: pool.acquire("/"))
    _leave_behind(pool, headers)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            pool.acquire("/", 30)
        except ConnectionError as error:
            told.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: pool.stats().waiting == 1)
    conn.discard()
    conn.release()
    waiting.join(10)
    assert len(told) == 1
    assert "hang in __call__" in str(told[0])


def test_one_that_was_broken_off_for_another_uri_counts_once_its_time_is_over(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event
) -> None:
    pool = make_pool(
        echo,
        max_connections=2,
        manager_kwargs={"extra_headers": lambda: gate.wait(30) and {}, "connect_timeout": 2.0},
    )
    state = state_of(pool)
    with pytest.raises(PoolExhaustedError):
        _crowd_at(pool, "/hangs", 2)
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/other", 1.2)  # for which one of the two dials is broken off, after half a second
    [broken_off] = state.left_behind
    assert broken_off.is_over
    assert broken_off.target.resource == "/hangs"
    assert broken_off.overdue_at > monotonic()
    gate.set()
    wait_until(lambda: not state.left_behind)


def _crowd_at(pool: ConnectionPool[Any], path: str, count: int) -> None:
    others = [threading.Thread(target=lambda: _try_at(pool, path)) for _ in range(count - 1)]
    for thread in others:
        thread.start()
    try:
        pool.acquire(path, 0.2)
    finally:
        for thread in others:
            thread.join(10)


def _try_at(pool: ConnectionPool[Any], path: str) -> None:
    with pytest.raises(PoolExhaustedError):
        pool.acquire(path, 0.2)


class Stuck(Limiter):
    """A limiter that does not answer until the gate opens."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate
        self.out: set[Hashable] = set()

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        self.gate.wait(30)
        token = object()
        self.out.add(token)
        return token

    def release(self, token: Hashable) -> None:
        self.out.remove(token)


def test_a_limiter_that_hangs_is_told_too(echo: EchoServer, gate: threading.Event) -> None:
    limiter = Stuck(gate)
    config = ConnectionPoolConfig(max_connections=1, acquire_timeout=10)
    with ConnectionPool[Any](
        config, base_uri=echo.uri, limiter=limiter, manager_kwargs={"connect_timeout": 0.2}
    ) as pool:
        with pytest.raises(
            TimeoutError, match=r"hangs in acquire \(test_stuck_threads.py:\d+\) of the limiter"
        ) as told:
            pool.acquire("/")
        assert repr(pool.limits().popitem()[0]) in str(told.value)
        assert not isinstance(told.value, PoolExhaustedError)
        gate.set()
        wait_until(lambda: not state_of(pool).left_behind)
        wait_until(lambda: not limiter.out)  # the token that came too late went back
        assert patiently(lambda: pool.request("/", 1, 5)) == 1
        assert faults(pool) == []


def test_a_limiter_that_hangs_in_a_librarys_code_is_told_by_its_name(
    echo: EchoServer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Stuck(gate)
    made: dict[str, Any] = {"gate": gate}
    source = "def acquire(timeout, wanted): gate.wait(30)"
    exec(compile(source, "/usr/lib/site-packages/others.py", "exec"), made)
    monkeypatch.setattr(limiter, "acquire", made["acquire"])
    with ConnectionPool[Any](
        base_uri=echo.uri, limiter=limiter, manager_kwargs={"connect_timeout": 0.2}
    ) as pool:
        with pytest.raises(TimeoutError, match=r"hangs in acquire\(\) of the limiter"):
            pool.acquire("/", 10)
        gate.set()
        wait_until(lambda: not state_of(pool).left_behind)


def test_a_name_look_up_is_told_as_such(
    make_pool: MakePool, echo: EchoServer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs = functools.partial(gate.wait, 30)  # no function of the user's
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args: hangs())
    pool = make_pool(echo, manager_kwargs={"connect_timeout": 0.2})
    monkeypatch.setattr("jetsocket.user_errors._OTHERS", ("/", "<"))
    with pytest.raises(TimeoutError, match="its thread hangs in a name look-up;"):
        pool.acquire("ws://host.example/")
    gate.set()


@pytest.mark.slow
def test_one_that_is_only_late_is_not_said_to_hang(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(echo, manager_kwargs={"extra_headers": Hangs(gate), "connect_timeout": 0.1})
    with pytest.raises(TimeoutError):
        pool.acquire("/")
    gate.set()
    wait_until(lambda: not state_of(pool).left_behind)
    assert patiently(lambda: pool.request("/", 1, 5)) == 1
    assert threading.Event().wait(1.5) is False
    assert "hang" not in caplog.text


def test_a_dial_whose_thread_is_in_our_own_code_is_not_said_to_hang() -> None:
    dial = hung("a")
    assert why(dial, 0.2).startswith("0.2 s were not enough, and its thread has not come back")
    dial.hangs_in = "get_token (auth.py:7)"
    assert why(dial, 0.2).startswith("after 0.2 s its thread hangs in get_token (auth.py:7);")


def test_a_thread_that_is_late_with_its_own_timeout_is_waited_for(
    raw_server: Callable[..., RawServer], make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine, say: it knows why the dial failed, and who would give it up does not."""
    answer = Upgrade._read_answer

    def late(upgrade: Upgrade) -> None:
        try:
            answer(upgrade)
        finally:
            sleep(0.5)

    monkeypatch.setattr(Upgrade, "_read_answer", late)
    monkeypatch.setattr("jetsocket.user_errors._OTHERS", ("/", "<"))  # `late` is ours
    pool = make_pool(raw_server(hold), manager_kwargs={"connect_timeout": 0.2})
    with pytest.raises(TimeoutError, match="waiting for the answer to the upgrade request"):
        pool.acquire("/")
    assert not state_of(pool).left_behind


@pytest.mark.slow
def test_it_is_waited_for_once(
    raw_server: Callable[..., RawServer],
    make_pool: MakePool,
    gate: threading.Event,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Upgrade, "_read_answer", lambda _upgrade: gate.wait(30))
    monkeypatch.setattr("jetsocket.user_errors._OTHERS", ("/", "<"))
    pool = make_pool(raw_server(hold), manager_kwargs={"connect_timeout": 0.2})
    began, began_awake = monotonic(), awake()
    with pytest.raises(TimeoutError, match="its thread has not come back"):
        pool.acquire("/")
    assert monotonic() - began > 1.2
    assert awake() - began_awake < 2.5
    gate.set()


def test_close_waits_for_none_that_hangs(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event
) -> None:
    pool = make_pool(echo, manager_kwargs={"extra_headers": Hangs(gate), "connect_timeout": 0.1})
    with pytest.raises(TimeoutError):
        pool.acquire("/")
    began = awake()
    pool.close()
    assert awake() - began < 0.9  # it has a second for threads that are about to end


def test_a_thread_that_could_not_say_so_is_found_to_have_come_back(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo)
    pool.request("/", 1, 5)  # there is an opener now, and it waits for orders
    [opener] = [thread for thread in threading.enumerate() if thread.name == f"jetsocket-opener-{pool.name}"]
    dial = hung("a")
    dial.thread = opener.ident or 0
    state_of(pool).left_behind[dial] = None
    wait_until(lambda: not state_of(pool).left_behind)


def test_a_thread_that_is_in_a_dial_is_not(raw_server: Callable[..., RawServer], make_pool: MakePool) -> None:
    entered, gate = threading.Event(), threading.Event()

    def configure(_conn: Any) -> None:
        entered.set()
        gate.wait(30)

    pool = make_pool(raw_server(after_upgrade()), configure=configure)
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/", 0.1)
    assert entered.wait(5)
    [dial] = list(state_of(pool).dials)
    assert have_come_back([dial]) == []
    gate.set()
    wait_until(lambda: have_come_back([dial]) == [dial])


def test_a_reset_that_hangs_costs_its_connection_and_no_slot(
    echo: EchoServer, make_pool: MakePool, gate: threading.Event, caplog: pytest.LogCaptureFixture
) -> None:
    hanging = threading.Event()

    def reset(_conn: Any) -> None:
        if not hanging.is_set():
            hanging.set()
            gate.wait(30)

    pool = make_pool(echo, max_connections=1, reset=reset, health_check_timeout=0.2)
    borrower = threading.Thread(target=lambda: pool.request("/", 1, 5))
    borrower.start()
    assert hanging.wait(5)
    began = monotonic()
    assert pool.request("/", 2, 10) == 2
    assert 1.0 < monotonic() - began < 5.0
    assert pool.stats().discards == {"reset failed": 1}
    wait_until(lambda: "reset() hangs in reset (test_stuck_threads.py:" in caplog.text)
    gate.set()
    borrower.join(10)
    assert not borrower.is_alive()
    assert pool.request("/", 3, 5) == 3
    assert faults(pool) == []
