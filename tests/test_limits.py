"""The limiter's side of opening: it is asked before each dial, holds no slot meanwhile, and gets all back.

Also tests: `limits/base`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PoolExhaustedError
from jetsocket.exceptions import ConnectionError
from jetsocket.limits import Limiter
from jetsocket.state import State
from tests.awake import awake
from tests.books import faults, state_of
from tests.servers import EchoServer, RawServer, answer, wait_until


class Counting(Limiter):
    """A limiter in memory that notes by which thread it is called."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.numbers = iter(range(1_000_000))
        self.out: set[Hashable] = set()
        self.called_by: set[str] = set()
        self.changed = threading.Condition()

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        with self.changed:
            self.called_by.add(threading.current_thread().name)
            while len(self.out) >= self.most:
                if timeout <= 0 or not wanted() or not self.changed.wait(min(timeout, 0.05)):
                    return None
            token = next(self.numbers)
            self.out.add(token)
            return token

    def release(self, token: Hashable) -> None:
        with self.changed:
            self.called_by.add(threading.current_thread().name)
            self.out.remove(token)  # KeyError the second time
            self.changed.notify_all()


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What ended a job of a worker."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    return told


def pool_to(server: EchoServer | RawServer, limiter: Limiter, **fields: Any) -> ConnectionPool[Any]:
    return ConnectionPool(ConnectionPoolConfig(**fields), base_uri=server.uri, limiter=limiter)


def test_two_pools_share_its_number(echo: EchoServer, failures: list[Any]) -> None:
    limiter = Counting(3)
    with (
        pool_to(echo, limiter, max_connections=3) as one,
        pool_to(echo, limiter, max_connections=3) as two,
        ThreadPoolExecutor(1) as threads,
    ):
        held = [one.acquire("/", 5), two.acquire("/", 5), one.acquire("/", 5)]
        assert len(limiter.out) == 3
        with pytest.raises(PoolExhaustedError):
            two.acquire("/", 0.3)
        waiting = threads.submit(two.request, "/", 1, 5)
        wait_until(lambda: two.stats().waiting == 1)
        assert two.stats().connecting == 0  # it waits without a slot
        last = held.pop()
        last.discard()
        last.release()
        assert waiting.result(5) == 1
        for conn in held:
            conn.release()
        assert faults(one) == faults(two) == []
    wait_until(lambda: not limiter.out)
    assert echo.most_open == 3
    assert failures == []
    me = threading.current_thread().name
    assert limiter.called_by
    assert not [name for name in limiter.called_by if name == me or "housekeeper" in name]


def test_a_dial_that_fails_gives_its_token_back(
    raw_server: Callable[..., RawServer], failures: list[Any]
) -> None:
    limiter = Counting(1)
    with pool_to(raw_server(answer("403 Forbidden")), limiter) as pool:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                pool.acquire("/", 5)
            wait_until(lambda: not limiter.out)
    assert failures == []


def test_one_that_is_wanted_no_more_is_not_opened(echo: EchoServer, failures: list[Any]) -> None:
    limiter = Counting(0)
    with pool_to(echo, limiter) as pool:
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", 0.1)
        limiter.most = 1
        assert pool.request("/", 1, 5) == 1
    assert echo.opened == 1
    wait_until(lambda: not limiter.out)
    assert failures == []


def test_a_dial_that_ends_after_its_pool_gives_its_token_back(
    failures: list[Any],
) -> None:
    limiter, asked, go_on = Counting(1), threading.Event(), threading.Event()

    def headers() -> dict[str, str]:
        asked.set()
        go_on.wait(10)
        return {}

    with (
        ConnectionPool(
            base_uri="ws://127.0.0.1:9", limiter=limiter, manager_kwargs={"extra_headers": headers}
        ) as pool,
        ThreadPoolExecutor(1) as threads,
    ):
        acquiring = threads.submit(pool.acquire, "/")
        assert asked.wait(5)
        pool.close(0)
        assert acquiring.exception(5) is not None
    go_on.set()
    wait_until(lambda: not limiter.out)
    assert failures == []


def test_each_attempt_asks_for_a_token_of_its_own(
    raw_server: Callable[..., RawServer], failures: list[Any]
) -> None:
    """That of an attempt that failed goes back with it: the next one is not without."""
    limiter, raw = Counting(5), raw_server(answer("503 Service Unavailable"))
    with ConnectionPool(
        base_uri=raw.uri, limiter=limiter, manager_kwargs={"connect_attempts": 3, "connect_timeout": 2.0}
    ) as pool:
        with pytest.raises(ConnectionError):
            pool.acquire("/")
        assert next(limiter.numbers) == 3
        wait_until(lambda: not limiter.out)
    assert failures == []


