"""What every lease has: its borrower, its connection, its limits of time, and what it tells of itself."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from types import CodeType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, cast
from weakref import ref

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.correlation_calls import Matching
from jetsocket.counting import SharedRecorder
from jetsocket.entry import Entry
from jetsocket.events import Events
from jetsocket.exceptions import TimeoutError
from jetsocket.ids import Account, Key, SentIds, shown
from jetsocket.interrupts import frames_from
from jetsocket.known_uris import KnownUris
from jetsocket.messages import Codec
from jetsocket.pushes import Pushes
from jetsocket.text import public_names, short_repr
from jetsocket.wire.link import not_held

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # which type checkers bring along; nothing has to be installed

    T = TypeVar("T", default=Any)  # so that a pool without message_type needs no annotation
else:
    from typing import TypeVar

    T = TypeVar("T")


class Told(Protocol):
    """What a lease sees of its pool's state."""

    events: Events | None


class Lender(Protocol):
    """What a lease reaches of its pool: the one call upward."""

    @property
    def state(self) -> Told:
        """Who is told what leases do."""

    def take_back(self, lease: Lease[Any], failed: bool) -> None:
        """Return the lease; harmless if it was returned before."""

    def move(self, lease: Lease[Any], stale: Entry, deadline: float | None) -> None:
        """Give the lease another connection for one that has ended before it was used."""

    def is_fit_for_first_use(self, lease: Lease[Any]) -> bool:
        """Whether a connection that was idle, not yet used by this borrower, is still clean."""


class Terms(Generic[T]):
    """What all leases of a pool have in common. Never changed.

    Attributes:
        codec: Between values and payloads.
        ring: Wakes the housekeeper when a lease was dropped, with the dead reference to it.
        send_timeout: s for a send; None: no limit.
        recv_timeout: s for a receive that names none; None: no limit.
        match_ids: Whether replies are told by the ids of what they answer.
        known: What was found out about the URIs.
        hands_on: Whether what is unread is the next borrower's.
        reply_time: Where the times of replies are counted.
        close_timeout: s for ending what is open on a connection, or the connection.
        matching: What the pool's correlation says of messages; None: it has none.
        pushes: Where messages go that belong to no asker, with a correlation.
    """

    def __init__(
        self,
        codec: Codec[T],
        doorbell: SimpleQueue[Any],
        known: KnownUris,
        reply_time: SharedRecorder,
        *,
        send_timeout: float | None,
        recv_timeout: float | None,
        close_timeout: float,
        match_ids: bool,
        hands_on: bool,
        matching: Matching | None,
        pushes: Pushes,
    ) -> None:
        """As a pool's options and configuration say."""
        self.codec, self.ring, self.known, self.reply_time = codec, doorbell.put, known, reply_time
        self.send_timeout, self.recv_timeout = send_timeout, recv_timeout
        self.close_timeout = close_timeout
        self.match_ids, self.hands_on = match_ids, hands_on
        self.matching, self.pushes = matching, pushes


def note_owed(lease: Lease[Any], entry: Entry) -> None:
    """Let later leases look at what comes, if an id of this one is still to come back."""
    account, ids = lease._account, entry.ids
    if account is not None and account.open and ids is not None:
        ids.owes = not lease._terms.hands_on


def seconds(timeout: float | None, default: float | None, *, name: str = "timeout") -> float | None:
    """Check a timeout (s) that a caller gave.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or NaN.
    """
    if timeout is None:
        return default
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {short_repr(timeout)}")
    if timeout >= threading.TIMEOUT_MAX:
        return None  # centuries, which locks refuse to wait
    if not timeout >= 0:  # NaN, too; an int may be too large for a float
        raise ValueError(f"{name} must be 0 s or more, not {short_repr(timeout)}")
    return float(timeout)


_Method = TypeVar("_Method", bound="Callable[..., None]")
_returning: set[CodeType] = set()


def returns(method: _Method) -> _Method:
    """Mark a method that returns a lease, which is its `self` or its `lease`: see `is_being_returned`."""
    _returning.add(method.__code__)
    return method


