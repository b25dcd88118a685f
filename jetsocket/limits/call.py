"""One call of `acquire`, as what waits and can be woken."""

from __future__ import annotations

from queue import Empty, SimpleQueue

from jetsocket.interrupts import is_alarm
from jetsocket.wire.waits import take


class Call:
    """One call of `acquire`."""

    __slots__ = ("_wake",)

    def __init__(self) -> None:
        self._wake: SimpleQueue[None] = SimpleQueue()

    def wake(self) -> None:
        """End `wait`, or the next one at once."""
        self._wake.put(None)

    def wait(self, most: float) -> None:
        """Wait until woken, at most so long (s)."""
        try:
            take(self._wake, most)
        except Empty as error:
            if is_alarm(error):
                raise


__all__ = ["Call"]
