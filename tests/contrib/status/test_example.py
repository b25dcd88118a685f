"""The example of the documentation: one command, and the page is there."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_the_example_shows_its_page_to_this_machine_alone_and_ends_at_ctrl_c() -> None:
    command = [sys.executable, str(ROOT / "docs" / "examples" / "status" / "serve.py"), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.match(r"http://127\.0\.0\.1:(\d+)/ shows it", process.stdout.readline())
            assert found
            answers = []
            for host in ("localhost", "evil.example"):
                client = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
                client.request("GET", "/", headers={"Host": host})
                response = client.getresponse()
                answers.append((response.status, b"example" in response.read()))
                client.close()
            assert answers == [(200, True), (403, False)]
            # It comes within a request, most likely: who serves that must not take it for the page's error.
            over, answered = threading.Event(), threading.Semaphore(0)
            asking = [
                threading.Thread(target=ask_until, args=(over, int(found[1]), answered)) for _ in range(3)
            ]
            for thread in asking:
                thread.start()
            for _ in range(6):
                assert answered.acquire(timeout=30)
            process.send_signal(signal.SIGINT)
            try:
                assert process.wait(30) == 0
            finally:
                over.set()
                for thread in asking:
                    thread.join()
        finally:
            process.kill()


def ask_until(over: threading.Event, port: int, answered: threading.Semaphore) -> None:
    while not over.is_set():
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        with contextlib.suppress(OSError, http.client.HTTPException):  # it ends meanwhile
            client.request("GET", "/")
            client.getresponse().read()
            answered.release()
        client.close()
