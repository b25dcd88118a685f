"""`RedisLimiter` where no Redis is: its arguments, and what it says and does while Redis is away.

With one: tests/integration/test_redis_limiter.py.

Also tests: `desk`, `fleet`, `line`, `link`, `session`.
"""

from __future__ import annotations

import gc
import logging
import pickle
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("redis")

from jetsocket import ConnectionError, ConnectionPool, PoolExhaustedError
from jetsocket.contrib.redis import RedisLimiter
from tests.awake import awake
from tests.servers import LOCALHOST, EchoServer, refusing_port, wait_until


class Owner:
    """A pool that notes what it is told."""

    def __init__(self) -> None:
        self.lost_tokens: list[tuple[Any, str]] = []
        self.asked: list[tuple[int, bool]] = []

    def lost(self, token: Any, reason: str) -> None:
        self.lost_tokens.append((token, reason))

    def give_up(self, count: int = 1, *, returned: bool = False) -> None:
        self.asked.append((count, returned))


def threads() -> list[str]:
    return [each.name for each in threading.enumerate() if "jetsocket-redis" in each.name]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    wait_until(lambda: not threads(), 5, "the limiter's threads end")


@pytest.fixture
def nowhere() -> Iterator[str]:
    with refusing_port() as port:
        yield f"redis://me:hunter22secret@{LOCALHOST}:{port}/3"


def always() -> bool:
    return True


# --- arguments


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"name": 1}, TypeError, "name must be a str"),
        ({"name": ""}, ValueError, "without braces"),
        ({"name": "a{b"}, ValueError, "without braces"),
        ({"name": "a\nb"}, ValueError, "printable"),
        ({"limit": 0}, ValueError, "limit must be 1 or more"),
        ({"limit": True}, TypeError, "limit must be an int"),
        ({"limit": 2.0}, TypeError, "limit must be an int"),
        ({"lease": 0.5}, ValueError, "lease must be from 1 s"),
        ({"lease": "10"}, TypeError, "lease must be a number of seconds"),
        ({"lease": float("nan")}, ValueError, "lease must be from 1 s"),
        ({"turn": 0}, ValueError, "turn must be from 0.01 s"),
        ({"on_error": "ignore"}, ValueError, "on_error must be one of closed, open, local"),
        ({"on_error": "local"}, ValueError, "expected_processes are only given together"),
        ({"expected_processes": 3}, ValueError, "expected_processes are only given together"),
        ({"on_error": "local", "expected_processes": 0}, ValueError, "expected_processes must be 1 or more"),
        ({"client_or_url": 7}, TypeError, r"client_or_url must be a URL, a redis\.Redis"),
        ({"client_or_url": "http://h"}, ValueError, "redis://"),
    ],
)
def test_wrong_arguments_are_refused(changed: dict[str, Any], error: type[Exception], told: str) -> None:
    usual = {"client_or_url": "redis://h", "name": "n", "limit": 3}
    given = {**usual, **changed}
    with pytest.raises(error, match=told):
        RedisLimiter(given.pop("client_or_url"), given.pop("name"), **given)


def test_it_shows_what_it_is_and_no_password(nowhere: str) -> None:
    limiter = RedisLimiter(nowhere, "binance", limit=20)
    assert repr(limiter).startswith("<RedisLimiter 'binance': 20 slots, Redis at 127.0.0.1:")
    assert "hunter22secret" not in repr(limiter)
    assert limiter.name == "binance"
    assert "/tmp/none" in repr(RedisLimiter("unix:///tmp/none", "n", limit=1))


def test_a_client_is_taken_for_its_address_only(nowhere: str) -> None:
    from redis import Redis

    client = Redis.from_url(nowhere, decode_responses=True, socket_timeout=77)
    limiter = RedisLimiter(client, "n", limit=1)
    with pytest.raises(ConnectionError, match="Redis at 127"):
        limiter.acquire(0, always)
    assert client.connection_pool.connection_kwargs["socket_timeout"] == 77


def test_only_its_own_tokens_are_released(nowhere: str) -> None:
    limiter = RedisLimiter(nowhere, "n", limit=1, on_error="open")
    with pytest.raises(TypeError, match="no token of a RedisLimiter"):
        limiter.release("token")
    token = limiter.acquire(0, always)
    limiter.release(token)
    with pytest.raises(ValueError, match="released before"):
        limiter.release(token)
    RedisLimiter(nowhere, "n", limit=1, on_error="open").release(token)  # another's: not its business


# --- Redis away


def test_closed_the_error_names_redis_and_what_on_error_does(nowhere: str, caplog: Any) -> None:
    limiter, owner = RedisLimiter(nowhere, "binance", limit=1), Owner()
    limiter.bind(owner)
    with caplog.at_level(logging.INFO, "jetsocket.redis"):
        for timeout in (0, 5, 0):
            with pytest.raises(ConnectionError) as failed:
                limiter.acquire(timeout, always)
            told = str(failed.value)
            assert told.startswith("Redis at 127.0.0.1:")
            assert 'on_error="closed"' in told
            assert "'binance'" in told
            assert "refused" in told
            assert "hunter22secret" not in told
            assert str(pickle.loads(pickle.dumps(failed.value))) == told
    assert limiter.stats()["away"] is True
    assert limiter.stats()["errors"] >= 1

    def warnings() -> list[str]:
        return [each.message for each in caplog.records if each.levelno == logging.WARNING]

    wait_until(warnings, 10)  # the thread that found it out may say so later
    limiter.unbind(owner, 1)
    wait_until(lambda: not threads(), 5)
    assert len(warnings()) == 1
    assert "does not answer" in warnings()[0]


