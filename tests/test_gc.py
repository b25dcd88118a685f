"""What is dropped comes back: leases, generators that hold one, pools (DESIGN §4.5, §4.8)."""

from __future__ import annotations

import gc
import socket
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    ConnectionPoolConfig,
    InvalidStateError,
    PoolExhaustedError,
)
from jetsocket.shutdown import Ending
from jetsocket.state.fast_path import FastPath
from jetsocket.state.locking import TORN
from tests import scripts
from tests.awake import awake
from tests.books import state_of
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer, wait_until
from tests.sizes import size


@pytest.fixture
def warned() -> Iterator[list[str]]:
    """The texts of all ResourceWarnings, from whatever thread."""
    texts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = lambda message, *_, **__: texts.append(str(message))
        yield texts


def take_all(pool: ConnectionPool[Any], timeout: float = 5.0) -> None:
    held = [pool.acquire("/all", timeout=timeout) for _ in range(pool.config.max_connections)]
    for conn in held:
        conn.release()


@pytest.mark.deep
def test_dropped_leases_come_back_each_with_a_warning(echo: EchoServer, warned: list[str]) -> None:
    each = size(50, 250)

    def drop() -> None:
        for _ in range(each):
            pool.acquire("/")

    line = drop.__code__.co_firstlineno + 2
    start = monotonic()
    with ConnectionPool(ConnectionPoolConfig(max_connections=4), base_uri=echo.uri) as pool:
        with ThreadPoolExecutor(4) as threads:
            for result in [threads.submit(drop) for _ in range(4)]:
                result.result(30)
        wait_until(lambda: len(warned) == 4 * each)
        take_all(pool)
        assert pool.stats().discards["dropped"] == 4 * each
    assert monotonic() - start < 15
    assert all("dropped without release" in text and f"{__file__}:{line}" in text for text in warned)
    assert echo.most_open <= 4


def test_a_dropped_lease_comes_back_at_once_not_at_the_next_tick(echo: EchoServer, warned: list[str]) -> None:
    with ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=echo.uri) as pool:
        pool.acquire("/").release()
        waits = []
        for _ in range(20):
            pool.acquire("/")
            start = awake()
            pool.acquire("/", timeout=5).release()
            waits.append(awake() - start)
        assert sum(waits) / len(waits) < 0.1  # a tick is half a second
    assert len(warned) == 20


def test_one_that_was_released_is_not_warned_about(echo: EchoServer, warned: list[str]) -> None:
    with ConnectionPool(base_uri=echo.uri) as pool:
        for _ in range(50):
            conn = pool.acquire("/")
            conn.release()
            del conn
            with pool.acquire("/"):
                pass
        gc.collect()
    assert warned == []
    assert echo.opened == 1


def test_a_lease_in_a_cycle_comes_back_when_the_cycle_is_found(echo: EchoServer, warned: list[str]) -> None:
    with ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=echo.uri) as pool:
        cycle: dict[str, Any] = {"conn": pool.acquire("/")}
        cycle["self"] = cycle
        del cycle
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", timeout=0)
        gc.collect()
        pool.acquire("/", timeout=5).release()
    assert len(warned) == 1


