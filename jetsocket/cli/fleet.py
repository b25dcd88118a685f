"""`jetsocket fleet`: who holds the slots of a group that shares a cap in Redis, and freeing them by hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from jetsocket.cli.exits import FAILED, NO_WEBSOCKET, OK, TIMEOUT, UNREACHABLE, Outcome, UsageError
from jetsocket.cli.figures import shown_time
from jetsocket.cli.output import Terminal

if TYPE_CHECKING:
    from jetsocket.contrib.redis import FleetStatus, ProcessStatus

__all__ = ["run"]

T = TypeVar("T")

_HEADS = ("process", "where", "held", "limit", "waits", "heard of")


class _RefusedError(Exception):
    """Redis did not do it.

    Attributes:
        outcome: What that means.
    """

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.cause)
        self.outcome = outcome


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says.

    Args:
        options: What was given by name.
        given: What to do, the URL, the group's name, and for `forget` the process.
        terminal: Where to print.

    Returns:
        The exit code.
    """
    action, *rest = given or [""]
    try:
        if action == "status":
            url, name = _words(action, rest, "the URL of a Redis and the name of a group", 2)
            return _status(url, name, terminal)
        if action == "forget":
            what = "the URL of a Redis, the name of a group and a process"
            url, name, process = _words(action, rest, what, 3)
            return _forget(url, name, process, terminal)
    except _RefusedError as refused:
        return terminal.fail(refused.outcome)
    raise UsageError(
        f"fleet does not know {action!r}" if action else "what is fleet to do?", "status or forget"
    )


def _words(action: str, given: list[str], what: str, count: int) -> list[str]:
    if len(given) != count or not all(given):
        raise UsageError(f"fleet {action} takes {what}", "jetsocket fleet --help shows how")
    from jetsocket.contrib.redis.script import check_name

    try:
        check_name(given[1])
    except ValueError as error:
        raise UsageError(str(error), "give the name that the processes give to RedisLimiter") from error
    return given


def _status(url: str, name: str, terminal: Terminal) -> int:
    from jetsocket.contrib.redis import status

    fleet = _asked(url, lambda: status(url, name))
    if terminal.json:
        figures = {"limit": fleet.limit, "held": fleet.held, "waiting": fleet.waiting, "fence": fleet.fence}
        terminal.record("fleet", name=fleet.name, **figures)
        for each in fleet.processes:
            facts = {"held": each.held, "waits": each.is_waiting, "limit": each.limit}
            times = {"lease": round(each.lease, 3), "heard": round(each.seen, 3)}
            terminal.record("process", process=each.id, where=each.label, **facts, **times)
        return OK
    terminal.line(_told(fleet))
    rows = [_HEADS, *map(_row, fleet.processes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if fleet.processes else []:
        terminal.line("  ".join(map(str.ljust, row, widths)).rstrip())
    return OK


def _told(fleet: FleetStatus) -> str:
    count = len(fleet.processes)
    if fleet.limit is None:
        return f"{fleet.name}: no process is alive, {fleet.held} slots are held"
    processes = f"{count} process{'es' if count > 1 else ''}, of which {fleet.waiting} wait"
    return f"{fleet.name}: {fleet.held} of {fleet.limit} slots are held, by {processes}"


def _row(process: ProcessStatus) -> tuple[str, ...]:
    waits = "yes" if process.is_waiting else "no"
    heard = f"{shown_time(process.seen)} ago"
    return process.id, process.label, str(process.held), str(process.limit), waits, heard


def _forget(url: str, name: str, process: str, terminal: Terminal) -> int:
    from jetsocket.contrib.redis import forget, status

    known = {each.id for each in _asked(url, lambda: status(url, name)).processes}
    if process not in known:
        return terminal.fail(
            Outcome(
                FAILED,
                f"group {name!r} has no process {process!r}",
                "jetsocket fleet status shows those that it has",
            )
        )
    slots = _asked(url, lambda: forget(url, name, process))
    if terminal.json:
        terminal.record("forgotten", process=process, slots=slots)
    else:
        terminal.line(f"process {process} had {slots} slots, which are free now")
    return OK


def _asked(url: str, ask: Callable[[], T]) -> T:
    """What Redis answers.

    Raises:
        UsageError: The URL is none of a Redis.
        _RefusedError: It did not answer, or refused.
    """
    from redis.exceptions import AuthenticationError, AuthorizationError, ResponseError
    from redis.exceptions import TimeoutError as LateError

    from jetsocket.contrib.redis.link import FAILURES, Source

    try:
        where = Source(url, "")
    except (ValueError, TypeError) as error:
        raise UsageError(
            "that is no URL of a Redis", "write redis://host:6379/0, rediss:// for TLS, or unix:///path"
        ) from error
    try:
        return ask()
    except FAILURES as error:
        if isinstance(error, (AuthenticationError, AuthorizationError, ResponseError)):
            outcome = Outcome(
                NO_WEBSOCKET,
                f"{where} refuses: {error}",
                "does the URL have the user and password that it wants, and do they have the rights?",
            )
        elif isinstance(error, (LateError, TimeoutError)):
            outcome = Outcome(
                TIMEOUT, f"{where} does not answer", "is it busy, or something else than Redis?"
            )
        else:
            outcome = Outcome(
                UNREACHABLE, f"{where} is not there: {error}", "is it running, and reachable from here?"
            )
        raise _RefusedError(outcome) from error
