"""The status page in a Flask application, and what its workers write for the terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flask")
from flask import Flask, session

from jetsocket.contrib.flask import JetSocket, status_blueprint
from jetsocket.contrib.status import as_text, read
from tests.servers import EchoServer, wait_until


@contextmanager
def serving(echo: EchoServer) -> Iterator[Flask]:
    """An application with two pools. No fixture, for pytest keeps those until the threads are looked at."""
    app = Flask("shown")
    app.config.update(JETSOCKET_BASE_URI=echo.uri, JETSOCKET_POOLS={"feeds": {}}, SECRET_KEY="k")
    jet = JetSocket(app)

    @app.get("/ask")
    def ask() -> Any:
        return jet.pool.request("/", [1])

    @app.get("/log-in")
    def log_in() -> str:
        session["user"] = "op"
        return ""

    yield app
    app.extensions["jetsocket"].close_all()


def test_whoever_may_see_it_is_shown_all_pools(echo: EchoServer) -> None:
    """The permission is asked within the request, so sessions work."""
    with serving(echo) as app:
        blueprint = status_blueprint(permission=lambda environ: session.get("user") == "op")
        app.register_blueprint(blueprint, url_prefix="/ops/pools")
        client = app.test_client()
        closed = client.get("/ops/pools/")
        assert (closed.status_code, closed.data) == (403, b"")
        client.get("/log-in")
        client.get("/ask")
        assert client.get("/ops/pools").headers["Location"] == "/ops/pools/"
        page = client.get("/ops/pools/")
        assert (page.status_code, page.headers["Cache-Control"]) == (200, "no-store")
        assert "default" in page.text and "feeds" in page.text
        (worker,) = client.get("/ops/pools/status.json").json["workers"]
        assert {pool["name"] for pool in worker["pools"]} == {"default", "feeds"}
        assert client.get("/ops/pools/other").status_code == 404
        for method in ("PUT", "OPTIONS", "POST"):
            assert client.open("/ops/pools/", method=method).status_code == 405


@pytest.mark.parametrize("answer", [None, False, 1, "yes"])
def test_it_is_closed_unless_the_answer_is_true(echo: EchoServer, answer: Any) -> None:
    with serving(echo) as app:
        permission = None if answer is None else lambda environ: answer
        app.register_blueprint(status_blueprint(permission=permission), url_prefix="/pools")
        response = app.test_client().get("/pools/")
        assert (response.status_code, response.data) == (403, b"")
        assert app.extensions["jetsocket"].made() == {}


def test_a_pool_with_wrong_settings_hides_no_other(
    echo: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(echo) as app:
        app.config["JETSOCKET_POOLS"] = {"feeds": {"BASE_URL": ""}}
        app.register_blueprint(status_blueprint(permission=lambda environ: True), url_prefix="/pools")
        assert "default" in app.test_client().get("/pools/").text
        assert "BASE_URL" in "".join(
            record.getMessage() for record in caplog.records if record.levelno == logging.ERROR
        )


def test_the_pools_of_an_app_without_any(echo: EchoServer) -> None:
    app = Flask("bare")
    app.register_blueprint(status_blueprint(permission=lambda environ: True), url_prefix="/pools")
    app.testing = True
    with pytest.raises(RuntimeError, match="has no pools to show"):
        app.test_client().get("/pools/")


def test_arguments_are_refused_at_once() -> None:
    with pytest.raises(TypeError, match="permission must be callable"):
        status_blueprint(permission="everybody")  # type: ignore[arg-type]  # on purpose


@pytest.mark.slow
def test_workers_write_what_the_terminal_and_the_page_show(echo: EchoServer, tmp_path: Path) -> None:
    with serving(echo) as app:
        app.config["JETSOCKET_STATUS_DIR"] = str(tmp_path / "status")
        app.register_blueprint(status_blueprint(permission=lambda environ: True), url_prefix="/pools")
        assert app.test_client().get("/ask").status_code == 200
        wait_until(lambda: "1 acquires" in as_text(read(tmp_path / "status")))
        output = app.test_cli_runner().invoke(args=["jetsocket", "status", "default"]).output
        settings, _, workers = output.partition(str(tmp_path / "status"))
        assert "max_connections       10" in settings
        assert "default: open" in workers and "1 acquires" in workers
        assert app.test_client().get("/pools/status.json").status_code == 200


def test_a_command_is_no_worker(echo: EchoServer, tmp_path: Path) -> None:
    with serving(echo) as app:
        app.config["JETSOCKET_STATUS_DIR"] = str(tmp_path / "status")
        result = app.test_cli_runner().invoke(args=["jetsocket", "call", "--pool", "default", "/", "[1]"])
        assert result.output == "[1]\n"
        assert not (tmp_path / "status").exists()
