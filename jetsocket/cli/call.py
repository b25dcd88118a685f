"""`jetsocket call`: one reply a message, and done."""

from __future__ import annotations

import argparse
import json
from typing import Any, Literal

from jetsocket.cli.asking import Asking, Correlated, JsonRpcCall, Raw
from jetsocket.cli.exits import OK, UsageError, outcome_of
from jetsocket.cli.lines import Lines
from jetsocket.cli.output import Terminal
from jetsocket.cli.pools import correlation_of, opened
from jetsocket.cli.reading import from_argument
from jetsocket.cli.settings import manager_kwargs, one_uri
from jetsocket.clock import monotonic
from jetsocket.exceptions import JetSocketError

__all__ = ["run"]


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says.

    Args:
        options: What was given by name.
        given: The URI and the messages, or the arguments of the JSON-RPC call.
        terminal: Where to print.

    Returns:
        The exit code.
    """
    _, uri, texts = one_uri(given)
    kwargs = manager_kwargs(options)
    asking = _asking(options, uri)
    from_stdin = "-" in texts[: max(0, len(texts) - options.literal)]
    if from_stdin and texts != ["-"]:
        raise UsageError("- stands for messages on stdin, and can't stand beside others")
    messages = [] if from_stdin else _messages(options, asking, texts)
    connections = options.connections if from_stdin else 1
    reuse: Literal["balanced", "quiet"] = "balanced" if options.replies == 1 else "quiet"
    with opened(
        uri, kwargs, options, connections=connections, reuse=reuse, correlation=asking.correlation
    ) as pool:
        if from_stdin:
            return Lines(pool, asking, terminal, connections).run(null=options.null)
        return _one_by_one(pool, uri, asking, messages, terminal)


def _asking(options: argparse.Namespace, uri: str) -> Asking:
    if options.jsonrpc is not None and options.correlation is not None:
        raise UsageError("give --jsonrpc or --correlation, not both")
    if options.jsonrpc is None and options.correlation is None:
        return Raw(uri, options.timeout, options.replies, as_base64=options.base64)
    if options.replies > 1:
        raise UsageError("-n above 1 is for messages whose replies have no ids: here, each has one reply")
    sends_only = options.replies == 0
    if options.jsonrpc is not None:
        return JsonRpcCall(uri, options.timeout, options.jsonrpc, sends_only=sends_only)
    return Correlated(uri, options.timeout, correlation_of(options.correlation), sends_only=sends_only)


def _messages(options: argparse.Namespace, asking: Asking, texts: list[str]) -> list[Any]:
    if isinstance(asking, JsonRpcCall):
        return [asking.call([argument(text) for text in texts])]
    if not texts and not (isinstance(asking, Raw) and options.replies):
        raise UsageError("the message is missing", "give one or more, or - to read them from stdin")
    return [asking.read(from_argument(text, as_base64=options.base64)) for text in texts]


def argument(text: str) -> Any:
    """An argument of a call: what is JSON, as JSON; all else as text."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return text


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _one_by_one(pool: Any, uri: str, asking: Asking, messages: list[Any], terminal: Terminal) -> int:
    try:
        began = monotonic()
        with pool.acquire(uri) as conn:
            terminal.detail(f"connected to {conn.uri} within {monotonic() - began:.3f} s")
            for name, value in conn.response_headers.items():
                terminal.detail(f"< {name}: {value}")
            for message in messages or [None]:  # None: the server speaks first
                began = monotonic()
                for reply in asking.ask(conn, message):
                    asking.show(terminal, reply, seconds=round(monotonic() - began, 6))
                    began = monotonic()
    except (JetSocketError, TypeError, ValueError) as error:
        return terminal.fail(outcome_of(error))
    return OK
