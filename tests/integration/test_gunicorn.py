"""gunicorn with --preload: a pool that was made, and used, before the workers were forked from it.

Sixteen clients ask without end; every one must get its own answer, through a connection that the very worker
opened which answers, while workers are killed, stopped and replaced. The WebSocket server keeps the books.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any

import pytest

from tests.faults.census import Census
from tests.faults.conftest import Report
from tests.integration.apps.settings import CAP, URI_VARIABLE
from tests.servers import LOCALHOST, EchoServer, wait_until

pytest.importorskip("gunicorn")
pytest.importorskip("flask")
pytest.importorskip("django")
from gunicorn.config import KNOWN_SETTINGS

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parent / "apps"
CLIENTS = 16
WORKERS = 2
PATIENCE = 40.0  # s
PROMPT = 15.0  # s for gunicorn to end, with requests under way; its own patience is set longer
CUT_OFF = {
    "RemoteDisconnected",
    "ConnectionResetError",
    "IncompleteRead",
}  # what a killed worker's client sees

# What a worker is made of, by its kind.
KINDS = {
    "sync": ["--worker-class=sync"],
    "gthread": ["--worker-class=gthread", "--threads=8"],
    "gevent": ["--worker-class=gevent", f"--config={APPS / 'patched.conf.py'}"],
}


class Gunicorn:
    """A running gunicorn."""

    def __init__(self, app: str, uri: str, log: Path, *options: str) -> None:
        self.log = log
        if any(setting.name == "control_socket_disable" for setting in KNOWN_SETTINGS):
            options += ("--no-control-socket",)
        command = [sys.executable, "-m", "gunicorn", "--preload", f"--bind={LOCALHOST}:0", *options]
        command += [f"--workers={WORKERS}", "--graceful-timeout=30", f"tests.integration.apps.{app}"]
        environment = {**os.environ, URI_VARIABLE: uri, "PYTHONUNBUFFERED": "1"}
        with log.open("wb") as written:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=written, stderr=written
            )
        listening = re.compile(rf"Listening at: http://{LOCALHOST}:(\d+)")
        found = wait_until(lambda: listening.search(self.told()) or self.process.poll(), PATIENCE)
        assert isinstance(found, re.Match), self.told()
        self.port = int(found[1])

    def told(self) -> str:
        return self.log.read_text()

    def get(self, ident: str) -> tuple[int, bytes]:
        """The status and the body of one request."""
        client = http.client.HTTPConnection(LOCALHOST, self.port, timeout=PATIENCE)
        with contextlib.closing(client):
            client.request("GET", f"/{ident}")
            response = client.getresponse()
            return response.status, response.read()

    def __enter__(self) -> Gunicorn:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for pid in [*workers_of(self.process.pid), self.process.pid]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            print(self.told())
        self.process.wait(PATIENCE)


def workers_of(pid: int) -> list[int]:
    """The children of a process (Linux only)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Crowd:
    """Clients that ask without end.

    Attributes:
        answered: Right answers, by worker.
        failed: Requests that got no answer, by error.
        wrong: Answers that were not right.
    """

    def __init__(self, server: Gunicorn) -> None:
        self.server = server
        self.answered = Counter[str]()
        self.failed = Counter[str]()
        self.wrong: list[tuple[str, int, bytes]] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(CLIENTS)]

    def _run(self, number: int) -> None:
        for turn in itertools.count():
            if self._stop.is_set():
                return
            try:
                self._ask(f"{number}-{turn}")
            except (OSError, http.client.HTTPException) as error:  # as its worker was killed, or all is over
                with self._lock:
                    self.failed[type(error).__name__] += 1
                self._stop.wait(0.01)

    def _ask(self, ident: str) -> None:
        status, body = self.server.get(ident)
        reply = json.loads(body) if status == 200 else {}
        with self._lock:
            if reply.get("id") == ident and reply["pid"] == reply["worker"]:
                self.answered[reply["worker"]] += 1
            else:
                self.wrong.append((ident, status, body))

    def wait_for_more(self, count: int = 30) -> None:
        """Wait for so many answers by workers that nobody has heard of before."""
        with self._lock:
            before = set(self.answered)
        self.wait_until(lambda: sum(self.answered[pid] for pid in set(self.answered) - before) >= count)

    def wait_until(self, condition: Callable[[], Any]) -> None:
        wait_until(lambda: self.wrong or condition(), PATIENCE)
        assert self.wrong == []

    def __enter__(self) -> Crowd:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)


@pytest.fixture
def census_server() -> Iterator[tuple[EchoServer, Census]]:
    census = Census()
    with EchoServer(census) as server:
        yield server, census


def disturb(gunicorn: Gunicorn, crowd: Crowd) -> None:
    """Have every worker replaced, in each of the ways."""
    parent = gunicorn.process.pid
    for sign in (signal.SIGKILL, signal.SIGTERM):
        os.kill(workers_of(parent)[0], sign)
        crowd.wait_for_more()
    before = set(workers_of(parent))
    os.kill(parent, signal.SIGHUP)
    crowd.wait_for_more()
    wait_until(lambda: not before & set(workers_of(parent)), PATIENCE)


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("kind", "app"),
    [
        ("sync", "flask_app"),
        ("sync", "django_app"),
        ("gthread", "flask_jet_app"),
        ("gthread", "django_app"),
        ("gevent", "flask_app"),
        pytest.param("gevent", "django_app", marks=pytest.mark.soak),
    ],
)
def test_workers_forked_from_a_pool_in_use(
    kind: str, app: str, census_server: tuple[EchoServer, Census], tmp_path: Path, report: Report
) -> None:
    server, census = census_server
    with Gunicorn(f"{app}:application", server.uri, tmp_path / "log", *KINDS[kind]) as gunicorn:
        parent = str(gunicorn.process.pid)
        with Crowd(gunicorn) as crowd:
            crowd.wait_until(lambda: crowd.answered.total() >= 100)
            disturb(gunicorn, crowd)
            assert set(crowd.failed) <= CUT_OFF, crowd.failed
            killed = crowd.failed.total()
            start = monotonic()
            gunicorn.process.terminate()
            assert gunicorn.process.wait(PATIENCE) == 0
            took = monotonic() - start
    assert took < PROMPT
    assert crowd.wrong == []
    assert "Traceback" not in gunicorn.told(), gunicorn.told()
    wait_until(lambda: census.ended == server.opened, 10)
    assert census.foreign == []
    assert max(census.most_open.values()) <= CAP
    assert census.opened[parent] == 2 and set(census.ends[parent]) <= {1000, 1001}, census.ends[parent]
    report(
        "gunicorn",
        kind=kind,
        app=app,
        requests=crowd.answered.total(),
        workers=len(crowd.answered),
        foreign=len(census.foreign),
        cut_off_by_kill=killed,
        end_s=round(took, 2),
    )
