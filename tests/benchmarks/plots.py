"""The plots of the page on benchmarks, as SVG."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from tests.benchmarks.multiplex import CROWDS, DELAYS
from tests.benchmarks.run import Rounds
from tests.benchmarks.works import SIZES, THREADS, Figures

COLOURS = ("#0b6e4f", "#35b08a", "#c8553d", "#3d5a80")


def draw(found: dict[str, Any], folder: Path) -> None:
    """Draw whatever there are figures for."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {
            "svg.hashsalt": "jetsocket",  # the same figures make the same file
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": "#dddddd",
        }
    )
    figures: Rounds = found["figures"]
    plots = {"sizes": plot_sizes, "waits": plot_waits, "idle": plot_idle, "multiplex": plot_multiplex}
    for work, plot in plots.items():
        if work in figures:
            plot(figures[work], folder)


def plot_sizes(contenders: dict[str, list[Figures]], folder: Path) -> None:
    """Messages in a second by size, beside each peer."""
    figure, axes = new(1)
    for (name, rounds), colour in zip(contenders.items(), COLOURS, strict=False):
        rates = [1 / statistics.median(one[str(size)] for one in rounds) for size in SIZES]
        axes[0].loglog(SIZES, rates, marker="o", label=name, color=colour)
    axes[0].set(xlabel="size of a message (B)", ylabel="text messages received in a second")
    axes[0].legend(frameon=False)
    save(figure, folder / "stream-by-size.svg")


def plot_waits(contenders: dict[str, list[Figures]], folder: Path) -> None:
    """How long callers wait for one of 8 connections."""
    figure, axes = new(1)
    for (name, rounds), colour in zip(contenders.items(), COLOURS[::2], strict=False):
        for which, style in (("median", "-"), ("longest", "--")):
            values = [rounds[0][f"{count} {which}"] * 1e3 for count in THREADS]
            axes[0].plot(THREADS, values, style, marker="o", label=f"{name}, {which}", color=colour)
    axes[0].set(xlabel="threads on 8 connections", ylabel="wait for a connection (ms)")
    axes[0].set_yscale("log")
    figure.legend(frameon=False, ncols=2, loc="outside upper center")  # the lines leave no room inside
    save(figure, folder / "wait-by-threads.svg")


def plot_idle(contenders: dict[str, list[Figures]], folder: Path) -> None:
    """Memory and processor time by number of idle connections."""
    figure, axes = new(2)
    found = sorted((rounds[0] for rounds in contenders.values()), key=lambda one: one["connections"])
    counts = [one["connections"] for one in found]
    axes[0].plot(counts, [one["rss"] / 1024 for one in found], marker="o", color=COLOURS[0])
    axes[0].set(xlabel="idle connections", ylabel="memory of one (KiB)", ylim=(0, None))
    axes[1].plot(counts, [one["cpu"] * 100 for one in found], marker="o", color=COLOURS[0])
    axes[1].set(xlabel="idle connections", ylabel="share of a core (%)", ylim=(0, None))
    save(figure, folder / "idle-connections.svg")


def plot_multiplex(contenders: dict[str, list[Figures]], folder: Path) -> None:
    """One shared connection beside pools: calls in a second, and waits, by callers and the server's time."""
    for what, label, name in (
        ("", "calls in a second", "multiplex-calls.svg"),
        (" p99", "99 of 100 calls take at most (ms)", "multiplex-waits.svg"),
    ):
        figure, axes = new(len(DELAYS))
        for axis, delay in zip(axes, DELAYS, strict=True):
            for (who, rounds), colour in zip(contenders.items(), (*COLOURS[:1], *COLOURS[2:]), strict=False):
                found = [statistics.median(one[f"{delay} ms, {n}{what}"] for one in rounds) for n in CROWDS]
                values = [each * 1e3 for each in found] if what else [1 / each for each in found]
                axis.loglog(
                    CROWDS, values, marker="o", label=who if delay == DELAYS[0] else None, color=colour
                )
            axis.set(title=f"answers after {delay} ms", xlabel="callers")
            axis.set_xticks(CROWDS, map(str, CROWDS))
            axis.minorticks_off()
        limits = [limit for axis in axes for limit in axis.get_ylim()]
        for axis in axes:
            axis.set_ylim(min(limits), max(limits))
        axes[0].set(ylabel=label)
        figure.legend(frameon=False, ncols=3, loc="outside upper center")
        save(figure, folder / name)


def new(columns: int) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, columns, figsize=(7.5, 3.8), squeeze=False, layout="constrained")
    return figure, axes[0]


def save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
