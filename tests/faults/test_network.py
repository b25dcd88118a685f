"""What networks do to a pool: whatever happens, the named error in time, and the pool as good as before.

The wire's own tests have many of these faults one by one. Here it is what the borrower gets, and what the
pool has afterwards: every permit, no socket too many, books in order.
"""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    HandshakeError,
    JetSocketError,
    PoolExhaustedError,
    TimeoutError,
)
from tests import servers
from tests.books import faults
from tests.conftest import Tls
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, close_frame, frame, wait_until

Pool = ConnectionPool[Any]
Strike = Callable[[FaultProxy], None]

SIZE = 2  # connections of the pools here
SOON = 0.2  # s: deadlines of what is to run out
DIAL_SOON = {"connect_timeout": 1.0}  # s: where the dial is to run out of time, not the caller
ENOUGH = 10.0  # s: deadlines of what is to succeed, on a busy machine too
LATE = 5.0  # s, far beyond any deadline that is to run out
TEXT, CLOSE = 1, 8
LOST = {"ConnectionError", "ConnectionClosedError", "HandshakeError", "TimeoutError"}
SMALL = 1 << 16  # B, of a socket's buffer
BIG = bytes(8 << 20)  # more than all buffers on the way hold, if they are small

FAULTS: dict[str, Strike] = {
    "stall": lambda proxy: proxy.stall(),
    "drip": lambda proxy: proxy.drip(1, 0.05),
    "black hole": lambda proxy: proxy.black_hole(),
    "cut": lambda proxy: proxy.cut(),
    "reset": lambda proxy: proxy.reset(),
    "half-close": lambda proxy: proxy.half_close("down"),
}
SILENT = {"stall", "drip", "black hole"}  # nobody is told: only a deadline helps
MOST_OF = [("ws", fault) for fault in FAULTS]
ALL_OF = [(scheme, fault) for scheme in ("ws", "wss") for fault in FAULTS]
# The proxy's black hole takes all there is, unlike a real one; tests/integration/test_namespaces.py has that.
SENDING = [(scheme, fault) for scheme, fault in ALL_OF if fault != "black hole"]


class Struck(RawServer):
    """Echoes; at the first connection that gets to `stage`, the network is struck by `strike`.

    It goes on after that as if nothing had happened.
    """

    def __init__(self, stage: str, strike: Strike, **options: Any) -> None:
        super().__init__(self._serve, **options)
        self.stage = stage
        self.strike = strike
        self.proxy: FaultProxy | None = None
        self.struck = threading.Event()
        self.over = threading.Event()  # whoever does not read may go home

    def _reach(self, stage: str) -> None:
        if stage == self.stage and not self.struck.is_set():
            assert self.proxy is not None
            self.strike(self.proxy)
            self.struck.set()

    def _say(self, sock: socket.socket, data: bytes, stage: str) -> None:
        """Send this, the `stage` being reached when half of it has got through."""
        half = len(data) // 2
        assert self.proxy is not None
        before = self.proxy.bytes_down
        sock.sendall(data[:half])
        if stage == self.stage and not self.struck.is_set():
            wait_until(lambda: self.proxy.bytes_down >= before + half)  # type: ignore[union-attr]
            self._reach(stage)
        sock.sendall(data[half:])

    def _serve(self, sock: socket.socket) -> None:
        if self.stage == "TLS handshake" and not self.struck.is_set():
            sock.recv(65536)  # its hello
            self._reach("TLS handshake")
            return servers.hold(sock)
        request = servers.read_request(sock)
        self._reach("upgrade")
        self._say(sock, servers.upgrade_response(request), "half a head")
        if self.stage == "sending" and not self.struck.is_set():
            servers.read_exactly(sock, 200_000)
            self._reach("sending")
            self.over.wait(2 * LATE)
            return None
        return self._echo(sock)

    def _echo(self, sock: socket.socket) -> None:
        while (got := servers.read_client_frame(sock)).opcode != CLOSE:
            if got.opcode in (1, 2, 9):
                self._say(sock, frame(10 if got.opcode == 9 else got.opcode, got.payload), "half a frame")
        self._reach("closing")
        sock.sendall(frame(CLOSE, got.payload))


