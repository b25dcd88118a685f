"""The HTTP upgrade: what is read of the server's answer, and what is refused.

Also tests: `upgrade_answer`, `headers`, `upgrade_request`.
"""

from __future__ import annotations

import base64
import contextlib
import re
import ssl
import threading
from collections.abc import Callable
from time import monotonic, thread_time
from typing import Any

import pytest
import websocket
from hypothesis import given, settings
from hypothesis import strategies as st

from jetsocket import ConnectionPool
from jetsocket.exceptions import ConnectionError, HandshakeError
from jetsocket.uris import parse
from jetsocket.wire.headers import Headers, parse_head, parse_switch, unchunk
from jetsocket.wire.stream import Stream
from jetsocket.wire.upgrade import MAX_HEAD, Upgrade
from jetsocket.wire.upgrade_answer import accept_for, check_switch, check_upgrade
from jetsocket.wire.upgrade_request import Requests, Shape
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer
from tests.sizes import size
from tests.test_bad_peers import memory_below

RawFactory = Callable[..., RawServer]
MakePool = Callable[..., ConnectionPool[Any]]

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="  # the example of RFC 6455 §1.3
ACCEPT = ("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")


class TestHead:
    def test_status_reason_and_fields(self) -> None:
        status, reason, headers = parse_head(b"HTTP/1.1 401 Not You\r\nA: 1\r\nb:\t2 \r\nA:3")
        assert (status, reason) == (401, "Not You")
        assert dict(headers) == {"a": "1, 3", "b": "2"}
        assert headers.get_all("A") == ["1", "3"]

    @pytest.mark.parametrize("line", [b"HTTP/1.1 101", b"HTTP/1.0 101 ", b"HTTP/1.1 101 Switching Protocols"])
    def test_a_reason_may_be_missing(self, line: bytes) -> None:
        assert parse_head(line)[0] == 101

    def test_a_plain_101_is_read_in_one_go(self) -> None:
        head = b"HTTP/1.1 101 Switching: Protocols\r\nA:  1 \r\nb:\r\nA:3: 4\r\n\r\nrest\r\n\r\n"
        found = parse_switch(head)
        assert found is not None
        assert dict(found[0]) == {"a": "1, 3: 4", "b": ""}
        assert found[0].get_all("a") == ["1", "3: 4"]
        assert found[1] == b"rest\r\n\r\n"

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"HTTP/1.1 101\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nA: 1\r\n",
            b"HTTP/1.1 200 OK\r\nA: 1\r\n\r\n",
            b"HTTP/1.0 101 Switching Protocols\r\nA: 1\r\n\r\n",
            b"HTTP/1.1 1011\r\nA: 1\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\nA: 1\n\n",
            b"HTTP/1.1 101 Switching Protocols\r\nA: 1\nB: 2\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nA: 1\r\n b\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nA : 1\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\n: 1\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nA: \xe4\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nA: \0\r\n\r\n",
            b"HTTP/1.1 101 Switching Protocols\r\nno colon\r\n\r\n",
        ],
    )
    def test_any_other_is_left_to_who_looks_at_each_line(self, head: bytes) -> None:
        assert parse_switch(head) is None

    def test_very_many_lines_cost_it_no_memory(self) -> None:
        head = b"HTTP/1.1 101 Switching Protocols\r\n" + b"a:\r\n" * 16_000
        with memory_below(100_000):
            assert parse_switch(head) is None

    @settings(max_examples=size(200, 5000))
    @given(
        st.lists(
            st.sampled_from([b"HTTP/1.1 101", b" ", b"\r\n", b"\n", b":", b"a", b"A-b", b"\t", b"\xe4"])
        ),
        st.binary(max_size=3),
    )
    def test_whoever_reads_it_finds_the_same(self, parts: list[bytes], rest: bytes) -> None:
        data = b"HTTP/1.1 101 ok\r\na:1" + b"".join(parts) + b"\r\n\r\n" + rest
        if (found := parse_switch(data)) is not None:
            head, _, left = data.partition(b"\r\n\r\n")
            status, _, headers = parse_head(head)
            assert (status, dict(headers), left) == (101, dict(found[0]), found[1])
            assert all(headers.get_all(name) == found[0].get_all(name) for name in headers)

    @pytest.mark.parametrize(
        "head",
        [
            b"",
            b"SSH-2.0-OpenSSH_9.2",
            b"HTTP/2 200",
            b"HTTP/1.1 20",
            b"HTTP/1.1 2000 OK",
            b"HTTP/1.1 -10 OK",
            b"HTTP/1.1  101 OK",
            b"\x15\x03\x01\x00\x02\x02\x50",
            b"HTTP/1.1 101 OK\r\nno colon",
            b"HTTP/1.1 101 OK\r\n: no name",
            b"HTTP/1.1 101 OK\r\nname : blank before the colon",
            b"HTTP/1.1 101 OK\r\nA: 1\r\n folded: line",
            b"HTTP/1.1 101 OK\r\nA: 1\nB: 2",
            b"HTTP/1.1 101 OK\r\nA: 1\rB: 2",
            b"HTTP/1.1 101 OK\r\nA: 1\x00",
        ],
    )
    def test_what_is_no_http_is_a_value_error(self, head: bytes) -> None:
        with pytest.raises(ValueError, match="line"):
            parse_head(head)

    @pytest.mark.deep
    @settings(deadline=None, max_examples=size(60, 2000))
    @given(head=st.binary(max_size=200))
    def test_noise_is_a_value_error_or_nothing(self, head: bytes) -> None:
        for prefix in (b"", b"HTTP/1.1 200 OK\r\n"):
            with contextlib.suppress(ValueError):
                parse_head(prefix + head)


