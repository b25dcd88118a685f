"""What a pool is told when it is made: its own figures. All of it is checked here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from jetsocket.argument_checks import (
    Check,
    boolean,
    int_from,
    nearest,
    optional_int_from,
    optional_seconds,
    optional_seconds_from_0,
    out_of_range,
    seconds,
    seconds_from_0,
    store_checked,
    wrong_type,
)

__all__ = ["ConnectionPoolConfig", "Reuse"]

Reuse: TypeAlias = Literal["balanced", "quiet", "always"]


def _reuse(name: str, value: object) -> str:
    allowed = get_args(Reuse)
    if not isinstance(value, str):
        raise wrong_type(name, value, f"one of {', '.join(map(repr, allowed))}")
    if value not in allowed:
        raise out_of_range(name, value, f"one of {', '.join(map(repr, allowed))}{nearest(value, allowed)}")
    return value


_CONFIG_CHECKS: Mapping[str, Check] = {
    "max_connections": int_from(1),
    "max_idle_time": seconds,
    "health_check_interval": seconds,
    "acquire_timeout": seconds,
    "health_check_timeout": seconds,
    "max_lifetime": optional_seconds,
    "max_waiting": optional_int_from(0),
    "reuse": _reuse,
    "leak_threshold": optional_seconds,
    "match_ids": boolean,
    "max_connecting": int_from(1),
    "max_per_uri": optional_int_from(1),
    "connect_cooldown": seconds_from_0,
    "ping_after_idle": optional_seconds_from_0,
    "max_in_flight": int_from(1),
}


@dataclass(frozen=True, slots=True)
class ConnectionPoolConfig:
    """The figures of a pool. Times are in seconds, an ``int`` will do; every field is checked.

    Attributes:
        max_connections: Open connections, idle and lent together: a hard cap. At least 1.
        max_idle_time: An idle connection is closed after this, s.
        health_check_interval: Time without traffic before a ping, s.
        acquire_timeout: One deadline over waiting and connecting, s.
        health_check_timeout: Time for the pong, s; a connection that takes longer is dead.
        max_lifetime: Age at which a connection is closed, s, less up to 10 % at random so that they don't all
            end at once; None: no limit.
        max_waiting: Callers in line before the next one is refused at once; 0: none waits; None: no limit.
        reuse: When a returned connection is clean: ``"balanced"`` each id that was sent came back, of
            messages without one as many came as went, and nothing is unread; ``"quiet"`` nothing is unread;
            ``"always"`` the next borrower gets what is unread.
        leak_threshold: Time lent before a warning with the borrower's stack, s; None: no warning.
        match_ids: Tell replies by the ``id`` of the JSON objects they answer: a request returns the message
            with its id, and a connection is kept if each id came back. False for services that do not send
            back the id that they are sent.
        max_connecting: Connections that are being opened at once, to one URI.
        max_per_uri: Open connections to one URI, of ``max_connections``; None: no limit of its own.
        connect_cooldown: For how long acquires of a URI fail at once after its last dial failed and none is
            open, s; doubled at each further failure up to 60 s, with jitter, never shorter than the server's
            ``Retry-After``. 0: the next acquire dials at once.
        ping_after_idle: A connection that was idle for longer must answer a ping before it is lent, s; None:
            the socket is looked at, which costs nothing.
        max_in_flight: Requests of `ConnectionPool.request` that may be under way on one connection at a time,
            each told by its id; more than 1 needs a correlation. `acquire` gets a connection of its own.

    Raises:
        TypeError: A value of the wrong type; a bool is no number.
        ValueError: A value out of range, NaN and infinity included. The message names field and value.
    """

    max_connections: int = 10
    max_idle_time: float = 300.0
    health_check_interval: float = 30.0
    acquire_timeout: float = 10.0
    health_check_timeout: float = 10.0
    max_lifetime: float | None = None
    max_waiting: int | None = None
    reuse: Reuse = "balanced"
    match_ids: bool = True
    leak_threshold: float | None = None
    max_connecting: int = 8
    max_per_uri: int | None = None
    connect_cooldown: float = 0.0
    ping_after_idle: float | None = None
    max_in_flight: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        store_checked(self, "ConnectionPoolConfig.{}", _CONFIG_CHECKS)
