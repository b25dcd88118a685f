"""A lease of a pool with a correlation: its requests get their own replies, whatever else comes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, cast

from jetsocket.asking import Asking, dispatcher_of, raise_error_of
from jetsocket.clock import monotonic
from jetsocket.correlation_calls import UNREADABLE, Part
from jetsocket.dispatch import Dispatcher
from jetsocket.entry import Entry
from jetsocket.exceptions import InvalidStateError, ReplyError
from jetsocket.interrupts import is_alarm
from jetsocket.iteration import iterate_slowly
from jetsocket.lease import T, returns, seconds
from jetsocket.messages import payload_of
from jetsocket.pending_requests import Request, Risk
from jetsocket.reading_turns import Mailbox
from jetsocket.subscription import Subscription, end_feed
from jetsocket.subscription_queue import Feed, Overflow
from jetsocket.text import told_as


class CorrelatedConnection(Asking[T]):
    """A lease whose replies are told by what the pool's correlation says of them.

    In a callback (`configure`, `reset`, `check`), `recv` gives whatever comes, in order. Elsewhere it gives
    what is for no request and no subscription, once the lease has used `send` itself.
    """

    __slots__ = ()

    # --- sending as it is ------------------------------------------------------------------------------

    def send(self, data: Any) -> None:
        """Send one message as it is: with the id that it carries, if any."""
        self._send_as_is(data, lambda where: self._matching.encode(data, where.subprotocol), None)

    def send_raw(self, data: str | bytes, *, binary: bool | None = None) -> None:
        """Send one message without the serializer."""
        payload, text = payload_of(data, binary)

        def prepared(_where: Dispatcher) -> str | bytes:
            return payload

        self._send_as_is(None, prepared, text)

    def _send_as_is(self, message: Any, make: Callable[[Dispatcher], str | bytes], text: bool | None) -> None:
        limit = self._terms.send_timeout
        deadline = self._until(limit)

        def leave(entry: Entry) -> None:
            where = dispatcher_of(entry)
            payload = make(where)
            # What the server gets is what counts, whatever the caller has passed for it.
            told = message if isinstance(message, dict) else self._matching.read(payload, where.subprotocol)
            if where.raw is None:
                where.raw = Mailbox()
            where.send_as_is(told, payload, text, deadline, self._borrower, risk=self._risk)

        self._send_over(leave, deadline, limit)

    @property
    def _risk(self) -> Risk:
        """What a message may do that has the id of a request on this connection, whose reply may come."""
        if self._deadline is not None:
            return "taken"  # a callback, which gets whatever comes
        return "refused" if self._sent else "moved"

    # --- what is for no request and no subscription ----------------------------------------------------

    def recv(self, timeout: float | None = None) -> T:
        """Receive what is for no request and no subscription; see `PooledConnection.recv`.

        Raises:
            InvalidStateError: The lease was released, or has not sent anything with `send`: nothing comes.
        """
        part = self._recv_part(timeout)
        uri = self._told().target.redacted
        if part.message is UNREADABLE:
            assert part.payload is not None
            return self._terms.codec.decode(part.payload, uri=uri)
        return cast("T", self._matching.value_of(part.message, uri))

    def recv_raw(self, timeout: float | None = None) -> str | bytes:
        """As `recv`, undecoded."""
        part = self._recv_part(timeout)
        if part.payload is not None:
            return part.payload
        return self._matching.encode(part.message, self.subprotocol)  # one of several in a frame

    def _recv_part(self, timeout: float | None) -> Part:
        limit = seconds(timeout, self._terms.recv_timeout)
        entry = self._entry or self._current()
        where, deadline = dispatcher_of(entry), self._until(limit)
        raw = where.raw
        if raw is not None and raw.arrived:
            return raw.arrived.popleft()
        if self._deadline is not None:
            return self._recv_whatever(entry, where, deadline)
        if raw is None:
            raise InvalidStateError(
                f"recv on a connection to {entry.target.redacted}, where send() was not used: replies go to"
                " request(), what is pushed to subscribe() or on_push",
                current_state="nothing sent",
            )
        while True:
            self._wait(where, raw, deadline, limit)
            try:
                return raw.arrived.popleft()
            except IndexError as error:  # another thread was faster, or it has ended
                if is_alarm(error):
                    raise
                if raw.is_ended:
                    raise_error_of(raw)

    def _recv_whatever(self, entry: Entry, where: Dispatcher, deadline: float | None) -> Part:
        """In a callback: what comes next, be it whose it may."""
        while True:
            payload = self._recv(deadline, None)
            parts = self._matching.parts(payload, where.subprotocol)
            if parts:
                if len(parts) > 1:
                    where.raw = where.raw or Mailbox()
                    where.raw.arrived.extend(parts[1:])
                return parts[0]

    def __iter__(self) -> Iterator[T]:
        """Yield what is for no request and no subscription; see `PooledConnection.__iter__`."""
        return iterate_slowly(self.recv)

    # --- subscriptions ---------------------------------------------------------------------------------

    def subscribe(
        self,
        message: Any,
        *,
        timeout: float | None = None,
        max_queue: int = 1000,
        overflow: Overflow = "error",
    ) -> Subscription[T]:
        """Open a subscription on this connection; see `PooledConnection.subscribe`."""
        limit = seconds(timeout, self._terms.recv_timeout)
        where, feed = self._open_feed(message, self._until(limit), limit, max_queue, overflow)
        return self._subscription(where, feed)

    def _open_feed(
        self, message: Any, deadline: float | None, limit: float | None, max_queue: int, overflow: Overflow
    ) -> tuple[Dispatcher, Feed]:
        """Subscribe, and wait for what confirms it."""
        feed = Feed(max_queue, overflow, self._told().target.redacted)
        feed.owner = self._borrower
        if message is None:
            where = dispatcher_of(self._entry or self._current())
            where.topics.open_rest(feed)
            return where, feed
        while True:
            request = Request(feed)
            dispatcher_of(self._entry or self._current()).finish_ended()
            where = self._ask(request, message, deadline, limit)
            try:
                if not request.is_open:
                    where.topics.begin(request, feed.owner)  # unless we get further
                    if request.asked is not None and request.asked.key is not None:  # else no reply will come
                        self._wait(where, request, deadline, limit)
                    self._check_opened(where, request)
            except BaseException:
                end_feed(where, feed, where.holder_for(self._borrower), 0.0)
                raise
            finally:
                where.give_up(request)
            if not where.topics.was_ended_behind(feed, request.number):
                return where, feed
            # Another thread has ended the last subscription of that topic, behind our message: once more.

    def _check_opened(self, where: Dispatcher, request: Request) -> None:
        asked, feed = request.asked, request.feed
        assert asked is not None
        assert feed is not None
        if request.error is not None:
            raise_error_of(request)
        replies = list(request.arrived)
        try:
            if replies:
                self._matching.outcome(replies, asked)
        except ReplyError:
            if len(replies) == 1:  # of several, those before the refusal have opened something
                where.topics.settle(request)
            raise
        if not feed.topics:
            raise ValueError(
                f"{type(self._matching.correlation).__name__}.topic_of names no topic for this message and"
                " its reply: it opens no subscription, or the correlation needs its topic paths"
            )
        where.topics.settle(request)

    def _end_subscriptions(self) -> None:
        """Before the connection may be lent again: end what is open, at the server too."""
        entry = self._entry
        if entry is None or entry.dispatcher is None or entry.dispatcher.topics.is_empty:
            return
        if self._borrower.shares:
            return  # its one subscription ends by itself; the others are not this lease's
        where, until = entry.dispatcher, monotonic() + self._terms.close_timeout
        for feed in where.topics.all():
            feed.end()
            if not self._discarded and not end_feed(where, feed, self._borrower, until):
                self._discarded = True  # the others end with the connection

    @returns
    def release(self) -> None:
        """Give the connection back; its subscriptions are ended first. The second time does nothing."""
        try:
            self._end_subscriptions()
        finally:
            self._borrower.returns = True  # as in `PooledConnection.release`
            self._lender.take_back(self, False)

    @returns
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end_subscriptions()
        finally:
            self._borrower.returns = True
            self._lender.take_back(self, kind is not None)


told_as("PooledConnection", Asking, CorrelatedConnection)

__all__ = ["CorrelatedConnection"]
