"""Celery's prefork workers, on a Redis of this test's own: a pool that was used before the fork."""

from __future__ import annotations

import contextlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionError, DecodeError, PoolExhaustedError
from tests.faults.census import Census
from tests.faults.conftest import Report
from tests.integration.apps.settings import BROKER_VARIABLE, CAP, SERIALIZER_VARIABLE, URI_VARIABLE
from tests.integration.running import PATIENCE, PROMPT, running
from tests.servers import EchoServer, refusing_port, wait_until

pytest.importorskip("celery")
pytest.importorskip("redis")

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server"),
]

TASKS = 200


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[str]:
    """The URL of a Redis that keeps nothing and listens on a Unix socket only."""
    from redis import Redis
    from redis.exceptions import ConnectionError as NotYet

    path = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    with running(["redis-server", *options, "--dir", str(tmp_path)], tmp_path / "redis.log") as redis:

        def answers() -> bool:
            assert redis.poll() is None, (tmp_path / "redis.log").read_text()
            with contextlib.suppress(NotYet), Redis(unix_socket_path=str(path)) as client:
                return bool(client.ping())
            return False

        wait_until(answers, PATIENCE)
        yield f"redis+socket://{path}"


@pytest.fixture
def app(broker: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The Celery app, as a client."""
    monkeypatch.setenv(BROKER_VARIABLE, broker)
    monkeypatch.setenv(SERIALIZER_VARIABLE, "pickle")
    from tests.integration.apps import celery_app

    yield celery_app
    celery_app.app.close()
    del sys.modules[celery_app.__name__]


def check_errors(app: Any) -> None:
    """What a task raises arrives as it was, with its figures."""
    with pytest.raises(PoolExhaustedError) as exhausted:
        app.exhaust.delay().get(PATIENCE)
    assert (exhausted.value.max_connections, exhausted.value.timeout) == (CAP, 0.01)
    with refusing_port() as port, pytest.raises(ConnectionError, match="refused"):
        app.fail_to_connect.delay(port).get(PATIENCE)
    with pytest.raises(DecodeError) as misread:
        app.misread.delay("no json").get(PATIENCE)
    assert misread.value.payload == "no json"


@pytest.mark.timeout(150)
def test_children_forked_from_a_pool_in_use(app: Any, tmp_path: Path, report: Report) -> None:
    census, log = Census(), tmp_path / "celery.log"
    command = [sys.executable, "-m", "celery", "--app=tests.integration.apps.celery_app", "worker"]
    command += ["--pool=prefork", "--concurrency=2", "--loglevel=INFO"]
    command += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with (
        EchoServer(census) as server,
        running(command, log, **{URI_VARIABLE: server.uri}) as worker,
    ):
        parent = str(worker.pid)
        results = [app.ask.delay(str(number)) for number in range(TASKS)]
        wait_until(lambda: worker.poll() is not None or results[0].ready(), PATIENCE)
        assert worker.poll() is None, log.read_text()
        replies = [result.get(PATIENCE) for result in results]
        assert [reply["id"] for reply in replies] == [str(number) for number in range(TASKS)]
        assert all(reply["pid"] == reply["worker"] != parent for reply in replies)
        check_errors(app)
        start = monotonic()
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
        took = monotonic() - start
        wait_until(lambda: census.ended == server.opened, 10)
    children = Counter(reply["worker"] for reply in replies)
    assert took < PROMPT
    assert len(children) >= TASKS // 15
    assert census.foreign == []
    assert max(census.most_open.values()) <= CAP
    assert census.opened[parent] == CAP - 1 and set(census.ends[parent]) <= {1000, 1001}, census.ends[parent]
    report("celery", tasks=TASKS, children=len(children), foreign=len(census.foreign), end_s=round(took, 2))
