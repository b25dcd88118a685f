"""Closing many connections side by side."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jetsocket.clock import monotonic
from jetsocket.entry import Entry
from jetsocket.wire.waits import Watcher

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

_SOON = 0.05  # s between two looks at those that tell nothing by themselves


def close_all(entries: Iterable[Entry], timeout: float) -> None:
    """Close connections side by side within `timeout` (s): a close frame on each, then one wait for all."""
    pending = list(entries)
    deadline = monotonic() + timeout
    try:
        for entry in pending:
            if entry.was_opened:
                entry.wire.start_close(1001)
            else:  # an exception has struck its dial, or what was to end that: its opener may read from it
                entry.wire.shutdown()
        while pending := [entry for entry in pending if not _has_closed(entry.wire, deadline)]:
            remaining = deadline - monotonic()
            if remaining <= 0:
                break
            _wait_for_any(pending, min(remaining, _SOON))
    finally:  # after a Ctrl-C, too: closing twice does nothing
        for entry in pending:
            entry.wire.shutdown()


def _has_closed(wire: WebSocket, deadline: float) -> bool:
    if monotonic() >= deadline or not wire.poll_close():
        return False
    wire.shutdown()
    return True


def _wait_for_any(entries: Iterable[Entry], timeout: float) -> None:
    watcher = Watcher()
    for entry in entries:
        fd = entry.wire.fileno()
        if fd >= 0:
            watcher.add(fd)
    watcher.ready(timeout)


__all__ = ["close_all"]
