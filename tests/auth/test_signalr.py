"""SignalR: `negotiate`, with and without another service behind it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import requests
import responses
from responses.matchers import header_matcher, query_param_matcher

from jetsocket import ConnectionError, HandshakeError
from jetsocket.auth import SignalR
from tests.auth.conftest import Door, call
from tests.servers import EchoServer

MakePool = Callable[..., Any]
SECRET = "s3cr3t-token"
VERSION = query_param_matcher({"negotiateVersion": "1"})
HANDSHAKE = '{"protocol": "json", "version": 1}\x1e'


def negotiated(number: int = 0, **given: Any) -> dict[str, Any]:
    return {
        "negotiateVersion": 1,
        "connectionId": f"id-{number}",
        "connectionToken": f"to/ken-{number}",
        "availableTransports": [{"transport": "WebSockets", "transferFormats": ["Text", "Binary"]}],
        **given,
    }


def hub(server: EchoServer) -> str:
    return server.uri.replace("ws:", "http:") + "/hub"


def test_each_connection_negotiates_and_configure_shakes_hands(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    for number in range(2):
        http.post(f"{hub(server)}/negotiate", json=negotiated(number), match=[VERSION])

    def shake_hands(conn: Any) -> None:
        conn.send_raw(HANDSHAKE)
        assert conn.recv_raw(5) == HANDSHAKE

    options = {"auth": SignalR(hub(server))}
    pool = make_pool("wss://hub", manager_kwargs=options, configure=shake_hands, max_connections=2)
    assert pool.prewarm("/", 2) == 2
    for _ in range(60):
        call(pool)
    assert sorted(server.paths) == ["/hub?id=to%2Fken-0", "/hub?id=to%2Fken-1"]


def test_a_query_and_the_first_version_of_the_protocol(
    server: EchoServer, http: responses.RequestsMock
) -> None:
    both = query_param_matcher({"a": "1", "negotiateVersion": "1"})
    http.post(f"{hub(server)}/negotiate", json=negotiated(negotiateVersion=0), match=[both])
    auth = SignalR(f"{hub(server)}/?a=1")
    assert auth.prepare("wss://hub/", 5).uri == f"{server.uri}/hub/?a=1&id=id-0"


@pytest.mark.parametrize("scheme", ["wss", "https"])
def test_a_hub_may_be_given_as_a_websocket(http: responses.RequestsMock, scheme: str) -> None:
    http.post("https://app.example/hub/negotiate", json=negotiated())
    prepared = SignalR(f"{scheme}://app.example/hub").prepare("wss://hub/", 5)
    assert prepared.uri == "wss://app.example/hub?id=to%2Fken-0"


def test_a_token_goes_to_both(server: EchoServer, http: responses.RequestsMock, make_pool: MakePool) -> None:
    sent = header_matcher({"Authorization": f"Bearer {SECRET}", "X-Key": "k"})
    http.post(f"{hub(server)}/negotiate", json=negotiated(), match=[sent])
    auth = SignalR(hub(server), token=lambda: SECRET, headers={"X-Key": "k"})
    call(make_pool("wss://hub", manager_kwargs={"auth": auth}))
    assert server.requests[0].headers["Authorization"] == f"Bearer {SECRET}"
    assert "X-Key" not in server.requests[0].headers


def test_another_service_gets_its_own_token_and_none_of_ours(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    """As Azure's: the app's hub names it, and gives out a token for it."""
    moved = {"url": f"{hub(server)}/client/?hub=chat", "accessToken": "azure"}
    http.post("https://app.example/hub/negotiate", json=moved)
    seen: list[requests.PreparedRequest] = []

    def negotiate(request: requests.PreparedRequest) -> tuple[int, dict[str, str], str]:
        seen.append(request)
        return 200, {"Content-Type": "application/json"}, json.dumps(negotiated())

    http.add_callback("POST", f"{hub(server)}/client/negotiate", negotiate)
    auth = SignalR("https://app.example/hub", token=SECRET, headers={"X-Key": SECRET})
    call(make_pool("wss://hub", manager_kwargs={"auth": auth}))
    assert seen[0].headers["Authorization"] == "Bearer azure"
    assert "X-Key" not in seen[0].headers
    assert server.paths == ["/hub/client/?hub=chat&id=to%2Fken-0"]
    assert server.requests[0].headers["Authorization"] == "Bearer azure"


def test_a_service_without_a_token_gets_none(server: EchoServer, http: responses.RequestsMock) -> None:
    http.post("https://app.example/hub/negotiate", json={"url": hub(server)})
    http.post(f"{hub(server)}/negotiate", json=negotiated())
    prepared = SignalR("https://app.example/hub", token=SECRET).prepare("wss://hub/", 5)
    assert prepared.headers == ()
    assert "Authorization" not in http.calls[1].request.headers


def test_cookies_lead_to_the_server_that_knows_the_id(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    http.post(f"{hub(server)}/negotiate", json=negotiated(), headers={"Set-Cookie": "lb=node-3; Path=/"})
    with requests.Session() as session:
        session.cookies.set("auth", "me")
        call(make_pool("wss://hub", manager_kwargs={"auth": SignalR(hub(server), session=session)}))
    assert sorted(server.requests[0].headers["Cookie"].split("; ")) == ["auth=me", "lb=node-3"]


def test_a_refused_connection_negotiates_once_more(
    server: EchoServer, door: Door, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    door.admits = lambda request: "ken-1" in request.path
    for number in range(2):
        http.post(f"{hub(server)}/negotiate", json=negotiated(number))
    call(make_pool("wss://hub", manager_kwargs={"auth": SignalR(hub(server))}))
    assert len(http.calls) == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"error": f"not with {SECRET}"}, 'it answered 200 OK and says "not with ***"'),
        (negotiated(availableTransports=[]), "without 'WebSockets' among its 'availableTransports'"),
        (negotiated(availableTransports=None), "without 'WebSockets' among its 'availableTransports'"),
        (negotiated(connectionToken=None), "without 'connectionToken'"),
        ({"url": f"ws://{SECRET}"}, "without a valid 'url'"),
        ({"url": 7}, "without a valid 'url'"),
        ([], "without 'WebSockets'"),
    ],
)
def test_a_refusal_says_why(
    http: responses.RequestsMock, make_pool: MakePool, answer: Any, told: str
) -> None:
    http.post("https://app.example/hub/negotiate", json=answer)
    pool = make_pool("wss://hub", manager_kwargs={"auth": SignalR("https://app.example/hub", token=SECRET)})
    with pytest.raises(HandshakeError) as caught:
        call(pool)
    assert told in str(caught.value)
    assert caught.value.status_code == 200
    assert SECRET not in str(caught.value)


def test_services_that_name_each_other_end(http: responses.RequestsMock, make_pool: MakePool) -> None:
    http.post("https://app.example/hub/negotiate", json={"url": "https://app.example/hub"})
    pool = make_pool("wss://hub", manager_kwargs={"auth": SignalR("https://app.example/hub")})
    with pytest.raises(ConnectionError, match="100 times it named another service"):
        call(pool)
    assert len(http.calls) == 100


def test_it_shows_no_secret() -> None:
    auth = SignalR(f"https://me:{SECRET}@h/hub?k={SECRET}", token=SECRET)
    assert repr(auth) == "SignalR('https://h/hub?k=***')"
    for given in ({"hub_url": "/hub"}, {"hub_url": "https://h/hub", "token": f"{SECRET} "}):
        with pytest.raises(ValueError, match=r"token|hub_url") as caught:
            SignalR(**given)
        assert SECRET not in str(caught.value)
