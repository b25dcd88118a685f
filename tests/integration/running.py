"""Programs of others, each a process that ends with its test, and what is needed to start one."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import LOCALHOST, refusing_port, wait_until

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0  # s, for a program to start on a busy machine
PROMPT = 15.0  # s, for it to end when it is told to, with nothing under way
NODE_MODULES = Path(sys.prefix) / "npm" / "node_modules"  # where `make integration` installs from npm


@contextlib.contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended with the block; what it says goes to `log`."""
    with (
        log.open("wb") as told,
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=told,
            stderr=told,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield process
        except BaseException:
            print(log.read_text(errors="replace"))
            raise
        finally:
            process.terminate()
            try:
                process.wait(PROMPT)
            except subprocess.TimeoutExpired:
                process.kill()
            with contextlib.suppress(
                ProcessLookupError
            ):  # Debian's chromium is a script that starts the browser
                os.killpg(process.pid, signal.SIGKILL)


def free_port() -> int:
    """A port of 127.0.0.1 on which nothing listens."""
    with refusing_port() as port:
        return port


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a process listens there."""

    def listens() -> bool:
        assert process.poll() is None, "it did not start"
        with contextlib.suppress(OSError), socket.create_connection((LOCALHOST, port), 1):
            return True
        return False

    wait_until(listens, PATIENCE, f"{process.args!r} listens")


def program(*names: str, package: str) -> str:
    """The first of these programs that is there; a test without any is skipped."""
    for name in names:
        found = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        if found is not None:
            return found
    pytest.skip(f"needs {' or '.join(names)} (Debian: {package})")


def node_module(name: str) -> Path:
    """Where a package from npm is installed; a test without it is skipped."""
    found = NODE_MODULES / name
    if not found.is_dir():
        pytest.skip(f"needs {name} from npm in {NODE_MODULES} (`make integration` installs it)")
    return found
