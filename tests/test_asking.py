"""Requests of leases with a correlation: typed, in time, interrupted, forked, with all else a pool has."""

from __future__ import annotations

import contextlib
import gc
import json
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed

from jetsocket import ConnectionPool, DecodeError, InvalidStateError, TimeoutError
from jetsocket.correlation import Asked
from jetsocket.messages import Codec
from tests import scripts, service_fixtures
from tests.awake import awake
from tests.servers import EchoServer, RawServer, frame, read_client_frame, upgrade, wait_until
from tests.services import MakePool, Plain, Service

server = service_fixtures.server


@pytest.fixture
def pool(server: EchoServer, make_pool: MakePool) -> ConnectionPool[Any]:
    return make_pool(server, correlation=Plain(), max_connections=1)


# --- values


@dataclass
class Reply:
    n: int
    id: Any = None
    topic: str | None = None


def of_pydantic() -> Any:
    pydantic = pytest.importorskip("pydantic")
    return pydantic.create_model("Reply", n=(int, ...))


def of_msgspec() -> Any:
    msgspec = pytest.importorskip("msgspec")
    return msgspec.defstruct("Reply", [("n", int)])


KINDS = {"dataclass": lambda: Reply, "pydantic": of_pydantic, "msgspec": of_msgspec}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_replies_and_pushes_are_of_the_message_type(
    server: EchoServer, make_pool: MakePool, kind: Callable[[], Any]
) -> None:
    pool = make_pool(server, correlation=Plain(), manager_kwargs={"message_type": kind()}, max_connections=1)
    with pool.acquire("/") as conn:
        reply = conn.request({"n": 1}, 5)
        assert isinstance(reply, kind()) or type(reply).__name__ == "Reply"
        assert reply.n == 1
        assert [each.n for each in conn.stream({"n": 2}, 5)] == [2]
        with conn.subscribe({"do": "subscribe", "topic": "t", "count": 2}) as subscription:
            assert [subscription.get(5).n for _ in range(2)] == [0, 1]
        with pytest.raises(DecodeError):
            conn.request({"n": "x"}, 5)
        assert conn.request({"n": 3}, 5).n == 3
    assert server.opened == 1


def test_a_codec_of_ones_own_is_asked(server: EchoServer, make_pool: MakePool) -> None:
    read: list[Any] = []

    def deserialize(payload: Any) -> Any:
        read.append(payload)
        return json.loads(payload)

    pool = make_pool(server, correlation=Plain(), manager_kwargs={"deserializer": deserialize})
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    assert len(read) == 1


