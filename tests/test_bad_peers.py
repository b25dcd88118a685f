"""Bad peers cost only their own connection: the named error in time, the permit back, the socket closed."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from time import monotonic, thread_time
from typing import Any, Literal

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    HandshakeError,
    JetSocketError,
    MessageTooBigError,
    PoolExhaustedError,
    ProtocolError,
    TimeoutError,
)
from tests import servers
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer, Upgrade, close_frame, frame, wait_until

Pool = ConnectionPool[Any]
Bad = Callable[[socket.socket, Upgrade], None]

LATE = 4.0  # s: far beyond the deadlines given here, far below the defaults that a fault would run into
MIB = 1 << 20


class BadServer(RawServer):
    """Echoes on every path that begins with /good, and is bad on all others.

    Attributes:
        asked: The request targets, in order.
        ended: Bad connections of which the client has let go.
        close_codes: Of the close frames that clients sent on bad connections.
    """

    def __init__(self, bad: Bad, **options: Any) -> None:
        super().__init__(self._serve, **options)
        self.bad = bad
        self.asked: list[str] = []
        self.ended = 0
        self.close_codes: list[int] = []

    def _serve(self, sock: socket.socket) -> None:
        request = servers.read_request(sock)
        self.asked.append(request.target)
        if request.target.startswith("/good"):
            sock.sendall(servers.upgrade_response(request))
            self._echo(sock)
            return
        try:
            with contextlib.suppress(OSError, EOFError):
                self.bad(sock, request)
            with contextlib.suppress(OSError, EOFError):
                self._read_to_the_end(sock)
        finally:
            self.ended += 1

    @staticmethod
    def _echo(sock: socket.socket) -> None:
        while (got := servers.read_client_frame(sock)).opcode != 8:
            if got.opcode in (1, 2, 9):
                sock.sendall(frame(10 if got.opcode == 9 else got.opcode, got.payload))
        sock.sendall(frame(8, got.payload))

    def _read_to_the_end(self, sock: socket.socket) -> None:
        while True:
            got = servers.read_client_frame(sock)
            if got.opcode == 8:
                self.close_codes.append(int.from_bytes(got.payload[:2], "big"))


@pytest.fixture
def bad_server() -> Iterator[Callable[..., BadServer]]:
    with contextlib.ExitStack() as stack:
        yield lambda bad, **options: stack.enter_context(BadServer(bad, **options))


Serve = Callable[..., BadServer]


@contextlib.contextmanager
def unharmed(server: BadServer, **options: Any) -> Iterator[Pool]:
    """A pool of two, one of them lent to somebody else the whole time; afterwards all must be well."""
    before = servers.open_sockets()
    config = ConnectionPoolConfig(max_connections=2, acquire_timeout=10)
    kwargs = {"close_timeout": 0.1, **options}
    with ConnectionPool(config, base_uri=server.uri, manager_kwargs=kwargs) as pool:
        with pool.acquire("/good/other") as other:
            assert other.request({"n": 1}, 5) == {"n": 1}
            yield pool
            accepted = len([path for path in server.asked if not path.startswith("/good")])
            wait_until(lambda: server.ended == accepted, message="the client closes its sockets")
            with pool.acquire("/good/next", timeout=5) as conn:  # the only permit left
                assert conn.request({"n": 2}, 5) == {"n": 2}
            assert other.request({"n": 3}, 5) == {"n": 3}
        stats = pool.stats()
        assert stats.active_connections == 0
        assert stats.idle_connections == 2
    wait_until(lambda: server.open_now == 0)
    wait_until(lambda: servers.open_sockets() == before, message="no descriptor is left")


@contextlib.contextmanager
def fails(error: type[JetSocketError]) -> Iterator[Any]:
    """The block raises `error` in time, and the message says where."""
    start = monotonic()
    with pytest.raises(error) as caught:
        yield caught
    assert monotonic() - start < LATE
    assert caught.type is error or error is JetSocketError
    assert re.search(r"ws://127\.0\.0\.1:[0-9]+/", str(caught.value))


# --- the upgrade


def say(*parts: bytes) -> Bad:
    """Send this and hold the connection."""

    def bad(sock: socket.socket, request: Upgrade) -> None:
        for part in parts:
            sock.sendall(part)

    return bad


def upgrade_with(*fields: tuple[str, str], accept: str | None = None) -> Bad:
    return lambda sock, request: sock.sendall(servers.upgrade_response(request, fields, accept))


def raw_101(*fields: str) -> Bad:
    """A 101 of exactly these header lines; {accept} is the right proof."""

    def bad(sock: socket.socket, request: Upgrade) -> None:
        lines = "\r\n".join(["HTTP/1.1 101 Switching Protocols", *fields, "", ""])
        sock.sendall(lines.replace("{accept}", request.accept).encode())

    return bad


def half_close(sock: socket.socket, request: Upgrade) -> None:
    sock.shutdown(socket.SHUT_WR)


def endless_head(sock: socket.socket, request: Upgrade) -> None:
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        sock.sendall(b"X-Filler: " + b"x" * 1000 + b"\r\n")


def big_refusal(sock: socket.socket, request: Upgrade) -> None:
    size = 64 * MIB
    sock.sendall(servers.response("401 Unauthorized", [("Content-Length", str(size))]))
    for _ in range(size // 65536):
        sock.sendall(bytes(65536))


def drip_head(sock: socket.socket, request: Upgrade) -> None:
    servers.drip(sock, b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 10_000, 0.02)


REFUSALS: dict[str, tuple[Bad, int | None]] = {
    **{
        status: (say(servers.response(status, [("Content-Length", "4")], b"body")), int(status[:3]))
        for status in (
            "200 OK",
            "204 No Content",
            "400 Bad Request",
            "401 Unauthorized",
            "403 Forbidden",
            "404 Not Found",
            "407 Proxy Authentication Required",
            "410 Gone",
            "426 Upgrade Required",
            "429 Too Many Requests",
            "500 Internal Server Error",
            "503 Service Unavailable",
        )
    },
    "after an interim response": (
        say(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", servers.response("403 Forbidden")),
        403,
    ),
    "interim responses without end": (
        lambda sock, request: flood(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000)(sock),
        None,
    ),
    "301 without a location": (say(servers.response("301 Moved")), 301),
    "a body of unknown length, held": (say(servers.response("403 Forbidden", body=b"never ends")), 403),
    "64 MiB of body": (big_refusal, 401),
    "garbage": (say(b"\x00\xff\xfe garbage\r\n\r\n"), None),
    "another protocol": (say(b"220 mail.example ESMTP\r\n\r\n"), None),
    "HTTP/2": (say(b"HTTP/2 101\r\n\r\n"), None),
    "endless head": (endless_head, None),
    "64 KiB without an end": (say(b"x" * 70_000), None),
    "end of stream at once": (half_close, None),
    "end of stream within the head": (
        lambda sock, request: (sock.sendall(b"HTTP/1.1 101 Sw"), half_close(sock, request))[0],
        None,
    ),
    "wrong accept": (upgrade_with(accept="d3Jvbmc="), 101),
    "no accept": (raw_101("Upgrade: websocket", "Connection: Upgrade"), 101),
    "no upgrade": (raw_101("Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"), 101),
    "upgrade to something else": (
        raw_101("Upgrade: h2c", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"),
        101,
    ),
    "no connection": (raw_101("Upgrade: websocket", "Sec-WebSocket-Accept: {accept}"), 101),
    "a folded header": (
        raw_101("Upgrade: websocket", " folded: 1", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}"),
        None,
    ),
    "a subprotocol that was not offered": (upgrade_with(("Sec-WebSocket-Protocol", "other")), 101),
    "an extension that was not offered": (
        upgrade_with(("Sec-WebSocket-Extensions", "x-webkit-deflate-frame")),
        101,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("bad", "status"), REFUSALS.values(), ids=REFUSALS)
def test_a_bad_answer_to_the_upgrade(bad_server: Serve, bad: Bad, status: int | None) -> None:
    with unharmed(bad_server(bad), subprotocols=["mine"]) as pool:
        with fails(HandshakeError) as caught:
            pool.acquire("/bad", timeout=3.5)
        assert caught.value.status_code == status
        assert len(caught.value.body) <= 4096
        assert "/bad" in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "bad",
    [say(), say(b"HTTP/1.1 101 Switching"), drip_head],
    ids=["nothing", "half a line", "drips"],
)
def test_no_answer_in_time(bad_server: Serve, bad: Bad) -> None:
    with unharmed(bad_server(bad), connect_timeout=0.4) as pool:
        with fails(TimeoutError) as caught:
            pool.acquire("/bad", timeout=3)
        assert caught.value.operation == "connect"
        with fails(PoolExhaustedError) as refused:
            pool.acquire("/bad", timeout=0.2)
        assert "1 being opened" in str(refused.value)


def test_connect_timeout_is_a_limit_of_its_own(bad_server: Serve) -> None:
    with unharmed(bad_server(lambda sock, request: None), connect_timeout=0.4) as pool, fails(TimeoutError):
        pool.acquire("/bad", timeout=30)


def test_a_reset_instead_of_an_answer(bad_server: Serve) -> None:
    with unharmed(bad_server(lambda sock, request: servers.reset(sock))) as pool, fails(ConnectionError):
        pool.acquire("/bad", timeout=3)


def test_a_port_that_refuses(bad_server: Serve) -> None:
    with unharmed(bad_server(say())) as pool, servers.refusing_port() as port:
        with fails(ConnectionError) as caught:
            pool.acquire(f"ws://127.0.0.1:{port}/nobody", timeout=3)
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


def test_many_bad_answers_in_turn_cost_no_permit(bad_server: Serve) -> None:
    server = bad_server(say(servers.response("500 Oops", [("Content-Length", "0")])))
    with unharmed(server) as pool:
        for _ in range(50):
            with fails(HandshakeError):
                pool.acquire("/bad", timeout=3)
        assert pool.stats().connect_errors == 50


# --- redirects


def redirect(*locations: str, status: str = "301 Moved Permanently") -> Bad:
    """Answer each request with the next location, the last one again and again."""
    left = list(locations)

    def bad(sock: socket.socket, request: Upgrade) -> None:
        location = left.pop(0) if len(left) > 1 else left[0]
        sock.sendall(servers.response(status, [("Location", location), ("Content-Length", "0")]))

    return bad


@pytest.mark.parametrize("status", ["301 M", "302 F", "303 S", "307 T", "308 P"])
def test_a_redirect_within_the_origin_is_followed(bad_server: Serve, status: str) -> None:
    server = bad_server(redirect("/bad/2?x=1", "/good/moved", status=status))
    with unharmed(server) as pool:
        with pool.acquire("/bad", timeout=5) as conn:
            assert conn.request({"moved": True}, 5) == {"moved": True}
            conn.discard()
        assert server.asked == ["/good/other", "/bad", "/bad/2?x=1", "/good/moved"]


def test_a_full_uri_of_the_same_origin_is_followed_with_http_for_ws(bad_server: Serve) -> None:
    server = bad_server(say())
    server.bad = redirect(f"http://127.0.0.1:{server.port}/good/moved")
    with unharmed(server) as pool, pool.acquire("/bad", timeout=5) as conn:
        assert conn.request(1, 5) == 1
        conn.discard()


@pytest.mark.parametrize("most", [0, 1, 3])
def test_a_loop_ends_after_max_redirects(bad_server: Serve, most: int) -> None:
    server = bad_server(redirect("/bad/again"))
    with unharmed(server, max_redirects=most) as pool:
        with fails(HandshakeError) as caught:
            pool.acquire("/bad", timeout=3)
        assert caught.value.status_code == 301
        assert "/bad/again" in str(caught.value)
        assert server.asked.count("/bad/again") == most


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_another_origin_is_not_even_dialed(bad_server: Serve, echo: EchoServer, scheme: str) -> None:
    server = bad_server(redirect(f"{scheme}://127.0.0.1:{echo.port}/there"))
    with unharmed(server) as pool:
        with fails(HandshakeError) as caught:
            pool.acquire("/bad", timeout=3)
        assert caught.value.status_code == 301
        assert f":{echo.port}/there" in str(caught.value)
    assert echo.opened == 0


def test_no_way_down_from_wss_to_ws(raw_server: Callable[..., RawServer], tls: Tls) -> None:
    plain = raw_server(servers.after_upgrade())

    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(servers.response("302 Found", [("Location", f"ws://127.0.0.1:{plain.port}/")]))

    secure = raw_server(script, ssl_context=tls.server_context)
    kwargs = {"ssl_context": tls.client_context}
    with ConnectionPool(manager_kwargs=kwargs) as pool, pytest.raises(HandshakeError):
        pool.acquire(secure.uri, timeout=3)
    assert plain.accepted == 0


@pytest.mark.parametrize("fault", ["another name", "a stranger's", "no tls at all"])
def test_certificates_are_verified(raw_server: Callable[..., RawServer], tls: Tls, fault: str) -> None:
    context = {"another name": tls.issue("other.example"), "a stranger's": Tls().server_context}.get(fault)
    server = raw_server(lambda sock: sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"), ssl_context=context)
    uri = f"wss://127.0.0.1:{server.port}/"
    config = ConnectionPoolConfig(max_connections=1)
    with ConnectionPool(config, manager_kwargs={"ssl_context": tls.client_context}) as pool:
        for _ in range(2):  # the one permit came back
            with pytest.raises(ConnectionError) as caught:
                pool.acquire(uri, timeout=3)
        assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError) == (context is not None)
        assert pool.stats().active_connections == 0
    wait_until(lambda: server.open_now == 0)


# --- frames


def after_upgrade(*parts: bytes, then: Callable[[socket.socket], object] | None = None) -> Bad:
    def bad(sock: socket.socket, request: Upgrade) -> None:
        sock.sendall(servers.upgrade_response(request))
        for part in parts:
            sock.sendall(part)
        if then is not None:
            then(sock)

    return bad


FAULTS = {
    "reserved bit 1": (frame(1, b"x", rsv=4), 1002),
    "reserved bit 2": (frame(1, b"x", rsv=2), 1002),
    "reserved bit 3": (frame(1, b"x", rsv=1), 1002),
    "masked": (frame(1, b"x", masked=True), 1002),
    "fragmented ping": (frame(9, b"x", fin=0), 1002),
    "fragmented close": (frame(8, b"", fin=0), 1002),
    "long ping": (frame(9, bytes(126)), 1002),
    "unknown data opcode": (frame(3, b"x"), 1002),
    "unknown control opcode": (frame(11, b"x"), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "a message within another": (frame(1, b"a", fin=0) + frame(1, b"b"), 1002),
    "bad UTF-8": (frame(1, b"\xff"), 1007),
    "bad UTF-8 across fragments": (frame(1, b"\xe2", fin=0) + frame(0, b"\x28\xa1"), 1007),
    "UTF-8 cut short across fragments": (frame(1, b"\xe2", fin=0) + frame(0, b"\x82"), 1007),
    "length of 2**63": (b"\x82\x7f\x80" + bytes(7), 1002),
    "close of one byte": (frame(8, b"\x03"), 1002),
    "close reason that is no UTF-8": (close_frame(1000, b"\xff"), 1007),
    "close reason cut short": (close_frame(1000, b"\xe2\x82"), 1007),
    **{
        f"close code {code}": (close_frame(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 2999, 5000)
    },
}


def test_a_server_that_breaks_the_protocol(bad_server: Serve) -> None:
    """All in turn, for the pool's sake; the wire's tests have them one by one."""
    server = bad_server(after_upgrade())
    with unharmed(server) as pool:
        for fault, (stream, code) in FAULTS.items():
            server.bad = after_upgrade(frame(1, b"before"), stream)
            server.close_codes.clear()
            with pool.acquire("/bad", timeout=3) as conn:
                assert conn.recv_raw(3) == "before", fault
                for _ in range(2):
                    with fails(ProtocolError) as caught:
                        conn.recv_raw(3)
                    assert caught.value.code == code, fault
                assert not conn.is_connected, fault
            wait_until(lambda code=code: server.close_codes == [code], message=fault)


@pytest.mark.parametrize(
    "stream",
    [
        frame(2, declared_length=10_000_000_000),
        frame(2, declared_length=(1 << 63) - 1),
        frame(2, bytes(900_000), fin=0) + frame(0, declared_length=200_000),
        frame(2, bytes(2_000_000)),
    ],
    ids=["10 GB declared", "8 EiB declared", "in fragments", "really sent"],
)
def test_a_message_beyond_the_limit(bad_server: Serve, stream: bytes) -> None:
    server = bad_server(after_upgrade(stream))
    with unharmed(server, max_message_size=MIB) as pool, pool.acquire("/bad", timeout=3) as conn:
        with fails(MessageTooBigError) as caught:
            conn.recv_raw(3)
        assert caught.value.limit == MIB
        assert "max_message_size" in str(caught.value)


@pytest.mark.parametrize(
    "last", [b"", b"\x81", b"\x81\x05hel", b"\x82\x7e\x10\x00" + bytes(100), frame(1, b"half", fin=0)]
)
@pytest.mark.parametrize("ending", ["end of stream", "reset"])
def test_a_server_that_leaves_mid_frame(bad_server: Serve, last: bytes, ending: str) -> None:
    def leave(sock: socket.socket) -> None:
        if ending == "reset":
            servers.reset(sock)
        else:
            sock.shutdown(socket.SHUT_WR)

    with unharmed(bad_server(after_upgrade(last, then=leave))) as pool:
        with pool.acquire("/bad", timeout=3) as conn, fails(ConnectionClosedError) as caught:
            conn.recv_raw(3)
        assert caught.value.code == 1006


def test_a_close_says_its_code_and_reason(bad_server: Serve) -> None:
    server = bad_server(after_upgrade())
    with unharmed(server) as pool:
        for code in (1000, 1001, 1008, 1011, 1013, 3000, 4999):
            server.bad = after_upgrade(close_frame(code, b"because"))
            server.close_codes.clear()
            with pool.acquire("/bad", timeout=3) as conn, fails(ConnectionClosedError) as caught:
                conn.recv_raw(3)
            assert (caught.value.code, caught.value.reason) == (code, "because")
            wait_until(lambda code=code: server.close_codes == [code], message=str(code))


def test_no_close_reply_holds_neither_release_nor_others(bad_server: Serve) -> None:
    with unharmed(bad_server(after_upgrade())) as pool:
        start = monotonic()
        with pool.acquire("/bad", timeout=3) as conn:
            conn.discard()
        assert monotonic() - start < LATE


def test_no_close_reply_holds_no_pool_beyond_close_timeout(bad_server: Serve) -> None:
    server = bad_server(after_upgrade())
    with ConnectionPool(base_uri=server.uri, manager_kwargs={"close_timeout": 0.5}) as pool:
        leases = [pool.acquire("/bad", timeout=3) for _ in range(8)]
        for lease in leases:
            lease.release()
        start = monotonic()
    assert monotonic() - start < LATE  # side by side, not 8 times
    wait_until(lambda: server.ended == 8)


@pytest.mark.parametrize("stream", [frame(1, b"x" * 2000), frame(1, fin=0) + frame(0, b"x", fin=0) * 1000])
def test_a_dripping_message(bad_server: Serve, stream: bytes) -> None:
    server = bad_server(after_upgrade(then=lambda sock: servers.drip(sock, stream, 0.01)))
    with unharmed(server) as pool, pool.acquire("/bad", timeout=3) as conn:
        with fails(TimeoutError) as caught:
            conn.recv_raw(0.3)
        assert (caught.value.operation, caught.value.timeout) == ("recv", 0.3)


def test_a_server_that_does_not_read(bad_server: Serve) -> None:
    goodbye = threading.Event()
    server = bad_server(after_upgrade(then=lambda sock: goodbye.wait(10)))
    with unharmed(server, send_timeout=0.3) as pool:
        with pool.acquire("/bad", timeout=3) as conn:
            with fails(TimeoutError) as caught:
                conn.send(bytes(30 * MIB))
            assert (caught.value.operation, caught.value.timeout) == ("send", 0.3)
            with fails(ConnectionClosedError):
                conn.send("more")
        goodbye.set()


# --- floods


def flood(chunk: bytes) -> Callable[[socket.socket], None]:
    def send(sock: socket.socket) -> None:
        while True:
            sock.sendall(chunk)

    return send


FLOODS = {
    "pings": frame(9, b"x" * 125) * 500,
    "pongs": frame(10, b"x" * 125) * 500,
}


@pytest.mark.slow
@pytest.mark.parametrize("chunk", FLOODS.values(), ids=FLOODS)
def test_a_flood_holds_recv_not_beyond_its_timeout_and_fills_no_memory(
    bad_server: Serve, chunk: bytes
) -> None:
    server = bad_server(after_upgrade(frame(1, fin=0), then=flood(chunk)))
    with unharmed(server) as pool, pool.acquire("/bad", timeout=3) as conn:
        with memory_below(8 * MIB), fails(TimeoutError):
            conn.recv_raw(0.3)
        conn.discard()


@pytest.mark.slow
@pytest.mark.parametrize("reads", [True, False], ids=["by a reader", "by the pool"])
@pytest.mark.parametrize("endless", [True, False], ids=["endless", "beyond the limit"])
def test_fragments_that_carry_nothing_end_with_1008(bad_server: Serve, endless: bool, reads: bool) -> None:
    """Whoever sees them, without a deadline and without much work."""
    begin, empty = threading.Event(), frame(0, fin=0)

    def send(sock: socket.socket) -> None:
        begin.wait(5)
        flood(empty * 30_000)(sock) if endless else sock.sendall(empty * 1001)

    server = bad_server(after_upgrade(frame(1, b"x", fin=0), then=send))
    with unharmed(server) as pool:
        conn = pool.acquire("/bad", timeout=3)
        begin.set()
        if not reads:
            wait_until(lambda: not conn.is_connected)
        burnt = thread_time()
        with fails(ProtocolError) as caught:
            conn.recv_raw()
        assert thread_time() - burnt < 1
        assert caught.value.code == 1008
        assert "more than 1000 fragments that carry nothing" in str(caught.value)
        conn.release()
        assert pool.stats().discards == {"closed": 1}
    assert endless or server.close_codes == [1008]


@contextlib.contextmanager
def memory_below(limit: int) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < limit


@pytest.mark.slow
def test_a_stream_nobody_reads_is_left_to_the_server(bad_server: Serve) -> None:
    """Read ahead, to see pings and a close; but not without end."""
    sent = 0

    def stream(sock: socket.socket) -> None:
        nonlocal sent
        while True:
            sock.sendall(frame(2, bytes(60_000)) * 10)
            sent += 600_000

    with unharmed(bad_server(after_upgrade(then=stream))) as pool, pool.acquire("/bad", timeout=3) as conn:
        with memory_below(40 * MIB):
            wait_until(lambda: sent > 600_000)
            settled = still(lambda: sent)
        assert settled < 40 * MIB
        conn.discard()


def still(figure: Callable[[], int]) -> int:
    """Wait until a figure has not changed for two of the housekeeper's rounds."""
    seen, since = figure(), monotonic()

    def unchanged() -> bool:
        nonlocal seen, since
        if figure() != seen:
            seen, since = figure(), monotonic()
        return monotonic() - since > 2.2

    wait_until(unchanged, 15)
    return seen


