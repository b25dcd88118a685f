"""What a notebook shows of pools, figures and leases: small tables in the colours of the page."""

from __future__ import annotations

from collections.abc import Iterable

_NUMBER = "text-align:right;font-variant-numeric:tabular-nums"
_TEXT = "text-align:left"


def table(caption: str, rows: Iterable[tuple[str, object]]) -> str:
    """Two columns: names and values.

    Args:
        caption: What it is of.
        rows: Names and values; numbers stand at the right.
    """
    lines = [
        f'<tr><th scope="row" style="{_TEXT}">{_shown(name)}</th>{_cell(value)}</tr>' for name, value in rows
    ]
    return _framed(caption, "".join(lines))


def grid(caption: str, names: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A heading, and a row for each thing; "" if there is none.

    Args:
        caption: What they are.
        names: Of the columns.
        rows: Values.
    """
    lines = ["".join(map(_cell, row)) for row in rows]
    if not lines:
        return ""
    heading = "".join(f'<th scope="col" style="{_TEXT}">{_shown(name)}</th>' for name in names)
    return _framed(caption, f"<tr>{heading}</tr>" + "".join(f"<tr>{line}</tr>" for line in lines))


def _cell(value: object) -> str:
    style = _NUMBER if isinstance(value, (int, float)) else _TEXT
    return f'<td style="{style}">{_shown(value)}</td>'


def _shown(value: object) -> str:
    from html import escape  # here: few programs show anything

    return escape(str(value))


def _framed(caption: str, rows: str) -> str:
    return (
        f'<table><caption style="{_TEXT};caption-side:top;font-weight:bold">{_shown(caption)}</caption>'
        f"<tbody>{rows}</tbody></table>"
    )


__all__ = ["grid", "table"]
