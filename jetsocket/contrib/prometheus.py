"""The figures of pools for Prometheus; needs the extra `prometheus`.

`PoolCollector` reads them when Prometheus asks, and costs nothing in between. Where several processes answer
for each other (`PROMETHEUS_MULTIPROC_DIR`, as gunicorn's workers do), no collector is asked: there it is
`instrument`.
"""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from time import sleep
from typing import Any, Literal

from jetsocket.contrib.measures import (
    ADDRESS,
    BOUNDS,
    MEASURES,
    NAME,
    PORT,
    SUM,
    Figures,
    Identity,
    Key,
    Ledger,
    Measure,
    Pool,
    durations,
)
from jetsocket.events import Listener

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, values
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

__all__ = ["PoolCollector", "instrument"]

_PERIOD = 1.0  # s between two writes
_collectors: weakref.WeakKeyDictionary[CollectorRegistry, PoolCollector] = weakref.WeakKeyDictionary()

_UNITS = {"s": "_seconds", "By": "_bytes"}
_BOUNDS = (*map(floatToGoString, BOUNDS), "+Inf")


class PoolCollector:
    """Tells Prometheus the figures of pools, read when it asks; to be registered with a registry.

    Of a pool that is closed or collected nothing is told any more; the collector keeps none open. Pools of
    one name and server are told of together.

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
            for identity, each in sums.items():
                _fill(family, measure, identity, each.of(measure))
            yield family


def instrument(pool: Pool, *, multiprocess: bool = False, registry: CollectorRegistry = REGISTRY) -> None:
    """Tell Prometheus of a pool, which is not kept open by that.

    Args:
        pool: The pool.
        multiprocess: Write its figures into the files of `PROMETHEUS_MULTIPROC_DIR`, for each process that
            uses the pool, once a second and at exit; from there prometheus_client's `MultiProcessCollector`
            tells the sums. Figures of this moment are those of the processes that live (`livesum`).
        registry: Where the collector of all such pools is registered otherwise.

    Raises:
        TypeError: `pool` is no pool.
        RuntimeError: `PROMETHEUS_MULTIPROC_DIR` was not set when prometheus_client was first imported.
    """
    if multiprocess:
        _files_of_this_program().add(pool)
        return
    collector = _collectors.get(registry)
    if collector is None:
        collector = PoolCollector(pool)
        registry.register(collector)
        _collectors[registry] = collector
    collector.add(pool)


def name_of(measure: Measure) -> str:
    """What Prometheus calls it, without `_total`, `_bucket`, `_sum` and `_count`."""
    return measure.name.replace(".", "_") + _UNITS.get(measure.unit, "")


def labels_of(measure: Measure) -> list[str]:
    """What Prometheus calls its attributes."""
    return [label.replace(".", "_") for label in (NAME, ADDRESS, PORT, *measure.labels)]


def _family(measure: Measure) -> Metric:
    name, labels = name_of(measure), labels_of(measure)
    if measure.kind in ("now", "most"):
        return GaugeMetricFamily(name, measure.text, labels=labels)
    if measure.kind == "ever":
        return CounterMetricFamily(name, measure.text, labels=labels)
    return HistogramMetricFamily(name, measure.text, labels=labels)


def _fill(family: Metric, measure: Measure, identity: Identity, figures: Mapping[Key, float]) -> None:
    """Add the figures of the pools of one identity."""
    if isinstance(family, HistogramMetricFamily):
        for labels, (counts, total) in durations(figures, measure.key).items():
            buckets = list(zip(_BOUNDS, accumulate(counts), strict=True))
            family.add_metric((*identity, *labels), buckets, total)
    elif isinstance(family, (GaugeMetricFamily, CounterMetricFamily)):
        for (key, labels, _), value in figures.items():
            if key == measure.key:
                family.add_metric((*identity, *labels), value)


# --- several processes ---------------------------------------------------------------------------------


class _Files:
    """Writes the figures of pools into the files of this process, which others read.

    A thread does it, begun by the first use of a pool in each process: not by a fork, after which the process
    may have nothing to do with pools. It ends with the last pool.
    """

    def __init__(self) -> None:
        self._ledger = Ledger(keeps_all=True)
        self._written: Figures = {}
        self._shown: set[Key] = set()
        self._owner = os.getpid()  # of what is written
        self._pid = 0  # of the process that a thread runs in
        self._metrics = {measure.key: _metric(measure) for measure in MEASURES}
        # prometheus_client has one lock, which a forked child must not inherit locked: a fork waits for us.
        self._writing = threading.Lock()
        os.register_at_fork(
            before=self._writing.acquire,
            after_in_parent=self._writing.release,
            after_in_child=self._writing.release,
        )
        atexit.register(self._write_last)

    def add(self, pool: Pool) -> None:
        """Write that pool's figures, too."""
        with self._writing:  # or the thread might end meanwhile
            self._ledger.add(pool)
        pool.listen(_Beginning(self))
        if pool.connections():
            self.ensure_written()

    def ensure_written(self) -> None:
        """See that a thread writes in this process."""
        pid = os.getpid()
        if self._pid == pid:
            return
        with self._writing:
            if self._pid == pid:
                return
            if self._owner != pid:
                self._owner, self._written, self._shown = pid, {}, set()
            threading.Thread(target=self._write_all, name="jetsocket-prometheus", daemon=True).start()
            self._pid = pid

    def _write_all(self) -> None:
        has_pools = True
        while has_pools:
            sleep(_PERIOD)
            self.write()
            with self._writing:
                has_pools = self._ledger.has_pools
                if not has_pools:
                    self._pid = 0

    def _write_last(self) -> None:
        if self._pid == os.getpid():
            self.write()

    def write(self) -> None:
        """Write what has come since the last time."""
        now: Figures = {}
        ever: Figures = {}
        for identity, sums in self._ledger.read().items():
            now.update(_of(identity, sums.now))
            ever.update(_of(identity, sums.ever))
        with self._writing:
            gone = dict.fromkeys(self._shown - now.keys(), 0)
            for (key, labels, _), value in (gone | now).items():
                self._metrics[key].labels(*labels).set(value)
            self._shown = set(now)
            for each, value in ever.items():
                more = value - self._written.get(each, 0)
                if more > 0 or each not in self._written:
                    _grow(self._metrics[each[0]].labels(*each[1]), each[2], more)
                    self._written[each] = value


