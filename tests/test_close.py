"""close() is prompt: whoever waits, what is idle, lent or connecting, from any thread (DESIGN §4.7).

Also tests: `shutdown`, `parallel_close`.
"""

from __future__ import annotations

import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionInfo,
    ConnectionPool,
    ConnectionPoolConfig,
    InvalidStateError,
    PoolClosedError,
    PooledConnection,
)
from jetsocket.events import Listener
from tests.awake import awake
from tests.books import state_of
from tests.faults.proxy import FaultProxy
from tests.servers import (
    EchoServer,
    RawServer,
    after_upgrade,
    hold,
    wait_until,
)

PROMPT = 0.05  # s, by the promise


def pool_for(uri: str, size: int = 4, **kwargs: Any) -> ConnectionPool[Any]:
    return ConnectionPool(
        ConnectionPoolConfig(max_connections=size, acquire_timeout=20), base_uri=uri, **kwargs
    )


def in_thread(work: Callable[[], Any]) -> Future[tuple[Any, float]]:
    """Run it in a daemon thread: the result is what it returned or raised, and when."""
    future: Future[tuple[Any, float]] = Future()

    def run() -> None:
        try:
            outcome = work()
        except BaseException as error:
            outcome = error
        future.set_result((outcome, awake()))

    threading.Thread(target=run, daemon=True).start()
    return future


def test_all_who_wait_are_told_within_50_ms(echo: EchoServer) -> None:
    pool = pool_for(echo.uri, 2)
    held = [pool.acquire("/") for _ in range(2)]
    waiters = [in_thread(lambda: pool.acquire("/")) for _ in range(5)]
    wait_until(lambda: pool.stats().waiting == 5)
    start = awake()
    pool.close()
    outcomes = [waiter.result(5) for waiter in waiters]
    assert [type(outcome) for outcome, _ in outcomes] == [PoolClosedError] * 5
    assert max(at for _, at in outcomes) - start < PROMPT
    assert len(held) == 2


@pytest.mark.parametrize("size", [1, 8])
def test_servers_that_never_answer_the_close_cost_one_close_timeout_together(size: int) -> None:
    with RawServer(after_upgrade()) as server:
        pool = pool_for(server.uri, size, manager_kwargs={"close_timeout": 0.5})
        for conn in [pool.acquire("/") for _ in range(size)]:
            conn.release()
        del conn
        assert pool.stats().idle_connections == size
        start = awake()
        pool.close()
        assert awake() - start < 1.0
        wait_until(lambda: server.open_now == 0)


def test_an_interrupted_close_leaves_nothing_open() -> None:
    with RawServer(after_upgrade()) as server:
        pool = pool_for(server.uri)
        pool.acquire("/").release()
        timer = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.close(timeout=20)
        timer.join()
        wait_until(lambda: server.open_now == 0)


def test_the_timeout_given_to_close_wins() -> None:
    with RawServer(after_upgrade()) as server:
        pool = pool_for(server.uri, manager_kwargs={"close_timeout": 30.0})
        pool.acquire("/").release()
        start = awake()
        pool.close(timeout=0.2)
        assert awake() - start < 0.7


def test_idle_ones_say_goodbye_with_1001() -> None:
    codes: list[int | None] = []

    def note(conn: Any) -> None:
        for message in conn:
            conn.send(message)
        codes.append(conn.close_code)

    with EchoServer(note) as server:
        pool = pool_for(server.uri)
        for conn in [pool.acquire("/") for _ in range(3)]:
            conn.release()
        pool.close()
        wait_until(lambda: len(codes) == 3)
    assert codes == [1001] * 3


def test_a_blocked_recv_wakes_at_once(echo: EchoServer) -> None:
    pool = pool_for(echo.uri)
    conn = pool.acquire("/")
    assert conn.request(1) == 1
    reader = in_thread(conn.recv)
    wait_until(lambda: conn._entry is not None and conn._entry.wire.readlock.locked())
    start = awake()
    pool.close()
    outcome, at = reader.result(5)
    assert isinstance(outcome, ConnectionClosedError)
    assert at - start < 0.2
    wait_until(lambda: echo.open_now == 0)
    conn.release()
    assert pool.stats().active_connections == 0


