"""The figures of pools for Prometheus; needs the extra `prometheus`.

`PoolCollector` reads them when Prometheus asks, and costs nothing in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate

from jetsocket.contrib.measures import BOUNDS, MEASURES, NAME, Key, Ledger, Measure, Pool, durations

try:
    from prometheus_client.metrics_core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
        Metric,
    )
    from prometheus_client.utils import floatToGoString
except ImportError as error:
    text = 'jetsocket.contrib.prometheus needs prometheus-client: pip install "jetsocket[prometheus]"'
    raise ImportError(text) from error

__all__ = ["PoolCollector"]

_UNITS = {"s": "_seconds", "By": "_bytes"}
_BOUNDS = (*map(floatToGoString, BOUNDS), "+Inf")


class PoolCollector:
    """Tells Prometheus the figures of pools, read when it asks; to be registered with a registry.

    Of a pool that is closed or collected nothing is told any more; the collector keeps none open. Pools of
    one name are told of together.

    Example:
        >>> from prometheus_client import REGISTRY
        >>> REGISTRY.register(PoolCollector(pool))
    """

    def __init__(self, *pools: Pool) -> None:
        """Tell of those pools.

        Raises:
            TypeError: One of them is no pool.
        """
        self._ledger = Ledger()
        for pool in pools:
            self.add(pool)

    def add(self, pool: Pool) -> None:
        """Tell of one more pool.

        Raises:
            TypeError: It is none.
        """
        self._ledger.add(pool)

    def describe(self) -> Iterator[Metric]:
        """What `collect` tells of, without figures: a registry takes one collector of each name."""
        yield from map(_family, MEASURES)

    def collect(self) -> Iterator[Metric]:
        """The figures of this moment, as a registry asks for them."""
        sums = self._ledger.read()
        for measure in MEASURES:
            family = _family(measure)
            for name, each in sums.items():
                _fill(family, measure, name, each.now if measure.kind == "now" else each.ever)
            yield family


def name_of(measure: Measure) -> str:
    """What Prometheus calls it, without `_total`, `_bucket`, `_sum` and `_count`."""
    return measure.name.replace(".", "_") + _UNITS.get(measure.unit, "")


def labels_of(measure: Measure) -> list[str]:
    """What Prometheus calls its attributes."""
    return [label.replace(".", "_") for label in (NAME, *measure.labels)]


def _family(measure: Measure) -> Metric:
    name, labels = name_of(measure), labels_of(measure)
    if measure.kind == "now":
        return GaugeMetricFamily(name, measure.text, labels=labels)
    if measure.kind == "ever":
        return CounterMetricFamily(name, measure.text, labels=labels)
    return HistogramMetricFamily(name, measure.text, labels=labels)


def _fill(family: Metric, measure: Measure, name: str, figures: Mapping[Key, float]) -> None:
    """Add the figures of the pools of one name."""
    if isinstance(family, HistogramMetricFamily):
        for labels, (counts, total) in durations(figures, measure.key).items():
            buckets = list(zip(_BOUNDS, accumulate(counts), strict=True))
            family.add_metric((name, *labels), buckets, total)
    elif isinstance(family, (GaugeMetricFamily, CounterMetricFamily)):
        for (key, labels, _), value in figures.items():
            if key == measure.key:
                family.add_metric((name, *labels), value)
