"""Django: pools of the settings, once a process, made anew when the settings change."""

from __future__ import annotations

import copy
import importlib
import inspect
import os
import pickle
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")

from django.test import override_settings

from jetsocket import ConnectionPool, PoolExhaustedError
from jetsocket.contrib.django import pool, pools
from jetsocket.contrib.status import read
from jetsocket.correlation import JsonRpc
from jetsocket.events import Listener
from jetsocket.limits import FileLimiter
from tests.servers import EchoServer, wait_until

Use = Callable[..., None]


def test_a_pool_is_made_of_its_settings(use: Use, echo: EchoServer) -> None:
    use(
        default={
            "BASE_URI": echo.uri,
            "CONFIG": {"max_connections": 3, "max_in_flight": 2},
            "OPTIONS": {"connect_timeout": 4.0},
            "CORRELATION": "jetsocket.correlation.JsonRpc",
        },
        nodes={"BASE_URI": echo.uri, "NAME": "the nodes"},
    )
    assert (pools["default"].config.max_connections, pools["default"].name) == (3, "default")
    assert isinstance(pools["default"].correlation, JsonRpc)
    assert pools["nodes"].name == "the nodes"
    assert pools["nodes"].request("/", {"n": 1}) == {"n": 1}
    assert list(pools) == ["default", "nodes"]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no flock")
def test_pools_share_a_limiter(use: Use, echo: EchoServer, tmp_path: Path) -> None:
    """By object, and by origin."""
    account = FileLimiter(tmp_path / "slots", 2)
    use(
        default={"BASE_URI": echo.uri, "LIMITER": account},
        nodes={"BASE_URI": echo.uri, "LIMITER": {echo.uri.rstrip("/"): account}},
    )
    assert pools["default"].request("/", 1) == pools["nodes"].request("/", 1) == 1
    assert account.stats()["held"] == 2
    assert pools["nodes"].limits()[account.name]["limit"] == 2
    with (
        pools["default"].acquire("/"),
        pytest.raises(PoolExhaustedError, match="has no slot: its limit is 2"),
    ):
        pools["default"].acquire("/", timeout=0.2)


def test_pool_stands_for_default(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri})
    with pool.acquire("/") as conn:
        assert conn.request({"n": 1}) == {"n": 1}
    assert pool.stats().acquires == 1
    assert pool == pools["default"]


def test_pool_and_pools_are_themselves_when_copied_or_unpickled(use: Use, echo: EchoServer) -> None:
    """In another process they are those of that one; so they may be fields of what is copied."""
    use(default={"BASE_URI": echo.uri})
    for each in (pool, pools):
        assert copy.copy(each) is each
        assert copy.deepcopy({"field": each})["field"] is each
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            assert pickle.loads(pickle.dumps(each, protocol)) is each
    assert pools.made() == {}
    for taken in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="pool 'default' can't be pickled or copied"):
            taken(pools["default"])


def test_looking_at_pool_as_tools_do_makes_no_pool(use: Use) -> None:
    """Doctest, mock and inspect look for these on all that a module has."""
    use(other={})
    for name in ("__wrapped__", "__file__", "__len__", "__copy__", "__getstate__x", "_ipython_display_"):
        assert not hasattr(pool, name)
        assert not hasattr(type(pool).__new__(type(pool)), name)
    assert inspect.unwrap(pool) is pool
    with pytest.raises(KeyError, match="no pool 'default'"):
        _ = pool.stats


def test_nothing_is_made_before_its_use_and_once_for_all_threads(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri})
    assert pools.made() == {}
    barrier = threading.Barrier(8)

    def get() -> ConnectionPool[Any]:
        barrier.wait(5)
        return pools["default"]

    with ThreadPoolExecutor(8) as threads:
        found = [each.result(5) for each in [threads.submit(get) for _ in range(8)]]
    assert len(set(map(id, found))) == 1
    assert not found[0].is_closed
    assert echo.opened == 0


