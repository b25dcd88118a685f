"""Settings with a prefix: text is read as the field's type, others are left alone, errors show no value."""

from __future__ import annotations

import traceback
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.correlation import JsonRpc
from jetsocket.framework_settings import FIELDS
from jetsocket.testing import FakePool
from tests.servers import EchoServer

SECRET = "hunter2"

TEXTS = {
    "max_connections": ("25", 25),
    "max_idle_time": ("60", 60.0),
    "health_check_interval": (" 12.5 ", 12.5),
    "acquire_timeout": ("1e1", 10.0),
    "health_check_timeout": ("3", 3.0),
    "max_lifetime": ("none", None),
    "max_waiting": ("", None),
    "reuse": ("quiet", "quiet"),
    "match_ids": ("No", False),
    "leak_threshold": ("0.5", 0.5),
    "max_connecting": ("2", 2),
    "max_per_uri": ("3", 3),
    "connect_cooldown": ("0", 0.0),
    "ping_after_idle": ("NULL", None),
    "max_in_flight": ("4", 4),
}


def test_text_is_read_as_each_field_wants_it() -> None:
    assert set(TEXTS) == set(FIELDS)
    environ = {f"JETSOCKET_{field.upper()}": text for field, (text, _) in TEXTS.items()}
    environ |= {"JETSOCKET_CORRELATION": "jetsocket.correlation.JsonRpc", "JETSOCKET_NAME": "nodes"}
    with ConnectionPool.from_mapping(environ, "JETSOCKET") as pool:
        assert pool.config == ConnectionPoolConfig(**{field: value for field, (_, value) in TEXTS.items()})
        assert pool.name == "nodes"


