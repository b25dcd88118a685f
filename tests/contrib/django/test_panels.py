"""The debug toolbar's panel shows what a request asked of the pools."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("django")
pytest.importorskip("debug_toolbar")
from django.http import HttpRequest, HttpResponse

from jetsocket import PoolExhaustedError
from jetsocket.contrib.django import pools
from tests.servers import EchoServer

Use = Callable[..., None]


class Toolbar:
    """What a panel reaches of the toolbar."""

    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}
        self.request_id = self.store_id = "1"
        self.request = HttpRequest()


@pytest.fixture
def panel() -> Any:
    from jetsocket.contrib.django.panels import JetSocketPanel

    class Kept(JetSocketPanel):
        """Keeps its figures, which a toolbar does."""

        kept: dict[str, Any] = {}  # noqa: RUF012  # one test, one panel

        def record_stats(self, stats: dict[str, Any]) -> None:
            self.kept = stats

        def get_stats(self) -> dict[str, Any]:
            return self.kept

    return Kept(Toolbar(), lambda _request: HttpResponse())


def test_a_request_shows_its_calls_and_no_other_threads(use: Use, echo: EchoServer, panel: Any) -> None:
    use(default={"BASE_URI": echo.uri, "CONFIG": {"max_connections": 2}})
    panel.enable_instrumentation()
    pools["default"].request("/?key=secret", [1])
    pools["default"].request("/?key=secret", [2])
    with pools["default"].acquire("/"), pools["default"].acquire("/"), pytest.raises(PoolExhaustedError):
        pools["default"].acquire("/", timeout=0)
    other = threading.Thread(target=lambda: pools["default"].request("/other", [3]))
    other.start()
    other.join(5)
    panel.generate_stats(HttpRequest(), HttpResponse())
    panel.disable_instrumentation()
    pools["default"].request("/later", [4])
    shown = panel.content
    assert panel.nav_subtitle.startswith("2 requests, waited ")
    assert "opened for it" in shown
    assert "reused" in shown
    assert "PoolExhaustedError" in shown
    assert shown.count(f"{echo.uri_for('/?key=***')}") == 4
    assert "secret" not in shown
    assert "other" not in shown
    assert "later" not in shown
