"""What is measured: each contender does the same thing `count` times and returns how long it took (s)."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

from tests.benchmarks.server import SIZE

_FEWER = 50  # those without a pool take so much longer that fewer steps will do

Contender = Callable[[str, int], float]


class Benchmark(NamedTuple):
    """One question, and who answers it; ratios are to jetsocket."""

    title: str
    unit: str
    count: int
    contenders: dict[str, Contender]


def timed(step: Callable[[], object], count: int) -> float:
    """Time `count` calls, after a few that warm up."""
    for _ in range(min(count, 100)):
        step()
    began = perf_counter()
    for _ in range(count):
        step()
    return perf_counter() - began


# --- acquire + release of an idle connection


def borrow_jetsocket(uri: str, count: int) -> float:
    from jetsocket import ConnectionPool

    with ConnectionPool(base_uri=uri) as pool:

        def step() -> None:
            with pool.acquire("/idle"):
                pass

        return timed(step, count)


def borrow_websocket_client(uri: str, count: int) -> float:
    """It has no pool: a connection for each borrower, opened and closed."""
    import websocket

    def step() -> None:
        websocket.create_connection(f"{uri}/idle").close()

    fewer = max(1, count // _FEWER)
    return timed(step, fewer) * count / fewer


def borrow_websockets(uri: str, count: int) -> float:
    """It has no pool: a connection for each borrower, opened and closed."""
    from websockets.sync.client import connect

    def step() -> None:
        with connect(f"{uri}/idle", compression=None, proxy=None):
            pass

    fewer = max(1, count // _FEWER)
    return timed(step, fewer) * count / fewer


def borrow_sqlalchemy(_uri: str, count: int) -> float:
    """SQLAlchemy's pool, of objects that do nothing: what a pool costs that looks at no socket."""
    from sqlalchemy.pool import QueuePool

    class Nothing:
        def rollback(self) -> None: ...
        def close(self) -> None: ...

    pool = QueuePool(Nothing, pool_size=10, max_overflow=0)
    return timed(lambda: pool.connect().close(), count)


def borrow_semaphore(_uri: str, count: int) -> float:
    """A BoundedSemaphore and a LifoQueue: the least that a bounded pool can do."""
    permits = threading.BoundedSemaphore(10)
    idle: queue.LifoQueue[object] = queue.LifoQueue()
    idle.put(object())

    def step() -> None:
        with permits:
            idle.put(idle.get())

    return timed(step, count)


# --- receiving a stream


def stream_jetsocket(uri: str, count: int) -> float:
    from jetsocket import ConnectionPool

    options = {"close_timeout": 0.1}  # the server never stops to answer a close
    with ConnectionPool(base_uri=uri, manager_kwargs=options) as pool, pool.acquire("/stream") as conn:
        assert len(conn.recv_raw()) == SIZE
        return timed(conn.recv_raw, count)


def stream_websocket_client(uri: str, count: int) -> float:
    import websocket

    conn = websocket.create_connection(f"{uri}/stream")
    try:
        assert len(conn.recv()) == SIZE
        return timed(conn.recv, count)
    finally:
        conn.shutdown()  # close() would read the endless stream for its answer


def stream_websockets(uri: str, count: int) -> float:
    from websockets.sync.client import connect

    with connect(f"{uri}/stream", compression=None, proxy=None, close_timeout=0.1) as conn:
        assert len(conn.recv()) == SIZE
        return timed(conn.recv, count)


BENCHMARKS = {
    "borrow": Benchmark(
        "Borrow and give back",
        "µs",
        20_000,
        {
            "jetsocket, idle connection": borrow_jetsocket,
            "BoundedSemaphore + LifoQueue": borrow_semaphore,
            "SQLAlchemy QueuePool": borrow_sqlalchemy,
            "websocket-client, no pool": borrow_websocket_client,
            "websockets.sync, no pool": borrow_websockets,
        },
    ),
    "stream": Benchmark(
        f"Receive text messages of {SIZE} B",
        "µs",
        50_000,
        {
            "jetsocket": stream_jetsocket,
            "websocket-client": stream_websocket_client,
            "websockets.sync": stream_websockets,
        },
    ),
}
