"""`python -m tests.benchmarks`: contenders take turns, each in a process of its own; medians are compared."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence

from tests.benchmarks.contenders import BENCHMARKS, Benchmark
from tests.benchmarks.server import HOST

TIMEOUT = 120.0  # s for one run of one contender


@contextlib.contextmanager
def running_server() -> Iterator[str]:
    """The server's URI."""
    command = [sys.executable, "-m", "tests.benchmarks.server"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"ws://{HOST}:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        try:
            process.wait(5)
        finally:
            process.kill()
            process.stdout.close()


def measure(benchmark: str, contender: str, uri: str, count: int) -> float:
    """Seconds for one step, measured in a process of its own.

    Raises:
        RuntimeError: The process failed; its stderr is in the message.
    """
    command = [sys.executable, "-m", "tests.benchmarks", "--measure", benchmark, contender, uri, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    if done.returncode:
        raise RuntimeError(f"{contender} failed:\n{done.stderr}")
    return float(done.stdout) / count


def compare(name: str, uri: str, rounds: int, scale: float) -> dict[str, float]:
    """Median of each contender (s for one step). They take turns, so that a slow minute hits all of them."""
    benchmark = BENCHMARKS[name]
    count = max(20, int(benchmark.count * scale))
    times: dict[str, list[float]] = {contender: [] for contender in benchmark.contenders}
    for number in range(rounds):
        print(f"{name}: round {number + 1} of {rounds}", file=sys.stderr)
        for contender, taken in times.items():
            taken.append(measure(name, contender, uri, count))
    return {contender: statistics.median(taken) for contender, taken in times.items()}


def table(benchmark: Benchmark, medians: dict[str, float]) -> list[str]:
    """The lines of a table: contender, time of one step, steps in a second, ratio to jetsocket's time."""
    ours = next(iter(medians.values()))
    lines = ["", benchmark.title, f"  {'':<30}{benchmark.unit:>12}{'per second':>14}{'ratio':>10}"]
    for contender, median in medians.items():
        lines.append(f"  {contender:<30}{median * 1e6:>12,.2f}{1 / median:>14,.0f}{median / ours:>10,.2f}")
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmarks that the command line, or ONLY in the environment, names; all of them otherwise."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", choices=BENCHMARKS, default=os.environ.get("ONLY") or None)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each contender (%(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="times the usual number of steps")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.only is not None and options.only not in BENCHMARKS:  # argparse does not check a default
        parser.error(f"ONLY={options.only}: choose from {', '.join(BENCHMARKS)}")
    if options.measure is not None:
        name, contender, uri, count = options.measure
        print(BENCHMARKS[name].contenders[contender](uri, int(count)))
        return
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, medians of {options.rounds} rounds")
    with running_server() as uri:
        for name in [options.only] if options.only else BENCHMARKS:
            medians = compare(name, uri, options.rounds, options.scale)
            print("\n".join(table(BENCHMARKS[name], medians)), flush=True)


if __name__ == "__main__":
    main()