@pytest.mark.slow
def test_at_its_limit_other_uris_are_served_beside_a_hungry_one(
    echo: EchoServer, failures: list[Any]
) -> None:
    """What makes room gives its token back, too, and that takes a moment: the slot is kept so long."""
    limiter = Counting(3)
    with (
        pool_to(echo, limiter, max_connections=3, acquire_timeout=5) as pool,
        ThreadPoolExecutor(4) as threads,
    ):
        pool.prewarm("/", 3)
        until = monotonic() + 2.0

        def work(number: int) -> int:
            calls = 0
            while monotonic() < until:
                with pool.acquire("/") as conn:
                    conn.request(number, 5)
                    sleep(0.002)
                calls += 1
            return calls

        hungry = [threads.submit(work, number) for number in range(4)]
        served = 0
        while monotonic() < until:
            with pool.acquire(f"/{served}", 5) as conn:
                conn.request(served, 5)
            served += 1
        assert served >= 10
        assert min(each.result(10) for each in hungry) >= 10
    wait_until(lambda: not limiter.out)
    assert failures == []


def test_a_token_waits_until_a_thread_can_be_started_to_release_it(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter, start, failed = Counting(5), threading.Thread.start, []
    may_start = threading.Event()

    def start_unless_it_releases(self: threading.Thread) -> None:
        if "limiter" in self.name and not may_start.is_set():
            failed.append(self.name)
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_unless_it_releases)
    with pool_to(echo, limiter) as pool:
        assert pool.prewarm("/", 2) == 2
        pool.clear()
        wait_until(lambda: len(failed) >= 2)
        assert len(limiter.out) == 2
        may_start.set()
        wait_until(lambda: not limiter.out)


def test_what_is_no_limiter_is_refused() -> None:
    with pytest.raises(TypeError, match="limiter"):
        ConnectionPool(limiter=object())  # type: ignore[arg-type]
    for call in (lambda: Limiter().acquire(0, bool), lambda: Limiter().release(1)):
        with pytest.raises(NotImplementedError):
            call()


@pytest.mark.parametrize("callback", ["reset", "check"])
def test_a_callback_that_outlasts_the_pool_holds_no_token(
    echo: EchoServer, failures: list[Any], callback: str
) -> None:
    limiter, asked, go_on = Counting(1), threading.Event(), threading.Event()

    def outlast(_conn: Any) -> None:
        asked.set()
        go_on.wait(10)

    config = ConnectionPoolConfig(health_check_interval=0.1)
    pool = ConnectionPool[Any](config, base_uri=echo.uri, limiter=limiter, **{callback: outlast})
    with ThreadPoolExecutor(1) as threads:
        releasing = threads.submit(pool.acquire("/", 5).release)
        assert asked.wait(5)
        pool.close()
        wait_until(lambda: not limiter.out)  # its socket is closed, so another pool may open one
        assert faults(pool) == []
        go_on.set()
        releasing.result(5)
    assert faults(pool) == []
    assert failures == []


def test_a_pool_that_is_dropped_after_its_close_was_struck_gives_all_tokens_back(
    echo: EchoServer, failures: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limiter = Counting(3)
    pool = pool_to(echo, limiter)
    pool.prewarm("/", 3)
    with monkeypatch.context() as struck, pytest.raises(KeyboardInterrupt):

        def retire(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        struck.setattr(State, "_retire", retire)
        pool.close()
    assert len(limiter.out) == 3
    del pool
    wait_until(lambda: not limiter.out)
    wait_until(lambda: echo.open_now == 0)
    assert failures == []


def test_one_that_has_none_at_once_is_not_asked_all_the_time(echo: EchoServer) -> None:
    class Refusing(Limiter):
        asked = 0

        def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
            self.asked += 1
            return None

    limiter = Refusing()
    with pool_to(echo, limiter) as pool:
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", 0.5)
        assert 2 <= limiter.asked < 30
        closing = awake()
    assert awake() - closing < 1


def test_a_release_that_raises_at_the_end_keeps_no_other_token(echo: EchoServer, failures: list[Any]) -> None:
    """What came too late for the housekeeper is given back by the openers."""

    class Failing(Counting):
        def release(self, token: Hashable) -> None:
            super().release(token)
            raise OSError("the limiter's server is gone")

    limiter, asked, go_on = Failing(3), threading.Event(), threading.Event()

    def headers() -> dict[str, str]:
        asked.set()
        go_on.wait(10)
        return {}

    pool = ConnectionPool[Any](base_uri=echo.uri, limiter=limiter, manager_kwargs={"extra_headers": headers})
    with ThreadPoolExecutor(1) as threads:
        acquiring = threads.submit(pool.acquire, "/")
        assert asked.wait(5)
        (quota,) = state_of(pool).quotas.all
        others = [quota.acquire(0, bool), quota.acquire(0, bool)]
        pool.close(0)
        state_of(pool).spent.extend(others)
        go_on.set()
        assert acquiring.exception(5) is not None
    wait_until(lambda: not limiter.out)
    assert [each.exc_type for each in failures] == [OSError] * 3
