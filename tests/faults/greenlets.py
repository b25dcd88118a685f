"""What test_greenlets.py runs in processes of their own, patched by gevent before this is imported."""

from __future__ import annotations

import itertools
import json
import os
import random
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent

from jetsocket import (
    ConnectionPool,
    ConnectionPoolConfig,
    JetSocketError,
    PoolClosedError,
    PoolExhaustedError,
    TimeoutError,
)
from tests.books import faults
from tests.faults.forking import leave_by, open_pool
from tests.servers import wait_until

CAP = 8
PATIENCE = 30.0  # s

Pool = ConnectionPool[Any]
_numbers = itertools.count()


class Crowd:
    """Greenlets that borrow, in all the ways there are to do it well and badly.

    Attributes:
        calls: What was done, by kind.
        errors: What the library raised, by name.
        foreign: Replies to somebody else.
    """

    def __init__(self, pool: Pool, greenlets: int, seed: int) -> None:
        self.pool = pool
        self.random = random.Random(seed)
        self.calls = Counter[str]()
        self.errors = Counter[str]()
        self.foreign = self.trouble = 0
        self.stop = False
        kinds = {self.ask: 60, self.struck: 20}
        kinds.update(dict.fromkeys((self.give_up, self.too_long, self.discard, self.drop), 5))
        self.kinds, self.weights = list(kinds), list(kinds.values())
        self.greenlets = [gevent.spawn(self.borrow) for _ in range(greenlets)]

    def borrow(self) -> None:
        while not self.stop:
            (kind,) = self.random.choices(self.kinds, self.weights)
            try:
                kind()
            except JetSocketError as error:
                self.errors[type(error).__name__] += 1
            except Exception:
                traceback.print_exc()
                self.trouble += 1
            self.calls[kind.__name__] += 1

    def path(self) -> str:
        return f"/{self.random.choices([0, 1, 2, 3], [90, 4, 3, 3])[0]}"

    def request(self, conn: Any, timeout: float = PATIENCE, **options: float) -> None:
        ident = f"{os.getpid()}-{next(_numbers)}"
        reply = conn.request({"id": ident, "pid": str(os.getpid()), **options}, timeout=timeout)
        self.foreign += reply["id"] != ident

    def ask(self) -> None:
        with self.pool.acquire(self.path()) as conn:
            for _ in range(self.random.randrange(1, 4)):
                self.request(conn)

    def give_up(self) -> None:
        """A reply that comes too late."""
        with self.pool.acquire(self.path()) as conn:
            self.request(conn, timeout=0.005, delay=0.02)

    def struck(self) -> None:
        """gevent's own Timeout, raised in whatever call this greenlet waits in."""
        with gevent.Timeout(self.random.uniform(0, 0.2), False), self.pool.acquire(self.path()) as conn:
            self.request(conn, delay=self.random.choice([0, 0.01]))

    def too_long(self) -> None:
        with self.pool.acquire(self.path(), timeout=self.random.uniform(0, 0.05)) as conn:
            self.request(conn)

    def discard(self) -> None:
        with self.pool.acquire(self.path()) as conn:
            self.request(conn)
            conn.discard()

    def drop(self) -> None:
        """A lease that is not released, but forgotten."""
        self.request(self.pool.acquire(self.path()))

    def kill_some(self, count: int) -> None:
        """Kill greenlets wherever they are, and have others begin."""
        victims = self.random.sample(self.greenlets, count)
        gevent.killall(victims, timeout=PATIENCE)
        self.greenlets = [each for each in self.greenlets if each not in victims]
        self.greenlets += [gevent.spawn(self.borrow) for _ in victims]
        self.calls["killed"] += count

    def end(self) -> None:
        self.stop = True
        gevent.joinall(self.greenlets, timeout=PATIENCE, raise_error=True)
        assert all(greenlet.successful() for greenlet in self.greenlets)


def _check_whole(pool: Pool, cap: int = CAP) -> None:
    """Every permit is there, and the books are in order."""
    held = [pool.acquire("/", timeout=PATIENCE) for _ in range(cap)]
    for conn in held:
        conn.release()
    assert faults(pool) == []