def test_an_unknown_alias_says_which_are_known(use: Use) -> None:
    use(a={}, b={})
    with pytest.raises(KeyError, match=r"settings\.JETSOCKET has no pool 'c'; known are 'a', 'b'"):
        pools["c"]
    with pytest.raises(KeyError, match="no pool 'default'"):
        pool.stats()


def test_what_is_wrong_is_told_at_the_first_use(use: Use) -> None:
    use(default={"BASE_URL": "x"}, other={"CONFIG": {"max_connections": "secret"}})
    with pytest.raises(TypeError, match=r'JETSOCKET\["default"\]\["BASE_URL"\] is unknown.*BASE_URI'):
        pools["default"]
    with pytest.raises(ValueError, match="max_connections") as refused:
        pools["other"]
    assert "secret" not in str(refused.value)


def test_a_pool_of_changed_settings_is_closed_and_others_stay(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri}, same={"BASE_URI": echo.uri})
    before, same = pools["default"], pools["same"]
    before.request("/", [1])
    use(default={"BASE_URI": echo.uri, "CONFIG": {"max_connections": 2}}, same={"BASE_URI": echo.uri})
    assert before.is_closed
    assert pools["default"].config.max_connections == 2
    assert pools["same"] is same
    wait_until(lambda: echo.open_now == 0)


def test_settings_that_were_changed_in_place_are_changed_too(use: Use, echo: EchoServer) -> None:
    """As a shallow copy leads to: `{**settings.JETSOCKET}`, and its section is the same object."""
    section: dict[str, Any] = {"BASE_URI": echo.uri, "CONFIG": {"max_connections": 3}}
    use(default=section)
    before = pools["default"]
    section["CONFIG"]["max_connections"] = 2
    use(default=section)
    assert before.is_closed
    assert pools["default"].config.max_connections == 2


def test_another_directory_is_written_to_from_then_on(use: Use, echo: EchoServer, tmp_path: Path) -> None:
    use(default={"BASE_URI": echo.uri})
    before = pools["default"]
    with override_settings(JETSOCKET_STATUS_DIR=tmp_path):
        assert pools["default"].request("/", [1]) == [1]
        wait_until(lambda: [each["pools"][0]["name"] for each in read(tmp_path)] == ["default"])
    assert before.is_closed


def test_close_all_closes_and_the_next_use_makes_anew(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri})
    before = pools["default"]
    pools.close_all()
    assert before.is_closed
    assert pools["default"].request("/", [1]) == [1]


def test_a_listener_is_told_what_all_do(use: Use, echo: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    class Names(Listener):
        def __init__(self) -> None:
            self.uris: list[str] = []

        def acquiring(self, uri: str) -> None:
            self.uris.append(uri)

    monkeypatch.setattr(pools, "_listeners", [])
    names = Names()
    use(a={"BASE_URI": echo.uri}, b={"BASE_URI": echo.uri})
    pools["a"].request("/", [1])
    pools.listen(names)
    pools["a"].request("/a", [1])
    pools["b"].request("/b", [1])
    assert names.uris == [echo.uri_for("/a"), echo.uri_for("/b")]


def test_a_forked_child_has_connections_of_its_own(use: Use, echo: EchoServer) -> None:
    use(default={"BASE_URI": echo.uri})
    pools["default"].request("/", [1])
    pid = os.fork()
    if pid == 0:  # pragma: no cover  # the child
        code = 1
        try:
            code = 0 if pools["default"].request("/", [2]) == [2] else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert echo.opened == 2
    assert pools["default"].request("/", [3]) == [3]
    assert echo.opened == 2


@pytest.mark.parametrize("module", ["apps", "checks", "pools", "status_page", "urls", "views"])
def test_without_django_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    for name in [name for name in sys.modules if name.startswith("jetsocket.contrib.django")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "django.conf", None)
    with pytest.raises(ImportError, match=r'needs Django: pip install "jetsocket\[django\]"'):
        importlib.import_module(f"jetsocket.contrib.django.{module}")
