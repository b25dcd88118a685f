"""What is dialled for a URI, and what goes there and nowhere else: `resolve`, `auth`, and who gets what."""

from __future__ import annotations

import base64
import contextvars
import logging
import ssl
import traceback
from collections.abc import Callable, Iterator
from time import sleep
from typing import Any

import pytest

from jetsocket import ConnectionError, HandshakeError, TimeoutError
from jetsocket.auth import Auth, Prepared
from jetsocket.manager_kwargs import Options
from jetsocket.wire.tls import without_certificate
from tests.books import faults, state_of
from tests.conftest import Tls
from tests.servers import Connection, EchoServer, RawServer, answer, echo, refusing_port, wait_until

MakePool = Callable[..., Any]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]
SECRET = "s3cr3t-0123456789abcdef"
OURS: dict[str, Any] = {"extra_headers": {"X-Key": "k"}, "cookie": "c=1"}


class Own(Auth):
    """One of the user's own: answers with what it is told, and writes down what it is asked."""

    def __init__(self, *answers: Any, again: Any = False) -> None:
        self.answers, self.again = list(answers), again
        self.asked: list[tuple[str, float]] = []
        self.refusals: list[Prepared] = []

    def prepare(self, uri: str, timeout: float) -> Prepared:
        self.asked.append((uri, timeout))
        given = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(given, BaseException):
            raise given
        made: Prepared = given(uri) if callable(given) else given
        return made

    def refused(self, prepared: Prepared) -> bool:
        self.refusals.append(prepared)
        if isinstance(self.again, BaseException):
            raise self.again
        return bool(self.again)

    def __repr__(self) -> str:
        return f"Own({SECRET})"  # as a dataclass would


def call(pool: Any, path: str = "/") -> Any:
    with pool.acquire(path, 5) as conn:
        return conn.request({"hello": 1}, 5)


def sent_to(server: EchoServer) -> Any:
    return server.requests[-1].headers


# --- resolve


def test_the_address_is_dialled_and_the_pool_goes_by_the_uri(
    echo: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "jetsocket")
    asked: list[tuple[str, float]] = []

    def resolve(uri: str, timeout: float) -> str:
        asked.append((uri, timeout))
        return f"{echo.uri}/{SECRET}?key={SECRET}"

    pool = make_pool("wss://me:pw@shop", manager_kwargs={"resolve": resolve}, max_connections=1)
    with pool.acquire("/feed?key=1") as conn:
        assert conn.uri == "wss://shop/feed?key=***"
        assert conn.request({"a": 1}, 5) == {"a": 1}
        shown = [repr(conn), repr(pool.leases()), repr(pool.connections()), repr(state_of(pool).entries)]
    call(pool, "/feed?key=1")
    assert asked[0][0] == "wss://shop/feed?key=1"  # without the userinfo
    assert 5 < asked[0][1] <= 10
    assert len(asked) == 1
    assert echo.paths == [f"/{SECRET}?key={SECRET}"]
    assert SECRET not in "\n".join([*shown, caplog.text])
    assert pool.stats().reuses == 1
    call(pool, "/other")  # makes room: another URI, whatever the address
    assert len(asked) == 2


def test_it_is_asked_at_each_attempt(echo: EchoServer, make_pool: MakePool) -> None:
    with refusing_port() as port:
        addresses = iter([f"ws://127.0.0.1:{port}/", f"{echo.uri}/"])
        options = {"resolve": lambda _uri, _timeout: next(addresses), "connect_attempts": 2}
        pool = make_pool("ws://shop", manager_kwargs=options)
        assert call(pool) == {"hello": 1}
    assert pool.stats().connect_errors == 1


def test_it_runs_in_the_callers_context(echo: EchoServer, make_pool: MakePool) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant")
    tenant.set("acme")
    pool = make_pool("ws://shop", manager_kwargs={"resolve": lambda _uri, _t: f"{echo.uri}/{tenant.get()}"})
    call(pool)
    assert echo.paths == ["/acme"]


