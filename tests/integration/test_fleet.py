"""A RedisLimiter in settings, `jetsocket fleet`, and the example of three processes, with a real Redis.

Without one: tests/cli/test_fleet.py.
"""

from __future__ import annotations

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")

from jetsocket import ConnectionPool
from jetsocket.contrib.redis import RedisLimiter
from tests.cli.shell import commands
from tests.cli.terminal import run
from tests.integration.redises import HAS_REDIS, RedisServer, redis_server
from tests.scripts import ROOT
from tests.servers import EchoServer, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not HAS_REDIS, reason="needs redis-server"),
    pytest.mark.timeout(90),
]

PAGE = (ROOT / "docs" / "fleet.md").read_text(encoding="utf-8")
COMMANDS = [each for each in commands(PAGE) if each[0].startswith("jetsocket fleet ")]


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def pool(redis: RedisServer, echo: EchoServer) -> Iterator[ConnectionPool[Any]]:
    with redis.client() as client:
        client.flushall()
    limiter = RedisLimiter(redis.url, "binance", limit=20, lease=5.0)
    with ConnectionPool[Any](base_uri=echo.uri, limiter=limiter) as pool:
        assert pool.prewarm("/", 3) == 3
        yield pool


def test_who_holds_what_and_freeing_it_by_hand(redis: RedisServer, pool: ConnectionPool[Any]) -> None:
    group, process = run("fleet", "status", redis.url, "binance", "--json").records
    assert {key: group[key] for key in ("name", "limit", "held", "waiting")} == {
        "name": "binance", "limit": 20, "held": 3, "waiting": 0,
    }  # fmt: skip
    assert (process["held"], process["limit"], process["lease"]) == (3, 20, 5.0)
    assert str(os.getpid()) in process["where"] and 0 <= process["heard"] < 5
    ran = run("fleet", "forget", redis.url, "binance", process["process"])
    assert ran.lines == [f"process {process['process']} had 3 slots, which are free now"]

    def holds_them_again() -> bool:
        return run("fleet", "status", redis.url, "binance", "--json").records[0]["held"] == 3

    wait_until(holds_them_again, 10)  # it lives, and there is room
    assert len(pool.connections()) == 3
    ran = run("fleet", "forget", redis.url, "binance", "nobody")
    assert (ran.code, ran.lines) == (1, [])
    pool.close()
    wait_until(lambda: "no process is alive" in run("fleet", "status", redis.url, "binance").lines[0], 10)


@pytest.mark.parametrize(("line", "shown"), COMMANDS, ids=[line for line, _ in COMMANDS])
def test_the_page_shows_what_is_printed(
    line: str, shown: list[str], redis: RedisServer, pool: ConnectionPool[Any]
) -> None:
    (process,) = run("fleet", "status", redis.url, "binance", "--json").records[1:]
    named = re.search(r"\b[0-9a-f]{16,}\b", PAGE)
    assert named is not None
    words = shlex.split(line.replace(named[0], process["process"]))[1:]
    ran = run(*(redis.url if word.startswith("redis://") else word for word in words))
    assert (ran.code, ran.err) == (0, "")

    def alike(lines: list[str]) -> list[str]:
        anew = [re.sub(r"\S+:\d+", "WHERE", re.sub(r"\b[0-9a-f]{16,}\b", "ID", each)) for each in lines]
        return [" ".join(re.sub(r"[\d.]+( m?s)?", "N", each).split()) for each in anew]

    assert alike(ran.lines) == alike(shown)


def test_a_user_without_the_rights_is_refused(redis: RedisServer) -> None:
    with redis.client() as client:
        client.execute_command("ACL", "SETUSER", "nobody", "on", ">secret", "-@all")
    url = redis.url.replace("//", "//nobody:secret@")
    ran = run("fleet", "status", url, "binance")
    assert ran.code == 4
    assert "refuses: " in ran.err and "secret" not in ran.err
    ran = run("fleet", "status", redis.url.replace("//", "//nobody:wrong@"), "binance")
    assert ran.code == 4


def test_a_redis_that_is_stalled_is_a_timeout(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetsocket.contrib.redis.fleet._PATIENCE", 0.5)
    redis.freeze()
    try:
        assert run("fleet", "status", redis.url, "binance").code == 5
    finally:
        redis.thaw()


@pytest.fixture
def limits(redis: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of a project's, whose limiter connects to nothing before it is used."""
    text = "from jetsocket.contrib.redis import RedisLimiter"
    text += f"\naccount = RedisLimiter({redis.url!r}, 'settings', limit=2)\n"
    (tmp_path / "their_limits.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("their_limits")
    sys.modules.pop("their_limits", None)


def holds_one(limits: Any, pool: ConnectionPool[Any]) -> bool:
    return pool.request("/", 1, 10) == 1 and limits.account.stats()["held"] == 1


@pytest.mark.parametrize("kind", ["object", "path", "mapping"])
def test_from_mapping_takes_it(echo: EchoServer, limits: Any, kind: str) -> None:
    path = "their_limits.account"
    given = {"object": limits.account, "path": path, "mapping": {echo.uri.rstrip("/"): path}}[kind]
    settings = {"JETSOCKET_BASE_URI": echo.uri, "JETSOCKET_LIMITER": given}
    with ConnectionPool.from_mapping(settings, "JETSOCKET") as pool:
        assert holds_one(limits, pool)


def test_flask_takes_it(echo: EchoServer, limits: Any) -> None:
    flask = pytest.importorskip("flask")
    from jetsocket.contrib.flask import JetSocket

    app = flask.Flask("its")
    app.config.update(JETSOCKET_BASE_URI=echo.uri, JETSOCKET_LIMITER="their_limits.account")
    jet = JetSocket(app)
    with app.app_context():
        assert holds_one(limits, jet.pool)
        jet.pool.close()


def test_django_takes_it(echo: EchoServer, limits: Any) -> None:
    pytest.importorskip("django")
    from django.conf import settings
    from django.test import override_settings

    from jetsocket.contrib.django import pools

    if not settings.configured:
        settings.configure()
    section = {"BASE_URI": echo.uri, "LIMITER": {echo.uri.rstrip("/"): "their_limits.account"}}
    with override_settings(JETSOCKET={"default": section}):
        assert holds_one(limits, pools["default"])
        pools["default"].close()


def test_three_processes_share_what_an_account_may_have(redis: RedisServer) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "REDIS": redis.url, "SECONDS": "5"}
    ended = subprocess.run(
        [sys.executable, "-W", "error", "fleet.py"],
        cwd=Path(ROOT) / "docs" / "examples" / "fleet",
        env=env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    *workers, last = ended.stdout.splitlines()
    assert last == "the service had at most 3 connections at a time"
    turns = [int(found[1]) for each in workers if (found := re.search(r"has asked (\d+) times", each))]
    assert len(turns) == 3 and min(turns) > 0
