"""Subscriptions that push at random, left in every way there is; the client in a process of its own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import signal
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed

from jetsocket import ConnectionPool, ConnectionPoolConfig, JetSocketError, TimeoutError
from jetsocket.clock import monotonic, sleep
from tests.books import faults
from tests.servers import Connection, EchoServer, wait_until
from tests.services import Plain, Service

THREADS = 11  # beside the main one


class Pushing(Service):
    """One connection of a server that pushes to what is subscribed, at any time."""

    def push(self, chance: random.Random) -> None:
        with contextlib.suppress(ConnectionClosed, RuntimeError):  # the set of topics changes meanwhile
            for topic in list(self.topics):
                if chance.random() < 0.5:
                    self.say({"topic": topic, "n": "pushed"})


@contextlib.contextmanager
def pushing(server: Callable[..., EchoServer]) -> Any:
    """Such a server, running."""
    connections: dict[Pushing, None] = {}
    stop = threading.Event()

    def serve(conn: Connection) -> None:
        one = Pushing(conn)
        connections[one] = None
        try:
            one.run()
        finally:
            connections.pop(one, None)

    def push() -> None:
        chance = random.Random()
        while not stop.wait(0.002):
            for one in list(connections):
                one.push(chance)

    pusher = threading.Thread(target=push)
    pusher.start()
    try:
        yield server(serve)
    finally:
        stop.set()
        pusher.join()


class Struck(BaseException):
    """What strikes the threads; the main one is struck by Ctrl-C."""


class OnPurpose(Exception):
    pass


class Leaver:
    """One thread."""

    def __init__(self, number: int, pool: ConnectionPool[Any], count: int, outcomes: Counter[str]) -> None:
        self.number, self.pool, self.count, self.outcomes = number, pool, count, outcomes
        self.chance, self.turn = random.Random(number), 0
        self.foreign: list[Any] = []
        self.thread = threading.Thread(target=self.run)
        self.is_done = False

    def run(self) -> None:
        while not self.is_done:
            with contextlib.suppress(Struck, KeyboardInterrupt):
                self.work()

    def work(self) -> None:
        ways = [self.end, self.fail, self.drop, self.stay, self.share, self.feed]
        while self.turn < self.count:
            self.turn += 1
            way = self.chance.choice(ways)
            try:
                way()
                self.outcomes[way.__name__] += 1
            except OnPurpose:
                self.outcomes["fail"] += 1
            except JetSocketError as error:
                self.outcomes[type(error).__name__] += 1
            except (Struck, KeyboardInterrupt):
                self.outcomes["struck"] += 1
        self.is_done = True

    # --- what a borrower gets

    def look(self, conn: Any) -> None:
        """Ask, and receive all that comes with it: nothing of it is pushed for an earlier borrower."""
        mine = [self.number, self.turn]
        conn.send({"id": f"{mine}", "n": mine})
        while (got := conn.recv(10)).get("n") != mine:
            self.foreign.append((mine, got))

    def subscribe(self, where: Any, *args: Any) -> Any:
        self.topic = f"{self.number}.{self.turn}.{self.chance.random()}"
        return where.subscribe(*args, {"do": "subscribe", "topic": self.topic, "count": 1}, timeout=10)

    def read(self, subscription: Any) -> None:
        for _ in range(self.chance.randrange(4)):
            got = subscription.get(10)
            if got["topic"] != self.topic:
                self.foreign.append((self.topic, got))

    # --- how it leaves

    def end(self) -> None:
        with self.pool.acquire("/", 20) as conn:
            self.look(conn)
            with self.subscribe(conn) as subscription:
                self.read(subscription)

    def fail(self) -> None:
        with self.pool.acquire("/", 20) as conn:
            self.look(conn)
            self.read(self.subscribe(conn))
            raise OnPurpose

    def stay(self) -> None:
        """It is open as the lease is released."""
        conn = self.pool.acquire("/", 20)
        self.read(self.subscribe(conn))
        conn.release()

    def drop(self) -> None:
        if self.chance.random() < 0.8:  # each costs a connection
            return self.stay()
        conn = self.pool.acquire("/", 20)
        self.look(conn)
        self.read(self.subscribe(conn))

    def share(self) -> None:
        subscription = self.subscribe(self.pool, "/")
        self.read(subscription)
        if self.chance.random() < 0.9:
            subscription.unsubscribe()

    def feed(self) -> None:
        """What is for nobody else is not what others have subscribed."""
        with self.pool.acquire("/", 20) as conn, conn.subscribe(None) as feed:
            conn.request({"n": 1}, 10)
            with contextlib.suppress(TimeoutError):
                self.foreign.append((self.number, feed.get(0)))


def storm(uri: str, max_in_flight: str, leases: str) -> None:
    """Have so many leases; print what came of them, or fail."""
    warnings.simplefilter("ignore")  # of leases that were dropped
    outcomes = Counter[str]()
    config = ConnectionPoolConfig(max_connections=4, max_in_flight=int(max_in_flight), acquire_timeout=20)
    pool = ConnectionPool[Any](config, base_uri=uri, correlation=Plain(), on_push=lambda uri, message: None)
    count = int(leases) // (THREADS + 1)
    leavers = [Leaver(number, pool, count, outcomes) for number in range(THREADS + 1)]
    mine, *others = leavers
    ended = threading.Event()

    def strike() -> None:
        while not ended.wait(0.02):
            leaver = random.choice(leavers)
            if leaver is mine:
                os.kill(os.getpid(), signal.SIGINT)
            elif not leaver.is_done:
                ident = ctypes.c_ulong(leaver.thread.ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Struck))

    for leaver in others:
        leaver.thread.start()
    striker = threading.Thread(target=strike)
    striker.start()
    mine.run()
    until = monotonic() + 60 + int(leases) / 20
    for leaver in others:
        while leaver.thread.is_alive() and monotonic() < until:
            with contextlib.suppress(KeyboardInterrupt):
                sleep(0.05)
        assert not leaver.thread.is_alive(), f"a thread hangs {outcomes}"
    with contextlib.suppress(KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # in case that came in between
    ended.set()
    striker.join()
    foreign = [each for leaver in leavers for each in leaver.foreign]
    assert not foreign, f"{len(foreign)}: {foreign[:5]} {outcomes}"
    wait_until(lambda: not faults(pool) and not pool.leases(), 5, f"{faults(pool)} {outcomes}")
    wait_until(lambda: pool.stats().in_flight == 0, 5, f"requests are under way for ever {outcomes}")
    held = [pool.acquire("/", 5) for _ in range(4)]
    for lease in held:
        lease.release()
    pool.close(1)
    print(sum(outcomes.values()), outcomes["struck"], dict(outcomes))
