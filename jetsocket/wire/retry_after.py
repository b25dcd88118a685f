"""When a server that refuses wants to be asked again (Retry-After, RFC 9110 §10.2.3)."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from jetsocket.interrupts import raise_alarm_behind

MOST = float(2**31)
"""s; more is this (as RFC 9111 §1.2.2 has it for times that are too large)."""

_SECONDS = re.compile(r"[0-9]{1,20}(?:\.[0-9]{0,20})?")  # whole ones, says the RFC; some services write more
_MANY_SECONDS = re.compile(r"[0-9]+")
_LONGEST_DATE = 64  # characters


def seconds_until(values: Sequence[str], now: str = "") -> float | None:
    """How long to wait.

    Args:
        values: Of each Retry-After header: seconds, or a date.
        now: The server's Date header, which a date is relative to; if it has none, this machine's clock.

    Returns:
        s, from 0 for a date that has passed to `MOST`; the longest of several; None if no value is one.
    """
    told = [seconds for value in values if (seconds := _read(value, now)) is not None]
    return max(told, default=None)


def _read(value: str, now: str) -> float | None:
    if _SECONDS.fullmatch(value):
        return min(MOST, float(value))
    if _MANY_SECONDS.fullmatch(value):
        return MOST
    then = _timestamp(value)
    if then is None:
        return None
    here = _timestamp(now)
    return min(MOST, max(0.0, then - (time.time() if here is None else here)))


def _timestamp(date: str) -> float | None:
    """A date of HTTP (RFC 9110 §5.6.7) in seconds since 1970; None for what is none."""
    if not 0 < len(date) <= _LONGEST_DATE:
        return None
    from datetime import timezone  # both are slow to load
    from email.utils import parsedate_to_datetime

    try:
        read = parsedate_to_datetime(date)
        # A date without a zone is one of UTC: "Sun Nov  6 08:49:37 1994", a form that recipients must know.
        return (read if read.tzinfo is not None else read.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise_alarm_behind(error)
        return None
