"""permessage-deflate between the pool and the servers that people run, each a process of its own."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionPool
from jetsocket.exceptions import ConnectionClosedError
from tests.integration.peers import PEERS, PIECES

NPM_PATIENCE = 240  # s, for its registry

pytestmark = [pytest.mark.integration, pytest.mark.timeout(NPM_PATIENCE + 60)]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EXTENSIONS = "Sec-WebSocket-Extensions"
WAIT = 10.0  # s
NODE = "ws-npm"

# What can be told to ping, to say what it agreed on, or to send a message in fragments.
PINGS = {"websockets-threads", "websockets-asyncio", "aiohttp", "tornado", NODE}
TELLS = {"websockets-threads", "websockets-asyncio", "aiohttp", NODE}
FRAGMENTS = {"websockets-threads", "websockets-asyncio", NODE}

PoolFactory = Callable[..., ConnectionPool[Any]]


class Peer(NamedTuple):
    name: str
    uri: str


def node_environment(directory: Path) -> dict[str, str]:
    """An environment in which node finds `ws`: as installed here, else from npm into `directory`."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None:
        pytest.skip("needs node (Debian: nodejs)")
    found = subprocess.run(
        [node, "-e", "require('ws')"], cwd=HERE, capture_output=True, timeout=30, check=False
    )
    if found.returncode == 0:
        return dict(os.environ)
    if npm is None:
        pytest.skip("needs npm, to install ws (Debian: npm)")
    subprocess.run(
        [npm, "install", "--no-audit", "--no-fund", "--prefix", str(directory), "ws@8"],
        capture_output=True,
        timeout=NPM_PATIENCE,
        check=True,
    )
    return {**os.environ, "NODE_PATH": str(directory / "node_modules")}


@pytest.fixture(scope="module", params=[*PEERS, NODE])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """A running server."""
    name = request.param
    if name == NODE:
        command = ["node", str(HERE / "peer.js")]
        environment = node_environment(tmp_path_factory.mktemp("npm"))
    else:
        command = [sys.executable, "-m", "tests.integration.peers", name]
        environment = dict(os.environ)
    log = tmp_path_factory.mktemp(name) / "stderr"
    with (
        log.open("wb") as stderr,
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            port = process.stdout.readline().strip()  # empty if it has ended; the test's timeout bounds it
            assert port, f"{name} did not start:\n{log.read_text()}"
            yield Peer(name, f"ws://127.0.0.1:{int(port)}")
        finally:
            process.stdin.close()  # each ends with its input
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()


@pytest.fixture(params=[True, False], ids=["compressed", "plain"])
def compress(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def pool(peer: Peer, compress: bool, make_pool: PoolFactory) -> ConnectionPool[Any]:
    """A pool that compresses whatever there is to compress, or nothing."""
    return make_pool(peer.uri, manager_kwargs={"compress": compress, "compression_threshold": 0})


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


MESSAGES: dict[str, list[str | bytes]] = {
    "text": ["hello", "hello", "hello" * 100, "žluťoučký kůň 🐎" * 20],
    "binary": [b"\x00", b"\x00\x01\x02" * 100, noise(1000), noise(1000)],
    "empty": ["", b"", "", "a" * 200, b"", "a" * 200, ""],
    "70 KB": ["seventy " * 9000, b"seventy " * 9000, noise(70_000), noise(35_000).hex(), noise(70_000)],
    "edges": [noise(size) for size in (125, 126, 127, 128, 4095, 4096, 65_535, 65_536, 65_537)],
}


def test_what_was_agreed_on(peer: Peer, compress: bool, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        chosen = conn.response_headers.get(EXTENSIONS, "")
        assert chosen.split(";")[0].strip() == ("permessage-deflate" if compress else "")
        if peer.name in TELLS:
            conn.send_raw("/view")
            view = conn.recv_raw(WAIT)
            assert view.startswith('["permessage-deflate') if compress else view == "[]"


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_come_back_as_they_went(pool: ConnectionPool[Any], kind: str) -> None:
    for _ in range(2):
        with pool.acquire("/") as conn:
            for message in MESSAGES[kind]:
                conn.send_raw(message)
                assert conn.recv_raw(WAIT) == message
    assert pool.stats().total_connections == 1


def test_messages_on_their_way_at_the_same_time(pool: ConnectionPool[Any]) -> None:
    messages = [*MESSAGES["text"], *MESSAGES["binary"], *MESSAGES["empty"]] * 3
    with pool.acquire("/") as conn:
        for message in messages:
            conn.send_raw(message)
        assert [conn.recv_raw(WAIT) for _ in messages] == messages


def test_a_connection_is_reused_and_stays_in_step(compress: bool, pool: ConnectionPool[Any]) -> None:
    message = noise(750).hex()
    for _ in range(20):
        with pool.acquire("/") as conn:
            conn.send_raw(message)
            assert conn.recv_raw(WAIT) == message
    stats = pool.stats()
    assert (stats.total_connections, stats.reuses) == (1, 19)
    plain = 20 * len(message)
    assert (stats.bytes_sent < plain) == compress
    assert (stats.bytes_received < plain) == compress


def test_fragments_with_pings_between(peer: Peer, pool: ConnectionPool[Any]) -> None:
    if peer.name not in FRAGMENTS:
        pytest.skip("its interface sends no fragments")
    with pool.acquire("/") as conn:
        for _ in range(3):
            conn.send_raw("/fragments")
            assert conn.recv_raw(WAIT) == "".join(PIECES)
            conn.send_raw("whole")
            assert conn.recv_raw(WAIT) == "whole"


def test_our_pings_between_messages(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        for _ in range(3):
            conn.send_raw("before and after " * 20)
            assert 0 < conn.ping(WAIT) < WAIT
            assert conn.recv_raw(WAIT) == "before and after " * 20


def test_its_pings(peer: Peer, pool: ConnectionPool[Any]) -> None:
    if peer.name not in PINGS:
        pytest.skip("its interface sends no pings")
    with pool.acquire("/") as conn:
        for _ in range(3):
            conn.send_raw("/ping")
            assert conn.recv_raw(WAIT) == "ponged"


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, "done"), (1001, "going"), (1011, "broken"), (4001, "ours é")]
)
def test_its_close_codes(pool: ConnectionPool[Any], code: int, reason: str) -> None:
    with pool.acquire("/") as conn:
        conn.send_raw("first " * 100)
        assert conn.recv_raw(WAIT) == "first " * 100
        conn.send_raw(f"/close {code} {reason}")
        with pytest.raises(ConnectionClosedError) as caught:
            conn.recv_raw(WAIT)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    with pool.acquire("/") as conn:  # and on it goes, with a new context
        conn.send_raw("second " * 100)
        assert conn.recv_raw(WAIT) == "second " * 100
