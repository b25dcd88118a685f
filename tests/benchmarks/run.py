"""Runs measurements: the server in a process, each contender in its own, taking turns."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.peers import OURS, Place
from tests.benchmarks.registry import WORKS
from tests.benchmarks.server import HOST
from tests.benchmarks.works import Figures

TIMEOUT = 240.0  # s for one child
CROWDS = ("idle", "flat")  # once each, and first: if the machine is too small for them, that is known soon
NAMES = (*WORKS, *CROWDS)


class Plan(NamedTuple):
    """How much to measure."""

    rounds: int = 5
    seconds: float = 0.4
    """For one measurement."""
    idle_counts: tuple[int, ...] = (500, 2000, 5000)
    idle_seconds: float = 32.0  # more than the interval between two pings
    flat_counts: tuple[int, ...] = (1, 100, 10_000)


TINY = Plan(rounds=1, seconds=0.02, idle_counts=(20,), idle_seconds=0.2, flat_counts=(1, 5))


class Job(NamedTuple):
    """One child to run."""

    label: str
    key: tuple[str, str]
    """Work and contender."""
    request: dict[str, Any]


Rounds = dict[str, dict[str, list[Figures]]]
"""Work → contender → figures of each round."""


@contextlib.contextmanager
def running_server() -> Iterator[Place]:
    """A server, and where it is."""
    import trustme

    with tempfile.TemporaryDirectory() as folder:
        authority, trusted, own = trustme.CA(), Path(folder, "ca.pem"), Path(folder, "server.pem")
        authority.cert_pem.write_to_path(str(trusted))
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(str(own))
        command = [sys.executable, "-m", "tests.benchmarks.server", str(own)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            plain, tls = json.loads(process.stdout.readline())
            yield Place(f"ws://{HOST}:{plain}", f"wss://{HOST}:{tls}", str(trusted))
        finally:
            process.stdin.close()
            try:
                process.wait(5)
            finally:
                process.kill()
                process.stdout.close()


def measure(request: dict[str, Any]) -> Figures:
    """Measure in a process of its own.

    Raises:
        RuntimeError: It failed; its stderr is in the message.
    """
    command = [sys.executable, "-m", "tests.benchmarks.child", json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{request} failed:\n{done.stderr}")
    figures: Figures = json.loads(done.stdout)
    return figures


def jobs(names: Iterable[str], place: Place, plan: Plan) -> Iterator[Job]:
    """All turns in their order: a slow minute of the machine hits every contender."""
    chosen = [name for name in names if name in WORKS]
    for number in range(plan.rounds):
        for name in chosen:
            work = WORKS[name]
            if number < (work.rounds or plan.rounds):
                for contender in work.contenders * work.turns:
                    request = {"work": name, "contender": contender, "seconds": plan.seconds, "place": place}
                    yield Job(f"round {number + 1}: {work.title}: {contender}", (name, contender), request)


def crowd_jobs(names: Iterable[str], place: Place, plan: Plan) -> Iterator[list[Job]]:
    """Those that run once: groups, of which the members wait most of the time and may run together."""
    common = {"contender": OURS, "place": place}
    if "idle" in names:
        yield [
            Job(
                f"{count} idle connections",
                ("idle", str(count)),
                common | {"work": "idle", "seconds": plan.idle_seconds, "count": count},
            )
            for count in plan.idle_counts
        ]
    if "flat" in names:
        for by in ("connections", "uris"):
            request = {"work": "flat", "seconds": plan.seconds, "counts": plan.flat_counts, "by": by}
            yield [Job(f"borrowing among many {by}", ("flat", by), common | request)]


def possible(names: Iterable[str], tell: Callable[[str, float], None]) -> Iterator[str]:
    """Those for which there is all that they need, or can be got; `tell` hears why the others are skipped."""
    for name in names:
        prepare = WORKS[name].prepare if name in WORKS else None
        if prepare is None:
            yield name
        else:
            tell(f"preparing: {WORKS[name].title}", 0.0)
            if (why := prepare()) is None:
                yield name
            else:
                tell(f"skipped: {WORKS[name].title}: {why}", 0.0)


def run(names: Iterable[str], place: Place, plan: Plan, tell: Callable[[str, float], None]) -> Rounds:
    """Measure; `tell` hears what is done next, and which part of the whole is done already."""
    names = list(possible(names, tell))
    groups = [*crowd_jobs(names, place, plan), *([job] for job in jobs(names, place, plan))]
    found: Rounds = {}
    for number, group in enumerate(groups):
        tell(", ".join(job.label for job in group), number / len(groups))
        with ThreadPoolExecutor(len(group)) as executor:
            for job, figures in zip(
                group, executor.map(measure, [job.request for job in group]), strict=True
            ):
                work, contender = job.key
                found.setdefault(work, {}).setdefault(contender, []).append(figures)
    return found