class TestHeaders:
    def test_names_are_case_insensitive(self) -> None:
        headers = Headers([("Content-Type", "a"), ("X", "b")])
        assert headers["CONTENT-type"] == "a"
        assert "content-TYPE" in headers
        assert headers.get("y") is None
        assert len(headers) == 2

    def test_a_missing_one_is_a_key_error(self) -> None:
        with pytest.raises(KeyError):
            Headers()["x"]

    def test_cookies_are_read_one_by_one(self) -> None:
        headers = Headers([("Set-Cookie", "a=1; Expires=Thu, 01 Jan"), ("set-cookie", "b=2")])
        assert headers.get_all("Set-Cookie") == ["a=1; Expires=Thu, 01 Jan", "b=2"]

    def test_thousands_of_them_are_read_in_linear_time(self) -> None:
        begun = thread_time()
        assert len(dict(Headers([(f"X-{n}", "") for n in range(8000)]))) == 8000
        assert thread_time() - begun < 2  # 5 s and more, if each look-up reads them all

    def test_the_repr_shows_no_values(self) -> None:
        headers = Headers([("Set-Cookie", "hidden"), ("Hidden-Too", "x"), ("Via", "y")])
        assert repr(headers) == "Headers(['set-cookie', 'via'] and 1 more)"
        assert repr(Headers()) == "Headers([])"


