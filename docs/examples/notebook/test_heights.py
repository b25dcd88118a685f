"""Its test: `pytest test_heights.py`. Each cell is run three times in a row, without a network."""

import json
import warnings
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

HERE = Path(__file__).parent


@pytest.fixture
def shell():
    yield InteractiveShell.instance()
    InteractiveShell.clear_instance()


@pytest.mark.jetsocket(instead_of="ws://localhost:8765")
def test_every_cell_can_be_run_again(shell, jetsocket_server):
    jetsocket_server.on({"method": "height"}).callback(
        lambda message: {"jsonrpc": "2.0", "result": message["params"][0] * 2}
    )
    cells = json.loads((HERE / "heights.ipynb").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        if cell["cell_type"] == "code":
            for _ in range(3):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # a pool that takes another's place says so
                    shell.run_cell("".join(cell["source"]), store_history=True).raise_error()
    assert shell.user_ns["heights"] == [2 * block for block in range(200)]
    assert len(jetsocket_server.connections) <= 4
