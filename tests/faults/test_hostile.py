"""Servers that mean harm: floods, endless and forged heads, redirects without end, bombs, false TLS.

What a peer that is merely broken may do stands in tests/test_bad_peers.py. Here as there: a named error in
time, the permit back, the socket closed as the server sees it, other borrowers of the same pool unharmed.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import queue
import socket
import ssl
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic, thread_time
from typing import Any

import pytest
import trustme
import websocket._handshake  # websocket-client's jar of cookies, which no server of ours may reach

from jetsocket import PooledConnection
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    HandshakeError,
    JetSocketError,
    MessageTooBigError,
    TimeoutError,
)
from tests import servers
from tests.conftest import Tls
from tests.faults.conftest import Report
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, Upgrade, frame, wait_until
from tests.test_bad_peers import Bad, BadServer, Pool, after_upgrade, memory_below, raw_101, say, unharmed

LATE = 5.0  # s: far beyond the deadlines given here, far below the defaults that a fault would run into
MIB = 1 << 20
Serve = Callable[..., BadServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """A factory of servers that are bad on all paths but /good."""
    with contextlib.ExitStack() as stack:
        yield lambda bad, **options: stack.enter_context(BadServer(bad, **options))


@contextlib.contextmanager
def fails(error: type[JetSocketError], match: str = r"wss?://127\.0\.0\.1:[0-9]+/") -> Iterator[Any]:
    """The block raises `error` itself, in time, with a text that can be shown."""
    start = monotonic()
    with pytest.raises(error, match=match) as caught:
        yield caught
    assert monotonic() - start < LATE
    assert caught.type is error
    assert str(caught.value).isprintable() and len(str(caught.value)) < 4000


def lease(pool: Pool) -> PooledConnection[Any]:
    return pool.acquire("/bad", timeout=4)


def resident() -> int:
    """B of memory that this process occupies."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def resident_below(more: int) -> Iterator[Callable[[], None]]:
    """The process grows by less than `more` B, server and all, at each call of what is given."""
    before = resident()

    def look() -> None:
        assert resident() - before < more

    yield look
    look()


# --- tiny frames, by the million


def one_by_one(count: int) -> Bad:
    """Send `count` messages of one byte each, counting on."""
    batch = b"".join(frame(2, bytes([n])) for n in range(256)) * 40

    def bad(sock: socket.socket, request: Upgrade) -> None:
        sock.sendall(servers.upgrade_response(request))
        for start in range(0, count, 256 * 40):
            sock.sendall(batch[: 3 * (count - start)])

    return bad


def in_fragments(count: int) -> Bad:
    """Send one message in `count` fragments of one byte each."""
    middle = b"".join(frame(0, bytes([n]), fin=0) for n in range(256)) * 40

    def bad(sock: socket.socket, request: Upgrade) -> None:
        sock.sendall(servers.upgrade_response(request) + frame(2, fin=0))
        for start in range(0, count, 256 * 40):
            sock.sendall(middle[: 3 * (count - start)])
        sock.sendall(frame(0))

    return bad


def read_messages(conn: PooledConnection[Any], count: int, look: Callable[[], None]) -> None:
    for n in range(count):
        assert conn.recv_raw(60) == bytes([n & 255])
        if n % 100_000 == 0:
            look()


