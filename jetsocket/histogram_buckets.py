"""The buckets of all histograms: by which duration falls into which, in every process the same."""

from __future__ import annotations

import math
from bisect import bisect_right

__all__ = ["BOUNDS", "bucket_of", "upper_bound"]

_UNIT = 1e-6  # s
_OCTAVES = 48  # of microseconds: up to nine years
_PER_OCTAVE = 8  # buckets for each doubling, of equal width: a percentile is exact to 13 %


def upper_bound(bucket: int) -> float:
    """The duration (s) that a bucket ends before."""
    octave, part = divmod(bucket, _PER_OCTAVE)
    return math.ldexp((part + 1 + _PER_OCTAVE) / (2 * _PER_OCTAVE), octave) * _UNIT


BOUNDS = tuple(map(upper_bound, range(_OCTAVES * _PER_OCTAVE)))
"""Of all buckets (s)."""


def bucket_of(seconds: float) -> int:
    """Which bucket of a histogram a duration (s) falls into; 0 for half a microsecond and less."""
    return bisect_right(BOUNDS, seconds)
