"""What 1,000 processes with 10,000 connections cost their Redis: `python -m tests.benchmarks.fleet`.

The books of all processes are in this one, and call the real script on a Redis of its own in real time. The
connections are only counted. What a process's blocked BLPOP costs is reckoned: one command every third of
a lease, and one for each message.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from statistics import quantiles
from time import monotonic, perf_counter, sleep
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.contrib.redis import RedisLimiter
from tests.benchmarks.run import running_server
from tests.integration.redis_fleet import Fleet, Process
from tests.integration.redises import RedisServer, redis_server

PROCESSES, EACH = 1000, 10
LEASE = 10.0
SECONDS = 20.0  # of each measurement
PAIRS = 400  # of turns without a limiter and with one
_NAME = "fleet"


class Meter:
    """What Redis says of itself, between two moments."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client()
        self.begin()

    def begin(self) -> None:
        self.client.config_resetstat()
        self._since, self._cpu = monotonic(), self._cpu_now()

    def _cpu_now(self) -> float:
        told = self.client.info("cpu")
        return float(told["used_cpu_user"] + told["used_cpu_sys"])

    def read(self) -> dict[str, float]:
        seconds = monotonic() - self._since
        told = self.client.info("commandstats").get("cmdstat_evalsha", {"calls": 0, "usec_per_call": 0})
        messages = self.client.info("commandstats").get("cmdstat_rpush", {"calls": 0})["calls"]
        waits = PROCESSES / (LEASE / 3) + messages / seconds
        return {
            "calls_per_s": round(told["calls"] / seconds, 1),
            "us_per_call": round(told["usec_per_call"], 1),
            "messages_per_s": round(messages / seconds, 1),
            "commands_per_s": round(told["calls"] / seconds + waits, 1),
            "cpu_percent": round(100 * (self._cpu_now() - self._cpu) / seconds, 1),
        }

    def memory(self) -> float:
        """MB that the data take."""
        told = self.client.info("memory")
        return float(told["used_memory_dataset"]) / 1e6


def live(fleet: Fleet, seconds: float, work: Callable[[Process], None] | None = None) -> None:
    """All threads run for that long, each looking often enough."""
    by_id = {process.member.id: process for process in fleet.processes}
    prefix = f"{{js:{_NAME}}}:in:"
    until = monotonic() + seconds
    while True:
        start = monotonic()
        for process in fleet.processes:
            process.do(process.member.end_leases(process.now))
            if process.member.is_call_due(process.now):
                process.call(renew=process.now >= process.member.renew_at)
            if work is not None:
                work(process)
        for key in fleet.redis.keys(f"{prefix}*"):
            process = by_id[key.decode().removeprefix(prefix)]
            process.read_inbox()
        if monotonic() >= until:
            return
        sleep(max(0.0, 0.05 - (monotonic() - start)))


def gave_up(process: Process) -> None:
    """One comes back all the time, and is closed if it is to be given up; then another one is wanted."""
    if process.member.press._owes_next and process.open:
        process.close(process.open[0])
    if not process.wants:
        process.wants = 1
        process.call()


def ensure_spread(fleet: Fleet) -> None:
    """Processes don't call all at the same moment."""
    for number, process in enumerate(fleet.processes):
        process.member.renew_at = process.now + LEASE / 3 * number / len(fleet.processes)


def fill(fleet: Fleet, each: int) -> None:
    """So many connections for each process, one by one."""
    for number, process in enumerate(fleet.processes):
        for _ in range(each):
            process.wants += 1
            process.call(2)
            assert process.wants == 0
        if number % 50 == 0:
            live(fleet, 0.0)


def begun(server: RedisServer, limit: int) -> Fleet:
    from redis import Redis

    client = Redis(port=server.port)
    client.flushall()
    fleet = Fleet(client, name=_NAME, limit=limit, lease=LEASE)
    for _ in range(PROCESSES):
        fleet.add()
    fleet.processes[0].call(renew=True)
    sleep(1.05)
    return fleet


def calm(server: RedisServer, meter: Meter) -> Iterator[tuple[str, Any]]:
    before = meter.memory()
    fleet = begun(server, PROCESSES * EACH)
    fill(fleet, EACH)
    yield "memory, MB", round(meter.memory() - before, 2)
    ensure_spread(fleet)
    live(fleet, 2.0)
    meter.begin()
    live(fleet, SECONDS)
    yield "calm", meter.read()
    assert fleet.open == PROCESSES * EACH
    yield from ended_together(fleet, meter)
    yield from restarted(fleet, meter)


