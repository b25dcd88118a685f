"""Nothing leaks out: to other origins, other pools, log lines, reprs, errors and tracebacks."""

from __future__ import annotations

import base64
import contextlib
import logging
import pickle
import re
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.exceptions import JetSocketError
from tests import servers
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer, after_upgrade, close_frame, frame, wait_until

RawFactory = Callable[..., RawServer]

SECRETS = {
    "query": "s3cr3t-in-the-query",
    "password": "s3cr3t-password",
    "user": "s3cr3t-user",
    "header": "s3cr3t-header",
    "cookie": "s3cr3t-cookie",
    "proxy": "s3cr3t-proxy",
    "subprotocol": "s3cr3t-subprotocol",
    "set-cookie": "s3cr3t-of-the-server",
}
BASIC = base64.b64encode(f"{SECRETS['user']}:{SECRETS['password']}".encode()).decode()
PROXY_BASIC = base64.b64encode(f"{SECRETS['user']}:{SECRETS['proxy']}".encode()).decode()
OPTIONS: dict[str, Any] = {
    "extra_headers": {"Authorization": f"Bearer {SECRETS['header']}", "X-Key": SECRETS["header"]},
    "cookie": f"session={SECRETS['cookie']}",
    "subprotocols": ["realtime", f"key.{SECRETS['subprotocol']}"],
    "close_timeout": 0.1,
}
PATH = f"/feed?token={SECRETS['query']}&n=1"


def with_userinfo(uri: str) -> str:
    return uri.replace("://", f"://{SECRETS['user']}:{SECRETS['password']}@")


def requests_of(server: EchoServer, count: int) -> list[Any]:
    """The requests the server has served; it books each a moment after the client has its answer."""
    wait_until(lambda: len(server.requests) == count)
    return list(server.requests)