@pytest.mark.slow
def test_a_message_in_one_byte_fragments_takes_linear_time_and_memory(bad_server: Serve) -> None:
    size = 200_000
    stream = frame(2, b"x", fin=0) + frame(0, b"x", fin=0) * (size - 2) + frame(0, b"x")
    server = bad_server(after_upgrade(stream))
    with unharmed(server) as pool, pool.acquire("/bad", timeout=3) as conn:
        assert conn.recv_raw(20) == b"x" * size
        conn.discard()


@pytest.mark.slow
def test_endless_one_byte_fragments_end_at_the_limit(bad_server: Serve) -> None:
    server = bad_server(after_upgrade(frame(2, fin=0), then=flood(frame(0, b"x", fin=0) * 10_000)))
    with (
        unharmed(server, max_message_size=20_000) as pool,
        pool.acquire("/bad", timeout=3) as conn,
        memory_below(8 * MIB),
        pytest.raises(MessageTooBigError),
    ):
        conn.recv_raw(20)


def test_ten_declared_gigabytes_take_no_memory(bad_server: Serve) -> None:
    server = bad_server(after_upgrade(frame(2, declared_length=10**10), then=flood(bytes(65536))))
    with (
        unharmed(server) as pool,
        memory_below(8 * MIB),
        pool.acquire("/bad", timeout=3) as conn,
        fails(MessageTooBigError),
    ):
        conn.recv_raw(3)


