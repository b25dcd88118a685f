"""`jetsocket bench`: how long a server's replies take under load."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from jetsocket.cli import thresholds
from jetsocket.cli.exits import FAILED, OK, Outcome, UsageError, outcome_of
from jetsocket.cli.figures import Latencies, percentile, shown_time, summary
from jetsocket.cli.load import Load
from jetsocket.cli.output import PipeClosedError, Terminal
from jetsocket.cli.plot import draw
from jetsocket.cli.pools import opened
from jetsocket.cli.reading import from_argument
from jetsocket.cli.settings import manager_kwargs, one_uri
from jetsocket.cli.thresholds import Figures, Threshold
from jetsocket.exceptions import JetSocketError
from jetsocket.pool import ConnectionPool

__all__ = ["run"]

_REFRESH = 0.1  # s between two looks at the progress
_DURATION = 10.0  # s, if nothing is said
_MESSAGE = "hello"
_MOST_CAUSES = 5


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says.

    Args:
        options: What was given by name.
        given: The URI and the message.
        terminal: Where to print.

    Returns:
        The exit code.
    """
    target, uri, rest = one_uri(given)
    if len(rest) > 1:
        raise UsageError(f"bench sends one message, not {rest[1]!r} too")
    message = from_argument(rest[0] if rest else _MESSAGE, as_base64=options.base64)
    limits = [thresholds.read(text) for text in options.fail_if]
    kwargs = manager_kwargs(options)
    duration = options.duration
    if duration is None and options.requests is None:
        duration = _DURATION
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(_writable(options.plot)) if options.plot else None
        pool = stack.enter_context(opened(uri, kwargs, options, connections=options.connections))
        callers = options.callers or options.connections
        load = Load(
            lambda: _ask(pool, uri, message, options.timeout),
            callers=callers,
            requests=options.requests,
            duration=duration,
            rate=options.rate,
        )
        if (failed := _open_all(pool, uri, min(callers, options.connections), terminal)) is not None:
            return terminal.fail(outcome_of(failed))
        try:
            _watch(load, terminal)
        except KeyboardInterrupt:
            pool.close()
            _conclude(load, options, terminal, [], target.redacted)
            raise
        if load.failure is not None:
            raise load.failure
        code = _conclude(load, options, terminal, limits, target.redacted)
        if file is not None and load.times:
            file.write(draw(load.times, f"jetsocket bench {target.redacted}"))
            terminal.note(f"the picture is in {options.plot}")
    return code


def _writable(path: str) -> Any:
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--plot {path}: {error.strerror or error}") from error


def _ask(pool: ConnectionPool[Any], uri: str, message: str | bytes, timeout: float) -> None:
    with pool.acquire(uri) as conn:
        conn.send_raw(message)
        conn.recv_raw(timeout)


def _open_all(pool: ConnectionPool[Any], uri: str, count: int, terminal: Terminal) -> JetSocketError | None:
    """Open the connections first, so that no latency has a handshake in it; why there is none at all."""
    try:
        pool.prewarm(uri, count)
    except JetSocketError as error:
        there = pool.stats().idle_connections
        if not there:
            return error
        terminal.note(f"only {there} of {count} connections: {outcome_of(error).cause}", "yellow")
    return None


def _watch(load: Load, terminal: Terminal) -> None:
    load.start()
    try:
        with _live(terminal) as show:
            while not load.is_over_within(_REFRESH):
                show(load)
                if not terminal.is_read():
                    raise PipeClosedError
            show(load)
    finally:
        load.stop()


@contextlib.contextmanager
def _live(terminal: Terminal) -> Iterator[Callable[[Load], None]]:
    """How to show the progress: a bar on a terminal where rich is there; else nothing."""
    if not terminal.is_live:
        yield lambda load: None
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    except ImportError:
        yield lambda load: None
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    console = Console(file=terminal.streams.stderr, highlight=False)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0)

        def show(load: Load) -> None:
            recent = sorted(load.recent())
            told = f"{load.made:,} requests, {load.failed:,} failed"
            if recent:
                p50, p99 = (shown_time(percentile(recent, share)) for share in (50, 99))
                told += f", now p50 {p50}, p99 {p99}"
            progress.update(task, completed=load.share_done(), description=told)

        yield show


def _conclude(
    load: Load, options: argparse.Namespace, terminal: Terminal, limits: list[Threshold], uri: str
) -> int:
    figures = Figures(load.made, load.failed, len(load.times) / load.took, summary(load.times))
    failed = [told for limit in limits if (told := limit.failed(figures)) is not None]
    if terminal.json:
        terminal.record("summary", **_record(figures, load, failed))
    else:
        _print(terminal, figures, load, options, uri)
    causes = load.errors.most_common(_MOST_CAUSES)
    for outcome, times in [] if terminal.json else causes:
        terminal.note(f"{times:,} ×  {outcome.cause}", "red")
        if outcome.remedy:
            terminal.note(f"  → {outcome.remedy}", "yellow")
    for told in failed:
        terminal.fail(Outcome(FAILED, f"threshold {told}"))
    if failed:
        return FAILED
    return terminal.fail(causes[0][0]) if causes and not load.times else OK


def _print(terminal: Terminal, figures: Figures, load: Load, options: argparse.Namespace, uri: str) -> None:
    callers = options.callers or options.connections
    terminal.line(uri, "bold")
    terminal.line(f"{callers} callers, {options.connections} connections, for {load.took:.2f} s")
    lines = [
        ("requests", f"{figures.requests:,}"),
        ("failed", f"{figures.errors:,}"),
        ("replies/s", f"{figures.rate:,.1f}"),
    ]
    if options.rate is not None:
        lines.append(("due/s", f"{options.rate:,.1f}"))
        lines.append(("never made", f"{load.unmade:,}"))
        lines.append(("most behind", shown_time(load.late)))
    if figures.latencies is not None:
        lines += [(name, shown_time(value)) for name, value in figures.latencies._asdict().items()]
    for name, value in lines:
        terminal.line(f"  {name:<12}{value:>12}")


def _cause(outcome: Outcome) -> dict[str, Any]:
    return {"exit": outcome.exit, "cause": outcome.cause, "remedy": outcome.remedy}


def _record(figures: Figures, load: Load, failed: list[str]) -> dict[str, Any]:
    latencies = figures.latencies
    return {
        "requests": figures.requests,
        "errors": figures.errors,
        "rate": round(figures.rate, 3),
        "seconds": round(load.took, 6),
        "behind": round(load.late, 6),
        "unmade": load.unmade,
        "causes": [{"count": count, **_cause(outcome)} for outcome, count in load.errors.most_common()],
        **{
            name: None if latencies is None else round(getattr(latencies, name), 9)
            for name in Latencies._fields
        },
        "failed": failed,
    }
