"""A worker: four threads that ask a service, within a cap that all workers share."""

import os
import threading
import time

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.correlation import JsonRpc

if "SLOTS" in os.environ:  # on one host, files do; who is never idle has to end connections now and then
    from jetsocket.limits import FileLimiter

    limiter = FileLimiter(os.environ["SLOTS"], 3)
    config = ConnectionPoolConfig(max_lifetime=1.0)
else:
    from jetsocket.contrib.redis import RedisLimiter

    limiter = RedisLimiter(os.environ.get("REDIS", "redis://localhost:6379/0"), "example", limit=3)
    config = ConnectionPoolConfig()

node = os.environ.get("NODE", "ws://localhost:8765")
pool = ConnectionPool(config, base_uri=node, correlation=JsonRpc(), limiter=limiter)


def work(until):
    asked = 0
    while time.monotonic() < until:
        assert pool.request("/", {"method": "height", "params": [asked]})["result"] == 2 * asked
        asked += 1
    counts.append(asked)


if __name__ == "__main__":
    counts = []
    until = time.monotonic() + float(os.environ.get("SECONDS", "10"))
    threads = [threading.Thread(target=work, args=[until]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    print(f"process {os.getpid()} has asked {sum(counts)} times", flush=True)
