"""Redirects of the upgrade: where they lead, how they are written, and what may go there."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.exceptions import HandshakeError
from jetsocket.uris import parse
from jetsocket.wire.redirects import follow, keeps_credentials
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer
from tests.wire.proxies import relay

RawFactory = Callable[..., RawServer]
PoolFactory = Callable[..., ConnectionPool[Any]]

PRIVATE = {"extra_headers": {"X-Token": "tell-nobody"}, "cookie": "sid=tell-nobody"}
NAMES = ("X-Token", "Cookie", "Authorization")


# --- where to


@pytest.mark.parametrize(
    ("uri", "location", "to"),
    [
        ("ws://h/a/b?q", "/c;p?x=1", "ws://h/c;p?x=1"),
        ("ws://h/a/b", "c", "ws://h/a/c"),
        ("ws://h/a/b", "../c", "ws://h/c"),
        ("ws://h/a/b?q", "?r", "ws://h/a/b?r"),
        ("ws://h:81/a", "http://h:81/b", "ws://h:81/b"),
        ("wss://h/a", "https://h:443/b", "wss://h/b"),
        ("wss://h/a", "wss://H/b", "wss://h/b"),
        ("wss://h/a", "//h/b", "wss://h/b"),
        ("wss://[::1]/a", "https://[::1]/b", "wss://[::1]/b"),
        ("ws://h/", "wss://h/", "wss://h/"),
        ("ws://h/", "https://h/x?y", "wss://h/x?y"),
        ("ws://h:8080/", "wss://h:8443/", "wss://h:8443/"),
        # as servers write it
        ("ws://h/", "/ok#top", "ws://h/ok"),
        ("ws://h/a?b", "#top", "ws://h/a?b"),
        ("ws://h/", "ws://h/ok#a?b#c", "ws://h/ok"),
        ("ws://h/", "ws://h#top", "ws://h/"),
        ("ws://h/", "/ok/é", "ws://h/ok/%C3%A9"),
        ("ws://h/", "/ok/%C3%A9", "ws://h/ok/%C3%A9"),
        ("ws://h/", "/東?q=京 都", "ws://h/%E6%9D%B1?q=%E4%BA%AC%20%E9%83%BD"),
        ("ws://h/", "é", "ws://h/%C3%A9"),
        ("ws://h/", "/ok/a b", "ws://h/ok/a%20b"),
        ("ws://h/", "http://h/a b?c d#e f", "ws://h/a%20b?c%20d"),
        ("ws://h/", "/a\u00a0b\u2028c\u0085", "ws://h/a%C2%A0b%E2%80%A8c%C2%85"),
        ("ws://xn--bcher-kva.example/", "//bücher.example/ü", "ws://xn--bcher-kva.example/%C3%BC"),
    ],
)
def test_where_a_redirect_leads(uri: str, location: str, to: str) -> None:
    assert follow(parse(uri), location.encode().decode("latin-1")).uri == to


def test_bytes_that_are_no_utf8_are_encoded_as_they_are() -> None:
    assert follow(parse("ws://h/"), "/ok/\xe9").uri == "ws://h/ok/%E9"


@pytest.mark.parametrize(
    ("uri", "location"),
    [
        ("wss://h/", "ws://h/"),
        ("wss://h/", "http://h/"),
        ("wss://h:80/", "ws://h/"),
        ("wss://h/", "wss://h:444/"),
        ("ws://h/", "ws://h:81/"),
        ("ws://h/", "wss://g/"),
        ("ws://h/", "wss://h.evil.example/"),
        ("ws://h/", "wss://h@evil.example/"),
        ("ws://h/", "ws://h.evil.example/"),
        ("ws://h/", "ws://h@evil.example/"),
        ("ws://h/", "//evil.example/"),
        ("ws://h/", "ftp://h/"),
        ("ws://h/", "http://["),
        ("ws://h/", "http://h:99999/"),
        ("ws://h/", "ws://h b/"),
        ("ws://h/", " //evil.example/"),
        ("ws://h/", "//\xff.example/"),
        ("ws://h/", "/a\tb"),
        ("ws://h/", "/a\x7fb"),
    ],
)
def test_anywhere_else_is_refused(uri: str, location: str) -> None:
    target = parse(uri)
    try:
        new = follow(target, location)
    except ValueError:
        return
    assert new.origin == target.origin  # a mere path


@pytest.mark.parametrize(
    ("old", "new", "kept"),
    [
        ("ws://h/a", "ws://h/b", True),
        ("wss://h:444/a", "wss://h:444/b", True),
        ("ws://h/", "wss://h/", True),
        ("ws://h:8080/", "wss://h:8443/", False),
        ("ws://h:8080/", "wss://h/", False),
        ("ws://h/", "wss://h:8443/", False),
        ("ws://h:80/", "wss://h:80/", False),
        ("ws://h:443/", "wss://h:443/", False),
        ("ws://h/", "wss://g/", False),
        ("wss://h/", "ws://h/", False),
    ],
)
def test_what_keeps_credentials(old: str, new: str, kept: bool) -> None:
    start = parse(old.replace("://", "://alice:pw@"))
    assert keeps_credentials(start, parse(new)) == kept
    if start.secure <= parse(new).secure and start.host == parse(new).host:
        assert follow(start, new).authorization == (start.authorization if kept else None)


def test_userinfo_of_a_location_wins() -> None:
    start = parse("ws://alice:pw@h/a")
    assert follow(start, "ws://bob:pw@h/b").authorization == parse("ws://bob:pw@h/").authorization


# --- over sockets


def redirecting(location: str, asked: list[servers.Upgrade]) -> servers.Script:
    """Redirect `/old` to a location, upgrade everything else."""

    def script(sock: socket.socket) -> None:
        asked.append(servers.read_request(sock))
        if asked[-1].target == "/old":
            head = servers.response("302 Found", [("Location", "{}"), ("Content-Length", "0")])
            sock.sendall(head.replace(b"{}", location.encode()))
            return
        sock.sendall(servers.upgrade_response(asked[-1]))
        servers.hold(sock)

    return script


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/ok#top", "/ok"),
        ("/ok/é", "/ok/%C3%A9"),
        ("/ok/a b", "/ok/a%20b"),
        ("ok?é#é", "/ok?%C3%A9"),
    ],
)
def test_what_is_asked_for_next(raw_server: RawFactory, location: str, target: str) -> None:
    asked: list[servers.Upgrade] = []
    ws = WebSocket()
    ws.connect(raw_server(redirecting(location, asked)).uri_for("/old"), timeout=5)
    ws.shutdown()
    assert [request.target for request in asked] == ["/old", target]


@pytest.mark.parametrize(
    ("locations", "targets"),
    [(["/x", "/x"], ["/", "/x"]), (["/x", "/y"], ["/"])],
)
def test_a_location_that_is_given_twice(
    raw_server: RawFactory, locations: list[str], targets: list[str]
) -> None:
    asked: list[str] = []

    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        asked.append(request.target)
        if request.target == "/":
            sock.sendall(servers.response("302 Found", [("Location", each) for each in locations]))
            return
        sock.sendall(servers.upgrade_response(request))
        servers.hold(sock)

    ws = WebSocket()
    if len(targets) == 1:
        with pytest.raises(HandshakeError, match="the server refused with 302 Found"):
            ws.connect(raw_server(script).uri, timeout=5)
    else:
        ws.connect(raw_server(script).uri, timeout=5)
        ws.shutdown()
    assert asked == targets


def test_from_ws_to_wss_of_the_same_host_without_what_is_private(
    raw_server: RawFactory, make_pool: PoolFactory, echo_tls: EchoServer, tls: Tls
) -> None:
    asked: list[servers.Upgrade] = []
    plain = raw_server(redirecting(echo_tls.uri_for("/new"), asked))
    options = {**PRIVATE, "ssl_context": tls.client_context, "subprotocols": []}
    pool = make_pool(plain.uri.replace("://", "://alice:pw@"), manager_kwargs=options)
    with pool.acquire("/old", 5) as conn:
        assert conn.request({"over": "TLS"}, 5) == {"over": "TLS"}
    assert all(name.lower() in asked[0].headers for name in NAMES)
    servers.wait_until(lambda: echo_tls.requests)
    (request,) = echo_tls.requests
    assert request.path == "/new"
    assert request.headers["Host"] == f"127.0.0.1:{echo_tls.port}"
    assert not any(name in request.headers for name in NAMES)


def test_what_was_left_behind_does_not_come_back(
    raw_server: RawFactory, make_pool: PoolFactory, tls: Tls
) -> None:
    """A second redirect, within the new origin, has nothing to give away any more."""
    there: list[servers.Upgrade] = []
    secure = raw_server(redirecting("/new", there), ssl_context=tls.server_context)
    plain = raw_server(redirecting(secure.uri_for("/old"), []))
    options = {**PRIVATE, "ssl_context": tls.client_context}
    make_pool(plain.uri.replace("://", "://alice:pw@"), manager_kwargs=options).acquire("/old", 5).release()
    assert [request.target for request in there] == ["/old", "/new"]
    assert not any(name.lower() in request.headers for request in there for name in NAMES)


def test_the_new_one_is_verified(raw_server: RawFactory, make_pool: PoolFactory, tls: Tls) -> None:
    secure = raw_server(servers.after_upgrade(), ssl_context=tls.issue("other.example"))
    plain = raw_server(redirecting(secure.uri_for("/new"), []))
    with pytest.raises(ConnectionError, match="certificate"):
        make_pool(plain, manager_kwargs={"ssl_context": tls.client_context}).acquire("/old", 5)


class Net:
    """A proxy behind which `svc.test` has servers on ports of their own choice."""

    def __init__(self) -> None:
        self.ports: dict[str, int] = {}
        self.proxy = ""

    def script(self, sock: socket.socket) -> None:
        request = servers.read_request(sock)
        with socket.create_connection((servers.LOCALHOST, self.ports[request.target]), 5) as server:
            sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            relay(sock, server)


@pytest.fixture
def net(raw_server: RawFactory) -> Net:
    """The net, its proxy running."""
    net = Net()
    net.proxy = raw_server(net.script).uri.replace("ws", "http")
    return net


@pytest.mark.parametrize(
    ("way", "kept"),
    [
        (("ws://svc.test", "https://svc.test/new"), True),
        (("ws://svc.test", "wss://svc.test:8443/new"), False),
        (("ws://svc.test:8080", "wss://svc.test/new"), False),
    ],
)
def test_what_is_private_goes_from_port_80_to_443_only(
    raw_server: RawFactory, tls: Tls, net: Net, way: tuple[str, str], kept: bool
) -> None:
    start, to = way
    with EchoServer(ssl_context=tls.issue("svc.test")) as secure:
        plain = raw_server(redirecting(to, []))
        home, away = parse(start), parse(to.replace("https", "wss"))
        net.ports = {
            f"svc.test:{home.port}": plain.port,
            f"svc.test:{away.port}": secure.port,
        }
        options = {**PRIVATE, "ssl_context": tls.client_context, "proxy": net.proxy}
        home_uri = start.replace("://", "://alice:pw@")
        with (
            ConnectionPool(base_uri=home_uri, manager_kwargs=options) as pool,
            pool.acquire("/old", 5) as conn,
        ):
            assert conn.request({"say": "hello"}, 5) == {"say": "hello"}
        servers.wait_until(lambda: secure.requests)
        (request,) = secure.requests
        assert [name in request.headers for name in NAMES] == [kept] * 3


def test_down_to_ws_is_refused_in_so_many_words(raw_server: RawFactory, tls: Tls, echo: EchoServer) -> None:
    secure = raw_server(redirecting(echo.uri, []), ssl_context=tls.server_context)
    with pytest.raises(HandshakeError, match="another origin, where nothing is encrypted"):
        WebSocket().connect(secure.uri_for("/old"), timeout=5, ssl_context=tls.client_context)
    assert echo.opened == 0


def test_a_circle_over_two_origins_ends(raw_server: RawFactory, tls: Tls) -> None:
    """From wss nothing leads back, so it is the second hop that is refused."""
    asked: list[str] = []
    there = threading.Event()

    def script(sock: socket.socket) -> None:
        asked.append(servers.read_request(sock).target)
        sock.sendall(servers.response("302 Found", [("Location", f"ws://127.0.0.1:{plain.port}/old")]))
        there.set()

    secure = raw_server(script, ssl_context=tls.server_context)
    plain = raw_server(redirecting(secure.uri_for("/old"), []))
    begun = monotonic()
    with pytest.raises(HandshakeError):
        WebSocket().connect(plain.uri_for("/old"), timeout=5, ssl_context=tls.client_context)
    assert there.wait(5) and asked == ["/old"]
    assert monotonic() - begun < 5
