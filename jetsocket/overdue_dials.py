"""Dials whose time is over though their thread has not come back: they are given up, and told of.

These are chores of the housekeeper. How many such threads there may be is decided in `stuck_threads`.
"""

from __future__ import annotations

import logging

from jetsocket.clock import monotonic
from jetsocket.dial_order import Dial
from jetsocket.exceptions import TimeoutError
from jetsocket.state import State
from jetsocket.stuck_threads import have_come_back, place_of, too_many, where, why

_PATIENCE = 1.0  # s before it is said that a thread hangs: it may only be late, on a busy machine


def give_up(state: State) -> None:
    """End those whose time is over: their slots are free again, and their callers are told."""
    for dial in state.overdue_dials(monotonic()):
        if (entry := dial.entry) is not None:
            entry.wire.cut("it was not opened in time")
        dial.hangs_in = place_of(dial)
        lasted = monotonic() - dial.began_at
        told = f"cannot connect to {dial.target.redacted}: {why(dial, lasted)}"
        state.failed(dial, entry, TimeoutError(told, operation="connect", timeout=lasted))


def mind_left_behind(state: State) -> None:
    """Tell of threads that hang in dials; strike those off that came back, and could not say so."""
    if not state.left_behind:
        return
    for dial in have_come_back(list(state.left_behind)):
        state.came_back(dial)
    now = monotonic()
    for dial in list(state.left_behind):
        if not dial.is_told and now >= dial.overdue_at + _PATIENCE:
            dial.is_told, dial.hangs_in = True, place_of(dial)
            _warn(state, dial, now)


def _warn(state: State, dial: Dial, now: float) -> None:
    is_last = too_many(state.left_behind, dial.key)
    state.log.note(
        logging.WARNING,
        "[%s] a thread that was to connect to %s hangs %s, for %.3g s. Its slot is free again; %d such"
        " threads are left behind%s. Give what they wait for a timeout of its own",
        state.name,
        dial.target.redacted,
        where([dial]),
        now - dial.began_at,
        len(state.left_behind),
        ", and none is started for it until one comes back" if is_last else "",
    )


__all__ = ["give_up", "mind_left_behind"]
