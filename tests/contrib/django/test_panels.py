"""The debug toolbar's panel shows what a request asked of the pools."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("django")
pytest.importorskip("debug_toolbar")
from asgiref.sync import async_to_sync, sync_to_async
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings

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
    panel.disable_instrumentation()
    pools["default"].request("/later", [4])
    panel.generate_stats(HttpRequest(), HttpResponse())
    shown = panel.content
    assert panel.nav_subtitle.startswith("2 requests, waited ")
    assert "opened for it" in shown
    assert "reused" in shown
    assert "PoolExhaustedError" in shown
    assert shown.count(f"{echo.uri_for('/?key=***')}") == 4
    assert "secret" not in shown
    assert "other" not in shown
    assert "later" not in shown


SETTINGS = override_settings(
    TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
    ROOT_URLCONF="tests.contrib.django.toolbar_urls",
    STATIC_URL="/static/",
)
APPS = override_settings(
    INSTALLED_APPS=["jetsocket.contrib.django", "django.contrib.staticfiles", "debug_toolbar"]
)
TOOLBAR = override_settings(
    DEBUG_TOOLBAR_PANELS=["jetsocket.contrib.django.panels.JetSocketPanel"],
    DEBUG_TOOLBAR_CONFIG={"SHOW_TOOLBAR_CALLBACK": "tests.contrib.django.toolbar_urls.show"},
)


@pytest.mark.slow
def test_the_toolbar_itself_shows_them(use: Use, echo: EchoServer) -> None:
    """Of a view, and of an async one that asks in threads."""

    def view(_request: HttpRequest) -> HttpResponse:
        pools["default"].request("/", [1])
        return HttpResponse("<html><body>page</body></html>")

    async def later(request: HttpRequest) -> HttpResponse:
        await sync_to_async(pools["default"].request, thread_sensitive=False)("/", [1])
        return await sync_to_async(view)(request)

    use(default={"BASE_URI": echo.uri})
    with SETTINGS, APPS, TOOLBAR:  # in this order: each looks at the one before
        from debug_toolbar.middleware import DebugToolbarMiddleware  # it has models

        request = RequestFactory().get("/")
        told = DebugToolbarMiddleware(view)(request).content.decode()
        assert "1 requests, waited " in told
        assert "1 requests, waited " in DebugToolbarMiddleware(view)(request).content.decode()
        told = async_to_sync(DebugToolbarMiddleware(later))(request).content.decode()
        assert "2 requests, waited " in told
