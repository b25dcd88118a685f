"""Which pools are shown, and since when they are sampled: by one thread, in whatever process.

Also tests: `sampler`, `watching`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest

from jetsocket import ConnectionError, ConnectionPool
from jetsocket.contrib import status
from jetsocket.contrib.status import sampler
from tests.contrib.status.client import ask, shown, told
from tests.servers import EchoServer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]


def samplers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "jetsocket-status"]


def names(app: Any) -> list[str]:
    return [pool["name"] for pool in ask(app, "/status.json").json["workers"][0]["pools"]]


# --- which


def test_pools_are_given_one_by_one_in_a_list_or_in_a_mapping(make_pool: MakePool) -> None:
    one, other = make_pool("ws://localhost", name="one"), make_pool("ws://localhost", name="other")
    assert names(shown(one)) == ["one"]
    assert names(shown([one, other])) == ["one", "other"]
    assert names(shown({"a": other, "b": one})) == ["a", "b"]
    assert names(shown(iter([other]))) == ["other"]


def test_two_of_one_name_are_told_apart_and_one_is_shown_once(make_pool: MakePool) -> None:
    pools = [make_pool("ws://localhost", name="same") for _ in range(3)]
    assert names(shown([*pools, pools[0]])) == ["same", "same (2)", "same (3)"]


def test_a_mapping_may_grow(make_pool: MakePool) -> None:
    pools: dict[str, ConnectionPool[Any]] = {}
    app = shown(pools)
    assert names(app) == [] and "There is no pool" in ask(app).body
    pools["late"] = make_pool("ws://localhost")
    assert names(app) == ["late"]


def test_pools_are_not_kept_unless_by_a_mapping(echo: EchoServer) -> None:
    pool, kept = ConnectionPool(base_uri=echo.uri, name="lost"), ConnectionPool(base_uri=echo.uri)
    app, keeper = shown([pool, kept]), shown({"kept": kept})
    pool.request("/", {"id": 1})
    ask(app), ask(keeper)
    gone, held = weakref.ref(pool), weakref.ref(kept)
    name = kept.name
    del pool, kept
    gc.collect()
    wait_until(lambda: gone() is None)  # the thread looks at it for a moment
    assert names(app) == [name] and names(keeper) == ["kept"]
    wait_until(lambda: echo.open_now == 0)
    del keeper
    gc.collect()
    wait_until(lambda: held() is None)


# --- since when


def test_one_thread_from_the_first_request_on(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    first, second = shown(pool), shown({"other": pool})
    pool.request("/", {"id": 1})
    assert samplers() == []
    assert ask(first, method="POST").status == 405
    assert samplers() == []
    ask(first), ask(second), ask(first, "/status.json")
    (thread,) = samplers()
    assert thread.daemon
    assert told(pool)["history"]["idle"] == [1]
    del first, second
    gc.collect()
    wait_until(lambda: not thread.is_alive())


@pytest.mark.slow
def test_a_figure_a_second(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    app = shown(pool)

    def history() -> list[int | None]:
        lent: list[int | None] = ask(app, "/status.json").json["workers"][0]["pools"][0]["history"]["lent"]
        return lent

    assert history() == [0]
    with pool.acquire("/"):
        wait_until(lambda: history()[-2:] == [1, 1])
    wait_until(lambda: history()[-1] == 0)
    assert len(history()) < 10 and None not in history()


def test_with_a_directory_from_the_first_acquire_on(
    echo: EchoServer, make_pool: MakePool, tmp_path: Path
) -> None:
    directory = tmp_path / "new" / "status"
    pool = make_pool(echo)
    app = shown([pool], directory=directory)
    status.publish([pool], directory)
    assert samplers() == [] and status.read(directory) == [] and not directory.exists()
    pool.request("/", {"id": 1})
    assert len(samplers()) == 1
    (report,) = wait_until(lambda: status.read(directory))
    assert [each["name"] for each in report["pools"]] == [pool.name]
    assert names(app) == [pool.name]
    assert len(ask(app, "/status.json").json["workers"]) == 1
    assert directory.stat().st_mode & 0o777 == 0o700


class Broken(Mapping[str, Any]):
    """A mapping that fails after a while."""

    def __init__(self, pool: ConnectionPool[Any]) -> None:
        self.pool = pool
        self.fails = False
        self.asked = 0

    def __getitem__(self, name: str) -> Any:
        self.asked += 1
        if self.fails:
            raise RuntimeError("hush")
        return self.pool

    def __iter__(self) -> Any:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@pytest.mark.slow
def test_the_thread_survives_a_mapping_that_fails(
    make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pools = Broken(make_pool("ws://localhost"))
    app = shown(pools)
    ask(app)
    with caplog.at_level(logging.ERROR, "jetsocket.status"):
        pools.fails, before = True, pools.asked
        wait_until(lambda: pools.asked >= before + 2)
    assert len(caplog.records) == 1 and "not sampled" in caplog.text
    pools.fails = False
    assert names(app) == ["a"]


def test_where_no_thread_can_be_started_the_page_is_there(
    make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def start(thread: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    pool = make_pool("ws://localhost")
    app = shown(pool)
    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR, "jetsocket.status"):
        patched.setattr(threading.Thread, "start", start)
        assert ask(app).status == 200
    assert "can't start new thread" in caplog.text and samplers() == []
    assert ask(app).status == 200 and len(samplers()) == 1


def test_an_acquire_inside_the_sampler_itself_does_not_hang(make_pool: MakePool) -> None:
    """A finalizer may acquire while its thread adds a board."""
    own = sampler.Sampler(os.getpid())
    with own._lock:
        assert own.add(status.board.Board()) is False


# --- forks


def in_child(act: Callable[[], Any]) -> Any:
    """What `act` returns in a forked child."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.write(writing, json.dumps(act()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    assert os.waitpid(pid, 0)[1] == 0
    return json.loads(content)


def test_a_forked_child_begins_anew_at_its_first_request(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    app = shown(pool)
    pool.request("/", {"id": 1})
    ask(app)
    with pytest.raises(ConnectionError, match="refused"):
        pool.acquire("ws://127.0.0.1:1/")
    assert told(pool)["errors"]

    def act() -> Any:
        before = len(samplers())
        now = ask(app, "/status.json").json["workers"][0]["pools"][0]  # of one that lasts, and so its thread
        return [before, len(samplers()), now["history"]["idle"], now["errors"], names(app)]

    assert in_child(act) == [0, 1, [0], [], [pool.name]]
    assert len(samplers()) == 1


def test_a_forked_child_publishes_at_its_first_acquire(
    echo: EchoServer, make_pool: MakePool, tmp_path: Path
) -> None:
    pool = make_pool(echo)
    status.publish([pool], tmp_path)
    pool.request("/", {"id": 1})
    wait_until(lambda: status.read(tmp_path))

    def act() -> Any:
        before = len(samplers())
        pool.request("/", {"id": 2})
        told = wait_until(lambda: len(found := status.read(tmp_path)) == 2 and found)
        return [before, len(samplers()), sorted(each["pid"] for each in told), os.getpid()]

    before, after, pids, child = in_child(act)
    assert (before, after, pids) == (0, 1, sorted([os.getpid(), child]))
    assert [each["pid"] for each in status.read(tmp_path)] == [os.getpid()]  # the child is gone