class _Beginning(Listener):
    """Begins to write in a process that uses the pool: its first use opens a connection, after a fork too."""

    def __init__(self, files: _Files) -> None:
        self._files = files

    def connecting(self, uri: str, tokens: Sequence[Any]) -> None:
        self._files.ensure_written()


_files: list[_Files] = []
_making = threading.Lock()


def _files_of_this_program() -> _Files:
    if values.ValueClass is values.MutexValue:
        text = "PROMETHEUS_MULTIPROC_DIR must name a directory before prometheus_client is first imported"
        raise RuntimeError(text)
    with _making:
        if not _files:
            _files.append(_Files())
        return _files[0]


def _metric(measure: Measure) -> Any:
    """It is in no registry: what is in this process is not what is to be told."""
    name, labels = name_of(measure), labels_of(measure)
    if measure.kind in ("now", "most"):
        mode: Literal["livesum", "livemax"] = "livesum" if measure.kind == "now" else "livemax"
        return Gauge(name, measure.text, labels, registry=None, multiprocess_mode=mode)
    if measure.kind == "ever":
        return Counter(name, measure.text, labels, registry=None)
    return Histogram(name, measure.text, labels, registry=None, buckets=BOUNDS)


def _grow(metric: Any, place: int, more: float) -> None:
    if not isinstance(metric, Histogram):
        metric.inc(more)
    elif place == SUM:  # `observe` takes one at a time
        metric._sum.inc(more)
    else:
        metric._buckets[place].inc(more)


def _of(identity: Identity, figures: Figures) -> Figures:
    return {(key, (*identity, *labels), place): value for (key, labels, place), value in figures.items()}
