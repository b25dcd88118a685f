"""The benchmarks' server, a process of its own that costs next to nothing.

What it sends was encoded before, and goes out in blocks; of what comes it reads only the frame heads.
Paths, on a plain port and on a TLS one:

- `/stream/N`: text messages of N B without end; `/json`: the same message of about 100 B without end.
- `/sink`: reads and forgets.
- `/fragments/N`: answers any message by one of N B, in fragments of 1 KiB.
- `/late/N`: sends each short message back after N ms.
- `/topics`: answers `{"id": …, "subscribe": T}` by `{"id": …, "topic": T}`; and one with `"push": M` and
  `"topics": N` by its id and M messages, one for each topic from 0 to N - 1 by turns.
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

    def __init__(self, conn: socket.socket, path: str, due: Due | None) -> None:
        super().__init__(conn, path, None)
        self.due = due

    def serve(self) -> None:
        data = self.conn.recv(1 << 20)
        if not data:
            raise ConnectionResetError("the client has closed")
        data, self.head = self.head + data, b""
        start, replies = 0, list[bytes]()
        while len(data) - start >= 6 and len(data) >= (end := start + 6 + (data[start + 1] & 0x7F)):
            assert end - start < 6 + 126, "short messages only"
            opcode, payload = data[start] & 0x0F, unmasked(data[start + 6 : end], data[start + 2 : start + 6])
            if opcode < CLOSE:
                replies.append(frame(opcode, payload))
            else:
                self.control(opcode, payload)
            start = end
        self.head = data[start:]
        if replies and self.due is None:
            self.conn.sendall(b"".join(replies))
        elif replies and self.due is not None:
            self.due.add(self, b"".join(replies))

    def control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.conn.sendall(frame(PONG, payload))
        elif opcode == CLOSE:
            self.conn.sendall(frame(CLOSE, payload))
            raise ConnectionResetError("closed")


class Due:
    """What is to be sent after a while, always the same: in order, so however many connections wait."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.waiting: deque[tuple[float, LateAnswerer, bytes]] = deque()

    def add(self, answerer: LateAnswerer, replies: bytes) -> None:
        self.waiting.append((monotonic() + self.delay, answerer, replies))

    def take(self, now: float) -> dict[LateAnswerer, list[bytes]]:
        """What is due, by connection."""
        ready: dict[LateAnswerer, list[bytes]] = {}
        while self.waiting and self.waiting[0][0] <= now:
            _, answerer, replies = self.waiting.popleft()
            ready.setdefault(answerer, []).append(replies)
        return ready


def topics(conn: socket.socket) -> None:
    """Serve one connection of subscriptions."""
    data = b""
    with conn, contextlib.suppress(OSError):
        while received := conn.recv(1 << 20):
            data += received
            while len(data) >= 6 and len(data) >= (end := 6 + (data[1] & 0x7F)):
                opcode, payload = data[0] & 0x0F, unmasked(data[6:end], data[2:6])
                data = data[end:]
                if opcode == TEXT:
                    conn.sendall(b"".join(told(json.loads(payload))))
                elif opcode in (PING, CLOSE):
                    conn.sendall(frame(PONG if opcode == PING else CLOSE, payload))


def told(message: dict[str, int]) -> list[bytes]:
    """What answers one message of a connection of subscriptions."""
    if "subscribe" in message:
        return [text_of({"id": message["id"], "topic": message["subscribe"]})]
    pushed = [text_of({"topic": topic, "data": {"price": "43210.10"}}) for topic in range(message["topics"])]
    return [text_of({"id": message["id"]}), *(pushed * (message["push"] // message["topics"]))]


def text_of(value: object) -> bytes:
    return frame(TEXT, json.dumps(value).encode())


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
        self.due: dict[int, Due] = {}
        threading.Thread(target=self.run, daemon=True).start()

    def due_after(self, milliseconds: int) -> Due | None:
        """What is sent after that; None: at once."""
        return self.due.setdefault(milliseconds, Due(milliseconds / 1000)) if milliseconds else None

    def add(self, answerer: Answerer) -> None:
        self.all[answerer.conn] = answerer
        self.selector.register(answerer.conn, selectors.EVENT_READ, answerer)

    def close_some(self, count: int, path: str) -> None:
        """Say goodbye to `count` connections to that path."""
        found = [conn for conn, answerer in list(self.all.items()) if answerer.path == path]
        for conn in found[:count]:
            with contextlib.suppress(OSError):
                conn.sendall(frame(CLOSE, b"\x03\xe9"))  # 1001

    def run(self) -> None:
        while True:
            next_due = [each.waiting[0][0] for each in list(self.due.values()) if each.waiting]
            wait = max(0.0, min(0.1, min(next_due) - monotonic())) if next_due else 0.1
            # A connection that is added meanwhile is seen after 0.1 s.
            for key, _ in self.selector.select(wait):
                try:
                    key.data.serve()
                except OSError:
                    self.drop(key.data)
            for each in list(self.due.values()):
                for answerer, replies in each.take(monotonic()).items():
                    try:
                        answerer.conn.sendall(b"".join(replies))
                    except OSError:
                        self.drop(answerer)

    def drop(self, answerer: Answerer) -> None:
        if self.all.pop(answerer.conn, None) is not None:
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
    elif what == "topics":
        start(topics, conn)
    else:
        if what == "close":
            answerers.close_some(int(rest[0]), "/" + rest[1])
        if what == "late":
            answerers.add(LateAnswerer(conn, path, answerers.due_after(int(rest[0]))))
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
