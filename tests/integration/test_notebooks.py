"""The notebooks of the documentation run in a real kernel as they are, and each of their cells again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.running import ROOT
from tests.integration.test_jupyter import Kernel, kernel  # noqa: F401  # a fixture
from tests.servers import EchoServer, wait_until

pytestmark = [
    pytest.mark.integration,
    # Said by jupyter-client about itself.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def cells(notebook: Path) -> list[str]:
    told: list[dict[str, Any]] = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in told), "outputs are the reader's"
    return ["".join(cell["source"]) for cell in told if cell["cell_type"] == "code"]


@pytest.mark.timeout(120)
def test_the_notebooks_run_as_they_are_and_leave_nothing_open(
    kernel: Kernel,  # noqa: F811
) -> None:
    """One after the other in one kernel, the making of a pool twice: that is what a reader does."""
    assert len(NOTEBOOKS) == 3
    kernel.run("import pytest; pytest.importorskip('matplotlib')")
    for notebook in NOTEBOOKS:
        for cell in cells(notebook):
            kernel.run(cell)
            if "pool = ConnectionPool(" in cell:
                kernel.run(cell)
    kernel.run(
        "from jetsocket.notebook import pools\nassert all(pool.is_closed for pool in pools()), pools()"
    )


@pytest.mark.timeout(120)
def test_a_cell_run_five_times_in_a_kernel_leaves_one_pool_with_one_lease(
    kernel: Kernel,  # noqa: F811
) -> None:
    with EchoServer() as echo:
        kernel.run(f"from jetsocket import ConnectionPool, ConnectionPoolConfig\nuri = {echo.uri!r}")
        make = (
            "pool = ConnectionPool(ConnectionPoolConfig(max_connections=2, acquire_timeout=2), base_uri=uri)"
        )
        for _ in range(5):
            kernel.run(f"{make}\nconn = pool.acquire('/')\nconn")
        wait_until(lambda: echo.open_now == 1)
        for _ in range(5):
            kernel.run("conn = pool.acquire('/')\nconn.request([1])\nconn")
        assert echo.open_now <= 2
        for _ in range(2):
            kernel.run("%%time\nnamed = ConnectionPool(base_uri=uri, name='feed')\nnamed.request('/', [2])")
        kernel.run("pool.close()")
        wait_until(lambda: echo.open_now == 1)
