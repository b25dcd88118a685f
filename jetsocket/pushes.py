"""What belongs to no asker, on its way to `on_push`."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from jetsocket.interrupts import suppress

T = TypeVar("T")
OnPush: TypeAlias = Callable[[str, T], object]


class Pushes:
    """The queue to `on_push`; bounded, the oldest go first.

    Attributes:
        waiting: Pairs of a connection's dispatcher and a message.
        lost: How many there was no room for.
        note_unreadable: See `__init__`.
    """

    def __init__(
        self,
        ring: Callable[[], object] | None,
        most: int = 10_000,
        note_unreadable: Callable[[str, Callable[[], str]], object] | None = None,
    ) -> None:
        """Keep at most so many.

        Args:
            ring: Called when there is one again. None: they are not wanted.
            most: How many.
            note_unreadable: Gets the URI, as it may be shown, of a message that can't be read, and why.
        """
        self._ring_bell = ring
        self.note_unreadable = note_unreadable or _ignore
        self._most = most
        self.waiting: deque[tuple[Any, Any]] = deque()
        self.lost = 0

    def add(self, push: tuple[Any, Any]) -> None:
        """Keep one."""
        if self._ring_bell is None:
            return
        if len(self.waiting) >= self._most:
            self.lost += 1
            with suppress(IndexError):  # the worker was faster
                self.waiting.popleft()
        was_empty = not self.waiting
        self.waiting.append(push)
        if was_empty:
            self._ring_bell()


def _ignore(_uri: str, _why: Callable[[], str]) -> None:
    """Where it goes to a subscription, which raises."""


__all__ = ["Pushes"]
