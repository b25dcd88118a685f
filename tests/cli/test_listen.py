"""`jetsocket listen`: what a server sends, and how it ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from jetsocket.cli import listen
from jetsocket.cli.listen import is_worth_another_try, pause
from jetsocket.exceptions import ConnectionClosedError, ConnectionError, HandshakeError, TimeoutError
from tests.cli.terminal import run
from tests.scripts import ROOT
from tests.servers import Connection, EchoServer, refusing_port, wait_until


def test_so_many_messages(echo: EchoServer) -> None:
    ran = run("listen", echo.uri_for("/push?every=0.001"), "-n", "3")
    assert (ran.code, ran.err) == (0, "")
    assert [json.loads(line) for line in ran.lines] == [{"push": 0}, {"push": 1}, {"push": 2}]
    wait_until(lambda: not echo.open_now)


def test_for_so_long(echo: EchoServer) -> None:
    ran = run("listen", echo.uri_for("/silent"), "--for", "100ms")
    assert (ran.code, ran.out, ran.err) == (0, b"", "")


def test_the_time_counts_from_the_connection_on(echo_server: Callable[..., EchoServer]) -> None:
    server = echo_server(process_request=lambda _conn, _request: time.sleep(0.3))
    assert run("listen", server.uri_for("/silent"), "--for", "100ms").code == 0


def test_an_orderly_end_is_exit_0(echo: EchoServer) -> None:
    ran = run("listen", echo.uri_for("/close?code=1000"), "--send", "a", "-v")
    assert ran.code == 0 and "closed the connection with 1000" in ran.err


def test_another_end_is_exit_6_with_its_code(echo: EchoServer) -> None:
    ran = run("listen", echo.uri_for("/close?code=1011&reason=oh"), "--send", "a")
    assert ran.code == 6
    assert 'closed the connection with 1011 and says "oh"' in ran.err
    assert run("listen", echo.uri_for("/close?code=1011"), "--send", "a", "--json").error["code"] == 1011


def test_what_is_sent_first(echo: EchoServer) -> None:
    assert run("listen", echo.uri, "--send", "a", "--send", "b", "-n", "2").out == b"a\nb\n"


def test_stdin_is_read_by_send_dash_only(echo: EchoServer) -> None:
    assert (
        run("listen", echo.uri, "--send", "x", "--send", "-", "-n", "3", stdin=b"a\nb\n").out == b"x\na\nb\n"
    )
    assert run("listen", echo.uri, "--for", "100ms", stdin=b"a\nb\n").out == b""


def test_a_line_that_is_no_message_is_named(echo: EchoServer) -> None:
    ran = run("listen", echo.uri, "--send", "-", "-n", "1", stdin=b"\xff\na\n")
    assert (ran.code, ran.out) == (2, b"a\n")
    assert "line 1: a text message has to be UTF-8" in ran.err


def test_it_connects_again_and_sends_again(
    echo_server: Callable[..., EchoServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listen, "pause", lambda *args: 0.01)

    def fleeting(conn: Connection) -> None:
        conn.send(conn.recv())
        conn.close(1012, "restart")

    server = echo_server(fleeting)
    ran = run("listen", server.uri, "--send", "sub", "--reconnect", "-n", "3")
    assert (ran.code, ran.out, server.opened) == (0, b"sub\n" * 3, 3)
    assert ran.err.count("connecting again in") == 2
    assert "1012" in ran.err


def test_a_server_that_closes_at_once_is_asked_less_and_less(
    echo_server: Callable[..., EchoServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []

    def soon(attempt: int, asked: float | None, chance: float) -> float:
        pauses.append(attempt)
        return 0.001

    monkeypatch.setattr(listen, "pause", soon)
    greeted = run("listen", echo_server(greet_and_go).uri, "--reconnect", "-n", "4", "-q")
    assert (greeted.code, greeted.lines, pauses) == (0, ["hello"] * 4, [1, 2, 3])
    pauses.clear()
    monkeypatch.setattr(listen, "_LASTING", 0.0)
    assert run("listen", echo_server(greet_and_go).uri, "--reconnect", "-n", "4", "-q").code == 0
    assert pauses == [1, 1, 1]


def greet_and_go(conn: Connection) -> None:
    conn.send("hello")
    conn.close(1013)


def test_it_waits_for_a_server_that_is_not_there_yet(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[int] = []

    def soon(attempt: int, asked: float | None, chance: float) -> float:
        pauses.append(attempt)
        if attempt == 2:
            echo.restart()
        return 0.01

    monkeypatch.setattr(listen, "pause", soon)
    echo.stop()
    ran = run("listen", echo.uri, "--send", "a", "--reconnect", "-n", "1", "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, b"a\n", "")
    assert pauses == [1, 2]


def test_not_after_4xx(echo_server: Callable[..., EchoServer]) -> None:
    server = echo_server(process_request=lambda conn, request: conn.respond(403, "no\n"))
    ran = run("listen", server.uri, "--reconnect")
    assert ran.code == 4 and "403" in ran.err


def test_a_time_that_ends_before_any_connection_is_no_success() -> None:
    with refusing_port() as port:
        assert run("listen", f"ws://127.0.0.1:{port}", "--for", "1s").code == 3
        assert run("listen", f"ws://127.0.0.1:{port}", "--for", "100ms", "--reconnect").code == 3


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (HandshakeError("x", 400), False), (HandshakeError("x", 429), False),
        (HandshakeError("x", 500), True), (HandshakeError("x", 503), True), (HandshakeError("x"), True),
        (ConnectionError("x"), True), (TimeoutError("x"), True), (ConnectionClosedError("x", 1000), True),
    ],
    ids=repr,
)  # fmt: skip
def test_after_which_errors_to_connect_again(error: ConnectionError, again: bool) -> None:
    assert is_worth_another_try(error) is again


def test_pauses_grow_and_are_random_and_heed_the_server() -> None:
    assert [pause(attempt, None, 1.0) for attempt in range(1, 9)] == [
        0.6,
        1.1,
        2.1,
        4.1,
        8.1,
        16.1,
        30.1,
        30.1,
    ]
    assert pause(5, None, 0.0) == 0.1 and pause(10**6, None, 1.0) == 30.1
    assert pause(1, 7.0, 1.0) == 7.0


def test_arguments_that_make_no_sense(echo: EchoServer) -> None:
    assert run("listen", echo.uri, "message").code == 2
    assert run("listen").code == 2
    assert echo.opened == 0


# --- as processes


@contextmanager
def listening(*arguments: str, stdout: int = subprocess.PIPE) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "jetsocket", "listen", *arguments]
    with subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_a_closed_pipe_ends_it_quietly_though_nothing_comes(echo_server: Callable[..., EchoServer]) -> None:
    codes: list[int | None] = []

    def once(conn: Connection) -> None:
        conn.send("first")
        for _ in conn:
            pass
        codes.append(conn.protocol.close_code)

    with listening(echo_server(once).uri) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        assert process.wait(30) == 141
        assert process.stderr.read() == b""
    wait_until(lambda: codes in ([1000], [1001]))  # either is in order


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
def test_sigterm_ends_it_quietly(echo: EchoServer) -> None:
    with listening(echo.uri, "--send", "a") as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"a\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 143
        assert process.stderr.read() == b""
    wait_until(lambda: not echo.open_now)


def test_nothing_but_data_is_on_stdout(echo: EchoServer) -> None:
    ran = run("listen", echo.uri, "--send", "a", "-n", "1", "-v")
    assert ran.out == b"a\n" and "connected" in ran.err
