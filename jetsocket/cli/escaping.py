"""What a server says, made fit for a terminal: no character of it moves a cursor or turns the writing."""

from __future__ import annotations

import re
import unicodedata

__all__ = ["as_hex", "escaped"]

_LAYOUT = "\n\t"  # what a text may be laid out with
_MOST_BYTES = 32


def escaped(text: str, *, keep_layout: bool = False) -> str:
    r"""`text` with its control characters as escapes: C0, DEL, C1, bidirectional, separators of lines.

    Args:
        text: What is to be shown.
        keep_layout: Leave line feeds and tabs as they are.
    """
    if text.isprintable():
        return text
    kept = _LAYOUT if keep_layout else ""
    return "".join(char if char in kept or not _is_control(char) else _escape(ord(char)) for char in text)


def _is_control(char: str) -> bool:
    # Cf holds the bidirectional controls, and others that are not seen; Cs what has no UTF-8.
    return not char.isprintable() and unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp")


def _escape(code: int) -> str:
    if code < 0x100:
        return {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t"}.get(code, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def as_hex(data: bytes) -> str:
    """Binary data in one line, for a terminal: its size and its first bytes."""
    more = " …" if len(data) > _MOST_BYTES else ""
    shown = re.sub("(..)(?=.)", r"\1 ", data[:_MOST_BYTES].hex())
    return f"<{len(data)} B of binary: {shown}{more}>" if data else "<0 B of binary>"
