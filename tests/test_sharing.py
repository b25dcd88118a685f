"""Many callers on one connection: `max_in_flight` requests at a time, each with its own reply."""

from __future__ import annotations

import ctypes
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    ConnectionPoolConfig,
    InvalidStateError,
    PoolClosedError,
    PoolExhaustedError,
    TimeoutError,
)
from jetsocket.clock import monotonic
from jetsocket.dispatch import Dispatcher
from jetsocket.pending_requests import Request
from jetsocket.reading_turns import Reading
from jetsocket.subscription_queue import Feed
from jetsocket.topics import Topics
from tests import scripts, service_fixtures
from tests.conftest import Tls
from tests.faults.reply_storm import Storm
from tests.servers import EchoServer, wait_until
from tests.services import MakePool, Plain, Service
from tests.sizes import pairs

server = service_fixtures.server


@pytest.fixture
def pool(server: EchoServer, make_pool: MakePool) -> ConnectionPool[Any]:
    return make_pool(server, correlation=Plain(), max_connections=2, max_in_flight=50)


def in_threads(count: int, work: Callable[[int], Any]) -> list[Any]:
    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(work, range(count)))


def held(
    pool: ConnectionPool[Any], count: int, timeout: float = 20.0
) -> tuple[ThreadPoolExecutor, list[Any]]:
    """So many requests that are not answered yet."""
    threads = ThreadPoolExecutor(count)
    futures = [threads.submit(pool.request, "/", {"do": "hold", "n": n}, timeout) for n in range(count)]
    wait_until(lambda: pool.stats().in_flight == count)
    return threads, futures


# --- who gets what


