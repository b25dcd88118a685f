"""What a process does while others wait for a slot: gives up what is idle, or the next that comes back."""

from __future__ import annotations

from jetsocket.contrib.redis.script import IDLE, NEXT

__all__ = ["CLOSE_IDLE", "CLOSE_NEXT", "TAKE_BACK", "Press"]

CLOSE_IDLE = "idle"
"""Close the one that is idle longest."""

CLOSE_NEXT = "next"
"""Close the next that comes back, if none is idle."""

TAKE_BACK = "none"
"""Close nothing more that comes back."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0  # s


class Press:
    """The duty of this process towards those who wait: pure, told the time.

    Attributes:
        check_at: When Redis is to be asked whether the duty still stands; None: there is none.
    """

    def __init__(self) -> None:
        """No process waits."""
        self.check_at: float | None = None
        self._pause = _FIRST_PAUSE
        self._owes_next = False

    def told(self, duty: int, delay: float, now: float) -> list[str]:
        """What is to be done, now that Redis has said what this process's duty is.

        Where nothing is idle, there may be later: so it is asked again after a pause, which grows.
        """
        if duty == NEXT and delay <= 0:
            self.check_at = now + _LONGEST_PAUSE
            if self._owes_next:
                return []
            self._owes_next = True
            return [CLOSE_NEXT]
        done = self._take_back()
        if duty == 0:
            self.check_at, self._pause = None, _FIRST_PAUSE
            return done
        if duty == IDLE and self.check_at is not None and now < self.check_at:
            return done  # one is being closed, perhaps: that takes its time
        pressed_already = self.check_at is not None
        self._pause = min(_LONGEST_PAUSE, self._pause * 2) if pressed_already else _FIRST_PAUSE
        self.check_at = now + (delay if duty == NEXT else self._pause)
        return [*done, CLOSE_IDLE]

    def released(self) -> list[str]:
        """A connection is closed: what was to be given up may have been this one. Redis says what else."""
        return self._take_back()

    def _take_back(self) -> list[str]:
        if not self._owes_next:
            return []
        self._owes_next = False
        return [TAKE_BACK]
