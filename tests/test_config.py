"""What a pool may be told, what it refuses, and that no header, cookie or password is shown.

Also tests: `manager_kwargs`, `argument_checks`, `header_fields`.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
import pathlib
import pickle
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.config import ConnectionPoolConfig
from jetsocket.manager_kwargs import Options

SECONDS = [
    "max_idle_time",
    "health_check_interval",
    "acquire_timeout",
    "health_check_timeout",
    "max_lifetime",
    "leak_threshold",
]
COUNTS = {"max_connections": 1, "max_waiting": 0}
OPTIONAL = ["max_lifetime", "max_waiting", "leak_threshold"]


# --- ConnectionPoolConfig


def test_defaults_and_order() -> None:
    assert dataclasses.asdict(ConnectionPoolConfig()) == {
        "max_connections": 10,
        "max_idle_time": 300.0,
        "health_check_interval": 30.0,
        "acquire_timeout": 10.0,
        "health_check_timeout": 10.0,
        "max_lifetime": None,
        "max_waiting": None,
        "reuse": "balanced",
        "match_ids": True,
        "leak_threshold": None,
        "max_connecting": 8,
        "max_per_uri": None,
        "connect_cooldown": 0.0,
        "ping_after_idle": None,
        "max_in_flight": 1,
    }
    config = ConnectionPoolConfig(5, 60, 15, 2, 3, 100, 7, "quiet", False, 9, 4, 2, 1, 0, 1)
    assert dataclasses.astuple(config) == (
        *(5, 60.0, 15.0, 2.0, 3.0, 100.0, 7, "quiet", False, 9.0),
        *(4, 2, 1.0, 0.0, 1),
    )


@pytest.mark.parametrize("value", [0, 1, None, "False"])
def test_match_ids_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match=r"ConnectionPoolConfig\.match_ids must be True or False"):
        ConnectionPoolConfig(match_ids=value)


def test_frozen_equal_hashable_and_portable() -> None:
    config = ConnectionPoolConfig(max_connections=3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.max_connections = 4  # type: ignore[misc]  # the point of the test
    assert pickle.loads(pickle.dumps(config)) == copy.deepcopy(config) == config
    assert len({config, ConnectionPoolConfig(max_connections=3)}) == 1
    assert dataclasses.replace(config, reuse="always").reuse == "always"


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", [1, 0.001, 10**6, threading.TIMEOUT_MAX])
def test_seconds_are_stored_as_floats(field: str, value: float) -> None:
    stored = getattr(_config(field, value), field)
    assert stored == value
    assert type(stored) is float


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, 10**400, 1e300])
def test_seconds_out_of_range(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"ConnectionPoolConfig\.{field} must be more than 0") as raised:
        _config(field, value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize("field", ["connect_cooldown", "ping_after_idle"])
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf])
def test_seconds_that_may_be_0_say_so(field: str, value: float) -> None:
    assert getattr(_config(field, 0), field) == 0.0
    with pytest.raises(ValueError, match=rf"ConnectionPoolConfig\.{field} must be 0 or more and at most"):
        _config(field, value)


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", [True, False, "10", b"1", [1], 1j])
def test_seconds_of_a_wrong_type(field: str, value: object) -> None:
    with pytest.raises(
        TypeError, match=rf"ConnectionPoolConfig\.{field} must be a number of seconds"
    ) as raised:
        _config(field, value)
    assert repr(value) in str(raised.value)


@pytest.mark.parametrize(("field", "least"), COUNTS.items())
def test_counts(field: str, least: int) -> None:
    assert getattr(_config(field, least), field) == least
    for value in (least - 1, -5):
        with pytest.raises(ValueError, match=rf"{field} must be {least} or more, not {value}"):
            _config(field, value)
    for wrong in (True, 1.0, math.nan, "3"):
        with pytest.raises(TypeError, match=rf"{field} must be an int, not "):
            _config(field, wrong)


@pytest.mark.parametrize("field", [*SECONDS, *COUNTS, "reuse"])
def test_none_only_where_it_means_no_limit(field: str) -> None:
    if field in OPTIONAL:
        assert getattr(_config(field, None), field) is None
    else:
        with pytest.raises(TypeError, match=field):
            _config(field, None)


@pytest.mark.parametrize(
    ("value", "nearest"), [("Balanced", "balanced"), ("quite", "quiet"), ("allways", "always")]
)
def test_reuse_names_the_nearest(value: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{nearest}'") as raised:
        _config("reuse", value)
    assert repr(value) in str(raised.value)


def test_reuse_of_a_wrong_kind() -> None:
    with pytest.raises(ValueError, match=r"one of 'balanced', 'quiet', 'always', not 'zzz'$"):
        _config("reuse", "zzz")
    with pytest.raises(TypeError, match="reuse"):
        _config("reuse", True)


@given(st.sampled_from(SECONDS), st.one_of(st.floats(), st.integers()))
def test_any_number_is_stored_or_refused(field: str, value: float) -> None:
    if 0 < value <= threading.TIMEOUT_MAX:
        assert getattr(_config(field, value), field) == value
    else:
        with pytest.raises(ValueError, match=field):
            _config(field, value)


def _config(field: str, value: Any) -> ConnectionPoolConfig:
    return ConnectionPoolConfig(**{field: value})


# --- Options


def test_option_defaults() -> None:
    options = Options.from_kwargs(None)
    assert astuple(options) == astuple(Options()) == astuple(Options.from_kwargs({}))
    assert options.headers() == []
    assert (options.connect_timeout, options.close_timeout, options.send_timeout) == (10.0, 5.0, None)
    assert (options.max_message_size, options.max_redirects, options.connect_attempts) == (64 * 1024**2, 3, 1)
    assert (options.proxy, options.compress, options.cross_origin_headers) == (True, True, False)
    assert repr(options) == "Options()"


@pytest.mark.parametrize(
    ("name", "value", "stored"),
    [
        ("connect_timeout", 3, 3.0),
        ("send_timeout", None, None),
        ("recv_timeout", 1, 1.0),
        ("max_message_size", 1, 1),
        ("compression_threshold", 0, 0),
        ("max_redirects", 0, 0),
        ("subprotocols", ["graphql-ws", "v1.json"], ("graphql-ws", "v1.json")),
        ("subprotocols", None, ()),
        ("socket_options", [[6, 1, 1], (1, 9, b"x")], ((6, 1, 1), (1, 9, b"x"))),
        ("socket_options", [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)], ((6, 1, 0),)),
        ("extra_headers", {"X-A": "1"}, (("X-A", "1"),)),
        ("extra_headers", [["X-A", "1"], ("X-A", "2")], (("X-A", "1"), ("X-A", "2"))),
        ("extra_headers", {"Host": "virtual.example"}, (("Host", "virtual.example"),)),
        ("extra_headers", {"X-A": "caf\xe9\t\x80"}, (("X-A", "caf\xe9\t\x80"),)),
        ("unix", "/run/x.sock", "/run/x.sock"),
        ("unix", "unix:/run/x.sock", "/run/x.sock"),
        ("unix", pathlib.PurePosixPath("/run/x.sock"), "/run/x.sock"),
        ("proxy", False, False),
        ("proxy", None, None),
        ("proxy", "http://h:3128", "http://h:3128"),
        ("proxy", "SOCKS5H://user:p%40w@[::1]:1080/", "SOCKS5H://user:p%40w@[::1]:1080/"),
        ("server_hostname", None, None),
        ("server_hostname", "SVC.test.", "svc.test"),
        ("server_hostname", "bücher.example", "xn--bcher-kva.example"),
        ("server_hostname", "192.0.2.1", "192.0.2.1"),
        ("server_hostname", "[2001:DB8::1]", "2001:db8::1"),
        ("server_hostname", "fe80::1%eth0", "fe80::1"),
        ("source_address", None, None),
        ("source_address", ("192.0.2.1", 0), ("192.0.2.1", 0)),
        ("source_address", ["2001:db8::1", 65535], ("2001:db8::1", 65535)),
        ("source_address", ("fe80::1%eth0", 0), ("fe80::1%eth0", 0)),
        ("source_address", ("", 0), ("", 0)),
        ("max_frame_size", None, None),
        ("max_frame_size", 1, 1),
        ("message_type", dict, dict),
        ("serializer", repr, repr),
        ("origin", "https://example.com", "https://example.com"),
        ("cookie", "a=b; c=d", "a=b; c=d"),
    ],
)
def test_options_are_stored(name: str, value: object, stored: object) -> None:
    assert getattr(Options.from_kwargs({name: value}), name) == stored


def test_an_ssl_context_is_kept() -> None:
    context = ssl.create_default_context()
    assert Options.from_kwargs({"ssl_context": context}).ssl_context is context


async def _async_function(*_args: object) -> dict[str, str]:
    return {}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ssl_context", True),
        ("ssl_context", ssl.SSLContext),
        ("subprotocols", "graphql-ws"),
        ("subprotocols", b"x"),
        ("subprotocols", [b"x"]),
        ("subprotocols", {"a", "b"}),
        ("compress", 1),
        ("compress", None),
        ("compression_threshold", 1.5),
        ("connect_timeout", None),
        ("connect_timeout", "10"),
        ("send_timeout", True),
        ("close_timeout", None),
        ("max_message_size", None),
        ("max_message_size", True),
        ("serializer", "json"),
        ("serializer", _async_function),
        ("deserializer", 1),
        ("origin", b"x"),
        ("cookie", {"a": "b"}),
        ("proxy", 1),
        ("server_hostname", b"svc.test"),
        ("server_hostname", True),
        ("server_hostname", ("svc.test", 443)),
        ("source_address", "127.0.0.1"),
        ("source_address", b"127.0.0.1"),
        ("source_address", 0),
        ("source_address", ("127.0.0.1",)),
        ("source_address", ("127.0.0.1", 0, 0)),
        ("source_address", (0, "127.0.0.1")),
        ("source_address", ("127.0.0.1", "0")),
        ("source_address", ("127.0.0.1", True)),
        ("source_address", ("127.0.0.1", 0.0)),
        ("source_address", (b"127.0.0.1", 0)),
        ("source_address", (None, 0)),
        ("source_address", {"127.0.0.1": 0}),
        ("max_frame_size", "1024"),
        ("max_frame_size", True),
        ("max_frame_size", 1024.0),
        ("socket_options", (6, 1, 1)),
        ("socket_options", [(6, 1)]),
        ("socket_options", [(6, 1, "1")]),
        ("socket_options", None),
        ("max_redirects", "3"),
        ("connect_attempts", True),
        ("cross_origin_headers", "yes"),
        ("unix", 3),
        ("unix", b"/run/x"),
        ("extra_headers", "X-A: 1"),
        ("extra_headers", ["X-A: 1"]),
        ("extra_headers", [("X-A", 1)]),
        ("extra_headers", {"X-A": ["1"]}),
        ("extra_headers", [("X-A", "1", "2")]),
        ("extra_headers", 5),
        ("extra_headers", _async_function),
    ],
)
def test_options_of_a_wrong_type(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=rf'manager_kwargs\["{name}"\]'):
        Options.from_kwargs({name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("subprotocols", ["a b"]),
        ("subprotocols", [""]),
        ("subprotocols", ["a,b"]),
        ("subprotocols", ["a", "a"]),
        ("compression_threshold", -1),
        ("connect_timeout", 0),
        ("send_timeout", -1),
        ("recv_timeout", math.nan),
        ("close_timeout", math.inf),
        ("max_message_size", 0),
        ("server_hostname", ""),
        ("server_hostname", "."),
        ("server_hostname", "svc.test:443"),
        ("server_hostname", "wss://svc.test"),
        ("server_hostname", "svc test"),
        ("server_hostname", "svc.test\r\n"),
        ("server_hostname", "*.test"),
        ("server_hostname", "1::2::3"),
        ("server_hostname", "x" * 300),
        ("source_address", ("localhost", 0)),
        ("source_address", ("[::1]", 0)),
        ("source_address", ("127.0.0.1", -1)),
        ("source_address", ("127.0.0.1", 65536)),
        ("source_address", ("127.0.0.1\0", 0)),
        ("max_frame_size", 0),
        ("max_frame_size", -1),
        ("max_redirects", -1),
        ("connect_attempts", 0),
        ("origin", ""),
        ("origin", "a\r\nb"),
        ("cookie", ""),
        ("cookie", "a=b\r\nX: y"),
        ("cookie", "a=\u20ac"),
        ("unix", ""),
        ("unix", "unix:"),
        ("unix", "/run/\0x"),
        ("proxy", ""),
        ("proxy", "h:3128"),
        ("proxy", "http://h"),
        ("proxy", "http://:3128"),
        ("proxy", "http://h:0"),
        ("proxy", "http://h:65536"),
        ("proxy", "http://h:3128/path"),
        ("proxy", "https://h:3128"),
        ("proxy", "ftp://h:21"),
        ("proxy", "http://h:3128\r\n"),
    ],
)
def test_options_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf'manager_kwargs\["{name}"\]'):
        Options.from_kwargs({name: value})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("headers", "extra_headers"),
        ("extra_header", "extra_headers"),
        ("sslcontext", "ssl_context"),
        ("Compress", "compress"),
        ("timeout", "send_timeout"),
        ("max_size", "max_message_size"),
        ("frame_size", "max_frame_size"),
        ("local_addr", "source_address"),
        ("server_name", "server_hostname"),
        ("subprotocol", "subprotocols"),
        ("proxies", "proxy"),
    ],
)
def test_an_unknown_key_names_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        TypeError, match=rf'manager_kwargs\["{name}"\] is unknown \(did you mean \'{nearest}\''
    ):
        Options.from_kwargs({name: 1})


def test_an_unknown_key_like_none_lists_them_all() -> None:
    with pytest.raises(TypeError, match=r"known are ssl_context, .*, unix"):
        Options.from_kwargs({"qqqqqq": 1})


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("heartbeat", "health_check_interval"),
        ("max_connection_age", "max_lifetime"),
        ("reconnect", "connect_attempts"),
        ("backoff", "connect_attempts"),
        ("buffer", 'reuse="always"'),
        ("replay", "never sends a message twice"),
    ],
)
def test_names_of_the_original_say_what_to_set(name: str, instead: str) -> None:
    with pytest.raises(TypeError, match=rf'manager_kwargs\["{name}"\] is no option: ') as raised:
        Options.from_kwargs({name: None})
    assert instead in str(raised.value)


@pytest.mark.parametrize("kwargs", [[("compress", True)], "compress", 1])
def test_manager_kwargs_is_a_mapping(kwargs: Any) -> None:
    with pytest.raises(TypeError, match="manager_kwargs must be a mapping"):
        Options.from_kwargs(kwargs)


def test_keys_are_strings() -> None:
    with pytest.raises(TypeError, match="a key must be a str, not 1"):
        Options.from_kwargs({1: 2})  # type: ignore[dict-item]  # the point of the test


def test_what_excludes_each_other() -> None:
    with pytest.raises(TypeError, match='"deserializer" or "message_type", not both'):
        Options.from_kwargs({"deserializer": repr, "message_type": dict})
    with pytest.raises(ValueError, match='"unix" or a "proxy" URL, not both'):
        Options.from_kwargs({"unix": "/x", "proxy": "http://h:1"})
    with pytest.raises(ValueError, match='"unix" or "source_address", not both'):
        Options.from_kwargs({"unix": "/x", "source_address": ("", 0)})
    with pytest.raises(ValueError, match="Origin is also given"):
        Options.from_kwargs({"origin": "a", "extra_headers": {"origin": "b"}})
    with pytest.raises(ValueError, match="Cookie is also given") as raised:
        Options.from_kwargs({"cookie": "a=secret", "extra_headers": [("cookie", "b=secret")]})
    assert "secret" not in str(raised.value)


# --- headers: checked when they are given, or at each connect when they come from a callable

BAD_HEADERS: list[tuple[Any, type[Exception], str]] = [
    ({"": "x"}, ValueError, "not a token"),
    ({"X A": "x"}, ValueError, "not a token"),
    ({"X-A:": "x"}, ValueError, "not a token"),
    ({"X-Ä": "x"}, ValueError, "not a token"),
    ({"X-A\r\n": "x"}, ValueError, "not a token"),
    ({"X-A": "SECRET\r\nX-B: y"}, ValueError, "value of header X-A"),
    ({"X-A": "SECRET\n"}, ValueError, "value of header X-A"),
    ({"X-A": "SECRET\x00"}, ValueError, "value of header X-A"),
    ({"X-A": "SECRET\u20ac"}, ValueError, "value of header X-A"),
    ({"Upgrade": "SECRET"}, ValueError, "belongs to the handshake"),
    ({"connection": "SECRET"}, ValueError, "belongs to the handshake"),
    ({"Sec-WebSocket-Key": "SECRET"}, ValueError, "belongs to the handshake"),
    ({"Sec-WebSocket-Version": "SECRET"}, ValueError, "belongs to the handshake"),
    ({"Sec-WebSocket-Accept": "SECRET"}, ValueError, "belongs to the handshake"),
    ({"Sec-WebSocket-Extensions": "SECRET"}, ValueError, r'set manager_kwargs\["compress"\]'),
    ({"sec-websocket-protocol": "SECRET"}, ValueError, r'set manager_kwargs\["subprotocols"\]'),
    ({"Content-Length": "5"}, ValueError, "an upgrade has no body"),
    ([("Authorization", "SECRET"), ("authorization", "b")], ValueError, "Authorization is given 2 times"),
    ([("Host", "a"), ("host", "b")], ValueError, "Host is given 2 times"),
    ("X-A: SECRET", TypeError, "a mapping or a list of"),
    ({"X-A": b"SECRET"}, TypeError, "two str each"),
    (iter([("X-A", "SECRET")]), TypeError, "a mapping or a list of"),
]


@pytest.mark.parametrize(("headers", "kind", "fault"), BAD_HEADERS)
def test_bad_headers_are_refused_when_given(headers: Any, kind: type[Exception], fault: str) -> None:
    with pytest.raises(kind, match=fault) as raised:
        Options.from_kwargs({"extra_headers": headers})
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(("headers", "kind", "fault"), BAD_HEADERS)
def test_bad_headers_of_a_callable_are_refused_at_connect(
    headers: Any, kind: type[Exception], fault: str
) -> None:
    options = Options.from_kwargs({"extra_headers": lambda: headers})
    with pytest.raises(kind, match=fault) as raised:
        options.headers()
    assert "SECRET" not in str(raised.value)
    assert 'manager_kwargs["extra_headers"]()' in str(raised.value)


def test_a_callable_that_returns_nothing_is_refused_at_connect() -> None:
    with pytest.raises(TypeError, match="not NoneType"):
        Options.from_kwargs({"extra_headers": lambda: None}).headers()


def test_a_callable_is_asked_at_every_connect() -> None:
    tokens = iter(["one", "two"])
    options = Options.from_kwargs({"extra_headers": lambda: {"Authorization": next(tokens)}})
    assert options.headers() == [("Authorization", "one")]
    assert options.headers() == [("Authorization", "two")]


def test_an_error_of_a_callable_comes_through() -> None:
    def ask() -> Mapping[str, str]:
        raise RuntimeError("vault is sealed")

    options = Options.from_kwargs({"extra_headers": ask})
    with pytest.raises(RuntimeError, match="vault is sealed"):
        options.headers()


@pytest.mark.parametrize("field", ["Origin", "Cookie"])
def test_a_second_origin_or_cookie_of_a_callable_is_refused(field: str) -> None:
    options = Options.from_kwargs({field.lower(): "a", "extra_headers": lambda: [(field, "b")]})
    with pytest.raises(ValueError, match=f"{field} is also given"):
        options.headers()


def test_later_changes_of_a_given_mapping_change_nothing() -> None:
    headers = {"X-A": "1"}
    options = Options.from_kwargs({"extra_headers": headers})
    headers["X-A"] = "1\r\nX-B: 2"
    assert options.headers() == [("X-A", "1")]


# --- nothing secret is shown


def _headers_with(secret: str) -> dict[str, str]:
    return {"Authorization": secret}


def test_repr_shows_no_secret() -> None:
    options = Options.from_kwargs(
        {
            "extra_headers": {"Authorization": "Bearer SECRET", "X-Key": "SECRET"},
            "cookie": "session=SECRET",
            "proxy": "http://SECRET:SECRET@proxy:3128",
            "connect_timeout": 3,
        }
    )
    assert repr(options) == (
        "Options(extra_headers=<Authorization, X-Key>, connect_timeout=3.0, cookie='***', proxy='http://proxy:3128')"
    )


def test_repr_of_callables_shows_no_arguments() -> None:
    options = Options(
        extra_headers=functools.partial(_headers_with, "SECRET"), serializer=repr, message_type=Options
    )
    assert repr(options) == (
        "Options(extra_headers=<partial>, serializer=<repr>,"
        " message_type=<class 'jetsocket.manager_kwargs.Options'>)"
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("proxy", "ftp://SECRET:SECRET@h:1"),
        ("proxy", "SECRET:SECRET@h:1"),
        ("proxy", "http://SECRET:SECRET@h"),
        ("cookie", "SECRET\n"),
        ("cookie", b"SECRET"),
        ("extra_headers", {"Authorization": "SECRET\n"}),
        ("extra_headers", b"SECRET"),
    ],
)
def test_errors_show_no_secret(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=name) as raised:
        Options.from_kwargs({name: value})
    assert "SECRET" not in str(raised.value)