def is_being_returned(borrower: Borrower) -> bool:
    """Whether a thread is about to return this lease: it may have been stopped there for a while.

    Of greenlets it can't be known, and the answer is False.
    """
    for frame in sys._current_frames().values():
        for below in frames_from(frame):
            if below.f_code in _returning:
                found = below.f_locals
                lease = found.get("lease", found.get("self"))
                if isinstance(lease, Lease) and lease._borrower is borrower:
                    return True
    return False


class Lease(Generic[T]):
    """A connection of a pool, lent to one borrower until it is released."""

    __slots__ = (
        "__weakref__",
        "_account",
        "_borrower",
        "_close_with",
        "_deadline",
        "_discarded",
        "_entry",
        "_iterated",
        "_lender",
        "_pool",
        "_queue",
        "_released",
        "_sent",
        "_shown",
        "_terms",
        "_timed_out",
        "_touched",
        "_watched",
    )

    def __init__(
        self,
        lender: Lender,
        borrower: Borrower,
        terms: Terms[T],
        deadline: float | None = None,
        pool: object = None,
    ) -> None:
        """Made by `ConnectionPool.acquire`; there is no other way to get one."""
        self._terms = terms
        self._borrower = borrower
        self._lender = lender
        self._pool = pool  # so that it lives as long as its leases
        self._entry: Entry | None = None
        self._shown: Entry | None = None  # what the properties tell of, after release too
        self._deadline = deadline  # over all operations together, for callbacks
        self._touched = False  # whether the borrower has sent or received
        self._sent = False  # whether the borrower has sent
        self._queue: deque[str | bytes] | None = None  # where what has come may be taken from, see `iterate`
        self._account: Account | None = None  # of what was sent with ids; None: nothing
        self._watched: Account | None = None  # the same, as long as what comes has to be looked at
        self._timed_out = False
        self._released = False
        self._iterated = False
        self._discarded = False
        self._close_with = (1000, "")  # code and reason, if it is closed at release
        # Called unless the lease is returned before it goes. It is C, where no signal handler runs: what one
        # raises in a finalizer written in Python would disappear.
        borrower.lease = ref(self, terms.ring)

    # --- what the pool does with it --------------------------------------------------------------------

    def _attach(self, entry: Entry) -> None:
        """Begin to use this connection."""
        entry.wire.holder = entry.dispatcher if self._borrower.shares else self._borrower
        if entry.dispatcher is not None and not self._borrower.shares:
            entry.dispatcher.begin_lease()
        self._entry = self._shown = entry
        self._account = self._watched = None  # what was asked on another connection says nothing of this one
        if entry.ids is not None and entry.ids.owes and self._deadline is None:
            self._account = self._watched = self._new_account(entry.ids)  # a callback gets whatever comes

    def _new_account(self, sent: SentIds) -> Account:
        codec = self._terms.codec
        return Account(sent, codec.read_json, keep=codec.is_json)

    def _detach(self) -> Entry | None:
        """Let go; operations under way finish, later ones are refused."""
        entry, self._entry = self._entry, None
        if entry is not None and entry.wire.holder is self._borrower:
            entry.wire.holder = None
            entry.wire.recall_queue()
        return entry

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease can't be pickled or copied: its connection has one borrower at a time")

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Identifies the connection, not the lease: the same number is the same connection."""
        return self._told().id

    @property
    def fence(self) -> Any:
        """The number that the limiter gave with the connection's slot, and that grows with each it gives.

        Of a limiter with one slot, a store can refuse what comes with a lower one than the last (a fencing
        token). None: the pool has no limiter, its tokens have no `fence`, or the connection is closed.
        """
        grant = self._told().grant
        return None if grant is None else grant.fence

    @property
    def uri(self) -> str:
        """The URI it is connected to, to be shown: without credentials, and each value of a query as ``***``.

        So it is none to acquire another connection with, if it has a query.
        """
        return self._told().target.redacted

    @property
    def is_connected(self) -> bool:
        """Whether the lease is held and neither side is known to have ended the connection."""
        entry = self._entry
        return entry is not None and entry.wire.failure is None

    @property
    def latency_ms(self) -> float | None:
        """Round trip of the last `ping` on this connection (ms); None before the first."""
        latency = self._told().wire.latency
        return None if latency is None else latency * 1000.0

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose (RFC 6455 §1.9), None for none."""
        return self._told().wire.getsubprotocol()

    @property
    def response_headers(self) -> Mapping[str, str]:
        """The headers of the server's upgrade response; names are case-insensitive."""
        return self._told().wire.response_headers

    def __dir__(self) -> list[str]:
        return public_names(super().__dir__())

    def __repr__(self) -> str:
        entry = self._shown
        if entry is None:
            return "<PooledConnection>"
        state = "released" if self._is_released else "connected" if self.is_connected else "closed"
        return f"<PooledConnection {entry.id} {state} {entry.target.redacted}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from jetsocket.html_tables import table  # few programs show anything

        if self._shown is None:
            return table("PooledConnection", [])
        state = "released" if self._is_released else "connected" if self.is_connected else "closed"
        latency = "not measured" if self.latency_ms is None else f"{self.latency_ms:.3g} ms"
        rows = [("state", state), ("URI", self.uri), ("subprotocol", self.subprotocol or "none")]
        return table(f"PooledConnection {self.id}", [*rows, ("latency", latency)])

    # --- helpers ---------------------------------------------------------------------------------------

    @property
    def _is_released(self) -> bool:
        return self._released and self._entry is None

    def _current(self) -> Entry:
        """The connection.

        Raises:
            InvalidStateError: The lease was released.
            ConnectionError: It has none: the last one has ended, and there was no other to move to.
        """
        entry = self._entry
        if entry is not None:
            return entry
        wire = self._told().wire
        if wire.failure is None or self._is_released:
            raise not_held(self._told().target)
        wire.raise_failure()

    def _told(self) -> Entry:
        assert self._shown is not None, "a lease without a connection"
        return self._shown

    def _decode(self, payload: str | bytes) -> T:
        codec, account = self._terms.codec, self._account
        if account is not None:
            parsed, account.parsed = account.parsed, None
            if parsed is not None and parsed[0] is payload:
                return cast("T", parsed[1])  # what the deserializer would make of it once more
        return codec.decode(payload, uri=self._told().target.redacted)

    def _until(self, timeout: float | None) -> float | None:
        if timeout is None:
            return self._deadline
        deadline = monotonic() + timeout
        return deadline if self._deadline is None else min(deadline, self._deadline)

    def _is_callback_over(self) -> bool:
        return self._deadline is not None and monotonic() >= self._deadline

    def _late(self, error: TimeoutError, limit: float | None) -> TimeoutError:
        self._timed_out = True
        told = str(error)
        if self._is_callback_over():
            told, limit = f"{told}: the time of the callback is over", None
        elif limit is not None and error._ran_out:
            option = "send_timeout" if error.operation == "send" else "recv_timeout"
            told += f": {limit:g} s were given; allow more (timeout, or {option})"
        return TimeoutError(told, operation=error.operation, timeout=limit)

    def _unanswered(
        self, error: TimeoutError, key: Key, came: int, limit: float | None, waited: float | None
    ) -> TimeoutError:
        self._timed_out = True
        messages = "1 message" if came == 1 else f"{came} messages"
        told = (
            f"{error}: {messages} came, none with id {shown(key)}; if this service does not echo ids:"
            " match_ids=False"
        )
        if self._is_callback_over():
            told, limit = f"{told} (the time of the callback is over)", None
        elif error._ran_out and waited is not None:
            told += f" (waited for {waited:g} s)"
        return TimeoutError(told, operation=error.operation, timeout=limit)


__all__ = ["Lease", "Lender", "T", "Terms", "is_being_returned", "note_owed", "returns", "seconds"]
