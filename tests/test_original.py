"""The usage that the asyncio original documents, with `async` and `await` taken away, as written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PoolClosedError, PoolExhaustedError
from tests.servers import Connection, EchoServer

MakeServer = Callable[..., EchoServer]


def trades(conn: Connection) -> None:
    """Confirm a subscription, push three trades, close normally."""
    conn.send(json.dumps({"subscribed": json.loads(conn.recv())["subscribe"]}))
    for number in range(3):
        conn.send(json.dumps({"trade": number}))


def test_the_four_defaults() -> None:
    config = ConnectionPoolConfig()
    assert config.max_connections == 10
    assert config.max_idle_time == 300.0
    assert config.health_check_interval == 30.0
    assert config.acquire_timeout == 10.0
    assert ConnectionPool().config == config


def test_the_example(echo_server: MakeServer) -> None:
    server = echo_server(trades)
    processed: list[Any] = []
    process = processed.append
    with ConnectionPool(ConnectionPoolConfig(max_connections=10), base_uri=server.uri) as pool:  # noqa: SIM117
        with pool.acquire("/ws/btcusdt") as conn:
            conn.send({"subscribe": "trades"})
            for msg in conn:
                process(msg)
    assert processed == [{"subscribed": "trades"}, *({"trade": number} for number in range(3))]
    assert server.paths == ["/ws/btcusdt"]


def test_acquire_and_release_by_hand(echo: EchoServer) -> None:
    pool = ConnectionPool[Any](ConnectionPoolConfig(), base_uri=echo.uri)
    conn = pool.acquire("/ws")
    try:
        conn.send({"method": "ping"})
        assert conn.recv() == {"method": "ping"}
        conn.send_raw("text")
        assert conn.recv_raw() == "text"
        conn.send_raw(b"bytes")
        assert conn.recv_raw() == b"bytes"
        assert conn.is_connected
    finally:
        pool.release(conn)
    assert not conn.is_connected
    pool.release(conn)
    pool.close()
    pool.close()
    assert pool.is_closed
    with pytest.raises(PoolClosedError):
        pool.acquire("/ws")


def test_full_uri_or_path(echo: EchoServer) -> None:
    with ConnectionPool[Any](base_uri=f"{echo.uri}/api/") as pool:
        for given in (f"{echo.uri}/one", "/two", "three", "?four=4", ""):
            with pool.acquire(given) as conn:
                assert conn.request([given]) == [given]
    assert echo.paths == ["/one", "/two", "/api/three", "/api/?four=4", "/api/"]
    with ConnectionPool[Any]() as pool, pool.acquire(echo.uri_for("/five?x=%20y")) as conn:
        assert conn.uri == f"{echo.uri}/five?x=***"


def test_timeout_and_the_exhausted_error(echo: EchoServer) -> None:
    config = ConnectionPoolConfig(max_connections=2, acquire_timeout=0.25)
    with ConnectionPool[Any](config, base_uri=echo.uri) as pool:  # noqa: SIM117
        with pool.acquire("/", timeout=5.0), pool.acquire("/", timeout=5.0):
            with pytest.raises(PoolExhaustedError) as raised:
                pool.acquire("/", timeout=0.1)
            assert raised.value.max_connections == 2
            assert raised.value.timeout == 0.1
            with pytest.raises(PoolExhaustedError) as raised:
                pool.acquire("/")
            assert raised.value.timeout == 0.25


def test_the_six_stats(echo: EchoServer) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool:
        with pool.acquire("/") as conn:
            conn.request(1)
            during = pool.stats()
        after = pool.stats()
    six = [
        "total_connections",
        "active_connections",
        "idle_connections",
        "total_messages_sent",
        "total_messages_received",
        "total_reconnects",
    ]
    assert [getattr(during, name) for name in six] == [1, 1, 0, 1, 1, 0]
    assert [getattr(after, name) for name in six] == [1, 0, 1, 1, 1, 0]


def test_manager_kwargs(echo_server: MakeServer) -> None:
    server = echo_server(subprotocols=["v1.json"])
    pool = ConnectionPool[Any](
        ConnectionPoolConfig(max_connections=5),
        base_uri=server.uri,
        manager_kwargs={
            "serializer": lambda data: json.dumps({"wrapped": data}).encode(),
            "deserializer": lambda payload: json.loads(payload)["wrapped"],
            "extra_headers": {"Authorization": "Bearer token", "X-Client": "one"},
            "subprotocols": ["v1.json"],
            "compress": True,
            "compression_threshold": 1024,
            "connect_timeout": 5.0,
            "send_timeout": 5.0,
            "recv_timeout": 5.0,
            "close_timeout": 1.0,
            "max_message_size": 1 << 20,
            "origin": "https://example.com",
            "cookie": "a=b",
            "max_redirects": 2,
        },
    )
    with pool, pool.acquire("/") as conn:
        assert conn.request([1, "two"]) == [1, "two"]
        assert conn.subprotocol == "v1.json"
    headers = server.requests[0].headers
    assert headers["Authorization"] == "Bearer token"
    assert headers["X-Client"] == "one"
    assert headers["Origin"] == "https://example.com"
    assert headers["Cookie"] == "a=b"


def test_headers_by_a_callable_are_asked_at_every_connect(echo: EchoServer) -> None:
    tokens = iter(["first", "second", "third"])
    options = {"extra_headers": lambda: [("Authorization", f"Bearer {next(tokens)}")]}
    with ConnectionPool[Any](base_uri=echo.uri, manager_kwargs=options) as pool:
        for path in ("/a", "/a", "/b"):
            pool.request(path, 1)
    assert [request.headers["Authorization"] for request in echo.requests] == [
        "Bearer first",
        "Bearer second",
    ]


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("heartbeat", 30, "health_check_interval"),
        ("max_connection_age", 60, "max_lifetime"),
        ("reconnect", True, "connect_attempts"),
        ("backoff", None, "connect_attempts"),
        ("buffer", 100, "reuse"),
        ("replay", True, "never sends a message twice"),
        ("subprotocol", ["v1"], "subprotocols"),
        ("compresion", True, "compress"),
    ],
)
def test_options_that_are_none_say_what_to_set(name: str, value: Any, instead: str) -> None:
    with pytest.raises(TypeError, match=instead) as raised:
        ConnectionPool(manager_kwargs={name: value})
    assert name in str(raised.value)


def test_a_typed_pool_and_its_repr(echo: EchoServer) -> None:
    pool: ConnectionPool[list[int]] = ConnectionPool(base_uri=echo.uri, name="typed")
    with pool:
        first: list[int] = pool.request("/", [1])
        with pool.acquire("/") as conn:
            conn.send([2])
            second: list[int] = conn.recv()
            assert repr(conn) == f"<PooledConnection {conn.id} connected {echo.uri}/>"
        assert "typed" in repr(pool)
        assert "idle=1" in repr(pool)
    assert "closed=True" in repr(pool)
    assert first + second == [1, 2]
