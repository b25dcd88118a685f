"""What `manage.py jetsocket` and `flask jetsocket` do: status, check, call and ping, with what they print.

A command is a process of its own: it shows the settings in force, and connects by itself. What the server's
workers do it knows only where they write it down.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from time import monotonic
from typing import Any, Protocol

from jetsocket import ConnectionPool, ConnectionPoolConfig, JetSocketError
from jetsocket.interrupts import is_alarm
from jetsocket.manager_kwargs import Options
from jetsocket.redacted_uris import redact
from jetsocket.text import printable

__all__ = ["FAILED", "OK", "Output", "call", "check", "ping", "status"]

OK, FAILED = 0, 1


class Output(Protocol):
    """Where a command prints: a stream, or what a framework has for one."""

    def write(self, text: str, /) -> object:
        """Print it."""


def status(
    settings: Mapping[str, Mapping[str, Any]], out: Output, directories: Iterable[str | os.PathLike[str]] = ()
) -> int:
    """Print the settings in force, and what running workers do.

    Args:
        settings: The arguments of each pool, by its name in the settings.
        out: Where to print.
        directories: Where the workers write what they do; see `jetsocket.contrib.status.publish`.

    Returns:
        The exit code.
    """
    if not settings:
        _line(out, "no pool is configured")
    for name, arguments in settings.items():
        _line(out, name)
        for label, value in _told(arguments):
            _line(out, f"  {label:<22}{value}")
    for directory in directories:
        from jetsocket.contrib.status import as_text, read  # not loaded without

        _line(out, f"\n{directory}")
        try:
            told = as_text(read(directory))
        except OSError as error:
            if is_alarm(error):
                raise
            told = f"can't be read: {error.strerror}"
        _line(out, told)
    return OK


def _told(arguments: Mapping[str, Any]) -> list[tuple[str, str]]:
    config = arguments.get("config") or ConnectionPoolConfig()
    uri = arguments.get("base_uri")
    told = [("name", arguments["name"])] if "name" in arguments else []
    told.append(("base_uri", "none: only full URIs can be asked for" if uri is None else redact(uri)))
    told += [(field.name, str(getattr(config, field.name))) for field in fields(config)]
    if arguments.get("manager_kwargs"):
        shown = repr(Options.from_kwargs(arguments["manager_kwargs"]))
        told.append(("options", shown.removeprefix("Options(").removesuffix(")")))
    for label in ("correlation", "limiter", "configure", "reset", "check", "on_push"):
        if (given := arguments.get(label)) is not None:
            told.append((label, getattr(given, "__qualname__", type(given).__qualname__)))
    return told


def check(pools: Mapping[str, ConnectionPool[Any]], out: Output, path: str = "") -> int:
    """Open a connection of each pool, or use an idle one, and have the server answer a ping.

    Args:
        pools: By their names in the settings.
        out: Where to print.
        path: Relative to the base URI.

    Returns:
        1 if a server could not be reached, else 0.
    """
    code = OK
    for name, pool in pools.items():
        began = monotonic()
        try:
            with pool.acquire(path) as conn:
                opened = monotonic() - began
                where = conn.uri
                took = conn.ping(pool.config.health_check_timeout)
        except (JetSocketError, ValueError) as error:
            if is_alarm(error):
                raise
            code = FAILED
            _line(out, f"FAIL  {name}: {_shown(error)}")
        else:
            _line(out, f"ok    {name}: {where}, connected in {_ms(opened)}, pong after {_ms(took)}")
    return code


def call(pool: ConnectionPool[Any], path: str, message: str, out: Output, err: Output) -> int:
    """Send a message and print the reply.

    Args:
        pool: Whose connection to use.
        path: Relative to the base URI, or a full URI.
        message: What is JSON, as JSON; all else as text.
        out: Where the reply goes.
        err: Where errors go.

    Returns:
        The exit code.
    """
    try:
        read: Any = json.loads(message, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        read = message
    asked = message if isinstance(read, str) else read  # what is a str goes out as it is, so with its quotes
    try:
        reply = pool.request(path, asked, _patience(pool))
    except (JetSocketError, ValueError, TypeError) as error:
        if is_alarm(error):
            raise
        return _fail(err, error)
    _line(out, _printable(_as_text(reply)))
    return OK


def ping(pool: ConnectionPool[Any], path: str, out: Output, err: Output, count: int = 4) -> int:
    """Have the server answer some pings on one connection.

    Args:
        pool: Whose connection to use.
        path: Relative to the base URI, or a full URI.
        out: Where the times go.
        err: Where errors go.
        count: How many pings.

    Returns:
        The exit code.
    """
    try:
        with pool.acquire(path) as conn:
            _line(out, f"{conn.uri}")
            for turn in range(1, count + 1):
                _line(out, f"  pong {turn} after {_ms(conn.ping(pool.config.health_check_timeout))}")
    except (JetSocketError, ValueError) as error:
        if is_alarm(error):
            raise
        return _fail(err, error)
    return OK


def _refuse(name: str) -> None:
    raise ValueError(name)


def _patience(pool: ConnectionPool[Any]) -> float:
    """How long a command waits for a reply (s): as long as for a connection and for a pong."""
    return pool.config.acquire_timeout + pool.config.health_check_timeout


def _as_text(reply: Any) -> str:
    if isinstance(reply, str):
        return reply
    try:
        return json.dumps(reply, ensure_ascii=False)
    except (TypeError, ValueError) as error:  # message_type, a deserializer: it may be anything
        if is_alarm(error, users_code=True):
            raise
        return repr(reply)


def _fail(err: Output, error: Exception) -> int:
    _line(err, f"error: {_shown(error)}")
    return FAILED


def _shown(error: Exception) -> str:
    return f"{_printable(str(error))} ({type(error).__name__})"


def _printable(text: str) -> str:
    return printable(text, len(text))


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _line(out: Output, text: str) -> None:
    out.write(f"{text}\n")