# --- while idle


@pytest.mark.slow
@pytest.mark.parametrize(
    "stream",
    [frame(3), close_frame(1000, b"\xe2\x82"), frame(2, declared_length=10**10)],
    ids=["protocol", "close reason cut short", "too big"],
)
def test_a_fault_on_an_idle_connection_reaches_no_borrower(bad_server: Serve, stream: bytes) -> None:
    go = threading.Event()
    server = bad_server(after_upgrade(then=lambda sock: go.wait(10) and sock.sendall(stream)))
    with unharmed(server) as pool:
        with pool.acquire("/bad", timeout=3) as conn:
            first = conn.id
        go.set()
        wait_until(lambda: pool.stats().idle_connections == 0)
        with pool.acquire("/bad", timeout=3) as conn:
            assert conn.id != first
            conn.discard()


def lease_of(pool: Pool) -> PooledConnection[Any]:
    return pool.acquire("/bad", timeout=3)


def test_a_fault_while_two_threads_use_the_lease_wakes_both(bad_server: Serve) -> None:
    go = threading.Event()
    server = bad_server(after_upgrade(then=lambda sock: go.wait(10) and sock.sendall(frame(3))))
    errors: list[BaseException] = []

    def use(what: Callable[[], object]) -> None:
        try:
            what()
        except JetSocketError as error:
            errors.append(error)

    with unharmed(server) as pool, lease_of(pool) as conn:
        threads = [
            threading.Thread(target=use, args=(what,))
            for what in (lambda: conn.recv_raw(8), lambda: conn.ping(8))
        ]
        for thread in threads:
            thread.start()
        go.set()
        for thread in threads:
            thread.join(LATE)
        assert [type(error) for error in errors] == [ProtocolError, ProtocolError]


