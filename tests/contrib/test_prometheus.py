"""Prometheus is told what pools do: names, labels, buckets, and sums that agree with the server's.

Also tests: `measures`.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from jetsocket import ConnectionError, ConnectionPool, PoolExhaustedError
from jetsocket.contrib.prometheus import PoolCollector, instrument
from jetsocket.correlation import JsonRpc
from jetsocket.limits import Limiter
from tests.contrib.jsonrpc import json_rpc
from tests.servers import LOCALHOST, EchoServer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]
SERVER = ("server_address", "server_port")


def scraped(*pools: ConnectionPool[Any], collector: PoolCollector | None = None) -> dict[str, float]:
    """What Prometheus reads, by name and labels, but for those of the server."""
    registry = CollectorRegistry(auto_describe=True)
    registry.register(collector or PoolCollector(*pools))
    families = list(parse(generate_latest(registry).decode()))
    return {
        sample.name
        + "{"
        + ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()) if v and k not in SERVER)
        + "}": sample.value
        for family in families
        for sample in family.samples
    }


def test_the_figures_of_a_pool_by_their_names(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, name="feed", max_connections=2)
    with pool.acquire("/?key=secret") as conn:
        conn.request({"n": 1})
        with pool.acquire("/"), pytest.raises(PoolExhaustedError):
            pool.acquire("/", timeout=0)
        told = scraped(pool)
        assert told["jetsocket_connection_count{jetsocket_pool_name=feed,state=used}"] == 1
        assert told["jetsocket_connection_count{jetsocket_pool_name=feed,state=idle}"] == 1
    told = scraped(pool)
    assert told["jetsocket_connection_count{jetsocket_pool_name=feed,state=idle}"] == 2
    assert told["jetsocket_connection_max{jetsocket_pool_name=feed}"] == 2
    assert told["jetsocket_connection_pending_requests{jetsocket_pool_name=feed}"] == 0
    assert told["jetsocket_connection_timeouts_total{jetsocket_pool_name=feed}"] == 1
    assert told["jetsocket_connection_wait_time_seconds_count{jetsocket_pool_name=feed}"] == 2
    refused = (
        "jetsocket_connection_wait_time_seconds_count{error_type=PoolExhaustedError,jetsocket_pool_name=feed}"
    )
    assert told[refused] == 1
    assert told["jetsocket_connection_use_time_seconds_count{jetsocket_pool_name=feed}"] == 2
    assert told["jetsocket_connection_create_time_seconds_count{jetsocket_pool_name=feed}"] == 2
    assert told["jetsocket_messages_total{direction=sent,jetsocket_pool_name=feed}"] == 1
    assert told["jetsocket_messages_total{direction=received,jetsocket_pool_name=feed}"] == 1
    stats = pool.stats()
    assert told["jetsocket_io_bytes_total{direction=sent,jetsocket_pool_name=feed}"] == stats.bytes_sent
    assert (
        told["jetsocket_connection_use_time_seconds_sum{jetsocket_pool_name=feed}"] == stats.lend_time.total
    )
    assert not [name for name in told if name.startswith("rpc") or "key" in name or "/" in name]


def test_buckets_are_cumulative_and_hold_what_lasted_that_long(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, name="p")
    done = threading.Event()
    with pool.acquire("/"):
        done.wait(0.06)
    short = 0
    for _ in range(20):
        began = monotonic()
        pool.acquire("/").release()
        short += monotonic() - began < 0.05  # on a busy machine one may take longer
    told = scraped(pool)
    name = "jetsocket_connection_use_time_seconds_bucket{{jetsocket_pool_name=p,le={}}}"
    counts = [told[name.format(le)] for le in ("0.0001", "0.05", "10.0", "+Inf")]
    assert counts == sorted(counts)
    assert 0 < short <= counts[1] <= 20
    assert counts[2:] == [21, 21]
    assert sum(each.startswith("jetsocket_connection_use_time_seconds_bucket") for each in told) == 17


def test_their_sums_agree_with_the_servers(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    asked: list[Any] = []
    server = echo_server(json_rpc(asked))
    pool = make_pool(server, name="p", correlation=JsonRpc(), max_connections=3)
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda n: pool.request("/", {"method": f"m{n}"}), range(60)))
    told = scraped(pool)
    assert told["rpc_client_call_duration_seconds_count{jetsocket_pool_name=p,rpc_system_name=jsonrpc}"] == 60
    assert told["jetsocket_messages_total{direction=sent,jetsocket_pool_name=p}"] == len(asked) == 60
    assert told["jetsocket_connection_wait_time_seconds_count{jetsocket_pool_name=p}"] == 60
    opened = told["jetsocket_connection_create_time_seconds_count{jetsocket_pool_name=p}"]
    assert opened == server.opened
    pool.clear()
    told = scraped(pool)
    assert told["jetsocket_connection_closed_total{jetsocket_pool_name=p,reason=cleared}"] == opened


def test_who_could_not_connect_is_told_by_the_error(make_pool: MakePool) -> None:
    with socket.socket() as bound:  # and not listening
        bound.bind((LOCALHOST, 0))
        uri = f"ws://{LOCALHOST}:{bound.getsockname()[1]}"
        pool = make_pool(uri, name="p", manager_kwargs={"connect_attempts": 1})
        with pytest.raises(ConnectionError):
            pool.acquire("/")
    name = "jetsocket_connection_wait_time_seconds_count{error_type=ConnectionError,jetsocket_pool_name=p}"
    assert scraped(pool)[name] == 1


def test_pools_of_one_name_are_told_of_together_and_their_sums_never_fall(
    echo: EchoServer, make_pool: MakePool
) -> None:
    first, second = make_pool(echo, name="p"), make_pool(echo, name="p")
    collector = PoolCollector(first, second)
    for pool in (first, first, second):
        pool.request("/", 1)
    sent = "jetsocket_messages_total{direction=sent,jetsocket_pool_name=p}"
    most = "jetsocket_connection_max{jetsocket_pool_name=p}"
    told = scraped(collector=collector)
    assert (told[sent], told[most]) == (3, 20)
    first.request("/", 1)
    first.close()
    told = scraped(collector=collector)
    assert (told[sent], told[most]) == (4, 10)
    second.close()
    assert scraped(collector=collector) == {}
    third = make_pool(echo, name="p")
    collector.add(third)
    assert scraped(collector=collector)[sent] == 0


class Telling(Limiter):
    """A limiter that says of itself what it is told to."""

    def __init__(self, name: str, **stats: Any) -> None:
        self.name = name
        self.told: Any = stats

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        return object()

    def release(self, token: Hashable) -> None:
        pass

    def stats(self) -> Mapping[str, Any]:
        if isinstance(self.told, Exception):
            raise self.told
        return dict(self.told)


def of_limiters(told: Mapping[str, float]) -> dict[str, float]:
    return {
        name.removeprefix("jetsocket_limiter_"): value for name, value in told.items() if "limiter" in name
    }


def test_limiters_say_how_many_slots_they_have_and_who_holds_them(echo: EchoServer) -> None:
    """Once, however many pools share them."""
    account = Telling("account", limit=20, held=3, others=15, waiting=2, lost=1, errors=4, away=False)
    other = Telling("other", limit=5, held="many", others=None)
    with (
        ConnectionPool[Any](base_uri=echo.uri, name="p", limiter=account) as pool,
        ConnectionPool[Any](base_uri=echo.uri, name="p", limiter=account) as same,
        ConnectionPool[Any](
            base_uri=echo.uri, name="q", limiter={echo.uri.rstrip("/"): other, "ws://h.test": account}
        ) as by_origin,
    ):
        collector = PoolCollector(pool, same, by_origin)
        at = "{jetsocket_limiter_name=account,jetsocket_pool_name=p}"
        told = of_limiters(scraped(collector=collector))
        assert {name: value for name, value in told.items() if name.endswith(at)} == {
            f"max{at}": 20,
            f"held{at}": 3,
            f"others{at}": 15,
            f"waiting{at}": 2,
            f"lost_total{at}": 1,
            f"errors_total{at}": 4,
        }
        assert told["max{jetsocket_limiter_name=other,jetsocket_pool_name=q}"] == 5
        assert told["max{jetsocket_limiter_name=account,jetsocket_pool_name=q}"] == 20
        assert not [name for name in told if name.startswith(("held{jetsocket_limiter_name=other", "away"))]
        same.close()
        account.told["lost"] = 2  # what was lost before is no more for a pool that is gone
        assert of_limiters(scraped(collector=collector))[f"lost_total{at}"] == 2


def test_a_limiter_that_cannot_say_costs_only_its_own_figures(
    echo: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    limiter = Telling("account", limit=20)
    limiter.told = KeyError("secret")
    with ConnectionPool[Any](base_uri=echo.uri, name="p", limiter=limiter) as pool:
        collector = PoolCollector(pool)
        for _ in range(2):
            told = scraped(collector=collector)
            assert told["jetsocket_connection_max{jetsocket_pool_name=p}"] == 10
            assert of_limiters(told) == {}
        [line] = [record.getMessage() for record in caplog.records if "limiter" in record.getMessage()]
        assert line.startswith(
            "[p] stats() of a limiter failed: metrics lack the figures of limiters: KeyError"
        )
        assert "secret" not in line
        limiter.told = {"limit": 20}
        assert of_limiters(scraped(collector=collector))


def test_a_collector_keeps_no_pool_open(echo: EchoServer) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri)
    collector = PoolCollector(pool)
    pool.request("/", 1)
    assert scraped(collector=collector)
    gone = weakref.ref(pool)
    del pool
    gc.collect()
    assert gone() is None
    assert scraped(collector=collector) == {}
    wait_until(lambda: not echo.open_now)


def test_a_forked_child_tells_its_own(echo: EchoServer, make_pool: MakePool, tmp_path: Path) -> None:
    pool, gone = make_pool(echo, name="p"), make_pool(echo, name="p")
    collector = PoolCollector(pool, gone)
    for each in (pool, gone, gone):
        each.request("/", 1)
    gone.close()
    sent = "jetsocket_messages_total{direction=sent,jetsocket_pool_name=p}"
    assert scraped(collector=collector)[sent] == 3
    if (child := os.fork()) == 0:
        try:
            before = scraped(collector=collector)[sent]
            pool.request("/", 1)
            (tmp_path / "told").write_text(f"{before} {scraped(collector=collector)[sent]}")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "told").read_text() == "0.0 1.0"
    assert scraped(collector=collector)[sent] == 3


def test_a_registry_takes_one_collector_and_what_it_writes_can_be_read(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo, name='a "name" \\')
    pool.request("/", 1)
    registry = CollectorRegistry()
    registry.register(PoolCollector(pool))
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        registry.register(PoolCollector(make_pool(echo)))
    families = list(parse_openmetrics(generate_openmetrics(registry).decode()))
    names = {sample.labels["jetsocket_pool_name"] for family in families for sample in family.samples}
    assert names == {pool.name}


def test_each_figure_names_the_server_of_the_base_uri(
    echo: EchoServer, echo_server: Callable[[], EchoServer], make_pool: MakePool
) -> None:
    other = echo_server()
    pools = [
        make_pool(f"{echo.uri}/api?key=secret", name="p", max_connections=3),
        make_pool(other, name="p", max_connections=4),
        ConnectionPool(name="p"),
    ]
    with pools[-1]:
        for pool, server in zip(pools, (echo, other, echo), strict=True):
            pool.request(f"{server.uri}/", 1)
        registry = CollectorRegistry()
        registry.register(PoolCollector(*pools))
        text = generate_latest(registry).decode()
    assert "secret" not in text and "/api" not in text
    servers = [(echo.host, str(echo.port)), (other.host, str(other.port)), ("", "")]
    for family in parse(text):
        if family.samples:
            told = {tuple(sample.labels[each] for each in SERVER) for sample in family.samples}
            assert told == set(servers), family.name
    assert {
        tuple(sample.labels[each] for each in SERVER): sample.value
        for family in parse(text)
        for sample in family.samples
        if sample.name == "jetsocket_connection_max"
    } == dict(zip(servers, (3, 4, 10), strict=True))


def test_what_is_no_pool_is_refused() -> None:
    with pytest.raises(TypeError, match=r"a jetsocket\.ConnectionPool is needed, not 'x'"):
        PoolCollector("x")  # type: ignore[arg-type]  # the point


def test_instrument_registers_one_collector_for_all_pools(echo: EchoServer, make_pool: MakePool) -> None:
    registry = CollectorRegistry(auto_describe=True)
    for name in ("a", "b", "b"):
        instrument(make_pool(echo, name=name, max_connections=3), registry=registry)
    told = parse(generate_latest(registry).decode())
    most = {
        sample.labels["jetsocket_pool_name"]: sample.value
        for family in told
        for sample in family.samples
        if sample.name == "jetsocket_connection_max"
    }
    assert most == {"a": 3, "b": 6}


SEVERAL = """
import os, struct, sys, threading
from prometheus_client import CollectorRegistry, multiprocess
from jetsocket import ConnectionPool
from jetsocket.contrib.prometheus import instrument
from jetsocket.limits import LocalLimiter
from tests.servers import wait_until

