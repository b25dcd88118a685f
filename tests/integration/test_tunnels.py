"""Through tinyproxy (CONNECT) and microsocks (SOCKS 5), with and without a password."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.exceptions import ConnectionClosedError, ConnectionError
from tests import servers
from tests.books import faults
from tests.conftest import Tls
from tests.servers import LOCALHOST, EchoServer, refusing_port, wait_until
from tests.wire.conftest import names

__all__ = ["names"]  # a fixture

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("no_proxy_from_outside")]

Pool = ConnectionPool[Any]
ENOUGH = 10.0  # s, for what is to succeed
PASSWORD = "hunter2secret"
SCHEMES = ["http", "socks5", "socks5h"]

TINYPROXY = """
Port {port}
Listen {host}
Timeout 60
Allow {host}
MaxClients 50
LogLevel Connect
"""


class Proxy(NamedTuple):
    """A running proxy of others."""

    scheme: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    def url(self, login: str = "") -> str:
        return f"{self.scheme}://{login + '@' if login else ''}{LOCALHOST}:{self.port}"


def command(scheme: str, directory: Path, port: int, login: str, extra: str) -> list[str]:
    """What starts a proxy that speaks `scheme`; "user:password" is what it asks for, if anything."""
    name = "tinyproxy" if scheme == "http" else "microsocks"
    program = shutil.which(name)
    if program is None:
        pytest.skip(f"needs {name} (Debian: {'tinyproxy-bin' if scheme == 'http' else name})")
    user, _, password = login.partition(":")
    if name == "microsocks":
        asks = ["-u", user, "-P", password] if login else []
        return [program, "-i", LOCALHOST, "-p", str(port), *asks]
    config = directory / "tinyproxy.conf"
    auth = f"BasicAuth {user} {password}\n" if login else ""
    config.write_text(TINYPROXY.format(port=port, host=LOCALHOST) + auth + extra)
    return [program, "-d", "-c", str(config)]


def answers(port: int, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, f"it did not start:\n{log.read_text()}"
    with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, port), 1):
        return True
    return False


@pytest.fixture
def run_proxy(tmp_path: Path) -> Iterator[Callable[..., Proxy]]:
    """Start proxies: `run_proxy("socks5", "user:password")`."""
    with contextlib.ExitStack() as stack:

        def run(scheme: str, login: str = "", extra: str = "") -> Proxy:
            with socket.create_server((LOCALHOST, 0)) as free:
                port = free.getsockname()[1]
            log = tmp_path / f"{port}.log"
            output = stack.enter_context(log.open("wb"))
            arguments = command(scheme, tmp_path, port, login, extra)
            process = subprocess.Popen(arguments, stdout=output, stderr=output, cwd=tmp_path)
            stack.callback(end, process)
            wait_until(lambda: answers(port, process, log), ENOUGH, f"{arguments[0]} listens")
            return Proxy(scheme, port, process, log)

        yield run


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@pytest.fixture
def pool_through(tls: Tls) -> Iterator[Callable[..., Pool]]:
    """A factory of pools; at the end their books must be in order, and none of their sockets left."""
    before = servers.open_sockets()
    with contextlib.ExitStack() as stack:

        def make(uri: str, proxy: object, **config: Any) -> Pool:
            kwargs = {"ssl_context": tls.client_context, "close_timeout": 1.0, "proxy": proxy}
            pool: Pool = ConnectionPool(ConnectionPoolConfig(**config), base_uri=uri, manager_kwargs=kwargs)
            stack.callback(check_books, pool)
            return pool

        yield make
    wait_until(lambda: servers.open_sockets() <= before, message="no socket of a pool is left")


def check_books(pool: Pool) -> None:
    try:
        assert pool.stats().active_connections == 0
        assert faults(pool) == []
    finally:
        pool.close(2)


def told(error: BaseException) -> str:
    """All that a report of this error shows; no login is in it."""
    text = "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)
    assert PASSWORD not in text
    return str(error)


@pytest.mark.parametrize("login", ["", f"user:{PASSWORD}"], ids=["open", "password"])
@pytest.mark.parametrize("wire", ["ws", "wss"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_requests_go_through(
    *,
    run_proxy: Callable[..., Proxy],
    pool_through: Callable[..., Pool],
    request: pytest.FixtureRequest,
    scheme: str,
    wire: str,
    login: str,
) -> None:
    server: EchoServer = request.getfixturevalue("echo_tls" if wire == "wss" else "echo")
    proxy = run_proxy(scheme, login)
    pool = pool_through(f"{wire}://localhost:{server.port}/", proxy.url(login), max_connections=2)
    for n in range(5):
        assert pool.request("/", {"n": n}, ENOUGH) == {"n": n}
    with pool.acquire("/") as first, pool.acquire("/") as second:
        for conn in (first, second):
            conn.send({"big": "x" * 200_000})
            assert len(conn.recv(ENOUGH)["big"]) == 200_000
            assert conn.ping(ENOUGH) >= 0
    assert server.opened == 2
    if scheme == "http":
        assert f"CONNECT localhost:{server.port}" in proxy.log.read_text(errors="replace")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_as_the_environment_says(
    run_proxy: Callable[..., Proxy],
    pool_through: Callable[..., Pool],
    echo: EchoServer,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
) -> None:
    login = f"user:{PASSWORD}"
    monkeypatch.setenv("ALL_PROXY", run_proxy(scheme, login).url(login))
    pool = pool_through(echo.uri, True)
    assert pool.request("/", {"n": 1}, ENOUGH) == {"n": 1}
    with refusing_port() as closed:
        monkeypatch.setenv("ALL_PROXY", f"{scheme}://{login}@{LOCALHOST}:{closed}")
        pool.clear()  # a connection that is open would be waited for
        with pytest.raises(ConnectionError, match=r"\(ALL_PROXY\)") as caught:
            pool.acquire("/", timeout=ENOUGH)
        told(caught.value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.*")
        with pool.acquire("/"), pool.acquire("/", timeout=ENOUGH) as direct:
            assert direct.request({"n": 2}, ENOUGH) == {"n": 2}


@pytest.mark.parametrize("login", ["", f"user:{PASSWORD}", f":{PASSWORD}"], ids=["none", "wrong", "half"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_login_that_is_not_taken(
    run_proxy: Callable[..., Proxy],
    pool_through: Callable[..., Pool],
    echo: EchoServer,
    scheme: str,
    login: str,
) -> None:
    proxy = run_proxy(scheme, "user:another")
    pool = pool_through(echo.uri, proxy.url(login))
    for _ in range(2):
        with pytest.raises(ConnectionError) as caught:
            pool.acquire("/", timeout=ENOUGH)
        text = told(caught.value)
        if scheme != "http":
            assert "authentication" in text or "No acceptable" in text
        elif login:
            assert "401 Unauthorized; check its URL, its credentials" in text
        else:
            assert "407 Proxy Authentication Required; it wants credentials" in text
    assert pool.stats().connect_errors == 2
    assert echo.opened == 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_server_that_the_proxy_does_not_reach(
    run_proxy: Callable[..., Proxy], pool_through: Callable[..., Pool], scheme: str
) -> None:
    with refusing_port() as closed:
        pool = pool_through(f"ws://{LOCALHOST}:{closed}/", run_proxy(scheme).url())
        with pytest.raises(ConnectionError) as caught:
            pool.acquire("/", timeout=ENOUGH)
    text = told(caught.value)
    assert ("500 Unable to connect" if scheme == "http" else "refused") in text
    assert "NO_PROXY" in text


def test_a_port_that_the_proxy_does_not_let_through(
    run_proxy: Callable[..., Proxy], pool_through: Callable[..., Pool], echo: EchoServer
) -> None:
    pool = pool_through(echo.uri, run_proxy("http", extra="ConnectPort 443\n").url())
    with pytest.raises(ConnectionError, match="403 Access violation; see whether it lets anything through"):
        pool.acquire("/", timeout=ENOUGH)


def test_the_second_address_of_a_name_will_do(
    run_proxy: Callable[..., Proxy],
    pool_through: Callable[..., Pool],
    echo: EchoServer,
    names: dict[str, list[tuple[str, int]]],
) -> None:
    names["host.test"] = [("::1", echo.port), ("127.0.0.1", echo.port)]  # the server is on the latter
    pool = pool_through(f"ws://host.test:{echo.port}/", run_proxy("socks5").url())
    assert pool.request("/", {"n": 1}, ENOUGH) == {"n": 1}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_proxy_ends(
    run_proxy: Callable[..., Proxy], pool_through: Callable[..., Pool], echo: EchoServer, scheme: str
) -> None:
    proxy = run_proxy(scheme)
    pool = pool_through(echo.uri, proxy.url(), max_connections=2)
    with pool.acquire("/") as conn:
        proxy.process.kill()
        with pytest.raises(ConnectionClosedError):
            conn.recv(ENOUGH)
    proxy.process.wait(ENOUGH)
    for _ in range(3):  # one more than there are permits
        with pytest.raises(ConnectionError, match="connecting to the proxy") as caught:
            pool.acquire("/", timeout=ENOUGH)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_one_that_speaks_socks_alone(
    run_proxy: Callable[..., Proxy], pool_through: Callable[..., Pool], echo: EchoServer
) -> None:
    pool = pool_through(echo.uri, f"http://{LOCALHOST}:{run_proxy('socks5').port}")
    with pytest.raises(ConnectionError, match="asking the proxy"):  # by its answer, not by the time
        pool.acquire("/", timeout=ENOUGH)
