"""`--fail-if`: what is not to be, such as `p99>50ms`, `errors>1%`, `rate<100`."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass

from jetsocket.cli.exits import UsageError
from jetsocket.cli.figures import Latencies, shown_time

__all__ = ["FIGURES", "Figures", "Threshold", "read"]

_TIMES = Latencies._fields
FIGURES = (*_TIMES, "errors", "rate")
"""What a threshold may be of."""

_PATTERN = re.compile(r"\s*(?P<what>\w+)\s*(?P<sign>[<>])\s*(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z%]*)\s*")
_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_FORMS = "write p99>50ms (min, avg, p50, p90, p95, p99, max; us, ms, s), errors>10, errors>1% or rate<100"


@dataclass(frozen=True)
class Figures:
    """What a threshold is held against.

    Attributes:
        requests: How many were made, those that failed too.
        errors: How many failed.
        rate: Replies a second.
        latencies: Of those that were replied to (s); None of none.
    """

    requests: int
    errors: int
    rate: float
    latencies: Latencies | None


@dataclass(frozen=True)
class Threshold:
    """One of them.

    Attributes:
        text: As it was given.
        what: Which figure.
        is_above: Whether it fails above the limit, or below.
        limit: s; a number; or a share from 0 to 1.
        is_share: Whether `limit` is a share of all requests.
    """

    text: str
    what: str
    is_above: bool
    limit: float
    is_share: bool = False

    def failed(self, figures: Figures) -> str | None:
        """What is wrong; None: nothing. A latency fails, too, where no request had a reply."""
        fails = operator.gt if self.is_above else operator.lt
        if self.what == "errors":
            share = figures.errors / figures.requests if figures.requests else 1.0
            value = share if self.is_share else float(figures.errors)
            shown = f"{share * 100:.3g} %" if self.is_share else str(figures.errors)
        elif self.what == "rate":
            value, shown = figures.rate, f"{figures.rate:.1f}/s"
        elif figures.latencies is None:
            return f"{self.text}: no request had a reply"
        else:
            value = getattr(figures.latencies, self.what)
            shown = shown_time(value)
        return f"{self.text}: {self.what} is {shown}" if fails(value, self.limit) else None


def read(text: str) -> Threshold:
    """Read one.

    Raises:
        UsageError: It is none.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise UsageError(f"--fail-if {text!r} is no threshold", _FORMS)
    what, unit, number = found["what"], found["unit"], float(found["number"])
    is_above, text = found["sign"] == ">", text.strip()
    if what in _TIMES:
        if unit not in _UNITS:
            raise UsageError(f"--fail-if {text!r}: {what} is a time, and needs one of us, ms, s", _FORMS)
        return Threshold(text, what, is_above, number * _UNITS[unit])
    if what == "errors":
        if unit not in ("", "%") or (unit == "%" and number > 100):
            raise UsageError(f"--fail-if {text!r}: errors is a number, or a share of at most 100 %", _FORMS)
        return Threshold(text, what, is_above, number / 100 if unit else number, is_share=bool(unit))
    if what == "rate":
        if unit:
            raise UsageError(f"--fail-if {text!r}: rate is a number of replies a second", _FORMS)
        return Threshold(text, what, is_above, number)
    raise UsageError(f"--fail-if {text!r}: there is no figure {what!r}", _FORMS)
