"""How connections are opened for those in line, by servers that are down, slow, full, or refuse.

Also tests: `exhausted`, `info`.
"""

from __future__ import annotations

import contextvars
import gc
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from time import monotonic, sleep
from typing import Any

import pytest

from jetsocket import (
    ConnectionError,
    ConnectionPool,
    JetSocketError,
    PoolClosedError,
    PoolExhaustedError,
    TimeoutError,
)
from tests.awake import awake
from tests.books import faults, state_of
from tests.crowds import crowd, errors
from tests.servers import (
    EchoServer,
    RawServer,
    answer,
    frame,
    hold,
    read_client_frame,
    read_request,
    refusing_port,
    response,
    upgrade_response,
    wait_until,
)

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]


def echo_frames(sock: socket.socket) -> None:
    """Send back each message, and the close frame."""
    while True:
        came = read_client_frame(sock)
        sock.sendall(frame(came.opcode, came.payload))
        if came.opcode == 8:
            return


def request(pool: ConnectionPool[Any], timeout: float | None = None) -> Any:
    with pool.acquire("/", timeout) as conn:
        return conn.request({"hello": 1}, 5)


# --- a server that is down


def test_one_that_is_open_only_to_be_closed_leaves_no_queue_behind(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def slow_to_open(_conn: Any, _request: Any) -> None:
        reached.set()
        go_on.wait(5)

    pool = make_pool(echo_server(process_request=slow_to_open))
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/", timeout=0)  # orders one for the next try
    assert reached.wait(5)
    pool.clear()
    go_on.set()
    wait_until(lambda: pool.stats().discards == {"cleared": 1})
    assert state_of(pool).idle.keys == []
    assert not faults(pool)


@pytest.mark.slow
def test_a_mute_server_is_told_to_all_within_one_timeout(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(hold), max_connections=4, manager_kwargs={"connect_timeout": 1.0})
    spreads, longest = [], []
    for dials in (4, 8):  # twice, for this machine may stop for a while
        outcomes = crowd(24, lambda _: request(pool))
        assert [type(error) for error in errors(outcomes)] == [TimeoutError] * 24
        ends = [each.ended for each in outcomes]
        spreads.append(max(ends) - min(ends))
        longest.append(max(each.took for each in outcomes))
        assert len({id(error) for error in errors(outcomes)}) == 24  # a copy each
        assert pool.stats().connect_errors == dials
    assert min(spreads) < 0.3
    assert min(longest) < 1.3


def test_a_mute_server_with_attempts_is_told_to_all_at_once(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(hold)
    manager_kwargs = {"connect_timeout": 0.4, "connect_attempts": 2}
    pool = make_pool(server, max_connections=3, manager_kwargs=manager_kwargs)
    outcomes = crowd(12, lambda _: request(pool))
    assert len(errors(outcomes)) == 12
    assert max(each.took for each in outcomes) < 2 * 0.4 + 0.1 + 0.4
    wait_until(lambda: server.accepted >= 6)
    assert server.accepted == 6  # the pauses between the attempts of one dial are no time for another


def test_late_callers_share_the_fate_of_their_dial(raw_server: MakeRaw, make_pool: MakePool) -> None:
    """Those that came while the first dials were under way have dials of their own, which are waited for."""
    pool = make_pool(raw_server(hold), max_connections=4, manager_kwargs={"connect_timeout": 0.6})

    def late(number: int) -> Any:
        if number >= 2:
            sleep(0.3)
        return request(pool)

    outcomes = crowd(8, late)
    assert len(errors(outcomes)) == 8
    assert max(each.took for each in outcomes) < 0.3 + 0.6 + 0.3
    assert pool.stats().connect_errors == 4


def test_a_port_that_refuses_is_told_at_once(make_pool: MakePool) -> None:
    with refusing_port() as port:
        pool = make_pool(f"ws://127.0.0.1:{port}", max_connections=4)
        outcomes = crowd(24, lambda _: request(pool))
    assert all(isinstance(error, ConnectionError) for error in errors(outcomes))
    assert len(errors(outcomes)) == 24
    assert max(each.took for each in outcomes) < 1
    assert pool.stats().waiting == 0


def test_an_error_says_what_was_tried_and_the_pool_is_whole(make_pool: MakePool) -> None:
    with refusing_port() as port:
        pool = make_pool(f"ws://127.0.0.1:{port}")
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{port}") as caught:
            pool.acquire("/feed")
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    assert faults(pool) == []
    assert state_of(pool).slots._value == 10  # type: ignore[attr-defined]  # typeshed hides it


# --- a server that refuses some


class Capped:
    """Upgrades up to so many connections at a time, and refuses more."""

    def __init__(self, most: int, status: str = "429 Too Many Requests") -> None:
        self.most, self.status = most, status
        self.open = self.refused = 0
        self.lock = threading.Lock()

    def __call__(self, sock: socket.socket) -> None:
        asked = read_request(sock)
        with self.lock:
            is_free = self.open < self.most
            self.open += is_free
            self.refused += not is_free
        if not is_free:
            sock.sendall(response(self.status))
            return
        try:
            sock.sendall(upgrade_response(asked))
            echo_frames(sock)
        finally:
            with self.lock:
                self.open -= 1


@pytest.mark.parametrize("status", ["429 Too Many Requests", "503 Service Unavailable"])
def test_a_pool_settles_at_what_the_server_allows(
    raw_server: MakeRaw, make_pool: MakePool, status: str
) -> None:
    capped = Capped(5, status)
    pool = make_pool(raw_server(capped), max_connections=10)

    def call(number: int) -> Any:
        with pool.acquire("/") as conn:
            sleep(0.05)
            return conn.request({"number": number}, 5)

    outcomes = crowd(10, call)
    assert errors(outcomes) == []
    assert {each.value["number"] for each in outcomes} == set(range(10))
    assert capped.refused >= 1
    assert pool.stats().total_connections <= 5


def test_fast_refusals_beside_a_slow_upgrade_fail_no_caller(raw_server: MakeRaw, make_pool: MakePool) -> None:
    first = threading.Lock()

    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        if first.acquire(blocking=False):
            sleep(0.5)
            sock.sendall(upgrade_response(asked))
            echo_frames(sock)
        else:
            sock.sendall(response("429 Too Many Requests"))

    pool = make_pool(raw_server(script), max_connections=4)
    outcomes = crowd(8, lambda _: request(pool))
    assert errors(outcomes) == []
    assert pool.stats().connect_errors >= 1
    assert pool.stats().total_connections == 1


@pytest.mark.slow
def test_a_refusal_while_others_are_open_makes_the_next_dial_wait(
    raw_server: MakeRaw, make_pool: MakePool
) -> None:
    """The server's Retry-After is kept: the callers share what is open meanwhile."""
    times: list[float] = []
    first = threading.Lock()

    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        times.append(monotonic())
        if first.acquire(blocking=False):
            sock.sendall(upgrade_response(asked))
            echo_frames(sock)
        else:
            sock.sendall(response("429 Too Many Requests", [("Retry-After", "1")]))

    pool = make_pool(raw_server(script), max_connections=4)
    until = monotonic() + 1.5

    def call(_: int) -> None:
        while monotonic() < until:
            request(pool)
            pool.stats()

    request(pool)
    # One dial at a time is refused after the first; side by side they count as one.
    assert errors(crowd(2, call)) == []
    gaps = [late - early for early, late in pairwise(times[1:])]
    assert all(gap >= 0.99 for gap in gaps)
    assert len(times) >= 3


def test_the_line_is_served_when_the_last_connection_goes(raw_server: MakeRaw, make_pool: MakePool) -> None:
    """A pause is kept beside an open connection only: with none left, the callers in line are dialled for."""
    refuses = threading.Event()

    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        if refuses.is_set():
            sock.sendall(response("429 Too Many Requests", [("Retry-After", "8")]))
            return
        sock.sendall(upgrade_response(asked))
        echo_frames(sock)

    pool = make_pool(raw_server(script), max_connections=4)
    with pool.acquire("/") as held:
        refuses.set()
        waiting: list[Any] = []
        thread = threading.Thread(target=lambda: waiting.append(request(pool, 20)))
        thread.start()
        wait_until(lambda: pool.stats().connect_errors == 1)
        refuses.clear()
        held.discard()
    thread.join(5)
    assert waiting == [{"hello": 1}]


# --- a server that is slow


def slow_echo(seconds: float) -> Callable[[socket.socket], None]:
    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        sleep(seconds)
        sock.sendall(upgrade_response(asked))
        echo_frames(sock)

    return script


@pytest.mark.slow
def test_a_returned_connection_serves_who_waits_for_a_dial(raw_server: MakeRaw, make_pool: MakePool) -> None:
    is_slow = threading.Event()

    def script(sock: socket.socket) -> None:
        slow_echo(3.0 if is_slow.is_set() else 0.0)(sock)

    pool = make_pool(raw_server(script), max_connections=4)
    took: list[float] = []

    def wait() -> None:
        with pool.acquire("/"):
            took.append(awake())

    held = pool.acquire("/")
    is_slow.set()
    for _ in range(3):  # the first of them has a dial ordered, which the others wait beside
        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: pool.stats().waiting == 1)
        wait_until(lambda: pool.stats().connecting >= 1)
        returned = awake()
        held.release()
        thread.join(5)
        took[-1] -= returned
        held = pool.acquire("/", 0)
    assert sorted(took)[1] < 0.05
    held.release()
    pool.close(timeout=1)


def test_a_handshake_that_outlasts_the_timeout_serves_the_second_try(
    raw_server: MakeRaw, make_pool: MakePool
) -> None:
    def served_from_the_second_try_on() -> bool:
        server = raw_server(slow_echo(0.6))
        pool = make_pool(server, max_connections=4)
        with pytest.raises(PoolExhaustedError, match="being opened for 0"):
            request(pool, 0.4)
        try:
            assert request(pool, 0.4) == {"hello": 1}
        except PoolExhaustedError:
            return False
        for _ in range(4):
            assert request(pool, 5) == {"hello": 1}
        assert server.accepted == 1
        return True

    # There are 0.2 s to spare, which may not be enough on a busy machine.
    assert any(served_from_the_second_try_on() for _ in range(3))


def test_a_deadline_in_line_says_what_happened(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(hold), max_connections=10, manager_kwargs={"connect_timeout": 5})
    outcomes = crowd(4, lambda _: pool.acquire("/", 0.6))
    for error in errors(outcomes):
        assert isinstance(error, PoolExhaustedError)
        assert isinstance(error, TimeoutError)
        assert error.connecting == 4
        assert "0 lent" in str(error)
        assert "4 being opened for 0." in str(error)
        assert "raise max_connections" not in str(error)
    assert len(errors(outcomes)) == 4


def test_no_time_at_all_orders_one_for_the_next_try(echo_server: MakeServer, make_pool: MakePool) -> None:
    """`acquire(timeout=0)` on a pool that no other call has ever touched."""
    server = echo_server()
    pool = make_pool(server)
    with pytest.raises(PoolExhaustedError, match="timeout=0"):
        pool.acquire("/", 0)

    def poll() -> Any:
        try:
            return pool.acquire("/", 0)
        except PoolExhaustedError:
            return None

    with wait_until(poll) as conn:
        assert conn.request({"hello": 1}, 5) == {"hello": 1}
    assert server.opened == 1


# --- many at once


def test_a_storm_opens_no_more_than_max_connecting(echo_server: MakeServer, make_pool: MakePool) -> None:
    all_wait = threading.Event()

    def slow_to_open(_conn: Any, _request: Any) -> None:
        all_wait.wait(10)
        sleep(0.3)  # much longer than a call takes, on a busy machine too

    server = echo_server(process_request=slow_to_open)
    pool = make_pool(server, max_connections=60, max_connecting=8, acquire_timeout=30)

    def call(_: int) -> None:
        with pool.acquire("/") as conn:
            conn.request({"hello": 1}, 5)
            sleep(0.001)

    def watch() -> None:  # who comes after the first reply belongs to another storm
        wait_until(lambda: pool.stats().waiting == 60)
        all_wait.set()

    threading.Thread(target=watch, daemon=True).start()

    assert errors(crowd(60, call)) == []
    assert server.opened <= 8
    assert server.most_open <= 8


def test_max_connecting_bounds_what_is_opened_at_once(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(slow_echo(0.1))
    pool = make_pool(server, max_connections=20, max_connecting=3)
    most: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            most.append(sum(each.place == "opening" for each in pool.connections()))
            sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    together = threading.Barrier(9)

    def call(_: int) -> None:
        with pool.acquire("/", 20):
            together.wait(20)

    assert errors(crowd(9, call)) == []
    done.set()
    watcher.join(5)
    assert max(most) == 3


@pytest.mark.slow
def test_rolling_restarts_cost_no_error(echo_server: MakeServer, make_pool: MakePool) -> None:
    server = echo_server()
    manager_kwargs = {"connect_attempts": 8, "connect_timeout": 5}
    pool = make_pool(server, max_connections=10, acquire_timeout=30, manager_kwargs=manager_kwargs)
    stop = threading.Event()

    def work(number: int) -> int:
        calls = 0
        while not stop.is_set():
            assert pool.request("/", {"n": number}, 30, idempotent=True) == {"n": number}
            calls += 1
        return calls

    def restart() -> None:
        for abrupt in (False, True, False, True):
            sleep(0.4)
            server.stop(abrupt=abrupt)
            sleep(0.1)
            server.restart()
        sleep(0.4)
        stop.set()

    restarting = threading.Thread(target=restart)
    restarting.start()
    outcomes = crowd(40, work, timeout=50)
    restarting.join(30)
    assert errors(outcomes) == []
    assert all(each.value > 0 for each in outcomes)


class StruckOnce:
    """A queue at whose first `put` an exception strikes."""

    def __init__(self, box: Any) -> None:
        self.box, self.is_struck = box, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.box, name)

    def put(self, item: Any) -> None:
        if not self.is_struck:
            self.is_struck = True
            raise KeyboardInterrupt
        self.box.put(item)


def test_an_order_of_which_no_opener_was_told_is_carried_out_in_a_second(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    """What strikes between the order and its wake-up leaves a parked opener asleep."""
    pool = make_pool(echo_server(), max_connections=3)
    request(pool)
    state = state_of(pool)
    wait_until(lambda: state.parked == 1)
    state.wake_opener = StruckOnce(state.wake_opener)  # type: ignore[assignment]  # a queue in its place
    with pytest.raises(KeyboardInterrupt):
        pool.acquire("/b")
    began = awake()
    with pool.acquire("/b", 4) as conn:
        assert conn.request(1, 5) == 1
    assert awake() - began < 3  # it would go on being parked for longer


# --- code of the user's, and of the system's, in an opener


def test_a_callable_that_never_returns_holds_an_opener_and_not_the_pool(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    gate, asked = threading.Event(), threading.Event()

    def headers() -> dict[str, str]:
        if not asked.is_set():
            asked.set()
            gate.wait(30)
        return {}

    manager_kwargs = {"extra_headers": headers, "connect_timeout": 0.4}
    pool = make_pool(echo_server(), max_connections=1, manager_kwargs=manager_kwargs)
    began = awake()
    with pytest.raises(TimeoutError, match="hangs in headers"):
        pool.acquire("/")
    assert awake() - began < 0.4 + 1.0
    assert request(pool) == {"hello": 1}  # with the only slot there is
    gate.set()


def test_a_configure_that_never_returns_holds_an_opener_and_not_the_pool(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server()
    gate, asked = threading.Event(), threading.Event()

    def configure(_conn: Any) -> None:
        if not asked.is_set():
            asked.set()
            gate.wait(30)

    pool = make_pool(server, max_connections=1, configure=configure, manager_kwargs={"connect_timeout": 0.3})
    with pytest.raises(TimeoutError):
        pool.acquire("/")
    wait_until(lambda: server.open_now == 0)  # its connection is closed before another takes its slot
    assert request(pool) == {"hello": 1}
    gate.set()


def test_a_hung_look_up_holds_an_opener_and_not_the_pool(
    echo_server: MakeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, gate = echo_server(), threading.Event()
    look_up = socket.getaddrinfo

    def hangs(host: Any, *args: Any, **kwargs: Any) -> Any:
        if "hangs.example" in str(host):
            gate.wait(30)
            raise socket.gaierror(socket.EAI_AGAIN, "gave up")
        return look_up(host, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    pool = make_pool(server, max_connections=1, manager_kwargs={"connect_timeout": 0.4})
    began = awake()
    outcomes = crowd(6, lambda _: pool.acquire("ws://hangs.example/"))
    assert all(isinstance(error, TimeoutError) for error in errors(outcomes))
    assert len(errors(outcomes)) == 6
    assert awake() - began < 0.4 + 1.0
    assert request(pool) == {"hello": 1}
    gate.set()


def test_close_is_prompt_whatever_an_opener_is_in(echo_server: MakeServer, make_pool: MakePool) -> None:
    gate = threading.Event()
    manager_kwargs = {"extra_headers": lambda: gate.wait(30) and {}, "connect_timeout": 20}
    pool = make_pool(echo_server(), manager_kwargs=manager_kwargs)
    told: list[float] = []

    def wait() -> None:
        with pytest.raises(PoolClosedError):
            pool.acquire("/")
        told.append(awake())

    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: pool.stats().connecting == 1)
    closed = awake()
    pool.close()
    assert awake() - closed < 3
    thread.join(5)
    assert told[0] - closed < 0.05
    gate.set()
    wait_until(lambda: faults(pool) == [])  # its slot is free when it has come back


def test_slow_headers_are_inside_the_deadline(echo_server: MakeServer, make_pool: MakePool) -> None:
    def headers() -> dict[str, str]:
        sleep(0.6)
        return {}

    manager_kwargs = {"extra_headers": headers, "connect_timeout": 0.3}
    pool = make_pool(echo_server(), manager_kwargs=manager_kwargs)
    began = awake()
    with pytest.raises(TimeoutError) as caught:
        pool.acquire("/", 5)
    assert isinstance(caught.value, JetSocketError)
    assert awake() - began < 0.3 + 0.7
    with pytest.raises(PoolExhaustedError):  # the caller's deadline, while the headers are asked for
        pool.acquire("/", 0.1)


@pytest.mark.parametrize("error", [KeyError("no token"), SystemExit(3)])
def test_headers_that_raise_are_told_as_ours(
    echo_server: MakeServer, make_pool: MakePool, error: BaseException
) -> None:
    def headers() -> dict[str, str]:
        raise error

    pool = make_pool(echo_server(), max_connections=2, manager_kwargs={"extra_headers": headers})
    outcomes = crowd(6, lambda _: pool.acquire("/", 5))
    assert all(isinstance(error, ConnectionError) for error in errors(outcomes))
    assert len(errors(outcomes)) == 6
    assert type(error).__name__ in str(errors(outcomes)[0])
    assert max(each.took for each in outcomes) < 2
    wait_until(lambda: faults(pool) == [])


def test_callbacks_run_in_the_context_of_the_first_in_line(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="none")
    seen: list[str] = []

    def headers() -> dict[str, str]:
        seen.append(f"headers {tenant.get()}")
        return {"X-Tenant": tenant.get()}

    def configure(_conn: Any) -> None:
        seen.append(f"configure {tenant.get()}")
        tenant.set("changed")  # a copy: the caller does not see it

    server = echo_server()
    pool = make_pool(server, configure=configure, manager_kwargs={"extra_headers": headers})
    tenant.set("a")
    pool.acquire("/one").release()
    tenant.set("b")
    pool.prewarm("/two", 1)
    tenant.set("c")
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/three", 0)
    wait_until(lambda: len(seen) == 6)
    assert seen == ["headers a", "configure a", "headers b", "configure b", "headers c", "configure c"]
    assert [each.headers["X-Tenant"] for each in server.requests[:2]] == ["a", "b"]
    assert tenant.get() == "c"


# --- limits


def test_max_per_uri_is_what_the_server_sees(echo_server: MakeServer, make_pool: MakePool) -> None:
    server = echo_server()
    pool = make_pool(server, max_connections=10, max_per_uri=3)

    def call(number: int) -> None:
        for turn in range(6):
            with pool.acquire("/", 20) as conn:
                conn.request({"n": number}, 5)
                if turn % 2:
                    conn.discard()  # one that is closing counts, too

    assert errors(crowd(12, call)) == []
    assert server.most_open <= 3


def test_max_waiting_counts_those_for_whom_none_is_opened(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(slow_echo(0.5)), max_connections=2, max_waiting=0)
    outcomes = crowd(4, lambda _: pool.acquire("/", 5))
    refused = errors(outcomes)
    assert [type(error) for error in refused] == [PoolExhaustedError] * 2
    for error in refused:
        assert "max_waiting" in str(error)
        assert "wait longer" not in str(error)
    assert max(each.took for each in outcomes if each.error is not None) < 0.4
    for each in outcomes:
        if each.value is not None:
            each.value.release()


def test_dials_to_another_uri_let_no_more_callers_wait(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: socket.socket) -> None:
        asked = read_request(sock)
        sleep(1.0 if asked.target == "/b" else 0.0)
        sock.sendall(upgrade_response(asked))
        echo_frames(sock)

    pool = make_pool(raw_server(script), max_connections=3, max_per_uri=2, max_waiting=1)
    held = [pool.acquire("/a", 5) for _ in range(2)]
    other = threading.Thread(target=lambda: pool.acquire("/b", 5).release())
    other.start()
    wait_until(lambda: pool.stats().connecting == 1)
    waiting = threading.Thread(target=lambda: pool.acquire("/a", 5).release())
    waiting.start()
    wait_until(lambda: pool.stats().waiting == 2)
    with pytest.raises(PoolExhaustedError, match="max_waiting=1"):
        pool.acquire("/a", 5)
    for conn in held:
        conn.release()
    waiting.join(5)
    other.join(5)


# --- another number of connections


def test_resize_closes_what_is_too_many_and_no_more(echo_server: MakeServer, make_pool: MakePool) -> None:
    server = echo_server()
    pool = make_pool(server, max_connections=10)
    pool.prewarm("/", 10)
    pool.resize(8)
    assert pool.config.max_connections == 8
    wait_until(lambda: server.open_now <= 8)
    wait_until(lambda: state_of(pool).owed == 0)
    assert pool.stats().idle_connections == server.open_now == 8
    assert faults(pool) == []


def test_resize_below_what_is_lent_is_owed_until_it_returns(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server()
    pool = make_pool(server, max_connections=4)
    leases = [pool.acquire("/") for _ in range(4)]
    pool.resize(2)
    assert state_of(pool).owed == 2
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/other", 0.2)
    for lease in leases:
        assert lease.request(1, 5) == 1
        lease.release()
    wait_until(lambda: state_of(pool).owed == 0)
    wait_until(lambda: server.open_now == 2)
    assert pool.stats().idle_connections == 2
    assert errors(crowd(6, lambda _: request(pool, 10))) == []
    assert server.open_now <= 2
    pool.resize(5)
    assert len([pool.acquire("/", 5) for _ in range(5)]) == 5


def test_slots_that_are_owed_are_paid_before_others_get_them(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server()
    pool = make_pool(server, max_connections=3)
    leases = [pool.acquire("/a") for _ in range(3)]
    pool.resize(1)
    got: list[Any] = []
    waiting = threading.Thread(target=lambda: got.append(pool.acquire("/b", 10)))
    waiting.start()
    wait_until(lambda: pool.stats().waiting == 1)
    leases[0].discard()
    leases[0].release()
    leases[1].discard()
    leases[1].release()
    wait_until(lambda: server.open_now == 1)
    assert got == []
    leases[2].release()
    waiting.join(10)
    assert [each.uri.endswith("/b") for each in got] == [True]
    assert server.open_now == 1
    got[0].release()


@pytest.mark.slow
def test_resize_with_many_at_work(echo_server: MakeServer, make_pool: MakePool) -> None:
    server = echo_server()
    pool = make_pool(server, max_connections=6, acquire_timeout=30)
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            with pool.acquire(f"/{number % 3}", 30) as conn:
                conn.request(number, 5)

    def change() -> None:
        for most in (2, 5, 1, 6, 3):
            pool.resize(most)
            sleep(0.2)
        stop.set()

    changing = threading.Thread(target=change)
    changing.start()
    assert errors(crowd(9, work)) == []
    changing.join(10)
    wait_until(lambda: state_of(pool).owed == 0)
    wait_until(lambda: server.open_now <= 3)
    assert faults(pool) == []


# --- clear


def test_clear_closes_idle_ones_now_and_the_others_when_they_return(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server()
    pool = make_pool(server, max_connections=6)
    pool.prewarm("/a", 2)
    pool.prewarm("/b", 1)
    with pool.acquire("/a") as lent:
        assert pool.clear("/a") == 1
        wait_until(lambda: server.open_now == 2)
        assert lent.request(1, 5) == 1
        old = lent.id
    wait_until(lambda: server.open_now == 1)
    with pool.acquire("/a") as conn:
        assert conn.id != old
    assert pool.clear() == 2
    wait_until(lambda: server.open_now == 0)
    assert pool.stats().discards["cleared"] == 4


def test_clear_reaches_one_that_is_being_opened(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(slow_echo(0.3))
    pool = make_pool(server)
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(pool.acquire("/", 10)))
    thread.start()
    wait_until(lambda: pool.stats().connecting == 1)
    assert pool.clear() == 0
    thread.join(10)
    assert server.accepted == 2  # the first one was opened with what is not valid any more
    got[0].release()


# --- what is seen of it


def test_leases_connections_and_holders(echo_server: MakeServer, make_pool: MakePool) -> None:
    pool = make_pool(echo_server(), max_connections=5)
    idle = [pool.acquire("/a"), pool.acquire("/a")]
    leases = [pool.acquire(f"/late?token=secret{number}") for number in range(3)]
    for each in idle:
        each.release()
    reading = threading.Thread(target=lambda: leases[0].recv(), daemon=True)
    reading.start()
    wait_until(lambda: pool.leases()[0].doing.startswith("in recv for "))
    told = pool.leases()
    assert [each.id for each in told] == [each.id for each in leases]
    assert [each.doing for each in told[1:]] == ["in your code", "in your code"]
    assert all(each.thread == threading.current_thread().name for each in told)
    assert all("test_opening.py" in each.where for each in told)
    assert told[0].age >= told[2].age
    places = {each.id: each.place for each in pool.connections()}
    assert [places[each.id] for each in (*idle, *leases)] == ["idle", "idle", "lent", "lent", "lent"]
    with pytest.raises(PoolExhaustedError) as caught:
        pool.resize(3)
        pool.acquire("/b", 0.2)
    error = caught.value
    assert len(error.holders) == 3
    for lease, holder in zip(leases, error.holders, strict=True):
        assert f"connection {lease.id} " in holder
        assert holder in str(error)
    assert "secret" not in str(error)
    leases[0].send({"delay": 0})
    reading.join(5)
    for lease in leases:
        lease.release()


def test_a_refused_crowd_keeps_its_order(echo_server: MakeServer, make_pool: MakePool) -> None:
    """Each that was given a connection which turned out dead goes back to where it stood in line."""
    server = echo_server()
    pool = make_pool(server, max_connections=1)
    held = pool.acquire("/")
    order: list[int] = []

    def wait(number: int) -> None:
        with pool.acquire("/", 20) as conn:
            order.append(number)
            conn.request(number, 5)
            # The next in line gets it dead.
            server.cut_all()
            wait_until(lambda: server.open_now == 0)
            sleep(0.02)

    threads = []
    for number in range(6):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        wait_until(lambda expected=number + 1: pool.stats().waiting == expected)
    held.release()
    for thread in threads:
        thread.join(20)
    assert order == list(range(6))


def test_drain_that_is_polled_leaves_nothing_behind(echo_server: MakeServer, make_pool: MakePool) -> None:
    pool = make_pool(echo_server())
    with pool.acquire("/"):
        for _ in range(50):
            assert pool.drain(0) is False
        assert len(state_of(pool)._drain_waiters) == 0
    assert pool.drain(0) is True


@pytest.mark.slow
def test_long_paths_are_not_kept(make_pool: MakePool) -> None:
    import tracemalloc

    with refusing_port() as port:
        pool = make_pool(f"ws://127.0.0.1:{port}")
        tracemalloc.start()
        try:
            for number in range(6):
                path = f"/{number}" + "x" * 5_000_000
                with pytest.raises(ConnectionError):
                    pool.acquire(path)
                del path
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 12_000_000, f"{kept >> 20} MiB"


@pytest.mark.parametrize("how", ["refused", "down", "exhausted", "raises"])
def test_a_failed_acquire_leaves_no_cycle_behind(raw_server: MakeRaw, make_pool: MakePool, how: str) -> None:
    """What its frames refer to, long messages perhaps, goes with the error, and does not wait for the GC."""

    def headers() -> dict[str, str]:
        if how == "raises":
            raise ValueError("no token")
        return {}

    server = raw_server(answer("403 Forbidden") if how != "exhausted" else slow_echo(0))
    with refusing_port() as port:
        uri = f"ws://127.0.0.1:{port}" if how == "down" else server.uri
        pool = make_pool(uri, max_connections=1, manager_kwargs={"extra_headers": headers})
        held = pool.acquire("/") if how == "exhausted" else None

        def fail() -> None:
            with pytest.raises(JetSocketError):
                pool.acquire("/", 0.2)

        fail()
        wait_until(lambda: not state_of(pool).dials)
        gc.collect()
        gc.disable()
        try:
            gc.set_debug(gc.DEBUG_SAVEALL)
            fail()
            wait_until(lambda: not state_of(pool).dials)
            gc.collect()
            left = [each for each in gc.garbage if type(each).__module__.startswith("jetsocket")]
        finally:
            gc.set_debug(0)
            gc.garbage.clear()
            gc.enable()
    assert left == []
    if held is not None:
        held.release()


@pytest.mark.slow
def test_a_leak_is_told_with_its_id_and_so_is_its_return(
    echo_server: MakeServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(echo_server(), leak_threshold=0.1, name="leaky")
    got: list[Any] = []
    with caplog.at_level(logging.WARNING, "jetsocket"):
        path = "/feed?token=" + "secret"[::-1]  # which the stack does not show
        thread = threading.Thread(target=lambda: got.append(pool.acquire(path)), name="forgetful")
        thread.start()
        thread.join(5)
        other = pool.acquire("/b")
        wait_until(lambda: caplog.text.count(" leaked: ") == 2)
        got[0].release()
        wait_until(lambda: "came back" in caplog.text)
    lines = [record.getMessage() for record in caplog.records]
    told = next(line for line in lines if f"connection {got[0].id} to " in line)
    assert "/feed?token=***" in told
    assert "forgetful" in told
    assert "test_opening.py" in told
    (back,) = [line for line in lines if "came back" in line]
    assert f"connection {got[0].id} " in back
    assert f"connection {other.id} " not in back
    assert "terces" not in caplog.text
    other.release()


DROPS = """
import gc, logging, sys, time
from jetsocket import ConnectionPool
logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
pool = ConnectionPool(base_uri=sys.argv[1], name="mine")
lease = pool.acquire("/")
del lease
gc.collect()
until = time.monotonic() + 10
while pool.stats().active_connections and time.monotonic() < until:
    time.sleep(0.01)
time.sleep(0.7)
pool.close()
"""


@pytest.mark.slow
def test_warnings_that_are_errors_make_no_noise(echo_server: MakeServer) -> None:
    """With `-W error` the ResourceWarning of a dropped lease is an error, in a thread that has no caller."""
    server = echo_server()
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", DROPS, server.uri],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert "was dropped without release" in done.stdout
    assert "failed" not in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize("reason", ["discarded", "returned"])
def test_where_no_thread_runs_a_borrower_in_line_gets_the_slot_that_comes_free(
    make_pool: MakePool, echo: EchoServer, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """No thread looks after the line then, nor closes what is to be closed."""
    start = threading.Thread.start

    def start_no_thread_of_a_pool(self: threading.Thread) -> None:
        if self.name.startswith("jetsocket"):
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_no_thread_of_a_pool)
    pool = make_pool(echo, max_connections=1, acquire_timeout=8.0)
    first = pool.acquire("/")
    served: list[Any] = []
    waiting = threading.Thread(target=lambda: served.append(request(pool)), daemon=True)
    waiting.start()
    wait_until(lambda: pool.stats().waiting == 1)
    if reason == "discarded":
        first.discard()
    first.release()
    waiting.join(4)
    assert served == [{"hello": 1}]


def test_a_restart_does_not_keep_callers_from_making_room_afterwards(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    """Dials that failed beside free slots cost no other URI anything: they put off no eviction."""
    server, other = echo_server(), echo_server()
    pool = make_pool(other, max_connections=1)
    server.stop()
    for _ in range(8):
        with pytest.raises(ConnectionError):
            pool.acquire(server.uri, 5)
    server.restart()
    pool.request("/", {"n": 1}, 5)  # the one slot is that URI's now
    with pool.acquire(server.uri, 5) as conn:
        assert conn.request({"n": 2}, 5) == {"n": 2}
