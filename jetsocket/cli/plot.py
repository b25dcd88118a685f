"""The latencies of a bench as a picture: an SVG, drawn by hand."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

from jetsocket.cli.figures import percentile, shown_time

__all__ = ["draw", "ticks"]

_WIDTH, _HEIGHT = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 56, 48
_SHARES = (0, 50, 75, 90, 95, 99, 99.5, 99.9, 99.95, 99.99, 99.999, 99.9999)
_MARKED = (50, 90, 99)


def draw(times: Sequence[float], title: str) -> str:
    """How many percent of the requests were replied to within which time; the far percentiles are drawn wide.

    Args:
        times: The latencies (s), one or more.
        title: What was measured.
    """
    ordered = sorted(times)
    most = _reach(len(ordered))
    values = ticks(ordered[-1])
    top = values[-1]

    def x_of(share: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * _nines(share) / _nines(most)

    def y_of(seconds: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * seconds / top

    shapes = []
    for value in values:
        y = y_of(value)
        shapes.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="grid"/>')
        shapes.append(
            f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">'
            f"{shown_time(value) if value else 0}</text>"
        )
    shares = [share for share in _SHARES if share <= most]
    for share in shares:
        x = x_of(share)
        shapes.append(f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_HEIGHT - _BOTTOM}" class="grid"/>')
        shapes.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{share:g}</text>')
    steps = 400
    curve = []
    for step in range(steps + 1):
        share = 100 * (1 - 10 ** (-_nines(most) * step / steps))
        curve.append(f"{x_of(share):.1f},{y_of(percentile(ordered, share)):.1f}")
    shapes.append(f'<polyline points="{" ".join(curve)}" class="curve"/>')
    for share in _MARKED:
        if share <= most:
            value = percentile(ordered, share)
            x, y = x_of(share), y_of(value)
            anchor = "end" if x > _LEFT + 100 else "start"  # above a curve that rises
            shapes.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="dot"/>')
            shapes.append(
                f'<text x="{x + (6 if anchor == "start" else -6):.1f}" y="{y - 8:.1f}" text-anchor="{anchor}"'
                f' class="mark">p{share} {shown_time(value)}</text>'
            )
    name = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">\n'
        f"<title>{name}</title>\n{_STYLE}"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" class="page"/>\n'
        f'<text x="{_LEFT}" y="24" class="title">{name}</text>\n'
        f'<text x="{_LEFT}" y="42">latency of {len(ordered):,} replies, by percentile</text>\n'
        + "\n".join(shapes)
        + f'\n<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:.0f}" y="{_HEIGHT - 10}" text-anchor="middle">'
        "percentile</text>\n</svg>\n"
    )


_STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #444 }
.title { font-size: 15px; font-weight: 600; fill: #111 }
.mark { font-weight: 600; fill: #0b4f8a }
.page { fill: #fff } .grid { stroke: #ddd } .dot { fill: #0b4f8a }
.curve { fill: none; stroke: #1b6fb8; stroke-width: 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #bbb } .title { fill: #eee } .mark { fill: #9bd0ff } .dot { fill: #9bd0ff }
  .page { fill: #16181c } .grid { stroke: #333 } .curve { stroke: #5aa9e6 }
}
</style>
"""


def _nines(share: float) -> float:
    return -math.log10(1 - share / 100)


def _reach(count: int) -> float:
    """The percentile of the slowest but none: beyond it, the curve would say nothing more."""
    return 100 * (1 - 1 / max(count, 10))


def ticks(most: float) -> list[float]:
    """Round values from 0 to `most` or a little more, about five."""
    most = max(most, 1e-9)
    rough = most / 5
    size = 10 ** math.floor(math.log10(rough))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= rough * 0.999)
    return [step * number for number in range(math.ceil(most / step * 0.9999) + 1)]
