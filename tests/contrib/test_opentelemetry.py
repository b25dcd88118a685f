"""OpenTelemetry is told what pools do: metrics whose sums agree with the server's, and spans with parents.

Also tests: `durations`.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import HistogramDataPoint, InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

import jetsocket.contrib.durations
from jetsocket import ConnectionPool, HandshakeError, PoolExhaustedError, ReplyError
from jetsocket.contrib.measures import BOUNDS
from jetsocket.contrib.opentelemetry import instrument
from jetsocket.correlation import JsonRpc
from jetsocket.limits import LocalLimiter
from tests.contrib.jsonrpc import json_rpc
from tests.servers import EchoServer, RawServer, response, wait_until

MakePool = Callable[..., ConnectionPool[Any]]


class Telemetry:
    """Providers of one test, and what came to them."""

    def __init__(self) -> None:
        self._reader = InMemoryMetricReader()
        self.meters = MeterProvider([self._reader])
        self._exporter = InMemorySpanExporter()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self, pool: ConnectionPool[Any], **options: Any) -> ConnectionPool[Any]:
        instrument(pool, self.meters, self.tracers, **options)
        return pool

    def points(self) -> dict[str, list[Any]]:
        data = self._reader.get_metrics_data()
        if data is None:
            return {}
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }

    def units(self) -> dict[str, str]:
        data = self._reader.get_metrics_data()
        assert data is not None
        [scope] = data.resource_metrics[0].scope_metrics
        assert scope.scope.name == "jetsocket"
        return {metric.name: metric.unit or "" for metric in scope.metrics}

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == f"jetsocket.{name}"]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def values(points: list[Any], *names: str) -> dict[Any, float]:
    """Of each point the value (of a duration: how many), by the attributes of those names."""
    found: dict[Any, float] = {}
    for point in points:
        key = tuple(point.attributes.get(name) for name in names)
        value = point.count if isinstance(point, HistogramDataPoint) else point.value
        found[key] = found.get(key, 0) + value
    return found


def context_of(span: ReadableSpan) -> Any:
    assert span.context is not None
    return span.context


def test_names_units_buckets_and_attributes(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, telemetry: Telemetry
) -> None:
    server = echo_server(json_rpc([]))
    pool = make_pool(server, name="feed", correlation=JsonRpc(), max_connections=1)
    telemetry.instrument(pool)
    pool.request("/path?key=secret", {"method": "m"})
    with pool.acquire("/path?key=secret"), pytest.raises(PoolExhaustedError):
        pool.acquire("/path?key=secret", timeout=0)
    with pool.acquire("/path?key=secret") as conn:
        conn.discard()
    wait_until(lambda: "jetsocket.connection.closed" in telemetry.points())  # a thread of its own tells it
    pool.request("/", {"method": "m"})
    points = telemetry.points()
    assert telemetry.units() == {
        "jetsocket.connection.count": "{connection}",
        "jetsocket.connection.max": "{connection}",
        "jetsocket.connection.pending_requests": "{request}",
        "jetsocket.connection.wait_time": "s",
        "jetsocket.connection.use_time": "s",
        "jetsocket.connection.create_time": "s",
        "jetsocket.connection.timeouts": "{timeout}",
        "jetsocket.connection.closed": "{connection}",
        "jetsocket.messages": "{message}",
        "jetsocket.io": "By",
        "rpc.client.call.duration": "s",
    }
    server_of = ("jetsocket.pool.name", "server.address", "server.port")
    here = ("feed", server.host, server.port)
    for name in ("wait_time", "use_time", "create_time"):
        for point in points[f"jetsocket.connection.{name}"]:
            assert point.explicit_bounds == BOUNDS
            assert tuple(point.attributes[each] for each in server_of) == here
    waits = values(points["jetsocket.connection.wait_time"], "error.type")
    assert waits == {(None,): 4, ("PoolExhaustedError",): 1}
    assert values(points["jetsocket.connection.timeouts"], *server_of) == {here: 1}
    assert values(points["jetsocket.connection.closed"], "reason", *server_of) == {("discarded", *here): 1}
    assert values(points["jetsocket.connection.count"], "state", *server_of) == {("idle", *here): 1}
    assert values(points["jetsocket.connection.max"], "jetsocket.pool.name") == {("feed",): 1}
    calls = points["rpc.client.call.duration"]
    assert values(calls, "rpc.system.name", *server_of) == {("jsonrpc", *here): 2}
    attributes = [each.attributes for several in points.values() for each in several]
    assert not [each for each in attributes if "secret" in str(each) or "path" in str(each)]


def test_their_sums_agree_with_the_servers(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, telemetry: Telemetry
) -> None:
    asked: list[Any] = []
    server = echo_server(json_rpc(asked))
    pool = make_pool(server, correlation=JsonRpc(), max_connections=3)
    telemetry.instrument(pool)

    def work(number: int) -> None:
        with pool.acquire("/") as conn:
            conn.request({"method": f"m{number}"})
            if number % 5 == 0:
                conn.discard()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(work, range(60)))
    wait_until(lambda: not pool.stats().connecting)
    wait_until(lambda: pool.stats().active_connections + pool.stats().idle_connections == server.open_now)
    direction = "direction"

    def received() -> tuple[float, float]:
        points = telemetry.points()  # what is being closed still gets close frames
        return values(points["jetsocket.io"], direction)["received",], pool.stats().bytes_received

    wait_until(lambda: len(set(received())) == 1)
    points = telemetry.points()
    assert values(points["jetsocket.messages"], direction)["sent",] == len(asked) == 60
    for name in ("wait_time", "use_time"):
        assert values(points[f"jetsocket.connection.{name}"]) == {(): 60}
    assert values(points["jetsocket.connection.create_time"]) == {(): server.opened}
    assert values(points["rpc.client.call.duration"]) == {(): 60}
    pool.close()
    points = telemetry.points()
    assert values(points["jetsocket.connection.closed"]) == {(): server.opened}
    assert len(telemetry.spans("acquire")) == len(telemetry.spans("request")) == 60
    assert len(telemetry.spans("connect")) == server.opened


def test_a_request_and_an_acquire_are_children_of_what_the_caller_does(
    echo: EchoServer, make_pool: MakePool, telemetry: Telemetry
) -> None:
    pool = telemetry.instrument(make_pool(echo, name="p"))
    with telemetry.tracers.get_tracer("app").start_as_current_span("outer") as outer:
        pool.request("/path?key=secret", {"n": 1})
        pool.request("/path?key=secret", {"n": 1})
    acquires, requests = telemetry.spans("acquire"), telemetry.spans("request")
    for span in (*acquires, *requests):
        assert span.parent is not None and span.parent.span_id == outer.get_span_context().span_id
        assert span.attributes is not None
        assert span.attributes["server.address"] == echo.host
        assert span.attributes["server.port"] == echo.port
        assert "secret" not in str(span.attributes) and "path" not in str(span.attributes)
    assert [span.kind for span in (acquires[0], requests[0])] == [SpanKind.INTERNAL, SpanKind.CLIENT]
    assert [(span.attributes or {})["jetsocket.connection.reused"] for span in acquires] == [False, True]
    [connect] = telemetry.spans("connect")
    assert connect.parent is not None
    assert connect.parent.span_id == context_of(acquires[0]).span_id
    assert connect.links == ()


def test_a_connect_is_a_child_of_the_first_in_line_and_links_to_the_others(
    echo: EchoServer, make_pool: MakePool, telemetry: Telemetry
) -> None:
    release = threading.Event()
    pool = make_pool(echo, configure=lambda conn: release.wait(5), max_connections=2, max_connecting=1)
    telemetry.instrument(pool)
    with ThreadPoolExecutor(3) as threads:
        asked = []
        for number in range(1, 4):  # one after the other; the second dial begins with two in line
            asked.append(threads.submit(pool.acquire, "/"))
            wait_until(lambda wanted=number: pool.stats().waiting == wanted)
        release.set()
        first, second = asked[0].result(5), asked[1].result(5)
        first.release()
        asked[2].result(5).release()
        second.release()
    connects = telemetry.spans("connect")
    acquires = {context_of(span).span_id: span for span in telemetry.spans("acquire")}
    order = sorted(acquires, key=lambda each: acquires[each].start_time or 0)
    parents = [span.parent.span_id for span in connects if span.parent is not None]
    assert parents == order[:2]
    assert [link.context.span_id for link in connects[1].links] == order[2:]


def test_what_is_opened_for_nobody_is_nobodys_child(
    echo: EchoServer, make_pool: MakePool, telemetry: Telemetry
) -> None:
    pool = telemetry.instrument(make_pool(echo))
    with telemetry.tracers.get_tracer("app").start_as_current_span("outer"):
        pool.prewarm("/", 2)
    assert [span.parent for span in telemetry.spans("connect")] == [None, None]


def test_errors_are_told_by_their_types(
    raw_server: Callable[..., RawServer],
    echo_server: Callable[..., EchoServer],
    make_pool: MakePool,
    telemetry: Telemetry,
) -> None:
    server = raw_server(lambda sock: sock.sendall(response("503 Service Unavailable")))
    refused = make_pool(server, manager_kwargs={"connect_attempts": 2})
    telemetry.instrument(refused)
    with pytest.raises(HandshakeError):
        refused.acquire("/path?key=secret")
    pool = telemetry.instrument(make_pool(echo_server(json_rpc([])), correlation=JsonRpc()))
    with pytest.raises(ReplyError):
        pool.request("/", {"method": "fail"})
    [acquire] = [span for span in telemetry.spans("acquire") if not span.status.is_ok]
    connects = [span for span in telemetry.spans("connect") if not span.status.is_ok]
    [request] = telemetry.spans("request")
    assert len(connects) == 2
    for span, name in ((acquire, "HandshakeError"), (connects[0], "HandshakeError"), (request, "ReplyError")):
        assert span.status.status_code == StatusCode.ERROR
        assert span.attributes is not None and span.attributes["error.type"] == name
        assert span.status.description is None and span.events == ()  # which would show the path
    assert request.attributes is not None
    assert request.attributes["rpc.method"] == "fail"
    assert request.attributes["rpc.response.status_code"] == "-1"
    points = telemetry.points()
    assert values(points["rpc.client.call.duration"], "error.type") == {("ReplyError",): 1}
    waits = values(points["jetsocket.connection.wait_time"], "error.type")
    assert waits == {(None,): 1, ("HandshakeError",): 1}


def test_traceparent_goes_into_params_of_json_rpc_when_asked_for(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, telemetry: Telemetry
) -> None:
    asked: list[Any] = []
    server = echo_server(json_rpc(asked))
    pool = telemetry.instrument(make_pool(server, correlation=JsonRpc()), traceparent=True)
    quiet = telemetry.instrument(make_pool(server, correlation=JsonRpc()))
    mine = {"method": "m", "params": {"a": 1, "_meta": {"progressToken": 2}}}
    assert pool.request("/", mine)["result"] == "m"
    pool.request("/", {"method": "bare"})
    pool.request("/", {"method": "positional", "params": [1]})
    quiet.request("/", {"method": "m", "params": {}})
    sent = [
        f"00-{context_of(span).trace_id:032x}-{context_of(span).span_id:016x}-{context_of(span).trace_flags:02x}"
        for span in telemetry.spans("request")
    ]
    assert [message.get("params") for message in asked] == [
        {"a": 1, "_meta": {"progressToken": 2, "traceparent": sent[0]}},
        {"_meta": {"traceparent": sent[1]}},
        [1],
        {},
    ]
    assert mine == {"method": "m", "params": {"a": 1, "_meta": {"progressToken": 2}}}
    with pytest.raises(ValueError, match="needs a pool with correlation"):
        telemetry.instrument(make_pool(server), traceparent=True)


def test_pools_of_one_name_are_told_of_together_and_one_that_is_gone_of_no_more(
    echo: EchoServer, make_pool: MakePool, telemetry: Telemetry
) -> None:
    first, second = make_pool(echo, name="p"), ConnectionPool[Any](base_uri=echo.uri, name="p")
    for pool in (first, second):
        telemetry.instrument(pool).request("/", 1)
    points = telemetry.points()
    assert values(points["jetsocket.connection.max"], "jetsocket.pool.name") == {("p",): 20}
    assert values(points["jetsocket.connection.count"], "state") == {("idle",): 2}
    gone = weakref.ref(second)
    del pool, second
    gc.collect()
    assert gone() is None
    points = telemetry.points()
    assert values(points["jetsocket.connection.max"]) == {(): 10}
    assert values(points["jetsocket.messages"], "direction")["sent",] == 2  # it has sent one
    first.close()
    assert not telemetry.points().keys() & {"jetsocket.connection.max", "jetsocket.connection.count"}


def test_limiters_say_how_many_slots_they_have_and_who_holds_them(
    echo: EchoServer, make_pool: MakePool, telemetry: Telemetry
) -> None:
    limiter = LocalLimiter(7)
    with (
        ConnectionPool[Any](base_uri=echo.uri, name="p", limiter=limiter) as first,
        ConnectionPool[Any](base_uri=echo.uri, name="p", limiter=limiter) as second,
    ):
        for pool in (first, second):
            telemetry.instrument(pool).request("/", 1)
        points = telemetry.points()
        told = {
            name: values(points[f"jetsocket.limiter.{name}"]) for name in ("max", "held", "others", "lost")
        }
        assert told == {"max": {(): 7}, "held": {(): 2}, "others": {(): 0}, "lost": {(): 0}}
        assert values(
            points["jetsocket.limiter.errors"], "jetsocket.pool.name", "jetsocket.limiter.name"
        ) == {("p", "LocalLimiter"): 0}


def test_a_pool_is_instrumented_once(echo: EchoServer, make_pool: MakePool, telemetry: Telemetry) -> None:
    pool = telemetry.instrument(make_pool(echo, name="p"))
    with pytest.raises(ValueError, match="pool 'p' is instrumented already"):
        telemetry.instrument(pool)
    for other in ("x", ["no hash"]):
        with pytest.raises(TypeError, match=r"a jetsocket\.ConnectionPool is needed"):
            instrument(other)  # type: ignore[arg-type]  # the point


LATER = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from jetsocket import ConnectionPool
from jetsocket.contrib.opentelemetry import instrument
from tests.servers import EchoServer

with EchoServer() as echo:
    pool, late = ConnectionPool(base_uri=echo.uri), ConnectionPool(base_uri=echo.uri)
    instrument(pool)
    pool.request("/", 1)
    reader, exporter = InMemoryMetricReader(), InMemorySpanExporter()
    metrics.set_meter_provider(MeterProvider([reader]))
    tracers = TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(tracers)
    instrument(late)
    for each in (pool, pool, late):
        each.request("/", 1)
    counts = {}
    for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
        for point in metric.data.data_points:
            value = point.count if hasattr(point, "count") else point.value
            counts[metric.name] = counts.get(metric.name, 0) + value
    assert counts["jetsocket.connection.use_time"] == 3, counts
    assert counts["jetsocket.connection.max"] == 20, counts
    assert len(exporter.get_finished_spans()) == 7
    pool.close()
    late.close()
"""