def test_the_environment_makes_a_pool_that_works(echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setenv("NODES_BASE_URI", echo.uri)
    monkeypatch.setenv("NODES_OPTIONS", '{"extra_headers": {"X-Desk": "7"}, "connect_timeout": 5}')
    monkeypatch.setenv("NODES_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("NODESX_MAX_CONNECTIONS", "no number")
    monkeypatch.setenv("NODES", "neither")
    with ConnectionPool.from_mapping(os.environ, "NODES") as pool:
        assert pool.request("/", {"id": 1}) == {"id": 1}
        assert pool.config.max_connections == 1
    assert echo.requests[0].headers["X-Desk"] == "7"


def test_values_that_are_no_text_are_taken_as_they_are() -> None:
    rpc = JsonRpc()
    settings = {
        "J_CORRELATION": rpc,
        "J_MAX_IN_FLIGHT": 2,
        "J_OPTIONS": {"compress": False},
        5: 6,
        "OTHER": 7,
    }
    with ConnectionPool.from_mapping(settings, "J") as pool:  # type: ignore[arg-type]  # keys that are no str
        assert pool.config.max_in_flight == 2


def test_arguments_go_before_settings() -> None:
    settings = {"J_NAME": "theirs", "J_MAX_CONNECTIONS": "3"}
    with ConnectionPool.from_mapping(settings, "J", name="mine", correlation=JsonRpc()) as pool:
        assert (pool.name, pool.config.max_connections) == ("mine", 3)


def test_nothing_given_is_a_pool_of_defaults() -> None:
    with ConnectionPool.from_mapping({}, "J") as pool:
        assert pool.config == ConnectionPoolConfig()


class OwnPool(ConnectionPool[Any]):
    def __init__(self, desk: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.desk = desk


def test_a_subclass_makes_its_own() -> None:
    with OwnPool.from_mapping({"J_MAX_CONNECTIONS": "3"}, "J", desk=7) as pool:
        assert (type(pool), pool.desk, pool.config.max_connections) == (OwnPool, 7, 3)


def test_a_fake_pool_takes_settings() -> None:
    with FakePool.from_mapping({"J_MAX_CONNECTIONS": "2"}, "J") as pool:
        pool.server.on({"ping": 1}).reply({"pong": 1})
        assert pool.request("/", {"ping": 1}) == {"pong": 1}
        assert pool.config.max_connections == 2


@pytest.mark.parametrize(
    ("key", "value", "error", "told"),
    [
        (
            "J_MAX_CONECTIONS",
            "1",
            TypeError,
            "J_MAX_CONECTIONS is unknown (did you mean 'J_MAX_CONNECTIONS'?)",
        ),
        ("J_max_connections", "1", TypeError, "did you mean 'J_MAX_CONNECTIONS'?"),
        ("J_CONNECT_TIMEOUT", "1", TypeError, 'it belongs into J_OPTIONS, as "connect_timeout"'),
        ("J_CONFIG", {}, TypeError, "J_CONFIG is unknown"),
        ("J_", "1", TypeError, "J_ is unknown"),
        ("J_MANAGER_KWARGS", "{}", TypeError, "did you mean 'J_OPTIONS'?"),
        ("J_MAX_IN_FLIGHT", "2", ValueError, "J_MAX_IN_FLIGHT: max_in_flight of more than 1 needs a corr"),
        ("J_ON_PUSH", print, ValueError, "J_ON_PUSH: on_push needs a correlation"),
        ("J_MAX_CONNECTIONS", SECRET, ValueError, "J_MAX_CONNECTIONS must be an integer"),
        ("J_MAX_CONNECTIONS", "", ValueError, "J_MAX_CONNECTIONS must be an integer"),
        ("J_MAX_CONNECTIONS", "0", ValueError, "J_MAX_CONNECTIONS must be 1 or more"),
        ("J_MAX_CONNECTIONS", True, ValueError, "J_MAX_CONNECTIONS must be an int"),
        ("J_MAX_IDLE_TIME", SECRET, ValueError, "J_MAX_IDLE_TIME must be a number of seconds"),
        ("J_MAX_IDLE_TIME", "nan", ValueError, "J_MAX_IDLE_TIME must be more than 0"),
        ("J_MATCH_IDS", SECRET, ValueError, "J_MATCH_IDS must be true or false"),
        ("J_REUSE", SECRET, ValueError, "J_REUSE must be one of"),
        ("J_OPTIONS", f'{{"cookie": "{SECRET}', ValueError, "J_OPTIONS must be a JSON object"),
        ("J_OPTIONS", f'["{SECRET}"]', ValueError, "J_OPTIONS must be a JSON object"),
        ("J_OPTIONS", f'{{"cookie": ["{SECRET}"]}}', ValueError, 'J_OPTIONS["cookie"] must be a str'),
        ("J_OPTIONS", f'{{"cokie": "{SECRET}"}}', TypeError, "did you mean 'cookie'?"),
        ("J_BASE_URI", f"ws://u:{SECRET}@h:x/", ValueError, "J_BASE_URI: invalid WebSocket URI"),
        ("J_CORRELATION", SECRET, ValueError, "J_CORRELATION can't be imported"),
    ],
)
def test_what_is_wrong_is_named_and_no_value_shown(
    key: str, value: Any, error: type[Exception], told: str
) -> None:
    with pytest.raises(error) as raised:
        ConnectionPool.from_mapping({key: value}, "J")
    assert told in str(raised.value)
    assert SECRET not in "".join(traceback.format_exception(raised.value))


def test_a_prefix_with_its_underscore_finds_nothing_and_is_refused() -> None:
    with pytest.raises(ValueError, match="prefix must be without the underscore at its end: 'J'"):
        ConnectionPool.from_mapping({"J_BASE_URI": "ws://h"}, "J_")


@pytest.mark.parametrize(
    ("config", "prefix", "error"), [([], "J", TypeError), ({}, 5, TypeError), ({}, "", ValueError)]
)
def test_arguments_of_the_wrong_kind(config: Any, prefix: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ConnectionPool.from_mapping(config, prefix)
