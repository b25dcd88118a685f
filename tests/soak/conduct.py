"""One soak from start to end: the server, the proxies, the process that is soaked, and the weather."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from time import monotonic
from typing import Any

from tests.faults.proxy import FaultProxy
from tests.servers import LOCALHOST
from tests.soak import report
from tests.soak.faults import Crowd, ServerProcess, WatchedProxy, Weather
from tests.soak.ledger import Ledger
from tests.soak.plan import KINDS

_SILENCE = 150.0  # s without a word, after which the client is taken for stuck


class StuckError(Exception):
    """The soaked process came to no end; its stacks are on stderr."""


class Client:
    """The process that is soaked."""

    def __init__(self, told: dict[str, Any]) -> None:
        # Coverage takes locks at every call, without minding that an exception may strike there.
        env = {name: value for name, value in os.environ.items() if name != "COVERAGE_PROCESS_CONFIG"}
        command = [sys.executable, "-m", "tests.soak.client", json.dumps(told)]
        self._process = subprocess.Popen(
            command, cwd=report.ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def tell(self, word: str) -> None:
        """Say a word, and when it was said."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # that it ended is seen by who listens
            self._process.stdin.write(f"{word} {monotonic()}\n")
            self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        """The next thing that it says.

        Raises:
            StuckError: Nothing came.
        """
        assert self._process.stdout is not None
        give_up = threading.Timer(_SILENCE, self._process.send_signal, [10])  # SIGUSR1 shows its stacks
        kill = threading.Timer(_SILENCE + 5, self._process.kill)
        for timer in (give_up, kill):
            timer.start()
        try:
            line = self._process.stdout.readline()
        finally:
            for timer in (give_up, kill):
                timer.cancel()
        if not line:
            raise StuckError(f"the soaked process ended with {self._process.wait()} and without its ledger")
        told: dict[str, Any] = json.loads(line)
        return told

    def close(self) -> None:
        """End it, if it has not ended."""
        self._process.kill()
        self._process.communicate()


def soak(seconds: float, seed: int) -> Ledger:
    """Soak, show live figures, and return the final ledger."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="jetsocket-soak-")))
        certificate, authority = _certificates(folder)
        server = stack.enter_context(contextlib.closing(ServerProcess(certificate)))
        server.start()
        proxies, crowds = _proxies(server, stack)
        told = {"authority": authority, "seed": seed, "seconds": seconds, "bases": _bases(server, proxies)}
        client = stack.enter_context(contextlib.closing(Client(told)))
        flat = [proxy for pair in proxies.values() for proxy in pair]
        weather = Weather(seed, server, flat, client.tell)
        found = _follow(client, weather)
        server.stop()
        counted = _by_kind(server.most) | {kind: crowd.most for kind, crowd in crowds.items()}
        caps = {kind.name: kind.cap for kind in KINDS}
        if weather.failed is not None:
            raise weather.failed
        return Ledger(found, caps, counted, server.opened, weather.gusts)


def _follow(client: Client, weather: Weather) -> dict[str, Any]:
    """Let the weather loose for as long as the client works; what it found."""
    begun = False
    try:
        with report.live() as show:
            while True:
                said = client.hear()
                if said["phase"] == "ended":
                    result: dict[str, Any] = said["result"]
                    return result
                if said["phase"] == "ending":
                    weather.calm()
                    client.tell("calm")
                    continue
                show(said)
                if not begun:
                    begun = True
                    weather.start()
    finally:
        if begun:
            weather.calm()


def _certificates(folder: Path) -> tuple[str, str]:
    """Paths of the server's certificate and of the authority's that it is trusted by."""
    import trustme

    authority, issued = folder / "authority.pem", folder / "server.pem"
    made = trustme.CA()
    made.cert_pem.write_to_path(str(authority))
    made.issue_cert(LOCALHOST).private_key_and_cert_chain_pem.write_to_path(str(issued))
    return str(issued), str(authority)


def _proxies(
    server: ServerProcess, stack: contextlib.ExitStack
) -> tuple[dict[str, list[FaultProxy]], dict[str, Crowd]]:
    """For each kind that is proxied, one to each port, and one count of both."""
    proxies: dict[str, list[FaultProxy]] = {}
    crowds: dict[str, Crowd] = {}
    for kind in KINDS:
        if kind.proxied:
            crowd = crowds[kind.name] = Crowd()
            pairs = zip(server.ports, ("ws", "wss"), strict=True)
            made = [WatchedProxy(port, scheme, crowd) for port, scheme in pairs]
            proxies[kind.name] = [stack.enter_context(proxy) for proxy in made]
    return proxies, crowds


def _bases(server: ServerProcess, proxies: dict[str, list[FaultProxy]]) -> dict[str, list[str]]:
    """The ws:// and the wss:// URI that each kind of pool goes to."""
    direct = [
        f"{scheme}://{LOCALHOST}:{port}" for scheme, port in zip(("ws", "wss"), server.ports, strict=True)
    ]
    through = {name: [proxy.uri("").rstrip("/") for proxy in pair] for name, pair in proxies.items()}
    return {kind.name: through.get(kind.name, direct) for kind in KINDS}


def _by_kind(most: Counter[str]) -> dict[str, int]:
    """The most of any pool of each kind; names are "kind#number/process"."""
    found: dict[str, int] = {}
    for name, number in most.items():
        kind = name.split("#")[0]
        found[kind] = max(found.get(kind, 0), number)
    return found