@pytest.mark.slow
def test_an_sdk_that_is_configured_later_counts_from_then_on() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", LATER], check=False, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_durations_wait_for_the_sdk_to_ask_and_are_each_counted_once(
    echo: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetsocket.contrib.durations, "_MOST_WAITING", 30)
    readers = InMemoryMetricReader(), InMemoryMetricReader()
    tracers = TracerProvider()
    pool = make_pool(echo)
    instrument(pool, MeterProvider(readers), NoOpTracerProvider())
    with tracers.get_tracer("t").start_as_current_span("mine") as mine:
        pool.request("/", 1)
    for _ in range(40):  # more than may wait
        pool.request("/", 1)
    pid = os.fork()
    if pid == 0:  # pragma: no cover  # the child, in whose figures are those that were recorded before
        counts = counts_of(readers[0])
        os._exit(0 if counts["jetsocket.connection.use_time"] < 41 else 1)
    assert os.waitpid(pid, 0)[1] == 0
    [point] = points_of(readers[0])["jetsocket.connection.use_time"]
    assert {each.trace_id for each in point.exemplars} == {mine.get_span_context().trace_id}
    for reader in (*readers, *readers):
        counts = counts_of(reader)
        assert counts["jetsocket.connection.use_time"] == counts["jetsocket.connection.wait_time"] == 41
    pool.request("/", 1)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(counts_of, readers * 5))
    assert counts_of(readers[0])["jetsocket.connection.use_time"] == 42


