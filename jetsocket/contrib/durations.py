"""Durations that wait for an SDK of OpenTelemetry to ask, and are recorded then.

Its `record` takes as long as a tenth of a request: no caller has to wait for that, and it is quicker many
times in a row. What waits is a number each, in a series of those with the same attributes.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Mapping
from time import sleep
from typing import TypeAlias

from opentelemetry import metrics, trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, MeterProvider
from opentelemetry.trace import NonRecordingSpan

from jetsocket.interrupts import is_alarm

__all__ = ["Attributes", "Durations", "Series"]

Attributes: TypeAlias = Mapping[str, str | int]

_MOST_WAITING = 100_000  # of one series, some 3 MB; those above it are recorded at once
_MOST_SERIES = 2000  # as many as an SDK tells apart
_IN_A_ROW = 32  # recorded before other threads have their turn: callers, who would wait for the interpreter
_NOTHING = Context()


class Series:
    """Durations of one histogram that have the same attributes."""

    __slots__ = ("_attributes", "_histogram", "_most", "_of", "_waiting")

    def __init__(self, of: Durations, histogram: Histogram, attributes: Attributes, most: int) -> None:
        """Let at most so many wait."""
        self._of = of
        self._histogram = histogram
        self._attributes = attributes
        self._most = most
        self._waiting: deque[float | tuple[float, Context]] = deque()

    def add(self, seconds: float) -> None:
        """Have a duration recorded when the SDK asks; of a sampled span, it is an example (exemplar)."""
        of = self._of
        if of.is_global and metrics.get_meter_provider() is not of.provider:
            of.begin_anew()
        if len(self._waiting) >= self._most:  # it asks rarely, or never
            self._histogram.record(seconds, self._attributes)
        elif (span := trace.get_current_span()) is trace.INVALID_SPAN:
            self._waiting.append(seconds)
        elif (context := span.get_span_context()).trace_flags.sampled:  # the span itself is not kept for that
            example = trace.set_span_in_context(NonRecordingSpan(context), _NOTHING)
            self._waiting.append((seconds, example))
        else:
            self._waiting.append(seconds)

    def record(self) -> None:
        """Record what waits; what comes meanwhile waits for the next time."""
        waiting = self._waiting
        for count in range(len(waiting)):
            try:
                found = waiting.popleft()
            except IndexError as error:
                if is_alarm(error):
                    raise
                return  # another reader of the SDK was faster
            seconds, context = found if isinstance(found, tuple) else (found, None)
            self._histogram.record(seconds, self._attributes, context)
            if count % _IN_A_ROW == _IN_A_ROW - 1:
                sleep(0)

    def forget(self) -> None:
        """Drop what waits."""
        self._waiting.clear()


class Durations:
    """All series of one provider.

    Attributes:
        is_global: Whether it is the global one, which may be configured later, and counts from then on.
        provider: The one that what waits is for.
    """

    def __init__(self, *, is_global: bool) -> None:
        """Begin empty."""
        self.is_global = is_global
        self.provider: MeterProvider | None = None
        self._series: dict[object, Series] = {}
        _all.add(self)

    def series(self, histogram: Histogram, attributes: Attributes) -> Series:
        """That of a histogram with those attributes."""
        key = histogram, frozenset(attributes.items())
        found = self._series.get(key)
        if found is not None:
            return found
        if len(self._series) >= _MOST_SERIES:
            return Series(self, histogram, attributes, 0)
        return self._series.setdefault(key, Series(self, histogram, attributes, _MOST_WAITING))

    def record(self) -> None:
        """Record what waits: the SDK asks."""
        if self.is_global and metrics.get_meter_provider() is not self.provider:
            self.begin_anew()
        for series in list(self._series.values()):
            series.record()

    def begin_anew(self) -> None:
        """What waits is for no provider, or an earlier one."""
        self.forget()
        self.provider = metrics.get_meter_provider()

    def forget(self) -> None:
        """Drop what waits."""
        for series in list(self._series.values()):
            series.forget()


_all: weakref.WeakSet[Durations] = weakref.WeakSet()


def _forget_the_parents() -> None:
    """In a forked child: what waits is recorded by its parent."""
    for durations in list(_all):
        durations.forget()


os.register_at_fork(after_in_child=_forget_the_parents)
