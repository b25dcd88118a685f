"""The command lines of help and documentation, run in a world in which their servers exist."""

from __future__ import annotations

import ast
import json
import re
import shlex
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import pytest

from jetsocket.wire import dial
from tests.cli.terminal import Ran, run
from tests.conftest import Tls
from tests.servers import Connection, EchoServer

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(page: str) -> list[tuple[str, list[str]]]:
    """The commands of a page's console blocks, and the lines that are shown behind each."""
    found: list[tuple[str, list[str]]] = []
    for block in _BLOCK.findall(page):
        for line in re.sub(r" *\\\n *", " ", block).splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            else:
                found[-1][1].append(line)
    return found


def echoing(conn: Connection) -> None:
    for message in conn:
        conn.send(message)


def feeding(conn: Connection) -> None:
    for number in range(1000):
        conn.send(json.dumps({"symbol": "btcusdt", "price": 100 + number}))
        conn.echo_server.stopping.wait(0.01)


def node(conn: Connection) -> None:
    for text in conn:
        call = json.loads(text)
        reply: dict[str, Any] = {"result": "0x1bc16d674ec80000"}
        if call["method"].startswith("no_such"):
            reply = {"error": {"code": -32601, "message": "the method does not exist"}}
        conn.send(json.dumps({"jsonrpc": "2.0", "id": call["id"], **reply}))


def choose(conn: Connection, offered: Sequence[str]) -> str | None:
    return "chat" if "chat" in offered else None


HOSTS = {"echo.example.com": echoing, "feed.example.com": feeding, "node.example.com": node}


class World:
    """Names lead to servers of this machine, whose certificate is trusted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tls: Tls) -> None:
        self._stack = ExitStack()
        context = tls.issue(*HOSTS)
        self.server = EchoServer(
            self._serve, ssl_context=context, compression="deflate", select_subprotocol=choose
        )
        look_up = socket.getaddrinfo

        def getaddrinfo(host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
            if host not in HOSTS:
                return look_up(host, port, *args, **kwargs)
            return look_up(self.server.host, self.server.port, *args, **kwargs)

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(dial, "default_ssl_context", lambda: tls.client_context)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)

    def _serve(self, conn: Connection) -> None:
        assert conn.request is not None
        HOSTS[conn.request.headers["Host"]](conn)

    def __enter__(self) -> World:
        self._stack.enter_context(self.server)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run(self, line: str) -> Ran:
        """Run a line: what printf pipes into it is given, and what it is piped into left out."""
        given, pipe, rest = line.partition(" | jetsocket ")
        stdin = b""
        if pipe:
            program, text = shlex.split(given)
            assert program == "printf"
            stdin = ast.literal_eval(f'"""{text}"""').encode()
            line = f"jetsocket {rest}"
        words = shlex.split(line.partition(" | ")[0])
        assert words[0] == "jetsocket", words
        return run(*words[1:], stdin=stdin)
