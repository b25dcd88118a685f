"""Listeners are told what a pool does: in order, in whose thread, and their sums agree with the server's."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import (
    ConnectionError,
    ConnectionInfo,
    ConnectionPool,
    HandshakeError,
    PoolExhaustedError,
    ReplyError,
)
from jetsocket.correlation import JsonRpc
from jetsocket.events import Events, Listener
from tests.servers import EchoServer, RawServer, response, wait_until
from tests.services import Plain, service

MakePool = Callable[..., ConnectionPool[Any]]


class Notebook(Listener):
    """Writes down all that it is told, with the thread."""

    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []
        self.threads: list[str] = []
        self._next = 0

    def note(self, *line: Any) -> None:
        self.threads.append(threading.current_thread().name)
        self.lines.append(line)

    def begin(self, *line: Any) -> int:
        self._next += 1
        self.note(*line, self._next)
        return self._next

    def acquiring(self, uri: str) -> int:
        return self.begin("acquiring", uri)

    def acquired(self, token: int, info: ConnectionInfo, waited: float, reused: bool) -> None:
        assert waited >= 0
        self.note("acquired", token, info.id, reused)

    def refused(self, token: int, error: BaseException) -> None:
        self.note("refused", token, type(error).__name__)

    def released(self, info: ConnectionInfo, used: float, reason: str | None) -> None:
        assert used >= 0
        self.note("released", info.id, reason)

    def connecting(self, uri: str, tokens: Sequence[int]) -> int:
        return self.begin("connecting", uri, list(tokens))

    def connected(self, token: int, info: ConnectionInfo) -> None:
        self.note("connected", token, info.id)

    def connect_failed(self, token: int, error: BaseException) -> None:
        self.note("connect_failed", token, type(error).__name__)

    def closed(self, info: ConnectionInfo, reason: str) -> None:
        assert info.place == "gone"
        self.note("closed", info.id, reason)

    def requesting(self, info: ConnectionInfo, message: Any) -> int:
        return self.begin("requesting", info.id, message)

    def replied(self, token: int, error: BaseException | None) -> None:
        self.note("replied", token, None if error is None else type(error).__name__)

    def of(self, *names: str) -> list[tuple[Any, ...]]:
        return [line for line in list(self.lines) if line[0] in names]

    def count(self, name: str) -> int:
        return len(self.of(name))


@pytest.fixture
def notes() -> Notebook:
    return Notebook()


def test_the_life_of_a_connection_is_told_in_order(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    pool = make_pool(echo)
    pool.listen(notes)
    with pool.acquire("/?key=secret") as conn:
        number = conn.id
    with pool.acquire("/?key=secret") as conn:
        assert conn.id == number
        conn.discard()
    uri = echo.uri_for("/?key=***")
    wait_until(lambda: notes.count("closed"))
    assert notes.lines == [
        ("acquiring", uri, 1),
        ("connecting", uri, [1], 2),
        ("connected", 2, number),
        ("acquired", 1, number, False),
        ("released", number, None),
        ("acquiring", uri, 3),
        ("acquired", 3, number, True),
        ("released", number, "discarded"),
        ("closed", number, "discarded"),
    ]


def test_each_is_told_in_the_thread_that_does_it_and_none_in_the_housekeeper(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    pool = make_pool(echo, max_idle_time=0.2)
    pool.listen(notes)
    pool.acquire("/").release()
    wait_until(lambda: notes.count("closed"))
    told = dict(zip([line[0] for line in notes.lines], notes.threads, strict=True))
    mine = threading.current_thread().name
    assert told["acquiring"] == told["acquired"] == told["released"] == mine
    assert told["connecting"] == told["connected"] == f"jetsocket-opener-{pool.name}"
    assert told["closed"] == f"jetsocket-log-{pool.name}"


def test_a_dial_is_told_for_whom_it_is(echo: EchoServer, make_pool: MakePool, notes: Notebook) -> None:
    release = threading.Event()
    pool = make_pool(echo, configure=lambda conn: release.wait(5), max_connections=2, max_connecting=1)
    pool.listen(notes)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.acquire, "/")
        wait_until(lambda: notes.count("connecting"))
        second = threads.submit(pool.acquire, "/")
        wait_until(lambda: notes.count("acquiring") == 2)
        release.set()
        leases = [first.result(5), second.result(5)]
    for lease in leases:
        lease.release()
    tokens = [line[2] for line in notes.of("connecting")]
    asked = [line[-1] for line in notes.of("acquiring")]
    assert tokens == [asked[:1], asked[1:]]


def test_what_is_opened_ahead_is_for_nobody(echo: EchoServer, make_pool: MakePool, notes: Notebook) -> None:
    pool = make_pool(echo)
    pool.listen(notes)
    assert pool.prewarm("/", 2) == 2
    assert [line[2] for line in notes.of("connecting")] == [[], []]
    pool.close()
    assert [line[2] for line in notes.of("closed")] == ["pool closed"] * 2


def test_who_gets_none_is_told_with_the_error_that_it_gets(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    pool = make_pool(echo, max_connections=1)
    pool.listen(notes)
    with pool.acquire("/"), pytest.raises(PoolExhaustedError):
        pool.acquire("/", timeout=0)
    assert [line[2] for line in notes.of("refused")] == ["PoolExhaustedError"]


def test_an_attempt_that_fails_is_told_each_time(
    raw_server: Callable[..., RawServer], make_pool: MakePool, notes: Notebook
) -> None:
    server = raw_server(lambda sock: sock.sendall(response("503 Service Unavailable")))
    pool = make_pool(server, manager_kwargs={"connect_attempts": 3})
    pool.listen(notes)
    with pytest.raises(HandshakeError):
        pool.acquire("/")
    names = [line[0] for line in notes.lines]
    assert names == ["acquiring", *["connecting", "connect_failed"] * 3, "refused"]
    assert [line[1] for line in notes.of("connect_failed")] == [line[3] for line in notes.of("connecting")]


def test_a_configure_that_fails_is_a_connect_that_failed_and_no_end_of_one_that_was_open(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    def configure(conn: Any) -> None:
        raise ValueError("no")

    pool = make_pool(echo, configure=configure)
    pool.listen(notes)
    with pytest.raises(ConnectionError):
        pool.acquire("/")
    wait_until(lambda: not pool.connections())
    pool.close()
    assert notes.count("connect_failed") == 1
    assert not notes.of("connected", "closed")


def test_their_sums_agree_with_the_servers(echo: EchoServer, make_pool: MakePool, notes: Notebook) -> None:
    pool = make_pool(echo, max_connections=4)
    pool.listen(notes)

    def work(number: int) -> None:
        for turn in range(10):
            with pool.acquire("/") as conn:
                conn.request({"n": number})
                if (number + turn) % 5 == 0:
                    conn.discard()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    pool.close()
    # A dial for which no caller waits any more may have been under way when the pool was closed.
    wait_until(lambda: notes.count("connecting") == notes.count("connected") + notes.count("connect_failed"))
    stats = pool.stats()
    assert notes.count("acquired") == notes.count("released") == stats.acquires == 80
    assert notes.count("connected") == notes.count("closed") == stats.total_connections
    assert notes.count("connected") <= len(echo.paths) <= notes.count("connecting")
    assert sum(line[3] for line in notes.of("acquired")) == stats.reuses


def test_each_request_is_told_with_its_end(echo: EchoServer, make_pool: MakePool, notes: Notebook) -> None:
    pool = make_pool(echo)
    pool.listen(notes)
    assert pool.request("/", {"n": 1}) == {"n": 1}
    with pool.acquire("/") as conn:
        conn.request({"n": 2})
        conn.request_many([{"n": 3}, {"n": 4}])
    with pool.acquire("/silent") as conn, pytest.raises(TimeoutError):
        conn.request({"n": 5}, timeout=0.05)
    asked, told = notes.of("requesting"), notes.of("replied")
    assert [line[2] for line in asked] == [{"n": n} for n in (1, 2, 3, 4, 5)]
    assert [line[1] for line in told] == [line[3] for line in asked]
    assert [line[2] for line in told] == [None] * 4 + ["TimeoutError"]


def test_with_a_correlation_those_of_request_many_and_stream_are_told_too(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, notes: Notebook
) -> None:
    class Stamping(Listener):
        def rewriting(self, token: None, message: Any) -> Any:
            return {**message, "stamp": 1}

    pool = make_pool(echo_server(service), correlation=Plain())
    pool.listen(notes)
    pool.listen(Stamping())
    many = [{"n": 1}, {"do": "fail"}, {"do": "never"}, {"n": 2}]
    parts = {"do": "parts", "parts": 2}
    with pool.acquire("/") as conn:
        first, *_, last = conn.request_many(many, 0.3)
        assert first["stamp"] == last["stamp"] == 1
        with pytest.raises(TypeError):
            conn.request_many([{"n": 1}, 7], 5)  # none is sent
        assert [part.get("part") for part in conn.stream(parts, 5)] == [0, 1, None]
        assert notes.count("requesting") == notes.count("replied") == len(many) + 1
        for part in conn.stream(parts, 5):
            assert part["part"] == 0
            break
        conn.stream(parts, 5)  # dropped, unread
        with pytest.raises(ReplyError):
            list(conn.stream({"do": "fail"}, 5))
        strikes = threading.Timer(0.2, signal.raise_signal, [signal.SIGINT])
        with pytest.raises(KeyboardInterrupt):
            strikes.start()
            conn.request_many([{"do": "never"}, {"do": "never"}], 5)
    asked, told = notes.of("requesting"), dict(line[1:] for line in notes.of("replied"))
    assert [line[2] for line in asked[:8]] == [*many, parts, parts, parts, {"do": "fail"}]
    ends = [told.pop(line[3]) for line in asked]
    assert ends[:4] == [None, "ReplyError", "TimeoutError", None]
    assert ends[4:] == [None, None, None, "ReplyError", "KeyboardInterrupt", "KeyboardInterrupt"]
    assert not told
    # Those that ran out of time, or were struck, or are dropped unread, have no reply.
    assert pool.stats().reply_time.count == len(ends) - 4


def test_a_stream_that_the_collector_finds_waits_for_no_lock_of_a_listener(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    lock, told = threading.Lock(), threading.Event()

    class Locking(Listener):
        def replied(self, token: None, error: BaseException | None) -> None:
            with lock:
                told.set()

    pool = make_pool(echo_server(service), correlation=Plain())
    pool.listen(Locking())
    with pool.acquire("/") as conn:
        parts = conn.stream({"do": "parts", "parts": 2}, 5)
        next(parts)
        cycle: list[Any] = [parts]
        cycle.append(cycle)
        del parts, cycle
        with lock:  # as if it were the listener's thread, in its own counter
            gc.collect()
        assert told.wait(5)


def test_a_listener_may_rewrite_a_request_and_one_that_fails_changes_nothing(
    echo: EchoServer, make_pool: MakePool
) -> None:
    class Stamping(Listener):
        def requesting(self, info: ConnectionInfo, message: Any) -> str:
            return f"seen {message['n']}"

        def rewriting(self, token: str, message: Any) -> Any:
            return {**message, "stamp": token} if message["n"] else None

    class Broken(Listener):
        def rewriting(self, token: None, message: Any) -> Any:
            assert token is None
            raise ValueError

    pool = make_pool(echo)
    for listener in (Broken(), Stamping(), Broken()):
        pool.listen(listener)
    mine = {"n": 1}
    assert pool.request("/", mine) == {"n": 1, "stamp": "seen 1"}
    assert mine == {"n": 1}
    with pool.acquire("/") as conn:
        assert conn.request_many([{"n": 0}, {"n": 2}]) == [{"n": 0}, {"n": 2, "stamp": "seen 2"}]


def test_a_clean_lease_whose_connection_is_not_lent_again_says_why(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    pool = make_pool(echo)
    pool.listen(notes)
    with pool.acquire("/"), pool.acquire("/"):
        pool.clear()
    with pool.acquire("/"):
        with pool.acquire("/"):
            pool.resize(1)
        assert not pool.drain(0)
    assert [line[2] for line in notes.of("released")] == ["cleared", "cleared", "resized", "pool closed"]
    wait_until(lambda: notes.count("closed") == 4)
    assert sorted(line[2] for line in notes.of("closed")) == ["cleared", "cleared", "pool closed", "resized"]


def test_what_close_cuts_is_told_as_released_and_closed(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    pool = make_pool(echo)
    pool.listen(notes)
    lease = pool.acquire("/")
    pool.close()
    assert notes.lines[-2:] == [("released", lease.id, "pool closed"), ("closed", lease.id, "pool closed")]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_lease_that_was_dropped_is_told_by_a_worker(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    pool = make_pool(echo)
    pool.listen(notes)
    pool.acquire("/")
    gc.collect()
    wait_until(lambda: notes.count("released"))
    [line] = notes.of("released")
    assert line[2] == "dropped"
    assert notes.threads[notes.lines.index(line)] == f"jetsocket-log-{pool.name}"


def test_those_who_share_a_connection_are_told_one_by_one(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, notes: Notebook
) -> None:
    def answer(conn: Any) -> None:
        for message in conn:
            asked = json.loads(message)
            conn.send(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": asked["method"]}))

    pool = make_pool(echo_server(answer), correlation=JsonRpc(), max_in_flight=8, max_connections=1)
    pool.listen(notes)
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda n: pool.request("/", {"method": f"m{n}"}), range(12)))
    assert [reply["result"] for reply in replies] == [f"m{n}" for n in range(12)]
    assert notes.count("acquiring") == notes.count("acquired") == notes.count("released") == 12
    assert notes.count("connected") == 1


def test_what_a_listener_raises_is_logged_once_a_kind_and_lost(
    echo: EchoServer, make_pool: MakePool, notes: Notebook, caplog: pytest.LogCaptureFixture
) -> None:
    hidden = "what the server sent"

    class Broken(Listener):
        def acquired(self, *args: Any) -> None:
            raise ValueError(hidden)

        def released(self, *args: Any) -> None:
            raise SystemExit

    pool = make_pool(echo)
    pool.listen(Broken())
    pool.listen(notes)
    for _ in range(3):
        with pool.acquire("/") as conn:
            assert conn.request({"n": 1}) == {"n": 1}
    pool.close()
    assert notes.count("acquired") == notes.count("released") == 3
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(lines) == 2
    assert "Broken.acquired() raised ValueError in acquired (test_events.py:" in lines[0]
    assert "Broken.released() raised SystemExit" in lines[1]
    assert hidden not in caplog.text


def test_an_alarm_inside_a_listener_surfaces_as_itself_and_nothing_is_lost(
    echo: EchoServer, make_pool: MakePool
) -> None:
    class Alarm(Exception):
        pass

    def ring(number: int, frame: Any) -> None:
        raise Alarm

    class Slow(Listener):
        def acquired(self, *args: Any) -> None:
            if signal.getsignal(signal.SIGUSR1) is ring:
                signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, ring)
    try:
        pool = make_pool(echo, max_connections=1)
        pool.listen(Slow())
        with pytest.raises(Alarm):
            pool.acquire("/")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert pool.leases() == []
    with pool.acquire("/", timeout=5) as conn:
        assert conn.request({"n": 1}) == {"n": 1}


def test_a_release_inside_a_garbage_collection_waits_for_no_lock_of_a_listener(
    echo: EchoServer, make_pool: MakePool
) -> None:
    lock = threading.Lock()
    used = threading.Event()

    class Locking(Listener):
        def released(self, *args: Any) -> None:
            with lock:
                used.set()

    def borrow() -> Iterator[None]:
        with pool.acquire("/"):
            yield

    pool = make_pool(echo)
    pool.listen(Locking())
    suspended: Any = borrow()
    next(suspended)
    cycle: list[Any] = [suspended]
    cycle.append(cycle)
    del suspended, cycle
    with lock:  # as if it were the listener's thread, in its own counter
        gc.collect()
        assert not pool.leases()
    assert used.wait(5)


def test_what_a_listener_does_with_the_pool_is_told_to_nobody(echo: EchoServer, make_pool: MakePool) -> None:
    class Curious(Notebook):
        def acquired(self, *args: Any) -> None:
            super().acquired(*args)
            with pool.acquire("/other") as conn:
                assert conn.request(1) == 1

    curious = Curious()
    pool = make_pool(echo)
    pool.listen(curious)
    pool.acquire("/").release()
    assert curious.count("acquiring") == curious.count("acquired") == 1


def test_what_strikes_at_the_end_of_a_listener_silences_it_not(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    """At whatever line of ours the exception comes: what happens after it is told."""
    code = Events._call.__code__
    lines = sorted({line for _, _, line in code.co_lines() if line} - {code.co_firstlineno})
    pool = make_pool(echo, max_connections=1)
    pool.listen(notes)
    struck = 0
    for line in lines:

        def trace(frame: Any, event: str, _arg: Any, line: int = line) -> Any:
            if frame.f_code is code and event == "line" and frame.f_lineno == line:
                sys.settrace(None)
                raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            pool.acquire("/").release()
        except KeyboardInterrupt:
            struck += 1
        finally:
            sys.settrace(None)
        wait_until(lambda: not pool.leases())
        before = notes.count("acquired")
        pool.acquire("/", timeout=5).release()
        assert notes.count("acquired") == before + 1
    assert struck >= 4


def test_one_that_comes_late_is_told_what_begins_from_then_on(
    echo: EchoServer, make_pool: MakePool, notes: Notebook
) -> None:
    late = Notebook()
    pool = make_pool(echo)
    pool.listen(notes)
    lease = pool.acquire("/")
    pool.listen(late)
    lease.release()
    pool.acquire("/").release()
    assert [line[0] for line in late.lines] == ["released", "acquiring", "acquired", "released"]
    assert notes.count("released") == 2


def test_only_what_is_overridden_is_called(echo: EchoServer, make_pool: MakePool) -> None:
    seen: list[float] = []

    class Waits(Listener):
        def acquired(self, token: Any, info: ConnectionInfo, waited: float, reused: bool) -> None:
            assert token is None
            seen.append(waited)

    pool = make_pool(echo)
    pool.listen(Waits())
    pool.acquire("/").release()
    assert len(seen) == 1


def test_what_is_no_listener_is_refused(echo: EchoServer, make_pool: MakePool) -> None:
    class Later(Listener):
        async def acquired(self, *args: Any) -> None:  # type: ignore[override]  # the point
            """Is never awaited."""

    pool = make_pool(echo)
    with pytest.raises(TypeError, match=r"listener must be a jetsocket\.events\.Listener, not"):
        pool.listen(object())  # type: ignore[arg-type]  # the point
    with pytest.raises(TypeError, match=r"Later\.acquired must be an ordinary function"):
        pool.listen(Later())
    pool.acquire("/").release()


def test_a_forked_child_tells_the_same_listeners(echo: EchoServer, make_pool: MakePool) -> None:
    read, write = os.pipe()

    class Writing(Listener):
        def acquired(self, token: Any, info: ConnectionInfo, waited: float, reused: bool) -> None:
            os.write(write, f"{os.getpid()} {reused}\n".encode())

    pool = make_pool(echo)
    pool.listen(Writing())
    pool.acquire("/").release()
    pid = os.fork()
    if pid == 0:  # pragma: no cover  # the child
        try:
            with pool.acquire("/") as conn:
                conn.request("child")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(write)
    with os.fdopen(read) as lines:
        assert lines.read().split() == [str(os.getpid()), "False", str(pid), "False"]