class Scene(NamedTuple):
    """A server, the network before it, and a pool."""

    server: Struck
    proxy: FaultProxy
    pool: Pool


def check_whole(pool: Pool, uri: str) -> None:
    """As many leases as there may be at once, each answered; nothing is out after it."""
    size = pool.config.max_connections
    with contextlib.ExitStack() as stack:
        leases = [stack.enter_context(pool.acquire(uri, timeout=ENOUGH)) for _ in range(size)]
        for number, lease in enumerate(leases):
            assert lease.request({"id": number}, ENOUGH)["id"] == number
        assert len({lease.id for lease in leases}) == size
        with pytest.raises(PoolExhaustedError):
            pool.acquire(uri, timeout=0)
    stats = pool.stats()
    assert (stats.active_connections, stats.idle_connections, stats.waiting) == (0, size, 0)
    assert faults(pool) == []


@contextlib.contextmanager
def scene(
    stage: str, fault: str, scheme: str, tls: Tls, *, options: dict[str, Any] | None = None, **config: Any
) -> Iterator[Scene]:
    """A pool on a network that is struck by `fault` when a connection gets to `stage`."""
    secure = scheme == "wss"
    context = tls.server_context if secure and stage != "TLS handshake" else None
    kwargs = {
        "close_timeout": SOON,
        "ssl_context": tls.client_context,
        "socket_options": [(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)],
        **(options or {}),
    }
    with (
        Struck(stage, FAULTS[fault], ssl_context=context) as server,
        FaultProxy(server.host, server.port, scheme=scheme) as proxy,
    ):
        server.proxy = proxy
        for listener in (server._listener, proxy._listener):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)  # of what it accepts, too
        before = servers.open_sockets()
        with ConnectionPool(
            ConnectionPoolConfig(max_connections=SIZE, **config),
            base_uri=proxy.uri("/"),
            manager_kwargs=kwargs,
        ) as pool:
            yield Scene(server, proxy, pool)
            server.stage = "never"  # it may not have come to it in time
            server.over.set()
            calm(proxy)
            if stage != "TLS handshake":  # else the server does not speak TLS at all
                check_whole(pool, "/")
            assert faults(pool) == []
        calm(proxy)
        wait_until(lambda: server.open_now == 0, message="the server's connections end")
        wait_until(lambda: servers.open_sockets() <= before, message="no socket is left")


def calm(proxy: FaultProxy) -> None:
    """The storm is over; what lost bytes in it never comes back."""
    proxy.cut()
    proxy.resume()


@contextlib.contextmanager
def raises_soon(kind: type[BaseException] | tuple[type[BaseException], ...], where: str) -> Iterator[Any]:
    """The block fails with this named error, in time, and the message says where."""
    start = monotonic()
    with pytest.raises(kind) as caught:
        yield caught
    assert monotonic() - start < LATE
    assert where in str(caught.value)


