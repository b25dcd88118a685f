"""The servers that every other test trusts do what they say."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable

import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as ws_connect

from tests import servers
from tests.servers import LOCALHOST, EchoServer, RawServer, wait_until


def connect(uri: str, **options: object) -> ClientConnection:
    """Another client than the library's own, so that a fault in one is not hidden by the other."""
    return ws_connect(uri, proxy=None, compression=None, ping_interval=None, close_timeout=1, **options)


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class TestWaitUntil:
    def test_returns_the_value(self) -> None:
        assert wait_until(lambda: 7) == 7

    def test_waits_for_another_thread(self) -> None:
        ready = threading.Event()
        timer = threading.Timer(0.05, ready.set)
        timer.start()
        assert wait_until(ready.is_set)
        timer.join()

    def test_fails_with_the_message(self) -> None:
        with pytest.raises(AssertionError, match=r"not within 0.01 s: the cows come home \(last value: 0\)"):
            wait_until(lambda: 0, 0.01, "the cows come home")


def test_open_sockets_counts_a_socket() -> None:
    before = servers.open_sockets()
    with socket.socket():
        assert servers.open_sockets() == before + 1
    assert servers.open_sockets() == before


def test_refusing_port_refuses() -> None:
    with servers.refusing_port() as port, pytest.raises(ConnectionRefusedError):
        socket.create_connection((LOCALHOST, port), 1)


