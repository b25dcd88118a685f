"""Pings and their pongs: which have none yet, and how long they took."""

from __future__ import annotations

import os
import threading

from jetsocket.clock import monotonic
from jetsocket.interrupts import suppress
from jetsocket.wire.frames import BINARY, PING, TEXT
from jetsocket.wire.link import Ping, takes
from jetsocket.wire.outgoing import Outgoing

PING_SIZE = 4
"""B of a ping's payload, random."""


class Pings(Outgoing):
    """Sends pings, and notes their pongs."""

    @property
    def ping_due_since(self) -> float | None:
        """When the oldest ping without a pong was sent (monotonic, s)."""
        if not self._pings:  # nearly always, and the housekeeper asks every connection
            return None
        pings = list(self._pings.values())
        return pings[0].sent_at if pings else None

    @takes("lock")
    def send_ping(self) -> bool:
        """Send a ping without waiting; False when a thread is sending just now."""
        self._pushed_by = threading.get_ident()  # as in `answer_ping`
        try:
            if not self.lock.acquire(blocking=False):
                return False
            try:
                payload = os.urandom(PING_SIZE)
                self._pings[payload] = Ping()
                if not self._push(PING, payload):
                    self._pings.pop(payload, None)
                    return False
                return True
            finally:
                self.lock.release()
        finally:
            self._pushed_by = 0

    @takes("lock")
    def push_message(self, payload: str | bytes) -> bool:
        """Send a short message without waiting; False when there is no room, or a thread is sending just now.

        It does not count as a message that was sent.
        """
        self._pushed_by = threading.get_ident()  # as in `answer_ping`
        try:
            if not self.lock.acquire(blocking=False):
                return False
            try:
                if isinstance(payload, str):
                    return self._push(TEXT, payload.encode("utf-8"))
                return self._push(BINARY, payload)
            finally:
                self.lock.release()
        finally:
            self._pushed_by = 0

    def _match_pongs(self) -> None:
        assert self.readlock.locked(), "the caller holds `readlock`"
        now = monotonic()
        pongs = self.reader.pongs
        while pongs:
            payload = pongs.popleft()
            if payload not in self._pings:
                continue  # unsolicited, or late: allowed, and worth nothing (RFC 6455 §5.5.3)
            self.last_heard = now
            for earlier in list(self._pings):  # a pong answers all pings before it, too
                ping = self._pings.pop(earlier, None)
                if ping is not None:
                    ping.round_trip = now - ping.sent_at
                    with suppress(RuntimeError):  # `_fail` was faster
                        ping.answered.release()
                if earlier == payload:
                    break
