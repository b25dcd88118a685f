"""What is measured. Each function runs in a process of its own and returns figures: seconds, unless named so.

`seconds` is how long a measurement should last; figures hold for one step of the work.
"""

from __future__ import annotations

import json
import queue
import statistics
import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter, process_time, sleep
from typing import Any, NamedTuple

from tests.benchmarks import aio
from tests.benchmarks.peers import (
    ASYNC,
    EVERYBODY,
    OURS,
    SPEED,
    WEBSOCKET_CLIENT,
    WEBSOCKETS,
    Client,
    Place,
    connect,
    dial,
    messages,
    new_pool,
)
from tests.benchmarks.server import HOST, MESSAGE

Figures = dict[str, float]
Measure = Callable[[str, Place, float], Figures]

MIB = 1 << 20
SIZES = (16, 100, 1000, 10_000, 100_000)  # B
THREADS = (8, 16, 32, 64)
CONNECTIONS = 8
PATIENCE = 30.0  # s
SETTLING = 0.001  # s, in which what a close still costs either side is over
QUEUE_POOL, PSYCOPG_POOL = "SQLAlchemy QueuePool", "psycopg_pool"
SEMAPHORE = "BoundedSemaphore + LifoQueue"
QUEUED_CLIENT = "QueuePool of websocket-client"


class Work(NamedTuple):
    """One thing to do, and who does it."""

    title: str
    step: str
    """What one step is."""
    contenders: Sequence[str]
    measure: Measure
    rounds: int | None = None
    """How often; None: as often as the run says."""
    turns: int = 1
    """How many each contender has in a round."""
    prepare: Callable[[], str | None] | None = None
    """Gets what it needs; returns why that can't be had. None: it needs nothing more."""


def clock(step: Callable[[], object], seconds: float, timer: Callable[[], float] = perf_counter) -> float:
    """Time of one call (s): calls it for about so long, in batches so that the clock costs nothing."""
    step()
    batch, took = 1, 0.0
    while took < min(0.02, seconds / 4):  # warms up, too
        batch *= 2
        took = timed(step, batch, perf_counter)
    total, calls, until = 0.0, 0, perf_counter() + seconds
    while not calls or perf_counter() < until:
        total += timed(step, batch, timer)
        calls += batch
    return total / calls


def timed(step: Callable[[], object], count: int, timer: Callable[[], float]) -> float:
    """Time of `count` calls (s)."""
    began = timer()
    for _ in range(count):
        step()
    return timer() - began


# --- messages


def stream(name: str, place: Place, seconds: float, *, tls: bool = False) -> Figures:
    if name in ASYNC:
        return {"time": aio.stream(name, f"{place.plain}/json", seconds, None)}
    texts = messages(name, place, "/json", tls=tls)
    assert next(texts) == MESSAGE
    return {"time": clock(texts.__next__, seconds)}


def stream_json(name: str, place: Place, seconds: float, *, tls: bool = False) -> Figures:
    if name in ASYNC:
        return {"time": aio.stream(name, f"{place.plain}/json", seconds, json.loads)}
    values = messages(name, place, "/json", tls=tls, decoded=True)
    assert next(values)["symbol"] == "BTCUSDT"
    return {"time": clock(values.__next__, seconds)}


def stream_sizes(name: str, place: Place, seconds: float) -> Figures:
    figures = {}
    for size in SIZES:
        client = connect(name, place, f"/stream/{size}")
        assert len(client.recv()) == size
        figures[str(size)] = clock(client.recv, seconds)
    return figures


def send(name: str, place: Place, seconds: float) -> Figures:
    client = connect(name, place, "/sink")
    return {"time": clock(partial(client.send, MESSAGE[:100]), seconds)}


def echo_of(client: Client, size: int) -> Callable[[], None]:
    text, send, recv = "x" * size, client.send, client.recv

    def echo() -> None:
        send(text)
        if len(recv()) != size:
            raise AssertionError("not what was sent")

    return echo


def echo_cpu(name: str, place: Place, seconds: float) -> Figures:
    echo = echo_of(connect(name, place, "/echo"), 64)
    return {"time": clock(echo, seconds, process_time)}


def echo_large(name: str, place: Place, seconds: float) -> Figures:
    return {"time": clock(echo_of(connect(name, place, "/echo"), MIB), seconds)}


