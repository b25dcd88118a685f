"""What all commands take: the options that say how to connect and how to print, and the types of values."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jetsocket.cli.exits import UsageError

__all__ = ["Parser", "common", "count", "count_from_0", "parse", "port", "rate", "seconds", "size"]

_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|s|m|h)?")
_SIZE = re.compile(r"(\d{1,18})(B|KiB|MiB|GiB)?")
_SIZES = {None: 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_UNITS = {"ms": 0.001, None: 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are exceptions, with the usage as a remedy."""

    def __init__(self, **options: Any) -> None:
        """As argparse's; no abbreviations, which would break scripts when an option is added."""
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message, f"{self.prog} --help shows what it takes")


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Read the arguments of a command; its options may stand anywhere, also among what is none.

    Args:
        parser: Knows the options, and no positional argument.
        arguments: What stands behind the command; what follows `--` is never an option.

    Returns:
        The options, and what is none, in order. `options.literal` is how many of the latter stood behind
        `--`, at their end: what means something else before, as `-`, is itself there.

    Raises:
        UsageError: An unknown option, or a bad value.
    """
    arguments = list(arguments)
    behind: list[str] = []
    if "--" in arguments:
        at = arguments.index("--")
        arguments, behind = arguments[:at], arguments[at + 1 :]
    options, others = parser.parse_known_args(arguments)
    for other in others:
        if other.startswith("-") and other != "-":
            parser.error(
                f"there is no option {other}; write -- before what begins with a dash and is no option"
            )
    options.literal = len(behind)
    return options, [*others, *behind]


def count(text: str) -> int:
    """A whole number of 1 or more."""
    return _whole(text, 1)


def count_from_0(text: str) -> int:
    """A whole number of 0 or more."""
    return _whole(text, 0)


def port(text: str) -> int:
    """A TCP port, or 0."""
    number = _whole(text, 0)
    if number > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port; 0 to 65535 is allowed")
    return number


def _whole(text: str, least: int) -> int:
    number = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {least} or more")
    return number


def seconds(text: str) -> float:
    """A time (s): `2`, `0.5`, `200ms`, `2m`."""
    found = _DURATION.fullmatch(text)
    value = float(found[1]) * _UNITS[found[2]] if found else math.nan
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time of more than 0 s, such as 2, 0.5, 200ms, 5m"
        )
    return value


def rate(text: str) -> float:
    """How many a second."""
    value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else math.nan
    if not 0 < value <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of requests per second of more than 0")
    return value


def size(text: str) -> int:
    """A number of bytes: `1000`, `64KiB`, `256MiB`, `1GiB`."""
    found = _SIZE.fullmatch(text)
    value = int(found[1]) * _SIZES[found[2]] if found else 0
    if not 0 < value < 2**62:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number of bytes of more than 0, such as 1000, 64KiB, 256MiB, 1GiB"
        )
    return value


def common(parser: argparse.ArgumentParser, *, messages: bool = True, quiet_letter: bool = True) -> None:
    """Add the options that all commands have which connect.

    Args:
        parser: Where to.
        messages: Whether the command shows or takes messages.
        quiet_letter: Whether `-q` is `--quiet`.
    """
    group = parser.add_argument_group("how to connect")
    group.add_argument(
        "-H",
        "--header",
        action="append",
        default=[],
        metavar="'NAME: VALUE'",
        help="send this header; not for secrets, which others can see in the list of processes",
    )
    group.add_argument(
        "--header-file",
        action="append",
        default=[],
        metavar="FILE",
        help="send the headers in FILE: one a line, # begins a comment",
    )
    group.add_argument(
        "--subprotocol",
        action="append",
        default=[],
        metavar="NAME",
        help="offer this subprotocol; again for another",
    )
    group.add_argument("--origin", metavar="ORIGIN", help="send this Origin header")
    group.add_argument("-k", "--insecure", action="store_true", help="do not check the server's certificate")
    group.add_argument("--ca", metavar="FILE", help="trust the authorities in this PEM file, and no others")
    group.add_argument("--cert", metavar="FILE", help="show the server this certificate (PEM)")
    group.add_argument("--key", metavar="FILE", help="its key, if it is not in the same file")
    group.add_argument(
        "--server-hostname",
        metavar="NAME",
        help="what the server's certificate has to be for, in place of the URI's host",
    )
    group.add_argument(
        "--proxy",
        metavar="URL",
        help="http://host:port, socks5h://…; or none; by default as the environment says",
    )
    group.add_argument("--unix", metavar="PATH", help="connect to this Unix socket")
    group.add_argument("--no-compress", action="store_true", help="do not offer permessage-deflate")
    group.add_argument(
        "--connect-timeout",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="for DNS, TCP, TLS and the upgrade together (10)",
    )
    group.add_argument(
        "--max-message-size",
        type=size,
        default=size("64MiB"),
        metavar="SIZE",
        help="the largest message that is taken, in B or with a unit: 500KiB, 1GiB (64MiB)",
    )
    group = parser.add_argument_group("what to print")
    group.add_argument("-v", "--verbose", action="store_true", help="say more on stderr")
    group.add_argument(
        *(["-q"] if quiet_letter else []),
        "--quiet",
        action="store_true",
        help="say nothing on stderr but errors",
    )
    group.add_argument("--json", action="store_true", help="print NDJSON: one object a line, its type first")
    if messages:
        group.add_argument(
            "--base64", action="store_true", help="binary messages are in base64, those given and those shown"
        )
        group.add_argument(
            "-0",
            "--null",
            action="store_true",
            help="messages end in NUL in place of a line feed, those read and those shown",
        )
