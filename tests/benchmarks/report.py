"""What a run leaves behind: results.json, the page and README's table, which are made from it, and plots."""

from __future__ import annotations

import datetime
import json
import re
import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.registry import WORKS
from tests.benchmarks.run import Plan, Rounds
from tests.benchmarks.targets import Row, duration, judge
from tests.benchmarks.works import THREADS

ROOT = Path(__file__).resolve().parent.parent.parent


def results(rounds: Rounds, plan: Plan, load: float | None, took: float) -> dict[str, Any]:
    """All that is kept of a run."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine.describe(),
        "load": load,
        "load_after": machine.load(),
        "took": round(took),
        "rounds": plan.rounds,
        "figures": rounds,
        "targets": [row._asdict() for row in judge(rounds)],
    }


def write(found: dict[str, Any], root: Path = ROOT) -> None:
    """Write everything into the docs and README of the tree at `root`."""
    from tests.benchmarks.plots import draw

    folder = root / "docs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    # The many short lists of figures on a line each.
    text = re.sub(r"\{[^{}\[\]]*\}", lambda part: re.sub(r"\s+", " ", part[0]), text)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    draw(found, folder)
    rows = [Row(**row) for row in found["targets"]]
    fill(root / "docs" / "benchmarks.md", "machine", machine_text(found))
    fill(root / "docs" / "benchmarks.md", "targets", target_table(rows))
    fill(root / "docs" / "benchmarks.md", "waits", wait_table(found["figures"]))
    fill(root / "docs" / "benchmarks.md", "times", time_table(found["figures"]))
    fill(root / "README.md", "figures", short_table(rows))


def fill(page: Path, name: str, text: str, by: str = "make bench") -> None:
    """Replace what stands between the marks of that name and command.

    Raises:
        ValueError: The page has no such marks.
    """
    begin, end = f"<!-- {name}: written by {by} -->", f"<!-- end of {name} -->"
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise ValueError(f"{page}: no place for the {name}")
    page.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def machine_text(found: dict[str, Any]) -> str:
    about = found["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    load = "" if found["load"] is None else f" Load: {found['load']:g} before, {found['load_after']:g} after."
    system = f"{about['python']}, {about['system']}, {about['processor']}, {about['cores']} cores"
    how = f"Medians of {found['rounds']} rounds, {found['took']} s in all."
    return f"{found['date']}: {system}; {versions}. {how}{load}"


def target_table(rows: list[Row]) -> str:
    lines = [
        "| work | who | beside | its time | the other's | ratio (rounds) | target | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| {' | '.join(cells(row))} |" for row in rows])


def cells(row: Row) -> list[str]:
    met = "met" if row.met else "**missed**"
    return [row.work, row.who, row.against, row.ours, row.theirs, row.ratio, row.target, met]


def time_table(figures: Rounds) -> str:
    """The time of one step of every work and contender."""
    lines = ["| work | contender | median | lowest | highest | per second |", "|---|---|---|---|---|---|"]
    for name, work in WORKS.items():
        for contender, rounds in figures.get(name, {}).items():
            times = [one["time"] for one in rounds if "time" in one]
            if times:
                median = statistics.median(times)
                each = [duration(median), duration(min(times)), duration(max(times)), f"{1 / median:,.0f}"]
                lines.append(f"| {work.title} | {contender} | {' | '.join(each)} |")
    return "\n".join(lines)


def wait_table(figures: Rounds) -> str:
    """Who waits for how long, and how many threads had a turn at all."""
    lines = [
        "| threads | contender | median wait | longest wait | threads that had a turn |",
        "|---|---|---|---|---|",
    ]
    for count in THREADS:
        for contender, [found] in figures.get("waits", {}).items():
            waits = [duration(found[f"{count} {key}"]) for key in ("median", "longest")]
            lines.append(f"| {count} | {contender} | {' | '.join(waits)} | {found[f'{count} served']:.0f} |")
    return "\n".join(lines)


def short_table(rows: list[Row]) -> str:
    """README's: the ratios, and what was wanted."""
    lines = ["| work | beside | ratio | target |", "|---|---|---|---|"]
    for row in rows:
        who = "" if row.who == "jetsocket" else f" ({row.who})"
        figure = row.ratio.split(" ")[0] or row.ours
        missed = "" if row.met else ", missed"
        lines.append(f"| {row.work}{who} | {row.against} | {figure} | {row.target}{missed} |")
    return "\n".join(lines)


def plain_table(rows: list[Row]) -> str:
    """For a terminal without rich."""
    heads = ["work", "who", "beside", "its time", "the other's", "ratio (rounds)", "target", ""]
    lines = [heads, *([cell.strip("*") for cell in cells(row)] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
