"""What a pool counts: histograms true to 13 %, and totals that outlive the connections.

Also tests: `histogram`, `histogram_buckets`, `counting`.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    Histogram,
    PoolClosedError,
    PoolExhaustedError,
    PoolStats,
)
from jetsocket.counting import Recorder, SharedRecorder
from jetsocket.histogram_buckets import bucket_of, upper_bound
from tests.servers import EchoServer, wait_until
from tests.services import Plain, service

MakePool = Callable[..., ConnectionPool[Any]]

DURATIONS = st.floats(0, 5000, allow_nan=False)


def histogram_of(durations: list[float]) -> Histogram:
    recorder = Recorder()
    for seconds in durations:
        recorder.add(seconds)
    return recorder.histogram()


# --- histograms


@given(DURATIONS)
def test_a_duration_lies_in_its_bucket(seconds: float) -> None:
    bucket = bucket_of(seconds)
    assert seconds <= upper_bound(bucket) * (1 + 1e-9)
    assert bucket == 0 or seconds >= upper_bound(bucket - 1) * (1 - 1e-9)


@given(st.lists(DURATIONS, min_size=1, max_size=200), st.integers(1, 100))
def test_percentiles_are_true_to_13_percent(durations: list[float], percent: int) -> None:
    told = histogram_of(durations).percentile(percent)
    ordered = sorted(durations)
    exact = ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
    assert exact * (1 - 1e-9) <= told <= max(exact * 1.13, 1e-6)


@given(st.lists(DURATIONS, max_size=100))
def test_count_total_mean_and_longest(durations: list[float]) -> None:
    told = histogram_of(durations)
    assert told.count == len(durations)
    assert told.total == pytest.approx(sum(durations))
    assert told.mean == pytest.approx(statistics.fmean(durations) if durations else 0.0)
    assert told.longest == max(durations, default=0.0)
    assert told.p50 <= told.p95 <= told.p99 <= max(told.longest, 0.0)


def test_an_empty_histogram() -> None:
    told = Histogram()
    assert (told.count, told.mean, told.p50, told.p99, told.longest) == (0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize("seconds", [0.0, -1e-9, 1e-12, 1e9])
def test_odd_durations_are_counted(seconds: float) -> None:
    assert histogram_of([seconds]).count == 1


def test_a_histogram_does_not_change_later() -> None:
    recorder = Recorder()
    recorder.add(1.0)
    told = recorder.histogram()
    copy = recorder.copy()
    recorder.add(2.0)
    copy.add(3.0)
    copy.add(3.0)
    assert (told.count, recorder.histogram().count, copy.histogram().count) == (1, 2, 3)


@given(st.lists(DURATIONS, min_size=1, max_size=200))
def test_buckets_count_as_prometheus_does(durations: list[float]) -> None:
    pairs = histogram_of(durations).buckets()
    bounds, counts = [bound for bound, _ in pairs], [count for _, count in pairs]
    assert bounds == sorted(set(bounds))
    assert counts == sorted(counts)
    assert counts[-1] == len(durations)
    for bound, count in pairs:
        assert count == sum(seconds < bound for seconds in durations)


def test_an_empty_histogram_has_no_buckets() -> None:
    assert Histogram().buckets() == []


def test_what_many_threads_add_is_counted_once() -> None:
    shared = SharedRecorder()
    stop = threading.Event()

    def watch() -> int:
        counts = [0]
        while not stop.wait(0.0005):
            counts.append(shared.histogram().count)
            assert counts[-2] <= counts[-1]
        return counts[-1]

    def add(number: int) -> None:
        for turn in range(1000):
            shared.add(number + turn / 1000)

    with ThreadPoolExecutor(9) as threads:
        watching = threads.submit(watch)
        list(threads.map(add, range(8)))
        stop.set()
        assert watching.result(10) <= 8000
    told = shared.histogram()
    assert told.count == 8000
    assert told.longest == 7.999
    assert told.mean == pytest.approx(3.9995)


def test_an_interrupted_count_is_no_obstacle_for_the_handler() -> None:
    """A signal handler adds, and asks, while its own thread counts."""
    shared = SharedRecorder()
    shared.add(1.0)
    with shared._lock:
        for _ in range(800):
            shared.add(2.0)
        assert shared.histogram().count == 0
    assert shared.histogram().count == 801


# --- a pool's figures


def test_stats_are_frozen(echo: EchoServer, make_pool: MakePool) -> None:
    stats = make_pool(echo).stats()
    assert stats == PoolStats(0, 0, 0, 0, 0, 0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.acquires = 1  # type: ignore[misc]  # the point


def test_figures_follow_what_happens(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=2)
    with pool.acquire("/") as conn:
        stats = pool.stats()
        assert (stats.active_connections, stats.idle_connections, stats.acquires) == (1, 0, 1)
        conn.send([1])
        conn.send([2])
        assert conn.recv(5) == [1]
        assert pool.stats().total_messages_sent == 2
        assert pool.stats().total_messages_received >= 1
        assert conn.recv(5) == [2]
    with pool.acquire("/"), pool.acquire("/"):
        assert pool.stats().active_connections == 2
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", 0)
    stats = pool.stats()
    assert (stats.total_connections, stats.active_connections, stats.idle_connections) == (2, 0, 2)
    assert (stats.total_messages_sent, stats.total_messages_received) == (2, 2)
    assert (stats.acquires, stats.reuses, stats.timeouts, stats.waiting) == (3, 1, 1, 0)
    assert (stats.connect_errors, stats.total_reconnects, stats.discards) == (0, 0, {})
    assert stats.wait_time.count == stats.lend_time.count == 3


def test_totals_keep_counting_connections_that_are_gone(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=3)
    for number in range(10):
        with pool.acquire(f"/{number}") as conn:
            conn.request(["x" * 1000], 5)
            if number % 3 == 0:
                conn.discard()
    pool.close()
    stats = pool.stats()
    assert stats.total_connections == 10
    assert (stats.total_messages_sent, stats.total_messages_received) == (10, 10)
    assert 10_000 < stats.bytes_sent < 20_000
    assert 10_000 < stats.bytes_received < 20_000
    assert stats.idle_connections == stats.active_connections == 0
    assert stats.acquires == 10
    assert sum(stats.discards.values()) == 10


def test_reconnects_count_what_was_lost(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=3)
    pool.prewarm("/", 3)
    wait_until(lambda: echo.open_now == 3)
    echo.cut_all()
    wait_until(lambda: sum(pool.stats().discards.values()) == 3)  # none is idle while it is looked at
    assert pool.stats().total_reconnects == 0
    pool.prewarm("/", 2)
    assert pool.stats().total_reconnects == 2
    pool.prewarm("/", 3)
    stats = pool.stats()
    assert (stats.total_reconnects, stats.total_connections) == (3, 6)
    with pool.acquire("/") as conn:
        conn.discard()
    pool.prewarm("/", 3)
    assert pool.stats().total_reconnects == 3  # that one was not lost


def test_wait_and_lend_times(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    pool.prewarm("/late", 1)
    with ThreadPoolExecutor(1) as other:
        conn = pool.acquire("/late")
        waiting = other.submit(pool.request, "/late", {"delay": 0})
        wait_until(lambda: pool.stats().waiting == 1)
        conn.request({"delay": 0.2}, 5)
        conn.release()
        waiting.result(5)
    stats = pool.stats()
    assert stats.lend_time.longest >= 0.2
    assert stats.wait_time.longest >= 0.19
    assert stats.wait_time.p50 < 0.1  # the first one was idle
    assert stats.wait_time.count == 2


@pytest.mark.slow
def test_reply_time_is_from_the_request_to_its_reply(echo: EchoServer, make_pool: MakePool) -> None:
    def greet(conn: Any) -> None:
        conn.request({}, 5)

    pool = make_pool(echo, max_connections=1, configure=greet, reset=greet)
    pool.request("/late", {"delay": 0.5}, 5)
    with pool.acquire("/late") as conn:
        conn.send({"delay": 0.01})
        assert conn.recv(5) == {"delay": 0.01}  # this is no request
        conn.request({"id": 1}, 5)
        with pytest.raises(TimeoutError):
            conn.request({"id": 2, "delay": 1.0}, 0.1)
    stats = pool.stats()
    assert stats.reply_time.count == 2  # neither the callbacks' nor the one that got none
    # It counts from when the request is out: this thread may be stopped just before.
    assert 0.25 <= stats.reply_time.longest < stats.lend_time.longest + 1.0
    assert stats.reply_time.p50 < 0.5


@pytest.mark.parametrize("in_flight", [1, 4])
def test_a_request_whose_connection_ends_has_no_reply_time(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, in_flight: int
) -> None:
    pool = make_pool(echo_server(service), correlation=Plain(), max_in_flight=in_flight)
    pool.request("/", {"n": 1}, 5)
    with pytest.raises(ConnectionClosedError):
        pool.request("/", {"do": "close"}, 5)
    with pool.acquire("/") as conn:
        conn.request({"n": 2}, 5)  # what comes after the first is asked in another way
        with pytest.raises(ConnectionClosedError):
            conn.request({"do": "close"}, 5)
    with pool.acquire("/") as conn:
        outcomes = conn.request_many([{"n": 3}, {"do": "close"}, {"n": 4}], 5)
    assert [type(each) for each in outcomes[1:]] == [ConnectionClosedError] * 2
    with pool.acquire("/") as conn, pytest.raises(ConnectionClosedError):
        list(conn.stream({"do": "close"}, 5))
    assert pool.stats().reply_time.count == 3


def test_stats_as_a_flat_dict(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    pool.request("/", 1, 5)
    with pool.acquire("/") as conn:
        conn.discard()
    with pytest.raises(KeyError), pool.acquire("/") as conn:
        conn.send("left alone")
        raise KeyError
    stats = pool.stats()
    flat = stats.as_dict()
    assert json.loads(json.dumps(flat)) == flat
    assert all(type(value) in (int, float) for value in flat.values())
    assert set(flat) >= {each.name for each in dataclasses.fields(PoolStats) if each.type == "int"}
    assert flat["acquires"] == 3
    assert flat["discards"] == flat["discards_discarded"] + flat["discards_exception"] == 2
    for name in ("wait_time", "lend_time", "connect_time", "reply_time"):
        told = getattr(stats, name)
        assert (flat[f"{name}_count"], flat[f"{name}_p99"]) == (told.count, told.p99)
        assert flat[f"{name}_longest"] == told.longest > 0


def test_stats_are_readable(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    assert "nothing yet" in str(pool.stats())
    pool.request("/", 1, 5)
    with pool.acquire("/") as conn:
        conn.discard()
        told = str(pool.stats()).splitlines()
    assert told[0] == "now: 1 lent, 0 idle, 0 being opened, 0 waiting"
    assert "2 acquires (1 reused, 0 timed out), 1 opened" in told[1]
    assert told[1].endswith("not kept: none")
    assert told[2].startswith("messages: 1 sent, 1 received (")
    names = re.findall(r"(\w+) [\d.e-]+ / [\d.e-]+ s", told[3])
    assert names == ["wait", "lent", "connect", "reply"]
    assert str(pool.stats()).splitlines()[1].endswith("not kept: 1 discarded")


def test_with_ids_they_tell_what_belonged_to_no_asker(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(service), correlation=Plain())
    pool.request("/", {"n": 1}, 5)
    assert "unasked" not in str(pool.stats())
    pool.request("/", {"do": "push", "say": [{"note": 1}]}, 5)
    assert str(pool.stats()).splitlines()[2].endswith("B); 0 in flight, 0 late, 1 unasked")


@pytest.mark.slow
def test_stats_from_many_threads_add_up(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=4, acquire_timeout=30)
    stop = threading.Event()

    def watch() -> None:
        before = pool.stats()
        while not stop.is_set():
            now = pool.stats()
            for name in ("total_connections", "total_messages_sent", "acquires", "reuses", "bytes_sent"):
                assert getattr(now, name) >= getattr(before, name), name
            assert now.active_connections + now.idle_connections <= 4
            before = now
            stop.wait(0.0005)  # it watches; the interpreter is for the others

    def work(number: int) -> None:
        rng = random.Random(number)
        for turn in range(50):
            with pool.acquire(f"/{rng.randrange(6)}") as conn:
                conn.request(turn, 10)

    with ThreadPoolExecutor(9) as threads:
        watching = threads.submit(watch)
        try:
            list(threads.map(work, range(8)))
        finally:
            stop.set()
        watching.result(10)
    stats = pool.stats()
    assert (stats.acquires, stats.total_messages_sent, stats.total_messages_received) == (400, 400, 400)
    assert stats.total_connections == echo.opened
    # Not always as many: one that was opened for a caller who got another may make room before its lease.
    assert 400 - echo.opened <= stats.reuses <= 400 - 6
    assert stats.wait_time.count == stats.lend_time.count == 400


def test_who_gets_an_error_is_counted_by_its_type_with_the_time_that_he_waited(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo, max_connections=1)
    with pool.acquire("/"):
        for timeout in (0, 0.05):
            with pytest.raises(PoolExhaustedError):
                pool.acquire("/", timeout=timeout)
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.acquire("/")
    stats = pool.stats()
    assert {name: times.count for name, times in stats.refused.items()} == {
        "PoolExhaustedError": 2,
        "PoolClosedError": 1,
    }
    assert stats.refused["PoolExhaustedError"].longest >= 0.05
    assert stats.acquires == 1
    flat = stats.as_dict()
    assert (flat["refused"], flat["refused_PoolExhaustedError"]) == (3, 2)
