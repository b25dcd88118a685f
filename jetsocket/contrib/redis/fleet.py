"""What a group looks like from outside, and how a process that hangs is taken out of it by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jetsocket.contrib.redis.link import Link, Source
from jetsocket.contrib.redis.script import Answer, Call, check_name, prefix_of

__all__ = ["FleetStatus", "ProcessStatus", "forget", "status"]

_PATIENCE = 5.0  # s
_CHUNK = 500


@dataclass(frozen=True)
class ProcessStatus:
    """One process of a group.

    Attributes:
        id: What the group knows it by; `forget` takes it.
        label: Its host and process id.
        held: How many slots it has.
        is_waiting: Whether it waits for one.
        limit: The limit that it was given.
        lease: s after its last call that it counts as gone.
        seen: How long ago that call was, s.
    """

    id: str
    label: str
    held: int
    is_waiting: bool
    limit: int
    lease: float
    seen: float


@dataclass(frozen=True)
class FleetStatus:
    """A group at one moment.

    Attributes:
        name: The group's name.
        limit: The smallest limit of its processes; None: there are none.
        held: Slots that are out.
        waiting: Processes that wait for one.
        fence: The last fence that was given; 0: there was none, or Redis has lost it.
        processes: Those who hold most first.
    """

    name: str
    limit: int | None
    held: int
    waiting: int
    fence: int
    processes: tuple[ProcessStatus, ...]


def status(client_or_url: Any, name: str) -> FleetStatus:
    """Look at a group; changes nothing.

    Args:
        client_or_url: Where Redis is, as for `RedisLimiter`.
        name: The group's name.

    Raises:
        redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError: Redis does not answer,
            or refuses.
        TypeError: `client_or_url` is neither a URL nor a client.
        ValueError: It is no URL of a Redis, or `name` none of a group.
    """
    check_name(name)
    prefix = prefix_of(name)
    link = Link(Source(client_or_url, prefix), _PATIENCE)
    try:
        seconds, micros = link.ask(_PATIENCE, "TIME")
        now = int(seconds) * 1000 + int(micros) // 1000
        ends = dict(_scores(link, f"{prefix}members"))
        held = {key: int(score) for key, score in _scores(link, f"{prefix}held")}
        waiting = {key for key, _ in _scores(link, f"{prefix}waiters")}
        limits = dict(_scores(link, f"{prefix}limits"))
        out = link.ask(_PATIENCE, "ZCOUNT", f"{prefix}leases", f"({now}", "+inf")
        fence = link.ask(_PATIENCE, "HGET", f"{prefix}group", "fence")
        processes = []
        for key, end in ends.items():
            told = link.ask(_PATIENCE, "HMGET", f"{prefix}p:{key}", "lease", "label")
            if told[0] is None or end <= now:
                continue  # it is gone
            lease = int(told[0]) / 1000
            seen = max(0.0, lease - (end - now) / 1000)
            processes.append(
                ProcessStatus(
                    id=key,
                    label=(told[1] or b"").decode(),
                    held=held.get(key, 0),
                    is_waiting=key in waiting,
                    limit=int(limits.get(key, 0)),
                    lease=lease,
                    seen=seen,
                )
            )
    finally:
        link.close()
    processes.sort(key=lambda each: (-each.held, each.label, each.id))
    limit_now = min((each.limit for each in processes), default=None)
    waits = sum(each.is_waiting for each in processes)
    return FleetStatus(name, limit_now, int(out), waits, int(fence or 0), tuple(processes))


def forget(client_or_url: Any, name: str, process: str) -> int:
    """Take a process out of a group: its slots are free at once, whatever it does.

    For one that hangs, or whose host is cut off. One that lives takes its slots again, if there is room, when
    it renews them, and closes the others.

    Args:
        client_or_url: Where Redis is, as for `RedisLimiter`.
        name: The group's name.
        process: Its `ProcessStatus.id`.

    Returns:
        How many slots it had.

    Raises:
        redis.exceptions.RedisError, redis.exceptions.RedisClusterException, OSError: Redis does not answer,
            or refuses.
        TypeError: `client_or_url` is neither a URL nor a client.
        ValueError: It is no URL of a Redis, or `name` none of a group.
    """
    check_name(name)
    link = Link(Source(client_or_url, prefix_of(name)), _PATIENCE)
    try:
        answer = Answer.of(link.run(Call(name, process, op="forget"), _PATIENCE))
    finally:
        link.close()
    return int(answer.adopted["freed"])


def _scores(link: Link, key: str) -> Iterator[tuple[str, float]]:
    """Members and scores of a sorted set, a part at a time."""
    start = 0
    while True:
        flat = link.ask(_PATIENCE, "ZRANGE", key, start, start + _CHUNK - 1, "WITHSCORES")
        for each, score in zip(flat[::2], flat[1::2], strict=True):
            yield each.decode(), float(score)
        if len(flat) < 2 * _CHUNK:
            return
        start += _CHUNK
