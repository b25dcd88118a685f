"""Tasks that ask a WebSocket service, over two connections for each process of the worker."""

import os

from celery import Celery

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.contrib.celery import setup
from jetsocket.correlation import JsonRpc

BROKER = os.environ.get("BROKER", "redis://localhost:6379/0")

app = Celery("tasks", broker=BROKER, backend=BROKER)
pool = ConnectionPool(
    ConnectionPoolConfig(max_connections=2),
    base_uri=os.environ.get("NODE", "ws://localhost:8765"),
    correlation=JsonRpc(),
)
setup(app, pool, prewarm={"/": 1})


@app.task
def height(block):
    """How high a block is, as the service says."""
    return pool.request("/", {"method": "height", "params": [block]}, timeout=5)["result"]
