"""``python -m jetsocket``: the demo, and the version."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import jetsocket
from jetsocket import uris
from jetsocket.cli import demo

_USAGE_ERROR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says.

    Args:
        arguments: As in ``sys.argv[1:]``, which is the default.

    Returns:
        The exit status.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    if (missing := demo.missing_extra()) is not None:
        print(f"jetsocket: {missing}", file=sys.stderr)
        return _USAGE_ERROR
    return demo.run(demo.Plan(options.calls, options.threads, options.connections, options.uri))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jetsocket", description="A blocking, thread-safe WebSocket connection pool."
    )
    parser.add_argument("--version", action="version", version=f"jetsocket {jetsocket.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    plan = demo.Plan()
    command = commands.add_parser(
        "demo",
        help="share a few connections among many threads, and check the promises",
        description="Share a few connections among many threads that make request/reply calls with ids. "
        "A server is started for it, stopped midway and started again. The exit status is 1 if a promise "
        "broke.",
    )
    command.add_argument("--calls", type=_count, default=plan.calls, help="calls in all (%(default)s)")
    command.add_argument("--threads", type=_count, default=plan.threads, help="threads (%(default)s)")
    command.add_argument(
        "--connections", type=_count, default=plan.connections, help="most connections (%(default)s)"
    )
    command.add_argument(
        "--uri",
        type=_uri,
        help="a ws:// or wss:// server of yours, which must send every message back as it is; "
        "it is not restarted, and its own counts are not known",
    )
    return parser


def _count(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return number


def _uri(text: str) -> str:
    try:
        uris.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


if __name__ == "__main__":
    sys.exit(main())
