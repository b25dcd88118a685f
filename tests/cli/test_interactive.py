"""`jetsocket listen` on a terminal: lines are edited and sent, what comes is put above them."""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

import pytest

from tests.scripts import ROOT
from tests.servers import Connection, EchoServer, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")

# Without prompt_toolkit, unless it is asked for.
RICH = "import sys; from jetsocket.cli.console import console; sys.exit(console())"
PLAIN = f"import sys; sys.modules['prompt_toolkit'] = None; {RICH}"


class Session:
    """A program on a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], terminal: int) -> None:
        self.process, self._terminal = process, terminal
        self.screen = ""

    def type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def see(self, pattern: str, timeout: float = 30) -> None:
        """Wait until that is on the screen."""
        deadline = monotonic() + timeout
        while not re.search(pattern, self.screen):
            assert monotonic() < deadline, f"no {pattern!r} in {self.screen!r}"
            self._read(0.1)

    def _read(self, timeout: float) -> bool:
        if not select.select([self._terminal], [], [], timeout)[0]:
            return False
        try:
            data = os.read(self._terminal, 65536)
        except OSError:  # the program has ended
            return False
        self.screen += data.decode("utf-8", "replace")
        if b"\x1b[6n" in data:
            self.type("\x1b[1;1R")  # it asks where the cursor is
        return bool(data)

    def end(self) -> int:
        while self.process.poll() is None:
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode


@contextmanager
def session(script: str, *arguments: str) -> Iterator[Session]:
    import pty

    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm", "PYTHONUNBUFFERED": "1"}
    env.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-c", script, "listen", *arguments],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, env=env, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Session(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.slow
def test_what_is_typed_is_sent_and_ctrl_d_ends_it(echo: EchoServer) -> None:
    with session(PLAIN, echo.uri) as there:
        there.see("Ctrl-D ends it")
        there.see("> ")
        assert "> > " not in there.screen
        there.see("> ")
        there.type("hello\x1b[D\x1b[Dp\n")  # the cursor goes back by two
        there.see(r"helplo\n?\r?\n|helplo\r\n")
        wait_until(lambda: echo.messages == 1, 30)
        there.see(r"(\x1b\[K|\r\n)helplo\r\n> ")  # the reply, above the next line, which may be there already
        there.type("\x04")
        assert there.end() == 0
    wait_until(lambda: not echo.open_now)
    assert "Traceback" not in there.screen


@pytest.mark.slow
def test_control_characters_do_not_reach_the_screen(echo_server: Callable[..., EchoServer]) -> None:
    def evil(conn: Connection) -> None:
        conn.send("\x1b]0;title\x07\x1b[2J")
        conn.recv()
        conn.close(4002, "\x1b[31mred")

    with session(PLAIN, echo_server(evil).uri) as there:
        there.see(re.escape(r"\x1b]0;title\x07\x1b[2J"))
        there.type("\n")
        assert there.end() == 6  # the server has ended it, while a line was being read
    assert "\x1b]0;" not in there.screen and "\x1b[2J" not in there.screen
    assert "4002" in there.screen and "Traceback" not in there.screen


def test_ctrl_c(echo: EchoServer) -> None:
    with session(PLAIN, echo.uri) as there:
        there.see("> ")
        wait_until(lambda: echo.open_now, 30)
        os.killpg(there.process.pid, 2)
        assert there.end() == 130
    wait_until(lambda: not echo.open_now)
    assert "Traceback" not in there.screen


@pytest.mark.slow
def test_with_prompt_toolkit(echo: EchoServer) -> None:
    pytest.importorskip("prompt_toolkit")
    with session(RICH, echo.uri) as there:
        there.see("Ctrl-D ends it")
        there.see(">")
        there.type("hello\r")
        wait_until(lambda: echo.messages == 1, 30)
        there.see(r"hello\r\n(.|\n)*>")  # the reply, and another prompt
        there.type("\x04")
        assert there.end() == 0
    assert "Traceback" not in there.screen
