"""A subscription whose connection was lost is opened anew, on another one, after a pause."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from jetsocket.clock import monotonic
from jetsocket.cooldown import backoff, chance
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.reading_turns import Mailbox
from jetsocket.state import State
from jetsocket.subscription import Subscription

_LOOK_AGAIN = 0.05  # s after which it is looked whether the pool was closed, or the subscription ended

Open = Callable[["float | None"], "Subscription[Any]"]


class Resubscribing:
    """How one subscription is opened anew; see `ConnectionPool.subscribe`."""

    def __init__(self, state: State, open_once: Open, where: str) -> None:
        """Open it with `open_once`, which gets a deadline (monotonic, s); `where` is the URI, redacted."""
        self._state = state
        self._open_once = open_once
        self._where = where

    def __call__(self, lost: Subscription[Any], deadline: float | None) -> Subscription[Any] | None:
        """Try until it is open again, with pauses that grow, with full jitter.

        Returns:
            What takes its place; None: another thread has ended it meanwhile.

        Raises:
            TimeoutError: It was not by the deadline (monotonic, s).
            PoolClosedError: The pool was closed or drained.
            ReplyError: The server refuses the subscription.
        """
        state, failures = self._state, 0
        text = "[%s] a subscription at %s was lost and is opened anew; what is pushed meanwhile is lost"
        state.log.note(logging.WARNING, text, state.name, self._where)
        while not lost.is_over:
            try:
                return self._open_once(deadline)
            except (ConnectionError, TimeoutError) as error:
                if is_alarm(error):
                    raise
                failures += 1
                until = monotonic() + backoff(failures, chance(), getattr(error, "retry_after", None))
                if deadline is not None and until >= deadline:
                    told = f"the subscription at {self._where} was lost, and not opened anew in time"
                    raise TimeoutError(told, operation="subscribe", timeout=None) from error
            self._pause(lost, until)
        return None

    def _pause(self, lost: Subscription[Any], until: float) -> None:
        bell: Mailbox[Any] = Mailbox()
        while not (self._state.closed or lost.is_over) and (left := until - monotonic()) > 0:
            bell.listen(min(left, _LOOK_AGAIN))


__all__ = ["Resubscribing"]