GENERATORS = """
import gc, os, sys, threading, time, warnings
from jetsocket import ConnectionPool, ConnectionPoolConfig
warnings.simplefilter("ignore", ResourceWarning)
pool = ConnectionPool(ConnectionPoolConfig(max_connections=4, acquire_timeout=20), base_uri=sys.argv[1])
gc.set_threshold(1, 1, 1)

class Node: pass

def stream(path):
    with pool.acquire(path) as conn:
        while True:
            yield conn.request(1, timeout=5)

def forget(path):
    '''Leave a suspended generator, which holds a lease, in a cycle: the collector closes it anywhere.'''
    node = Node()
    node.me, node.stream = node, stream(path)
    next(node.stream)

def plain(path):
    node = Node()
    node.me, node.conn = node, pool.acquire(path)

trouble = []
def work(number):
    try:
        end = time.monotonic() + float(sys.argv[3])
        rounds = 0
        while time.monotonic() < end or rounds < 10:
            rounds += 1
            (forget, plain)[rounds % 2](f"/{(number + rounds) % 6}")
            with pool.acquire("/mine") as conn:
                assert conn.request(rounds, timeout=10) == rounds
            pool.stats()
    except BaseException as error:
        trouble.append(repr(error))
threads = [threading.Thread(target=work, args=(n,)) for n in range(int(sys.argv[2]))]
done = threading.Event()
def collect():
    # All threads may be in line for what lies in garbage: then nobody else makes the collector run.
    while not done.wait(0.01): gc.collect()
threads.append(threading.Thread(target=collect))
for thread in threads: thread.start()
for thread in threads[:-1]: thread.join(60); assert not thread.is_alive()
done.set()
threads[-1].join(60)             # or it may be collecting, and then collect() does nothing here
gc.set_threshold(700)
gc.collect()
assert not trouble, trouble
held = [pool.acquire("/all", timeout=2) for _ in range(4)]
for conn in held: conn.release()
pool.close()
print("ok")
"""


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.timeout(100)
@pytest.mark.parametrize("threads", [1, 4])
def test_generators_that_the_collector_closes_inside_the_pool(echo: EchoServer, threads: int) -> None:
    seconds = str(size(1, 10))
    ended = scripts.run(GENERATORS, echo.uri, str(threads), seconds, watchdog=80)  # s, for a busy machine
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err
    assert echo.most_open <= 4


def test_a_generator_that_is_collected_inside_another_pool_runs_no_callback_there(echo: EchoServer) -> None:
    ran: list[bool] = []
    held: list[Iterator[None]] = []

    def borrow() -> Iterator[None]:
        with other.acquire("/silent"):
            yield

    def collect(frame: Any, event: str, arg: Any) -> None:
        # Within a step: the lock is held.
        if frame.f_code is FastPath.take.__code__ and getattr(arg, "__name__", "") == "popitem":
            sys.setprofile(None)
            held.clear()

    with (
        ConnectionPool(base_uri=echo.uri) as pool,
        ConnectionPool(base_uri=echo.uri, reset=lambda conn: ran.append(True)) as other,
    ):
        pool.acquire("/").release()
        held.append(borrow())
        next(held[0])
        try:
            sys.setprofile(collect)
            pool.acquire("/").release()
        finally:
            sys.setprofile(None)
        assert not held and not ran
        assert other.stats().discards["dropped"] == 1
        take_all(pool)


def test_a_pool_that_is_dropped_closes_itself(echo: EchoServer) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri, name="forgotten")
    for conn in [pool.acquire("/") for _ in range(3)]:
        conn.release()
    del conn
    wait_until(lambda: echo.open_now == 3)
    ref = weakref.ref(pool)
    del pool
    assert ref() is None, "somebody holds the pool: its thread, perhaps"
    wait_until(lambda: echo.open_now == 0)
    wait_until(lambda: not [t for t in threading.enumerate() if "forgotten" in t.name])


@pytest.mark.parametrize("is_struck", [False, True])
def test_a_pool_that_is_dropped_while_it_opens_a_connection_leaves_its_opener_alone(
    raw_server: Callable[..., RawServer], caplog: pytest.LogCaptureFixture, is_struck: bool
) -> None:
    """Also if an exception has struck its `close`, so that what it has is found anew."""
    asked, gone = threading.Event(), threading.Event()

    def mute(sock: socket.socket) -> None:
        while sock.recv(65536):
            asked.set()
        gone.set()

    pool = ConnectionPool[Any](base_uri=raw_server(mute).uri, name="opening")
    while not asked.wait(0.05):  # its thread may not have come to connect while somebody waited
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", timeout=0.05)
    if is_struck:
        state_of(pool).close()
        state_of(pool).condition = TORN
    del pool
    gc.collect()  # the error's traceback
    assert gone.wait(10)
    wait_until(lambda: not [t for t in threading.enumerate() if "opening" in t.name])
    assert "housekeeping failed" not in caplog.text


