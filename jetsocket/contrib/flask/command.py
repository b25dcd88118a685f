"""`flask jetsocket`: status, check, call and ping, with the pools that the application is configured with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

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
    with _pools_of_this_command() as pools:
        settings = {each: pools.settings(each) for each in _chosen(pools, name)}
        code = commands.status(settings, sys.stdout, pools.directories())
    sys.exit(code)


@group.command("check")
@_NAME
@click.option("--path", default="", help="Relative to the base URI.")
def _check(name: str | None, path: str) -> None:
    """Connect, and have the server answer a ping. Exit code 1 if one can't be reached."""
    with _pools_of_this_command() as pools:
        code = commands.check({each: pools[each] for each in _chosen(pools, name)}, sys.stdout, path)
    sys.exit(code)


@group.command("call")
@_POOL
@click.argument("path")
@click.argument("message")
def _call(name: str | None, path: str, message: str) -> None:
    """Send MESSAGE to PATH, and print the reply."""
    with _pools_of_this_command() as pools:
        code = commands.call(pools[name or _usual(pools)], path, message, sys.stdout, sys.stderr)
    sys.exit(code)


@group.command("ping")
@_POOL
@click.option("-c", "--count", default=4, show_default=True, type=click.IntRange(1), help="How many.")
@click.argument("path", default="")
def _ping(name: str | None, count: int, path: str) -> None:
    """Send pings to PATH, and show how long each pong takes."""
    with _pools_of_this_command() as pools:
        code = commands.ping(pools[name or _usual(pools)], path, sys.stdout, sys.stderr, count)
    sys.exit(code)


@contextmanager
def _pools_of_this_command() -> Iterator[Pools]:
    """The application's pools; what is wrong with their settings is said without a traceback.

    Those that the command makes tell no other process what they do, and are closed at its end. In a test, the
    process may have pools of its own beside it.
    """
    pools: Pools = current_app.extensions["jetsocket"]
    made, publishes = pools.made(), pools.publishes
    pools.publishes = False  # this process is no worker
    try:
        yield pools
    except (KeyError, TypeError, ValueError) as error:
        if is_alarm(error):
            raise
        raise click.ClickException(str(error.args[0])) from error
    finally:
        pools.publishes = publishes
        pools.close_all(but=made)


def _chosen(pools: Pools, name: str | None) -> list[str]:
    return list(pools) if name is None else [name]


def _usual(pools: Pools) -> str:
    names = list(pools)
    return names[0] if len(names) == 1 else PLAIN
