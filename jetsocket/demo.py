"""The demo: many threads share few connections, while the server goes away and comes back; then the figures.

Three parts: `ServerProcess` (demo_server.py, started, stopped and started again), `Workload` (the threads and
what they count), `run` (the story, the progress bar and the table).
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.demo_server import HOST
from jetsocket.exceptions import JetSocketError, PoolClosedError
from jetsocket.pool import ConnectionPool
from jetsocket.stats import PoolStats
from jetsocket.uris import parse

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PATHS = ("/orders", "/quotes", "/trades", "/news")

_START_PATIENCE = 30.0  # s for the server to listen
_CALL_PATIENCE = 10.0  # s for one attempt at a call, waiting for a connection included
_PATIENCE = 30.0  # s for a call with all its attempts
_PAUSE = 0.05  # s between two attempts at a call
_REFRESH = 0.1  # s between two looks at the progress
_BURST = 50  # calls to one path, before the next path has its turn
_EXTRA = ("rich", "trustme", "websockets")

_KEPT, _BROKEN, _INTERRUPTED = 0, 1, 130


class Plan(NamedTuple):
    """What is to be done."""

    calls: int = 4000
    threads: int = 32
    connections: int = 8
    uri: str | None = None
    """A server of the user's, which sends every message back; None: start one."""


def missing_extra() -> str | None:
    """What to tell somebody who has not installed the extra `demo`; None if all of it is there."""
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f'the demo needs {" and ".join(missing)}: pip install "jetsocket[demo]"'


# --- the server


class Sighting(NamedTuple):
    """What the server counted, over all of its lives."""

    opened: int
    most_open: int


