"""A conversation through one correlation, without a network: a pure model of what a pool does with it.

`Conversation` sends by `tag` and hands in what comes, in the order of dispatch of the design: `answer`, a
request under way, one that was given up, an open subscription, what is held while a subscribe is under way, a
subscription that has ended, and what was not asked for.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Hashable, Iterable
from typing import Any

from jetsocket.correlation import Asked, Correlation, NewId
from jetsocket.correlation.reading import topics_of


class Call:
    """A request, and what has come of it."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.replies: list[Any] = []
        self.error: Exception | None = None
        self.done = asked.key is None

    def result(self, correlation: Correlation) -> Any:
        """What `request` returns, or raises."""
        assert self.done, f"{self.asked} waits for more"
        if self.error is not None:
            raise self.error
        if not self.replies:
            return None
        return correlation.untag(correlation.result(self.replies, self.asked), self.asked.message)


class Feed:
    """A subscription, and what has come of it."""

    def __init__(self, sent: Any) -> None:
        self.sent = sent
        self.topics: list[Hashable] = []
        self.pushes: list[Any] = []
        self.early: list[Any] = []  # what came for open ones while this was under way
        self.ended = False
        self.error: Exception | None = None


class Conversation:
    """One connection of a pool with a correlation."""

    def __init__(self, correlation: Correlation, *, subprotocol: str | None = None) -> None:
        self.correlation = correlation
        self.subprotocol = subprotocol
        self.out: list[Any] = []  # as the server sees it
        self.unasked: list[Any] = []
        self.late: list[Any] = []
        self.dropped: list[Any] = []
        self._numbers = itertools.count(1)
        self._calls: dict[Hashable, Call] = {}
        self._given_up: set[Hashable] = set()
        self._feeds: list[Feed] = []
        self._ended: set[Hashable] = set()
        self._opening: list[tuple[Call, Feed]] = []
        self._held: list[Any] = []

    # --- out

    def new_id(self) -> NewId:
        number = next(self._numbers)
        return NewId(number, f"c0ffee{number:x}")

    def ask(self, message: Any) -> Call:
        """As `request` sends it."""
        before = copy.deepcopy(message)
        sent, key = self.correlation.tag(message, self.new_id())
        assert message == before, "the caller's message was changed"
        self._out(sent)
        call = Call(Asked(message, sent, key))
        if key is not None:
            assert key not in self._calls, "a key was given twice"
            self._calls[key] = call
        return call

    def give_up(self, call: Call) -> None:
        """As a timeout does."""
        del self._calls[call.asked.key]
        self._given_up.add(call.asked.key)

    def subscribe(self, message: Any) -> Feed:
        before = copy.deepcopy(message)
        sent, key = self.correlation.tag(message, self.new_id())
        assert message == before, "the caller's message was changed"
        self._out(sent)
        feed = Feed(sent)
        at_once = topics_of(self.correlation.topic_of(sent, None))
        if at_once:
            feed.topics = at_once
            self._feeds.append(feed)
            return feed
        call = Call(Asked(message, sent, key))
        self._calls[key] = call
        self._opening.append((call, feed))
        return feed

    def unsubscribe(self, feed: Feed) -> list[Call]:
        self._feeds.remove(feed)
        calls = []
        for topic in feed.topics:
            self._ended.add(topic)
            message = self.correlation.unsubscribe(topic, feed.sent)
            assert message is not None, f"nothing ends {topic!r}"
            calls.append(self.ask(message))
        return calls

    # --- in

    def comes(self, *frames: Any) -> None:
        """Hand in what the server sends."""
        for frame in frames:
            for message in self.correlation.split(self._in(frame)):
                self._dispatch(message)

    def _dispatch(self, message: Any) -> None:
        correlation = self.correlation
        answer = correlation.answer(message)
        if answer is not None:
            self._out(answer)
            return
        key = correlation.key(message)
        if key is not None and key in self._calls:
            self._reply(self._calls[key], message)
        elif key is not None and key in self._given_up:
            self.late.append(message)
        else:
            self._push(message)

    def _reply(self, call: Call, message: Any) -> None:
        asked, correlation = call.asked, self.correlation
        asked.replies += 1
        call.replies.append(message)
        call.error = call.error or correlation.error(message)
        if not correlation.is_last(message, asked):
            return
        call.done = True
        del self._calls[asked.key]
        for each in [each for each in self._opening if each[0] is call]:
            self._opening.remove(each)
            feed = each[1]
            if call.error is not None:
                feed.error, feed.ended = call.error, True
            else:
                feed.topics = topics_of(
                    correlation.topic_of(asked.sent, correlation.result(call.replies, asked))
                )
                self._feeds.append(feed)
                feed.pushes += [
                    each for each in feed.early if set(topics_of(correlation.topic(each))) & set(feed.topics)
                ]
            held, self._held = self._held, []
            for push in held:
                self._push(push)

    def _push(self, message: Any) -> None:
        correlation = self.correlation
        topics = topics_of(correlation.topic(message))
        feeds = [feed for feed in self._feeds if set(feed.topics) & set(topics)]
        is_end = bool(topics) and correlation.is_end(message)
        for feed in feeds:
            if is_end:
                feed.ended, feed.error = True, correlation.error(message)
                self._feeds.remove(feed)
                self._ended.update(feed.topics)
            else:
                feed.pushes.append(message)
        if feeds:
            for _, opening in self._opening if not is_end else ():
                opening.early.append(message)
        elif self._opening and not (is_end and set(topics) & self._ended):
            self._held.append(message)
        elif set(topics) & self._ended:
            self.dropped.append(message)
        else:
            self.unasked.append(message)

    # --- the wire

    def _out(self, message: Any) -> None:
        payload = self.correlation.encode(message, self.subprotocol)
        if payload is None:
            payload = json.dumps(message)
        self.out.append(self._read(payload))

    def _in(self, frame: Any) -> Any:
        return self._read(frame if isinstance(frame, (str, bytes)) else json.dumps(frame))

    def _read(self, payload: str | bytes) -> Any:
        message = self.correlation.decode(payload, self.subprotocol)
        return json.loads(payload) if message is None else message


class Opened:
    """A new connection, for `configure`: what the server says, and what it was sent."""

    def __init__(self, says: Iterable[Any]) -> None:
        self._says = iter(says)
        self.sent: list[Any] = []

    def send(self, data: Any) -> None:
        self.sent.append(json.loads(json.dumps(data)))

    def recv(self) -> Any:
        return next(self._says)
