"""Subscription: what the server pushes for one topic, as an iterator; and how it is ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

from jetsocket.clock import monotonic
from jetsocket.correlation_calls import Part
from jetsocket.dispatch import Dispatcher
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    DecodeError,
    InvalidStateError,
    JetSocketError,
    ReplyError,
    TimeoutError,
    raise_copy,
)
from jetsocket.interrupts import is_alarm
from jetsocket.lease import seconds
from jetsocket.pending_requests import Request
from jetsocket.reading_turns import Mailbox, Turn
from jetsocket.subscription_queue import Feed
from jetsocket.topics import StillOpenError

__all__ = ["Origin", "Reopen", "Subscription", "end_feed"]

T = TypeVar("T")

_NOTHING: Any = object()
_LOOK_AGAIN = 0.05  # s after which a thread looks whether another has subscribed anew


class Origin(Protocol):
    """Where a subscription's messages come from: its connection, and who holds that.

    Attributes:
        dispatcher: Hands out what comes.
        holder: Who may use the connection.
        owns_lease: Whether the lease ends with the subscription.
    """

    owns_lease: bool
    dispatcher: Dispatcher
    holder: object

    def finish(self, *, ended: bool) -> None:
        """The subscription is over; `ended`: and its connection may be lent again."""


class Reopen(Protocol):
    """Opens a subscription anew whose connection was lost."""

    def __call__(self, lost: Subscription[Any], deadline: float | None, /) -> Subscription[Any] | None:
        """What takes its place, by that deadline (monotonic, s); None: it was ended meanwhile.

        Raises what `ConnectionPool.subscribe` does.
        """


class Subscription(Generic[T]):
    """What is pushed for a topic: an iterator and a context manager, made by `subscribe`.

    Leaving the block, or `unsubscribe`, ends it at the server, too. Threads may share one: each message goes
    to one of them.

    Example:
        >>> with pool.subscribe("/", {"method": "eth_subscribe", "params": ["newHeads"]}) as heads:
        ...     for head in heads:
        ...         print(head)
    """

    def __init__(
        self,
        origin: Origin,
        feed: Feed,
        *,
        recv_timeout: float | None,
        close_timeout: float,
    ) -> None:
        """Made by `PooledConnection.subscribe` and `ConnectionPool.subscribe`."""
        self._origin: Origin | None = origin
        self._feed = feed
        self._recv_timeout = recv_timeout
        self._close_timeout = close_timeout
        self._reopen: Reopen | None = None
        self._on_reconnect: Callable[[Subscription[T]], object] | None = None
        self._dropped_before = 0
        self._renewing: dict[Feed, Turn] = {}  # which thread subscribes anew in place of what has ended
        self._is_over = False
        self.reconnects = 0
        """How often it was subscribed anew after its connection had been lost, each time with a gap."""

    def _own_lease(
        self, reopen: Reopen | None, on_reconnect: Callable[[Subscription[T]], object] | None
    ) -> None:
        """The lease that it is on ends with it; and it is opened anew on another one, if that is wanted."""
        assert self._origin is not None
        self._origin.owns_lease = True
        self._reopen, self._on_reconnect = reopen, on_reconnect

    # --- what has come ---------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> T:
        """The next message.

        Args:
            timeout: s; None: `recv_timeout`. 0 takes what has come already.

        Raises:
            TimeoutError: None came in time.
            ConnectionClosedError: The connection has ended, normally or not; with `reconnect=True`, only if
                the pool is closed.
            SubscriptionOverflowError: More than `max_queue` were waiting.
            ReplyError: The server has ended it with an error.
            DecodeError: The message does not decode.
            InvalidStateError: It was ended, by `unsubscribe`, its lease, or the server.
            TypeError: `timeout` is not a number.
            ValueError: `timeout` is negative.
        """
        limit = seconds(timeout, self._recv_timeout)
        deadline = None if limit is None else monotonic() + limit
        while True:
            feed = self._feed
            try:
                return self._take(feed)
            except IndexError as error:  # nothing has come
                if is_alarm(error):
                    raise
            if feed.is_ended:
                self._mind_the_end(feed, deadline)
                continue
            self._wait(feed, deadline, limit)

    def _take(self, feed: Feed) -> T:
        """The first message that has come; what strikes before it is returned puts it back.

        Raises:
            IndexError: None has.
        """
        message: Any = _NOTHING
        take: Callable[[], Any] = feed.arrived.popleft
        try:
            for message in iter(take, _NOTHING):  # no exception comes between the two: see `iteration`
                if feed.arrived:  # for another thread that waits here
                    feed.ring()
                return self._value_of(message)
        except BaseException as error:
            if message is not _NOTHING and (is_alarm(error) or not isinstance(error, DecodeError)):
                feed.arrived.appendleft(message)
            raise
        raise AssertionError("it never comes to an end")

    def _value_of(self, message: Any) -> T:
        origin = self._origin
        if origin is None:
            return cast("T", message)
        where = origin.dispatcher
        uri = where.target.redacted
        if isinstance(message, Part):  # what could not be read
            assert message.payload is not None
            return cast("T", where.matching.codec.decode(message.payload, uri=uri))
        return cast("T", where.matching.value_of(message, uri))

    def _wait(self, feed: Feed, deadline: float | None, limit: float | None) -> None:
        origin = self._origin
        if origin is None:
            raise self._over()
        try:
            origin.dispatcher.wait(feed, deadline, "recv")
        except TimeoutError as error:
            if is_alarm(error):
                raise
            told = f"{error}: nothing was pushed for this subscription within {limit:g} s"
            raise TimeoutError(told, operation="recv", timeout=limit) from None

    def _mind_the_end(self, feed: Feed, deadline: float | None) -> None:
        """Nothing more comes from there: say why, or subscribe anew."""
        error = feed.error
        if self._is_over or error is None:
            raise self._over()
        if self._reopen is None or not isinstance(error, ConnectionError):
            raise_copy(error)
        turn = Turn()
        try:
            if self._is_my_turn(feed, turn, deadline):
                self._subscribe_anew(deadline)
        finally:
            turn.is_over = True

    def _is_my_turn(self, feed: Feed, turn: Turn, deadline: float | None) -> bool:
        """Whether this thread is to subscribe anew; False: another one has, meanwhile."""
        bell: Mailbox[Any] = Mailbox()
        while (first := self._renewing.setdefault(feed, turn)) is not turn:
            if first.is_over:
                self._renewing.pop(feed, None)
            elif deadline is not None and monotonic() >= deadline:
                told = f"the subscription at {feed.where} was lost, and not opened anew in time"
                raise TimeoutError(told, operation="subscribe", timeout=None)
            else:
                bell.listen(_LOOK_AGAIN)
            if self._feed is not feed or self._is_over:
                return False
        return self._feed is feed

    def _subscribe_anew(self, deadline: float | None) -> None:
        origin, self._origin = self._origin, None
        if origin is not None:
            origin.finish(ended=False)
        assert self._reopen is not None
        new = self._reopen(self, deadline)
        if new is None:
            raise self._over()
        self._dropped_before = self.dropped
        self._feed, self._origin, new._origin = new._feed, new._origin, None
        self.reconnects += 1
        if self._is_over:  # ended by another thread meanwhile
            self.unsubscribe()
            raise self._over()
        if self._on_reconnect is not None:
            self._on_reconnect(self)

    def _over(self) -> InvalidStateError:
        return InvalidStateError(
            f"this subscription at {self._feed.where} has ended; subscribe again",
            current_state="ended",
            required_states=["open"],
        )

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        """The next message; StopIteration at an orderly end.

        Raises:
            StopIteration: It was ended, or the server has closed normally (1000, 1001, or without a code).
        """
        try:
            return self.get()
        except InvalidStateError as error:
            if is_alarm(error) or error.current_state != "ended":
                raise
            raise StopIteration from None
        except ConnectionClosedError as error:
            if is_alarm(error) or not error.is_normal:
                raise
            raise StopIteration from None

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether it was ended, by `unsubscribe` or the end of its block."""
        return self._is_over

    @property
    def topic(self) -> Any:
        """What it has opened, as the correlation names it; a list if there are several, None if none."""
        topics = list(self._feed.topics)
        return topics[0] if len(topics) == 1 else topics or None

    @property
    def dropped(self) -> int:
        """How many messages were lost because `max_queue` were waiting."""
        return self._dropped_before + self._feed.dropped

    def __repr__(self) -> str:
        state = "ended" if self._is_over or self._feed.is_ended else "open"
        return f"<Subscription {state} {self._feed.where}>"

    def _end(self) -> None:
        """Nothing more comes: who reads it unsubscribes then."""
        self._feed.end()

    # --- the end ---------------------------------------------------------------------------------------

    def unsubscribe(self) -> None:
        """End it, at the server too, within `close_timeout`; what is still waiting is gone.

        The second time does nothing. Where the server can't be told, or does not confirm it, the connection
        is closed instead.
        """
        self._is_over = True
        origin, self._origin = self._origin, None
        if origin is None:
            return
        ended = False
        try:
            self._feed.end()
            self._feed.arrived.clear()
            ended = end_feed(origin.dispatcher, self._feed, origin.holder, monotonic() + self._close_timeout)
        finally:
            origin.finish(ended=ended)

    def __enter__(self) -> Subscription[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unsubscribe()


def end_feed(where: Dispatcher, feed: Feed, holder: object, deadline: float) -> bool:
    """End a subscription at the server; False: it can't be, and the connection is to be closed.

    Args:
        where: Its connection.
        feed: The subscription.
        holder: Who may use the connection.
        deadline: For the server's confirmation (monotonic, s).
    """
    topics, correlation = where.topics, where.matching.correlation
    topics.begin(feed, feed.owner)  # unless we get further
    for topic in topics.close(feed):
        request = Request(ends=topic)
        try:
            message = correlation.unsubscribe(topic, feed.sent)
            if message is None:
                return False
            where.send(request, message, deadline, holder)
            if request.asked is not None and request.asked.key is not None:
                where.wait(request, deadline, "recv")
                if request.error is not None:
                    return False
                where.matching.outcome(list(request.arrived), request.asked)
                topics.confirm_end(topic)
        except StillOpenError:  # another thread has opened it meanwhile, and ends it some time
            pass
        except ReplyError as error:  # it has ended there by itself; if not, what it pushes is dropped
            if is_alarm(error):
                raise
        except JetSocketError as error:
            if is_alarm(error):
                raise
            return False
        finally:
            where.give_up(request)
    topics.settle(feed)
    return True
