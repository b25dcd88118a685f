"""A Redis of a test's own, which can be stopped, started anew and stalled."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.integration.running import PATIENCE, free_port
from tests.servers import LOCALHOST, wait_until

HAS_REDIS = shutil.which("redis-server") is not None


class RedisServer:
    """A Debian `redis-server` on a port of this machine that keeps nothing on disk."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://{LOCALHOST}:{self.port}/0"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        command = ["redis-server", "--port", str(self.port), "--bind", LOCALHOST, "--save", ""]
        command += ["--appendonly", "no", "--dir", str(self._directory), *self._options]
        log = (self._directory / f"redis-{self.port}.log").open("ab")
        with log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_until(self._answers, PATIENCE, "Redis answers")

    def _answers(self) -> bool:
        from redis.exceptions import RedisError

        assert self._process is not None
        assert self._process.poll() is None, "redis-server has ended"
        with contextlib.suppress(RedisError), self.client() as client:
            return bool(client.ping())
        return False

    def stop(self) -> None:
        """Kill it: what was in it is gone."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(PATIENCE)

    def restart(self) -> None:
        """Stop it, and start it again with nothing in it."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """It answers nothing, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """It goes on, with all that came meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self, **settings: Any) -> Any:
        """A client of redis-py's."""
        from redis import Redis

        return Redis(host=LOCALHOST, port=self.port, decode_responses=True, **settings)

    def calls(self, command: str = "evalsha") -> int:
        """How often it was asked to run a command."""
        with self.client() as client:
            told = client.info("commandstats").get(f"cmdstat_{command}")
        return int(told["calls"]) if told else 0


@contextlib.contextmanager
def redis_server(directory: Path, *options: str) -> Iterator[RedisServer]:
    """One that runs as long as the block."""
    server = RedisServer(directory, *options)
    try:
        server.start()
        yield server
    finally:
        server.stop()
