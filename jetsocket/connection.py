"""PooledConnection: the lease, what a borrower holds of a connection."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, TypeAlias

from jetsocket.clock import monotonic
from jetsocket.correlation.base import Correlation
from jetsocket.correlation_calls import Matching
from jetsocket.dispatch import Dispatcher
from jetsocket.events import EndOfRequest, untold
from jetsocket.exceptions import InvalidStateError, JetSocketError
from jetsocket.exchange import Exchange
from jetsocket.interrupts import is_alarm
from jetsocket.lease import Lease, T, returns, seconds
from jetsocket.pushes import Pushes
from jetsocket.subscription import Subscription
from jetsocket.subscription_queue import Feed, Overflow
from jetsocket.text import told_as
from jetsocket.wire.close_codes import check_sendable
from jetsocket.wire.link import not_held

_NEEDS = "give the pool a correlation (jetsocket.correlation), JsonRpc() for one"


class PooledConnection(Exchange[T]):
    """One connection of a pool, lent to one borrower until it is released.

    A fresh object for each acquire: once released it can touch nothing any more. It is a context manager
    (leaving it releases) and an iterator over the messages that come. One thread may send while another
    receives. A lease that is dropped without release is found by the garbage collector: the connection is
    closed, and a ResourceWarning tells where it was acquired.

    Example:
        >>> with pool.acquire("/ws/btcusdt") as conn:
        ...     conn.send({"subscribe": "trades"})
        ...     reply = conn.recv()
    """

    __slots__ = ()

    # --- requests --------------------------------------------------------------------------------------

    def request(self, message: Any, timeout: float | None = None) -> T:
        """Send a message and receive its reply, within one deadline.

        The reply to a JSON object with an `id` that this connection was not sent a moment ago is the message
        with the same `id`; what comes before it stays for `recv`. The reply to anything else, and with
        `match_ids=False`, is the next message.

        Args:
            message: As for `send`.
            timeout: s for both together; None: `send_timeout` and `recv_timeout` apply. Without any of them,
                a service that sends messages and has never sent an id back is waited for for 10 s.

        Returns:
            The decoded reply.

        Raises:
            TimeoutError: No reply in time, or before more messages than are kept unread (see `ping`). It may
                still come: the connection will not be lent again.
            ConnectionClosedError: The connection has ended.
            DecodeError: The reply does not decode.
            InvalidStateError: The lease was released.
        """
        limit = seconds(timeout, None)
        deadline = None if limit is None else monotonic() + limit
        if self._lender.state.events is None:
            return self._request(message, deadline, limit)
        return self._request_told(message, deadline, limit)

    def _tell_asked(self, message: Any) -> tuple[EndOfRequest, Any]:
        """Tell listeners that a request is about to be sent: what is told its end, and what is to be sent."""
        events = self._lender.state.events
        if events is None or not events.wants_requests:
            return untold, message
        return events.begin_request(events.info_of(self._entry or self._current(), monotonic()), message)

    def _request_told(self, message: Any, deadline: float | None, limit: float | None) -> T:
        """`_request`, of which listeners are told, if there are any."""
        tell_end, sent = self._tell_asked(message)
        try:
            reply = self._request(sent, deadline, limit)
        except BaseException as error:
            tell_end(error)
            raise
        tell_end(None)
        return reply

    # --- with a correlation, more ----------------------------------------------------------------------

    def request_many(self, messages: Iterable[Any], timeout: float | None = None) -> list[T | JetSocketError]:
        """Send requests, and receive their replies; with a correlation, one behind another without waiting.

        Args:
            messages: Each as for `request`.
            timeout: s for all of it together; None: as for `request`, for each.

        Returns:
            The replies, in the order of the requests; where one failed, the exception.

        Raises:
            TypeError: One of the messages can't be serialized; with a correlation, none was sent then.
            ValueError: Likewise.
            InvalidStateError: The lease was released.
        """
        limit = seconds(timeout, None)
        deadline = None if limit is None else monotonic() + limit
        outcomes: list[T | JetSocketError] = []
        for message in messages:
            try:
                outcomes.append(self._request_told(message, deadline, limit))
            except JetSocketError as error:
                if is_alarm(error) or isinstance(error, InvalidStateError):
                    raise
                outcomes.append(error)
        return outcomes

    def stream(self, message: Any, timeout: float | None = None) -> Iterator[T]:
        """Send a request that has several replies, and yield each as it comes; needs a correlation.

        Args:
            message: As for `request`; it is sent before this returns.
            timeout: s for each reply; None: `recv_timeout`.

        Returns:
            An iterator over the replies; over none, if no reply will come.

        Raises:
            ValueError: The pool has no correlation, which says which reply is the last.
            ReplyError: One of the replies was an error: raised by the iterator, behind the last one.
            TimeoutError: The next reply did not come in time.
            ConnectionClosedError: The connection has ended.
        """
        raise ValueError(f"stream needs to know which reply is the last: {_NEEDS}")

    def subscribe(
        self,
        message: Any,
        *,
        timeout: float | None = None,
        max_queue: int = 1000,
        overflow: Overflow = "error",
    ) -> Subscription[T]:
        """Subscribe to what the server pushes, on this connection; it ends with the lease at the latest.

        Args:
            message: What subscribes, as for `request`; None: the server sends without being asked. Then the
                subscription gets what belongs to no other one. Without a correlation only None is allowed,
                and the connection is closed at release.
            timeout: s until the server has confirmed it; None: `recv_timeout`.
            max_queue: Messages that wait to be read.
            overflow: What happens to one more: "error" ends the subscription with SubscriptionOverflowError
                behind what waits; "drop_oldest" counts what it drops.

        Returns:
            An iterator over what is pushed.

        Raises:
            ReplyError: The server refused.
            TimeoutError: It did not confirm in time.
            ConnectionClosedError: The connection has ended.
            ValueError: A message without a correlation, one that opens no topic, or an argument out of range.
            TypeError: An argument of another type, or a message that can't be serialized.
            InvalidStateError: The lease was released, or another subscription takes all the rest already.
        """
        if message is not None:
            raise ValueError(f"subscribe needs to know what belongs to a subscription: {_NEEDS}")
        entry = self._entry or self._current()
        where = Dispatcher(entry.wire, entry.target, Matching(Correlation(), self._terms.codec), Pushes(None))
        feed = Feed(max_queue, overflow, entry.target.redacted)
        where.topics.open_rest(feed)
        self._touched = self._discarded = True
        return self._subscription(where, feed)

    def _subscription(self, where: Dispatcher, feed: Feed) -> Subscription[T]:
        terms = self._terms
        origin = LeaseOrigin(self, where)
        return Subscription(origin, feed, recv_timeout=terms.recv_timeout, close_timeout=terms.close_timeout)

    # --- giving back -----------------------------------------------------------------------------------

    @returns
    def release(self) -> None:
        """Give the connection back. The second time does nothing."""
        self._borrower.returns = True  # first, and without a call: the next one may be struck as it begins
        self._lender.take_back(self, False)

    def discard(self, code: int = 1000, reason: str = "") -> None:
        """Have the connection closed at release, whatever its state: after a subscription, or in doubt.

        Args:
            code: What the server is told, if nothing has ended the connection before: 1000, or 3000 to 4999,
                which are for libraries and applications (RFC 6455 §7.4.2).
            reason: Text for the server's log, at most 123 B of UTF-8.

        Raises:
            TypeError: `code` is not an int, or `reason` not a str.
            ValueError: Another code, or a reason that is too long.
            InvalidStateError: The lease was released: the connection may have another borrower by now.
        """
        check_sendable(code, reason)
        if self._is_released:
            raise not_held(self._told().target)
        self._close_with = (int(code), reason)
        self._discarded = True

    def __enter__(self) -> PooledConnection[T]:
        return self

    @returns
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._borrower.returns = True  # as in `release`
        self._lender.take_back(self, kind is not None)


told_as("PooledConnection", Lease, Exchange)

Callback: TypeAlias = Callable[[PooledConnection[Any]], object]
"""What is called with a connection: `configure`, `reset` and `check` of a pool."""


class LeaseOrigin:
    """Where a subscription's messages come from that has been opened on a lease.

    Attributes:
        dispatcher: Of its connection.
        holder: The lease's borrower.
        owns_lease: Whether the lease ends with the subscription.
    """

    def __init__(self, lease: PooledConnection[Any], dispatcher: Dispatcher) -> None:
        """On that lease."""
        self.dispatcher = dispatcher
        self.holder: object = dispatcher if lease._borrower.shares else lease._borrower
        self.owns_lease = False
        self._lease = lease

    def finish(self, *, ended: bool) -> None:
        """The subscription is over; `ended`: and the connection may be lent again."""
        if not ended:
            self._lease._discarded = True
        if self.owns_lease:
            self._lease.release()


__all__ = ["Callback", "LeaseOrigin", "PooledConnection"]