class ServerProcess:
    """demo_server.py in a process of its own, on the same two ports each time that it is started."""

    def __init__(self, certificate: str) -> None:
        """Nothing is started yet; `certificate` is the path of a PEM file."""
        self._certificate = certificate
        self._process: subprocess.Popen[str] | None = None
        self._held: list[socket.socket] = []
        self._reports: list[dict[str, int]] = []
        self._ports = (self._hold_port(), self._hold_port())

    def _hold_port(self) -> int:
        """Choose a free port. On Linux it stays bound: while the server listens on it, and while it is down.

        Else a client that dials the port while nobody listens there might get it as its own.
        """
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        if sys.platform == "linux":
            self._held.append(sock)
        else:
            sock.close()
        return port

    @property
    def uris(self) -> list[str]:
        """Each path over ws:// and over wss://."""
        plain, secure = self._ports
        bases = (f"ws://{HOST}:{plain}", f"wss://{HOST}:{secure}")
        return [base + path for path in PATHS for base in bases]

    def start(self) -> None:
        """Start it, and return when it listens.

        Raises:
            RuntimeError: It does not.
        """
        plain, secure = self._ports
        command = [sys.executable, "-m", "jetsocket.demo_server", "--certificate", self._certificate]
        command += ["--port", str(plain), "--tls-port", str(secure)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._hear()

    def stop(self) -> None:
        """Stop it at once: its connections break. What it counted is kept. The second time does nothing."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
            self._reports.append(self._hear())
        finally:
            self._process = None
            process.kill()
            process.wait()
            process.stdout.close()

    def _hear(self) -> dict[str, int]:
        """Read the line that the server writes next."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        give_up = threading.Timer(_START_PATIENCE, process.kill)
        give_up.daemon = True
        give_up.start()
        try:
            line = process.stdout.readline()
        finally:
            give_up.cancel()
        if not line:
            raise RuntimeError(f"the demo's server ended or was silent for {_START_PATIENCE:g} s")
        told: dict[str, int] = json.loads(line)
        return told

    def seen(self) -> Sighting:
        """What was counted until the last stop; nothing outlives a stop, so `most_open` is the larger one."""
        return Sighting(
            sum(report["opened"] for report in self._reports),
            max((report["most_open"] for report in self._reports), default=0),
        )

    def close(self) -> None:
        """Stop it and let go of the ports."""
        try:
            self.stop()
        finally:
            for sock in self._held:
                sock.close()


@contextlib.contextmanager
def _server() -> Iterator[tuple[ServerProcess, ssl.SSLContext]]:
    """A running server, its certificate made on the spot, and a context that trusts it."""
    import trustme

    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with tempfile.TemporaryDirectory(prefix="jetsocket-demo-") as directory:
        certificate = os.path.join(directory, "server.pem")  # private: the directory has mode 0700
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(certificate)
        server = ServerProcess(certificate)
        try:
            server.start()
            yield server, context
        finally:
            server.close()


# --- the threads


@dataclass
class Tally:
    """What the threads counted; `Workload` guards it."""

    made: int = 0
    wrong: int = 0
    retried: set[int] = field(default_factory=set)  # the calls that failed during the restart
    unexplained: set[int] = field(default_factory=set)  # and those that failed though the server was up
    gave_up: str | None = None


@dataclass
class Outage:
    """When the server was down (monotonic, s)."""

    began: float = float("inf")
    ended: float = float("inf")

    @property
    def over(self) -> bool:
        """Whether the server went and came back."""
        return self.ended < float("inf")

    def explains(self, began: float, ended: float) -> bool:
        """Whether an attempt between these two moments may fail."""
        return began <= self.ended and ended >= self.began


@dataclass
class Workload:
    """Threads that make calls through one pool until all are made.

    Attributes:
        pool: What they borrow connections of.
        uris: Where to: a burst of calls to each in turn.
        plan: How many of each.
        tells_path: Whether replies name the path that they came by.
    """

    pool: ConnectionPool[Any]
    uris: Sequence[str]
    plan: Plan
    tells_path: bool
    tally: Tally = field(default_factory=Tally)
    outage: Outage = field(default_factory=Outage)

    def __post_init__(self) -> None:
        """Make the threads."""
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._calls = itertools.count(1)
        self._threads = [
            threading.Thread(target=self._work, name=f"demo-{number}") for number in range(self.plan.threads)
        ]

    def start(self) -> None:
        """Start all threads."""
        for thread in self._threads:
            thread.start()

    def is_over_within(self, timeout: float) -> bool:
        """Wait for the threads, at most `timeout` s; whether all have ended."""
        deadline = monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
            if thread.is_alive():
                return False
        return True

    def stop(self) -> None:
        """Have the threads end after the attempts that are under way."""
        self._stopping.set()

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                with self._lock:
                    call = next(self._calls)
                if call > self.plan.calls:
                    return
                self._make_call(call)
        except BaseException as error:
            self._give_up(f"a thread ended with {error!r}")
            raise

    def _make_call(self, call: int) -> None:
        """Make one call, with as many attempts as it takes within the patience."""
        uri = uri_of(call, self.plan.calls, self.uris)
        asked = {"id": call, "text": f"call {call}"}
        expected = {**asked, "path": parse(uri).resource} if self.tells_path else asked
        deadline = monotonic() + _PATIENCE
        while not self._stopping.is_set():
            began = monotonic()
            try:
                reply = self.pool.request(uri, asked, timeout=_CALL_PATIENCE)
            except PoolClosedError:
                return
            except JetSocketError as error:
                self._count_failure(call, began, error, deadline)
                self._stopping.wait(_PAUSE)
            else:
                with self._lock:
                    self.tally.made += 1
                    self.tally.wrong += reply != expected
                return

    def _count_failure(self, call: int, began: float, error: JetSocketError, deadline: float) -> None:
        now = monotonic()
        with self._lock:
            tally, explained = self.tally, self.outage.explains(began, now)
            (tally.retried if explained else tally.unexplained).add(call)
        if now >= deadline:
            self._give_up(f"a call failed for {_PATIENCE:g} s, at last with {error}")

    def _give_up(self, why: str) -> None:
        with self._lock:
            if self.tally.gave_up is None:
                self.tally.gave_up = why
        self._stopping.set()


def uri_of(call: int, calls: int, uris: Sequence[str]) -> str:
    """Where the so-manieth call (from 1) goes: to each URI in turn a burst, at least two to each in all."""
    burst = max(1, min(_BURST, calls // (2 * len(uris))))
    return uris[(call - 1) // burst % len(uris)]


# --- the story


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
        The exit status: 0 if every promise was kept, 1 if not, 130 after Ctrl-C.

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
            server, context = stack.enter_context(_server())
            return _share(plan, console, server.uris, server, {"ssl_context": context})
    except KeyboardInterrupt:
        console.print("Interrupted.")
        return _INTERRUPTED


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
            pool.close()  # wakes whoever waits
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
