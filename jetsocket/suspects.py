"""Connections that may be dead: those idle have to answer a ping before they are lent again.

When one has ended without a word, those to the same URI may have, too; after a suspend of the machine, all.
"""

from __future__ import annotations

from jetsocket.clock import SHORTEST_SLEEP, monotonic, slept
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionClosedError
from jetsocket.state import State

_PATIENCE = 1.0  # s, unless health_check_timeout is less


def patience(state: State) -> float:
    """How long a connection has to answer (s)."""
    return min(_PATIENCE, state.config.health_check_timeout)


def ended_silently(entry: Entry) -> bool:
    """Whether a connection has ended without a close frame, and not by an error of the server's."""
    wire = entry.wire
    return wire.reader.close is None and isinstance(wire.failure, ConnectionClosedError)


def ping_siblings(state: State, entry: Entry) -> None:
    """Ping the idle connections to the URI of one that has ended silently."""
    _ping(state, state.suspect(entry.key, monotonic() + patience(state)))


def ping_after_sleep(state: State, before: float) -> bool:
    """Ping all idle connections if the machine has been suspended.

    Args:
        state: The pool's.
        before: What `slept` said then (s).

    Returns:
        Whether it has been.
    """
    now = slept()
    if now - before < SHORTEST_SLEEP:
        return False
    _ping(state, state.suspect_all(now, monotonic() + patience(state)))
    return True


def _ping(state: State, suspects: list[Entry]) -> None:
    """Ask them for a sign of life; the user's `check` is the housekeeper's to call."""
    for suspect in suspects if not state.has_check else ():
        suspect.wire.send_ping()  # if it does not go out, the housekeeper sends one


__all__ = ["ended_silently", "patience", "ping_after_sleep", "ping_siblings"]
