"""A process of a fleet: threads that are always hungry, on a pool whose limiter is a RedisLimiter.

Its one argument is JSON. It says "ready" when it runs, and does what it is told on stdin: "pause", "go on",
"fork" (a child uses the pool, too), "stats", "close", "exit" (without closing); at the end of it it exits.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import Counter
from pathlib import Path
from time import sleep
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig, JetSocketError
from jetsocket.contrib.redis import RedisLimiter
from tests.integration.chronicle import Chronicle, WritingLimiter, write_down


class Worker:
    """Hungry threads, and what they met."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        where = (options["redis"], options["name"])
        path = options.get("chronicle")
        chronicle = None if path is None else Chronicle(Path(path))
        self.limiter = (
            RedisLimiter(*where, **options["limiter"])
            if chronicle is None
            else WritingLimiter(chronicle, *where, **options["limiter"])
        )
        self.pool = ConnectionPool[Any](
            ConnectionPoolConfig(
                max_connections=options["max_connections"], acquire_timeout=options["acquire_timeout"]
            ),
            base_uri=options["uri"],
            limiter=self.limiter,
            manager_kwargs={"extra_headers": lambda: {"X-Pid": str(os.getpid())}},
        )
        if chronicle is not None:
            write_down(self.pool, chronicle)
        self.met = Counter[str]()
        self.last_error = ""
        self.goes_on = threading.Event()
        self.goes_on.set()

    def start(self) -> None:
        for _ in range(self.options["threads"]):
            threading.Thread(target=self.work, daemon=True).start()

    def work(self) -> None:
        hold, number = self.options["hold"], 0
        while True:
            self.goes_on.wait()
            number += 1
            try:
                self.ask(number, hold)
            except JetSocketError as error:
                self.met[type(error).__name__] += 1
                self.last_error = str(error)
                sleep(0.02)

    def ask(self, number: int, hold: float) -> None:
        with self.pool.acquire("/") as conn:
            request = {"id": number, "pid": str(os.getpid()), "delay": hold}
            reply = conn.request(request, 10)
            self.met["answered"] += 1
            if reply["pid"] != str(os.getpid()) or reply["id"] != number:
                self.met["foreign"] += 1

    def obey(self, word: str) -> None:
        if word == "pause":
            self.goes_on.clear()
        elif word == "go on":
            self.goes_on.set()
        elif word == "fork":
            self.fork()
        elif word == "stats":
            told = {"met": self.met, "limiter": dict(self.limiter.stats()), "last_error": self.last_error}
            say(json.dumps(told))
        elif word == "close":
            self.goes_on.clear()
            self.pool.close()
            sys.exit(0)
        elif word == "exit":
            sys.exit(0)

    def fork(self) -> None:
        if os.fork() == 0:
            for number in range(20):
                self.ask(number, 0.005)
            say("child")
            os._exit(0)
        os.wait()


def say(text: str) -> None:
    os.write(1, f"{text}\n".encode())


if __name__ == "__main__":
    worker = Worker(json.loads(sys.argv[1]))
    worker.start()
    say("ready")
    for line in sys.stdin:
        worker.obey(line.strip())
