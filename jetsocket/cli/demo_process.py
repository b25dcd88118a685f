"""The demo's server as a process of its own: started, stopped and started again."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from typing import NamedTuple

from jetsocket.cli.demo_server import HOST

PATHS = ("/orders", "/quotes", "/trades", "/news")
"""What the demo calls on its server."""

_START_PATIENCE = 30.0  # s for the server to listen


class Sighting(NamedTuple):
    """What the server counted, over all of its lives."""

    opened: int
    most_open: int


class ServerProcess:
    """demo_server.py in a process of its own, on the same two ports each time that it is started."""

    def __init__(self, certificate: str) -> None:
        """Nothing is started yet; `certificate` is the path of a PEM file."""
        self._certificate = certificate
        self._process: subprocess.Popen[str] | None = None
        self._held: list[socket.socket] = []
        self._reports: list[dict[str, int]] = []
        self._ports = (self._hold_port(), self._hold_port())

    def _hold_port(self) -> int:
        """Choose a free port. On Linux it stays bound: while the server listens on it, and while it is down.

        Else a client that dials the port while nobody listens there might get it as its own.
        """
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((HOST, 0))
        port: int = sock.getsockname()[1]
        if sys.platform == "linux":
            self._held.append(sock)
        else:
            sock.close()
        return port

    @property
    def uris(self) -> list[str]:
        """Each path over ws:// and over wss://."""
        plain, secure = self._ports
        bases = (f"ws://{HOST}:{plain}", f"wss://{HOST}:{secure}")
        return [base + path for path in PATHS for base in bases]

    def start(self) -> None:
        """Start it, and return when it listens.

        Raises:
            RuntimeError: It does not.
        """
        plain, secure = self._ports
        command = [sys.executable, "-m", "jetsocket.cli.demo_server", "--certificate", self._certificate]
        command += ["--port", str(plain), "--tls-port", str(secure)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._hear()

    def stop(self) -> None:
        """Stop it at once: its connections break. What it counted is kept. The second time does nothing."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.close()
            self._reports.append(self._hear())
        finally:
            self._process = None
            process.kill()
            process.wait()
            process.stdout.close()

    def _hear(self) -> dict[str, int]:
        """Read the line that the server writes next."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        give_up = threading.Timer(_START_PATIENCE, process.kill)
        give_up.daemon = True
        give_up.start()
        try:
            line = process.stdout.readline()
        finally:
            give_up.cancel()
        if not line:
            raise RuntimeError(f"the demo's server ended or was silent for {_START_PATIENCE:g} s")
        told: dict[str, int] = json.loads(line)
        return told

    def seen(self) -> Sighting:
        """What was counted until the last stop; nothing outlives a stop, so `most_open` is the larger one."""
        return Sighting(
            sum(report["opened"] for report in self._reports),
            max((report["most_open"] for report in self._reports), default=0),
        )

    def close(self) -> None:
        """Stop it and let go of the ports."""
        try:
            self.stop()
        finally:
            for sock in self._held:
                sock.close()


@contextlib.contextmanager
def running() -> Iterator[tuple[ServerProcess, ssl.SSLContext]]:
    """A running server, its certificate made on the spot, and a context that trusts it."""
    import trustme

    authority = trustme.CA()
    context = ssl.create_default_context()
    authority.configure_trust(context)
    with tempfile.TemporaryDirectory(prefix="jetsocket-demo-") as directory:
        certificate = os.path.join(directory, "server.pem")  # private: the directory has mode 0700
        authority.issue_cert(HOST).private_key_and_cert_chain_pem.write_to_path(certificate)
        server = ServerProcess(certificate)
        try:
            server.start()
            yield server, context
        finally:
            server.close()
