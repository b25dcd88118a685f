"""The soak's server, a process of its own that may be killed at any moment: ws:// and wss://, counts by pool.

A line of JSON on stdin asks for something, a line on stdout answers it. When stdin ends, so does the server.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import ssl
import sys
import threading
from collections import Counter, defaultdict
from typing import Any

from tests.servers import LOCALHOST, Connection, EchoServer


class Counts:
    """What both servers saw of each pool, by the name that it gives in its upgrade requests. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, set[Connection]] = defaultdict(set)
        self.most: Counter[str] = Counter()
        self.opened = self.messages = 0

    def arrive(self, name: str, conn: Connection) -> None:
        with self._lock:
            self.opened += 1
            self._open[name].add(conn)
            # Any two that show as open here were open at one moment: when the first of them was asked.
            self.most[name] = max(self.most[name], sum(other.is_open for other in self._open[name]))

    def leave(self, name: str, conn: Connection) -> None:
        with self._lock:
            self._open[name].discard(conn)
            if not self._open[name]:
                del self._open[name]

    def report(self) -> dict[str, Any]:
        with self._lock:
            return {"opened": self.opened, "messages": self.messages, "most": dict(self.most)}


class SoakServer(EchoServer):
    """An EchoServer on a port that is given, so that it comes back where it was."""

    def __init__(self, port: int, counts: Counts, **options: Any) -> None:
        super().__init__(self._talk, compression="deflate", **options)
        self._reserved.close()
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((LOCALHOST, port))
        self.port = port
        self.counts = counts

    def _talk(self, conn: Connection) -> None:
        assert conn.request is not None
        name = conn.request.headers.get("X-Pool", "?")
        self.counts.arrive(name, conn)
        try:
            for message in conn:
                self.counts.messages += 1
                answer(conn, json.loads(message))
        finally:
            self.counts.leave(name, conn)


def answer(conn: Connection, asked: dict[str, Any]) -> None:
    """Do what a message asks for; every reply carries its id."""
    reply = {"id": asked["id"], "pad": asked.get("pad", "")}
    do = asked["do"]
    if do == "late":
        conn.echo_server.stopping.wait(asked["delay"])
        conn.send(json.dumps(reply))
    elif do == "stream":
        for number in range(asked["count"]):
            conn.send(json.dumps({**reply, "number": number}))
    elif do == "big":
        conn.send(json.dumps({**reply, "pad": "x" * asked["size"]}))
    elif do == "twice":
        conn.send(json.dumps(reply))
        conn.send(json.dumps({**reply, "again": True}))
    elif do == "close":
        conn.close(asked["code"], "asked to")
    elif do == "cut":
        conn.cut()
    elif do == "garbage":
        conn.send("{no JSON")
    elif do != "nothing":
        conn.send(json.dumps(reply))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls-port", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it says when it is over
    logging.getLogger("websockets").setLevel(logging.CRITICAL + 1)  # clients that are gone are no news here
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate)
    counts = Counts()
    with (
        SoakServer(options.port, counts) as plain,
        SoakServer(options.tls_port, counts, ssl_context=context) as secure,
    ):
        print(json.dumps({"listens": True}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            for server in (plain, secure):
                if asked["do"] == "close_all":
                    server.close_all(asked["code"], "everybody")
                elif asked["do"] == "cut_all":
                    server.cut_all()
            print(json.dumps(counts.report()), flush=True)
    os._exit(0)  # threads of `websockets` may still wait for peers in a black hole


if __name__ == "__main__":
    main()
