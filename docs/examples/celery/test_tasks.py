"""Their tests: `pytest test_tasks.py`, without a network, a broker or a worker."""

import pytest
from tasks import height

from jetsocket import ConnectionClosedError

pytestmark = pytest.mark.jetsocket(instead_of="ws://localhost:8765")


def test_height(jetsocket_server):
    jetsocket_server.on({"method": "height", "params": [21]}).reply({"jsonrpc": "2.0", "result": 42})
    assert height.apply([21]).get() == 42


def test_a_service_that_hangs_up_fails_the_task(jetsocket_server):
    jetsocket_server.on({"method": "height"}).drop()
    with pytest.raises(ConnectionClosedError):
        height.apply([21]).get()