class TestProof:
    def test_the_example_of_the_rfc(self) -> None:
        assert accept_for(KEY) == ACCEPT[1]
        assert check_upgrade(Headers([ACCEPT]), ACCEPT[1], []) is None

    def test_the_subprotocol_is_one_of_the_offered_as_it_was_spelt(self) -> None:
        chosen = Headers([ACCEPT, ("Sec-WebSocket-Protocol", "Chat.v2")])
        assert check_upgrade(chosen, ACCEPT[1], ["chat.v1", "Chat.v2"]) == "Chat.v2"

    def test_a_server_may_choose_none_of_the_offered(self) -> None:
        assert check_upgrade(Headers([ACCEPT]), ACCEPT[1], ["chat"]) is None

    @pytest.mark.parametrize("nothing", ["", " ", ",", ", ,\t"])
    def test_an_empty_choice_is_none(self, nothing: str) -> None:
        chosen = [("Sec-WebSocket-Protocol", nothing), ("Sec-WebSocket-Extensions", nothing)]
        assert check_upgrade(Headers([ACCEPT, *chosen]), ACCEPT[1], ["chat"]) is None
        assert check_upgrade(Headers([ACCEPT, *chosen, *chosen]), ACCEPT[1], []) is None

    @pytest.mark.parametrize(
        ("upgrade", "connection"),
        [
            ("websocket", "Upgrade"),
            ("WebSocket", "upgrade"),
            ("websocket, WebSocket", "keep-alive, Upgrade"),
            (" websocket ,", "Upgrade, , Keep-Alive"),
        ],
    )
    def test_a_switch_to_websocket(self, upgrade: str, connection: str) -> None:
        check_switch(Headers([("Upgrade", upgrade), ("Connection", connection)]))

    @pytest.mark.parametrize(
        ("upgrade", "connection"),
        [
            ("websocket, h2c", "Upgrade"),
            ("h2c, websocket", "Upgrade"),
            ("h2c", "Upgrade"),
            ("websocket/13", "Upgrade"),
            ("", "Upgrade"),
            ("websocket", ""),
            ("websocket", "close"),
            ("websocket", "not-upgrade"),
        ],
    )
    def test_a_switch_to_anything_else(self, upgrade: str, connection: str) -> None:
        with pytest.raises(ValueError, match="something else than WebSocket"):
            check_switch(Headers([("Upgrade", upgrade), ("Connection", connection)]))

    @pytest.mark.parametrize(
        ("fields", "offered"),
        [
            ([], []),
            ([("Sec-WebSocket-Accept", ACCEPT[1].lower())], []),
            ([("Sec-WebSocket-Accept", "x")], []),
            ([ACCEPT, ACCEPT], []),
            ([ACCEPT, ("Sec-WebSocket-Protocol", "chat")], []),
            ([ACCEPT, ("Sec-WebSocket-Protocol", "CHAT")], ["chat"]),
            ([ACCEPT, ("Sec-WebSocket-Protocol", "a, b")], ["a", "b"]),
            ([ACCEPT, ("Sec-WebSocket-Protocol", "a"), ("Sec-WebSocket-Protocol", "b")], ["a", "b"]),
            ([ACCEPT, ("Sec-WebSocket-Extensions", "permessage-deflate")], []),
        ],
    )
    def test_anything_else_is_refused(self, fields: list[tuple[str, str]], offered: list[str]) -> None:
        with pytest.raises(ValueError, match=r"Accept|chose"):
            check_upgrade(Headers(fields), ACCEPT[1], offered)


class Packets:
    """A socket that counts what it receives, and waits before it answers for the first time."""

    def __init__(self, sock: servers.socket.socket, may_answer: threading.Event) -> None:
        self.sock, self.may_answer, self.received = sock, may_answer, 0

    def recv(self, size: int) -> bytes:
        self.received += 1
        return self.sock.recv(size)

    def sendall(self, data: bytes) -> None:
        if data:
            assert self.may_answer.wait(5), "the client waits before it has made its request"
            self.sock.sendall(data)