def points_of(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    [scope] = data.resource_metrics[0].scope_metrics
    return {metric.name: list(metric.data.data_points) for metric in scope.metrics}


def counts_of(reader: InMemoryMetricReader) -> dict[str, int]:
    points = points_of(reader).items()
    return {name: sum(getattr(each, "count", 0) for each in several) for name, several in points}


def test_requests_of_many_and_streams_have_spans_and_durations(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, telemetry: Telemetry
) -> None:
    asked: list[Any] = []
    pool = telemetry.instrument(
        make_pool(echo_server(json_rpc(asked)), correlation=JsonRpc()), traceparent=True
    )
    with pool.acquire("/") as conn:
        first, second = conn.request_many([{"method": "a"}, {"method": "fail"}])
        assert first["result"] == "a"
        assert isinstance(second, ReplyError)
        assert [reply["result"] for reply in conn.stream({"method": "b"})] == ["b"]
    spans = telemetry.spans("request")
    assert [(span.attributes or {})["rpc.method"] for span in spans] == ["a", "fail", "b"]
    sent = [message["params"]["_meta"]["traceparent"].split("-")[2] for message in asked]
    assert sent == [f"{context_of(span).span_id:016x}" for span in spans]
    calls = values(telemetry.points()["rpc.client.call.duration"], "error.type")
    assert calls == {(None,): 2, ("ReplyError",): 1}


def test_where_there_are_too_many_servers_durations_are_recorded_at_once(
    echo: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetsocket.contrib.durations, "_MOST_SERIES", 1)
    reader = InMemoryMetricReader()
    pool = make_pool(echo)
    instrument(pool, MeterProvider([reader]), NoOpTracerProvider())
    for host in ("127.0.0.1", "localhost"):
        assert pool.request(f"ws://{host}:{echo.port}/", 1) == 1
    for name in ("wait_time", "use_time", "create_time"):
        points = points_of(reader)[f"jetsocket.connection.{name}"]
        assert {point.attributes["server.address"]: point.count for point in points} == {
            "127.0.0.1": 1,
            "localhost": 1,
        }
