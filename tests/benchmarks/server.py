"""The benchmarks' server, a process of its own that costs next to nothing.

What it sends was encoded before, and goes out in blocks; of what comes it reads only the frame heads.
Paths, on a plain port and on a TLS one:

- `/stream/N`: text messages of N B without end; `/json`: the same message of about 100 B without end.
- `/sink`: reads and forgets.
- `/fragments/N`: answers any message by one of N B, in fragments of 1 KiB.
- any other: answers any message by a text message of the same length, a ping by a pong, a close by a close.
- `/close/N/NAME`: as any other, and the server closes N of the connections to `/NAME`.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import selectors
import socket
import ssl
import struct
import sys
import threading
from collections import deque
from time import monotonic

from tests.benchmarks.machine import pin, raise_descriptor_limit

HOST = "127.0.0.1"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
BLOCK = 65536  # B sent at once, at least
FRAGMENT = 1024  # B
MESSAGE = json.dumps(
    {"symbol": "BTCUSDT", "price": "43210.10", "quantity": 0.5, "time": 1700000000000, "maker": True}
)
HEAD_TIMEOUT = 10.0  # s
TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


def frame(opcode: int, payload: bytes, *, fin: bool = True) -> bytes:
    """An unmasked frame (RFC 6455 §5.2)."""
    first, length = opcode | (0x80 if fin else 0), len(payload)
    if length < 126:
        return struct.pack("!BB", first, length) + payload
    if length < 65536:
        return struct.pack("!BBH", first, 126, length) + payload
    return struct.pack("!BBQ", first, 127, length) + payload


@functools.lru_cache
def reply(length: int) -> bytes:
    """The answer to a message of that length."""
    return frame(TEXT, b"x" * length)


@functools.lru_cache
def fragments(length: int) -> bytes:
    """A text message in fragments."""
    pieces = [b"x" * min(FRAGMENT, length - start) for start in range(0, length, FRAGMENT)]
    return b"".join(
        frame(0 if number else TEXT, piece, fin=number == len(pieces) - 1)
        for number, piece in enumerate(pieces)
    )


def block(payload: bytes) -> bytes:
    """Many frames of the same message."""
    one = frame(TEXT, payload)
    return one * (BLOCK // len(one) + 1)


def upgrade(conn: socket.socket) -> str:
    """Do the server's side of the opening handshake; the path that was asked for."""
    head = b""
    while b"\r\n\r\n" not in head:
        data = conn.recv(4096)
        if not data:
            raise ConnectionError("no request")
        head += data
    lines = head.decode("latin-1").split("\r\n")
    key = next(
        line.split(":", 1)[1].strip() for line in lines if line.lower().startswith("sec-websocket-key:")
    )
    accept = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
    conn.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        + f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
    )
    return lines[0].split()[1]


class Answerer:
    """One connection whose messages are answered."""

    def __init__(self, conn: socket.socket, path: str, fragments_of: int | None) -> None:
        self.conn = conn
        self.path = path
        self.fragments_of = fragments_of
        self.head = b""  # the beginning of a frame
        self.opcode = self.length = self.missing = 0

    def serve(self) -> None:
        """Take what is there, and answer the frames that end in it.

        Raises:
            OSError: The connection is over.
        """
        data = self.conn.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the client has closed")
        while data:
            if self.missing:
                data, self.missing = data[self.missing :], max(0, self.missing - len(data))
                if not self.missing:
                    self.answer(b"")
            else:
                data = self.begin(self.head + data)

    def begin(self, data: bytes) -> bytes:
        """Read the head of a frame; return what follows. The payload of a control frame is taken whole."""
        self.head = b""
        size = {126: 8, 127: 14}.get(data[1] & 0x7F, 6) if len(data) > 1 else 2
        if len(data) < size:
            self.head = data
            return b""
        self.opcode, self.length = data[0] & 0x0F, data[1] & 0x7F
        if self.length > 125:
            self.length = int.from_bytes(data[2 : size - 4], "big")
        if self.opcode < CLOSE and self.length:
            self.missing = self.length
            return data[size:]
        if len(data) < size + self.length:
            self.head = data
            return b""
        key = data[size - 4 : size]
        self.answer(bytes(byte ^ key[i % 4] for i, byte in enumerate(data[size : size + self.length])))
        return data[size + self.length :]

    def answer(self, control: bytes) -> None:
        """Answer the frame that has just ended."""
        if self.opcode == PING:
            self.conn.sendall(frame(PONG, control))
        elif self.opcode == CLOSE:
            self.conn.sendall(frame(CLOSE, control))
            raise ConnectionResetError("closed")
        elif self.opcode != PONG:
            length = self.fragments_of
            self.conn.sendall(reply(self.length) if length is None else fragments(length))


