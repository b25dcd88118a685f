"""What is done, drawn from a seed: pure. The same seed draws the same steps and the same weather.

What comes of them is up to the scheduler.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, NamedTuple

PATHS = ("/a", "/b")
DIRECTIONS = ("up", "down", "both")

ORDINARY: Mapping[str, int] = {
    "request": 30,
    "talk": 20,
    "idempotent": 5,
    "late": 5,
    "stream": 6,
    "iterate": 3,
    "fire": 5,
    "drop": 4,
    "cycle": 3,
    "generator": 3,
    "raises": 4,
    "timeout": 4,
    "closed": 3,
    "cut": 3,
    "garbage": 3,
    "big": 3,
    "impatient": 4,
    "at_once": 4,
    "ping": 4,
    "misuse": 3,
    "prewarm": 1,
    "stats": 2,
}
"""How often each thing is done, in proportion: methods of `actions.Actions`."""


@dataclass(frozen=True)
class Kind:
    """One of the pools, and who uses it.

    Attributes:
        name: What the server, the log lines and the final table call it.
        cap: max_connections.
        threads: How many use it at once, besides those who are struck.
        proxied: Reached through proxies with faults; else directly.
        config: More fields of its ConnectionPoolConfig.
        manager: Its manager_kwargs.
        synced: Whether it has a `reset` that reads until it has its own reply.
        actions: As `ORDINARY`.
    """

    name: str
    cap: int
    threads: int
    proxied: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)
    manager: Mapping[str, Any] = field(default_factory=dict)
    synced: bool = False
    actions: Mapping[str, int] = field(default_factory=lambda: ORDINARY)

    @property
    def limit(self) -> int:
        """The longest message that it takes (B)."""
        return int(self.manager.get("max_message_size", 64 << 20))


_FAST = {"health_check_interval": 1.0, "health_check_timeout": 1.0}

KINDS = (
    Kind("direct", cap=6, threads=10, actions={**ORDINARY, "fork": 2}),
    Kind("weather", cap=6, threads=9, proxied=True, config=_FAST, manager={"connect_timeout": 2.0}),
    Kind("quiet", cap=3, threads=5, config={"reuse": "quiet"}, actions={**ORDINARY, "fire": 60}),
    Kind("synced", cap=4, threads=6, synced=True, actions={**ORDINARY, "twice": 20, "timeout": 10}),
    Kind(
        "small",
        cap=4,
        threads=6,
        proxied=True,
        config={**_FAST, "max_lifetime": 3.0, "max_idle_time": 0.5, "max_waiting": 5},
        manager={"max_message_size": 64 << 10, "compress": True, "connect_timeout": 2.0},
        actions={**ORDINARY, "big": 20},
    ),
)


class Step(NamedTuple):
    """One thing that a thread does."""

    action: str
    secure: bool
    path: str
    size: int
    """B of padding in a message"""
    count: int
    """messages"""
    delay: float
    """s: of a late reply, or how long an impatient borrower waits"""
    coin: bool
    """one way or the other, whatever the action makes of it"""


def choose(rng: Random, kind: Kind) -> Step:
    """Draw what a thread does next."""
    action = rng.choices(list(kind.actions), list(kind.actions.values()))[0]
    return Step(
        action=action,
        secure=rng.random() < 0.5,
        path=rng.choice(PATHS),
        size=rng.choice((0, 10, 200, 2_000, 20_000)),
        count=rng.randint(1, 8),
        delay=0.02 + 0.2 * rng.random() ** 2,
        coin=rng.random() < 0.5,
    )


# --- what the world does to them

WeatherName = Literal[
    "stall",
    "drip",
    "delay",
    "black_hole",
    "cut",
    "reset",
    "cut_after",
    "reset_after",
    "close_all",
    "cut_all",
    "restart",
    "kill",
]
OF_THE_SERVER = frozenset({"close_all", "cut_all", "restart", "kill"})

_WEATHER: Mapping[WeatherName, int] = {
    "stall": 4,
    "drip": 3,
    "delay": 2,
    "black_hole": 4,
    "cut": 3,
    "reset": 3,
    "cut_after": 5,
    "reset_after": 5,
    "close_all": 2,
    "cut_all": 2,
    "restart": 1,
    "kill": 1,
}


class Gust(NamedTuple):
    """Something that happens to the server or on the way to it."""

    pause: float
    """s before it"""
    what: WeatherName
    proxy: int
    """which of the proxies, counted from 0 and modulo their number"""
    direction: str
    seconds: float
    """how long it lasts, or the server is down"""
    amount: int
    """B"""


def weather(seed: int) -> Iterator[Gust]:
    """Endless weather; the server's own troubles are rarer than the proxies'."""
    rng = Random(f"{seed}/weather")
    while True:
        yield Gust(
            pause=rng.uniform(0.1, 1.2),
            what=rng.choices(list(_WEATHER), list(_WEATHER.values()))[0],
            proxy=rng.randrange(1 << 16),
            direction=rng.choice(DIRECTIONS),
            seconds=rng.uniform(0.1, 2.5),
            amount=rng.choice((1, 7, 40, 300, 3_000, 30_000)),
        )


def of_thread(seed: int, name: str) -> Random:
    """The source of one thread's choices."""
    return Random(f"{seed}/{name}")
