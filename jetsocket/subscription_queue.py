"""What was pushed for one subscription and not read yet: a bounded queue, and what becomes of the rest."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Literal, TypeAlias

from jetsocket.exceptions import SubscriptionOverflowError
from jetsocket.reading_turns import Mailbox
from jetsocket.text import short_repr

Overflow: TypeAlias = Literal["error", "drop_oldest"]


class Feed(Mailbox[Any]):
    """What is pushed for one subscription, at most `most` at a time.

    Attributes:
        topics: What it has opened.
        sent: The message that did.
        dropped: How many were lost because the queue was full.
        owner: The borrower whose it is.
        early: What came before it was open, for topics that another subscription had; by identity.
    """

    __slots__ = ("_last", "dropped", "early", "most", "overflow", "owner", "sent", "topics", "where")

    def __init__(self, most: int, overflow: Overflow, where: str) -> None:
        """Keep at most so many that were not taken; `where` is the URI as it may be shown."""
        super().__init__()
        if isinstance(most, bool) or not isinstance(most, int):
            raise TypeError(f"max_queue must be an int, not {short_repr(most)}")
        if most < 1:
            raise ValueError(f"max_queue must be 1 or more, not {short_repr(most)}")
        if overflow not in ("error", "drop_oldest"):
            raise ValueError(f"overflow must be 'error' or 'drop_oldest', not {short_repr(overflow)}")
        self.most = most
        self.overflow: Overflow = overflow
        self.where = where
        self.topics: dict[Hashable, None] = {}
        self.sent: Any = None
        self.dropped = 0
        self.owner: object = None
        self.early: dict[int, tuple[Any, list[Hashable]]] = {}
        self._last: object = None  # so that one that is handed out again, after a strike, is not there twice

    def put(self, message: Any, mark: object) -> None:
        """Add what came, once for each `mark`; for the thread that leads."""
        if self.is_ended or self._last is mark:
            return
        if len(self.arrived) >= self.most:
            self.dropped += 1
            if self.overflow == "error":
                self.end(SubscriptionOverflowError(_overflow_text(self), dropped=self.dropped))
                return
            if self.arrived:
                self.arrived.popleft()
        self.arrived += (message,)  # no call: no exception comes between this and the next line
        self._last = mark
        self.ring()


def _overflow_text(feed: Feed) -> str:
    return (
        f"a subscription at {feed.where} was not read in time: {feed.most} messages wait already"
        " (max_queue); read faster, allow more, or let the oldest go (overflow='drop_oldest')"
    )


__all__ = ["Feed", "Overflow"]
