"""Behind nginx and haproxy: idle limits that drop TCP without a word, and restarts."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection
from jetsocket.exceptions import ConnectionClosedError, ConnectionError, HandshakeError, PoolExhaustedError
from tests import servers
from tests.books import faults
from tests.conftest import Tls
from tests.faults.test_network import restart_under_load
from tests.servers import LOCALHOST, EchoServer, wait_until

pytestmark = pytest.mark.integration

Pool = ConnectionPool[Any]

LIMIT = 3.0  # s without traffic, after which the proxy drops a connection
ENOUGH = 10.0  # s, for what is to succeed

NGINX = """
{user}
daemon off;
worker_processes 1;
pid {dir}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{port}{ssl};
        {certificate}
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection "upgrade";
            proxy_read_timeout {limit:.0f}s;
        }}
    }}
}}
"""

HAPROXY = """
global
    maxconn 256
defaults
    mode http
    timeout connect 3s
    retries 0
    timeout client 10s
    timeout server 10s
    timeout tunnel {limit:.0f}s
frontend front
    bind 127.0.0.1:{port}{ssl}
    default_backend back
backend back
    server only 127.0.0.1:{upstream}
"""


class Front(NamedTuple):
    """A running proxy, and the server behind it."""

    name: str
    uri: str
    echo: EchoServer
    process: subprocess.Popen[bytes]


def command(name: str, directory: Path, port: int, upstream: int, pem: Path | None) -> list[str]:
    """Write the configuration of a proxy; what starts it."""
    program = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if program is None:
        pytest.skip(f"needs {name} (Debian: {name})")
    given = {"dir": directory, "port": port, "upstream": upstream, "limit": LIMIT}
    config = directory / f"{name}.conf"
    if name == "nginx":
        user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""  # else a directive without meaning
        certificate = f"ssl_certificate {pem}; ssl_certificate_key {pem};" if pem else ""
        ssl = " ssl" if pem else ""
        config.write_text(NGINX.format(user=user, certificate=certificate, ssl=ssl, **given))
        return [program, "-e", "stderr", "-p", str(directory), "-c", str(config)]
    config.write_text(HAPROXY.format(ssl=f" ssl crt {pem}" if pem else "", **given))
    return [program, "-db", "-f", str(config)]


def answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, f"it did not start:\n{log.read_text()}"
    with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, port), 1):
        return True
    return False


@pytest.fixture(params=["nginx", "haproxy"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["ws", "wss"])
def scheme(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def front(name: str, scheme: str, tmp_path: Path, tls: Tls, echo: EchoServer) -> Iterator[Front]:
    """A proxy in front of `echo`; with wss it ends TLS, and speaks plainly to the server."""
    pem = None
    if scheme == "wss":
        pem = tmp_path / "cert.pem"
        tls.ca.issue_cert(LOCALHOST).private_key_and_cert_chain_pem.write_to_path(str(pem))
    log = tmp_path / "log"
    with socket.socket() as reserved, log.open("wb") as output:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # theirs to listen on, nobody else's
        reserved.bind((LOCALHOST, 0))
        port = reserved.getsockname()[1]
        process = subprocess.Popen(
            command(name, tmp_path, port, echo.port, pem), stdout=output, stderr=output, cwd=tmp_path
        )
        try:
            wait_until(lambda: answers(port, process, log), ENOUGH, f"{name} listens")
            yield Front(name, f"{scheme}://{LOCALHOST}:{port}/", echo, process)
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def pool_to(tls: Tls) -> Iterator[Callable[..., Pool]]:
    """A factory of pools; at the end their books must be in order, and none of their sockets left."""
    before = servers.open_sockets()
    with contextlib.ExitStack() as stack:

        def make(front: Front, **config: Any) -> Pool:
            kwargs = {"ssl_context": tls.client_context, "close_timeout": 1.0}
            pool: Pool = ConnectionPool(
                ConnectionPoolConfig(**config), base_uri=front.uri, manager_kwargs=kwargs
            )
            stack.callback(lambda: check_books(pool))
            return pool

        yield make
    wait_until(lambda: servers.open_sockets() <= before, message="no socket of a pool is left")


def check_books(pool: Pool) -> None:
    try:
        assert pool.stats().active_connections == 0
        assert faults(pool) == []
    finally:
        pool.close()


def check_whole(pool: Pool) -> None:
    """As many leases as there may be at once, each answered."""
    size = pool.config.max_connections
    with contextlib.ExitStack() as stack:
        for number in range(size):
            lease = stack.enter_context(pool.acquire("/", timeout=ENOUGH))
            assert lease.request([number], ENOUGH) == [number]
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", timeout=0)
    assert pool.stats().idle_connections == size


def test_messages_pass(front: Front, pool_to: Callable[..., Pool]) -> None:
    pool = pool_to(front, max_connections=4)
    check_whole(pool)
    for size in (0, 1000, 1 << 20):
        assert pool.request("/", {"pad": "x" * size}, timeout=ENOUGH) == {"pad": "x" * size}
    with pool.acquire("/", timeout=ENOUGH) as conn:
        assert 0 < conn.ping(ENOUGH) < ENOUGH
    assert pool.stats().total_connections == 4
    assert front.echo.most_open <= 4


def wait_for_a_message(conn: PooledConnection[Any], ended: list[tuple[ConnectionClosedError, float]]) -> None:
    """Wait for one that does not come; note what comes instead, and when (s)."""
    start = monotonic()
    try:
        conn.recv_raw()
    except ConnectionClosedError as error:
        ended.append((error, monotonic() - start))


def keep_asking(pool: Pool, until: float) -> None:
    """The most recently used connection answers all; the others fall silent."""
    calls = 0
    while monotonic() < until:
        assert pool.request("/", [calls], timeout=ENOUGH) == [calls]
        calls += 1


def test_the_idle_limit(front: Front, pool_to: Callable[..., Pool]) -> None:
    """Without pings the proxy drops what is silent; with them, connections outlive the limit."""
    plain = pool_to(front, max_connections=4, health_check_interval=60)
    pinged = pool_to(front, max_connections=2, health_check_interval=1)
    unused = pool_to(front, max_connections=2, health_check_interval=60)
    ended: list[tuple[ConnectionClosedError, float]] = []
    with plain.acquire("/", timeout=ENOUGH) as reader, pinged.acquire("/", timeout=ENOUGH) as lent:
        assert (plain.prewarm("/", 3), unused.prewarm("/", 2)) == (3, 2)
        assert lent.request([1], ENOUGH) == [1]
        with pinged.acquire("/", timeout=ENOUGH) as conn:
            idle = conn.id
        blocked = threading.Thread(target=wait_for_a_message, args=(reader, ended))
        blocked.start()
        # Two idle ones are dropped while borrowers come and go: none of them notices.
        keep_asking(plain, monotonic() + LIMIT + 1.5)
        blocked.join(ENOUGH)
        # What was pinged has outlived the limit: the same connections, idle and lent.
        assert lent.request([2], ENOUGH) == [2]
        with pinged.acquire("/", timeout=ENOUGH) as conn:
            assert conn.id == idle
            assert conn.request([3], ENOUGH) == [3]
    ((error, after),) = ended
    assert (error.code, error.reason) == (1006, "")  # not a word: TCP ends, and that is all
    assert after > LIMIT - 1
    stats = plain.stats()
    assert (stats.discards, stats.connect_errors, stats.total_connections) == ({"closed": 3}, 0, 4)
    stats = pinged.stats()
    assert (stats.discards, stats.connect_errors, stats.total_connections) == ({}, 0, 2)
    # Whoever comes back after all are gone gets a new one, and notices nothing.
    assert unused.request("/", [1], timeout=ENOUGH) == [1]
    stats = unused.stats()
    assert (stats.discards, stats.connect_errors, stats.total_connections) == ({"closed": 2}, 0, 3)
    for pool in (plain, pinged, unused):
        check_whole(pool)


def test_the_server_behind_it_restarts(front: Front, pool_to: Callable[..., Pool]) -> None:
    pool = pool_to(front, max_connections=2)
    for abrupt in (False, True):
        check_whole(pool)
        with pool.acquire("/", timeout=ENOUGH) as conn:
            assert conn.request([1], ENOUGH) == [1]
            wait_until(lambda: front.echo.open_now == 2)
            front.echo.stop(abrupt=abrupt)
            with pytest.raises(ConnectionClosedError) as caught:
                conn.recv_raw(ENOUGH)
            assert caught.value.code == (1006 if abrupt else 1001)
        wait_until(lambda: pool.stats().idle_connections == 0, ENOUGH, "its end is heard of here")
        for _ in range(3):  # one more than there are permits
            with pytest.raises(HandshakeError) as refused:
                pool.acquire("/", timeout=ENOUGH)
            assert refused.value.status_code == {"nginx": 502, "haproxy": 503}[front.name]
            assert front.uri.rstrip("/") in str(refused.value)
        front.echo.restart()
        check_whole(pool)


def test_the_proxy_itself_ends(front: Front, pool_to: Callable[..., Pool]) -> None:
    pool = pool_to(front, max_connections=2)
    check_whole(pool)
    with pool.acquire("/", timeout=ENOUGH) as conn:
        front.process.terminate()
        with pytest.raises(ConnectionClosedError):
            conn.recv_raw(ENOUGH)
    front.process.wait(ENOUGH)
    wait_until(lambda: pool.stats().idle_connections == 0, ENOUGH, "its end is heard of here")
    for _ in range(3):
        with pytest.raises(ConnectionError) as caught:
            pool.acquire("/", timeout=ENOUGH)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    wait_until(lambda: front.echo.open_now == 0)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["ws"])
def test_the_server_behind_it_restarts_under_load(
    front: Front,
    depth: float,
    report: Callable[..., None],
) -> None:
    restarts = max(4, int(40 * depth))
    calls, opened = restart_under_load(restarts, front.echo, front.uri)
    figures = {"restarts": restarts, "answered": int(calls.answered), "opened": opened, "foreign": 0}
    report(f"network: restart behind {front.name}", **figures, **calls.failed)
