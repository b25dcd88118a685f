"""How a pool ends: `close`, the end of the interpreter, and the fork, after which a child begins anew."""

from __future__ import annotations

import atexit
import os
import weakref
from logging import DEBUG
from typing import TYPE_CHECKING, Any

from jetsocket.clock import monotonic
from jetsocket.closing import close_all
from jetsocket.housekeeper import ABANDONED, STOP
from jetsocket.lending import Lending
from jetsocket.places import IDLE
from jetsocket.process import getpid
from jetsocket.state import State

if TYPE_CHECKING:
    from jetsocket.assembly import Assembly

_EXIT_PATIENCE = 0.1  # s, for the closing handshakes of all pools together when the interpreter ends
_JOIN_PATIENCE = 1.0  # s for the pool's threads to end

_pools: set[weakref.ref[Assembly[Any]]] = set()
_states: weakref.WeakSet[State] = weakref.WeakSet()


def register(pool: Assembly[Any], state: State) -> None:
    """Remember a pool, for the end of the interpreter and for forks."""
    _pools.add(weakref.ref(pool, _pools.discard))
    _states.add(state)


def close(lending: Lending, limit: float, *, again: bool) -> None:
    """Close a pool: all connections within `limit` (s), those that are lent at once.

    Args:
        lending: Its inner side.
        limit: s for all closing handshakes together.
        again: Whether an exception struck the last try.
    """
    state = lending.state
    taken = state.close(again=again)
    if taken is None:
        return
    until = monotonic() + limit
    closing, out = taken
    for entry in out:
        entry.wire.dismiss("the pool was closed")
    for borrower in list(state.lent):  # the leases hold nothing any more, and may never be released
        if state.claim(borrower):
            borrower.reason, borrower.gone = "pool closed", True
            borrower.lent_for = max(1e-9, monotonic() - borrower.taken_at)
            state.come_back(borrower)
    for entry in closing:
        entry.close_by = until  # of an interrupted close() the housekeeper does the rest
    close_all(closing, limit)
    state.forget(closing)
    state.log.note(DEBUG, "[%s] closed", state.name)
    state.doorbell.put(STOP)
    keeper, lending.housekeeper = lending.housekeeper, None
    if keeper is not None and not keeper.is_this_thread:
        keeper.join(_JOIN_PATIENCE)
    lending.opening.join(monotonic() + _JOIN_PATIENCE)
    if not state.log.muted:
        state.log.emit()


def abandon(lending: Lending) -> None:
    """The pool object is gone: the housekeeper closes what is left. Without one, nothing is open."""
    # It is there yet when close() was interrupted, too: then it has not been told to stop.
    if not (lending.state.closed and lending.housekeeper is None):
        lending.state.doorbell.put(ABANDONED)


def leave(lending: Lending, deadline: float) -> None:
    """When the interpreter ends: close each connection that no thread is using just now.

    No caller is woken and nothing is refused: a daemon thread would have time to print the error.
    """
    state = lending.state
    state.log.muted = True
    if not state.entries:
        return
    closing = list(state.closing_entries())
    idle = [entry for entry in state.open_entries() if entry.place == IDLE and state.take_for_check(entry)]
    lent = [borrower.entry for borrower in list(state.lent) if borrower.entry is not None]
    unused = [entry for entry in lent if entry.wire.take_leave()]
    close_all([*closing, *idle, *unused], max(0.0, deadline - monotonic()))


def disown(state: State) -> None:
    """In a forked child: let go of the parent's connections without touching them; wake who waits."""
    state.doorbell.put(STOP)  # the housekeeper is here only if it is a greenlet
    for entry in list(state.entries):
        entry.wire.disown()
    for borrower in [*state.line, *list(state.lent)]:
        borrower.rouse()


def _all_pools() -> list[Assembly[Any]]:
    # No WeakSet: others may make pools meanwhile. CPython copies a plain set in one go.
    return [pool for ref in list(_pools) if (pool := ref()) is not None]


def _after_fork_in_child() -> None:
    for state in list(_states):  # also those of pools that were dropped and are closing still
        if state.pid != getpid():
            disown(state)
    for pool in _all_pools():
        pool._begin_anew()


def _close_at_exit() -> None:
    deadline = monotonic() + _EXIT_PATIENCE
    for pool in _all_pools():
        leave(pool._begin_anew(), deadline)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_at_exit)

__all__ = ["abandon", "close", "disown", "leave", "register"]
