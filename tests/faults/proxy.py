"""FaultProxy: a TCP proxy between a client and a real server that can misbehave as networks do.

It carries bytes and knows nothing of what they mean, so TLS goes through it too. Every fault is
switched at run time, for one direction or for both: "up" is client to server, "down" server to client.

    with FaultProxy(server.host, server.port) as proxy:
        ...connect to proxy.uri("/path")...
        proxy.stall("down")      # bytes from the server are held back
        proxy.resume()           # and now they arrive
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from tests.servers import LOCALHOST, wait_until

Direction = Literal["up", "down", "both"]
Ending = Literal["cut", "reset"]
CHUNK = 65536


@dataclass(frozen=True)
class Fault:
    """What happens to the bytes of one direction; the default lets them pass."""

    stalled: bool = False
    swallowed: bool = False
    size: int = CHUNK  # bytes forwarded at once
    pause: float = 0.0  # s before each of them


@dataclass
class Fuse:
    """Bytes of `direction` that may still pass before a connection ends in the way of `shutdown`."""

    left: int
    ending: Ending
    direction: Direction


class FaultProxy:
    """A threaded TCP proxy on an ephemeral port of 127.0.0.1; see the module's docstring.

    A fault holds for every connection, present and future, until `resume()`. `cut` and `reset` end
    the present ones and leave later ones alone.

    Args:
        upstream_host, upstream_port: The real server.
        scheme: Of `uri()`: "ws" or "wss".

    Attributes:
        port: Where the proxy listens.
        connections: Connections accepted, ever.
        bytes_up, bytes_down: Bytes forwarded, swallowed ones not counted.
    """

    def __init__(self, upstream_host: str, upstream_port: int, *, scheme: str = "ws") -> None:
        self.upstream = (upstream_host, upstream_port)
        self.scheme = scheme
        self.host = LOCALHOST
        self.connections = self.bytes_up = self.bytes_down = 0
        self._faults = {"up": Fault(), "down": Fault()}
        self._fuse: Fuse | None = None
        self._changed = threading.Condition()  # guards everything here, and tells pumps of changes
        self._links: set[_Link] = set()
        self._stopped = False
        self._listener = socket.create_server((LOCALHOST, 0))
        self.port: int = self._listener.getsockname()[1]
        self._acceptor = threading.Thread(target=self._accept_all, name=f"fault-proxy-{self.port}")

    def uri(self, path: str = "/") -> str:
        """The URI of a path of the real server, through the proxy."""
        return f"{self.scheme}://{self.host}:{self.port}/{path.lstrip('/')}"

    @property
    def open_now(self) -> int:
        """Connections through the proxy that have not ended on both sides."""
        with self._changed:
            return len(self._links)

    def wait_connections(self, count: int, timeout: float = 5.0) -> None:
        """Wait until exactly `count` connections are open through the proxy."""
        wait_until(lambda: self.open_now == count, timeout, f"{count} connections open in the proxy")

    # --- faults

    def stall(self, direction: Direction = "both") -> None:
        """Hold all bytes back, an end of stream too, until `resume()`; nothing is lost."""
        self._set(direction, Fault(stalled=True))

    def drip(self, size: int = 1, seconds: float = 0.1, direction: Direction = "both") -> None:
        """Forward `size` bytes every `seconds`."""
        self._set(direction, Fault(size=size, pause=seconds))

    def delay(self, seconds: float, direction: Direction = "both") -> None:
        """Forward bytes `seconds` after they were read; what comes meanwhile is read after that."""
        self._set(direction, Fault(pause=seconds))

    def black_hole(self, direction: Direction = "both") -> None:
        """Swallow all bytes, an end of stream too; new connections are accepted and go nowhere."""
        self._set(direction, Fault(swallowed=True))

    def resume(self, direction: Direction = "both") -> None:
        """Let bytes pass again, and forget a `cut` or `reset` that has not come to pass."""
        with self._changed:
            self._fuse = None
        self._set(direction, Fault())

    def cut(self, after: int = 0, direction: Direction = "both") -> None:
        """Close every connection now, or the one over which `after` more bytes have gone."""
        self._end("cut", after, direction)

    def reset(self, after: int = 0, direction: Direction = "both") -> None:
        """As `cut`, but with a TCP RST to both sides."""
        self._end("reset", after, direction)

    def half_close(self, direction: Direction = "down") -> None:
        """End one direction of every present connection, as if its sender had shut down its writing side.

        What that sender says later is lost; the other direction goes on.
        """
        with self._changed:
            links = list(self._links)
        for link in links:
            link.half_close(direction)

    def _set(self, direction: Direction, fault: Fault) -> None:
        with self._changed:
            for each in ("up", "down") if direction == "both" else (direction,):
                self._faults[each] = fault
            self._changed.notify_all()

    def _end(self, ending: Ending, after: int, direction: Direction) -> None:
        with self._changed:
            self._fuse = Fuse(after, ending, direction) if after else None
            links = [] if after else list(self._links)
        for link in links:
            link.end(ending)
        for link in links:
            link.join()

    # --- running

    def __enter__(self) -> FaultProxy:
        self._acceptor.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._changed:
            self._stopped = True
        with contextlib.suppress(OSError):  # wakes accept(), which sees that it is over
            socket.create_connection((self.host, self.port), 1).close()
        self._acceptor.join(10)
        self._listener.close()
        self._end("cut", 0, "both")

    def _accept_all(self) -> None:
        while True:
            client, _ = self._listener.accept()
            with self._changed:
                if self._stopped:
                    client.close()
                    return
                self.connections += 1
                link = _Link(self, client)
                self._links.add(link)
                link.start()  # under the lock: whoever finds it there may join it

    # --- asked by the links

    def _is_hole(self) -> bool:
        with self._changed:
            return self._faults["up"].swallowed

    def _gone(self, link: _Link) -> None:
        with self._changed:
            self._links.discard(link)

    def _await_turn(self, link: _Link, direction: str) -> Fault | None:
        """The fault that the next bytes meet, once it lets them go on; None when the link has ended."""
        read_at = monotonic()
        with self._changed:
            while not link.ending:
                fault = self._faults[direction]
                rest = read_at + fault.pause - monotonic()
                if not fault.stalled and rest <= 0:
                    return fault
                self._changed.wait(None if fault.stalled else rest)
            return None

    def _burn(self, direction: str, size: int) -> tuple[int, Ending | None]:
        """How many of `size` bytes may pass, and how the connection ends after them, if it does."""
        with self._changed:
            fuse = self._fuse
            if fuse is None or fuse.direction not in (direction, "both"):
                return size, None
            if size < fuse.left:
                fuse.left -= size
                return size, None
            self._fuse = None
            return fuse.left, fuse.ending

    def _count(self, direction: str, size: int) -> None:
        with self._changed:
            if direction == "up":
                self.bytes_up += size
            else:
                self.bytes_down += size

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Link:
    """One connection through the proxy: two sockets, and a thread for each direction.

    Its sockets don't block: threads wait in poll, beside a wake-up socket, so that no thread sits inside
    recv() or send() when the link ends. The kernel sends no RST for a socket that is still in use.
    """

    def __init__(self, proxy: FaultProxy, client: socket.socket) -> None:
        self.proxy = proxy
        self.client = client
        self.upstream: socket.socket | None = None
        self.ending: Ending | None = None
        self._ended_ways: set[str] = set()  # directions that were half-closed
        self._awake, self._waker = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name=f"fault-proxy-{proxy.port}-link")

    def start(self) -> None:
        self._thread.start()

    def join(self) -> None:
        self._thread.join(10)

    def end(self, ending: Ending) -> None:
        """Make both threads leave, from any thread; the first ending counts."""
        self.ending = self.ending or ending
        with contextlib.suppress(OSError):  # it has ended by itself
            self._waker.send(b"x")
        self.proxy._wake()

    def half_close(self, direction: Direction) -> None:
        """End one direction, or both one by one, from any thread."""
        for way, sink in (("up", self.upstream), ("down", self.client)):
            if sink is not None and direction in (way, "both"):
                self._ended_ways.add(way)
                with contextlib.suppress(OSError):  # it has ended altogether
                    sink.shutdown(socket.SHUT_WR)

    def _run(self) -> None:
        try:
            self._carry()
        finally:
            for sock in (self.client, self.upstream, self._awake, self._waker):
                if sock is not None:
                    self._close(sock)
            self.proxy._gone(self)

    def _carry(self) -> None:
        self.client.setblocking(False)
        if self.proxy._is_hole():
            return self._pump("up", self.client, None)
        try:
            self.upstream = socket.create_connection(self.proxy.upstream, 5)
        except OSError:
            return self.end("reset")
        self.upstream.setblocking(False)
        for sock in (self.client, self.upstream):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        down = threading.Thread(target=self._pump, args=("down", self.upstream, self.client))
        down.start()
        self._pump("up", self.client, self.upstream)
        down.join()

    def _close(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if self.ending == "reset" and sock.family != socket.AF_UNIX:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            else:
                sock.shutdown(socket.SHUT_WR)  # else unread bytes would turn the FIN into an RST
        sock.close()

    def _pump(self, direction: str, source: socket.socket, sink: socket.socket | None) -> None:
        try:
            while self._wait(source, select.POLLIN):
                data = source.recv(CHUNK)
                if not data:
                    return self._end_stream(direction, sink)
                if sink is not None:
                    self._forward(direction, data, sink)
        except OSError:  # one side was reset: the other side is told the same
            self.end("reset")

    def _end_stream(self, direction: str, sink: socket.socket | None) -> None:
        fault = self.proxy._await_turn(self, direction)
        if fault is not None and not fault.swallowed and sink is not None:
            sink.shutdown(socket.SHUT_WR)

    def _forward(self, direction: str, data: bytes, sink: socket.socket) -> None:
        while data:
            fault = self.proxy._await_turn(self, direction)
            if fault is None or fault.swallowed or direction in self._ended_ways:
                return
            allowed, ending = self.proxy._burn(direction, min(fault.size, len(data)))
            self._send(direction, sink, data[:allowed])
            self.proxy._count(direction, allowed)
            if ending is not None:
                return self.end(ending)
            data = data[allowed:]

    def _send(self, direction: str, sink: socket.socket, data: bytes) -> None:
        try:
            while data and self._wait(sink, select.POLLOUT):
                data = data[sink.send(data) :]
        except BrokenPipeError:
            if direction not in self._ended_ways:  # else it was half-closed under our hands
                raise

    def _wait(self, sock: socket.socket, event: int) -> bool:
        """Wait until `sock` is ready; False when the link has ended."""
        poller = select.poll()
        poller.register(sock, event)
        poller.register(self._awake, select.POLLIN)
        poller.poll()
        return self.ending is None
