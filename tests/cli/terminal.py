"""Running the command line in this process, with its streams captured."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

from jetsocket.cli.main import main
from jetsocket.cli.output import Streams, Terminal


class Screen(io.BytesIO):
    """A stream of bytes that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class TextScreen(io.StringIO):
    """A stream of text that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass
class Ran:
    """How a command ended, and what it printed."""

    code: int
    out: bytes
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.decode().splitlines()

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def error(self) -> dict[str, Any]:
        """The one error of `--json`."""
        (found,) = (record for record in self.records if record["type"] == "error")
        return found


def run(*arguments: str, stdin: bytes = b"", on_screen: bool = False) -> Ran:
    """Run a command; `on_screen`: its output and errors go to a terminal."""
    out, err = (Screen(), TextScreen()) if on_screen else (io.BytesIO(), io.StringIO())
    code = main(arguments, io.BytesIO(stdin), out, err)
    return Ran(code, out.getvalue(), err.getvalue())


def terminal(*, on_screen: bool = False, **options: Any) -> tuple[Terminal, io.BytesIO, io.StringIO]:
    """A terminal, and what goes to its two streams."""
    out, err = (Screen(), TextScreen()) if on_screen else (io.BytesIO(), io.StringIO())
    return Terminal(Streams(io.BytesIO(), out, err), **options), out, err
