"""One thread sends for all that share a connection: what becomes of the others when anything befalls it."""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    InvalidStateError,
    JetSocketError,
    PoolClosedError,
    TimeoutError,
)
from jetsocket.dispatch import Dispatcher
from jetsocket.outbox import Messenger, Outbox
from jetsocket.pending_requests import Request
from jetsocket.reading_turns import LOOK_AGAIN, Turn
from jetsocket.wire.frames import TEXT
from jetsocket.wire.link import Batch
from jetsocket.wire.stream import Stream
from tests import scripts
from tests.servers import Connection, EchoServer, wait_until
from tests.services import MakePool, Plain, Service


class Struck(BaseException):
    """What strikes the one who sends."""


class Gate:
    """A serializer that stops at some messages: its thread is about to send, for as long as a test likes."""

    def __init__(self) -> None:
        self.is_reached, self.is_open = threading.Event(), threading.Event()
        self.thread = 0

    def __call__(self, message: Any) -> str:
        if message.get("stop"):
            self.thread = threading.get_ident()
            self.is_reached.set()
            while not self.is_open.wait(0.005):
                pass
        if message.get("broken"):
            raise ValueError("this one can't be made")
        return json.dumps(message)


class Crowd:
    """Threads with requests at one connection."""

    def __init__(self, pool: ConnectionPool[Any], gate: Gate) -> None:
        self.pool, self.gate = pool, gate
        self._threads = ThreadPoolExecutor(40)

    def ask(self, timeout: float | None = 20.0, **message: Any) -> Future[Any]:
        return self._threads.submit(self.pool.request, "/", message, timeout)

    def behind_a_sender(
        self, *messages: dict[str, Any], **sent: Any
    ) -> tuple[Future[Any], list[Future[Any]]]:
        """One that is about to be sent, and those that wait behind it."""
        first = self.ask(**{"n": "first", "stop": True, **sent})
        assert self.gate.is_reached.wait(10)
        behind = []
        for number, message in enumerate(messages, 2):
            behind.append(self.ask(**message))
            wait_until(lambda number=number: self.waiting == number)
        return first, behind

    @property
    def dispatchers(self) -> list[Dispatcher]:
        entries = self.pool._lending.state.open_entries()
        return [entry.dispatcher for entry in entries if entry.dispatcher is not None]

    @property
    def waiting(self) -> int:
        return sum(len(each.outbox._waiting) for each in self.dispatchers)

    def end(self) -> None:
        self.gate.is_open.set()
        self._threads.shutdown()


class Recorder:
    """What the server got, in order."""

    def __init__(self) -> None:
        self.messages: list[Any] = []

    def __call__(self, conn: Connection) -> None:
        recorder = self

        class Recording(Service):
            def say(self, *messages: Any) -> None:
                recorder.messages += messages
                super().say(*messages)

            def do_notify(self, message: Any) -> None:
                recorder.messages.append(message)

        Recording(conn).run()

    @property
    def names(self) -> list[Any]:
        return [each["n"] for each in self.messages]


@pytest.fixture
def got() -> Recorder:
    return Recorder()


@pytest.fixture
def server(echo_server: Callable[..., EchoServer], got: Recorder) -> EchoServer:
    return echo_server(got)


