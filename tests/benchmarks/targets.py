"""What was wanted, and whether it was met. Pure functions over the figures of all rounds."""

from __future__ import annotations

import statistics
from typing import NamedTuple

from tests.benchmarks.askers import MANY, ONE
from tests.benchmarks.cold import PLAIN, PREWARM
from tests.benchmarks.ethereum import WITH_LOCK
from tests.benchmarks.multiplex import EIGHT, HUNDRED, SHARED
from tests.benchmarks.peers import AIOHTTP, OURS, PICOWS, SPEED, WEBSOCKET_CLIENT, WEBSOCKETS
from tests.benchmarks.registry import WORKS
from tests.benchmarks.run import Rounds
from tests.benchmarks.watched import BARE, LIMITS
from tests.benchmarks.works import PSYCOPG_POOL, QUEUE_POOL, QUEUED_CLIENT, SEMAPHORE, Figures

FASTER, AT_MOST = "≥", "≤"


class Target(NamedTuple):
    """At least so many times as fast as another (`≥`), or at most so many times its time (`≤`)."""

    work: str
    subject: str
    against: str
    kind: str
    limit: float


TARGETS = (
    Target("stream", OURS, WEBSOCKET_CLIENT, FASTER, 20),
    Target("stream", OURS, WEBSOCKETS, FASTER, 6),
    Target("stream", OURS, PICOWS, FASTER, 1.0),
    Target("stream", OURS, AIOHTTP, FASTER, 1.0),
    Target("json", OURS, WEBSOCKET_CLIENT, FASTER, 5),
    Target("json", OURS, WEBSOCKETS, FASTER, 1.4),
    Target("json", SPEED, WEBSOCKETS, FASTER, 3),
    Target("json", SPEED, PICOWS, FASTER, 2),
    Target("json", SPEED, AIOHTTP, FASTER, 2),
    Target("send", OURS, WEBSOCKET_CLIENT, FASTER, 1.5),
    Target("send", OURS, WEBSOCKETS, FASTER, 1.5),
    Target("cpu", OURS, WEBSOCKET_CLIENT, AT_MOST, 0.8),
    Target("cpu", OURS, WEBSOCKETS, AT_MOST, 0.8),
    Target("large", OURS, WEBSOCKET_CLIENT, FASTER, 40),
    Target("large", SPEED, WEBSOCKETS, AT_MOST, 1.2),
    Target("fragments", OURS, WEBSOCKET_CLIENT, FASTER, 20),
    Target("tls", OURS, WEBSOCKET_CLIENT, FASTER, 10),
    Target("tls", OURS, WEBSOCKETS, FASTER, 2),
    Target("tls-json", OURS, WEBSOCKET_CLIENT, FASTER, 10),
    Target("tls-json", OURS, WEBSOCKETS, FASTER, 2),
    Target("connect", OURS, WEBSOCKET_CLIENT, AT_MOST, 1.05),
    Target("connect-name", OURS, WEBSOCKET_CLIENT, AT_MOST, 1.0),
    Target("connect-tls", OURS, WEBSOCKET_CLIENT, AT_MOST, 1.05),
    Target("cold", OURS, PLAIN, AT_MOST, 1.1),
    Target("cold", PREWARM, PLAIN, AT_MOST, 1.2),
    Target("cold-tls", OURS, PLAIN, AT_MOST, 1.25),
    Target("borrow", OURS, QUEUE_POOL, AT_MOST, 1.0),
    Target("borrow", OURS, PSYCOPG_POOL, AT_MOST, 2.1),
    Target("borrow", OURS, SEMAPHORE, AT_MOST, 2.1),
    Target("threads", OURS, QUEUED_CLIENT, FASTER, 1.0),
    Target("shared", SHARED, EIGHT, FASTER, 7),
    Target("shared", SHARED, HUNDRED, FASTER, 1.2),
    Target("shared-cpu", SHARED, HUNDRED, AT_MOST, 0.75),
    Target("shared-at-once", SHARED, EIGHT, FASTER, 1.5),
    Target("subscriptions", MANY, ONE, AT_MOST, 1.2),
    Target("web3", OURS, WITH_LOCK, FASTER, 5),
)


class Row(NamedTuple):
    """One line of the table."""

    work: str
    who: str
    against: str
    ours: str
    theirs: str
    ratio: str
    target: str
    met: bool


def judge(rounds: Rounds) -> list[Row]:
    """All targets for which there are figures."""
    rows = [compared(target, rounds[target.work]) for target in TARGETS if target.work in rounds]
    if "fragments" in rounds:
        rows.insert(_behind(rows, "fragments"), linear(rounds["fragments"][OURS]))
    if "threads" in rounds:
        rows.append(fair(rounds["threads"][OURS]))
    if "hand-over" in rounds:
        rows.append(within(rounds["hand-over"][OURS], 60e-6))
    if "correlation" in rounds:
        rows.append(added(rounds["correlation"][OURS], 6e-6))
    if "metrics" in rounds:
        rows.extend(watched_rows(rounds["metrics"][OURS]))
    return [*rows, *idle_rows(rounds.get("idle", {})), *flat_rows(rounds.get("flat", {}))]


def _behind(rows: list[Row], work: str) -> int:
    title = WORKS[work].title
    return max(number for number, row in enumerate(rows) if row.work == title) + 1


