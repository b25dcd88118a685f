"""What a user writes, typed. Type checkers refuse the lines that are marked as wrong, and no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

import jetsocket
from jetsocket import (
    ConnectionPool,
    ConnectionPoolConfig,
    HandshakeError,
    PooledConnection,
    PoolStats,
    Subscription,
    TimeoutError,
)
from jetsocket.auth import Auth, BearerAuth, Prepared, TicketAuth
from jetsocket.correlation import JsonRpc


class Trade(TypedDict):
    symbol: str
    price: float


config = ConnectionPoolConfig(max_connections=10, reuse="quiet")
ConnectionPoolConfig(max_connections="10")  # wrong
ConnectionPoolConfig(reuse="sometimes")  # wrong
ConnectionPoolConfig(max_conections=10)  # wrong
config.max_connections = 11  # wrong


def configure(conn: PooledConnection[Trade]) -> None:
    conn.send({"login": "me"})
    conn.recv(timeout=1.0)
    conn.recv(timeout="1")  # wrong


trades: ConnectionPool[Trade] = ConnectionPool(
    config, base_uri="wss://example.com", manager_kwargs={"auth": BearerAuth("token")}, configure=configure
)
ConnectionPool(base_url="wss://example.com")  # wrong
ConnectionPool(configure=1)  # wrong
pools = jetsocket.ConnectionPools  # wrong
__version__: str = jetsocket.__version__


def prices() -> Iterator[float]:
    with trades.acquire("/ws") as conn:
        conn.send({"subscribe": "trades"})
        for trade in conn:
            yield trade["price"]
            yield trade["prize"]  # wrong
        latency: float | None = conn.latency_ms
        name: int = conn.uri  # wrong
        print(latency, name)


def ask(pool: ConnectionPool[Any]) -> int:
    stats: PoolStats = pool.stats()
    try:
        pool.request("/", {"id": 1}, timeout=5)
        pool.request("/")  # wrong
        pool.acquire(b"/")  # wrong
    except HandshakeError as error:
        status: int | None = error.status_code
        return status  # wrong
    except TimeoutError as late:
        return len(late.operation)
    with pool.subscribe("/", {"method": "watch"}) as watch:
        subscription: Subscription[Any] = watch
        print(subscription.get(timeout=1.0))
    pool.subscribe("/", {}, overflow="block")  # wrong
    return stats.active_connections


class Signed(Auth):
    def prepare(self, uri: str, timeout: float) -> Prepared:
        return Prepared(uri, {"X-Signature": "1"}, ["token"])


class Unsigned:
    def prepare(self, uri: str) -> Prepared:
        return Prepared(uri)


signed: Auth = Signed()
unsigned: Auth = Unsigned()  # wrong
Prepared("wss://example.com", {"X-Signature": 1})  # wrong
TicketAuth("https://example.com", ticket=lambda answer: str(answer.json()["t"]), uses=None)
TicketAuth("https://example.com", place=1)  # wrong
BearerAuth(lambda: 7)  # wrong
rpc: ConnectionPool[Any] = ConnectionPool(base_uri="wss://example.com", correlation=JsonRpc())
ConnectionPool(correlation=JsonRpc)  # wrong
