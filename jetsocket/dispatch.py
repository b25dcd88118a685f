"""Each message of a connection to its asker: a request, a subscription, a lease that sends, `on_push`.

In this order, what comes belongs to: the protocol itself (`answer`); a request under way; one that was given
up, so that it is late, and dropped; an open subscription; one that has ended, so that it is dropped; a
subscribe under way, whose topic its reply will name; the lease, if it has sent by itself; `on_push`.

A request that was given up is never answered by another's reply: the ids on the wire are always ours, each
used once on a connection.
"""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from jetsocket.clock import monotonic
from jetsocket.correlation import Asked, NewId
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.lock_watch import LockWatch
from jetsocket.mailbox import LOOK_AGAIN, Mailbox, Reading
from jetsocket.matching import UNREADABLE, Matching, Part, Payload, each_topic, strict
from jetsocket.pending import Request, Risk, remember
from jetsocket.pushes import Pushes
from jetsocket.topics import Feed, Topics
from jetsocket.uris import Target
from jetsocket.wire.link import not_held
from jetsocket.wire.websocket import WebSocket

MOST_GIVEN_UP = 1024
"""Requests that were given up and not answered yet, beyond which a connection is closed."""

_MOST_HELD = 10_000  # messages kept for a subscribe that is under way
_MOST_RAW = 10_000  # messages kept for a lease that has sent by itself and does not receive
_MAY_COME = "a request with the id of this message may still be answered"
_PATIENCE = 1.0  # s that a borrower may read nothing before a worker looks what has come
_MUCH = 100  # messages
_ANSWER_PATIENCE = 1.0  # s for sending what the protocol wants back at once