def compared(target: Target, contenders: dict[str, list[Figures]]) -> Row:
    """One of ours beside another, each round by itself for the spread."""
    ours = [figures["time"] for figures in contenders[target.subject]]
    theirs = [figures["time"] for figures in contenders[target.against]]
    turned = target.kind == FASTER
    of_rounds = [b / a if turned else a / b for a, b in zip(ours, theirs, strict=True)]
    mine, other = statistics.median(ours), statistics.median(theirs)
    ratio = other / mine if turned else mine / other
    return Row(
        WORKS[target.work].title,
        target.subject,
        target.against,
        duration(mine),
        duration(other),
        f"{ratio:.2f} ({min(of_rounds):.2f}–{max(of_rounds):.2f})",
        f"{target.kind} {target.limit:g}",
        ratio >= target.limit if turned else ratio <= target.limit,
    )


def linear(rounds: list[Figures]) -> Row:
    """Whether 16 MiB take four times as long as 4 MiB."""
    small, large = (statistics.median(figures[size] for figures in rounds) for size in ("4", "16"))
    ratio = large / small / 4
    title = "16 MiB in 1 KiB fragments, for each MiB"
    return Row(
        title,
        OURS,
        "4 MiB",
        duration(large / 16),
        duration(small / 4),
        f"{ratio:.2f}",
        f"{AT_MOST} 1.2",
        ratio <= 1.2,
    )


def fair(rounds: list[Figures]) -> Row:
    """Whether nobody waits for much longer than the others."""
    ratios = [figures["longest"] / figures["median"] for figures in rounds]
    median, longest = (statistics.median(figures[key] for figures in rounds) for key in ("median", "longest"))
    ratio = statistics.median(ratios)
    return Row(
        "64 threads on 8 connections, longest wait",
        OURS,
        "its median wait",
        duration(longest),
        duration(median),
        f"{ratio:.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
        f"{AT_MOST} 3",
        ratio <= 3,
    )


def within(rounds: list[Figures], limit: float) -> Row:
    """Whether a change of who reads takes no longer than that (s)."""
    time = statistics.median(figures["time"] for figures in rounds)
    title, target = WORKS["hand-over"].title, f"{AT_MOST} {duration(limit)}"
    return Row(title, OURS, "", duration(time), "", "", target, time <= limit)


def added(rounds: list[Figures], limit: float) -> Row:
    """Whether a correlation adds no more than that (s) to a request."""
    mine, other = (statistics.median(figures[key] for figures in rounds) for key in ("with", "without"))
    of_rounds = [figures["with"] - figures["without"] for figures in rounds]
    more = statistics.median(of_rounds)
    spread = f"{more * 1e6:+.1f} µs ({min(of_rounds) * 1e6:+.1f}–{max(of_rounds) * 1e6:+.1f})"
    title, target = WORKS["correlation"].title, f"{AT_MOST} +{duration(limit)}"
    who = "with a correlation"
    return Row(title, who, "without one", duration(mine), duration(other), spread, target, more <= limit)


def watched_rows(rounds: list[Figures]) -> list[Row]:
    """What each way to measure or trace a pool adds to a request."""
    rows, bare = [], statistics.median(figures[BARE] for figures in rounds)
    for who, limit in LIMITS.items():
        of_rounds = [figures[who] - figures[BARE] for figures in rounds]
        more, mine = statistics.median(of_rounds), statistics.median(figures[who] for figures in rounds)
        most = 0.03 * bare if limit is None else limit
        spread = f"{more * 1e6:+.1f} µs ({min(of_rounds) * 1e6:+.1f}–{max(of_rounds) * 1e6:+.1f})"
        target = f"{AT_MOST} +3 %" if limit is None else f"{AT_MOST} +{duration(limit)}"
        row = WORKS["metrics"].title, who, "nothing", duration(mine), duration(bare), spread, target
        rows.append(Row(*row, more <= most))
    return rows


def idle_rows(contenders: dict[str, list[Figures]]) -> list[Row]:
    """What most connections cost that were idle at once."""
    if not contenders:
        return []
    figures = max((rounds[0] for rounds in contenders.values()), key=lambda figures: figures["connections"])
    what = f"{figures['connections']:,.0f} idle connections"
    kib, share = figures["rss"] / 1024, figures["cpu"] * 100
    return [
        Row(f"{what}: threads", OURS, "", f"{figures['threads']:.0f}", "", "", "1", figures["threads"] == 1),
        Row(f"{what}: of a core", OURS, "", f"{share:.2f} %", "", "", f"{AT_MOST} 2 %", share <= 2),
        Row(f"{what}: memory of one", OURS, "", f"{kib:.1f} KiB", "", "", f"{AT_MOST} 12 KiB", kib <= 12),
        Row(
            f"{what}: a close is seen after",
            OURS,
            "",
            duration(figures["close seen"]),
            "",
            "",
            f"{AT_MOST} 1 s",
            figures["close seen"] <= 1,
        ),
    ]


def flat_rows(contenders: dict[str, list[Figures]]) -> list[Row]:
    """Whether borrowing costs the same however many connections are idle."""
    rows = []
    for by, which in (("connections", ""), ("uris", ""), ("uris", " in turn")):
        figures = contenders[by][0] if by in contenders else {}
        labels = [label for label in figures if label.isdigit() != bool(which)]
        counts = sorted(int(label.removesuffix(which)) for label in labels)
        if not counts:
            continue
        few, many = f"{counts[0]}{which}", f"{counts[-1]}{which}"
        kind = "URIs" if by == "uris" else "idle connections"
        ratio = figures[many] / figures[few]
        rows.append(
            Row(
                f"Acquire and release among {counts[-1]:,} {kind}{', each' * bool(which)}{which}",
                OURS,
                f"among {counts[0]}",
                duration(figures[many]),
                duration(figures[few]),
                f"{ratio:.2f}",
                f"{AT_MOST} 1.2",
                ratio <= 1.2,
            )
        )
    return rows


def duration(seconds: float) -> str:
    """A duration as people read it."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
