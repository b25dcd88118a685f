"""Whether a message is what a test means, and if not, where it differs. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jetsocket.testing.payloads import Payload, payload_of, shown


class _Any:
    """Equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return "ANY"

    def __reduce__(self) -> str:
        """There is one."""
        return "ANY"


ANY: Any = _Any()
"""Matches every message, and every value within one."""

MISSING: Any = object()


def matches(matcher: Any, message: Any, payload: Payload) -> bool:
    """Whether a message is what `matcher` means.

    Args:
        matcher: A dict matches in part, at every depth; a list item by item; a regex by `search` in the text;
            a callable by what it returns; `ANY` everything; all else by `==`.
        message: The decoded message.
        payload: The message as it came.

    Raises:
        Exception: Whatever a callable raises.
    """
    if isinstance(matcher, re.Pattern):
        return _found(matcher, payload)
    return _is(matcher, message) or (_is_plain(matcher) and bool(matcher == payload))


def _is(matcher: Any, value: Any) -> bool:
    """`matches` for a value within a message."""
    if matcher is ANY:
        return True
    if isinstance(matcher, Mapping):
        return isinstance(value, Mapping) and all(
            key in value and _is(wanted, value[key]) for key, wanted in matcher.items()
        )
    if isinstance(matcher, (list, tuple)):
        return (
            isinstance(value, list) and len(value) == len(matcher) and all(map(_is, matcher, value))
        )  # a tuple is an array in JSON, too
    if isinstance(matcher, re.Pattern):
        return _found(matcher, _text_of(value))
    if callable(matcher):
        return bool(matcher(value))
    return bool(matcher == value)


def _is_plain(matcher: Any) -> bool:
    return not (isinstance(matcher, (Mapping, list, tuple)) or callable(matcher))


def _found(pattern: re.Pattern[Any], text: Payload) -> bool:
    if isinstance(pattern.pattern, bytes):
        return pattern.search(text.encode() if isinstance(text, str) else text) is not None
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError:
            return False
    return pattern.search(text) is not None


def _text_of(value: Any) -> Payload:
    return value if isinstance(value, (str, bytes)) else payload_of(value)


# --- where it differs


def differences(matcher: Any, message: Any, payload: Payload) -> list[str]:
    """Where a message is not what `matcher` means: lines with `-` for what was wanted, `+` for what came.

    Callables are asked again; what one raises counts as a difference.
    """
    if isinstance(matcher, (Mapping, list, tuple)):
        return list(_differences(matcher, message, ""))
    try:
        return [] if matches(matcher, message, payload) else list(_pair(matcher, message, ""))
    except Exception:  # noqa: BLE001  # whatever the user's code raises: it is told where it was raised first
        return list(_pair(matcher, message, ""))


def _differences(matcher: Any, value: Any, at: str) -> Iterator[str]:
    if value is not MISSING and isinstance(matcher, Mapping) and isinstance(value, Mapping):
        for key, wanted in matcher.items():
            yield from _differences(wanted, value.get(key, MISSING), f"{at}.{key}" if at else str(key))
    elif isinstance(matcher, (list, tuple)) and isinstance(value, list):
        for number, wanted in enumerate(matcher):
            item = value[number] if number < len(value) else MISSING
            yield from _differences(wanted, item, f"{at}[{number}]")
        for number in range(len(matcher), len(value)):
            yield from _pair(MISSING, value[number], f"{at}[{number}]")
    else:
        try:
            same = value is not MISSING and _is(matcher, value)
        except Exception:  # noqa: BLE001  # as in `differences`
            same = False
        if not same:
            yield from _pair(matcher, value, at)


def _pair(wanted: Any, came: Any, at: str) -> Iterator[str]:
    where = f"{at}: " if at else ""
    yield f"- {where}{'nothing' if wanted is MISSING else described(wanted)}"
    yield f"+ {where}{'nothing' if came is MISSING else shown(came)}"


def size_of(matcher: Any) -> int:
    """How much a matcher asks for: the number of its values."""
    if isinstance(matcher, Mapping):
        return 1 + sum(map(size_of, matcher.values()))
    if isinstance(matcher, (list, tuple)):
        return 1 + sum(map(size_of, matcher))
    return 1


def described(matcher: Any) -> str:
    """A matcher as a report shows it."""
    if isinstance(matcher, re.Pattern):
        return f"re.compile({matcher.pattern!r})"
    if isinstance(matcher, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(value)}" for key, value in matcher.items()) + "}"
    if isinstance(matcher, (list, tuple)):
        return f"[{', '.join(map(described, matcher))}]"
    if callable(matcher) and matcher is not ANY:
        return str(getattr(matcher, "__qualname__", None) or repr(matcher))
    return repr(matcher)


__all__ = ["ANY", "described", "differences", "matches", "size_of"]
