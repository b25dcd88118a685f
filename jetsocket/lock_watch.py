"""Finds a connection whose lock is held by no thread: an exception struck the one that had just taken it.

CPython delivers an asynchronous exception where a call returns, that of `acquire` too, and no code of ours
can tell then whether it got the lock. On a connection that many share, all would wait until their deadlines.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket


_STUCK, _STRUCK = 0.4, 0.1  # s that a lock is seen to be held by no thread; once a strike was seen


_NEVER = float("inf")


class LockWatch:
    """What the housekeeper remembers of the locks of one connection between two rounds."""

    def __init__(self, wire: WebSocket) -> None:
        """Begin with both free."""
        self._wire = wire
        self._sent_before = self._read_before = (0, 0)
        self._sends_since = self._reads_since = _NEVER  # since when each is seen so

    def is_stuck(self, now: float) -> bool:
        """Whether a lock is held for long though nothing moves, and no thread has it.

        A thread that sends, or makes what it is to send, says so, however long it takes; so does one that
        waits for what comes. One that was stopped where it says nothing is found on its stack.
        """
        wire = self._wire
        sent, read = (wire.bytes_out, wire.messages_sent), (wire.bytes_in, wire.reader.received)
        if not wire.lock.locked() or wire.is_composing or wire.is_writing:
            self._sends_since = _NEVER
        elif sent != self._sent_before:
            self._sends_since = now  # this may have been the last that moves
        else:
            self._sends_since = min(self._sends_since, now)
        if not wire.readlock.locked() or wire.waits_since is not None:
            self._reads_since = _NEVER
        elif read != self._read_before:
            self._reads_since = now
        else:
            self._reads_since = min(self._reads_since, now)
        self._sent_before, self._read_before = sent, read
        if now < min(self._sends_since, self._reads_since):  # neither is
            wire.was_struck = False
        enough = _STRUCK if wire.was_struck else _STUCK
        return (now - self._sends_since > enough and not wire.is_in_use("lock")) or (
            now - self._reads_since > enough and not wire.is_in_use("readlock")
        )


__all__ = ["LockWatch"]
