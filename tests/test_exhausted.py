"""What a caller is told for whom there was no connection: what there is, who has it, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import (
    ConnectionError,
    ConnectionPool,
    ConnectionPoolConfig,
    HandshakeError,
    PoolExhaustedError,
)
from jetsocket.borrower import Borrower
from jetsocket.exhausted import now_there, remedy, why
from jetsocket.state import Exhaustion
from tests.servers import EchoServer, RawServer, answer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]

NOTHING = Exhaustion()


def asked(limit: float) -> Borrower:
    borrower = Borrower()
    borrower.limit = limit
    return borrower


@pytest.mark.parametrize(
    ("limit", "at_once", "told", "advised"),
    [
        (0.0, False, "timeout=0 waits for none", "give a timeout"),
        (2.0, True, "max_waiting=5 is the limit", "let more callers wait"),
        (2.5, False, "none within 2.5 s", "wait longer"),
    ],
)
def test_it_says_which_limit_it_was_and_what_to_do(
    limit: float, at_once: bool, told: str, advised: str
) -> None:
    config, borrower = ConnectionPoolConfig(max_waiting=5), asked(limit)
    assert told in why(borrower, config, at_once=at_once)
    assert advised in remedy(NOTHING, config, borrower, at_once=at_once)


def test_max_waiting_is_not_told_to_wait_longer() -> None:
    assert "wait longer" not in remedy(NOTHING, ConnectionPoolConfig(max_waiting=0), asked(1.0), at_once=True)


def test_more_connections_are_no_remedy_where_they_are_slow_to_open() -> None:
    slow = Exhaustion(opening=4, opening_since=10.0)
    assert now_there(slow, 11.5) == "0 lent, 0 idle, 4 being opened for 1.5 s, 0 waiting"
    advice = remedy(slow, ConnectionPoolConfig(max_connections=4), asked(1.0), at_once=False)
    assert "raise max_connections" not in advice
    refused = remedy(slow, ConnectionPoolConfig(max_waiting=0), asked(1.0), at_once=True)
    assert "raise max_connections" not in refused and "max_waiting" in refused
    full = Exhaustion(opening=4, opening_since=10.0, lent=[asked(1.0)] * 4)
    assert "raise max_connections" in remedy(
        full, ConnectionPoolConfig(max_connections=4), asked(1.0), at_once=False
    )


def test_the_limit_of_a_uri_is_named() -> None:
    config = ConnectionPoolConfig(max_connections=9, max_per_uri=2)
    full = Exhaustion(lent=[asked(1.0)] * 2, open_there=2)
    advice = remedy(full, config, asked(1.0), at_once=False)
    assert "raise max_per_uri" in advice
    assert "raise max_connections" not in advice
    fewer = Exhaustion(lent=[asked(1.0)] * 2, open_there=1)
    assert "max_per_uri" not in remedy(fewer, config, asked(1.0), at_once=False)


@pytest.mark.parametrize("error", [HandshakeError("429"), ConnectionError("Redis does not answer")])
def test_more_connections_are_no_remedy_where_none_can_be_opened(error: ConnectionError) -> None:
    refused = Exhaustion(lent=[asked(1.0)], last_connect_error=error, open_there=1)
    advice = remedy(refused, ConnectionPoolConfig(max_connections=4), asked(1.0), at_once=False)
    assert advice == "No other connection can be opened for now: release sooner, or wait (acquire_timeout)"


def test_the_three_longest_holders_are_named(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=4)
    with ThreadPoolExecutor(1, thread_name_prefix="other") as threads:
        held = [threads.submit(pool.acquire, f"/{number}?key=secret").result(5) for number in range(4)]
        with pytest.raises(PoolExhaustedError) as raised:
            pool.acquire("/mine", 0.05)
        error = raised.value
        assert len(error.holders) == 3
        for conn, holder in zip(held, error.holders, strict=False):
            assert f"connection {conn.id} to {conn.uri} for " in holder
            assert "by thread 'other" in holder
            assert holder in str(error)
        assert "secret" not in str(error)
        assert (error.max_connections, error.waiting, error.idle, error.connecting) == (4, 0, 0, 0)
        for conn in held:
            conn.release()
    assert pool.stats().timeouts == 1


def test_the_last_connect_error_is_told(raw_server: Callable[..., RawServer], make_pool: MakePool) -> None:
    server = raw_server(answer("503 Busy"))
    pool = make_pool(server)
    with pytest.raises(HandshakeError):
        pool.acquire("/", 5)
    with pytest.raises(PoolExhaustedError, match="refused with 503") as raised:
        pool.acquire("/", 0)
    assert isinstance(raised.value.last_connect_error, HandshakeError)
    wait_until(lambda: pool.stats().connecting == 0)
