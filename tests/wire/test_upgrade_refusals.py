"""What a server says when it refuses is shown, and the advice does not mislead."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.exceptions import HandshakeError
from jetsocket.wire.headers import Headers
from jetsocket.wire.upgrade_refusals import advice, first_words
from tests import servers
from tests.servers import RawServer

RawFactory = Callable[..., RawServer]
COMPRESS = 'manager_kwargs["compress"] = False'
TOKEN = "s3cr3t-of-the-query"

CHROMIUM = (
    b"Rejected an incoming WebSocket connection from the http://x.test origin. Use the command line flag "
    b"--remote-allow-origins=http://x.test to allow connections from this origin or --remote-allow-origins=* "
    b"to allow all origins."
)
NGINX = (
    b"<html>\r\n<head><title>403 Forbidden</title></head>\r\n<body>\r\n"
    b"<center><h1>403 Forbidden</h1></center>\r\n<hr><center>nginx/1.24.0</center>\r\n</body>\r\n</html>\r\n"
)


def refuse(
    raw_server: RawFactory, status: str, body: bytes = b"", *fields: tuple[str, str], **kwargs: Any
) -> str:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(servers.response(status, [("Content-Length", str(len(body))), *fields], body))

    pool: ConnectionPool[Any] = ConnectionPool(base_uri=raw_server(script).uri, manager_kwargs=kwargs)
    with pool, pytest.raises(HandshakeError) as caught:
        pool.acquire(f"/ws?token={TOKEN}", timeout=10)
    assert caught.value.status_code == int(status[:3])
    assert caught.value.body == body[:4096]
    told = str(caught.value)
    assert told.isprintable() and TOKEN not in told and len(told) < 700
    return told


def test_chromium_names_the_cause(raw_server: RawFactory) -> None:
    told = refuse(raw_server, "403 Forbidden", CHROMIUM, ("Content-Type", "text/html"))
    assert 'refused with 403 Forbidden and says "Rejected an incoming WebSocket connection' in told
    assert "credentials" not in told and "try again" not in told
    assert 'set manager_kwargs["origin"] to one that it takes' in told


def test_go_names_the_cause(raw_server: RawFactory) -> None:
    body = (
        b'WebSocket protocol violation: unsupported permessage-deflate parameter: "server_max_window_bits"\n'
    )
    told = refuse(raw_server, "400 Bad Request", body, ("Content-Type", "text/plain; charset=utf-8"))
    assert 'says "WebSocket protocol violation: unsupported permessage-deflate' in told
    assert COMPRESS in told


@pytest.mark.parametrize("compress", [True, False])
def test_a_400_mentions_compression_if_that_was_offered(raw_server: RawFactory, compress: bool) -> None:
    told = refuse(raw_server, "400 Bad Request", compress=compress)
    assert (COMPRESS in told) is compress
    assert "check the URI and the headers" in told


@pytest.mark.parametrize(
    ("status", "advised", "misleading"),
    [
        ("200 OK", "check the path", "credentials"),
        ("401 Unauthorized", "check the credentials", "try again"),
        ("403 Forbidden", 'manager_kwargs["origin"]', "try again"),
        ("404 Not Found", "check the path", "try again"),
        ("405 Method Not Allowed", "check the path", "try again"),
        ("407 Proxy Authentication Required", "proxy on the way", "try again"),
        ("426 Upgrade Required", "drop the Upgrade header", "another version"),
        ("429 Too Many Requests", "less often", "credentials"),
        ("500 Internal Server Error", "its own log", "try again"),
        ("501 Not Implemented", "check the path", "try again"),
        ("503 Service Unavailable", "try again later", "credentials"),
    ],
)
def test_what_is_advised_where_the_server_says_nothing(
    raw_server: RawFactory, status: str, advised: str, misleading: str
) -> None:
    told = refuse(raw_server, status)
    assert advised in told and misleading not in told
    assert COMPRESS not in told


def test_another_version_of_websocket(raw_server: RawFactory) -> None:
    told = refuse(raw_server, "426 Upgrade Required", b"", ("Sec-WebSocket-Version", "8, 7"))
    assert "another version of WebSocket than 13" in told


@pytest.mark.parametrize("status", ["403 Forbidden", "500 Internal Server Error", "422 Unprocessable"])
def test_what_the_server_says_and_what_to_do_stand_beside_each_other(
    raw_server: RawFactory, status: str
) -> None:
    told = refuse(raw_server, status, b"no room for you\nand more")
    assert (
        f'and says "no room for you"; {advice(int(status[:3]), {}, "", compressed=True, secure=False)}'
        in told
    )


def test_a_body_that_is_long_and_evil_is_cut_and_printable(raw_server: RawFactory) -> None:
    told = refuse(raw_server, "403 Forbidden", b"\x1b[31mred\x1b[0m and " + b"x" * 60_000)
    assert 'says "?[31mred?[0m and xxx' in told and 'x…"; it may want credentials' in told


def test_what_the_body_repeats_of_the_request_is_hidden(raw_server: RawFactory) -> None:
    told = refuse(raw_server, f"403 Forbidden {TOKEN}", f"no {TOKEN} here".encode())
    assert 'says "no *** here"' in told


@pytest.mark.parametrize("spelt", [f"a {TOKEN}", f"<p>{TOKEN}</p>", json.dumps({"message": TOKEN})])
def test_also_in_html_and_json(raw_server: RawFactory, spelt: str) -> None:
    assert "***" in refuse(raw_server, "403 Forbidden", spelt.encode())


def test_half_a_secret_where_the_body_is_cut(raw_server: RawFactory) -> None:
    lead = b"\n" * (4096 - 10)
    told = refuse(raw_server, "403 Forbidden", lead + b"ab" + TOKEN.encode())
    assert TOKEN[:8] not in told and 'says "ab***"' in told


def test_a_cookie_that_is_set_is_not_shown(raw_server: RawFactory) -> None:
    told = refuse(raw_server, "403 No", b"your session is abcdef123", ("Set-Cookie", "sid=abcdef123; Path=/"))
    assert "abcdef123" not in told


# --- the first words


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b"", "", ""),
        (b"\r\n  \r\n first\tline \r\nsecond", "text/plain", "first line"),
        (b"Forbidden\nby the rules", "text/plain", "by the rules"),
        (b"Forbidden.", "text/plain", ""),
        (NGINX, "text/html", "nginx/1.24.0"),
        (b"<style>p {}</style><!-- x --><p>It&#39;s <b>closed", "text/html", "It's"),
        (b"<script>var x", "text/html", ""),
        (b"<" * 4096, "text/html", ""),
        (b'{"error": {"code": 7, "message": "bad symbol"}}', "application/json", "bad symbol"),
        (b'{"detail": [{"loc": ["x"], "msg": "field required"}]}', "application/json", "field required"),
        (b'{\n  "code": 7,\n  "status": "no"\n}', "application/json", '{ "code": 7, "status": "no" }'),
        (b'{"message": "cut o', "application/json", '{"message": "cut o'),
        (b"[" * 4096, "application/json", "[" * 4096),
        ("Zugriff verweigert: Schlüssel".encode("latin-1"), "text/plain", "Zugriff verweigert: Schlüssel"),
        ("アクセス拒否".encode("shift_jis"), "text/plain; charset=Shift_JIS", "アクセス拒否"),
        ("половина".encode()[:-1], "text/plain", "половин"),
        (b"plain", "text/plain; charset=zlib_codec", "plain"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "image/png", ""),
        (bytes(range(32)) * 4, "", ""),
    ],
)
def test_first_words(body: bytes, kind: str, words: str) -> None:
    assert first_words(body, Headers([("Content-Type", kind)]), "403 Forbidden") == words


def test_a_compressed_body_is_not_shown() -> None:
    headers = Headers([("Content-Encoding", "gzip"), ("Content-Type", "text/plain")])
    assert first_words(gzip.compress(b"no"), headers) == ""


def test_every_status_has_an_end_to_its_sentence() -> None:
    for status in range(200, 600):
        for said in ("", "it says so"):
            told = advice(status, {}, said, compressed=True, secure=True)
            assert told
            assert not told.endswith((";", " "))


def test_a_server_that_misses_a_subprotocol_is_offered_one() -> None:
    told = advice(400, {}, "missing subprotocol", compressed=True, secure=True)
    assert told == 'offer one that it knows in manager_kwargs["subprotocols"]'