def told():
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)
    return {
        (sample.name, *filter(None, map(sample.labels.get, ("state", "direction")))): sample.value
        for family in registry.collect()
        for sample in family.samples
    }

def expect(value, *key):
    def is_so():
        try:
            return told().get(key) == value
        except (RuntimeError, ValueError, struct.error):  # it reads the file of a process that has just begun
            return False
    wait_until(is_so)

def work(pool, times):
    for _ in range(times):
        pool.request("/", 1)

pool = ConnectionPool(base_uri=os.environ["URI"], name="p", limiter=LocalLimiter(7))
instrument(pool, multiprocess=True)
assert "jetsocket-prometheus" not in {thread.name for thread in threading.enumerate()}
work(pool, 3)
read, write = os.pipe()
children = []
for _ in range(2):
    if (child := os.fork()) == 0:
        work(pool, 10)
        os.close(write)
        os.read(read, 1)  # until the parent says so, or has ended
        pool.close()
        sys.exit()  # as gunicorn's workers do: atexit writes the rest
    children.append(child)
expect(23, "jetsocket_messages_total", "sent")
expect(30, "jetsocket_connection_max")
expect(3, "jetsocket_connection_count", "idle")
expect(3, "jetsocket_connection_create_time_seconds_count")
expect(0, "jetsocket_connection_timeouts_total")
expect(7, "jetsocket_limiter_max")
expect(3, "jetsocket_limiter_held")
os.write(write, b"xx")
for child in children:
    assert os.waitpid(child, 0)[1] == 0
    multiprocess.mark_process_dead(child)
expect(2, "jetsocket_connection_closed_total")
work(pool, 1)
pool.close()
expect(0, "jetsocket_connection_max")
expect(24, "jetsocket_messages_total", "received")
expect(3, "jetsocket_connection_closed_total")
wait_until(lambda: "jetsocket-prometheus" not in {thread.name for thread in threading.enumerate()})
"""


def run(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # prometheus_client leaves its files open; fork beside threads is the point.
        [
            sys.executable,
            *("-W", "error", "-W", "ignore::ResourceWarning", "-W", "ignore::DeprecationWarning"),
            *("-c", program),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environment},
    )


@pytest.mark.slow
def test_several_processes_tell_their_sums(echo: EchoServer, tmp_path: Path) -> None:
    done = run(SEVERAL, PROMETHEUS_MULTIPROC_DIR=str(tmp_path), URI=echo.uri)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (echo.opened, echo.messages) == (3, 24)


def test_several_processes_need_a_directory(echo: EchoServer, make_pool: MakePool) -> None:
    with pytest.raises(RuntimeError, match="PROMETHEUS_MULTIPROC_DIR must name a directory"):
        instrument(make_pool(echo), multiprocess=True)
