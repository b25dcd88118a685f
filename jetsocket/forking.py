"""What happens at a fork: the child lets go of its parent's connections, and each pool begins anew."""

from __future__ import annotations

import os
import weakref
from typing import TYPE_CHECKING, Any

from jetsocket.housekeeper import STOP
from jetsocket.process_id import getpid
from jetsocket.state import State

if TYPE_CHECKING:
    from jetsocket.assembly import Assembly

_pools: set[weakref.ref[Assembly[Any]]] = set()
_states: weakref.WeakSet[State] = weakref.WeakSet()


def register(pool: Assembly[Any], state: State) -> None:
    """Remember a pool, for the end of the interpreter and for forks."""
    state.pool = weakref.ref(pool)
    _pools.add(weakref.ref(pool, _pools.discard))
    _states.add(state)


def disown(state: State) -> None:
    """In a forked child: let go of the parent's connections without touching them; wake who waits."""
    state.doorbell.put(STOP)  # the housekeeper is here only if it is a greenlet
    for entry in list(state.entries):
        entry.wire.disown()
        if entry.dispatcher is not None and entry.wire.failure is not None:
            entry.dispatcher.fail(entry.wire.failure)  # the thread that read for all may not be here
    for borrower in [*state.line, *list(state.lent)]:
        borrower.rouse()


def all_pools() -> list[Assembly[Any]]:
    """All pools of this process that are referred to."""
    # No WeakSet: others may make pools meanwhile. CPython copies a plain set in one go.
    return [pool for ref in list(_pools) if (pool := ref()) is not None]


def _after_fork_in_child() -> None:
    for state in list(_states):  # also those of pools that were dropped and are closing still
        if state.pid != getpid():
            disown(state)
    for pool in all_pools():
        pool._begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["all_pools", "disown", "register"]
