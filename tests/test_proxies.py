"""Pools whose connections go through a proxy: what is told where it cannot be used, and what is counted."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.exceptions import ConnectionError
from tests.servers import EchoServer, RawServer, answer, refusing_port
from tests.wire.conftest import without_python_socks
from tests.wire.proxies import http_proxy, socks_proxy

pytestmark = pytest.mark.usefixtures("no_proxy_from_outside")

__all__ = ["without_python_socks"]  # a fixture

Pool = ConnectionPool[Any]
SOCKS = ["socks4", "socks4a", "socks5", "socks5h", "SOCKS5"]


@pytest.mark.usefixtures("without_python_socks")
@pytest.mark.parametrize("scheme", SOCKS)
def test_a_socks_proxy_without_the_extra_is_refused_when_the_pool_is_made(scheme: str) -> None:
    with pytest.raises(ImportError, match=r'pip install "jetsocket\[proxy\]"'):
        ConnectionPool(manager_kwargs={"proxy": f"{scheme}://127.0.0.1:1080"})


@pytest.mark.usefixtures("without_python_socks")
def test_an_http_proxy_needs_no_extra(
    echo: EchoServer, raw_server: Callable[..., RawServer], make_pool: Callable[..., Pool]
) -> None:
    asked: list[str] = []
    proxy = raw_server(http_proxy(asked, user="user:p@ss"))
    url = f"http://user:p%40ss@127.0.0.1:{proxy.port}"
    pool = make_pool(echo, manager_kwargs={"proxy": url})
    assert pool.request("/", {"n": 1}, 5) == {"n": 1}
    assert asked == [f"CONNECT 127.0.0.1:{echo.port}"]


UNUSABLE = {
    "socks5://u:s3cret@127.0.0.1:1": r"SOCKS proxy.*jetsocket\[proxy\]",
    "ALL": r"SOCKS proxy.*jetsocket\[proxy\]",
    "https://u:s3cret@127.0.0.1:1": "https:// proxies are not supported, only http",
    "socks://u:s3cret@127.0.0.1:1": "socks:// proxies are not supported.*socks5h://",
    "ftp://u:s3cret@127.0.0.1:1": "ftp:// proxies are not supported",
    "http://u:s3/cret@127.0.0.1:1": "percent-encoded",
    "http://u:s3cret@127.0.0.1:http": "the port",
    "http://u:s3cret%0d%0aX:y@127.0.0.1:1": "control character",
    "http://u:s3cret\udce9\u202e@[127.0.0.1:1": "percent-encoded",
    "http://": "names no host",
}


@pytest.mark.usefixtures("without_python_socks")
@pytest.mark.parametrize(("url", "why"), UNUSABLE.items(), ids=range(len(UNUSABLE)))
def test_a_variable_that_names_no_usable_proxy_is_a_connection_error(
    *,
    echo: EchoServer,
    make_pool: Callable[..., Pool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    url: str,
    why: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    variable = "HTTP_PROXY"
    if url == "ALL":
        variable, url = "all_proxy", "socks5h://127.0.0.1:1"
    monkeypatch.setenv(variable, url)
    pool = make_pool(echo)  # nothing is wrong with the pool itself: the environment may change
    with pytest.raises(ConnectionError, match=why) as caught:
        pool.acquire("/")
    told = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert variable in str(caught.value)
    assert "proxy=None" in str(caught.value)
    assert "s3cret" not in told
    assert "s3/cret" not in told
    assert pool.stats().connect_errors == 1
    assert echo.opened == 0
    monkeypatch.delenv(variable)
    assert pool.request("/", {"n": 1}, 5) == {"n": 1}


@pytest.mark.parametrize("kwargs", [{"proxy": None}, {"proxy": False}])
def test_what_the_error_advises_helps(
    echo: EchoServer, make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch, kwargs: dict[str, Any]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "https://127.0.0.1:1")
    assert make_pool(echo, manager_kwargs=kwargs).request("/", {"n": 1}, 5) == {"n": 1}


def test_no_proxy_is_read_anew_at_each_connect(
    echo: EchoServer, make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(echo)
    with refusing_port() as closed:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{closed}")
        with pytest.raises(ConnectionError, match=r"the proxy http://127\.0\.0\.1:\d+ \(HTTP_PROXY\)"):
            pool.acquire("/")
        monkeypatch.setenv("NO_PROXY", "127.0.0.*")
        assert pool.request("/", {"n": 1}, 5) == {"n": 1}


@pytest.mark.parametrize(
    "url",
    [
        "http://us%0d%0aEvil:s3cret@h:1",
        "http://u%3Au:s3cret@h:1",
        "http://u:s3cret%7f@h:1",
        "socks5://u:s3cret%00@h:1",
        "socks5://u:s3cret%C3%A9@h:1",
        "socks5://u:" + "s3cret" * 50 + "@h:1",
        "http://u:s3cret\ud800@h:1",
        "http://[::1:s3cret]:1",
    ],
)
def test_a_login_that_cannot_be_sent_is_refused_when_the_pool_is_made(url: str) -> None:
    with pytest.raises(ValueError, match=r'manager_kwargs\["proxy"\]') as caught:
        ConnectionPool(manager_kwargs={"proxy": url})
    assert "s3cret" not in "".join(traceback.format_exception(caught.value))


def test_what_a_socks_proxy_says_is_kept_as_a_cause_and_shows_no_login(
    raw_server: Callable[..., RawServer], make_pool: Callable[..., Pool]
) -> None:
    proxy = raw_server(socks_proxy([], user="other:login"))
    url = f"socks5h://us3r:s3cret-password@127.0.0.1:{proxy.port}"
    pool = make_pool("ws://host.test", manager_kwargs={"proxy": url})
    with pytest.raises(ConnectionError, match="authentication failure") as caught:
        pool.acquire("/")
    cause = caught.value.__cause__
    assert str(cause) == "ProxyError: Username and password authentication failure"
    assert cause is not None
    assert (cause.__cause__, cause.__context__, cause.__traceback__) == (None, None, None)
    told = "".join(traceback.format_exception(caught.value)) + repr(cause)
    assert "s3cret" not in told
    assert "us3r" not in told


def test_an_http_proxy_is_asked_once_a_connection(
    echo: EchoServer, raw_server: Callable[..., RawServer]
) -> None:
    asked: list[str] = []
    proxy = raw_server(http_proxy(asked))
    config = ConnectionPoolConfig(max_connections=2)
    kwargs = {"proxy": f"http://127.0.0.1:{proxy.port}"}
    with ConnectionPool[Any](config, base_uri=echo.uri, manager_kwargs=kwargs) as pool:
        for n in range(5):
            assert pool.request("/", {"n": n}, 5) == {"n": n}
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("status", "attempts"),
    [("407 Proxy Authentication Required", 1), ("401 Unauthorized", 1), ("403 Filtered", 1), ("502 Bad", 3)],
)
def test_a_login_that_is_refused_is_not_tried_again(
    raw_server: Callable[..., RawServer], make_pool: Callable[..., Pool], status: str, attempts: int
) -> None:
    """Some directories lock an account after three of them."""
    proxy = raw_server(answer(status))
    kwargs = {"proxy": f"http://u:s3cret@127.0.0.1:{proxy.port}", "connect_attempts": 3}
    pool = make_pool("ws://host.test", manager_kwargs=kwargs)
    with pytest.raises(ConnectionError, match=status):
        pool.acquire("/")
    assert proxy.accepted == pool.stats().connect_errors == attempts


def test_nor_is_one_of_socks(raw_server: Callable[..., RawServer], make_pool: Callable[..., Pool]) -> None:
    proxy = raw_server(socks_proxy([], user="other:login"))
    kwargs = {"proxy": f"socks5h://u:s3cret@127.0.0.1:{proxy.port}", "connect_attempts": 3}
    pool = make_pool("ws://host.test", manager_kwargs=kwargs)
    with pytest.raises(ConnectionError, match="authentication"):
        pool.acquire("/")
    assert proxy.accepted == 1


def test_nor_a_variable_that_names_no_usable_proxy(
    echo: EchoServer, make_pool: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "https://127.0.0.1:1")
    pool = make_pool(echo, manager_kwargs={"connect_attempts": 3})
    with pytest.raises(ConnectionError, match="HTTP_PROXY"):
        pool.acquire("/")
    assert pool.stats().connect_errors == 1
