"""The housekeeper: one thread keeps every connection alive, idle or lent, and tidies up (DESIGN §4.6).

Also tests: `expiry`, `keepalive`, `leaks`.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import select
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

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection, housekeeper
from jetsocket.exceptions import ConnectionClosedError
from jetsocket.housekeeper import Housekeeper
from jetsocket.keepalive import Liveness
from tests.books import faults, state_of
from tests.conftest import Tls
from tests.faults.proxy import FaultProxy
from tests.servers import (
    EchoServer,
    RawServer,
    frame,
    read_client_frame,
    read_request,
    upgrade,
    upgrade_response,
    wait_until,
)
from tests.sizes import size

A_SECOND = 1.0
PING, PONG, CLOSE = 9, 10, 8


@pytest.fixture
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is done, not of how soon."""
    monkeypatch.setattr("jetsocket.housekeeper.TICK", 0.05)


@contextlib.contextmanager
def pool_to(server: EchoServer | RawServer | str, **kwargs: Any) -> Iterator[ConnectionPool[Any]]:
    """A pool for a server; `callbacks` and `manager_kwargs` go to the pool, all else to its config."""
    given = {key: kwargs.pop(key) for key in ("check", "reset", "manager_kwargs", "name") if key in kwargs}
    base = server if isinstance(server, str) else server.uri
    with ConnectionPool(ConnectionPoolConfig(**kwargs), base_uri=base, **given) as pool:
        yield pool


def let_pass(seconds: float) -> None:
    """Time has to go by without anything happening; nothing is waited for."""
    threading.Event().wait(seconds)


def idle(pool: ConnectionPool[Any]) -> int:
    return pool.stats().idle_connections


def make_idle(pool: ConnectionPool[Any], path: str = "/") -> int:
    """One idle connection; its id."""
    with pool.acquire(path) as conn:
        return conn.id


class Peer:
    """A script that echoes, answers pings or not, and notes what it got and when."""

    def __init__(self, *, pong: Callable[[bytes], bytes | None] = lambda payload: payload) -> None:
        self.pong = pong
        self.pings: list[float] = []
        self.closes: list[float] = []

    def __call__(self, sock: socket.socket) -> None:
        upgrade(sock)
        while (got := read_client_frame(sock)).opcode != CLOSE:
            if got.opcode == PING:
                self.pings.append(monotonic())
                answer = self.pong(got.payload)
                if answer is not None:
                    sock.sendall(frame(PONG, answer))
            elif got.opcode != PONG:
                sock.sendall(frame(got.opcode, got.payload))
        self.closes.append(monotonic())
        sock.sendall(frame(CLOSE, got.payload))


class Pinger:
    """A script that pings every `every` s and notes how long each pong took."""

    def __init__(self, every: float = 0.21) -> None:
        self.every = every
        self.took: list[float] = []

    def __call__(self, sock: socket.socket) -> None:
        upgrade(sock)
        number = 0
        while True:
            number += 1
            sent, payload = monotonic(), b"%d" % number
            sock.sendall(frame(PING, payload))
            while (got := read_client_frame(sock)).opcode != PONG or got.payload != payload:
                if got.opcode == CLOSE:
                    sock.sendall(frame(CLOSE, got.payload))
                    return
            self.took.append(monotonic() - sent)
            let_pass(self.every)


# --- keeping alive


@pytest.mark.slow
def test_a_server_that_pings_each_second_keeps_idle_and_lent_connections(
    echo_server: Callable[..., EchoServer], tls: Tls
) -> None:
    strict = {"ping_interval": 1, "ping_timeout": 1.5}
    servers = [echo_server(**strict), echo_server(ssl_context=tls.server_context, **strict)]
    with contextlib.ExitStack() as stack:
        kept = []
        for server in servers:
            pool = stack.enter_context(
                pool_to(server, manager_kwargs={"ssl_context": tls.client_context}, max_connections=2)
            )
            lent = stack.enter_context(pool.acquire("/"))
            kept.append((server, pool, lent, make_idle(pool)))
        let_pass(8.0)
        for server, pool, lent, idle_id in kept:
            assert lent.request({"still": "here"}) == {"still": "here"}
            with pool.acquire("/") as conn:
                assert conn.id == idle_id
                assert conn.request([1]) == [1]
            assert server.opened == 2


