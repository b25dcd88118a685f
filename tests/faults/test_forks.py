"""Storms of forks, and the ways of the standard library to start a process (DESIGN §4.8)."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import pickle
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests import scripts
from tests.conftest import Tls
from tests.faults.census import Census
from tests.faults.conftest import Report
from tests.faults.forking import CAP
from tests.servers import LOCALHOST, EchoServer, RawServer, hold, wait_until

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

RUN = "import sys\nfrom tests.faults import forking\nforking.{}(*sys.argv[1:])\n"


def check_storm(
    server: EchoServer, forks: int, report: Report, *, ca: str = "", watchdog: float = 50
) -> None:
    """Let it storm, and look at it from the server's side."""
    census = server.handler
    assert isinstance(census, Census)
    ended = scripts.run(RUN.format("storm"), server.uri, ca, str(forks), watchdog=watchdog).check()
    parent = json.loads(ended.out)
    own = str(parent["pid"])
    wait_until(lambda: server.open_now == 0, 10, "every connection of every process is closed")
    wait_until(lambda: census.ended == server.opened, 10)
    assert census.foreign == []
    assert max(census.most_open.values()) <= CAP
    # Each was closed by its owner, with a goodbye; one that takes more than a second is cut short.
    cut = census.ends[own].pop(1006, 0)
    most = max(4, census.opened[own] // 20)
    assert set(census.ends[own]) <= {1000, 1001} and cut <= most, (census.ends[own], cut)
    assert parent["reconnects"] == 0
    assert set(parent["discards"]) <= {"evicted", "discarded", "pool closed"}, parent["discards"]
    assert len(census.opened) >= forks + 1
    report(
        "fork",
        scheme=server.uri.split(":")[0],
        forks=len(census.opened) - 1,
        connections_of_parent=census.opened[own],
        connections_of_children=server.opened - census.opened[own],
        messages=server.messages,
        foreign=len(census.foreign),
        parents_cut=cut,
    )


def authority(tls: Tls, directory: Path) -> str:
    path = directory / "ca.pem"
    tls.ca.cert_pem.write_to_path(str(path))
    return str(path)


@pytest.mark.slow
def test_a_storm_of_forks(report: Report) -> None:
    with EchoServer(Census()) as server:
        check_storm(server, 8, report)


@pytest.mark.slow
def test_a_storm_of_forks_over_tls(tls: Tls, tmp_path: Path, report: Report) -> None:
    with EchoServer(Census(), ssl_context=tls.server_context) as server:
        check_storm(server, 5, report, ca=authority(tls, tmp_path))


def full() -> Iterator[str]:
    """An address that lets nobody connect: the kernel drops what comes, for the backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind((LOCALHOST, 0))
        listener.listen(0)
        for _ in range(2):
            early = waiting.enter_context(socket.socket())
            early.setblocking(False)
            early.connect_ex(listener.getsockname())
        yield f"ws://{LOCALHOST}:{listener.getsockname()[1]}"
        yield ""


def silent(scheme: str) -> Iterator[str]:
    """A server that lets everybody connect and never says a word; resumed, it waits for their first."""
    heard = threading.Event()

    def listen(sock: socket.socket) -> None:
        if sock.recv(1):
            heard.set()
            hold(sock)

    with RawServer(listen) as server:
        yield server.uri.replace("ws", scheme)
        assert heard.wait(10)
        yield ""


STAGES = {"TCP": full, "TLS": partial(silent, "wss"), "upgrade": partial(silent, "ws")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
@pytest.mark.parametrize("stage", STAGES)
def test_a_fork_while_another_thread_connects(stage: str) -> None:
    peer = STAGES[stage]()
    uri, script = next(peer), RUN.format("fork_while_connecting")
    with EchoServer(Census()) as server, scripts.Script(script, uri, server.uri) as running:
        assert running.line() == "connecting"
        next(peer)
        running.say("go on")
        running.ended().check()
    assert next(peer, None) is None


class Slow:
    """A TLS session in which another thread is for a while, as in a handshake that computes."""

    def __init__(self, session: Any, seconds: float) -> None:
        self.session, self.seconds = session, seconds
        self.inside = threading.Event()

    def write(self, data: memoryview) -> int:
        self.inside.set()
        threading.Event().wait(self.seconds)
        self.inside.clear()
        return int(self.session.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)


def fork_and_tell(told: Callable[[], bool]) -> bool:
    """What the child sees at once."""
    pid = os.fork()
    if pid == 0:
        os._exit(told())
    return bool(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "inside"), [(0.2, False), (1.7, True)])
def test_a_fork_waits_while_a_thread_is_inside_openssl_but_not_for_ever(
    echo_tls: EchoServer, tls: Tls, make_pool: Callable[..., Any], seconds: float, inside: bool
) -> None:
    """OpenSSL's own locks: one that is held at the fork is held in the child for ever."""
    pool = make_pool(echo_tls, manager_kwargs={"ssl_context": tls.client_context})
    with pool.acquire("/") as conn:
        session = conn._entry.wire._stream._tls
        slow = session._session = Slow(session._session, seconds)
        sender = threading.Thread(target=conn.send, args=("hello",))
        sender.start()
        assert slow.inside.wait(5)
        assert fork_and_tell(slow.inside.is_set) is inside
        sender.join()
        session._session = slow.session
        assert conn.recv_raw(5) == "hello"


OTHER_HOOK = """
import os, ssl, sys, threading
asked, lock = threading.Event(), threading.RLock()
class Tells:
    def acquire(self):
        asked.set()
        lock.acquire()
# Made first, it runs last before a fork: as the hook of logging does, which waits for a lock of logging's.
os.register_at_fork(before=Tells().acquire, after_in_parent=lock.release)
from tests.faults.forking import open_pool
pool, has_lock = open_pool(*sys.argv[1:]), threading.Event()
def work():
    with pool.acquire("/") as conn, lock:
        has_lock.set()
        assert asked.wait(10)
        assert conn.request(1, timeout=10) == 1
thread = threading.Thread(target=work)
thread.start()
assert has_lock.wait(10)
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
thread.join()
pool.close()
print("ok")
"""


def test_a_fork_holds_no_session_while_it_waits_for_the_locks_of_others(
    echo_tls: EchoServer, tls: Tls, tmp_path: Path
) -> None:
    ended = scripts.run(OTHER_HOOK, echo_tls.uri, authority(tls, tmp_path))
    assert ended.out == "ok\n", ended.err


def test_neither_a_pool_nor_a_lease_is_copied(echo: EchoServer, make_pool: Callable[..., Any]) -> None:
    """A copy would share the connections: lent twice, and closed when the copy is dropped."""
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        for attempt in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match=r"pool 'pool-\d+' can't be pickled or copied"):
                attempt(pool)
            with pytest.raises(TypeError, match=r"a lease can't be pickled or copied"):
                attempt(conn)
        assert conn.request(["still mine"], timeout=5) == ["still mine"]
    assert not pool.is_closed


