"""The order to open one connection, from the moment that it is decided to its end."""

from __future__ import annotations

import threading
from contextvars import Context
from typing import TYPE_CHECKING, Literal, TypeAlias

from jetsocket.clock import monotonic
from jetsocket.entry import Entry

if TYPE_CHECKING:
    from jetsocket.quotas import Grant, Quota
from jetsocket.uris import Target

Purpose: TypeAlias = Literal["line", "poll", "prewarm", "keep"]


class Dial:
    """The order to open one connection, from the moment that it is decided to its end.

    It counts as being opened for its URI all the while; its slot it has only while it dials.

    Attributes:
        key: Of the URI.
        target: Where to.
        purpose: For whom: the callers in line, the next try of one that does not wait, `prewarm`, or a number
            of connections that is to be kept.
        context: The context variables of the caller that it is made for, for callbacks of the user's.
        limit: The time (s) that caller has, for messages.
        has_slot: Whether it holds a slot that no entry stands for yet.
        has_evicted: Whether another URI's connection was closed for it.
        room: A connection that is to be closed first; its slot is this dial's then.
        entry: The connection that is being opened now.
        ordered_at: When it was ordered (monotonic, s): it runs beside all that end later.
        began_at: When its present attempt began (monotonic, s).
        attempts: How many attempts have begun.
        overdue_at: When it is given up though its thread has not come back (monotonic, s).
        is_late: Whether that was put off once, for a thread that is only late.
        is_over: Whether it has ended, well or not; what its thread still opens is closed then.
        taken: Whether a thread has taken it up.
        parks: Whether that thread counts as one that waits for its next order, with this one's end.
        thread: That one's identity.
        is_told: Whether the log says that it hangs.
        hangs_in: Where in the user's code that thread was when it was given up; "" if it is not known.
        has_opened: Whether it has opened its connection.
        quota: What the pool has of the limiter that counts for its URI, as far as that is known.
        grant: What that gave it, and no entry has yet.
        is_wanted: Whether the limiter is to be waited for still; read without a lock.
        done: Released when it is over; for `prewarm`.
        error: Why it failed, if it did.
    """

    # What all begin with.
    has_slot: bool = False
    room: Entry | None = None
    has_evicted: bool = False
    entry: Entry | None = None
    attempts: int = 0
    overdue_at: float = float("inf")
    is_late: bool = False
    is_over: bool = False
    taken: bool = False
    parks: bool = False
    thread: int = 0
    hangs_in: str = ""
    is_told: bool = False
    has_opened: bool = False
    quota: Quota | None = None
    grant: Grant | None = None
    is_wanted: bool = True
    error: BaseException | None = None

    def __init__(self, key: str, target: Target, purpose: Purpose, context: Context | None) -> None:
        """Order one."""
        self.key = key
        self.target = target
        self.purpose = purpose
        self.context = context
        self.ordered_at = self.began_at = monotonic()
        self.done = threading.Lock()
        self.done.acquire()

    @property
    def rests(self) -> bool:
        """Whether an attempt has failed, and the next one is to come."""
        return self.attempts > 0 and self.entry is None

    def end(self) -> None:
        """It is over; wakes the threads that wait for that."""
        self.is_over = True
        if self.done.locked():
            self.done.release()

    def wait(self, timeout: float) -> bool:
        """Wait until it is over, at most so long (s); whether it is."""
        if self.done.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX)):
            self.done.release()
        return self.is_over


__all__ = ["Dial", "Purpose"]
