"""Slack's Socket Mode: the service is called by a name of ours, and each connection has its address."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import responses

from jetsocket import HandshakeError
from jetsocket.auth import SlackSocketMode
from tests.auth.conftest import call
from tests.servers import EchoServer

MakePool = Callable[..., Any]
URL = "https://slack.com/api/apps.connections.open"
TOKEN = "xapp-1-s3cr3t"


def test_each_connection_has_an_address_of_its_own(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    for number in range(2):
        address = f"{server.uri}/link/?ticket={number}&app_id=A1"
        http.post(URL, json={"ok": True, "url": address})
    pool = make_pool("wss://slack", manager_kwargs={"auth": SlackSocketMode(TOKEN)}, max_connections=2)
    assert pool.prewarm("/", 2) == 2
    for _ in range(60):
        call(pool)
    assert sorted(server.paths) == ["/link/?ticket=0&app_id=A1", "/link/?ticket=1&app_id=A1"]
    assert [each.request.headers["Authorization"] for each in http.calls] == [f"Bearer {TOKEN}"] * 2
    assert all("Authorization" not in request.headers for request in server.requests)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"ok": False, "error": "invalid_auth"}, '200 OK and says "invalid_auth"'),
        ({"ok": True}, "200 OK without 'url'"),
        ({"ok": False, "url": "wss://s3cret"}, "200 OK without 'ok'"),
        ([], "200 OK without 'ok'"),
    ],
)
def test_a_refusal_says_why(
    http: responses.RequestsMock, make_pool: MakePool, answer: Any, told: str
) -> None:
    http.post(URL, json=answer)
    pool = make_pool("wss://slack", manager_kwargs={"auth": SlackSocketMode(TOKEN)})
    with pytest.raises(HandshakeError) as caught:
        call(pool)
    assert caught.value.status_code == 200
    assert told in str(caught.value)
    assert str(caught.value).startswith(f"cannot connect to wss://slack/: there is no ticket from {URL}: ")
    assert TOKEN not in str(caught.value) and "s3cret" not in str(caught.value)


def test_a_token_that_can_not_be_sent_is_refused_unseen() -> None:
    with pytest.raises(ValueError, match="Authorization") as caught:
        SlackSocketMode(f"{TOKEN}\n")
    assert TOKEN not in str(caught.value)
    with pytest.raises(TypeError, match="app_token must be a str"):
        SlackSocketMode(None)  # type: ignore[arg-type]  # the mistake
    assert TOKEN not in repr(SlackSocketMode(TOKEN))
