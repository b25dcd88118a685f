"""`manage.py jetsocket`: status, check, call and ping, with the pools of the settings."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from jetsocket import ConnectionPool
from jetsocket.contrib import commands
from jetsocket.contrib.django.checks import TAG
from jetsocket.contrib.django.pools import pools
from jetsocket.contrib.status import as_text, read
from jetsocket.interrupts import is_alarm

__all__ = ["Command"]


class Command(BaseCommand):  # type: ignore[misc]  # Django has no types
    """The command and its four parts."""

    help = "Look at the WebSocket pools of the project, and try them."
    requires_system_checks = (TAG,)

    def add_arguments(self, parser: CommandParser) -> None:
        """Say what may follow."""
        parts = parser.add_subparsers(dest="part", required=True, metavar="status | check | call | ping")
        status = parts.add_parser("status", help="show the settings in force, of all pools or of one")
        status.add_argument("alias", nargs="?")
        check = parts.add_parser(
            "check", help="connect, and have the server answer a ping; exit code 1 if not"
        )
        check.add_argument("alias", nargs="?")
        check.add_argument("--path", default="", help="relative to the base URI")
        call = parts.add_parser("call", help="send a message, JSON or text, and print the reply")
        ping = parts.add_parser("ping", help="send pings, and show how long each pong takes")
        for part in (call, ping):
            part.add_argument(
                "--pool", metavar="ALIAS", dest="alias", help="which pool: 'default', or the only one"
            )
        call.add_argument("path")
        call.add_argument("message")
        ping.add_argument("path", nargs="?", default="")
        ping.add_argument("-c", "--count", type=_positive, default=4, help="how many (4)")

    def handle(self, *, part: str, alias: str | None, **options: Any) -> None:
        """Do it, and end with its exit code."""
        of_this_process = pools.made()  # `call_command`: some may be in use
        try:
            chosen = list(pools) if alias is None else [alias]
            if part == "status":
                code = commands.status({each: pools.settings(each) for each in chosen}, self.stdout)
                self._show_workers()
            elif part == "check":
                code = commands.check({each: pools[each] for each in chosen}, self.stdout, options["path"])
            else:
                code = self._on_one(part, pools[alias or _usual(chosen)], options)
            self.stdout.flush()
        except BrokenPipeError as error:
            if is_alarm(error):
                raise
            code = _end_of_pipe()
        except (KeyError, TypeError, ValueError) as error:
            if is_alarm(error):
                raise
            raise CommandError(str(error.args[0])) from error
        finally:
            pools.close_all(but=of_this_process)
        if code:
            sys.exit(code)

    def _show_workers(self) -> None:
        """Print what running workers have written, if they do."""
        directory = getattr(settings, "JETSOCKET_STATUS_DIR", None)
        if directory is None:
            return
        try:
            told = as_text(read(directory))
        except OSError as error:
            if is_alarm(error):
                raise
            raise CommandError(f"JETSOCKET_STATUS_DIR can't be read: {error.strerror}") from error
        self.stdout.write(f"\n{told}\n")

    def _on_one(self, part: str, pool: ConnectionPool[Any], options: dict[str, Any]) -> int:
        if part == "call":
            return commands.call(pool, options["path"], options["message"], self.stdout, self.stderr)
        return commands.ping(pool, options["path"], self.stdout, self.stderr, options["count"])


def _end_of_pipe() -> int:
    """The exit code where whoever reads the output has stopped: as SIGPIPE would end it, and as quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # what is left in its buffer is written when the interpreter ends
    os.close(nowhere)
    return 128 + signal.SIGPIPE


def _usual(aliases: list[str]) -> str:
    return aliases[0] if len(aliases) == 1 else "default"


def _positive(text: str) -> int:
    """Read a number of 1 or more."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number