def crowd(uri: str, ca: str, seconds: str, greenlets: str, seed: str) -> None:
    """Let so many greenlets borrow for so long, killing some all the time; print what happened."""
    warnings.simplefilter("ignore", ResourceWarning)
    pool = open_pool(uri, ca, cap=CAP, health_check_interval=0.2)
    busy = Crowd(pool, int(greenlets), int(seed))
    until = monotonic() + float(seconds)
    while monotonic() < until:
        gevent.sleep(0.05)
        busy.kill_some(5)
    busy.end()
    _check_whole(pool)
    assert busy.foreign == busy.trouble == 0, (busy.foreign, busy.trouble)
    assert set(busy.errors) <= {"TimeoutError", "PoolExhaustedError"}, busy.errors
    start = monotonic()
    pool.close()
    told = {"calls": busy.calls, "errors": busy.errors, "close_s": round(monotonic() - start, 2)}
    print(json.dumps(told))


def forks(uri: str, ca: str, count: str) -> None:
    """Fork from among busy greenlets, all of which go on in the child as well."""
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    warnings.simplefilter("ignore", ResourceWarning)
    pool = open_pool(uri, ca, cap=CAP)
    busy = Crowd(pool, 15, 1)
    lent = pool.acquire("/")
    for _ in range(int(count)):
        gevent.sleep(0.02)
        pid = os.fork()
        if pid == 0:
            leave_by(lambda: _use_in_child(pool, busy))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, status
    busy.request(lent)
    lent.release()
    busy.end()
    _check_whole(pool)
    assert busy.foreign == busy.trouble == 0, (busy.foreign, busy.trouble)
    assert set(busy.errors) <= {"TimeoutError", "PoolExhaustedError"}, busy.errors
    assert pool.stats().total_reconnects == 0
    pool.close()
    print(json.dumps({"calls": busy.calls, "errors": busy.errors}))


def _use_in_child(pool: Pool, busy: Crowd) -> None:
    for _ in range(2):
        with pool.acquire("/") as conn:
            busy.request(conn)
    assert busy.foreign == 0


def drain(uri: str) -> None:
    """Drain with leases out and greenlets in line."""
    pool: Pool = ConnectionPool(ConnectionPoolConfig(max_connections=2), base_uri=uri)
    held = [pool.acquire("/") for _ in range(2)]

    def in_line() -> str:
        try:
            pool.acquire("/", timeout=PATIENCE)
        except PoolClosedError:
            return "closed"
        return "lent"

    waiting = [gevent.spawn(in_line) for _ in range(20)]
    wait_until(lambda: pool.stats().waiting == 20)
    assert not pool.drain(timeout=0.05)
    gevent.joinall(waiting, timeout=PATIENCE)
    assert [each.value for each in waiting] == ["closed"] * 20
    draining = gevent.spawn(pool.drain)
    for conn in held:
        assert conn.request(1, timeout=PATIENCE) == 1
        assert not draining.ready()
        conn.release()
    draining.join(PATIENCE)
    assert draining.value is True
    pool.close()


def deadlines(uri: str) -> None:
    """Calls of many greenlets end in time side by side, whatever each of them waits for."""
    pool = open_pool(uri)
    held = [pool.acquire("/") for _ in range(4)]
    silence = {"id": 1, "pid": str(os.getpid()), "delay": 3600}

    def ends(call: Callable[[], object]) -> float:
        start = monotonic()
        try:
            call()
        except (TimeoutError, PoolExhaustedError):
            return monotonic() - start
        raise AssertionError("it did not end with an error")

    calls = [lambda: pool.acquire("/", timeout=0.3)] * 50
    calls += [lambda conn=conn: conn.request(silence, timeout=0.3) for conn in held]
    took = [gevent.spawn(ends, call) for call in calls]
    gevent.joinall(took, timeout=PATIENCE, raise_error=True)
    assert max(each.value for each in took) < 3, "they waited one after the other"
    pool.close()


def pinged(uri: str, ca: str) -> None:
    """The housekeeper answers the server's pings on a lent and on an idle connection."""
    pool = open_pool(uri, ca)
    with pool.acquire("/") as lent, pool.acquire("/") as other:
        idle = other.id
        other.release()
        gevent.sleep(1.5)
        assert lent.request({"id": 1, "pid": str(os.getpid())}, timeout=PATIENCE)["id"] == 1
        with pool.acquire("/") as again:
            assert again.id == idle
            assert again.request({"id": 2, "pid": str(os.getpid())}, timeout=PATIENCE)["id"] == 2
    assert pool.stats().total_connections == 2
    pool.close()
