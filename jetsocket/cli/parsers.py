"""What the commands take: options, usage, examples. It imports little, for shells complete by it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from jetsocket.cli.arguments import Parser, common, count, count_from_0, port, rate, seconds

__all__ = ["EXAMPLES", "EXIT_CODES", "build", "version"]

EXIT_CODES = """exit codes:
  0    done
  1    a threshold failed, an error was replied to --jsonrpc, or there is no such process to forget
  2    wrong usage, a bad URI too: nothing was opened
  3    not reached: DNS, TCP, TLS, proxy
  4    reached, but there is no WebSocket, or it was refused
  5    timeout
  6    closed abnormally
  130  Ctrl-C
  141  nobody reads the output any more
  143  SIGTERM"""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "call": (
        "jetsocket call wss://echo.example.com hello",
        "jetsocket call wss://node.example.com --jsonrpc eth_getBalance 0x00 latest",
        "jetsocket call wss://echo.example.com -n 1 -t 5s hello goodbye -q",
        "printf 'one\\ntwo\\n' | jetsocket call wss://echo.example.com - --connections 4",
    ),
    "listen": (
        "jetsocket listen wss://feed.example.com/trades -n 3",
        "jetsocket listen wss://feed.example.com/trades --for 2s --json --reconnect",
        'jetsocket listen wss://echo.example.com --send \'{"subscribe": "trades"}\' -n 1',
    ),
    "ping": (
        "jetsocket ping wss://echo.example.com -c 3 -i 100ms",
        "jetsocket ping wss://echo.example.com -c 1 --json",
    ),
    "check": (
        "jetsocket check wss://echo.example.com",
        "jetsocket check wss://echo.example.com --json --subprotocol chat",
    ),
    "bench": (
        "jetsocket bench wss://echo.example.com hello -n 200 --connections 4 --callers 8",
        "jetsocket bench wss://echo.example.com --for 500ms -q 100 --fail-if 'p99>2s' --fail-if 'errors>1%'",
    ),
    "fleet": (
        "jetsocket fleet status redis://localhost:6379/0 binance",
        "jetsocket fleet status redis://localhost:6379/0 binance --json",
        "jetsocket fleet forget redis://localhost:6379/0 binance PROCESS",
    ),
    "serve": (
        "jetsocket serve",
        "jetsocket serve --port 8765 --tls",
        "jetsocket serve script.py",
    ),
    "demo": ("jetsocket demo", "jetsocket demo --calls 200 --threads 12 --connections 3"),
}
"""Examples of the commands; the tests run them."""

_SUMMARIES = {
    "call": "send messages, print a reply to each",
    "listen": "print what a server sends",
    "ping": "measure the round trip",
    "check": "find out why a connection does not work",
    "bench": "measure how a server replies to many",
    "fleet": "show who holds the connections of a group that shares a cap in Redis",
    "serve": "be a server, for trying and testing",
    "demo": "share a few connections among many threads, and check the promises",
}


def version() -> str:
    """The version of the package."""
    import jetsocket

    return jetsocket.__version__


def build() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of everything, for help and completion, and those of the commands by name."""
    top = Parser(
        prog="jetsocket",
        description="WebSockets at the terminal. Data goes to stdout, all else to stderr.",
        epilog="jetsocket COMMAND --help shows the options of one, and examples.\n\n" + EXIT_CODES,
    )
    top.add_argument("--version", action="store_true", help="show the version")
    parsers = top.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)
    commands: dict[str, argparse.ArgumentParser] = {}
    for name, add in _ADD.items():
        examples = "\n".join(f"  {line}" for line in EXAMPLES[name])
        parser = parsers.add_parser(
            name,
            prog=f"jetsocket {name}",
            usage=f"jetsocket {name} {_USAGES[name]}",
            help=_SUMMARIES[name],
            description=_DESCRIPTIONS[name],
            epilog=f"examples:\n{examples}\n\n{EXIT_CODES}",
        )
        add(parser)
        commands[name] = parser
    return top, commands


_USAGES = {
    "call": "[OPTIONS] URI [MESSAGE ... | -]\n"
    "       jetsocket call [OPTIONS] URI --jsonrpc METHOD [ARG ... | -]",
    "listen": "[OPTIONS] URI",
    "ping": "[OPTIONS] URI",
    "check": "[OPTIONS] URI",
    "bench": "[OPTIONS] URI [MESSAGE]",
    "fleet": "[OPTIONS] status URL NAME\n       jetsocket fleet [OPTIONS] forget URL NAME PROCESS",
    "serve": "[OPTIONS] [SCRIPT.py]",
    "demo": "[OPTIONS]",
}
_ANYWHERE = "Options may stand anywhere; what follows -- is none."
_LITERAL = "Options may stand anywhere; what follows -- is none, and no - for stdin either."
_DESCRIPTIONS = {
    "call": "Send each MESSAGE over one connection, print a reply to each, and close.\n"
    "Without a message, wait for what the server sends first. With -, read messages from stdin, one a\n"
    "line, and send them over several connections; the replies come in the order of the lines.\n" + _LITERAL,
    "listen": "Print each message that comes, until the server closes.\n"
    "On a terminal, what you type is sent, line by line; Ctrl-D ends it. Else stdin is not read.\n"
    + _ANYWHERE,
    "ping": "Connect, and measure the time from a ping to its pong.\n" + _ANYWHERE,
    "check": "Go through DNS, proxy, TCP, TLS, upgrade, ping and close, and say what to do where it fails.\n"
    + _ANYWHERE,
    "bench": "Send MESSAGE (hello) again and again, wait for a reply to each, and tell the latencies.\n"
    "With -q, requests become due at that rate, whatever the server does, and a latency counts from when\n"
    "its request was due. Callers and connections bound what is under way.\n" + _ANYWHERE,
    "fleet": "status: how many slots the group NAME has in the Redis at URL, and of each process that lives\n"
    "what it holds, whether it waits, and when it was heard of. forget: free the slots of one that hangs.\n"
    "If it lives, it takes them again where there is room, and closes what it has no slot for.\n"
    "Needs the extra redis. " + _ANYWHERE,
    "serve": "Send every message back, or do what a script says, in which `server` is a\n"
    "jetsocket.testing.FakeServer. Prints its address first. Ctrl-C ends it.",
    "demo": "Share a few connections among many threads that make request/reply calls with ids. A server is\n"
    "started for it, stopped midway and started again. The exit code is 1 if a promise broke.",
}


