"""What may be shown of what a peer said, and of an object's names."""

from __future__ import annotations

import sys
from types import FunctionType

import pytest

from jetsocket import ConnectionPool, PooledConnection
from jetsocket.correlated import CorrelatedConnection
from jetsocket.text import MOST_SHOWN, printable, public_names, short_repr


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("", ""),
        ("Zürich 東京", "Zürich 東京"),
        ("a\r\nb\x00\x1b[31m\x7f\x9b", "a  b??[31m??"),
        ("right\u202eleft\u2028line\ud800", "right?left line?"),
    ],
)
def test_control_characters_are_not_shown(said: str, shown: str) -> None:
    assert printable(said) == shown


def test_what_is_long_is_cut() -> None:
    assert printable("x" * MOST_SHOWN) == "x" * MOST_SHOWN
    assert printable("x" * 60_000) == "x" * (MOST_SHOWN - 1) + "…"
    assert printable("abcdef", 4) == "abc…"


def test_what_the_user_gave_is_shown_short() -> None:
    assert short_repr(None) == "None"
    assert short_repr("a\x1b") == repr("a\x1b")
    assert len(short_repr("x" * 10_000)) == 5 * MOST_SHOWN
    assert short_repr(-(10**400)).startswith("-1000")


@pytest.mark.skipif(not hasattr(sys, "get_int_max_str_digits"), reason="this Python has no limit on digits")
def test_an_int_that_python_does_not_write_is_described() -> None:
    assert short_repr(10**5000) == "an int of thousands of digits"
    assert short_repr(-(10**5000)) == "a negative int of thousands of digits"


def test_names_that_are_public() -> None:
    assert public_names(["send", "_sent", "__enter__", "__mangled", "_"]) == ["send", "__enter__"]


def method_names(kind: type) -> list[str]:
    """What errors of arguments call its methods."""
    methods = [getattr(kind, name) for name in public_names(dir(kind))]
    functions = [getattr(each, "__func__", each) for each in methods]
    ours = (each for each in functions if isinstance(each, FunctionType))
    return [each.__qualname__ for each in ours if each.__module__.startswith("jetsocket.")]


@pytest.mark.parametrize("kind", [ConnectionPool, PooledConnection, CorrelatedConnection])
def test_errors_of_arguments_name_the_class_that_users_know(kind: type) -> None:
    known = "ConnectionPool" if kind is ConnectionPool else "PooledConnection"
    assert {name.partition(".")[0] for name in method_names(kind)} == {known}


def test_an_unknown_argument_of_a_pool_is_told_as_the_pools() -> None:
    with pytest.raises(TypeError, match=r"^ConnectionPool\.__init__\(\) got an unexpected keyword"):
        ConnectionPool(max_connections=4)  # type: ignore[call-arg]  # a field of the config
