"""`for message in lease`: what is parsed goes out first, each message once, none after the lease's end."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import pytest

from jetsocket import ConnectionPool, PooledConnection, ids
from jetsocket.exceptions import ConnectionClosedError, DecodeError, InvalidStateError, TimeoutError
from jetsocket.interrupts import frames_from
from jetsocket.wire.incoming import Incoming
from tests import servers
from tests.servers import RawServer, after_upgrade, close_frame, frame, wait_until
from tests.wire.conftest import in_background

MakePool = Callable[..., ConnectionPool[Any]]
MakeRaw = Callable[..., RawServer]
COUNT = 300


def numbers(start: int = 0, stop: int = COUNT) -> bytes:
    return b"".join(frame(1, b"%d" % number) for number in range(start, stop))


def arrived(conn: PooledConnection[Any], count: int = COUNT) -> PooledConnection[Any]:
    """The same lease, once all messages are parsed."""
    wire = conn._told().wire
    wait_until(lambda: wire.tend() and wire.messages_received == count)
    return conn


def take(conn: PooledConnection[Any], count: int) -> list[Any]:
    return list(itertools.islice(conn, count))


def test_what_has_come_needs_neither_the_socket_nor_a_lock(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers())))
    with pool.acquire("/") as conn:
        messages = iter(arrived(conn))
        assert next(messages) == 0
        with conn._told().wire.readlock:  # as another thread holds it that reads, or looks after connections
            assert list(itertools.islice(messages, 100)) == [*range(1, 101)]
            assert next(messages) == 101
        assert [conn.recv() for _ in range(2)] == [102, 103]
        conn.discard()


def test_recv_takes_what_has_come_as_well(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers())))
    with pool.acquire("/") as conn:
        assert arrived(conn).recv_raw() == "0"
        with conn._told().wire.readlock:
            assert [conn.recv_raw() for _ in range(100)] == [str(number) for number in range(1, 101)]
        assert conn.recv(0) == 101  # any deadline leaves the order as it is
        assert take(conn, COUNT - 102) == [*range(102, COUNT)]
        conn.discard()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["the loop's body", "another thread"])
@pytest.mark.parametrize("reuse", ["balanced", "quiet", "always"])
def test_a_release_in_the_middle_stops_the_loop_and_hands_nothing_on(
    raw_server: MakeRaw, make_pool: MakePool, reuse: str, by: str
) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers())), reuse=reuse)
    conn, got = arrived(pool.acquire("/")), []
    with pytest.raises(InvalidStateError, match="released"):
        for message in conn:
            got.append(message)
            if message == 10:
                if by == "another thread":
                    in_background(conn.release).result(5)
                else:
                    conn.release()
    assert got == [*range(11)]
    for use in (conn.recv, conn.recv_raw, lambda: next(conn)):
        with pytest.raises(InvalidStateError):
            use()
    if reuse == "always":  # all the rest is the next borrower's
        with pool.acquire("/") as successor:
            assert take(successor, COUNT - 11) == [*range(11, COUNT)]
    else:
        assert pool.stats().discards == {"unread": 1}


@pytest.mark.slow
@pytest.mark.parametrize("take_three", [
    lambda conn: [conn.recv() for _ in range(3)],
    lambda conn: [next(conn) for _ in range(3)],
    lambda conn: take(conn, 3),
])  # fmt: skip
def test_a_lease_that_took_all_takes_none_of_its_successors(
    raw_server: MakeRaw, make_pool: MakePool, take_three: Callable[[PooledConnection[Any]], list[Any]]
) -> None:
    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        for number in (1, 2, 3, 4):
            assert servers.read_client_frame(sock).opcode == 1
            if number >= 3:
                sock.sendall(numbers(1, 4) if number == 3 else numbers(4, 5))
        servers.hold(sock)

    pool = make_pool(raw_server(script), max_connections=1)
    conn = pool.acquire("/")
    for _ in range(3):
        conn.send_raw("each gets a number")
    assert take_three(arrived(conn, 3)) == [1, 2, 3]
    conn.release()
    with pool.acquire("/") as successor:
        assert successor.id == conn.id
        successor.send_raw("and so does this")
        arrived(successor, 4)
        for use in (conn.recv, conn.recv_raw, lambda: next(conn), lambda: take(conn, 1)):
            with pytest.raises(InvalidStateError, match="released"):
                use()
        assert successor.recv(0) == 4
    assert pool.stats().discards == {}


def test_a_queue_is_not_lent_to_who_is_losing_the_connection(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers())))
    with pool.acquire("/") as conn:
        wire, holder = arrived(conn)._told().wire, conn._borrower
        real = wire.reader.lend

        def lend() -> Any:
            wire.holder = None  # as another thread's release does, at this very moment
            wire.recall_queue()
            return real()

        monkeypatch.setattr(wire.reader, "lend", lend)
        assert wire.lend_queue(holder) is None
        wire.holder = holder
        with pytest.raises(InvalidStateError, match="released"):
            wire.await_queue(0.0, holder)
        assert not wire.reader.lent
        conn.discard()


@pytest.mark.slow
def test_a_release_at_any_moment_loses_no_message_and_gives_none_twice(
    raw_server: MakeRaw, make_pool: MakePool, request: pytest.FixtureRequest
) -> None:
    count, kept = 10_000, 0
    server = raw_server(after_upgrade(numbers(stop=count)))
    options = {"reuse": "always", "max_connections": 1, "health_check_interval": 1000.0}  # it answers no ping
    pool = make_pool(server, manager_kwargs={"close_timeout": 0.1}, **options)
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)  # threads take turns wherever they can
    for attempt in range(15):
        conn, got = arrived(pool.acquire("/"), count), [[], []]
        halfway = threading.Event()

        def iterate(conn: PooledConnection[Any] = conn, got: Any = got, halfway: Any = halfway) -> None:
            for message in conn:
                got[0].append(message)
                if message == 50:
                    halfway.set()

        reader = in_background(iterate)
        assert halfway.wait(5)
        conn.release()
        with pool.acquire("/") as successor:
            if successor.id == conn.id:
                kept += 1
                got[1] += take(successor, 10)  # at once
                with pytest.raises(InvalidStateError):
                    reader.result(5)
                got[1] += take(successor, count - len(got[0]) - 10)
                assert got[0] + got[1] == [*range(count)], f"in attempt {attempt}"
            else:  # it was inside the wire, so the connection was closed
                with pytest.raises((InvalidStateError, ConnectionClosedError)):
                    reader.result(5)
            successor.discard()
    assert kept


def test_leaving_early_leaves_the_rest_unread(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers())))
    with pool.acquire("/") as conn:
        for _ in range(3):
            conn.send_raw("so that it is balanced in the end")
        for message in arrived(conn):
            if message == 2:
                break
    assert pool.stats().discards == {"unread": 1}


def test_what_does_not_decode_leaves_the_rest(raw_server: MakeRaw, make_pool: MakePool) -> None:
    data = frame(1, b"1") + frame(1, b"{") + frame(1, b"2") + frame(1, b"no") + frame(1, b"3")
    pool = make_pool(raw_server(after_upgrade(data)))
    with pool.acquire("/") as conn:
        messages = iter(arrived(conn, 5))
        assert next(messages) == 1
        with pytest.raises(DecodeError) as caught:
            next(messages)
        assert caught.value.payload == "{"
        assert take(conn, 1) == [2]
        with pytest.raises(DecodeError) as caught:
            take(conn, 1)
        assert caught.value.payload == "no"
        assert take(conn, 1) == [3]
        conn.discard()


@pytest.mark.slow
@pytest.mark.parametrize("error", [IndexError, StopIteration, RuntimeError])
def test_no_error_of_a_deserializer_ends_the_loop_in_silence(
    raw_server: MakeRaw, make_pool: MakePool, error: type[Exception]
) -> None:
    def fail(payload: str | bytes) -> str:
        if payload == "1":
            raise error("of the deserializer's")
        return str(payload)

    pool = make_pool(raw_server(after_upgrade(numbers(stop=3))), manager_kwargs={"deserializer": fail})
    with pool.acquire("/") as conn:
        messages = iter(arrived(conn, 3))
        assert next(messages) == "0"
        with pytest.raises(DecodeError):
            next(messages)
        assert take(conn, 1) == ["2"]
        conn.discard()


def test_what_is_thrown_into_the_loop_comes_out_of_it(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers())))
    with pool.acquire("/") as conn:
        messages: Any = iter(arrived(conn))
        assert next(messages) == 0
        with pytest.raises(IndexError, match="mine"):
            messages.throw(IndexError("mine"))
        assert take(conn, 1) == [1]
        conn.discard()


def test_two_threads_get_each_message_once(raw_server: MakeRaw, make_pool: MakePool) -> None:
    count = 20_000
    pool = make_pool(raw_server(after_upgrade(numbers(stop=count) + close_frame(1000))))
    with pool.acquire("/") as conn:
        first, second = (in_background(lambda: list(conn)) for _ in range(2))
        got = [first.result(30), second.result(30)]
    assert sorted(got[0] + got[1]) == [*range(count)]
    assert got == [sorted(each) for each in got]  # in order for each


@pytest.mark.parametrize(("code", "orderly"), [(1000, True), (1001, True), (1011, False)])
def test_a_close_comes_behind_all_messages(
    raw_server: MakeRaw, make_pool: MakePool, code: int, orderly: bool
) -> None:
    pool = make_pool(raw_server(after_upgrade(numbers() + close_frame(code))))
    got = []
    with pool.acquire("/") as conn:
        arrived(conn)
        with contextlib.nullcontext() if orderly else pytest.raises(ConnectionClosedError) as caught:
            for message in conn:
                got.append(message)  # noqa: PERF402 - what came before the error counts
    assert orderly or caught.value.code == code
    assert got == [*range(COUNT)]


def test_recv_timeout_is_for_each_message(raw_server: MakeRaw, make_pool: MakePool) -> None:
    """What has come needs no time; then each wait has its own."""
    go_on = threading.Event()

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        sock.sendall(numbers(0, 100))
        go_on.wait(5)
        sock.sendall(numbers(100, 101))
        servers.hold(sock)

    pool = make_pool(raw_server(script), manager_kwargs={"recv_timeout": 0.2})
    with pool.acquire("/") as conn:
        got = []
        with pytest.raises(TimeoutError) as caught:
            for message in conn:
                got.append(message)  # noqa: PERF402
        assert (caught.value.operation, caught.value.timeout) == ("recv", 0.2)
        assert got == [*range(100)]
        go_on.set()
        assert conn.recv(5) == 100


def test_an_answer_to_an_earlier_borrower_is_dropped_in_a_loop_too(
    raw_server: MakeRaw, make_pool: MakePool
) -> None:
    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        asked = []
        while (got := servers.read_client_frame(sock)).opcode == 1:
            asked.append(json.loads(got.payload)["id"])
            answers = [frame(1, json.dumps({"id": each}).encode()) for each in asked]
            sock.sendall(b"".join(answers) + frame(1, b'{"push": 1}') * (len(asked) - 1))

    pool = make_pool(raw_server(script))
    with pool.acquire("/") as conn:
        connection = conn.id
        assert conn.request({"id": "a"}, 5) == {"id": "a"}
    with pool.acquire("/") as conn:
        assert conn.id == connection
        conn.send({"id": "b"})
        arrived(conn, 4)
        assert take(conn, 2) == [{"id": "b"}, {"push": 1}]
    assert pool.stats().discards == {"late reply": 1}


def test_a_stream_behind_an_answer_is_not_parsed_for_its_ids(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = frame(1, b'{"id": "pushed"}')

    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        while (got := servers.read_client_frame(sock)).opcode == 1:
            sock.sendall(frame(1, got.payload) + pushed * 1000)

    looked_at: list[Any] = []
    real = ids.object_in

    def object_in(payload: str | bytes, read: Any) -> Any:
        looked_at.append(payload)
        return real(payload, read)

    monkeypatch.setattr(ids, "object_in", object_in)
    pool = make_pool(raw_server(script), manager_kwargs={"deserializer": str})
    with pool.acquire("/") as conn:
        for number in range(2):
            conn.send(f'{{"id": {number}}}')
            assert conn.recv(5) == f'{{"id": {number}}}'
            looked_at.clear()
            stream = take(conn, 1000) if number else [conn.recv(5) for _ in range(1000)]
            assert stream == ['{"id": "pushed"}'] * 1000
            assert len(looked_at) == ids.REMEMBERED
    assert pool.stats().discards == {}


class Alarm(BaseException):
    """Raised by a signal handler."""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no alarms")
@pytest.mark.parametrize("kind", [Alarm, IndexError, OSError])
def test_an_alarm_at_any_moment_loses_no_message(
    raw_server: MakeRaw, make_pool: MakePool, kind: type[BaseException]
) -> None:
    """What a signal handler raises surfaces; a loop that is begun anew goes on behind the last message."""
    count, struck, got = 10_000, 0, []

    def ring(number: int, interrupted: FrameType | None) -> None:
        if Incoming.await_queue.__code__ in {frame.f_code for frame in frames_from(interrupted)}:
            signal.setitimer(signal.ITIMER_REAL, 0.0003)  # inside a read, it would end the connection
            return
        raise kind("ring")

    def collect() -> None:  # a jump back is in no `try` of its own function on Python 3.13
        signal.setitimer(signal.ITIMER_REAL, 0.0003)
        for message in conn:
            got.append(message)
            if len(got) == count:
                break
        signal.setitimer(signal.ITIMER_REAL, 0)

    pool = make_pool(raw_server(after_upgrade(numbers(stop=count))))
    conn = arrived(pool.acquire("/"), count)
    while len(got) < count:
        before = signal.signal(signal.SIGALRM, ring)
        try:
            collect()
        except kind as error:
            struck += str(error) == "ring"
        finally:
            signal.signal(signal.SIGALRM, before)
    conn.discard()
    conn.release()
    assert struck
    assert got == [*range(count)]
