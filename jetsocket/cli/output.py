"""Where the output goes: data to stdout, flushed at each message, all else to stderr; as text or NDJSON."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from jetsocket.cli.escaping import as_hex, escaped
from jetsocket.cli.exits import Outcome

__all__ = ["PipeClosedError", "Streams", "Terminal"]

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


class PipeClosedError(Exception):
    """Who read our output reads no more."""


class Streams:
    """Standard input, output and error, which tests give as they like."""

    def __init__(
        self, stdin: IO[Any] | None = None, stdout: IO[Any] | None = None, stderr: IO[str] | None = None
    ) -> None:
        """Those of the process where none is given; one that the process lacks is as if empty or closed."""
        self.stdin = sys.stdin if stdin is None else stdin
        self.stdout = sys.stdout if stdout is None else stdout
        self.stderr = sys.stderr if stderr is None else stderr


class Terminal:
    """What a command prints through. For any thread: each message goes out whole.

    Attributes:
        json: Whether stdout gets NDJSON.
        shows: Whether stdout is a terminal.
        intercept: Prints in our place: above the line that is being edited.
    """

    def __init__(
        self,
        streams: Streams,
        *,
        as_json: bool = False,
        quiet: bool = False,
        verbose: bool = False,
        null: bool = False,
        as_base64: bool = False,
    ) -> None:
        """Say how to print; see the options of the same names."""
        self.streams = streams
        self.json = as_json
        self.shows = is_terminal(streams.stdout)
        self._quiet, self._verbose, self._base64 = quiet, verbose, as_base64
        self._end = b"\0" if null else b"\n"
        self._lock = threading.Lock()
        self._tells = is_terminal(streams.stderr)
        self._is_over = False
        self.intercept: Callable[[bytes], None] | None = None

    # --- stdout ----------------------------------------------------------------------------------------

    def message(self, payload: str | bytes, **facts: Any) -> None:
        """A message that has come."""
        if self.json:
            kind = {"data": payload} if isinstance(payload, str) else {"base64": _encoded(payload)}
            self.record("message", **kind, **facts)
        elif isinstance(payload, str):
            shown = escaped(payload, keep_layout=True) if self.shows else payload
            self._write(shown.encode("utf-8", "backslashreplace") + self._end)
        elif self._base64:
            self._write(_encoded(payload).encode() + self._end)
        elif self.shows:
            self._write(as_hex(payload).encode() + b"\n")
        else:
            self._write(payload + (b"\0" if self._end == b"\0" else b""))

    def value(self, value: Any, **facts: Any) -> None:
        """A JSON value that has come; in one line."""
        if self.json:
            self.record("message", data=value, **facts)
        else:
            # Not ASCII only: it is for people, too. On a terminal `escaped` sees to the rest.
            text = json.dumps(value, ensure_ascii=False)
            self._write(
                (escaped(text) if self.shows else text).encode("utf-8", "backslashreplace") + self._end
            )

    def record(self, kind: str, **facts: Any) -> None:
        """A line of NDJSON, for `--json`; ASCII only, so that no terminal minds it."""
        self._write(json.dumps({"type": kind, **facts}, allow_nan=False).encode("ascii") + b"\n")

    def line(self, text: str = "", *styles: str) -> None:
        """A line of a report on stdout, not for `--json`."""
        shown = self._styled(escaped(text), styles, self.shows)
        self._write(shown.encode("utf-8", "backslashreplace") + b"\n")

    def text(self, text: str) -> None:
        """A text of ours, of several lines."""
        self._write(text.encode())

    def _write(self, data: bytes) -> None:
        out: Any = getattr(self.streams.stdout, "buffer", self.streams.stdout)
        with self._lock:
            if self._is_over or out is None:
                raise PipeClosedError
            try:
                if self.intercept is not None:
                    self.intercept(data)
                    return
                out.write(data)
                out.flush()
            except (BrokenPipeError, ValueError) as error:  # ValueError: it was closed
                self._is_over = True
                raise PipeClosedError from error

    def is_read(self) -> bool:
        """Whether someone may still read stdout; True where that can't be told."""
        if self._is_over:
            return False
        try:
            descriptor = self.streams.stdout.fileno()
            poll = select.poll()
            poll.register(descriptor, 0)  # an error is told of unasked
            return not any(event & select.POLLERR for _, event in poll.poll(0))
        except (OSError, ValueError, AttributeError):  # no descriptor, no poll()
            return True

    # --- stderr ----------------------------------------------------------------------------------------

    def note(self, text: str, *styles: str) -> None:
        """Something to know, unless `--quiet`."""
        if not self._quiet:
            self._tell(text, styles)

    def detail(self, text: str) -> None:
        """Something to know for those who have asked for more (`-v`)."""
        if self._verbose and not self._quiet:
            self._tell(text, ("dim",))

    def fail(self, outcome: Outcome, *, where: str = "") -> int:
        """Tell of a failure, on stdout with `--json`; return its exit code."""
        if self.json:
            record = outcome.record()
            facts = {"where": where} if where else {}
            self.record(record.pop("type"), **record, **facts)
            return outcome.exit
        named = f"{where}: " if where else ""
        self._tell(f"jetsocket: {named}{outcome.cause}", ("red",))
        if outcome.remedy:
            self._tell(f"  → {outcome.remedy}", ("yellow",))
        return outcome.exit

    def _tell(self, text: str, styles: tuple[str, ...]) -> None:
        if self.streams.stderr is None:
            return
        shown = self._styled(escaped(text), styles, self._tells)
        with self._lock, contextlib.suppress(BrokenPipeError, ValueError):  # no one is there to be told
            self._put(shown)

    def _put(self, text: str) -> None:
        stderr = self.streams.stderr
        if self.intercept is not None:
            self.intercept(f"{text}\n".encode())
            return
        try:
            stderr.write(f"{text}\n")
        except UnicodeEncodeError:  # LC_ALL=C
            stderr.write(f"{text.encode('ascii', 'backslashreplace').decode()}\n")
        stderr.flush()

    def _styled(self, text: str, styles: tuple[str, ...], is_terminal: bool) -> str:
        if not styles or not is_terminal or not wants_colours(os.environ):
            return text
        codes = ";".join(_COLOURS[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    @property
    def is_live(self) -> bool:
        """Whether a live bar makes sense: on stderr, which has to be a terminal that can move its cursor."""
        return self._tells and not self.json and not self._quiet and os.environ.get("TERM") != "dumb"


def is_terminal(stream: Any) -> bool:
    """Whether a stream is a terminal; one that is closed, or not there, is none."""
    try:
        return stream is not None and bool(stream.isatty())
    except ValueError:
        return False


def wants_colours(environ: Mapping[str, str]) -> bool:
    """As https://no-color.org says: any value of NO_COLOR that is not empty switches them off."""
    return not environ.get("NO_COLOR") and environ.get("TERM", "") not in ("", "dumb")


def _encoded(payload: bytes) -> str:
    return base64.b64encode(payload).decode("ascii")
