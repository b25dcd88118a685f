"""The server of `serve`: a FakeServer that tells on stderr what a test would fail of, and goes on."""

from __future__ import annotations

import contextlib
from typing import Any

from jetsocket.cli.exits import UsageError
from jetsocket.cli.output import Terminal
from jetsocket.testing.payloads import Payload, shown
from jetsocket.testing.rules import Script
from jetsocket.testing.server import FakeServer
from jetsocket.testing.verdicts import Problem, unexpected

__all__ = ["Served"]


class Served(FakeServer):
    """A server for people."""

    def __init__(self, terminal: Terminal, *, is_echo: bool, verbose: bool, **options: Any) -> None:
        """Tell there what is unexpected; with `is_echo`, what no rule matches is sent back as it is."""
        super().__init__(assert_all_called=False, **options)
        self._terminal, self._is_echo, self._verbose = terminal, is_echo, verbose

    def start(self) -> Served:
        """Listen.

        Raises:
            UsageError: The extra is not installed.
        """
        try:
            super().start()
        except ImportError as error:
            missing = str(error).partition(": pip")[0].partition(" needs ")[2] or str(error)
            raise UsageError(f"serve needs {missing}", 'pip install "jetsocket[cli]"') from error
        return self

    def _received(self, endpoint: Any, payload: Payload) -> None:
        """Answer a message."""
        if self._verbose:
            self._terminal.detail(f"{endpoint.path}: {shown(payload)}")
        if self._is_echo:  # and kept by no one, however long it serves
            endpoint.send(payload)
        else:
            super()._received(endpoint, payload)

    def _opened(self, endpoint: Any) -> None:
        """A connection was let in."""
        self._terminal.detail(f"{endpoint.path}: connected")
        super()._opened(endpoint)

    def _ended(self, endpoint: Any) -> None:
        """A connection is over."""
        code = endpoint.close_code
        self._terminal.detail(f"{endpoint.path}: closed{'' if code is None else f' with {code}'}")
        super()._ended(endpoint)

    def _unmatched(self, endpoint: Any, guest: Any, message: Any, payload: Payload) -> None:
        """Unlike a test's, the connection stays."""
        script: Script | None = guest.script
        self._note(unexpected(message, payload, endpoint.path, self._rules, script))

    def _note(self, problem: Problem) -> None:
        """Told at once, and no verdict follows."""
        for line in problem.text.splitlines():
            self._terminal.note(line, "yellow")

    def _tell_pytest(self) -> None:
        """It is no test's."""

    def stop(self) -> None:
        """Close all; what the last messages were is not looked for."""
        with contextlib.suppress(RuntimeError):  # it was not started
            super().stop()