def assert_no_secret(text: str) -> None:
    for secret in (*SECRETS.values(), BASIC, PROXY_BASIC):
        assert secret not in text


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Everything logged at DEBUG during the test, by whomever, must be free of secrets."""
    caplog.set_level(logging.DEBUG)
    yield caplog
    assert_no_secret(caplog.text)
    for record in caplog.records:
        assert_no_secret(repr(record.__dict__))


def tell(error: BaseException) -> str:
    """All that a report of this error would show: message, repr, chain, and both after pickling."""
    shown = ["".join(traceback.format_exception(error)), str(error), repr(error)]
    if isinstance(error, JetSocketError):
        copy = pickle.loads(pickle.dumps(error))
        shown += [str(copy), repr(copy)]
    return "\n".join(shown)


@contextlib.contextmanager
def leaks_nothing() -> Iterator[None]:
    """The block raises an error of ours, and nothing in it is secret."""
    with pytest.raises(JetSocketError) as caught:
        yield
    assert_no_secret(tell(caught.value))


# --- logs, reprs, errors


def test_the_life_of_a_connection_is_told_without_secrets(
    echo: EchoServer, log: pytest.LogCaptureFixture
) -> None:
    pool: ConnectionPool[Any] = ConnectionPool(base_uri=with_userinfo(echo.uri), manager_kwargs=OPTIONS)
    with pool:
        with pool.acquire(PATH) as conn:
            conn.request({"n": 1}, 5)
            shown = [
                repr(conn),
                repr(pool),
                repr(pool.stats()),
                str(pool.config),
                repr(conn.response_headers),
            ]
            conn.ping(5)
        with pool.acquire(PATH) as conn:
            conn.discard()
        shown += [repr(conn), repr(pool)]
        with pool.acquire(PATH):
            echo.cut_all()
    assert_no_secret("\n".join(shown))
    headers = requests_of(echo, 2)[0].headers
    assert headers["Authorization"] == f"Bearer {SECRETS['header']}"  # they did go where they belong
    assert headers["Cookie"] == f"session={SECRETS['cookie']}"
    assert echo.paths[0] == PATH
    assert [record for record in log.records if record.name.startswith("jetsocket")]


def reflect(status: str, *, keeps: int = 0) -> servers.Script:
    """Answer with a status line whose reason is all that the client has sent, or its last `keeps` bytes."""

    def script(sock: socket.socket) -> None:
        seen = servers.read_request(sock).raw.replace(b"\r\n", b" | ")[-keeps:]
        sock.sendall(b"HTTP/1.1 %s %s\r\n\r\n" % (status.encode(), seen))

    return script


def reflect_header(name: str, field: str) -> servers.Script:
    """Upgrade, with a header of the request sent back as another one."""

    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        sock.sendall(servers.upgrade_response(request, [(field, request.headers[name])]))

    return script


ANSWERS: dict[str, servers.Script] = {
    "401": servers.answer("401 Unauthorized", [("WWW-Authenticate", "Basic")], b"no"),
    "redirect": servers.answer("302 Found", [("Location", f"ws://other.example/?token={SECRETS['query']}")]),
    "redirect with userinfo": servers.answer(
        "302 Found", [("Location", with_userinfo("ws://other.example:99999999/x"))]
    ),
    "loop": servers.answer("302 Found", [("Location", PATH)]),
    "garbage": lambda sock: (servers.read_request(sock), sock.sendall(b"garbage\r\n\r\n"))[1],
    "set-cookie": servers.answer("500 Oops", [("Set-Cookie", f"a={SECRETS['set-cookie']}")]),
    "nothing": servers.hold,
    "end of stream": lambda sock: servers.read_request(sock) and None,
    "reset": lambda sock: (servers.read_request(sock), servers.reset(sock))[1],
    "reflect the request": lambda sock: sock.sendall(servers.read_request(sock).raw),
    "reflect the request in the reason": reflect("401"),
    "reflect the end of it in the reason": reflect("503", keeps=90),
    "reflect the request in a 407": reflect("407"),
    "reflect the request as headers": lambda sock: sock.sendall(
        b"HTTP/1.1 400 Bad Request\r\n" + servers.read_request(sock).raw
    ),
    "reflect the subprotocols": reflect_header("sec-websocket-protocol", "Sec-WebSocket-Protocol"),
    "reflect a header as an extension": reflect_header("authorization", "Sec-WebSocket-Extensions"),
    "another subprotocol": lambda sock: sock.sendall(
        servers.upgrade_response(servers.read_request(sock), [("Sec-WebSocket-Protocol", "other")])
    ),
    "reflect a header in a redirect": lambda sock: sock.sendall(
        servers.response("302 Found", [("Location", f"//h/{servers.read_request(sock).headers['cookie']}")])
    ),
    "reflect a header in a bad redirect": lambda sock: sock.sendall(
        servers.response("302 Found", [("Location", f"ws:{servers.read_request(sock).headers['x-key']}")])
    ),
    "reflect its headers in a 101": lambda sock: sock.sendall(
        b"HTTP/1.1 101 OK\r\n" + servers.read_request(sock).raw.replace(b": ", b" : ").partition(b"\r\n")[2]
    ),
    "reflect the request in the body": lambda sock: sock.sendall(
        servers.response("400 Bad Request", body=servers.read_request(sock).raw)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("script", ANSWERS.values(), ids=ANSWERS)
def test_a_failed_connect_tells_no_secrets(
    raw_server: RawFactory, log: pytest.LogCaptureFixture, script: servers.Script
) -> None:
    base = with_userinfo(raw_server(script).uri)
    with ConnectionPool(base_uri=base, manager_kwargs=OPTIONS) as pool:
        with leaks_nothing():
            pool.acquire(PATH, timeout=0.5)
        assert_no_secret(repr(pool))


def test_a_refused_connect_tells_no_secrets(log: pytest.LogCaptureFixture) -> None:
    with servers.refusing_port() as port:
        base = with_userinfo(f"ws://127.0.0.1:{port}")
        kwargs = {**OPTIONS, "connect_attempts": 3}
        with ConnectionPool(base_uri=base, manager_kwargs=kwargs) as pool, leaks_nothing():
            pool.acquire(PATH, timeout=2)


def test_a_name_that_does_not_resolve_tells_no_secrets(log: pytest.LogCaptureFixture) -> None:
    with ConnectionPool(manager_kwargs=OPTIONS) as pool, leaks_nothing():
        pool.acquire(with_userinfo("ws://nowhere.invalid") + PATH, timeout=2)


def test_failed_tls_tells_no_secrets(echo_tls: EchoServer, log: pytest.LogCaptureFixture) -> None:
    with (
        ConnectionPool(base_uri=with_userinfo(echo_tls.uri), manager_kwargs=OPTIONS) as pool,
        leaks_nothing(),
    ):
        pool.acquire(PATH, timeout=3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [
        frame(3),
        frame(1, b"\xff"),
        frame(2, declared_length=10**10),
        close_frame(1008, b"policy"),
        close_frame(1008, f"{SECRETS['query']} and {SECRETS['header']} and {SECRETS['cookie']}".encode()),
        b"",
        b"\x81",
    ],
    ids=["protocol", "bad UTF-8", "too big", "close", "close with an echo", "silence", "half a frame"],
)
def test_a_failed_receive_tells_no_secrets(
    raw_server: RawFactory, log: pytest.LogCaptureFixture, stream: bytes
) -> None:
    base = with_userinfo(raw_server(after_upgrade(stream)).uri)
    with ConnectionPool(base_uri=base, manager_kwargs=OPTIONS) as pool, pool.acquire(PATH) as conn:
        for _ in range(2):
            with leaks_nothing():
                conn.recv(0.2)
        assert_no_secret(repr(conn))


def test_payloads_are_in_no_message(echo: EchoServer, log: pytest.LogCaptureFixture) -> None:
    with ConnectionPool(base_uri=echo.uri) as pool, pool.acquire(PATH) as conn:
        conn.send_raw(f"not json: {SECRETS['query']}")
        with leaks_nothing():
            conn.recv(5)


def test_misuse_tells_no_secrets(echo: EchoServer, log: pytest.LogCaptureFixture) -> None:
    config = ConnectionPoolConfig(max_connections=1, leak_threshold=0.1)
    pool: ConnectionPool[Any] = ConnectionPool(
        config, base_uri=with_userinfo(echo.uri), manager_kwargs=OPTIONS
    )
    with pool:
        conn = pool.acquire(PATH)
        with leaks_nothing():
            pool.acquire(PATH, timeout=0.1)
        wait_until(lambda: any(record.levelno >= logging.WARNING for record in log.records))
        conn.release()
        with leaks_nothing():
            conn.send("x")
    with leaks_nothing():
        pool.acquire(PATH)


def test_an_exhausted_pool_tells_why_without_secrets(
    raw_server: RawFactory, log: pytest.LogCaptureFixture
) -> None:
    server = raw_server(servers.answer("503 Busy"))
    config = ConnectionPoolConfig(max_connections=1)
    with ConnectionPool(config, base_uri=with_userinfo(server.uri), manager_kwargs=OPTIONS) as pool:
        with leaks_nothing():
            pool.acquire(PATH, timeout=2)
        server.script = after_upgrade()
        with pool.acquire(PATH, timeout=2), leaks_nothing():
            pool.acquire(PATH, timeout=0.1)


def test_callbacks_that_raise_are_logged_without_secrets(
    echo: EchoServer, log: pytest.LogCaptureFixture
) -> None:
    def fail(conn: Any) -> None:
        raise RuntimeError("a fault of the user's")

    base = with_userinfo(echo.uri)
    with ConnectionPool(base_uri=base, manager_kwargs=OPTIONS, configure=fail) as pool, leaks_nothing():
        pool.acquire(PATH)
    with ConnectionPool(base_uri=base, manager_kwargs=OPTIONS, reset=fail) as pool:
        pool.acquire(PATH).release()


def test_a_dropped_lease_is_warned_about_without_secrets(
    echo: EchoServer, log: pytest.LogCaptureFixture
) -> None:
    base = with_userinfo(echo.uri)
    with (
        warnings.catch_warnings(record=True) as caught,
        ConnectionPool[Any](base_uri=base, manager_kwargs=OPTIONS) as pool,
    ):
        warnings.simplefilter("always", ResourceWarning)
        pool.acquire(PATH)
        wait_until(lambda: caught)
    assert_no_secret("\n".join(str(warning.message) for warning in caught))


@pytest.mark.parametrize(
    "kwargs",
    [
        {"extra_headers": {"X": f"{SECRETS['header']}\r\n"}},
        {"extra_headers": {"Content-Length": SECRETS["header"]}},
        {"extra_headers": [("Authorization", SECRETS["header"]), ("authorization", SECRETS["header"])]},
        {"extra_headers": [SECRETS["header"]]},
        {"extra_headers": SECRETS["header"]},
        {"extra_headers": {"X": SECRETS["header"].encode()}},
        {"cookie": f"{SECRETS['cookie']}\n"},
        {"cookie": SECRETS["cookie"].encode()},
        {"subprotocols": [f"key. {SECRETS['subprotocol']}"]},
        {"subprotocols": [SECRETS["subprotocol"]] * 2},
        {"subprotocols": SECRETS["subprotocol"]},
        {"subprotocols": [SECRETS["subprotocol"].encode()]},
        {"proxy": f"http://me:{SECRETS['proxy']}@127.0.0.1"},
        {"proxy": f"ftp://me:{SECRETS['proxy']}@127.0.0.1:1"},
        {"proxy": f"me:{SECRETS['proxy']}@127.0.0.1:1"},
    ],
)
def test_bad_options_are_refused_without_telling_their_values(kwargs: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        ConnectionPool(manager_kwargs=kwargs)
    assert_no_secret(tell(caught.value))


@pytest.mark.parametrize(
    "uri",
    [
        f"http://{SECRETS['user']}:{SECRETS['password']}@h/",
        f"ws://{SECRETS['user']}:{SECRETS['password']}@h:0/",
        f"ws://{SECRETS['user']}:{SECRETS['password']}@/",
        f"ws://{SECRETS['user']}:{SECRETS['password']}@h/#x",
        f"ws://h/a b?token={SECRETS['query']}",
        f"ws://h:port/?token={SECRETS['query']}",
        f"{SECRETS['user']}:{SECRETS['password']}@h",
        f"/relative?token={SECRETS['query']}",
    ],
)
def test_bad_uris_are_refused_without_telling_what_is_secret(uri: str) -> None:
    with ConnectionPool() as pool, pytest.raises(ValueError, match="invalid WebSocket URI") as caught:
        pool.acquire(uri)
    assert_no_secret(tell(caught.value))


# --- proxies


def refuse_tunnel(sock: socket.socket) -> None:
    seen = servers.read_request(sock).raw
    sock.sendall(b"HTTP/1.1 407 %s\r\n\r\n" % seen.replace(b"\r\n", b" | ")[-150:] + seen)


@pytest.mark.slow
@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("scheme", ["http", "socks5", "socks5h", "socks4"])
@pytest.mark.parametrize("proxy", ["refuses", "garbage", "407", "closed port"])
@pytest.mark.parametrize("given", ["option", "environment"])
def test_a_proxys_password_is_told_to_nobody(
    raw_server: RawFactory,
    monkeypatch: pytest.MonkeyPatch,
    scheme: str,
    proxy: str,
    given: str,
) -> None:
    script: servers.Script = {
        "407": refuse_tunnel,
        "garbage": lambda sock: sock.sendall(b"garbage\r\n\r\n" + sock.recv(65536)),
    }.get(proxy, lambda sock: None)
    with servers.refusing_port() as closed:
        port = closed if proxy == "closed port" else raw_server(script).port
        url = f"{scheme}://{SECRETS['user']}:{SECRETS['proxy']}@127.0.0.1:{port}"
        kwargs = dict(OPTIONS)
        if given == "option":
            kwargs["proxy"] = url
        else:
            monkeypatch.setenv("http_proxy", url)
            monkeypatch.setenv("no_proxy", "")
        with ConnectionPool(base_uri=with_userinfo("ws://192.0.2.1"), manager_kwargs=kwargs) as pool:
            with leaks_nothing():
                pool.acquire(PATH, timeout=0.5)
            assert_no_secret(repr(pool))


# --- other origins


@pytest.fixture
def two_origins(echo_server: Callable[..., EchoServer]) -> tuple[EchoServer, EchoServer]:
    return echo_server(), echo_server()


PRIVATE = ("Authorization", "Cookie", "X-Key")


@pytest.mark.parametrize("allowed", [False, True])
def test_what_was_given_for_the_base_goes_to_other_origins_only_when_told_so(
    two_origins: tuple[EchoServer, EchoServer], allowed: bool
) -> None:
    home, abroad = two_origins
    kwargs = {**OPTIONS, "cross_origin_headers": allowed}
    with ConnectionPool(base_uri=home.uri, manager_kwargs=kwargs) as pool:
        pool.acquire("/").release()
        pool.acquire(abroad.uri_for("/")).release()
        pool.acquire(f"//127.0.0.1:{abroad.port}/").release()
    assert all(name in requests_of(home, 1)[0].headers for name in PRIVATE)
    for request in requests_of(abroad, 1):
        assert [name in request.headers for name in PRIVATE] == [allowed] * 3


def test_the_base_uris_userinfo_goes_to_its_origin_only(two_origins: tuple[EchoServer, EchoServer]) -> None:
    home, abroad = two_origins
    with ConnectionPool(base_uri=with_userinfo(home.uri)) as pool:
        pool.acquire("/path").release()
        pool.acquire(home.uri_for("/absolute")).release()
        pool.acquire(abroad.uri_for("/")).release()
        pool.acquire(abroad.uri_for("/").replace("://", "://own:one@")).release()
    assert [request.headers.get("Authorization") for request in requests_of(home, 2)] == [
        f"Basic {BASIC}"
    ] * 2
    own = base64.b64encode(b"own:one").decode()
    assert {request.headers.get("Authorization") for request in requests_of(abroad, 2)} == {
        None,
        f"Basic {own}",
    }


def test_a_redirect_within_the_origin_keeps_what_belongs_to_it(raw_server: RawFactory) -> None:
    seen: list[servers.Upgrade] = []

    def script(sock: socket.socket) -> None:
        seen.append(servers.read_request(sock))
        if seen[-1].target == "/old":
            sock.sendall(servers.response("308 Moved", [("Location", "/new")]))
            return
        sock.sendall(servers.upgrade_response(seen[-1]))
        servers.hold(sock)

    kwargs = {"cookie": "c=1", "close_timeout": 0.1}
    with ConnectionPool(base_uri=with_userinfo(raw_server(script).uri), manager_kwargs=kwargs) as pool:
        pool.acquire("/old", timeout=3).release()
    assert [request.target for request in seen] == ["/old", "/new"]
    assert [request.headers.get("authorization") for request in seen] == [f"Basic {BASIC}"] * 2
    assert [request.headers.get("cookie") for request in seen] == ["c=1"] * 2


def test_wss_and_ws_of_one_host_are_two_origins(echo: EchoServer, echo_tls: EchoServer, tls: Tls) -> None:
    kwargs = {**OPTIONS, "ssl_context": tls.client_context}
    with ConnectionPool(base_uri=with_userinfo(echo_tls.uri), manager_kwargs=kwargs) as pool:
        pool.acquire(echo.uri_for("/")).release()
    assert not any(name in requests_of(echo, 1)[0].headers for name in PRIVATE)


def test_users_of_one_server_do_not_share_connections(echo: EchoServer) -> None:
    with ConnectionPool(ConnectionPoolConfig(max_connections=4)) as pool:
        for user in ("alice", "bob", "alice", "bob"):
            with pool.acquire(echo.uri_for("/").replace("://", f"://{user}:pw@")) as conn:
                conn.request(1, 5)
    users = [base64.b64decode(request.headers["Authorization"][6:]) for request in requests_of(echo, 2)]
    assert users == [b"alice:pw", b"bob:pw"]


# --- other pools


def test_a_servers_cookies_reach_no_other_pool_or_connection(raw_server: RawFactory) -> None:
    seen: list[str | None] = []

    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        seen.append(request.headers.get("cookie"))
        fields = [("Set-Cookie", "a=1; Domain=127.0.0.1; Path=/"), ("Set-Cookie", "b=2")]
        sock.sendall(servers.upgrade_response(request, fields))
        servers.hold(sock)

    uri = raw_server(script).uri
    for _ in range(2):
        with ConnectionPool(manager_kwargs={"close_timeout": 0.1}) as pool:
            leases = [pool.acquire(uri), pool.acquire(uri)]
            assert "b=2" in leases[0].response_headers["Set-Cookie"]
            for lease in leases:
                lease.release()
    assert seen == [None] * 4


def test_a_callable_is_asked_for_headers_at_each_connect(echo: EchoServer) -> None:
    numbers = iter(range(10))
    kwargs = {"extra_headers": lambda: {"Authorization": f"Bearer {next(numbers)}"}}
    with ConnectionPool(manager_kwargs=kwargs) as pool:
        for _ in range(2):
            with pool.acquire(echo.uri) as conn:
                conn.discard()
    assert {request.headers["Authorization"] for request in requests_of(echo, 2)} == {"Bearer 0", "Bearer 1"}


@pytest.mark.parametrize("value", ["a\r\nEvil: 1", "a\nb", "a\rb", "a\0b"])
def test_a_callables_headers_are_checked_before_a_byte_is_sent(echo: EchoServer, value: str) -> None:
    kwargs = {"extra_headers": lambda: {"X": value}}
    config = ConnectionPoolConfig(max_connections=1)
    with ConnectionPool(config, base_uri=echo.uri, manager_kwargs=kwargs) as pool:
        for _ in range(2):  # the slot came back
            with pytest.raises(jetsocket.ConnectionError, match="control characters"):
                pool.acquire("/", timeout=1)
    assert echo.opened == 0


@pytest.mark.parametrize("path", ["/a\r\nEvil: 1", "/a\nb", "/\r", "/a b", "/\x00", "\r\n/a"])
def test_no_path_forges_a_request(echo: EchoServer, path: str) -> None:
    with (
        ConnectionPool(base_uri=echo.uri) as pool,
        pytest.raises(ValueError, match=re.escape("invalid WebSocket URI")),
    ):
        pool.acquire(path)
    assert echo.opened == 0
