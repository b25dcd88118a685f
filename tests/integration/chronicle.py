"""What happens to a fleet, written down by each of its processes: what explains a moment afterwards.

All write lines of JSON to one file, each with the time by CLOCK_MONOTONIC, which is one for all processes.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Hashable
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from jetsocket import ConnectionInfo, ConnectionPool
from jetsocket.clock import with_sleep
from jetsocket.contrib.redis import RedisLimiter
from jetsocket.events import Listener

_GLANCE = 0.1  # s
_STALL = 0.25  # s


class Chronicle:
    """A file that several processes append to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_open = True
        self._closing = threading.Lock()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, what: str, **more: Any) -> None:
        """Write down that something has happened now; one write, so lines of several do not mix."""
        line = {"at": monotonic(), "what": what, "pid": os.getpid(), **more}
        with self._closing:
            if self.is_open:
                os.write(self._file, f"{json.dumps(line)}\n".encode())

    def around(self, when: float, before: float, after: float) -> list[str]:
        """What happened near that moment, in order, with the times from there."""
        lines = [json.loads(line) for line in self.path.read_text().splitlines()]
        near = [line for line in lines if when - before <= line["at"] <= when + after]
        told = []
        for line in sorted(near, key=lambda each: float(each["at"])):
            at, what, pid = line.pop("at"), line.pop("what"), line.pop("pid")
            more = " ".join(f"{name}={value}" for name, value in line.items())
            told.append(f"{at - when:+8.3f} {pid:>7} {what} {more}")
        return told

    def close(self) -> None:
        with self._closing:
            self.is_open = False
            os.close(self._file)


class WritingLimiter(RedisLimiter):
    """A RedisLimiter that writes down each slot that an opener gets, and that is given back."""

    def __init__(self, chronicle: Chronicle, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.chronicle = chronicle

    def acquire(self, timeout: float, wanted: Any) -> Hashable | None:
        token = super().acquire(timeout, wanted)
        if token is not None:
            self.chronicle.note("granted", **_told(token))
        return token

    def release(self, token: Hashable) -> None:
        self.chronicle.note("released", **_told(token))
        super().release(token)


class WritingListener(Listener):
    """Writes down what a pool opens and closes."""

    def __init__(self, chronicle: Chronicle) -> None:
        self.chronicle = chronicle

    def connected(self, token: Any, info: ConnectionInfo) -> None:
        self.chronicle.note("connected", connection=info.id)

    def closed(self, info: ConnectionInfo, reason: str) -> None:
        self.chronicle.note("closed", connection=info.id, reason=reason)


class WritingHandler(logging.Handler):
    """Writes down what is logged: which slots are lost, and when Redis is away."""

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__()
        self.chronicle = chronicle

    def emit(self, record: logging.LogRecord) -> None:
        self.chronicle.note("logged", text=record.getMessage())


def write_down(pool: ConnectionPool[Any], chronicle: Chronicle) -> None:
    """Have it written down what a pool opens and closes, what its limiter logs, and when nothing runs."""
    pool.listen(WritingListener(chronicle))
    note_stalls(chronicle)
    logger = logging.getLogger("jetsocket.redis")
    logger.addHandler(WritingHandler(chronicle))
    logger.setLevel(logging.INFO)


def note_stalls(chronicle: Chronicle) -> None:
    """Have it written down when this process is not run for longer than others may rely on."""

    def watch() -> None:
        before = monotonic()
        while chronicle.is_open:
            sleep(_GLANCE)
            now = monotonic()
            if now - before > _GLANCE + _STALL:
                chronicle.note("was not run", seconds=round(now - before - _GLANCE, 3))
            before = now

    threading.Thread(target=watch, name="stalls", daemon=True).start()


def _told(token: Any) -> dict[str, Any]:
    return {"lease": token.lease, "ends_in": round(token.until - with_sleep(), 3)}