def receive_fragments(name: str, place: Place, seconds: float) -> Figures:
    """Time of a message in fragments of 1 KiB, by its size in MiB."""
    figures = {}
    for size in (4, 16) if name in (OURS, SPEED) else (4,):
        client = connect(name, place, f"/fragments/{size * MIB}")

        def step(client: Client = client, size: int = size) -> None:
            client.send("next")
            if len(client.recv()) != size * MIB:
                raise AssertionError("not what was sent")

        figures[str(size)] = clock(step, seconds)
    figures["time"] = figures["4"]
    return figures


def connects(name: str, place: Place, seconds: float, *, tls: bool, name_of_host: bool = False) -> Figures:
    """Connect and upgrade; closing is not in the figure, nor what of it goes on in other threads."""
    if name_of_host:  # has to be looked up
        place = place._replace(plain=place.plain.replace(HOST, "localhost"))
    open_one = dial(name, place, tls=tls)
    times: list[float] = []
    until = perf_counter() + seconds
    open_one("/idle")[1]()
    while len(times) < 3 or perf_counter() < until:
        began = perf_counter()
        _, close = open_one("/idle")
        times.append(perf_counter() - began)
        close()
        sleep(SETTLING)
    return {"time": statistics.median(times)}


# --- borrowing


def borrow(name: str, place: Place, seconds: float) -> Figures:
    """Take an idle connection and give it back. Only ours is one that could have died meanwhile."""
    return {"time": clock(BORROWERS[name](place), seconds)}


def borrow_ours(place: Place) -> Callable[[], object]:
    pool = new_pool(place)

    def step() -> None:
        with pool.acquire("/idle"):
            pass

    return step


def borrow_queue_pool(_place: Place) -> Callable[[], object]:
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(Nothing, pool_size=10, max_overflow=0)  # type: ignore[arg-type]
    return lambda: pool.connect().close()


def borrow_psycopg_pool(_place: Place) -> Callable[[], object]:
    from psycopg_pool import ConnectionPool

    pool: Any = ConnectionPool(connection_class=Nothing, min_size=1, max_size=10, open=True)  # type: ignore[type-var]
    pool.wait(10)

    def step() -> None:
        pool.putconn(pool.getconn())

    return step


class Nothing:
    """A connection of which a pool needs to know no more than this: it is in order."""

    autocommit = True

    class pgconn:
        transaction_status = 0  # IDLE

    @classmethod
    def connect(cls, *_args: object, **_kwargs: object) -> Nothing:
        return cls()

    def rollback(self) -> None: ...
    def close(self) -> None: ...


def borrow_semaphore(_place: Place) -> Callable[[], object]:
    """The least that a bounded pool can do."""
    permits = threading.BoundedSemaphore(10)
    idle: queue.LifoQueue[object] = queue.LifoQueue()
    idle.put(object())

    def step() -> None:
        with permits:
            idle.put(idle.get())

    return step


BORROWERS = {
    OURS: borrow_ours,
    QUEUE_POOL: borrow_queue_pool,
    PSYCOPG_POOL: borrow_psycopg_pool,
    SEMAPHORE: borrow_semaphore,
}


def many_threads(name: str, place: Place, seconds: float) -> Figures:
    return crowd(name, place, seconds, 64)


def waits(name: str, place: Place, seconds: float) -> Figures:
    """Waiting for a connection, by number of threads."""
    figures = {}
    for count in THREADS:
        figures |= {f"{count} {key}": value for key, value in crowd(name, place, seconds, count).items()}
    return figures


class Caller:
    """One of many threads: what it has waited for, and since when it waits now."""

    def __init__(self) -> None:
        self.waited: list[float] = []
        self.waits_since: float | None = None


def crowd(name: str, place: Place, seconds: float, count: int) -> Figures:
    """`count` threads share 8 connections: time of one call over all, how long they wait, who had a turn.

    A wait that has not ended counts, too, for as long as it has lasted: a thread that never gets a turn
    would not be seen otherwise.
    """
    take, use = sharing(name, place)
    callers = [Caller() for _ in range(count)]
    start, done = threading.Barrier(count + 1), threading.Event()
    failures: list[BaseException] = []

    def call(caller: Caller) -> None:
        try:
            use(take())
            start.wait(PATIENCE)
            while not done.is_set():
                caller.waits_since = began = perf_counter()
                conn = take()
                caller.waited.append(perf_counter() - began)
                caller.waits_since = None
                use(conn)
        except BaseException as error:
            failures.append(error)
            start.abort()
            done.set()

    threads = [threading.Thread(target=call, args=(caller,), daemon=True) for caller in callers]
    for thread in threads:
        thread.start()
    start.wait(PATIENCE)
    done.wait(seconds / 4)  # until everybody is in line
    seen, began = [len(caller.waited) for caller in callers], perf_counter()
    done.wait(seconds)
    while not any_turn(callers, seen) and perf_counter() - began < PATIENCE:
        done.wait(seconds)
    now = perf_counter()
    ended = [caller.waited[before:] for caller, before in zip(callers, seen, strict=True)]
    since = [caller.waits_since for caller in callers]
    done.set()
    if failures:
        raise failures[0]
    found = [wait for waited in ended for wait in waited]
    everything = sorted(found + [now - asked for asked in since if asked is not None])
    return {
        "time": (now - began) / len(found),
        "median": statistics.median(everything),
        "longest": everything[-1],
        "served": float(sum(map(bool, ended))),
    }


