"""When a connection is too old: `max_lifetime` with its random spread, and `max_idle_time`."""

from __future__ import annotations

import math
from collections.abc import Callable

from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.connection_states import IDLE
from jetsocket.cooldown import chance
from jetsocket.entry import Entry
from jetsocket.state import State

_JITTER = 0.1  # of max_lifetime, so that they don't all end at once


def expires_at(config: ConnectionPoolConfig) -> float:
    """Until when a connection that is opened now may be lent (monotonic, s)."""
    if config.max_lifetime is None:
        return math.inf
    return monotonic() + config.max_lifetime * (1.0 - chance() * _JITTER)


def close_expired(state: State, retire: Callable[[Entry, float], None]) -> None:
    """Close what has been idle for max_idle_time or has lived for max_lifetime; a chore of the housekeeper.

    Args:
        state: The pool's.
        retire: Takes an idle connection out of service, if it is too old at that time (monotonic, s).
    """
    now = monotonic()
    state.idle_too_long(now)
    if state.config.max_lifetime is None:
        return
    for entry in state.open_entries():
        if now >= entry.expires and entry.place == IDLE:
            retire(entry, now)
        elif now >= entry.expires + state.config.max_lifetime and entry.is_subscribed:
            # It had as long again to end by itself.
            entry.wire.cut("a subscription kept it open for twice max_lifetime")


__all__ = ["close_expired", "expires_at"]
