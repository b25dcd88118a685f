"""`jetsocket call`: a reply a message; from the command line, from stdin, by ids.

Also tests: `asking`, `lines`.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket.cli.call import argument
from jetsocket.cli.main import main
from jetsocket.testing import ANY, FakeServer
from tests.cli.terminal import run
from tests.scripts import ROOT
from tests.servers import Connection, EchoServer, close_with, wait_until


def test_one_reply_a_message_over_one_connection(echo: EchoServer) -> None:
    ran = run("call", echo.uri, "hello", "wörld\n!", "")
    assert (ran.code, ran.out, ran.err) == (0, "hello\nwörld\n!\n\n".encode(), "")
    assert echo.opened == 1
    wait_until(lambda: not echo.open_now)


def test_options_stand_anywhere(echo: EchoServer) -> None:
    assert run("call", "-n", "1", echo.uri, "-t", "5", "a", "-q", "--", "-n", "--").out == b"a\n-n\n--\n"


def test_behind_two_dashes_one_is_a_message(echo: EchoServer) -> None:
    assert run("call", echo.uri, "--", "-", "a", stdin=b"no").out == b"-\na\n"
    assert run("call", "--", echo.uri, "-", stdin=b"no").out == b"-\n"
    assert run("call", echo.uri, "-", "--", stdin=b"yes").out == b"yes\n"


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("call", "a"), b""),
        (("call", "-"), b"a\nb\nc\n"),
        (("call", "--jsonrpc", "a"), b""),
        (("listen", "--send", "a", "-n", "1"), b""),
        (("listen", "--for", "50ms"), b""),
        (("bench", "a", "-n", "20"), b""),
    ],
    ids=lambda given: " ".join(given) if isinstance(given, tuple) else "",
)
def test_a_command_that_ends_well_closes_with_1000(arguments: tuple[str, ...], stdin: bytes) -> None:
    with FakeServer() as server:
        server.on({"method": "a"}).reply({"result": 1}).optional()
        server.on(ANY).callback(lambda message: message).optional()
        command, *rest = arguments
        assert run(command, server.uri, *rest, stdin=stdin).code == 0
        assert server.connections
        assert {each.close_code for each in server.connections} == {1000}


def test_so_many_replies_a_message(echo: EchoServer) -> None:
    assert run("call", echo.uri_for("/double"), "-n", "2", "a", "b").out == b"a\na\nb\nb\n"


def test_none_at_all_is_sent_and_closed_in_order(echo: EchoServer) -> None:
    ran = run("call", echo.uri_for("/silent"), "-n", "0", "a", "b")
    assert (ran.code, ran.out) == (0, b"")
    wait_until(lambda: echo.messages == 2 and not echo.open_now)


def test_without_a_message_the_server_speaks_first(echo: EchoServer) -> None:
    assert run("call", echo.uri_for("/greet")).out == b'{"hello": "/greet"}\n'


def test_a_reply_that_does_not_come_is_exit_5(echo: EchoServer) -> None:
    ran = run("call", echo.uri_for("/silent"), "-t", "50ms", "a")
    assert ran.code == 5
    assert "no whole message came in time" in ran.err and "allow more time with -t" in ran.err


def test_a_close_before_the_reply_is_exit_6_with_its_code(echo_server: Callable[..., EchoServer]) -> None:
    ran = run("call", echo_server(close_with(4001, "no \x1bway", after=0)).uri, "a")
    assert ran.code == 6
    assert "with 4001" in ran.err and "way" in ran.err and "\x1b" not in ran.err


def test_what_json_shows(echo: EchoServer) -> None:
    first, second = run("call", echo.uri, "a", "b", "--json").records
    assert next(iter(first)) == "type" and (first["type"], first["data"]) == ("message", "a")
    assert 0 <= second["seconds"] < 60
    assert run("call", echo.uri, "AAE=", "--base64", "--json").records[0]["base64"] == "AAE="


def test_binary_both_ways(echo: EchoServer) -> None:
    assert run("call", echo.uri, "--base64", "AAE=").out == b"AAE=\n"
    assert run("call", echo.uri, "--base64", "AAE=", "-0").out == b"AAE=\0"
    assert run("call", echo.uri, "--base64", "AAE").code == 2


def test_binary_goes_to_a_pipe_as_it_is(echo_server: Callable[..., EchoServer]) -> None:
    def picture(conn: Connection) -> None:
        conn.recv()
        conn.send(b"\x89PNG\n\0")

    assert run("call", echo_server(picture).uri, "a").out == b"\x89PNG\n\0"


def test_headers_subprotocol_and_origin_arrive(echo_server: Callable[..., EchoServer]) -> None:
    server = echo_server(subprotocols=["chat"])
    ran = run("call", server.uri, "a", "-H", "X-A: 1", "--subprotocol", "chat", "--origin", "http://o", "-v")
    assert ran.out == b"a\n"
    headers = server.requests[0].headers
    assert (headers["X-A"], headers["Origin"], headers["Sec-WebSocket-Protocol"]) == ("1", "http://o", "chat")
    assert "< sec-websocket-protocol: chat" in ran.err.lower()


# --- stdin


def test_messages_from_stdin_keep_their_order(echo: EchoServer) -> None:
    lines = [json.dumps({"delay": delay}) for delay in (0.1, 0.0, 0.05, 0.0, 0.0)]
    ran = run("call", echo.uri_for("/late"), "-", "--connections", "3", stdin="\n".join(lines).encode())
    assert (ran.code, ran.lines, ran.err) == (0, lines, "")
    assert echo.most_open == 3  # side by side, and reused


def test_a_line_that_fails_is_named_and_the_rest_goes_on(echo: EchoServer) -> None:
    lines = b'{"delay": 5}\n{"delay": 0}\n\xff\nno json\n{"delay": 0.0}\n'
    ran = run("call", echo.uri_for("/late"), "-", "-t", "300ms", stdin=lines)
    assert ran.lines == ['{"delay": 0}', '{"delay": 0.0}']
    assert ran.code == 5  # of the first that failed
    told = [line for line in ran.err.splitlines() if line.startswith("jetsocket: ")]
    assert [line.split(":")[1] for line in told] == [" line 1", " line 3", " line 4"]
    in_json = run("call", echo.uri, "-", "--json", stdin=b"a\n\xff\n").records
    assert [(record["type"], record.get("line"), record.get("where")) for record in in_json] == [
        ("message", 1, None),
        ("error", None, "line 2"),
    ]


def test_many_lines_over_few_connections(echo: EchoServer) -> None:
    lines = [f"line {number}" for number in range(500)]
    ran = run("call", echo.uri, "-", "--connections", "4", stdin="\n".join(lines).encode())
    assert (ran.code, ran.lines) == (0, lines)
    assert echo.most_open <= 4 and echo.opened <= 4


def test_a_late_reply_is_not_taken_for_the_next_lines(echo: EchoServer) -> None:
    lines = b'{"delay": 0.25, "n": 1}\n{"delay": 0, "n": 2}\n{"delay": 0, "n": 3}\n'
    ran = run("call", echo.uri_for("/late"), "-", "-t", "150ms", "--connections", "1", stdin=lines)
    assert [json.loads(line)["n"] for line in ran.lines] == [2, 3]


def test_replies_are_printed_as_they_come(echo: EchoServer) -> None:
    """The first is there while stdin is still open."""
    reading, writing = os.pipe()
    out = io.BytesIO()
    with os.fdopen(reading, "rb") as stdin:
        calling = threading.Thread(target=main, args=(["call", echo.uri, "-"], stdin, out, io.StringIO()))
        calling.start()
        os.write(writing, b"first\n")
        wait_until(lambda: out.getvalue() == b"first\n", 20)
        os.write(writing, b"second")
        os.close(writing)
        calling.join()
    assert out.getvalue() == b"first\nsecond\n"


def test_a_dash_stands_alone(echo: EchoServer) -> None:
    assert run("call", echo.uri, "a", "-").code == 2
    assert run("call", "-", echo.uri).code == 2
    assert echo.opened == 0


# --- by ids


def node(conn: Connection) -> None:
    """A JSON-RPC node that notifies before each reply."""
    for text in conn:
        call = json.loads(text)
        conn.send(json.dumps({"jsonrpc": "2.0", "method": "news", "params": []}))
        if call["method"] == "fail":
            reply = {"error": {"code": -32000, "message": "no \x1b[2J", "data": [1]}}
        else:
            reply = {"result": {"method": call["method"], "params": call["params"]}}
        conn.send(json.dumps({"jsonrpc": "2.0", "id": call["id"], **reply}))


@pytest.fixture
def rpc(echo_server: Callable[..., EchoServer]) -> EchoServer:
    server: EchoServer = echo_server(node)
    return server


def test_a_json_rpc_call_prints_its_result(rpc: EchoServer) -> None:
    ran = run("call", rpc.uri, "--jsonrpc", "add", "1", "0x10", '{"a": "ü"}', "true", "NaN")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.decode() == '{"method": "add", "params": [1, "0x10", {"a": "ü"}, true, "NaN"]}\n'
    assert run("call", rpc.uri, "--jsonrpc", "now", "--json").records[0]["data"]["params"] == []


def test_an_error_reply_goes_to_stderr_and_is_exit_1(rpc: EchoServer) -> None:
    ran = run("call", rpc.uri, "--jsonrpc", "fail")
    assert (ran.code, ran.out) == (1, b"")
    assert "-32000" in ran.err and "no" in ran.err and "\x1b" not in ran.err
    error = run("call", rpc.uri, "--jsonrpc", "fail", "--json").error
    assert (error["exit"], error["code"], error["data"]) == (1, -32000, [1])


def test_json_rpc_calls_from_stdin(rpc: EchoServer) -> None:
    ran = run("call", rpc.uri, "--jsonrpc", "add", "-", stdin=b'[1, 2]\n"x"\nplain\n')
    assert [json.loads(line)["params"] for line in ran.lines] == [[1, 2], ["x"], ["plain"]]


def test_a_notification_awaits_no_reply(echo: EchoServer) -> None:
    assert run("call", echo.uri_for("/silent"), "--jsonrpc", "log", "-n", "0", "hello").code == 0
    wait_until(lambda: echo.messages == 1)


def test_a_correlation_tells_replies_by_their_ids(rpc: EchoServer) -> None:
    ran = run("call", rpc.uri, "--correlation", "jsonrpc", '{"id": "mine", "method": "m", "params": []}')
    assert json.loads(ran.out)["id"] == "mine"
    assert run("call", rpc.uri, "--correlation", "jsonrpc", "no json").code == 2
    for wrong in (
        ["--correlation", "nope", "{}"],
        ["--jsonrpc", "a", "--correlation", "cdp"],
        ["--jsonrpc", "a", "-n", "2"],
    ):
        assert run("call", rpc.uri, *wrong).code == 2
    assert rpc.opened == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e3", 1000.0),
        ("null", None),
        ('"1"', "1"),
        ("[1]", [1]),
        ("a", "a"),
        ("Infinity", "Infinity"),
        ("", ""),
    ],
)
def test_an_argument_that_is_json_goes_as_json(text: str, value: Any) -> None:
    assert argument(text) == value


# --- how it ends


class Impatient:
    """A stdout whose reader goes away after the first message."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def isatty(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        if self.written:
            raise BrokenPipeError
        self.written.append(data)

    def flush(self) -> None:
        pass


def test_a_closed_pipe_ends_it_with_a_close_frame(echo: EchoServer) -> None:
    out, err = Impatient(), io.StringIO()
    code = main(["call", echo.uri, "a", "b", "c"], io.BytesIO(), out, err)  # type: ignore[arg-type]  # a stream
    assert (code, out.written, err.getvalue()) == (141, [b"a\n"], "")
    wait_until(lambda: not echo.open_now)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGINT is another thing there")
def test_ctrl_c_ends_it_quietly_with_a_close_frame(echo_server: Callable[..., EchoServer]) -> None:
    codes: list[int | None] = []

    def watch(conn: Connection) -> None:
        for message in conn:
            conn.send(message)
        codes.append(conn.protocol.close_code)

    server = echo_server(watch)
    command = [sys.executable, "-m", "jetsocket", "call", server.uri, "-", "-n", "2", "-t", "30"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout is not None
        assert process.stdout.readline() == b"a\n"  # now it waits for the second reply
        process.send_signal(signal.SIGINT)
        # stdin stays open: the thread that reads it must not hold up the end
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
    wait_until(lambda: codes in ([1000], [1001]))  # either is in order
