"""Re-entry: a signal handler or finalizer uses what its own thread is using just then.

It runs in the middle of that. If the thread holds the lock which the handler needs, waiting would be waiting
for itself. So who finds a lock taken looks on its own stack for a method that takes it, and is refused.
"""

from __future__ import annotations

import errno
from collections.abc import Set
from types import CodeType, FrameType

from jetsocket.exceptions import InvalidStateError
from jetsocket.interrupts import frames_from

__all__ = ["ReentryError", "is_below", "reentered"]


class ReentryError(OSError):
    """A finalizer or signal handler came inside a session, which is as it was: it would wait for itself."""

    def __init__(self) -> None:
        super().__init__(errno.EDEADLK, "a finalizer or signal handler has interrupted a TLS session")


def is_below(owner: object, methods: Set[CodeType], frame: FrameType | None) -> bool:
    """Whether one of these methods of that object runs, from that frame of its stack down."""
    stack = frames_from(frame)
    return any(each.f_code in methods and each.f_locals.get("self") is owner for each in stack)


def reentered(operation: str, where: str) -> InvalidStateError:
    """What to tell a finalizer or signal handler that would wait for its own thread.

    Args:
        operation: What it has called.
        where: The connection, as it may be shown.
    """
    return InvalidStateError(
        f"{operation} was called from a signal handler or finalizer that interrupted this very thread in"
        f" its use of {where}; let it set a flag, or use another connection",
        current_state="busy",
    )
