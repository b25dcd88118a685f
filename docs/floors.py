"""Draws docs/_static/floors.svg, the picture of the house, from the floors in setup.cfg.

Run it after a file was added or renamed: `python docs/floors.py`. A test says when that was forgotten.
"""

from __future__ import annotations

import configparser
import re
from itertools import cycle
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "_static" / "floors.svg"

# What several floors of setup.cfg are called together: from the one that has this file, down to the next.
NAMES = {
    "__main__": "terminal",
    "pool": "the pool",
    "lending": "lends and opens",
    "callback_lease": "what is told",
    "correlated": "the lease",
    "state": "the state",
    "clean": "decisions",
    "dispatch": "whose it is",
    "known_uris": "records",
    "places": "basics",
    "messages": "what is given",
    "wire": "wire",
    "uris": "ground",
}
PACKAGES = {"state": "state/", "wire": "wire/"}  # drawn with what is in them

WIDTH, LABEL, ROW, PAD = 820, 140, 30, 8  # the longest name fits the label in a wide font, too


def layers(contract: str) -> list[list[str]]:
    """The floors of a contract, from the top: the modules of each."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config[f"importlinter:contract:{contract}"]["layers"].split("\n")
    return [re.findall(r"\w+", line) for line in lines if line.strip()]


def floors() -> list[tuple[str, list[str]]]:
    """Name and boxes of each floor of the picture, from the top."""
    found: list[tuple[str, list[str]]] = []
    for modules in layers("floors"):
        name = next((NAMES[module] for module in modules if module in NAMES), None)
        if name is not None:
            found.append((name, []))
        for module in modules:
            found[-1][1].append(PACKAGES.get(module, module))
            if module in PACKAGES:
                found[-1][1].extend(f"· {inner}" for layer in layers(f"{module}-floors") for inner in layer)
    return found


def rows_of(boxes: list[str]) -> list[list[tuple[str, int, int]]]:
    """Where each box goes: rows of text, x and width."""
    rows: list[list[tuple[str, int, int]]] = [[]]
    x = LABEL + 10
    for text in boxes:
        width = round(len(text) * 6.7) + 14
        if x + width > WIDTH - 18:
            rows.append([])
            x = LABEL + 10
        rows[-1].append((text, x, width))
        x += width + 6
    return rows


def draw() -> str:
    """The picture as SVG."""
    shapes: list[str] = []
    y = 10
    told = []
    for (name, boxes), shade in zip(floors(), cycle(("#eef3f8", "#f6f9fc")), strict=False):
        rows = rows_of(boxes)
        height = len(rows) * ROW + 2 * PAD - 6
        shapes.append(
            f'  <rect x="10" y="{y}" width="{WIDTH - 20}" height="{height}" rx="6"'
            f' fill="{shade}" stroke="#345"/>\n'
            f'  <text x="22" y="{y + PAD + 17}" fill="#345" font-weight="bold" font-size="13">{name}</text>'
        )
        for number, row in enumerate(rows):
            top = y + PAD + number * ROW
            for text, x, width in row:
                shapes.append(
                    f'  <rect x="{x}" y="{top}" width="{width}" height="24" rx="4"'
                    ' fill="#ffffff" stroke="#8aa"/>\n'
                    f'  <text x="{x + width // 2}" y="{top + 16}" text-anchor="middle" fill="#123"'
                    f' font-size="11.5">{text}</text>'
                )
        told.append(f"{name}: {', '.join(box.removeprefix('· ') for box in boxes)}")
        y += height + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y + 4}"'
        ' font-family="Helvetica, Arial, sans-serif" role="img" aria-labelledby="title desc">\n'
        '  <title id="title">The floors of the house</title>\n'
        f'  <desc id="desc">From top to bottom: {"; ".join(told)}. An import only goes down.</desc>\n'
        f'  <rect width="{WIDTH}" height="{y + 4}" fill="#ffffff"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
