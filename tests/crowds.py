"""Crowds: many threads that do the same at once, and what each of them got."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import monotonic
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What one of a crowd got.

    Attributes:
        value: What its call returned; None if it raised.
        error: What its call raised.
        began: When it began (monotonic, s).
        ended: When it ended (monotonic, s).
    """

    value: Any
    error: BaseException | None
    began: float
    ended: float

    @property
    def took(self) -> float:
        return self.ended - self.began


def crowd(count: int, call: Callable[[int], Any], timeout: float = 30) -> list[Outcome]:
    """Call from so many threads at once, each with its number."""
    start = threading.Barrier(count)

    def one(number: int) -> Outcome:
        start.wait(timeout)
        began = monotonic()
        try:
            value, error = call(number), None
        except Exception as raised:  # whatever it is, the test looks at it
            value, error = None, raised
        return Outcome(value, error, began, monotonic())

    with ThreadPoolExecutor(count) as threads:
        return [each.result(timeout) for each in [threads.submit(one, n) for n in range(count)]]


def errors(outcomes: list[Outcome]) -> list[BaseException]:
    return [each.error for each in outcomes if each.error is not None]
