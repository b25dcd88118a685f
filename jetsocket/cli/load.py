"""The load of a bench: callers that ask, each as soon as it may, or when a request is due."""

from __future__ import annotations

import itertools
import math
import threading
from array import array
from collections import Counter
from collections.abc import Callable
from typing import Any

from jetsocket.cli.exits import Outcome, outcome_of
from jetsocket.clock import monotonic
from jetsocket.exceptions import JetSocketError, PoolClosedError

__all__ = ["Load", "due_at"]


def due_at(number: int, began: float, rate: float | None) -> float:
    """When the so-manieth request (from 0) is due, whatever became of those before; no rate: at once."""
    return began if rate is None else began + number / rate


class Load:
    """Callers in threads of their own.

    With a rate, the model is open: a latency counts from when the request was due, so that a server which
    stalls is charged for all who would have come meanwhile (no coordinated omission).

    Attributes:
        times: The latencies of those that were replied to (s).
        errors: How often which outcome came.
        unmade: How many were due when the time was over, and were never made.
        late: The longest that a request was behind its time when it was sent (s).
    """

    def __init__(
        self,
        ask: Callable[[], Any],
        *,
        callers: int,
        requests: int | None,
        duration: float | None,
        rate: float | None,
    ) -> None:
        """Call `ask` so often, or for so long (s)."""
        self._ask, self._rate = ask, rate
        self._most = math.inf if requests is None else requests
        self._duration = math.inf if duration is None else duration
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._began = self._ended = 0.0
        self.times: array[float] = array("d")
        self.errors: Counter[Outcome] = Counter()
        self.late = 0.0
        self.unmade = 0
        self._left_out_from = math.inf
        self.failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._call_all, name=f"bench-{number}", daemon=True)
            for number in range(callers)
        ]

    def start(self) -> None:
        """Start all callers."""
        self._began = self._ended = monotonic()
        for thread in self._threads:
            thread.start()

    def is_over_within(self, timeout: float) -> bool:
        """Wait for the callers, at most so long (s); whether all have ended."""
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                return False
        return True

    def stop(self) -> None:
        """Let no caller begin another request."""
        self._stop.set()

    @property
    def made(self) -> int:
        """Requests made so far, those that failed too."""
        with self._lock:
            return len(self.times) + sum(self.errors.values())

    @property
    def failed(self) -> int:
        """Requests that failed so far."""
        with self._lock:
            return sum(self.errors.values())

    @property
    def took(self) -> float:
        """From the start to the last reply (s)."""
        return max(1e-9, self._ended - self._began)

    def share_done(self) -> float:
        """How much of it is done, from 0 to 1."""
        by_number = self.made / self._most
        by_time = (monotonic() - self._began) / self._duration
        return min(1.0, max(by_number, by_time))

    def recent(self, most: int = 1000) -> list[float]:
        """The latest latencies."""
        with self._lock:
            return self.times[-most:].tolist()

    def _call_all(self) -> None:
        try:
            while not self._stop.is_set():
                with self._lock:
                    number = next(self._numbers)
                due = due_at(number, self._began, self._rate)
                if number >= self._most or due >= self._began + self._duration:
                    return
                if (wait := due - monotonic()) > 0 and self._stop.wait(wait):
                    return
                if monotonic() >= self._began + self._duration:
                    if self._rate is not None:
                        self._leave_out(number)
                    return
                self._call(due)
        except BaseException as error:
            self.failure = error
            self._stop.set()
            raise

    def _leave_out(self, number: int) -> None:
        """The time is over: that request was due, and so were those up to the end, and none is made."""
        assert self._rate is not None
        due = min(self._most, math.ceil(self._duration * self._rate - 1e-9))
        with self._lock:
            self._left_out_from = min(self._left_out_from, number)
            self.unmade = int(max(0, due - self._left_out_from))

    def _call(self, due: float) -> None:
        began = monotonic()
        counts_from = began if self._rate is None else due
        outcome: Outcome | None = None
        try:
            self._ask()
        except PoolClosedError:
            return
        except JetSocketError as error:
            if self._stop.is_set():
                return  # cut off at Ctrl-C
            outcome = outcome_of(error)
        ended = monotonic()
        with self._lock:
            self._ended = max(self._ended, ended)
            self.late = max(self.late, began - counts_from)
            if outcome is None:
                self.times.append(ended - counts_from)
            else:
                self.errors[outcome] += 1
