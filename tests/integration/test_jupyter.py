"""A real Jupyter kernel, interrupted while a cell waits: the next cell goes on with the same pool."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from tests.faults import conftest
from tests.faults.test_async_exceptions import sit
from tests.scripts import ROOT
from tests.servers import EchoServer, RawServer, hold, wait_until

pytestmark = [
    pytest.mark.integration,
    # Said by jupyter-client about itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

report = conftest.report

PATIENCE = 30.0  # s, for a cell on a busy machine; an interrupted one shows its traceback, in colours

SETUP = """
import threading
from pathlib import Path
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.books import faults, state_of
from tests.faults.test_async_exceptions import wait_for_standstill
pool = ConnectionPool(ConnectionPoolConfig(max_connections=2, acquire_timeout=60), base_uri={echo!r})
other = ConnectionPool(base_uri={echo!r}, manager_kwargs=dict(connect_timeout=2))
def tell(marker):
    def watch():
        wait_for_standstill()
        Path(marker).touch()
    threading.Thread(target=watch).start()
"""
# What a cell does for some seconds at least.
CELLS = {
    "in line": "with pool.acquire('/'), pool.acquire('/'): pool.acquire('/')",
    "recv": "with pool.acquire('/') as conn: conn.recv()",
    "iteration": "with pool.acquire('/') as conn:\n    for message in conn: print(message)",
    "request": "pool.request('/silent', 1)",
    "send": "with other.acquire({deaf!r}) as conn: conn.send(b'x' * (32 << 20))",
    "connect": "other.acquire({mute!r})",
    "kept": "conn = pool.acquire('/')\nconn.recv()",
}
GOES_ON = """
try: conn.release()
except NameError: pass
assert not faults(pool) and not state_of(other).lent
held = [pool.acquire('/', timeout=5) for _ in range(2)]
for number, each in enumerate(held):
    assert each.request(number, timeout=5) == number
    each.release()
"""


class Kernel:
    """A running kernel and its client."""

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager = manager
        self.client = client

    def begin(self, code: str) -> str:
        told: str = self.client.execute(code, stop_on_error=False)  # the next cell is to run all the same
        return told

    def end(self, asked: str) -> dict[str, Any]:
        """The reply to a cell."""
        deadline = monotonic() + PATIENCE
        while monotonic() < deadline:
            message = self.client.get_shell_msg(timeout=PATIENCE)
            if message["parent_header"].get("msg_id") == asked:
                content: dict[str, Any] = message["content"]
                return content
        raise AssertionError("no reply to a cell")

    def run(self, code: str) -> None:
        reply = self.end(self.begin(code))
        assert reply["status"] == "ok", "\n".join(reply.get("traceback", [str(reply)]))


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    """A Python kernel in a process of its own, as a notebook starts one."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    manager_of = pytest.importorskip("jupyter_client.manager", reason="needs jupyter-client and ipykernel")
    manager, client = manager_of.start_new_kernel(
        kernel_name="python3", startup_timeout=PATIENCE, cwd=str(ROOT)
    )
    try:
        yield Kernel(manager, client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.timeout(120)
def test_an_interrupted_cell_loses_nothing_and_the_next_one_goes_on(
    kernel: Kernel, tmp_path: Path, report: conftest.Report
) -> None:
    with EchoServer() as echo, RawServer(sit) as deaf, RawServer(hold) as mute:
        kernel.run(SETUP.format(echo=echo.uri))
        took = []
        for number, cell in enumerate(CELLS.values()):
            marker = tmp_path / f"waits-{number}"
            code = cell.format(deaf=deaf.uri, mute=mute.uri)
            asked = kernel.begin(f"tell({str(marker)!r})\n{code}")
            wait_until(marker.exists, PATIENCE, f"the cell waits: {code}")
            start = monotonic()
            kernel.manager.interrupt_kernel()
            reply = kernel.end(asked)
            took.append(monotonic() - start)
            assert reply.get("ename") == "KeyboardInterrupt", reply
            kernel.run(GOES_ON)
        assert kernel.manager.is_alive()
        assert echo.most_open <= 2 + 1
        kernel.run("pool.close(); other.close()")
        wait_until(lambda: echo.open_now == 0)
    report("Jupyter kernel", interrupted=len(took), slowest_ms=round(max(took) * 1000))
