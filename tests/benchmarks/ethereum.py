"""An Ethereum node that 16 threads ask, beside web3.py.

The node, anvil, comes from npm, and web3.py into an environment of its own.
web3.py's provider for programs without an event loop is `LegacyWebSocketProvider`. The last version that has
it, 7, wants a websockets that is older than the one which is measured here.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

from tests.benchmarks import web3_calls
from tests.benchmarks.peers import OURS, Place
from tests.benchmarks.server import HOST
from tests.benchmarks.works import Figures, Work

HOME = Path(sys.prefix) / "benchmarks"  # where what is missing is installed
NODES = (Path(sys.prefix) / "npm", HOME)  # the first is that of `make integration`
PYTHON = HOME / "web3" / "bin" / "python"
WEB3 = "web3<8"
WITH_LOCK, FOR_EACH = "web3.py, one provider and a lock", "web3.py, a provider for each thread"
UNGUARDED = "web3.py, one provider"
HOWS = {WITH_LOCK: web3_calls.LOCK, FOR_EACH: web3_calls.EACH, UNGUARDED: web3_calls.NEITHER}
PATIENCE = 30.0  # s
INSTALLING = 600.0  # s


def anvil() -> Path | None:
    """The node's program, if it was installed."""
    found = (path for home in NODES for path in home.glob("node_modules/@foundry-rs/anvil-*/bin/anvil"))
    return next(found, None)


def missing() -> str | None:
    """What is not there, to be told; None: nothing."""
    if anvil() is None:
        return "@foundry-rs/anvil from npm is not installed"
    return None if PYTHON.exists() else f"{WEB3} is not installed in {PYTHON.parents[1]}"


def prepare() -> str | None:
    """Install what is missing; returns why that failed."""
    if anvil() is None:
        if (npm := shutil.which("npm")) is None:
            return "there is no npm, from which @foundry-rs/anvil comes"
        package = ["--prefix", str(HOME), "@foundry-rs/anvil@1"]
        if why := _failure([npm, "install", "--no-audit", "--no-fund", "--loglevel=error", *package]):
            return f"npm has not installed @foundry-rs/anvil: {why}"
        if anvil() is None:
            return "@foundry-rs/anvil from npm has no program for this machine"
    if not PYTHON.exists():
        folder = PYTHON.parents[1]
        why = _failure([sys.executable, "-m", "venv", "--clear", str(folder)]) or _failure(
            [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--quiet", WEB3]
        )
        if why:
            shutil.rmtree(folder, ignore_errors=True)
            return f"{WEB3} was not installed: {why}"
    return None


def _failure(command: list[str]) -> str:
    """The last line of what a command said that has failed; "": it has not."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALLING, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return "" if not done.returncode else (said[-1] if said else f"status {done.returncode}")


@contextlib.contextmanager
def running_node() -> Iterator[str]:
    """A node with a chain of its own, and its URI."""
    program = anvil()
    assert program is not None, "`prepare` came before"
    with socket.socket() as free:
        free.bind((HOST, 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [str(program), "--port", str(port), "--host", HOST, "--silent"],
            env={**os.environ, "HOME": folder},
            stdout=subprocess.DEVNULL,
            preexec_fn=_free_of_pins,  # noqa: PLW1509 - this process has no other thread yet
        )
        try:
            until = monotonic() + PATIENCE
            while True:
                with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1):
                    break
                if process.poll() is not None or monotonic() > until:
                    raise RuntimeError("anvil did not start")
            yield f"ws://{HOST}:{port}"
        finally:
            process.kill()
            process.wait(PATIENCE)


def _free_of_pins() -> None:
    """Let the node run on any core: this process was pinned to one."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def calls(name: str, _place: Place, seconds: float) -> Figures:
    """Time of one call over all threads, and how many of 100 were answered right."""
    with running_node() as uri:
        if name == OURS:
            return of_ours(uri, seconds)
        command = [str(PYTHON), str(Path(web3_calls.__file__)), uri, HOWS[name], str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
        figures: Figures = json.loads(done.stdout)
        return figures


def of_ours(uri: str, seconds: float) -> Figures:
    """The same over one connection of ours, which the threads share."""
    from jetsocket import ConnectionPool, ConnectionPoolConfig
    from jetsocket.correlation import JsonRpc

    config = ConnectionPoolConfig(max_connections=1, max_in_flight=web3_calls.THREADS)
    with ConnectionPool[Any](config, base_uri=uri, correlation=JsonRpc()) as pool:

        def ask(_thread: int, call: int) -> int:
            method, params = "eth_blockNumber", list[str]()
            if not call % 2:
                method, params = "eth_getBalance", [web3_calls.ACCOUNT, "latest"]
            return int(pool.request("/", {"method": method, "params": params}, PATIENCE)["result"], 16)

        return web3_calls.asked_again_and_again(ask, seconds)


ETHEREUM = {
    "web3": Work(
        "100 calls of 16 threads to an Ethereum node (anvil)",
        "call",
        (OURS, *HOWS),
        calls,
        prepare=functools.cache(prepare),
    )
}

__all__ = ["ETHEREUM", "UNGUARDED", "WITH_LOCK", "missing", "prepare"]
