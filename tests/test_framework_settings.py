"""Sections of settings: each kind of fault is told apart, names the nearest name, and shows no value.

Also tests: `pool_arguments`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.correlation import JsonRpc
from jetsocket.framework_settings import read_section, section_arguments
from jetsocket.limits import Limiter

WHERE = 'JETSOCKET["default"]'
SECRET = "hunter2"

MODULE = f"""
from jetsocket.correlation import JsonRpc
from jetsocket.limits import Limiter

class Cap(Limiter):
    pass

class Picky(JsonRpc):
    def __init__(self, token):
        pass

class Angry(JsonRpc):
    def __init__(self):
        raise RuntimeError("{SECRET}")

rpc = JsonRpc()

def log_in(conn):
    pass

async def later(conn):
    pass
"""


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "their_settings.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "their_broken.py").write_text(f"raise KeyError('{SECRET}')", encoding="utf-8")
    (tmp_path / "their_lacking.py").write_text("import no_such_dependency", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("their_settings", "their_broken", "their_lacking"):
        sys.modules.pop(name, None)


def test_a_section_makes_a_pool() -> None:
    section = {
        "BASE_URI": "wss://stream.example.com/v1/",
        "CONFIG": {"max_connections": 3, "max_in_flight": 2},
        "OPTIONS": {"connect_timeout": 2.5, "extra_headers": {"X-Key": SECRET}},
        "CORRELATION": "jetsocket.correlation.JsonRpc",
        "LIMITER": "their_settings.Cap",
        "CONFIGURE": "their_settings.log_in",
        "RESET": print,
        "CHECK": None,
        "ON_PUSH": print,
        "NAME": "feeds",
    }
    arguments = section_arguments(section, WHERE, name="default")
    assert arguments["base_uri"] == "wss://stream.example.com/v1/"
    assert arguments["config"] == ConnectionPoolConfig(max_connections=3, max_in_flight=2)
    assert isinstance(arguments["correlation"], JsonRpc)
    assert isinstance(arguments["limiter"], Limiter)
    assert arguments["configure"].__name__ == "log_in"
    with ConnectionPool(**arguments) as pool:
        assert pool.name == "feeds"
        assert pool.config.max_connections == 3


def test_an_object_is_taken_as_it_is_and_of_a_class_one_is_made() -> None:
    import their_settings  # type: ignore[import-not-found]  # the fixture has written it

    of = {
        given: section_arguments({"CORRELATION": given})["correlation"]
        for given in ["their_settings.rpc", JsonRpc]
    }
    assert of["their_settings.rpc"] is their_settings.rpc
    assert isinstance(of[JsonRpc], JsonRpc)
    assert section_arguments({"CORRELATION": their_settings.rpc})["correlation"] is their_settings.rpc


@pytest.mark.parametrize(
    "given", [{}, {"NAME": None, "BASE_URI": None, "CORRELATION": None, "OPTIONS": None}]
)
def test_none_is_as_if_it_were_not_there(given: dict[str, Any]) -> None:
    arguments = section_arguments(given, WHERE, name="default")
    assert arguments.pop("name") == "default"
    assert not any(arguments.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "kind", "told"),
    [
        ({"BASE_URL": SECRET}, "key", "[\"BASE_URL\"] is unknown (did you mean 'BASE_URI'?)"),
        ({"base_uri": SECRET}, "key", "did you mean 'BASE_URI'?"),
        ({"MAX_CONNECTIONS": SECRET}, "key", 'it belongs into CONFIG, as "max_connections"'),
        ({"PROXY": SECRET}, "key", 'it belongs into OPTIONS, as "proxy"'),
        ({5: SECRET}, "key", "a key must be a str, not int"),
        ({"QQQQ": SECRET}, "key", "known are BASE_URI, CONFIG"),
        ({"manager_kwargs": {}}, "key", "did you mean 'OPTIONS'?"),
        (
            {"CONFIG": {"max_conections": 1}},
            "config",
            '["max_conections"] is unknown (did you mean \'max_conn',
        ),
        ({"CONFIG": {"proxy": SECRET}}, "config", "it belongs into OPTIONS"),
        ({"CONFIG": {"base_uri": SECRET}}, "config", "BASE_URI stands beside CONFIG, not in it"),
        ({"CONFIG": {5: SECRET}}, "config", "a key must be a str, not int"),
        ({"OPTIONS": {"conect_timeout": 1}}, "options", "did you mean 'connect_timeout'?"),
        ({"OPTIONS": {"heartbeat": 1}}, "options", "health_check_interval"),
        ({"OPTIONS": {"max_idle_time": 1}}, "options", "it belongs into CONFIG"),
        ({"OPTIONS": {5: 1}}, "options", "a key must be a str"),
        (
            {"BASE_URI": f"https://u:{SECRET}@h/?token={SECRET}"},
            "value",
            '["BASE_URI"]: invalid WebSocket URI',
        ),
        ({"BASE_URI": 5}, "value", "a URI must be a str"),
        ({"CONFIG": SECRET}, "value", '["CONFIG"] must be a mapping'),
        ({"CONFIG": {"max_connections": 0}}, "value", '["CONFIG"]["max_connections"] must be 1 or more'),
        ({"CONFIG": {"max_connections": SECRET}}, "value", "must be an int, not of type str"),
        ({"CONFIG": {"reuse": SECRET}}, "value", "must be one of 'balanced'"),
        (
            {"CONFIG": {"max_in_flight": 2}},
            "value",
            '["CONFIG"]["max_in_flight"]: max_in_flight of more than 1 needs a correl',
        ),
        ({"OPTIONS": SECRET}, "value", '["OPTIONS"] must be a mapping'),
        (
            {"OPTIONS": {"connect_timeout": SECRET}},
            "value",
            '["OPTIONS"]["connect_timeout"] must be a number',
        ),
        ({"OPTIONS": {"proxy": f"http://u:{SECRET}@h"}}, "value", '["proxy"] must be a URL with a port'),
        ({"OPTIONS": {"proxy": f"http://u:{SECRET}:{SECRET}\x07@h:1"}}, "value", '["proxy"]'),
        ({"OPTIONS": {"proxy": SECRET, "cookie": SECRET}}, "value", '["proxy"]'),
        ({"OPTIONS": {"auth": SECRET}}, "value", '["auth"] must be (user, password)'),
        (
            {"OPTIONS": {"server_hostname": f"{SECRET}:443"}},
            "value",
            '["server_hostname"] must be a host name',
        ),
        ({"OPTIONS": {"unix": "/x", "proxy": f"http://{SECRET}:1"}}, "value", 'give "unix" or a "proxy" URL'),
        ({"OPTIONS": {"message_type": SECRET}}, "value", '["OPTIONS"]: message_type must be'),
        ({"ON_PUSH": print}, "value", '["ON_PUSH"]: on_push needs a correlation'),
        ({"CONFIGURE": 5}, "value", '["CONFIGURE"] must be callable'),
        ({"CHECK": "their_settings.later"}, "value", '["CHECK"] must be an ordinary function'),
        ({"CORRELATION": "their_settings.log_in"}, "value", "must be a jetsocket.correlation.Correlation"),
        (
            {"CORRELATION": "their_settings.Picky"},
            "value",
            "calling Picky without arguments raises TypeError",
        ),
        ({"CORRELATION": "their_settings.Angry"}, "value", "calling Angry without arguments raises Runtime"),
        ({"LIMITER": "their_settings.rpc"}, "value", '["LIMITER"] must be a jetsocket.limits.Limiter'),
        ({"NAME": 5}, "value", '["NAME"] must be a str'),
        ("nothing", "value", f"{WHERE} must be a mapping"),
        ({"CORRELATION": SECRET}, "path", "it must be a dotted path, such as package.module.name"),
        ({"CORRELATION": "a..b"}, "path", "it must be a dotted path"),
        ({"RESET": "no_such_module.reset"}, "path", '["RESET"] can\'t be imported: there is no such module'),
        ({"RESET": "os.no_such.reset"}, "path", "there is no such module"),
        ({"CORRELATION": "jetsocket.correlation.JsonRcp"}, "path", "did you mean 'JsonRpc'?"),
        ({"ON_PUSH": "their_broken.push"}, "path", "it raises KeyError"),
        ({"LIMITER": "their_lacking.Cap"}, "path", "No module named 'no_such_dependency'"),
    ],
)
def test_what_is_wrong_is_told_apart(section: Any, kind: str, told: str) -> None:
    _, faults = read_section(section, WHERE, name="default")
    assert faults[0].kind == kind
    assert told in faults[0].message
    assert WHERE in faults[0].message
    assert SECRET not in "".join(fault.message for fault in faults)
    with pytest.raises(ValueError if kind in ("value", "path") else TypeError) as raised:
        section_arguments(section, WHERE)
    assert str(raised.value) == faults[0].message
    assert raised.value.__context__ is None or kind in ("value", "path")


LIMITERS = """
from jetsocket.limits import FileLimiter, LocalLimiter