def test_a_crowd_shares_one_connection_and_each_gets_its_own_reply(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    def call(number: int) -> None:
        for turn in range(20):
            assert pool.request("/", {"n": [number, turn], "id": 1}, 10) == {"n": [number, turn], "id": 1}

    in_threads(30, call)
    assert server.opened == 1
    stats = pool.stats()
    assert (stats.acquires, stats.in_flight, stats.active_connections, stats.idle_connections) == (
        600,
        0,
        0,
        1,
    )


def test_replies_in_any_order_wake_whose_they_are(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    threads, futures = held(pool, 20)
    assert {each.place for each in pool.connections()} == {"shared"}
    assert len(pool.leases()) == 20
    assert pool.stats().active_connections == 1
    assert pool.request("/", {"do": "flush", "n": "mine"}, 10)["n"] == "mine"
    assert [future.result(10)["n"] for future in futures] == list(range(20))
    threads.shutdown()
    assert server.opened == 1


def test_a_cold_crowd_opens_no_more_than_hold_it(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, correlation=Plain(), max_connections=10, max_in_flight=10)
    in_threads(30, lambda number: pool.request("/", {"do": "late", "after": 0.3, "n": number}, 10))
    assert server.most_open <= 3


def test_at_the_cap_those_without_a_place_wait_in_line(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=2)
    threads, futures = held(pool, 2)
    with pytest.raises(PoolExhaustedError) as raised:
        pool.request("/", {"n": 3}, 0.1)
    assert raised.value.max_connections == 1
    server.cut_all()
    for future in futures:
        assert isinstance(future.exception(10), ConnectionClosedError)
    assert pool.request("/", {"n": 4}, 10)["n"] == 4
    threads.shutdown()


def test_acquire_gets_a_connection_of_its_own_and_neither_starves(
    server: EchoServer, make_pool: MakePool
) -> None:
    """One connection for both: who wants it alone waits until those on it are done, and no longer."""
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=8, acquire_timeout=20)
    stop, calls = threading.Event(), Counter[str]()

    def share(_number: int) -> None:
        while not stop.is_set():
            pool.request("/", {"do": "late", "after": 0.005}, 20)
            calls["shared"] += 1

    def own(_number: int) -> None:
        for _ in range(20):
            with pool.acquire("/") as conn:
                assert [each.place for each in pool.connections()] == ["lent"]
                conn.request({"n": 1}, 10)
                calls["own"] += 1

    with ThreadPoolExecutor(8) as threads:
        sharing = [threads.submit(share, number) for number in range(6)]
        owning = [threads.submit(own, number) for number in range(2)]
        try:
            for future in owning:
                future.result(40)
        finally:
            stop.set()
        for future in sharing:
            future.result(20)
    assert calls["own"] == 40
    assert calls["shared"] >= 20
    assert server.most_open == 1


# --- what goes wrong


def test_a_timeout_costs_no_one_else_anything(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    threads, futures = held(pool, 5)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            pool.request("/", {"do": "never"}, 0.05)
    assert pool.request("/", {"do": "flush"}, 10)
    assert [future.result(10)["n"] for future in futures] == list(range(5))
    threads.shutdown()
    assert server.opened == 1


def test_when_the_connection_ends_all_know_at_once_and_what_is_idempotent_goes_on(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    threads, futures = held(pool, 10)
    wait_until(lambda: server.messages == 10)  # what has not left is moved to another connection
    began = monotonic()
    server.cut_all()
    for future in futures:
        assert isinstance(future.exception(10), ConnectionClosedError)
    assert monotonic() - began < 5
    threads.shutdown()
    with ThreadPoolExecutor(4) as again:
        retried = [
            again.submit(pool.request, "/", {"do": "late", "after": 0.8, "n": n}, 10, idempotent=True)
            for n in range(4)
        ]
        wait_until(lambda: pool.stats().in_flight == 4)
        server.cut_all()
        assert [each.result(10)["n"] for each in retried] == [0, 1, 2, 3]


class Struck(BaseException):
    pass


def waits(thread: threading.Thread) -> bool:
    """Whether it waits for a reply."""
    frame = sys._current_frames().get(thread.ident or 0)
    return any(each.f_code is Reading.wait.__code__ for each, _ in traceback.walk_stack(frame))


@pytest.mark.parametrize("leads", [True, False])
def test_a_thread_that_is_struck_while_it_waits_leaves_the_others_waiting(
    server: EchoServer, pool: ConnectionPool[Any], leads: bool
) -> None:
    """Whether it reads for all at that moment, or is one of those for whom another does."""
    struck: list[BaseException] = []

    def be_struck() -> None:
        try:
            pool.request("/", {"do": "never"}, 20)
        except Struck as error:
            struck.append(error)

    if leads:
        thread = threading.Thread(target=be_struck)
        thread.start()
        wait_until(lambda: pool.stats().in_flight == 1)
    threads, futures = held(pool, 4) if not leads else (ThreadPoolExecutor(4), [])
    if leads:
        futures = [threads.submit(pool.request, "/", {"do": "hold", "n": n}, 20) for n in range(4)]
        wait_until(lambda: pool.stats().in_flight == 5)
    else:
        thread = threading.Thread(target=be_struck)
        thread.start()
        wait_until(lambda: pool.stats().in_flight == 5)
    wait_until(lambda: waits(thread))  # one that is struck while it sends breaks the connection
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(Struck))
    thread.join(10)
    assert struck
    assert pool.request("/", {"do": "flush"}, 10)
    assert [future.result(10)["n"] for future in futures] == list(range(4))
    threads.shutdown()
    wait_until(lambda: pool.stats().in_flight == 0 and pool.stats().idle_connections == 1)


def test_close_ends_all_and_drain_waits_for_them(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, correlation=Plain(), max_in_flight=10)
    threads, futures = held(pool, 3)
    assert not pool.drain(0.1)
    with pytest.raises(PoolClosedError):
        pool.request("/", {"n": 1}, 5)
    pool.close(1)
    for future in futures:
        assert isinstance(future.exception(10), (ConnectionClosedError, PoolClosedError))
    threads.shutdown()


@pytest.fixture
def storm(request: pytest.FixtureRequest, echo_server: Callable[..., EchoServer], tls: Tls) -> Storm:
    if request.param == "ws":
        return Storm(echo_server)
    return Storm(echo_server, tls.server_context, {"ssl_context": tls.client_context})


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "count", [1920, pytest.param(50_000, marks=[pytest.mark.soak, pytest.mark.timeout(1500)])]
)
@pytest.mark.deep
@pytest.mark.parametrize(("storm", "max_in_flight"), pairs(["ws", "wss"], [1, 32]), indirect=["storm"])
def test_whatever_the_server_does_each_reply_is_ones_own_or_a_named_error_in_time(
    storm: Storm, make_pool: MakePool, max_in_flight: int, count: int
) -> None:
    """Pushes at any time, late replies, some never, some twice, out of order, connections killed."""
    pool = make_pool(
        storm.server,
        correlation=Plain(),
        max_connections=8,
        max_in_flight=max_in_flight,
        acquire_timeout=20,
        on_push=lambda uri, message: None,
        manager_kwargs=storm.options,
    )
    storm.ask(pool, count)
    told = f"{dict(storm.outcomes)}, {storm.longest:.2f} s late at most; {pool.stats().as_dict()}"
    assert storm.faults == [], told
    named = {"right", "ConnectionClosedError", "ConnectionError", "HandshakeError", "TimeoutError"}
    assert set(storm.outcomes) <= named, told
    assert storm.outcomes["right"] > count // 2, told
    assert storm.longest < 5, told
    assert storm.server.most_open <= 8, told
    wait_until(lambda: pool.stats().in_flight == 0 and pool.stats().active_connections == 0)


# --- subscriptions


def test_subscriptions_share_the_connection_and_take_no_place(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, correlation=Plain(), max_connections=1, max_in_flight=2)
    subscriptions = [pool.subscribe("/", {"do": "subscribe", "topic": f"t{n}", "count": 3}) for n in range(5)]
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    for subscription in subscriptions:
        assert [subscription.get(5)["n"] for _ in range(3)] == [0, 1, 2]
    subscriptions.pop().unsubscribe()
    assert pool.request("/", {"n": 2}, 5)["n"] == 2
    for subscription in subscriptions:
        subscription.unsubscribe()
    wait_until(lambda: pool.stats().idle_connections == 1)
    assert server.opened == 1
    assert pool.stats().discards == {}


def test_threads_that_iterate_and_threads_that_ask_read_for_each_other(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    got: list[Any] = []

    def iterate() -> None:
        with pool.subscribe("/", {"do": "subscribe", "topic": "t", "count": 100}) as subscription:
            got.extend(subscription.get(10)["n"] for _ in range(100))

    thread = threading.Thread(target=iterate)
    thread.start()
    in_threads(10, lambda number: [pool.request("/", {"n": number}, 10) for _ in range(20)])
    thread.join(10)
    assert got == list(range(100))


def test_a_dropped_subscription_costs_the_connection_once_the_others_are_done(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool.subscribe("/", {"do": "subscribe", "topic": "t", "count": 3}).get(5)
        wait_until(lambda: pool.stats().discards.get("dropped") == 1)
        wait_until(lambda: any("dropped" in str(each.message) for each in caught))
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    assert pool.stats().unasked_messages == 0


class Publishing(Service):
    """Pushes what it is told to publish to those topics only that are subscribed, each once."""

    was_slow = False

    def do_publish(self, message: Any) -> None:
        topic = message["topic"]
        self.say(*([{"topic": topic, "n": message["n"]}] if topic in self.topics else []), message)

    def do_unsubscribe(self, message: Any) -> None:
        self.topics.discard(message["topic"])
        self.say(*self.held, {"id": message["id"]})
        self.held.clear()

    def do_subscribe(self, message: Any) -> None:
        if self.was_slow or not message.get("slowly"):
            return super().do_subscribe(message)
        self.was_slow = True
        self.topics.add(message["topic"])
        self.held.append({"id": message["id"], "opened": message["topic"]})


class Meanwhile(Plain):
    """Does something between the decision to end a topic and the message that does."""

    def __init__(self, act: Callable[[], None]) -> None:
        self.act = act

    def unsubscribe(self, topic: Any, sent: Any) -> Any:
        self.act()
        return super().unsubscribe(topic, sent)


@pytest.mark.parametrize("slowly", [False, True])
def test_who_subscribes_while_the_last_of_that_topic_unsubscribes_gets_what_is_pushed(
    echo_server: Callable[..., EchoServer], make_pool: MakePool, slowly: bool
) -> None:
    """Its message leaves before the other's, and is confirmed before that leaves, or behind it (slowly)."""
    publishing = echo_server(lambda conn: Publishing(conn).run())
    subscribing, threads = {"do": "subscribe", "topic": "t"}, ThreadPoolExecutor(1)
    others: list[Future[Any]] = []

    def subscribe_meanwhile() -> None:
        if not others:
            others.append(threads.submit(pool.subscribe, "/", {**subscribing, "slowly": slowly}, timeout=10))
            if slowly:
                wait_until(lambda: pool.stats().in_flight == 1)
            else:
                others[0].result(10)

    pool = make_pool(
        publishing,
        correlation=Meanwhile(subscribe_meanwhile),
        max_connections=1,
        max_in_flight=10,
    )
    pool.subscribe("/", subscribing).unsubscribe()
    with others[0].result(10) as subscription:
        pool.request("/", {"do": "publish", "topic": "t", "n": 7}, 10)
        assert subscription.get(5)["n"] == 7
    threads.shutdown()
    assert publishing.opened == 1


def test_threads_that_take_turns_at_one_topic_all_get_what_is_pushed(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    publishing = echo_server(lambda conn: Publishing(conn).run())
    pool = make_pool(publishing, correlation=Plain(), max_connections=1, max_in_flight=10)

    def take_a_turn(number: int) -> None:
        for turn in range(40):
            with pool.subscribe("/", {"do": "subscribe", "topic": turn % 2}, timeout=10) as subscription:
                pool.request("/", {"do": "publish", "topic": turn % 2, "n": [number, turn]}, 10)
                while subscription.get(5)["n"] != [number, turn]:
                    pass  # another's

    in_threads(6, take_a_turn)
    assert publishing.opened == 1
    wait_until(lambda: pool.stats().idle_connections == 1)
    assert pool.stats().discards == {}


def test_of_several_that_want_the_rest_at_once_one_gets_it() -> None:
    topics = Topics()
    feeds = [Feed(10, "error", "x") for _ in range(8)]

    def open_rest(number: int) -> bool:
        try:
            topics.open_rest(feeds[number])
        except InvalidStateError:
            return False
        return topics.feed is feeds[number]

    assert sum(in_threads(8, open_rest)) == 1


# --- arguments


def test_it_needs_a_correlation() -> None:
    with pytest.raises(ValueError, match="correlation"):
        ConnectionPool(ConnectionPoolConfig(max_in_flight=2))
    with pytest.raises(ValueError, match="max_in_flight"):
        ConnectionPoolConfig(max_in_flight=0)


# --- forks, greenlets, strikes


@pytest.mark.slow
def test_a_forked_child_shares_connections_of_its_own(server: EchoServer) -> None:
    script = """
import os, sys, threading, warnings
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.services import Plain
warnings.simplefilter("ignore")  # of a fork beside threads
pool = ConnectionPool(ConnectionPoolConfig(max_in_flight=10), base_uri=sys.argv[1], correlation=Plain())
stop = threading.Event()
def work(number):
    turn = 0
    while not stop.is_set():
        turn += 1
        assert pool.request("/", {"n": [number, turn]}, 10)["n"] == [number, turn]
threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
for thread in threads:
    thread.start()
for _ in range(5):
    pid = os.fork()
    if not pid:
        status = 1
        try:
            assert pool.request("/", {"n": "child"}, 10)["n"] == "child"
            pool.close(1)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
stop.set()
for thread in threads:
    thread.join()
pool.close()
print("ok")
"""
    ended = scripts.run(script, server.uri)
    assert ended.check().out == "ok\n"


def test_what_is_under_way_at_a_fork_ends_in_the_child_though_no_thread_reads_there(
    server: EchoServer,
) -> None:
    script = """
import os, sys, threading, warnings
from jetsocket import ConnectionClosedError, ConnectionPool, ConnectionPoolConfig
from tests.services import Plain
warnings.simplefilter("ignore")  # of a fork beside threads
pool = ConnectionPool(ConnectionPoolConfig(max_in_flight=9), base_uri=sys.argv[1], correlation=Plain())
feed = pool.subscribe("/", {"do": "subscribe", "topic": "a"})
leader = threading.Thread(target=pool.request, args=("/", {"do": "late", "after": 2, "n": 1}, 10))
leader.start()
while pool.stats().in_flight < 1: pass
dispatcher = next(iter(pool._lending.state.entries)).dispatcher
while not dispatcher.is_led: pass        # it reads for all, and is not there in the child
pid = os.fork()
if not pid:
    status = 1
    try:
        feed.get()
    except ConnectionClosedError:
        status = 0
    finally:
        os._exit(status)
assert os.waitpid(pid, 0)[1] == 0
leader.join()
feed.unsubscribe()
pool.close()
print("ok")
"""
    assert scripts.run(script, server.uri, watchdog=20).check().out == "ok\n"


@pytest.mark.slow
def test_greenlets_share_a_connection(server: EchoServer) -> None:
    pytest.importorskip("gevent")
    script = """
from gevent import monkey
monkey.patch_all()
import sys
import gevent
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.services import Plain
pool = ConnectionPool(ConnectionPoolConfig(max_in_flight=50), base_uri=sys.argv[1], correlation=Plain())
def work(number):
    for turn in range(5):
        assert pool.request("/", {"n": [number, turn]}, 10)["n"] == [number, turn]
gevent.joinall([gevent.spawn(work, number) for number in range(40)], raise_error=True)
killed = gevent.spawn(pool.request, "/", {"do": "never"}, 10)
gevent.sleep(0.05)
others = [gevent.spawn(pool.request, "/", {"do": "late", "after": 0.2, "n": n}, 10) for n in range(5)]
gevent.sleep(0.05)
killed.kill()
assert [each.get()["n"] for each in others] == [0, 1, 2, 3, 4]
assert pool.stats().total_connections == 1, pool.stats()
pool.close()
print("ok")
"""
    assert scripts.run(script, server.uri, fresh=True).check().out == "ok\n"


def test_a_strike_as_a_request_is_given_up_leaves_none_in_flight(
    pool: ConnectionPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reply, which never comes, would be waited for as long as the connection is open."""
    strikes = [Struck]

    def struck(self: Dispatcher, request: Request, **options: Any) -> None:
        if strikes and not request.is_ended:
            raise strikes.pop()
        give_up(self, request, **options)

    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    give_up = Dispatcher.give_up
    monkeypatch.setattr(Dispatcher, "give_up", struck)
    with pytest.raises(Struck):
        pool.request("/", {"do": "never"}, 0.05)
    assert not strikes
    threads, futures = held(pool, 3)  # which are not forgotten
    assert pool.request("/", {"do": "flush", "n": "mine"}, 10)["n"] == "mine"
    assert [future.result(10)["n"] for future in futures] == [0, 1, 2]
    threads.shutdown()
    wait_until(lambda: pool.stats().in_flight == 0)  # the housekeeper's next round finds it
    assert pool.stats().total_connections == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "seconds", [2, pytest.param(120, marks=[pytest.mark.soak, pytest.mark.timeout(200)])]
)
@pytest.mark.parametrize("max_in_flight", [1, 16])
def test_strikes_at_random_lose_nothing_and_mix_nothing_up(
    server: EchoServer, max_in_flight: int, seconds: int
) -> None:
    """In a process of its own: asynchronous exceptions in threads that ask, subscribe, and use leases."""
    script = "import sys; from tests.faults.sharing_storm import storm; storm(*sys.argv[1:])"
    ended = scripts.run(script, server.uri, str(max_in_flight), str(seconds), watchdog=seconds + 45)
    assert ended.status == 0, ended.err  # a strike in a finalizer is printed
    told = ended.out.split()
    assert int(told[0]) > 10 * seconds, told  # strikes that came out
    assert int(told[1]) > 10 * seconds, told  # what went well all the same
