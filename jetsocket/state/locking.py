"""How a step is made: the one lock of a pool's state, and what may strike where.

**A step** is a method of the state that runs under its lock, takes microseconds, and returns what is to be
done outside: connecting, closing, waiting, calling back, logging. No I/O and no user code runs in it.

**Who else may run in the middle of it.** The garbage collector may free a lease, or run the `__exit__` of a
suspended generator that holds one, in the thread that is inside a step; a signal handler may, too.
If one of them waited for the lock, it would wait for its own thread. So

- a step that is asked for where its own thread is inside one raises InvalidStateError;
- `come_back` never waits: it puts the borrower on `returned`, one call that CPython does not interrupt, and
  books it if the lock is free. If it is not, the thread that holds it books it after letting go.

**What an exception may strike.** Ctrl-C, an alarm or `PyThreadState_SetAsyncExc` may raise between any two
bytecodes, in a step too. Then `condition` is still `TORN`, and the next step begins with `_rebuild`, which
derives all lists from what is written in one assignment each: the place of each entry, and who is in line.
The lock is only ever taken as `with self.lock`, which CPython does not interrupt half-way. Only 3.14 looks
for signals there, too (its issue 148874): what a handler raises in that very instruction leaves it locked.

**What is struck outside a step** is found by the housekeeper within two of its rounds, less than a second: a
lease that is gone while its connection is lent (`dropped`), a return that was begun and never booked
(`unreturned`). Only what strikes before the first instruction of a `release` has struck a lease that is lent.
"""

from __future__ import annotations

import functools
import sys
import threading
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Concatenate, ParamSpec, TypeVar

from jetsocket.borrower import Borrower
from jetsocket.exceptions import InvalidStateError, PoolClosedError
from jetsocket.interrupts import is_alarm

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="Steps")

CALM, BUSY, TORN = 0, 1, 2

_WRITTEN_OUT: set[CodeType] = set()


def written_out(step: Callable[P, R]) -> Callable[P, R]:
    """Mark a method that makes a step without `step`, having its lines in it, as it is called so often."""
    _WRITTEN_OUT.add(step.__code__)
    return step


def step(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Make a method one step under the lock; afterwards, what came back meanwhile is booked.

    Raises InvalidStateError where waiting for the lock would be waiting for oneself.
    """

    @functools.wraps(method)
    def made(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.lock.locked() and is_inside(sys._getframe(1)):
            raise self.reentered()
        try:
            with self.lock:
                if self.condition == TORN:
                    self._rebuild()
                self.condition = TORN
                try:
                    if self.returned:
                        self._book_returned()
                    result = method(self, *args, **kwargs)
                except (PoolClosedError, InvalidStateError) as error:  # raised before anything is changed
                    if not is_alarm(error):
                        self.condition = self._condition()
                    raise
                self.condition = self._condition()
                return result
        finally:
            if self.returned:
                self.settle()

    return made


class Steps:
    """The lock, and what comes back without waiting for it.

    Attributes:
        name: The pool's.
        lock: Guards all of the state but `returned`, `lent`, and queues, which are touched by single calls
            that CPython makes atomic. With it, no other lock is taken but those inside `BoundedSemaphore` and
            `SimpleQueue`, which are never held while waiting for this one.
        condition: `TORN` while a step is under way; if the next one finds it so, an exception has struck it.
            Else `CALM` if what comes back clean becomes idle, and what is idle may be lent, without further
            questions; `BUSY` if not.
        returned: Borrowers whose connection came back and is not booked yet.
    """

    def __init__(self, name: str) -> None:
        """Begin whole."""
        self.name = name
        self.lock = threading.Lock()
        self.condition = CALM
        self.returned: deque[Borrower] = deque()

    @abstractmethod
    def _condition(self) -> int:
        """What `condition` is at the end of a step: `CALM` or `BUSY`."""

    @abstractmethod
    def _rebuild(self) -> None:
        """Derive the lists anew; the lock is held."""

    @abstractmethod
    def _book(self, borrower: Borrower) -> None:
        """Take back what that borrower held; the lock is held. Doing it twice does nothing."""

    def come_back(self, borrower: Borrower) -> None:
        """Return what a borrower held. Never waits for the lock, so it may run anywhere."""
        self.returned.append(borrower)
        self.settle()

    def settle(self) -> None:
        """Book what came back, unless a thread is inside: it does so on its way out.

        If this thread is inside, below us on the stack, the lock shows as locked. If it shows as free, then
        waiting for it is waiting for another thread that slipped in and is there for microseconds; no circle
        of such waits can close, because each of its threads would hold the lock that the next one found free.
        """
        while self.returned and not self.lock.locked():
            with self.lock:
                if self.condition == TORN:
                    self._rebuild()
                self.condition = TORN
                self._book_returned()
                self.condition = self._condition()

    def _book_returned(self) -> None:
        while self.returned:
            # Booked first, removed after: an exception in between repeats what repeats harmlessly.
            borrower = self.returned[0]
            try:
                self._book(borrower)
            except Exception as error:
                if not is_alarm(error):
                    self.returned.popleft()
                raise
            self.returned.popleft()

    def reentered(self) -> InvalidStateError:
        """What to tell a finalizer or signal handler that would wait for its own thread."""
        return InvalidStateError(
            f"pool {self.name!r} was called from a finalizer or signal handler that interrupted a pool"
            " itself; only release() can be called from there",
            current_state="busy",
        )

    def is_interrupted(self) -> bool:
        """Whether this very thread is inside a step, of this pool or another: a finalizer or handler asks."""
        return is_inside(sys._getframe(1))


def is_inside(frame: FrameType | None) -> bool:
    """Whether a step is under way at or below that frame."""
    while frame is not None:
        if frame.f_globals is _GLOBALS or frame.f_code in _WRITTEN_OUT:
            return True
        frame = frame.f_back
    return False


_GLOBALS = globals()

__all__ = ["BUSY", "CALM", "TORN", "Steps", "is_inside", "step", "written_out"]
