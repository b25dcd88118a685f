"""Whether a message is what a test means, and where it is not.

Also tests: `payloads`, `places`.
"""

from __future__ import annotations

import json
import pickle
import re
from typing import Any
from unittest import mock

import pytest

from jetsocket.testing import ANY
from jetsocket.testing.matching import described, differences, matches
from jetsocket.testing.payloads import bare_path, decoded, payload_of, shown, with_id
from jetsocket.testing.places import caller, short


def fits(matcher: Any, value: Any) -> bool:
    payload = payload_of(value)
    return matches(matcher, decoded(payload), payload)


@pytest.mark.parametrize(
    ("matcher", "value"),
    [
        ({"method": "a"}, {"method": "a", "id": 1}),
        ({"a": {"b": {"c": 1}}}, {"a": {"b": {"c": 1, "d": 2}, "e": 3}}),
        ({}, {"anything": 1}),
        ({"p": [{"x": 1}, ANY]}, {"p": [{"x": 1, "y": 2}, None]}),
        ([1, {"a": 2}], [1, {"a": 2, "b": 3}]),
        ((1, 2), [1, 2]),
        (re.compile("eth_.*"), {"method": "eth_call"}),
        ({"method": re.compile("^eth_")}, {"method": "eth_call"}),
        ({"n": re.compile("^7$")}, {"n": 7}),
        (re.compile(b"\x01\x02"), b"\x00\x01\x02"),
        (re.compile("pi"), b"ping"),
        (lambda message: message["n"] > 1, {"n": 2}),
        ({"n": lambda n: n > 1}, {"n": 2}),
        (ANY, b"\xff"),
        (ANY, None),
        ({"id": ANY}, {"id": None}),
        ("ping", "ping"),
        ("42", "42"),
        (42, "42"),
        ('{"a": 1}', '{"a": 1}'),
        (b"\x00", b"\x00"),
        (None, "null"),
        ({"a": pytest.approx(1.0)}, {"a": 1.0000000001}),
        ({"a": 1}, b'{"a": 1}'),
        (mock.ANY, "x"),
    ],
)
def test_that_matches(matcher: Any, value: Any) -> None:
    assert fits(matcher, value)
    assert differences(matcher, decoded(payload_of(value)), payload_of(value)) == []


@pytest.mark.parametrize(
    ("matcher", "value", "lines"),
    [
        ({"method": "a"}, {"method": "b"}, ["- method: 'a'", "+ method: \"'b'\""]),
        ({"id": ANY}, {}, ["- id: ANY", "+ id: nothing"]),
        ({"a": {"b": 1}}, {"a": 1}, ["- a: {'b': 1}", "+ a: 1"]),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, ["- a.b: 1", "+ a.b: 2"]),
        ([1, 2], [1], ["- [1]: 2", "+ [1]: nothing"]),
        ([1], [1, 2], ["- [1]: nothing", "+ [1]: 2"]),
        ({}, "text", ["- {}", "+ 'text'"]),
        ("ping", "pong", ["- 'ping'", "+ 'pong'"]),
        (re.compile("a"), "b", ["- re.compile('a')", "+ 'b'"]),
        (re.compile("a"), b"\xff", ["- re.compile('a')", r"+ b'\xff'"]),
        ({"x": str.isupper}, {"x": "low"}, ["- x: str.isupper", "+ x: 'low'"]),
        ({"x": str.isupper}, {"x": 1}, ["- x: str.isupper", "+ x: 1"]),
        (bool, 0, ["- bool", "+ 0"]),
    ],
)
def test_that_differs(matcher: Any, value: Any, lines: list[str]) -> None:
    payload = payload_of(value)
    if value != {"x": 1}:
        assert not fits(matcher, value)
    found = differences(matcher, decoded(payload), payload)
    assert found == [line.replace("\"'b'\"", "'b'") for line in lines]


def test_what_a_callable_raises_comes_out_of_matching_only() -> None:
    with pytest.raises(ZeroDivisionError):
        fits(lambda message: 1 / 0, "x")
    assert differences(lambda message: 1 / 0, "x", "x")


def test_any_is_equal_to_everything_and_one() -> None:
    assert ANY == 1 and (ANY != 1) is False and [{"a": ANY}] == [{"a": 1}]
    assert repr(ANY) == "ANY" and {ANY: 1}[ANY] == 1
    assert pickle.loads(pickle.dumps(ANY)) is ANY
    assert (
        described({"a": [ANY, re.compile("x"), {"b": (1,)}]}) == "{'a': [ANY, re.compile('x'), {'b': [1]}]}"
    )


# --- payloads


def test_what_goes_out() -> None:
    assert payload_of("text") == "text" and payload_of(bytearray(b"x")) == b"x" == payload_of(
        memoryview(b"x")
    )
    assert payload_of({"ä": None}) == '{"ä": null}' and payload_of(None) == "null"
    with pytest.raises(TypeError):
        payload_of({1, 2})


def test_what_comes_in() -> None:
    assert decoded('{"a": 1}') == decoded(b' {"a": 1}') == {"a": 1}
    assert decoded("7") == 7 and decoded(b"7") == b"7"
    assert decoded("{") == "{" and decoded(b"[\xff") == b"[\xff" and decoded("[" * 100_000) == "[" * 100_000


@pytest.mark.parametrize(
    ("value", "request_", "field", "result"),
    [
        ({"result": 1}, {"id": 7}, "id", {"id": 7, "result": 1}),
        ({"id": None}, {"id": 7}, "id", {"id": None}),
        ({"result": 1}, {}, "id", {"result": 1}),
        ({"result": 1}, {"id": 7}, None, {"result": 1}),
        ({"result": 1}, {"req_id": 7}, "req_id", {"req_id": 7, "result": 1}),
        ([1], {"id": 7}, "id", [1]),
        ({"result": 1}, "text", "id", {"result": 1}),
    ],
)
def test_the_id_is_put_into_a_dict_that_has_none(value: Any, request_: Any, field: Any, result: Any) -> None:
    before = json.dumps(value)
    assert with_id(value, request_, field) == result
    assert json.dumps(value) == before


def test_how_messages_are_shown() -> None:
    assert shown({"a": "ä"}) == '{"a": "ä"}' and shown("x") == "'x'" and shown({1, 2}) == "{1, 2}"
    assert shown("x" * 1000).endswith("… (1002 characters)") and len(shown("x" * 1000)) < 430


def test_paths() -> None:
    assert bare_path("rpc") == bare_path("/rpc") == "/rpc"
    assert bare_path("/ä b") == "/%C3%A4%20b"
    with pytest.raises(ValueError, match="without"):
        bare_path("/rpc?x=1")
    with pytest.raises(TypeError):
        bare_path(1)  # type: ignore[arg-type]  # on purpose


def test_places() -> None:
    assert caller().startswith(f"{short(__file__)}:")
    assert short("/") == "/"
