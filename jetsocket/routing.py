"""Each message of a connection to its asker: a request, a subscription, a lease that sends, `on_push`.

In this order, what comes belongs to: the protocol itself (`answer`); a request under way; one that was given
up, so that it is late, and dropped; an open subscription; a subscribe under way, whose topic its reply will
name; a subscription that has ended, so that it is dropped; the lease, if it has sent by itself; `on_push`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.correlation.base import Asked
from jetsocket.correlation_calls import UNREADABLE, Matching, Part, Payload, each_topic, strict
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.pending_requests import MOST_NOTED, Request, note
from jetsocket.pushes import Pushes
from jetsocket.reading_turns import Mailbox, Reading
from jetsocket.subscription_queue import Feed
from jetsocket.topics import StillOpenError, Topics
from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

_MOST_HELD = 10_000  # messages kept for a subscribe that is under way
_MOST_RAW = 10_000  # messages kept for a lease that has sent by itself and does not receive
_ANSWER_PATIENCE = 1.0  # s for sending what the protocol wants back at once


class Routing(Reading):
    """Who waits for what on one connection. Only the thread that leads hands out.

    Attributes:
        wire: The connection.
        matching: What the pool's correlation says of messages.
        subprotocol: The one that the server has chosen.
        topics: Its subscriptions.
        raw: Where what has no other asker goes: to the lease that has sent by itself; None: none has.
        raw_asked: The keys of what it sent that have not come back.
        given_up: Requests whose reply may still come, by key.
        raw_keys: Keys of what was sent as it is, and in which lease: none of them is ever given to a request.
        cancelled: Keys of requests that were given up, and of which the server knows.
        answered: Keys of requests whose last reply has come, of late, and in which lease that was.
        tenancy: Which of the leases that had the connection alone is, or was, the last.
        late_replies: How many came after their request was given up.
        unasked: How many messages belonged to none.
    """

    def __init__(self, wire: WebSocket, target: Target, matching: Matching, pushes: Pushes) -> None:
        """Nothing was asked yet."""
        super().__init__()
        self.wire, self.matching = wire, matching
        self.subprotocol = wire.getsubprotocol()
        self.topics = Topics()
        self.raw: Mailbox[Part] | None = None
        self.raw_asked: dict[Hashable, None] = {}
        self.given_up: dict[Hashable, Asked] = {}
        self.raw_keys: dict[Hashable, int] = {}
        self.answered: dict[Hashable, int] = {}
        self.cancelled: dict[Hashable, int] = {}
        self.late_replies = self.unasked = self.tenancy = 0
        self._target, self._pushes = target, pushes
        self._under_way: dict[Hashable, Request] = {}
        self._subscribing: dict[Request, None] = {}
        self._held, self._looks_again = deque[Part](), False  # see `_is_due`
        self._parts: deque[Part] = deque()  # what was read and is not handed out yet
        self._handed: Part | None = None  # the first of those, if it was
        self._was_reply = False  # whether what was handed out last was one

    @property
    def target(self) -> Target:
        """Where the connection leads."""
        return self._target

    @property
    def in_flight(self) -> int:
        """Requests under way."""
        return len(self._under_way)

    # --- a message's way -------------------------------------------------------------------------------

    @property
    def _is_due(self) -> bool:
        """Whether what was held for a subscribe may find its topic, as one is over."""
        return bool(self._held) and (self._looks_again or not self._subscribing)

    def _hand_out(self, box: Mailbox[Any] | None) -> None:
        """Hand out what was read, until something is in that mailbox; None: all of it.

        And behind the last reply that was waited for, what is there for others, as long as it is replies. Of
        what is pushed, the rest waits until it is asked for: a subscription may take only so much.
        """
        parts = self._parts
        while True:
            if self._is_due:  # what still finds none is held again, in order
                self._looks_again, self._handed = False, None
                while self._held:
                    if not (parts and parts[0] is self._held[-1]):  # a strike came in between
                        parts.appendleft(self._held[-1])
                    self._held.pop()
            if not parts or (box is not None and box.has_mail and not (box.is_ended and self._was_reply)):
                return
            part = parts[0]
            if part is not self._handed:  # else a strike came before the next line but one
                self._was_reply = False
                self._route(part)
                self._handed = part
            parts.popleft()
            self._handed = None

    def _route(self, part: Part) -> None:
        """Give a message to its asker; once more after a strike, which changes nothing."""
        matching, message, is_old = self.matching, part.message, False
        if message is not UNREADABLE:
            correlation, payload = matching.correlation, None
            try:
                if matching.answers and (answer := correlation.answer(message)) is not None:
                    payload = matching.encode(answer, self.subprotocol)
                else:
                    key = correlation.key(message)
                    if key is not None and (key := strict(key)) is not None:
                        if self._is_reply(key, part):
                            return
                        is_old = self._is_of_another_lease(key)
                    if matching.has_topics and self._is_pushed(part):
                        return
            except Exception as error:  # the correlation's: the message belongs to no asker
                if is_alarm(error, users_code=True):
                    raise
            if payload is not None:
                self._send_back(payload)
                return
        if self._subscribing and matching.has_topics and len(self._held) < _MOST_HELD:
            if not (self._held and self._held[-1] is part):
                self._held.append(part)
        else:
            self._give_to_no_asker(part, is_old=is_old)

    def _is_reply(self, key: Hashable, part: Part) -> bool:
        request = self._under_way.get(key)
        if request is not None:
            self._answer(request, key, part)
            return True
        asked = self.given_up.get(key)
        if asked is not None:
            is_last = self._count(part.message, asked)
            self.late_replies += 1
            if is_last:
                note(self.answered, key, self.tenancy)
                self.given_up.pop(key, None)
            else:
                self._cancel(key, asked)
            return True
        if key in self.cancelled:
            self.late_replies += 1
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
        self._was_reply = True
        is_last = self._count(part.message, asked)
        request.put(part.message, part)
        if is_last:
            if request.feed is not None:
                self._open_for(request, request.feed, asked, part.message)
                self._end_subscribe(request)
            self._note_answered(key)
            request.is_ended = True
            self.given_up.pop(key, None)  # its thread may be doing that at this moment
        request.ring()
        if is_last:
            self._handed = part  # first: handed out again, it would belong to no request
            self._under_way.pop(key, None)

    def holder_for(self, borrower: Borrower) -> object:
        """Who may use the connection, for that borrower: itself, or all that share it."""
        return self if borrower.shares else borrower

    def _count(self, message: Any, asked: Asked) -> bool:
        """Count one more reply, and ask whether it is the last; one over which that raises is none."""
        asked.replies += 1
        try:
            return self.matching.correlation.is_last(message, asked)
        except BaseException:
            asked.replies -= 1
            raise

    def _note_answered(self, key: Hashable) -> None:
        """What has that key from now on is for none of another lease."""
        answered = self.answered
        answered[key] = self.tenancy
        if len(answered) > 2 * MOST_NOTED:
            self.answered = dict(list(answered.items())[-MOST_NOTED:])

    def _is_of_another_lease(self, key: Hashable) -> bool:
        """Whether it belongs to what an earlier lease has asked: one more reply, a push behind the last."""
        tenancy = self.tenancy
        return self.answered.get(key, tenancy) < tenancy or self.raw_keys.get(key, tenancy) < tenancy

    def _cancel(self, key: Hashable, asked: Asked) -> None:
        """Tell the server that a request was given up; where there is no room now, at its next reply."""
        matching, wire = self.matching, self.wire
        if not matching.cancels or wire.failure is not None:
            return
        try:
            message = matching.correlation.cancel(asked)
            payload = None if message is None else matching.encode(message, self.subprotocol)
        except Exception as error:  # the correlation's, or the serializer's: its replies are late, then
            if is_alarm(error, users_code=True):
                raise
            return
        if payload is not None and wire.push_message(payload):
            note(self.cancelled, key, self.tenancy)
            self.given_up.pop(key, None)

    def begin_lease(self) -> None:
        """From now on one borrower has the connection alone: what others have asked is none of his."""
        self.tenancy += 1

    def _is_pushed(self, part: Part) -> bool:
        """Whether a message belongs to a subscription that is or was open, which gets it."""
        topics = each_topic(self.matching.correlation.topic(part.message))
        feeds = {feed: None for topic in topics for feed in self.topics.of(topic)}
        is_end = bool(topics) and self.matching.correlation.is_end(part.message)
        for feed in feeds:
            if is_end:
                self.topics.close(feed)
                feed.end(self.matching.error_in(part.message))
            else:
                feed.put(part.message, part)
        if is_end:
            for topic in topics:
                self.topics.confirm_end(topic)
        if feeds:
            if self._subscribing and not is_end:
                self._keep_for_subscribes(part, topics)
            return True
        if self._subscribing and not is_end and len(self._held) < _MOST_HELD:
            return any(self.topics.may_straggle(topic) for topic in topics)  # else it may be subscribed anew
        return any(self.topics.has_ended(topic) for topic in topics)

    def _keep_for_subscribes(self, part: Part, topics: list[Hashable]) -> None:
        """What an open subscription gets may be for another one, too, whose subscribe is under way."""
        for request in list(self._subscribing):
            if (feed := request.feed) is not None and len(feed.early) < _MOST_HELD:
                feed.early[id(part)] = (part, topics)  # again, after a strike: in its place

    def _give_to_no_asker(self, part: Part, *, is_old: bool) -> None:
        feed, raw = self.topics.feed, self.raw
        if feed is not None and not is_old:
            feed.put(part if part.message is UNREADABLE else part.message, part)
        elif raw is not None and not is_old and len(raw.arrived) < _MOST_RAW:
            self._put_raw(part)
        else:
            self.unasked += 1
            if part.message is UNREADABLE:
                self._note_unreadable(part)
            else:
                self._pushes.add((self, part))

    def _note_unreadable(self, part: Part) -> None:
        payload = part.payload
        assert payload is not None, "it could not be split"
        matching, subprotocol = self.matching, self.subprotocol
        self._pushes.note_unreadable(
            self.target.redacted, lambda: matching.why_unreadable(payload, subprotocol)
        )

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

    # --- subscribes under way ----------------------------------------------------------------------------

    def _leaves(self, request: Request, asked: Asked, number: int) -> None:
        """A subscribe, or its end, is about to leave; its number grows, as the lock of the send is held.

        Raises:
            StillOpenError: It would end a topic that is open: it must not.
        """
        if request.ends is not None and not self.topics.may_end(request.ends, number):
            raise StillOpenError
        request.asked, request.number = asked, number
        if request.feed is not None:
            self._begin_subscribe(request, request.feed, asked)

    def _begin_subscribe(self, request: Request, feed: Feed, asked: Asked) -> None:
        """A subscribe is about to leave: where its topic is known, it is open from now on."""
        feed.sent = asked.sent
        if topics := each_topic(self.matching.correlation.topic_of(asked.sent, None)):
            self.topics.open(feed, topics)
            request.is_open = True
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
                for mark, (part, topics) in list(feed.early.items()):
                    if not feed.topics.keys().isdisjoint(topics):
                        feed.put(part.message, part)
                    feed.early.pop(mark, None)  # if it is struck before, it is put again: see `Feed.put`
        except Exception as error:  # the correlation's: for who subscribes, or it would wait for ever
            if is_alarm(error, users_code=True):
                raise
            request.error = error


__all__ = ["Routing"]
