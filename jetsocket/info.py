"""What is told of a lease and of a connection: read at one moment, of no effect on either."""

from __future__ import annotations

from dataclasses import dataclass

from jetsocket.borrower import Borrower
from jetsocket.connection_states import Place
from jetsocket.entry import Entry

_new = object.__new__


@dataclass(frozen=True)
class LeaseInfo:
    """A connection that is lent.

    Attributes:
        id: The connection's.
        uri: Where it leads (redacted).
        thread: Name of the thread that acquired it.
        age: How long it has been lent (s).
        where: Function, file and line that acquired it.
        doing: What its borrower waits for now: "in recv for 2.9 s", "in send for 1.2 s", both, or "in your
            code".
    """

    id: int
    uri: str
    thread: str
    age: float
    where: str
    doing: str

    def __str__(self) -> str:
        return (
            f"connection {self.id} to {self.uri} for {self.age:.3g} s, by thread {self.thread!r},"
            f" acquired in {self.where}, {self.doing}"
        )


@dataclass(frozen=True)
class ConnectionInfo:
    """A connection of a pool.

    Attributes:
        id: Unique in this process; the lease's `id`.
        uri: Where it leads (redacted).
        place: "opening", "idle", "lent", "shared", "checking" or "closing"; "gone" where a listener is told
            of its end.
        age: How long it has been open (s); 0.0 before.
        uses: How often it was lent.
        latency: Round trip of its last ping (s); None before the first.
    """

    id: int
    uri: str
    place: Place
    age: float
    uses: int
    latency: float | None


def lease_info(borrower: Borrower, now: float) -> LeaseInfo | None:
    """Tell of a borrower; None if it has no connection any more."""
    entry = borrower.entry
    if entry is None:
        return None
    file, line, function = borrower.where()
    return LeaseInfo(
        id=entry.id,
        uri=entry.target.redacted,
        thread=borrower.thread_name,
        age=now - borrower.taken_at,
        where=f"{function} ({file}:{line})",
        doing=_doing(entry, now),
    )


def _doing(entry: Entry, now: float) -> str:
    if entry.sharers:
        return "in a request, beside others"
    waits = ("send", entry.wire.blocked_since), ("recv", entry.wire.waits_since)
    told = [f"in {name} for {max(0.0, now - since):.3g} s" for name, since in waits if since is not None]
    return " and ".join(told) or "in your code"


def connection_info(entry: Entry, now: float) -> ConnectionInfo:
    """Tell of a connection."""
    # Listeners are given one at each acquire and release, and the constructor of a frozen dataclass takes
    # twice as long.
    info = _new(ConnectionInfo)
    info.__dict__.update(
        id=entry.id,
        uri=entry.target.redacted,
        place=entry.place,
        age=now - entry.created if entry.created else 0.0,
        uses=entry.uses,
        latency=entry.wire.latency,
    )
    return info


__all__ = ["ConnectionInfo", "LeaseInfo", "connection_info", "lease_info"]
