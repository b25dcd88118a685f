"""What a fake server does about a message: one small value for each deed, checked when it is made."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from jetsocket.testing.payloads import payload_of

_NEVER_SENT = (1004, 1005, 1006, 1015)  # RFC 6455 §7.4.1
_LONGEST_REASON = 123  # B, §5.5


@dataclass(frozen=True)
class Reply:
    """Send a value; the request's id is put in."""

    value: Any


@dataclass(frozen=True)
class Push:
    """Send a value as it is: once, `count` times, or until the connection ends."""

    value: Any
    every: float | None
    count: int | None


@dataclass(frozen=True)
class Delay:
    """Wait, and hold up nothing but what follows."""

    seconds: float


@dataclass(frozen=True)
class Drop:
    """Reset TCP."""


@dataclass(frozen=True)
class Close:
    """Send a close frame."""

    code: int
    reason: str


@dataclass(frozen=True)
class Callback:
    """Reply with what the test's function returns."""

    function: Callable[[Any], Any]
    made_at: str


Action: TypeAlias = "Reply | Push | Delay | Drop | Close | Callback"


def kept(value: Any) -> Any:
    """A value to be sent later, as it is now.

    Raises:
        TypeError: It can't be sent: neither `str` nor bytes, and nothing that JSON has.
        ValueError: It contains itself.
    """
    payload_of(value)
    return copy.deepcopy(value) if not isinstance(value, memoryview) else bytes(value)


def checked_close(code: int, reason: str) -> Close:
    """A close that RFC 6455 allows.

    Raises:
        TypeError: `code` is no int, or `reason` no str.
        ValueError: No close frame can say that.
    """
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"code must be an int, not {code!r}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {reason!r}")
    if not (1000 <= code <= 1014 or 3000 <= code <= 4999) or code in _NEVER_SENT:
        raise ValueError(f"no close frame can say {code} (RFC 6455 §7.4); drop() ends without one")
    if len(reason.encode()) > _LONGEST_REASON:
        raise ValueError(f"a close frame has room for a reason of {_LONGEST_REASON} B (RFC 6455 §5.5)")
    return Close(code, reason)


def checked_push(value: Any, every: float | None, count: int | None) -> Push:
    """A push; without `every` it goes out at once, `count` times or once.

    Raises:
        TypeError: The value can't be sent, or a number is none.
        ValueError: A number is out of range.
    """
    if count is not None:
        number(count, "count", least=1)
    return Push(kept(value), None if every is None else duration(every, "every"), count)


def duration(value: float, name: str) -> float:
    """A time in seconds.

    Raises:
        TypeError: It is no number.
        ValueError: It is negative or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} must be 0 or more seconds, not {value!r}")
    return float(value)


def number(value: int, name: str, *, least: int = 0) -> int:
    """A whole number.

    Raises:
        TypeError: It is none.
        ValueError: It is less than `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < least:
        raise ValueError(f"{name} must be {least} or more, not {value!r}")
    return value


__all__ = [
    "Action",
    "Callback",
    "Close",
    "Delay",
    "Drop",
    "Push",
    "Reply",
    "checked_close",
    "checked_push",
    "duration",
    "kept",
    "number",
]
