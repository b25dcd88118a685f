"""Leases of a pool with a correlation: each reply to its request, pushes to `on_push`."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import (
    ConnectionClosedError,
    ConnectionError,
    ConnectionPool,
    InvalidStateError,
    ReplyError,
    TimeoutError,
)
from tests import service_fixtures
from tests.servers import EchoServer, wait_until
from tests.services import MakePool, Plain, service

server, pool = service_fixtures.server, service_fixtures.pool


# --- requests


def test_a_request_gets_its_own_reply_and_the_callers_id_back(pool: ConnectionPool[Any]) -> None:
    message = {"id": "mine", "x": [1]}
    assert pool.request("/", message, 5) == {"id": "mine", "x": [1]}
    assert message == {"id": "mine", "x": [1]}
    with pool.acquire("/") as conn:
        assert conn.request({"id": True}, 5) == {"id": True}
        assert conn.request({"x": 1}, 5)["x"] == 1


def test_ids_on_the_wire_are_never_the_callers(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        replies = [conn.request({"id": 1, "n": n, "do": "echo"}, 5) for n in range(3)]
        assert replies == [{"id": 1, "n": n, "do": "echo"} for n in range(3)]
        sent = [conn.request({"n": n}, 5)["id"] for n in range(3)]
    assert len(set(sent)) == 3


def test_a_timeout_costs_no_connection_and_the_late_reply_is_dropped(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    with pool.acquire("/") as conn:
        with pytest.raises(TimeoutError) as raised:
            conn.request({"do": "late", "after": 0.3}, 0.05)
        assert raised.value.operation == "recv"
        assert raised.value.timeout == 0.05
    for n in range(3):
        assert pool.request("/", {"n": n}, 5)["n"] == n
    wait_until(lambda: pool.request("/", {"n": 0}, 5) and pool.stats().late_replies == 1)
    assert server.opened == 1


def test_an_error_reply_raises_and_costs_no_connection(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pytest.raises(ReplyError) as raised:
        pool.request("/", {"do": "fail"}, 5)
    assert raised.value.code == 7
    assert raised.value.message == "no"
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    assert server.opened == 1


def test_a_second_answer_reaches_no_one(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    for n in range(5):
        assert pool.request("/", {"do": "twice", "n": n}, 5)["n"] == n
    assert server.opened == 1


def test_what_needs_no_reply_returns_none(pool: ConnectionPool[Any]) -> None:
    assert pool.request("/", {"do": "notify"}, 5) is None
    with pool.acquire("/") as conn:
        assert list(conn.stream({"do": "notify"}, 5)) == []


def test_many_requests_take_one_round_trip(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        messages = [{"do": "hold", "n": n, "id": f"my {n}"} for n in range(20)] + [{"do": "flush"}]
        replies = conn.request_many(messages, 5)
        assert [reply.get("n") for reply in replies[:-1]] == list(range(20))
        assert [reply["id"] for reply in replies[:-1]] == [f"my {n}" for n in range(20)]


def test_of_many_requests_those_that_fail_are_told_in_place(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        replies = conn.request_many([{"n": 1}, {"do": "fail"}, {"do": "never"}, {"n": 2}], 0.3)
        assert replies[0]["n"] == 1
        assert isinstance(replies[1], ReplyError)
        assert isinstance(replies[2], TimeoutError)
        assert replies[3]["n"] == 2
        with pytest.raises(TypeError):
            conn.request_many([{"n": 1}, 7], 5)
        assert conn.request({"n": 3}, 5)["n"] == 3


def test_large_batches_do_not_lock_up(pool: ConnectionPool[Any]) -> None:
    """The server writes while we write: more than the kernel takes, and no thread to read."""
    with pool.acquire("/") as conn:
        replies = conn.request_many([{"n": n, "fill": "x" * 20_000} for n in range(500)], 30)
        assert [reply["n"] for reply in replies] == list(range(500))


def test_a_stream_yields_each_reply(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        parts = list(conn.stream({"do": "parts", "parts": 3, "id": "mine"}, 5))
        assert [part.get("part") for part in parts] == [0, 1, 2, None]
        assert {part["id"] for part in parts} == {"mine"}
        assert conn.request({"do": "parts", "parts": 3}, 5)["do"] == "parts"
        for part in conn.stream({"do": "parts", "parts": 50}, 5):
            assert part["part"] == 0
            break
        assert conn.request({"n": 1}, 5)["n"] == 1
    assert pool.request("/", {"n": 2}, 5)["n"] == 2
    assert server.opened == 1


def test_two_threads_may_ask_on_one_lease(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        held: list[Any] = []
        asking = threading.Thread(target=lambda: held.append(conn.request({"do": "hold", "n": "held"}, 5)))
        asking.start()
        wait_until(lambda: pool.stats().in_flight == 1)
        assert conn.request({"n": "mine"}, 5)["n"] == "mine"
        conn.request({"do": "flush"}, 5)
        asking.join(5)
        assert held[0]["n"] == "held"


def test_the_end_of_the_connection_fails_all_at_once(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        failures: list[BaseException] = []

        def ask() -> None:
            with pytest.raises(ConnectionClosedError) as raised:
                conn.request({"do": "never"}, 20)
            failures.append(raised.value)

        threads = [threading.Thread(target=ask) for _ in range(5)]
        for thread in threads:
            thread.start()
        wait_until(lambda: pool.stats().in_flight == 5)
        server.cut_all()
        for thread in threads:
            thread.join(5)
        assert len({id(each) for each in failures}) == 5


# --- sending by oneself


def test_recv_gets_what_is_for_no_one_else_once_send_was_used(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        with pytest.raises(InvalidStateError, match="send"):
            conn.recv(1)
        conn.send({"id": 1, "x": "raw"})
        assert conn.request({"x": "asked"}, 5)["x"] == "asked"
        assert conn.recv(5) == {"id": 1, "x": "raw"}
        conn.send_raw('{"id": 2}')
        assert conn.recv_raw(5) == '{"id": 2}'
        assert conn.request({"id": 3, "x": 0}, 5) == {"id": 3, "x": 0}
    assert pool.stats().discards == {}


def test_a_lease_that_sent_a_key_that_did_not_come_back_is_closed(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"id": 5, "do": "never"})
    assert pool.stats().discards == {"unanswered": 1}


def test_reset_says_that_it_is_clean(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, correlation=Plain(), reset=lambda conn: None)
    with pool.acquire("/") as conn:
        conn.send({"id": 5, "do": "never"})
    assert pool.stats().discards == {}
    assert pool.request("/", {"n": 1}, 5)["n"] == 1


def test_configure_and_reset_get_whatever_comes_in_order(server: EchoServer, make_pool: MakePool) -> None:
    got: list[Any] = []

    def configure(conn: Any) -> None:
        conn.send({"do": "push", "say": [{"note": 1}, {"ping": 2}], "id": 9})
        got.extend(conn.recv() for _ in range(3))
        got.append(conn.request({"x": 1}))

    pool = make_pool(server, correlation=Plain(), configure=configure)
    pool.request("/", {"n": 1}, 5)
    assert [sorted(each) for each in got[:2]] == [["note"], ["ping"]]
    assert got[2]["id"] == 9
    assert got[3]["x"] == 1


# --- what was not asked for


def test_pushes_go_to_on_push_in_order(server: EchoServer, make_pool: MakePool) -> None:
    got: list[Any] = []

    def on_push(uri: str, message: Any) -> None:
        got.append((uri, message["note"]))

    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    for n in range(0, 50, 5):
        pool.request("/x", {"do": "push", "say": [{"note": n + k} for k in range(5)]}, 5)
    wait_until(lambda: len(got) == 50)
    assert [note for _, note in got] == list(range(50))
    assert got[0][0] == server.uri_for("/x")
    assert pool.stats().unasked_messages == 50
    assert pool.stats().discards == {}


def test_what_comes_while_the_connection_is_idle_does_so_too(server: EchoServer, make_pool: MakePool) -> None:
    got: list[Any] = []
    pool = make_pool(server, correlation=Plain(), on_push=lambda uri, message: got.append(message["n"]))
    pool.prewarm("/", 2)
    server.broadcast('{"n": 1}')
    wait_until(lambda: got == [1, 1])
    assert pool.request("/", {"n": 1}, 5)["n"] == 1
    assert server.opened == 2


def test_what_on_push_returns_is_sent_back(server: EchoServer, make_pool: MakePool) -> None:
    got: list[Any] = []

    def on_push(uri: str, message: Any) -> Any:
        got.append(message)
        return {"answered": message["note"]} if "note" in message else None

    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    pool.request("/", {"do": "push", "say": [{"note": 1}]}, 5)
    wait_until(lambda: {"answered": 1} in got)


def test_on_push_that_raises_costs_nothing(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    def on_push(uri: str, message: Any) -> None:
        raise RuntimeError("on purpose")

    pool = make_pool(server, correlation=Plain(), on_push=on_push)
    for _ in range(3):
        pool.request("/", {"do": "push", "say": [{"note": 1}]}, 5)
    wait_until(lambda: sum("on_push() failed" in each.getMessage() for each in caplog.records) == 3)
    assert server.opened == 1


def test_the_protocols_own_pings_are_answered(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"do": "ping"})
        assert conn.recv(5) == {"pong": 1}


@pytest.mark.parametrize("broken", ["key", "is_last", "topic", "answer", "split", "decode"])
def test_a_correlation_that_raises_costs_that_message(
    server: EchoServer, make_pool: MakePool, broken: str
) -> None:
    got: list[Any] = []

    def fail(self: Any, message: Any, *rest: Any) -> Any:
        if "bad" in str(message):
            raise RuntimeError("on purpose")
        return getattr(Plain, broken)(self, message, *rest)

    correlation = type("Broken", (Plain,), {broken: fail})()
    pool = make_pool(server, correlation=correlation, on_push=lambda uri, message: got.append(message))
    say = [{"note": "bad", "topic": "bad"}]
    assert pool.request("/", {"do": "push", "say": say, "n": 1}, 5)["n"] == 1
    assert server.opened == 1


# --- arguments


def test_a_correlation_is_needed_where_messages_have_to_be_told_apart(
    server: EchoServer, make_pool: MakePool
) -> None:
    plain = make_pool(server)
    with pytest.raises(ValueError, match="correlation"):
        make_pool(server, on_push=print)
    with pytest.raises(TypeError, match="Correlation"):
        make_pool(server, correlation="JsonRpc")
    with plain.acquire("/") as conn:
        with pytest.raises(ValueError, match="correlation"):
            conn.stream({})
        with pytest.raises(ValueError, match="correlation"):
            conn.subscribe({})
        assert [reply["n"] for reply in conn.request_many([{"n": 1}, {"n": 2}], 5)] == [1, 2]


# --- what a protocol wants besides


@pytest.mark.slow
def test_a_heartbeat_is_sent_after_a_while_of_silence(server: EchoServer, make_pool: MakePool) -> None:
    class Beating(Plain):
        @property
        def heartbeat(self) -> Any:  # type: ignore[override]  # an attribute in the base
            return {"beat": 1}

    got: list[Any] = []
    pool = make_pool(
        server,
        correlation=Beating(),
        health_check_interval=0.2,
        on_push=lambda uri, message: got.append(message),
    )
    pool.prewarm("/", 1)
    wait_until(lambda: got == [{"beat": 1}] * 2, 10)
    assert pool.stats().total_messages_sent == 0
    assert pool.stats().discards == {}


def test_its_subprotocols_are_offered_and_its_configure_runs_before_the_users(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    class Greeting(Plain):
        subprotocols = ("v2", "v1")

        def configure(self, conn: Any) -> None:
            conn.send({"hello": 1})
            said.append(conn.recv())

    said: list[Any] = []
    pool = make_pool(
        echo_server(service, subprotocols=["v1"]),
        correlation=Greeting(),
        configure=lambda conn: said.append(1),
    )
    with pool.acquire("/") as conn:
        assert conn.subprotocol == "v1"
    assert said == [{"hello": 1}, 1]


def test_drain_ends_subscriptions_and_waits_for_them(pool: ConnectionPool[Any]) -> None:
    begun, ended = threading.Event(), threading.Event()

    def read() -> None:
        with pool.subscribe("/", {"do": "subscribe", "topic": "t", "count": 1}) as subscription:
            for each in subscription:
                assert each["n"] == 0
                begun.set()
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert begun.wait(5)
    assert pool.drain(5)
    assert ended.wait(5)
    thread.join()


def test_a_subscription_has_twice_the_lifetime_of_its_connection(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, correlation=Plain(), max_lifetime=0.5)
    with pool.subscribe("/", {"do": "subscribe", "topic": "t"}) as subscription:
        with pytest.raises(TimeoutError):
            subscription.get(0.6)
        with pytest.raises(ConnectionClosedError, match="max_lifetime"):
            subscription.get(10)


def test_a_pool_without_one_that_speaks_json_rpc_is_told_of_it(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(server)
    pool.request("/", {"jsonrpc": "2.0", "id": 1}, 5)
    server.broadcast("{}")
    wait_until(lambda: any("correlation=JsonRpc()" in each.getMessage() for each in caplog.records))


def test_a_lease_says_where_its_caller_is(pool: ConnectionPool[Any]) -> None:
    with pool.subscribe("/", {"do": "subscribe", "topic": "t"}):
        assert "test_a_lease_says_where_its_caller_is" in pool.leases()[0].where


def test_a_greeting_that_fails_is_told_by_the_name_of_the_correlation(
    server: EchoServer, make_pool: MakePool
) -> None:
    class Refused(Plain):
        def configure(self, conn: Any) -> None:
            raise ReplyError("no such token")

    with pytest.raises(ConnectionError, match=r"Refused\.configure\(\) failed"):
        make_pool(server, correlation=Refused()).request("/", {"n": 1}, 5)
