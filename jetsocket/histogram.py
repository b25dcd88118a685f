"""How often which durations occurred: counts, mean, percentiles."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from jetsocket.histogram_buckets import upper_bound


@dataclass(frozen=True)
class Histogram:
    """How often which durations occurred.

    Attributes:
        counts: Occurrences by number of the bucket; `buckets` tells what durations it stands for.
        total: Sum of all durations (s).
        longest: The longest of all (s).
    """

    counts: Mapping[int, int] = field(default_factory=dict)
    total: float = 0.0
    longest: float = 0.0

    @property
    def count(self) -> int:
        """How many durations were recorded."""
        return sum(self.counts.values())

    @property
    def mean(self) -> float:
        """Their mean (s), 0.0 when there is none."""
        return self.total / self.count if self.counts else 0.0

    def percentile(self, percent: float) -> float:
        """The duration (s) that so many percent did not exceed, to within 13 %; 0.0 when there is none."""
        wanted = math.ceil(self.count * percent / 100)
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= wanted:
                return min(upper_bound(bucket), self.longest)
        return 0.0

    def buckets(self) -> list[tuple[float, int]]:
        """Pairs of an upper bound (s) and how many durations were at most that long, as Prometheus counts.

        Only bounds of buckets that hold something; the last pair has all durations. The bounds are the same
        in every process: eight for each doubling, from a microsecond on.
        """
        pairs, seen = [], 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            pairs.append((upper_bound(bucket), seen))
        return pairs

    @property
    def p50(self) -> float:
        """The median (s)."""
        return self.percentile(50)

    @property
    def p95(self) -> float:
        """What 95 % did not exceed (s)."""
        return self.percentile(95)

    @property
    def p99(self) -> float:
        """What 99 % did not exceed (s)."""
        return self.percentile(99)


__all__ = ["Histogram"]