@pytest.fixture
def quick_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is done, not of how soon."""
    monkeypatch.setattr("jetsocket.housekeeper.TICK", 0.05)


# --- at each stage of a connection's life


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["upgrade", "half a head"])
@pytest.mark.parametrize(("scheme", "fault"), MOST_OF)
def test_while_a_connection_is_being_opened(stage: str, scheme: str, fault: str, tls: Tls) -> None:
    with scene(stage, fault, scheme, tls, options=DIAL_SOON if fault in SILENT else {}) as struck:
        expected = (TimeoutError,) if fault in SILENT else (ConnectionError, HandshakeError)
        with raises_soon(expected, struck.proxy.uri("/")) as caught:
            struck.pool.acquire("/", timeout=ENOUGH)
        if fault in SILENT:
            assert caught.value.operation == "connect"
        assert struck.pool.stats().connect_errors == 1


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_in_the_tls_handshake(fault: str, tls: Tls) -> None:
    with scene("TLS handshake", fault, "wss", tls, options=DIAL_SOON if fault in SILENT else {}) as struck:
        expected = TimeoutError if fault in SILENT else ConnectionError
        for _ in range(2):
            with raises_soon(expected, struck.proxy.uri("/")) as caught:
                struck.pool.acquire("/", timeout=ENOUGH)
            assert "TLS handshake" in str(caught.value)
            assert struck.server.struck.wait(LATE)
            struck.server.struck.clear()
            calm(struck.proxy)
        assert struck.pool.stats().active_connections == 0


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "fault"), ALL_OF)
def test_in_the_middle_of_a_frame_that_is_waited_for(scheme: str, fault: str, tls: Tls) -> None:
    with (
        scene("half a frame", fault, scheme, tls) as struck,
        struck.pool.acquire("/", timeout=ENOUGH) as conn,
    ):
        with raises_soon((TimeoutError, ConnectionClosedError), struck.proxy.uri("/")) as caught:
            conn.request({"pad": "x" * 500}, SOON if fault in SILENT else ENOUGH)
        if fault in SILENT:
            assert (caught.type, caught.value.operation) == (TimeoutError, "recv")
        else:
            assert (caught.type, caught.value.code) == (ConnectionClosedError, 1006)
            assert not conn.is_connected


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.parametrize(("scheme", "fault"), SENDING)
def test_in_the_middle_of_a_message_that_is_being_sent(scheme: str, fault: str, tls: Tls) -> None:
    limit = SOON if fault in SILENT else ENOUGH
    with (
        scene("sending", fault, scheme, tls, options={"send_timeout": limit}) as struck,
        struck.pool.acquire("/", timeout=ENOUGH) as conn,
    ):
        with raises_soon((TimeoutError, ConnectionClosedError), struck.proxy.uri("/")) as caught:
            conn.send(BIG)
        if fault in SILENT:
            assert (caught.type, caught.value.operation) == (TimeoutError, "send")
        # Half of it is out: the connection is over for good.
        for again in (lambda: conn.send("more"), lambda: conn.recv_raw(LATE)):
            with raises_soon(ConnectionClosedError, struck.proxy.uri("/")):
                again()


@pytest.mark.parametrize(("scheme", "fault"), MOST_OF)
def test_while_saying_goodbye(scheme: str, fault: str, tls: Tls) -> None:
    with scene("closing", fault, scheme, tls) as struck:
        start = monotonic()
        with struck.pool.acquire("/", timeout=ENOUGH) as conn:
            assert conn.request([1], ENOUGH) == [1]
            conn.discard()
        assert monotonic() - start < LATE
        assert struck.server.struck.wait(LATE)
        assert struck.pool.stats().discards == {"discarded": 1}


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_closing_the_pool_while_the_network_fails(fault: str, tls: Tls) -> None:
    with Struck("closing", FAULTS[fault]) as server, FaultProxy(server.host, server.port) as proxy:
        server.proxy = proxy
        before = servers.open_sockets()
        pool: Pool = ConnectionPool(base_uri=proxy.uri("/"), manager_kwargs={"close_timeout": SOON})
        check_whole(pool, "/")
        start = monotonic()
        pool.close()
        assert monotonic() - start < LATE
        calm(proxy)
        wait_until(lambda: servers.open_sockets() <= before, message="no socket is left")


# --- idle connections


@pytest.mark.parametrize("fault", ["cut", "reset", "half-close"])
def test_the_end_of_an_idle_connection_costs_the_next_borrower_nothing(fault: str, tls: Tls) -> None:
    with scene("never", fault, "wss", tls) as struck:
        assert struck.pool.prewarm("/", SIZE) == SIZE
        FAULTS[fault](struck.proxy)
        for number in range(3):
            assert struck.pool.request("/", [number], timeout=ENOUGH) == [number]
        wait_until(lambda: struck.pool.stats().discards["closed"] == SIZE, LATE)


@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.parametrize("fault", ["stall", "black hole"])
def test_an_idle_connection_that_went_silent_is_found_by_its_missing_pong(fault: str, tls: Tls) -> None:
    with scene("never", fault, "ws", tls, health_check_interval=0.2, health_check_timeout=0.2) as struck:
        assert struck.pool.prewarm("/", SIZE) == SIZE
        FAULTS[fault](struck.proxy)
        wait_until(lambda: struck.pool.stats().discards == {"pong overdue": SIZE}, LATE)
        assert struck.pool.stats().idle_connections == 0


@pytest.mark.slow
@pytest.mark.usefixtures("quick_rounds")
@pytest.mark.parametrize(("scheme", "fault"), SENDING)
def test_blocked_readers_and_writers_without_a_deadline(scheme: str, fault: str, tls: Tls) -> None:
    """Nobody gave them a time: what the kernel says, or else a health check, has to end them all the same."""
    interval = 0.2 if fault in SILENT else 60
    with (
        scene(
            "sending", fault, scheme, tls, health_check_interval=interval, health_check_timeout=0.4
        ) as struck,
        struck.pool.acquire("/", timeout=ENOUGH) as conn,
    ):
        errors = at_once(conn.recv_raw, lambda: conn.send(BIG))
        assert [type(error) for error in errors] == [ConnectionClosedError] * 2


@pytest.mark.usefixtures("quick_rounds")
def test_a_half_close_ends_a_writer_who_has_all_the_time(raw_server: Callable[..., RawServer]) -> None:
    """The server has said that nothing will come, and takes nothing: whoever sends must not wait for ever."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        servers.read_exactly(sock, 200_000)
        sock.shutdown(socket.SHUT_WR)
        over.wait(LATE + 5)

    server = raw_server(script, receive_buffer=SMALL)
    options = {"socket_options": [(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)]}
    pool: Pool = ConnectionPool(base_uri=server.uri, manager_kwargs=options)
    with pool, pool.acquire("/") as conn:
        try:
            (error,) = at_once(lambda: conn.send(BIG))
        finally:
            over.set()
        assert isinstance(error, ConnectionClosedError)
        assert "without a close frame" in str(error)


