"""Celery's workers with `jetsocket.contrib.celery.setup`: warm when they begin, closed when they end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import PATIENCE, ROOT, running
from tests.servers import Connection, EchoServer, RawServer, hold, refusing_port, wait_until

pytest.importorskip("celery")
pytest.importorskip("redis")

from tests.integration.test_celery import broker  # noqa: F401  # a fixture

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]

EXAMPLE = ROOT / "docs" / "examples" / "celery"


class Node:
    """Answers the example's request, and keeps how each connection ended."""

    def __init__(self) -> None:
        self.ends = Counter[int | None]()
        self.asked = 0

    def __call__(self, conn: Connection) -> None:
        try:
            for text in conn:
                self.asked += 1
                message = json.loads(text)
                if message["params"] == ["never"]:
                    continue
                reply = {"jsonrpc": "2.0", "id": message["id"], "result": message["params"][0] * 2}
                conn.send(json.dumps(reply))
        finally:
            self.ends[conn.protocol.close_code] += 1


@pytest.fixture
def ask(broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:  # noqa: F811
    """Calls the example's task: `ask(21)`, with options of `apply_async`."""
    monkeypatch.setenv("BROKER", broker)
    monkeypatch.syspath_prepend(EXAMPLE)
    import tasks

    yield lambda block, **options: tasks.height.apply_async([block], **options)
    tasks.pool.close()
    tasks.app.close()
    del sys.modules["tasks"]


@contextlib.contextmanager
def worker(log: Path, node: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of the example, as its page says, ended in order with the block."""
    command = [sys.executable, "-m", "celery", "--workdir", str(EXAMPLE), "-A", "tasks", "worker"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat", *options]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with running(command, log, NODE=node, PYTHONPATH=paths) as process:
        yield process
        process.terminate()
        assert process.wait(PATIENCE) == 0, log.read_text()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("pool", ["prefork", "threads", "gevent"])
def test_a_worker_begins_warm_and_ends_in_order(pool: str, ask: Callable[..., Any], tmp_path: Path) -> None:
    node, log = Node(), tmp_path / "celery.log"
    recycled = ["--max-tasks-per-child=4"] if pool == "prefork" else []
    with EchoServer(node) as server:
        with worker(log, server.uri, f"--pool={pool}", "--concurrency=2", *recycled):
            wait_until(lambda: server.opened >= (2 if pool == "prefork" else 1), PATIENCE, "none is warm")
            assert node.asked == 0
            results = [ask(number) for number in range(24)]
            assert [result.get(PATIENCE) for result in results] == [2 * number for number in range(24)]
        wait_until(lambda: sum(node.ends.values()) == server.opened, PATIENCE)
    assert set(node.ends) == {1001}, (node.ends, log.read_text())
    if pool == "prefork":
        assert server.opened >= 6  # the children that were recycled, and those at the end
    else:
        assert server.opened <= 2


@pytest.mark.timeout(120)
def test_a_soft_time_limit_leaves_the_pool_whole(ask: Callable[..., Any], tmp_path: Path) -> None:
    from celery.exceptions import SoftTimeLimitExceeded

    node = Node()
    with EchoServer(node) as server, worker(tmp_path / "celery.log", server.uri, "--concurrency=1"):
        for _ in range(3):  # more often than it has connections
            with pytest.raises(SoftTimeLimitExceeded):
                ask("never", soft_time_limit=0.5).get(PATIENCE)
        assert ask(21).get(PATIENCE) == 42


@pytest.mark.timeout(120)
def test_a_mute_server_holds_up_no_worker(
    ask: Callable[..., Any], raw_server: Callable[..., RawServer], tmp_path: Path
) -> None:
    log = tmp_path / "celery.log"
    with worker(log, raw_server(hold).uri, "--concurrency=1", "--loglevel=INFO"):
        wait_until(lambda: " ready." in log.read_text(), PATIENCE)
        with pytest.raises(TimeoutError):
            ask(21).get(PATIENCE)
    assert "Timed out waiting for UP message" not in log.read_text()


def test_a_prewarm_that_fails_is_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    from celery import Celery, signals

    from jetsocket import ConnectionPool
    from jetsocket.contrib.celery import setup

    other, app = Celery("other", set_as_current=False), Celery("this")
    with refusing_port() as port, ConnectionPool(base_uri=f"ws://127.0.0.1:{port}", name="node") as pool:
        setup(other, pool, prewarm={"/other": 1})
        setup(app, pool, prewarm={"/": 1})
        signals.worker_process_init.send(sender=None)
        wait_until(lambda: caplog.records)
        signals.worker_process_shutdown.send(sender=None)
        assert pool.is_closed
    [line] = [record.getMessage() for record in caplog.records if record.name == "jetsocket.celery"]
    assert line.startswith(f"[node] prewarm failed: cannot connect to ws://127.0.0.1:{port}/: ")


def test_what_is_no_app_pool_or_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from celery import Celery

    from jetsocket import ConnectionPool
    from jetsocket.contrib.celery import setup

    app = Celery("none")
    with ConnectionPool() as pool:
        with pytest.raises(TypeError, match=r"app must be a celery\.Celery"):
            setup("app", pool)  # type: ignore[arg-type]  # the point
        with pytest.raises(TypeError, match="pool must be a ConnectionPool"):
            setup(app, "pool")  # type: ignore[arg-type]  # the point
        with pytest.raises(ValueError, match=r"prewarm.*must be 0 or more"):
            setup(app, pool, prewarm={"ws://localhost/": -1})
        with pytest.raises(ValueError, match="base_uri"):
            setup(app, pool, prewarm={"/relative": 1})
        with pytest.raises(ValueError, match="timeout must be 0 s or more"):
            setup(app, pool, timeout=float("nan"))
