"""What is told of a worker and its pools: plain values, bounded and fit to be shown.

`of_worker` makes such a report of the pools of this process. `checked` makes one of what another process has
written: only what is known here is kept, and only if it is what it should be.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, TypeVar

from jetsocket import ConnectionInfo, ConnectionPool, LeaseInfo
from jetsocket.contrib.status.watching import SERIES, SLOTS, Watch, figures, told
from jetsocket.interrupts import is_alarm

R = TypeVar("R")
Report: TypeAlias = dict[str, Any]
"""A worker's: `worker`, `pid`, `host`, `written` (s since the epoch), `pools`, and where it was read from a
directory, `late` (s since its process should have written again)."""

VERSION = 2
MOST_POOLS = 50
MOST_LIMITERS = 20  # of a pool
SLOT_FIGURES = ("limit", "held", "others", "waiting", "lost", "errors", "without_slot")
"""Which figures of a limiter are told, as far as it has them."""
MOST_ROWS = 100  # connections of a pool that are listed, and as many leases
_MOST_FIGURES = 200
_LARGEST = 10**18
_LAST = 253_402_300_799  # s since the epoch: the end of the year 9999
_NAME = re.compile(r"\w[\w .:-]{0,99}")


# --- what is said of it


def of_worker(worker: Mapping[str, Any], pools: Mapping[str, ConnectionPool[Any]], now: float) -> Report:
    """What this process tells of itself.

    Args:
        worker: Which process it is; see `Directory`.
        pools: By names that are fit to be shown.
        now: s since the epoch.
    """
    of_pools = [_of_pool(name, pool, Watch.of(pool), now) for name, pool in list(pools.items())[:MOST_POOLS]]
    return {"version": VERSION, **worker, "written": now, "late": 0.0, "pools": of_pools}


def _of_pool(name: str, pool: ConnectionPool[Any], watch: Watch, now: float) -> Report:
    connections, leases, stats = pool.connections(), pool.leases(), pool.stats()
    limiters, failures = _of_limiters(pool, now)
    return {
        "name": name,
        "closed": pool.is_closed,
        "max_connections": pool.config.max_connections,
        "now": dict(zip(SERIES, figures(connections, stats), strict=True)),
        "totals": {key: round(value, 6) for key, value in stats.as_dict().items()},
        "discards": {text(reason): count for reason, count in sorted(stats.discards.items())},
        "connections": [_of_connection(each) for each in connections[:MOST_ROWS]],
        "leases": [_of_lease(each) for each in leases[:MOST_ROWS]],
        "not_listed": max(0, len(connections) - MOST_ROWS),
        "limiters": limiters,
        "errors": [*failures, *watch.errors()],
        "history": watch.history(),
    }


def _of_limiters(pool: ConnectionPool[Any], now: float) -> tuple[list[Report], list[Report]]:
    """What a pool's limiters say; and why they can't, as errors of the pool."""
    try:
        limits = pool.limits()
    except Exception as error:  # the user's code
        if is_alarm(error, users_code=True):
            raise
        return [], [{"at": round(now, 3), "doing": "stats() of a limiter", "text": told(error), "count": 1}]
    return [_of_limiter(name, stats) for name, stats in list(limits.items())[:MOST_LIMITERS]], []


def _of_limiter(name: str, stats: Mapping[str, Any]) -> Report:
    told = {key: stats.get(key) for key in SLOT_FIGURES}
    figures = {key: each for key, each in told.items() if type(each) is int and 0 <= each <= _LARGEST}
    return {"name": text(name, 100), "away": stats.get("away") is True, "figures": figures}


def _of_connection(info: ConnectionInfo) -> Report:
    return {
        "id": info.id,
        "uri": text(info.uri),
        "place": str(info.place),
        "age": round(info.age, 3),
        "uses": info.uses,
        "latency": None if info.latency is None else round(info.latency, 6),
    }


def _of_lease(info: LeaseInfo) -> Report:
    return {
        "id": info.id,
        "thread": text(info.thread),
        "age": round(info.age, 3),
        "where": text(info.where),
        "doing": text(info.doing),
    }


def shown(report: Report) -> Report:
    """What readers are told: not how processes are told apart."""
    return {name: value for name, value in report.items() if name not in ("version", "space", "start")}


# --- what others say


def checked(raw: object) -> Report:
    """The report that was read, without what is not known here.

    Raises:
        ValueError: It is none.
    """
    try:
        return _worker(_object(raw))
    except KeyError as error:
        if is_alarm(error):
            raise
        raise ValueError(f"no {error}") from None


def _worker(raw: Mapping[str, Any]) -> Report:
    if raw["version"] != VERSION:
        raise ValueError("of another version")
    return {
        "version": VERSION,
        "worker": _text(raw["worker"]),
        "pid": _whole(raw["pid"]),
        "host": _text(raw["host"]),
        "space": _text(raw["space"]),
        "start": _whole(raw["start"]),
        "written": _moment(raw["written"]),
        "pools": [_pool(_object(each)) for each in _list(raw["pools"], MOST_POOLS)],
    }


def _pool(raw: Mapping[str, Any]) -> Report:
    history = _object(raw["history"])
    return {
        "name": _text(raw["name"]),
        "closed": _flag(raw["closed"]),
        "max_connections": _whole(raw["max_connections"]),
        "now": {name: _whole(_object(raw["now"])[name]) for name in SERIES},
        "totals": _table(raw["totals"], _number),
        "discards": _table(raw["discards"], _whole),
        "connections": [_connection(_object(each)) for each in _list(raw["connections"], MOST_ROWS)],
        "leases": [_lease(_object(each)) for each in _list(raw["leases"], MOST_ROWS)],
        "not_listed": _whole(raw["not_listed"]),
        "limiters": [_limiter(_object(each)) for each in _list(raw["limiters"], MOST_LIMITERS)],
        "errors": [_error(_object(each)) for each in _list(raw["errors"], MOST_ROWS)],
        "history": {
            "until": _whole(history["until"]),
            **{name: [_or_none(each, _whole) for each in _list(history[name], SLOTS)] for name in SERIES},
        },
    }


def _limiter(raw: Mapping[str, Any]) -> Report:
    figures = _table(raw["figures"], _whole)
    known = {key: figures[key] for key in SLOT_FIGURES if key in figures}
    return {"name": _text(raw["name"]), "away": _flag(raw["away"]), "figures": known}


def _connection(raw: Mapping[str, Any]) -> Report:
    return {
        "id": _whole(raw["id"]),
        "uri": _text(raw["uri"]),
        "place": _text(raw["place"]),
        "age": _number(raw["age"]),
        "uses": _whole(raw["uses"]),
        "latency": _or_none(raw["latency"], _number),
    }


def _lease(raw: Mapping[str, Any]) -> Report:
    texts = {name: _text(raw[name]) for name in ("thread", "where", "doing")}
    return {"id": _whole(raw["id"]), "age": _number(raw["age"]), **texts}


def _error(raw: Mapping[str, Any]) -> Report:
    return {
        "at": _moment(raw["at"]),
        "doing": _text(raw["doing"]),
        "text": _text(raw["text"]),
        "count": _whole(raw["count"]),
    }


# --- values


def text(value: str, most: int = 500) -> str:
    """A text that moves no cursor and is not too long."""
    shown = "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in value[:most])
    return shown if len(value) <= most else f"{shown[: most - 1]}…"


def _object(raw: object) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ValueError("no object")
    return raw


def _list(raw: object, most: int) -> Iterable[object]:
    if not isinstance(raw, list) or len(raw) > most:
        raise ValueError("no list, or a longer one than any")
    return raw


def _table(raw: object, value: Callable[[object], R]) -> dict[str, R]:
    pairs = _object(raw)
    if len(pairs) > _MOST_FIGURES or not all(map(_NAME.fullmatch, pairs)):
        raise ValueError("no table of figures")
    return {name: value(each) for name, each in pairs.items()}


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError("no text")
    return text(raw)


def _number(raw: object) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (int, float)) or not abs(raw) <= _LARGEST:
        raise ValueError("no number")
    return raw


def _moment(raw: object) -> float:
    if not 0 <= (moment := _number(raw)) <= _LAST:
        raise ValueError("no time since the epoch")
    return moment


def _whole(raw: object) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= _LARGEST:
        raise ValueError("no whole number")
    return raw


def _flag(raw: object) -> bool:
    if not isinstance(raw, bool):
        raise ValueError("neither true nor false")
    return raw


def _or_none(raw: object, value: Callable[[object], R]) -> R | None:
    return None if raw is None else value(raw)


# --- several workers


def merged(reports: Iterable[Report]) -> list[Report]:
    """One report for each pool of that name, in whatever worker; its rows and errors say whose they are.

    Figures are added up; of times, the slowest worker's is kept.
    """
    found: dict[str, list[Report]] = {}
    for report in reports:
        for pool in report["pools"]:
            found.setdefault(pool["name"], []).append({**pool, "worker": report["worker"]})
    return [_merged(pools) for pools in found.values()]


def _merged(pools: list[Report]) -> Report:
    first = pools[0]
    rows = {
        kind: [{**row, "worker": pool["worker"]} for pool in pools for row in pool[kind]]
        for kind in ("connections", "leases", "errors")
    }
    rows["errors"].sort(key=lambda row: row["at"], reverse=True)
    totals: dict[str, float] = {}
    for pool in pools:
        for name, value in pool["totals"].items():
            is_time = "_time_" in name and not name.endswith("_count")
            totals[name] = max(totals.get(name, 0), value) if is_time else totals.get(name, 0) + value
    return {
        "name": first["name"],
        "workers": len(pools),
        "closed": all(pool["closed"] for pool in pools),
        "max_connections": sum(pool["max_connections"] for pool in pools if not pool["closed"]),
        "now": {name: sum(pool["now"][name] for pool in pools) for name in SERIES},
        "totals": totals,
        "discards": dict(sum((Counter(pool["discards"]) for pool in pools), Counter())),
        "not_listed": sum(pool["not_listed"] for pool in pools),
        "history": _joined([pool["history"] for pool in pools]),
        "limiters": _shared([pool["limiters"] for pool in pools]),
        **rows,
    }


def _shared(of_workers: list[list[Report]]) -> list[Report]:
    """One for each limiter of that name: what these workers hold together, and others besides."""
    found: dict[str, list[Report]] = {}
    for limiters in of_workers:
        for each in limiters:
            found.setdefault(each["name"], []).append(each)
    shared = []
    for name, limiters in found.items():
        figures = [each["figures"] for each in limiters]
        joined = {
            # The limit and who waits are of all who share it, and so is what is held in all.
            key: (max if key in ("limit", "waiting") else sum)(each[key] for each in figures if key in each)
            for key in SLOT_FIGURES
            if any(key in each for each in figures)
        }
        if "others" in joined:
            held_in_all = max(each.get("held", 0) + each.get("others", 0) for each in figures)
            if joined["others"] and "held" in joined:
                # A slot that moves is in two reports, of different moments: that is not one too many.
                joined["held"] = min(joined["held"], held_in_all)
            joined["others"] = max(0, held_in_all - joined.get("held", 0))
        shared.append({"name": name, "away": any(each["away"] for each in limiters), "figures": joined})
    return shared


def _joined(histories: list[Report]) -> Report:
    """Their sums, second by second."""
    until = max(history["until"] for history in histories)
    joined: Report = {"until": until}
    for name in SERIES:
        sums: list[int | None] = [None] * SLOTS
        for history in histories:
            values = history[name]
            for place, value in enumerate(values, SLOTS - (until - history["until"]) - len(values)):
                if value is not None and 0 <= place < SLOTS:
                    sums[place] = (sums[place] or 0) + value
        joined[name] = sums
    return joined
