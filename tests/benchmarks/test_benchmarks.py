"""The benchmarks run, in a tiny form; their figures are nobody's concern here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import scripts
from tests.benchmarks import ethereum, multiplex, report
from tests.benchmarks.peers import AIOHTTP, OURS, PICOWS, SPEED, WEBSOCKET_CLIENT, Place
from tests.benchmarks.registry import WORKS
from tests.benchmarks.run import TINY, Job, Plan, crowd_jobs, jobs, measure, possible, running_server
from tests.benchmarks.targets import Row, Target, compared, duration, judge
from tests.benchmarks.watched import BARE, LIMITS
from tests.benchmarks.works import PSYCOPG_POOL, QUEUE_POOL, QUEUED_CLIENT, Figures

pytestmark = pytest.mark.once

ROOT = Path(__file__).resolve().parent.parent.parent
NEEDS = {
    QUEUE_POOL: ("sqlalchemy",),
    QUEUED_CLIENT: ("sqlalchemy",),
    PSYCOPG_POOL: ("psycopg_pool",),
    PICOWS: ("picows", "uvloop"),
    AIOHTTP: ("aiohttp", "uvloop"),
}
NOWHERE = Place("ws://127.0.0.1:1", "wss://127.0.0.1:1", "none.pem")


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with running_server() as place:
        yield place


def all_jobs() -> dict[str, list[Job]]:
    """What there is to measure, by contender."""
    crowds = [job for group in crowd_jobs(("flat",), NOWHERE, TINY) for job in group]
    found: dict[str, list[Job]] = defaultdict(list)
    alone = [name for name, work in WORKS.items() if work.prepare is None]
    for job in (*jobs(alone, NOWHERE, TINY._replace(rounds=1)), *crowds):
        if job.key != ("fragments", WEBSOCKET_CLIENT):  # seconds for each message
            found[job.request["contender"]].append(job)
    return found


# One process for all of a contender's: to start one takes longer than to measure so little.
MEASURE = """
import json, os, sys
from tests.benchmarks.child import measure
for request in json.loads(sys.argv[1]):
    print(json.dumps(measure(request)), flush=True)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("contender", all_jobs())
def test_each_measurement_runs(contender: str, place: Place) -> None:
    for needed in NEEDS.get(contender, ()):
        pytest.importorskip(needed, exc_type=ImportError)
    wanted = all_jobs()[contender]
    requests = json.dumps([job.request | {"place": place} for job in wanted])
    done = scripts.run(MEASURE, requests)
    lines = done.out.splitlines()
    assert done.status == 0, f"{[job.key for job in wanted][len(lines)]}: {done.err}"
    for job, line in zip(wanted, lines, strict=True):
        figures = json.loads(line)
        assert figures, job.key
        assert all(seconds > 0 for seconds in figures.values()), job.key


def test_an_ethereum_node_is_asked(place: Place) -> None:
    if why := ethereum.missing():
        pytest.skip(f"{why} (`make bench ONLY=web3` does it)")
    found = {job.key[1]: measure(job.request) for job in jobs(("web3",), place, TINY)}
    assert set(found) == {OURS, *ethereum.HOWS}
    assert found[OURS]["right"] == found[ethereum.WITH_LOCK]["right"] == 100
    assert all(figures["time"] > 0 for figures in found.values())


@pytest.mark.slow
def test_a_pool_that_is_watched_is_measured_and_judged(place: Place) -> None:
    figures = measure({"work": "metrics", "contender": OURS, "seconds": 0.02, "place": place})
    assert set(figures) == {BARE, *LIMITS} and min(figures.values()) > 0
    slow = {who: 1e-3 + (limit or 3e-5) * 1.1 for who, limit in LIMITS.items()}
    fast = {who: 1e-3 + (limit or 3e-5) * 0.9 for who, limit in LIMITS.items()}
    for found, met in ((slow, False), (fast, True)):
        rows = judge({"metrics": {OURS: [{BARE: 1e-3, **found}]}})
        assert [row.met for row in rows] == [met] * len(LIMITS)


def test_what_cannot_be_had_is_skipped_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    work = WORKS["web3"]._replace(prepare=lambda: "there is no npm")
    monkeypatch.setitem(WORKS, "web3", work)
    told: list[str] = []
    assert list(possible(("web3", "tls", "idle"), lambda what, part: told.append(what))) == ["tls", "idle"]
    assert told[-1] == f"skipped: {work.title}: there is no npm"


def test_without_npm_the_node_is_told_to_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ethereum, "NODES", (tmp_path,))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert ethereum.missing() == "@foundry-rs/anvil from npm is not installed"
    assert ethereum.prepare() == "there is no npm, from which @foundry-rs/anvil comes"


