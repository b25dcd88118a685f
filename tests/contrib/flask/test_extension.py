"""Flask: whose pool is used, what it is made of, and that one view's forgotten lease is told of.

Also tests: `pools`, `leftovers`.
"""

from __future__ import annotations

import gc
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("flask")
from flask import Flask, copy_current_request_context

from jetsocket import ConnectionPool, PooledConnection
from jetsocket.contrib.flask import JetSocket
from jetsocket.correlation import JsonRpc
from tests.servers import EchoServer, wait_until

AppMaker = Callable[..., Flask]


@pytest.fixture
def make_app(echo: EchoServer) -> Iterator[AppMaker]:
    """Applications with those settings, served by those instances; their pools close before the server."""
    made: list[Flask] = []

    def make(*jets: JetSocket, **config: Any) -> Flask:
        app = Flask(f"app{len(made)}")
        app.config.update(config)
        for jet in jets:
            jet.init_app(app)
        made.append(app)
        return app

    yield make
    for app in made:
        if "jetsocket" in app.extensions:
            app.extensions["jetsocket"].close_all()


@pytest.fixture
def jet() -> JetSocket:
    return JetSocket()


# --- whose pool


def test_a_view_of_a_factorys_app_asks_the_server(
    jet: JetSocket, make_app: AppMaker, echo: EchoServer
) -> None:
    app = make_app(jet, JETSOCKET_BASE_URI=echo.uri, JETSOCKET_MAX_CONNECTIONS=2)

    @app.get("/<int:number>")
    def view(number: int) -> dict[str, Any]:
        reply: dict[str, Any] = jet.pool.request("/rpc", {"id": number})
        return reply

    client = app.test_client()
    assert [client.get(f"/{number}").json for number in (3, 4)] == [{"id": 3}, {"id": 4}]
    assert echo.paths == ["/rpc"]  # one connection for both
    assert app.extensions["jetsocket"]["default"] is jet.pool
    assert (jet.pool.config.max_connections, jet.pool.name) == (2, "default")


def test_an_app_may_be_given_at_once_and_configured_later(echo: EchoServer) -> None:
    app = Flask("late")
    jet = JetSocket(app)
    app.config["JETSOCKET_BASE_URI"] = echo.uri
    assert jet.pool.request("/", [1]) == [1]
    jet.close_all()


def test_each_app_has_its_own_pools(jet: JetSocket, make_app: AppMaker) -> None:
    one, two = (make_app(jet, JETSOCKET_MAX_CONNECTIONS=number) for number in (1, 2))
    with pytest.raises(RuntimeError, match=r"no application is current, and this JetSocket serves 2"):
        jet.pool.stats()
    with one.app_context():
        assert jet.pool.config.max_connections == 1
        with two.app_context():
            assert jet.pool.config.max_connections == 2
        assert jet.pool is one.extensions["jetsocket"]["default"]


def test_no_app_is_an_error_that_says_what_to_do(jet: JetSocket, make_app: AppMaker) -> None:
    with pytest.raises(RuntimeError, match="call init_app"):
        jet.pool.stats()
    app, stranger = make_app(jet), make_app()
    with (
        stranger.app_context(),
        pytest.raises(RuntimeError, match=r"call init_app with <Flask 'app1'> first"),
    ):
        jet.pool.stats()
    assert jet.pool is app.extensions["jetsocket"]["default"]


def test_all_threads_share_the_pool_that_is_made_first(jet: JetSocket, make_app: AppMaker) -> None:
    make_app(jet)
    together = threading.Barrier(8)

    def look(_: int) -> int:
        together.wait()
        return id(jet.pool)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(look, range(8)))) == 1


def test_the_pool_of_an_app_that_is_gone_closes_itself(jet: JetSocket, echo: EchoServer) -> None:
    app = Flask("short")
    app.config["JETSOCKET_BASE_URI"] = echo.uri
    jet.init_app(app)
    assert jet.pool.request("/", [1]) == [1]
    del app
    gc.collect()
    wait_until(lambda: echo.open_now == 0)
    with pytest.raises(RuntimeError, match="serves no application"):
        jet.pool.stats()


# --- what it is made of