def test_a_blocked_send_wakes_at_once() -> None:
    stop = threading.Event()

    def never_read(sock: socket.socket) -> None:
        after_upgrade(then=lambda _: stop.wait(20) and None)(sock)

    with RawServer(never_read) as server:
        pool = pool_for(server.uri)
        conn = pool.acquire("/")
        sender = in_thread(lambda: [conn.send(b"x" * (1 << 20)) for _ in range(64)])
        wait_until(lambda: conn._entry is not None and conn._entry.wire.lock.locked())
        start = awake()
        pool.close()
        outcome, at = sender.result(5)
        stop.set()
    assert isinstance(outcome, ConnectionClosedError)
    assert at - start < 0.5


@pytest.mark.parametrize("asking", [lambda pool: pool.acquire("/"), lambda pool: pool.prewarm("/", 1)])
def test_whoever_waits_for_the_upgrade_is_told_at_once(asking: Callable[[ConnectionPool[Any]], Any]) -> None:
    with RawServer(hold) as server:
        pool = pool_for(server.uri)
        dialling = [in_thread(lambda: asking(pool)) for _ in range(3)]
        wait_until(lambda: server.accepted)
        start = awake()
        pool.close()
        outcomes = [each.result(5) for each in dialling]
        assert [type(outcome) for outcome, _ in outcomes] == [PoolClosedError] * 3
        assert max(at for _, at in outcomes) - start < 0.5
        wait_until(lambda: server.open_now == 0)


def test_whoever_waits_for_dns_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hang(*_: Any, **__: Any) -> Any:
        asked.set()
        answer.wait(20)
        raise socket.gaierror(socket.EAI_FAIL, "too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    try:
        pool = pool_for("ws://nowhere.invalid")
        dialling = in_thread(lambda: pool.acquire("/"))
        assert asked.wait(5)
        start = awake()
        pool.close()
        outcome, at = dialling.result(5)
    finally:
        answer.set()
    assert isinstance(outcome, PoolClosedError)
    assert at - start < 0.5
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "jetsocket-dns"])


def test_whoever_waits_for_the_next_attempt_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    pool = pool_for(f"ws://127.0.0.1:{port}", manager_kwargs={"connect_attempts": 50})
    dialling = in_thread(lambda: pool.acquire("/"))
    wait_until(lambda: pool.stats().connect_errors >= 4)
    start = awake()
    pool.close()
    outcome, at = dialling.result(5)
    assert isinstance(outcome, PoolClosedError)
    assert at - start < 0.5


def test_a_drain_that_close_breaks_off_has_failed(echo: EchoServer) -> None:
    for _ in range(10):
        pool = pool_for(echo.uri)
        conn = pool.acquire("/")
        draining = in_thread(pool.drain)
        wait_until(lambda pool=pool: state_of(pool)._drain_waiters)
        pool.close()
        assert draining.result(5)[0] is False
        conn.release()
        assert pool.drain(0)  # nothing is out any more


def test_a_drain_before_close_has_succeeded(echo: EchoServer) -> None:
    pool = pool_for(echo.uri)
    pool.acquire("/").release()
    assert pool.drain(0)
    pool.close()
    assert pool.drain(0)


def test_drain_turns_away_those_for_whom_one_is_being_opened(raw_server: Callable[..., RawServer]) -> None:
    server = raw_server(hold)
    pool = pool_for(server.uri)
    acquiring = in_thread(lambda: pool.acquire("/"))
    wait_until(lambda: server.accepted)
    start = awake()
    assert pool.drain(0)
    outcome, at = acquiring.result(5)
    assert isinstance(outcome, PoolClosedError)
    assert at - start < 0.5
    pool.close(0)
    wait_until(lambda: server.open_now == 0)


