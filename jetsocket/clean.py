"""The rule that says whether a connection may go to another borrower: at its return, and while it is idle."""

from __future__ import annotations

from jetsocket.clock import SHORTEST_SLEEP, with_sleep
from jetsocket.config import ConnectionPoolConfig, Reuse
from jetsocket.entry import Entry
from jetsocket.known_uris import COUNTS_ALONE, UNREAD_WHILE_IDLE, KnownUris


def why_unclean(  # one fact a line: to split the rule would hide it
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
        unread: A message has come that no borrower has read.
        sent: Messages sent in this lease, without tagged ones (those with an id of their own; see `ids`).
        received: Messages received in this lease that carry no id of a tagged one.
        tagged: Tagged messages sent in this lease.
        unanswered: An id of this lease has not come back.
        late: An answer came to what an earlier lease had asked: more may.
        again: An id of this lease came back twice: more may.
        unasked: Messages have come from that URI that nothing had asked for, so that counts prove nothing.
    """
    if (why := _why_unfit(alive=alive, half_sent=half_sent, discarded=discarded)) is not None:
        return why
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


def _why_unfit(*, alive: bool, half_sent: bool, discarded: bool) -> str | None:
    """What no setting and no id makes good."""
    if discarded:
        return "discarded"
    if not alive:
        return "closed"
    return "half sent" if half_sent else None


def why_unsettled(
    *, alive: bool, half_sent: bool, discarded: bool, unanswered: bool, subscribed: bool
) -> str | None:
    """The clean rule of a pool with a correlation, where ids tell what is whose.

    Args:
        alive: Neither side has ended the connection.
        half_sent: Part of a frame went out and the rest did not.
        discarded: The borrower asked for it.
        unanswered: The lease sent something with `send`, and what that asks for has not come back.
        subscribed: A subscription is open, or could not be ended.
    """
    if (why := _why_unfit(alive=alive, half_sent=half_sent, discarded=discarded)) is not None:
        return why
    if subscribed:
        return "subscribed"
    return "unanswered" if unanswered else None


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
    """`why_stale` of an entry as it is; the caller has just looked what came on its wire."""
    wire = entry.wire
    return why_stale(
        reuse,
        alive=wire.failure is None,
        half_sent=wire.half_sent if entry.dispatcher is None else wire.left_half_way,
        half_read=wire.half_read,
        unread=wire.unread,
        expired=now >= entry.expires,
    )


def may_be_lent(
    entry: Entry, config: ConnectionPoolConfig, known: KnownUris, now: float, slept: float
) -> bool:
    """Whether an idle connection is certainly fit to be lent; False: ask `why_not_lent` and `owes_a_ping`.

    Args:
        entry: The connection.
        config: The pool's.
        known: What the pool has found out about its URIs.
        now: Monotonic, s.
        slept: What was known of suspends of the machine before the connection was taken (s).
    """
    idle_for = now - entry.idle_since
    return (
        idle_for < config.max_idle_time
        and (config.ping_after_idle is None or idle_for < config.ping_after_idle)
        and now < entry.expires
        and not (entry.by_counts and entry.key in known.unasked)
        and with_sleep() - now < slept + SHORTEST_SLEEP
        and entry.wire.stays_at_rest()
    )


def why_not_lent(
    entry: Entry, config: ConnectionPoolConfig, known: KnownUris, now: float | None = None
) -> str | None:
    """Look at an idle connection that the caller owns: why it must not be lent; None: it may.

    Args:
        entry: The connection.
        config: The pool's.
        known: What the pool has found out about its URIs.
        now: Monotonic, s; None: whatever its age, for a borrower has it already.
    """
    # The housekeeper would close it, but comes by only now and then.
    fresh = now is None or now - entry.idle_since < config.max_idle_time
    counted = entry.by_counts and known.relies_on_counts(entry)
    if fresh and not counted and (now is None or now < entry.expires) and entry.wire.at_rest():
        return None  # `stale` would say the same, and nearly always does
    quick = config.reuse != "always"  # then it does not matter how much is unread
    if not entry.wire.look(quick=quick) and entry.dispatcher is None:
        return "in use"  # with a dispatcher, a worker may be handing out what came
    why = stale(entry, config.reuse, float("-inf") if now is None else now)
    if why is None and counted:
        return COUNTS_ALONE
    return why if why is not None or fresh else "idle"


def owes_a_ping(entry: Entry, config: ConnectionPoolConfig, now: float) -> bool:
    """Whether an idle connection has been silent for so long that it must answer a ping before it is lent."""
    patience = config.ping_after_idle
    return patience is not None and now - max(entry.idle_since, entry.wire.last_heard) >= patience


__all__ = ["may_be_lent", "owes_a_ping", "stale", "why_not_lent", "why_stale", "why_unclean", "why_unsettled"]
