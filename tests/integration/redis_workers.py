"""Processes of a fleet (`apps/limited.py`), and what a server can tell of them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic, sleep
from typing import Any

from tests.integration.running import PATIENCE, ROOT
from tests.servers import Connection

_GRACE = 0.05  # s; on a machine whose cores are all busy, a FIN may come after a later SYN


class FleetCensus:
    """A handler for an EchoServer: how many connections all processes have together, and who is served when.

    Attributes:
        most_open: The most at one moment.
        served: (when, which process) for each message, in order.
        foreign: (owner, sender) of each message that came on another process's connection.
        by_process: How many each has open now.
        more: (when, how many) each time that there were more than `limit`.

    Args:
        limit: From how many on it is noted.
        note: Is told what is opened and ends, and who has what each time that there are more than `limit`.
    """

    def __init__(self, limit: int = 1_000_000, note: Callable[..., None] = lambda what, **more: None) -> None:
        self.limit = limit
        self._note = note
        self.more: list[tuple[float, int]] = []
        self._lock = threading.Lock()
        self._open: list[tuple[str, Connection]] = []
        self.most_open = 0
        self.opened = 0
        self.served: list[tuple[float, str]] = []
        self.foreign: list[tuple[str, str]] = []

    def __call__(self, conn: Connection) -> None:
        assert conn.request is not None
        owner, port = conn.request.headers["X-Pid"], conn.remote_address[1]
        with self._lock:
            self.opened += 1
            self._open = [*self._still_open(self.most_open), (owner, conn)]
            self.most_open = max(self.most_open, len(self._open))
            self._note("server: opened", owner=owner, port=port)
            if len(self._open) > self.limit:
                self.more.append((monotonic(), len(self._open)))
                who = Counter(each for each, _ in self._open)
                self._note("server: too many", count=len(self._open), of=who)
        try:
            self._serve(conn, owner)
        finally:
            self._note("server: ended", owner=owner, port=port)

    def _serve(self, conn: Connection, owner: str) -> None:
        for text in conn:
            message = json.loads(text)
            self.served.append((monotonic(), owner))
            if message["pid"] != owner:
                self.foreign.append((owner, message["pid"]))
            conn.echo_server.stopping.wait(message.get("delay", 0))
            conn.send(json.dumps({"id": message["id"], "pid": owner}))

    def _still_open(self, most: int) -> list[tuple[str, Connection]]:
        found = [each for each in self._open if each[1].is_open]
        if min(self.limit, most) <= len(found) and most > 0:
            sleep(_GRACE)
            found = [each for each in found if each[1].is_open]
        return found

    @property
    def by_process(self) -> Counter[str]:
        with self._lock:
            return Counter(owner for owner, conn in self._open if conn.is_open)

    @property
    def open_now(self) -> int:
        return sum(self.by_process.values())

    def forget_most(self) -> None:
        """Count the most anew."""
        with self._lock:
            self._open = self._still_open(0)
            self.most_open = len(self._open)

    def first_turn(self, owner: str) -> float:
        """When a process was served first."""
        return next(when for when, each in list(self.served) if each == owner)

    def turns(self, since: float, until: float) -> Counter[str]:
        """How often each process was served."""
        return Counter(owner for when, owner in list(self.served) if since <= when < until)


class FleetProcess:
    """One process; see `apps/limited.py`."""

    def __init__(self, uri: str, redis: str, **options: Any) -> None:
        limiter = {"limit": 10, "lease": 2.0, **options.pop("limiter", {})}
        given = {
            "uri": uri,
            "redis": redis,
            "name": "fleet",
            "threads": 4,
            "hold": 0.01,
            "max_connections": 10,
        }
        given |= {"acquire_timeout": 5.0, **options, "limiter": limiter}
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.apps.limited", json.dumps(given)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self.pid = str(self.process.pid)
        self._said = b""
        assert self.line() == "ready"

    def line(self, timeout: float = PATIENCE) -> str:
        """The next line that it says."""
        assert self.process.stdout is not None
        until = monotonic() + timeout
        while b"\n" not in self._said:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, until - monotonic()))
            assert ready, "it says nothing"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it has ended: {self.process.wait()}"
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())

    def stats(self) -> dict[str, Any]:
        self.tell("stats")
        told: dict[str, Any] = json.loads(self.line())
        return told

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, word: str) -> int:
        """Have it end so, and return its status."""
        self.tell(word)
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def clean(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


@contextlib.contextmanager
def fleet_of(count: int, uri: str, redis: str, **options: Any) -> Iterator[list[FleetProcess]]:
    """So many processes; more may be appended. None is left."""
    processes: list[FleetProcess] = []
    try:
        processes += [FleetProcess(uri, redis, **options) for _ in range(count)]
        yield processes
    finally:
        for each in processes:
            each.clean()