def test_the_logical_uri_is_never_dialled(make_pool: MakePool, echo: EchoServer) -> None:
    with refusing_port() as port:
        pool = make_pool(echo, manager_kwargs={"resolve": lambda *_: f"ws://127.0.0.1:{port}/{SECRET}"})
        with pytest.raises(ConnectionError) as caught:
            call(pool, "/feed")
    assert str(caught.value).startswith(f"cannot connect to {echo.uri}/feed (at ws://127.0.0.1:{port}): ")
    assert SECRET not in str(caught.value)
    assert echo.requests == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "returned a NoneType; it must be the URI as a str"),
        (f"https://h/{SECRET}", "returned an invalid URI: the scheme https is HTTP's; say wss://"),
        (f"/{SECRET}", "returned an invalid URI: no scheme; write ws://host/path or wss://host/path"),
        (f"ws://me:{SECRET}/x@h", "returned an invalid URI: the port is not a number"),
    ],
)
def test_an_address_that_is_none_is_told_unseen(make_pool: MakePool, given: Any, told: str) -> None:
    pool = make_pool("ws://shop", manager_kwargs={"resolve": lambda *_: given})
    with pytest.raises(ConnectionError) as caught:
        call(pool)
    assert f'cannot connect to ws://shop/: manager_kwargs["resolve"]() {told}' in str(caught.value)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_what_it_raises_is_the_cause_as_it_is(make_pool: MakePool) -> None:
    raised = LookupError("my own text")

    def resolve(_uri: str, _timeout: float) -> str:
        raise raised

    pool = make_pool("ws://shop", manager_kwargs={"resolve": resolve})
    with pytest.raises(ConnectionError, match=r'"resolve"\]\(\) raised LookupError in resolve') as caught:
        call(pool)
    assert caught.value.__cause__ is raised
    assert [frame.name for frame in traceback.extract_tb(raised.__traceback__)] == ["resolve"]
    assert "my own text" not in str(caught.value)


def test_one_that_is_late_fails_within_the_dials_time(
    echo: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.opening._OVERDUE", 5.0)  # s: on a busy machine it wakes later than 0.1 s

    def resolve(_uri: str, timeout: float) -> str:
        sleep(timeout)
        return echo.uri

    pool = make_pool("ws://shop", manager_kwargs={"resolve": resolve, "connect_timeout": 0.1})
    with pytest.raises(TimeoutError, match="took all of its time") as caught:
        call(pool)
    assert (caught.value.operation, caught.value.timeout) == ("connect", 0.1)
    assert echo.requests == []


async def later(_uri: str, _timeout: float) -> str:
    return ""


def test_what_can_not_be_called_is_refused_when_the_pool_is_made(make_pool: MakePool) -> None:
    for wrong in ("ws://h", later):
        with pytest.raises(TypeError, match="resolve"):
            make_pool("ws://shop", manager_kwargs={"resolve": wrong})
    pool = make_pool("ws://shop", manager_kwargs={"resolve": lambda *_: later("", 0)})
    with pytest.raises(ConnectionError, match="it returned an awaitable"):
        call(pool)


# --- auth


def test_resolve_comes_first(echo: EchoServer, make_pool: MakePool) -> None:
    auth = Own(lambda uri: Prepared(f"{uri}?t=1", {"X-T": "2"}, ["t.3"]))
    options = {"resolve": lambda *_: f"{echo.uri}/there", "auth": auth}
    call(make_pool("ws://shop", manager_kwargs=options))
    assert auth.asked[0][0] == f"{echo.uri}/there"
    assert echo.paths == ["/there?t=1"]
    assert sent_to(echo)["X-T"] == "2"
    assert sent_to(echo)["Sec-WebSocket-Protocol"] == "t.3"


def test_the_userinfo_of_an_address_is_not_told_to_auth_and_is_sent(
    echo: EchoServer, make_pool: MakePool
) -> None:
    auth = Own(Prepared)
    address = echo.uri.replace("://", "://you:pw@") + "/"
    call(make_pool("ws://me:no@shop", manager_kwargs={"resolve": lambda *_: address, "auth": auth}))
    assert auth.asked[0][0] == f"{echo.uri}/"
    assert sent_to(echo)["Authorization"] == "Basic " + base64.b64encode(b"you:pw").decode()
    more = Own(lambda uri: Prepared(f"{uri}?t=1"))
    call(make_pool("ws://me:no@shop", manager_kwargs={"resolve": lambda *_: address, "auth": more}))
    assert sent_to(echo)["Authorization"] == "Basic " + base64.b64encode(b"you:pw").decode()


def test_it_is_not_asked_for_another_origin_than_the_pools_own(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    ours, other = echo_server(), echo_server()
    for options, asked in (({}, 1), ({"cross_origin_headers": True}, 2)):
        auth = Own(lambda uri: Prepared(uri, {"X-T": "1"}))
        pool = make_pool(ours, manager_kwargs={"auth": auth, **options})
        call(pool)
        call(pool, f"{other.uri}/")
        assert len(auth.asked) == asked
        assert ("X-T" in sent_to(other)) is (asked == 2)


@pytest.mark.parametrize("again", [True, False])
@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden", "404 Not Found"])
def test_it_is_told_of_a_refusal_and_asked_once_more(
    raw_server: MakeRaw, make_pool: MakePool, again: bool, status: str
) -> None:
    server = raw_server(answer(status))
    auth = Own(lambda uri: Prepared(uri, {"X-T": SECRET}), again=again)
    pool = make_pool(server, manager_kwargs={"auth": auth, "connect_attempts": 3})
    with pytest.raises(HandshakeError, match=status[:3]):
        call(pool)
    if status.startswith("404"):
        assert (len(auth.asked), len(auth.refusals)) == (1, 0)
    else:
        assert (len(auth.asked), len(auth.refusals)) == ((2, 2) if again else (1, 1))
        assert isinstance(auth.refusals[0], Prepared)
    assert server.accepted == len(auth.asked)
    assert not faults(pool)


@pytest.mark.parametrize("method", ["prepare", "refused"])
def test_what_it_raises_is_the_cause(raw_server: MakeRaw, make_pool: MakePool, method: str) -> None:
    raised = KeyError("my own text")
    auth = Own(raised) if method == "prepare" else Own(Prepared, again=raised)
    pool = make_pool(raw_server(answer("401 Unauthorized")), manager_kwargs={"auth": auth})
    with pytest.raises(ConnectionError, match=rf'"auth"\]\.{method}\(\) raised KeyError') as caught:
        call(pool)
    assert caught.value.__cause__ is raised
    assert "my own text" not in str(caught.value)


def test_an_error_of_ours_keeps_its_kind_and_facts(echo: EchoServer, make_pool: MakePool) -> None:
    cause = OSError(5, "x")
    failure = HandshakeError("no ticket today", 503, 7.5)
    failure.__cause__ = cause
    pool = make_pool(echo, manager_kwargs={"auth": Own(failure)})
    with pytest.raises(HandshakeError) as caught:
        call(pool)
    assert str(caught.value) == f"cannot connect to {echo.uri}/: no ticket today"
    assert (caught.value.status_code, caught.value.retry_after) == (503, 7.5)
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("ws://h/", "Own.prepare() returned a str; it must be a jetsocket.auth.Prepared"),
        (Prepared(f"/{SECRET}"), "Own.prepare() returned a Prepared with an invalid URI: no scheme"),
    ],
)
def test_what_it_must_not_answer_is_told(make_pool: MakePool, given: Any, told: str) -> None:
    with pytest.raises(ConnectionError) as caught:
        call(make_pool("ws://shop", manager_kwargs={"auth": Own(lambda _: given)}))
    assert told in str(caught.value)
    assert SECRET not in str(caught.value)


