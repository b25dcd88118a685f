"""What a server can tell of the processes that use it: who opened what, who sent what, how it ended."""

from __future__ import annotations

import json
import threading
from collections import Counter, defaultdict
from time import sleep
from typing import Any

from tests.servers import Connection

_GRACE = 0.05  # s; on a machine whose cores are all busy, a FIN may come after a later SYN


class Census:
    """A handler for an EchoServer that answers ids, and keeps books by process.

    Clients say in the header X-Pid which process opened a connection, and in each message, under "pid",
    which process sent it; under "delay" perhaps, how long (s) to wait with the answer.

    Attributes:
        opened: Connections ever, by process.
        most_open: The most that one process had open at one moment.
        foreign: (owner, sender) of every message that came on another process's connection.
        ends: By process, how its connections ended: close codes, 1006 for those that were cut.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: defaultdict[str, list[Connection]] = defaultdict(list)
        self.opened = Counter[str]()
        self.most_open = Counter[str]()
        self.foreign: list[tuple[str, str]] = []
        self.ends: defaultdict[str, Counter[int | None]] = defaultdict(Counter)

    def __call__(self, conn: Connection) -> None:
        assert conn.request is not None
        owner = conn.request.headers["X-Pid"]
        with self._lock:
            self._open[owner] = [*self._still_open(owner), conn]
            self.opened[owner] += 1
            self.most_open[owner] = max(self.most_open[owner], len(self._open[owner]))
        try:
            for message in conn:
                self.answer(conn, owner, json.loads(message))
        finally:
            with self._lock:
                self.ends[owner][conn.protocol.close_code] += 1

    def _still_open(self, owner: str) -> list[Connection]:
        """Those that are open; before there are more than ever, the kernel gets time to tell of a close."""
        found = [conn for conn in self._open[owner] if conn.is_open]
        if 1 < self.most_open[owner] <= len(found):
            sleep(_GRACE)
            found = [conn for conn in found if conn.is_open]
        return found

    @property
    def ended(self) -> int:
        """Connections that are over."""
        with self._lock:
            return sum(sum(codes.values()) for codes in self.ends.values())

    def answer(self, conn: Connection, owner: str, request: dict[str, Any]) -> None:
        if request["pid"] != owner:
            self.foreign.append((owner, request["pid"]))
        conn.echo_server.stopping.wait(request.get("delay", 0))
        conn.send(json.dumps({"id": request["id"], "pid": owner}))
