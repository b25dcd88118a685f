"""What a soak shows: live figures, the final table, and docs/reliability.md with its results.json."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.benchmarks import machine
from tests.benchmarks.report import fill
from tests.soak.ledger import MIB, Verdict

ROOT = Path(__file__).resolve().parent.parent.parent
_EVERY = 10.0  # s between two lines, where there is no terminal

Look = Mapping[str, Any]


@contextlib.contextmanager
def live() -> Iterator[Callable[[Look], None]]:
    """A function that shows the figures of the moment: in a table on a terminal, in lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def table(look: Look) -> Table:
        shown = Table(show_header=False)
        for name, value in rows(look):
            shown.add_row(name, value)
        return shown

    with Live(console=Console(stderr=True), transient=True, auto_refresh=False) as display:
        yield lambda look: display.update(table(look), refresh=True)


class Lines:
    """Plain lines, now and then."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, look: Look) -> None:
        if look["at"] >= self._next:
            self._next = look["at"] + _EVERY
            line = ", ".join(f"{name} {value}" for name, value in rows(look))
            print(line, file=sys.stderr, flush=True)


def rows(look: Look) -> list[tuple[str, str]]:
    """A look at the running soak."""
    return [
        ("time", f"{look['at']:.0f} s"),
        ("calls", f"{look['made']:,}"),
        ("answered", f"{look['answered']:,}"),
        ("failed by name", f"{sum(look['failed'].values()):,}"),
        ("struck", f"{look['struck']:,}"),
        ("foreign", f"{look['foreign']}"),
        ("broken", f"{look['broken']}"),
        ("sockets", f"{look['sockets']}"),
        ("threads", f"{look['threads']}"),
        ("memory", f"{look['rss'] / MIB:.0f} MiB"),
    ]


def show(verdicts: list[Verdict]) -> None:
    """Print the final table."""
    cells = [(one.what, one.figure, one.rule, mark(one)) for one in verdicts]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table

        table = Table("", "counted", "has to be", "", title="What is left of the soak")
        for row in cells:
            table.add_row(*row)
        Console().print(table)
        return
    widths = [min(60, max(len(row[column]) for row in cells)) for column in range(4)]
    for row in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def mark(verdict: Verdict) -> str:
    if not verdict.rule:
        return ""
    return "kept" if verdict.kept else "BROKEN"


def results(
    minutes: float, seed: int, verdicts: list[Verdict], suites: list[Look], failed: bool
) -> dict[str, Any]:
    """All that is kept of a whole run."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "machine": machine.describe(),
        "load_after": machine.load(),
        "minutes": minutes,
        "seed": seed,
        "suites_passed": not failed,
        "soak": [one._asdict() for one in verdicts],
        "suites": suites,
    }


def write(found: Mapping[str, Any], root: Path = ROOT) -> None:
    """Write a run's figures into the docs of the tree at `root`.

    Raises:
        ValueError: The page has no place for them.
    """
    folder = root / "docs" / "reliability"
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    fill(root / "docs" / "reliability.md", "figures", figures(found), by="make soak")


def figures(found: Mapping[str, Any]) -> str:
    """The block of the page: the machine, the soak's ledger, and what each suite reported."""
    about = found["machine"]
    system = f"{about['python']}, {about['system']}, {about['processor']}, {about['cores']} cores"
    how = (
        f"`make soak MINUTES={found['minutes']:g} SEED={found['seed']}`, load {found['load_after']} after it."
    )
    lines = [f"{found['date']}: {system}. {how}", "", "### Of the soak", ""]
    lines += ["| | counted | has to be | |", "|---|---|---|---|"]
    for one in (Verdict(**row) for row in found["soak"]):
        lines.append(f"| {cell(one.what)} | {cell(one.figure)} | {cell(one.rule)} | {mark(one)} |")
    how = "All of them passed." if found["suites_passed"] else "**Not all of them passed.**"
    lines += ["", "### Of the suites", "", how, ""]
    lines += ["| suite | test | figures |", "|---|---|---|"]
    for row in found["suites"]:
        told = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in row["figures"].items())
        lines.append(f"| {cell(row['row'])} | `{cell(row['test'].split('/')[-1])}` | {cell(told)} |")
    return "\n".join(lines)


def cell(text: str) -> str:
    """Text that may stand in a table of Markdown."""
    return text.strip().replace("|", "\\|").replace("\n", " ")