def test_settings_are_read_from_prefixed_environment(
    jet: JetSocket, make_app: AppMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_JETSOCKET_MAX_CONNECTIONS", "3")
    monkeypatch.setenv("FLASK_JETSOCKET_OPTIONS", '{"connect_timeout": 2}')
    monkeypatch.setenv("FLASK_JETSOCKET_POOLS__feeds__BASE_URI", "wss://feeds.example.com")
    app = make_app(jet)
    app.config.from_prefixed_env()
    assert jet.pool.config.max_connections == 3
    assert "wss://feeds.example.com" in repr(jet["feeds"])


def test_pools_with_names(jet: JetSocket, make_app: AppMaker, echo: EchoServer) -> None:
    sections = {
        "nodes": {
            "BASE_URI": echo.uri,
            "CONFIG": {"max_connections": 2, "max_in_flight": 4},
            "CORRELATION": JsonRpc,
        },
        "feeds": {"NAME": "prices"},
    }
    app = make_app(jet, JETSOCKET_BASE_URI="wss://h", JETSOCKET_POOLS=sections)
    assert (jet["nodes"].name, jet["feeds"].name, jet["nodes"].config.max_in_flight) == ("nodes", "prices", 4)
    assert jet["nodes"] is jet["nodes"] is app.extensions["jetsocket"]["nodes"]
    assert list(app.extensions["jetsocket"]) == ["default", "nodes", "feeds"]
    with pytest.raises(KeyError, match=r"no pool 'node'; known are 'default', 'nodes', 'feeds'"):
        jet["node"].stats()


def test_only_pools_with_names(jet: JetSocket, make_app: AppMaker) -> None:
    app = make_app(jet, JETSOCKET_POOLS={"nodes": {}}, JETSOCKET_STATUS_DIR="/somewhere")
    pools = app.extensions["jetsocket"]
    assert (list(pools), len(pools), "nodes" in pools, "default" in pools) == (["nodes"], 1, True, False)
    assert pools.made() == {}  # to look at names makes none
    with pytest.raises(KeyError, match=r"no pool 'default'; known are 'nodes'"):
        jet.pool.stats()


def test_the_default_pool_may_stand_among_those_with_names(jet: JetSocket, make_app: AppMaker) -> None:
    app = make_app(jet, JETSOCKET_POOLS={"default": {"CONFIG": {"max_connections": 3}}})
    assert jet.pool.config.max_connections == 3
    app.config["JETSOCKET_NAME"] = "twice"
    jet.close_all()
    with pytest.raises(ValueError, match="write its settings there or here"):
        jet.pool.stats()


def test_two_instances_serve_one_app(jet: JetSocket, make_app: AppMaker) -> None:
    """The prefix of one begins that of the other, and each reads its own keys only."""
    other = JetSocket(config_prefix="JETSOCKET_EU")
    config = {"JETSOCKET_MAX_CONNECTIONS": 2, "JETSOCKET_EU_MAX_CONNECTIONS": 3}
    app = make_app(jet, other, **config, JETSOCKET_EU_POOLS={"feeds": {}})
    assert (jet.pool.config.max_connections, other.pool.config.max_connections) == (2, 3)
    pools = app.extensions["jetsocket"]
    assert list(pools) == ["default", "jetsocket_eu", "feeds"]
    assert pools["jetsocket_eu"] is other.pool and pools["feeds"] is other["feeds"]
    assert (jet.pool.name, other.pool.name) == ("default", "jetsocket_eu")
    with pytest.raises(KeyError, match="JETSOCKET configures no pool 'feeds'"):
        jet["feeds"].stats()


def test_two_pools_of_one_name_are_refused_where_they_are_told_by_name(
    jet: JetSocket, make_app: AppMaker
) -> None:
    sections = {"nodes": {}}
    app = make_app(jet, JetSocket(config_prefix="NODES"), JETSOCKET_POOLS=sections, NODES_MAX_CONNECTIONS=2)
    with pytest.raises(
        ValueError, match=r"two pools of this application are called 'nodes': in JETSOCKET_\* and N"
    ):
        list(app.extensions["jetsocket"])


@pytest.mark.parametrize(
    ("config", "error", "told"),
    [
        ({"JETSOCKET_MAX_CONECTIONS": 1}, TypeError, r"did you mean 'JETSOCKET_MAX_CONNECTIONS'"),
        ({"JETSOCKET_POOL": {"nodes": {}}}, TypeError, r"did you mean 'JETSOCKET_POOLS'"),
        ({"JETSOCKET_STATUSDIR": "/run/pools"}, TypeError, r"did you mean 'JETSOCKET_STATUS_DIR'"),
        ({"JETSOCKET_MAX_CONNECTIONS": "many"}, ValueError, "JETSOCKET_MAX_CONNECTIONS must be an integer"),
        ({"JETSOCKET_NAME": "two\nlines"}, ValueError, "JETSOCKET_NAME must be printable, without"),
        (
            {"JETSOCKET_POOLS": {"default": {"NAME": "two\nlines"}}},
            ValueError,
            r'JETSOCKET_POOLS\["default"\]\["NAME"\] must be printable',
        ),
        ({"JETSOCKET_POOLS": ["nodes"]}, ValueError, "JETSOCKET_POOLS must be a mapping of names"),
        ({"JETSOCKET_POOLS": {5: {}}}, ValueError, "JETSOCKET_POOLS must be a mapping of names"),
        (
            {"JETSOCKET_POOLS": {"default": {"CONFIG": {"max_conections": 1}}}},
            TypeError,
            r'JETSOCKET_POOLS\["default"\]\["CONFIG"\]\["max_conections"\] is unknown',
        ),
    ],
)
def test_wrong_settings_are_told_at_the_first_use(
    jet: JetSocket, make_app: AppMaker, config: dict[str, Any], error: type[Exception], told: str
) -> None:
    make_app(jet, **config)
    with pytest.raises(error, match=told):
        jet.pool.stats()


def test_the_next_use_after_closing_reads_the_settings_again(
    jet: JetSocket, make_app: AppMaker, echo: EchoServer
) -> None:
    app = make_app(jet, JETSOCKET_BASE_URI=echo.uri)
    first = jet.pool
    assert first.request("/", [1]) == [1]
    jet.close_all()
    assert first.is_closed
    app.config["JETSOCKET_MAX_CONNECTIONS"] = 3
    assert jet.pool.config.max_connections == 3


@pytest.mark.parametrize(("prefix", "error"), [("", ValueError), (None, TypeError), (5, TypeError)])
def test_a_prefix_is_a_str(prefix: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="config_prefix must"):
        JetSocket(config_prefix=prefix)


# --- what a view leaves behind


@pytest.fixture
def leaving(jet: JetSocket, make_app: AppMaker, echo: EchoServer) -> Iterator[Flask]:
    app = make_app(jet, JETSOCKET_BASE_URI=echo.uri, DEBUG=True)
    app.extensions["left"] = left = []

    @app.get("/forgets")
    def forgets() -> str:
        left.append(jet.pool.acquire("/"))
        return ""

    @app.get("/fails")
    def fails() -> str:
        left.append(jet.pool.acquire("/"))
        raise LookupError

    @app.get("/returns")
    def returns() -> str:
        with jet.pool.acquire("/") as conn:
            conn.request([1])
        return ""

    @app.get("/awaits")
    async def awaits() -> str:
        left.append(jet.pool.acquire("/"))
        return ""

    @app.get("/gives-back")
    async def gives_back() -> str:
        with jet.pool.acquire("/") as conn:
            conn.request([1])
        return ""

    @app.get("/hands-on")
    def hands_on() -> str:
        borrow = copy_current_request_context(lambda: left.append(jet.pool.acquire("/")))
        thread = threading.Thread(target=borrow)
        thread.start()
        thread.join()
        return ""

    yield app
    for lease in left:
        lease.release()


@pytest.mark.parametrize("view", ["forgets", "fails", "awaits"])
def test_a_forgotten_lease_is_told_with_its_view(
    leaving: Flask, caplog: pytest.LogCaptureFixture, view: str
) -> None:
    client = leaving.test_client()
    if view == "fails":
        with pytest.raises(LookupError):
            client.get("/fails")
    else:
        client.get(f"/{view}")
    record = one_warning(caplog)
    assert f"The view '{view}' (GET) has ended" in record.getMessage()
    assert f"acquired in {view} (" in record.getMessage()
    caplog.clear()
    for path in ("/returns", "/gives-back"):  # later requests are not to blame
        client.get(path)
    assert warnings(caplog) == []


def test_a_lease_that_goes_on_is_not_told_of_by_its_connection(
    leaving: Flask, jet: JetSocket, caplog: pytest.LogCaptureFixture
) -> None:
    @leaving.get("/passes-on")
    async def passes_on() -> str:
        jet.pool.acquire("/").release()
        with ThreadPoolExecutor(1) as other:  # the same connection, for another thread
            leaving.extensions["left"].append(other.submit(jet.pool.acquire, "/").result())
        return ""

    leaving.test_client().get("/passes-on")
    (lent,) = jet.pool.connections()
    assert (lent.place, lent.uses) == ("lent", 2)
    assert warnings(caplog) == []


@pytest.mark.parametrize("view", ["returns", "gives-back", "hands-on", "no-such-view"])
def test_others_are_not_told_of(leaving: Flask, caplog: pytest.LogCaptureFixture, view: str) -> None:
    leaving.test_client().get(f"/{view}")
    assert warnings(caplog) == []


def test_nothing_is_told_without_debug(leaving: Flask, caplog: pytest.LogCaptureFixture) -> None:
    leaving.debug = False
    leaving.test_client().get("/forgets")
    assert warnings(caplog) == []


def test_a_lease_that_a_stream_gives_back_is_not_told_of(
    leaving: Flask, jet: JetSocket, caplog: pytest.LogCaptureFixture
) -> None:
    from flask import stream_with_context

    @leaving.get("/streams")
    def streams() -> Any:
        def parts() -> Iterator[str]:
            with jet.pool.acquire("/") as conn:
                yield from conn.request(["a", "b"])

        return leaving.response_class(stream_with_context(parts()))

    assert leaving.test_client().get("/streams").text == "ab"
    assert warnings(caplog) == []


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == "jetsocket.contrib.flask"]


def one_warning(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = warnings(caplog)
    assert record.levelno == logging.WARNING
    return record


def test_the_types_say_what_there_is(jet: JetSocket, make_app: AppMaker, echo: EchoServer) -> None:
    make_app(jet, JETSOCKET_BASE_URI=echo.uri)
    pool: ConnectionPool[Any] = jet.pool
    with pool.acquire("/") as conn:
        assert isinstance(conn, PooledConnection)


@pytest.mark.parametrize("module", ["command", "extension", "leftovers", "status"])
def test_without_flask_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in [name for name in sys.modules if name.startswith("jetsocket.contrib.flask")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flask", None)
    with pytest.raises(ImportError, match=r'needs Flask: pip install "jetsocket\[flask\]"'):
        importlib.import_module(f"jetsocket.contrib.flask.{module}")