def read_fragments(conn: PooledConnection[Any], count: int, look: Callable[[], None]) -> None:
    message = conn.recv_raw(120)
    assert message == (bytes(range(256)) * (count // 256 + 1))[:count]


TINY: dict[str, tuple[Callable[[int], Bad], Callable[..., None]]] = {
    "whole messages": (one_by_one, read_messages),
    "fragments": (in_fragments, read_fragments),
}


def cost_of_tiny_frames(serve: Serve, kind: str, count: int) -> float:
    """The borrower's processor time (s) for `count` frames of one byte."""
    send, read = TINY[kind]
    with unharmed(serve(send(count))) as pool, lease(pool) as conn:
        # What the allocator keeps for itself and what the server makes count too, so it is not exact.
        with resident_below(64 * MIB) as look:
            begun = thread_time()
            read(conn, count, look)
            took = thread_time() - begun
        conn.discard()
    return took


@pytest.mark.slow
@pytest.mark.parametrize("kind", TINY)
def test_frames_of_one_byte(serve: Serve, kind: str) -> None:
    cost_of_tiny_frames(serve, kind, 100_000)


@pytest.mark.soak
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", TINY)
def test_frames_of_one_byte_by_the_million(serve: Serve, kind: str, depth: float, report: Report) -> None:
    count = max(40_000, int(1_000_000 * depth))
    before = resident()
    quarter = cost_of_tiny_frames(serve, kind, count // 4)
    whole = cost_of_tiny_frames(serve, kind, count)
    assert whole < 10 * quarter  # 4 is linear, 16 is quadratic
    report(
        "hostile servers: frames of one byte",
        kind=kind,
        frames=count,
        seconds=round(whole, 2),
        four_times_as_many_cost=round(whole / quarter, 1),
        grown_mib=round((resident() - before) / MIB, 1),
    )


# --- floods of pings and pongs


class Pinger:
    """Sends `count` numbered pings, and after every thousandth a message that tells how many it were.

    Attributes:
        pongs: The numbers in the pongs that came, in order.
    """

    def __init__(self, count: int, *, reads_meanwhile: bool = True, messages: bool = True) -> None:
        self.count = count
        self.pongs: list[int] = []
        self._reads_meanwhile = reads_meanwhile
        self._messages = messages

    def __call__(self, sock: socket.socket, request: Upgrade) -> None:
        sock.sendall(servers.upgrade_response(request))
        reader = threading.Thread(target=self._read, args=(sock,))
        if self._reads_meanwhile:
            reader.start()
        try:
            for start in range(0, self.count, 1000):
                sock.sendall(self._batch(start, start + 1000))
        finally:
            if not self._reads_meanwhile:
                reader.start()
            reader.join()

    def _batch(self, start: int, stop: int) -> bytes:
        pings = b"".join(frame(9, struct.pack("!I", n)) for n in range(start, stop))
        return pings + (frame(1, b"%d" % stop) if self._messages else b"")

    def _read(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            while (got := servers.read_client_frame(sock)).opcode != 8:
                if got.opcode == 10:
                    self.pongs.append(struct.unpack("!I", got.payload)[0])

    def is_answered(self) -> bool:
        """Whether the last ping is; RFC 6455 §5.5.3 asks for no more."""
        return bool(self.pongs) and self.pongs[-1] == self.count - 1

    def check(self) -> None:
        """The last ping was answered, and the others seldom enough."""
        wait_until(self.is_answered, 2 * LATE)
        assert self.pongs == sorted(set(self.pongs))
        assert len(self.pongs) <= self.count / 20


@pytest.mark.slow
@pytest.mark.parametrize("reads_meanwhile", [True, False], ids=["reads", "reads only at the end"])
def test_a_hundred_thousand_pings_beside_messages(serve: Serve, reads_meanwhile: bool) -> None:
    """The borrower gets every message, and the server the pong that it needs."""
    pinger = Pinger(100_000, reads_meanwhile=reads_meanwhile)
    with unharmed(serve(pinger)) as pool, lease(pool) as conn:
        with resident_below(32 * MIB) as look:
            for n in range(1000, pinger.count + 1, 1000):
                assert conn.recv_raw(20) == str(n)
                look()
        pinger.check()
        conn.discard()


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_pings_by_the_million_for_a_borrower_who_computes(
    serve: Serve, make_pool: Callable[..., Pool], depth: float, report: Report
) -> None:
    """Nobody reads: the pool answers by itself, and serves other borrowers meanwhile."""
    pinger = Pinger(max(20, int(1000 * depth)) * 1000, messages=False)
    pool = make_pool(serve(pinger), max_connections=2, manager_kwargs={"close_timeout": 0.1})
    calls, slowest, until = 0, 0.0, monotonic() + 200
    with pool.acquire("/bad", timeout=3) as lent, resident_below(32 * MIB) as look:
        while not pinger.is_answered():
            begun = monotonic()
            assert begun < until
            assert pool.request("/good", {"n": calls}, 10) == {"n": calls}
            calls, slowest = calls + 1, max(slowest, monotonic() - begun)
            look()
        pinger.check()
        lent.discard()
    report(
        "hostile servers: ping flood",
        pings=pinger.count,
        pongs=len(pinger.pongs),
        calls_of_others_meanwhile=calls,
        slowest_of_them_s=round(slowest, 2),
    )


def wrong_pongs(sock: socket.socket, request: Upgrade) -> None:
    """Answer each ping with a thousand pongs that belong to none, and each message with itself."""
    sock.sendall(servers.upgrade_response(request))
    while (got := servers.read_client_frame(sock)).opcode != 8:
        if got.opcode == 9:
            sock.sendall(b"".join(frame(10, struct.pack("!I", n) + b"?") for n in range(1000)))
        else:
            sock.sendall(frame(got.opcode, got.payload))


def test_a_thousand_pongs_of_which_none_matches(serve: Serve) -> None:
    with unharmed(serve(wrong_pongs)) as pool, lease(pool) as conn:
        with fails(TimeoutError) as caught:
            conn.ping(0.3)
        assert caught.value.operation == "ping"
        assert conn.request({"still": "usable"}, 5) == {"still": "usable"}
        assert conn.latency_ms is None
        conn.discard()


# --- the head of the answer


def jar() -> dict[str, Any]:
    """The cookies that websocket-client keeps for the whole process."""
    return websocket._handshake.CookieJar.jar


FORGED = {
    "LF in a value": "X: a\nY: b",
    "CR in a value": "X: a\rY: b",
    "NUL in a value": "X: a\0b",
    "LF in a name": "X\nY: a",
    "CR in a name": "X\rY: a",
    "NUL in a name": "X\0: a",
    "folded by a blank": "X: a\r\n b",
    "folded by a tab": "X: a\r\n\tb",
    "a blank before the colon": "X : a",
    "a line without a colon": "X",
    "a second status line": "HTTP/1.1 200 OK",
    "a bare CR for a line": "\r",
}
UPGRADED = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: {accept}")


@pytest.mark.parametrize("line", FORGED.values(), ids=FORGED)
def test_a_forged_header_is_refused(serve: Serve, line: str) -> None:
    server = serve(raw_101(*UPGRADED, line))
    with unharmed(server) as pool:
        with fails(HandshakeError) as caught:
            pool.acquire("/bad", timeout=3)
        assert not caught.value.headers
        server.bad = say(f"HTTP/1.1 403 No\r\n{line}\r\nContent-Length: 0\r\n\r\n".encode())
        with fails(HandshakeError):
            pool.acquire("/bad", timeout=3)


@pytest.mark.parametrize("name", ["Upgrade", "Connection"])
@pytest.mark.parametrize("line_end", ["\n", "\r", "\r\n\t\n"], ids=["LF", "CR", "fold and LF"])
def test_no_cookie_is_smuggled_into_the_jar_of_the_process(serve: Serve, name: str, line_end: str) -> None:
    """From it, it would go out with every later handshake, to any server."""
    right = {"Upgrade": "websocket", "Connection": "Upgrade"}
    right[name] += f"{line_end}Set-Cookie: sid=evil; Domain=handshake.invalid"
    lines = [f"{key}: {value}" for key, value in right.items()]
    before = dict(jar())
    with unharmed(serve(raw_101(*lines, UPGRADED[-1]))) as pool, fails(HandshakeError):
        pool.acquire("/bad", timeout=3)
    assert jar() == before


def test_a_hundred_thousand_header_lines(serve: Serve) -> None:
    lines = b"".join(b"X-%d: %d\r\n" % (n, n) for n in range(100_000))
    server = serve(say(b"HTTP/1.1 101 Switching Protocols\r\n" + lines + b"\r\n"))
    with (
        unharmed(server) as pool,
        memory_below(4 * MIB),
        fails(HandshakeError, match="more than 65536 B of headers"),
    ):
        pool.acquire("/bad", timeout=4)


def test_as_many_header_lines_as_fit_cost_little(serve: Serve) -> None:
    """Reading them all must not take the square of their number."""
    lines = [f"{n:x}:" for n in range(8_000)]
    with unharmed(serve(raw_101(*UPGRADED, *lines))) as pool, lease(pool) as conn:
        begun = thread_time()
        headers = dict(conn.response_headers)
        assert thread_time() - begun < 3  # 12 s, if each look-up reads them all
        assert len(headers) == 8_003
        conn.discard()


def endless_lines(sock: socket.socket, request: Upgrade) -> None:
    sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n")
    while True:
        sock.sendall(b"a:\r\n" * 1000)


def test_an_endless_head_of_tiny_lines(serve: Serve) -> None:
    with unharmed(serve(endless_lines)) as pool, memory_below(4 * MIB), fails(HandshakeError):
        pool.acquire("/bad", timeout=4)


def test_what_would_forge_our_own_head_opens_nothing(serve: Serve) -> None:
    server = serve(say())
    told: list[Any] = [("X", "fine")]
    with unharmed(server, extra_headers=lambda: list(told)) as pool:
        accepted = server.accepted
        for path in ("/bad\r\nX: 1", "/bad\nX: 1", "/bad\0", "/bad\r", "/bad x"):
            with pytest.raises(ValueError, match="not allowed"):
                pool.acquire(path, timeout=3)
        for forged in (("X", "a\r\nY: b"), ("X", "a\nb"), ("X\r\nY", "a"), ("X", "a\0"), ("", "a")):
            told[:] = [forged]
            with pytest.raises(ConnectionError, match="header"):
                pool.acquire("/bad", timeout=3)
        told[:] = [("X", "fine")]
        assert server.accepted == accepted


# --- redirects


def redirects(*locations: str, slowly: float = 0.0, body: bytes = b"") -> Bad:
    """Redirect each request to the next of these, in a circle, each time after `slowly` s."""
    circle = queue.SimpleQueue[str]()
    for location in locations:
        circle.put(location)
    stop = threading.Event()

    def bad(sock: socket.socket, request: Upgrade) -> None:
        location = circle.get()
        circle.put(location)
        stop.wait(slowly)
        fields = [("Location", location), ("Content-Length", str(len(body)))]
        sock.sendall(servers.response("302 Found", fields, body))

    return bad


@pytest.mark.parametrize(
    "circle",
    [["/bad/b", "/bad/a"], ["/bad"], ["?again", "", "./", "../bad"]],
    ids=["two", "itself", "relative"],
)
def test_redirects_in_a_circle_end_after_max_redirects(serve: Serve, circle: list[str]) -> None:
    server = serve(redirects(*circle))
    with unharmed(server, max_redirects=20) as pool:
        with fails(HandshakeError, match="redirect") as caught:
            pool.acquire("/bad", timeout=4)
        assert caught.value.status_code == 302
        assert len([path for path in server.asked if not path.startswith("/good")]) == 21


@pytest.mark.parametrize(
    "location",
    ["ws://h//" + ":" * 60_000, "/bad" * 2_000, "?" + "a=b&" * 2_000, "../" * 4_000, "\xe4" * 1_500],
    ids=["colons", "a path", "a query", "upwards", "to be encoded"],
)
def test_a_long_location(serve: Serve, location: str) -> None:
    """Neither the errors nor the log fill with it, and nobody is kept busy: it comes again and again."""
    begun = thread_time()
    with unharmed(serve(redirects(location))) as pool, fails(HandshakeError):
        pool.acquire("/bad", timeout=4)
    assert thread_time() - begun < 2


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"])
@pytest.mark.parametrize("compress", [True, False])
def test_a_choice_as_long_as_may_be(serve: Serve, name: str, compress: bool) -> None:
    server = serve(raw_101(*UPGRADED, f"{name}: {'x' * 60_000}"))
    with unharmed(server, compress=compress) as pool, fails(HandshakeError):
        pool.acquire("/bad", timeout=4)


def test_slow_redirects_have_one_deadline_together(serve: Serve) -> None:
    server = serve(redirects("/bad", slowly=0.2))
    with unharmed(server, max_redirects=1000, connect_timeout=1.0) as pool:
        with fails(TimeoutError) as caught:
            pool.acquire("/bad", timeout=4)
        assert caught.value.operation == "connect"


def test_bodies_of_redirects_do_not_pile_up(serve: Serve) -> None:
    with unharmed(serve(redirects("/bad", body=bytes(MIB))), max_redirects=30) as pool, fails(HandshakeError):
        pool.acquire("/bad", timeout=4)


@pytest.mark.parametrize("location", ["ws://{}/", "http://{}/", "//{}@evil.example/", "wss://evil.example/"])
def test_redirects_out_of_wss_lead_nowhere(serve: Serve, tls: Tls, echo: EchoServer, location: str) -> None:
    there = location.format(f"{echo.host}:{echo.port}")
    server = serve(redirects(there), ssl_context=tls.server_context)
    with (
        unharmed(server, ssl_context=tls.client_context, extra_headers={"X-Token": "secret"}) as pool,
        fails(HandshakeError, match="another origin"),
    ):
        pool.acquire("/bad", timeout=4)
    assert echo.opened == 0


# --- bombs


def deflated(data: bytes) -> bytes:
    """The payload of a compressed message (RFC 7692 §7.2.1)."""
    stream = zlib.compressobj(9, wbits=-12)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def squeezed(*payloads: bytes, fin: int = 1) -> Bad:
    """Agree to compress, then send these payloads as compressed messages, or as pieces of one."""
    frames = [
        frame(2 if fin or not n else 0, data, fin=fin, rsv=4 if fin or not n else 0)
        for n, data in enumerate(payloads)
    ]

    def bad(sock: socket.socket, request: Upgrade) -> None:
        fields = [("Sec-WebSocket-Extensions", "permessage-deflate; server_no_context_takeover")]
        sock.sendall(servers.upgrade_response(request, fields))
        for each in frames:
            sock.sendall(each)

    return bad


BOMB = deflated(bytes(5 * MIB))


@pytest.mark.parametrize("pieces", [1, 50], ids=["whole", "in fragments"])
def test_a_bomb_goes_off_within_the_limit(serve: Serve, pieces: int) -> None:
    size = -(-len(BOMB) // pieces)
    parts = [BOMB[at : at + size] for at in range(0, len(BOMB), size)]
    bad = squeezed(BOMB) if pieces == 1 else squeezed(*parts, b"", fin=0)
    if pieces > 1:
        bad = then(bad, frame(0))
    with unharmed(serve(bad), compress=True, max_message_size=MIB) as pool, memory_below(4 * MIB):
        with lease(pool) as conn, fails(MessageTooBigError) as caught:
            conn.recv_raw(4)
        assert caught.value.limit == MIB


def then(bad: Bad, more: bytes) -> Bad:
    def both(sock: socket.socket, request: Upgrade) -> None:
        bad(sock, request)
        sock.sendall(more)

    return both


@pytest.mark.slow
def test_a_bomb_within_a_bomb_is_opened_once(serve: Serve) -> None:
    inner = frame(2, deflated(bytes(50 * MIB)), rsv=4)
    with (
        unharmed(serve(squeezed(deflated(inner))), compress=True, max_message_size=MIB) as pool,
        lease(pool) as conn,
        memory_below(4 * MIB),
    ):
        assert conn.recv_raw(4) == inner
        conn.discard()


def test_a_thousand_to_one_is_a_message_like_any_other(serve: Serve) -> None:
    """1 KiB that makes 1 MiB: as long as the limit allows it."""
    small = deflated(bytes(MIB))
    assert len(small) < 2048
    with unharmed(serve(squeezed(*[small] * 5)), compress=True) as pool, lease(pool) as conn:
        for _ in range(5):
            assert conn.recv_raw(4) == bytes(MIB)
        conn.discard()


PING_BACK = (10, b"?")


class Generous:
    """Sends what it is told at once when a message comes; `seen` is what the client has sent."""

    def __init__(self, *frames: bytes) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self._stream = b"".join(frames)

    def __call__(self, sock: socket.socket, request: Upgrade) -> None:
        squeezed()(sock, request)
        while (got := servers.read_client_frame(sock)).opcode != 8:
            self.seen.append((got.opcode, got.payload))
            if got.opcode == 2:
                sock.sendall(self._stream)
        sock.sendall(frame(8, got.payload))


def mebibyte(byte: bytes) -> bytes:
    return frame(2, deflated(byte * MIB), rsv=4)


def test_a_ping_behind_a_bomb_is_answered_while_the_borrower_computes(serve: Serve) -> None:
    generous = Generous(mebibyte(b"a"), frame(9, b"?"))
    with unharmed(serve(generous), compress=True) as pool, lease(pool) as conn:
        conn.send(b"go")
        assert conn.recv_raw(4) == b"a" * MIB
        wait_until(lambda: PING_BACK in generous.seen)
        assert conn.is_connected
        conn.discard()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("behind", "reused"),
    [
        (b"", True),
        (frame(9, b"?"), True),
        (mebibyte(b"b"), False),
        (frame(1, b"b", fin=0), False),
        (b"\x82", False),
    ],
    ids=["nothing", "a ping", "a message", "half a message", "half a head"],
)
def test_what_stands_behind_a_bomb_counts_at_release(
    serve: Serve, make_pool: Callable[..., Pool], behind: bytes, reused: bool
) -> None:
    generous = Generous(mebibyte(b"a"), behind)
    kwargs = {"compress": True, "close_timeout": 0.1}
    pool = make_pool(serve(generous), max_connections=1, manager_kwargs=kwargs)
    with lease(pool) as conn:
        first = conn.id
        conn.send(b"go")
        assert conn.recv_raw(4) == b"a" * MIB
    with lease(pool) as conn:
        assert (conn.id == first) == reused
        conn.discard()


def test_a_stream_behind_a_bomb_goes_to_the_next_borrower_in_order(
    serve: Serve, make_pool: Callable[..., Pool]
) -> None:
    generous = Generous(*(mebibyte(bytes([n])) for n in range(6)))
    pool = make_pool(serve(generous), max_connections=1, reuse="always", manager_kwargs={"compress": True})
    ids, got = set(), []
    for number in range(3):
        with lease(pool) as conn:
            ids.add(conn.id)
            if not number:
                conn.send(b"go")
            got += [conn.recv_raw(4)[:1] for _ in range(2)]
    assert got == [bytes([n]) for n in range(6)]
    assert len(ids) == 1


# --- TLS


def context_of(tls: Tls, kind: str) -> ssl.SSLContext:
    """What a server has that nobody should trust, or can understand."""
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if kind == "self-signed":
        ca = trustme.CA()
        with ca.cert_pem.tempfile() as certificate, ca.private_key_pem.tempfile() as key:
            context.load_cert_chain(certificate, key)
        return context
    ca = trustme.CA() if kind == "a stranger's" else tls.ca
    years = {"expired": (2020, 2021), "not yet valid": (2090, 2091)}.get(kind, (2020, 2090))
    valid = {
        name: then.replace(year=year) for name, year in zip(("not_before", "not_after"), years, strict=True)
    }
    name = "other.example" if kind == "another name" else servers.LOCALHOST
    ca.issue_cert(name, **valid).configure_cert(context)
    if kind == "no shared version":
        context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("another name", "127.0.0.1"),
        ("expired", "expired"),
        ("not yet valid", "not yet valid"),
        ("self-signed", "self-signed"),
        ("a stranger's", "unable to get local issuer"),
        ("no shared version", "(?i)version"),
    ],
)
def test_tls_that_cannot_be_trusted(serve: Serve, tls: Tls, kind: str, told: str) -> None:
    strict = ssl.create_default_context()
    tls.ca.configure_trust(strict)
    strict.minimum_version = ssl.TLSVersion.TLSv1_3
    spoken: list[bytes] = []
    false = RawServer(lambda sock: spoken.append(sock.recv(1)), ssl_context=context_of(tls, kind))
    with false, unharmed(serve(say()), ssl_context=strict, extra_headers={"X-Token": "secret"}) as pool:
        for _ in range(3):
            with fails(ConnectionError, match=told) as caught:
                pool.acquire(false.uri_for("/bad"), timeout=4)
            assert isinstance(caught.value.__cause__, ssl.SSLError)
        wait_until(lambda: false.open_now == 0)
    assert [data for data in spoken if data] == []  # not a byte of the request


def test_a_plain_server_behind_wss(serve: Serve, tls: Tls) -> None:
    """Whatever it says at once is no handshake of TLS, and what it was told no request."""
    first: list[bytes] = []

    def plain(sock: socket.socket) -> None:
        sock.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        first.append(sock.recv(1))
        servers.hold(sock)

    with RawServer(plain) as false, unharmed(serve(say()), ssl_context=tls.client_context) as pool:
        with fails(ConnectionError) as caught:
            pool.acquire(f"wss://127.0.0.1:{false.port}/bad", timeout=4)
        assert isinstance(caught.value.__cause__, ssl.SSLError)
        wait_until(lambda: false.open_now == 0)
    assert first == [b"\x16"]


def test_a_tls_server_behind_ws(serve: Serve, echo_tls: EchoServer) -> None:
    with unharmed(serve(say())) as pool, pytest.raises(ConnectionError, match="ws://127") as caught:
        pool.acquire(f"ws://127.0.0.1:{echo_tls.port}/bad", timeout=4)
    assert caught.type in (ConnectionError, HandshakeError)
    assert echo_tls.opened == 0


def in_plain(sock: socket.socket) -> None:
    """Write into the TCP stream past the TLS on it, as who has no keys would."""
    with socket.socket(fileno=os.dup(sock.fileno())) as beneath:
        beneath.sendall(frame(1, b"forged") + bytes(100))


def cut_off(sock: socket.socket) -> None:
    """End the TCP stream without TLS's own goodbye, as who wants to cut a message would."""
    with socket.socket(fileno=os.dup(sock.fileno())) as beneath:
        beneath.shutdown(socket.SHUT_WR)


def polite(sock: socket.socket) -> None:
    """End the TLS session, but not the WebSocket connection."""
    assert isinstance(sock, ssl.SSLSocket)
    with contextlib.suppress(OSError):  # the client may not answer
        sock.unwrap()


@pytest.mark.parametrize("end", [in_plain, cut_off, polite])
@pytest.mark.parametrize("last", [b"", frame(2, bytes(9000))[:5000]], ids=["between", "within a message"])
def test_tls_that_breaks_off(
    serve: Serve, tls: Tls, end: Callable[[socket.socket], None], last: bytes
) -> None:
    bad = after_upgrade(frame(1, b"whole"), last, then=end)
    server = serve(bad, ssl_context=tls.server_context)
    with unharmed(server, ssl_context=tls.client_context) as pool, lease(pool) as conn:
        assert conn.recv_raw(4) == "whole"
        with fails(ConnectionClosedError) as caught:
            conn.recv_raw(4)
        assert caught.value.code == 1006
        assert not conn.is_connected


@pytest.mark.parametrize("after", [1, 3, 100, 5000])
@pytest.mark.parametrize("ending", ["cut", "reset"])
def test_tls_cut_within_a_record(
    serve: Serve, tls: Tls, proxy: Callable[..., FaultProxy], after: int, ending: str
) -> None:
    go = threading.Event()
    bad = after_upgrade(then=lambda sock: go.wait(10) and sock.sendall(frame(2, bytes(12_000))))
    server = serve(bad, ssl_context=tls.server_context)
    through = proxy(server)
    with (
        unharmed(server, ssl_context=tls.client_context) as pool,
        pool.acquire(through.uri("/bad"), timeout=4) as conn,
    ):
        getattr(through, ending)(after, "down")
        go.set()
        with fails(ConnectionClosedError) as caught:
            conn.recv_raw(4)
        assert caught.value.code == 1006


@pytest.mark.parametrize("after", [1, 5, 200, 500])
def test_a_tls_handshake_that_breaks_off(
    serve: Serve, tls: Tls, proxy: Callable[..., FaultProxy], after: int
) -> None:
    server = serve(say(), ssl_context=tls.server_context)
    through = proxy(server)
    with unharmed(server, ssl_context=tls.client_context) as pool:
        through.cut(after, "down")
        with fails(ConnectionError):
            pool.acquire(through.uri("/bad"), timeout=4)
