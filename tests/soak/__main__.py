"""`python -m tests.soak --minutes 10`: the long forms of all suites, then everything at random for that long.

Exit status: 0 if all promises were kept, 1 if one was broken, with what broke in plain words.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.soak import report
from tests.soak.conduct import StuckError, soak
from tests.soak.ledger import Ledger

_WHOLE = 10.0  # min: what counts as a whole run


def suites(depth: float, figures: Path) -> int:
    """Run the long forms; pytest's exit status. What they report is added to the file."""
    more_than_tests = importlib.util.find_spec("gunicorn") is not None  # the extra `integration`
    marked = "soak or deep" if more_than_tests else "(soak or deep) and not integration"
    env = {**os.environ, "JETSOCKET_DEPTH": f"{depth:g}", "JETSOCKET_FIGURES": str(figures)}
    # Stacks are of interest when a test is over its time, and these have more of that than others.
    stacks = "faulthandler_timeout=600"
    command = [sys.executable, "-m", "pytest", "-m", marked, "-v", "-o", stacks, "tests"]
    status = subprocess.run(command, cwd=report.ROOT, env=env, check=False).returncode
    nothing_to_run = 5
    return 0 if status == nothing_to_run else status


def reported(figures: Path) -> list[dict[str, Any]]:
    """What the suites reported."""
    return [json.loads(line) for line in figures.read_text(encoding="utf-8").splitlines()]


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    env = os.environ.get
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=float(env("MINUTES") or _WHOLE), help="%(default)s")
    parser.add_argument("--seed", type=int, default=int(env("SEED") or random.randrange(1_000_000)))
    parser.add_argument("--only", choices=("soak", "suites"), default=env("ONLY") or None)
    parser.add_argument("--json", type=Path, help="where to write the ledger, too")
    chosen = parser.parse_args(arguments)
    if not 0 < chosen.minutes < 10_000:
        parser.error(f"--minutes must be more than 0, not {chosen.minutes:g}")
    return chosen


def main(arguments: Sequence[str] | None = None) -> int:
    chosen = options(arguments)
    print(f"soak of {chosen.minutes:g} min, SEED={chosen.seed}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="jetsocket-soak-") as folder:
        figures = Path(folder, "figures.jsonl")
        figures.touch()
        failed = chosen.only != "soak" and suites(chosen.minutes / _WHOLE, figures) != 0
        told = reported(figures)
    ledger, broken = None, []
    try:
        if chosen.only != "suites":
            ledger = soak(chosen.minutes * 60, chosen.seed)
            broken += ledger.broken()
    except StuckError as error:
        broken.append(str(error))
    finish(chosen, ledger, told, failed)
    if failed:
        broken.append("a suite failed: see above")
    for text in broken:
        print(f"BROKEN: {text}", file=sys.stderr)
    return 1 if broken else 0


def finish(
    chosen: argparse.Namespace, ledger: Ledger | None, told: list[dict[str, Any]], failed: bool
) -> None:
    """Show the figures; those of a whole run go into the docs."""
    for row in told:
        print(f"{row['row']}: {json.dumps(row['figures'])} ({row['test']})")
    if ledger is None:
        return
    verdicts = ledger.verdicts()
    report.show(verdicts)
    found = report.results(chosen.minutes, chosen.seed, verdicts, told, failed)
    text = json.dumps(found["soak"])
    print(text)
    if chosen.json:
        chosen.json.write_text(json.dumps({**found, "found": ledger.found}, indent=1), encoding="utf-8")
    if chosen.only is None and chosen.minutes >= _WHOLE:
        report.write(found)
        print("written: docs/reliability.md, docs/reliability/results.json")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
