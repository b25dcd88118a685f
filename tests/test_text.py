"""What may be shown of what a peer said."""

from __future__ import annotations

import pytest

from jetsocket.text import MOST_SHOWN, printable


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