account = FileLimiter({path!r}, 2)
other = LocalLimiter(3)

def choose(origin):
    return account if origin.startswith("wss:") else None
"""


@pytest.fixture
def limiters(tmp_path: Path) -> Iterator[Any]:
    """A module of a project's, with the limiters that its pools share."""
    text = LIMITERS.format(path=str(tmp_path / "slots"))
    (tmp_path / "their_limits.py").write_text(text, encoding="utf-8")
    yield import_module("their_limits")
    sys.modules.pop("their_limits", None)


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_a_limiter_is_an_object_or_its_path_and_so_is_each_of_a_mapping(limiters: Any) -> None:
    def made(limiter: Any) -> Any:
        arguments = section_arguments({"BASE_URI": "wss://a.example", "LIMITER": limiter}, WHERE)
        with ConnectionPool(**arguments):
            return arguments["limiter"]

    assert made(limiters.account) is made("their_limits.account") is limiters.account
    assert made("their_limits.choose") is limiters.choose
    by_origin = {"wss://a.example": "their_limits.account", "wss://b.example": limiters.other}
    assert made(by_origin) == {"wss://a.example": limiters.account, "wss://b.example": limiters.other}


@pytest.mark.parametrize(
    ("limiter", "told"),
    [
        ("jetsocket.limits.FileLimiter", "calling FileLimiter without arguments raises TypeError"),
        (
            {"wss://a.example": "their_limits.acount"},
            "can't be imported: there is no such name in its module",
        ),
        (
            {"wss://a.example": "their_limits.choose"},
            "must be a jetsocket.limits.Limiter, not of type function",
        ),
        ({"wss://a.example/path": "their_limits.account"}, "is no origin"),
        ({5: "their_limits.account"}, "a key of"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_what_is_no_limiter_is_told(limiters: Any, limiter: Any, told: str) -> None:
    _, faults = read_section({"LIMITER": limiter}, WHERE)
    assert len(faults) == 1
    assert told in faults[0].message and WHERE in faults[0].message


def test_all_faults_are_found_at_once() -> None:
    section = {
        "BASE_URL": "",
        "CONFIG": {"max_connections": 0, "max_idle": 1},
        "OPTIONS": {"compres": 1},
        "RESET": "no.such",
    }
    kinds = [fault.kind for fault in read_section(section)[1]]
    assert kinds == ["key", "value", "config", "options", "path"]