@pytest.fixture
def crowd(server: EchoServer, make_pool: MakePool) -> Iterator[Crowd]:
    gate = Gate()
    options = {"serializer": gate}
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=50, manager_kwargs=options)
    pool.prewarm("/", 1)
    found = Crowd(pool, gate)
    yield found
    found.end()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No follower finds out anything by itself: it has to be told."""
    monkeypatch.setattr("jetsocket.reading_turns.LOOK_AGAIN", 30.0)


def results(futures: list[Future[Any]]) -> list[Any]:
    return [future.result(10)["n"] for future in futures]


# --- together, and in order


@pytest.mark.usefixtures("patient")
def test_what_waits_behind_a_sender_leaves_in_one_go(
    crowd: Crowd, got: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    writes = []
    write = Stream.write

    def counting(self: Stream, data: bytes, deadline: float | None) -> None:
        writes.append(len(data))
        write(self, data, deadline)

    monkeypatch.setattr(Stream, "write", counting)
    first, behind = crowd.behind_a_sender(*({"n": number} for number in range(10)))
    crowd.gate.is_open.set()
    assert results([first, *behind]) == ["first", *range(10)]
    assert len(writes) == 2
    assert [each["id"] for each in got.messages] == list(range(1, 12))
    assert crowd.waiting == 0


def test_ids_grow_in_the_order_in_which_they_are_sent(crowd: Crowd, got: Recorder) -> None:
    crowd.gate.is_open.set()

    def call(number: int) -> None:
        for turn in range(20):
            assert crowd.pool.request("/", {"n": [number, turn]}, 10)["n"] == [number, turn]

    with ThreadPoolExecutor(20) as threads:
        list(threads.map(call, range(20)))
    ids = [each["id"] for each in got.messages]
    assert ids == list(range(1, 401))


def test_a_batch_has_an_end(crowd: Crowd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetsocket.outbox._AT_ONCE", 100)
    first, behind = crowd.behind_a_sender(*({"n": number, "x": "x" * 60} for number in range(9)))
    crowd.gate.is_open.set()
    assert results([first, *behind]) == ["first", *range(9)]


@pytest.mark.usefixtures("patient")
def test_a_thread_that_has_sent_enough_for_others_leaves_the_rest_to_them(
    crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.outbox._MOST_BATCHES", 1)
    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3})
    crowd.gate.is_open.set()
    assert results([first, *behind]) == ["first", 2, 3]


@pytest.mark.usefixtures("patient")
def test_what_has_no_reply_has_ended_once_it_has_left(crowd: Crowd, got: Recorder) -> None:
    first, behind = crowd.behind_a_sender({"n": 2, "do": "notify"}, {"n": 3})
    assert not behind[0].done()
    crowd.gate.is_open.set()
    assert behind[0].result(10) is None
    assert results([first, behind[1]]) == ["first", 3]
    assert got.names == ["first", 2, 3]


@pytest.mark.parametrize("size", [200_000, 20])
def test_long_ones_leave_in_fragments(server: EchoServer, make_pool: MakePool, size: int) -> None:
    options = {"max_frame_size": 1000}
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=50, manager_kwargs=options)
    text = "x" * size

    def call(number: int) -> None:
        assert pool.request("/", {"n": number, "text": text}, 10)["text"] == text
        assert pool.request("/", {"n": number}, 10)["n"] == number

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(call, range(8)))
    assert server.opened == 1


# --- what can't be made


@pytest.mark.usefixtures("patient")
def test_one_that_cannot_be_made_fails_alone_and_in_its_own_thread(crowd: Crowd, got: Recorder) -> None:
    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3, "broken": True}, {"n": 4})
    crowd.gate.is_open.set()
    assert results([first, behind[0], behind[2]]) == ["first", 2, 4]
    error = behind[1].exception(10)
    assert isinstance(error, ValueError)
    assert got.names == ["first", 2, 4]
    assert crowd.pool.stats().in_flight == 0


def test_a_sender_whose_own_cannot_be_made_leaves_the_others_to_the_next(crowd: Crowd) -> None:
    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3}, broken=True)
    crowd.gate.is_open.set()
    assert isinstance(first.exception(10), ValueError)
    assert results(behind) == [2, 3]
    assert crowd.pool.stats().in_flight == 0


# --- what strikes


@pytest.mark.usefixtures("patient")
def test_a_sender_that_is_struck_is_replaced_at_once(crowd: Crowd, server: EchoServer) -> None:
    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3}, {"n": 4})
    thread = ctypes.c_ulong(crowd.gate.thread)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(Struck))
    assert isinstance(first.exception(10), Struck)
    assert results(behind) == [2, 3, 4]
    assert (server.opened, crowd.waiting) == (1, 0)


def test_those_that_wait_find_out_by_themselves_that_no_thread_sends(crowd: Crowd) -> None:
    """An exception has struck it where it could tell no one."""
    crowd.gate.is_open.set()
    outbox, gone = crowd.dispatchers[0].outbox, Turn()
    outbox._sender = gone
    futures = [crowd.ask(n=number) for number in range(3)]
    wait_until(lambda: crowd.waiting == 3)
    gone.is_over = True
    assert results(futures) == [0, 1, 2]
    assert LOOK_AGAIN < 1


def test_one_that_was_sent_by_a_thread_which_was_struck_then_is_not_sent_again(
    crowd: Crowd, got: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = Outbox._let_go

    def strike(self: Outbox, request: Request) -> None:
        monkeypatch.setattr(Outbox, "_let_go", let_go)
        raise Struck

    first, behind = crowd.behind_a_sender({"n": 2, "do": "notify"}, {"n": 3})
    monkeypatch.setattr(Outbox, "_let_go", strike)
    crowd.gate.is_open.set()
    assert isinstance(first.exception(10), Struck)
    assert behind[0].result(10) is None
    assert results(behind[1:]) == [3]
    assert got.names == ["first", 2, 3]


def test_a_write_that_is_struck_ends_the_connection_and_only_what_it_may_have_sent(
    crowd: Crowd, got: Recorder, server: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Stream.write

    def strike(self: Stream, data: bytes, deadline: float | None) -> None:
        monkeypatch.setattr(Stream, "write", write)
        raise Struck

    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3})
    monkeypatch.setattr(Stream, "write", strike)
    crowd.gate.is_open.set()
    assert isinstance(first.exception(10), Struck)
    assert results(behind) == [2, 3]  # they were not in that batch, and went over another connection
    assert server.opened == 2
    assert sorted(got.names) == [2, 3]


def test_who_interrupts_a_sender_gets_an_error(server: EchoServer, make_pool: MakePool) -> None:
    """A signal handler, or a finalizer; here, its own serializer."""

    def serialize(message: Any) -> str:
        if message["n"] == "outer":
            with pytest.raises(InvalidStateError, match="signal handler"):
                pool.request("/", {"n": "inner"}, 5)
        return json.dumps(message)

    options = {"serializer": serialize}
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=5, manager_kwargs=options)
    assert pool.request("/", {"n": "outer"}, 5)["n"] == "outer"
    assert pool.request("/", {"n": "after"}, 5)["n"] == "after"


# --- limits of time


@pytest.mark.usefixtures("patient")
def test_a_sender_whose_time_is_over_is_replaced_at_once(crowd: Crowd, got: Recorder) -> None:
    crowd.gate.is_open.set()
    wire = crowd.dispatchers[0].wire
    with wire.lock:  # as a thread would that sends something long
        first = crowd.ask(0.3, n="first")
        wait_until(lambda: crowd.waiting == 1)
        others = [crowd.ask(n=number) for number in range(3)]
        wait_until(lambda: crowd.waiting == 4)
        error = first.exception(10)
        assert isinstance(error, TimeoutError)
        assert (error.operation, error.timeout) == ("send", 0.3)
        wait_until(lambda: crowd.waiting == 3)
    assert results(others) == [0, 1, 2]
    assert got.names == [0, 1, 2]


@pytest.mark.usefixtures("patient")
def test_one_that_gives_up_before_it_has_left_is_never_sent(crowd: Crowd, got: Recorder) -> None:
    first, behind = crowd.behind_a_sender({"n": 2})
    late = crowd.ask(0.05, n="late")
    error = late.exception(10)
    assert isinstance(error, TimeoutError)
    assert (error.operation, error.timeout) == ("send", 0.05)
    crowd.gate.is_open.set()
    assert results([first, *behind]) == ["first", 2]
    assert crowd.pool.request("/", {"n": "last"}, 5)["n"] == "last"
    assert got.names == ["first", 2, "last"]
    assert crowd.pool.stats().late_replies == 0


@pytest.mark.parametrize(("send", "recv"), [(0.6, 0.3), (0.2, None), (None, 0.1)])
def test_without_a_limit_of_its_own_each_part_of_a_request_has_the_pools(
    server: EchoServer, make_pool: MakePool, send: float | None, recv: float | None
) -> None:
    gate = Gate()
    options = {"serializer": gate, "send_timeout": send, "recv_timeout": recv}
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=50, manager_kwargs=options)
    crowd = Crowd(pool, gate)
    try:
        if recv is not None:
            error = crowd.ask(None, do="never", n=0).exception(10)
            assert isinstance(error, TimeoutError)
            assert (error.operation, error.timeout) == ("recv", recv)
        if send is not None:
            crowd.behind_a_sender()
            error = crowd.ask(None, n=0).exception(10)
            assert isinstance(error, TimeoutError)
            assert (error.operation, error.timeout) == ("send", send)
        if send is not None and recv is not None:  # what waits for longer than a reply may take, and leaves
            pool.resize(2)
            other = Crowd(pool, gate)
            waits = other.ask(None, n=1)
            gate.is_open.set()
            assert waits.result(10)["n"] == 1
            other.end()
    finally:
        crowd.end()


# --- the end


def test_close_ends_what_waits(crowd: Crowd, got: Recorder) -> None:
    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3})
    crowd.pool.close(0.2)
    for future in behind:
        assert isinstance(future.exception(10), (PoolClosedError, ConnectionClosedError))
    crowd.gate.is_open.set()
    assert isinstance(first.exception(10), (PoolClosedError, ConnectionClosedError))
    assert got.messages == []


def test_what_has_not_left_when_the_connection_ends_goes_over_another_one(
    crowd: Crowd, got: Recorder, server: EchoServer
) -> None:
    first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3})
    [where] = crowd.dispatchers
    server.cut_all()
    wait_until(lambda: where.wire.failure is not None)
    crowd.gate.is_open.set()
    assert sorted(map(str, results([first, *behind]))) == ["2", "3", "first"]
    assert sorted(map(str, got.names)) == ["2", "3", "first"]
    assert server.opened == 2


def test_a_fork_while_some_wait_costs_neither_side_anything(server: EchoServer) -> None:
    script = """
