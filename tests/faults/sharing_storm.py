"""A storm of asynchronous exceptions over threads that share connections, in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import random
import threading
import warnings
from collections import Counter
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig, JetSocketError
from jetsocket.clock import monotonic, sleep
from tests.books import faults
from tests.servers import wait_until
from tests.services import Plain

THREADS = 12


class Struck(BaseException):
    """What strikes."""


class Worker:
    """One thread: requests, subscriptions and leases by turns, each of which it can tell from others'."""

    def __init__(
        self, number: int, pool: ConnectionPool[Any], over: threading.Event, outcomes: Counter[str]
    ) -> None:
        self.number, self.pool, self.over, self.outcomes = number, pool, over, outcomes
        self.chance, self.turn = random.Random(number), 0
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(Struck):
                self.work()

    def work(self) -> None:
        while not self.over.is_set():
            self.turn += 1
            try:
                self.chance.choices([self.ask, self.subscribe, self.lease], [70, 15, 15])[0]()
                self.outcomes["right"] += 1
            except JetSocketError as error:
                self.outcomes[type(error).__name__] += 1
            except Struck:
                self.outcomes["struck"] += 1
            except AssertionError:
                self.outcomes["foreign"] += 1

    def message(self, **more: Any) -> dict[str, Any]:
        return {"n": [self.number, self.turn], "after": 0.01, "say": [{"note": 1}], "parts": 2, **more}

    def ask(self) -> None:
        what = self.chance.choice(["echo", "echo", "push", "late", "parts"])
        assert self.pool.request("/", self.message(do=what), 10)["n"] == [self.number, self.turn]

    def subscribe(self) -> None:
        message = {"do": "subscribe", "topic": f"{self.number}.{self.turn}", "count": 3}
        with self.pool.subscribe("/", message, timeout=10) as subscription:
            assert [subscription.get(10)["n"] for _ in range(3)] == [0, 1, 2]

    def lease(self) -> None:
        with self.pool.acquire("/", 20) as conn:
            if self.chance.random() < 0.5:
                conn.send(self.message(id=self.turn))
                while "note" in (got := conn.recv(10)):
                    pass  # pushed for a request that was struck: it belongs to the lease that sends
                assert got["n"] == [self.number, self.turn]
            assert conn.request(self.message(), 10)["n"] == [self.number, self.turn]
            if self.chance.random() < 0.3:
                topic = f"lease {self.number}.{self.turn}"
                assert conn.subscribe({"do": "subscribe", "topic": topic, "count": 2}).get(10)["n"] == 0


def storm(uri: str, max_in_flight: str, seconds: str) -> None:
    """Strike for so long, and until enough strikes came out and enough went well; print how many, or fail."""
    warnings.simplefilter("ignore")  # of leases that were dropped
    began, enough, over, outcomes = monotonic(), 10 * int(seconds), threading.Event(), Counter[str]()
    config = ConnectionPoolConfig(max_connections=4, max_in_flight=int(max_in_flight), acquire_timeout=20)
    pool = ConnectionPool[Any](config, base_uri=uri, correlation=Plain(), on_push=lambda uri, message: None)
    workers = [Worker(number, pool, over, outcomes) for number in range(THREADS)]
    for worker in workers:
        worker.thread.start()
    while monotonic() < began + int(seconds) or min(outcomes["struck"], outcomes["right"]) <= enough:
        assert monotonic() < began + int(seconds) + 30, outcomes
        sleep(0.003)
        ident = ctypes.c_ulong(random.choice(workers).thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Struck))
    over.set()
    for worker in workers:
        worker.thread.join(30)
        assert not worker.thread.is_alive(), "a thread hangs"
    assert not outcomes["foreign"], outcomes
    wait_until(lambda: not faults(pool) and not pool.leases(), 5, f"{faults(pool)} {outcomes}")
    wait_until(lambda: pool.stats().in_flight == 0, 5, f"requests are under way for ever {outcomes}")
    leases = [pool.acquire("/", 5) for _ in range(4)]
    for lease in leases:
        lease.release()
    pool.close(1)
    print(outcomes["struck"], outcomes["right"], dict(outcomes))