# --- many of them at once: they have one budget

CROWD = 40
GUSH = frame(1) * 200_000  # 400 KB, for which the kernel has room; they take some 50 ms to parse


class Crowd:
    """Servers of idle connections that all begin to send at the same moment."""

    def __init__(self) -> None:
        self._go = threading.Event()
        self._sent = threading.Semaphore(0)

    def __call__(self, sock: socket.socket) -> None:
        self._go.wait(20)
        sock.sendall(GUSH)
        self._sent.release()

    def gush(self) -> None:
        self._go.set()
        for _ in range(CROWD):
            assert self._sent.acquire(timeout=20)


@pytest.fixture
def crowd() -> Crowd:
    return Crowd()


@contextlib.contextmanager
def crowded(server: BadServer, **config: Any) -> Iterator[Pool]:
    """A pool of so many idle connections, and one more."""
    settings = ConnectionPoolConfig(max_connections=CROWD + 1, acquire_timeout=20, **config)
    with ConnectionPool(settings, base_uri=server.uri, manager_kwargs={"close_timeout": 0.1}) as pool:
        assert pool.prewarm("/bad", CROWD) == CROWD
        yield pool


@contextlib.contextmanager
def within(limit: float) -> Iterator[None]:
    start = monotonic()
    yield
    assert monotonic() - start < limit