def test_a_reply_is_written_anew_for_the_message_type_only_where_it_was_changed(
    server: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed: list[Any] = []
    typed = Codec.typed

    def watched(codec: Codec[Any], value: Any, *, uri: str = "") -> Any:
        changed.append(value)
        return typed(codec, value, uri=uri)

    monkeypatch.setattr(Codec, "typed", watched)
    pool = make_pool(server, correlation=Plain(), manager_kwargs={"message_type": Reply}, max_connections=1)
    with pool.acquire("/") as conn:
        assert [conn.request({"n": n}, 5).n for n in range(3)] == [0, 1, 2]
        assert not changed
        assert conn.request({"n": 4, "id": "mine"}, 5).id == "mine"
        assert [each["id"] for each in changed] == ["mine"]
        with pytest.raises(DecodeError) as caught:
            conn.request({"n": [1, 2]}, 5)
        assert caught.value.payload == json.dumps({"n": [1, 2], "id": 5})  # as it came


# --- time


def test_moving_to_other_connections_takes_no_longer_than_the_request_may(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, correlation=Plain(), max_in_flight=5)
    until: list[Any] = []
    with pool._share("/", 5.0) as conn:
        lender = conn._lender

        class Watching:
            state = lender.state

            def move(self, lease: Any, stale: Any, deadline: Any) -> None:
                until.append(deadline)
                if len(until) == 3:
                    raise TimeoutError("enough", operation="acquire", timeout=None)

            def take_back(self, lease: Any, failed: bool) -> None:
                lender.take_back(lease, failed)

        conn._lender = Watching()
        conn._current().wire.cut("on purpose")
        with pytest.raises(TimeoutError):
            conn.request({"n": 1}, 5)
    assert len(set(until)) == 1


# --- a generator


def test_a_stream_that_is_dropped_gives_up_its_request(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        stream = conn.stream({"do": "parts", "parts": 3}, 5)
        assert next(stream)["part"] == 0
        assert pool.stats().in_flight in (0, 1)  # the rest may have come
        del stream
        gc.collect()
        assert pool.stats().in_flight == 0
        assert conn.request({"n": 1}, 5)["n"] == 1


def test_a_stream_in_a_cycle_that_the_collector_finds_while_another_thread_reads(
    pool: ConnectionPool[Any],
) -> None:
    with pool.acquire("/") as conn:
        held = ThreadPoolExecutor(1)
        future = held.submit(conn.request, {"do": "hold", "n": "held"}, 20)
        wait_until(lambda: pool.stats().in_flight == 1)
        cycle: list[Any] = [conn.stream({"do": "never"}, 5)]
        cycle.append(cycle)
        wait_until(lambda: pool.stats().in_flight == 2)
        del cycle
        gc.collect()
        conn.request({"do": "flush"}, 5)
        assert future.result(10)["n"] == "held"
        held.shutdown()


def test_a_stream_ends_with_its_lease(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        stream = conn.stream({"do": "parts", "parts": 3}, 5)
        assert next(stream)["part"] == 0
    with pytest.raises(InvalidStateError):
        list(stream)
    assert pool.request("/", {"n": 1}, 5)["n"] == 1


# --- what was given up


class Streaming(Service):
    """Streams parts, without an end, until it is told to stop."""

    def do_stream(self, message: Any) -> None:
        self.streams: dict[Any, threading.Event] = getattr(self, "streams", {})
        stop = self.streams[message["id"]] = threading.Event()

        def stream() -> None:
            with contextlib.suppress(ConnectionClosed):
                while not stop.wait(0.005):
                    self.say({"id": message["id"], "part": 1})

        threading.Thread(target=stream, daemon=True).start()

    def do_stop(self, message: Any) -> None:
        self.streams[message["of"]].set()
        stopped.append(message["of"])


stopped: list[Any] = []


def request_over_an_open_connection(pool: ConnectionPool[Any], message: Any, timeout: float) -> Any:
    """The time is for the reply: to open one may take longer."""
    pool.prewarm("/", 1)
    with pool._share("/", 5.0) as conn:
        return conn.request(message, timeout)


class Cancelling(Plain):
    def cancel(self, asked: Asked) -> Any:
        return {"do": "stop", "of": asked.sent["id"]}


@pytest.mark.parametrize("max_in_flight", [1, 10])
def test_the_server_is_told_of_what_was_given_up_and_sends_no_more_of_it(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, max_in_flight: int
) -> None:
    stopped.clear()
    streaming = echo_server(lambda conn: Streaming(conn).run())
    pool = make_pool(streaming, correlation=Cancelling(), max_connections=1, max_in_flight=max_in_flight)
    with pytest.raises(TimeoutError):
        request_over_an_open_connection(pool, {"do": "stream"}, 0.1)
    wait_until(lambda: len(stopped) == 1)
    with pool.acquire("/") as conn:
        for _ in conn.stream({"do": "stream"}, 5):
            break
        wait_until(lambda: len(stopped) == 2)
        where = conn._entry.dispatcher  # type: ignore[union-attr]  # it has one
        assert where is not None
        assert where.given_up == {}
        assert conn.request({"n": 1}, 5)["n"] == 1
        late = pool.stats().late_replies
        assert conn.request({"do": "late", "after": 0.1, "n": 2}, 5)["n"] == 2
        assert pool.stats().late_replies <= late + 1  # one may have been on its way
        with pytest.raises(ValueError, match="another id"):  # what was cancelled may still be on its way
            conn.send({"id": next(iter(where.cancelled))})
    assert pool.stats().unasked_messages == 0
    assert streaming.opened == 1


def test_where_there_was_no_room_to_tell_it_the_next_reply_is_the_occasion(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    stopped.clear()
    streaming = echo_server(lambda conn: Streaming(conn).run())
    pool = make_pool(streaming, correlation=Cancelling(), max_connections=1)
    with pool.acquire("/") as conn:
        wire = conn._current().wire
        stream = conn.stream({"do": "stream"}, 5)
        next(stream)
        with wire.lock:
            stream.close()  # type: ignore[attr-defined]  # it is a generator
        assert stopped == []
        assert conn.request({"do": "late", "after": 0.1, "n": 1}, 5)["n"] == 1
        wait_until(lambda: len(stopped) == 1)


@pytest.mark.slow
@pytest.mark.parametrize("fails", [RuntimeError("on purpose"), None])
def test_a_cancel_that_fails_or_has_nothing_to_say_costs_nothing(
    server: EchoServer, make_pool: MakePool, fails: Exception | None
) -> None:
    class Failing(Plain):
        def cancel(self, asked: Asked) -> Any:
            if fails is not None:
                raise fails

    pool = make_pool(server, correlation=Failing(), max_connections=1)
    with pytest.raises(TimeoutError):
        request_over_an_open_connection(pool, {"do": "late", "after": 0.5}, 0.05)
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    wait_until(lambda: pool.stats().late_replies == 1)
    assert server.opened == 1


# --- all else a pool does, with connections that are shared


def test_sharing_goes_with_callbacks_limits_and_pings(server: EchoServer, make_pool: MakePool) -> None:
    seen: list[str] = []

    def ask(what: str) -> Callable[[Any], None]:
        def callback(conn: Any) -> None:
            seen.append(what)
            assert conn.request({"n": what})["n"] == what

        return callback

    pool = make_pool(
        server,
        correlation=Plain(),
        max_connections=4,
        max_per_uri=1,
        max_in_flight=10,
        ping_after_idle=0.2,
        health_check_interval=0.3,
        configure=ask("configure"),
        reset=ask("reset"),
        check=ask("check"),
    )
    paths = [f"/{number % 2}" for number in range(20)]
    with ThreadPoolExecutor(20) as threads:
        got = list(threads.map(lambda path: pool.request(path, {"n": path}, 10)["n"], paths))
    assert got == paths
    assert server.most_open == 2
    with pool.acquire("/0") as conn:
        conn.request({"n": 1}, 5)
    wait_until(lambda: "check" in seen)
    assert {"configure", "reset"} <= set(seen)
    assert pool.prewarm("/2", 1) == 1
    pool.clear()
    wait_until(lambda: pool.stats().total_connections >= 3 and not pool.connections())
    pool.resize(1)
    assert pool.request("/0", {"n": 1}, 5)["n"] == 1
    assert len(pool.connections()) == 1


def test_a_cleared_or_shrunk_pool_lets_those_under_way_finish(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, correlation=Plain(), max_in_flight=10, max_connections=3)
    with ThreadPoolExecutor(3) as threads:
        futures = [threads.submit(pool.request, "/", {"do": "hold", "n": n}, 20) for n in range(3)]
        wait_until(lambda: pool.stats().in_flight == 3)
        assert pool.clear() == 0
        assert pool.request("/", {"n": 1}, 5)["n"] == 1  # on a new one
        assert server.opened == 2
        server.cut_all()
        for future in futures:
            assert future.exception(10) is not None
    pool.resize(1)
    wait_until(lambda: len(pool.connections()) <= 1)


def test_figures_of_what_is_shared(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, correlation=Plain(), max_in_flight=10, max_connections=3)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(pool.request, "/", {"do": "hold", "n": n}, 20) for n in range(4)]
        wait_until(lambda: pool.stats().in_flight == 4)
        stats = pool.stats()
        assert (stats.active_connections, stats.idle_connections, stats.waiting) == (1, 0, 0)
        assert [each.place for each in pool.connections()] == ["shared"]
        assert len({each.thread for each in pool.leases()}) == 4
        with pool.acquire("/") as conn:
            assert sorted(each.place for each in pool.connections()) == ["lent", "shared"]
            assert conn.id not in {each.id for each in pool.connections() if each.place == "shared"}
        pool.request("/", {"do": "flush"}, 5)
        for future in futures:
            future.result(10)
    assert pool.stats().acquires == 6


def test_many_threads_subscribe_at_once_and_cost_no_connection(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, correlation=Plain(), max_in_flight=50, max_connections=2)

    def subscribe(number: int) -> None:
        for turn in range(10):
            message = {"do": "subscribe", "topic": f"{number}.{turn}", "early": 1, "count": 2}
            with pool.subscribe("/", message, timeout=10) as subscription:
                assert [subscription.get(10)["n"] for _ in range(2)] == [0, 1]

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(subscribe, range(10)))
    assert pool.stats().discards == {}
    assert pool.stats().unasked_messages == 0
    assert server.opened == 1


# --- signals, recursion, forks: each in a process of its own

START = """
import os, signal, sys, threading, warnings
from jetsocket import *
from tests.services import Plain
from tests.servers import wait_until
warnings.simplefilter("ignore")
pool = ConnectionPool(ConnectionPoolConfig(max_in_flight=10), base_uri=sys.argv[1], correlation=Plain())
def soon(what):
    def run():
        wait_until(lambda: pool.stats().in_flight >= 1)
        what()
    threading.Thread(target=run, daemon=True).start()
def hold(n, got):
    thread = threading.Thread(target=lambda: got.append(pool.request("/", {"do": "hold", "n": n}, 20)["n"]))
    thread.start()
    return thread
"""


def run(server: EchoServer, script: str) -> str:
    return scripts.run(START + script, server.uri).check().out


def test_ctrl_c_in_the_one_who_reads_costs_the_others_nothing(server: EchoServer) -> None:
    out = run(
        server,
        """
got = []
def interrupt():
    others.extend(hold(n, got) for n in range(3))
    wait_until(lambda: pool.stats().in_flight == 4)
    os.kill(os.getpid(), signal.SIGINT)
others = []
soon(interrupt)
try:
    pool.request("/", {"do": "never"}, 20)
except KeyboardInterrupt:
    print("interrupted")
pool.request("/", {"do": "flush"}, 10)
for each in others:
    each.join(10)
print(sorted(got), pool.stats().total_connections)
pool.close()
""",
    )
    assert out == "interrupted\n[0, 1, 2] 1\n"


@pytest.mark.slow
def test_a_signal_handler_that_asks_while_its_thread_waits_gets_an_error(
    server: EchoServer,
) -> None:
    out = run(
        server,
        """
told = []
def handle(number, frame):
    try:
        told.append(pool.request("/", {"n": "handler"}, 5)["n"])
    except InvalidStateError:
        told.append("refused")
signal.signal(signal.SIGUSR1, handle)
soon(lambda: os.kill(os.getpid(), signal.SIGUSR1))
print(pool.request("/", {"do": "late", "after": 1.0, "n": "mine"}, 20)["n"])
print(told)
assert pool.request("/", {"n": 1}, 5)["n"] == 1
pool.close()
""",
    )
    assert out == "mine\n['refused']\n"


def test_at_the_limit_of_recursion_nothing_is_lost(server: EchoServer) -> None:
    out = run(
        server,
        """
def deep(left):
    if left:
        return deep(left - 1)
    return pool.request("/", {"n": "deep"}, 5)["n"]
pool.request("/", {"n": 0}, 5)
outcomes = set()
for depth in range(900, sys.getrecursionlimit(), 3):
    try:
        outcomes.add(deep(depth))
    except RecursionError:
        outcomes.add("too deep")
print(sorted(outcomes))
print(pool.request("/", {"n": "after"}, 10)["n"])
wait_until(lambda: not pool.leases())
pool.close()
""",
    )
    assert out == "['deep', 'too deep']\nafter\n"


def test_a_fork_while_a_thread_reads_leaves_both_sides_at_work(server: EchoServer) -> None:
    out = run(
        server,
        """
got = []
thread = hold("held", got)
wait_until(lambda: pool.stats().in_flight == 1)
pid = os.fork()
if not pid:
    status = 1
    try:
        assert pool.request("/", {"n": "child"}, 10)["n"] == "child"
        assert pool.stats().total_connections == 1
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
pool.request("/", {"do": "flush"}, 10)
thread.join(10)
print(got)
pool.close()
""",
    )
    assert out == "['held']\n"


def test_one_that_was_shared_and_owes_a_ping_is_lent(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, correlation=Plain(), max_in_flight=10, ping_after_idle=0.0)
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda n: pool.request("/", {"n": n}, 10), range(20)))
    with pool.acquire("/") as conn:
        assert conn.request({"n": 1}, 5)["n"] == 1
    assert pool.request("/", {"n": 2}, 5)["n"] == 2
    assert server.opened == 1


# --- servers that hold small messages back


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="the kernel can't be asked to")
def test_a_server_that_waits_for_acknowledgements_does_not_wait_long(
    raw_server: Callable[..., RawServer],
) -> None:
    """Without TCP_NODELAY it holds the second reply back until the first is acknowledged: some 40 ms."""
    rounds = 20

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
        while (first := read_client_frame(sock)).opcode == 1:
            for asked in (first, read_client_frame(sock)):
                sock.sendall(frame(1, json.dumps({"id": json.loads(asked.payload)["id"]}).encode()))

    with (
        ConnectionPool[Any](base_uri=raw_server(script).uri, correlation=Plain()) as pool,
        pool.acquire("/") as conn,
    ):
        began = awake()
        for _ in range(rounds):
            assert len(conn.request_many([{"n": 1}, {"n": 2}], 5)) == 2
        assert awake() - began < rounds * 0.02
