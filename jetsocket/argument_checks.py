"""Checks of single values: each takes a field's name and a value, and returns the value as it is stored.

A wrong type is a ``TypeError``, a value out of range a ``ValueError``; each names the field, the value and
what is allowed. Where the value may be a secret, `text.rule_of` such an error says the same without it.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from jetsocket.text import short_repr, with_rule

Check: TypeAlias = Callable[[str, Any], Any]

_MAX_SECONDS = threading.TIMEOUT_MAX  # locks accept no more; some 292 years on Linux, 49 days on Windows


def wrong_type(name: str, value: object, allowed: str) -> TypeError:
    """The error of a value of the wrong type."""
    error = TypeError(f"{name} must be {allowed}, not {short_repr(value)} ({type(value).__name__})")
    return with_rule(error, f"{name} must be {allowed}, not of type {type(value).__name__}")


def out_of_range(name: str, value: object, allowed: str) -> ValueError:
    """The error of a value out of range."""
    return with_rule(
        ValueError(f"{name} must be {allowed}, not {short_repr(value)}"), f"{name} must be {allowed}"
    )


def seconds(name: str, value: object) -> float:
    """Check a time (s), more than 0."""
    return _seconds(name, value, "more than 0")


def seconds_from_0(name: str, value: object) -> float:
    """Check a time (s), 0 or more."""
    return 0.0 if value == 0 and not isinstance(value, bool) else _seconds(name, value, "0 or more")


def _seconds(name: str, value: object, least: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(name, value, "a number of seconds")
    if not 0 < value <= _MAX_SECONDS:  # False for NaN as well
        raise out_of_range(name, value, f"{least} and at most {_MAX_SECONDS:.0f} seconds")
    return float(value)


def optional_seconds_from_0(name: str, value: object) -> float | None:
    """Check a time (s), 0 or more, or None."""
    return None if value is None else seconds_from_0(name, value)


def optional_seconds(name: str, value: object) -> float | None:
    """Check a time (s), more than 0, or None."""
    return None if value is None else seconds(name, value)


def int_from(least: int) -> Callable[[str, object], int]:
    """Make a check of an int, at least that."""

    def check(name: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise wrong_type(name, value, "an int")
        if value < least:
            raise out_of_range(name, value, f"{least} or more")
        return value

    return check


def optional_int_from(least: int) -> Callable[[str, object], int | None]:
    """Make a check of an int, at least that, or None."""
    check = int_from(least)
    return lambda name, value: None if value is None else check(name, value)


def boolean(name: str, value: object) -> bool:
    """Check True or False."""
    if not isinstance(value, bool):
        raise wrong_type(name, value, "True or False")
    return value


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint at the known name most like ``name``, or nothing if none is like it."""
    import difflib

    as_it_is = {each: each for each in known}
    for spelled, asked in ((as_it_is, name), ({each.lower(): each for each in as_it_is}, name.lower())):
        if matches := difflib.get_close_matches(asked, list(spelled), n=1, cutoff=0.4):
            return f" (did you mean {spelled[matches[0]]!r}?)"
    return ""


def check_callable(name: str, value: object) -> Callable[..., Any] | None:
    """Check an ordinary function, or None."""
    if value is not None and not callable(value):
        raise wrong_type(name, value, "a callable or None")
    if runs_later(value):
        raise wrong_type(name, value, "an ordinary function, not an async one or a generator")
    return value


def runs_later(function: object) -> bool:
    """Whether a call runs nothing yet: of an async function or a generator, or what is called as one."""
    called = (function, type(function).__call__) if callable(function) else ()
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    return any(kind(each) for kind in kinds for each in called)


def store_checked(instance: object, label: str, checks: Mapping[str, Callable[[str, Any], Any]]) -> None:
    """Check the fields of a frozen dataclass, and store what the checks return."""
    for name, check in checks.items():
        # Frozen dataclasses are written this way in __post_init__.
        object.__setattr__(instance, name, check(label.format(name), getattr(instance, name)))
