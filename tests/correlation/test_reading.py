"""Looking into messages of any shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest

from jetsocket.correlation.reading import (
    code_of,
    member,
    needs_object,
    put_back,
    reply_error,
    text_of,
    topics_of,
    unexpected,
    with_member,
    with_value,
)


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"a": {"b": 7}}, 7),
        ({"a": {"b": None}}, None),
        ({"a": {}}, None),
        ({"a": [{"b": 7}]}, None),
        ({"a": None}, None),
        ({}, None),
        ([], None),
        ("a", None),
        (None, None),
        (7, None),
        (b"a", None),
    ],
)
def test_a_member_is_found_or_none(message: Any, found: Any) -> None:
    assert member(message, "a", "b") == found


def test_a_copy_with_a_member_shares_what_is_elsewhere() -> None:
    message: dict[str, Any] = {"d": {"a": [1]}, "e": [2]}
    copy = with_member(message, 7, "d", "id")
    assert copy == {"d": {"a": [1], "id": 7}, "e": [2]}
    assert message == {"d": {"a": [1]}, "e": [2]}
    assert copy["e"] is message["e"] and copy["d"]["a"] is message["d"]["a"]


def test_a_number_is_an_index_where_there_is_a_list() -> None:
    message: dict[str, Any] = {"d": [{"a": [1]}, (2, 3)]}
    assert with_member(message, 7, "d", "0", "id") == {"d": [{"a": [1], "id": 7}, (2, 3)]}
    assert with_member(message, 7, "d", "1", "0") == {"d": [{"a": [1]}, [7, 3]]}
    assert with_value(message["d"], 7, ["1"]) == [{"a": [1]}, 7]
    assert message == {"d": [{"a": [1]}, (2, 3)]}
    for name in ("2", "-1", "e", "9" * 20):
        with pytest.raises(ValueError, match=f"a path leads to '{name}' of a list that has 2 members"):
            with_member(message, 7, "d", name)


@pytest.mark.parametrize("inner", [None, 7, "x"])
def test_a_member_replaces_what_can_not_hold_it(inner: Any) -> None:
    assert with_member({"d": inner}, 7, "d", "e", "id") == {"d": {"e": {"id": 7}}}


def test_any_mapping_is_an_object() -> None:
    message: Mapping[str, Any] = MappingProxyType({"a": 1})
    assert needs_object(message, "a call") is message


@pytest.mark.parametrize("message", [None, 7, "text", b"raw", ["list"]])
def test_what_is_no_object_is_a_wrong_argument(message: Any) -> None:
    with pytest.raises(TypeError, match=rf"a call is a dict, not {type(message).__name__}"):
        needs_object(message, "a call")


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (7, 7),
        ("7", "7"),
        (7.0, 7),
        (-32601, -32601),
        (True, None),
        (None, None),
        (1.5, None),
        ([], None),
    ],
)
def test_a_code_is_a_number_or_text(value: Any, code: Any) -> None:
    assert code_of(value) == code


def test_text_or_nothing() -> None:
    assert [text_of(each) for each in ("a", 7, None, ["a"])] == ["a", "", "", ""]


@pytest.mark.parametrize(
    ("topics", "as_list"),
    [
        (None, []),
        ("btcusdt", ["btcusdt"]),
        (("ticker", "BTC"), [("ticker", "BTC")]),
        (["a", "b"], ["a", "b"]),
        ({"a"}, ["a"]),
        (frozenset({"a"}), [frozenset({"a"})]),
        ([], []),
        (0, [0]),
    ],
)
def test_what_can_be_hashed_is_one_topic(topics: Any, as_list: list[Any]) -> None:
    assert topics_of(topics) == as_list


def test_an_error_says_what_the_server_said_fit_to_be_shown() -> None:
    error = reply_error(-32000, "bad\r\n\x1b[31mtoken s3cret", data=[1], reply={"id": 1}, secrets=["s3cret"])
    assert str(error) == "the server answered with an error: -32000: bad  ?[31mtoken ***"
    assert (error.code, error.message) == (-32000, "bad\r\n\x1b[31mtoken ***")
    assert "s3cret" not in repr(error.args)
    assert (error.data, error.reply) == ([1], {"id": 1})


@pytest.mark.parametrize(
    ("code", "message", "told"),
    [
        (None, None, "without a text"),
        (None, "", "without a text"),
        (0, "", "0"),
        (None, "no", "no"),
        ("not_found", "no", "not_found: no"),
        ([], {}, "without a text"),
    ],
)
def test_an_error_tells_what_there_is(code: Any, message: Any, told: str) -> None:
    assert str(reply_error(code, message)) == f"the server answered with an error: {told}"


@pytest.mark.parametrize(
    ("reply", "message", "put"),
    [
        ({"id": 7, "r": 1}, {"id": "mine"}, {"id": "mine", "r": 1}),
        ({"id": 7, "r": 1}, {}, {"id": 7, "r": 1}),
        ({"id": 7, "r": 1}, {"id": None}, {"id": 7, "r": 1}),
        ({"id": 7, "r": 1}, {"id": 0}, {"id": 0, "r": 1}),
        ([1], {"id": 0}, [1]),
        (None, {"id": 0}, None),
        ({"id": 7}, "text", {"id": 7}),
    ],
)
def test_an_id_is_put_back_into_a_copy(reply: Any, message: Any, put: Any) -> None:
    before = copy.deepcopy(reply)
    assert put_back(reply, message, "id") == put
    assert reply == before


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ({"type": "hello\x1b"}, "a message of type 'hello?'"),
        ({"type": 7}, "a dict"),
        ({}, "a dict"),
        ([], "a list"),
        (None, "a NoneType"),
    ],
)
def test_a_greeting_that_is_not_as_it_should_be_is_shown_by_its_type(message: Any, shown: str) -> None:
    error = unexpected(message, "hello")
    assert str(error) == f"the server sent {shown} in place of hello"
    assert error.reply == message


def test_a_code_of_thousands_of_digits_is_none() -> None:
    assert str(reply_error(-(10**5000), "no")) == "the server answered with an error: no"


def test_a_long_text_is_cut() -> None:
    assert len(str(reply_error(1, "x" * 100_000))) < 300
