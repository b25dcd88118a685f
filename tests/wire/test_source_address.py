"""From where a connection is made: addresses and ports of this machine, and `source_address`."""

from __future__ import annotations

import contextlib
import errno
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, exceptions
from jetsocket.wire.dns import Address
from jetsocket.wire.source_address import SourceError, bind, explained, reachable_from
from tests import servers
from tests.servers import EchoServer, RawServer, open_sockets, wait_until
from tests.wire.proxies import http_proxy

RawFactory = Callable[..., RawServer]
PoolFactory = Callable[..., ConnectionPool[Any]]

ELSEWHERE = "203.0.113.7"  # of RFC 5737: no machine has it
V4 = Address(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))
V6 = Address(socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("2001:db8::1", 80, 0, 0))


def greets(pool: ConnectionPool[Any]) -> bool:
    with pool.acquire("/", 5) as conn:
        return bool(conn.request({"say": "hello"}, 5) == {"say": "hello"})


# --- by itself


@pytest.mark.parametrize(
    ("source", "left"),
    [
        (None, [V6, V4]),
        (("", 0), [V6, V4]),
        (("", 4711), [V6, V4]),
        (("127.0.0.1", 0), [V4]),
        (("::1", 0), [V6]),
        (("fe80::1%lo", 0), [V6]),
    ],
)
def test_addresses_of_one_family(source: tuple[str, int] | None, left: list[Address]) -> None:
    assert list(reachable_from(source, [V6, V4])) == left


def test_where_there_are_none_of_that_family_each_may_say_so() -> None:
    assert list(reachable_from(("::1", 0), [V4])) == [V4]
    assert list(reachable_from(("127.0.0.1", 0), [V6])) == [V6]


@pytest.mark.parametrize("source", [("127.0.0.2", 0), ("", 0)])
def test_a_socket_is_bound(source: tuple[str, int]) -> None:
    with socket.socket() as sock:
        bind(sock, socket.AF_INET, source)
        host, port = sock.getsockname()
        assert host == (source[0] or "0.0.0.0")
        assert port > 0
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_a_port_can_be_used_again_at_once() -> None:
    port = free_port()
    with socket.socket() as sock:
        bind(sock, socket.AF_INET, (servers.LOCALHOST, port))
        assert sock.getsockname() == (servers.LOCALHOST, port)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)


def test_a_unix_socket_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        bind(sock, socket.AF_UNIX, ("127.0.0.1", 4711))
        assert sock.getsockname() == ""


@pytest.mark.parametrize("host", ["::1", ELSEWHERE, "fe80::1%nowhere"])
def test_what_can_not_be_bound_is_named_and_the_socket_let_go(host: str) -> None:
    sock = socket.socket()
    try:
        with pytest.raises(SourceError, match="source_address") as caught:
            bind(sock, socket.AF_INET, (host, 0))
        assert host in str(caught.value)
        cause = caught.value.__cause__
        assert isinstance(cause, OSError)
        assert cause.__traceback__ is None  # its frames would keep the socket
    finally:
        sock.close()


@pytest.mark.parametrize("number", [errno.EADDRINUSE, errno.EADDRNOTAVAIL])
def test_a_connect_that_the_source_has_spoilt(number: int) -> None:
    error = explained(("127.0.0.1", 7), OSError(number, "no"))
    assert isinstance(error, SourceError)
    assert (error.errno, str(error.strerror)) == (number, "source_address ('127.0.0.1', 7): no")
    assert explained(("127.0.0.1", 8), error) is error  # once is enough


def test_one_that_it_has_not() -> None:
    refused = ConnectionRefusedError(errno.ECONNREFUSED, "no")
    assert explained(("127.0.0.1", 7), refused) is refused
    in_use = OSError(errno.EADDRINUSE, "no")
    assert explained(None, in_use) is in_use


# --- over a pool


@pytest.fixture
def noting(raw_server: RawFactory) -> tuple[RawServer, list[Any]]:
    """A server that upgrades, and the addresses that its clients come from."""
    came: list[Any] = []

    def script(sock: socket.socket) -> None:
        came.append(sock.getpeername())
        servers.upgrade(sock)
        servers.answer_close(sock)

    return raw_server(script), came


