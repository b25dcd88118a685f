"""aria2, a download manager with JSON-RPC over WebSocket: it notifies every connection of every download."""

from __future__ import annotations

import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionPool, ReplyError
from jetsocket.correlation import JsonRpc
from tests.crowds import crowd, errors
from tests.faults import conftest
from tests.faults.proxy import FaultProxy
from tests.integration.running import PATIENCE, free_port, program, running, wait_for_port
from tests.servers import LOCALHOST, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(90)]

report = conftest.report

PoolFactory = Callable[..., ConnectionPool[Any]]

CONNECTIONS, THREADS, CALLS = 4, 16, 25
FILES = 8
SECRET = "token:a secret of this test's own"
UNKNOWN = "f" * 16  # the gid of no download
START, COMPLETE, ERROR = "aria2.onDownloadStart", "aria2.onDownloadComplete", "aria2.onDownloadError"


class Aria2(NamedTuple):
    """A running aria2, reached through a proxy that counts connections, and a web server with files."""

    uri: str
    proxy: FaultProxy
    files: str
    downloads: Path


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """The URL of a web server with `FILES` files, each with its own text."""
    directory = tmp_path / "files"
    directory.mkdir()
    for number in range(FILES):
        (directory / f"{number}.txt").write_text(text_of(number))
    with http.server.ThreadingHTTPServer((LOCALHOST, 0), partial(Quiet, directory=str(directory))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://{LOCALHOST}:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def text_of(number: int) -> str:
    return f"file {number} " * 1000


@pytest.fixture
def aria2(tmp_path: Path, files: str) -> Iterator[Aria2]:
    """A running aria2 that has downloaded nothing yet."""
    port, downloads = free_port(), tmp_path / "downloads"
    downloads.mkdir()
    command = [program("aria2c", package="aria2"), "--no-conf", "--enable-rpc", f"--rpc-listen-port={port}"]
    command += ["--rpc-secret=" + SECRET.removeprefix("token:"), f"--dir={downloads}", "--no-proxy=*"]
    command += ["--enable-dht=false", "--file-allocation=none", "--quiet", "--max-tries=1"]
    with (
        running(command, tmp_path / "aria2.log") as process,
        FaultProxy(LOCALHOST, port) as proxy,
    ):
        wait_for_port(port, process)
        yield Aria2(proxy.uri("/"), proxy, files, downloads)


def gid_of(number: int) -> str:
    """The id of a download: aria2 lets its caller choose, so that each reply tells whose it is."""
    return f"{number:016x}"


class Caller:
    """Asks for one thing after another, each answered with what only that question is answered with."""

    def __init__(self, aria2: Aria2, pool: ConnectionPool[Any]) -> None:
        self.aria2 = aria2
        self.pool = pool
        self.started: Counter[str] = Counter()  # expected notifications, by method

    def ask(self, method: str, *params: Any, message_id: Any = None) -> Any:
        message = {"method": method, "params": [SECRET, *params]}
        if message_id is None:
            return self.pool.request("/jsonrpc", message, timeout=PATIENCE)["result"]
        reply = self.pool.request("/jsonrpc", {**message, "id": message_id}, timeout=PATIENCE)
        assert reply["id"] == message_id and set(reply) == {"id", "jsonrpc", "result"}
        return reply["result"]

    def run(self, number: int) -> int:
        """All calls of one thread; how many were answered right."""
        right = 0
        for count in range(CALLS):
            call = number * CALLS + count + 1
            gid = gid_of(call - count % 5)
            if count % 5 == 0:
                name = f"{call % FILES}.txt" if count % 10 == 0 else "missing"
                options = {"gid": gid, "out": f"{gid}.txt"}
                right += self.ask("aria2.addUri", [f"{self.aria2.files}/{name}"], options) == gid
            elif count % 5 == 1:
                right += self.ask("aria2.tellStatus", gid, ["gid"], message_id=1) == {"gid": gid}
            elif count % 5 == 2:
                options = {"user-agent": f"caller {call}"}
                right += self.ask("aria2.changeGlobalOption", options, message_id=gid) == "OK"
            elif count % 5 == 3:
                with pytest.raises(
                    ReplyError, match=f"GID {gid_of(call + 1_000_000)} is not found"
                ) as refused:
                    self.ask("aria2.tellStatus", gid_of(call + 1_000_000))
                right += refused.value.code == 1
            else:
                got = self.ask("aria2.tellStatus", gid, ["gid", "dir"])
                right += got == {"gid": gid, "dir": str(self.aria2.downloads)}
        return right


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_every_call_is_answered_right_and_every_notification_comes_once_a_connection(
    aria2: Aria2, max_in_flight: int, make_pool: PoolFactory, report: conftest.Report
) -> None:
    pushed: Counter[tuple[str, str]] = Counter()

    def on_push(uri: str, message: Any) -> None:
        assert message["jsonrpc"] == "2.0" and "id" not in message, message
        pushed[message["method"], message["params"][0]["gid"]] += 1

    pool = make_pool(
        aria2.uri,
        correlation=JsonRpc(),
        on_push=on_push,
        max_connections=CONNECTIONS,
        max_in_flight=max_in_flight,
    )
    assert pool.prewarm("/jsonrpc", CONNECTIONS) == CONNECTIONS  # all hear of every download
    caller = Caller(aria2, pool)
    begun = monotonic()
    outcomes = crowd(THREADS, caller.run)
    took = monotonic() - begun
    assert errors(outcomes) == []
    right = sum(outcome.value for outcome in outcomes)
    added = {
        gid_of(number * CALLS + count + 1): count for number in range(THREADS) for count in range(0, 25, 5)
    }
    expected = {
        (method, gid): CONNECTIONS
        for gid, count in added.items()
        for method in (START, COMPLETE if count % 10 == 0 else ERROR)
    }
    wait_until(
        lambda: sum(pushed.values()) >= sum(expected.values()), PATIENCE, "all notifications have come"
    )
    with pool.acquire("/jsonrpc") as conn:  # a reply comes after all that was notified before it
        status = conn.request({"method": "aria2.getGlobalStat", "params": [SECRET]})["result"]
    assert (status["numActive"], status["numWaiting"]) == ("0", "0")
    stats = pool.stats()
    assert right == THREADS * CALLS
    assert pushed == expected
    assert (aria2.proxy.connections, stats.total_connections) == (CONNECTIONS, CONNECTIONS)
    assert (stats.late_replies, stats.unasked_messages, stats.in_flight) == (0, sum(expected.values()), 0)
    for gid, count in added.items():
        if count % 10 == 0:
            assert (aria2.downloads / f"{gid}.txt").read_text() == text_of(int(gid, 16) % FILES)
    report(
        f"aria2, {max_in_flight} in flight",
        calls=right,
        connections=stats.total_connections,
        notifications=sum(pushed.values()),
        calls_per_s=round(right / took),
    )


def test_a_download_is_followed_to_its_end(aria2: Aria2, make_pool: PoolFactory) -> None:
    pool = make_pool(aria2.uri, correlation=JsonRpc(), max_in_flight=4)
    with pool.subscribe("/jsonrpc", None, timeout=PATIENCE) as events:
        for number in range(FILES):
            address = [f"{aria2.files}/{number}.txt"]
            added = {"method": "aria2.addUri", "params": [SECRET, address, {"gid": gid_of(number + 1)}]}
            assert pool.request("/jsonrpc", added, timeout=PATIENCE)["result"] == gid_of(number + 1)
        heard: dict[str, list[str]] = {}
        while sum(map(len, heard.values())) < 2 * FILES:
            event = events.get(PATIENCE)
            heard.setdefault(event["params"][0]["gid"], []).append(event["method"])
    assert heard == {gid_of(number + 1): [START, COMPLETE] for number in range(FILES)}
    for number in range(FILES):
        assert (aria2.downloads / f"{number}.txt").read_text() == text_of(number)


def test_a_batch_and_calls_side_by_side(aria2: Aria2, make_pool: PoolFactory) -> None:
    pool = make_pool(aria2.uri, correlation=JsonRpc())
    version = {"method": "aria2.getVersion", "params": [SECRET]}
    unknown = {"method": "aria2.tellStatus", "params": [SECRET, UNKNOWN]}
    with pool.acquire("/jsonrpc") as conn:
        batch = conn.request([{**version, "id": "a"}, {**unknown, "id": "b"}, {**version, "id": 3}], PATIENCE)
        assert [(each["id"], "result" in each) for each in batch] == [("a", True), ("b", False), (3, True)]
        assert batch[1]["error"]["code"] == 1
        first, failed, last = conn.request_many([version, unknown, version], PATIENCE)
        assert first["result"] == last["result"] == batch[0]["result"]
        assert isinstance(failed, ReplyError) and failed.code == 1
        with pytest.raises(ReplyError, match=r"No such method: aria2\.none"):
            conn.request({"method": "aria2.none", "params": [SECRET]}, PATIENCE)
    assert pool.stats().total_connections == 1
