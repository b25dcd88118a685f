"""What answers in place of an HTTP server is refused at its first bytes, and named."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from time import monotonic

import pytest

from jetsocket.exceptions import ConnectionError, HandshakeError
from jetsocket.wire.not_http import can_be_http, first_line, guess
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer

RawFactory = Callable[..., RawServer]
DEADLINE = 30.0  # s; never waited for

# The first bytes, what they are guessed to be, and the remedy.
GREETINGS: dict[str, tuple[bytes, str, str]] = {
    "SMTP": (b"220 mail.example ESMTP Postfix\r\n", "SMTP", "check host and port"),
    "SMTP that complains": (b"521 mail.example does not accept mail\r\n", "SMTP", "check host and port"),
    "FTP": (b"220 (vsFTPd 3.0.5)\r\n", "FTP", "check host and port"),
    "a lone code": (b"220 hello", "SMTP, FTP or the like", "check host and port"),
    "SSH": (b"SSH-2.0-OpenSSH_9.6\r\n", "SSH", "check host and port"),
    "Redis": (b"-ERR wrong number of arguments for 'get' command\r\n", "Redis", "check host and port"),
    "Redis that is protected": (b"-DENIED Redis is running in protected mode\r\n", "Redis", "check host"),
    "POP3": (b"+OK ready\r\n", "POP3", "check host and port"),
    "IMAP": (b"* OK IMAP4rev1\r\n", "IMAP", "check host and port"),
    "MySQL": (b"\x4a\x00\x00\x00\x0a8.0.36\x00" + bytes(60), "MySQL", "check host and port"),
    "MySQL that refuses": (
        b"\x45\x00\x00\x00\xff\x6a\x04Host is not allowed",
        "MySQL",
        "check host and port",
    ),
    "PostgreSQL": (b"E\x00\x00\x00\x8fSFATAL\x00VFATAL\x00", "PostgreSQL", "check host and port"),
    "AMQP": (b"AMQP\x00\x00\x09\x01", "AMQP", "check host and port"),
    "VNC": (b"RFB 003.008\n", "VNC", "check host and port"),
    "NATS": (b'INFO {"server_id":"x"}\r\n', "NATS", "check host and port"),
    "memcached": (b"ERROR\r\n", "memcached", "check host and port"),
    "HTTP/2": (b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64", "HTTP/2", "HTTP/1.1"),
    "HTTP/2 that goes away": (b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + bytes(8), "HTTP/2", "HTTP/1.1"),
    "a TLS alert": (b"\x15\x03\x01\x00\x02\x02\x46", "TLS", "does it want wss://?"),
    "HTTP/2 in letters": (b"HTTP/2 200 OK\r\n\r\n", "another version of HTTP", "HTTP/1.1"),
    "lower case": (b"http/1.1 200 OK\r\n\r\n", "something like HTTP", "HTTP/1.1"),
    "Shoutcast": (b"ICY 200 OK\r\n", "Shoutcast", "check host and port"),
    "RTSP": (b"RTSP/1.0 400 Bad Request\r\n", "RTSP", "check host and port"),
}
STRANGE: dict[str, tuple[bytes, str]] = {
    "an empty line": (b"\r\n", "it begins with an empty line"),
    "one before the answer": (b"\r\nHTTP/1.1 200 OK\r\n\r\n", "it begins with an empty line"),
    "a status that is none": (b"HTTP/1.1 000 OK\r\n\r\n", 'it says "HTTP/1.1 000 OK"'),
    "HTTP/0.9": (b"<html><body>hello</body></html>\n", 'it says "<html><body>hello</body></html>"'),
    "JSON": (b'{"hello": 1}\n', 'it says "{"hello": 1}"'),
    "control characters": (b"\x1b[31mhello, this is red\r\n", 'it says "?[31mhello, this is red"'),
    "a long line": (b"x" * 60_000, 'it says "' + "x" * 199 + '…"'),
    "no text": (bytes([0xFE, 0xFF, 0, 1] * 20), "what it sends is no text"),
    "a status line with letters": (b"HTTP/1.1 OK\r\n", 'it says "HTTP/1.1 OK"'),
    "a status of two digits": (b"HTTP/1.1 20 OK\r\nX: y\r\n", 'it says "HTTP/1.1 20 OK"'),
}


def says(data: bytes, *, first: bool = False) -> servers.Script:
    """Send `data`, at once or when the request has come, and hold the connection."""

    def script(sock: socket.socket) -> None:
        if not first:
            servers.read_request(sock)
        sock.sendall(data)
        servers.hold(sock)

    return script


def refused(uri: str, **options: object) -> str:
    start = monotonic()
    with pytest.raises(HandshakeError) as caught:
        WebSocket().connect(uri, timeout=DEADLINE, **options)  # type: ignore[arg-type]
    assert monotonic() - start < DEADLINE / 2
    assert caught.value.status_code is None
    told = str(caught.value)
    assert told.isprintable() and len(told) < 500
    assert "did not answer in HTTP" in told
    return told


@pytest.mark.slow
@pytest.mark.parametrize(("data", "kind", "remedy"), GREETINGS.values(), ids=GREETINGS)
@pytest.mark.parametrize("first", [False, True])
def test_a_greeting_is_refused_at_once_and_named(
    raw_server: RawFactory, data: bytes, kind: str, remedy: str, first: bool
) -> None:
    told = refused(raw_server(says(data, first=first)).uri)
    assert f"seems to be {kind}" in told
    assert remedy in told.rpartition(";")[2]


@pytest.mark.parametrize(("data", "shown"), STRANGE.values(), ids=STRANGE)
def test_what_is_no_http_and_nothing_known_is_refused_at_once(
    raw_server: RawFactory, data: bytes, shown: str
) -> None:
    assert shown in refused(raw_server(says(data)).uri)


def test_one_that_comes_drop_by_drop_is_refused_at_its_first_drops(raw_server: RawFactory) -> None:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        servers.drip(sock, b"SSH-2.0-" + b"x" * 10_000, 0.01)

    assert "SSH" in refused(raw_server(script).uri)


def test_a_line_feed_in_what_is_no_text_ends_no_line(
    raw_server: RawFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.wire.upgrade._GREETING_PATIENCE", 5.0)  # s, for a busy machine
    greeting, _, _ = GREETINGS["MySQL"]

    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        servers.drip(sock, greeting, 0.01)

    assert "seems to be MySQL" in refused(raw_server(script).uri)


def test_over_tls_http_2_is_told_with_alpn(raw_server: RawFactory, tls: Tls) -> None:
    server = raw_server(says(GREETINGS["HTTP/2"][0]), ssl_context=tls.server_context)
    told = refused(server.uri, ssl_context=tls.client_context)
    assert "HTTP/2" in told and "ALPN http/1.1" in told


@pytest.mark.parametrize("answer", [b"GET /?token=s3cr3t-token HTTP/1.1\r\n", b"GET /?token=s3cr3t-t"])
def test_an_echo_shows_no_secret(raw_server: RawFactory, answer: bytes) -> None:
    told = refused(raw_server(says(answer)).uri_for("/?token=s3cr3t-token"))
    assert "s3cr3t" not in told and "repeats what was sent" in told


def test_half_a_secret_at_the_end_of_what_came_is_not_shown(raw_server: RawFactory) -> None:
    told = refused(raw_server(says(b"who is s3cr3t-to")).uri_for("/?token=s3cr3t-token"))
    assert "s3cr3t" not in told and 'it says "who is ***"' in told


# --- ws:// to a port of wss://


def test_ws_to_a_port_that_speaks_tls(tls: Tls) -> None:
    with EchoServer(ssl_context=tls.server_context) as server:
        with pytest.raises(ConnectionError, match=r"does it want wss://\?") as caught:
            WebSocket().connect(server.uri.replace("wss://", "ws://"), timeout=DEADLINE)
        assert not isinstance(caught.value.__cause__, ssl.SSLError)


def resets(sock: socket.socket) -> None:
    servers.read_request(sock)
    servers.reset(sock)


@pytest.mark.parametrize("ends", [resets, lambda sock: servers.read_request(sock) and None])
def test_ws_to_one_that_hangs_up(raw_server: RawFactory, ends: servers.Script) -> None:
    with pytest.raises(ConnectionError, match=r"does it want wss://\?"):
        WebSocket().connect(raw_server(ends).uri, timeout=DEADLINE)


def test_wss_to_one_that_hangs_up_is_not_asked_for_wss(raw_server: RawFactory, tls: Tls) -> None:
    server = raw_server(lambda sock: servers.read_request(sock) and None, ssl_context=tls.server_context)
    with pytest.raises(ConnectionError) as caught:
        WebSocket().connect(server.uri, timeout=DEADLINE, ssl_context=tls.client_context)
    assert "wss://?" not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        (b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"),
        (
            b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\nConnection: close\r\n\r\n<html>\r\n"
            b"<head><title>400 The plain HTTP request was sent to HTTPS port</title></head>\r\n"
        ),
    ],
    ids=["Go", "nginx"],
)
def test_ws_to_a_tls_port_that_answers_in_plain_http(raw_server: RawFactory, answer: bytes) -> None:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(answer)

    with pytest.raises(HandshakeError, match=r"HTTPS.*; does it want wss://\?"):
        WebSocket().connect(raw_server(script).uri, timeout=DEADLINE)


# --- the functions


@pytest.mark.parametrize("data", [b"", b"H", b"HTTP/", b"HTTP/1.", b"HTTP/1.1 200"])
def test_what_can_become_http(data: bytes) -> None:
    assert can_be_http(data)


@pytest.mark.parametrize("data", [b"h", b"\n", b" HTTP/1.1", b"HTTP/2", b"HTTP/1 ", b"\x00"])
def test_what_cannot(data: bytes) -> None:
    assert not can_be_http(data)


def test_a_guess_needs_enough_bytes() -> None:
    assert guess(b"SS", secure=False)[0] == ""
    assert first_line(b"one\r\ntwo") == "one"
    assert first_line("grüß dich\n".encode("latin-1")) == "grüß dich"


def test_one_that_greets_and_resets_is_named_all_the_same(raw_server: RawFactory) -> None:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(b"SSH-2")
        servers.reset(sock)

    with pytest.raises(ConnectionError) as caught:
        WebSocket().connect(raw_server(script).uri, timeout=DEADLINE)
    # The kernel may throw away what came before the reset: then there is nothing to name.
    assert "SSH" in str(caught.value) or "reset" in str(caught.value)


def test_one_that_greets_and_ends_is_named_all_the_same(raw_server: RawFactory) -> None:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(b"SSH-2")

    assert "SSH" in refused(raw_server(script).uri)
