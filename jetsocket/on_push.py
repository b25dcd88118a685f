"""What belongs to no request and no subscription goes to the user's `on_push`, in a worker."""

from __future__ import annotations

import logging
from typing import Any

from jetsocket.clock import monotonic
from jetsocket.correlation_calls import Part
from jetsocket.dispatch import Dispatcher
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.pushes import OnPush, Pushes
from jetsocket.state import State
from jetsocket.user_errors import told
from jetsocket.workers import Run

_REPLY_PATIENCE = 5.0  # s for sending what it returned, where no send_timeout is set


class PushHandler:
    """Calls `on_push` for what has come, one after another.

    Attributes:
        is_scheduled: Whether a worker is about to run it.
        under_way: The call that is; None: none.
    """

    def __init__(
        self, state: State, pushes: Pushes, on_push: OnPush[Any], send_timeout: float | None
    ) -> None:
        """Empty those `pushes` into that function of the user's."""
        self._state = state
        self._pushes = pushes
        self._on_push = on_push
        self._patience = _REPLY_PATIENCE if send_timeout is None else send_timeout
        self._told_of_loss = 0
        self.is_scheduled = False
        self.under_way: Run | None = None

    @property
    def has_work(self) -> bool:
        """Whether something waits that no worker is about to handle."""
        return bool(self._pushes.waiting) and not self.is_scheduled

    def run(self) -> None:
        """Handle all that waits; in a worker."""
        waiting = self._pushes.waiting
        self.is_scheduled = False
        while waiting and not self._state.cut:
            try:
                dispatcher, part = waiting.popleft()
            except IndexError as error:  # the oldest had to go meanwhile
                if is_alarm(error):
                    raise
                break
            self._handle(dispatcher, part)
        if (lost := self._pushes.lost) > self._told_of_loss:
            self._told_of_loss = lost
            text = "[%s] on_push is too slow: %d messages had to be dropped so far"
            self._state.log.note(logging.WARNING, text, self._state.name, lost)

    def _handle(self, dispatcher: Dispatcher, part: Part) -> None:
        uri, matching, log = dispatcher.target.redacted, dispatcher.matching, self._state.log
        run = self.under_way = Run()
        try:
            answer = self._on_push(uri, matching.value_of(part.message, uri))
        except BaseException as error:  # noqa: BLE001  # the user's, SystemExit too; logged, it costs nothing
            text = "[%s] on_push() failed over a message from %s: %s"
            log.note(logging.WARNING, text, self._state.name, uri, told(error), failure=error)
            return
        finally:
            self.under_way = None
            if run.hangs:
                text = "[%s] an on_push() that hung has come back after %.3g s"
                log.note(logging.WARNING, text, self._state.name, monotonic() - run.began_at)
        if answer is None:
            return
        try:
            payload, wire = matching.encode(answer, dispatcher.subprotocol), dispatcher.wire
            wire.send_message(payload, monotonic() + self._patience, wire.holder)
        except (ConnectionError, TimeoutError, TypeError, ValueError) as error:
            text = "[%s] what on_push() returned could not be sent to %s: %s"
            log.note(logging.WARNING, text, self._state.name, uri, told(error), failure=error)


__all__ = ["PushHandler"]
