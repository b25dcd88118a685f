"""The demo's server, a process of its own: answers calls over ws:// and wss://, and counts what it sees.

It is the threaded server of `websockets` and uses nothing of jetsocket, so that its counts are a second
opinion. One line of JSON on stdout says where it listens; when its stdin ends, another says what it counted.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import select
import signal
import socket
import ssl
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.sync.server import Server, ServerConnection

HOST = "127.0.0.1"
_SLOWEST = 0.03  # s; calls take between none and this, so that borrowers overtake each other


class Counts:
    """What the server saw. Thread-safe."""

    def __init__(self) -> None:
        """Begin at nought."""
        self._lock = threading.Lock()
        self._connections: set[ServerConnection] = set()
        self._opened = self._most_open = self._calls = 0

    def arrive(self, conn: ServerConnection) -> None:
        """Count a connection that finished its upgrade."""
        with self._lock:
            self._connections.add(conn)
            self._opened += 1
            self._most_open = max(self._most_open, sum(map(_is_open, self._connections)))

    def leave(self, conn: ServerConnection) -> None:
        """Forget a connection that is closed."""
        with self._lock:
            self._connections.discard(conn)

    def call(self) -> None:
        """Count a call."""
        with self._lock:
            self._calls += 1

    def report(self) -> dict[str, int]:
        """All counts at this moment."""
        with self._lock:
            return {"opened": self._opened, "most_open": self._most_open, "calls": self._calls}


def _is_open(conn: ServerConnection) -> bool:
    """Whether neither side has begun to close: the protocol's state tells of frames, the kernel's of TCP."""
    return conn.protocol.state.name == "OPEN" and _established(conn.socket)


def _established(sock: socket.socket) -> bool:
    option = getattr(socket, "TCP_INFO", None)  # Linux; elsewhere the protocol's state has to do
    if option is None:
        return True
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, option, 1) == b"\x01"  # TCP_ESTABLISHED
    except OSError:  # closed by its own thread
        return False


class OneAtATime(ssl.SSLSocket):
    """A TLS socket on which one thread may read while another sends.

    The server does so, and CPython's own breaks the session then. Calls into OpenSSL take a lock; waiting
    for data is done outside it. (Good for a server: a client also gets session tickets, behind which no data
    may come.)
    """

    def recv(self, *args: Any) -> bytes:
        """Read as `SSLSocket.recv`; TimeoutError after the socket's timeout."""
        while True:
            with self._turn:
                if self.gettimeout() == 0 or self.pending() or self._readable(0):
                    return super().recv(*args)
            if not self._readable(self.gettimeout()):
                raise TimeoutError("timed out")

    def send(self, *args: Any) -> int:
        """Send as `SSLSocket.send`."""
        with self._turn:
            return super().send(*args)

    @property
    def _turn(self) -> Any:
        lock = self.__dict__.get("turn")  # there is no __init__ to make it in: SSLContext makes instances
        return lock if lock is not None else self.__dict__.setdefault("turn", threading.RLock())

    def _readable(self, timeout: float | None) -> bool:
        if self.fileno() < 0:
            raise OSError(errno.EBADF, "the socket is closed")
        return bool(select.select([self], [], [], timeout)[0])


def answer_calls(conn: ServerConnection, counts: Counts) -> None:
    """Answer every ``{"id": n, "text": s}`` with the same and the path it came in on, a little later."""
    from websockets.exceptions import ConnectionClosed

    counts.arrive(conn)
    path = conn.request.path if conn.request is not None else ""
    try:
        for message in conn:
            counts.call()
            time.sleep(random.uniform(0, _SLOWEST))
            conn.send(json.dumps({**json.loads(message), "path": path}))
    except ConnectionClosed:
        return  # the client may end it at any moment
    finally:
        counts.leave(conn)


def listen(port: int, counts: Counts, certificate: str | None = None) -> Server:
    """Serve on a port (0: a free one) in a thread; over TLS if there is a certificate (path of a PEM file).

    Raises:
        OSError: The port is taken.
    """
    from websockets.sync.server import serve

    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        context.sslsocket_class = OneAtATime
    server = serve(
        lambda conn: answer_calls(conn, counts), HOST, port, ssl=context, compression=None, ping_interval=None
    )
    threading.Thread(target=server.serve_forever, name="demo-acceptor", daemon=True).start()
    return server


def say(**figures: int) -> None:
    """Tell the parent."""
    sys.stdout.write(json.dumps(figures) + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    """Serve until stdin ends. Then report and be gone at once, as when killed: connections break."""
    parser = argparse.ArgumentParser(prog="python -m jetsocket.demo_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="port for ws://")
    parser.add_argument("--tls-port", type=int, default=0, help="port for wss://")
    parser.add_argument("--certificate", required=True, help="PEM file with key and certificate chain")
    options = parser.parse_args(arguments)
    for each in (signal.SIGINT, signal.SIGTERM):  # they are the parent's; it ends our stdin then
        signal.signal(each, signal.SIG_IGN)
    counts = Counts()
    plain = listen(options.port, counts)
    secure = listen(options.tls_port, counts, options.certificate)
    say(port=plain.socket.getsockname()[1], tls_port=secure.socket.getsockname()[1])
    sys.stdin.read()
    say(**counts.report())
    os._exit(0)


if __name__ == "__main__":
    main()
