"""The record of one connection of a pool: where it leads, who has it, and in which place it is."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from jetsocket.connection_states import MOVES, OPENING, Place
from jetsocket.ids import SentIds
from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.borrower import Borrower
    from jetsocket.dial_order import Dial
    from jetsocket.dispatch import Dispatcher
    from jetsocket.quotas import Grant
    from jetsocket.wire.websocket import WebSocket

_ids = itertools.count(1)


def key_of(target: Target) -> str:
    """What two connections have in common that may stand in for each other: the URI and who asks.

    Holds a password if the URI did: never to be shown.
    """
    return target.uri if target.authorization is None else f"{target.uri} {target.authorization}"


class Entry:
    """One connection of a pool, from the moment that it is dialled to the moment that it is closed.

    Attributes:
        id: Unique in this process.
        target: Where it leads.
        key: Names its idle queue; see `key_of`.
        wire: The connection itself.
        place: Where it is now; changed by `move` alone.
        borrower: The one it is lent to.
        sharers: Those that share it, while its place is *shared*.
        requests: How many of those have a request under way, and no subscription.
        ends_with: Why no other is to share it, and it is closed after the last; None: it may be shared.
        wanted_by: The dial that gets its slot when it is closed.
        created: When it was opened (monotonic, s); 0.0 before.
        expires: When its lifetime ends (monotonic, s).
        idle_since: When it last became idle (monotonic, s); 0.0 if it never was.
        uses: How often it was lent.
        is_outdated: Whether `clear` was called meanwhile, so that it is not lent again.
        grant: The limiter's slot that it has, None without a limiter.
        is_renewed: Whether it was refused, and `auth` has other credentials to try.
        sent: Messages sent when the present lease began, so that `configure`'s do not count.
        received: Messages received when the present lease began.
        ids: The last ids that it was sent; None before the first.
        dispatcher: Gives each message to its asker, if the pool has a correlation; None before it is open.
        by_counts: Whether a lease came back with nothing but counts to say that it was clean.
        close_by: Until when its closing handshake may take (monotonic, s).
        answer_by: Until when it has to answer a ping to be lent again (monotonic, s); 0.0 when it does not.
        suspected_at: Since when it has to; what is heard after that is its answer (monotonic, s).
        stalled_at_bytes: How many B the server had taken when a ping found no room; -1 before.
        stalled_since: When that was (monotonic, s).
        out_with_ping: How many B had gone out with the last ping; -1 before the first.
        taken_at_ping: How many B the server had taken when it was last asked for a sign of life.
        was_opened: Whether it was open and ready to be lent, and listeners have not been told of its end.
        closed_for: Why it is closed, or going to be.
    """

    __slots__ = (
        "answer_by",
        "borrower",
        "by_counts",
        "close_by",
        "closed_for",
        "created",
        "dispatcher",
        "ends_with",
        "expires",
        "grant",
        "id",
        "idle_since",
        "ids",
        "is_outdated",
        "is_renewed",
        "key",
        "out_with_ping",
        "place",
        "received",
        "requests",
        "sent",
        "sharers",
        "stalled_at_bytes",
        "stalled_since",
        "suspected_at",
        "taken_at_ping",
        "target",
        "uncounted_received",
        "uncounted_sent",
        "uses",
        "wanted_by",
        "was_opened",
        "wire",
    )

    def __init__(self, target: Target, wire: WebSocket, expires: float = float("inf")) -> None:
        """Record a connection that is about to be opened."""
        self.id = next(_ids)
        self.target = target
        self.key = key_of(target)
        self.wire = wire
        self.place: Place = OPENING
        self.borrower: Borrower | None = None
        self.sharers: dict[Borrower, None] = {}
        self.requests = 0
        self.ends_with: str | None = None
        self.wanted_by: Dial | None = None
        self.created = 0.0
        self.expires = expires
        self.idle_since = 0.0
        self.uses = 0
        self.is_outdated = self.is_renewed = False
        self.grant: Grant | None = None
        self.sent = self.received = 0
        self.uncounted_sent = self.uncounted_received = 0
        self.ids: SentIds | None = None
        self.dispatcher: Dispatcher | None = None
        self.by_counts = False
        self.close_by = self.answer_by = self.suspected_at = 0.0
        self.stalled_at_bytes = self.out_with_ping = -1
        self.stalled_since = 0.0
        self.taken_at_ping = 0
        self.was_opened = False
        self.closed_for = "not wanted"

    def move(self, to: Place) -> None:
        """Go to another place; the caller holds the lock of the pool's state."""
        assert to in MOVES[self.place], f"{self!r} can't go from {self.place} to {to}"
        self.place = to

    @property
    def is_subscribed(self) -> bool:
        """Whether a subscription is open on it."""
        return self.dispatcher is not None and not self.dispatcher.topics.is_empty

    def count_from_here(self) -> None:
        """Begin a lease: what came and went before does not count in it."""
        self.sent, self.received = self.wire.messages_sent, self.wire.reader.received

    def forgive(self) -> None:
        """Leave what callbacks sent and received since `count_from_here` out of the statistics."""
        self.uncounted_sent += self.wire.messages_sent - self.sent
        self.uncounted_received += self.wire.messages_received - self.received
        self.count_from_here()

    @property
    def messages_sent(self) -> int:
        """Messages that borrowers sent."""
        return self.wire.messages_sent - self.uncounted_sent

    @property
    def messages_received(self) -> int:
        """Messages that came for borrowers."""
        return self.wire.messages_received - self.uncounted_received

    def __repr__(self) -> str:
        return f"<Entry {self.id} {self.place} {self.target.redacted} uses={self.uses}>"


__all__ = ["Entry", "key_of"]
