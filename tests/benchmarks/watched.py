"""What metrics and traces of the pool cost a request."""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from time import perf_counter, process_time
from typing import Any

from tests.benchmarks.peers import OURS, Place
from tests.benchmarks.works import PATIENCE, Figures, Work, timed

BATCH = 50
BARE, COLLECTOR, FILES = "nothing", "PoolCollector", "instrument(multiprocess=True)"
METERS, SPANS = "OpenTelemetry metrics", "OpenTelemetry metrics and spans"


@contextmanager
def directory() -> Iterator[None]:
    """Where prometheus_client writes its files; it has to be known before it is imported."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        yield


def watch(label: str, pool: Any) -> Callable[[], object]:
    """Have a pool watched in that way; what Prometheus would call now and then."""
    if label == COLLECTOR:
        from prometheus_client import CollectorRegistry, generate_latest

        from jetsocket.contrib.prometheus import PoolCollector

        registry = CollectorRegistry()
        registry.register(PoolCollector(pool))
        return partial(generate_latest, registry)
    if label == FILES:
        from jetsocket.contrib import prometheus

        prometheus.instrument(pool, multiprocess=True)
    elif label in (METERS, SPANS):
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace import NoOpTracerProvider

        from jetsocket.contrib import opentelemetry

        reader = InMemoryMetricReader()
        tracers = TracerProvider() if label == SPANS else NoOpTracerProvider()
        opentelemetry.instrument(pool, MeterProvider([reader]), tracers)
        return reader.get_metrics_data
    return lambda: None


def watched(_name: str, place: Place, seconds: float) -> Figures:
    """CPU time of a request of a pool that is watched in each way, by turns in one process."""
    from jetsocket import ConnectionPool

    steps: dict[str, Callable[[], object]] = {}
    with directory():
        pools = [ConnectionPool[Any](base_uri=place.plain) for _ in range(5)]
        for label, pool in zip((BARE, COLLECTOR, FILES, METERS, SPANS), pools, strict=True):
            ask = watch(label, pool)
            steps[label] = partial(pool.request, "/late/0", {"method": "time", "id": 7}, PATIENCE)
            timed(steps[label], BATCH, process_time)
            ask()
        times: dict[str, list[float]] = {label: [] for label in steps}
        until = perf_counter() + 4 * seconds
        while perf_counter() < until or not times[BARE]:
            for label, step in steps.items():
                times[label].append(timed(step, BATCH, process_time) / BATCH)
        for pool in pools:
            pool.close()
    return {label: calm(found) for label, found in times.items()}


def calm(times: list[float]) -> float:
    """The lower quartile: another process on the core only adds to a batch's CPU time, by cold caches."""
    return statistics.quantiles(times, n=4)[0] if len(times) > 1 else times[0]


def missing() -> str | None:
    """What is not installed."""
    absent = [name for name in ("prometheus_client", "opentelemetry") if find_spec(name) is None]
    return f"no {' and no '.join(absent)}" if absent else None


WATCHED = {
    "metrics": Work("CPU time of a request that is measured", "request", (OURS,), watched, prepare=missing)
}
LIMITS = {COLLECTOR: None, FILES: 10e-6, METERS: 30e-6, SPANS: 120e-6}
"""What each may add to a request (s); None: 3 % of it."""

__all__ = ["BARE", "LIMITS", "WATCHED"]