@pytest.mark.parametrize("source", [("127.0.0.1", 0), ["127.0.0.2", 0], ("", 0)])
def test_where_from(noting: tuple[RawServer, list[Any]], make_pool: PoolFactory, source: Any) -> None:
    server, came = noting
    pool = make_pool(server, manager_kwargs={"source_address": source})
    leases = [pool.acquire("/", 5) for _ in range(3)]
    for lease in leases:
        lease.release()
    assert {host for host, _ in came} == {source[0] or "127.0.0.1"}
    assert len(set(came)) == 3  # port 0 is any


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind((servers.LOCALHOST, 0))
        return int(sock.getsockname()[1])


def test_a_port_of_one_s_own_one_connection_after_another(
    noting: tuple[RawServer, list[Any]], make_pool: PoolFactory
) -> None:
    server, came = noting
    source = (servers.LOCALHOST, free_port())
    pool = make_pool(server, manager_kwargs={"source_address": source})
    pool.acquire("/", 5).release()
    with pytest.raises(exceptions.ConnectionError, match="source_address"):
        make_pool(server, manager_kwargs={"source_address": source}).acquire("/", 5)  # it is in use
    pool.close()
    wait_until(lambda: not server.open_now)
    assert came == [source]


def test_ipv6(make_pool: PoolFactory) -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no ::1")
    came: list[Any] = []

    def serve() -> None:
        with listener.accept()[0] as sock, contextlib.suppress(EOFError, OSError):
            came.append(sock.getpeername()[0])
            servers.upgrade(sock)
            servers.answer_close(sock)

    with listener:
        port = listener.getsockname()[1]
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            pool = make_pool(f"ws://[::1]:{port}", manager_kwargs={"source_address": ("::1", 0)})
            pool.acquire("/", 5).release()
            pool.close()
        finally:
            thread.join(5)
    assert came == ["::1"]


def test_only_addresses_of_its_family_are_tried(
    noting: tuple[RawServer, list[Any]], make_pool: PoolFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, came = noting
    found = [
        (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", server.port, 0, 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (server.host, server.port)),
    ]
    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest: found if host == "both.test" else real(host, *rest)
    )
    options = {"source_address": ("127.0.0.2", 0)}
    make_pool(f"ws://both.test:{server.port}", manager_kwargs=options).acquire("/", 5).release()
    assert [host for host, _ in came] == ["127.0.0.2"]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ((ELSEWHERE, 0), f"{ELSEWHERE}.*(?i:cannot assign)"),
        (("2001:db8::7", 0), "2001:db8::7.*an IPv6 address"),
        (("fe80::1%nowhere", 0), "fe80::1%nowhere"),
    ],
)
def test_one_that_is_no_way_to_the_server(
    echo: EchoServer, make_pool: PoolFactory, source: tuple[str, int], why: str
) -> None:
    before = open_sockets()
    pool = make_pool(echo, manager_kwargs={"source_address": source})
    with pytest.raises(
        exceptions.ConnectionError, match=f"source_address.*{why}.*one of this machine's"
    ) as caught:
        pool.acquire("/", 5)
    assert isinstance(caught.value.__cause__, OSError)
    assert pool.stats().connect_errors == 1
    assert open_sockets() == before
    assert echo.opened == 0


def test_a_port_in_use(echo: EchoServer, make_pool: PoolFactory) -> None:
    with socket.socket() as taken:
        taken.bind((servers.LOCALHOST, 0))
        taken.listen()
        pool = make_pool(echo, manager_kwargs={"source_address": taken.getsockname()})
        with pytest.raises(exceptions.ConnectionError, match="source_address") as caught:
            pool.acquire("/", 5)
    assert getattr(caught.value.__cause__, "errno", None) in (errno.EADDRINUSE, None)


def test_also_to_a_proxy(echo: EchoServer, make_pool: PoolFactory, raw_server: RawFactory) -> None:
    came: list[Any] = []
    relaying = http_proxy([])

    def script(sock: socket.socket) -> None:
        came.append(sock.getpeername()[0])
        relaying(sock)

    proxy = raw_server(script).uri.replace("ws", "http")
    options = {"proxy": proxy, "source_address": ("127.0.0.3", 0)}
    assert greets(make_pool(echo, manager_kwargs=options))
    assert came == ["127.0.0.3"]