def test_open_there_are_connections_without_slots(nowhere: str) -> None:
    limiter = RedisLimiter(nowhere, "n", limit=1, on_error="open")
    tokens: list[Any] = [limiter.acquire(0, always) for _ in range(5)]
    assert len(set(tokens)) == 5
    assert {token.fence for token in tokens} == {None}
    assert limiter.stats()["without_slot"] == 5
    for token in tokens:
        limiter.release(token)
    assert limiter.stats()["without_slot"] == 0


def test_a_process_that_has_left_opens_nothing_without_a_slot(nowhere: str) -> None:
    limiter, owner = RedisLimiter(nowhere, "n", limit=1, on_error="open"), Owner()
    limiter.bind(owner)
    session = limiter._session()
    assert session.take(owner) is not None
    limiter.unbind(owner, 1)
    assert session.take(owner) is None  # an opener that was late


def test_local_a_process_has_its_share(nowhere: str) -> None:
    limiter = RedisLimiter(nowhere, "n", limit=10, on_error="local", expected_processes=4)
    tokens = [limiter.acquire(0, always) for _ in range(3)]
    assert [token is not None for token in tokens] == [True, True, False]
    assert limiter.acquire(0.1, always) is None
    assert "on_error='local' allows this process 2 without it, and 2 are open so" in limiter.stats()["note"]

    def release() -> None:
        wait_until(lambda: waiting)
        limiter.release(tokens[0])

    waiting: list[bool] = []

    def wanted() -> bool:
        waiting.append(True)
        return True

    thread = threading.Thread(target=release)
    thread.start()
    assert limiter.acquire(10, wanted) is not None
    thread.join()


def test_a_caller_is_told_what_on_error_allows(nowhere: str, echo: EchoServer) -> None:
    limiter = RedisLimiter(nowhere, "n", limit=4, on_error="local", expected_processes=4)
    with (
        ConnectionPool[Any](base_uri=echo.uri, limiter=limiter) as pool,
        pool.acquire("/"),
        pytest.raises(PoolExhaustedError, match=r"Redis does not answer .* on_error='local' allows"),
    ):
        pool.acquire("/", 0.3)


def test_who_waits_leaves_when_it_is_not_wanted_and_when_its_time_is_over(nowhere: str) -> None:
    limiter = RedisLimiter(nowhere, "n", limit=1, on_error="local", expected_processes=1)
    token = limiter.acquire(0, always)
    looks = iter([True, True, False])
    assert limiter.acquire(30, lambda: next(looks)) is None
    start = awake()
    assert limiter.acquire(0.3, always) is None
    assert awake() - start < 1.5
    limiter.release(token)


class Deaf:
    """A server that takes connections, and does what it is told with them."""

    def __init__(self, *, closes: bool) -> None:
        self.accepted = 0
        self._closes = closes
        self._kept: list[socket.socket] = []
        self._listener = socket.create_server((LOCALHOST, 0))
        self.url = f"redis://{LOCALHOST}:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while True:
            conn, _ = self._listener.accept()
            self.accepted += 1
            if self.accepted > 1_000_000:
                conn.close()
                return
            if self._closes:
                conn.close()
            else:
                self._kept.append(conn)

    def __enter__(self) -> Deaf:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.accepted = 1_000_000
        socket.create_connection(self._listener.getsockname()).close()
        self._thread.join(10)
        self._listener.close()
        for conn in self._kept:
            conn.close()


def test_it_tries_at_least_twice_a_second_to_reach_redis() -> None:
    with Deaf(closes=True) as deaf:
        limiter = RedisLimiter(deaf.url, "n", limit=1)
        with pytest.raises(ConnectionError):
            limiter.acquire(0, always)
        before, start = deaf.accepted, awake()
        wait_until(lambda: deaf.accepted >= before + 6, 10)
        assert awake() - start < 4
        del limiter
        gc.collect()
        wait_until(lambda: not threads(), 5)


def test_a_redis_that_says_nothing_is_away_in_time() -> None:
    with Deaf(closes=False) as deaf:
        limiter, owner = RedisLimiter(deaf.url, "n", limit=1, lease=1.2), Owner()
        limiter.bind(owner)
        start = awake()
        with pytest.raises(ConnectionError, match="does not answer"):
            limiter.acquire(0, always)
        assert awake() - start < 2.5
        start = awake()
        with pytest.raises(ConnectionError, match="does not answer"):
            limiter.acquire(5, always)  # it is known by now
        assert awake() - start < 0.5
        limiter.unbind(owner, 2)


def test_the_last_pool_that_is_closed_ends_it_in_the_time_it_has(nowhere: str) -> None:
    limiter, one, two = RedisLimiter(nowhere, "n", limit=1, on_error="open"), Owner(), Owner()
    limiter.bind(one)
    limiter.bind(two)
    token = limiter.acquire(0, always)
    limiter.unbind(one, 0.1)
    assert threads()
    limiter.release(token)
    start = awake()
    limiter.unbind(two, 0.1)
    assert awake() - start < 0.5
    wait_until(lambda: not threads(), 3)
    limiter.bind(one)  # a pool that is made later begins anew
    limiter.release(limiter.acquire(0, always))
    limiter.unbind(one, 1)


def test_a_limiter_that_is_dropped_ends_its_threads(nowhere: str) -> None:
    limiter = RedisLimiter(nowhere, "n", limit=1, on_error="open")
    limiter.acquire(0, always)
    assert threads()
    del limiter
    gc.collect()
    wait_until(lambda: not threads(), 5)