def _add_call(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n",
        "--replies",
        type=count_from_0,
        default=1,
        metavar="REPLIES",
        help="replies to a message (1); 0: only send",
    )
    parser.add_argument(
        "-t", "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="for each reply (10)"
    )
    parser.add_argument(
        "--jsonrpc", metavar="METHOD", help="call this JSON-RPC method, with the ARGs, and print its result"
    )
    parser.add_argument(
        "--correlation",
        metavar="NAME",
        help="tell replies by their ids, as in: jsonrpc, cdp, graphql, jupyter, home-assistant, obs, id:PATH",
    )
    parser.add_argument(
        "--connections", type=count, default=8, metavar="N", help="for messages from stdin (8)"
    )
    common(parser)


def _add_listen(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--send",
        action="append",
        default=[],
        metavar="MESSAGE",
        help="send this first, and after each reconnect; again for another; -: what is on stdin, one a line",
    )
    parser.add_argument("-n", "--messages", type=count, metavar="N", help="end after so many messages")
    parser.add_argument(
        "--for",
        dest="duration",
        type=seconds,
        metavar="SECONDS",
        help="end so long after connecting, with exit code 0",
    )
    parser.add_argument(
        "--reconnect",
        action="store_true",
        help="connect again when the connection ends; not after a refusal with 4xx",
    )
    common(parser)


def _add_ping(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-c", "--count", type=count, metavar="N", help="pings (until Ctrl-C)")
    parser.add_argument(
        "-i", "--interval", type=seconds, default=1.0, metavar="SECONDS", help="between two pings (1)"
    )
    parser.add_argument(
        "-t", "--timeout", type=seconds, default=5.0, metavar="SECONDS", help="for each pong (5)"
    )
    common(parser, messages=False)


def _add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t", "--timeout", type=seconds, default=5.0, metavar="SECONDS", help="for the pong (5)"
    )
    common(parser, messages=False)


def _add_bench(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=count, default=10, metavar="N", help="connections (10)")
    parser.add_argument(
        "--callers",
        type=count,
        metavar="N",
        help="threads that wait for a reply each (as many as connections)",
    )
    parser.add_argument("-n", "--requests", type=count, metavar="N", help="requests in all")
    parser.add_argument(
        "--for", dest="duration", type=seconds, metavar="SECONDS", help="how long (10, unless -n is given)"
    )
    parser.add_argument(
        "-q",
        "--rate",
        type=rate,
        metavar="RATE",
        help="requests due each second; without it, each caller asks again as soon as it has its reply",
    )
    parser.add_argument(
        "-t", "--timeout", type=seconds, default=10.0, metavar="SECONDS", help="for each reply (10)"
    )
    parser.add_argument("--plot", metavar="FILE.svg", help="draw the latencies")
    parser.add_argument(
        "--fail-if",
        action="append",
        default=[],
        metavar="'p99>50ms'",
        help="exit code 1 if so: min, avg, p50, p90, p95, p99 or max, < or >, a time in us, ms or s; errors"
        " and a number or N%%; rate and a number; again for another",
    )
    common(parser, quiet_letter=False)


def _add_fleet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    parser.add_argument("--json", action="store_true", help="print NDJSON: one object a line, its type first")


def _add_serve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", default="127.0.0.1", help="where to listen (127.0.0.1)")
    parser.add_argument("--port", type=port, default=0, help="likewise; 0: any that is free (0)")
    parser.add_argument("--tls", action="store_true", help="speak wss://, with a certificate of its own")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing on stderr but errors")
    parser.add_argument("-v", "--verbose", action="store_true", help="tell each message on stderr")
    parser.add_argument("--json", action="store_true", help="print NDJSON: one object a line, its type first")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=count, default=4000, help="calls in all (4000)")
    parser.add_argument("--threads", type=count, default=32, help="threads (32)")
    parser.add_argument("--connections", type=count, default=8, help="most connections (8)")
    parser.add_argument(
        "--uri",
        help="a ws:// or wss:// server of yours, which must send every message back as it is; it is not"
        " restarted, and its own counts are not known",
    )


_ADD: dict[str, Callable[[Any], None]] = {
    "call": _add_call,
    "listen": _add_listen,
    "ping": _add_ping,
    "check": _add_check,
    "bench": _add_bench,
    "fleet": _add_fleet,
    "serve": _add_serve,
    "demo": _add_demo,
}
