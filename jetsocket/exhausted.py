"""What a caller is told for whom there was no connection."""

from __future__ import annotations

import math
from functools import partial

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.connection import PooledConnection
from jetsocket.exceptions import PoolExhaustedError
from jetsocket.interrupts import is_alarm
from jetsocket.notebook import what_keeps
from jetsocket.quotas import Quota
from jetsocket.state import Exhaustion, State
from jetsocket.user_errors import told

_MOST_HOLDERS = 3


def exhausted(state: State, borrower: Borrower, *, at_once: bool) -> PoolExhaustedError:
    """Count a refusal, and say why nothing was to be had, and what to do about it.

    Args:
        state: The pool's.
        borrower: Who is refused.
        at_once: Whether `max_waiting` is why.
    """
    from jetsocket.info import lease_info  # it is there since the pool was made

    figures, config, now = state.exhaustion(borrower), state.config, monotonic()
    infos = (lease_info(holder, now) for holder in figures.lent)
    holders = [info for info in infos if info is not None]
    own = [each for each in figures.lent if each.thread == borrower.thread and each is not borrower]
    where = "?" if borrower.target is None else borrower.target.redacted
    text = (
        f"pool {state.name!r} has no connection to {where} to lend: {why(borrower, config, at_once=at_once)}"
    )
    text += f" ({now_there(figures, now)}; max_connections={config.max_connections})"
    if own:
        file, line, function = own[0].where()
        text += (
            f"; this very thread holds {len(own)} of them (one acquired in {function},"
            f" {file}:{line}), and can't release any while it waits"
        )
    shown = holders[:_MOST_HOLDERS]
    if shown:
        text += "; lent for longest: " + "; ".join(map(str, shown))
    if shown and (kept := what_keeps(partial(_is_lent, state))) is not None:
        text += f"; {kept}"
    limiter = None if state.quotas is None else full_limiter(state.quotas.known(borrower.target))
    if limiter is not None:
        text += f"; {limiter}"
    if figures.last_connect_error is not None:
        text += f"; the last attempt to connect failed: {figures.last_connect_error}"
    return PoolExhaustedError(
        f"{text}. {remedy(figures, config, borrower, at_once=at_once, is_limited=limiter is not None)}",
        max_connections=config.max_connections,
        timeout=None if math.isinf(borrower.limit) else borrower.limit,
        waiting=figures.waiting,
        idle=figures.idle,
        last_connect_error=figures.last_connect_error,
        connecting=figures.opening,
        holders=tuple(map(str, shown)),
    )


def _is_lent(state: State, value: object) -> bool:
    return isinstance(value, PooledConnection) and value._borrower in state.lent


def why(borrower: Borrower, config: ConnectionPoolConfig, *, at_once: bool) -> str:
    """Which limit an acquire ran into that got no connection."""
    if borrower.limit <= 0:
        return "none that is idle, and timeout=0 waits for none"
    if at_once:
        return f"no place in line, for which max_waiting={config.max_waiting} is the limit"
    return f"none within {borrower.limit:g} s"


def now_there(figures: Exhaustion, now: float) -> str:
    """The pool in figures."""
    opening = f"{figures.opening} being opened"
    if figures.opening_since is not None:
        opening += f" for {now - figures.opening_since:.3g} s"
    return f"{len(figures.lent)} lent, {figures.idle} idle, {opening}, {figures.waiting} waiting"


def full_limiter(quota: Quota | None) -> str | None:
    """What a limiter says of itself that has no slot; None: it has, or there is none."""
    if quota is None or not quota.is_full:
        return None
    try:
        stats = dict(quota.limiter.stats())
    except Exception as error:  # the user's code
        if is_alarm(error, users_code=True):
            raise
        return f"the limiter {quota.name!r} has no slot, and its stats() failed: {told(error)}"
    said = [f"its limit is {stats['limit']}"] if "limit" in stats else []
    said += [f"{stats['held']} of its slots are held by this process"] if "held" in stats else []
    said += [f"{stats['others']} by others"] if stats.get("others") is not None else []
    said += [str(stats["note"])] if stats.get("note") else []
    return f"the limiter {quota.name!r} has no slot" + (f": {', '.join(said)}" if said else "")


def remedy(
    figures: Exhaustion,
    config: ConnectionPoolConfig,
    borrower: Borrower,
    *,
    at_once: bool,
    is_limited: bool = False,
) -> str:
    """What to do about it."""
    if borrower.limit <= 0:
        return "Ask again in a moment, or give a timeout"
    if at_once and figures.opening and len(figures.lent) < config.max_connections:
        return "Wait for those that are being opened: let more callers wait (max_waiting), or ask again"
    if at_once:
        return "Release sooner, raise max_connections, or let more callers wait (max_waiting)"
    if is_limited:
        return "Release sooner, here and where the limiter's other slots are, raise its limit, or wait longer"
    if config.max_per_uri is not None and figures.open_there >= config.max_per_uri:
        return "Release sooner, raise max_per_uri, or wait longer (acquire_timeout)"
    if len(figures.lent) < config.max_connections:
        if figures.opening:
            return (
                "The server takes its time to accept connections: see why, or wait longer (acquire_timeout)"
            )
        if figures.last_connect_error is not None:
            return "No other connection can be opened for now: release sooner, or wait (acquire_timeout)"
    return "Release sooner, raise max_connections, or wait longer (acquire_timeout)"


__all__ = ["exhausted", "now_there", "remedy", "why"]