def test_closing_twice_does_nothing_more(echo: EchoServer) -> None:
    pool = pool_for(echo.uri)
    pool.acquire("/").release()
    pool.close()
    pool.close()
    assert pool.is_closed
    with pytest.raises(PoolClosedError, match="closed"):
        pool.acquire("/")
    with pytest.raises(PoolClosedError):
        pool.acquire("/", timeout=0)
    with pytest.raises(PoolClosedError):
        pool.prewarm("/", 1)
    assert pool.stats().idle_connections == 0


def test_a_pool_that_was_never_used_closes() -> None:
    pool = pool_for("ws://127.0.0.1:1")
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.acquire("/")


def test_eight_threads_close_at_once(echo: EchoServer) -> None:
    for _ in range(10):
        pool = pool_for(echo.uri)
        held = [pool.acquire("/") for _ in range(4)]
        for conn in held[:2]:
            conn.release()
        together = threading.Barrier(8)

        def close(pool: ConnectionPool[Any] = pool, together: threading.Barrier = together) -> None:
            together.wait(5)
            pool.close()

        with ThreadPoolExecutor(8) as threads:
            closing = [threads.submit(close) for _ in range(8)]
            for each in closing:
                each.result(10)
        wait_until(lambda: echo.open_now == 0)
        for conn in held:
            conn.release()


def test_a_borrower_may_close_the_pool(echo: EchoServer) -> None:
    pool = pool_for(echo.uri)
    start = awake()
    with pool.acquire("/") as conn:
        assert conn.request(1) == 1
        pool.close()
        with pytest.raises((ConnectionClosedError, InvalidStateError)):
            conn.request(2)
    assert awake() - start < 2
    wait_until(lambda: echo.open_now == 0)
    assert pool.stats().active_connections == 0


def test_configure_may_close_the_pool(echo: EchoServer) -> None:
    def configure(conn: PooledConnection[Any]) -> None:
        pool.close()

    pool = pool_for(echo.uri, configure=configure)
    with pytest.raises(PoolClosedError):
        pool.acquire("/")
    wait_until(lambda: echo.open_now == 0)


@pytest.mark.parametrize("callback", ["reset", "check"])
def test_other_callbacks_may_close_the_pool(echo: EchoServer, callback: str) -> None:
    called = threading.Event()

    def close(conn: PooledConnection[Any]) -> None:
        pool.close()
        called.set()

    config = ConnectionPoolConfig(max_connections=2, health_check_interval=0.2)
    pool = ConnectionPool[Any](config, base_uri=echo.uri, **{callback: close})
    pool.acquire("/").release()
    assert called.wait(5)
    wait_until(lambda: echo.open_now == 0)
    with pytest.raises(PoolClosedError):
        pool.acquire("/")


def test_closing_among_busy_borrowers_leaves_nothing_open(echo: EchoServer) -> None:
    for _ in range(5):
        pool = pool_for(echo.uri)
        surprises: list[BaseException] = []

        def work(pool: ConnectionPool[Any] = pool, surprises: list[BaseException] = surprises) -> None:
            try:
                while True:
                    with pool.acquire("/") as conn:
                        conn.request(1, timeout=5)
            except (PoolClosedError, ConnectionClosedError):
                pass
            except BaseException as error:
                surprises.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_until(lambda pool=pool: pool.stats().total_messages_received > 100)  # type: ignore[misc]
        pool.close()
        for thread in threads:
            thread.join(5)
            assert not thread.is_alive()
        assert surprises == []
        wait_until(lambda: echo.open_now == 0)
        assert (pool.stats().active_connections, pool.stats().idle_connections) == (0, 0)
        with pytest.raises(PoolClosedError):
            pool.acquire("/")