import os, sys, threading, warnings
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.servers import wait_until
from tests.services import Plain
from tests.test_outbox import Crowd, Gate
warnings.simplefilter("ignore")  # of a fork beside threads
gate = Gate()
config = ConnectionPoolConfig(max_connections=1, max_in_flight=10)
options = {"serializer": gate}
pool = ConnectionPool(config, base_uri=sys.argv[1], correlation=Plain(), manager_kwargs=options)
crowd = Crowd(pool, gate)
first, behind = crowd.behind_a_sender({"n": 2}, {"n": 3})
pid = os.fork()
if not pid:
    status = 1
    try:
        assert crowd.waiting == 0
        assert pool.request("/", {"n": "child"}, 10)["n"] == "child"
        pool.close(1)
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
gate.is_open.set()
assert [each.result(10)["n"] for each in [first, *behind]] == ["first", 2, 3]
crowd.end()
pool.close()
print("ok")
"""
    assert scripts.run(script, server.uri, watchdog=30).check().out == "ok\n"
    assert server.opened == 2


# --- races, each as one order of events


class Table(Messenger):
    """A connection that does something while it sends."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self.wire: Any = self
        self.meanwhile = meanwhile
        self.sent: list[bytes] = []
        self.given_up: list[Request] = []
        self.unmade: list[Request] = []
        self.error: BaseException | None = None

    @property
    def is_waking(self) -> bool:
        return False

    def send_together(self, batch: Batch, messages: Any, deadline: float | None, holder: object) -> None:
        assert holder is self
        made = [data for _, data in messages]
        if self.error is not None:
            raise self.error
        batch.has_left = True
        self.meanwhile()
        self.sent += made

    def make(self, request: Request) -> tuple[int, bytes]:
        request.asked = type("Asked", (), {"key": 1})()
        return TEXT, str(request.message).encode()

    def unmake(self, request: Request) -> None:
        self.unmade.append(request)

    def give_up(self, request: Request) -> None:
        self.given_up.append(request)


