"""The record of one acquire: who asks, since when, what they were given, and how it came back."""

from __future__ import annotations

import threading
import weakref
from contextvars import Context
from traceback import StackSummary
from types import CodeType
from typing import TYPE_CHECKING, Any, TypeAlias

from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.entry import Entry


Site: TypeAlias = tuple[CodeType, int]
"""Where in the code: (code object, instruction)."""

UNTIL_BOOKED = -1.0
"""Its return is claimed, and clean; how long it was lent is told when it is booked."""


class Borrower:
    """One acquire, from the question to the return: in line, then holding a connection, then done.

    Written under the lock of the pool's state, or by the one thread that acquires or has claimed the return;
    it outlives the lease.

    Attributes:
        thread: Identity of the thread that asked.
        asked_at: When (monotonic, s).
        limit: For how long it is ready to wait (s).
        target: Where to.
        key: What connections to there have in common.
        context: The context variables of the thread that asked, for callbacks while a connection is opened.
        taken_at: When it got its connection (monotonic, s).
        site: Where in the code that acquired: (code object, instruction), read only if it has to be shown.
        stack: The whole stack, if leak_threshold is set.
        lease: The handle; dead once it was dropped. None once its return was claimed.
        entry: The connection that it was given; None before, and after it came back.
        error: Why it gets none.
        wake: Held while it waits in line; released to wake it.
        overtaken: How often a later caller of another URI was served before it, at a full pool.
        reused: Whether the connection had another borrower before.
        reason: Why the connection must not be lent again; None if it may.
        gone: Whether the connection is closed already.
        lent_for: How long it was lent (s); `UNTIL_BOOKED`; 0.0 if it was not.
        is_counted: Whether that is in the statistics.
        returns: Whether its lease was released; that may have been struck before it was claimed.
        returning_thread: Identity of the thread that runs that callback.
        returning_until: Until when its return may take, with a callback of the user's (monotonic, s).
        shares: Whether it may have a place on a connection that others use, too.
        is_subscriber: Whether it has a place there for a subscription, which does not count as a request.
        warned: Whether its leak was reported.
        known_name: The name of the thread that asked, if leak_threshold is set.
        marks: What listeners returned when it asked; None: they were not told.
    """

    # What all begin with stands here, and there is no __init__: it would be a tenth of what lending costs.
    thread: int = 0
    asked_at: float = 0.0
    taken_at: float = 0.0
    site: Site | None = None
    stack: StackSummary | None = None
    limit: float = 0.0
    target: Target | None = None
    key: str = ""
    context: Context | None = None
    lease: weakref.ref[object] | None = None
    entry: Entry | None = None
    error: BaseException | None = None
    wake: threading.Lock | None = None
    overtaken: int = 0
    reused: bool = False
    reason: str | None = None
    gone: bool = False
    lent_for: float = 0.0
    is_counted: bool = False
    returns: bool = False
    returning_thread: int = 0
    returning_until: float = 0.0
    shares: bool = False
    is_subscriber: bool = False
    warned: bool = False
    known_name: str = ""
    marks: list[Any] | None = None

    @property
    def thread_name(self) -> str:
        """The name of the thread that asked, as far as it is known still."""
        if self.known_name:  # the thread may have ended, and another have its identity
            return self.known_name
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        return names.get(self.thread, f"that has ended ({self.thread})")

    def where(self) -> tuple[str, int, str]:
        """File, line and function that asked."""
        if self.site is None:
            return "<unknown>", 0, "<unknown>"
        code, instruction = self.site
        line = code.co_firstlineno
        for start, end, number in code.co_lines():
            if start <= instruction < end and number is not None:
                line = number
        return code.co_filename, line, code.co_name

    @property
    def is_dropped(self) -> bool:
        """Whether its lease is gone."""
        return self.lease is not None and self.lease() is None

    def wait(self, timeout: float) -> bool:
        """Wait until `rouse`, at most so long (s), and say whether it came; for the thread that asked."""
        if self.wake is None:
            return False
        return self.wake.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))

    def rouse(self) -> None:
        """Wake the thread that waits."""
        if self.wake is not None and self.wake.locked():
            self.wake.release()


__all__ = ["UNTIL_BOOKED", "Borrower", "Site"]
