"""The server's pings: each of a burst gets its pong, in order, whoever is at work; a flood gets fewer."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.exceptions import ConnectionClosedError, TimeoutError
from tests import servers
from tests.conftest import Tls
from tests.servers import RawServer, after_upgrade, close_frame, frame, wait_until
from tests.wire.conftest import Connect, RawFactory, Stopwatch, in_background, soon

CLOSE, PING, PONG = 8, 9, 10
TEN = [b"payload-%d" % number for number in range(10)]
LONG = [bytes([number]) * 125 for number in range(10)]


def pings(payloads: list[bytes]) -> bytes:
    return b"".join(frame(PING, payload) for payload in payloads)


def between_fragments(payloads: list[bytes]) -> bytes:
    """A text message in fragments of one character, a ping behind each."""
    parts = [frame(0 if n else 1, b"x", fin=0) + frame(PING, each) for n, each in enumerate(payloads)]
    return b"".join(parts) + frame(0)


class Asker:
    """A script that sends `data`, in pieces of `size` B, and reads pongs until `count` have come.

    Attributes:
        pongs: Their payloads, in order.
        done: Set when all have come.
    """

    def __init__(self, data: bytes, count: int, *, size: int = 1 << 20, then: bytes = b"") -> None:
        self.data, self.count, self.size, self.then = data, count, size, then
        self.pongs: list[bytes] = []
        self.done = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        servers.upgrade(sock)
        self.ask(sock)

    def ask(self, sock: socket.socket) -> None:
        for start in range(0, len(self.data), self.size):
            sock.sendall(self.data[start : start + self.size])
        while len(self.pongs) < self.count:
            if (got := servers.read_client_frame(sock)).opcode == PONG:
                self.pongs.append(got.payload)
        self.done.set()
        sock.sendall(self.then)
        servers.hold(sock)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., ConnectionPool[Any]]]:
    pools: list[ConnectionPool[Any]] = []

    def make(server: RawServer, **kwargs: Any) -> ConnectionPool[Any]:
        config = ConnectionPoolConfig(max_connections=2)
        pools.append(ConnectionPool(config, base_uri=server.uri, manager_kwargs=kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close(1)


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["octet by octet", "at once"])
@pytest.mark.parametrize("payloads", [TEN, LONG, [b""] * 10], ids=["short", "125 B", "empty"])
def test_ten_pings_get_ten_pongs_in_order(
    raw_server: RawFactory, connect: Connect, payloads: list[bytes], size: int
) -> None:
    asker = Asker(pings(payloads), 10, size=size, then=frame(1, b"done"))
    ws = connect(raw_server(asker).uri)
    assert ws.recv_message(soon()) == "done"
    assert asker.pongs == payloads


@pytest.mark.parametrize("size", [1, 1 << 20], ids=["octet by octet", "at once"])
def test_pings_between_fragments(raw_server: RawFactory, connect: Connect, size: int) -> None:
    asker = Asker(between_fragments(TEN), 10, size=size)
    ws = connect(raw_server(asker).uri)
    assert ws.recv_message(soon()) == "x" * 10
    assert asker.done.wait(5)
    assert asker.pongs == TEN


def test_over_tls(raw_server: RawFactory, connect: Connect, tls: Tls) -> None:
    asker = Asker(pings(LONG), 10, then=frame(1, b"done"))
    server = raw_server(asker, ssl_context=tls.server_context)
    ws = connect(server.uri, ssl_context=tls.client_context)
    assert ws.recv_message(soon()) == "done"
    assert asker.pongs == LONG


@pytest.mark.slow
@pytest.mark.parametrize("lent", [True, False], ids=["lent", "idle"])
def test_the_pool_answers_all_of_them_while_no_borrower_reads(
    raw_server: RawFactory, make_pool: Callable[..., ConnectionPool[Any]], lent: bool
) -> None:
    asker = Asker(pings(TEN), 10)
    pool = make_pool(raw_server(asker))
    conn = pool.acquire("/")
    if not lent:
        conn.release()
    assert asker.done.wait(5)
    assert asker.pongs == TEN
    conn.release()
    assert pool.stats().idle_connections == 1


def test_of_more_than_a_burst_the_first_and_the_latest_are_answered(
    raw_server: RawFactory, connect: Connect
) -> None:
    numbers = [b"%d" % number for number in range(1000)]
    asker = Asker(pings(numbers), 1 << 30)
    ws = connect(raw_server(asker).uri)
    reader = in_background(lambda: ws.recv_message(soon()))
    wait_until(lambda: asker.pongs and asker.pongs[-1] == numbers[-1])
    ws.cut("the test is over")
    with pytest.raises(ConnectionClosedError):
        reader.result(5)
    assert asker.pongs == sorted(set(asker.pongs), key=int)
    assert asker.pongs[:63] == numbers[:63]


@pytest.mark.parametrize("last", [close_frame(1000), frame(3, b"?")], ids=["close", "fault"])
def test_pings_before_the_end_are_answered_before_it(
    raw_server: RawFactory, connect: Connect, last: bytes
) -> None:
    opcodes: list[int] = []

    def script(sock: socket.socket) -> None:
        while not opcodes or opcodes[-1] != CLOSE:
            opcodes.append(servers.read_client_frame(sock).opcode)

    ws = connect(raw_server(after_upgrade(pings(TEN) + last, then=script)).uri)
    with pytest.raises(Exception, match=r"ws://127\.0\.0\.1") as caught:
        ws.recv_message(soon())
    assert not isinstance(caught.value, TimeoutError)
    wait_until(lambda: CLOSE in opcodes)
    assert opcodes == [PONG] * 10 + [CLOSE]


def test_pongs_never_wait_for_a_message_that_is_being_sent(raw_server: RawFactory, connect: Connect) -> None:
    """The thread that sends answers them all when done; a reader goes on reading meanwhile."""
    asker = Asker(pings(TEN) + frame(1, b"read"), 10)

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        servers.read_client_frame(sock)
        asker.ask(sock)

    ws = connect(raw_server(script).uri)
    ws.send_message("begin")
    with ws.lock:  # as a sender holds it
        assert ws.recv_message(soon()) == "read"
        assert not asker.pongs
    ws.send_message("behind")
    assert asker.done.wait(5)
    assert asker.pongs == TEN


@pytest.mark.parametrize("tended", [False, True], ids=["by a reader", "by who tends"])
def test_a_server_that_pings_for_ever_and_takes_no_pong(
    raw_server: RawFactory, connect: Connect, tended: bool
) -> None:
    """Deadlines hold, what waits is bounded; and once the server reads, it finds the latest answered."""
    more, reads = threading.Semaphore(0), threading.Event()
    latest, numbers = 0, [0]

    def script(sock: socket.socket) -> None:
        nonlocal latest
        servers.upgrade(sock)
        while more.acquire() and not reads.is_set():
            sock.sendall(pings([b"%0125d" % number for number in range(latest + 1, latest + 61)]))
            latest += 60
        while numbers[-1] != latest:
            if (got := servers.read_client_frame(sock)).opcode == PONG:
                numbers.append(int(got.payload))
        servers.hold(sock)

    server = raw_server(script, receive_buffer=4096)  # soon full
    ws = connect(server.uri, socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)])
    ws.unfinished = set()

    def read() -> None:
        if tended:
            ws.tend()
        else:
            with Stopwatch(), pytest.raises(TimeoutError):
                ws.recv_message(soon(0.01))

    def is_stuck() -> bool:
        more.release()
        read()
        assert len(ws.reader.pings) <= 64
        return ws._is_mid_frame() and bool(ws.reader.pings)

    wait_until(is_stuck, 20)
    assert ws.unfinished == {ws}
    reads.set()
    more.release()

    def is_answered() -> bool:
        read()
        ws.finish()
        return numbers[-1] == latest

    wait_until(is_answered, 20)
    assert numbers == sorted(set(numbers))