class TestEchoServer:
    def test_echoes_and_counts(self, echo: EchoServer) -> None:
        with connect(echo.uri_for("/a?b=1")) as ws:
            ws.send("text")
            assert ws.recv() == "text"
            ws.send(b"\0\xff")
            assert ws.recv() == b"\0\xff"
            assert (echo.opened, echo.open_now, echo.most_open, echo.messages) == (1, 1, 1, 2)
        assert echo.open_now == 0
        assert echo.paths == ["/a?b=1"]

    def test_over_tls(self, echo_tls: EchoServer, tls: object) -> None:
        with connect(echo_tls.uri, ssl=tls.serial_client_context) as ws:
            ws.send("text")
            assert ws.recv() == "text"
            assert echo_tls.open_now == 1
        assert echo_tls.open_now == 0

    def test_tls_survives_both_directions_at_once(self, echo_tls: EchoServer, tls: object) -> None:
        message = b"x" * 20_000
        with connect(echo_tls.uri, ssl=tls.serial_client_context) as ws:
            for _ in range(100):
                ws.send(message)
            assert all(ws.recv(5) == message for _ in range(100))

    def test_most_open_is_the_most_at_one_moment(self, echo: EchoServer) -> None:
        for _ in range(3):
            with connect(echo.uri), connect(echo.uri) as second:
                second.send("both handlers run by the time this comes back")
                second.recv()
                wait_until(lambda: echo.open_now == 2)
        assert (echo.opened, echo.most_open) == (6, 2)

    @pytest.mark.parametrize("leave", ["close frame", "FIN", "RST"])
    def test_a_client_that_left_is_not_open_even_before_the_handler_noticed(
        self, echo_server: Callable[..., EchoServer], leave: str
    ) -> None:
        busy = threading.Event()
        server = echo_server(lambda conn: busy.wait(10) and None)
        with socket.create_connection((server.host, server.port), 5) as sock:
            sock.sendall(UPGRADE)
            wait_until(lambda: server.open_now == 1)
            sock.recv(65536)
            if leave == "close frame":
                sock.sendall(servers.frame(8, b"\x03\xe8", masked=True))
            elif leave == "FIN":
                sock.shutdown(socket.SHUT_WR)
            else:
                servers.reset(sock)
            wait_until(lambda: server.open_now == 0, 1)
            busy.set()

    def test_late_answers_after_the_delay(self, echo: EchoServer) -> None:
        with connect(echo.uri_for("/late")) as ws:
            ws.send(json.dumps({"delay": 0.1}))
            with pytest.raises(TimeoutError):
                ws.recv(0.02)
            assert json.loads(ws.recv(2)) == {"delay": 0.1}

    def test_push_double_ids_greet_silent(self, echo: EchoServer) -> None:
        with connect(echo.uri_for("/push?count=2")) as ws:
            assert [json.loads(ws.recv(2)) for _ in range(2)] == [{"push": 0}, {"push": 1}]
        with connect(echo.uri_for("/double")) as ws:
            ws.send("x")
            assert [ws.recv(2), ws.recv(2)] == ["x", "x"]
        with connect(echo.uri_for("/ids/3")) as ws:
            ws.send('{"id": 5, "a": 1}')
            assert json.loads(ws.recv(2)) == {"id": 5, "result": {"id": 5, "a": 1}}
        with connect(echo.uri_for("/greet")) as ws:
            assert json.loads(ws.recv(2)) == {"hello": "/greet"}
        with connect(echo.uri_for("/silent")) as ws:
            ws.send("x")
            with pytest.raises(TimeoutError):
                ws.recv(0.02)

    def test_close_by_path_and_by_handler(
        self, echo: EchoServer, echo_server: Callable[..., EchoServer]
    ) -> None:
        with connect(echo.uri_for("/close?code=4001&reason=bye")) as ws:
            ws.send("x")
            with pytest.raises(ConnectionClosedError) as caught:
                ws.recv(2)
            assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4001, "bye")
        with connect(echo_server(servers.close_with(1000, after=2)).uri) as ws:
            for text in "ab":
                ws.send(text)
                assert ws.recv(2) == text
            with pytest.raises(ConnectionClosed):
                ws.recv(2)

    def test_counts_pings_and_sends_its_own(self, echo_server: Callable[..., EchoServer]) -> None:
        server = echo_server(ping_interval=0.05, ping_timeout=1)
        with connect(server.uri) as ws:
            assert ws.ping().wait(2)
            wait_until(lambda: server.pings == 1)
            wait_until(lambda: any(conn.latency for conn in server.connections), 2, "a pong for the server")

    def test_subprotocols_and_process_request(self, echo_server: Callable[..., EchoServer]) -> None:
        def refuse(conn: object, request: object) -> object:
            return conn.respond(401, "no\n") if request.path == "/secret" else None

        server = echo_server(subprotocols=["v2.json"], process_request=refuse)
        with connect(server.uri, subprotocols=["v1", "v2.json"]) as ws:
            assert ws.subprotocol == "v2.json"
        with pytest.raises(InvalidStatus):
            connect(server.uri_for("/secret"))
        assert server.opened == 1

    @pytest.mark.parametrize("abrupt", [False, True])
    def test_stops_and_restarts_on_the_same_port(self, abrupt: bool) -> None:
        with EchoServer() as server:
            with connect(server.uri) as ws:
                wait_until(lambda: server.open_now == 1)
                server.stop(abrupt=abrupt)
                with pytest.raises(ConnectionClosed) as caught:
                    ws.recv(2)
                assert caught.value.rcvd is None if abrupt else caught.value.rcvd.code == 1001
            with pytest.raises(ConnectionRefusedError):
                connect(server.uri)
            server.restart()
            with connect(server.uri) as ws:
                ws.send("again")
                assert ws.recv(2) == "again"
            assert server.opened == 2

    def test_stop_does_not_wait_for_a_late_answer(self) -> None:
        with EchoServer() as server, connect(server.uri_for("/late")) as ws:
            ws.send('{"delay": 60}')
            wait_until(lambda: server.messages == 1)
            server.stop()

    def test_close_all_cut_all_broadcast(self, echo: EchoServer) -> None:
        with connect(echo.uri) as ws:
            wait_until(lambda: echo.open_now == 1)
            echo.broadcast("news")
            assert ws.recv(2) == "news"
            echo.close_all(1012, "restart")
            with pytest.raises(ConnectionClosedError, match="1012"):
                ws.recv(2)
        with connect(echo.uri) as ws:
            wait_until(lambda: echo.open_now == 1)
            echo.cut_all()
            with pytest.raises(ConnectionClosedError, match="no close frame"):
                ws.recv(2)

    def test_leaves_no_socket_behind(self) -> None:
        before = servers.open_sockets()
        with EchoServer() as server, connect(server.uri), connect(server.uri):
            wait_until(lambda: server.open_now == 2)
        wait_until(lambda: servers.open_sockets() == before, 2, "all sockets closed")


def raw_client(server: RawServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), 5)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65536), b""))


