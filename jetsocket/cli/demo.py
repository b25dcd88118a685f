"""The demo: many threads share few connections, while the server goes away and comes back; the figures."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from jetsocket.cli.demo_process import PATHS, ServerProcess, Sighting, running
from jetsocket.cli.demo_work import Outage, Plan, Tally, Workload, uri_of
from jetsocket.cli.exits import code_of
from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.pool import ConnectionPool
from jetsocket.stats import PoolStats
from jetsocket.uris import parse

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = ["Outage", "Plan", "Sighting", "Tally", "missing_extra", "report", "run", "uri_of"]

_REFRESH = 0.1  # s between two looks at the progress
_EXTRA = ("rich", "trustme", "websockets")

_KEPT, _BROKEN = 0, 1


def missing_extra() -> str | None:
    """What to tell a user who has not installed the extra `demo`; None if all of it is there."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f'the demo needs {" and ".join(missing)}: pip install "jetsocket[demo]"'


class Line(NamedTuple):
    """A line of the table."""

    what: str
    figure: str
    promise: str = ""
    kept: bool = True


def run(plan: Plan, console: Console | None = None) -> int:
    """Run the demo.

    Args:
        plan: How much of it, and against which server.
        console: Where to print; stdout if None.

    Returns:
        The exit status: 0 if every promise was kept, 1 if not, 130 after Ctrl-C, 143 after SIGTERM.

    Raises:
        ValueError: `plan.uri` is no WebSocket URI.
        ImportError: The extra `demo` is not installed.
    """
    if console is None:
        from rich.console import Console

        console = Console(highlight=False)
    try:
        with contextlib.ExitStack() as stack:
            if plan.uri is not None:
                parse(plan.uri)
                return _share(plan, console, [plan.uri], None, {})
            server, context = stack.enter_context(running())
            return _share(plan, console, server.uris, server, {"ssl_context": context})
    except KeyboardInterrupt as interrupt:
        console.print("Interrupted.")
        return code_of(interrupt)


def _share(
    plan: Plan, console: Console, uris: list[str], server: ServerProcess | None, options: dict[str, Any]
) -> int:
    """Have all calls made, then show the figures."""
    _introduce(plan, console, uris)
    config = ConnectionPoolConfig(max_connections=plan.connections)
    began = monotonic()
    with ConnectionPool[Any](config, manager_kwargs=options, name="demo") as pool:
        work = Workload(pool, uris, plan, tells_path=server is not None)
        try:
            work.start()
            with _progress(console, plan.calls) as show:
                _watch(work, server, show)
        finally:
            work.stop()
            stats = pool.stats()
            pool.close()  # wakes the threads that wait in acquire
    took = monotonic() - began
    if server is not None:
        server.stop()
        if not work.outage.over:
            console.print("There were too few calls for a restart midway.")
    seen = None if server is None else server.seen()
    return _conclude(console, report(plan, work.tally, stats, seen), work.tally, took)


def _introduce(plan: Plan, console: Console, uris: list[str]) -> None:
    origins = dict.fromkeys(f"{target.origin[0]}://{target.host_header}" for target in map(parse, uris))
    where = " and ".join(origins) + (f", {len(PATHS)} paths each" if plan.uri is None else "")
    console.print(f"{plan.threads} threads make {plan.calls:,} calls over {plan.connections} connections")
    console.print(f"to {where}.", markup=False, soft_wrap=True)  # an IPv6 address looks like markup
    if plan.uri is not None:
        console.print("The server is expected to send every message back as it is.")


def _watch(work: Workload, server: ServerProcess | None, show: Callable[[Tally, str], None]) -> None:
    """Follow the threads to their end; midway, stop the server and start it again."""
    halfway = work.plan.calls // 2
    restarted = server is None
    while not work.is_over_within(_REFRESH):
        show(work.tally, "")
        if server is not None and not restarted and work.tally.made >= halfway:
            restarted = True
            show(work.tally, "the server is stopped")
            work.outage.began = monotonic()
            server.stop()
            server.start()
            work.outage.ended = monotonic()
            down = work.outage.ended - work.outage.began
            show(work.tally, f"the server is back after {down:.1f} s")
    show(work.tally, "")


def report(plan: Plan, tally: Tally, stats: PoolStats, seen: Sighting | None) -> list[Line]:
    """The figures, and whether each is as promised."""
    lines = [
        Line("calls made", f"{tally.made:,}", f"{plan.calls:,}", tally.made == plan.calls),
        Line("wrong replies", f"{tally.wrong:,}", "0", tally.wrong == 0),
    ]
    if seen is None:
        lines += [
            Line("calls that failed and were retried", f"{len(tally.unexplained):,}"),
            Line("connections opened", f"{stats.total_connections:,}"),
        ]
    else:
        lines += [
            Line("calls failed and retried during the restart", f"{len(tally.retried):,}"),
            Line(
                "calls failed while the server was up",
                f"{len(tally.unexplained):,}",
                "0",
                not tally.unexplained,
            ),
            Line("connections opened, as the server counted", f"{seen.opened:,}"),
            Line(
                "most open at once, as the server counted",
                f"{seen.most_open:,}",
                f"≤ {plan.connections:,}",
                0 < seen.most_open <= plan.connections,
            ),
        ]
    lines += [
        Line("reuses of a connection", f"{stats.reuses:,}"),
        Line("wait for a connection, p50", f"{stats.wait_time.p50 * 1000:.1f} ms"),
        Line("wait for a connection, p99", f"{stats.wait_time.p99 * 1000:.1f} ms"),
    ]
    return lines


def _conclude(console: Console, lines: list[Line], tally: Tally, took: float) -> int:
    console.print(_table(lines))
    broken = [line.what for line in lines if not line.kept]
    if tally.gave_up is not None:
        console.print(f"Given up: {tally.gave_up}", style="red", markup=False, soft_wrap=True)
    if broken:
        console.print(f"Not as promised: {'; '.join(broken)}.", style="red", markup=False, soft_wrap=True)
    if broken or tally.gave_up is not None:
        return _BROKEN
    rate = tally.made / took
    console.print(f"Every promise was kept. It took {took:.1f} s, {rate:,.0f} calls/s.", style="green")
    return _KEPT


def _table(lines: list[Line]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("figure", justify="right")
    table.add_column("promised", justify="right")
    for line in lines:
        style = "" if not line.promise else "green" if line.kept else "bold red"
        table.add_row(line.what, line.figure, line.promise, style=style)
    return table


@contextlib.contextmanager
def _progress(console: Console, calls: int) -> Iterator[Callable[[Tally, str], None]]:
    """How to show the progress: a bar on a terminal, else a line for every tenth, and for each event."""
    if not console.is_terminal:
        yield _plain_progress(console, calls)
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("calls", total=calls)

        def show(tally: Tally, event: str) -> None:
            if event:
                progress.console.print(event)  # above the bar
            progress.update(task, completed=tally.made, description=_state(tally))

        yield show


def _plain_progress(console: Console, calls: int) -> Callable[[Tally, str], None]:
    shown = 0

    def show(tally: Tally, event: str) -> None:
        nonlocal shown
        tenth = tally.made * 10 // calls
        if event:
            console.print(event)
        if tenth > shown:
            shown = tenth
            console.print(f"{tally.made:,} of {calls:,} {_state(tally)}")

    return show


def _state(tally: Tally) -> str:
    retried = tally.retried.copy() | tally.unexplained.copy()  # copies: the threads go on
    return f"calls, {tally.wrong:,} wrong, {len(retried):,} retried"
