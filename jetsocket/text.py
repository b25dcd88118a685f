"""What a peer said, fit to be shown: no control characters, and not long."""

from __future__ import annotations

__all__ = ["MOST_SHOWN", "printable"]

MOST_SHOWN = 200
"""Characters of what a peer said that go into a message."""


def printable(text: str, most: int = MOST_SHOWN) -> str:
    """The first characters of `text`, with "?" in place of each that could move a cursor or break a line."""
    shown = "".join(char if char.isprintable() else "?" for char in text[:most])
    return shown if len(text) <= most else f"{shown[: most - 1]}…"