class TestBeforeTheAnswer:
    """What websocket-client does is done while the server has yet to answer."""

    # Of TLS 1.3: the hello; then, at once, the end of the handshake and the request. In 1.2 the server speaks
    # between these two.
    @pytest.mark.parametrize(("version", "packets"), [("TLSv1_3", 2), ("TLSv1_2", 3)])
    def test_the_request_is_made_during_the_handshake_and_leaves_with_its_end(
        self, raw_server: RawFactory, tls: Tls, version: str, packets: int
    ) -> None:
        made, received = threading.Event(), list[int]()

        def script(sock: servers.socket.socket) -> None:
            counted: Any = Packets(sock, made)
            session: Any = servers.HandmadeTls(counted, tls.server_context)
            asked = servers.read_request(session)
            received.append(counted.received)
            session.sendall(servers.upgrade_response(asked) + servers.frame(1, b"hello"))
            servers.hold(sock)

        context = tls.trusting()
        context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
        ws = WebSocket()
        uri = raw_server(script).uri.replace("ws:", "wss:")
        ws.connect(uri, timeout=5, ssl_context=context, meanwhile=made.set)
        assert ws.recv_message(monotonic() + 5) == "hello"
        ws.shutdown()
        assert received == [packets]

    @pytest.mark.parametrize("secure", [False, True])
    def test_it_counts_as_connected_once_the_server_has_answered(
        self, tls: Tls, echo_tls: EchoServer, echo: EchoServer, secure: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        told: list[tuple[bool, Any]] = []
        ws, wait = WebSocket(), Stream.wait_readable

        def noting(stream: Stream, deadline: float | None) -> bool:
            told.append((ws.connected, ws.getstatus()))
            return wait(stream, deadline)

        monkeypatch.setattr(Stream, "wait_readable", noting)
        ws.connect((echo_tls if secure else echo).uri, timeout=5, ssl_context=tls.client_context)
        assert (ws.connected, ws.getstatus()) == (True, 101)
        assert len(told) >= 1 + secure
        assert set(told) == {(False, None)}
        ws.shutdown()

    @pytest.mark.parametrize("secure", [False, True])
    def test_nothing_is_left_of_a_refused_one(self, raw_server: RawFactory, tls: Tls, secure: bool) -> None:
        server = raw_server(servers.answer("403 No"), ssl_context=tls.server_context if secure else None)
        ws = WebSocket()
        with pytest.raises(HandshakeError, match="403 No"):
            ws.connect(server.uri, timeout=5, ssl_context=tls.client_context)
        assert not ws.connected
        assert ws.getstatus() is None
        assert ws.sock is None

    def test_nor_of_one_whose_tls_fails_after_that(self, raw_server: RawFactory) -> None:
        def script(sock: servers.socket.socket) -> None:
            sock.recv(65536)
            sock.sendall(servers.response("400 No"))
            servers.hold(sock)

        made: list[bool] = []
        ws = WebSocket()
        uri = raw_server(script).uri.replace("ws:", "wss:")
        with pytest.raises(ConnectionError, match="does not speak TLS"):
            ws.connect(uri, timeout=5, meanwhile=lambda: made.append(True))
        assert made
        assert not ws.connected
        assert ws.getstatus() is None
        assert ws.sock is None


class TestOverASocket:
    @pytest.mark.parametrize("size", [MAX_HEAD - 200, MAX_HEAD + 4000])
    def test_the_head_has_a_limit(self, raw_server: RawFactory, size: int) -> None:
        def script(sock: servers.socket.socket) -> None:
            request = servers.read_request(sock)
            own = len(servers.upgrade_response(request, [("X", "")]))
            sock.sendall(servers.upgrade_response(request, [("X", "x" * (size - own + 4))]))
            servers.hold(sock)

        ws = WebSocket()
        server = raw_server(script)
        if size < MAX_HEAD:
            ws.connect(server.uri, timeout=5)
            assert len(ws.response_headers["x"]) > 60000
            ws.shutdown()
        else:
            with pytest.raises(HandshakeError, match="65536"):
                ws.connect(server.uri, timeout=5)

    def test_frames_in_the_same_packet_as_the_head_are_not_lost(self, raw_server: RawFactory) -> None:
        def script(sock: servers.socket.socket) -> None:
            request = servers.read_request(sock)
            sock.sendall(servers.upgrade_response(request) + servers.frame(1, b"early") + b"\x81")
            sock.sendall(b"\x04late")
            servers.hold(sock)

        ws = WebSocket()
        ws.connect(raw_server(script).uri, timeout=5)
        ws.settimeout(5)
        assert [ws.recv(), ws.recv()] == ["early", "late"]
        ws.shutdown()

    def test_no_cookie_is_smuggled_into_websocket_client_s_jar(self, raw_server: RawFactory) -> None:
        """A bare LF is no line end to us, and was one to it: from its jar the cookie went to every server."""
        asked: list[servers.Upgrade] = []

        def script(sock: servers.socket.socket) -> None:
            asked.append(servers.read_request(sock))
            head = servers.upgrade_response(asked[-1])
            forged = b"websocket\nSet-Cookie: sid=evil; Domain=handshake.invalid\r\n"
            sock.sendall(head if len(asked) > 1 else head.replace(b"websocket\r\n", forged))
            servers.hold(sock)

        server = raw_server(script)
        with pytest.raises(HandshakeError, match="LF"):
            WebSocket().connect(server.uri, timeout=5)
        ws = WebSocket()
        ws.connect(server.uri, timeout=5)
        ws.shutdown()
        assert "cookie" not in asked[-1].headers

    def test_a_refusal_is_heard_though_the_request_was_not(self, raw_server: RawFactory) -> None:
        def script(sock: servers.socket.socket) -> None:
            sock.sendall(servers.response("503 Busy", body=b"later"))
            sock.shutdown(servers.socket.SHUT_WR)
            servers.reset(sock)

        server = raw_server(script)
        for _ in range(40):  # where connecting, sending and reading meet the reset differs
            with pytest.raises(HandshakeError, match="refused with 503 Busy") as caught:
                WebSocket().connect(server.uri, timeout=5)
            assert caught.value.body == b"later"

    def test_so_is_an_alert(self, raw_server: RawFactory, tls: Tls) -> None:
        context = tls.issue(servers.LOCALHOST)
        context.verify_mode = ssl.CERT_REQUIRED
        server = raw_server(servers.hold, ssl_context=context)
        for _ in range(20):
            with pytest.raises(ConnectionError, match="CERTIFICATE_REQUIRED"):
                WebSocket().connect(server.uri, timeout=5, ssl_context=tls.client_context)

    def test_a_server_that_goes_without_a_word_left_the_request_unsent(self) -> None:
        near, far = servers.socket.socketpair()
        upgrade = Upgrade(parse("ws://h/"), subprotocols=(), deadline=monotonic() + 5, timeout=5.0)
        far.close()
        upgrade.stream = Stream(near)
        upgrade.send(b"GET / HTTP/1.1\r\n\r\n")
        with pytest.raises(ConnectionError, match=r"sending the upgrade request: .*Broken pipe"):
            upgrade.finish(upgrade.stream)
        upgrade.close()

    def test_all_lines_may_end_in_a_line_feed_alone(self, raw_server: RawFactory) -> None:
        asked: list[servers.Upgrade] = []

        def script(sock: servers.socket.socket) -> None:
            asked.append(servers.read_request(sock))
            fields = [("Set-Cookie", "sid=evil; Domain=handshake.invalid"), ("X", "y")]
            head = servers.upgrade_response(asked[-1], fields).replace(b"\r\n", b"\n")
            sock.sendall(head + servers.frame(1, b"\r\n\r\n"))
            servers.hold(sock)

        server = raw_server(script)
        for _ in range(2):
            ws = WebSocket()
            ws.connect(server.uri, timeout=5)
            assert ws.response_headers["x"] == "y"
            assert ws.recv_message(monotonic() + 5) == "\r\n\r\n"
            ws.shutdown()
        assert "cookie" not in asked[-1].headers

    @pytest.mark.parametrize(
        "head",
        [
            b"HTTP/1.1 101 OK\r\nUpgrade: websocket\nConnection: Upgrade\n\n",
            b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\n\r\n",
            b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\n",
            b"HTTP/1.1 101 OK\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"HTTP/1.1 101 OK\nUpgrade: websocket\r\nConnection: Upgrade\n\n",
            b"garbage\n\n",
        ],
    )
    def test_some_may_not(self, raw_server: RawFactory, head: bytes) -> None:
        def script(sock: servers.socket.socket) -> None:
            servers.read_request(sock)
            sock.sendall(head)
            servers.hold(sock)

        server = raw_server(script)
        with pytest.raises(HandshakeError, match=r"LF alone|has a CR, LF or NUL|not answer in HTTP"):
            WebSocket().connect(server.uri, timeout=5)

    @pytest.mark.parametrize(
        "fields",
        [
            [("Content-Length", "9" * 5000)],
            [("Content-Length", "-1")],
            [("Content-Length", "5, 5")],
            [("Content-Length", "²")],
            [("Transfer-Encoding", "chunked")],
        ],
        ids=["5000 digits", "negative", "twice", "a power", "chunked"],
    )
    def test_odd_lengths_of_a_refusal_are_its_own_affair(
        self, raw_server: RawFactory, fields: list[tuple[str, str]]
    ) -> None:
        server = raw_server(servers.answer("503 Busy", fields, b"later"))
        with pytest.raises(HandshakeError) as caught:
            WebSocket().connect(server.uri, timeout=5)
        assert caught.value.status_code == 503
        assert caught.value.body.startswith(b"later")

    def test_interim_responses_come_before_the_upgrade(self, raw_server: RawFactory) -> None:
        def script(sock: servers.socket.socket) -> None:
            request = servers.read_request(sock)
            sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r")
            sock.sendall(b"\n\r\n" + servers.upgrade_response(request) + servers.frame(1, b"early"))
            servers.hold(sock)

        ws = WebSocket()
        ws.connect(raw_server(script).uri, timeout=5)
        assert "link" not in ws.response_headers
        ws.settimeout(5)
        assert ws.recv() == "early"
        ws.shutdown()

    @pytest.mark.parametrize(
        ("answer", "body"),
        [
            (b"204 No Content\r\n\r\n", b""),
            (b"304 Not Modified\r\n\r\n", b""),
            (b"302 Found\r\nLocation: /round-and-round\r\n\r\n", b""),
            (
                b"401 No\r\nTransfer-Encoding: x, Chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n there\r\n0\r\n\r\n",
                b"hello there",
            ),
            (b"401 No\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b""),
        ],
        ids=["204", "304", "redirect", "chunked", "no chunk"],
    )
    def test_the_end_of_a_body_is_known_and_not_waited_for(
        self, raw_server: RawFactory, monkeypatch: pytest.MonkeyPatch, answer: bytes, body: bytes
    ) -> None:
        monkeypatch.setattr("jetsocket.wire.upgrade._ERROR_BODY_PATIENCE", 60.0)

        def script(sock: servers.socket.socket) -> None:
            servers.read_request(sock)
            sock.sendall(b"HTTP/1.1 " + answer)
            servers.hold(sock)

        server = raw_server(script)
        start = monotonic()
        with pytest.raises(HandshakeError) as caught:
            WebSocket().connect(server.uri, timeout=10)
        assert caught.value.body == body
        assert monotonic() - start < 5

    @pytest.mark.parametrize("compress", [True, False])
    @pytest.mark.parametrize("offered", [[], ["chat"]])
    @pytest.mark.parametrize("times", [1, 2])
    def test_empty_choices_are_as_good_as_none(
        self, raw_server: RawFactory, offered: list[str], compress: bool, times: int
    ) -> None:
        empty = [("Sec-WebSocket-Protocol", ""), ("Sec-WebSocket-Extensions", "")] * times

        def script(sock: servers.socket.socket) -> None:
            servers.upgrade(sock, empty)
            sock.sendall(servers.frame(1, b"plain"))
            servers.hold(sock)

        ws = WebSocket()
        ws.connect(raw_server(script).uri, timeout=5, subprotocols=offered, compress=compress)
        assert ws.subprotocol is None
        assert ws.recv_message(monotonic() + 5) == "plain"
        ws.shutdown()

    def test_one_choice_beside_an_empty_one(self, raw_server: RawFactory) -> None:
        def script(sock: servers.socket.socket) -> None:
            name = "Sec-WebSocket-Extensions"
            servers.upgrade(sock, [(name, ""), (name, "permessage-deflate"), (name, "")])
            servers.hold(sock)

        ws = WebSocket()
        ws.connect(raw_server(script).uri, timeout=5, compress=True)
        assert ws.reader.inflater is not None
        ws.shutdown()

    @pytest.mark.parametrize(
        ("old", "new", "told"),
        [
            (b"Upgrade: websocket", b"Upgrade: websocket, h2c", "by its header Upgrade"),
            (b"Upgrade: websocket", b"Upgrade: websocket\r\nUpgrade: h2c", "by its header Upgrade"),
            (b"Upgrade: websocket", b"X: y", "by its header Upgrade"),
            (b"Connection: Upgrade", b"Connection: keep-alive", "by its header Connection"),
            (b"HTTP/1.1", b"HTTP/1.0", "HTTP/1.0"),
        ],
    )
    def test_a_101_that_is_no_upgrade_to_websocket(
        self, raw_server: RawFactory, old: bytes, new: bytes, told: str
    ) -> None:
        def script(sock: servers.socket.socket) -> None:
            head = servers.upgrade_response(servers.read_request(sock))
            assert old in head
            sock.sendall(head.replace(old, new))
            servers.hold(sock)

        server = raw_server(script)
        with pytest.raises(HandshakeError, match=told) as caught:
            WebSocket().connect(server.uri, timeout=5)
        assert caught.value.status_code == 101
        servers.wait_until(lambda: not server.open_now)

    def test_a_refusal_in_http_1_0_is_told_as_any_other(self, raw_server: RawFactory) -> None:
        def script(sock: servers.socket.socket) -> None:
            servers.read_request(sock)
            sock.sendall(b"HTTP/1.0 503 Busy\r\n\r\nlater")

        with pytest.raises(HandshakeError, match="503 Busy") as caught:
            WebSocket().connect(raw_server(script).uri, timeout=5)
        assert caught.value.body == b"later"

    @given(st.lists(st.binary(min_size=1, max_size=50), max_size=5), st.integers(0, 400))
    def test_chunks_are_joined_as_far_as_they_have_come(self, chunks: list[bytes], come: int) -> None:
        framed = b"".join(b"%X\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
        assert unchunk(framed) == (b"".join(chunks), True)
        assert unchunk(framed[:come])[1] == (come >= len(framed) - 2)

    @pytest.mark.parametrize(
        "location", ["http://[", "http://h:port/", "//", "http://user:pw@[::1", "\x01", "ws://\xe4.example/"]
    )
    def test_a_redirect_to_nowhere_is_a_handshake_error(self, raw_server: RawFactory, location: str) -> None:
        server = raw_server(servers.answer("302 Found", [("Location", location)]))
        with pytest.raises(HandshakeError) as caught:
            WebSocket().connect(server.uri, timeout=5)
        assert caught.value.status_code == 302

    def test_control_characters_of_the_server_do_not_reach_the_message(self, raw_server: RawFactory) -> None:
        server = raw_server(servers.answer("400 \x1b[2Jgone\x07"))
        with pytest.raises(HandshakeError) as caught:
            WebSocket().connect(server.uri, timeout=5)
        assert str(caught.value).isprintable()


class TestRequestsThatAreSentAgain:
    """The latest that websocket-client has written to a host, for all that differ by the key alone."""

    SHAPE: Shape = ("h:1", ("X: 1",), "a=b", "https://o.example")

    def kept(self, shape: Shape = SHAPE) -> Requests:
        requests = Requests()
        requests.keep(shape, b"GET / HTTP/1.1\r\nA: 1\r\nSec-WebSocket-Key: old\r\nB: 2\r\n\r\n", None)
        return requests

    def test_each_has_a_key_of_its_own(self) -> None:
        written = self.kept().find(self.SHAPE)
        assert written is not None
        found = [
            re.fullmatch(rb"A: 1\r\nSec-WebSocket-Key: (.{24})\r\nB: 2\r\n\r\n", written.fields())
            for _ in "ab"
        ]
        keys = {each[1] for each in found if each is not None}
        assert len(keys) == 2
        assert {len(base64.b64decode(key, validate=True)) for key in keys} == {16}

    @pytest.mark.parametrize(
        "other",
        [
            ("h:2", ("X: 1",), "a=b", "https://o.example"),
            ("h:1", ("X: 2",), "a=b", "https://o.example"),
            ("h:1", (), "a=b", "https://o.example"),
            ("h:1", ("X: 1",), "a=c", "https://o.example"),
            ("h:1", ("X: 1",), "a=b", None),
        ],
    )
    def test_another_is_written_where_anything_else_differs(self, other: Shape) -> None:
        assert self.kept().find(other) is None

    def test_the_latest_to_a_host_is_kept_and_no_secret_longer_than_that(self) -> None:
        requests = self.kept(("h:1", ("Authorization: Bearer old",), None, None))
        requests.keep(self.SHAPE, b"GET / HTTP/1.1\r\nSec-WebSocket-Key: k\r\n\r\n", None)
        assert requests.find(self.SHAPE) is not None
        assert "old" not in str(vars(requests))

    def test_those_to_many_hosts_are_not_all_kept(self) -> None:
        requests = Requests()
        for number in range(1000):
            shape: Shape = (f"h:{number}", (), None, None)
            requests.keep(shape, b"GET / HTTP/1.1\r\nSec-WebSocket-Key: k\r\n\r\n", None)
            assert requests.find(shape) is not None
            assert len(requests._written) <= 16

    def test_a_wrong_answer_to_one_is_refused(self, raw_server: RawFactory) -> None:
        answers: list[str | None] = [None, accept_for(KEY)]

        def script(sock: servers.socket.socket) -> None:
            servers.upgrade(sock, accept=answers.pop(0))
            servers.hold(sock)

        server, requests = raw_server(script), Requests()
        first, second = WebSocket(), WebSocket()
        first.requests = second.requests = requests
        first.connect(server.uri, timeout=5)
        with pytest.raises(HandshakeError, match="does not fit the key"):
            second.connect(server.uri, timeout=5)
        first.shutdown()

    def test_a_pool_sends_one_again_to_all_paths_of_a_host(
        self, make_pool: MakePool, tls: Tls, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        written, write = [], websocket.WebSocket.connect
        monkeypatch.setattr(
            websocket.WebSocket, "connect", lambda ws, *a, **k: (written.append(ws), write(ws, *a, **k))
        )
        with EchoServer(ssl_context=tls.server_context) as server:
            headers = {"X-Number": "1"}
            options = {
                "ssl_context": tls.client_context,
                "extra_headers": lambda: dict(headers),
                "cookie": "a=b",
            }
            pool = make_pool(server, manager_kwargs=options)
            for number, path in enumerate(["/a", "/a", "/b?c=d", "/b"]):
                headers["X-Number"] = str(number // 3)
                with pool.acquire(path) as conn:
                    assert conn.request(number, 5) == number
                    conn.discard()
            assert [(each.path, each.headers["X-Number"]) for each in server.requests] == [
                ("/a", "0"), ("/a", "0"), ("/b?c=d", "0"), ("/b", "1"),
            ]  # fmt: skip
            assert {each.headers["Cookie"] for each in server.requests} == {"a=b"}
            assert len({each.headers["Sec-WebSocket-Key"] for each in server.requests}) == 4
            assert len(written) == 2
