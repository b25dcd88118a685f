"""`python -m tests.benchmarks`: contenders take turns, each in a process of its own; medians are compared."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from time import monotonic

from tests.benchmarks import machine, report
from tests.benchmarks.run import NAMES, TINY, Plan, run, running_server
from tests.benchmarks.targets import judge


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, float], None]]:
    """A function that shows what is done next: in a bar on a terminal, in lines elsewhere."""
    if not sys.stderr.isatty():
        yield lambda what, part: print(f"{part:4.0%} {what}", file=sys.stderr, flush=True)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), TaskProgressColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda what, part: bar.update(task, description=what, completed=part)
        bar.update(task, description="", completed=1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line, or ONLY in the environment, names; all of them otherwise.

    All of them together also write docs/benchmarks and README's table.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", default=os.environ.get("ONLY") or None, help=", ".join(NAMES))
    parser.add_argument("--rounds", type=int, default=Plan().rounds, help="turns of each (%(default)s)")
    parser.add_argument("--tiny", action="store_true", help="hardly anything, to see whether it runs")
    options = parser.parse_args(arguments)
    names = NAMES if options.only is None else tuple(options.only.split(","))
    for name in names:
        if name not in NAMES:
            parser.error(f"ONLY={name}: choose from {', '.join(NAMES)}")
    plan = TINY if options.tiny else Plan(rounds=options.rounds)
    load, began = machine.load(), monotonic()
    with running_server() as place, progress() as tell:
        rounds = run(names, place, plan, tell)
    print(report.time_table(rounds).replace("|---|---|---|---|---|---|\n", ""), "", sep="\n")
    print(report.plain_table(judge(rounds)))
    if names == NAMES and not options.tiny:
        report.write(report.results(rounds, plan, load, monotonic() - began))
        print("\nwritten: docs/benchmarks/, docs/benchmarks.md, README.md")


if __name__ == "__main__":
    main()
