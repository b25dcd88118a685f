"""Every fault of the FaultProxy, seen from the two ends of a connection."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from time import monotonic

import pytest
from websockets.sync.client import connect

from tests import servers
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, echo_bytes, wait_until


@pytest.fixture
def server(raw_server: Callable[..., RawServer]) -> RawServer:
    return raw_server(echo_bytes)


@pytest.fixture
def faulty(server: RawServer, proxy: Callable[..., FaultProxy]) -> FaultProxy:
    return proxy(server)


@pytest.fixture
def client(faulty: FaultProxy, server: RawServer) -> Iterator[socket.socket]:
    """A client whose connection stands all the way to the server."""
    with socket.create_connection((faulty.host, faulty.port), 5) as sock:
        assert ask(sock, b"ready") == b"ready"
        yield sock


def ask(sock: socket.socket, data: bytes) -> bytes:
    sock.sendall(data)
    return servers.read_exactly(sock, len(data))


def nothing_comes(sock: socket.socket, seconds: float = 0.1) -> bool:
    sock.settimeout(seconds)
    try:
        sock.recv(1)
    except TimeoutError:
        return True
    finally:
        sock.settimeout(5)
    return False


def test_passes_bytes_and_counts(faulty: FaultProxy, client: socket.socket) -> None:
    assert (faulty.connections, faulty.open_now) == (1, 1)
    wait_until(lambda: (faulty.bytes_up, faulty.bytes_down) == (5, 5), message="b'ready' counted both ways")
    ask(client, b"12345678")
    wait_until(lambda: (faulty.bytes_up, faulty.bytes_down) == (13, 13))


def test_passes_megabytes_both_ways(client: socket.socket) -> None:
    data = bytes(range(256)) * 20_000
    sender = threading.Thread(target=client.sendall, args=(data,))
    sender.start()
    received = bytearray()
    while len(received) < len(data):
        received += client.recv(1 << 20)
    sender.join()
    assert received == data


def test_passes_websockets_over_tls(
    echo_tls: EchoServer, tls: object, proxy: Callable[..., FaultProxy]
) -> None:
    through = proxy(echo_tls)
    assert through.uri("/a").startswith("wss://")
    with connect(through.uri("/a"), ssl=tls.serial_client_context, proxy=None) as ws:
        ws.send("x" * 100_000)
        assert len(ws.recv(5)) == 100_000
    assert echo_tls.paths == ["/a"]


def test_a_half_close_passes(client: socket.socket, faulty: FaultProxy) -> None:
    client.sendall(b"last words")
    client.shutdown(socket.SHUT_WR)
    assert servers.read_exactly(client, 10) == b"last words"
    assert client.recv(1) == b""
    faulty.wait_connections(0)


def test_a_reset_passes(raw_server: Callable[..., RawServer], proxy: Callable[..., FaultProxy]) -> None:
    through = proxy(raw_server(servers.reset))
    with (
        pytest.raises(ConnectionResetError),
        socket.create_connection((through.host, through.port), 5) as sock,
    ):
        sock.recv(1)


def test_an_unreachable_server_is_a_reset() -> None:
    with (
        servers.refusing_port() as port,
        FaultProxy(servers.LOCALHOST, port) as through,
        pytest.raises(ConnectionResetError),
        socket.create_connection((through.host, through.port), 5) as sock,
    ):
        sock.recv(1)


def test_stall_holds_and_resume_delivers(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.stall("down")
    client.sendall(b"held")
    assert nothing_comes(client)
    faulty.resume()
    assert servers.read_exactly(client, 4) == b"held"


def test_stall_holds_the_end_of_stream(
    raw_server: Callable[..., RawServer], proxy: Callable[..., FaultProxy]
) -> None:
    goodbye = threading.Event()
    through = proxy(raw_server(lambda sock: goodbye.wait(5) and None))
    with socket.create_connection((through.host, through.port), 5) as sock:
        through.stall()
        goodbye.set()
        assert nothing_comes(sock)
        through.resume()
        assert sock.recv(1) == b""


def test_stall_up_leaves_down_alone(
    raw_server: Callable[..., RawServer], proxy: Callable[..., FaultProxy]
) -> None:
    through = proxy(raw_server(servers.after_upgrade(then=lambda sock: servers.drip(sock, b"abc", 0.01))))
    with connect(through.uri(), proxy=None, close_timeout=0.1) as ws:
        through.stall("up")
        through.stall("up")  # twice is once
        wait_until(lambda: through.bytes_down > 3)
        ws.socket.close()


def test_drip_sends_pieces(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.drip(2, 0.02, "down")
    start = monotonic()
    client.sendall(b"abcdef")
    came = [client.recv(100)]
    while b"".join(came) != b"abcdef":  # who is late to read finds two of them as one
        came.append(client.recv(100))
    assert [len(each) % 2 for each in came] == [0] * len(came)
    assert monotonic() - start >= 0.06


def test_delay_is_a_latency(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.delay(0.05)
    start = monotonic()
    ask(client, b"x" * 1000)
    assert 0.1 <= monotonic() - start < 1


def test_a_shorter_delay_takes_hold_at_once(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.delay(60)
    client.sendall(b"x")
    assert nothing_comes(client)
    faulty.resume()
    assert servers.read_exactly(client, 1) == b"x"


def test_cut_now_is_an_end_of_stream_on_both_sides(
    faulty: FaultProxy, client: socket.socket, server: RawServer
) -> None:
    faulty.cut()
    assert client.recv(1) == b""
    assert faulty.open_now == 0
    wait_until(lambda: server.open_now == 0)
    with socket.create_connection((faulty.host, faulty.port), 5) as later:
        assert ask(later, b"new ones pass") == b"new ones pass"


def test_cut_after_some_bytes(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.cut(after=3, direction="down")
    client.sendall(b"abcdef")
    assert b"".join(iter(lambda: client.recv(100), b"")) == b"abc"
    faulty.wait_connections(0)


def test_cut_after_counts_across_chunks_and_can_be_called_off(
    faulty: FaultProxy, client: socket.socket
) -> None:
    faulty.cut(after=5, direction="up")
    assert ask(client, b"1234") == b"1234"
    faulty.resume()
    assert ask(client, b"5678") == b"5678"
    faulty.cut(after=6, direction="up")
    assert ask(client, b"abc") == b"abc"
    client.sendall(b"defghi")
    assert faulty.connections == 1
    wait_until(lambda: faulty.open_now == 0)


def test_reset_now_is_an_rst_on_both_sides(
    raw_server: Callable[..., RawServer], proxy: Callable[..., FaultProxy]
) -> None:
    outcomes = []

    def script(sock: socket.socket) -> None:
        try:
            sock.sendall(b"ready")
            sock.recv(1)
        except OSError as error:
            outcomes.append(type(error))

    through = proxy(raw_server(script))
    with socket.create_connection((through.host, through.port), 5) as sock:
        servers.read_exactly(sock, 5)
        through.reset()
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
    wait_until(lambda: outcomes == [ConnectionResetError])


def test_reset_after_some_bytes(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.reset(after=4, direction="up")
    client.sendall(b"abcdef")
    with pytest.raises(ConnectionResetError):
        while client.recv(100):
            pass
    faulty.wait_connections(0)


def test_half_close_ends_one_direction(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.half_close("down")
    assert client.recv(1) == b""
    client.sendall(b"still here")  # the other goes on, and what the server says to it is lost
    wait_until(lambda: faulty.bytes_up == len(b"readystill here"))
    client.shutdown(socket.SHUT_WR)
    faulty.wait_connections(0)


def test_black_hole_swallows_and_stays_open(faulty: FaultProxy, client: socket.socket) -> None:
    faulty.black_hole()
    client.sendall(b"lost")
    assert nothing_comes(client)
    assert faulty.open_now == 1
    faulty.resume()
    assert ask(client, b"found") == b"found"


def test_black_hole_accepts_new_connections_that_go_nowhere(
    faulty: FaultProxy, client: socket.socket, server: RawServer
) -> None:
    faulty.black_hole()
    with socket.create_connection((faulty.host, faulty.port), 5) as lost:
        lost.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert nothing_comes(lost)
    assert server.accepted == 1


def test_black_hole_hides_that_the_server_left(
    raw_server: Callable[..., RawServer], proxy: Callable[..., FaultProxy]
) -> None:
    goodbye = threading.Event()
    server = raw_server(lambda sock: goodbye.wait(5) and None)
    through = proxy(server)
    with socket.create_connection((through.host, through.port), 5) as sock:
        wait_until(lambda: server.open_now == 1)
        through.black_hole("down")
        goodbye.set()
        wait_until(lambda: server.open_now == 0)
        assert nothing_comes(sock)


@pytest.mark.parametrize("fault", ["stall", "black_hole", "drip", "delay"])
def test_leaving_the_block_ends_everything_under_every_fault(server: RawServer, fault: str) -> None:
    before = servers.open_sockets()
    with (
        FaultProxy(server.host, server.port) as through,
        socket.create_connection((through.host, through.port), 5) as sock,
    ):
        wait_until(lambda: server.open_now == 1)
        {
            "stall": through.stall,
            "black_hole": through.black_hole,
            "drip": lambda: through.drip(1, 60),
            "delay": lambda: through.delay(60),
        }[fault]()
        sock.sendall(b"x" * 100_000)
    wait_until(lambda: server.open_now == 0)
    assert servers.open_sockets() == before


def test_a_client_that_does_not_read_blocks_nobody(faulty: FaultProxy, client: socket.socket) -> None:
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.sendall(b"x" * 50_000_000)
    faulty.reset()
    assert faulty.open_now == 0
