"""A fleet for minutes: 8 processes of 8 hungry threads share 10 slots, and everything happens to them.

Short in `make integration`; `make soak` gives it ten minutes (`REDIS_SOAK_MINUTES`).
"""

from __future__ import annotations

import os
import random
import signal
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

pytest.importorskip("redis")

from tests.faults.conftest import Report
from tests.integration.chronicle import Chronicle, note_stalls
from tests.integration.redis_workers import FleetCensus, FleetProcess, fleet_of
from tests.integration.redises import HAS_REDIS, RedisServer, redis_server
from tests.servers import EchoServer, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not HAS_REDIS, reason="needs redis-server"),
]

LIMIT, LEASE = 10, 3.0
OPTIONS = {"threads": 8, "hold": 0.02, "max_connections": 8, "limiter": {"limit": LIMIT, "lease": LEASE}}


@dataclass
class Trouble:
    """Does things to a fleet, and notes for how long there may be more connections than the limit."""

    redis: RedisServer
    server: EchoServer
    census: FleetCensus
    fleet: list[FleetProcess]
    choice: random.Random
    chronicle: Chronicle
    options: dict[str, Any]
    done: Counter[str] = field(default_factory=Counter)
    permitted: list[tuple[float, float, int]] = field(default_factory=list)  # from, until, so many more
    lost: int = 0
    met: Counter[str] = field(default_factory=Counter)

    def something(self) -> None:
        names = ["kill", "close", "exit", "pause", "stop", "restart", "freeze", "script_flush"]
        name = self.choice.choice(names)
        self.done[name] += 1
        self.chronicle.note("fault: begins", name=name)
        getattr(self, name)()
        self.chronicle.note("fault: is over", name=name)

    def _one(self) -> FleetProcess:
        one = self.choice.choice(self.fleet)
        self.chronicle.note("fault: it is to", victim=one.pid)
        return one

    def _replace(self, one: FleetProcess) -> None:
        self.fleet.remove(one)
        one.clean()
        self.fleet.append(FleetProcess(self.server.uri, self.redis.url, **self.options))

    def _note(self, one: FleetProcess) -> None:
        told = one.stats()
        self.met.update(told["met"])
        self.lost += told["limiter"]["lost"]

    def kill(self) -> None:
        one = self._one()
        self._note(one)
        one.kill()
        self._replace(one)

    def close(self) -> None:
        one = self._one()
        self._note(one)
        assert one.end("close") == 0
        self._replace(one)

    def exit(self) -> None:
        one = self._one()
        self._note(one)
        assert one.end("exit") == 0
        self._replace(one)

    def pause(self) -> None:
        """Stopped for less than a lease."""
        one = self._one()
        one.signal(signal.SIGSTOP)
        sleep(LEASE / 3)
        one.signal(signal.SIGCONT)

    def stop(self) -> None:
        """Stopped for longer than a lease."""
        one = self._one()
        start = monotonic()
        one.signal(signal.SIGSTOP)
        sleep(0.1)
        held = self.census.by_process[one.pid]
        sleep(LEASE * 2)
        one.signal(signal.SIGCONT)
        self.permitted.append((start, monotonic() + 1.0, held))
        sleep(1.5)

    def restart(self) -> None:
        self.redis.restart()

    def freeze(self) -> None:
        self.redis.freeze()
        sleep(self.choice.choice([0.5, LEASE * 1.5]))
        self.redis.thaw()

    def script_flush(self) -> None:
        with self.redis.client() as client:
            client.script_flush()

    def excess(self, when: float) -> int:
        return sum(more for since, until, more in self.permitted if since <= when <= until)


def ratio(census: FleetCensus, seconds: float, processes: int) -> float:
    """The most turns of a process by the fewest, in that time from now."""
    start = monotonic()
    sleep(seconds)
    turns = census.turns(start, monotonic())
    assert len(turns) == processes, turns
    return max(turns.values()) / min(turns.values())


def soak(tmp_path: Path, minutes: float, seed: int, report: Report) -> None:
    chronicle = Chronicle(tmp_path / "chronicle")
    note_stalls(chronicle)
    options = {**OPTIONS, "chronicle": str(chronicle.path)}
    census = FleetCensus(LIMIT, chronicle.note)
    with (
        redis_server(tmp_path) as redis,
        EchoServer(census) as server,
        fleet_of(8, server.uri, redis.url, **options) as fleet,
    ):
        trouble = Trouble(redis, server, census, fleet, random.Random(seed), chronicle, options)
        wait_until(lambda: len(census.by_process) == 8, 20)
        sleep(2)
        ratios = [ratio(census, 20.0, 8)]
        until, next_calm = monotonic() + minutes * 60, monotonic() + 150
        while monotonic() < until:
            trouble.something()
            sleep(trouble.choice.uniform(0.5, 3.0))
            if monotonic() > next_calm:
                sleep(LEASE * 2)
                ratios.append(ratio(census, 20.0, 8))
                next_calm = monotonic() + 150
        sleep(LEASE * 2)
        late = FleetProcess(server.uri, redis.url, **options)
        fleet.append(late)
        began = monotonic()
        wait_until(lambda: census.turns(began, 1e18)[late.pid] > 0, 10)
        first_turn = census.first_turn(late.pid) - began
        for one in fleet:
            trouble._note(one)
    unexplained = [(when, count) for when, count in census.more if count > LIMIT + trouble.excess(when)]
    report(
        "redis fleet",
        minutes=minutes,
        seed=seed,
        **trouble.done,
        turns=len(census.served),
        opened=census.opened,
        errors=sum(count for name, count in trouble.met.items() if name.endswith("Error")),
        lost=trouble.lost,
        foreign=len(census.foreign) + trouble.met["foreign"],
        more_than_limit=len(census.more),
        unexplained=len(unexplained),
        turns_ratio=round(max(ratios), 3),
        late_comer_s=round(first_turn, 3),
    )
    for when, count in unexplained:
        print(
            f"--- {count} at {when:.3f}; before and after, s:",
            *chronicle.around(when, 2 * LEASE, 0.5),
            sep="\n",
        )
    chronicle.close()
    assert unexplained == [], f"what happened beside them is printed, and in {chronicle.path}"
    assert census.foreign == [] and trouble.met["foreign"] == 0
    assert census.most_open >= LIMIT
    assert max(ratios) <= 1.2
    assert first_turn < 1.0


@pytest.mark.timeout(180)
def test_a_minute_of_a_fleet(tmp_path: Path, report: Report) -> None:
    soak(tmp_path, 0.7, 1, report)


@pytest.mark.soak
@pytest.mark.timeout(1500)
def test_ten_minutes_of_a_fleet(tmp_path: Path, report: Report) -> None:
    soak(tmp_path, float(os.environ.get("REDIS_SOAK_MINUTES", "10")), random.randrange(10**6), report)
