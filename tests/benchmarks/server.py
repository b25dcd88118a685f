"""The benchmarks' server, a process of its own: pushes frames as fast as they are taken, and echoes."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import itertools
import socket
import struct
import sys
import threading

HOST = "127.0.0.1"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
SIZE = 100  # bytes of a message
BATCH = 100  # frames in one send: the server is not what is measured


def text_frame(payload: bytes) -> bytes:
    """An unmasked text frame of up to 125 bytes (RFC 6455 §5.2)."""
    return struct.pack("!BB", 0x81, len(payload)) + payload


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


def serve(conn: socket.socket) -> None:
    """`/stream`: frames without end. Any other path: read, and answer a close by a close."""
    with conn, contextlib.suppress(OSError):
        conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if upgrade(conn) == "/stream":
            batch = text_frame(b"x" * SIZE) * BATCH
            for _ in itertools.count():
                conn.sendall(batch)
        while data := conn.recv(65536):
            if data[0] & 0x0F == 8:
                conn.sendall(b"\x88\x02\x03\xe8")  # close, 1000
                return


def main() -> None:
    """Serve until stdin ends; the first line on stdout is the port."""
    with socket.create_server((HOST, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        threading.Thread(target=accept_all, args=(listener,), daemon=True).start()
        sys.stdin.read()


def accept_all(listener: socket.socket) -> None:
    """Give each connection a thread."""
    while True:
        try:
            conn, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=serve, args=(conn,), daemon=True).start()


if __name__ == "__main__":
    main()
