"""The status page is closed unless the project's function says yes.

Also tests: `urls`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")
from django.core.management import call_command
from django.http import HttpRequest
from django.test import Client, override_settings

from jetsocket.contrib.django import pools
from tests.servers import EchoServer, wait_until

Use = Callable[..., None]
HERE = f"{__name__}."


def staff(request: HttpRequest) -> bool:
    return request.headers.get("X-Staff") == "yes"


def broken(request: HttpRequest) -> bool:
    raise ValueError


def test_it_is_closed_unless_the_function_says_yes(
    use: Use, echo: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "jetsocket.status")  # a line with a traceback would keep the page
    use(default={"BASE_URI": echo.uri})
    client = Client()
    assert client.get("/pools/").status_code == 403
    with override_settings(JETSOCKET_STATUS_PERMISSION=f"{HERE}staff"):
        refused = client.get("/pools/")
        assert (refused.status_code, refused.content) == (403, b"")
        seen = client.get("/pools/", headers={"X-Staff": "yes"})
        assert seen.status_code == 200
        assert "no-store" in seen["Cache-Control"]
        assert "default-src 'none'" in seen["Content-Security-Policy"]
        assert client.post("/pools/", headers={"X-Staff": "yes"}).status_code == 405
        assert client.get("/pools/nothing", headers={"X-Staff": "yes"}).status_code == 404
    with override_settings(JETSOCKET_STATUS_PERMISSION=broken):
        assert client.get("/pools/").status_code == 403


def test_it_shows_the_pools_in_use_and_makes_none(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri}, unused={"BASE_URI": echo.uri})
    pools["default"].request("/", [1])
    with override_settings(JETSOCKET_STATUS_PERMISSION=lambda request: True):
        told: dict[str, Any] = Client().get("/pools/status.json").json()
    [worker] = told["workers"]
    assert [pool["name"] for pool in worker["pools"]] == ["default"]
    assert list(pools.made()) == ["default"]


def test_workers_write_what_the_command_shows(
    use: Use, echo: EchoServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with override_settings(JETSOCKET_STATUS_DIR=tmp_path):
        use(default={"BASE_URI": echo.uri, "NAME": "the nodes"})
        pools["default"].request("/", [1])
        wait_until(lambda: list(tmp_path.glob("*.json")), 10)
        call_command("jetsocket", "status")
    told = capsys.readouterr().out
    assert "max_connections       10" in told
    assert "the nodes" in told.split("max_connections", 1)[1]
