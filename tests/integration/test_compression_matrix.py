"""permessage-deflate between the pool and the servers that people run, each a process of its own."""

from __future__ import annotations

import contextlib
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
from jetsocket.exceptions import ConnectionClosedError, HandshakeError
from jetsocket.wire.websocket import WebSocket
from tests.integration.peers import PEERS, PIECES
from tests.integration.running import NODE_MODULES, ROOT, program

BUILD_PATIENCE = 240  # s, for Go's own packages to be compiled

pytestmark = [pytest.mark.integration, pytest.mark.timeout(BUILD_PATIENCE + 60)]

HERE = Path(__file__).parent
EXTENSIONS = "Sec-WebSocket-Extensions"
WAIT = 10.0  # s
NODE, NHOOYR, GORILLA = "ws-npm", "nhooyr", "gorilla"
GO_PATH = Path("/usr/share/gocode")  # where Debian's packages are
GO_PACKAGES = {NHOOYR: "nhooyr.io/websocket", GORILLA: "github.com/gorilla/websocket"}

# What can be told to ping, to say what it agreed on, to send in fragments, or to close without a code.
PINGS = {"websockets-threads", "websockets-asyncio", "aiohttp", "tornado", NODE, *GO_PACKAGES}
TELLS = {"websockets-threads", "websockets-asyncio", "aiohttp", NODE}
FRAGMENTS = {"websockets-threads", "websockets-asyncio", NODE, *GO_PACKAGES}
ENDS = {"tornado", NODE, *GO_PACKAGES}

# What jetsocket once offered.
LIMITING = "permessage-deflate; server_max_window_bits=12; client_max_window_bits=12"

PoolFactory = Callable[..., ConnectionPool[Any]]


class Peer(NamedTuple):
    name: str
    uri: str


def node_environment() -> dict[str, str]:
    """An environment in which node finds `ws`, from `make integration` or the system."""
    program("node", package="nodejs")
    environment = {**os.environ, "NODE_PATH": str(NODE_MODULES)}
    found = subprocess.run(
        ["node", "-e", "require('ws')"],
        cwd=HERE,
        env=environment,
        capture_output=True,
        timeout=30,
        check=False,
    )
    if found.returncode != 0:
        pytest.skip(f"needs ws from npm in {NODE_MODULES} (`make integration` installs it)")
    return environment


def built(name: str, directory: Path) -> str:
    """A server of Go's, built of what Debian has installed: nothing is downloaded."""
    go, package = shutil.which("go"), GO_PATH / "src" / GO_PACKAGES[name]
    if go is None or not package.is_dir():
        pytest.skip(f"needs Go and {package} (Debian: golang-go, golang-{name}-websocket-dev)")
    program = directory / name
    offline = {"GO111MODULE": "off", "GOPATH": str(GO_PATH), "GOFLAGS": "", "GOTOOLCHAIN": "local"}
    subprocess.run(
        [go, "build", "-o", str(program), str(HERE / "apps" / f"{name}_peer.go")],
        env={**os.environ, **offline},
        timeout=BUILD_PATIENCE,
        check=True,
    )
    return str(program)


@pytest.fixture(scope="module")
def run_peer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Peer]]:
    """A factory of running servers, one of each name."""
    with contextlib.ExitStack() as stack:
        running: dict[str, Peer] = {}

        def run(name: str) -> Peer:
            if name not in running:
                running[name] = stack.enter_context(_running(name, tmp_path_factory.mktemp(name)))
            return running[name]

        yield run


@contextlib.contextmanager
def _running(name: str, directory: Path) -> Iterator[Peer]:
    command, environment = [sys.executable, "-m", "tests.integration.peers", name], dict(os.environ)
    if name == NODE:
        command, environment = ["node", str(HERE / "peer.js")], node_environment()
    elif name in GO_PACKAGES:
        command = [built(name, directory)]
    log = directory / "stderr"
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


@pytest.fixture(scope="module", params=[*PEERS, NODE, *GO_PACKAGES])
def peer(request: pytest.FixtureRequest, run_peer: Callable[[str], Peer]) -> Peer:
    """A running server."""
    return run_peer(request.param)


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
    message = noise(375).hex() * 2  # of what does not repeat, nhooyr compresses nothing
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


def test_its_close_without_a_code(peer: Peer, pool: ConnectionPool[Any]) -> None:
    if peer.name not in ENDS:
        pytest.skip("it never closes without a code")
    with pool.acquire("/") as conn:
        conn.send_raw("/end")
        assert list(conn) == []  # an orderly end
    with pool.acquire("/") as conn:
        conn.send_raw("/end")
        with pytest.raises(ConnectionClosedError, match="without a status code") as caught:
            conn.recv_raw(WAIT)
    assert caught.value.is_normal