def test_a_send_that_broke_off_wakes_whoever_reads(raw_server: Callable[..., RawServer]) -> None:
    """Half a frame is out: the connection is over, though the server is alive and silent."""
    over = threading.Event()

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        over.wait(LATE + 5)

    server = raw_server(script, receive_buffer=SMALL)
    options = {"socket_options": [(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL)], "send_timeout": SOON}
    pool: Pool = ConnectionPool(base_uri=server.uri, manager_kwargs=options)
    with pool, pool.acquire("/") as conn:
        try:
            reader, writer = at_once(conn.recv_raw, lambda: conn.send(BIG))
        finally:
            over.set()
        assert isinstance(writer, TimeoutError)
        assert isinstance(reader, ConnectionClosedError)
        assert "half-way" in str(reader)


def at_once(*works: Callable[[], object], within: float = LATE) -> list[BaseException | None]:
    """Do these side by side; what each raised, in order. Fails if one is not over in time."""
    errors: list[BaseException | None] = [None] * len(works)

    def do(index: int) -> None:
        try:
            works[index]()
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=do, args=(index,), daemon=True) for index in range(len(works))]
    for thread in threads:
        thread.start()
    deadline = monotonic() + within
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    assert [thread.is_alive() for thread in threads] == [False] * len(works), "somebody still waits"
    return errors


# --- ends that come in another order than usual


ORDERS: dict[str, tuple[bytes, bool]] = {  # what the server says at once, and whether a reset follows
    "a close and the end": (close_frame(1011, b"because"), False),
    "a close and a reset": (close_frame(1011, b"because"), True),
    "data behind the close": (close_frame(1011, b"because") + frame(TEXT, b"foreign") * 3, False),
    "a second close": (close_frame(1011, b"because") + close_frame(1000, b"no"), False),
    "garbage behind the close": (close_frame(1011, b"because") + b"\xff" * 100, False),
    "a ping, then the close": (frame(9, b"late") + close_frame(1011, b"because"), False),
}


def ends_with(last: bytes, with_reset: bool, before: bytes = b"") -> Callable[[socket.socket], None]:
    """A server that echoes on /good; elsewhere it ends like this at the first message, in one segment."""

    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        sock.sendall(servers.upgrade_response(request))
        while (got := servers.read_client_frame(sock)).opcode != CLOSE:
            if request.target == "/good":
                sock.sendall(frame(got.opcode, got.payload))
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
            sock.sendall(before + last)
            if with_reset:
                return servers.reset(sock)
            return None  # and the end of the stream with it
        sock.sendall(frame(CLOSE, got.payload))
        return None

    return script


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_close_says_its_code_however_it_comes(
    order: str, scheme: str, tls: Tls, raw_server: Callable[..., RawServer], make_pool: Callable[..., Pool]
) -> None:
    script = ends_with(*ORDERS[order], before=frame(TEXT, b"[1]"))
    server = raw_server(script, ssl_context=tls.server_context if scheme == "wss" else None)
    pool = make_pool(server, max_connections=SIZE, manager_kwargs={"ssl_context": tls.client_context})
    for _ in range(SIZE + 1):
        with pool.acquire("/bad", timeout=ENOUGH) as conn:
            assert conn.request("go", ENOUGH) == [1]  # what came before the close is read
            for _ in range(2):
                with pytest.raises(ConnectionClosedError) as caught:
                    conn.recv_raw(ENOUGH)
                assert (caught.value.code, caught.value.reason) == (1011, "because")
            with pytest.raises(ConnectionClosedError) as caught:
                conn.send("more")
            assert caught.value.code == 1011
    check_whole(pool, "/good")
    wait_until(lambda: server.open_now == SIZE)


