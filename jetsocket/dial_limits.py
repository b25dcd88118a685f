"""How many connections are opened at once, and how soon more are: pure decisions.

The pool opens as many connections to a URI as its line needs and no more, within `max_connecting` and
`max_per_uri` (`dials_allowed`). Which one makes room for another at a full pool is decided in `eviction`.
"""

from __future__ import annotations

PACE, MOST_PACE = 0.02, 0.25
"""s: see `pause_before_more`."""


def dials_allowed(more: int, *, opening: int, open_now: int, most_opening: int, most: int | None) -> int:
    """How many of so many more connections to one URI may be opened, slots aside.

    Args:
        more: How many are needed beside those that are being opened.
        opening: How many are being opened.
        open_now: How many are open.
        most_opening: `max_connecting`.
        most: `max_per_uri`.
    """
    allowed = min(more, most_opening - opening)
    if most is not None:
        allowed = min(allowed, most - open_now - opening)
    return max(0, allowed)


def pause_before_more(took: float, *, comes_back: bool) -> float:
    """How long those that are open may serve a line before more are opened (s from the last one served).

    Args:
        took: What the last dial took (s): what comes back within that serves the line sooner than another.
        comes_back: Whether one has come back, and more will.
    """
    return max(PACE, min(took if comes_back else took / 2, MOST_PACE))


__all__ = ["dials_allowed", "pause_before_more"]
