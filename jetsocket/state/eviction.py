"""Which connection makes room for another at a full pool, and when: the one decision, and the look for it.

An idle connection of another URI makes room for the head of a line that has waited or been overtaken enough
(`room_allowed_at`). All methods are called with the lock held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.connection_states import CHECKING, OPENING
from jetsocket.cooldown import Trouble
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry
from jetsocket.state.moves import Moves

if TYPE_CHECKING:
    from jetsocket.quotas import Quota

GRACE = 0.05
"""s that the head of a line waits before a connection of another URI is closed for it, by trial."""

DIAL_GRACE = 0.5
"""s that it waits before a dial is broken off for it, one of several to a URI that has no connection."""

CHECK_GRACE = 1.0
"""s that it waits before one that the user's `check` runs on is closed for it."""

MOST_OVERTAKEN = 5
"""Callers of other URIs that may be served before the head of a line, at a full pool."""


def room_allowed_at(
    *,
    asked_at: float,
    overtaken: int,
    has_connection: bool,
    has_dial: bool,
    trouble: Trouble | None,
    is_checked: bool = False,
) -> float:
    """When another URI's idle connection may be closed for the head of a line, at a full pool (monotonic, s).

    At once if its URI has no connection, open or being opened, or if it has been overtaken too often; else
    after a moment in line. A URI that is not known to have a server takes one slot at a time, and the next
    after a pause.

    Args:
        asked_at: When it came (monotonic, s).
        overtaken: How many callers of other URIs were served before it, though they came later.
        has_connection: Whether a connection to its URI is open.
        has_dial: Whether one is being opened.
        trouble: Its URI's, if its last dial failed.
        is_checked: Whether the user's `check` runs on that connection, which deserves its end.
    """
    if has_dial and not has_connection:
        return float("inf")
    at_once = not has_connection or overtaken >= MOST_OVERTAKEN
    grace = CHECK_GRACE if is_checked else 0.0 if at_once else GRACE
    return max(asked_at + grace, 0.0 if trouble is None else trouble.next_eviction_at)


class Eviction(Moves):
    """Finds what makes room."""

    def _room_elsewhere(self, key: str, quota: Quota | None = None) -> Entry | None:
        """The connection that may make room for that URI: to another URI, for which no caller waits.

        The one that has been idle for longest; else one that may be dead, of this URI too; else one that the
        user's `check` runs on. With a `quota`, of those that have a slot of that limiter's.
        """
        assert self.lock.locked()
        for entry in self.idle:
            if entry.key != key and not self.line.count(entry.key) and is_under(entry, quota):
                return entry
        checked = [entry for entry in self.entries if entry.place == CHECKING and is_under(entry, quota)]
        for entry in sorted(checked, key=lambda each: not each.answer_by):
            if entry.answer_by or (entry.key != key and not self.line.count(entry.key)):
                return entry
        return None

    def _room_allowed_at(self, head: Borrower, room: Entry) -> float:
        """When that connection may be closed for the head of a line (monotonic, s)."""
        assert self.lock.locked()
        return room_allowed_at(
            asked_at=head.asked_at,
            overtaken=head.overtaken,
            has_connection=self.idle.open(head.key) > 0,
            has_dial=self.idle.opening(head.key) > 0,
            trouble=self.troubles.of(head.key),
            is_checked=room.place == CHECKING and not room.answer_by,
        )

    def _dial_too_many(self, key: str) -> Dial | None:
        """The latest dial to another URI that has no connection, and several dials or a failed one before."""
        assert self.lock.locked()
        for dial in reversed(self.dials):
            entry = dial.entry
            if dial.key == key or entry is None or entry.place != OPENING or self.idle.open(dial.key):
                continue
            if self.idle.opening(dial.key) > 1 or (self.troubles.of(dial.key) and not self.troubles.of(key)):
                return dial
        return None

    def _closing_one_of(self, key: str) -> Entry | None:
        """A connection that has to be gone before another to its URI is opened, which gets its slot.

        The server sees those that are closing, too: they count for `max_per_uri`.
        """
        assert self.lock.locked()
        most = self.config.max_per_uri
        if most is None:
            return None
        closing = [entry for entry in self.closing if entry.key == key and entry.wanted_by is None]
        if self.idle.open(key) + self.idle.opening(key) + len(closing) < most:
            return None
        return closing[0] if closing else None


def is_under(entry: Entry, quota: Quota | None) -> bool:
    """Whether a connection has a slot of that limiter's; None: whichever."""
    return quota is None or (entry.grant is not None and entry.grant.quota is quota)


__all__ = [
    "CHECK_GRACE",
    "DIAL_GRACE",
    "GRACE",
    "MOST_OVERTAKEN",
    "Eviction",
    "is_under",
    "room_allowed_at",
]
