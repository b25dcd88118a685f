"""One connection: its deadlines, its errors, TLS both ways at once, and websocket-client's own interface."""

from __future__ import annotations

import datetime
import itertools
import json
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import trustme
import websocket
from websocket import ABNF

from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    InvalidStateError,
    MessageTooBigError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, after_upgrade, close_frame, frame, wait_until

RawFactory = Callable[..., RawServer]
Connect = Callable[..., WebSocket]
LATE = 3.0  # s; far from the deadlines below, and from every fallback


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open connections that are closed at the end of the test."""
    opened: list[WebSocket] = []

    def open_one(uri: str, *, max_message_size: int = 1 << 26, **options: Any) -> WebSocket:
        ws = WebSocket(max_message_size=max_message_size)
        opened.append(ws)
        ws.connect(uri, timeout=5, **options)
        return ws

    yield open_one
    for ws in opened:
        ws.shutdown()


def soon(seconds: float = 5.0) -> float:
    return monotonic() + seconds


class Stopwatch:
    """Asserts that its block ends before `most` seconds."""

    def __init__(self, most: float = LATE) -> None:
        self.most = most

    def __enter__(self) -> None:
        self.start = monotonic()

    def __exit__(self, *exc_info: object) -> None:
        assert monotonic() - self.start < self.most


def in_background(work: Callable[[], Any]) -> Future[Any]:
    """Run `work` in a thread that ends with it."""
    with_one = ThreadPoolExecutor(1)
    future = with_one.submit(work)
    with_one.shutdown(wait=False)
    return future


# --- what is sent to the server


class TestRequest:
    @pytest.fixture
    def ask(self, raw_server: RawFactory) -> Callable[..., servers.Upgrade]:
        """Connect to a path of a server on this authority; return the request as it came."""

        def ask(path: str, userinfo: str = "", **options: Any) -> servers.Upgrade:
            requests = []

            def script(sock: socket.socket) -> None:
                requests.append(servers.read_request(sock))
                sock.sendall(servers.upgrade_response(requests[0]))
                servers.hold(sock)

            server = raw_server(script)
            ws = WebSocket()
            ws.connect(f"ws://{userinfo}{server.host}:{server.port}{path}", timeout=5, **options)
            ws.shutdown()
            requests[0].headers["expected host"] = f"{server.host}:{server.port}"
            return requests[0]

        return ask

    @pytest.mark.parametrize(
        ("path", "sent"),
        [
            ("", "/"),
            ("?a=1", "/?a=1"),
            ("/a;p=1;q/b;r?x=1;y=2&z=%20", "/a;p=1;q/b;r?x=1;y=2&z=%20"),
            ("/%2F%2f/%41//../x", "/%2F%2f/%41//../x"),
            ("/a/?", "/a/?"),
            ("/a?b?c/d:e@f", "/a?b?c/d:e@f"),
            ("/grüße?ключ=é", "/gr%C3%BC%C3%9Fe?%D0%BA%D0%BB%D1%8E%D1%87=%C3%A9"),
        ],
    )
    def test_the_target_goes_out_as_it_was_given(
        self, ask: Callable[..., servers.Upgrade], path: str, sent: str
    ) -> None:
        request = ask(path)
        assert (request.method, request.target) == ("GET", sent)

    def test_the_host_is_the_servers(self, ask: Callable[..., servers.Upgrade]) -> None:
        request = ask("/")
        assert request.headers["host"] == request.headers["expected host"]
        assert request.raw.lower().count(b"\r\nhost:") == 1

    def test_a_host_of_the_users_takes_its_place(self, ask: Callable[..., servers.Upgrade]) -> None:
        request = ask("/", header=[("HOST", "virtual.example")])
        assert request.headers["host"] == "virtual.example"
        assert request.raw.lower().count(b"\r\nhost:") == 1

    def test_no_origin_unless_it_is_given(self, ask: Callable[..., servers.Upgrade]) -> None:
        assert "origin" not in ask("/").headers
        assert ask("/", origin="https://here.example").headers["origin"] == "https://here.example"

    @pytest.mark.parametrize(
        ("userinfo", "basic"),
        [
            ("alice:secret@", "YWxpY2U6c2VjcmV0"),
            ("alice@", "YWxpY2U6"),
            ("a%40b:p%3Aw%2F@", "YUBiOnA6dy8="),
            ("ü:ß@", "w7w6w58="),
        ],
    )
    def test_userinfo_becomes_basic_authorization(
        self, ask: Callable[..., servers.Upgrade], userinfo: str, basic: str
    ) -> None:
        assert ask("/", userinfo).headers["authorization"] == f"Basic {basic}"

    def test_a_given_authorization_wins(self, ask: Callable[..., servers.Upgrade]) -> None:
        request = ask("/", "alice:secret@", header=[("authorization", "Bearer t")])
        assert request.headers["authorization"] == "Bearer t"
        assert request.raw.lower().count(b"\r\nauthorization:") == 1

    def test_values_go_out_as_latin_1(self, ask: Callable[..., servers.Upgrade]) -> None:
        assert "X-Name: J\xfcrgen\r\n".encode("latin-1") in ask("/", header=[("X-Name", "Jürgen")]).raw

    @pytest.mark.parametrize(
        "options",
        [
            {"header": [("X", "a\r\nEvil: 1")]},
            {"header": [("X", "a\nEvil: 1")]},
            {"header": [("X", "a\0")]},
            {"header": [("X\r\nEvil", "1")]},
            {"header": [("X Y", "1")]},
            {"header": [("", "1")]},
            {"header": [("Host", "h\r\nEvil: 1")]},
            {"header": [("X", "€")]},
            {"header": ["X: a\r\nEvil: 1"]},
            {"header": ["no colon\r\n"]},
            {"header": {"X": "a\r\nEvil: 1"}},
            {"cookie": "a=1\r\nEvil: 1"},
            {"origin": "https://x\r\nEvil: 1"},
            {"subprotocols": ["chat\r\nEvil: 1"]},
        ],
        ids=repr,
    )
    def test_what_would_forge_lines_is_refused_before_anything_is_sent(
        self, echo: EchoServer, options: dict[str, Any]
    ) -> None:
        with pytest.raises(ValueError, match="header"):
            WebSocket().connect(echo.uri, timeout=5, **options)
        assert echo.opened == 0

    @pytest.mark.parametrize("path", ["/a\r\nEvil: 1", "/a b", "/\x00", "/a#b"])
    def test_and_so_is_a_path(self, echo: EchoServer, path: str) -> None:
        with pytest.raises(ValueError, match="invalid WebSocket URI"):
            WebSocket().connect(echo.uri + path, timeout=5)

    def test_ipv6(self) -> None:
        try:
            listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
        except OSError:
            pytest.skip("no IPv6 on this machine")
        requests = []

        def serve() -> None:
            with listener.accept()[0] as sock:
                requests.append(servers.upgrade(sock))
                sock.sendall(frame(1, b"six"))
                servers.hold(sock)

        with listener:
            listener.settimeout(5)
            serving = in_background(serve)
            port = listener.getsockname()[1]
            ws = WebSocket()
            ws.connect(f"ws://[::1]:{port}/", timeout=5)
            assert ws.recv_message(soon()) == "six"
            ws.shutdown()
            serving.result(5)
        assert requests[0].headers["host"] == f"[::1]:{port}"

    def test_a_name_that_is_not_ascii_is_looked_up_by_its_idna_form(self) -> None:
        with pytest.raises(ConnectionError, match=r"xn--bcher-kva\.invalid"):
            WebSocket().connect("ws://bücher.invalid/", timeout=5)


# --- one deadline for each operation


class TestDeadlines:
    @pytest.mark.parametrize("head", [b"HTTP/1.1 101 Switching Protocols\r\nX: " + b"x" * 4000, b""])
    def test_a_dripping_handshake(self, raw_server: RawFactory, head: bytes) -> None:
        def script(sock: socket.socket) -> None:
            servers.read_request(sock)
            servers.drip(sock, head, 0.02)
            servers.hold(sock)

        server = raw_server(script)
        with Stopwatch(), pytest.raises(TimeoutError) as caught:
            WebSocket().connect(server.uri, timeout=0.3)
        assert caught.value.operation == "connect"
        wait_until(lambda: server.open_now == 0)

    def test_a_dripping_tls_handshake(
        self, echo_tls: EchoServer, proxy: Callable[..., FaultProxy], tls: Tls
    ) -> None:
        through = proxy(echo_tls)
        through.drip(1, 0.02)
        with Stopwatch(), pytest.raises(TimeoutError):
            WebSocket().connect(through.uri("/"), timeout=0.3, ssl_context=tls.client_context)

    @pytest.mark.parametrize(
        "stream", [frame(1, b"x" * 1000), (frame(1, b"", fin=0) + frame(0, b"x", fin=0) * 500)]
    )
    def test_a_dripping_message(self, raw_server: RawFactory, connect: Connect, stream: bytes) -> None:
        ws = connect(raw_server(after_upgrade(then=lambda sock: servers.drip(sock, stream, 0.01))).uri)
        with Stopwatch(), pytest.raises(TimeoutError) as caught:
            ws.recv_message(soon(0.3))
        assert caught.value.operation == "recv"
        assert ws.failure is None

    def test_what_dripped_in_is_kept_for_the_next_call(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        stream = frame(1, b"0123456789" * 5)
        ws = connect(raw_server(after_upgrade(then=lambda sock: servers.drip(sock, stream, 0.02))).uri)
        with pytest.raises(TimeoutError):
            ws.recv_message(soon(0.2))
        assert ws.half_read
        assert ws.recv_message(soon()) == "0123456789" * 5

    def test_a_flood_of_pings_does_not_hold_recv(self, raw_server: RawFactory, connect: Connect) -> None:
        def flood(sock: socket.socket) -> None:
            while True:
                sock.sendall(frame(9, b"?") * 1000)

        ws = connect(raw_server(after_upgrade(then=flood)).uri)
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.recv_message(soon(0.3))
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.recv_message(monotonic())

    def test_a_flood_of_empty_fragments_neither(self, raw_server: RawFactory, connect: Connect) -> None:
        def flood(sock: socket.socket) -> None:
            sock.sendall(frame(1, fin=0))
            while True:
                sock.sendall(frame(0, fin=0) * 1000)

        ws = connect(raw_server(after_upgrade(then=flood)).uri)
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.recv_message(soon(0.3))

    def test_a_deadline_in_the_past_takes_what_is_there(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            servers.read_client_frame(sock)
            sock.sendall(frame(1, b"there"))
            servers.hold(sock)

        ws = connect(raw_server(script).uri)
        ws.send_message("go", soon())
        wait_until(lambda: select.select([ws.fileno()], [], [], 0)[0])
        assert ws.recv_message(0.0) == "there"
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.recv_message(0.0)

    def test_a_send_that_leaves_half_way_ends_the_connection(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        stopped = threading.Event()
        ws = connect(raw_server(after_upgrade(then=lambda sock: stopped.wait(10) and None)).uri)
        try:
            with Stopwatch(), pytest.raises(TimeoutError) as caught:
                ws.send_message(bytes(50_000_000), soon(0.3))
            assert caught.value.operation == "send"
            assert ws.is_over
            assert not ws.connected
            with pytest.raises(ConnectionClosedError):
                ws.send_message("more", soon())
            with pytest.raises(ConnectionClosedError):
                ws.recv_message(soon())
        finally:
            stopped.set()

    def test_a_send_of_which_nothing_left_leaves_it_usable(self, tmp_path: Path, connect: Connect) -> None:
        reading, received = threading.Event(), []
        listener = socket.socket(socket.AF_UNIX)  # takes a small frame as a whole or not at all
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as sock:
                servers.upgrade(sock)
                reading.wait(20)
                while (got := servers.read_client_frame(sock)).opcode == 2:
                    received.append(got.payload)

        serving = in_background(serve)
        ws = connect("ws://here/", unix=str(tmp_path / "s"))
        sent: list[bytes] = []
        with Stopwatch(20), pytest.raises(TimeoutError):
            while True:
                payload = b"%06d" % len(sent)
                before = ws.bytes_out
                ws.send_message(payload, soon(0.2))
                sent.append(payload)
        assert ws.bytes_out == before
        assert not ws.is_over
        assert ws.messages_sent == len(sent)
        reading.set()
        ws.send_message(b"last", soon())
        ws.start_close()
        serving.result(10)
        assert received == [*sent, b"last"]

    def test_a_goodbye_that_finds_no_room_leaves_when_there_is_some(
        self, tmp_path: Path, connect: Connect
    ) -> None:
        reading, opcodes = threading.Event(), []
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "s"))
        listener.listen()

        def serve() -> None:
            with listener, listener.accept()[0] as sock:
                servers.upgrade(sock)
                reading.wait(20)
                while not opcodes or opcodes[-1] != 8:
                    opcodes.append(servers.read_client_frame(sock).opcode)

        serving = in_background(serve)
        ws = connect("ws://here/", unix=str(tmp_path / "s"))
        with Stopwatch(20), pytest.raises(TimeoutError):
            while True:
                ws.send_message(b"more", soon(0.2))
        ws.start_close()
        threading.Timer(0.1, reading.set).start()
        ws.finish_close(soon(10))
        serving.result(10)
        assert opcodes[-1] == 8

    def test_waiting_for_another_sender_counts_too(self, raw_server: RawFactory, connect: Connect) -> None:
        stopped = threading.Event()
        ws = connect(raw_server(after_upgrade(then=lambda sock: stopped.wait(10) and None)).uri)
        blocked = in_background(lambda: ws.send_message(bytes(50_000_000), soon(8)))
        wait_until(ws.lock.locked)
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.send_message("x", soon(0.2))
        ws.abort()
        with pytest.raises(ConnectionClosedError):
            blocked.result(5)
        stopped.set()

    @pytest.mark.parametrize(
        "peer", ["silent", "not reading", "flooding", "dripping", "no close after its reply"]
    )
    def test_close_is_bounded(self, raw_server: RawFactory, connect: Connect, peer: str) -> None:
        stopped = threading.Event()

        def behave(sock: socket.socket) -> None:
            if peer == "flooding":
                while True:
                    sock.sendall(frame(1, b"x" * 1000) * 100)
            elif peer == "dripping":
                servers.drip(sock, frame(1, b"x" * 10000), 0.01)
            elif peer == "silent":
                servers.hold(sock)
            elif peer == "no close after its reply":
                servers.answer_close(sock)
            stopped.wait(10)

        ws = connect(raw_server(after_upgrade(then=behave)).uri)
        with Stopwatch():
            ws.close(timeout=0.3)
        assert ws.fileno() == -1
        stopped.set()

    def test_close_with_a_polite_peer_is_a_closing_handshake(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        said = []

        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            said.append(servers.read_client_frame(sock))
            sock.sendall(frame(8, said[0].payload))

        ws = connect(raw_server(script).uri)
        with Stopwatch():
            ws.close(4001, "enough", timeout=10)
        assert (said[0].opcode, said[0].masked, said[0].payload) == (8, True, b"\x0f\xa1enough")

    def test_a_ping_without_a_pong(self, raw_server: RawFactory, connect: Connect) -> None:
        ws = connect(raw_server(after_upgrade()).uri)
        with Stopwatch(), pytest.raises(TimeoutError) as caught:
            ws.measure_latency(soon(0.2))
        assert caught.value.operation == "ping"

    def test_pongs_that_nobody_asked_for_do_not_answer_a_ping(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        ws = connect(raw_server(after_upgrade(*[frame(10, b"made up")] * 20)).uri)
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.measure_latency(soon(0.3))


# --- ends


class TestEnds:
    @pytest.mark.parametrize("how", ["abort", "shutdown", "cut", "close"])
    def test_a_blocked_reader_wakes(self, raw_server: RawFactory, connect: Connect, how: str) -> None:
        ws = connect(raw_server(after_upgrade()).uri)
        blocked = in_background(lambda: ws.recv_message(soon(8)))
        wait_until(ws.readlock.locked)
        with Stopwatch():
            {
                "abort": ws.abort,
                "shutdown": ws.shutdown,
                "cut": lambda: ws.cut("a test"),
                "close": lambda: ws.close(timeout=0.2),
            }[how]()
            with pytest.raises(ConnectionClosedError):
                blocked.result(8)
        assert not ws.connected

    @pytest.mark.parametrize("ending", ["eof", "reset", "half a frame"])
    def test_a_loss_is_told_as_1006_and_for_good(
        self, raw_server: RawFactory, connect: Connect, ending: str
    ) -> None:
        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            sock.sendall(
                frame(1, b"last words") + (b"\x82\x7e\x10\x00abc" if ending == "half a frame" else b"")
            )
            servers.read_client_frame(sock)
            if ending == "reset":
                servers.reset(sock)

        ws = connect(raw_server(script).uri)
        ws.send_message("go", soon())
        assert ws.recv_message(soon()) == "last words"
        for _ in range(2):
            with pytest.raises(ConnectionClosedError) as caught:
                ws.recv_message(soon())
            assert caught.value.code == 1006
            assert not caught.value.is_normal
        assert not ws.connected
        with pytest.raises(ConnectionClosedError):
            ws.send_message("x", soon())

    def test_what_came_before_a_fault_is_still_read(self, raw_server: RawFactory, connect: Connect) -> None:
        ws = connect(raw_server(after_upgrade(frame(1, b"a") + frame(2, b"b") + frame(3))).uri)
        assert [ws.recv_message(soon()), ws.recv_message(soon())] == ["a", b"b"]
        with pytest.raises(ProtocolError):
            ws.recv_message(soon())

    def test_a_close_frame_is_answered_in_kind(self, raw_server: RawFactory, connect: Connect) -> None:
        replies = []

        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            sock.sendall(close_frame(4000, b"why"))
            replies.append(servers.read_client_frame(sock))

        ws = connect(raw_server(script).uri)
        with pytest.raises(ConnectionClosedError) as caught:
            ws.recv_message(soon())
        assert (caught.value.code, caught.value.reason) == (4000, "why")
        wait_until(lambda: replies)
        assert replies[0].payload[:2] == b"\x0f\xa0"

    def test_a_connection_is_connected_once(self, echo: EchoServer, connect: Connect) -> None:
        ws = connect(echo.uri)
        with pytest.raises(InvalidStateError):
            ws.connect(echo.uri, timeout=5)
        ws.close(timeout=1)
        with pytest.raises(InvalidStateError):
            ws.connect(echo.uri, timeout=5)

    def test_before_connect_there_is_nothing_to_use(self) -> None:
        for use in (lambda ws: ws.send_message("x"), lambda ws: ws.recv_message(), lambda ws: ws.ping()):
            with pytest.raises(InvalidStateError):
                use(WebSocket())
        WebSocket().close()

    def test_a_ping_is_answered_with_its_payload(self, raw_server: RawFactory, connect: Connect) -> None:
        pongs = []

        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            sock.sendall(frame(9, b"\x00\xff payload"))
            pongs.append(servers.read_client_frame(sock))
            sock.sendall(frame(1, b"done"))
            servers.hold(sock)

        ws = connect(raw_server(script).uri)
        assert ws.recv_message(soon()) == "done"
        assert (pongs[0].opcode, pongs[0].masked, pongs[0].payload) == (10, True, b"\x00\xff payload")

    def test_every_frame_has_another_mask(self, raw_server: RawFactory, connect: Connect) -> None:
        raw: list[bytes] = []

        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            raw.extend(servers.read_exactly(sock, 7) for _ in range(20))
            servers.hold(sock)

        ws = connect(raw_server(script).uri)
        for _ in range(20):
            ws.send_message("x", soon())
        wait_until(lambda: len(raw) == 20)
        assert len({each[2:6] for each in raw}) == 20

    def test_a_message_over_the_limit(self, raw_server: RawFactory, connect: Connect) -> None:
        ws = connect(raw_server(after_upgrade(frame(2, declared_length=10**10))).uri, max_message_size=1000)
        with pytest.raises(MessageTooBigError) as caught:
            ws.recv_message(soon())
        assert (caught.value.limit, caught.value.size, caught.value.code) == (1000, 10**10, 1009)

    def test_text_that_has_no_utf8_is_refused_before_a_byte_leaves(
        self, echo: EchoServer, connect: Connect
    ) -> None:
        ws = connect(echo.uri)
        out = ws.bytes_out
        with pytest.raises(ValueError, match="surrogates"):
            ws.send_message("\ud800", soon())
        assert ws.bytes_out == out
        ws.send_message("fine", soon())
        assert ws.recv_message(soon()) == "fine"


# --- TLS


class TestTls:
    def test_sending_receiving_and_pinging_at_once_loses_nothing(
        self, echo_tls: EchoServer, tls: Tls, connect: Connect
    ) -> None:
        ws = connect(echo_tls.uri, ssl_context=tls.client_context)
        stop = monotonic() + 2.0
        sent: list[str] = []
        pings = 0

        def send() -> None:
            while monotonic() < stop:
                number = len(sent)
                sent.append(f"{number}:" + "x" * (number * 37 % 5000))
                ws.send_message(sent[-1], soon())
            ws.send_message("end", soon())

        def ping() -> None:
            nonlocal pings
            while monotonic() < stop:
                ws.measure_latency(soon())
                pings += 1

        got: list[str | bytes] = []
        with ThreadPoolExecutor(2) as pool:
            workers = [pool.submit(send), pool.submit(ping)]
            while (message := ws.recv_message(soon(20))) != "end":
                got.append(message)
            for worker in workers:
                worker.result(10)
        assert got == sent
        assert len(sent) > 50
        assert pings > 0  # on a busy machine, hardly more than one in a second

    def test_large_messages_cross(self, echo_tls: EchoServer, tls: Tls, connect: Connect) -> None:
        ws = connect(echo_tls.uri, ssl_context=tls.client_context)
        sending = in_background(lambda: [ws.send_message(bytes([i]) * 3_000_000, soon(20)) for i in range(4)])
        for i in range(4):
            assert ws.recv_message(soon(20)) == bytes([i]) * 3_000_000
        sending.result(5)

    def refuse(self, server: RawServer | EchoServer, context: ssl.SSLContext | None) -> ConnectionError:
        with Stopwatch(6), pytest.raises(ConnectionError) as caught:
            WebSocket().connect(server.uri, timeout=5, ssl_context=context)
        return caught.value

    def certificate(self, tls: Tls, *names: str, **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.ca.issue_cert(*names, **options).configure_cert(context)
        return context

    def test_a_certificate_for_another_name(self, raw_server: RawFactory, tls: Tls) -> None:
        server = raw_server(servers.hold, ssl_context=tls.issue("other.example"))
        error = self.refuse(server, tls.client_context)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)

    def test_a_certificate_of_a_stranger(self, raw_server: RawFactory, tls: Tls) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trustme.CA().issue_cert(servers.LOCALHOST).configure_cert(context)
        error = self.refuse(raw_server(servers.hold, ssl_context=context), tls.client_context)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)

    def test_verification_is_the_default(self, echo_tls: EchoServer) -> None:
        error = self.refuse(echo_tls, None)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert echo_tls.opened == 0

    def test_a_certificate_that_has_expired(self, raw_server: RawFactory, tls: Tls) -> None:
        past = datetime.datetime(2020, 1, 1, tzinfo=datetime.timezone.utc)
        context = self.certificate(tls, servers.LOCALHOST, not_before=past, not_after=past.replace(year=2021))
        error = self.refuse(raw_server(servers.hold, ssl_context=context), tls.client_context)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert "expired" in str(error)

    def test_a_server_without_tls(self, raw_server: RawFactory, tls: Tls) -> None:
        def script(sock: socket.socket) -> None:
            first.append(sock.recv(1))
            sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        first: list[bytes] = []
        server = raw_server(script)
        with pytest.raises(ConnectionError) as caught:
            WebSocket().connect(server.uri.replace("ws:", "wss:"), timeout=5, ssl_context=tls.client_context)
        assert isinstance(caught.value.__cause__, (ssl.SSLError, OSError))
        assert first == [b"\x16"]  # a TLS record, and no plain request


# --- websocket-client's interface


class TestWebsocketClientsInterface:
    @pytest.fixture
    def ws(self, echo: EchoServer) -> Iterator[WebSocket]:
        ws = websocket.create_connection(echo.uri_for("/echo/1"), class_=WebSocket, timeout=5)
        yield ws
        ws.shutdown()

    def test_messages(self, ws: WebSocket) -> None:
        assert ws.send("text") == 4
        assert ws.recv() == "text"
        ws.send_binary(b"\x00")
        assert ws.recv() == b"\x00"
        ws.send_bytes(bytearray(b"more"))
        assert ws.recv_data() == (ABNF.OPCODE_BINARY, b"more")
        ws.send_text("ü")
        opcode, data = ws.recv_data_frame()
        assert (opcode, data.data) == (ABNF.OPCODE_TEXT, "ü".encode())
        ws.send_frame(ABNF.create_frame("frame", ABNF.OPCODE_TEXT))
        assert ws.recv_frame().data == b"frame"
        ws.send("next")
        assert next(ws) == "next"
        ws.send("")
        assert ws.recv() == ""

    def test_pings(self, ws: WebSocket, echo: EchoServer) -> None:
        ws.ping()
        ws.ping("payload")
        ws.pong(b"nobody asked")
        wait_until(lambda: echo.pings == 2)
        ws.send("alive")
        assert ws.recv() == "alive"
        with pytest.raises(ValueError, match="125"):
            ws.ping(b"x" * 126)

    def test_fragments_are_refused(self, ws: WebSocket) -> None:
        with pytest.raises(ValueError, match="fragments"):
            ws.send_frame(ABNF.create_frame("a", ABNF.OPCODE_TEXT, 0))

    def test_what_it_tells(self, ws: WebSocket, echo: EchoServer) -> None:
        assert ws.connected
        assert ws.status == 101
        assert ws.headers["upgrade"].lower() == "websocket"
        assert ws.subprotocol is None
        assert ws.fileno() > 0
        assert not ws.is_ssl()
        assert ws.gettimeout() == ws.timeout == 5
        wait_until(lambda: echo.paths == ["/echo/1"])

    def test_its_timeout(self, ws: WebSocket) -> None:
        ws.settimeout(0.1)
        with Stopwatch(), pytest.raises(builtin_timeout):
            ws.recv()
        ws.timeout = 5
        ws.send("after")
        assert ws.recv() == "after"

    def test_close(self, ws: WebSocket, echo: EchoServer) -> None:
        ws.close()
        wait_until(lambda: echo.open_now == 0)
        assert not ws.connected
        with pytest.raises(ConnectionClosedError):
            ws.recv()
        ws.close()

    def test_a_close_of_the_server(self, echo: EchoServer) -> None:
        ws = websocket.create_connection(
            echo.uri_for("/close?code=4002&reason=done"), class_=WebSocket, timeout=5
        )
        ws.send("x")
        opcode, closing = ws.recv_data_frame(control_frame=True)
        assert (opcode, closing.data) == (ABNF.OPCODE_CLOSE, b"\x0f\xa2done")
        ws.close()

    def test_abort_wakes_a_blocked_reader(self, ws: WebSocket) -> None:
        blocked = in_background(ws.recv)
        wait_until(ws.readlock.locked)
        ws.abort()
        with pytest.raises(ConnectionClosedError):
            blocked.result(5)

    def test_its_timeout_holds_for_connect_too(self, raw_server: RawFactory) -> None:
        server = raw_server(servers.hold)
        with Stopwatch(), pytest.raises(builtin_timeout):
            websocket.create_connection(server.uri, class_=WebSocket, timeout=0.3)

    @pytest.mark.parametrize(
        "header", [["X-A: 1", "X-B:2"], {"X-A": "1", "X-B": "2"}, [("X-A", "1"), ("X-B", "2")]]
    )
    def test_headers_in_its_forms(self, echo: EchoServer, header: Any) -> None:
        ws = websocket.create_connection(
            echo.uri,
            class_=WebSocket,
            timeout=5,
            header=header,
            cookie="c=3",
            origin="https://o.example",
            subprotocols=None,
        )
        ws.close()
        wait_until(lambda: echo.requests)
        headers = echo.requests[0].headers
        assert [headers[name] for name in ("X-A", "X-B", "Cookie", "Origin")] == [
            "1",
            "2",
            "c=3",
            "https://o.example",
        ]

    def test_without_its_locks(self, echo: EchoServer) -> None:
        ws = websocket.create_connection(echo.uri, class_=WebSocket, timeout=5, enable_multithread=False)
        ws.send("x")
        assert ws.recv() == "x"
        ws.close()

    def test_subprotocols(self, echo_server: Callable[..., EchoServer]) -> None:
        server = echo_server(subprotocols=["Chat.V2"])
        ws = websocket.create_connection(
            server.uri, class_=WebSocket, timeout=5, subprotocols=["chat.v1", "Chat.V2"]
        )
        assert ws.subprotocol == "Chat.V2"
        ws.close()

    def test_json_over_it(self, ws: WebSocket) -> None:
        ws.send(json.dumps({"id": 1}))
        assert json.loads(ws.recv()) == {"id": 1}


class Stopping:
    """A lock; the thread `who` stops for a while right after it took it, or right before it lets go."""

    def __init__(self, when: str) -> None:
        self.when, self.who = when, threading.current_thread()
        self.stopped, self.go_on = threading.Event(), threading.Event()
        self.lock = threading.Lock()

    def acquire(self, *args: Any, **kwargs: Any) -> bool:
        taken = self.lock.acquire(*args, **kwargs)
        self.stop("taken")
        return taken

    def release(self) -> None:
        self.stop("letting go")
        self.lock.release()

    def locked(self) -> bool:
        return self.lock.locked()

    def stop(self, when: str) -> None:
        if threading.current_thread() is self.who and self.when == when:
            self.stopped.set()
            assert self.go_on.wait(5)


@pytest.mark.parametrize("when", ["taken", "letting go"])
def test_a_look_outlasts_a_tend_wherever_that_is_stopped(
    connect: Connect, echo: EchoServer, when: str
) -> None:
    ws = connect(echo.uri)
    lock = ws.readlock = Stopping(when)
    lock.who = threading.Thread(target=ws.tend)
    lock.who.start()
    assert lock.stopped.wait(5)
    timer = threading.Timer(0.1, lock.go_on.set)
    timer.start()
    assert ws.look()
    timer.join()
    lock.who.join(5)


@pytest.mark.parametrize("when", ["taken", "letting go"])
def test_a_ping_under_way_is_no_sending_wherever_it_is_stopped(
    connect: Connect, echo: EchoServer, when: str
) -> None:
    ws = connect(echo.uri)
    lock = ws.lock = Stopping(when)
    lock.who = threading.Thread(target=ws.send_ping)
    lock.who.start()
    assert lock.stopped.wait(5)
    timer = threading.Timer(0.1, lock.go_on.set)
    timer.start()
    assert not ws.is_sending()
    timer.join()
    lock.who.join(5)


def test_a_message_under_way_is_sending(connect: Connect, echo: EchoServer) -> None:
    ws = connect(echo.uri)
    lock = ws.lock = Stopping("taken")
    lock.who = threading.Thread(target=ws.send_message, args=("x",))
    lock.who.start()
    assert lock.stopped.wait(5)
    assert ws.is_sending()
    lock.go_on.set()
    lock.who.join(5)
    assert not ws.is_sending()


def test_a_pong_that_can_not_be_sent_at_once_is_left_unfinished(
    connect: Connect, raw_server: RawFactory
) -> None:
    ponged = threading.Event()

    def ping(sock: socket.socket) -> None:
        servers.read_client_frame(sock)
        sock.sendall(frame(9, b"?"))
        while servers.read_client_frame(sock).payload != b"?":
            pass
        ponged.set()
        servers.hold(sock)

    ws = connect(raw_server(after_upgrade(then=ping)).uri)
    ws.unfinished = set()
    ws.send("now")
    with ws.lock:  # somebody is sending
        wait_until(lambda: ws.tend() and ws.unfinished == {ws})
    ws.unfinished.clear()
    ws.finish()
    assert ponged.wait(5)
    assert not ws.unfinished


class TestAtRest:
    """What is at rest may be lent without further questions, so nothing else may seem to be."""

    @pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
    def test_an_open_connection_is(
        self, connect: Connect, echo_server: Callable[..., EchoServer], tls: Tls, secure: bool
    ) -> None:
        echo = echo_server(ssl_context=tls.server_context if secure else None)
        ws = connect(echo.uri, ssl_context=tls.client_context)
        ws.send("hello")
        assert ws.recv() == "hello"
        wait_until(ws.at_rest)  # TLS may still send session tickets
        ws.cut("over")
        assert not ws.at_rest()

    @pytest.mark.parametrize("looked", [False, True], ids=["in the socket", "looked at"])
    @pytest.mark.parametrize(
        "sent",
        [
            frame(1, b"unread"),
            frame(1, b"half")[:3],
            frame(1, b"a piece", fin=False),
            frame(8, b"\x03\xe8"),
            b"",
        ],
        ids=["a message", "half a frame", "half a message", "a close", "the end"],
    )
    def test_one_is_not_on_which_something_came(
        self, raw_server: RawFactory, connect: Connect, sent: bytes, looked: bool
    ) -> None:
        def then(sock: socket.socket) -> None:
            sock.recv(100)
            sock.sendall(sent)
            if sent:
                servers.hold(sock)

        ws = connect(raw_server(after_upgrade(then=then)).uri)
        assert ws.at_rest()
        ws.send("now")
        assert select.select([ws], [], [], 5)[0]
        assert not looked or ws.look()
        assert not ws.at_rest()

    def test_one_is_not_that_somebody_uses(self, connect: Connect, echo: EchoServer) -> None:
        ws = connect(echo.uri)
        for name in ("lock", "readlock"):
            with getattr(ws, name):
                assert not ws.at_rest()
        assert ws.at_rest()
        reader = in_background(ws.recv)
        wait_until(ws.readlock.locked)
        assert not ws.at_rest()
        ws.send("so that it ends")
        assert reader.result(5) == "so that it ends"

    def test_one_is_not_whose_last_message_is_half_sent(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        over = threading.Event()
        ws = connect(raw_server(after_upgrade(then=lambda _: over.wait(10))).uri)  # reads nothing
        try:
            with pytest.raises(TimeoutError):
                ws.send_message(bytes(1 << 26), soon(0.2))
            assert not ws.at_rest()
        finally:
            over.set()

    def test_none_is_before_it_is_connected(self) -> None:
        assert not WebSocket().at_rest()


def test_a_look_that_took_too_long_but_read_all_leaves_nothing_unread(
    raw_server: RawFactory, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that the system did not let run for a while must not cost an idle connection."""

    def ping_when_told(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(frame(9, b"?"))
        servers.hold(sock)

    ws = connect(raw_server(after_upgrade(then=ping_when_told)).uri)
    ws.send("now")
    assert select.select([ws], [], [], 5)[0]
    ticks = itertools.count(monotonic(), 0.04)
    monkeypatch.setattr("jetsocket.wire.websocket.monotonic", lambda: next(ticks))
    assert ws.look()
    assert not ws.unread


builtin_timeout = TimeoutError
