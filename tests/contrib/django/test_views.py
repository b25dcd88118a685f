"""The view for load balancers tells which server can be reached, and no more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

pytest.importorskip("django")
from django.test import Client

from jetsocket.contrib.django import pools
from jetsocket.contrib.django.views import health
from tests.servers import EchoServer, refusing_port

Use = Callable[..., None]


def test_each_pool_is_told(use: Use, echo: EchoServer) -> None:
    client = Client()
    use(default={"BASE_URI": echo.uri})
    answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"default": "ok"})
    assert "no-store" in answer["Cache-Control"]
    with refusing_port() as port:
        use(default={"BASE_URI": echo.uri}, gone={"BASE_URI": f"ws://user:secret@127.0.0.1:{port}"})
        answer = client.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"default": "ok", "gone": "down"})
    assert client.post("/health").status_code == 405


def test_a_pool_in_use_is_busy_not_down(use: Use, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{health.__module__}._PATIENCE", 0.1)
    use(default={"BASE_URI": echo.uri, "CONFIG": {"max_connections": 1}})
    with pools["default"].acquire("/"):
        answer = Client().get("/health")
    assert (answer.status_code, answer.json()) == (200, {"default": "busy"})
