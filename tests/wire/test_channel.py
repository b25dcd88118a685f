"""An open connection: its deadlines, its ends, TLS both ways at once, what one may ask of it.

Also tests: `link`, `outgoing`, `closing`, `incoming`.
"""

from __future__ import annotations

import itertools
import select
import socket
import ssl
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from jetsocket.exceptions import (
    ConnectionClosedError,
    InvalidStateError,
    MessageTooBigError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.threads import is_in
from jetsocket.wire.waits import Patience
from jetsocket.wire.websocket import WebSocket
from tests import servers
from tests.conftest import Tls
from tests.servers import EchoServer, HandmadeTls, after_upgrade, close_frame, frame, wait_until
from tests.wire.conftest import Connect, RawFactory, Stopwatch, in_background, soon

# --- one deadline for each operation


class TestDeadlines:
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

    @pytest.mark.slow
    def test_a_flood_of_pings_does_not_hold_recv(self, raw_server: RawFactory, connect: Connect) -> None:
        def flood(sock: socket.socket) -> None:
            while True:
                sock.sendall(frame(9, b"?") * 1000)

        ws = connect(raw_server(after_upgrade(then=flood)).uri)
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.recv_message(soon(0.3))
        with Stopwatch(), pytest.raises(TimeoutError):
            ws.recv_message(monotonic())

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

    @pytest.mark.slow
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

    def test_a_send_that_fails_takes_nothing_from_a_thread_that_reads(
        self, raw_server: RawFactory, connect: Connect, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What came before is read first, though the reader is slow to wake."""
        monkeypatch.setattr("jetsocket.wire.outgoing._REASON_PATIENCE", 10.0)

        def answer_and_reset(sock: socket.socket) -> None:
            servers.read_client_frame(sock)
            sock.sendall(frame(1, b"the reply"))
            servers.reset(sock)

        ws = connect(raw_server(after_upgrade(then=answer_and_reset)).uri)
        ws.send_message("a request", soon())
        wait_until(lambda: ws._live_stream().waiting > 0)
        failures: list[BaseException] = []

        def send() -> None:
            with pytest.raises(ConnectionClosedError) as raised:
                for _ in range(100):  # the first ones may still be taken
                    ws.send_message("x", soon())
                    threading.Event().wait(0.01)
            failures.append(raised.value)

        sender = threading.Thread(target=send)
        with ws.readlock:  # as a reader that has not got the processor yet
            sender.start()
            looks = WebSocket._look_for_reason.__code__
            wait_until(lambda: failures or is_in(sender.ident or 0, [looks]))
            assert ws.failure is None
        assert ws.recv_message(soon()) == "the reply"
        sender.join()
        with pytest.raises(ConnectionClosedError):
            ws.recv_message(soon())

    @pytest.mark.parametrize("is_held", [True, False])
    def test_what_came_before_a_close_is_still_its_holders(
        self, raw_server: RawFactory, connect: Connect, is_held: bool
    ) -> None:
        """Several callers share a connection, and the first that finds it lost closes it."""
        go_on = threading.Event()

        def speak(sock: socket.socket) -> None:
            sock.sendall(frame(1, b"the reply"))
            go_on.wait(5)
            sock.sendall(frame(1, b"the last"))

        ws = connect(raw_server(after_upgrade(then=speak)).uri)
        wait_until(lambda: ws.tend() and ws.reader.messages)
        holder = ws.holder = object() if is_held else None
        ws.start_close()
        go_on.set()
        wait_until(ws.poll_close)
        ws.shutdown()
        if is_held:
            assert [ws.recv_message(soon(), holder) for _ in range(2)] == ["the reply", "the last"]
        with pytest.raises(ConnectionClosedError):
            ws.recv_message(soon(), holder)

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

    def test_a_ping_into_a_flood_of_tiny_messages(self, raw_server: RawFactory, connect: Connect) -> None:
        def flood(sock: socket.socket) -> None:
            while True:
                sock.sendall(frame(2, b"ab") * 16_000)

        ws = connect(raw_server(after_upgrade(then=flood)).uri, max_message_size=1 << 20)
        with Stopwatch(20), pytest.raises(TimeoutError, match="more messages than are kept unread"):
            ws.measure_latency(soon(60))
        assert len(ws.reader.messages) < 60_000  # some 60 B each, beside their 2 B

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


class TestAnswers:
    """`recv_answer`: one message out of many; the others stay where they are."""

    def test_what_comes_before_stays_in_order_and_what_is_for_nobody_goes(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        sent = [b"old", b"1", b"drop", b"2", b"mine", b"drop", b"3"]
        ws = connect(raw_server(after_upgrade(*[frame(1, each) for each in sent])).uri)
        wait_until(lambda: ws.tend() and ws.reader.received == len(sent))
        judged: list[str | bytes] = []

        def judge(message: str | bytes) -> bool | None:
            judged.append(message)
            return {"mine": True, "drop": False}.get(str(message))

        assert ws.recv_answer(judge, 1, soon()) == "mine"
        assert judged == ["1", "drop", "2", "mine"]  # not what had come before the question left
        assert [ws.recv_message(soon()) for _ in range(5)] == ["old", "1", "2", "drop", "3"]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        "stream", [frame(1, b"{}") * 1000, frame(1, b"x" * 60_000), frame(9, b"?") * 1000]
    )
    def test_a_flood_does_not_hold_it(self, raw_server: RawFactory, connect: Connect, stream: bytes) -> None:
        def flood(sock: socket.socket) -> None:
            while True:
                sock.sendall(stream)

        ws = connect(raw_server(after_upgrade(then=flood)).uri, max_message_size=1 << 16)
        with Stopwatch(), pytest.raises(TimeoutError, match="no reply came") as caught:
            ws.recv_answer(lambda message: None, 0, soon(0.3))
        assert caught.value.operation == "recv"
        assert ws.failure is None

    def test_patience_begins_with_the_first_message_that_is_another_s(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        ws = connect(raw_server(after_upgrade(frame(1, b"other"))).uri)
        with Stopwatch(), pytest.raises(TimeoutError, match="no reply came"):
            ws.recv_answer(lambda message: None, 0, None, patience=Patience(0.2, lambda: False))
        assert ws.recv_message(soon()) == "other"

    def test_patience_has_no_end_where_there_is_hope(self, raw_server: RawFactory, connect: Connect) -> None:
        def script(sock: socket.socket) -> None:
            servers.upgrade(sock)
            sock.sendall(frame(1, b"other"))
            go_on.wait(5)
            sock.sendall(frame(1, b"mine"))
            servers.hold(sock)

        go_on, asked = threading.Event(), []
        patience = Patience(0.1, lambda: bool(asked.append(0)) or len(asked) > 1)  # only when it is over
        ws = connect(raw_server(script).uri)
        answer = in_background(
            lambda: ws.recv_answer(lambda message: message == "mine" or None, 0, None, patience=patience)
        )
        wait_until(lambda: len(asked) == 2)
        assert patience.until is None
        go_on.set()
        assert answer.result(5) == "mine"

    def test_an_answer_before_the_end_is_found_and_the_rest_stays(
        self, raw_server: RawFactory, connect: Connect
    ) -> None:
        ws = connect(raw_server(after_upgrade(frame(1, b"1"), frame(1, b"mine"), close_frame(1000))).uri)
        wait_until(lambda: ws.tend() and ws.is_over)
        assert ws.recv_answer(lambda message: message == "mine" or None, 0, soon()) == "mine"
        with pytest.raises(ConnectionClosedError):
            ws.recv_answer(lambda message: None, 0, soon())
        assert ws.recv_message(soon()) == "1"

    def test_only_who_holds_it_may_ask(self, raw_server: RawFactory, connect: Connect) -> None:
        ws = connect(raw_server(after_upgrade(frame(1, b"1"))).uri)
        ws.holder = object()
        with pytest.raises(InvalidStateError):
            ws.recv_answer(lambda message: True, 0, soon(), object())
        assert ws.recv_answer(lambda message: True, 0, soon(), ws.holder) == "1"


class TestTls:
    @pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


class TestTlsReplies:
    """What TLS has to say by itself leaves though nobody sends, and does not pile up."""

    @staticmethod
    def serve(
        raw_server: RawFactory,
        tls: Tls,
        script: Callable[[HandmadeTls], None],
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        **options: Any,
    ) -> str:
        context = tls.issue(servers.LOCALHOST)
        context.maximum_version = version
        server = raw_server(lambda sock: script(HandmadeTls(sock, context)), **options)
        return server.uri.replace("ws:", "wss:")

    def test_new_keys_are_answered_by_a_reader(
        self, raw_server: RawFactory, connect: Connect, tls: Tls
    ) -> None:
        answered = threading.Event()

        def script(session: Any) -> None:
            servers.upgrade(session)
            for _ in range(2):  # OpenSSL keeps the answer to one for its next record
                session.sock.sendall(session.ask_for_new_keys())
            session.sendall(frame(1, b"x"))
            assert session.sock.recv(100)
            answered.set()
            servers.hold(session)

        ws = connect(self.serve(raw_server, tls, script), ssl_context=tls.client_context)
        assert ws.recv_message(soon()) == "x"
        assert answered.wait(5)

    @pytest.mark.slow
    def test_a_flood_of_them_ends_the_connection(
        self, raw_server: RawFactory, connect: Connect, tls: Tls
    ) -> None:
        def script(session: Any) -> None:
            servers.upgrade(session)
            while True:
                session.sock.sendall(b"".join(session.ask_for_new_keys() for _ in range(500)))

        small = [(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)]
        uri = self.serve(raw_server, tls, script, receive_buffer=4096)
        ws = connect(uri, ssl_context=tls.client_context, socket_options=small)
        with pytest.raises(ConnectionClosedError, match="asks for ever more TLS answers, and takes none"):
            ws.recv_message(soon(30))

    def test_a_server_may_renegotiate_before_it_answers_the_upgrade(
        self, raw_server: RawFactory, connect: Connect, tls: Tls
    ) -> None:
        def script(session: Any) -> None:
            request = servers.read_request(session)
            session.ask_to_renegotiate()
            session.renegotiate()
            session.sendall(servers.upgrade_response(request) + frame(1, b"x"))
            servers.hold(session)

        uri = self.serve(raw_server, tls, script, ssl.TLSVersion.TLSv1_2)
        ws = connect(uri, ssl_context=tls.client_context)
        assert ws.recv_message(soon()) == "x"

    def test_it_may_when_the_connection_is_open(
        self, raw_server: RawFactory, connect: Connect, tls: Tls
    ) -> None:
        def script(session: Any) -> None:
            servers.upgrade(session)
            session.ask_to_renegotiate()
            session.renegotiate()
            session.sendall(frame(1, b"x"))
            session.sendall(frame(1, servers.read_client_frame(session).payload))
            servers.hold(session)

        uri = self.serve(raw_server, tls, script, ssl.TLSVersion.TLSv1_2)
        ws = connect(uri, ssl_context=tls.client_context)
        assert ws.recv_message(soon()) == "x"
        ws.send_message("y", soon())
        assert ws.recv_message(soon()) == "y"

    def test_a_send_meanwhile_says_what_happened(
        self, raw_server: RawFactory, connect: Connect, tls: Tls
    ) -> None:
        def script(session: Any) -> None:
            servers.upgrade(session)
            session.ask_to_renegotiate()
            session.sendall(frame(1, b"x"))
            servers.hold(session.sock)  # it does not answer, however late the send comes

        uri = self.serve(raw_server, tls, script, ssl.TLSVersion.TLSv1_2)
        ws = connect(uri, ssl_context=tls.client_context)
        assert ws.recv_message(soon()) == "x"
        with pytest.raises(ConnectionClosedError, match="renegotiates TLS"):
            ws.send_message("y", soon())


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
        assert not WebSocket().stays_at_rest()

    @pytest.mark.slow
    @pytest.mark.parametrize("what", ["a send", "a read", "a ping", "a pong", "an end", "unread", "a look"])
    def test_one_stays_so_until_something_is_done_with_it(
        self, connect: Connect, echo: EchoServer, what: str
    ) -> None:
        ws = connect(echo.uri + ("/silent" if what == "a send" else "/"))
        assert ws.at_rest()
        assert ws.stays_at_rest()
        if what == "a send":
            ws.send("hello")
        elif what == "a read":
            ws.send("hello")
            assert ws.recv() == "hello"
        elif what == "a ping":
            ws.measure_latency(soon())
        elif what == "a pong":
            ws.send_ping()
            wait_until(lambda: ws.tend() and ws.ping_due_since is None)
        elif what == "an end":
            ws.cut("over")
        elif what == "unread":
            ws.send("hello")
            assert select.select([ws], [], [], 5)[0]
        elif what == "a look":
            assert ws.look()
        assert ws.stays_at_rest() == (what == "a look")  # which has found nothing
        assert ws.at_rest() == (what not in ("an end", "unread"))
        assert ws.stays_at_rest() == ws.at_rest()

    def test_what_another_thread_takes_in_meanwhile_is_not_missed(
        self, connect: Connect, echo: EchoServer
    ) -> None:
        ws = connect(echo.uri)
        ws.send("hello")
        assert select.select([ws], [], [], 5)[0]
        assert not ws.at_rest()
        assert ws.look()  # takes it in, so that the socket has nothing to tell
        assert not ws.stays_at_rest()
        assert not ws.at_rest()
        assert ws.recv() == "hello"
        assert not ws.stays_at_rest()
        assert ws.at_rest()


@pytest.mark.parametrize("pause", [0.04, 1.0])
def test_a_look_that_took_too_long_but_read_all_leaves_nothing_unread(
    raw_server: RawFactory, connect: Connect, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    """A thread that the system did not let run for a while must not cost an idle connection."""

    def ping_when_told(sock: socket.socket) -> None:
        sock.recv(100)
        sock.sendall(frame(9, b"?"))
        servers.hold(sock)

    ws = connect(raw_server(after_upgrade(then=ping_when_told)).uri)
    ws.send("now")
    assert select.select([ws], [], [], 5)[0]
    ticks = itertools.count(monotonic(), pause)
    monkeypatch.setattr("jetsocket.wire.incoming.monotonic", lambda: next(ticks))
    assert ws.look()
    assert not ws.unread


def test_tiny_messages_are_read_ahead_by_what_they_take_of_memory(
    raw_server: RawFactory, connect: Connect
) -> None:
    ws = connect(raw_server(after_upgrade(frame(2, b"ab") * 250_000)).uri)  # 1 MB on the wire, 16 in memory
    while not ws.has_backlog or ws.wants_reading:
        assert select.select([ws.fileno()], [], [], 10)[0]
        assert ws.tend()
    assert len(ws.reader.messages) < 40_000
    assert [ws.recv_message(soon()) for _ in range(250_000)] == [b"ab"] * 250_000
