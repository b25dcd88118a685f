"""A pool under load, and its metrics at http://127.0.0.1:9464/metrics: `python docs/examples/metrics/app.py`.

Needs `jetsocket[prometheus,testing]`; the server that it talks to runs in this very process. 12 threads share
4 connections, one call in ten takes long, and one in a hundred ends its connection.
"""

from __future__ import annotations

import sys
import threading
import time

from prometheus_client import start_http_server

from jetsocket import ConnectionPool, ConnectionPoolConfig, PoolExhaustedError
from jetsocket.contrib.prometheus import instrument
from jetsocket.correlation import JsonRpc
from jetsocket.limits import LocalLimiter
from jetsocket.testing import FakeServer


def work(pool: ConnectionPool, number: int, ended: threading.Event) -> None:
    """Call the server until the end."""
    turn = number
    while not ended.is_set():
        turn += 1
        try:
            with pool.acquire("/rpc", timeout=0.03) as conn:
                conn.request({"method": "report" if turn % 10 == 0 else "height"})
                if turn % 100 == 0:
                    conn.discard()
        except PoolExhaustedError:
            ended.wait(0.1)
        ended.wait(0.01)


def main(port: int = 9464, seconds: float = 3600.0) -> None:
    """Serve the metrics of a loaded pool."""
    start_http_server(port, "127.0.0.1")
    config = ConnectionPoolConfig(max_connections=4)
    ended = threading.Event()
    with FakeServer() as server:
        server.on({"method": "height"}).reply({"result": 7})
        server.on({"method": "report"}).delay(0.05).reply({"result": "long"})
        options = {"name": "node", "correlation": JsonRpc(), "limiter": LocalLimiter(4)}
        with ConnectionPool(config, base_uri=server.uri, **options) as pool:
            instrument(pool)
            print(f"http://127.0.0.1:{port}/metrics", flush=True)
            threads = [threading.Thread(target=work, args=(pool, number, ended)) for number in range(12)]
            for thread in threads:
                thread.start()
            try:
                time.sleep(seconds)
            finally:
                ended.set()
                for thread in threads:
                    thread.join()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