def any_turn(callers: Sequence[Caller], seen: Sequence[int]) -> bool:
    """Whether somebody has had a turn since."""
    return any(len(caller.waited) > before for caller, before in zip(callers, seen, strict=True))


def sharing(name: str, place: Place) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    """How to borrow a connection, and how to echo over it and give it back."""
    text = "x" * 64
    if name == OURS:
        pool = new_pool(place, most=CONNECTIONS)

        def use(conn: Any) -> None:
            with conn:
                conn.send_raw(text)
                conn.recv_raw()

        return lambda: pool.acquire("/echo", 60), use
    import websocket
    from sqlalchemy.pool import QueuePool

    def dial_one() -> Any:
        return Rollbackable(websocket.create_connection(f"{place.plain}/echo"))

    queue_pool = QueuePool(dial_one, pool_size=CONNECTIONS, max_overflow=0, timeout=60)

    def use_of_queue_pool(borrowed: Any) -> None:
        ws = borrowed.dbapi_connection.ws
        ws.send(text)
        ws.recv()
        borrowed.close()

    return queue_pool.connect, use_of_queue_pool


class Rollbackable:
    """What SQLAlchemy's pool takes for a connection to a database."""

    def __init__(self, ws: Any) -> None:
        self.ws = ws
        self.close = ws.shutdown

    def rollback(self) -> None: ...


WORKS = {
    "stream": Work("Stream of 100 B text messages", "message", (*EVERYBODY, *ASYNC), stream),
    "json": Work("Stream of 100 B JSON messages, decoded", "message", (*EVERYBODY, *ASYNC), stream_json),
    "send": Work("Sending 100 B messages one way", "message", EVERYBODY, send),
    "cpu": Work("CPU time of one 64 B echo", "echo", EVERYBODY, echo_cpu),
    "large": Work("1 MiB text echo", "echo", EVERYBODY, echo_large),
    "fragments": Work(
        "4 MiB message in 1 KiB fragments", "message", (OURS, WEBSOCKET_CLIENT, WEBSOCKETS), receive_fragments
    ),
    "tls": Work(
        "Stream of 100 B text messages over TLS",
        "message",
        (OURS, WEBSOCKET_CLIENT, WEBSOCKETS),
        partial(stream, tls=True),
    ),
    "tls-json": Work(
        "Stream of 100 B JSON messages over TLS, decoded",
        "message",
        EVERYBODY,
        partial(stream_json, tls=True),
    ),
    "connect": Work(
        "Connect and upgrade",
        "connection",
        (OURS, WEBSOCKET_CLIENT, WEBSOCKETS),
        partial(connects, tls=False),
    ),
    "connect-name": Work(
        "Connect by name and upgrade",
        "connection",
        (OURS, WEBSOCKET_CLIENT, WEBSOCKETS),
        partial(connects, tls=False, name_of_host=True),
    ),
    "connect-tls": Work(
        "Connect and upgrade over TLS",
        "connection",
        (OURS, WEBSOCKET_CLIENT, WEBSOCKETS),
        partial(connects, tls=True),
    ),
    "borrow": Work(  # of a few µs each, which a busy machine doubles now and then: so more turns
        "Acquire and release an idle connection", "borrowing", tuple(BORROWERS), borrow, turns=2
    ),
    "threads": Work("64 threads on 8 connections, 64 B echo", "call", (OURS, QUEUED_CLIENT), many_threads),
    "sizes": Work("Streams by size", "message", EVERYBODY, stream_sizes, rounds=3),
    "waits": Work("Waiting by number of threads", "wait", (OURS, QUEUED_CLIENT), waits, rounds=1),
}