def test_no_repr_shows_what_it_holds(make_pool: MakePool) -> None:
    assert repr(Options(auth=Own())) == "Options(auth=<Own>)"
    with pytest.raises(TypeError, match=r'manager_kwargs\["auth"\] must be') as caught:
        make_pool("ws://shop", manager_kwargs={"auth": SECRET})
    assert SECRET not in str(caught.value)


def test_what_a_server_repeats_of_a_secret_path_is_not_shown(
    raw_server: MakeRaw, make_pool: MakePool
) -> None:
    server = raw_server(answer("404 Not Found", [], f"nothing at /x/{SECRET}/y".encode()))
    pool = make_pool("ws://shop", manager_kwargs={"auth": Own(Prepared(f"{server.uri}/x/{SECRET}/y"))})
    with pytest.raises(HandshakeError, match=r"says .nothing at /x/\*\*\*/y") as caught:
        call(pool)
    assert SECRET not in "".join(traceback.format_exception(caught.value))


# --- who gets what


@pytest.mark.parametrize("cross", [False, True])
def test_what_is_the_logical_uris_own_goes_to_its_origin_only(
    echo_server: MakeServer, make_pool: MakePool, cross: bool
) -> None:
    home, away = echo_server(), echo_server()
    base = home.uri.replace("://", "://me:pw@")
    for server in (home, away):
        options = {**OURS, "cross_origin_headers": cross, "resolve": lambda *_: f"{server.uri}/x"}  # noqa: B023  # called in this round
        call(make_pool(base, manager_kwargs=options))
    assert sent_to(home)["X-Key"] == "k"
    assert sent_to(home)["Cookie"] == "c=1"
    assert sent_to(home)["Authorization"] == "Basic " + base64.b64encode(b"me:pw").decode()
    assert ("X-Key" in sent_to(away)) is cross
    assert "Cookie" not in sent_to(away)
    assert "Authorization" not in sent_to(away)


def test_headers_that_do_not_go_are_not_asked_for(echo: EchoServer, make_pool: MakePool) -> None:
    asked = []
    options = {"extra_headers": lambda: asked.append(1) or {}, "resolve": lambda *_: echo.uri}
    call(make_pool("ws://shop", manager_kwargs=options))
    assert asked == []


def test_what_auth_adds_takes_the_place_of_others(echo: EchoServer, make_pool: MakePool) -> None:
    auth = Own(lambda uri: Prepared(uri, {"authorization": "Mine", "Cookie": "t=1"}))
    given = {"Authorization": "Other", "X-Key": "k"}
    base = echo.uri.replace("://", "://me:pw@")
    call(make_pool(base, manager_kwargs={"auth": auth, "extra_headers": given, "cookie": "c=1"}))
    headers = sent_to(echo)
    assert headers.get_all("Authorization") == ["Mine"]
    assert headers.get_all("Cookie") == ["t=1"]
    assert headers["X-Key"] == "k"