class LateAnswerer(Answerer):
    """One connection whose short messages are sent back after a while, in order."""

    def __init__(self, conn: socket.socket, path: str, delay: float) -> None:
        super().__init__(conn, path, None)
        self.delay = delay
        self.due: deque[tuple[float, bytes]] = deque()

    def serve(self) -> None:
        data = self.conn.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the client has closed")
        data, self.head = self.head + data, b""
        now = monotonic()
        while len(data) >= 6 and len(data) >= (end := 6 + (data[1] & 0x7F)):
            assert end < 6 + 126, "short messages only"
            self.take(data[0] & 0x0F, unmasked(data[6:end], data[2:6]), now)
            data = data[end:]
        self.head = data
        if not self.delay:
            self.send_due(now)

    def take(self, opcode: int, payload: bytes, now: float) -> None:
        if opcode < CLOSE:
            self.due.append((now + self.delay, frame(opcode, payload)))
        elif opcode == PING:
            self.conn.sendall(frame(PONG, payload))
        elif opcode == CLOSE:
            self.conn.sendall(frame(CLOSE, payload))
            raise ConnectionResetError("closed")

    def send_due(self, now: float) -> None:
        """Send all whose time has come, together."""
        ready = []
        while self.due and self.due[0][0] <= now:
            ready.append(self.due.popleft()[1])
        if ready:
            self.conn.sendall(b"".join(ready))


def unmasked(payload: bytes, key: bytes) -> bytes:
    """A client's payload as it was (RFC 6455 §5.3)."""
    size = len(payload)
    mask = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(mask, "big")).to_bytes(size, "big")


class Answerers:
    """All connections that are answered, in one thread."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.all: dict[socket.socket, Answerer] = {}
        self.late: list[LateAnswerer] = []
        threading.Thread(target=self.run, daemon=True).start()

    def add(self, answerer: Answerer) -> None:
        self.all[answerer.conn] = answerer
        if isinstance(answerer, LateAnswerer):
            self.late.append(answerer)
        self.selector.register(answerer.conn, selectors.EVENT_READ, answerer)

    def close_some(self, count: int, path: str) -> None:
        """Say goodbye to `count` connections to that path."""
        found = [conn for conn, answerer in list(self.all.items()) if answerer.path == path]
        for conn in found[:count]:
            with contextlib.suppress(OSError):
                conn.sendall(frame(CLOSE, b"\x03\xe9"))  # 1001

    def run(self) -> None:
        while True:
            due = min((each.due[0][0] for each in self.late if each.due), default=monotonic() + 0.1)
            # A connection that is added meanwhile is seen after 0.1 s.
            for key, _ in self.selector.select(max(0.0, min(0.1, due - monotonic()))):
                try:
                    key.data.serve()
                except OSError:
                    self.drop(key.data)
            now = monotonic()
            for answerer in self.late.copy():
                try:
                    answerer.send_due(now)
                except OSError:
                    self.drop(answerer)

    def drop(self, answerer: Answerer) -> None:
        self.all.pop(answerer.conn, None)
        if isinstance(answerer, LateAnswerer):
            self.late.remove(answerer)
        self.selector.unregister(answerer.conn)
        answerer.conn.close()


def push(conn: socket.socket, data: bytes) -> None:
    """Send the same for ever."""
    with conn, contextlib.suppress(OSError):
        while True:
            conn.sendall(data)


def swallow(conn: socket.socket) -> None:
    """Read for ever."""
    buffer = bytearray(1 << 18)
    with conn, contextlib.suppress(OSError):
        # Not woken for each message: waking it would be the greater part of what a client's send takes.
        conn.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, BLOCK)
        while conn.recv_into(buffer):
            pass


def greet(conn: socket.socket, answerers: Answerers) -> None:
    """Upgrade, and hand the connection to whoever serves its path."""
    path = upgrade(conn)
    conn.settimeout(None)
    _, what, *rest = path.split("/")
    if what == "stream":
        start(push, conn, block(b"x" * int(rest[0])))
    elif what == "json":
        start(push, conn, block(MESSAGE.encode()))
    elif what == "sink":
        start(swallow, conn)
    else:
        if what == "close":
            answerers.close_some(int(rest[0]), "/" + rest[1])
        if what == "late":
            answerers.add(LateAnswerer(conn, path, int(rest[0]) / 1000))
        else:
            answerers.add(Answerer(conn, path, int(rest[0]) if what == "fragments" else None))


def start(serve: object, *arguments: object) -> None:
    threading.Thread(target=serve, args=arguments, daemon=True).start()  # type: ignore[arg-type]


def accept_all(listener: socket.socket, context: ssl.SSLContext | None, answerers: Answerers) -> None:
    """Accept, encrypt and upgrade one after the other: no thread has to be made for that."""
    while True:
        conn, _ = listener.accept()
        try:
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            conn.settimeout(HEAD_TIMEOUT)
            if context is not None:
                conn = context.wrap_socket(conn, server_side=True)
            greet(conn, answerers)
        except (OSError, ValueError, StopIteration):
            conn.close()


def main() -> None:
    """Serve until stdin ends. Argument: a PEM file with key and certificate. First line out: both ports."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[1])
    answerers = Answerers()
    with (
        socket.create_server((HOST, 0), backlog=512) as plain,
        socket.create_server((HOST, 0), backlog=512) as tls,
    ):
        start(accept_all, plain, None, answerers)
        start(accept_all, tls, context, answerers)
        print(json.dumps([plain.getsockname()[1], tls.getsockname()[1]]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    pin("server")
    raise_descriptor_limit()
    main()
