"""gunicorn's workers told of together: by Prometheus' multiprocess mode, and on one status page."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.apps.settings import URI_VARIABLE
from tests.integration.running import PATIENCE, PROMPT, free_port, running, wait_for_port
from tests.servers import LOCALHOST, Connection, EchoServer, wait_until

pytest.importorskip("flask")
pytest.importorskip("gunicorn")
pytest.importorskip("prometheus_client")

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

CONFIG = """
from prometheus_client.multiprocess import mark_process_dead

def child_exit(server, worker):
    mark_process_dead(worker.pid)
"""


class Site:
    """What the workers answer."""

    def __init__(self, port: int) -> None:
        self._port = port

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://{LOCALHOST}:{self._port}{path}", timeout=PATIENCE) as response:
            text: str = response.read().decode()
        return text

    def ask(self, times: int) -> Counter[int]:
        """Ask so often; how often each worker did."""
        with ThreadPoolExecutor(6) as clients:
            answers = list(clients.map(lambda _: json.loads(self.get("/ask")), range(times)))
        return Counter(answer["worker"] for answer in answers)

    def figure(self, name: str) -> float:
        """The sum of a metric over its labels, as Prometheus gets it."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics"), re.MULTILINE)
        return sum(map(float, found))

    def workers(self) -> dict[int, Any]:
        """What each says on the page that whichever worker answers shows."""
        told = json.loads(self.get("/pools/status.json"))["workers"]
        return {each["pid"]: each["pools"][0] for each in told if each["pools"]}

    def acquires(self) -> dict[int, int]:
        """Of each worker that has used its pool."""
        told = {pid: pool["totals"]["acquires"] for pid, pool in self.workers().items()}
        return {pid: count for pid, count in told.items() if count}


def test_what_all_workers_do_is_told_by_any_of_them(tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "conf.py").write_text(CONFIG, encoding="utf-8")
    codes: list[int | None] = []

    def echo(conn: Connection) -> None:
        try:
            for text in conn:
                conn.send(text)
        finally:
            codes.append(conn.close_code)

    port = free_port()
    site = Site(port)
    command = [sys.executable, "-m", "gunicorn", "--no-control-socket", f"--config={tmp_path / 'conf.py'}"]
    command += ["--preload", "--workers=3", "--threads=2", f"--bind={LOCALHOST}:{port}"]
    with (
        EchoServer(echo) as server,
        running(
            [*command, "tests.integration.apps.watched_app"],
            tmp_path / "log",
            **{URI_VARIABLE: server.uri},
            PROMETHEUS_MULTIPROC_DIR=str(tmp_path / "files"),
            STATUS_DIR=str(tmp_path / "status"),
        ) as process,
    ):
        wait_for_port(port, process)
        asked = site.ask(60)
        while len(asked) < 3:  # until each has been asked
            asked += site.ask(20)
        wait_until(lambda: site.acquires() == asked, message="the page has all")
        total = asked.total()

        def is_told(count: int) -> bool:
            sent = site.figure(r"jetsocket_messages_total{.*sent.*}")
            return sent == site.figure("jetsocket_connection_use_time_seconds_count") == count

        wait_until(lambda: is_told(total), message="Prometheus has all")
        assert site.figure("jetsocket_connection_create_time_seconds_count") == server.opened
        assert site.figure("jetsocket_connection_count") == server.open_now
        html = site.get("/pools/")
        assert all(f"{pid} on " in html for pid in asked)

        killed = min(asked)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: killed not in site.workers(), message="the one that is gone is gone from the page")
        more = site.ask(20)
        wait_until(lambda: is_told(total + 20), message="what it has counted stays")
        wait_until(lambda: site.figure("jetsocket_connection_count") == server.open_now)
        assert killed not in more
        process.send_signal(signal.SIGTERM)
        process.wait(PROMPT)
        wait_until(lambda: len(codes) == server.opened, message=f"{codes}")
        assert set(Counter(codes)) <= {1001, 1006}
        assert codes.count(1006) <= 2  # the killed one's: at most as many as it had threads
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert not list((tmp_path / "status").glob("jetsocket-*.json"))
