"""Dials whose thread does not come back: how many may be left behind, and what is told of them.

No thread can be ended from outside. One that hangs in the user's code, or in the system's resolver, is given
up when its time is over: its slot is free again, and the thread stays behind until what it is in returns. So
that they don't come to thousands, a URI is not dialled while as many as are allowed hang in dials to it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from types import CodeType
from typing import ParamSpec, TypeVar

from jetsocket.clock import monotonic
from jetsocket.dial_order import Dial
from jetsocket.exceptions import ConnectionError
from jetsocket.threads import frame_in, is_in
from jetsocket.user_errors import place_in

MOST_THERE = 8
"""Threads that may hang in dials to one URI."""

MOST = 32
"""Threads of a pool that may hang; from then on, one for each URI."""

LATE = 1.0
"""S that a thread has which is only late."""

P = ParamSpec("P")
R = TypeVar("R")
_CARRIERS: set[CodeType] = set()


def carries_out(function: Callable[P, R]) -> Callable[P, R]:
    """Mark the function that is on the stack of a thread as long as that carries out a dial."""
    _CARRIERS.add(function.__code__)
    return function


def too_many(left_behind: Collection[Dial], key: str) -> bool:
    """Whether so many threads hang in dials to that URI that it is not to be dialled.

    Args:
        left_behind: The dials that ended before their thread did; that hangs once their time is over.
        key: Of the URI.
    """
    if not left_behind:  # nearly always
        return False
    now = monotonic()
    hanging = [dial.key for dial in left_behind if now >= dial.overdue_at]
    return hanging.count(key) >= (MOST_THERE if len(hanging) < MOST else 1)


def refusal(left_behind: Collection[Dial], key: str) -> ConnectionError:
    """What a caller is told for whom therefore nothing is dialled."""
    there = [dial for dial in left_behind if dial.key == key]
    return ConnectionError(
        f"cannot connect to {there[0].target.redacted}: {len(there)} threads that were to do so hang"
        f" {where(there)}; no more are started for it until one comes back. Give what they wait for a timeout"
    )


def where(dials: Collection[Dial]) -> str:
    """In what they hang, as far as is known."""
    places = dict.fromkeys(dial.hangs_in for dial in dials if dial.hangs_in)
    return "in " + (" and ".join(places) or "a name look-up, or in a callable of yours")


def place_of(dial: Dial) -> str:
    """What the thread of a dial is in: a place in the user's code, a limiter, the resolver; or ""."""
    frame, limiter = frame_in(dial.thread), ""
    if dial.quota is not None and dial.grant is None and dial.entry is None:
        limiter = f" of the limiter {dial.quota.name!r}"
    if place := place_in(frame):
        return place + limiter
    if limiter:
        return "acquire()" + limiter
    from jetsocket.wire.dns import look_up  # it is there: dials look names up

    return "a name look-up" if frame is not None and is_in(dial.thread, [look_up.__code__]) else ""


def is_only_late(dial: Dial) -> bool:
    """Whether the thread of a dial whose time is over is in our own code, where each wait has an end.

    A busy machine has not let it run since. It is about to tell more of why the dial fails than can be seen
    from outside.
    """
    return frame_in(dial.thread) is not None and is_in(dial.thread, _CARRIERS) and not place_of(dial)


def why(dial: Dial, lasted: float) -> str:
    """Why a dial has failed that was given up after so long (s)."""
    if dial.hangs_in:
        return (
            f"after {lasted:.3g} s its thread hangs in {dial.hangs_in}; give what it waits for a timeout of"
            " its own, or allow more time (connect_timeout)"
        )
    return (
        f"{lasted:.3g} s were not enough, and its thread has not come back; see what your callables and the"
        " resolver do, or allow more time (connect_timeout)"
    )


def have_come_back(left_behind: Collection[Dial]) -> list[Dial]:
    """The dials whose thread has ended, or does something else; an exception kept it from saying so."""
    return [dial for dial in left_behind if not is_in(dial.thread, _CARRIERS)]


__all__ = [
    "LATE",
    "MOST",
    "MOST_THERE",
    "carries_out",
    "have_come_back",
    "is_only_late",
    "place_of",
    "refusal",
    "too_many",
    "where",
    "why",
]
