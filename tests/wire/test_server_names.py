"""Whom a connection is made to, as TLS knows it: `server_hostname`."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jetsocket import ConnectionPool, exceptions, uris
from jetsocket.wire.websocket import WebSocket
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer
from tests.wire.proxies import http_proxy

RawFactory = Callable[..., RawServer]
PoolFactory = Callable[..., ConnectionPool[Any]]


class Named:
    """A TLS server whose certificate is for one name; `asked` are the names that SNI said."""

    def __init__(self, tls: Tls, name: str) -> None:
        self.asked: list[str] = []
        self.context = tls.issue(name)
        self.context.sni_callback = self._note
        self.server = EchoServer(ssl_context=self.context)

    def _note(self, _sock: ssl.SSLObject, name: str | None, _context: ssl.SSLContext) -> None:
        if name is not None:
            self.asked.append(name)

    @property
    def hosts(self) -> list[str]:
        """The Host headers that came."""
        return [request.headers["Host"] for request in self.server.requests]


@pytest.fixture
def named(tls: Tls) -> Iterator[Callable[[str], Named]]:
    """A factory of running servers for one name each."""
    with contextlib.ExitStack() as stack:

        def make(name: str) -> Named:
            made = Named(tls, name)
            stack.enter_context(made.server)
            return made

        yield make


@pytest.fixture
def through_unix(tmp_path: Path) -> Iterator[Callable[[EchoServer], str]]:
    """A factory of Unix sockets that lead to a server: dialling one asks nobody for an address."""
    with contextlib.ExitStack() as stack:

        def carry(listener: socket.socket, server: EchoServer) -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as sock:
                servers_side = stack.enter_context(socket.create_connection((server.host, server.port), 5))
                threads = [
                    threading.Thread(target=pump, args=pair)
                    for pair in ((sock, servers_side), (servers_side, sock))
                ]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

        def make(server: EchoServer) -> str:
            path = str(tmp_path / "s")
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(path)
            listener.listen()
            listener.settimeout(5)
            thread = threading.Thread(target=carry, args=(listener, server))
            thread.start()
            stack.callback(thread.join)
            return path

        yield make


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Carry bytes one way, the end of them too."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def greets(pool: ConnectionPool[Any]) -> bool:
    with pool.acquire("/", 5) as conn:
        return bool(conn.request({"say": "hello"}, 5) == {"say": "hello"})


# --- what TLS is told of a URI's host


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("svc.test.", "svc.test"),
        ("svc.test", "svc.test"),
        ("fe80::1%eth0", "fe80::1"),
        ("::1", "::1"),
        ("127.0.0.1", "127.0.0.1"),
    ],
)
def test_how_certificates_name_a_host(host: str, name: str) -> None:
    assert uris.tls_name(host) == name


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("wss://svc.test./", "svc.test"),
        ("wss://[fe80::1%25eth0]/", "fe80::1"),
        ("wss://[fe80::1%25eth0]:444/", "fe80::1"),
    ],
)
def test_dot_and_zone_are_for_this_machine_only(
    named: Callable[[str], Named],
    tls: Tls,
    through_unix: Callable[[EchoServer], str],
    uri: str,
    name: str,
) -> None:
    peer = named(name)
    ws = WebSocket()
    ws.connect(uri, timeout=5, ssl_context=tls.client_context, unix=through_unix(peer.server))
    ws.close()
    assert peer.asked == ([] if ":" in name else [name])
    assert peer.hosts == [uri.removeprefix("wss://").removesuffix("/").replace("%25eth0", "")]


@pytest.mark.slow
def test_they_are_no_way_around_the_certificate(
    named: Callable[[str], Named], tls: Tls, through_unix: Callable[[EchoServer], str]
) -> None:
    path = through_unix(named("svc.test").server)
    with pytest.raises(exceptions.ConnectionError, match="certificate"):
        WebSocket().connect("wss://other.test./", timeout=5, ssl_context=tls.client_context, unix=path)


# --- server_hostname


@pytest.mark.parametrize("given", ["svc.test", "SVC.test.", "svc.test."])
def test_an_address_is_dialled_and_a_name_verified(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory, given: str
) -> None:
    peer = named("svc.test")
    options = {"ssl_context": tls.client_context, "server_hostname": given}
    assert greets(make_pool(peer.server, manager_kwargs=options))
    assert peer.asked == ["svc.test"]
    assert peer.hosts == [f"127.0.0.1:{peer.server.port}"]


def test_without_it_the_address_is_verified(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory
) -> None:
    pool = make_pool(named("svc.test").server, manager_kwargs={"ssl_context": tls.client_context})
    with pytest.raises(exceptions.ConnectionError, match="certificate"):
        pool.acquire("/", 5)


def test_another_name_than_the_certificate_s(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory
) -> None:
    peer = named("127.0.0.1")
    options = {"ssl_context": tls.client_context, "server_hostname": "svc.test"}
    with pytest.raises(exceptions.ConnectionError, match=r"as svc\.test.*certificate"):
        make_pool(peer.server, manager_kwargs=options).acquire("/", 5)
    assert peer.asked == ["svc.test"]


@pytest.mark.parametrize("given", ["192.0.2.1", "2001:db8::1", "[2001:db8::1]", "fe80::1%25eth0"])
def test_an_address_has_no_sni(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory, given: str
) -> None:
    peer = named(given.strip("[]").partition("%")[0])
    options = {"ssl_context": tls.client_context, "server_hostname": given}
    assert greets(make_pool(peer.server, manager_kwargs=options))
    assert peer.asked == []


def test_a_context_that_checks_no_names_says_it_all_the_same(
    named: Callable[[str], Named], make_pool: PoolFactory
) -> None:
    peer = named("svc.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    options = {"ssl_context": context, "server_hostname": "router.test"}
    assert greets(make_pool(peer.server, manager_kwargs=options))
    assert peer.asked == ["router.test"]
    assert not context.check_hostname


def test_over_a_unix_socket(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory, through_unix: Callable[[EchoServer], str]
) -> None:
    peer = named("svc.test")
    path = through_unix(peer.server)
    options = {"ssl_context": tls.client_context, "server_hostname": "svc.test", "unix": path}
    pool = make_pool("wss://localhost", manager_kwargs=options)
    assert greets(pool)
    pool.close()
    assert (peer.asked, peer.hosts) == (["svc.test"], ["localhost"])


def test_through_a_proxy(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory, raw_server: RawFactory
) -> None:
    peer, asked = named("svc.test"), list[str]()
    proxy = raw_server(http_proxy(asked)).uri.replace("ws", "http")
    options = {"ssl_context": tls.client_context, "server_hostname": "svc.test", "proxy": proxy}
    assert greets(make_pool(peer.server, manager_kwargs=options))
    assert asked == [f"CONNECT 127.0.0.1:{peer.server.port}"]
    assert peer.asked == ["svc.test"]


def test_it_is_for_the_pool_s_own_origin(
    named: Callable[[str], Named], tls: Tls, make_pool: PoolFactory
) -> None:
    """As headers are: another server is not to be taken for this one."""
    peer, other = named("svc.test"), named("127.0.0.1")
    options = {"ssl_context": tls.client_context, "server_hostname": "svc.test"}
    pool = make_pool(peer.server, manager_kwargs=options)
    pool.acquire(other.server.uri, 5).release()
    assert other.asked == []
    options["cross_origin_headers"] = True
    pool = make_pool(peer.server, manager_kwargs=options)
    with pytest.raises(exceptions.ConnectionError, match="certificate"):
        pool.acquire(other.server.uri, 5)


def test_it_is_not_used_for_ws(make_pool: PoolFactory, echo: EchoServer) -> None:
    assert greets(make_pool(echo, manager_kwargs={"server_hostname": "svc.test"}))
    assert echo.requests[0].headers["Host"] == f"127.0.0.1:{echo.port}"
