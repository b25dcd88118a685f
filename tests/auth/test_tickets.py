"""Tickets that a service gives out by HTTP: where they go, how often one is used, and who waits for whom.

Also tests: `http`.
"""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import pytest
import requests
import responses
from websockets.http11 import Request

from jetsocket import ConnectionError, HandshakeError, JetSocketError, PoolExhaustedError, TimeoutError
from jetsocket.auth import Prepared, TicketAuth
from tests.auth.conftest import Door, call
from tests.crowds import crowd, errors
from tests.servers import EchoServer, RawServer, drip, hold, refusing_port, wait_until

MakePool = Callable[..., Any]
URL = "https://api.example/tickets"
SECRET = "s3cr3t-0123456789abcdef"


class Office:
    """Gives out numbered tickets, in the way of `responses`' callbacks."""

    def __init__(self, http: responses.RequestsMock, method: str = "POST", url: str = URL) -> None:
        self.asked: list[requests.PreparedRequest] = []
        self.status, self.headers = 200, {"Content-Type": "application/json"}
        self.before: Callable[[], Any] = lambda: None
        http.add_callback(method, url, self)

    def __call__(self, request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        self.asked.append(request)
        number = len(self.asked)
        self.before()
        body = {
            "data": {"ticket": f"ticket-{number}", "list": [f"ticket-{number}"]},
            "message": f"no {SECRET}",
        }
        return self.status, self.headers, json.dumps(body)


@pytest.fixture
def office(http: responses.RequestsMock) -> Office:
    return Office(http)


def ticket_auth(**given: Any) -> TicketAuth:
    return TicketAuth(URL, **{"ticket": "data.ticket", "place": "query:t", **given})


# --- where it goes


def test_in_the_query(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    pool = make_pool(server, manager_kwargs={"auth": ticket_auth(place="query:my ticket")})
    call(pool, "/feed?a=1")
    call(pool, "/feed")
    assert server.paths == ["/feed?a=1&my%20ticket=ticket-1", "/feed?my%20ticket=ticket-2"]


def test_a_ticket_is_percent_encoded_in_the_query(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    http.post(URL, json={"data": {"ticket": "a+b/c&d=e é"}})
    call(make_pool(server, manager_kwargs={"auth": ticket_auth()}))
    assert server.paths == ["/?t=a%2Bb%2Fc%26d%3De%20%C3%A9"]


def test_in_a_header(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    options = {
        "auth": ticket_auth(place="header:X-Ticket"),
        "extra_headers": {"x-ticket": "old", "X-Other": "1"},
    }
    call(make_pool(server, manager_kwargs=options))
    headers = server.requests[0].headers
    assert headers.get_all("X-Ticket") == ["ticket-1"]  # in place of the other one
    assert headers["X-Other"] == "1"


def test_as_a_subprotocol_behind_the_others(
    echo_server: Callable[..., EchoServer], office: Office, make_pool: MakePool
) -> None:
    server = echo_server(subprotocols=["chat"])
    options = {"auth": ticket_auth(place="subprotocol"), "subprotocols": ["chat"]}
    with make_pool(server, manager_kwargs=options).acquire("/") as conn:
        assert conn.subprotocol == "chat"
    assert server.requests[0].headers["Sec-WebSocket-Protocol"] == "chat, ticket-1"


def test_as_the_address_itself_while_the_pool_goes_by_its_own_name(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    http.post(URL, json={"data": {"ticket": f"{server.uri}/{SECRET}?t={SECRET}"}})
    pool = make_pool("wss://service", manager_kwargs={"auth": ticket_auth(place="uri")}, max_connections=1)
    with pool.acquire("/room") as conn:
        assert conn.request({"a": 1}, 5) == {"a": 1}
        shown = [conn.uri, repr(conn), repr(pool), repr(pool.leases()), repr(pool.connections())]
    assert conn.uri == "wss://service/room"
    call(pool, "/room")  # the same connection
    assert server.paths == [f"/{SECRET}?t={SECRET}"]
    assert pool.stats().reuses == 1
    assert [info.uri for info in pool.connections()] == ["wss://service/room"]
    log = [line for line in caplog.text.splitlines() if "websockets.server" not in line]
    assert SECRET not in "\n".join([*shown, *log, repr(pool.__dict__)])


# --- how it is got


def test_the_request_is_as_it_is_told(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    office = Office(http, "PUT")
    given = {"method": "PUT", "headers": {"X-Key": "k"}, "json": {"scope": "feed"}}
    call(make_pool(server, manager_kwargs={"auth": ticket_auth(**given)}))
    assert office.asked[0].headers["X-Key"] == "k"
    assert json.loads(office.asked[0].body or "") == {"scope": "feed"}


def test_a_form_and_headers_that_are_asked_for_each_time(
    server: EchoServer, office: Office, make_pool: MakePool
) -> None:
    numbers = iter(range(9))
    auth = ticket_auth(data={"user": "me"}, headers=lambda: {"X-Nonce": str(next(numbers))})
    pool = make_pool(server, manager_kwargs={"auth": auth})
    call(pool)
    pool.clear()
    call(pool)
    assert [request.body for request in office.asked] == ["user=me"] * 2
    assert [request.headers["X-Nonce"] for request in office.asked] == ["0", "1"]


def test_a_function_finds_it_in_the_answer(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    """A session of Django's, say, whose login redirects; the session of `requests` is not to follow."""
    http.post(URL, status=302, headers={"Location": "/", "Set-Cookie": "sessionid=abc; Path=/"})
    auth = ticket_auth(
        ticket=lambda answer: f"sessionid={answer.cookies['sessionid']}", place="header:Cookie"
    )
    call(make_pool(server, manager_kwargs={"auth": auth, "cookie": "other=1"}))
    assert server.requests[0].headers["Cookie"] == "sessionid=abc"


def test_a_function_can_read_the_body(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    auth = ticket_auth(ticket=lambda answer: answer.json()["data"]["ticket"] + answer.text[:1])
    call(make_pool(server, manager_kwargs={"auth": auth}))
    assert server.paths == ["/?t=ticket-1%7B"]


def test_a_path_counts_in_lists(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    call(make_pool(server, manager_kwargs={"auth": ticket_auth(ticket="data.list.0")}))
    assert server.paths == ["/?t=ticket-1"]


def test_a_session_of_ones_own_is_used(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    with requests.Session() as session:
        session.headers["X-Mine"] = "1"
        session.cookies.set("sessionid", "abc", domain="api.example")
        call(make_pool(server, manager_kwargs={"auth": ticket_auth(session=session)}))
    assert office.asked[0].headers["X-Mine"] == "1"
    assert office.asked[0].headers["Cookie"] == "sessionid=abc"


def test_another_librarys_session_will_do(server: EchoServer, make_pool: MakePool) -> None:
    class Answer:
        status_code, reason_phrase, headers, content, request = 200, "OK", {}, b"", None

        def json(self) -> Any:
            return {"data": {"ticket": 7}}

    class Client:
        def request(self, method: str, url: str, *, timeout: float, headers: Any) -> Answer:
            assert (method, url, headers) == ("POST", URL, {})
            assert 0 < timeout <= 10
            return Answer()

    call(make_pool(server, manager_kwargs={"auth": ticket_auth(session=Client())}))
    assert server.paths == ["/?t=7"]


def test_a_netrc_does_not_take_the_place_of_a_header(
    office: Office, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.example login me password pw\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    ticket_auth(headers={"authorization": "Bearer mine"}).prepare("ws://h/", 5)
    ticket_auth().prepare("ws://h/", 5)
    assert office.asked[0].headers["authorization"] == "Bearer mine"
    assert office.asked[1].headers["Authorization"].startswith("Basic ")


# --- how often it is used


def test_each_connection_has_its_own_unless_told_otherwise(
    server: EchoServer, office: Office, make_pool: MakePool
) -> None:
    pool = make_pool(server, manager_kwargs={"auth": ticket_auth()}, max_connections=4)
    assert pool.prewarm("/", 4) == 4
    assert sorted(server.paths) == [f"/?t=ticket-{number}" for number in range(1, 5)]


def test_sixty_calls_need_one_connection(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    pool = make_pool(server, manager_kwargs={"auth": ticket_auth()})
    for _ in range(60):
        call(pool)
    assert server.opened == len(office.asked) == 1


def test_one_for_all_is_got_once(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    pool = make_pool(server, manager_kwargs={"auth": ticket_auth(uses=None)}, max_connections=6)
    assert pool.prewarm("/", 6) == 6
    assert server.paths == ["/?t=ticket-1"] * 6
    assert len(office.asked) == 1


def test_one_whose_time_is_over_is_got_again(
    server: EchoServer, office: Office, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = ticket_auth(uses=None, lifetime=60)
    auth.prepare("ws://h/", 5)
    auth.prepare("ws://h/", 5)
    assert len(office.asked) == 1
    real = sys.modules["jetsocket.clock"].monotonic  # type: ignore[attr-defined]  # a module's
    monkeypatch.setattr("jetsocket.auth.tickets.monotonic", lambda: real() + 61)
    assert auth.prepare("ws://h/", 5).uri == "ws://h/?t=ticket-2"


@pytest.mark.parametrize("status", [HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN])
def test_a_refused_crowd_gets_one_new_ticket(
    server: EchoServer, door: Door, office: Office, make_pool: MakePool, status: HTTPStatus
) -> None:
    auth = ticket_auth(uses=None)
    auth.prepare(server.uri, 5)  # ticket-1, which is good no more
    door.admits, door.status = lambda request: "ticket-2" in request.path, status
    together = threading.Barrier(6)
    admits = door.admits

    def wait_for_all(request: Request) -> bool:
        if "ticket-1" in request.path:
            together.wait(5)
        return admits(request)

    door.admits = wait_for_all
    pool = make_pool(server, manager_kwargs={"auth": auth}, max_connections=6)
    outcomes = crowd(6, lambda _: hold_one(pool, server))
    assert errors(outcomes) == []
    assert len(door.refused) == 6
    assert len(office.asked) == 2


def hold_one(pool: Any, server: EchoServer) -> Any:
    with pool.acquire("/", 10) as conn:
        wait_until(lambda: server.opened >= 6, 10)
        return conn.request({"a": 1}, 5)


def test_it_is_tried_once_more_and_no_oftener(
    server: EchoServer, door: Door, office: Office, make_pool: MakePool
) -> None:
    door.admits = lambda _: False
    options = {"auth": ticket_auth(), "connect_attempts": 5}
    pool = make_pool(server, manager_kwargs=options)
    with pytest.raises(HandshakeError) as caught:
        call(pool)
    assert caught.value.status_code == 401
    assert [request.path for request in door.refused] == ["/?t=ticket-1", "/?t=ticket-2"]
    assert pool.stats().connect_errors == 2
    door.admits = lambda _: True
    assert call(pool) == {"hello": 1}


def test_other_refusals_do_not_ask_for_another(
    server: EchoServer, door: Door, office: Office, make_pool: MakePool
) -> None:
    door.admits, door.status = lambda _: False, HTTPStatus.NOT_FOUND
    with pytest.raises(HandshakeError):
        call(make_pool(server, manager_kwargs={"auth": ticket_auth()}))
    assert len(office.asked) == 1


def test_a_failure_is_told_to_all_that_waited(
    server: EchoServer, office: Office, make_pool: MakePool
) -> None:
    office.status = 403
    office.before = lambda: wait_until(lambda: pool.stats().connecting == 6)
    pool = make_pool(server, manager_kwargs={"auth": ticket_auth(uses=None)}, max_connections=6)
    outcomes = crowd(6, lambda _: call(pool))
    assert [type(each) for each in errors(outcomes)] == [HandshakeError] * 6
    assert len(office.asked) < 6
    assert server.requests == []


# --- what goes wrong


def told_by(pool: Any, kind: type[JetSocketError]) -> Any:
    """The error of an acquire; nothing that a report would show of it is secret."""
    with pytest.raises(kind) as caught:
        call(pool)
    error = caught.value
    copy = pickle.loads(pickle.dumps(error))
    shown = [
        "".join(traceback.format_exception(error)),
        str(error),
        repr(error),
        repr(error.args),
        repr(copy),
    ]
    assert SECRET not in "\n".join(shown)
    each: BaseException | None = error
    while each is not None:
        assert SECRET not in repr(each.__dict__ | {"body": None})  # which may be looked at, and is in no log
        each = each.__cause__
    return error


def secret_auth(url: str = URL, **given: Any) -> TicketAuth:
    """One whose every part is secret."""
    where = f"{url}?key={SECRET}"
    given = {"headers": {"X-Key": SECRET}, "json": {"password": [SECRET]}, **given}
    return TicketAuth(where, **{"ticket": "data.ticket", "place": "query:t", **given})


def test_a_refusal_names_its_status_and_what_it_says(
    server: EchoServer, office: Office, make_pool: MakePool
) -> None:
    office.status, office.headers = 429, {"Content-Type": "application/json", "Retry-After": "30"}
    error = told_by(make_pool(server, manager_kwargs={"auth": secret_auth()}), HandshakeError)
    assert (error.status_code, error.retry_after) == (429, 30)
    assert str(error) == (
        f"cannot connect to {server.uri}/: there is no ticket from {URL}?key=***: it answered 429 Too Many"
        ' Requests and says "no ***"; it asks for 30 s of patience'
    )
    assert error.headers["retry-after"] == "30"
    assert SECRET.encode() in error.body


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"data": {"ticket": SECRET}}, "it answered 500 Internal Server Error"),
        ({"error": "busy", "token": SECRET}, 'it answered 500 Internal Server Error and says "busy"'),
    ],
)
def test_json_of_a_refusal_that_says_nothing_to_people_may_be_a_ticket(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool, body: Any, told: str
) -> None:
    http.post(URL, status=500, json=body)
    error = told_by(make_pool(server, manager_kwargs={"auth": ticket_auth()}), HandshakeError)
    assert str(error).endswith(told)


def test_form_values_are_secret_too(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    http.post(URL, status=400, body=f"bad a+{SECRET} or a%2B{SECRET} or a {SECRET}")
    auth = secret_auth(json=None, data={"password": f"a+{SECRET}"})
    error = told_by(make_pool(server, manager_kwargs={"auth": auth}), HandshakeError)
    assert "400" in str(error)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"json": {"data": {}}}, "it answered 200 OK without 'data.ticket'"),
        ({"json": [SECRET]}, "it answered 200 OK without 'data.ticket'"),
        ({"body": f"<p>{SECRET}"}, "it answered 200 OK without JSON"),
        ({"json": {"data": {"ticket": ""}}}, "it answered 200 OK, with an empty text in its place"),
        (
            {"json": {"data": {"ticket": [SECRET]}}},
            "it answered 200 OK, with a value of type list in its place",
        ),
        ({"status": 302, "headers": {"Location": "/"}}, "it answered 302 Found without 'data.ticket'"),
        ({"body": b"x" * 1048577}, "it answered 200 OK and more than 1048576 B"),
    ],
)
def test_an_answer_without_a_ticket_names_its_status(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool, answer: dict[str, Any], told: str
) -> None:
    http.post(URL, **answer)
    error = told_by(make_pool(server, manager_kwargs={"auth": secret_auth()}), ConnectionError)
    assert str(error).endswith(told)
    assert server.requests == []


@pytest.mark.parametrize(
    ("place", "ticket", "told"),
    [
        ("subprotocol", f"{SECRET}=", "(place='subprotocol'): Prepared.subprotocols must be made of tokens"),
        (
            "header:X-T",
            f"{SECRET}\n",
            "(place='header:X-T'): Prepared.headers: the value of header X-T must be",
        ),
        ("uri", f"https://{SECRET}", "an invalid URI: the scheme https is HTTP's; say wss://"),
        ("uri", SECRET, "an invalid URI: no scheme; write ws://host/path or wss://host/path"),
    ],
)
def test_a_ticket_that_can_not_go_there_is_not_shown(
    http: responses.RequestsMock, make_pool: MakePool, place: str, ticket: str, told: str
) -> None:
    http.post(URL, json={"data": {"ticket": ticket}})
    auth = secret_auth(place=place)
    assert told in str(told_by(make_pool("ws://service", manager_kwargs={"auth": auth}), ConnectionError))


def test_no_answer_has_the_systems_error_as_its_cause(server: EchoServer, make_pool: MakePool) -> None:
    with refusing_port() as port:
        auth = secret_auth(f"http://127.0.0.1:{port}/")
        error = told_by(make_pool(server, manager_kwargs={"auth": auth}), ConnectionError)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert str(error).endswith("Connection refused")


@pytest.mark.parametrize("given", [{}, {"json": None, "data": {"password": SECRET}}])
def test_a_systems_error_that_repeats_what_was_sent_is_censored(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool, given: dict[str, Any]
) -> None:
    http.post(URL, body=OSError(5, f"can't send {SECRET}"))
    error = told_by(make_pool(server, manager_kwargs={"auth": secret_auth(**given)}), ConnectionError)
    assert isinstance(error.__cause__, OSError) and error.__cause__.errno == 5
    assert str(error).endswith("can't send ***")


def test_an_unknown_host_is_told(
    server: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, no_proxy_from_outside: None
) -> None:
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host == "nowhere.invalid":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    auth = secret_auth("https://nowhere.invalid/")
    error = told_by(make_pool(server, manager_kwargs={"auth": auth}), ConnectionError)
    assert isinstance(error.__cause__, socket.gaierror)


def test_a_mute_service_is_late_within_the_dials_time(
    server: EchoServer, raw_server: Callable[..., RawServer], make_pool: MakePool
) -> None:
    mute = raw_server(hold)
    auth = secret_auth(mute.uri.replace("ws:", "http:") + "/")
    pool = make_pool(server, manager_kwargs={"auth": auth, "connect_timeout": 0.3})
    error = told_by(pool, TimeoutError)
    assert not isinstance(error, PoolExhaustedError)
    assert error.timeout == 0.3
    assert "s were not enough for the answer" in str(error)


@pytest.mark.parametrize("framing", [b"Content-Length: 500000\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_a_service_that_drips_its_answer_is_late_as_one_that_is_mute(
    raw_server: Callable[..., RawServer], framing: bytes
) -> None:
    whole = threading.Event()

    def answer(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n")
        drip(sock, b"1\r\n \r\n" * 200, 0.02, 6)
        whole.set()

    auth = secret_auth(raw_server(answer).uri.replace("ws:", "http:") + "/")
    with pytest.raises(TimeoutError, match="s were not enough for the answer"):
        auth.prepare("ws://h/", 0.15)
    assert not whole.is_set()


def test_a_sessions_connection_is_used_again(raw_server: Callable[..., RawServer]) -> None:
    ticket = b'{"data": {"ticket": "t"}}'
    coded = gzip.compress(ticket)
    answers = iter(
        [
            b"Content-Length: %d\r\n\r\n%b" % (len(ticket), ticket),
            b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(ticket), ticket),
            b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(coded), coded),
            b"Content-Length: %d\r\n\r\n%b" % (len(ticket), ticket),
        ]
    )

    def answer(sock: socket.socket) -> None:
        while sock.recv(65536):
            sock.sendall(b"HTTP/1.1 200 OK\r\n" + next(answers))

    service = raw_server(answer)
    with requests.Session() as session:
        auth = TicketAuth(
            service.uri.replace("ws:", "http:") + "/", session, "GET", ticket="data.ticket", place="query:t"
        )
        assert [auth.prepare("ws://h/", 5).uri for _ in range(4)] == ["ws://h/?t=t"] * 4
    assert service.accepted == 1


def test_what_a_function_raises_is_the_cause_as_it_is(
    server: EchoServer, office: Office, make_pool: MakePool
) -> None:
    raised = KeyError("my own text")

    def ticket(answer: Any) -> str:
        raise raised

    with pytest.raises(ConnectionError, match=r"200 OK, and ticket\(\) raised KeyError in ticket") as caught:
        call(make_pool(server, manager_kwargs={"auth": ticket_auth(ticket=ticket)}))
    assert caught.value.__cause__ is raised
    frames = traceback.extract_tb(raised.__traceback__)
    assert [frame.name for frame in frames] == ["ticket"]  # none of ours, which know the answer


def test_so_is_what_headers_raise(server: EchoServer, office: Office, make_pool: MakePool) -> None:
    auth = ticket_auth(headers=lambda: 1 / 0)
    with pytest.raises(
        ConnectionError, match=r"headers\(\) of TicketAuth raised ZeroDivisionError"
    ) as caught:
        call(make_pool(server, manager_kwargs={"auth": auth}))
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(ConnectionError, match=r"headers\(\) of TicketAuth must be a mapping"):
        call(make_pool(server, manager_kwargs={"auth": ticket_auth(headers=lambda: SECRET)}))


# --- what is given


@pytest.mark.parametrize(
    ("given", "error", "told"),
    [
        ({"url": 1}, TypeError, "url must be a str"),
        ({"url": f"ws://{SECRET}/"}, ValueError, "url must be an absolute http"),
        ({"url": "/tickets"}, ValueError, "url must be an absolute http"),
        ({"session": SECRET}, TypeError, "session must be a requests.Session"),
        ({"headers": {"X": f"{SECRET}\n"}}, ValueError, "headers: the value of header X"),
        ({"headers": SECRET}, TypeError, "headers must be"),
        ({"ticket": None}, TypeError, "ticket must be"),
        ({"place": "cookie"}, ValueError, "place must be"),
        ({"place": "query"}, ValueError, "place must be"),
        ({"place": "uri:x"}, ValueError, "place must be"),
        ({"place": "header:a b"}, ValueError, "not a token"),
        ({"place": "header:Upgrade"}, ValueError, "belongs to the handshake"),
        ({"place": None}, TypeError, "place must be"),
        ({"lifetime": 0}, ValueError, "lifetime must be"),
        ({"uses": 2}, ValueError, "uses must be 1"),
        ({"uses": True}, ValueError, "uses must be 1"),
    ],
)
def test_what_can_not_be_is_refused_unseen(given: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told) as caught:
        TicketAuth(**{"url": URL, **given})
    assert SECRET not in str(caught.value)


async def later(_answer: Any = None) -> str:
    return SECRET


def test_async_functions_are_refused() -> None:
    with pytest.raises(TypeError, match="ordinary function"):
        TicketAuth(URL, ticket=later)  # type: ignore[arg-type]  # the mistake
    with pytest.raises(TypeError, match="ordinary function"):
        TicketAuth(URL, headers=later)  # type: ignore[arg-type]  # the mistake


def test_without_requests_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(ImportError, match=r'pip install "jetsocket\[http\]"') as caught:
        TicketAuth(URL)
    assert caught.value.name == "requests"


def test_its_repr_shows_no_secret() -> None:
    auth = TicketAuth(f"https://me:{SECRET}@h/x?k={SECRET}", headers={"X": SECRET}, uses=None)
    assert repr(auth) == "TicketAuth('https://h/x?k=***', place='query:ticket', uses=None)"


def test_what_another_has_prepared_is_no_ticket_of_its(office: Office) -> None:
    auth = ticket_auth(uses=None)
    auth.prepare("ws://h/", 5)
    assert auth.refused(Prepared("ws://h/")) is True
    auth.prepare("ws://h/", 5)
    assert len(office.asked) == 1
