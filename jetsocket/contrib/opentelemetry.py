"""Metrics and spans of pools by OpenTelemetry; needs the extra `opentelemetry`, and your SDK and exporter.

Durations and counts are taken as they happen, with the server's name; what is so at a moment is read from the
pools when the SDK asks. Durations are handed to it then, too: its `record` takes as long as a tenth of a
request, which no caller has to wait for. No pool is kept open by that.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache, partial
from time import monotonic
from typing import Any, NamedTuple

from jetsocket import ConnectionInfo
from jetsocket.contrib.measures import (
    ADDRESS,
    BOUNDS,
    MEASURES,
    NAME,
    PORT,
    Ledger,
    Measure,
    Pool,
    check_pool,
    server_of,
)
from jetsocket.correlation import JsonRpc
from jetsocket.events import Listener
from jetsocket.exceptions import PoolExhaustedError, ReplyError

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider, Observation
    from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    text = 'jetsocket.contrib.opentelemetry needs opentelemetry-api: pip install "jetsocket[opentelemetry]"'
    raise ImportError(text) from error

from jetsocket.contrib.durations import Attributes, Durations, Series

__all__ = ["instrument"]

_SCOPE = "jetsocket"
_ERROR = "error.type"
_SYSTEM, _METHOD, _CODE = "rpc.system.name", "rpc.method", "rpc.response.status_code"
_NO_PARENT = Context()
_PROPAGATOR = TraceContextTextMapPropagator()


class _Global:
    """Stands for the global provider, whichever that will be."""


_GLOBAL = _Global()
_making = threading.Lock()
_by_provider: weakref.WeakKeyDictionary[Any, _Instruments] = weakref.WeakKeyDictionary()
_instrumented: weakref.WeakSet[Pool] = weakref.WeakSet()


def instrument(
    pool: Pool,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    *,
    traceparent: bool = False,
) -> None:
    """Tell OpenTelemetry what a pool does from now on: metrics, and spans for acquire, connect and request.

    Args:
        pool: The pool; it is not kept open. In a forked child, it is told of there, too.
        meter_provider: Where metrics go; None: the global one, which may be configured later.
        tracer_provider: Where spans go, likewise.
        traceparent: Tell the server of a JSON-RPC call whose request it is part of: `traceparent` (and
            `tracestate`) in `params._meta`, where `params` is an object or missing.

    Raises:
        TypeError: `pool` is no pool.
        ValueError: It is instrumented already; or there is to be a `traceparent`, and it has no `JsonRpc`.
    """
    check_pool(pool)
    instruments = _instruments_of(meter_provider)
    is_rpc = isinstance(pool.correlation, JsonRpc)
    if traceparent and not is_rpc:
        raise ValueError("traceparent=True needs a pool with correlation=jetsocket.correlation.JsonRpc()")
    if pool in _instrumented:
        raise ValueError(f"pool {pool.name!r} is instrumented already")
    instruments.observe(pool)
    _instrumented.add(pool)
    pool.listen((_MetersOfCalls if is_rpc else _Meters)(pool.name, instruments))
    tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
    if not isinstance(tracer, trace.NoOpTracer):
        pool.listen((_Propagating if traceparent else _Spans)(pool.name, tracer, is_rpc=is_rpc))


# --- metrics -------------------------------------------------------------------------------------------


class _Instruments:
    """Those of one provider, for all pools: an SDK takes each once, and forgets none."""

    def __init__(self, meter: Meter, *, is_global: bool) -> None:
        self.durations = Durations(is_global=is_global)
        self._ledger = Ledger()
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        of = {measure.key: measure for measure in MEASURES}
        times = {
            key: meter.create_histogram(
                each.name, each.unit, each.text, explicit_bucket_boundaries_advisory=BOUNDS
            )
            for key, each in of.items()
            if each.kind == "times"
        }
        self.wait_time, self.use_time = times["wait_time"], times["use_time"]
        self.create_time, self.call = times["create_time"], times["call"]
        self.timeouts, self.closed = (
            meter.create_counter(of[key].name, of[key].unit, of[key].text) for key in ("timeouts", "closed")
        )
        for key, each in of.items():
            if key == "count":
                meter.create_observable_up_down_counter(each.name, [self._count], each.unit, each.text)
            elif each.kind == "now":
                meter.create_observable_up_down_counter(
                    each.name, [partial(self._read, each)], each.unit, each.text
                )
            elif each.kind == "most":
                meter.create_observable_gauge(each.name, [partial(self._read, each)], each.unit, each.text)
            elif each.kind == "ever" and key not in ("timeouts", "closed"):
                meter.create_observable_counter(each.name, [partial(self._read, each)], each.unit, each.text)

    def observe(self, pool: Pool) -> None:
        """Tell of that pool when the SDK asks."""
        self._ledger.add(pool)
        self._pools.add(pool)

    def _read(self, measure: Measure, _options: CallbackOptions) -> Iterable[Observation]:
        self.durations.record()  # an SDK asks first, and adds up then
        for (name, address, port), sums in self._ledger.read().items():
            server = _attributes(name, address, int(port) if port else None)
            for (key, labels, _), value in sums.of(measure).items():
                if key == measure.key:
                    yield Observation(value, {**server, **dict(zip(measure.labels, labels, strict=True))})

    def _count(self, _options: CallbackOptions) -> Iterable[Observation]:
        """Open connections, by server."""
        self.durations.record()
        counts: dict[tuple[str, str, int | None, str], int] = {}
        for pool in list(self._pools):
            if pool.is_closed:
                self._pools.discard(pool)
                continue
            for info in pool.connections():
                if info.place in ("idle", "lent", "shared"):
                    key = pool.name, *server_of(info.uri), "idle" if info.place == "idle" else "used"
                    counts[key] = counts.get(key, 0) + 1
        for (name, address, port, state), count in counts.items():
            yield Observation(count, {**_attributes(name, address, port), "state": state})


def _instruments_of(provider: MeterProvider | None) -> _Instruments:
    """The instruments of a provider, made once; None: of the global one, whichever that will be."""
    current = metrics.get_meter_provider()
    with _making:
        found = _by_provider.get(current if provider is None else provider)
        if found is None:
            key = _GLOBAL if provider is None or provider is current else provider
            found = _by_provider.get(key)
            if found is None:
                meter = metrics.get_meter(_SCOPE, meter_provider=None if key is _GLOBAL else provider)
                found = _by_provider[key] = _Instruments(meter, is_global=key is _GLOBAL)
        return found


class _Here(NamedTuple):
    """What is told of one server."""

    attributes: Attributes
    waits: Series
    uses: Series
    dials: Series


class _Meters(Listener):
    """Takes durations and counts as they happen."""

    def __init__(self, name: str, instruments: _Instruments) -> None:
        self._name = name
        self._to = instruments
        self._at = lru_cache(256)(self._here)

    def _here(self, uri: str) -> _Here:
        attributes, to = _attributes(self._name, *server_of(uri)), self._to
        histograms = to.wait_time, to.use_time, to.create_time
        return _Here(attributes, *(to.durations.series(each, attributes) for each in histograms))

    def acquiring(self, uri: str) -> tuple[float, str]:
        return monotonic(), uri

    def acquired(self, token: Any, info: ConnectionInfo, waited: float, reused: bool) -> None:
        self._at(info.uri).waits.add(waited)

    def refused(self, token: Any, error: BaseException) -> None:
        since, uri = token
        attributes = self._at(uri).attributes
        failed = {**attributes, _ERROR: type(error).__qualname__}
        self._to.durations.series(self._to.wait_time, failed).add(monotonic() - since)
        if isinstance(error, PoolExhaustedError):
            self._to.timeouts.add(1, attributes)

    def released(self, info: ConnectionInfo, used: float, reason: str | None) -> None:
        self._at(info.uri).uses.add(used)

    def connecting(self, uri: str, tokens: Sequence[Any]) -> float:
        return monotonic()

    def connected(self, token: Any, info: ConnectionInfo) -> None:
        self._at(info.uri).dials.add(monotonic() - token)

    def closed(self, info: ConnectionInfo, reason: str) -> None:
        self._to.closed.add(1, {**self._at(info.uri).attributes, "reason": reason})


class _MetersOfCalls(_Meters):
    """Takes how long JSON-RPC calls took, too."""

    def __init__(self, name: str, instruments: _Instruments) -> None:
        super().__init__(name, instruments)
        self._calls_at = lru_cache(256)(self._calls)

    def _calls(self, uri: str, error: str | None) -> Series:
        attributes = {**self._at(uri).attributes, _SYSTEM: "jsonrpc"}
        if error is not None:
            attributes[_ERROR] = error
        return self._to.durations.series(self._to.call, attributes)

    def requesting(self, info: ConnectionInfo, message: Any) -> tuple[float, str]:
        return monotonic(), info.uri

    def replied(self, token: Any, error: BaseException | None) -> None:
        since, uri = token
        self._calls_at(uri, None if error is None else type(error).__qualname__).add(monotonic() - since)


# --- spans ---------------------------------------------------------------------------------------------


class _Spans(Listener):
    """Begins and ends a span for each acquire, attempt to connect, and request."""

    def __init__(self, name: str, tracer: Tracer, *, is_rpc: bool) -> None:
        self._name = name
        self._tracer = tracer
        self._is_rpc = is_rpc
        self._of = lru_cache(256)(self._attributes)

    def _attributes(self, uri: str) -> Attributes:
        return _attributes(self._name, *server_of(uri))

    def acquiring(self, uri: str) -> Span:
        return self._tracer.start_span("jetsocket.acquire", attributes=self._of(uri))

    def acquired(self, token: Span | None, info: ConnectionInfo, waited: float, reused: bool) -> None:
        if token is not None:
            token.set_attributes({"jetsocket.connection.id": info.id, "jetsocket.connection.reused": reused})
            token.end()

    def refused(self, token: Span | None, error: BaseException) -> None:
        _end(token, error)

    def connecting(self, uri: str, tokens: Sequence[Span | None]) -> Span:
        line = [span for span in tokens if span is not None]
        return self._tracer.start_span(
            "jetsocket.connect",
            context=trace.set_span_in_context(line[0], _NO_PARENT) if line else _NO_PARENT,
            kind=SpanKind.CLIENT,
            attributes=self._of(uri),
            links=[Link(span.get_span_context()) for span in line[1:]],
        )

    def connected(self, token: Span | None, info: ConnectionInfo) -> None:
        if token is not None:
            token.set_attribute("jetsocket.connection.id", info.id)
            token.end()

    def connect_failed(self, token: Span | None, error: BaseException) -> None:
        _end(token, error)

    def requesting(self, info: ConnectionInfo, message: Any) -> Span:
        attributes = {**self._of(info.uri), "jetsocket.connection.id": info.id}
        if self._is_rpc:
            attributes[_SYSTEM] = "jsonrpc"
            method = message.get("method") if isinstance(message, Mapping) else None
            if isinstance(method, str):
                attributes[_METHOD] = method
        return self._tracer.start_span("jetsocket.request", kind=SpanKind.CLIENT, attributes=attributes)

    def replied(self, token: Span | None, error: BaseException | None) -> None:
        if token is not None and isinstance(error, ReplyError) and error.code is not None:
            token.set_attribute(_CODE, str(error.code))
        _end(token, error)


class _Propagating(_Spans):
    """Tells the server of a JSON-RPC call which span it belongs to."""

    def rewriting(self, token: Span | None, message: Any) -> Any:
        params = message.get("params", {}) if isinstance(message, Mapping) else None
        if token is None or not isinstance(params, Mapping):
            return None
        meta = params.get("_meta", {})
        if not isinstance(meta, Mapping):
            return None
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, trace.set_span_in_context(token, _NO_PARENT))
        if not carrier:
            return None
        return {**message, "params": {**params, "_meta": {**meta, **carrier}}}


def _end(span: Span | None, error: BaseException | None) -> None:
    """End a span; what an error says may have a path in it, and stays out."""
    if span is None:
        return
    if error is not None:
        span.set_attribute(_ERROR, type(error).__qualname__)
        span.set_status(Status(StatusCode.ERROR))
    span.end()


# --- attributes ----------------------------------------------------------------------------------------


def _attributes(name: str, address: str, port: int | None) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {NAME: name}
    if address:
        attributes[ADDRESS] = address
    if port is not None:
        attributes[PORT] = port
    return attributes
