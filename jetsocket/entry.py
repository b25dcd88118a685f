"""The record of one open connection, and the rule that says whether it may go to another borrower."""

from __future__ import annotations

import itertools
from typing import Literal

from jetsocket.ids import SentIds
from jetsocket.uris import Target
from jetsocket.wire.websocket import WebSocket

Reuse = Literal["balanced", "quiet", "always"]

UNREAD_WHILE_IDLE = "unread while idle"
COUNTS_ALONE = "counts alone"

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
        created: When it was opened (monotonic, s).
        expires: When its lifetime ends (monotonic, s).
        idle_since: When it last became idle (monotonic, s); 0.0 if it never was.
        uses: How often it was lent.
        sent: Messages sent when the present lease began, so that `configure`'s do not count.
        received: Messages received when the present lease began.
        ids: The last ids that it was sent; None before the first.
        by_counts: Whether a lease came back with nothing but counts to say that it was clean.
        close_by: Until when its closing handshake may take (monotonic, s).
        stalled_at_bytes: How many B the server had taken when a ping found no room; -1 before.
        stalled_since: When that was (monotonic, s).
        taken_at_ping: How many B the server had taken when it was last asked for a sign of life.
        checking: Whether the user's `check` runs on it.
    """

    __slots__ = (
        "by_counts",
        "checking",
        "close_by",
        "created",
        "expires",
        "id",
        "idle_since",
        "ids",
        "key",
        "received",
        "sent",
        "stalled_at_bytes",
        "stalled_since",
        "taken_at_ping",
        "target",
        "uncounted_received",
        "uncounted_sent",
        "uses",
        "wire",
    )

    def __init__(self, target: Target, wire: WebSocket, expires: float) -> None:
        """Record a connection that is about to be opened."""
        self.id = next(_ids)
        self.target = target
        self.key = key_of(target)
        self.wire = wire
        self.created = 0.0
        self.expires = expires
        self.idle_since = 0.0
        self.uses = 0
        self.sent = self.received = 0
        self.uncounted_sent = self.uncounted_received = 0
        self.ids: SentIds | None = None
        self.by_counts = False
        self.close_by = 0.0
        self.checking = False
        self.stalled_at_bytes = -1
        self.stalled_since = 0.0
        self.taken_at_ping = 0

    def count_from_here(self) -> None:
        """Begin a lease: what came and went before counts for nobody in it."""
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
        return f"<Entry {self.id} {self.target.redacted} uses={self.uses}>"


def why_unclean(  # noqa: PLR0912  # one fact a line: to split the rule would hide it
    reuse: Reuse,
    *,
    alive: bool,
    half_sent: bool,
    discarded: bool,
    failed: bool,
    timed_out: bool,
    half_read: bool,
    unread: bool,
    sent: int,
    received: int,
    tagged: int = 0,
    unanswered: bool = False,
    late: bool = False,
    again: bool = False,
    unasked: bool = False,
) -> str | None:
    """The clean rule: why a connection that comes back must not go to another borrower; None: it may.

    Args:
        reuse: The pool's setting.
        alive: Neither side has ended the connection.
        half_sent: Part of a frame went out and the rest did not.
        discarded: The borrower asked for it.
        failed: An exception left the borrower's `with` block.
        timed_out: An operation of the lease ran out of time: its reply may still come.
        half_read: Part of a message has come.
        unread: A message has come that nobody read.
        sent: Messages sent in this lease, without tagged ones (those with an id of their own; see `ids`).
        received: Messages received in this lease that carry no id of a tagged one.
        tagged: Tagged messages sent in this lease.
        unanswered: An id of this lease has not come back.
        late: An answer came to what an earlier lease had asked: more may.
        again: An id of this lease came back twice: more may.
        unasked: Messages have come from that URI that nothing had asked for, so that counts prove nothing.
    """
    if discarded:
        return "discarded"
    if not alive:
        return "closed"
    if half_sent:
        return "half sent"
    if late:
        return "late reply"
    if reuse == "always":
        return None
    if timed_out:  # first, for it often is the exception, too
        return "timeout"
    if failed:
        return "exception"
    if half_read:
        return "half read"
    if unread:
        return "unread"
    if reuse == "quiet":
        return None
    if unanswered:
        return "unanswered"
    if again:
        return "answered twice"
    if tagged and not sent:
        return None  # each id came back: what else came was not asked for
    if sent != received:
        return "unbalanced"
    return COUNTS_ALONE if sent and unasked else None


def why_stale(
    reuse: Reuse, *, alive: bool, half_sent: bool, half_read: bool, unread: bool, expired: bool
) -> str | None:
    """Why an idle connection must not be lent (any more); None: it may. The arguments as in `why_unclean`."""
    if not alive:
        return "closed"
    if half_sent:
        return "half sent"
    if expired:
        return "lifetime"
    if reuse != "always" and (half_read or unread):
        return UNREAD_WHILE_IDLE
    return None


def stale(entry: Entry, reuse: Reuse, now: float) -> str | None:
    """`why_stale` of an entry as it is; somebody has just looked what came on its wire."""
    wire = entry.wire
    return why_stale(
        reuse,
        alive=wire.failure is None,
        half_sent=wire.half_sent,
        half_read=wire.half_read,
        unread=wire.unread,
        expired=now >= entry.expires,
    )
