"""The places that a connection of a pool can be in, and the moves between them that are allowed.

A connection is in one place at a time. In which list it stands follows from that, never the other way round.

- **opening**: a thread of the pool dials, does the upgrade, runs `configure`.
- **idle**: it waits for its next borrower.
- **lent**: a borrower has it, until what it did is judged and booked.
- **shared**: any number of callers, `max_in_flight` at most, have a request under way on it.
- **checking**: a worker runs the user's `check` on it, or it owes a ping before it may be lent.
- **closing**: no borrower gets it any more; its closing handshake is under way.
- **gone**: it is closed, and its slot is free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

Place: TypeAlias = Literal["opening", "idle", "lent", "shared", "checking", "closing", "gone"]

OPENING: Final = "opening"
IDLE: Final = "idle"
LENT: Final = "lent"
SHARED: Final = "shared"
CHECKING: Final = "checking"
CLOSING: Final = "closing"
GONE: Final = "gone"

MOVES: Mapping[Place, frozenset[Place]] = {
    OPENING: frozenset((IDLE, LENT, SHARED, CLOSING, GONE)),
    IDLE: frozenset((LENT, SHARED, CHECKING, CLOSING)),
    # To itself: from one borrower straight to the next. To CHECKING: the borrower had no time for its pong.
    LENT: frozenset((LENT, SHARED, IDLE, CHECKING, CLOSING)),
    SHARED: frozenset((SHARED, LENT, IDLE, CHECKING, CLOSING)),
    CHECKING: frozenset((IDLE, LENT, SHARED, CLOSING)),
    CLOSING: frozenset((GONE,)),
    GONE: frozenset(),
}

__all__ = ["CHECKING", "CLOSING", "GONE", "IDLE", "LENT", "MOVES", "OPENING", "SHARED", "Place"]
