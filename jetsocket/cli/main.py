"""The command line: which command, its options, and how it ends."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import FrameType
from typing import IO, Any

from jetsocket.cli import parsers
from jetsocket.cli.arguments import parse
from jetsocket.cli.exits import OK, PIPE_CLOSED, USAGE, Terminated, UsageError, code_of, outcome_of
from jetsocket.cli.output import PipeClosedError, Streams, Terminal
from jetsocket.cli.settings import one_uri
from jetsocket.exceptions import JetSocketError

__all__ = ["guarded", "main"]


def main(
    arguments: Sequence[str] | None = None,
    stdin: IO[Any] | None = None,
    stdout: IO[Any] | None = None,
    stderr: IO[str] | None = None,
) -> int:
    """Do what the command line says.

    Args:
        arguments: As in ``sys.argv[1:]``, which is the default.
        stdin: As the process's, by default, and so are the others.
        stdout: Where data goes.
        stderr: Where all else goes.

    Returns:
        The exit code.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    streams = Streams(stdin, stdout, stderr)
    terminal = Terminal(streams, as_json="--json" in given)  # for what is wrong with the options
    try:
        parser, commands = parsers.build()
        _complete(parser, commands)
        if not given or given[0] in ("-h", "--help"):
            terminal.text(parser.format_help())
            return OK
        if given[0] == "--version":
            terminal.line(f"jetsocket {parsers.version()}")
            return OK
        if given[0] not in commands:
            raise UsageError(f"there is no command {given[0]!r}", f"known are {', '.join(commands)}")
        command = commands[given[0]]
        if _asks_for_help(given[1:]):
            terminal.text(command.format_help())
            return OK
        options, others = parse(command, given[1:])
        terminal = Terminal(
            streams,
            as_json=getattr(options, "json", False),
            quiet=getattr(options, "quiet", False),
            verbose=getattr(options, "verbose", False),
            null=getattr(options, "null", False),
            as_base64=getattr(options, "base64", False),
        )
        code = _run(given[0], options, others, terminal)
    except PipeClosedError:
        return PIPE_CLOSED
    except KeyboardInterrupt as interrupt:
        return code_of(interrupt)
    except (UsageError, JetSocketError, ImportError, OSError) as error:
        try:
            return terminal.fail(outcome_of(error))
        except PipeClosedError:
            return PIPE_CLOSED
    return code


def _run(command: str, options: argparse.Namespace, others: list[str], terminal: Terminal) -> int:
    if command != "demo":
        code: int = import_module(f"jetsocket.cli.{command}").run(options, others, terminal)
        return code
    if others:
        raise UsageError(f"demo takes options only, not {others[0]!r}")
    from jetsocket.cli import demo

    if options.uri is not None:
        one_uri([options.uri])
    if (missing := demo.missing_extra()) is not None:
        raise UsageError(missing)
    return demo.run(demo.Plan(options.calls, options.threads, options.connections, options.uri))


def _asks_for_help(arguments: list[str]) -> bool:
    before = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "-h" in before or "--help" in before


def _complete(parser: Any, commands: Mapping[str, argparse.ArgumentParser]) -> None:
    """Let the shell complete, if it asks, and argcomplete is there."""
    if "_ARGCOMPLETE" in os.environ:
        try:
            argcomplete = import_module("argcomplete")
        except ImportError:
            return
        import_module("jetsocket.cli.completion").prepare(commands, argcomplete.completers)
        argcomplete.autocomplete(parser)


def guarded() -> int:
    """`main` for the console script: an end without a traceback, whatever the output is."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:  # once more, while it was ending
        code = code_of(interrupt)
    except BrokenPipeError:
        code = PIPE_CLOSED
    except OSError:  # a full disk, which `main` has told of
        code = USAGE
    if code in (PIPE_CLOSED, USAGE):
        # What is left in the buffer goes nowhere; else the interpreter would complain of it at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return code


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated
