"""Small proxies for tests: scripts for `RawServer` that do what a client asks, and note what it asked."""

from __future__ import annotations

import base64
import ipaddress
import select
import socket
from collections.abc import Callable

from tests.servers import Script, Upgrade, read_exactly, read_request


def relay(client: socket.socket, server: socket.socket) -> None:
    """Carry bytes both ways until one side ends."""
    other = {client: server, server: client}
    while True:
        for sock in select.select([client, server], [], [])[0]:
            data = sock.recv(65536)
            if not data:
                return
            other[sock].sendall(data)


def answering(answer: bytes, asked: list[Upgrade] | None = None) -> Script:
    """An HTTP proxy that gives this answer to CONNECT; after a 2xx, and what is behind it, it is a tunnel."""

    def script(sock: socket.socket) -> None:
        request = read_request(sock)
        if asked is not None:
            asked.append(request)
        host, port = request.target.rsplit(":", 1)
        with socket.create_connection((host.strip("[]"), int(port)), 5) as server:
            sock.sendall(answer)
            relay(sock, server)

    return script


def http_proxy(asked: list[str], *, user: str = "", byte_by_byte: bool = False) -> Script:
    """An HTTP proxy that knows CONNECT; `user` is "name:password"."""

    def script(sock: socket.socket) -> None:
        request = read_request(sock)
        asked.append(f"{request.method} {request.target}")
        expected = "Basic " + base64.b64encode(user.encode()).decode()
        if user and request.headers.get("proxy-authorization") != expected:
            sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 2\r\n\r\nno")
            return
        host, port = request.target.rsplit(":", 1)
        with socket.create_connection((host.strip("[]"), int(port)), 5) as server:
            answer = b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n"
            for start in range(0, len(answer), 1 if byte_by_byte else len(answer)):
                sock.sendall(answer[start : start + 1] if byte_by_byte else answer)
            relay(sock, server)

    return script


def socks_proxy(
    asked: list[str], *, user: str = "", refuses: Callable[[str, socket.socket], bytes] | None = None
) -> Script:
    """A SOCKS proxy for versions 4, 4a and 5 (RFC 1928, RFC 1929); `user` is "name:password".

    What `refuses` returns for a host is sent, and the connection closed; b"" lets it through.
    """

    def script(sock: socket.socket) -> None:
        version = read_exactly(sock, 1)[0]
        host, port = _socks4(sock) if version == 4 else _socks5(sock, user)
        asked.append(f"socks{version} {host}:{port}")
        if refuses is not None and (refusal := refuses(host, sock)):
            sock.sendall(refusal)
            return
        with socket.create_connection((host, port), 5) as server:
            sock.sendall(b"\0\x5a" + bytes(6) if version == 4 else b"\x05\0\0\x01" + bytes(6))
            relay(sock, server)

    return script


def _socks4(sock: socket.socket) -> tuple[str, int]:
    _, *port = read_exactly(sock, 3)
    address = read_exactly(sock, 4)
    _until_nul(sock)
    named = address[:3] == b"\0\0\0"
    host = _until_nul(sock) if named else str(ipaddress.ip_address(address))
    return host, port[0] << 8 | port[1]


def _socks5(sock: socket.socket, user: str) -> tuple[str, int]:
    read_exactly(sock, read_exactly(sock, 1)[0])
    sock.sendall(b"\x05\x02" if user else b"\x05\0")
    if user:
        read_exactly(sock, 1)
        given = ":".join(_counted(sock) for _ in range(2))
        sock.sendall(b"\x01\0" if given == user else b"\x01\x01")
        if given != user:
            raise EOFError("wrong credentials")
    kind = read_exactly(sock, 4)[3]
    if kind == 3:
        host = _counted(sock)
    else:
        host = str(ipaddress.ip_address(read_exactly(sock, 4 if kind == 1 else 16)))
    port = read_exactly(sock, 2)
    return host, port[0] << 8 | port[1]


def _counted(sock: socket.socket) -> str:
    return read_exactly(sock, read_exactly(sock, 1)[0]).decode()


def _until_nul(sock: socket.socket) -> str:
    text = b""
    while not text.endswith(b"\0"):
        text += read_exactly(sock, 1)
    return text[:-1].decode()
