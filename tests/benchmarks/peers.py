"""The clients that are compared, each as a pair of functions: send a text, receive a message."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

OURS, SPEED = "jetsocket", "jetsocket[speed]"
WEBSOCKET_CLIENT, WEBSOCKETS = "websocket-client", "websockets.sync"
PICOWS, AIOHTTP = "picows on uvloop", "aiohttp on uvloop"
EVERYBODY = (OURS, SPEED, WEBSOCKET_CLIENT, WEBSOCKETS)
ASYNC = (PICOWS, AIOHTTP)

Close = Callable[[], object]


class Place(NamedTuple):
    """Where the server is."""

    plain: str
    tls: str
    certificate: str
    """File with what signed the server's."""

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.certificate)


class Client(NamedTuple):
    """One open connection."""

    send: Callable[[str], object]
    recv: Callable[[], Any]
    recv_json: Callable[[], Any]
    keep: object
    """What must not be collected meanwhile."""


def without_speed() -> None:
    """Make this process one without the extra `speed`; before jetsocket is imported."""
    if "msgspec" in sys.modules and sys.modules["msgspec"] is None:
        return  # it is one
    assert "jetsocket.wire.frames" not in sys.modules
    sys.modules["websockets.speedups"] = sys.modules["msgspec"] = None  # type: ignore[assignment]


def new_pool(place: Place, *, tls: bool = False, most: int = 10, **options: Any) -> Any:
    """A pool of ours."""
    from jetsocket import ConnectionPool, ConnectionPoolConfig

    return ConnectionPool(
        ConnectionPoolConfig(max_connections=most, acquire_timeout=120),  # prewarming 10,000 takes a while
        base_uri=place.tls if tls else place.plain,
        manager_kwargs={"ssl_context": place.context(), "close_timeout": 0.1, **options},
    )


def messages(
    name: str, place: Place, path: str, *, tls: bool = False, decoded: bool = False
) -> Iterator[Any]:
    """What the server sends, as that library iterates over it: texts, or the values of the JSON in them."""
    if name in (OURS, SPEED):
        lease = new_pool(place, tls=tls, **({} if decoded else {"deserializer": str})).acquire(path)
        lease.discard()
        return iter(lease)
    conn, _ = dial(name, place, tls=tls)(path)
    return map(json.loads, conn) if decoded else iter(conn)


def dial(name: str, place: Place, *, tls: bool) -> Callable[[str], tuple[Any, Close]]:
    """A function that opens a connection of that library, and returns it with what closes it."""
    base, context = place.tls if tls else place.plain, place.context()
    if name == WEBSOCKET_CLIENT:
        import websocket

        def open_one(path: str) -> tuple[Any, Close]:
            ws = websocket.create_connection(base + path, sslopt={"context": context})
            return ws, ws.shutdown

    elif name == WEBSOCKETS:
        from websockets.exceptions import InvalidMessage
        from websockets.sync.client import connect

        secure = {"ssl": context} if tls else {}

        def open_one(path: str, attempts: int = 5) -> tuple[Any, Close]:
            try:
                manager = connect(
                    base + path,
                    compression=None,
                    proxy=None,
                    max_size=None,
                    open_timeout=60,
                    close_timeout=0.1,
                    **secure,
                )
            except InvalidMessage:  # its threads may break a TLS session, see `SerialSSLSocket`
                if not tls or attempts == 1:
                    raise
                return open_one(path, attempts - 1)
            ws = manager.__enter__()
            return ws, ws.close

    else:
        pool = new_pool(place, tls=tls, most=10_000)

        def open_one(path: str) -> tuple[Any, Close]:
            lease = pool.acquire(path)
            lease.discard()
            return lease, lease.release

    return open_one


def connect(name: str, place: Place, path: str, *, tls: bool = False) -> Client:
    """Open a connection with that library."""
    conn, _ = dial(name, place, tls=tls)(path)
    if name in (OURS, SPEED):
        return Client(conn.send_raw, conn.recv_raw, conn.recv, conn)
    loads, recv = json.loads, conn.recv
    return Client(conn.send, recv, lambda: loads(recv()), conn)
