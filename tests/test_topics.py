"""The subscriptions of one connection: who gets what, what is bounded, and what can be ended.

Also tests: `subscription_queue`.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from jetsocket import InvalidStateError, SubscriptionOverflowError, topics
from jetsocket.subscription_queue import Feed
from jetsocket.topics import Topics


def feed(most: int = 10, overflow: Any = "error") -> Feed:
    return Feed(most, overflow, "ws://h/")


def put(where: Feed, *messages: Any) -> None:
    for message in messages:
        where.put(message, object())


@pytest.mark.parametrize("message", [None, 1, True, "", "x"])
def test_equal_messages_are_several_and_one_that_is_handed_out_again_is_one(message: Any) -> None:
    got, mark = feed(), object()
    put(got, message, message)
    got.put(message, mark)
    got.put(message, mark)
    assert list(got.arrived) == [message] * 3


@pytest.mark.parametrize("strike_at", range(8))
def test_a_strike_in_between_adds_none_twice(strike_at: int) -> None:
    """A message is handed out again, with its mark, where an exception struck the thread that did so."""

    class Struck(BaseException):
        pass

    def profile(frame: FrameType, event: str, arg: object) -> None:
        if event != "c_call" and frame.f_code.co_filename == topics.__file__:
            behind.append(arg)
            if len(behind) > strike_at:
                sys.setprofile(None)
                raise Struck

    got, mark, behind = feed(), object(), list[object]()
    sys.setprofile(profile)
    try:
        got.put("message", mark)
    except Struck:
        assert len(behind) == strike_at + 1
    finally:
        sys.setprofile(None)
    got.put("message", mark)
    assert list(got.arrived) == ["message"]


def test_a_full_feed_ends_behind_what_waits() -> None:
    full = feed(2)
    put(full, 1, 2, 3, 4)
    assert list(full.arrived) == [1, 2]
    assert full.is_ended
    assert isinstance(full.error, SubscriptionOverflowError)
    assert full.error.dropped == full.dropped == 1


def test_a_full_feed_may_drop_the_oldest() -> None:
    full = feed(2, "drop_oldest")
    put(full, 1, 2, 3, 4)
    assert list(full.arrived) == [3, 4]
    assert (full.dropped, full.is_ended) == (2, False)


def test_each_topic_has_its_subscribers_and_is_ended_with_the_last() -> None:
    topics, a, b = Topics(), feed(), feed()
    topics.open(a, ["x", "y"])
    topics.open(b, ["y"])
    topics.open(b, ["y"])  # confirmed twice
    assert (topics.of("x"), topics.of("y"), topics.of("z")) == ([a], [a, b], [])
    assert topics.close(a) == ["x"]
    assert topics.has_ended("x")
    assert not topics.has_ended("y")
    assert topics.close(b) == ["y"]
    assert topics.close(b) == []
    assert topics.is_empty
    topics.open(a, ["x"])
    assert not topics.has_ended("x")


def test_one_subscription_takes_the_rest() -> None:
    topics, rest = Topics(), feed()
    topics.open_rest(rest)
    assert topics.all() == [rest]
    with pytest.raises(InvalidStateError, match="one a connection"):
        topics.open_rest(feed())
    assert topics.close(rest) == []
    assert topics.is_empty


def test_what_has_ended_is_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetsocket.topics._MOST_ENDED", 3)
    topics = Topics()
    for number in range(5):
        one = feed()
        topics.open(one, [number])
        topics.close(one)
    assert [topics.has_ended(number) for number in range(5)] == [False, False, True, True, True]


def test_what_one_begins_and_another_settles_are_told_apart() -> None:
    """Several threads subscribe and unsubscribe at once on a shared connection."""
    topics = Topics()
    topics.begin("a", "one")
    topics.begin("b", "another")
    topics.settle("a")
    assert not topics.leaves_open("one")
    assert topics.leaves_open("another")
    assert not topics.can_be_ended
    topics.settle("b")
    topics.settle("b")
    assert topics.can_be_ended


def test_a_subscription_whose_lease_is_gone_leaves_the_connection_unfit() -> None:
    topics, mine, other = Topics(), feed(), feed()
    mine.owner, other.owner = "me", "other"
    topics.open(mine, ["x"])
    topics.open(other, ["x"])
    topics.abandon("me")
    assert (mine.is_ended, other.is_ended) == (True, False)
    assert topics.of("x") == [other]
    assert topics.leaves_open("me")
    assert not topics.leaves_open("other")


def test_all_can_be_ended_at_once() -> None:
    topics, some = Topics(), [feed(), feed()]
    for number, each in enumerate(some):
        topics.open(each, [number, "both"])
    topics.end_all()
    assert all(each.is_ended and each.error is None for each in some)
    assert len(topics.all()) == 2  # who reads them unsubscribes
