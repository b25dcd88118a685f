"""The worst server whose messages carry ids, and a crowd that asks it: who got what.

It pushes at any time, what looks like replies too, answers late and in any order, one in twenty never, one in
a hundred twice, the second time at any later time; and its connections are killed at random.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import random
import ssl
import threading
from collections import Counter
from collections.abc import Callable
from time import monotonic
from typing import Any

from websockets.exceptions import ConnectionClosed

from jetsocket import ConnectionClosedError, ConnectionPool, JetSocketError, TimeoutError
from tests.crowds import crowd
from tests.servers import Connection, EchoServer
from tests.services import Service

THREADS = 64
_PATIENCE = 20.0  # s for a reply that comes: on a busy machine, too
_IMPATIENCE = 0.1  # s for one that does not, or late
_LATE = 0.3  # s


class Later:
    """Calls functions after a while, in a thread of its own."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def call(self, after: float, function: Callable[[], None]) -> None:
        with self._changed:
            heapq.heappush(self._due, (monotonic() + after, next(self._numbers), function))
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._stopped and (not self._due or self._due[0][0] > monotonic()):
                    self._changed.wait(self._due[0][0] - monotonic() if self._due else None)
                if self._stopped:
                    return
                function = heapq.heappop(self._due)[2]
            function()

    def __enter__(self) -> Later:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify()
        self._thread.join()


class Strange(Service):
    """One connection of that server."""

    def __init__(self, conn: Connection, later: Later) -> None:
        super().__init__(conn)
        self.later = later
        self.chance = random.Random()
        self.last = 0

    def do_strange(self, message: Any) -> None:
        self.last = message["id"]
        chance, how = self.chance, message["how"]
        if chance.random() < 0.1:
            self.say(*chance.sample(self.pushes(), 2))
        if how == "never":
            return
        after = (
            _LATE + chance.random() / 5 if how == "late" else chance.choice([0.0, 0.0, chance.random() / 20])
        )
        self.answer(message, after)
        if chance.random() < 0.01:
            self.answer({**message, "again": True}, after + chance.choice([0.0, chance.random()]))

    def answer(self, message: Any, after: float) -> None:
        if after:
            self.later.call(after, lambda: self.try_to_say(message))
        else:
            self.say(message)

    def pushes(self) -> list[Any]:
        """What belongs to no request; some have ids that are none, or of nobody's yet."""
        ids = [None, True, str(self.last), [self.last], self.last + 0.5, self.last + 10_000, -self.last]
        return [{"note": self.last}, "text", 7, [], *({"id": each, "n": "pushed"} for each in ids)]

    def push(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            self.say(self.chance.choice(self.pushes()))


class Storm:
    """The server, and what the crowd got from it.

    Attributes:
        options: What a pool needs to reach it (`manager_kwargs`).
    """

    def __init__(
        self,
        server: Callable[..., EchoServer],
        ssl_context: ssl.SSLContext | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        self.options = options or {}
        self.later = Later()
        self.strange: dict[Strange, None] = {}
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.longest = 0.0  # s by which a call outlasted its deadline
        self.server = server(self._serve, ssl_context=ssl_context)

    def _serve(self, conn: Connection) -> None:
        strange = Strange(conn, self.later)
        self.strange[strange] = None
        try:
            strange.run()
        finally:
            self.strange.pop(strange, None)

    def ask(self, pool: ConnectionPool[Any], count: int, *, kill_every: float = 0.3) -> None:
        """Ask so many times, from all threads together."""
        stop = threading.Event()

        def disturb() -> None:
            chance, kill_at = random.Random(), monotonic() + kill_every
            while not stop.wait(0.01):
                for strange in list(self.strange):
                    if chance.random() < 0.2:
                        strange.push()
                if monotonic() >= kill_at and (some := self.server.connections):
                    chance.choice(some).cut()
                    kill_at = monotonic() + kill_every * 2 * chance.random()

        def call(number: int) -> None:
            chance = random.Random()
            for turn in range(count // THREADS):
                self._ask_once(pool, [number, turn], chance)

        disturbing = threading.Thread(target=disturb)
        with self.later:
            disturbing.start()
            try:
                self.faults += [repr(each.error) for each in crowd(THREADS, call, 3000) if each.error]
            finally:
                stop.set()
                disturbing.join()

    def _ask_once(self, pool: ConnectionPool[Any], mine: list[int], chance: random.Random) -> None:
        how = chance.choices(["now", "late", "never"], [90, 5, 5])[0]
        timeout, began = _PATIENCE if how == "now" else _IMPATIENCE, monotonic()
        try:
            reply = pool.request("/", {"do": "strange", "how": how, "n": mine}, timeout)
        except TimeoutError as error:
            if how == "now":
                self.faults.append(f"the reply to {mine} is lost: {error}")
            self.outcomes["TimeoutError"] += 1
        except ConnectionClosedError:
            self.outcomes["ConnectionClosedError"] += 1
        except JetSocketError as error:  # named, too; which are allowed, the test says
            self.outcomes[type(error).__name__] += 1
        else:
            if reply["n"] != mine or how == "never":
                self.faults.append(f"{mine} got {reply}")
            self.outcomes["right"] += 1
        self.longest = max(self.longest, monotonic() - began - timeout)


__all__ = ["THREADS", "Storm"]
