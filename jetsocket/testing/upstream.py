"""The way from a recorder to the real server: two threads over a connection that the pool has opened."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

from jetsocket import ConnectionClosedError, JetSocketError
from jetsocket.clock import deadline_in
from jetsocket.testing.payloads import Payload
from jetsocket.wire.websocket import WebSocket

_SEND_PATIENCE = 30.0  # s
_CLOSE_PATIENCE = 1.0  # s


class Upstream:
    """Sends what it is given, and tells what comes, in threads of its own."""

    def __init__(
        self, wire: WebSocket, came: Callable[[Payload], None], ended: Callable[[int, str], None]
    ) -> None:
        """Begin.

        Args:
            wire: Connected.
            came: Called with each message.
            ended: Called once, with the code and reason of the close; 1006 without.
        """
        self.wire = wire
        self._came, self._ended = came, ended
        self._out: SimpleQueue[Payload | tuple[int, str]] = SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name="recorder", daemon=True)
            for target in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, payload: Payload) -> None:
        """Send a message, some time."""
        self._out.put(payload)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, after what was to be sent before."""
        self._out.put((code, reason))

    def join(self) -> None:
        """Wait until it is closed."""
        for thread in self._threads:
            thread.join(2 * _CLOSE_PATIENCE)

    def _read(self) -> None:
        try:
            while True:
                self._came(self.wire.recv_message(None))
        except ConnectionClosedError as error:
            self._ended(error.code, error.reason)
        except JetSocketError:
            self._ended(1006, "")
        self._out.put((1000, ""))

    def _write(self) -> None:
        while True:
            item = self._out.get()
            if isinstance(item, tuple):
                with contextlib.suppress(ValueError):  # a code that only a peer's silence is told by
                    self.wire.send_close(*item)
                self.wire.finish_close(deadline_in(_CLOSE_PATIENCE))
                return
            with contextlib.suppress(JetSocketError):  # the reader is told how it ended
                self.wire.send_message(item, deadline_in(_SEND_PATIENCE))


__all__ = ["Upstream"]
