"""How a connection is opened, and websocket-client's interface.

Also tests: `connecting`.
"""

from __future__ import annotations

import base64
import builtins
import datetime
import json
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import trustme
import websocket
from websocket import ABNF

from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    InvalidStateError,
    TimeoutError,
)
from jetsocket.wire.upgrade_request import Requests
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, frame, wait_until
from tests.wire.conftest import Connect, RawFactory, Stopwatch, in_background, soon

# --- what is sent to the server


class TestRequest:
    @pytest.fixture(params=["written by websocket-client", "sent again"])
    def ask(self, request: pytest.FixtureRequest, raw_server: RawFactory) -> Callable[..., servers.Upgrade]:
        """Connect to a path of a server on this authority; return the request as it came."""
        times = 2 if request.param == "sent again" else 1

        def ask(path: str, userinfo: str = "", **options: Any) -> servers.Upgrade:
            requests, written = [], Requests()

            def script(sock: socket.socket) -> None:
                requests.append(servers.read_request(sock))
                sock.sendall(servers.upgrade_response(requests[-1]))
                servers.hold(sock)

            server = raw_server(script)
            for _ in range(times):
                ws = WebSocket()
                ws.requests = written
                ws.connect(f"ws://{userinfo}{server.host}:{server.port}{path}", timeout=5, **options)
                assert ws.getstatus() == 101
                key = requests[-1].headers.pop("sec-websocket-key")
                assert len(base64.b64decode(key, validate=True)) == 16
                assert ws.handshake_response.headers["sec-websocket-accept"] == servers.accept_for(key)
                ws.shutdown()
                requests[-1].raw = requests[-1].raw.replace(key.encode(), b"KEY")
            requests[-1].headers["expected host"] = f"{server.host}:{server.port}"
            assert all(each.raw == requests[0].raw for each in requests)
            return requests[-1]

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


# --- connecting


class TestConnecting:
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


class TestCertificates:
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
        with Stopwatch(), pytest.raises(builtins.TimeoutError):
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
        with Stopwatch(), pytest.raises(builtins.TimeoutError):
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