def ended_together(fleet: Fleet, meter: Meter) -> Iterator[tuple[str, Any]]:
    """Redis's clock goes forward by two leases, and all renew; then all processes die at one moment."""
    fleet.move_redis(2 * LEASE)
    start = perf_counter()
    fleet.processes[0].call(renew=True)
    first = perf_counter() - start
    for process in fleet.processes[1:]:
        process.call(renew=True)
    yield "10,000 leases that end together: the first call after that, ms", round(first * 1e3, 1)
    yield "until all 1,000 processes have taken theirs again, s", round(perf_counter() - start, 2)
    assert fleet.open == PROCESSES * EACH
    assert fleet.redis.zcard(f"{{js:{_NAME}}}:leases") == PROCESSES * EACH


def restarted(fleet: Fleet, meter: Meter) -> Iterator[tuple[str, Any]]:
    fleet.flush(breaks=True)
    meter.begin()
    start = perf_counter()
    for process in fleet.processes:
        process.call(renew=True)
    yield (
        "Redis restarted empty: until all 1,000 have said what they hold, s",
        round(perf_counter() - start, 2),
    )
    yield "of which Redis worked, s", round(meter.read()["us_per_call"] * PROCESSES / 1e6, 3)
    assert fleet.redis.zcard(f"{{js:{_NAME}}}:leases") == PROCESSES * EACH
    assert not any(process.lost for process in fleet.processes)


def hungry(server: RedisServer, meter: Meter) -> Iterator[tuple[str, Any]]:
    """All always want more; half of them have one more than the others, and that goes round."""
    for name, limit in (("hungry, equal shares", 5000), ("hungry, 50 of 1,000 have one more", 5050)):
        fleet = begun(server, limit)
        fill(fleet, 5)
        ensure_spread(fleet)
        live(fleet, 8.0, gave_up)
        meter.begin()
        before = sum(process.member.grants for process in fleet.processes)
        live(fleet, SECONDS, gave_up)
        grants = sum(process.member.grants for process in fleet.processes) - before
        yield name, {**meter.read(), "grants_per_s": round(grants / SECONDS, 1)}
        assert fleet.most_open <= limit
        assert fleet.open <= limit


def warm(server: RedisServer, _meter: Meter) -> Iterator[tuple[str, Any]]:
    """Throughput of a pool whose limiter has room, by that of one without: turns of some 20 ms, in pairs."""
    for threads, most, each in ((1, 10, 200), (8, 8, 40), (16, 4, 20)):
        limiter = RedisLimiter(server.url, f"warm-{threads}", limit=100)
        config = ConnectionPoolConfig(max_connections=most)
        with (
            running_server() as place,
            ConnectionPool[Any](config, base_uri=place.plain) as plain,
            ConnectionPool[Any](config, base_uri=place.plain, limiter=limiter) as limited,
            ThreadPoolExecutor(threads) as executor,
        ):
            turn = partial(ask_together, executor, threads, each)
            for _ in range(5):
                turn(plain)
                turn(limited)
            pairs = [(turn(plain), turn(limited)) for _ in range(PAIRS)]
        quarters = quantiles([without / with_one for without, with_one in pairs], n=4)
        name = f"throughput with a limiter by that without, {threads} threads, {most} connections at most"
        yield (
            name,
            {"median_of_pairs": round(quarters[1], 3), "quartiles": [round(q, 3) for q in quarters[::2]]},
        )


def ask_together(executor: ThreadPoolExecutor, threads: int, each: int, pool: ConnectionPool[Any]) -> float:
    """How long so many threads take for so many requests each (s)."""
    begin = threading.Barrier(threads + 1)

    def ask() -> None:
        begin.wait()
        for number in range(each):
            pool.request("/late/0", {"id": number}, 10)

    asking = [executor.submit(ask) for _ in range(threads)]
    begin.wait()
    began = perf_counter()
    for one in asking:
        one.result()
    return perf_counter() - began


def main() -> None:
    numbers = count(1)
    with tempfile.TemporaryDirectory() as folder, redis_server(Path(folder)) as server:
        meter = Meter(server)
        for part in (warm, calm, hungry):
            for name, figure in part(server, meter):
                print(next(numbers), name, json.dumps(figure), flush=True)


if __name__ == "__main__":
    sys.exit(main())
