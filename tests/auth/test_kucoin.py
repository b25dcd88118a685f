"""KuCoin: address and token come together, and serve many connections, each with an id of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import responses

from jetsocket import HandshakeError
from jetsocket.auth import KuCoin
from tests.auth.conftest import call
from tests.servers import EchoServer

MakePool = Callable[..., Any]
URL = "https://api.kucoin.com/api/v1/bullet-public"


def bullet(endpoint: str, token: str = "to/ken==") -> dict[str, Any]:
    servers = [{"endpoint": endpoint, "encrypt": True, "protocol": "websocket", "pingInterval": 18000}]
    return {"code": "200000", "data": {"token": token, "instanceServers": servers}}


def test_one_token_serves_all_connections(
    server: EchoServer, http: responses.RequestsMock, make_pool: MakePool
) -> None:
    http.post(URL, json=bullet(f"{server.uri}/endpoint"))
    pool = make_pool("wss://kucoin", manager_kwargs={"auth": KuCoin()}, max_connections=3)
    assert pool.prewarm("/", 3) == 3
    for _ in range(60):
        call(pool)
    asked = [parse_qs(urlsplit(path).query) for path in server.paths]
    assert [each["token"] for each in asked] == [["to/ken=="]] * 3
    assert len({each["connectId"][0] for each in asked}) == 3
    assert len(http.calls) == 1


def test_private_feeds_sign_each_request(server: EchoServer, http: responses.RequestsMock) -> None:
    url = URL.replace("public", "private")
    http.post(url, json=bullet(f"{server.uri}/?a=1"))
    auth = KuCoin(url=url, headers=lambda: {"KC-API-SIGN": "s"})
    assert auth.prepare("wss://kucoin/", 5).uri.startswith(
        f"{server.uri}/?a=1&token=to%2Fken%3D%3D&connectId="
    )
    assert http.calls[0].request.headers["KC-API-SIGN"] == "s"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ({"code": "429000", "msg": "Too many requests"}, '200 OK and says "Too many requests"'),
        ({"code": "400001"}, '200 OK and says "400001"'),
        ({"data": {"token": "x"}}, "200 OK without 'code'"),
        (
            {"code": "200000", "data": {"token": "x", "instanceServers": []}},
            "200 OK without 'data.token'",
        ),
    ],
)
def test_a_refusal_says_why(
    http: responses.RequestsMock, make_pool: MakePool, answer: Any, told: str
) -> None:
    http.post(URL, json=answer)
    with pytest.raises(HandshakeError) as caught:
        call(make_pool("wss://kucoin", manager_kwargs={"auth": KuCoin()}))
    assert told in str(caught.value)
