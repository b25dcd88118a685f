"""Django under its servers, with the example of the documentation: what answers, and how connections end.

And with the oldest Django that is said to be supported.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.running import PATIENCE, PROMPT, ROOT, free_port, running, wait_for_port
from tests.servers import LOCALHOST, Connection, EchoServer, wait_until

pytest.importorskip("django")
pytest.importorskip("gunicorn")

pytestmark = pytest.mark.integration

EXAMPLE = ROOT / "docs" / "examples" / "django"
OLDEST = "django==4.2"
AWAY = 1001


class Node:
    """The service: it tells a height, and keeps how its connections ended."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []

    def __call__(self, conn: Connection) -> None:
        try:
            for text in conn:
                message = json.loads(text)
                reply = {"jsonrpc": "2.0", "id": message["id"], "result": message["params"][0] * 2}
                conn.send(json.dumps(reply))
        finally:
            self.codes.append(conn.close_code)


@pytest.fixture
def node() -> Iterator[tuple[Node, EchoServer]]:
    service = Node()
    with EchoServer(service) as server:
        yield service, server


def get(port: int, path: str) -> dict[str, object]:
    with urllib.request.urlopen(f"http://{LOCALHOST}:{port}{path}", timeout=PATIENCE) as response:
        answer: dict[str, object] = json.load(response)
    return answer


@pytest.mark.parametrize("options", [["--worker-class=sync"], ["--threads=4", "--preload"]])
def test_gunicorn_ends_the_connections_in_order(
    options: list[str], node: tuple[Node, EchoServer], tmp_path: Path
) -> None:
    service, server = node
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(EXAMPLE), "--no-control-socket"]
    command += ["--workers=1", f"--bind={LOCALHOST}:{port}", *options, "wsgi"]
    path = os.pathsep.join([str(ROOT), str(EXAMPLE)])
    with running(command, tmp_path / "log", NODE=server.uri, PYTHONPATH=path) as process:
        wait_for_port(port, process)
        assert get(port, "/height/21") == {"height": 42}
        assert get(port, "/health") == {"default": "ok"}
        process.send_signal(signal.SIGTERM)
        process.wait(PROMPT)
    wait_until(lambda: service.codes and set(service.codes) == {AWAY}, message=f"{service.codes}")
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_uvicorn_asks_in_threads_and_ends_the_connections_in_order(
    node: tuple[Node, EchoServer], tmp_path: Path
) -> None:
    pytest.importorskip("uvicorn")
    service, server = node
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", f"--port={port}", "asgi:application"]
    path = os.pathsep.join([str(ROOT), str(EXAMPLE)])
    with running(command, tmp_path / "log", NODE=server.uri, PYTHONPATH=path) as process:
        wait_for_port(port, process)
        with ThreadPoolExecutor(4) as clients:
            answers = list(clients.map(lambda _: get(port, "/heights/40"), range(8)))
        assert answers == [{"heights": [2 * block for block in range(40)]}] * 8
        assert get(port, "/height/21") == {"height": 42}
        assert server.most_open <= 4
        process.send_signal(signal.SIGTERM)
        process.wait(PROMPT)
    wait_until(lambda: len(service.codes) == server.opened, message=f"{service.codes}")
    assert set(service.codes) == {AWAY}
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.timeout(120)
def test_runservers_reload_leaves_no_connection_without_a_close_frame(
    node: tuple[Node, EchoServer], tmp_path: Path
) -> None:
    service, server = node
    port, project = free_port(), tmp_path / "project"
    shutil.copytree(EXAMPLE, project)
    command = [sys.executable, str(project / "manage.py"), "runserver", f"{LOCALHOST}:{port}"]
    with running(command, tmp_path / "log", NODE=server.uri, PYTHONPATH=str(ROOT)) as process:
        wait_for_port(port, process)
        assert get(port, "/height/21") == {"height": 42}
        edits = itertools.count(time.time())

        def has_ended() -> bool:  # edited again and again, for what comes before its first look is not seen
            moment = next(edits)
            os.utime(project / "urls.py", (moment, moment))
            return bool(service.codes)

        wait_until(has_ended, PATIENCE)
        assert service.codes == [AWAY]

        def answers_again() -> bool:
            with contextlib.suppress(OSError):
                return get(port, "/height/1") == {"height": 2}
            return False

        wait_until(answers_again, PATIENCE)


@pytest.mark.timeout(120)
def test_the_oldest_django_and_tests_in_parallel(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
    subprocess.run([*install, str(tmp_path), OLDEST], check=True, timeout=100)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    version = [sys.executable, "-m", "django", "--version"]
    told = subprocess.run(version, env=environment, capture_output=True, check=True, text=True)
    assert told.stdout.strip() == OLDEST.partition("==")[2]
    suite = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contrib/django"]
    parallel = [sys.executable, "manage.py", "test", "--parallel", "2"]
    for command, where in ((suite, ROOT), (parallel, EXAMPLE)):
        ended = subprocess.run(
            command, cwd=where, env=environment, check=False, capture_output=True, text=True, timeout=100
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
