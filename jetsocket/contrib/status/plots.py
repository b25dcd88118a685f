"""Small plots of the last minutes, as SVG that needs no script, no style attribute and no other file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from jetsocket.contrib.status.watching import SLOTS

_HEIGHT = 48
_ROOM = 3  # above and below, for the width of the line


def plot(values: Sequence[int | None], *, highest: int, limit: int | None, told: str) -> str:
    """One line over time, the newest value at the right end.

    Args:
        values: One for each second; None where none is known.
        highest: What is at the top.
        limit: Where to draw a dashed line across; None: nowhere.
        told: The same in words.
    """
    runs = list(_runs(values))
    line = "".join(_line(run, highest) for run in runs)
    area = "".join(f"{_line(run, highest)}V{_HEIGHT}H{run[0][0]}Z" for run in runs)
    minutes = "".join(f"M{x} 0V{_HEIGHT}" for x in range(60, SLOTS, 60))
    cap = ""
    if limit is not None:
        cap = f'<path class="cap" d="M0 {_y(limit, highest)}H{SLOTS}"/>'
    return (
        f'<svg viewBox="0 0 {SLOTS} {_HEIGHT}" preserveAspectRatio="none" role="img"'
        f' aria-label="{escape(told)}"><path class="minutes" d="{minutes}"/>'
        f'<path class="area" d="{area}"/>{cap}<path class="line" d="{line}"/></svg>'
    )


def _runs(values: Sequence[int | None]) -> Iterator[list[tuple[int, int]]]:
    """The parts without a gap: pairs of x and value, only where the value changes, and at the end."""
    run: list[tuple[int, int]] = []
    end = 0
    for x, value in enumerate(values, SLOTS - len(values)):
        if value is None:
            if run:
                yield [*run, (end, run[-1][1])]
            run = []
            continue
        if not run or run[-1][1] != value:
            run.append((x, value))
        end = x + 1
    if run:
        yield [*run, (end, run[-1][1])]


def _line(run: Sequence[tuple[int, int]], highest: int) -> str:
    (x, value), *others = run
    return f"M{x} {_y(value, highest)}" + "".join(f"H{x}V{_y(value, highest)}" for x, value in others)


def _y(value: int, highest: int) -> str:
    y = _HEIGHT - _ROOM - (_HEIGHT - 2 * _ROOM) * min(value, highest) / max(1, highest)
    return f"{y:.4g}"