class TestRawServer:
    def test_upgrade_and_frames_work_with_a_real_client(self, raw_server: Callable[..., RawServer]) -> None:
        seen = []

        def script(sock: socket.socket) -> None:
            seen.append(servers.upgrade(sock, [("X-Server", "raw")]))
            seen.append(servers.read_client_frame(sock))
            for size in (0, 125, 126, 65535, 65536):
                sock.sendall(servers.frame(2, bytes(size)))
            sock.sendall(servers.close_frame(4000, b"done"))
            servers.answer_close(sock)

        server = raw_server(script)
        with connect(server.uri_for("/p?q=1")) as ws:
            assert ws.response.headers["X-Server"] == "raw"
            ws.send("x" * 70_000)
            assert [len(ws.recv(2)) for _ in range(5)] == [0, 125, 126, 65535, 65536]
            with pytest.raises(ConnectionClosedError, match="4000"):
                ws.recv(2)
        request, frame = seen
        assert (request.method, request.target) == ("GET", "/p?q=1")
        assert request.headers["host"] == f"{server.host}:{server.port}"
        assert (frame.fin, frame.opcode, frame.masked, len(frame.payload)) == (1, 1, True, 70_000)

    def test_over_tls(self, raw_server: Callable[..., RawServer], tls: object) -> None:
        script = servers.after_upgrade(servers.frame(1, b"hello"), then=servers.answer_close)
        server = raw_server(script, ssl_context=tls.server_context)
        with connect(server.uri, ssl=tls.serial_client_context) as ws:
            assert ws.recv(2) == "hello"

    def test_a_client_that_refuses_tls_harms_nobody(
        self, raw_server: Callable[..., RawServer], tls: object
    ) -> None:
        server = raw_server(servers.hold, ssl_context=tls.server_context)
        with raw_client(server) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                read_all(sock)
        with pytest.raises(ssl.SSLCertVerificationError):
            connect(server.uri, ssl=ssl.create_default_context())
        wait_until(lambda: server.open_now == 0)

    @pytest.mark.parametrize("status", ["401 Unauthorized", "404 Not Found", "500 Oops", "200 OK"])
    def test_answer(self, raw_server: Callable[..., RawServer], status: str) -> None:
        server = raw_server(servers.answer(status, [("Content-Length", "2")], b"no"))
        with pytest.raises(InvalidStatus) as caught:
            connect(server.uri)
        assert caught.value.response.status_code == int(status[:3])
        assert caught.value.response.body == b"no"

    def test_frames_that_no_honest_server_sends(self) -> None:
        assert servers.frame(1, b"a", fin=0, rsv=4) == b"\x41\x01a"
        assert servers.frame(9, declared_length=10 << 30)[:2] == b"\x89\x7f"
        masked = servers.frame(1, b"abcde", masked=True)
        assert masked[1] == 0x85 and masked[6:] != b"abcde" and len(masked) == 11

    def test_reset_sends_rst(self, raw_server: Callable[..., RawServer]) -> None:
        # The RST may come as early as connect().
        with pytest.raises(ConnectionResetError), raw_client(raw_server(servers.reset)) as sock:
            sock.recv(1)

    def test_drip_sends_piece_by_piece(self, raw_server: Callable[..., RawServer]) -> None:
        with raw_client(raw_server(lambda sock: servers.drip(sock, b"abcd", 0.02, size=2))) as sock:
            assert [sock.recv(10), sock.recv(10), sock.recv(10)] == [b"ab", b"cd", b""]

    def test_a_failing_script_fails_the_test(self) -> None:
        def script(sock: socket.socket) -> None:
            raise ValueError("the script is wrong")

        with pytest.raises(AssertionError, match="the script is wrong"):  # noqa: SIM117
            with RawServer(script) as server, raw_client(server) as sock:
                assert read_all(sock) == b""

    def test_a_peer_that_leaves_fails_nothing(self, raw_server: Callable[..., RawServer]) -> None:
        server = raw_server(lambda sock: servers.upgrade(sock) and None)
        raw_client(server).close()
        wait_until(lambda: server.accepted == 1 and server.open_now == 0)

    def test_stop_ends_scripts_that_hold(self) -> None:
        before = servers.open_sockets()
        with RawServer(servers.hold) as server, raw_client(server), raw_client(server):
            wait_until(lambda: server.open_now == 2)
        assert server.open_now == 0
        assert servers.open_sockets() == before
