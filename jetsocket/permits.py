"""Permits: the right to hold one connection, and the line in front of it, first come, first served."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from traceback import StackSummary
from types import CodeType
from typing import TYPE_CHECKING

from jetsocket.clock import monotonic
from jetsocket.interrupts import suppress

if TYPE_CHECKING:
    from jetsocket.entry import Entry


class Permit:
    """One acquire, from the question to the return: waiting in line, then holding a permit, then done.

    All fields but `wake` are written under the ledger's lock, or by the one thread that acquires or has
    claimed the return.

    Attributes:
        thread: Identity of the thread that asked.
        asked_at: When (monotonic, s).
        limit: For how long it was ready to wait (s).
        taken_at: When it got its connection (monotonic, s).
        site: Where in the borrower's code: (code object, instruction), read only if somebody asks.
        stack: The whole stack, if leak_threshold is set.
        lease: The borrower's handle; dead once the borrower dropped it.
        held: Whether it holds a permit.
        entry: The connection it is for; None before one was chosen.
        room: A connection that makes room for `entry` and is to be closed before that is opened.
        reused: Whether `entry` had another borrower before.
        claimed: Whether somebody is returning it or has returned it.
        reason: Why `entry` must not be lent again; None if it may.
        gone: Whether `entry` is closed already.
        lent: Whether its borrower has got the connection.
        lent_for: How long it was lent (s).
        warned: Whether its leak was reported.
        wake: Held while it waits; released to wake it.
    """

    # What all begin with stands here and not in __init__: half of what lending costs would be assignments.
    limit: float = 0.0
    lease: weakref.ref[object] | None = None
    held: bool = False
    entry: Entry | None = None
    room: Entry | None = None
    reused: bool = False
    claimed: bool = False
    reason: str | None = None
    gone: bool = False
    lent: bool = False
    lent_for: float = 0.0
    warned: bool = False
    wake: threading.Lock | None = None

    def __init__(self, site: tuple[CodeType, int] | None = None, stack: StackSummary | None = None) -> None:
        """Record that the calling thread asks for a permit."""
        self.thread = threading.get_ident()
        self.asked_at = self.taken_at = monotonic()
        self.site = site
        self.stack = stack

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
    def dropped(self) -> bool:
        """Whether the borrower's handle is gone."""
        return self.lease is not None and self.lease() is None


class Permits:
    """A `BoundedSemaphore` that nobody waits on, and the line of those who wait for it.

    Has no lock of its own: every call is made under the ledger's lock. A permit that comes back is handed
    to whoever is first in line, in the same breath, so nobody can barge in.

    Attributes:
        held: The permits that are out.
        line: Those who wait, the longest-waiting first.
    """

    def __init__(self, count: int) -> None:
        """Make `count` permits."""
        self.count = count
        self.held: set[Permit] = set()
        self.line: OrderedDict[Permit, None] = OrderedDict()
        self._semaphore = threading.BoundedSemaphore(count)

    def take(self, permit: Permit) -> bool:
        """Take a permit if one is free and nobody waits for it."""
        if self.line or not self._semaphore.acquire(False):
            return False
        self._grant(permit)
        return True

    def join(self, permit: Permit) -> None:
        """Stand in line; `permit.wake` is released when the permit is there, or by `wake_all`."""
        permit.wake = threading.Lock()
        permit.wake.acquire()
        self.line[permit] = None

    def leave(self, permit: Permit) -> None:
        """Leave the line, if still in it."""
        self.line.pop(permit, None)

    def give_back(self, permit: Permit) -> None:
        """Return a permit: to the first in line, or to the semaphore. One that is not out is left alone."""
        if permit not in self.held:
            return
        self.held.discard(permit)
        permit.held = False
        if self.line:
            self._grant_first()
        else:
            self._semaphore.release()

    def recount(self) -> int:
        """Make the semaphore agree with `held` again, after an exception struck between two lines here.

        Returns:
            How many permits were lost (more than 0) or too many (less).
        """
        out = len(self.held)
        # By giving back all that is out, not by taking all that is free: there may be millions of those.
        missing = 0
        with suppress(ValueError):  # it is full
            while True:
                self._semaphore.release()
                missing += 1
        for _ in self.held:
            self._semaphore.acquire(blocking=False)
        while self.line and self._semaphore.acquire(blocking=False):
            self._grant_first()
        return missing - out

    def renew(self) -> None:
        """Take a new semaphore that agrees with `held`: in the old one, an exception may have struck."""
        self._semaphore = threading.BoundedSemaphore(self.count)
        for permit in self.held:
            permit.held = self._semaphore.acquire(blocking=False)
            self.leave(permit)
            self._wake(permit)
        while self.line and self._semaphore.acquire(blocking=False):
            self._grant_first()

    def wake_all(self) -> None:
        """Wake everybody who waits, in line or between two attempts to connect."""
        for permit in [*self.line, *self.held]:
            self._wake(permit)

    def _grant(self, permit: Permit) -> None:
        self.held.add(permit)
        permit.held = True

    def _grant_first(self) -> None:
        # Granted first, removed after: `renew` sees that it has its permit, or is still in line.
        first = next(iter(self.line))
        self._grant(first)
        del self.line[first]
        self._wake(first)

    @staticmethod
    def _wake(permit: Permit) -> None:
        if permit.wake is not None and permit.wake.locked():
            permit.wake.release()
