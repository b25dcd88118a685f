"""Reports as lines of text, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jetsocket.contrib.status.reports import merged


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} µs"
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def slots(limiter: Mapping[str, Any]) -> str:
    """What a limiter says of its slots, in words."""
    figures = limiter["figures"]
    of = f" of {figures['limit']}" if "limit" in figures else ""
    told = [f"{figures['held']}{of} slots held here"] if "held" in figures else []
    told += [f"{figures['limit']} slots"] if of and not told else []
    told += [f"{figures['others']} by others"] if "others" in figures else []
    told += [f"{figures[key]} {key}" for key in ("waiting", "lost") if key in figures]
    told += [f"{figures['errors']} errors"] if "errors" in figures else []
    told += [f"{figures['without_slot']} open without one"] if figures.get("without_slot") else []
    told += ["its server is away"] if limiter["away"] else []
    return f"limiter {limiter['name']}: {', '.join(told) or 'it tells no figures'}"


def as_text(reports: Iterable[Mapping[str, Any]]) -> str:
    """What workers say, as `read` returns it, in lines for a terminal."""
    return "\n".join(_lines([dict(each) for each in reports]))


def _lines(reports: list[dict[str, Any]]) -> Iterator[str]:
    if not reports:
        yield "no worker has written here yet: one does after the first acquire of its pools"
        return
    for report in reports:
        late = f", not heard of for {duration(report['late'])}" if report["late"] else ""
        yield f"worker {report['worker']}{late}"
    for pool in merged(reports):
        yield ""
        yield from _pool(pool)


def _pool(pool: Mapping[str, Any]) -> Iterator[str]:
    now, totals = pool["now"], pool["totals"]
    shared = f", {pool['workers']} workers" if pool["workers"] > 1 else ""
    yield f"{pool['name']}: {'closed' if pool['closed'] else 'open'}{shared}"
    told = ", ".join(f"{now[name]} {name}" for name in ("idle", "lent", "waiting", "opening"))
    yield f"  {now['open']} of {pool['max_connections']} connections open: {told}"
    yield (
        f"  {totals.get('acquires', 0)} acquires, {totals.get('reuses', 0)} of them reused,"
        f" {totals.get('timeouts', 0)} timed out; {totals.get('connect_errors', 0)} connect errors"
    )
    for limiter in pool["limiters"]:
        yield f"  {slots(limiter)}"
    if pool["discards"]:
        yield "  not kept: " + ", ".join(f"{count} {name}" for name, count in pool["discards"].items())
    for lease in pool["leases"]:
        yield (
            f"  connection {lease['id']} of {lease['worker']} lent for {duration(lease['age'])} to thread"
            f" {lease['thread']!r}, acquired in {lease['where']}, {lease['doing']}"
        )
    for error in pool["errors"][:5]:
        times = f" ({error['count']} times)" if error["count"] > 1 else ""
        yield f"  {error['doing']}: {error['text']}{times}"
