"""FakeServer over real sockets: what it answers, what it has seen, and how it lets in.

Also tests: `endpoint`, `hub`, `seen`, `conversation`, `tls`.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websocket
from freezegun import freeze_time

from jetsocket import ConnectionClosedError, ConnectionPool, HandshakeError
from jetsocket import TimeoutError as PoolTimeoutError
from jetsocket.correlation import GraphQLTransportWs, JsonRpc
from jetsocket.testing import ANY, FakeServer
from tests.servers import wait_until

Connect = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    with FakeServer() as server:
        yield server


@pytest.fixture
def connect() -> Iterator[Connect]:
    """A client that is not ours: the plain websocket-client."""
    opened: list[Any] = []

    def open_(server: FakeServer, path: str = "/", **options: Any) -> Any:
        sock = websocket.create_connection(server.url_for(path), timeout=5, **options)
        opened.append(sock)
        return sock

    yield open_
    for sock in opened:
        sock.shutdown()


# --- replying


def test_a_reply_goes_out_as_text_binary_or_json_with_the_requests_id(
    server: FakeServer, connect: Connect
) -> None:
    server.on("text").reply("héllo")
    server.on("binary").reply(b"\x00")
    server.on({"method": "height"}).reply({"result": 7})
    server.on("list").reply([1, None])
    conn = connect(server)
    for sent, opcode, data in (
        ("text", 1, "héllo".encode()),
        ("binary", 2, b"\x00"),
        ('{"method": "height", "id": "a1"}', 1, b'{"id": "a1", "result": 7}'),
        ("list", 1, b"[1, null]"),
    ):
        conn.send(sent)
        assert conn.recv_data() == (opcode, data)


def test_the_id_field_is_a_choice(connect: Connect) -> None:
    for field, reply in (("req", '{"req": 3, "ok": true}'), (None, '{"ok": true}')):
        with FakeServer(id_field=field) as server:
            server.on(ANY).reply({"ok": True})
            conn = connect(server)
            conn.send('{"req": 3, "id": 4}')
            assert conn.recv() == reply


def test_a_value_is_sent_as_it_was_when_the_rule_was_made(server: FakeServer, connect: Connect) -> None:
    value = {"a": [1]}
    server.on(ANY).reply(value)
    value["a"].append(2)
    conn = connect(server)
    conn.send("x")
    assert conn.recv() == '{"a": [1]}'


def test_rules_are_tried_in_order_and_a_used_up_one_no_longer_matches(
    server: FakeServer, connect: Connect
) -> None:
    server.on(ANY).reply("first").times(2)
    server.on(ANY).reply_each(["a", {"b": 1}])
    server.on(ANY).reply_each(str(n) for n in itertools.count())
    conn = connect(server)
    for expected in ("first", "first", "a", '{"b": 1}', "0", "1"):
        conn.send("x")
        assert conn.recv() == expected


def test_a_rule_may_be_for_one_path_without_the_query(server: FakeServer, connect: Connect) -> None:
    server.on(ANY, path="rpc").reply("rpc")
    server.on(ANY).reply("other")
    for path, expected in (("/rpc?token=1", "rpc"), ("/rpc/", "other")):
        conn = connect(server, path)
        conn.send("x")
        assert conn.recv() == expected
    assert [(each.path, each.query) for each in server.connections] == [("/rpc", "token=1"), ("/rpc/", "")]


def test_a_delayed_reply_holds_up_no_other(server: FakeServer, connect: Connect) -> None:
    server.on("slow").reply("at once").delay(0.05).reply("late")
    server.on("fast").reply("fast")
    conn = connect(server)
    conn.send("slow")
    conn.send("fast")
    assert [conn.recv() for _ in range(3)] == ["at once", "fast", "late"]


def test_pushes(server: FakeServer, connect: Connect) -> None:
    server.on({"go": ANY}).reply({"ok": 1}).push({"tick": 1}, every=0.01, count=3).push("end").close(
        4000, "why"
    )
    server.on("endless").push("again", every=0.01).reply("reply")
    conn = connect(server)
    conn.send('{"go": 1, "id": 5}')
    assert [conn.recv() for _ in range(5)] == ['{"id": 5, "ok": 1}', *['{"tick": 1}'] * 3, "end"]
    assert conn.recv_data(control_frame=True) == (8, b"\x0f\xa0why")
    other = connect(server)
    other.send("endless")
    assert sorted(other.recv() for _ in range(2)) == ["again", "reply"]
    assert [other.recv() for _ in range(2)] == ["again", "again"]


def test_silence_and_drop(server: FakeServer, connect: Connect) -> None:
    server.on("quiet").silence()
    server.on("drop").reply("last words").drop()
    conn = connect(server)
    conn.send("quiet")
    conn.settimeout(0.05)
    with pytest.raises(websocket.WebSocketTimeoutException):
        conn.recv()
    conn.settimeout(5)
    conn.send("drop")
    assert conn.recv() == "last words"
    with pytest.raises(ConnectionResetError):
        conn.recv()
    assert server.connections[0].close_code == 1006


def test_a_reset_comes_after_all_that_was_sent_before_it(server: FakeServer) -> None:
    server.on("drop").reply(bytes(4_000_000)).drop()
    with ConnectionPool(base_uri=server.uri) as pool, pool.acquire("/") as conn:
        conn.send("drop")
        assert len(conn.recv_raw()) == 4_000_000
        with pytest.raises(ConnectionClosedError) as caught:
            conn.recv_raw()
        assert caught.value.code == 1006


def test_a_callback_replies_in_order_and_may_wait_and_ask(server: FakeServer, connect: Connect) -> None:
    go = threading.Event()

    def answer(message: Any) -> Any:
        go.wait(5)
        return {"seen": len(server.messages), "you": message["n"]}

    server.on({"n": 1}).callback(answer)
    server.on({"n": 2}).callback(lambda message: None).reply("second")
    conn = connect(server)
    conn.send('{"n": 1, "id": 9}')
    conn.send('{"n": 2}')
    server.assert_received({"n": 2})
    go.set()
    assert [conn.recv(), conn.recv()] == ['{"id": 9, "seen": 2, "you": 1}', "second"]


def test_binary_and_fragmented_messages(server: FakeServer, connect: Connect) -> None:
    server.on(re.compile("^whole$")).reply("got it")
    conn = connect(server)
    conn.send_frame(websocket.ABNF(0, 0, 0, 0, 1, 1, b"wh"))
    conn.send_frame(websocket.ABNF(1, 0, 0, 0, 0, 1, b"ole"))
    assert conn.recv() == "got it"
    server.on(b"\x00\xff").reply(b"\xff")
    conn.send_binary(b"\x00\xff")
    assert conn.recv() == b"\xff"
    server.on({"b": 1}).reply("json")
    conn.send_binary(b'{"b": 1}')
    assert conn.recv() == "json"
    assert server.messages == ["whole", b"\x00\xff", {"b": 1}]


def test_text_that_is_none_is_refused(server: FakeServer, connect: Connect) -> None:
    conn = connect(server)
    conn.send_frame(websocket.ABNF(1, 0, 0, 0, 1, 1, b"\xff"))
    assert conn.recv_data(control_frame=True)[1][:2] == b"\x03\xef"
    assert server.messages == []


# --- scripts


def test_a_script_is_a_conversation_with_one_connection(server: FakeServer, connect: Connect) -> None:
    server.script("/feed").send("hello").expect({"login": ANY}).send({"ok": True}).send({"tick": 1}).expect(
        "bye"
    ).close(1000)
    server.script("/feed").expect("x").send("second")
    server.on("other").reply("by a rule")
    first, second, third = (connect(server, "/feed") for _ in range(3))
    assert first.recv() == "hello"
    first.send("other")
    assert first.recv() == "by a rule"
    first.send('{"login": 1, "id": 2}')
    assert [first.recv(), first.recv()] == ['{"id": 2, "ok": true}', '{"tick": 1}']
    first.send("bye")
    assert first.recv_data(control_frame=True) == (8, b"\x03\xe8")
    second.send("x")
    assert second.recv() == "second"
    third.send("other")
    assert third.recv() == "by a rule"


def test_a_script_is_checked_when_it_is_written(server: FakeServer) -> None:
    script = FakeServer().script("/x").send("a").close(1001)
    for add in (lambda: script.send("b"), lambda: script.expect(ANY), script.close):
        with pytest.raises(ValueError, match="nothing can follow"):
            add()


# --- pushing from the test


def test_push_reaches_all_who_are_connected_there(server: FakeServer, connect: Connect) -> None:
    with pytest.raises(AssertionError, match="no one is connected to /feed"):
        server.push("x", path="/feed")
    feeds, other = [connect(server, "/feed"), connect(server, "/feed?x")], connect(server, "/other")
    assert server.push({"tick": 1}, path="/feed") == 2
    assert [each.recv() for each in feeds] == ['{"tick": 1}'] * 2
    assert server.push("all") == 3
    assert [each.recv() for each in [*feeds, other]] == ["all"] * 3
    for each in feeds:
        each.close()
    with pytest.raises(AssertionError, match="no one is connected to /feed"):
        server.push("x", path="/feed")


# --- the upgrade


def test_refusals(server: FakeServer, connect: Connect) -> None:
    server.reject(401, body="no", headers={"X-Why": "because"})
    server.reject_once(503)
    server.reject_once(429, {"slow": "down"}, {"Retry-After": "7"})
    with ConnectionPool(base_uri=server.uri) as pool:
        errors = []
        for _ in range(4):
            with pytest.raises(HandshakeError) as caught:
                pool.acquire("/x?y")
            errors.append(caught.value)
        assert [each.status_code for each in errors] == [503, 429, 401, 401]
        assert errors[1].retry_after == 7 and errors[1].body == b'{"slow": "down"}'
        assert errors[2].body == b"no" and errors[2].headers["x-why"] == "because"
        assert [each.status for each in server.connections] == [503, 429, 401, 401]
        assert [each.close_code for each in server.connections] == [None] * 4
        server.accept_after(0.05)
        began = time.monotonic()
        pool.acquire("/").release()
        assert time.monotonic() - began >= 0.05
        assert server.connections[-1].status == 101


def test_a_client_may_leave_before_it_is_let_in(server: FakeServer) -> None:
    server.accept_after(30)
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: MDAwMDAwMDAwMDAwMDAwMA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        wait_until(lambda: server.connections)
        assert server.connections[0].status is None
    wait_until(lambda: not server._guests)


def test_what_is_no_upgrade_is_refused(server: FakeServer) -> None:
    for request in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"nonsense\r\n\r\n", b""):
        with socket.create_connection(("127.0.0.1", server.port)) as sock:
            sock.sendall(request)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(4096):
                pass
    assert [each.status for each in server.connections] == [426]


# --- looking


def test_what_was_seen_of_connections(server: FakeServer, connect: Connect) -> None:
    server.on(ANY).silence()
    conn = connect(server, "/a", header={"X-Key": "k"}, subprotocols=["v2", "v1"])
    conn.send("1")
    conn.send("two")
    other = connect(server, "/b")
    other.send("3")
    seen = server.connections
    assert [each.messages for each in seen] == [[1, "two"], [3]] and server.messages == [1, "two", 3]
    assert seen[0].headers["x-key"] == "k" == seen[0].headers["X-KEY"]
    assert (seen[0].subprotocol, seen[1].subprotocol) == ("v2", None) and conn.getsubprotocol() == "v2"
    assert seen[0].close_code is None and seen[0].status == 101
    conn.close(4001)
    assert seen[0].close_code == 4001
    assert (
        repr(seen)
        == "[<connection to /a, closed with 4001, 2 messages>, <connection to /b, open, 1 messages>]"
    )
    other.shutdown()
    assert wait_until(lambda: seen[1].close_code) == 1006


def test_waiting_for_messages(server: FakeServer, connect: Connect) -> None:
    server.on(ANY).silence()
    conn = connect(server)
    timer = threading.Timer(0.05, conn.send, ['{"n": 1}'])
    timer.start()
    assert server.wait_for({"n": 1}) == {"n": 1}
    timer.join()
    conn.send('{"n": 1, "again": true}')
    server.assert_received({"n": 1})
    server.assert_received({"n": 1}, count=2)
    server.assert_received({"n": 2}, count=0)
    for call in (
        lambda: server.assert_received({"n": 1}, count=1),
        lambda: server.assert_received({"n": 1}, count=3, timeout=0.01),
        lambda: server.assert_received({"n": 1}, count=0),
        lambda: server.assert_received("x", timeout=0.01),
        lambda: server.wait_for("x", timeout=0.01),
    ):
        with pytest.raises(
            AssertionError, match=re.escape('what came:\n    {"n": 1}\n    {"n": 1, "again": true}')
        ):
            call()
    with FakeServer() as empty, pytest.raises(AssertionError, match="nothing came"):
        empty.wait_for(ANY, timeout=0)


def test_count_zero_sees_what_was_sent_just_before(connect: Connect) -> None:
    for _ in range(20):
        with FakeServer(assert_all_expected=False) as server:
            connect(server).send("x")
            with pytest.raises(AssertionError, match="0 messages expected"):
                server.assert_received("x", count=0)


# --- where it is


@pytest.mark.slow
def test_it_speaks_tls_as_localhost(connect: Connect) -> None:
    with FakeServer(tls=True) as server:
        server.on(ANY).reply("secret").times(2)
        assert server.uri.startswith("wss://localhost:")
        context = ssl.create_default_context(cafile=server.ca_file)
        conn = connect(server, sslopt={"context": context})
        conn.send("x")
        assert conn.recv() == "secret"
        trusting = {"ssl_context": server.ssl_context}
        with ConnectionPool(base_uri=server.uri, manager_kwargs=trusting) as pool, pool.acquire("/") as lease:
            lease.send("x")
            assert lease.recv_raw() == "secret"
        with (
            ConnectionPool(base_uri=server.uri) as distrusting,
            pytest.raises(Exception, match="certificate"),
        ):
            distrusting.acquire("/")
        ca_file = Path(server.ca_file)
    assert not ca_file.exists()
    with FakeServer() as plain:
        for name in ("ssl_context", "ca_file"):
            with pytest.raises(RuntimeError, match="no TLS"):
                getattr(plain, name)


def test_it_stands_in_for_another_address() -> None:
    with FakeServer(instead_of="wss://api.example.com") as server:
        server.on(ANY, path="/v1/rpc").reply(1)
        with ConnectionPool(manager_kwargs={"proxy": "http://127.0.0.1:1"}) as pool:
            assert pool.request("wss://api.example.com/v1/rpc?k=v", "x") == 1
            with pool.acquire("wss://API.example.com:443/v1/rpc?k=v") as conn:
                assert conn.uri == "wss://api.example.com/v1/rpc?k=***"  # as everywhere, redacted
            seen = server.connections
            assert len(seen) == 1 and seen[0].headers["Host"] == "api.example.com"
            server.reject(302, headers={"Location": "wss://api.example.com/elsewhere"})
            with pytest.raises(HandshakeError, match="more redirects"):
                pool.acquire("wss://api.example.com/other")
            with (
                pytest.raises(ValueError, match="another FakeServer"),
                FakeServer(instead_of="wss://api.example.com/x"),
            ):
                pass
            assert server.connections[-1].path == "/elsewhere"
    with FakeServer(instead_of="wss://api.example.com") as later:  # the place is free again
        assert later.connections == []


def test_arguments_are_checked() -> None:
    for options in ({"tls": 1}, {"assert_all_called": "no"}, {"id_field": 3}, {"port": "x"}, {"unknown": 1}):
        with pytest.raises(TypeError):
            FakeServer(**options)  # type: ignore[arg-type]  # on purpose
    for options in ({"instead_of": "http://x"}, {"instead_of": "wss://x", "tls": True}, {"port": -1}):
        with pytest.raises(ValueError):  # noqa: PT011  # three texts
            FakeServer(**options)  # type: ignore[arg-type]  # likewise
    server = FakeServer()
    for call in (lambda: server.uri, lambda: server.push("x"), lambda: server.port):
        with pytest.raises(RuntimeError, match="not started"):
            call()
    for status in (101, 600, "401"):
        with pytest.raises((ValueError, TypeError)):
            server.reject(status)  # type: ignore[arg-type]  # likewise
    with server, pytest.raises(RuntimeError, match="once"):
        server.start()
    server.close()


def test_a_frozen_clock_stops_nothing(connect: Connect) -> None:
    with freeze_time("2020-01-01"), FakeServer() as server:
        server.on("x").delay(0.02).reply("y").push("tick", every=0.01, count=2)
        conn = connect(server)
        conn.send("x")
        assert [conn.recv() for _ in range(3)] == ["y", "tick", "tick"]
        assert server.wait_for("x", timeout=1) == "x"
        with pytest.raises(AssertionError, match="no message"):
            server.wait_for("z", timeout=0.02)


# --- with a pool


def test_a_pool_with_a_correlation_finds_its_replies() -> None:
    with FakeServer() as server:
        server.on({"method": "slow"}).delay(0.03).reply({"result": "slow"})
        server.on({"method": "fast"}).reply({"result": "fast"})
        server.on({"method": "mute"}).silence()
        with ConnectionPool(base_uri=server.uri, correlation=JsonRpc()) as pool:
            with pool.acquire("/") as conn:
                replies = conn.request_many([{"method": "slow"}, {"method": "fast"}])
                assert [each["result"] for each in replies] == ["slow", "fast"]
            with pytest.raises(PoolTimeoutError):
                pool.request("/", {"method": "mute"}, timeout=0.05)
            assert pool.stats().total_connections == 1


def test_a_subprotocol_that_is_offered_is_agreed_on() -> None:
    with FakeServer() as server:
        server.on({"type": "connection_init"}).reply({"type": "connection_ack"})
        with ConnectionPool(base_uri=server.uri, correlation=GraphQLTransportWs()) as pool:
            pool.acquire("/").release()
        assert server.connections[0].subprotocol == "graphql-transport-ws"


def test_the_end_of_a_server_is_told_to_those_who_are_connected(connect: Connect) -> None:
    with FakeServer() as server:
        conn = connect(server)
    assert conn.recv_data(control_frame=True)[1][:2] == b"\x03\xe9"
    with FakeServer() as server, ConnectionPool(base_uri=server.uri) as pool:
        lease = pool.acquire("/")
        server.close()
        with pytest.raises(ConnectionClosedError) as caught:
            lease.recv()
        assert caught.value.code == 1001
        assert server.connections[0].status == 101


def test_a_server_that_has_ended_takes_no_more_rules() -> None:
    with FakeServer() as server:
        pass
    for use in (
        server.__enter__,
        lambda: server.on("a"),
        server.script,
        lambda: server.push("a"),
        server.reject,
        server.reject_once,
        lambda: server.accept_after(1),
    ):
        with pytest.raises(RuntimeError, match="has ended; make a new one"):
            use()
    began = time.monotonic()
    with pytest.raises(AssertionError, match="nothing came"):
        server.wait_for("a", timeout=30)  # nothing will come any more
    assert time.monotonic() - began < 15


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_can_look_and_leaves_the_server_to_its_parent() -> None:
    with (
        FakeServer(tls=True) as server,
        ConnectionPool(base_uri=server.uri, manager_kwargs={"ssl_context": server.ssl_context}) as pool,
    ):
        server.on("a").reply("b")
        with pool.acquire("/") as conn:
            conn.send("a")
            assert conn.recv_raw(timeout=5) == "b"
        server.on("the parent's").optional()
        known, file = server.messages, Path(server.ca_file)
        if (pid := os.fork()) == 0:
            code = 1
            try:
                assert server.messages == known
                assert server.connections[0].status == 101
                with pytest.raises(AssertionError):
                    server.wait_for("c", timeout=30)
                with pytest.raises(RuntimeError, match="the process that has started it"):
                    server.push("x")
                server._rules.append(
                    server._rules[0]
                )  # unreached there or not: it is not the child's verdict
                server.close()
                code = 0
            finally:
                os._exit(code)
        assert _exit_code_within(pid, 20) == 0
        assert file.exists()
        with pool.acquire("/") as conn:
            conn.send("a")
            assert conn.recv_raw(timeout=5) == "b"


def _exit_code_within(pid: int, timeout: float) -> int | None:
    """The exit code of a child; None: it had to be killed."""
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


@pytest.mark.parametrize("headers", [{"X-A\n": "b"}, {"X A": "b"}, {"X-A": "b\r\nX-B: c"}, {"X-A": "\0"}])
def test_a_refusal_is_one_that_http_can_say(server: FakeServer, headers: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="header"):
        server.reject(401, headers=headers)


def test_it_logs_nothing_of_what_clients_send(
    server: FakeServer, connect: Connect, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    server.on("secret").reply("b")
    conn = connect(server, "/?ticket=secret")
    conn.send("secret")
    assert conn.recv() == "b"
    assert "secret" not in caplog.text
