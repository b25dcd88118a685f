"""Three workers and the service that they ask, which says how many connections it had at most.

They share three slots in the Redis at `REDIS`; with `--file`, in files.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jetsocket.testing import FakeServer

WORKER = Path(__file__).with_name("worker.py")

with FakeServer() as server, tempfile.TemporaryDirectory() as directory:
    server.on({"method": "height"}).callback(
        lambda message: {"jsonrpc": "2.0", "result": message["params"][0] * 2}
    )
    env = {**os.environ, "NODE": server.uri}
    if "--file" in sys.argv:
        env["SLOTS"] = f"{directory}/slots"
    workers = [subprocess.Popen([sys.executable, WORKER], env=env) for _ in range(3)]
    most = 0
    while any(worker.poll() is None for worker in workers):
        most = max(most, sum(conn.close_code is None for conn in server.connections))
        time.sleep(0.001)
    print(f"the service had at most {most} connections at a time")
    sys.exit(max(worker.returncode for worker in workers))
