"""Figures of times: percentiles, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Latencies", "percentile", "shown_time", "summary"]


class Latencies(NamedTuple):
    """What there is to say of many times (s)."""

    min: float
    avg: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def summary(times: Sequence[float]) -> Latencies | None:
    """The figures of times (s); None of none."""
    if not times:
        return None
    ordered = sorted(times)
    p50, p90, p95, p99 = (percentile(ordered, share) for share in (50, 90, 95, 99))
    return Latencies(ordered[0], math.fsum(ordered) / len(ordered), p50, p90, p95, p99, ordered[-1])


def percentile(ordered: Sequence[float], share: float) -> float:
    """The least of these that so many percent of them do not exceed (nearest rank): one that was measured."""
    rank = math.ceil(len(ordered) * share / 100)
    return ordered[max(0, rank - 1)]


def shown_time(seconds: float) -> str:
    """A time, with three digits and its unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.9995:
            return f"{_digits(seconds / size)} {unit}"
    return f"{_digits(seconds * 1e6)} us"


def _digits(number: float) -> str:
    if number >= 99.95:
        return f"{number:.0f}"
    return f"{number:.1f}" if number >= 9.995 else f"{number:.2f}"
