"""Dotted paths: what they find, and which topics a message names."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation.paths import TopicPath, look_up, names_of
from tests.correlation.garbage import messages, nested


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("a.b", 7),
        ("c.0", "x"),
        ("c.1.d", 8),
        ("c.2", None),
        ("t.1.e", 9),
        ("c.-1", None),
        ("c.d", None),
        ("c.99999999999999999999", None),
        ("a.b.c", None),
        ("a.x", None),
        ("9", "nine"),
    ],
)
def test_what_stands_at_a_path(path: str, found: Any) -> None:
    message = {"a": {"b": 7}, "c": ["x", {"d": 8}], "9": "nine", "t": (0, {"e": 9})}
    assert look_up(message, names_of(path, "path")) == found


@pytest.mark.parametrize(
    ("path", "error"), [("", ValueError), ("a..b", ValueError), (".a", ValueError), (7, TypeError)]
)
def test_what_is_no_path_is_refused(path: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="reply_path must be a dotted path"):
        names_of(path, "reply_path")


@pytest.mark.parametrize(
    ("path", "message", "topics"),
    [
        ("stream", {"stream": "btcusdt@trade"}, ["btcusdt@trade"]),
        ("stream", {"result": None}, []),
        ("stream", {"stream": None}, []),
        ("params", {"params": ["a", "b"]}, ["a", "b"]),
        ("params", {"params": ("a", "b")}, ["a", "b"]),
        ("args.*.c", {"args": ({"c": 1}, {"c": ("x",)})}, [1, "x"]),
        ("data.*.symbol", {"data": [{"symbol": "A"}, {"symbol": "B"}, {"symbol": "A"}]}, ["A", "B"]),
        ("data.*", {"data": ["A", 7]}, ["A", 7]),
        ("data.*.symbol", {"data": {"symbol": "A"}}, []),
        ("data.*.symbol", {"data": []}, []),
        ("data.0.symbol", {"data": [{"symbol": "A"}, {"symbol": "B"}]}, ["A"]),
        (("channel", "data.*.symbol"), {"channel": "t", "data": [{"symbol": "A"}]}, [("t", "A")]),
        (("channel", "data.*.symbol"), {"channel": "t", "data": {"pairs": []}}, [("t", None)]),
        (("channel", "data.*.symbol"), {"channel": "t", "data": []}, [("t", None)]),
        (("channel", "symbol"), {"channel": "t", "symbol": ["A", "B"]}, [("t", "A"), ("t", "B")]),
        (("channel", "symbol"), {"channel": "t"}, [("t", None)]),
        (("channel", "symbol"), {}, []),
        (("args.*.c", "args.*.i"), {"args": [{"c": 1, "i": "A"}, {"c": 2, "i": "B"}]}, [(1, "A"), (2, "B")]),
        (["arg.c"], {"arg": {"c": 1}}, [(1,)]),
    ],
)
def test_the_topics_that_a_message_names(path: Any, message: Any, topics: list[Any]) -> None:
    assert TopicPath(path, "topic_path").topics(message) == topics


def test_an_object_is_a_topic_whatever_the_order_of_its_members() -> None:
    path = TopicPath("arg", "topic_path")
    first = path.topics({"arg": {"channel": "t", "instId": "A"}})
    assert first == path.topics({"arg": {"instId": "A", "channel": "t"}}) and len(first) == 1
    assert first != path.topics({"arg": {"instId": "B", "channel": "t"}})


def test_topics_are_strict() -> None:
    path = TopicPath("t", "topic_path")
    named = [path.topics({"t": value}) for value in (1, "1", True)]
    assert all(named) and len({each[0] for each in named}) == 3


def test_there_is_a_limit_to_what_a_message_names() -> None:
    path = TopicPath(("a", "b"), "topic_path")
    assert len(path.topics({"a": list(range(10_000)), "b": list(range(10_000))})) == 4096


@pytest.mark.parametrize(
    "path", [[], "a.*.*", ("a.*", "b.*"), ("a.*.b.*",), "", ("a", ""), ("a.*.x", "a.b.*.x")]
)
def test_paths_that_can_not_be_followed_are_refused(path: Any) -> None:
    with pytest.raises(ValueError, match="topic_path"):
        TopicPath(path, "topic_path")


def test_paths_that_are_no_text_are_refused() -> None:
    with pytest.raises(TypeError, match="topic_path"):
        TopicPath(["a", 7], "topic_path")  # type: ignore[list-item]  # that is the point


@pytest.mark.parametrize(
    ("path", "message", "topic", "narrowed"),
    [
        ("params", {"params": ["a", "b"], "x": 1}, "a", {"params": ["a"], "x": 1}),
        ("params", {"params": "a"}, "a", {"params": "a"}),
        (("c", "s"), {"c": "t", "s": ["A", "B"]}, ("t", "B"), {"c": "t", "s": ["B"]}),
        (("p.c", "p.s"), {"p": {"c": "t", "s": ["A", "B"]}}, ("t", "B"), {"p": {"c": "t", "s": ["B"]}}),
        ("args.*.c", {"args": [{"c": 1}, {"c": 2}]}, 2, {"args": [{"c": 2}]}),
        (("args.*.c", "args.*.i"), {"args": [{"c": 1, "i": 1}, {"c": 1}]}, (1, None), {"args": [{"c": 1}]}),
        ("params", {"params": ("a", "b")}, "a", {"params": ["a"]}),
        ("args.*.c", {"args": ({"c": 1}, {"c": 2})}, 2, {"args": [{"c": 2}]}),
        ("a.1.c", {"a": [7, {"c": ["x", "y"]}]}, "y", {"a": [7, {"c": ["y"]}]}),
        ("args.*.c", {"args": 7}, 2, {"args": 7}),
    ],
)
def test_a_message_is_narrowed_to_one_topic(path: Any, message: Any, topic: Any, narrowed: Any) -> None:
    before = copy.deepcopy(message)
    assert TopicPath(path, "sent_topic_path").narrowed(message, topic) == narrowed
    assert message == before


PATHS = [
    "a",
    "params.*",
    "data.*.symbol",
    ("data.*.symbol", "data.*.id", "channel"),
    ("params", "data", "id"),
]


@given(messages, st.sampled_from(PATHS))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, path: Any) -> None:
    topics = TopicPath(path, "topic_path").topics(message)
    hash(tuple(topics))
    if isinstance(message, dict):
        for topic in topics:
            assert TopicPath(path, "topic_path").narrowed(message, topic) is not message


def test_what_is_nested_deeply_is_no_topic() -> None:
    assert TopicPath("a", "topic_path").topics({"a": nested()}) != [None]
    hash(tuple(TopicPath("a", "topic_path").topics({"a": nested()})))
    hash(tuple(TopicPath("a.*", "topic_path").topics({"a": [nested()]})))
