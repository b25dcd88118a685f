"""Messages as they are given."""

from __future__ import annotations

import io
import os
import threading

import pytest

from jetsocket.cli.exits import UsageError
from jetsocket.cli.reading import chunks, from_argument, from_bytes


@pytest.mark.parametrize(
    ("data", "null", "messages"),
    [
        (b"", False, []),
        (b"a\nb\n", False, [b"a", b"b"]),
        (b"a\r\nb", False, [b"a", b"b"]),
        (b"\n\na\n", False, [b"", b"", b"a"]),
        (b"a\0b\nc\0", False, [b"a\0b", b"c\0"]),
        (b"a\nb\0\0c", True, [b"a\nb", b"", b"c"]),
        (b"a\r\0", True, [b"a\r"]),
    ],
)
def test_messages_end_in_a_line_feed_or_nul(data: bytes, null: bool, messages: list[bytes]) -> None:
    assert list(chunks(io.BytesIO(data), null=null)) == messages


def test_a_message_longer_than_what_is_read_at_once() -> None:
    long = b"x" * 200_000
    assert list(chunks(io.BytesIO(long + b"\n" + long), null=False)) == [long, long]


def test_a_message_is_there_before_the_next_one() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin:
        came = chunks(stdin, null=False)
        os.write(writing, b"first\nsec")
        assert next(came) == b"first"
        later = threading.Timer(0.01, lambda: (os.write(writing, b"ond\nthird"), os.close(writing)))
        later.start()
        assert list(came) == [b"second", b"third"]
        later.join()


def test_without_stdin_there_is_nothing() -> None:
    assert list(chunks(None, null=False)) == []


def test_text_and_base64() -> None:
    assert from_bytes("grüße".encode(), as_base64=False) == "grüße"
    assert from_bytes(b" AAH/ ", as_base64=True) == b"\0\x01\xff"
    assert from_argument("grüße", as_base64=False) == "grüße"


@pytest.mark.parametrize(
    ("data", "as_base64"), [(b"\xff", False), (b"AA", True), (b"\xc3\xa4", True), (b"A A=", True)]
)
def test_what_is_neither(data: bytes, as_base64: bool) -> None:
    with pytest.raises(UsageError):
        from_bytes(data, as_base64=as_base64)


def test_an_argument_that_is_not_utf8() -> None:
    with pytest.raises(UsageError, match="UTF-8"):
        from_argument("a\udcff", as_base64=False)
