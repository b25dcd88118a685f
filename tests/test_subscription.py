"""Subscriptions: what is pushed for one topic, each bounded, and ended before its connection is reused."""

from __future__ import annotations

import contextlib
import gc
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    DecodeError,
    InvalidStateError,
    ReplyError,
    SubscriptionOverflowError,
    TimeoutError,
)
from tests import scripts, service_fixtures
from tests.faults import leaving_storm
from tests.servers import EchoServer, push, wait_until
from tests.services import MakePool, Plain

server, pool = service_fixtures.server, service_fixtures.pool


def subscribing(topic: str = "t", **options: Any) -> dict[str, Any]:
    return {"do": "subscribe", "topic": topic, **options}


def numbers(subscription: Any, count: int) -> list[Any]:
    return [subscription.get(5)["n"] for _ in range(count)]


# --- what comes


def test_what_is_pushed_comes_in_order_also_what_came_before_the_reply(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn, conn.subscribe(subscribing(early=3, count=6)) as subscription:
        assert numbers(subscription, 6) == [0, 1, 2, 3, 4, 5]
        assert subscription.topic == "t"
        assert conn.request({"n": 1}, 5)["n"] == 1


def test_several_subscriptions_and_requests_share_a_lease(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        a = conn.subscribe(subscribing("a", count=3))
        b = conn.subscribe(subscribing("b", count=3))
        assert conn.request({"n": "asked"}, 5)["n"] == "asked"
        assert numbers(b, 3) == [0, 1, 2]
        assert numbers(a, 3) == [0, 1, 2]


def test_a_topic_that_is_known_before_the_reply_is_open_at_once(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn, conn.subscribe({"do": "listen", "to": "x"}) as subscription:
        conn.request({"do": "push", "say": [{"topic": "x", "n": 1}]}, 5)
        assert numbers(subscription, 1) == [1]


def test_what_is_for_no_topic_comes_to_a_subscription_to_none(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn, conn.subscribe(None) as rest:
        with pytest.raises(InvalidStateError, match="another subscription"):
            conn.subscribe(None)
        with conn.subscribe(subscribing(count=1)) as subscription:
            conn.request({"do": "push", "say": [{"note": 1}]}, 5)
            assert rest.get(5) == {"note": 1}
            assert numbers(subscription, 1) == [0]


def test_a_get_that_gets_nothing_says_so(pool: ConnectionPool[Any]) -> None:
    with pool.subscribe("/", subscribing()) as subscription:
        with pytest.raises(TimeoutError) as raised:
            subscription.get(0.05)
        assert raised.value.timeout == 0.05
        with pytest.raises(TimeoutError):
            subscription.get(0)


def test_threads_share_one_subscription(pool: ConnectionPool[Any]) -> None:
    got: list[Any] = []
    with pool.subscribe("/", subscribing(count=200)) as subscription:
        threads = [threading.Thread(target=lambda: got.extend(numbers(subscription, 50))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
    assert sorted(got) == list(range(200))


# --- its end


def test_it_ends_at_the_server_before_the_connection_is_reused(
    server: EchoServer, make_pool: MakePool
) -> None:
    unasked: list[Any] = []
    pool = make_pool(
        server, correlation=Plain(), max_connections=1, on_push=lambda uri, message: unasked.append(message)
    )
    for _ in range(5):
        with pool.acquire("/") as conn:
            assert numbers(conn.subscribe(subscribing(count=2)), 2) == [0, 1]
        assert pool.request("/", {"n": 1}, 5)["n"] == 1  # so what came behind the end has come
    with pool.subscribe("/", subscribing(count=2)) as subscription:
        assert numbers(subscription, 2) == [0, 1]
    assert list(subscription) == []
    with pytest.raises(InvalidStateError, match="ended"):
        subscription.get(1)
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    assert server.opened == 1
    assert unasked == []


@pytest.mark.parametrize("left_by", ["exception", "garbage", "thread"])
def test_whatever_leaves_it_nothing_reaches_the_next_borrower(
    server: EchoServer, make_pool: MakePool, left_by: str
) -> None:
    unasked: list[Any] = []
    pool = make_pool(
        server, correlation=Plain(), max_connections=1, on_push=lambda uri, message: unasked.append(message)
    )

    def leave() -> None:
        if left_by == "exception":
            with pytest.raises(KeyError), pool.acquire("/") as conn:
                conn.subscribe(subscribing(count=5))
                raise KeyError
        elif left_by == "thread":
            threads = [threading.Thread(target=lambda: pool.subscribe("/", subscribing(count=5)))]
            threads[0].start()
            threads[0].join(5)
            gc.collect()
        else:
            pool.subscribe("/", subscribing(count=5)).get(5)
            gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        leave()
        for n in range(3):
            assert pool.request("/", {"n": n}, 5)["n"] == n
        if left_by != "exception":
            wait_until(lambda: pool.stats().discards == {"dropped": 1})
            wait_until(lambda: any("dropped" in str(each.message) for each in caught))
    assert unasked == []


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    "leases", [600, pytest.param(20_000, marks=[pytest.mark.soak, pytest.mark.timeout(1300)])]
)
@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_of_very_many_that_are_left_in_every_way_none_pushes_to_the_next_borrower(
    echo_server: Callable[..., EchoServer], max_in_flight: int, leases: int
) -> None:
    """In a process of its own: the end, an exception, the collector, Ctrl-C, strikes at other threads."""
    script = "import sys; from tests.faults.leaving_storm import storm; storm(*sys.argv[1:])"
    with leaving_storm.pushing(echo_server) as pushing:
        args = pushing.uri, str(max_in_flight), str(leases)
        ended = scripts.run(script, *args, watchdog=90 + leases / 20, measured=False)
        assert pushing.most_open <= 4
    assert ended.status == 0, ended.err  # a strike in a finalizer is printed
    told = ended.out.split()
    assert int(told[0]) > 0.98 * leases, told  # some strikes come between two leases
    assert int(told[1]) > leases / 100, told


def test_one_that_nothing_ends_closes_its_connection(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.subscribe("/", subscribing(count=1, endless=True)) as subscription:
        assert numbers(subscription, 1) == [0]
    assert pool.stats().discards == {"discarded": 1}
    with pool.acquire("/") as conn:
        conn.subscribe(subscribing(count=1, endless=True))
    assert pool.stats().discards == {"discarded": 2}


def test_the_same_topic_twice_ends_with_the_last(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        first, second = conn.subscribe(subscribing(count=0)), conn.subscribe(subscribing(count=0))
        first.unsubscribe()
        conn.request({"do": "push", "say": [{"topic": "t", "n": 1}]}, 5)
        assert numbers(second, 1) == [1]
        second.unsubscribe()
        conn.request({"do": "push", "say": [{"topic": "t", "n": 2}]}, 5)
    assert pool.stats().unasked_messages == 0  # it is late, and dropped


@pytest.mark.parametrize("how", ["in order", "error"])
def test_the_server_may_end_it(pool: ConnectionPool[Any], how: str) -> None:
    with pool.subscribe("/", subscribing(count=2, end=how)) as subscription:
        assert numbers(subscription, 2) == [0, 1]
        if how == "error":
            with pytest.raises(ReplyError):
                next(subscription)
        else:
            assert list(subscription) == []
    assert pool.stats().discards == {}


def test_a_refused_one_raises_and_costs_no_connection(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    class Refusing(Plain):
        def tag(self, message: Any, new_id: Any) -> Any:
            sent, key = super().tag(message, new_id)
            return ({**sent, "do": "fail"} if sent["do"] == "subscribe" else sent), key

    with pytest.raises(ReplyError):
        pool.subscribe("/", {"do": "fail"})
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    assert server.opened == 1


def test_a_message_that_opens_nothing_is_refused(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(ValueError, match="topic"):
        pool.subscribe("/", {"n": 1})


def test_one_that_is_not_confirmed_in_time_closes_the_connection(pool: ConnectionPool[Any]) -> None:
    assert pool.prewarm("/", 1) == 1
    with pytest.raises(TimeoutError):
        pool.subscribe("/", {"do": "never"}, timeout=0.5)
    assert pool.stats().discards == {"subscribed": 1}


def test_an_orderly_end_of_the_connection_ends_the_iterator_any_other_raises(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    with pool.subscribe("/", subscribing(count=1)) as subscription:
        assert numbers(subscription, 1) == [0]
        server.close_all()
        assert list(subscription) == []
    with pool.subscribe("/", subscribing(count=1)) as subscription:
        assert numbers(subscription, 1) == [0]
        server.cut_all()
        with pytest.raises(ConnectionClosedError):
            next(subscription)


# --- full


def test_a_full_one_ends_with_an_error_behind_what_waits_and_holds_up_nothing(
    pool: ConnectionPool[Any],
) -> None:
    with pool.acquire("/") as conn:
        subscription = conn.subscribe(subscribing(count=20), max_queue=5)
        assert conn.request({"n": 1}, 5)["n"] == 1
        assert numbers(subscription, 5) == [0, 1, 2, 3, 4]
        with pytest.raises(SubscriptionOverflowError) as raised:
            subscription.get(5)
        assert raised.value.dropped >= 1


def test_the_oldest_go_and_are_counted(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        subscription = conn.subscribe(subscribing(count=20), max_queue=5, overflow="drop_oldest")
        conn.request({"n": 1}, 5)
        assert numbers(subscription, 5) == [15, 16, 17, 18, 19]
        assert subscription.dropped == 15


@pytest.mark.parametrize(
    "bad", [{"max_queue": 0}, {"max_queue": True}, {"max_queue": 1.5}, {"overflow": "drop"}]
)
def test_bad_arguments_are_refused(pool: ConnectionPool[Any], bad: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError), match=next(iter(bad))):
        pool.subscribe("/", subscribing(), **bad)


# --- a lost connection


def test_it_is_opened_anew_if_that_is_wanted(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    told: list[int] = []
    with pool.subscribe(
        "/", subscribing(count=2), reconnect=True, on_reconnect=lambda each: told.append(each.reconnects)
    ) as subscription:
        assert numbers(subscription, 2) == [0, 1]
        for number in (1, 2):
            server.cut_all()
            assert numbers(subscription, 2) == [0, 1]
            assert told == list(range(1, number + 1))
        server.stop()
        with pytest.raises(TimeoutError, match="lost"):
            subscription.get(0.3)
        server.restart()
        assert subscription.get(10)["n"] == 0
        assert subscription.reconnects == 3


def test_of_several_threads_that_read_one_opens_it_anew(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    def read(subscription: Any) -> None:
        while not subscription.reconnects:
            with contextlib.suppress(TimeoutError):  # one message comes: one of them gets it
                subscription.get(0.5)

    with pool.subscribe("/", subscribing(count=1), reconnect=True) as subscription:
        assert numbers(subscription, 1) == [0]
        server.cut_all()
        threads = [threading.Thread(target=read, args=(subscription,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert subscription.reconnects == 1
    assert server.opened == 2


@pytest.mark.parametrize("timeout", [-1, "soon", True, float("nan")])
def test_bad_timeouts_are_refused(pool: ConnectionPool[Any], timeout: Any) -> None:
    with pool.subscribe("/", subscribing()) as subscription, pytest.raises((TypeError, ValueError)):
        subscription.get(timeout)


def test_close_ends_the_waiting_for_another_connection(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    from jetsocket import PoolClosedError

    with pool.subscribe("/", subscribing(count=1), reconnect=True) as subscription:
        subscription.get(5)
        server.stop()
        ended: list[BaseException] = []

        def wait() -> None:
            with pytest.raises((PoolClosedError, ConnectionClosedError)) as raised:
                subscription.get(30)
            ended.append(raised.value)

        thread = threading.Thread(target=wait)
        thread.start()
        wait_until(lambda: pool.stats().connect_errors > 0)
        pool.close(1)
        thread.join(5)
        assert ended


@pytest.mark.parametrize("correlation", [Plain(), None])
def test_what_a_feed_cannot_read_is_told_to_who_reads_it(
    server: EchoServer, make_pool: MakePool, correlation: Any
) -> None:
    pool = make_pool(server, correlation=correlation)
    with pool.subscribe("/", None) as feed:
        for text in ("{", "1"):
            server.broadcast(text)
        with pytest.raises(DecodeError) as raised:
            feed.get(5)
        assert raised.value.payload == "{"
        assert feed.get(5) == 1


# --- without a correlation


def test_without_a_correlation_a_feed_can_be_read(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(push))
    with pool.subscribe("/?count=5", None) as feed:
        assert [feed.get(5)["push"] for _ in range(5)] == [0, 1, 2, 3, 4]
    assert pool.stats().discards == {"discarded": 1}
    with pytest.raises(ValueError, match="correlation"):
        pool.subscribe("/", {"subscribe": "trades"})
