"""What a server says moves no cursor."""

from __future__ import annotations

import unicodedata

import pytest

from jetsocket.cli.escaping import as_hex, escaped

CONTROLS = {"Cc", "Cf", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("bell\x07 back\x08 del\x7f", r"bell\x07 back\x08 del\x7f"),
        ("csi\x9b2J", r"csi\x9b2J"),
        ("rtl\u202eevil", r"rtl\u202eevil"),
        ("isolate\u2066x\u2069", r"isolate\u2066x\u2069"),
        ("one\ntwo\tthree\rfour", r"one\ntwo\tthree\rfour"),
        ("\u2028\u2029", r"\u2028\u2029"),
        ("\U000e0001", r"\U000e0001"),
        ("grüße 日本 👍\u00a0", "grüße 日本 👍\u00a0"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_the_layout_of_a_text_may_stay() -> None:
    assert escaped("one\n\ttwo\r\x1b", keep_layout=True) == "one\n\ttwo\\r\\x1b"


def test_no_control_character_of_unicode_is_left() -> None:
    controls = [char for char in map(chr, range(0x110000)) if unicodedata.category(char) in CONTROLS]
    assert len(controls) > 2000
    assert escaped("".join(controls)).isprintable()


def test_binary_is_told_in_one_line() -> None:
    assert as_hex(b"\0\x01\xff") == "<3 B of binary: 00 01 ff>"
    assert as_hex(b"") == "<0 B of binary>"
    assert as_hex(bytes(40)) == f"<40 B of binary: {' '.join(['00'] * 32)} …>"
