"""The base of all protocols: its defaults, a request, and a protocol of three lines."""

from __future__ import annotations

import builtins
import collections.abc
import inspect
from collections.abc import Hashable
from typing import Any

import pytest
from hypothesis import given

import jetsocket
from jetsocket import correlation
from jetsocket.correlation import Asked, Correlation, NewId, key_of
from tests.correlation.driver import Conversation, Opened
from tests.correlation.garbage import messages, never_raises


def test_a_request_begins_with_no_reply() -> None:
    asked = Asked({"a": 1}, {"a": 1, "id": 7}, 7)
    assert (asked.message, asked.sent, asked.key) == ({"a": 1}, {"a": 1, "id": 7}, 7)
    assert (asked.replies, asked.notes) == (0, {})
    assert Asked(None, None, 7).notes is not asked.notes
    assert repr(asked) == "<Asked 7, replies: 0>"


def test_a_request_takes_no_other_attribute() -> None:
    with pytest.raises(AttributeError):
        Asked(None, None, 7).note = 1  # type: ignore[attr-defined]  # that is the point


def test_an_id_has_two_forms() -> None:
    new_id = NewId(7, "abc7")
    assert (new_id.number, new_id.text) == (7, "abc7")


def test_without_a_protocol_no_reply_comes_and_everything_is_unasked() -> None:
    conversation = Conversation(Correlation())
    call = conversation.ask({"id": 1})
    assert conversation.out == [{"id": 1}]
    assert call.result(conversation.correlation) is None
    conversation.comes({"id": 1}, '"text"', [1, 2])
    assert conversation.unasked == [{"id": 1}, "text", [1, 2]]


def test_the_defaults() -> None:
    correlation = Correlation()
    asked = Asked("m", "s", 1)
    conn = Opened([])
    correlation.configure(conn)
    assert conn.sent == []
    assert (correlation.subprotocols, correlation.heartbeat) == ((), None)
    assert correlation.encode({}, None) is None and correlation.decode("{}", None) is None
    assert list(correlation.split([1, 2])) == [[1, 2]]
    assert correlation.tag("m", NewId(1, "a")) == ("m", None)
    assert correlation.is_last({}, asked) is True
    assert correlation.result([1, 2], asked) == 2
    assert correlation.untag("r", "m") == "r"
    assert correlation.topic_of("s", None) is None and correlation.unsubscribe("t", "s") is None


class Ticket(Correlation):
    """A protocol of one field, as the documentation of the base has it."""

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        return {**message, "ticket": new_id.number}, new_id.number

    def key(self, message: Any) -> Hashable | None:
        return key_of(message.get("ticket")) if isinstance(message, dict) else None


def test_a_protocol_with_one_id_field_is_three_lines() -> None:
    conversation = Conversation(Ticket())
    first, second = conversation.ask({"do": "a"}), conversation.ask({"do": "b", "ticket": 99})
    assert conversation.out == [{"do": "a", "ticket": 1}, {"do": "b", "ticket": 2}]
    conversation.comes(
        {"ticket": 2, "done": "b"}, {"ticket": True}, {"ticket": "1"}, {"ticket": 1, "done": "a"}
    )
    assert first.result(conversation.correlation) == {"ticket": 1, "done": "a"}
    assert second.result(conversation.correlation) == {"ticket": 2, "done": "b"}
    assert conversation.unasked == [{"ticket": True}, {"ticket": "1"}]


def test_what_is_sent_as_it_is_asks_by_its_key_unless_told() -> None:
    assert Ticket().asks({"ticket": 5}) == 5
    assert Ticket().asks("text") is None


@given(messages)
def test_the_base_never_raises(message: Any) -> None:
    never_raises(Correlation(), message)


def test_a_protocol_of_ones_own_finds_all_its_types_where_the_correlations_are() -> None:
    public = {*jetsocket.__all__, *correlation.__all__, *dir(builtins), *dir(collections.abc), "Any", "Self"}
    named = {
        name
        for each in vars(Correlation).values()
        if inspect.isfunction(each)
        for annotation in each.__annotations__.values()
        for name in annotation.replace("[", " ").replace("]", " ").replace(",", " ").replace("|", " ").split()
    }
    assert {"Opened", "Topics", "NewId", "Asked", "JetSocketError"} <= named <= public
    assert all(hasattr(correlation, name) for name in correlation.__all__)
