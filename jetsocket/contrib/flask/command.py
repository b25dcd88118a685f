"""`flask jetsocket`: status, check, call and ping, with the pools that the application is configured with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import click
from flask import current_app
from flask.cli import AppGroup

from jetsocket.contrib import commands
from jetsocket.contrib.flask.pools import PLAIN, Pools
from jetsocket.interrupts import is_alarm

__all__ = ["group"]

group = AppGroup("jetsocket", help="Look at the WebSocket pools of the application, and try them.")
"""The commands, of whatever application is current."""

_NAME = click.argument("name", required=False)
_POOL = click.option("--pool", "name", metavar="NAME", help=f"Which pool: the only one, or {PLAIN!r}.")


@group.command("status")
@_NAME
def _status(name: str | None) -> None:
    """Show the settings in force, of all pools or of one, and what running workers do.

    Workers tell it where JETSOCKET_STATUS_DIR is configured.
    """
    with _look_up() as pools:
        settings = {each: pools.settings(each) for each in _chosen(pools, name)}
        directories = pools.directories()
    _end(commands.status(settings, sys.stdout, directories))


@group.command("check")
@_NAME
@click.option("--path", default="", help="Relative to the base URI.")
def _check(name: str | None, path: str) -> None:
    """Connect, and have the server answer a ping. Exit code 1 if one can't be reached."""
    with _look_up() as pools:
        chosen = {each: pools[each] for each in _chosen(pools, name)}
    _end(commands.check(chosen, sys.stdout, path))


@group.command("call")
@_POOL
@click.argument("path")
@click.argument("message")
def _call(name: str | None, path: str, message: str) -> None:
    """Send MESSAGE to PATH, and print the reply."""
    with _look_up() as pools:
        pool = pools[name or _usual(pools)]
    _end(commands.call(pool, path, message, sys.stdout, sys.stderr))


@group.command("ping")
@_POOL
@click.option("-c", "--count", default=4, show_default=True, type=click.IntRange(1), help="How many.")
@click.argument("path", default="")
def _ping(name: str | None, count: int, path: str) -> None:
    """Send pings to PATH, and show how long each pong takes."""
    with _look_up() as pools:
        pool = pools[name or _usual(pools)]
    _end(commands.ping(pool, path, sys.stdout, sys.stderr, count))


@contextmanager
def _look_up() -> Iterator[Pools]:
    """The application's pools; what is wrong with their settings is said without a traceback."""
    pools: Pools = current_app.extensions["jetsocket"]
    pools.publishes = False  # this process is no worker
    try:
        yield pools
    except (KeyError, TypeError, ValueError) as error:
        if is_alarm(error):
            raise
        raise click.ClickException(str(error.args[0])) from error


def _chosen(pools: Pools, name: str | None) -> list[str]:
    return list(pools) if name is None else [name]


def _usual(pools: Pools) -> str:
    names = list(pools)
    return names[0] if len(names) == 1 else PLAIN


def _end(code: int) -> NoReturn:
    pools: Pools = current_app.extensions["jetsocket"]
    pools.close_all()
    sys.exit(code)
