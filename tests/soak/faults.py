"""What goes wrong in a soak: a server that is killed and comes back, proxies that misbehave, and when."""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from tests.faults.proxy import FaultProxy
from tests.servers import LOCALHOST
from tests.soak.plan import OF_THE_SERVER, Gust, weather

_PATIENCE = 60.0  # s that the server has for an answer


class ServerProcess:
    """server.py in a process of its own, on the same two ports each time that it is started."""

    def __init__(self, certificate: str) -> None:
        self._certificate = certificate
        # Bound, never listening: the ports stay ours while the server is down, and refuse.
        self._held = [self._hold(), self._hold()]
        self._process: subprocess.Popen[str] | None = None
        self.opened = self.messages = 0
        self.most: Counter[str] = Counter()

    @staticmethod
    def _hold() -> socket.socket:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((LOCALHOST, 0))
        return sock

    @property
    def ports(self) -> tuple[int, int]:
        """Of ws:// and of wss://."""
        plain, secure = self._held
        return plain.getsockname()[1], secure.getsockname()[1]

    def start(self) -> None:
        """Start it, and return when it listens."""
        plain, secure = self.ports
        command = [sys.executable, "-m", "tests.soak.server", "--certificate", self._certificate]
        command += ["--port", str(plain), "--tls-port", str(secure)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._hear()

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Have it do something; what it has counted in this life."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self._process.stdin.flush()
        return self._hear()

    def stop(self, *, kill: bool = False) -> None:
        """End it, with goodbyes or by SIGKILL; its counts are kept. The second time does nothing."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        self._add(self.ask("report"))
        self._process = None
        if kill:
            process.kill()
        process.stdin.close()
        try:
            process.wait(_PATIENCE)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()

    def close(self) -> None:
        """Stop it and let go of the ports."""
        try:
            self.stop()
        finally:
            for sock in self._held:
                sock.close()

    def _add(self, report: dict[str, Any]) -> None:
        self.opened += report["opened"]
        self.messages += report["messages"]
        self.most |= Counter(report["most"])  # nothing outlives a server, so the larger one counts

    def _hear(self) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        give_up = threading.Timer(_PATIENCE, process.kill)
        give_up.start()
        try:
            line = process.stdout.readline()
        finally:
            give_up.cancel()
        if not line:
            raise RuntimeError("the soak's server has ended by itself")
        told: dict[str, Any] = json.loads(line)
        return told


class Crowd:
    """How many connections one pool has open, counted where they arrive in its proxies.

    The server can't tell: behind a proxy that stalls, a connection that its client has closed stays open.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gates: list[Gate] = []
        self.most = 0

    def count(self) -> None:
        # Any two that show as open here are so at one moment: none is added meanwhile.
        with self.lock:
            self.most = max(self.most, sum(gate.open_now() for gate in self.gates))


class Gate(set[Any]):
    """The links of one proxy."""

    def __init__(self, crowd: Crowd) -> None:
        super().__init__()
        self._crowd = crowd
        crowd.gates.append(self)

    def add(self, link: Any) -> None:
        with self._crowd.lock:
            super().add(link)
        self._crowd.count()

    def open_now(self) -> int:
        """How many have a client that has sent something and not begun to close."""
        return sum(_in_use(link.client) for link in list(self))


def _in_use(sock: socket.socket) -> bool:
    # One on which nothing ever came is no connection: a child that was forked while it was being dialled
    # keeps it open for as long as it lives, though its parent has given it up.
    try:
        told = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO.size)
    except OSError:
        return False
    if len(told) < _INFO.size:
        return told[0] == _ESTABLISHED
    state, received = _INFO.unpack(told)
    return bool(state == _ESTABLISHED and received)


_INFO = struct.Struct("B127xQ")  # tcpi_state, tcpi_bytes_received (linux/tcp.h)
_ESTABLISHED = 1


class WatchedProxy(FaultProxy):
    """A proxy whose clients are counted, whenever one comes or sends something."""

    def __init__(self, port: int, scheme: str, crowd: Crowd) -> None:
        super().__init__(LOCALHOST, port, scheme=scheme)
        self._links = Gate(crowd)
        self._crowd = crowd

    def _await_turn(self, link: Any, direction: str) -> Any:
        if direction == "up":
            self._crowd.count()
        return super()._await_turn(link, direction)


class Weather(threading.Thread):
    """Lets one gust after the other loose until `calm`."""

    def __init__(
        self, seed: int, server: ServerProcess, proxies: list[FaultProxy], tell: Callable[[str], None]
    ) -> None:
        """`tell` hears "trouble" before and "over" after the server is troubled."""
        super().__init__(name="weather")
        self._gusts: Iterator[Gust] = weather(seed)
        self._server, self._proxies, self._tell = server, proxies, tell
        self._calm = threading.Event()
        self.gusts: Counter[str] = Counter()
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            for gust in self._gusts:
                if self._calm.wait(gust.pause):
                    return
                self.gusts[gust.what] += 1
                if gust.what in OF_THE_SERVER:
                    self._trouble_the_server(gust)
                else:
                    self._blow(gust, self._proxies[gust.proxy % len(self._proxies)])
        except BaseException as error:
            self.failed = error

    def calm(self) -> None:
        """End all faults, now and for good."""
        self._calm.set()
        self.join()
        for proxy in self._proxies:
            proxy.resume()

    def _blow(self, gust: Gust, proxy: FaultProxy) -> None:
        direction: Any = gust.direction
        if gust.what in ("cut", "reset"):
            getattr(proxy, gust.what)()
        elif gust.what in ("cut_after", "reset_after"):
            getattr(proxy, gust.what.split("_")[0])(after=gust.amount, direction=direction)
        else:
            if gust.what == "drip":
                proxy.drip(max(1, gust.amount // 100), 0.02, direction)
            elif gust.what == "delay":
                proxy.delay(0.05, direction)
            else:
                getattr(proxy, gust.what)(direction)
            self._calm.wait(gust.seconds)
            proxy.resume()

    def _trouble_the_server(self, gust: Gust) -> None:
        self._tell("trouble")
        if gust.what == "close_all":
            self._server.ask("close_all", code=1001 if gust.direction == "up" else 1011)
        elif gust.what == "cut_all":
            self._server.ask("cut_all")
        else:
            self._server.stop(kill=gust.what == "kill")
            self._calm.wait(gust.seconds)
            self._server.start()
        self._tell("over")
