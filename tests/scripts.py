"""Scripts that tests run in a process of their own: for signals, forks and the interpreter's end."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from time import monotonic
from types import TracebackType
from typing import Any

from tests import nursery
from tests.nursery import ROOT
from tests.sizes import LONG
from tests.watchdog import die_if_stuck

PROMPT = 0.5  # s that an end may take
WATCHDOG = 50.0  # s, after which a script that hangs shows where, and dies


@dataclass
class Ended:
    """How a script ended.

    Attributes:
        took: Seconds from its last line of output to its end, without those in which its main thread could
            have run and got no processor, where the system counts them (Linux).
    """

    status: int
    out: str
    err: str
    took: float

    def check(self) -> Ended:
        """Fail unless it ended well and said nothing on stderr."""
        assert (self.status, self.err) == (0, ""), f"status {self.status}\n{self.out}\n{self.err}"
        return self


class _Python:
    """A script in a Python of its own; `nursery.Child` is the same in a forked one."""

    def __init__(
        self, script: str, args: tuple[str, ...], env: dict[str, str], options: tuple[str, ...]
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *options, "-c", script, *args],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self.stdin, self.stdout, self.stderr = (
            self._process.stdin,
            self._process.stdout,
            self._process.stderr,
        )

    def await_end(self) -> None:
        """Wait until it has ended; where there is `/proc`, it is there still."""
        if hasattr(os, "waitid"):
            os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)

    def wait(self) -> int:
        """Wait until it has ended; its status."""
        return self._process.wait()

    def kill(self) -> None:
        """End it, unless it has ended."""
        self._process.kill()

    def close(self) -> None:
        """Close this end of its pipes."""
        self._process.communicate()


class Script:
    """A running script. It finds the package and these tests, and `args` in `sys.argv[1:]`.

    Its process is forked where others' packages are imported already, see `nursery`. A `fresh` one, for which
    even their imports matter, is a new Python; so are all that have options, all in the long form of the
    suites, and all under coverage, which does not see what a forked process does.

    One that is struck by exceptions at any moment must not be `measured`: coverage takes a lock at every
    call, without minding that it can be interrupted, and never gives it back.
    """

    def __init__(
        self,
        script: str,
        *args: str,
        options: tuple[str, ...] = (),
        watchdog: float = WATCHDOG,
        measured: bool = True,
        fresh: bool = False,
    ) -> None:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        covered = env.get("COVERAGE_PROCESS_CONFIG")
        if not measured:
            env.pop("COVERAGE_PROCESS_CONFIG", None)
        script = f"from tests.watchdog import die_if_stuck; die_if_stuck({watchdog})\n" + dedent(script)
        self._child: nursery.Child | _Python
        if fresh or options or LONG or covered or not nursery.AVAILABLE:
            self._child = _Python(script, args, env, options)
        else:
            self._child = nursery.Child(script, args, env)
        self._lines: list[str] = []
        self._last = self._awake()
        self._ended: Ended | None = None

    def _awake(self) -> float:
        """Now (s), on a clock that stands still while the script's main thread gets no processor."""
        try:
            starved = int(Path(f"/proc/{self._child.pid}/schedstat").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):  # another system
            starved = 0
        return monotonic() - starved / 1e9

    def line(self) -> str:
        """Its next line of output, "" when there is none any more."""
        line = self._child.stdout.readline()
        if line:
            self._lines.append(line)
            self._last = self._awake()
        return line.rstrip("\n")

    def say(self, line: str) -> None:
        """Write a line to its stdin."""
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def ended(self) -> Ended:
        """Wait for its end."""
        if self._ended is None:
            while self.line():
                pass
            err = self._child.stderr.read()
            self._child.await_end()
            took = self._awake() - self._last
            status = self._child.wait()
            self._child.close()
            self._ended = Ended(status, "".join(self._lines), err, took)
        return self._ended

    def __enter__(self) -> Script:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._child.kill()
        self.ended()


def run(
    script: str,
    *args: str,
    options: tuple[str, ...] = (),
    watchdog: float = WATCHDOG,
    measured: bool = True,
    fresh: bool = False,
) -> Ended:
    """Run a script until it ends."""
    with Script(script, *args, options=options, watchdog=watchdog, measured=measured, fresh=fresh) as running:
        return running.ended()


def run_promptly(script: str, *args: str, options: tuple[str, ...] = ()) -> Ended:
    """Run a script whose end is to be prompt.

    On a busy machine every end takes its time: where two were late, what one takes that opens nothing is
    taken off. A wait shows all the same.
    """
    for _ in range(2):
        ended = run(script, *args, options=options)
        if ended.took < PROMPT:
            return ended
    ended.took -= run("import jetsocket\nprint()", options=options).took
    return ended


# --- what scripts import


def ask_ids(uri: str) -> bool:
    """In a process of multiprocessing: use a pool of its own."""
    from jetsocket import ConnectionPool

    die_if_stuck(30)
    with ConnectionPool(base_uri=uri) as pool, pool.acquire("/ids") as conn:
        return all(conn.request({"id": number}, timeout=5)["id"] == number for number in range(10))


_kept: list[Any] = []


def leave_open(uri: str) -> Any:
    """In a process of multiprocessing: use a pool of its own; leave an idle and a lent connection behind."""
    from jetsocket import ConnectionPool

    die_if_stuck(30)
    pool = ConnectionPool[Any](base_uri=uri)
    with pool.acquire("/") as conn:
        answer = conn.request(7, timeout=10)
    _kept.extend((pool, pool.acquire("/")))
    return answer