@pytest.mark.slow
def test_idle_connections_are_measured(place: Place) -> None:
    pytest.importorskip("psutil")
    [[job]] = crowd_jobs(("idle",), place, TINY)
    figures = measure(job.request)
    assert figures["connections"] == 20
    assert figures["threads"] == 1


def run(*arguments: str, only: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks", "--tiny", *arguments]
    environment = {**os.environ, "ONLY": only}
    return subprocess.run(
        command, capture_output=True, text=True, timeout=50, check=False, cwd=ROOT, env=environment
    )


@pytest.mark.slow
def test_one_of_them_on_the_command_line() -> None:
    done = run(only="tls")
    assert done.returncode == 0, done.stderr
    assert "round 1: Stream of 100 B text messages over TLS: websockets.sync" in done.stderr
    assert "| Stream of 100 B text messages over TLS | jetsocket | " in done.stdout
    assert "written" not in done.stdout


def test_an_unknown_name_is_refused() -> None:
    done = run(only="dance")
    assert done.returncode == 2
    assert "ONLY=dance: choose from stream, json" in done.stderr


def rounds_of(*times: float) -> list[Figures]:
    return [{"time": time} for time in times]


def test_a_ratio_is_that_of_the_medians_and_its_spread_that_of_the_rounds() -> None:
    contenders = {OURS: rounds_of(1e-6, 2e-6, 2e-6), WEBSOCKET_CLIENT: rounds_of(4e-5, 4e-5, 2e-5)}
    row = compared(Target("stream", OURS, WEBSOCKET_CLIENT, "≥", 20), contenders)
    assert row.ratio == "20.00 (10.00–40.00)"
    assert row.met
    assert (row.ours, row.theirs) == ("2 µs", "40 µs")
    assert not compared(Target("stream", OURS, WEBSOCKET_CLIENT, "≥", 20.1), contenders).met
    assert compared(Target("stream", OURS, WEBSOCKET_CLIENT, "≤", 0.05), contenders).ratio.startswith("0.05")


@pytest.mark.parametrize(("seconds", "text"), [(1.5, "1.5 s"), (0.00123, "1.23 ms"), (2.5e-6, "2.5 µs")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_what_a_run_writes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figures = {
        "stream": {OURS: rounds_of(1e-6), SPEED: rounds_of(1e-6), WEBSOCKET_CLIENT: rounds_of(3e-5)},
        "idle": {
            "50": [{"connections": 50.0, "rss": 4096.0, "threads": 1.0, "cpu": 0.001, "close seen": 0.2}]
        },
        "flat": {"connections": [{"1": 1e-5, "10": 1e-5}], "uris": [{"1": 1e-5, "1 in turn": 1e-5}]},
    }
    cells = [f"{delay} ms, {callers}" for delay in multiplex.DELAYS for callers in multiplex.CROWDS]
    for who in multiplex.SIZES:
        of_callers = {cell + which: 0.001 for cell in cells for which in ("", " median", " p99")}
        figures.setdefault("multiplex", {})[who] = [of_callers]
    for other in ("websockets.sync", PICOWS, AIOHTTP):
        figures["stream"][other] = rounds_of(9e-6)
    marks = "<!-- {0}: written by make bench -->\nold\n<!-- end of {0} -->\n"
    (tmp_path / "docs").mkdir()
    page, readme = tmp_path / "docs" / "benchmarks.md", tmp_path / "README.md"
    page.write_text(
        "top\n" + "".join(marks.format(name) for name in ("machine", "targets", "waits", "times"))
    )
    readme.write_text(marks.format("figures") + "bottom\n")

    found = report.results(figures, Plan(rounds=1), 0.5, 12.3)
    report.write(found, tmp_path)

    assert json.loads((tmp_path / "docs/benchmarks/results.json").read_text())["load"] == 0.5
    for name in ("idle-connections", "multiplex-calls", "multiplex-waits"):
        assert "<svg" in (tmp_path / f"docs/benchmarks/{name}.svg").read_text()
    assert "| Stream of 100 B text messages | jetsocket | websocket-client | 1 µs | 30 µs | 30.00" in (
        page.read_text()
    )
    assert page.read_text().startswith("top\n")
    assert readme.read_text().endswith("bottom\n")
    assert "old" not in page.read_text() + readme.read_text()


def test_the_pages_say_what_was_measured() -> None:
    """README, the page and results.json are of one run."""
    found = json.loads((ROOT / "docs/benchmarks/results.json").read_text(encoding="utf-8"))
    rows = [Row(**row) for row in found["targets"]]
    assert [row._asdict() for row in judge(found["figures"])] == found["targets"]
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert report.target_table(rows) in page
    assert report.machine_text(found) in page
    assert report.short_table(rows) in (ROOT / "README.md").read_text(encoding="utf-8")
