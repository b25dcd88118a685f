"""`jetsocket serve`: a server for trying and testing, that echoes, or does what a script says."""

from __future__ import annotations

import argparse
import errno
import runpy
import socket
import threading
import traceback
from typing import TYPE_CHECKING, Any

from jetsocket.cli.exits import USAGE, Outcome, UsageError
from jetsocket.cli.output import PipeClosedError, Terminal

if TYPE_CHECKING:
    from jetsocket.testing import FakeServer

__all__ = ["run"]

_NO_SUCH_HOST = (  # asyncio makes an OSError of a gaierror, and keeps the number
    errno.EADDRNOTAVAIL,
    socket.EAI_NONAME,
    socket.EAI_AGAIN,
    socket.EAI_FAIL,
)
_LOOK = 0.25  # s between two looks whether the output is still read


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says, until Ctrl-C.

    Args:
        options: What was given by name.
        given: The script, if there is one.
        terminal: Where to print.

    Returns:
        The exit code; there is one if the server can't be started, or the script raises.
    """
    if len(given) > 1:
        raise UsageError(f"serve takes one script, not {given[1]!r} too")
    script = given[0] if given else None
    if script is not None:
        _check_script(script)
    from jetsocket.cli.served import Served  # which needs the extra

    server = Served(
        terminal,
        is_echo=script is None,
        verbose=options.verbose,
        tls=options.tls,
        host=options.host,
        port=options.port,
    )
    try:
        server.start()
    except OSError as error:
        why = error.strerror or str(error)
        raise UsageError(f"can't listen at {options.host}:{options.port}: {why}", _instead(error)) from error
    try:
        _introduce(server, options, terminal, script)
        if script is not None and (failed := _run_script(script, server)) is not None:
            return terminal.fail(failed)
        wait_for_ever(terminal)
    finally:
        server.stop()
    raise AssertionError("only an exception ends the wait")


def _instead(error: OSError) -> str:
    if error.errno in _NO_SUCH_HOST:
        return "choose another --host: a name or an address of this machine"
    if error.errno == errno.EACCES:
        return "choose another --port, of 1024 or more"
    return "choose another --port"


def _check_script(path: str) -> None:
    try:
        with open(path, "rb") as file:
            compile(file.read(), path, "exec")
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from error
    except (SyntaxError, ValueError) as error:
        raise UsageError(f"{path} is no Python: {error}") from error


def _introduce(
    server: FakeServer, options: argparse.Namespace, terminal: Terminal, script: str | None
) -> None:
    if terminal.json:
        facts = {"ca_file": server.ca_file} if options.tls else {}
        terminal.record("server", uri=server.uri, **facts)
    else:
        terminal.line(server.uri)
        if options.tls:
            terminal.line(server.ca_file)
    terminal.note("echoes every message" if script is None else f"does what {script} says", "dim")
    if options.tls:
        terminal.note(f"jetsocket call {server.uri} hello --ca {server.ca_file}", "dim")
    terminal.note("Ctrl-C ends it", "dim")


def _run_script(path: str, server: FakeServer) -> Outcome | None:
    """Run it, with `server` in it; what is to be told if it raises."""
    names: dict[str, Any] = {"server": server}
    try:
        runpy.run_path(path, names, "__main__")
    except Exception as error:  # noqa: BLE001 - a script of the user's may raise anything
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__)[-1:]).strip()
        return Outcome(USAGE, f"{path}{_line_of(error, path)}: {told}")
    return None


def _line_of(error: BaseException, path: str) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def wait_for_ever(terminal: Terminal) -> None:
    """Until Ctrl-C, or the reader of the output is gone.

    Raises:
        PipeClosedError: Nobody does.
    """
    never = threading.Event()
    while terminal.is_read():
        never.wait(_LOOK)
    raise PipeClosedError
