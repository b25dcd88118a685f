"""Flask under its servers, with the example of the documentation: what answers, and how connections end.

And with the oldest Flask that is said to be supported.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.running import PATIENCE, PROMPT, ROOT, free_port, running, wait_for_port
from tests.servers import LOCALHOST, Connection, EchoServer, wait_until

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytest.importorskip("waitress")

pytestmark = pytest.mark.integration

EXAMPLE = ROOT / "docs" / "examples" / "flask"
OLDEST = ["flask==3.0.0", "werkzeug==3.0.0"]
CUT, AWAY = 1006, 1001


class Node:
    """The service: it tells a height, at once or after half a second, and keeps how its connections ended."""

    def __init__(self) -> None:
        self.codes: list[int | None] = []
        self.asked = 0

    def __call__(self, conn: Connection) -> None:
        try:
            for text in conn:
                self.asked += 1
                message = json.loads(text)
                block = message["params"][0]
                if block >= 100:
                    time.sleep(0.5)
                conn.send(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": block * 2}))
        finally:
            self.codes.append(conn.close_code)


@pytest.fixture
def node() -> Iterator[tuple[Node, EchoServer]]:
    service = Node()
    with EchoServer(service) as server:
        yield service, server


def gunicorn(port: int, *options: str) -> list[str]:
    fixed = ["--no-control-socket", "--workers=1", f"--bind={LOCALHOST}:{port}", "app:create_app()"]
    return [sys.executable, "-m", "gunicorn", "--chdir", str(EXAMPLE), *options, *fixed]


def uwsgi(port: int) -> list[str]:
    """What the page says, which has a program of uWSGI's own."""
    page = (ROOT / "docs" / "flask.md").read_text(encoding="utf-8")
    [told] = [line for line in page.splitlines() if line.startswith("$ uwsgi ")]
    words = shlex.split(told.removeprefix("$ uwsgi ").replace("localhost:8080", f"{LOCALHOST}:{port}"))
    return [sys.executable, "-c", "import pyuwsgi; pyuwsgi.run()", *words]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("sync", AWAY),
        ("gthread", AWAY),
        ("waitress", AWAY),
        ("waitress-serve", AWAY),
        ("waitress without the line", CUT),
        ("uwsgi", AWAY),
    ],
)
def test_sigterm_ends_what_is_under_way_and_the_connections_in_order(
    kind: str, code: int, node: tuple[Node, EchoServer], tmp_path: Path
) -> None:
    """With the one line of the documentation, waitress does; without it, it cuts them."""
    service, server = node
    port = free_port()
    serving = (EXAMPLE / "serve.py").read_text(encoding="utf-8")
    line = next(line for line in serving.splitlines() if "SIGTERM" in line).strip()
    (tmp_path / "bare.py").write_text(serving.replace(line, "pass"), encoding="utf-8")
    (tmp_path / "wsgi.py").write_text(
        f"import signal\nfrom app import create_app\n{line}\n", encoding="utf-8"
    )
    if kind == "uwsgi":
        pytest.importorskip("pyuwsgi")
    command = {
        "uwsgi": uwsgi(port),
        "sync": gunicorn(port),
        "gthread": gunicorn(port, "--threads=4", "--preload"),
        "waitress": [sys.executable, str(EXAMPLE / "serve.py")],
        "waitress-serve": [sys.executable, "-m", "waitress", f"--port={port}", "--call", "wsgi:create_app"],
        "waitress without the line": [sys.executable, str(tmp_path / "bare.py")],
    }[kind]
    path = os.pathsep.join([str(ROOT), str(EXAMPLE), str(tmp_path)])
    with running(
        command, tmp_path / "log", FLASK_JETSOCKET_BASE_URI=server.uri, PORT=str(port), PYTHONPATH=path
    ) as process:
        wait_for_port(port, process)

        def height(block: int) -> int:
            with urllib.request.urlopen(
                f"http://{LOCALHOST}:{port}/height/{block}", timeout=PATIENCE
            ) as response:
                answer: dict[str, int] = json.load(response)
            return answer["height"]

        assert height(21) == 42
        with ThreadPoolExecutor(1) as client:
            under_way: Future[int] = client.submit(height, 100)
            wait_until(lambda: service.asked == 2)
            process.send_signal(signal.SIGTERM)
            process.wait(PROMPT)
            if code == AWAY:
                assert under_way.result(PATIENCE) == 200
            else:
                assert isinstance(under_way.exception(PATIENCE), OSError)
    wait_until(lambda: len(service.codes) == server.opened, message=f"{service.codes}")
    assert set(service.codes) == {code}
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.timeout(120)
def test_the_oldest_flask(tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--target"]
    subprocess.run([*install, str(tmp_path), *OLDEST], check=True, timeout=100)
    version = "import flask, importlib.metadata; print(importlib.metadata.version('flask'), flask.__file__)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    told = subprocess.run(
        [sys.executable, "-c", version], env=environment, check=True, capture_output=True, text=True
    )
    assert told.stdout.split() == ["3.0.0", str(tmp_path / "flask" / "__init__.py")]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/contrib/flask"]
    ended = subprocess.run(
        command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
