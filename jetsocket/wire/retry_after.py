"""When a server that refuses wants to be asked again (Retry-After, RFC 9110 §10.2.3)."""

from __future__ import annotations

import time
from collections.abc import Sequence

from jetsocket.patterns import pattern

MOST = float(2**31)
"""s; more is this (as RFC 9111 §1.2.2 has it for times that are too large)."""

_SECONDS = pattern(r"[0-9]{1,20}(?:\.[0-9]{0,20})?")  # whole ones, says the RFC; some services write more
_MANY_SECONDS = pattern(r"[0-9]+")

# A date of HTTP (RFC 9110 §5.6.7): "Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", and
# "Sun Nov  6 08:49:37 1994". `email.utils` reads them, too, but loads a dozen modules, in every program that
# makes a pool.
_DATE = pattern(
    r"(?i)(?:[a-z]{1,10},? *)?(?P<day>[0-9]{1,2})[ -](?P<month>[a-z]{3})[ -](?P<year>[0-9]{4}|[0-9]{2})"
    r" (?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2})"
    r"(?: (?:GMT|UTC?|Z|(?P<sign>[+-])(?P<off_hours>[0-9]{2}):?(?P<off_minutes>[0-9]{2})))?"
)
_DATE_OF_C = pattern(
    r"(?i)[a-z]{3} (?P<month>[a-z]{3})  ?(?P<day>[0-9]{1,2})"
    r" (?P<hour>[0-9]{2}):(?P<minute>[0-9]{2}):(?P<second>[0-9]{2}) (?P<year>[0-9]{4})"
)
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
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
    """A date of HTTP in seconds since 1970; None for what is none. Without a zone, it is one of UTC."""
    if len(date) > _LONGEST_DATE:
        return None
    read = _DATE.fullmatch(date) or _DATE_OF_C.fullmatch(date)
    if read is None or read["month"].lower() not in _MONTHS:
        return None
    month = _MONTHS.index(read["month"].lower()) + 1
    year, day = int(read["year"]), int(read["day"])
    if len(read["year"]) == 2:
        year += 1900 if year > 68 else 2000  # as POSIX has it
    first = _days(year, month)
    if not 1 <= day <= _days(year + month // 12, month % 12 + 1) - first:
        return None
    hour, minute, second = int(read["hour"]), int(read["minute"]), int(read["second"])
    if hour > 23 or minute > 59 or second > 60:  # which is a leap second
        return None
    told = (first + day - 1) * 86_400 + hour * 3600 + minute * 60 + second
    zone = read.groupdict()
    if zone.get("sign") is None:
        return float(told)
    hours, minutes = int(zone["off_hours"]), int(zone["off_minutes"])
    if hours > 23 or minutes > 59:
        return None
    ahead = hours * 3600 + minutes * 60
    return float(told - ahead if zone["sign"] == "+" else told + ahead)


def _days(year: int, month: int) -> int:
    """Days from 1970 to the first of a month (the Gregorian calendar's)."""
    year -= month <= 2  # years that begin with March, so that the day that leap years have is their last
    return year * 365 + year // 4 - year // 100 + year // 400 + (153 * ((month + 9) % 12) + 2) // 5 - 719_468