def test_a_pool_whose_finalizer_was_struck_is_closed_all_the_same(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a signal handler raises in a finalizer ends it, and goes no further."""
    with monkeypatch.context() as struck:
        struck.setattr(Ending, "abandon", lambda _self: None)
        pool = ConnectionPool[Any](base_uri=echo.uri, name="struck")
        pool.acquire("/").release()
        del pool
    wait_until(lambda: echo.open_now == 0)
    wait_until(lambda: not [t for t in threading.enumerate() if "struck" in t.name])


def test_a_dropped_pool_with_a_check_and_callbacks_closes_itself(echo: EchoServer) -> None:
    pool = ConnectionPool[Any](
        ConnectionPoolConfig(health_check_interval=0.2),
        base_uri=echo.uri,
        name="checked",
        configure=lambda conn: conn.request(1),
        check=lambda conn: conn.request(2),
        reset=lambda conn: conn.request(3),
    )
    pool.acquire("/").release()
    wait_until(lambda: echo.messages >= 4)
    ref = weakref.ref(pool)
    del pool
    wait_until(lambda: ref() is None)
    wait_until(lambda: echo.open_now == 0)


def test_a_dropped_pool_lives_while_a_lease_is_out(echo: EchoServer) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri)
    conn = pool.acquire("/")
    del pool
    gc.collect()
    assert conn.request(1, timeout=5) == 1
    conn.release()
    del conn
    wait_until(lambda: echo.open_now == 0)


def test_pool_and_lease_dropped_together_in_a_cycle(echo: EchoServer, warned: list[str]) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri, name="both")
    cycle: list[Any] = [pool, pool.acquire("/")]
    cycle.append(cycle)
    del cycle, pool
    gc.collect()
    wait_until(lambda: echo.open_now == 0)
    wait_until(lambda: not [t for t in threading.enumerate() if "both" in t.name])


@pytest.mark.slow
def test_a_hundred_pools_leave_no_thread_behind(echo: EchoServer) -> None:
    before = threading.active_count()
    for number in range(100):
        pool = ConnectionPool[Any](base_uri=echo.uri, name=f"many-{number}")
        with pool.acquire("/") as conn:
            assert conn.request(number, timeout=5) == number
    del pool, conn
    wait_until(lambda: not [t for t in threading.enumerate() if "jetsocket" in t.name])
    wait_until(lambda: echo.open_now == 0)
    wait_until(lambda: threading.active_count() <= before)


class InterruptedSession:
    """A TLS session; inside one of its calls comes, once, what a finalizer or signal handler does there."""

    def __init__(self, session: Any, call: str, do: Callable[[], object]) -> None:
        self.session, self.call, self.do = session, call, do

    def __getattr__(self, name: str) -> Any:
        if name == self.call:
            self.call = ""
            self.do()
        return getattr(self.session, name)


@pytest.mark.parametrize("case", ["release in read", "release in write", "close in read", "close in write"])
def test_a_return_inside_a_tls_session_does_not_wait_for_itself(
    echo_tls: EchoServer,
    tls: Tls,
    make_pool: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    case: str,
) -> None:
    what, _, call = case.split()
    pool = make_pool(echo_tls, manager_kwargs={"ssl_context": tls.client_context}, max_connections=1)
    outcome: list[Exception] = []

    def borrow() -> None:
        conn = pool.acquire("/")
        stream = conn._entry.wire._stream
        wait_until(lambda: echo_tls.connections)
        echo_tls.connections[0].send("1")  # there is something to look at
        assert stream.wait_readable(monotonic() + 5)
        do = conn.release if what == "release" else pool.close
        stream._tls._session = InterruptedSession(stream._tls._session, call, do)
        try:
            conn.send(2)
            while True:
                conn.recv(timeout=5)
        except (ConnectionClosedError, InvalidStateError) as error:
            outcome.append(error)

    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if "housekeeper" in thread.name:  # it would read what is to be read there
            raise RuntimeError("can't start new thread")
        start(thread)

    worker = threading.Thread(target=borrow, daemon=True)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        worker.start()
        worker.join(10)
    assert not worker.is_alive(), "it waits for itself"
    assert outcome, "it goes on as if nothing had happened"
    if what == "release":
        with pool.acquire("/", timeout=5) as conn:
            assert conn.request(3, timeout=5) == 3
        pool.close()
    wait_until(lambda: echo_tls.open_now == 0)


def test_the_housekeeper_outlives_what_is_collected_inside_its_tls_session(
    echo_tls: EchoServer, tls: Tls, make_pool: Callable[..., Any], warned: list[str]
) -> None:
    pool = make_pool(echo_tls, manager_kwargs={"ssl_context": tls.client_context}, max_connections=1)

    def stream() -> Iterator[Any]:
        with pool.acquire("/") as conn:
            assert conn.request(0, timeout=5) == 0  # the session tickets are read by now
            while True:
                yield conn

    gc.disable()  # not before it is its turn
    try:
        cycle: list[Any] = [stream()]
        session = next(cycle[0])._entry.wire._stream._tls
        session._session = InterruptedSession(session._session, "read", gc.collect)
        cycle.append(cycle)
        del cycle, session
        echo_tls.connections[0].send("1")  # the housekeeper reads it, for nobody else does
        with pool.acquire("/", timeout=5) as conn:
            assert conn.request(3, timeout=5) == 3
    finally:
        gc.enable()
    echo_tls.connections[0].send("unasked")  # it goes on
    wait_until(lambda: echo_tls.open_now == 0)


INSIDE_LOGGING = """
import gc, logging, logging.handlers, queue, sys, threading, time
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.books import state_of
class Interrupted(queue.Queue):
    def _put(self, item):
        gc.collect()                # as may happen at any allocation, with the queue's lock held
        super()._put(item)
class Node: pass
lines = Interrupted()
logging.basicConfig(level=logging.DEBUG, handlers=[logging.handlers.QueueHandler(lines)])
def refuse(conn): raise ZeroDivisionError
config = ConnectionPoolConfig(leak_threshold=0.001, reuse="quiet")
pool = ConnectionPool(config, base_uri=sys.argv[1], name="told", reset=refuse)
def stream():
    with pool.acquire("/") as conn:
        while True: yield conn.request(1)
gc.disable()
for _ in range(3):
    node = Node(); node.me, node.stream = node, stream()
    next(node.stream)
    while not all(permit.warned for permit in state_of(pool).lent): time.sleep(0.001)
    del node
    logging.getLogger("app").info("hello")
while state_of(pool).lent or pool.connections(): time.sleep(0.001)  # what close() cuts is told of otherwise
pool.close()
told = []
def count(what): return sum(what in line for line in told)
while lines.qsize() or count("came back after") < 3 or not count("[told] closed"):  # two threads emit
    told.append(lines.get(timeout=30).getMessage())
for what in ("leaked: ", "came back after", "reset() failed", "not kept: reset failed", "is over: closed by"):
    print(what, count(what))
"""


@pytest.mark.slow
def test_a_lease_that_comes_back_inside_logging_is_told_of_later(echo: EchoServer) -> None:
    ended = scripts.run(INSIDE_LOGGING, echo.uri)
    assert ended.check().out.splitlines() == [
        "leaked:  3",
        "came back after 3",
        "reset() failed 3",
        "not kept: reset failed 3",
        "is over: closed by 3",
    ]