def test_both_sides_close_at_once(echo: EchoServer, make_pool: Callable[..., Pool]) -> None:
    """Goodbyes that cross: each side sees the other's close frame where it expects an answer."""
    pool = make_pool(echo, max_connections=SIZE, max_idle_time=0.2, manager_kwargs={"close_timeout": 2})
    closers = []
    for _ in range(5):
        leases = [pool.acquire("/", timeout=ENOUGH) for _ in range(SIZE)]
        closers.append(threading.Thread(target=echo.close_all))
        closers[-1].start()
        for lease in leases:
            lease.discard()
            lease.release()
    for closer in closers:
        closer.join()
    check_whole(pool, "/")
    assert echo.most_open <= SIZE


# --- names and addresses


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A DNS for tests: a name's addresses, an error to raise, or an event to wait for; others as ever."""
    known: dict[str, Any] = {}
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, family: int = 0, *args: Any, **kwargs: Any) -> list[Any]:
        answer = known.get(host)
        if answer is None:
            return real(host, port, family, *args, **kwargs)
        if isinstance(answer, threading.Event):
            answer.wait(30)
            answer = socket.gaierror(socket.EAI_AGAIN, "too late")
        if isinstance(answer, Exception):
            raise answer
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in answer]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known


@pytest.fixture
def black_hole() -> Iterator[tuple[str, int]]:
    """An address that answers no attempt to connect: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((servers.LOCALHOST, 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield listener.getsockname()


def test_a_name_that_is_not_known_now_and_known_later(dns: dict[str, Any], echo: EchoServer) -> None:
    uri = f"ws://name.test:{echo.port}/"
    dns["name.test"] = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    with ConnectionPool(ConnectionPoolConfig(max_connections=SIZE)) as pool:
        for _ in range(SIZE + 1):
            with raises_soon(ConnectionError, "name.test") as caught:
                pool.acquire(uri, timeout=ENOUGH)
            assert isinstance(caught.value.__cause__, socket.gaierror)
        dns["name.test"] = [(echo.host, echo.port)]
        check_whole(pool, uri)


def test_a_dns_that_hangs(dns: dict[str, Any], echo: EchoServer) -> None:
    """Each that asks is told when the dial is over, no other is held up, and close() does not wait for it."""
    dns["slow.test"] = threading.Event()
    try:
        config = ConnectionPoolConfig(max_connections=2 * SIZE)
        with ConnectionPool(config, base_uri=echo.uri, manager_kwargs=DIAL_SOON) as pool:
            errors = at_once(*[lambda: pool.acquire("ws://slow.test/", timeout=ENOUGH)] * SIZE)
            assert [type(error) for error in errors] == [TimeoutError] * SIZE
            told = ("name look-up", "resolving host", "hangs in getaddrinfo")
            assert all(any(each in str(error) for each in told) for error in errors), errors
            check_whole(pool, "/")
            waiting = threading.Thread(target=at_once, args=(lambda: pool.acquire("ws://slow.test/"),))
            waiting.start()
            assert pool.request("/", [1], timeout=ENOUGH) == [1]
            start = monotonic()
        assert monotonic() - start < LATE
        waiting.join(LATE)
        assert not waiting.is_alive()
    finally:
        dns["slow.test"].set()


@pytest.mark.parametrize("first", ["dead", "black hole"])
def test_the_first_address_does_not_answer(
    first: str, dns: dict[str, Any], black_hole: tuple[str, int], echo_tls: EchoServer, tls: Tls
) -> None:
    """Here as a whole, TLS and all: the name is what is verified, not the address."""
    with servers.refusing_port() as port, EchoServer(ssl_context=tls.issue("two.test")) as good:
        dns["two.test"] = [(good.host, port) if first == "dead" else black_hole, (good.host, good.port)]
        config = ConnectionPoolConfig(max_connections=SIZE)
        with ConnectionPool(config, manager_kwargs={"ssl_context": tls.client_context}) as pool:
            check_whole(pool, "wss://two.test/")
            assert pool.stats().connect_errors == 0
        assert good.opened == SIZE


def test_no_address_answers(dns: dict[str, Any], black_hole: tuple[str, int]) -> None:
    before = servers.open_sockets()
    with (
        servers.refusing_port() as port,
        ConnectionPool(ConnectionPoolConfig(max_connections=1), manager_kwargs=DIAL_SOON) as pool,
    ):
        dns["two.test"] = [(servers.LOCALHOST, port), black_hole]
        with raises_soon(TimeoutError, f"127.0.0.1:{black_hole[1]}") as caught:
            pool.acquire("ws://two.test/", timeout=ENOUGH)
        assert f"127.0.0.1:{port}: " in str(caught.value)  # and what is known of the other
        assert caught.value.operation == "connect"
        assert pool.stats().active_connections == 0
        assert servers.open_sockets() == before + 1  # the port that refuses


# --- refused, thousands of times


def refuse(times: int) -> int:
    """Make so many connects that are refused, by 8 threads; objects that the last nine tenths left behind."""
    before = servers.open_sockets()
    with servers.refusing_port() as port, ConnectionPool(ConnectionPoolConfig(max_connections=4)) as pool:
        uri = f"ws://127.0.0.1:{port}/nobody"

        def knock(count: int) -> None:
            for _ in range(count):
                with pytest.raises(
                    ConnectionError, match=f"cannot connect to {uri}.* 127.0.0.1:{port}"
                ) as caught:
                    pool.acquire(uri, timeout=ENOUGH)
                assert isinstance(caught.value.__cause__, ConnectionRefusedError)

        def knock_at_once(count: int) -> int:
            assert at_once(*[lambda: knock(count // 8)] * 8, within=100) == [None] * 8
            gc.collect()
            return len(gc.get_objects())

        settled = knock_at_once(times // 10)
        grown = knock_at_once(times) - settled
        stats = pool.stats()
        assert stats.connect_errors >= times // 8  # all 8 threads may have waited for the same dial
        assert (stats.active_connections, stats.idle_connections, stats.waiting) == (0, 0, 0)
        assert servers.open_sockets() == before + 1
        with EchoServer() as echo:
            check_whole(pool, echo.uri)
    return grown


def test_hundreds_of_connects_refused() -> None:
    assert refuse(320) < 200


@pytest.mark.soak
@pytest.mark.timeout(120)
def test_ten_thousand_connects_refused(depth: float, report: Callable[..., None]) -> None:
    times = max(800, int(10_000 * depth))
    start = monotonic()
    tracemalloc.start()
    try:
        refuse(times // 10)
        memory = tracemalloc.get_traced_memory()[0]
        objects = refuse(times)
        memory = tracemalloc.get_traced_memory()[0] - memory
    finally:
        tracemalloc.stop()
    assert objects < 200
    assert memory < 256 << 10
    seconds = round(monotonic() - start, 1)
    report("network: refused", refused=times, seconds=seconds, grown_objects=objects, grown_bytes=memory)


# --- a server that restarts under load


class Calls:
    """Calls of many threads: what was answered, what failed and how, and what must not be."""

    def __init__(self) -> None:
        self.failed: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.answered = self.slowest = 0.0
        self._lock = threading.Lock()

    def call(self, work: Callable[[], None], limit: float) -> None:
        """Note how a call ended; `limit` (s) is how long it may take, with all the patience in the world."""
        start, name, wrong = monotonic(), "", ""
        try:
            work()
        except JetSocketError as error:
            name = type(error).__name__
        except Exception as error:
            wrong = repr(error)
        took = monotonic() - start
        if took > limit:
            wrong = f"a call took {took:.2f} s, {name or 'answered'}"
        with self._lock:
            self.slowest = max(self.slowest, took)
            if wrong:
                self.wrong.append(wrong)
            elif name:
                self.failed[name] += 1
            else:
                self.answered += 1


def restart_under_load(rounds: int, echo: EchoServer, base: str = "") -> tuple[Calls, int]:
    """32 threads call through 8 connections while the server ends and comes back, by turns softly and not.

    Returns what came of the calls, and how many connections were opened. `base` is where it is reached.
    """
    calls, over = Calls(), threading.Event()
    numbers = iter(range(1 << 60))

    def ask(number: int, timeout: float) -> None:
        answer = pool.request("/ids", {"id": number}, timeout=timeout)
        if answer != {"id": number, "result": {"id": number}}:
            raise AssertionError(f"asked {number}, got {answer}")

    def borrower() -> None:
        while not over.is_set():
            calls.call(lambda: ask(next(numbers), 2.0), 2.0 + LATE)

    def more(count: Callable[[], float], by: int) -> None:
        before = count()
        wait_until(lambda: count() > before + by, 2 * ENOUGH)

    config = ConnectionPoolConfig(max_connections=8, acquire_timeout=2.0)
    with ConnectionPool(config, base_uri=base or echo.uri, manager_kwargs={"close_timeout": 0.5}) as pool:
        threads = [threading.Thread(target=borrower) for _ in range(32)]
        for thread in threads:
            thread.start()
        try:
            for number in range(rounds):
                more(lambda: calls.answered, by=50)
                echo.stop(abrupt=number % 2 == 1)
                more(calls.failed.total, by=0)
                echo.restart()
            more(lambda: calls.answered, by=50)
        finally:
            over.set()
            for thread in threads:
                thread.join(ENOUGH)
        check_whole(pool, "/ids")
        failed = calls.failed.total()
        for number in range(100):
            calls.call(lambda number=number: ask(number, ENOUGH), ENOUGH)
        assert calls.failed.total() == failed  # once it is back, nothing fails any more
        opened = pool.stats().total_connections
    assert echo.most_open <= 8
    assert calls.wrong == []
    return calls, opened


@pytest.mark.slow
def test_a_server_that_restarts_under_load(echo: EchoServer, report: Callable[..., None]) -> None:
    calls, opened = restart_under_load(2, echo)
    assert calls.failed.keys() <= {*LOST, "PoolExhaustedError"}
    report("network: restart, quick", answered=int(calls.answered), opened=opened, **calls.failed)


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_server_that_restarts_again_and_again(
    echo: EchoServer, depth: float, report: Callable[..., None]
) -> None:
    restarts = max(4, int(100 * depth))
    calls, opened = restart_under_load(restarts, echo)
    figures = {"restarts": restarts, "answered": int(calls.answered), "opened": opened, "foreign": 0}
    report("network: restart", **figures, **calls.failed)


# --- weather: all of it at random


class Weather:
    """Changes what the network does to two proxies, seeded, for so many seconds."""

    def __init__(self, proxies: list[FaultProxy], seed: int) -> None:
        self.proxies = proxies
        self.dice = random.Random(seed)
        self.struck: Counter[str] = Counter()

    def rage(self, seconds: float) -> None:
        until = monotonic() + seconds
        nothing = threading.Event()
        while monotonic() < until:
            proxy = self.dice.choice(self.proxies)
            name, strike = self.dice.choice([*FAULTS.items(), *self._later().items()])
            strike(proxy)
            self.struck[name] += 1
            nothing.wait(self.dice.uniform(0.02, 0.8))
            if name in ("stall", "drip") and self.dice.random() < 0.7:
                proxy.resume()  # nothing is lost: it goes on
            else:
                calm(proxy)
            nothing.wait(self.dice.uniform(0.0, 0.15))

    def _later(self) -> dict[str, Strike]:
        after = self.dice.randrange(1, 5000)
        way = self.dice.choice(["up", "down"])
        return {
            "cut mid-way": lambda proxy: proxy.cut(after, way),
            "reset mid-way": lambda proxy: proxy.reset(after, way),
            "latency": lambda proxy: proxy.delay(0.05, way),
            "half-close up": lambda proxy: proxy.half_close("up"),
        }


class Borrower:
    """Uses a pool as borrowers do: single calls, conversations, large messages; every answer is checked."""

    def __init__(self, pool: Pool, uris: list[str], seed: int) -> None:
        self.pool = pool
        self.uris = uris
        self.dice = random.Random(seed)
        self.seed = seed
        self.count = 0

    def act(self) -> None:
        uri = self.dice.choice(self.uris)
        choice = self.dice.random()
        if choice < 0.6:
            self._check(lambda message: self.pool.request(uri, message, timeout=0.5))
        elif choice < 0.7:
            self._check(lambda message: self.pool.request(uri, message, timeout=0.5, idempotent=True))
        else:
            with self.pool.acquire(uri, timeout=0.5) as conn:
                for _ in range(self.dice.randrange(1, 5)):
                    self._check(lambda message: conn.request(message, timeout=0.5))

    def _check(self, ask: Callable[[Any], Any]) -> None:
        self.count += 1
        size = self.dice.choice([0, 10, 1000, 300_000])
        message = {"id": f"{self.seed}.{self.count}", "pad": "x" * size}
        answer = ask(message)
        if answer != {"id": message["id"], "result": message}:
            raise AssertionError(f"asked for {message['id']}, got {str(answer)[:100]}")


def storm(seconds: float, seed: int, tls: Tls) -> tuple[Calls, Weather, dict[str, int]]:
    """16 threads borrow from one pool over ws and wss while the weather rages; then all must be as before."""
    calls, over = Calls(), threading.Event()
    with contextlib.ExitStack() as stack:
        echoes = [
            stack.enter_context(server)
            for server in (EchoServer(), EchoServer(ssl_context=tls.issue(servers.LOCALHOST)))
        ]
        proxies = [
            stack.enter_context(FaultProxy(e.host, e.port, scheme=e.uri.split(":")[0])) for e in echoes
        ]
        before = servers.open_sockets()
        config = ConnectionPoolConfig(
            max_connections=8, acquire_timeout=0.5, health_check_interval=0.3, health_check_timeout=0.5
        )
        kwargs = {"ssl_context": tls.client_context, "close_timeout": 0.3, "send_timeout": 0.5}
        with ConnectionPool(config, manager_kwargs=kwargs) as pool:
            weather = Weather(proxies, seed)

            def borrow(number: int) -> None:
                borrower = Borrower(pool, [proxy.uri("/ids") for proxy in proxies], seed * 100 + number)
                while not over.is_set():
                    calls.call(borrower.act, 3.0 + LATE)

            threads = [threading.Thread(target=borrow, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            try:
                weather.rage(seconds)
            finally:
                over.set()
                for thread in threads:
                    thread.join(ENOUGH)
            assert [thread for thread in threads if thread.is_alive()] == []
            for proxy in proxies:
                calm(proxy)
                check_whole(pool, proxy.uri("/ids"))
            stats = pool.stats()
        assert calls.wrong == []
        for proxy in proxies:
            proxy.cut()
        wait_until(lambda: sum(echo.open_now for echo in echoes) == 0, ENOUGH)
        wait_until(lambda: servers.open_sockets() <= before, ENOUGH, "no socket is left")
    return calls, weather, {"opened": stats.total_connections, "reuses": stats.reuses}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:unclosed .*SerialSSLSocket:ResourceWarning")
def test_weather(tls: Tls, report: Callable[..., None]) -> None:
    calls, weather, figures = storm(2.0, 4, tls)
    report(
        "network: weather, quick",
        faults=weather.struck.total(),
        answered=int(calls.answered),
        **figures,
        **calls.failed,
    )


@pytest.mark.filterwarnings("ignore:unclosed .*SerialSSLSocket:ResourceWarning")
@pytest.mark.soak
@pytest.mark.timeout(600)
def test_a_long_storm(tls: Tls, depth: float, report: Callable[..., None]) -> None:
    seed = random.randrange(1 << 16)
    print(f"seed {seed}")
    calls, weather, figures = storm(max(5.0, 90 * depth), seed, tls)
    report(
        "network: weather",
        seed=seed,
        faults=weather.struck.total(),
        answered=int(calls.answered),
        foreign=0,
        slowest_s=round(calls.slowest, 2),
        **figures,
        **calls.failed,
    )