class Dispatcher(Reading):
    """One connection's messages, on their way to the askers. Only the thread that leads hands them out.

    Attributes:
        wire: The connection.
        topics: Its subscriptions.
        raw: Where what has no other asker goes: to the lease that has sent by itself; None: none has.
        raw_asked: The keys of what it sent that have not come back.
        given_up: Requests whose reply may still come, by key.
        late_replies: How many came after their request was given up.
        unasked: How many messages belonged to none.
        locks: Tells whether a strike has left the connection locked.
        has_worker: Whether a worker is about to hand out what has come.
        last_read: When a thread last handed out what came (monotonic, s).
    """

    def __init__(self, wire: WebSocket, target: Target, matching: Matching, pushes: Pushes) -> None:
        """Nothing was asked yet."""
        super().__init__()
        self.wire, self.matching = wire, matching
        self.topics = Topics()
        self.raw: Mailbox[Part] | None = None
        self.raw_asked: dict[Hashable, None] = {}
        self.given_up: dict[Hashable, Asked] = {}
        self.late_replies = self.unasked = 0
        self.locks, self.has_worker = LockWatch(wire), False
        self.last_read = monotonic()
        self.subprotocol = wire.getsubprotocol()
        self._target, self._pushes = target, pushes
        self._under_way: dict[Hashable, Request] = {}
        self._raw_keys: dict[Hashable, None] = {}
        self._numbers = itertools.count(1)
        self._prefix = uuid.uuid4().hex
        self._subscribing: dict[Request, None] = {}
        self._held, self._looks_again = deque[Part](), False  # see `_is_due`
        self._parts: deque[Part] = deque()  # what was read and is not handed out yet

    @property
    def target(self) -> Target:
        """Where the connection leads."""
        return self._target

    @property
    def wants_worker(self) -> bool:
        """Whether something has come that no thread hands out: a worker is to do so.

        Of a lent connection, once its borrower has not read for a while; and once much waits for it, the
        rest stays where it is counted, in the wire.
        """
        has_some = self.wire.reader.messages or self._parts or self._is_due
        if self.has_worker or self.is_led or not has_some:
            return False
        if self.wire.holder in (None, self):
            return True
        if monotonic() - self.last_read < _PATIENCE:
            return False
        boxes = [*self._under_way.values(), self.raw]  # of a stream's replies, many may wait
        return all(box is None or len(box.arrived) < _MUCH for box in boxes)

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._under_way)

    # --- out -------------------------------------------------------------------------------------------

    def send(self, request: Request, message: Any, deadline: float | None, holder: object) -> None:
        """Send a request with an id of ours; when this returns, it has left.

        Args:
            request: Gets `asked`; its key is None if no reply will come.
            message: The caller's, which is not changed.
            deadline: Monotonic, s.
            holder: Who may use the connection.

        Raises:
            JetSocketError: As `WebSocket.send_made`.
            Exception: What the correlation's `tag` or the serializer raises; nothing was sent.
        """
        matching = self.matching

        def make() -> str | bytes:
            while True:
                number = next(self._numbers)
                asked = matching.tag(message, NewId(number, f"{self._prefix}-{number}"))
                if asked.key is None or asked.key not in self._raw_keys:
                    break
            payload = matching.encode(asked.sent, self.subprotocol)
            request.asked = asked
            if request.feed is not None:
                self._begin_subscribe(request, request.feed, asked)
            if asked.key is not None and not (request.feed is not None and request.feed.topics):
                self._under_way[asked.key] = request
            return payload

        try:
            self.wire.send_made(make, deadline, holder)
        except BaseException:
            self.give_up(request)
            raise

    def send_as_is(
        self,
        message: Any,
        payload: str | bytes,
        text: bool | None,
        deadline: float | None,
        holder: object,
        *,
        risk: Risk = "refused",
    ) -> None:
        """Send a lease's own message; what comes back for it, or has no other asker, is for `raw`."""
        key = self.matching.asks(message)
        if key is not None:
            if risk != "taken" and (key in self.given_up or key in self._under_way):
                if risk == "refused":
                    raise ValueError(f"{_MAY_COME} at {self.target.redacted}; take another id")
                self.wire.cut(_MAY_COME)  # and the lease moves to another connection
            remember(self._raw_keys, key)
            remember(self.raw_asked, key)
        self.wire.send_message(payload, deadline, holder, text)

    def give_up(self, request: Request) -> None:
        """Wait for its replies no longer; those that come are late."""
        asked = request.asked
        self._end_subscribe(request)
        if asked is None or asked.key is None or self._under_way.get(asked.key) is not request:
            return
        self.given_up[asked.key] = asked
        self._under_way.pop(asked.key, None)
        if request.is_ended and request.error is None:  # the last reply came while we did that
            self.given_up.pop(asked.key, None)
        if len(self.given_up) > MOST_GIVEN_UP:
            self.wire.cut(f"more than {MOST_GIVEN_UP} requests were given up, and no reply to them came")

    # --- in --------------------------------------------------------------------------------------------

    def _read(self, box: Mailbox[Any], deadline: float) -> None:
        wire = self.wire
        while not box.has_mail:
            if not (self._parts or self._is_due):
                now = monotonic()
                try:
                    # In slices: another thread may end the mailbox, and the socket knows nothing of that.
                    queue = wire.await_queue(min(deadline, now + LOOK_AGAIN), wire.holder)
                except TimeoutError as error:
                    if is_alarm(error) or now >= deadline - LOOK_AGAIN:
                        raise
                    if wire.failure is not None:  # and the thread that holds `readlock` was struck
                        self.fail(wire.failure)
                        return
                    continue
                except ConnectionError as error:
                    if is_alarm(error):
                        raise
                    self.fail(error)
                    return
                self._take(queue)
            self._hand_out(box)

    def work(self) -> None:
        """`drain`, in a worker."""
        self.has_worker = False
        self.drain()

    def _read_what_is_there(self) -> None:
        while True:
            if queue := self.wire.lend_queue(self.wire.holder):
                self._take(queue)
            if not (self._parts or self._is_due):
                break
            self._hand_out(None)
        if self.wire.failure is not None:
            self.fail(self.wire.failure)

    def _take(self, queue: deque[Payload]) -> None:
        """Read the first frame of a queue; whatever strikes, it is either in the queue or in `_parts`."""
        self.last_read = monotonic()
        take: Callable[[], Payload | None] = queue.popleft
        arrived: Iterator[Payload] = iter(take, None)
        try:
            for payload in arrived:  # no exception comes between the two: see `iteration`
                try:
                    self._parts.extend(self.matching.parts(payload, self.subprotocol))
                except BaseException:
                    queue.appendleft(payload)
                    raise
                return
        except IndexError as error:  # the lease was released: what has come is not in this queue any more
            if is_alarm(error):
                raise

    @property
    def _is_due(self) -> bool:
        """Whether what was held for a subscribe may find its topic, as one is over."""
        return bool(self._held) and (self._looks_again or not self._subscribing)

    def _hand_out(self, box: Mailbox[Any] | None) -> None:
        """Hand out what was read, until something is in that mailbox; None: all of it."""
        parts = self._parts
        while True:
            if self._is_due:  # what still finds none is held again, in order
                self._looks_again = False
                while self._held:
                    parts.appendleft(self._held[-1])
                    self._held.pop()
            if not parts or (box is not None and box.has_mail):
                return
            self._dispatch(parts[0])  # doing it again after a strike changes nothing
            parts.popleft()

    def _dispatch(self, part: Part) -> None:
        """Give a message to its asker."""
        matching, message = self.matching, part.message
        if message is not UNREADABLE:
            correlation, payload = matching.correlation, None
            try:
                if matching.answers and (answer := correlation.answer(message)) is not None:
                    payload = matching.encode(answer, self.subprotocol)
                else:
                    key = correlation.key(message)
                    if key is not None and self._is_reply(strict(key), part):
                        return
                    if matching.has_topics and self._is_pushed(part):
                        return
            except Exception as error:  # the correlation's: the message belongs to no asker
                if is_alarm(error, users_code=True):
                    raise
            if payload is not None:
                self._send_back(payload)
                return
        if self._subscribing and matching.has_topics and len(self._held) < _MOST_HELD:
            self._held.append(part)
        else:
            self._give_to_no_asker(part)

    def _is_reply(self, key: Hashable, part: Part) -> bool:
        request = self._under_way.get(key)
        if request is not None:
            self._answer(request, key, part)
            return True
        asked = self.given_up.get(key)
        if asked is not None:
            self.late_replies += 1
            asked.replies += 1
            if self.matching.correlation.is_last(part.message, asked):
                self.given_up.pop(key, None)
            return True
        if key in self.raw_asked:
            self.raw_asked.pop(key, None)
            if self.raw is not None:
                self._put_raw(part)
                return True
        return False

    def _answer(self, request: Request, key: Hashable, part: Part) -> None:
        """A reply to a request that is under way."""
        asked = request.asked
        assert asked is not None
        asked.replies += 1
        is_last = self.matching.correlation.is_last(part.message, asked)
        request.put(part.message, part)
        if is_last:
            if request.feed is not None:
                self._open_for(request, request.feed, asked, part.message)
            request.is_ended = True
            self._under_way.pop(key, None)
            self.given_up.pop(key, None)  # its thread may be doing that at this moment
            self._end_subscribe(request)
        request.ring()

    def _is_pushed(self, part: Part) -> bool:
        """Whether a message belongs to a subscription that is or was open, which gets it."""
        topics = each_topic(self.matching.correlation.topic(part.message))
        feeds = {feed: None for topic in topics for feed in self.topics.of(topic)}
        for feed in feeds:
            if self.matching.correlation.is_end(part.message):
                self.topics.close(feed)
                feed.end(self.matching.error_in(part.message))
            else:
                feed.put(part.message, part)
        return bool(feeds) or any(self.topics.has_ended(topic) for topic in topics)

    def _give_to_no_asker(self, part: Part) -> None:
        if self.topics.feed is not None and part.message is not UNREADABLE:
            self.topics.feed.put(part.message, part)
        elif self.raw is not None and len(self.raw.arrived) < _MOST_RAW:
            self._put_raw(part)
        else:
            self.unasked += 1
            if part.message is not UNREADABLE:
                self._pushes.add((self, part))

    def _put_raw(self, part: Part) -> None:
        raw = self.raw
        if raw is not None and not (raw.arrived and raw.arrived[-1] is part):
            raw.arrived.append(part)
            raw.ring()

    def _send_back(self, payload: Payload) -> None:
        """Send what the protocol wants at once; a server that does not take it gets the next one."""
        wire = self.wire
        try:
            wire.send_message(payload, monotonic() + _ANSWER_PATIENCE, wire.holder)
        except (ConnectionError, TimeoutError) as error:
            if is_alarm(error):
                raise

    # --- subscriptions ---------------------------------------------------------------------------------

    def _begin_subscribe(self, request: Request, feed: Feed, asked: Asked) -> None:
        """A subscribe is about to leave: where its topic is known, it is open from now on."""
        feed.sent = asked.sent
        if topics := each_topic(self.matching.correlation.topic_of(asked.sent, None)):
            self.topics.open(feed, topics)
        else:
            self._subscribing[request] = None

    def _end_subscribe(self, request: Request) -> None:
        if request in self._subscribing:
            self._subscribing.pop(request, None)
            self._looks_again = True

    def _open_for(self, request: Request, feed: Feed, asked: Asked, reply: Any) -> None:
        """The reply to a subscribe has come: it names the topic."""
        try:
            if self.matching.error_in(reply) is None:
                self.topics.open(feed, each_topic(self.matching.correlation.topic_of(asked.sent, reply)))
        except Exception as error:  # the correlation's: for who subscribes, or it would wait for ever
            if is_alarm(error, users_code=True):
                raise
            request.error = error

    # --- the end ---------------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether it is certainly as a connection should be that another lease may have."""
        return self.raw is None and not self._under_way and self.topics.is_empty and self.topics.can_be_ended

    def forget_lease(self) -> None:
        """A lease is over: what it still waits for is late, and what comes is not its own."""
        raw, self.raw, self.raw_asked = self.raw, None, {}
        if raw is not None:
            raw.end(not_held(self.target))
        for request in list(self._under_way.values()):
            self.give_up(request)
            request.end(not_held(self.target))

    def fail(self, error: BaseException) -> None:
        """The connection has ended: so have all who wait for something from it, each at once."""
        for box in [*list(self._under_way.values()), *self.topics.all(), *([self.raw] if self.raw else [])]:
            box.end(error)
        self._under_way.clear()


__all__ = ["MOST_GIVEN_UP", "Dispatcher"]