@pytest.mark.slow
def test_pings_are_answered_within_a_second_while_the_borrower_computes(
    raw_server: Callable[..., RawServer],
) -> None:
    pinger = Pinger()
    with pool_to(raw_server(pinger)) as pool, pool.acquire("/"):
        until, total = monotonic() + 2, 0
        while monotonic() < until:
            total += sum(range(1000))
        answered = len(pinger.took)
    assert answered >= 2
    assert max(pinger.took) < A_SECOND


@pytest.mark.slow
@pytest.mark.deep
def test_many_idle_connections_are_answered_by_one_thread(
    raw_server: Callable[..., RawServer],
) -> None:
    pinger = Pinger(every=0.5)
    server = raw_server(pinger)
    count = size(100, 300)
    with pool_to(server, max_connections=count, acquire_timeout=20.0) as pool:
        assert pool.prewarm("/", count) == count
        wait_until(lambda: len(pinger.took) >= 2 * count, 15, "each was pinged twice")
        assert idle(pool) == count
        only = [f"jetsocket-housekeeper-{pool.name}"]
        wait_until(lambda: [each.name for each in ours()] == only, 15, "those that opened them have ended")
        assert idle(pool) == count


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_silence_is_ended_by_a_ping_and_traffic_needs_none(raw_server: Callable[..., RawServer]) -> None:
    silent, busy = Peer(), Peer()
    with (
        pool_to(raw_server(silent), health_check_interval=0.4) as quiet_pool,
        pool_to(raw_server(busy), health_check_interval=1.0) as busy_pool,
        quiet_pool.acquire("/lent"),
    ):
        first = make_idle(quiet_pool)
        until = monotonic() + 1.8
        while monotonic() < until:
            assert busy_pool.request("/", 1) == 1
        assert make_idle(quiet_pool) == first
    assert not busy.pings
    assert 4 <= len(silent.pings) <= 10  # two connections, four intervals
    assert all(later - sooner > 0.3 for sooner, later in zip(silent.pings, silent.pings[2:], strict=False))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_what_is_gone_is_not_kept_until_its_ping_would_be_due(echo: EchoServer) -> None:
    with pool_to(echo, max_connections=60, health_check_interval=3600.0) as pool:
        lending: Any = pool._lending
        pool.prewarm("/", 1)
        liveness = lending.housekeeper._liveness
        wires: list[weakref.ref[Any]] = []
        for _ in range(4):
            pool.prewarm("/", 60)
            wait_until(lambda: len(liveness._watched) == 60)  # each has its time when it is looked after
            wires += [weakref.ref(entry.wire) for entry in liveness._watched.values()]
            assert pool.clear() == 60
            wait_until(lambda: not liveness._watched)
        assert len(wires) == 240
        wait_until(lambda: len(liveness._looks) <= 64)
        wait_until(lambda: gc.collect() >= 0 and not any(wire() for wire in wires))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_each_is_pinged_when_its_own_silence_is_long_enough(raw_server: Callable[..., RawServer]) -> None:
    early, late = Peer(), Peer()
    with pool_to("ws://unused.test", health_check_interval=0.5) as pool:
        began = monotonic()
        with pool.acquire(raw_server(early).uri), pool.acquire(raw_server(late).uri) as talking:
            while monotonic() < began + 1.2:
                assert talking.request(1, 5) == 1
                let_pass(0.02)
            assert len(early.pings) in (1, 2)
            assert not late.pings
            wait_until(lambda: late.pings)  # its time has been put off all the while, not forgotten


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_a_housekeeper_that_was_stopped_looks_for_the_pong_before_it_gives_up(
    raw_server: Callable[..., RawServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between listening and judging, as on a busy machine, in a debugger, or by SIGSTOP."""
    stopped, answered = threading.Event(), threading.Event()
    pings: list[bytes] = []

    def pong_when_stopped(sock: socket.socket) -> None:
        upgrade(sock)
        while True:
            pings.append(read_client_frame(sock).payload)
            assert stopped.wait(10)
            sock.sendall(frame(PONG, pings[-1]))
            answered.set()

    keep_alive = Liveness.keep_alive

    def stop_and_go_on(self: Liveness) -> None:
        if not answered.is_set() and any(entry.wire.ping_due_since for entry in self._watched.values()):
            stopped.set()
            assert answered.wait(10)
            let_pass(1.1)
        keep_alive(self)

    monkeypatch.setattr(Liveness, "keep_alive", stop_and_go_on)
    with pool_to(raw_server(pong_when_stopped), health_check_interval=0.1, health_check_timeout=1.0) as pool:
        first = make_idle(pool)
        wait_until(lambda: len(pings) >= 2, 10)
        assert make_idle(pool) == first


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.parametrize("answer", [None, b"something else"], ids=["no pong", "a pong that never matches"])
def test_an_overdue_pong_ends_the_connection_whoever_has_it(
    raw_server: Callable[..., RawServer], answer: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    server = raw_server(Peer(pong=lambda _: answer))
    with pool_to(server, health_check_interval=0.3, health_check_timeout=0.5, reuse="always") as pool:
        with pool.acquire("/") as conn:
            gone = make_idle(pool)
            with pytest.raises(ConnectionClosedError, match=r"health_check_timeout=0\.5 s") as caught:
                conn.recv(timeout=10)
            assert caught.value.code == 1006
            assert not conn.is_connected
        wait_until(lambda: pool.stats().discards.get("pong overdue") == 1)
        assert idle(pool) == 0
        wait_until(lambda: server.open_now == 0, message="the server sees both go")
        # The log line is written last: the borrower is awake by then.
        wait_until(
            lambda: sum("no pong came within" in record.getMessage() for record in caplog.records) == 2
        )
        with pool.acquire("/") as conn:
            assert conn.id not in (gone, gone - 1)
            assert conn.request([1]) == [1]


@pytest.mark.usefixtures("quick_rounds")
def test_an_overdue_pong_is_told_once_however_late_the_borrower_notices(
    raw_server: Callable[..., RawServer], caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> int:
        return sum("no pong came" in record.message for record in caplog.records)

    server = raw_server(Peer(pong=lambda _: None))
    with pool_to(server, health_check_interval=0.2, health_check_timeout=0.2) as pool, pool.acquire("/"):
        wait_until(told)
        let_pass(0.5)  # ten more rounds
        assert told() == 1


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_a_ping_that_waits_for_a_long_message_is_not_overdue(raw_server: Callable[..., RawServer]) -> None:
    class Slow(Peer):
        def __call__(self, sock: socket.socket) -> None:
            upgrade(sock)
            head = sock.recv(14, socket.MSG_WAITALL)
            left = int.from_bytes(head[2:10], "big")
            while left:
                left -= len(sock.recv(min(left, 100_000)))
                let_pass(0.02)
            while (got := read_client_frame(sock)).opcode == PING:  # the caller's, and perhaps a later one
                sock.sendall(frame(PONG, got.payload))
            assert got.opcode == CLOSE

    sent = []

    def send() -> None:
        conn.send(bytes(12 << 20))
        sent.append(True)

    server = raw_server(Slow(), receive_buffer=65536)
    with pool_to(server, health_check_interval=0.5, health_check_timeout=1.5) as pool:
        conn = pool.acquire("/")
        sender = threading.Thread(target=send)
        sender.start()
        wait_until(lambda: pool.stats().bytes_sent > 1 << 16)
        # Two seconds after it was asked for; the kernel's buffer, which still drains then, is another's.
        with contextlib.suppress(ConnectionClosedError):
            conn.ping(timeout=20)
        sender.join(20)
        assert sent
        conn.discard()
        conn.release()


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the kernel does not tell what waits")
def test_a_ping_behind_a_long_message_in_the_kernel_is_not_overdue(
    raw_server: Callable[..., RawServer],
) -> None:
    """The send is over; the server takes what lies in the buffer all the time, for longer than allowed."""

    def slow(sock: socket.socket) -> None:
        upgrade(sock)
        left = int.from_bytes(sock.recv(14, socket.MSG_WAITALL)[2:10], "big")
        while left:
            left -= len(sock.recv(min(left, 16384)))
            let_pass(0.03)
        sock.sendall(frame(1, b'"all of it"'))
        with contextlib.suppress(OSError, EOFError):
            while True:
                got = read_client_frame(sock)
                sock.sendall(frame(PONG if got.opcode == PING else CLOSE, got.payload))

    room = {"socket_options": [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)], "compress": False}
    times = {"health_check_interval": 0.2, "health_check_timeout": 1.5}  # the whole takes 3.8 s and more
    server = raw_server(slow, receive_buffer=16384)
    with pool_to(server, manager_kwargs=room, **times) as pool, pool.acquire("/") as conn:
        conn.send(bytes(2 << 20))
        assert conn.recv(timeout=20) == "all of it"


class Streamer:
    """Sends more than is read ahead; its pongs come behind that.

    Attributes:
        asked: How many pings came.
    """

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, sock: socket.socket) -> None:
        upgrade(sock)
        # More than is read ahead, but the kernel has room for all of it.
        sock.sendall(b"".join(frame(1, b'"%-10000d"' % number) for number in range(200)))
        with contextlib.suppress(OSError, EOFError):
            while True:
                got = read_client_frame(sock)
                self.asked += got.opcode == PING
                sock.sendall(frame(PONG if got.opcode == PING else CLOSE, got.payload))


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.parametrize("borrower", ["computes", "is away"])
def test_a_pong_behind_what_nobody_reads_is_not_overdue(
    raw_server: Callable[..., RawServer], borrower: str
) -> None:
    server = Streamer()
    times = {"health_check_interval": 0.2, "health_check_timeout": 0.3}
    with pool_to(raw_server(server), reuse="always", **times) as pool:
        conn = pool.acquire("/")
        first = conn.id
        assert int(conn.recv(timeout=10)) == 0
        if borrower == "is away":
            conn.release()
        wait_until(lambda: server.asked)
        let_pass(1.0)
        if borrower == "is away":
            conn = pool.acquire("/")
        assert conn.id == first
        for number in range(1, 200):
            assert int(conn.recv(timeout=10)) == number
        asked = server.asked
        wait_until(lambda: server.asked > asked + 1)  # its pong is in time again
        assert conn.is_connected
        conn.release()


@pytest.mark.usefixtures("quick_rounds")
def test_a_slow_pong_in_time_keeps_the_connection(raw_server: Callable[..., RawServer]) -> None:
    def slowly(payload: bytes) -> bytes:
        let_pass(0.4)
        return payload

    peer = Peer(pong=slowly)
    with pool_to(raw_server(peer), health_check_interval=0.2, health_check_timeout=10.0) as pool:
        first = make_idle(pool)
        wait_until(lambda: len(peer.pings) >= 2)
        assert make_idle(pool) == first


def test_a_slow_upgrade_is_left_alone(raw_server: Callable[..., RawServer]) -> None:
    early: list[bytes] = []

    def script(sock: socket.socket) -> None:
        request = read_request(sock)
        if request.target == "/slow":
            head = upgrade_response(request)
            for part in (head[:20], head[20:]):
                sock.settimeout(0.7)
                with contextlib.suppress(TimeoutError):
                    early.append(sock.recv(100))
                sock.sendall(part)
            sock.settimeout(None)
        else:
            sock.sendall(upgrade_response(request))
        Peer.__call__(Echo(), sock)

    class Echo(Peer):
        pass

    def other(pool: ConnectionPool[Any], stop: threading.Event) -> None:
        while not stop.wait(0.1):  # the housekeeper has news of connections all the time
            with pool.acquire("/other") as conn:
                conn.discard()

    def upgraded(sock: socket.socket) -> None:
        script(sock)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.test_housekeeper.upgrade", lambda sock: None)  # the script has done it
        server = raw_server(upgraded)
        with pool_to(server, health_check_interval=0.2, health_check_timeout=0.3) as pool:
            stop = threading.Event()
            thread = threading.Thread(target=other, args=(pool, stop))
            thread.start()
            try:
                with pool.acquire("/slow") as conn:
                    assert conn.request([1]) == [1]
            finally:
                stop.set()
                thread.join(5)
    assert early == []


# --- noticing an end


ENDINGS: dict[str, Callable[[EchoServer, FaultProxy], None]] = {
    "close": lambda server, _: server.close_all(1001),
    "cut": lambda server, _: server.cut_all(),
    "reset": lambda _, proxy: proxy.reset(),
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_an_idle_connection_is_noticed_within_a_second(
    echo: EchoServer, proxy: Callable[..., FaultProxy], ending: str
) -> None:
    between = proxy(echo)
    with pool_to(between.uri() if ending == "reset" else echo, max_connections=3) as pool:
        assert pool.prewarm("/", 3) == 3
        wait_until(lambda: echo.open_now == 3)  # its threads know of them, too
        ENDINGS[ending](echo, between)
        wait_until(lambda: idle(pool) == 0, A_SECOND, f"a {ending} is noticed")
        wait_until(lambda: pool.stats().discards == {"closed": 3})
        assert pool.request("/", [1]) == [1]
        assert pool.stats().total_reconnects == 1


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_end_of_an_idle_connection_is_always_noticed_at_acquire(
    echo: EchoServer, proxy: Callable[..., FaultProxy], ending: str
) -> None:
    between = proxy(echo)
    with pool_to(between.uri() if ending == "reset" else echo) as pool:
        seen = set()
        for number in range(3):
            with pool.acquire("/") as conn:
                assert conn.request([number]) == [number]
                seen.add(conn.id)
            ENDINGS[ending](echo, between)
        assert len(seen) == 3
        assert pool.stats().reuses == 0


@pytest.mark.usefixtures("quick_rounds")
def test_a_half_open_connection_is_found_out_by_its_missing_pong(
    echo: EchoServer, proxy: Callable[..., FaultProxy]
) -> None:
    between = proxy(echo)
    with pool_to(between.uri(), health_check_interval=0.3, health_check_timeout=0.4) as pool:
        with pool.acquire("/") as lent:
            make_idle(pool)
            between.black_hole()
            with pytest.raises(ConnectionClosedError, match="no pong"):
                lent.recv(timeout=10)
            wait_until(lambda: idle(pool) == 0)
        between.resume()
        between.cut()
        assert pool.request("/", [1]) == [1]


@pytest.mark.parametrize("reuse", ["balanced", "quiet"])
def test_a_push_while_idle_ends_the_connection(echo: EchoServer, reuse: str) -> None:
    with pool_to(echo, reuse=reuse) as pool:
        first = make_idle(pool)
        wait_until(lambda: echo.open_now == 1)
        echo.broadcast('"for nobody"')
        wait_until(lambda: idle(pool) == 0, A_SECOND)
        wait_until(lambda: pool.stats().discards == {"unread while idle": 1})
        with pool.acquire("/") as conn:
            assert conn.id != first
            assert conn.request([1]) == [1]


@pytest.mark.usefixtures("quick_rounds")
def test_a_push_while_idle_is_kept_for_the_next_borrower_of_a_stream(echo: EchoServer) -> None:
    with pool_to(echo, reuse="always", health_check_interval=0.2) as pool:
        first = make_idle(pool)
        wait_until(lambda: echo.open_now == 1)
        echo.broadcast('"news"')
        wait_until(lambda: pool.stats().total_messages_received == 1, A_SECOND)
        wait_until(lambda: echo.pings >= 2)  # rounds went by
        with pool.acquire("/") as conn:
            assert conn.id == first
            assert conn.recv(timeout=0) == "news"


# --- times


@pytest.mark.usefixtures("quick_rounds")
def test_an_idle_connection_is_closed_after_max_idle_time(raw_server: Callable[..., RawServer]) -> None:
    peer = Peer()
    server = raw_server(peer)
    with pool_to(server, max_idle_time=0.6) as pool:
        with pool.acquire("/") as kept:
            make_idle(pool)
            came_back = monotonic()
            wait_until(lambda: peer.closes)
            assert peer.closes[0] - came_back >= 0.59
            wait_until(lambda: pool.stats().discards == {"idle": 1})
            assert kept.request([1]) == [1]  # lent ones are not idle
        wait_until(lambda: server.open_now == 0)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_a_stream_that_pushes_while_idle_is_closed_in_time_too(echo: EchoServer) -> None:
    with pool_to(echo, max_idle_time=1.5, reuse="always", max_connections=2) as pool:
        pushed = pool.acquire("/push?every=0.05")
        other = pool.acquire("/")
        pushed.release()
        went_back = monotonic()
        until = went_back + 1.0
        while monotonic() < until:
            other.request(1)
        other.release()  # younger by a second
        wait_until(lambda: idle(pool) == 1, message="the older one is closed")
        assert monotonic() - went_back < 2.4
        assert make_idle(pool) == other.id


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
def test_a_connection_lives_for_max_lifetime_and_is_not_cut_while_lent(echo: EchoServer) -> None:
    with pool_to(echo, max_lifetime=1.0) as pool:
        with pool.acquire("/") as lent:
            first = make_idle(pool)
            wait_until(lambda: idle(pool) == 0, message="the idle one ends")
            let_pass(0.6)
            assert lent.request([1]) == [1]
        assert idle(pool) == 0
        assert pool.stats().discards == {"lifetime": 2}
        assert make_idle(pool) != first
        wait_until(lambda: echo.open_now <= 1)


def test_lifetimes_do_not_all_end_at_once(echo: EchoServer) -> None:
    with pool_to(echo, max_lifetime=1000.0, max_connections=20) as pool:
        pool.prewarm("/", 20)
        left = [entry.expires - monotonic() for entry in state_of(pool).open_entries()]
    assert all(890 < seconds <= 1000 for seconds in left)
    assert max(left) - min(left) > 20


@pytest.mark.usefixtures("quick_rounds")
def test_a_leak_is_told_once_with_its_stack_and_its_return(
    echo: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if "leaked" in record.getMessage()]

    with pool_to(echo, leak_threshold=0.3, name="leaky") as pool:
        with pool.acquire("/"):
            pass
        with pool.acquire("/"):
            wait_until(told)
            let_pass(0.3)  # some more rounds
            assert len(told()) == 1
            assert "[leaky]" in told()[0] and "leak_threshold=0.3 s" in told()[0]
            assert "test_a_leak_is_told_once_with_its_stack_and_its_return" in told()[0]
        wait_until(lambda: len(told()) == 2)
        assert "came back after" in told()[1]


@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.parametrize("end", ["released", "dropped", "cut"])
def test_a_leak_has_a_second_line_with_its_id_however_it_ends(
    echo: EchoServer, caplog: pytest.LogCaptureFixture, end: str
) -> None:
    def told() -> list[str]:
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        return [line for line in lines if f"connection {number} " in line]

    with pool_to(echo, leak_threshold=0.1) as pool, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        pool.acquire("/other").release()
        path = "/feed?token=" + "hidden"[::-1]  # which the stack does not show
        held = [pool.acquire(path)]
        number = held[0].id
        wait_until(told)
        if end == "released":
            held[0].release()
        elif end == "dropped":
            held.clear()
            gc.collect()
        else:
            pool.close()
        wait_until(lambda: len(told()) == 2)
    first, second = told()
    uri = echo.uri_for("/feed?token=***")
    assert f"connection {number} to {uri} leaked" in first
    for record in caplog.records:
        if record.levelno >= logging.WARNING:
            assert vars(record)["jetsocket_connection"] == number
            assert vars(record).get("jetsocket_uri") == (uri if uri in record.getMessage() else None)
    assert "MainThread" in first
    expected = {
        "released": "came back after",
        "dropped": "dropped without release",
        "cut": "the pool is closed",
    }
    assert expected[end] in second
    assert "hidden" not in caplog.text


def test_a_dropped_lease_is_told_with_its_id_uri_and_thread(
    echo: EchoServer, caplog: pytest.LogCaptureFixture
) -> None:
    with (
        pool_to(echo) as pool,
        warnings.catch_warnings(record=True) as warned,
        ThreadPoolExecutor(1, thread_name_prefix="forgetful") as threads,
    ):
        warnings.simplefilter("always", ResourceWarning)
        number = threads.submit(lambda: pool.acquire("/feed?token=secret").id).result(5)
        gc.collect()
        wait_until(lambda: warned)
    told = str(warned[0].message)
    assert f"connection {number} to {echo.uri_for('/feed?token=***')}, acquired by thread forgetful" in told
    assert told in caplog.text
    assert "secret" not in told


# --- the user's check


@pytest.mark.usefixtures("quick_rounds")
def test_a_check_takes_the_place_of_the_ping(echo: EchoServer) -> None:
    asked = []

    def check(conn: Any) -> None:
        asked.append(conn.request(["are you there?"]))

    with pool_to(echo, check=check, health_check_interval=0.3) as pool:
        with pool.acquire("/"):  # never used on a connection that is lent
            first = make_idle(pool)
            wait_until(lambda: len(asked) >= 3)
            assert make_idle(pool) == first
            stats = pool.stats()
            assert (stats.total_messages_sent, stats.total_messages_received) == (0, 0)
        assert echo.pings == 0
        assert pool.request("/", [1]) == [1]


@pytest.mark.usefixtures("quick_rounds")
def test_a_check_that_fails_closes_the_connection(echo: EchoServer, caplog: pytest.LogCaptureFixture) -> None:
    def check(conn: Any) -> None:
        raise LookupError("not what it was")

    with pool_to(echo, check=check, health_check_interval=0.2) as pool:
        make_idle(pool)
        wait_until(lambda: pool.stats().discards == {"check failed": 1})
        wait_until(lambda: echo.open_now == 0)
        wait_until(
            lambda: any("check() failed" in each.getMessage() and each.exc_info for each in caplog.records)
        )
        assert pool.request("/", [1]) == [1]


@pytest.mark.usefixtures("quick_rounds")
def test_a_slow_check_holds_up_nobody_else(
    raw_server: Callable[..., RawServer],
) -> None:
    pinger, go_on, checking = Pinger(), threading.Event(), threading.Event()

    def check(conn: Any) -> None:
        checking.set()
        go_on.wait(10)

    with pool_to(raw_server(pinger), check=check, health_check_interval=0.2) as pool, pool.acquire("/lent"):
        make_idle(pool)
        assert checking.wait(5)
        before = len(pinger.took)
        wait_until(lambda: len(pinger.took) >= before + 4)
        with pool.acquire("/another") as conn:
            assert conn.is_connected
        go_on.set()
        wait_until(lambda: idle(pool) == 2)
    assert max(pinger.took) < A_SECOND


@pytest.mark.usefixtures("quick_rounds")
def test_a_connection_under_check_makes_room(echo: EchoServer) -> None:
    go_on, checking = threading.Event(), threading.Event()

    def check(conn: Any) -> None:
        checking.set()
        go_on.wait(10)

    with pool_to(echo, check=check, health_check_interval=0.2, max_connections=1) as pool:
        make_idle(pool)
        assert checking.wait(5)
        with pool.acquire("/other") as conn:
            assert conn.request([1]) == [1]
            go_on.set()
        wait_until(lambda: idle(pool) == 1)
        assert faults(pool) == []
        assert echo.most_open == 1


@pytest.mark.usefixtures("quick_rounds")
def test_closing_the_pool_ends_a_check_that_is_under_way(echo: EchoServer) -> None:
    ended: list[BaseException] = []
    checking = threading.Event()

    def check(conn: Any) -> None:
        checking.set()
        try:
            conn.recv()
        except Exception as error:
            ended.append(error)
            raise

    with pool_to(echo, check=check, health_check_interval=0.2) as pool:
        make_idle(pool)
        assert checking.wait(5)
    wait_until(lambda: ended)
    assert isinstance(ended[0], ConnectionClosedError)
    wait_until(lambda: echo.open_now == 0)


# --- the thread


def ours() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("jetsocket")]


def housekeepers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("jetsocket-housekeeper")]


def test_one_thread_for_each_pool_from_its_first_connection_to_its_end(echo: EchoServer) -> None:
    with pool_to(echo, name="one") as one, pool_to(echo, name="two") as two:
        assert housekeepers() == []
        one.prewarm("/", 5)
        two.prewarm("/", 1)
        assert sorted(thread.name for thread in housekeepers()) == [
            "jetsocket-housekeeper-one",
            "jetsocket-housekeeper-two",
        ]
        assert all(thread.daemon for thread in housekeepers())
    wait_until(lambda: not housekeepers(), 1)


def test_one_that_was_late_and_was_replaced_ends_with_the_pool(echo: EchoServer) -> None:
    with pool_to(echo) as pool:
        pool.prewarm("/", 1)
        second = Housekeeper(state_of(pool), pool._lending.opening)
        second.start()
        wait_until(lambda: second.runs)
        assert len(housekeepers()) == 2
    wait_until(lambda: not housekeepers(), 2)


@pytest.mark.parametrize("kind", ["jetsocket-opener", "jetsocket"])
def test_without_a_thread_to_be_had_the_borrower_opens_its_own(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    start, opened_by = threading.Thread.start, []

    def refuse(thread: threading.Thread) -> None:
        if thread.name.startswith(kind):
            raise RuntimeError("can't start new thread")
        start(thread)

    def configure(_conn: PooledConnection[Any]) -> None:
        opened_by.append(threading.current_thread())

    with ConnectionPool[Any](
        ConnectionPoolConfig(max_connections=2), base_uri=echo.uri, configure=configure
    ) as pool:
        with monkeypatch.context() as limited:
            limited.setattr(threading.Thread, "start", refuse)
            assert pool.request("/", 1, 5) == 1
            assert pool.prewarm("/other", 1) == 1
            assert set(opened_by) == {threading.current_thread()}
        assert pool.request("/", 2, 5) == 2
        wait_until(housekeepers)
    wait_until(lambda: echo.open_now == 0)


@pytest.mark.usefixtures("quick_rounds")
def test_a_generator_that_is_collected_on_the_housekeepers_thread_holds_up_nobody(echo: EchoServer) -> None:
    ran_on: list[str] = []

    def reset(conn: PooledConnection[Any]) -> None:
        ran_on.append(threading.current_thread().name)
        conn.recv(timeout=5)

    def borrow() -> Iterator[None]:
        with pool.acquire("/silent"):
            yield

    with pool_to(echo, reset=reset) as pool:
        generator = borrow()
        next(generator)
        # It looks at what it takes from here, and lets go of it.
        state_of(pool).doorbell.put(generator)
        del generator
        wait_until(lambda: pool.stats().discards.get("dropped"), A_SECOND)
        assert ran_on == []


@pytest.mark.usefixtures("quick_rounds")
def test_a_chore_that_raises_is_told_once_and_the_thread_goes_on(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rounds = []

    def close_expired(*_: object) -> None:
        rounds.append(monotonic())
        raise LookupError("the broom is gone")

    monkeypatch.setattr(housekeeper, "close_expired", close_expired)
    with pool_to(echo, name="broken") as pool:
        make_idle(pool)
        wait_until(lambda: len(rounds) >= 3 and echo.open_now == 1)
        echo.cut_all()
        wait_until(lambda: idle(pool) == 0, message="the other chores are done")
    errors = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 1
    assert "[broken]" in errors[0].getMessage() and "close_expired: LookupError" in errors[0].getMessage()
    assert errors[0].exc_info is not None


def test_it_works_without_poll(
    raw_server: Callable[..., RawServer], echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pinger = Pinger()
    server = raw_server(pinger)
    monkeypatch.delattr(select, "poll")
    with pool_to(server) as pinged, pool_to(echo, max_connections=3) as pool, pinged.acquire("/"):
        assert pool.prewarm("/", 3) == 3
        with pool.acquire("/") as conn:
            assert conn.request([1]) == [1]
        wait_until(lambda: len(pinger.took) >= 2 and echo.open_now == 3)
        echo.cut_all()
        wait_until(lambda: idle(pool) == 0, A_SECOND)
        assert pool.request("/", [2]) == [2]


# --- peers who send too much


@pytest.mark.slow
def test_pushes_to_a_borrower_who_does_not_read_take_little_memory(
    raw_server: Callable[..., RawServer],
) -> None:
    size, count = 65536, 1600  # 100 MiB
    sent = []

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        for number in range(count):
            sock.sendall(frame(2, number.to_bytes(4, "big") * (size // 4)))
            sent.append(number)
        while read_client_frame(sock).opcode != CLOSE:
            pass

    with pool_to(raw_server(script)) as pool, pool.acquire("/") as conn:
        wait_until(lambda: pool.stats().bytes_received > 1_000_000)
        let_pass(1.6)  # three rounds
        assert pool.stats().bytes_received < 4 << 20
        assert len(sent) < count / 2  # the rest waits on the server's side
        for number in range(count):
            payload = conn.recv_raw(timeout=10)
            assert len(payload) == size and payload[:4] == number.to_bytes(4, "big")
        conn.discard()


@pytest.mark.usefixtures("quick_rounds")
def test_pings_do_not_use_up_the_read_ahead(raw_server: Callable[..., RawServer]) -> None:
    got_last = threading.Event()

    def read_all(sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while read_client_frame(sock).payload != b"last":
                pass
            got_last.set()

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        reader = threading.Thread(target=read_all, args=(sock,))
        reader.start()
        for number in range(15_000):  # 1.8 MB, as if a server had pinged every few seconds for days
            sock.sendall(frame(PING, b"%0120d" % number))
        sock.sendall(frame(PING, b"last"))
        reader.join()

    with pool_to(raw_server(script)) as pool, pool.acquire("/"):
        assert got_last.wait(15)


@pytest.mark.slow
def test_a_flood_of_pings_is_answered_at_a_bounded_rate_and_starves_nobody(
    raw_server: Callable[..., RawServer],
) -> None:
    stop, pongs, sent = threading.Event(), [], []
    pinger = Pinger()

    def read_all(sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                pongs.append(read_client_frame(sock).opcode)

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        reader = threading.Thread(target=read_all, args=(sock,))
        reader.start()
        batch = frame(PING, b"x" * 10) * 500
        with contextlib.suppress(OSError):
            while not stop.is_set():
                sock.sendall(batch)
                sent.append(500)
        reader.join()

    flooding, calm = raw_server(script), raw_server(pinger)
    soon = {"close_timeout": 0.2}  # the flood will not hear a goodbye
    with pool_to(flooding, max_connections=2, manager_kwargs=soon) as pool, pool.acquire("/"):
        with pool.acquire(calm.uri):
            wait_until(lambda: len(pinger.took) >= 3, 10)
        stop.set()
        assert 0 < pongs.count(PONG) <= sum(sent) / 20
    assert max(pinger.took) < 2 * A_SECOND  # the flood is made in this process, and takes most of its time