MULTIPROCESSING = """
import multiprocessing, sys, warnings
from concurrent.futures import ProcessPoolExecutor
from jetsocket import PoolExhaustedError
from tests.faults.forking import ask, fail, shared_pool, talk, use_given
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
uri, method, workers, calls = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
lent = shared_pool(uri).acquire("/")
shared_pool(uri).acquire("/").release()
talk(lent)
context = multiprocessing.get_context(method)

with ProcessPoolExecutor(workers, mp_context=context) as executor:
    done = list(executor.map(ask, [uri] * calls))
    assert {opened for _, opened in done} == {1}, "each process opens one connection, and keeps it"
    error = executor.submit(fail, uri).exception()
    assert type(error) is PoolExhaustedError and error.max_connections == 2, error
with context.Pool(workers, maxtasksperchild=3) as pool:
    replaced = pool.map(ask, [uri] * calls, chunksize=1)
    assert len({pid for pid, _ in replaced}) >= calls // 3
process = context.Process(target=use_given, args=(shared_pool(uri),))
if method != "fork":
    try: process.start()
    except TypeError as error: assert "can't be pickled" in str(error) and "each process" in str(error), error
    else: raise AssertionError("a pool went to another process")
talk(lent)
lent.release()
assert shared_pool(uri).stats().total_connections == 2
shared_pool(uri).close()
"""


def check_multiprocessing(method: str, workers: int, calls: int) -> None:
    with EchoServer(Census()) as server:
        arguments = (server.uri, method, str(workers), str(calls))
        scripts.run(MULTIPROCESSING, *arguments, watchdog=100).check()
        census = server.handler
        assert isinstance(census, Census)
        wait_until(lambda: server.open_now == 0, 10)
        assert census.foreign == []
        assert max(census.most_open.values()) <= 2


@pytest.mark.slow
def test_processes_of_multiprocessing_that_were_forked() -> None:
    check_multiprocessing("fork", 2, 6)


@pytest.mark.soak
@pytest.mark.timeout(200)
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_many_processes_of_multiprocessing(method: str, depth: float) -> None:
    check_multiprocessing(method, 3, max(6, round((40 if method == "spawn" else 200) * depth)))


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_a_long_storm_of_forks(scheme: str, tls: Tls, tmp_path: Path, depth: float, report: Report) -> None:
    forks = max(20, round(500 * depth))
    context = tls.server_context if scheme == "wss" else None
    with EchoServer(Census(), ssl_context=context) as server:
        check_storm(server, forks, report, ca=authority(tls, tmp_path) if context else "", watchdog=250)