def test_our_fragments(peer: Peer, compress: bool, make_pool: PoolFactory) -> None:
    options = {"compress": compress, "compression_threshold": 0, "max_frame_size": 1000}
    pool = make_pool(peer.uri, manager_kwargs=options)
    with pool.acquire("/") as conn:
        for message in [*MESSAGES["70 KB"], *MESSAGES["empty"], *MESSAGES["text"]]:
            conn.send_raw(message)
            assert conn.recv_raw(WAIT) == message


# --- what each server can agree on


def exchange(conn: Any) -> None:
    """Messages that refer to earlier ones, from near and from as far as a window goes."""
    far = noise(20_000)
    for message in ("near " * 500, far, far, "near " * 500, far, b"", "x"):
        conn.send_raw(message)
        assert conn.recv_raw(WAIT) == message


def query(**options: Any) -> str:
    """The path that gives `ws` these options for permessage-deflate."""
    return "/?" + "&".join(f"{name}={str(value).lower()}" for name, value in options.items())


@pytest.mark.parametrize("server_forgets", [False, True])
@pytest.mark.parametrize("client_forgets", [False, True])
@pytest.mark.parametrize("server_bits", range(9, 16))
def test_windows_of_ws(
    run_peer: Callable[[str], Peer],
    make_pool: PoolFactory,
    server_bits: int,
    client_forgets: bool,
    server_forgets: bool,
) -> None:
    pool = make_pool(run_peer(NODE).uri, manager_kwargs={"compression_threshold": 0})
    for client_bits in range(9, 16):
        path = query(
            serverMaxWindowBits=server_bits,
            clientMaxWindowBits=client_bits,
            serverNoContextTakeover=server_forgets,
            clientNoContextTakeover=client_forgets,
        )
        with pool.acquire(path) as conn:
            agreed = conn.response_headers[EXTENSIONS]
            assert f"server_max_window_bits={server_bits}" in agreed
            assert f"client_max_window_bits={client_bits}" in agreed
            assert ("server_no_context_takeover" in agreed) == server_forgets
            assert ("client_no_context_takeover" in agreed) == client_forgets
            exchange(conn)


@pytest.mark.parametrize("bits", range(9, 16))
@pytest.mark.parametrize("side", ["server", "client"])
def test_a_window_of_one_side_of_ws(
    run_peer: Callable[[str], Peer], make_pool: PoolFactory, side: str, bits: int
) -> None:
    pool = make_pool(run_peer(NODE).uri, manager_kwargs={"compression_threshold": 0})
    with pool.acquire(query(**{f"{side}MaxWindowBits": bits})) as conn:
        assert f"{side}_max_window_bits={bits}" in conn.response_headers[EXTENSIONS]
        exchange(conn)


@pytest.mark.parametrize(("path", "forgets"), [("/", True), ("/?takeover", False)])
def test_both_modes_of_nhooyr(
    run_peer: Callable[[str], Peer], make_pool: PoolFactory, path: str, forgets: bool
) -> None:
    pool = make_pool(run_peer(NHOOYR).uri, manager_kwargs={"compression_threshold": 0})
    with pool.acquire(path) as conn:
        assert ("server_no_context_takeover" in conn.response_headers[EXTENSIONS]) == forgets
        exchange(conn)


def test_the_mode_of_gorilla(run_peer: Callable[[str], Peer], make_pool: PoolFactory) -> None:
    pool = make_pool(run_peer(GORILLA).uri, manager_kwargs={"compression_threshold": 0})
    with pool.acquire("/") as conn:
        agreed = conn.response_headers[EXTENSIONS]
        assert "server_no_context_takeover" in agreed and "client_no_context_takeover" in agreed
        exchange(conn)


@pytest.mark.parametrize(("name", "path"), [(NHOOYR, "/"), (NODE, query(serverMaxWindowBits=15))])
def test_an_offer_that_limits_their_window_is_what_they_refuse(
    run_peer: Callable[[str], Peer], name: str, path: str
) -> None:
    """So these are the servers that the offer is about."""
    ws = WebSocket()
    with pytest.raises(HandshakeError) as caught:
        ws.connect(run_peer(name).uri + path, timeout=WAIT, header=[(EXTENSIONS, LIMITING)])
    assert caught.value.status_code == 400
