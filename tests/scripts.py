"""Scripts that tests run in a Python of their own: for signals, forks and the interpreter's end."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from time import monotonic
from types import TracebackType

from tests.watchdog import die_if_stuck

ROOT = Path(__file__).resolve().parent.parent
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


class Script:
    """A running script. It finds the package and these tests, and `args` in `sys.argv[1:]`.

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
    ) -> None:
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        if not measured:
            env.pop("COVERAGE_PROCESS_CONFIG", None)
        start = f"from tests.watchdog import die_if_stuck; die_if_stuck({watchdog})\n"
        self._child = subprocess.Popen(
            [sys.executable, *options, "-c", start + dedent(script), *args],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
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
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if line:
            self._lines.append(line)
            self._last = self._awake()
        return line.rstrip("\n")

    def say(self, line: str) -> None:
        """Write a line to its stdin."""
        assert self._child.stdin is not None
        self._child.stdin.write(line + "\n")
        self._child.stdin.flush()

    def ended(self) -> Ended:
        """Wait for its end."""
        if self._ended is None:
            assert self._child.stderr is not None
            while self.line():
                pass
            err = self._child.stderr.read()
            if hasattr(os, "waitid"):
                os.waitid(
                    os.P_PID, self._child.pid, os.WEXITED | os.WNOWAIT
                )  # it has ended, and is still there
            took = self._awake() - self._last
            status = self._child.wait()
            self._child.communicate()
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
) -> Ended:
    """Run a script until it ends."""
    with Script(script, *args, options=options, watchdog=watchdog, measured=measured) as running:
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
