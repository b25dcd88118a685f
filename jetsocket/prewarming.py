"""Connections ahead of their borrowers: `prewarm` has them opened, `clear` has them closed."""

from __future__ import annotations

from abc import abstractmethod

from jetsocket.clock import monotonic
from jetsocket.dial_order import Dial
from jetsocket.exceptions import TimeoutError, raise_copy
from jetsocket.opening import START_PATIENCE, Opening
from jetsocket.returning import Returning
from jetsocket.uris import Target


class Prewarming(Returning):
    """What is done for a URI while no borrower waits."""

    opening: Opening

    @abstractmethod
    def ensure_housekeeper(self) -> bool:
        """Start the housekeeper, if none runs; False if no thread can be started."""

    def prewarm(self, target: Target, key: str, count: int, *, keep: bool) -> int:
        """Open connections side by side until `count` are idle; see `ConnectionPool.prewarm`."""
        state = self.state
        if keep:
            state.keep(key, target, count)
        deadline = monotonic() + state.config.acquire_timeout
        opened = 0
        while True:
            ordered, under_way = state.warm(key, target, count, count - opened)
            if not (ordered or under_way):
                if (error := state.why_not_dialled(key)) is not None:
                    raise error
                return opened
            if not self.ensure_housekeeper():
                self._dial_here(ordered)
            is_over = self._await_dials([*ordered, *under_way], target, deadline)
            opened += sum(dial.has_opened for dial in ordered)
            if not is_over:
                return opened

    def _await_dials(self, dials: list[Dial], target: Target, deadline: float) -> bool:
        """Wait until those have ended; False: in time they have not, as a limiter has no slot for them."""
        try:
            return self._dials_end(dials, target, deadline)
        except BaseException:
            self.state.want_no_more(dials)
            raise

    def _dials_end(self, dials: list[Dial], target: Target, deadline: float) -> bool:
        limit = self.state.config.acquire_timeout
        for dial in dials:
            while not dial.wait(min(START_PATIENCE, deadline - monotonic())):
                if monotonic() >= deadline:
                    if self.state.want_no_more(dials):
                        return False
                    told = (
                        f"prewarm of {target.redacted} had not ended within acquire_timeout={limit:g} s;"
                        " allow more time, or warm fewer"
                    )
                    raise TimeoutError(told, operation="prewarm", timeout=limit)
                self._dial_here(dials)
        for dial in dials:
            if dial.error is not None:
                raise_copy(dial.error)
        return True

    def _dial_here(self, dials: list[Dial]) -> None:
        """Open what no opener has taken up: the system has no more threads, perhaps."""
        for dial in dials:
            if self.state.take_own(dial):
                self.opening.open(dial)

    def clear(self, key: str | None) -> int:
        """Close the idle connections to a URI, or all, and the others when they come back."""
        idle = self.state.clear(key)
        for entry in idle:
            entry.wire.start_close(1000)
        return len(idle)


__all__ = ["Prewarming"]
