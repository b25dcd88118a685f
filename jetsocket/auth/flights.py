"""One value for many threads: the first thread that needs it gets it, the others wait for that."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from jetsocket.clock import monotonic
from jetsocket.exceptions import JetSocketError, TimeoutError, raise_copy
from jetsocket.interrupts import is_alarm
from jetsocket.process_id import getpid

__all__ = ["Flights"]

V = TypeVar("V")


class _Flight(Generic[V]):
    """One attempt to get the value.

    Attributes:
        until: When it is given up, whether its thread comes back or not (monotonic, s).
        landed: Set when it is over.
        value: What it brought; None: nothing.
        error: Why it failed; None, and no value: what interrupted it concerns its own thread only.
    """

    def __init__(self, until: float) -> None:
        self.until = until
        self.landed = threading.Event()
        self.value: V | None = None
        self.error: JetSocketError | None = None


class Flights(Generic[V]):
    """A value that is good for some time. Takes no lock, so none can be left behind by a fork."""

    def __init__(self) -> None:
        """None is there yet."""
        self._value: V | None = None
        self._flights: dict[int, _Flight[V]] = {}  # by process: a parent's does not land in its child

    def get(self, is_good: Callable[[V], bool], fly: Callable[[], V], timeout: float) -> V:
        """The value, if there is one and it is good; else what `fly` returns, here or in another thread.

        Args:
            is_good: Whether a value may be used still.
            fly: Gets another one.
            timeout: s to wait for another thread's.

        Raises:
            TimeoutError: The other thread's did not come in time.
            JetSocketError: What `fly` raised, here or in the other thread; a copy there.
        """
        deadline = monotonic() + timeout
        while True:
            value = self._value
            if value is not None and is_good(value):
                return value
            mine = _Flight[V](deadline)
            flight = self._flights.setdefault(getpid(), mine)
            if flight is mine:
                return self._lead(mine, is_good, fly)
            if monotonic() > flight.until and not flight.landed.is_set():  # its thread hangs
                self._end(flight)
                continue
            if not flight.landed.wait(max(0.0, deadline - monotonic())):
                raise TimeoutError(
                    "another thread waits for the ticket still; allow more time", "connect", timeout
                )
            if flight.error is not None:
                raise_copy(flight.error)
            if flight.value is not None:  # whatever has become of it meanwhile: it was got for this one, too
                return flight.value

    def _lead(self, flight: _Flight[V], is_good: Callable[[V], bool], fly: Callable[[], V]) -> V:
        try:
            value = self._value  # another flight may have landed since it was looked at
            if value is None or not is_good(value):
                value = fly()
            flight.value = self._value = value
            return value
        except JetSocketError as error:
            if not is_alarm(error):
                flight.error = copy.copy(error)  # without the frames, which refer to what is secret
                flight.error.__cause__ = error.__cause__
            raise
        finally:
            self._end(flight)
            flight.landed.set()

    def _end(self, flight: _Flight[V]) -> None:
        """From now on, the next one that needs a value gets it itself."""
        if self._flights.get(getpid()) is flight:  # and should that be another one at once, there are two
            self._flights.pop(getpid(), None)
