"""`jetsocket check`: each step, and what is seen in it. What it says of failures is in test_errors.py.

Also tests: `steps`, `certificates`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from jetsocket.cli.certificates import TlsFacts, days_left, facts_of
from jetsocket.cli.check import better, speaks_tls
from jetsocket.cli.exits import Outcome
from jetsocket.uris import parse
from tests.cli.terminal import run
from tests.conftest import Tls
from tests.servers import (
    EchoServer,
    RawServer,
    answer_close,
    read_request,
    refusing_port,
    response,
    upgrade,
    wait_until,
)
from tests.wire.proxies import http_proxy

pytestmark = pytest.mark.usefixtures("no_proxy_from_outside")


def names(lines: list[str]) -> list[str]:
    return [line.split()[1] for line in lines[1:]]


def test_each_step_with_its_time(echo: EchoServer) -> None:
    ran = run("check", echo.uri)
    assert (ran.code, ran.err) == (0, "")
    assert ran.lines[0] == f"{echo.uri}/"
    assert names(ran.lines) == ["dns", "proxy", "tcp", "upgrade", "ping", "close"]
    assert all(line.startswith("ok  ") for line in ran.lines[1:])
    assert "101, no subprotocol, no extensions, server Python/" in ran.lines[4]
    assert ran.lines[-1].endswith("  1000")
    assert (echo.opened, echo.pings) == (1, 1)  # all of it is one connection
    wait_until(lambda: not echo.open_now)


def test_tls_is_told_with_its_certificate(tls: Tls, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    tls.ca.cert_pem.write_to_path(str(authority))
    with EchoServer(ssl_context=tls.issue("localhost", "127.0.0.1")) as server:
        ran = run("check", server.uri, "--ca", str(authority))
        steps = run("check", server.uri, "-k", "--json").records
    assert ran.code == 0
    line = ran.lines[4]
    assert "TLSv1.3, certificate for localhost, 127.0.0.1, chain " in line
    assert "days left" in line and " < " in line
    step = next(record for record in steps if record.get("name") == "tls")
    assert step["names"] == ["localhost", "127.0.0.1"] and step["protocol"] == "TLSv1.3"
    assert step["days_left"] > 0 and step["chain"]


def test_subprotocol_extensions_and_alpn(echo_server: Callable[..., EchoServer]) -> None:
    server = echo_server(subprotocols=["chat"], compression="deflate")
    line = run("check", server.uri, "--subprotocol", "chat").lines[4]
    assert "subprotocol chat, extensions permessage-deflate" in line
    line = run("check", echo_server().uri, "--subprotocol", "a", "--subprotocol", "b").lines[4]
    assert "none of the subprotocols that were offered (a, b)" in line


def test_what_json_shows(echo: EchoServer) -> None:
    ran = run("check", echo.uri, "--json")
    assert [(record["type"], record.get("name")) for record in ran.records] == [
        *(("step", name) for name in ("dns", "proxy", "tcp", "upgrade", "ping", "close")),
        ("summary", None),
    ]
    assert all(list(record)[:4] == ["type", "name", "ok", "seconds"] for record in ran.records[:-1])
    with refusing_port() as port:
        ran = run("check", f"ws://127.0.0.1:{port}", "--json")
    assert [record["type"] for record in ran.records[-3:]] == ["step", "error", "summary"]
    assert ran.records[-3]["ok"] is False and ran.records[-1] == {"type": "summary", "ok": False, "exit": 3}


def test_through_a_proxy(echo: EchoServer) -> None:
    with RawServer(http_proxy([])) as proxy:
        ran = run("check", echo.uri, "--proxy", f"http://127.0.0.1:{proxy.port}")
    assert ran.code == 0
    assert names(ran.lines) == ["dns", "tcp", "proxy", "upgrade", "ping", "close"]
    assert f"connects to 127.0.0.1:{echo.port}" in ran.lines[3]


def test_a_proxy_that_refuses(echo: EchoServer) -> None:
    def refuse(sock: socket.socket) -> None:
        sock.recv(4096)
        sock.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")

    with RawServer(refuse) as proxy:
        ran = run("check", echo.uri, "--proxy", f"http://user:s3cret@127.0.0.1:{proxy.port}")
    assert ran.code == 3
    assert ran.lines[-1].startswith("FAIL  proxy")
    assert "s3cret" not in ran.err and "407" in ran.err


def test_a_redirect_is_told(echo: EchoServer) -> None:
    def lead_on(sock: socket.socket) -> None:
        if read_request(sock).target == "/old":
            sock.sendall(response("302 Found", [("Location", "/new")]))
            return
        sock.sendall(response("404 Not Found"))

    with RawServer(lead_on) as server:
        ran = run("check", server.uri_for("/old"))
    assert ran.code == 4
    assert names(ran.lines) == ["dns", "proxy", "tcp", "upgrade"] * 2
    assert f"redirected to {server.uri_for('/new')}" in ran.lines[4]


def test_no_pong_is_exit_5_and_it_closes_all_the_same(raw_server: Callable[..., RawServer]) -> None:
    def pongless(sock: socket.socket) -> None:
        upgrade(sock)
        answer_close(sock)

    ran = run("check", raw_server(pongless).uri, "-t", "50ms")
    assert ran.code == 5
    assert names(ran.lines)[-2:] == ["ping", "close"]
    assert ran.lines[-2].startswith("FAIL") and ran.lines[-1].startswith("ok")
    assert "it answers no pings" in ran.err


def test_over_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        ran = run("check", "ws://localhost/", "--unix", str(path))
    assert ran.code == 3 and names(ran.lines) == ["dns", "tcp"]


# --- decisions


def test_what_another_look_finds() -> None:
    outcome = Outcome(4, "closed", "does it want wss?")
    target = parse("ws://h:8080/a?token=x")
    assert better(outcome, target, tls_there=False) is outcome
    found = better(outcome, target, tls_there=True)
    assert (found.exit, found.cause) == (4, "closed")
    assert "write wss://h:8080/a?token=***" in found.remedy
    assert better(outcome, parse("wss://h"), tls_there=True) is outcome


def test_whether_tls_is_spoken(tls: Tls, echo: EchoServer) -> None:
    with EchoServer(ssl_context=tls.server_context) as server:
        assert speaks_tls(server.host, server.port)
    assert not speaks_tls(echo.host, echo.port)


@pytest.mark.parametrize(
    ("expires", "days"),
    [(86400 * 3 + 1, 3), (86400, 1), (86399, 0), (-1, -1), (-86401, -1), (-2 * 86401, -2)],
)
def test_days_left(expires: float, days: int) -> None:
    assert days_left(1e9 + expires, 1e9) == days


def test_facts_in_one_line() -> None:
    facts = TlsFacts("TLSv1.3", "http/1.1", ["a", "b", "c", "d", "e"], ["leaf", "root"], 86400.0 * 10)
    assert (
        facts.shown(0)
        == "TLSv1.3, certificate for a, b, c, d …, chain leaf < root, 10 days left, ALPN http/1.1"
    )
    assert "expired 5 days ago" in facts.shown(86400.0 * 15)
    assert TlsFacts(None, None, ["h"], [], None).shown(0) == "certificate for h"  # it was rejected
    ended = TlsFacts(None, None, [], [], 1e9)
    for now, told in (
        (1e9 + 60, "expired less than a day ago"),
        (1e9 + 86_460, "expired 1 day ago"),
        (1e9 + 2 * 86_460, "expired 2 days ago"),
        (1e9 - 86_460, "1 day left"),
        (1e9 - 60, "0 days left"),
    ):
        assert ended.shown(now) == told


def test_a_session_that_has_not_begun_tells_nothing() -> None:
    context = ssl.create_default_context()
    session = context.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="h")
    assert facts_of(session) == TlsFacts(None, None, [], [], None)