def test_a_unix_socket_and_a_servers_name_are_the_logical_uris(
    echo_tls: EchoServer, tls: Tls, make_pool: MakePool
) -> None:
    """The name would be wrong elsewhere, and the socket leads to another server."""
    options = {
        "resolve": lambda *_: f"{echo_tls.uri}/",
        "ssl_context": tls.client_context,
        "server_hostname": "shop",
        "unix": "/nowhere",
    }
    call(make_pool("wss://shop", manager_kwargs=options))


@pytest.fixture
def curious(tls: Tls) -> Iterator[EchoServer]:
    """A server that asks for a client certificate, and notes whether it gets one."""
    context = tls.issue("127.0.0.1")
    context.verify_mode = ssl.CERT_OPTIONAL
    tls.ca.configure_trust(context)

    def handler(conn: Connection) -> None:
        assert isinstance(conn.socket, ssl.SSLSocket)
        certificates.append(bool(conn.socket.getpeercert()))
        echo(conn)

    certificates: list[bool] = []
    with EchoServer(handler, ssl_context=context) as server:
        server.certificates = certificates  # type: ignore[attr-defined]  # for these tests
        yield server


def with_certificate(tls: Tls) -> ssl.SSLContext:
    context = tls.trusting()
    tls.ca.issue_cert("client@example.com").configure_cert(context)
    return context


def test_a_client_certificate_is_shown_to_the_logical_uris_origin_only(
    curious: EchoServer, tls: Tls, make_pool: MakePool
) -> None:
    context = with_certificate(tls)
    for base, path in ((curious.uri, "/x"), ("wss://shop", "/x"), ("ws://shop", "/y")):
        options = {"ssl_context": context, "resolve": lambda *_: f"{curious.uri}/x"}
        pool = make_pool(base, manager_kwargs=options)
        call(pool, path)
        pool.close()
    assert curious.certificates == [True, False, False]  # type: ignore[attr-defined]  # see above


def test_a_context_without_a_certificate_trusts_what_the_other_does(tls: Tls) -> None:
    context = with_certificate(tls)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    plain = without_certificate(context)
    assert plain is without_certificate(context)  # loading authorities takes long
    for name in ("verify_mode", "check_hostname", "verify_flags", "options", "minimum_version"):
        assert getattr(plain, name) == getattr(context, name)
    assert plain.get_ca_certs(binary_form=True) == context.get_ca_certs(binary_form=True)
    trusting_none = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting_none.check_hostname, trusting_none.verify_mode = False, ssl.CERT_NONE
    assert without_certificate(trusting_none).verify_mode == ssl.CERT_NONE


def test_a_context_that_asks_the_system_can_not_be_read_and_needs_not() -> None:
    class Truststore(ssl.SSLContext):
        def get_ca_certs(self, binary_form: bool = False) -> Any:
            raise NotImplementedError

    plain = without_certificate(Truststore(ssl.PROTOCOL_TLS_CLIENT))
    assert type(plain) is Truststore
    assert plain.verify_mode == ssl.CERT_REQUIRED


def test_a_token_among_the_subprotocols_does_not_follow_a_redirect_elsewhere(
    echo_tls: EchoServer, tls: Tls, raw_server: MakeRaw, make_pool: MakePool
) -> None:
    """From ws to wss on another port: what is offered goes there, what is secret does not."""
    plain = raw_server(answer("302 Found", [("Location", f"{echo_tls.uri}/x")]))
    auth = Own(lambda uri: Prepared(uri, {"X-T": SECRET}, [SECRET]))
    options = {"auth": auth, "subprotocols": ["chat"], "ssl_context": tls.client_context}
    call(make_pool(plain, manager_kwargs=options))
    assert sent_to(echo_tls)["Sec-WebSocket-Protocol"] == "chat"
    assert "X-T" not in sent_to(echo_tls)


def test_prewarming_and_keeping_go_by_the_logical_uri(echo: EchoServer, make_pool: MakePool) -> None:
    numbers = iter(range(100))
    options = {"resolve": lambda *_: f"{echo.uri}/{next(numbers)}"}
    pool = make_pool("ws://shop", manager_kwargs=options, max_connections=3)
    assert pool.prewarm("/", 3, keep=True) == 3
    assert sorted(echo.paths) == ["/0", "/1", "/2"]
    assert pool.stats().idle_connections == 3
    echo.cut_all()
    wait_until(lambda: len(echo.paths) >= 6 and pool.stats().idle_connections == 3)
    assert pool.clear("/") == 3
