"""Crowds: many threads that do the same at once, and what each of them got."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from tests.awake import awake


@dataclass(frozen=True)
class Outcome:
    """What one of a crowd got.

    Attributes:
        value: What its call returned; None if it raised.
        error: What its call raised.
        began: When it began (s, by the clock of `awake`).
        ended: When it ended (likewise).
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
        began = awake()
        try:
            value, error = call(number), None
        except Exception as raised:  # whatever it is, the test looks at it
            value, error = None, raised
        return Outcome(value, error, began, awake())

    with ThreadPoolExecutor(count) as threads:
        return [each.result(timeout) for each in [threads.submit(one, n) for n in range(count)]]


def errors(outcomes: list[Outcome]) -> list[BaseException]:
    return [each.error for each in outcomes if each.error is not None]
