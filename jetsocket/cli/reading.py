"""Messages as they are given: on the command line, and on stdin one a line."""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Callable, Iterator
from typing import Any

from jetsocket.cli.exits import UsageError

__all__ = ["chunks", "from_argument", "from_bytes"]

_BLOCK = 65536


def from_argument(text: str, *, as_base64: bool) -> str | bytes:
    """A message of the command line.

    Raises:
        UsageError: It is no base64, or has no form in UTF-8.
    """
    return from_bytes(os.fsencode(text), as_base64=as_base64)


def from_bytes(data: bytes, *, as_base64: bool) -> str | bytes:
    """A message: text, or with `--base64` a binary one.

    Raises:
        UsageError: As `from_argument`.
    """
    if as_base64:
        try:
            return base64.b64decode(data.strip(), validate=True)
        except binascii.Error as error:
            raise UsageError(f"with --base64, a message has to be base64: {error}") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"a text message has to be UTF-8, and byte {error.start} is not",
            "binary messages are given in base64, with --base64",
        ) from error


def chunks(stdin: Any, *, null: bool) -> Iterator[bytes]:
    """What stands on stdin, message by message, each as soon as it is there; the last may lack its end."""
    end = b"\0" if null else b"\n"
    read = _reader(stdin)
    rest = bytearray()
    while data := read(_BLOCK):
        *whole, last = data.split(end)
        for piece in whole:
            rest += piece
            yield _whole(rest, null=null)
            rest.clear()
        rest += last
    if rest:
        yield _whole(rest, null=null)


def _whole(message: bytearray, *, null: bool) -> bytes:
    return bytes(message if null else message.removesuffix(b"\r"))


def _reader(stdin: Any) -> Callable[[int], bytes]:
    """How to read what is there."""
    try:
        # Not its buffer: a thread that waits in there has its lock, and the interpreter can't end.
        descriptor = stdin.fileno()
    except (OSError, ValueError, AttributeError):  # no file, or none at all
        source: Any = getattr(stdin, "buffer", stdin)
        return lambda size: b"" if source is None else source.read(size)
    return lambda size: os.read(descriptor, size)