@pytest.fixture
def no_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The housekeeper finds nothing: what is idle is as it came."""
    monkeypatch.setattr("jetsocket.housekeeper.TICK", 60.0)


@pytest.mark.usefixtures("no_rounds")
def test_an_acquire_that_must_not_block_passes_a_crowd_of_floods_by(bad_server: Serve, crowd: Crowd) -> None:
    with crowded(bad_server(after_upgrade(then=crowd))) as pool:
        crowd.gush()
        with within(1.0), pytest.raises(PoolExhaustedError):
            pool.acquire("/bad", timeout=0)


@pytest.mark.usefixtures("no_rounds")
def test_close_keeps_its_timeout_in_a_crowd_of_floods(bad_server: Serve, crowd: Crowd) -> None:
    with crowded(bad_server(after_upgrade(then=crowd)), reuse="always") as pool:
        crowd.gush()
        with within(1.0):
            pool.close(timeout=0.3)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["balanced", "always"])
def test_an_honest_server_is_heard_in_a_crowd_of_floods(
    bad_server: Serve, crowd: Crowd, reuse: Literal["balanced", "always"]
) -> None:
    took: list[float] = []

    def serve(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        sock.sendall(servers.upgrade_response(request))
        with contextlib.suppress(OSError, EOFError):
            while True:
                asked_at = monotonic()
                sock.sendall(frame(9))
                servers.read_client_frame(sock)
                took.append(monotonic() - asked_at)

    server = bad_server(after_upgrade(then=crowd))
    with RawServer(serve) as honest, crowded(server, reuse=reuse) as pool, pool.acquire(honest.uri):
        wait_until(lambda: took)
        crowd.gush()
        before = len(took)
        wait_until(lambda: len(took) >= before + 3, 20)
        assert max(took[before:]) < 1.5
