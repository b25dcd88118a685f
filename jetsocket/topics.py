"""The subscriptions of one connection: which topics are open, for whom, and which have ended.

Nothing here does I/O, and no lock is taken: the thread that leads (`reading_turns`) hands out what comes, and
who opens or ends a subscription touches the dicts by single operations. A finalizer may end one anywhere.

**The same topic opened by one thread and ended by another at once.** Our messages have numbers that grow in
the order in which they leave. What ends a topic at the server is written down by its number, as it leaves,
and does not leave at all once another subscription is open (`may_end`); who subscribes looks, when it is
open, whether the topic was ended behind its own message (`was_ended_behind`), and subscribes once more. One
of the two sees the other: each writes first, and looks then.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from jetsocket.exceptions import InvalidStateError
from jetsocket.interrupts import suppress
from jetsocket.subscription_queue import Feed

_MOST_ENDED = 4096  # topics that are remembered as ended on a connection


class StillOpenError(Exception):
    """A topic is not to be ended at the server: another subscription has it."""


class Topics:
    """What is subscribed on one connection."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._feeds: dict[Feed, None] = {}  # all that are open
        self._open: dict[Hashable, dict[Feed, None]] = {}  # those of a topic; of one that has ended, none
        self._ended: dict[Hashable, int] = {}  # by which of our messages; 0: by none
        self._confirmed: dict[Hashable, None] = {}  # of those: the server has said that nothing more comes
        self._loose: dict[object, object] = {}  # by what was begun and did not get to its end: whose it is
        self._rest: dict[None, Feed] = {}

    @property
    def feed(self) -> Feed | None:
        """The subscription that takes what belongs to no topic."""
        return self._rest.get(None)

    @property
    def can_be_ended(self) -> bool:
        """Whether all that was opened can be ended; if not, the connection is to be closed."""
        return not self._loose

    def leaves_open(self, owner: object) -> bool:
        """Whether something of that borrower's may be open at the server, and is not ended any more."""
        return any(each is owner for each in list(self._loose.values()))

    def begin(self, what: object, owner: object) -> None:
        """A subscribe or its end is under way, and what the server has open is not known until `settle`."""
        self._loose[what] = owner

    def settle(self, what: object) -> None:
        """The server has confirmed it."""
        self._loose.pop(what, None)

    @property
    def is_empty(self) -> bool:
        """Whether no subscription is open."""
        return not self._feeds and not self._rest

    def open(self, feed: Feed, topics: Iterable[Hashable]) -> None:
        """Give a subscription what is pushed under these topics, from now on."""
        self._feeds[feed] = None
        for topic in topics:
            feed.topics[topic] = None
            while True:
                feeds = self._open.setdefault(topic, {})
                feeds[feed] = None
                if self._open.get(topic) is feeds:  # else it was forgotten at the same time
                    break

    def open_rest(self, feed: Feed) -> None:
        """Give a subscription all that belongs to no topic.

        Raises:
            InvalidStateError: Another one has it.
        """
        if self._rest.setdefault(None, feed) is not feed:
            raise InvalidStateError(
                f"another subscription at {feed.where} takes what belongs to no topic; one a connection",
                current_state="subscribed",
            )

    def close(self, feed: Feed) -> list[Hashable]:
        """End a subscription; returns the topics that no other one has open."""
        last: list[Hashable] = []
        if self.feed is feed:
            self._rest.pop(None, None)
        for topic in list(feed.topics):
            feeds = self._open.get(topic)
            if feeds is None or feed not in feeds:
                continue
            feeds.pop(feed, None)
            if not feeds:
                self._confirmed.pop(topic, None)
                self._ended[topic] = self._ended.pop(topic, 0)  # as the latest
                last.append(topic)
        self._feeds.pop(feed, None)
        with suppress(RuntimeError, StopIteration):  # another thread is here at the same time
            while len(self._ended) > _MOST_ENDED:
                self._forget(next(iter(self._ended)))
        return last

    def _forget(self, topic: Hashable) -> None:
        """It is open, or ended so long ago that nothing of it comes any more."""
        self._ended.pop(topic, None)
        self._confirmed.pop(topic, None)
        if not self._open.get(topic):
            for feed in list(self._open.pop(topic, {})):  # opened at this moment
                self.open(feed, [topic])

    def confirm_end(self, topic: Hashable) -> None:
        """The server has said that a topic has ended: what comes from now on is of who subscribes anew."""
        if self.has_ended(topic):
            self._confirmed[topic] = None

    def may_straggle(self, topic: Hashable) -> bool:
        """Whether what comes for a topic may be of a subscription that has ended on this side only."""
        return self.has_ended(topic) and topic not in self._confirmed

    def may_end(self, topic: Hashable, number: int) -> bool:
        """Whether that message of ours, which is about to leave, is to end a topic at the server."""
        if self._open.get(topic):
            return False
        self._ended[topic] = number  # first: see above
        return not self._open.get(topic)

    def was_ended_behind(self, feed: Feed, number: int) -> bool:
        """Whether a topic of an open subscription was ended at the server behind that message of ours."""
        return any(self._ended.get(topic, 0) > number for topic in list(feed.topics))

    def end_all(self) -> None:
        """End all subscriptions on this side: who reads one unsubscribes then."""
        for feed in self.all():
            feed.end()

    def abandon(self, owner: object) -> None:
        """A lease is gone without ending what it has subscribed: the connection can't be kept."""
        for feed in self.all():
            if feed.owner is owner:
                self.close(feed)
                feed.end()
                self.begin(feed, owner)

    def of(self, topic: Hashable) -> list[Feed]:
        """Who has subscribed to that topic."""
        return list(self._open.get(topic, ()))

    def has_ended(self, topic: Hashable) -> bool:
        """Whether it was open and is not any more."""
        return topic in self._ended and not self._open.get(topic)

    @property
    def has_any_ended(self) -> bool:
        """Whether something may still come for a topic that was open and is not any more."""
        return bool(self._ended)

    def all(self) -> list[Feed]:
        """All subscriptions."""
        return [*list(self._feeds), *list(self._rest.values())]


__all__ = ["StillOpenError", "Topics"]
