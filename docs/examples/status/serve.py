"""A page that shows what a pool does while sixteen threads use it: `python serve.py`, then open the address.

Needs `pip install "jetsocket[testing]"`: the WebSocket server it talks to is a scripted one.
"""

from __future__ import annotations

import argparse
import random
import signal
import threading
import time
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.contrib import status
from jetsocket.testing import FakeServer

THREADS = 16
HOSTS = ("127.0.0.1", "localhost")


class Quiet(WSGIRequestHandler):
    """Logs no request: there is one every two seconds."""

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(WSGIServer):
    """Ends at Ctrl-C, which wsgiref would take for an error of the page if it came within a request."""

    interrupted = False

    def interrupt(self, number: int, frame: Any) -> None:
        """What Ctrl-C does."""
        self.interrupted = True
        raise KeyboardInterrupt

    def service_actions(self) -> None:
        """Between two requests."""
        if self.interrupted:
            raise KeyboardInterrupt


def is_here(environ: dict[str, Any]) -> bool:
    """Whether a request comes from this machine, by a name of this machine's."""
    host = environ.get("HTTP_HOST", "").partition(":")[0]
    return environ["REMOTE_ADDR"] == "127.0.0.1" and host in HOSTS


def work(pool: ConnectionPool[Any], end: threading.Event) -> None:
    """Ask, think about the answer, rest."""
    while not end.is_set():
        with pool.acquire("/") as conn:
            conn.request({"method": "ping"})
            end.wait(random.uniform(0.0, 1.0))
        end.wait(random.uniform(0.0, 1.5) * (1 + (time.time() // 20) % 3))


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Show what a pool does while threads use it.")
    parser.add_argument("--port", type=int, default=8080)
    port = parser.parse_args().port
    end = threading.Event()
    config = ConnectionPoolConfig(max_connections=8)
    with FakeServer() as server, ConnectionPool(config, base_uri=server.uri, name="example") as pool:
        server.on({"method": "ping"}).reply({"result": "pong"})
        page = status.app([pool], permission=is_here, clear=True)
        threads = [threading.Thread(target=work, args=(pool, end)) for _ in range(THREADS)]
        with make_server("127.0.0.1", port, page, Server, Quiet) as web:
            signal.signal(signal.SIGINT, web.interrupt)
            for thread in threads:
                thread.start()
            print(f"http://127.0.0.1:{web.server_port}/ shows it; Ctrl-C ends it", flush=True)
            try:
                web.serve_forever()
            except KeyboardInterrupt:
                print("ended")
            finally:
                end.set()
                for thread in threads:
                    thread.join()


if __name__ == "__main__":
    main()