def test_who_gives_up_while_it_leaves_has_given_up_what_was_sent() -> None:
    def give_up() -> None:
        behind.is_cancelled = True
        outbox.withdraw(behind)

    table = Table(give_up)
    outbox = Outbox(table)
    own, behind = Request(message="own"), Request(message="behind")
    outbox.put(own)
    outbox.put(behind)
    outbox.send(own, None)
    assert table.sent == [b"own", b"behind"]
    assert table.given_up == [behind]
    assert own.outbox is None


def test_one_that_is_put_in_as_the_sender_is_about_to_leave_is_sent() -> None:
    def put() -> None:
        if not table.sent:
            outbox.put(late)
            assert outbox.has_sender
            outbox.send(late, None)  # another thread's: it leaves that to the sender

    table = Table(put)
    outbox = Outbox(table)
    own, late = Request(message="own"), Request(message="late")
    outbox.put(own)
    outbox.send(own, None)
    assert table.sent == [b"own", b"late"]


@pytest.mark.parametrize("error", [TimeoutError("late", "send"), ConnectionClosedError("over", 1006)])
def test_what_fails_for_others_is_not_told_to_the_one_who_sends_for_them(error: JetSocketError) -> None:
    def put() -> None:
        if table.error is None:
            outbox.put(behind)
            table.error = error

    table = Table(put)
    outbox = Outbox(table)
    own, behind = Request(message="own"), Request(message="behind")
    bell = behind.hang_bell()
    outbox.put(own)
    outbox.send(own, None)
    assert (own.outbox, table.sent) == (None, [b"own"])
    assert behind.is_stranded
    assert bell.acquire(timeout=5)  # it was woken
    assert table.unmade == [behind]


def test_what_has_ended_is_not_sent() -> None:
    table = Table(lambda: None)
    outbox = Outbox(table)
    requests = [Request(message=str(number)) for number in range(3)]
    for each in requests:
        outbox.put(each)
    requests[1].end(ConnectionClosedError("over", 1006))
    outbox.send(requests[0], None)
    assert table.sent == [b"0", b"2"]
    outbox.fail(ConnectionClosedError("over", 1006))
    assert requests[2].error is None  # it has left
