"""Numbers that no float holds, wherever a number of seconds is taken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection
from jetsocket.wire.websocket import WebSocket
from tests.servers import EchoServer, open_sockets, wait_until

Pool = ConnectionPool[Any]
Lease = PooledConnection[Any]

TOO_SMALL = [-1, -0.1, float("nan"), float("-inf"), -(10**400), -(10**5000)]
FOR_EVER = [float("inf"), threading.TIMEOUT_MAX * 2, 10**400, 10**5000]

OF_A_POOL: dict[str, Callable[[Pool, Any], object]] = {
    "acquire": lambda pool, timeout: pool.acquire("/", timeout).release(),
    "request": lambda pool, timeout: pool.request("/", {}, timeout),
    "drain": lambda pool, timeout: pool.drain(timeout),
    "close": lambda pool, timeout: pool.close(timeout),
}
OF_A_LEASE: dict[str, Callable[[Lease, Any], object]] = {
    "recv": lambda conn, timeout: (conn.send({}), conn.recv(timeout)),
    "recv_raw": lambda conn, timeout: (conn.send({}), conn.recv_raw(timeout)),
    "request": lambda conn, timeout: conn.request({}, timeout),
    "ping": lambda conn, timeout: conn.ping(timeout),
}
TIMES = [
    "max_idle_time",
    "health_check_interval",
    "acquire_timeout",
    "health_check_timeout",
    "max_lifetime",
    "leak_threshold",
]
OPTION_TIMES = ["connect_timeout", "send_timeout", "recv_timeout", "close_timeout"]


def said_of(error: pytest.ExceptionInfo[ValueError], name: str) -> None:
    assert name in str(error.value)
    assert len(str(error.value)) < 1200


@pytest.mark.parametrize("timeout", TOO_SMALL, ids=range(len(TOO_SMALL)))
@pytest.mark.parametrize("operation", OF_A_POOL.values(), ids=OF_A_POOL)
def test_a_pool_refuses_what_is_too_small(echo: EchoServer, operation: Any, timeout: Any) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool:
        with pytest.raises(ValueError, match="timeout must be 0 s or more") as raised:
            operation(pool, timeout)
        said_of(raised, "timeout")
        assert pool.stats().active_connections == 0
        assert not pool.is_closed


@pytest.mark.parametrize("operation", OF_A_LEASE.values(), ids=OF_A_LEASE)
def test_a_lease_refuses_what_is_too_small(echo: EchoServer, operation: Any) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool, pool.acquire("/") as conn:
        for timeout in TOO_SMALL:
            with pytest.raises(ValueError, match="timeout must be 0 s or more") as raised:
                operation(conn, timeout)
            said_of(raised, "timeout")


@pytest.mark.parametrize("timeout", FOR_EVER, ids=range(len(FOR_EVER)))
@pytest.mark.parametrize("operation", OF_A_POOL.values(), ids=OF_A_POOL)
def test_a_pool_takes_what_is_for_ever(echo: EchoServer, operation: Any, timeout: Any) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool:
        operation(pool, timeout)


@pytest.mark.parametrize("timeout", FOR_EVER, ids=range(len(FOR_EVER)))
@pytest.mark.parametrize("operation", OF_A_LEASE.values(), ids=OF_A_LEASE)
def test_a_lease_takes_what_is_for_ever(echo: EchoServer, operation: Any, timeout: Any) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool, pool.acquire("/") as conn:
        operation(conn, timeout)


@pytest.mark.parametrize("name", TIMES)
def test_the_config_names_the_field(name: str) -> None:
    for value in [*TOO_SMALL, *FOR_EVER]:
        with pytest.raises(ValueError, match=f"ConnectionPoolConfig.{name} must be") as raised:
            ConnectionPoolConfig(**{name: value})
        said_of(raised, name)


@pytest.mark.parametrize("name", OPTION_TIMES)
def test_the_options_name_the_key(name: str) -> None:
    for value in [*TOO_SMALL, *FOR_EVER]:
        with pytest.raises(ValueError, match=name) as raised:
            ConnectionPool(manager_kwargs={name: value})
        said_of(raised, name)


@pytest.mark.parametrize("name", ["max_connections", "max_waiting"])
def test_counts_that_are_too_small(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be") as raised:
        ConnectionPoolConfig(**{name: -(10**5000)})
    said_of(raised, name)


@pytest.mark.parametrize("count", [-(10**400), -(10**5000)], ids=range(2))
def test_prewarm_refuses_what_is_too_small(count: int) -> None:
    with ConnectionPool[Any]() as pool, pytest.raises(ValueError, match="count must be 0 or more") as raised:
        pool.prewarm("ws://127.0.0.1/", count)
    said_of(raised, "count")


def test_the_wire_alone_takes_what_is_for_ever(echo: EchoServer) -> None:
    before = open_sockets()
    ws = WebSocket()
    ws.connect(echo.uri, timeout=10**400)
    ws.settimeout(10**400)
    ws.send("hello")
    assert ws.recv() == "hello"
    ws.close(timeout=10**400)
    wait_until(lambda: open_sockets() <= before)  # the server's side may take a moment
