"""What may be shown of what a peer said, and of an object's names."""

from __future__ import annotations

import sys

import pytest

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
