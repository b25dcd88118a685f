"""The requests of a lease that gets its replies by what the pool's correlation says of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, NoReturn, cast

from jetsocket.clock import monotonic
from jetsocket.connection import PooledConnection
from jetsocket.correlation.base import NewId
from jetsocket.correlation_calls import Matching
from jetsocket.dispatch import HAS_ARRIVED, Dispatcher
from jetsocket.entry import Entry
from jetsocket.events import EndOfRequest
from jetsocket.exceptions import (
    ConnectionError,
    InvalidStateError,
    JetSocketError,
    TimeoutError,
    raise_copy,
)
from jetsocket.interrupts import is_alarm
from jetsocket.lease import T, seconds
from jetsocket.pending_requests import Request
from jetsocket.reading_turns import Mailbox
from jetsocket.wire.frames import TEXT

_NEVER = float("inf")
_WINDOW = 64 * 1024  # B of requests that are on their way at once: as much as the kernel takes, read or not


class Asking(PooledConnection[T]):
    """Requests and their replies, in any order, whatever else comes."""

    __slots__ = ()

    # --- requests --------------------------------------------------------------------------------------

    def _request(self, message: Any, deadline: float | None, limit: float | None) -> T:
        entry, terms, borrower = self._entry, self._terms, self._borrower
        if borrower.shares:
            return self._request_shared(message, deadline, limit)
        if entry is None or not self._sent or self._deadline is not None:
            request = Request()
            begun = self._begin(request, message, deadline, limit)
            return self._reply_to(begun, request, deadline, limit, sent_at=monotonic())
        # Nearly always. The same in one function, with nothing to be moved or noted: calls were half of it.
        wire, where, send_by, most = entry.wire, entry.dispatcher, deadline, limit
        assert where is not None, "opened by a pool with a correlation"
        request = Request(None, None, message)
        if wire.readlock.locked():
            wire.refuse_reentry("readlock", "request")
        if send_by is None and (most := terms.send_timeout) is not None:
            send_by = self._until(most)
        try:
            wire.send_data(TEXT, b"", send_by, borrower, where.make, request)
            sent_at, asked = monotonic(), request.asked
            if asked is None or asked.key is None:
                return cast("T", None)  # no reply will come
            if deadline is None and (most := terms.recv_timeout) is not None:
                deadline = self._until(most)
            reply = where.await_reply(request, asked, deadline, sent_at)
        except TimeoutError as error:
            where.give_up(request, is_unsent=error._is_unsent)
            if is_alarm(error):
                raise
            raise self._late(error, most) from None
        except BaseException:
            where.give_up(request)
            raise
        if request.error is None:  # else the connection was lost, and there is no reply
            terms.reply_time.add(monotonic() - sent_at)
        if reply is HAS_ARRIVED:
            return self._outcome(request)
        if terms.codec.is_typed or where.matching.correlation.error(reply) is not None:
            return self._outcome(request, [reply])
        return where.matching.correlation.untag(reply, message)  # type: ignore[no-any-return]  # cast() is a call

    def _request_shared(self, message: Any, deadline: float | None, limit: float | None) -> T:
        """`_request` over a connection that others use, too: what waits to be sent, one of them sends."""
        while True:
            entry = self._entry or self._current()
            where, request = dispatcher_of(entry), Request(message=message)
            request.owner = self._borrower
            if entry.wire.readlock.locked():  # by this thread, no reply could come
                where.refuse_reentry("request")
            try:
                if deadline is None:
                    self._await_each(where, request)
                else:
                    self._await_shared(where, request, deadline, limit)
                if (batch := request.batch) is not None and request.error is None:
                    self._terms.reply_time.add(monotonic() - batch.left_at)
                return self._outcome(request)
            except ConnectionError as error:
                if request.may_have_left or is_alarm(error):
                    raise
            finally:
                where.give_up(request)
            self._lender.move(self, entry, deadline)  # nothing of it has left: nothing shows

    def _await_shared(
        self, where: Dispatcher, request: Request, deadline: float | None, limit: float | None
    ) -> None:
        """Have a request sent, and wait for its reply."""
        try:
            where.post(request, deadline)
            if not request.has_mail:
                where.wait(request, deadline, "recv")
        except TimeoutError as error:
            if is_alarm(error):
                raise
            if not request.may_have_left:
                error = where.late("send")
            raise self._late(error, limit) from None

    def _await_each(self, where: Dispatcher, request: Request) -> None:
        """`_await_shared`, where `send_timeout` holds until it has left, and `recv_timeout` from then on."""
        send, recv = self._terms.send_timeout, self._terms.recv_timeout
        send_by = self._until(send)
        while not request.has_mail:
            is_queued, batch = request.outbox is not None, request.batch  # in this order: first it leaves
            if batch is not None and batch.has_left:
                has_left, limit, until = True, recv, None if recv is None else batch.left_at + recv
            else:
                has_left, limit, until = False, send, send_by
            # Who sends it does not wake this thread for that: so it looks before the reply could be due.
            look = until if has_left or recv is None else min(until or _NEVER, monotonic() + recv)
            try:
                if not (has_left or is_queued):
                    where.post(request, until)
                if not request.has_mail:
                    where.wait(request, look, "recv")
            except TimeoutError as error:
                if is_alarm(error):
                    raise
                if not (has_left or request.may_have_left or until is None or monotonic() < until):
                    error = where.late("send")
                elif not has_left:
                    continue
                raise self._late(error, limit) from None

    def _reply_to(
        self,
        where: Dispatcher,
        request: Request,
        deadline: float | None,
        limit: float | None,
        *,
        sent_at: float | None = None,
    ) -> T:
        """Wait for what a request that has left returns; `sent_at`: since when that time counts."""
        if request.asked is None or request.asked.key is None:
            return cast("T", None)  # no reply will come
        if deadline is None:
            limit = self._terms.recv_timeout
            deadline = self._until(limit)
        elif self._deadline is not None:
            deadline = min(deadline, self._deadline)
        try:
            self._wait(where, request, deadline, limit)
            if sent_at is not None and self._deadline is None and request.error is None:
                self._terms.reply_time.add(monotonic() - sent_at)
            return self._outcome(request)
        finally:
            where.give_up(request)

    def _begin(
        self, request: Request, message: Any, deadline: float | None, limit: float | None
    ) -> Dispatcher:
        """Send a request."""
        if deadline is None:
            limit = self._terms.send_timeout
            deadline = self._until(limit)
        entry = self._entry
        if entry is not None and entry.wire.readlock.locked():  # by this thread, no reply could come
            if self._borrower.shares:  # nearly always by another one: to look through the stack takes long
                dispatcher_of(entry).refuse_reentry("request")
            else:
                entry.wire.refuse_reentry("readlock", "request")
        return self._ask(request, message, deadline, limit)

    def _ask(self, request: Request, message: Any, deadline: float | None, limit: float | None) -> Dispatcher:
        def leave(entry: Entry) -> Dispatcher:
            where = dispatcher_of(entry)
            where.send(request, message, deadline, where.holder_for(self._borrower))
            return where

        return self._send_over(leave, deadline, limit)

    def _outcome(self, request: Request, replies: list[Any] | None = None) -> T:
        if request.error is not None:
            raise_error_of(request)
        asked, matching, terms = request.asked, self._matching, self._terms
        assert asked is not None
        if asked.key is None:
            return cast("T", None)  # no reply will come
        replies = list(request.arrived) if replies is None else replies
        reply = matching.outcome(replies, asked)
        if not terms.codec.is_typed:
            return cast("T", reply)
        uri, payload = self._told().target.redacted, request.payload
        if payload is not None and reply is replies[-1]:  # as it came
            return terms.codec.decode(payload, uri=uri)
        return cast("T", matching.value_of(reply, uri))

    def _wait(
        self, where: Dispatcher, box: Mailbox[Any], deadline: float | None, limit: float | None
    ) -> None:
        try:
            where.wait(box, deadline, "recv")
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None

    def request_many(self, messages: Iterable[Any], timeout: float | None = None) -> list[T | JetSocketError]:
        """Send requests one behind another, without waiting for the replies in between.

        Args:
            messages: Each as for `request`. None is sent if one can't be.
            timeout: s for all of it together; None: as for `request`, for each.

        Returns:
            The replies, in the order of the requests; where one failed, the exception.

        Raises:
            TypeError: One of the messages can't be serialized, or is none of this protocol.
            ValueError: Likewise.
            InvalidStateError: The lease was released.
        """
        limit = seconds(timeout, None)
        deadline = None if limit is None else monotonic() + limit
        matching, subprotocol = self._matching, dispatcher_of(self._entry or self._current()).subprotocol
        asked = list(messages)
        sizes = []
        for number, message in enumerate(asked):
            sent = matching.tag(message, NewId(number, str(number))).sent
            sizes.append(len(matching.encode(sent, subprotocol)))
        outcomes: list[T | JetSocketError] = []
        under_way: deque[_UnderWay] = deque()
        out = 0
        try:
            for message, size in zip(asked, sizes, strict=True):
                while under_way and out + size > _WINDOW:
                    out -= under_way[0].size
                    outcomes.append(self._next_outcome(under_way, deadline, limit))
                try:
                    under_way.append(self._begin_one(message, size, deadline, limit))
                    out += size
                except JetSocketError as error:
                    if is_alarm(error) or isinstance(error, InvalidStateError):
                        raise
                    while under_way:
                        outcomes.append(self._next_outcome(under_way, deadline, limit))
                    out = 0
                    outcomes.append(error)
            while under_way:
                outcomes.append(self._next_outcome(under_way, deadline, limit))
        except BaseException as error:
            for each in under_way:
                each.where.give_up(each.request)
            for each in under_way:
                each.tell_end(error)
            raise
        return outcomes

    def _begin_one(self, message: Any, size: int, deadline: float | None, limit: float | None) -> _UnderWay:
        tell_end, sent = self._tell_asked(message)
        request = Request()
        try:
            where = self._begin(request, sent, deadline, limit)
        except BaseException as error:
            tell_end(error)
            raise
        return _UnderWay(where, request, size, monotonic(), tell_end)

    def _next_outcome(
        self, under_way: deque[_UnderWay], deadline: float | None, limit: float | None
    ) -> T | JetSocketError:
        first = under_way[0]
        try:
            reply = self._reply_to(first.where, first.request, deadline, limit, sent_at=first.sent_at)
        except JetSocketError as error:
            if is_alarm(error) or isinstance(error, InvalidStateError):
                raise
            under_way.popleft()
            first.tell_end(error)
            return error
        under_way.popleft()
        first.tell_end(None)
        return reply

    def stream(self, message: Any, timeout: float | None = None) -> Iterator[T]:
        """Send a request that has several replies, and yield each as it comes.

        Args:
            message: As for `request`; it is sent before this returns.
            timeout: s for each reply; None: `recv_timeout`.

        Yields:
            The replies. A request without a reply yields nothing.

        Raises:
            ReplyError: One of the replies was an error: raised after the last one.
            TimeoutError: The next reply did not come in time.
            ConnectionClosedError: The connection has ended.
        """
        limit = seconds(timeout, self._terms.recv_timeout)
        tell_end, sent = self._tell_asked(message)
        request = Request()
        request.wants_all = False
        try:
            where = self._begin(request, sent, None, None)
        except BaseException as error:
            tell_end(error)
            raise
        replies = self._stream(where, request, limit, tell_end)
        next(replies)  # from here on its end is noticed, if it is dropped unread, too
        return replies

    def _stream(
        self, where: Dispatcher, request: Request, limit: float | None, tell_end: EndOfRequest
    ) -> Iterator[T]:
        sent_at = None if self._deadline is not None else monotonic()  # a callback's is not counted
        try:
            yield cast("T", None)  # what `stream` itself takes
            yield from self._replies_to(where, request, limit, sent_at)
        except GeneratorExit:  # who stops reading has got what was wanted
            tell_end(None)
            raise
        except BaseException as error:
            tell_end(error)
            raise
        else:
            tell_end(None)
        finally:
            where.give_up(request)

    def _replies_to(
        self, where: Dispatcher, request: Request, limit: float | None, sent_at: float | None
    ) -> Iterator[T]:
        asked, matching, uri = request.asked, self._matching, self._told().target.redacted
        failure: JetSocketError | None = None
        while asked is not None and asked.key is not None:
            self._current()
            self._wait(where, request, self._until(limit), limit)
            if sent_at is not None and request.arrived:
                self._terms.reply_time.add(monotonic() - sent_at)
                sent_at = None
            while request.arrived:
                reply = request.arrived.popleft()
                error = matching.error_in(reply, asked)
                if error is None:
                    reply = matching.correlation.untag(reply, asked.message)
                    yield cast("T", matching.value_of(reply, uri))
                failure = failure or error
            if request.is_ended:
                if failure is not None:
                    raise failure
                if request.error is not None:
                    raise_error_of(request)
                return

    @property
    def _matching(self) -> Matching:
        matching = self._terms.matching
        assert matching is not None, "a lease of a pool with a correlation"
        return matching


class _UnderWay(NamedTuple):
    """One of many requests, behind which others are sent before its reply is waited for."""

    where: Dispatcher
    request: Request
    size: int
    sent_at: float
    tell_end: EndOfRequest


def dispatcher_of(entry: Entry) -> Dispatcher:
    """What hands out the messages of a connection."""
    assert entry.dispatcher is not None, "opened by a pool with a correlation"
    return entry.dispatcher


def raise_error_of(box: Mailbox[Any]) -> NoReturn:
    """Raise what has ended a mailbox, which has an error."""
    error = box.error
    assert error is not None
    if not isinstance(error, JetSocketError):
        raise error  # the correlation's, over a reply that one thread waits for
    raise_copy(error)


__all__ = ["Asking", "dispatcher_of", "raise_error_of"]
