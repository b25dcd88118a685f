"""What stands between a pool and the network in tests."""

from __future__ import annotations

from typing import Any

import pytest

from jetsocket import ConnectionPool, HandshakeError
from jetsocket.testing_seam import Detour, address_for, divert, restore, seam_of
from jetsocket.uris import parse
from tests.servers import EchoServer


def test_an_origin_is_dialled_elsewhere(echo: EchoServer) -> None:
    target = parse("wss://api.example.com/x")
    assert address_for(target) is None
    divert(target.origin, (echo.host, echo.port))
    try:
        with pytest.raises(ValueError, match=r"wss://api\.example\.com:443 is answered by another"):
            divert(target.origin, ("127.0.0.1", 1))
        assert address_for(parse("ws://api.example.com/x")) is None
        for kwargs in ({"unix": "/nowhere"}, {"proxy": "http://[::1]:1", "source_address": ("192.0.2.1", 0)}):
            uri = "wss://api.example.com"
            with ConnectionPool(base_uri=uri, manager_kwargs=kwargs) as pool, pool.acquire("/x") as conn:
                conn.send("hello")
                assert conn.recv_raw() == "hello"
    finally:
        restore(target.origin)
    assert address_for(target) is None
    restore(target.origin)


def test_a_pool_takes_a_detour(echo: EchoServer, echo_server: Any) -> None:
    other = echo_server()
    asked: list[Any] = []
    sent: list[bytes] = []

    def detour(target: Any, connect: Any) -> Detour:
        wire = connect(sent.append)
        asked.append((target.uri, wire.connected))
        wire.shutdown()
        return Detour((other.host, other.port), [("X-Known", "1")])

    with ConnectionPool(base_uri=echo.uri) as pool:
        seam_of(pool).detour = detour
        with pool.acquire("/x") as conn:
            conn.send("hello")
            assert conn.recv_raw() == "hello"
        assert asked == [(echo.uri_for("x"), True)]
        assert [head.split(b"\r\n")[0] for head in sent] == [b"GET /x HTTP/1.1"]
        assert (echo.opened, other.opened) == (1, 1)

        def refuse(target: Any, connect: Any) -> Detour:
            raise HandshakeError("no", status_code=418)

        seam_of(pool).detour = refuse
        with pytest.raises(HandshakeError, match="no") as caught:
            pool.acquire("/y")
        assert caught.value.status_code == 418
