"""A thread's way through its plan, and what becomes of each step."""

from __future__ import annotations

import threading
import traceback
from random import Random
from time import monotonic
from typing import TYPE_CHECKING

from jetsocket import DecodeError, InvalidStateError, JetSocketError, MessageTooBigError, ProtocolError
from tests.soak.actions import Actions
from tests.soak.children import ChildError
from tests.soak.plan import Step, choose
from tests.soak.tally import KEPT, Failure, ForeignReplyError, OnPurpose

if TYPE_CHECKING:
    from tests.soak.world import Slot

_PAUSE = 0.1  # s after an error: nobody hammers a server that is down

NEVER = (ProtocolError, InvalidStateError, DecodeError, MessageTooBigError)
"""Errors that come only where a step asks for them: no byte is altered on the way."""


ON_PURPOSE = {
    "timeout": {"TimeoutError"},
    "closed": {"ConnectionClosedError"},
    "cut": {"ConnectionClosedError"},
    "raises": {"OnPurpose"},
    "impatient": {"PoolExhaustedError", "TimeoutError"},
    "at_once": {"PoolExhaustedError"},
}
"""The errors that a step is for."""


class Worker(Actions):
    """One thread's way through its plan."""

    def __init__(self, name: str, slot: Slot, rng: Random, patience: float) -> None:
        super().__init__(name, slot, patience)
        self._rng = rng
        self.failures: list[Failure] = []

    def work(self, stopping: threading.Event) -> None:
        """Do one step after the other."""
        while not stopping.is_set():
            if not self.once():
                stopping.wait(_PAUSE)

    def once(self) -> bool:
        """Do one step; whether it was answered."""
        step = choose(self._rng, self.kind)
        tally, began = self.tally, monotonic()
        tally.made += 1
        tally.actions[step.action] += 1
        try:
            getattr(self, step.action)(step)
        except (JetSocketError, OnPurpose, ChildError) as error:
            self._failed(step, error, began)
        except ForeignReplyError:
            tally.failed["foreign reply"] += 1
        except Exception as error:
            self._broken(step, error)
        else:
            tally.answered += 1
            tally.answered_at = monotonic()
            return True
        return False

    def _failed(self, step: Step, error: Exception, began: float) -> None:
        name = error.name if isinstance(error, ChildError) else type(error).__name__
        if isinstance(error, NEVER):
            return self._broken(step, error)
        self.tally.failed[name] += 1
        if not self.kind.proxied and name not in ON_PURPOSE.get(step.action, ()):
            text = f"{step.action} in a {self.kind.name} pool: {name}: {error}"
            self.failures.append(Failure(began, monotonic(), text))
        return None

    def _broken(self, step: Step, error: Exception) -> None:
        self.tally.failed[f"unexpected {type(error).__name__}"] += 1
        if len(self.tally.broken) < KEPT:
            trace = "".join(traceback.format_exception(error))
            self.tally.broken.append(f"{step.action} in a {self.kind.name} pool:\n{trace}")