@pytest.mark.slow
def test_what_is_closed_to_make_room_is_cut_and_whoever_waits_for_that_is_told_at_once(
    echo: EchoServer, proxy: Callable[..., FaultProxy]
) -> None:
    through = proxy(echo)
    pool = pool_for(through.uri(), 1)
    pool.acquire("/first").release()
    through.stall()  # its goodbye is not answered
    waiter = in_thread(lambda: pool.acquire("/second"))
    [room] = wait_until(lambda: [*state_of(pool).closing])
    start = awake()
    pool.close()
    assert room.wire.fileno() == -1
    outcome, at = waiter.result(5)
    assert isinstance(outcome, PoolClosedError)
    assert at - start < 0.5  # the goodbye had 1 s


def test_leaving_the_with_block_closes(echo: EchoServer) -> None:
    with pool_for(echo.uri) as pool:
        conn = pool.acquire("/")
        pool.acquire("/").release()
    assert pool.is_closed
    wait_until(lambda: echo.open_now == 0)
    conn.release()
    conn.release()


def test_the_thread_ends_with_the_pool(echo: EchoServer) -> None:
    pool = pool_for(echo.uri, name="ending")
    pool.acquire("/").release()
    assert [t for t in threading.enumerate() if "ending" in t.name]
    pool.close()
    wait_until(lambda: not [t for t in threading.enumerate() if "ending" in t.name], 1.0)


class Hanging(Listener, logging.Handler):
    """Hangs in what it is told, as a listener or a log handler, until it may go on."""

    def __init__(self) -> None:
        logging.Handler.__init__(self, logging.WARNING)
        self.entered, self.may_go_on = threading.Event(), threading.Event()
        self.told: list[Any] = []

    def closed(self, info: ConnectionInfo, reason: str) -> None:
        self.hang(info.id)

    def emit(self, record: logging.LogRecord) -> None:
        self.hang(record.getMessage())

    def hang(self, what: Any) -> None:
        self.entered.set()
        assert self.may_go_on.wait(60)
        self.told.append(what)


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging()
    yield hanging
    hanging.may_go_on.set()


@pytest.mark.slow
def test_a_listener_that_hangs_holds_no_close_up(
    echo: EchoServer, make_pool: Callable[..., Any], hanging: Hanging
) -> None:
    pool = make_pool(echo)
    pool.listen(hanging)
    ids = []
    for path in ("/one", "/two"):
        with pool.acquire(path) as conn:
            ids.append(conn.id)
    pool.clear("/one")
    assert hanging.entered.wait(10)
    assert in_thread(lambda: pool.close(1.0)).result(20)[0] is None
    hanging.may_go_on.set()
    wait_until(lambda: hanging.told == ids)  # and nothing is lost


@pytest.mark.slow
def test_a_log_handler_that_hangs_holds_no_close_up(
    echo: EchoServer, make_pool: Callable[..., Any], hanging: Hanging
) -> None:
    pool = make_pool(echo, leak_threshold=0.1)
    logger = logging.getLogger("jetsocket.pool")
    logger.addHandler(hanging)
    try:
        conn = pool.acquire("/")
        assert hanging.entered.wait(10)  # it has leaked
        assert in_thread(lambda: pool.close(1.0)).result(20)[0] is None
    finally:
        hanging.may_go_on.set()
        wait_until(lambda: len(hanging.told) == 2)
        logger.removeHandler(hanging)
    assert "was cut" in hanging.told[1]
    conn.release()


def test_leases_that_outlive_the_pool_hold_nothing(echo: EchoServer, make_pool: Callable[..., Any]) -> None:
    pool = make_pool(echo, max_connections=2)
    released, dropped = pool.acquire("/"), pool.acquire("/")
    pool.close()
    assert pool.stats().active_connections == 0
    assert pool.drain(timeout=5)
    with pytest.raises(ConnectionClosedError, match="the pool was closed"):
        released.recv(timeout=5)
    released.release()
    with pytest.raises(InvalidStateError, match="was released"):
        released.send("too late")
    del dropped
