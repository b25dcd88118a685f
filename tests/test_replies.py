"""Whose reply is it? Told by ids where messages carry them, and what counts can't see is not lent again."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import logging
import random
import sys
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, DecodeError, TimeoutError, connection, ids
from jetsocket.known_uris import MOST, KnownUris
from jetsocket.wire import channel, stream
from tests.conftest import Tls
from tests.servers import (
    Connection,
    EchoServer,
    RawServer,
    answer_close,
    frame,
    read_client_frame,
    upgrade,
    wait_until,
)

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]


def scripted(conn: Connection) -> None:
    """Send what a message asks for: all of `say`, in which "me" stands for the message itself."""
    for text in conn:
        message = json.loads(text)
        say = message.get("say", ["me"]) if isinstance(message, dict) else ["me"]
        for each in say:
            conn.send(text if each == "me" else json.dumps(each))


@pytest.fixture
def server(echo_server: MakeServer) -> EchoServer:
    return echo_server(scripted)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def settled(pool: ConnectionPool[Any]) -> None:
    """Wait until the housekeeper has written down what it was told."""
    wait_until(lambda: not pool._ledger.journal._records)


# --- a server that pushes one message while a request is under way


class Pusher:
    """Answers `{"id": n}` or `{"n": n}` with itself; `{"push": true}` in it has a notice come before that.

    As long as it is told to, it holds back the replies that follow a notice: whoever goes by counts has
    returned the connection by then.
    """

    def __init__(self, hold: float = 0.0) -> None:
        self.hold = hold

    def __call__(self, conn: Connection) -> None:
        for text in conn:
            message = json.loads(text)
            if message.get("push"):
                conn.send(json.dumps({"notice": "that nobody asked for"}))
                conn.echo_server.stopping.wait(self.hold)
            conn.send(text)


def test_a_message_that_is_pushed_during_a_request_costs_no_later_borrower_its_reply(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server(Pusher(hold=0.05))
    pool = make_pool(server, max_connections=1)
    got = [pool.request("/", {"id": number, "push": number == 0}, 5)["id"] for number in range(6)]
    assert got == list(range(6))
    stats = pool.stats()
    assert stats.discards == {"unread": 1}  # the notice, which `pool.request` gives nobody a chance to read
    assert (stats.total_connections, stats.reuses) == (2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("tagged", [True, False])
def test_under_load_with_pushes_not_one_reply_is_foreign(
    echo_server: MakeServer, make_pool: MakePool, tagged: bool
) -> None:
    server = echo_server(Pusher(hold=0.002))
    pool = make_pool(server, max_connections=8, acquire_timeout=30)
    if not tagged:  # one thing that came unasked, and counts are not believed any more
        with pool.acquire("/") as conn:
            conn.send({"n": -1, "push": True})
            assert [conn.recv(5), conn.recv(5)] == [
                {"notice": "that nobody asked for"},
                {"n": -1, "push": True},
            ]
    foreign, own = [], [0] * 32

    def work(worker: int) -> None:
        rng = random.Random(worker)
        for turn in range(60):
            number = worker * 1000 + turn
            with pool.acquire("/", 30) as conn:
                reply = conn.request({"id" if tagged else "n": number, "push": rng.random() < 0.05}, 20)
                if "notice" in reply:
                    assert not tagged
                elif reply["id" if tagged else "n"] != number:
                    foreign.append((number, reply))
                else:
                    own[worker] += 1

    with ThreadPoolExecutor(32) as threads:
        list(threads.map(work, range(32)))
    assert foreign == []
    assert sum(own) == 32 * 60 if tagged else sum(own) > 32 * 60 * 0.9
    assert server.most_open <= 8
    if tagged:
        assert pool.stats().reuses > 32 * 60 * 0.8
    else:
        assert pool.stats().reuses == 0  # counts alone speak for no connection


# --- a request and its id


@pytest.mark.parametrize("number", [7, "7", 1.5, -1, 0, "", 10**17])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_request_gets_the_message_with_its_id_and_no_other(
    server: EchoServer, make_pool: MakePool, number: Any, as_text: bool
) -> None:
    strangers = [
        {"id": other} for other in (8, "8", True, None, [7], 1, 7.0, 2.5) if other != number or other is True
    ]
    strangers += [{"push": 1}, [{"id": number}], {"params": {"id": number}}]
    if number != "7":
        strangers.append({"id": "7"})
    if type(number) is not int or number != 7:
        strangers.append({"id": 7})
    message = {"id": number, "say": [*strangers, "me"]}
    with make_pool(server).acquire("/") as conn:
        reply = conn.request(json.dumps(message) if as_text else message, 5)
        assert reply == message
        assert type(reply["id"]) is type(number)
        assert [conn.recv(5) for _ in strangers] == strangers


def test_what_came_in_between_stays_for_recv_in_order(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    with pool.acquire("/") as conn:
        for turn in range(3):
            message = {"id": turn, "say": [{"push": [turn, 0]}, {"push": [turn, 1]}, "me"]}
            assert conn.request(message, 5) == message
        assert [conn.recv(5)["push"] for _ in range(6)] == [
            [turn, part] for turn in range(3) for part in range(2)
        ]
    assert pool.stats().idle_connections == 1  # each id came back, all was read: what else came doesn't count
    with pool.acquire("/") as conn:
        conn.request({"id": 4, "say": [{"push": 1}, "me"]}, 5)
    assert pool.stats().discards == {"unread": 1}


def test_replies_to_what_was_sent_before_stay_for_recv(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    with pool.acquire("/") as conn:
        for number in range(5):
            conn.send({"id": number})
        assert conn.request({"id": 5}, 5) == {"id": 5}
        assert [conn.recv(5)["id"] for _ in range(5)] == list(range(5))
    assert pool.stats().discards == {}


def test_one_thread_sends_another_receives_and_replies_come_in_any_order(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    def shuffles(conn: Connection) -> None:
        rng, waiting = random.Random(1), []
        for text in conn:
            waiting.append(text)
            if len(waiting) == 20:
                rng.shuffle(waiting)
                for each in waiting:
                    conn.send(each)
                    conn.send(json.dumps({"push": 1}))
                waiting.clear()

    pool = make_pool(echo_server(shuffles), max_connections=1)
    for turn in range(3):
        with pool.acquire("/") as conn, ThreadPoolExecutor(1) as threads:
            receiving = threads.submit(lambda conn=conn: [conn.recv(10) for _ in range(800)])
            for number in range(400):
                conn.send({"id": turn * 1000 + number})
            ids = [message["id"] for message in receiving.result(20) if "id" in message]
        assert sorted(ids) == [turn * 1000 + number for number in range(400)]
        assert ids != sorted(ids)
    assert pool.stats().reuses == 2
    assert pool.stats().discards == {}


def test_an_iterating_borrower_gets_all(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    with pool.acquire("/") as conn:
        conn.send({"id": 1, "say": [{"push": 1}, "me"]})
        conn.send({"id": 2, "say": [{"push": 2}, "me"]})
        got: list[Any] = []
        for message in conn:
            got.append(message.get("push") or message["id"])
            if len(got) == 4:
                break
    assert got == [1, 1, 2, 2]
    assert pool.stats().discards == {}


@pytest.mark.parametrize("raw", [False, True])
def test_recv_raw_and_send_raw_are_looked_at_too(server: EchoServer, make_pool: MakePool, raw: bool) -> None:
    pool = make_pool(server, max_connections=1)
    with pool.acquire("/") as conn:
        conn.send_raw('{"id": 1}') if raw else conn.send({"id": 1})
        assert conn.recv_raw(5) == '{"id": 1}'
    assert pool.stats().discards == {}
    with pool.acquire("/") as conn:
        conn.send_raw('{"id": 2, "say": []}')
    assert pool.stats().discards == {"unanswered": 1}


def test_an_id_used_for_everything_is_counted_from_its_second_use(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_connections=1)
    for turn in range(5):
        for _ in range(2):
            with pool.acquire("/") as conn:
                assert conn.request({"id": 1, "turn": turn}, 5) == {"id": 1, "turn": turn}
    assert pool.stats().reuses == 9
    with pool.acquire("/") as conn:
        conn.send({"id": 1})
    assert pool.stats().discards == {"unbalanced": 1}


def test_what_is_tagged_and_what_is_not_may_be_mixed(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_connections=1)
    with pool.acquire("/") as conn:
        assert conn.request({"id": 1}, 5) == {"id": 1}
        assert conn.request([1], 5) == [1]
        conn.send({"id": 1})
        conn.send({"id": 2})
        assert [conn.recv(5), conn.recv(5)] == [{"id": 1}, {"id": 2}]
    assert pool.stats().discards == {}
    for say, reason in (([{"id": 3}], "unbalanced"), ([], "unbalanced"), (["me", "me"], "unbalanced")):
        pool = make_pool(server)
        with pool.acquire("/") as conn:
            assert conn.request({"id": 1}, 5) == {"id": 1}
            conn.send({"say": say * 2})
            conn.send({"id": 9})
            while conn.recv(5).get("id") != 9:
                pass
        assert pool.stats().discards == {reason: 1}


def test_a_lease_whose_ids_are_not_all_back_is_not_clean_though_counts_match(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server)
    with pool.acquire("/") as conn:
        conn.send({"id": 1, "say": [{"push": 1}]})
        assert conn.recv(5) == {"push": 1}
    assert pool.stats().discards == {"unanswered": 1}


def test_an_id_that_came_back_twice_is_not_clean(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server)
    with pool.acquire("/") as conn:
        conn.send({"id": 1, "say": ["me", "me"]})
        conn.send({"id": 2})
        assert [conn.recv(5)["id"] for _ in range(3)] == [1, 1, 2]
    assert pool.stats().discards == {"answered twice": 1}


@pytest.mark.parametrize("reuse", ["balanced", "quiet", "always"])
@pytest.mark.parametrize("call", ["request", "recv"])
def test_a_second_answer_that_comes_in_a_later_lease_reaches_nobody(
    server: EchoServer, make_pool: MakePool, reuse: str, call: str
) -> None:
    pool = make_pool(server, max_connections=1, reuse=reuse)
    first = pool.request("/", {"id": 1}, 5)
    with pool.acquire("/") as conn:
        message = {"id": 2, "say": [first, "me"]}
        if call == "request":
            assert conn.request(message, 5) == message
        else:
            conn.send(message)
            assert conn.recv(5) == message
        assert conn.request({"id": 3}, 5) == {"id": 3}
    assert pool.stats().discards == {"late reply": 1}
    assert pool.stats().reuses == 1


@pytest.mark.parametrize("reuse", ["quiet", "always"])
def test_a_late_reply_to_an_earlier_lease_reaches_nobody(
    echo_server: MakeServer, make_pool: MakePool, reuse: str
) -> None:
    given_up = threading.Event()

    def late(conn: Connection) -> None:
        first = conn.recv()
        second = conn.recv()
        assert given_up.wait(5)
        conn.send(first)
        conn.send(second)
        scripted(conn)

    pool = make_pool(echo_server(late), max_connections=1, reuse=reuse)
    with pool.acquire("/") as conn:
        conn.send({"id": 1})
    with pool.acquire("/") as conn:
        conn.send({"id": 2})
        given_up.set()
        assert conn.recv(5) == {"id": 2}
    assert (pool.stats().reuses, pool.stats().discards) == (1, {"late reply": 1})


def test_always_hands_on_what_is_unread_if_nothing_is_asked(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, max_connections=1, reuse="always")
    message = {"id": 1, "say": [{"push": 1}, {"push": 2}, "me", {"push": 3}]}
    assert pool.request("/", message, 5) == message
    with pool.acquire("/") as conn:
        assert [conn.recv(5)["push"] for _ in range(3)] == [1, 2, 3]
    assert pool.stats().discards == {}


def test_a_reset_has_the_last_word_and_its_own_ids(server: EchoServer, make_pool: MakePool) -> None:
    numbers = iter(range(1000, 2000))

    def swallow(conn: Any) -> None:
        message = {"id": next(numbers), "say": [{"push": 0}, "me"]}
        assert conn.request(message) == message
        assert conn.recv() == {"push": 0}

    pool = make_pool(server, max_connections=1, reset=swallow)
    for number in range(3):
        with pool.acquire("/") as conn:
            conn.send({"id": number, "say": [{"push": 9}]})  # is never answered
            assert conn.recv(5) == {"push": 9}
    assert (pool.stats().reuses, pool.stats().discards) == (2, {})


def test_configure_and_check_ask_with_ids(server: EchoServer, make_pool: MakePool) -> None:
    calls: list[str] = []

    def asks(name: str, conn: Any) -> None:
        message = {"id": f"{name} {len(calls)}", "say": [{"push": name}, "me"]}
        assert conn.request(message) == message
        assert conn.recv() == {"push": name}
        calls.append(name)

    pool = make_pool(
        server,
        configure=functools.partial(asks, "configure"),
        check=functools.partial(asks, "check"),
        health_check_interval=0.1,
    )
    for number in range(3):
        assert pool.request("/", {"id": number}, 5) == {"id": number}
    wait_until(lambda: calls.count("check") >= 2)
    assert calls.count("configure") == 1
    assert pool.request("/", {"id": 4}, 5) == {"id": 4}
    assert pool.stats().discards == {}


# --- decoding


def test_a_reply_that_does_not_decode_is_still_the_reply(server: EchoServer, make_pool: MakePool) -> None:
    def refuses(payload: str | bytes) -> Any:
        raise ZeroDivisionError

    pool = make_pool(server, max_connections=1, manager_kwargs={"deserializer": refuses})
    for number in range(3):
        with pytest.raises(DecodeError):
            pool.request("/", {"id": number}, 5)
    assert (pool.stats().reuses, pool.stats().discards) == (2, {})


def test_ids_are_looked_at_apart_from_the_deserializer(server: EchoServer, make_pool: MakePool) -> None:
    seen: list[Any] = []

    def notes(payload: str | bytes) -> Any:
        seen.append(payload)
        return len(payload)

    pool = make_pool(server, manager_kwargs={"deserializer": notes})
    with pool.acquire("/") as conn:
        message = {"id": 1, "say": [{"push": 1}, "me"]}
        assert conn.request(message, 5) == len(json.dumps(message))
        assert seen == [json.dumps(message)]
        assert conn.recv(5) == len('{"push": 1}')


def test_each_value_is_the_borrowers_own(server: EchoServer, make_pool: MakePool) -> None:
    with make_pool(server).acquire("/") as conn:
        first = conn.request({"id": 1, "list": []}, 5)
        first["list"].append("changed")
        conn.send({"id": 2})
        conn.send({"id": 1, "list": []})
        assert [conn.recv(5), conn.recv(5)] == [{"id": 2}, {"id": 1, "list": []}]


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_replies_may_be_binary_and_nested_beyond_reading(
    raw_server: MakeRaw, make_pool: MakePool, kind: str
) -> None:
    deep = b'{"id":' * 100_000

    def script(sock: Any) -> None:
        upgrade(sock)
        while (asked := read_client_frame(sock)).opcode == 1:
            for payload in (deep, b"\xfe\xff", asked.payload):
                sock.sendall(frame(1 if kind == "text" and payload != b"\xfe\xff" else 2, payload))
        sock.sendall(frame(8, asked.payload))

    with make_pool(raw_server(script)).acquire("/") as conn:
        assert conn.request({"id": 1}, 10) == {"id": 1}
        assert conn.recv_raw(5) == (deep.decode() if kind == "text" else deep)
        assert conn.recv_raw(5) == b"\xfe\xff"


def test_a_message_that_cannot_be_sent_leaves_the_lease_clean(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_connections=1)
    for _ in range(2):
        with pool.acquire("/") as conn:
            for bad in ({"id": 1, "x": object()}, {"id": 2, "x": "\ud800"}, '{"id": 3, "x": "\ud800"}'):
                with pytest.raises((TypeError, UnicodeEncodeError)):
                    conn.request(bad, 5)
            assert conn.request([1], 5) == [1]
    assert (pool.stats().reuses, pool.stats().discards) == (1, {})


# --- services that do not echo


def drops_ids(conn: Connection) -> None:
    for text in conn:
        conn.send(json.dumps({"result": json.loads(text)["id"]}))


def test_the_timeout_says_what_came_and_what_to_do(echo_server: MakeServer, make_pool: MakePool) -> None:
    pool = make_pool(echo_server(scripted))
    with pool.acquire("/") as conn:
        with pytest.raises(TimeoutError) as raised:
            conn.request({"id": 7, "say": [{"a": 1}, {"b": 1}, {"id": 8}]}, 0.3)
        assert "3 messages came, none with id 7; if this service does not echo ids: match_ids=False" in str(
            raised.value
        )
        assert (raised.value.operation, raised.value.timeout) == ("recv", 0.3)
        assert len([conn.recv(1) for _ in range(3)]) == 3
        with pytest.raises(TimeoutError, match="1 message came, none with id 'x'"):
            conn.request({"id": "x", "say": [{"a": 1}]}, 0.3)
        with pytest.raises(TimeoutError) as raised:
            conn.request({"id": 9, "say": []}, 0.2)
        assert "0.2 s were given" in str(raised.value)
        assert "match_ids" not in str(raised.value)
    assert pool.stats().discards == {"timeout": 1}


def test_without_match_ids_the_reply_is_the_next_message(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(drops_ids), max_connections=1, match_ids=False)
    for number in range(3):
        assert pool.request("/", {"id": number}, 5) == {"result": number}
    assert (pool.stats().reuses, pool.stats().discards) == (2, {})
    pool = make_pool(echo_server(scripted), max_connections=1, match_ids=False)
    assert pool.request("/", {"id": 7, "say": [{"id": 8}]}, 5) == {"id": 8}


@pytest.mark.parametrize("timeout", [None, 0.6])
def test_nobody_hangs_at_a_service_that_does_not_echo(
    echo_server: MakeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch, timeout: float | None
) -> None:
    monkeypatch.setattr("jetsocket.connection._ECHO_PATIENCE", 0.2)
    pool = make_pool(echo_server(drops_ids))
    with pytest.raises(TimeoutError, match=r"1 message came, none with id 7; .*match_ids=False") as raised:
        pool.request("/", {"id": 7}, timeout)
    assert raised.value.timeout == timeout  # with one set, no deadline changes
    assert ("0.2 s" if timeout is None else "0.6 s") in str(raised.value)


def test_where_ids_were_echoed_once_a_request_waits_for_ever(
    echo_server: MakeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.connection._ECHO_PATIENCE", 0.05)

    def slow(conn: Connection) -> None:
        for text in conn:
            if "slow" in text:
                conn.send(json.dumps({"push": 1}))
                conn.echo_server.stopping.wait(0.4)
            conn.send(text)

    pool = make_pool(echo_server(slow))
    with pytest.raises(TimeoutError, match="1 message came"):
        pool.request("/", {"id": 1, "slow": 1})
    assert pool.request("/", {"id": 2}) == {"id": 2}
    assert pool.request("/", {"id": 3, "slow": 1}) == {"id": 3, "slow": 1}


def test_a_silent_service_is_waited_for(echo: EchoServer, make_pool: MakePool, monkeypatch: Any) -> None:
    monkeypatch.setattr("jetsocket.connection._ECHO_PATIENCE", 0.01)
    message = {"id": 1, "delay": 0.3}
    assert make_pool(echo).request("/late", message) == message


def test_a_flood_ends_a_request_before_it_fills_the_memory(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    def floods(conn: Connection) -> None:
        conn.recv()
        while not conn.echo_server.stopping.is_set():
            conn.send("x" * 100_000)

    pool = make_pool(echo_server(floods), manager_kwargs={"max_message_size": 1 << 20})
    with pool.acquire("/") as conn:
        with pytest.raises(TimeoutError, match="more messages than are kept unread"):
            conn.request({"id": 1}, 30)
        assert conn.recv_raw(5) == "x" * 100_000


# --- a lease that moves, and a request that is repeated


def test_a_lease_that_moves_asks_on_the_new_connection_only(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    server = echo_server(scripted)
    pool = make_pool(server, max_connections=1)
    assert pool.request("/", {"id": 1}, 5) == {"id": 1}
    with pool.acquire("/") as conn:
        first = conn.id
        server.cut_all()
        # Among the last ids of the connection that is gone, and not of the new one: it is tagged there.
        message = {"id": 1, "say": [{"push": 1}, "me"]}
        assert conn.request(message, 5) == message
        assert conn.id != first
        assert conn.recv(5) == {"push": 1}
    assert pool.stats().idle_connections == 1


def test_an_idempotent_request_waits_for_its_id_each_time(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    tries: list[int] = []

    def ends_the_first_time(conn: Connection) -> None:
        text = conn.recv()
        tries.append(1)
        if len(tries) > 1:
            conn.send(json.dumps({"push": 1}))
            conn.send(text)
            conn.recv()

    pool = make_pool(echo_server(ends_the_first_time))
    assert pool.request("/", {"id": 1}, 5, idempotent=True) == {"id": 1}
    assert len(tries) == 2


# --- an exception that strikes a send


class Alarm(Exception):
    """What a signal handler raises."""


class StrikeAt:
    """A trace function that raises Alarm before the so-manieth bytecode of a send."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "call":
            frame.f_trace_opcodes = True
            return self if frame.f_code.co_filename in SENDING else None
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise Alarm
        return self


SENDING = {module.__file__ for module in (connection, ids, channel, stream)}


@pytest.mark.slow
@pytest.mark.parametrize("tagged", [False, True])
def test_whatever_strikes_a_send_the_next_borrower_gets_its_own_reply(
    echo_server: MakeServer, make_pool: MakePool, tagged: bool
) -> None:
    """Wherever a handler's exception comes, the borrower catching it: the message has left or not."""
    gate = threading.Event()

    def answers_when_told(conn: Connection) -> None:
        for text in conn:
            assert gate.wait(10)
            conn.send(text)

    pool = make_pool(echo_server(answers_when_told), max_connections=1)
    for bytecode in itertools.count(1):
        first, second = ({"id": f"{which} {bytecode}"} if tagged else [which, bytecode] for which in "ab")
        gate.clear()
        conn = pool.acquire("/", 5)
        struck = StrikeAt(bytecode)
        sys.settrace(struck)
        try:
            conn.send(first)
        except Alarm:
            pass
        finally:
            sys.settrace(None)
        conn.release()
        with pool.acquire("/", 5) as conn:
            conn.send(second)
            gate.set()
            assert conn.recv(5) == second, f"struck at bytecode {bytecode}"
        if struck.left > 0:
            break
    assert bytecode > 100


# --- URIs on which something came unasked


def balanced_request(pool: ConnectionPool[Any]) -> None:
    assert pool.request("/?key=secret", [1], 5) == [1]


def while_idle(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    balanced_request(pool)
    server.broadcast('"news"')
    wait_until(lambda: server.open_now == 0)


def before_anything_was_sent(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/?key=secret") as conn:
        server.broadcast('"news"')
        assert conn.recv(5) == "news"
        conn.send([1])
        conn.discard()


def more_came_than_went(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/?key=secret") as conn:
        conn.send({"say": [1, 2]})
        assert [conn.recv(5), conn.recv(5)] == [1, 2]


def before_the_first_send_and_unread(server: EchoServer, pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/?key=secret") as conn:
        server.broadcast('"news"')
        wait_until(lambda: conn.ping(5) and conn._entry.wire.unread)
        conn.send([1])


UNASKED = [while_idle, before_anything_was_sent, more_came_than_went, before_the_first_send_and_unread]


@pytest.mark.parametrize("comes", UNASKED)
def test_where_something_came_unasked_counts_alone_do_not_do(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, comes: Any
) -> None:
    pool = make_pool(server, name="mine", max_connections=2)
    comes(server, pool)
    opened = server.opened
    for _ in range(3):
        balanced_request(pool)
    assert pool.stats().discards["counts alone"] == 3
    assert server.opened == opened + 3
    for number in range(3):  # ids are proof
        assert pool.request("/?key=secret", {"id": number}, 5) == {"id": number}
    pool.acquire("/?key=secret").release()  # nor does one count on which nothing was sent
    assert server.opened == opened + 4
    for _ in range(2):
        assert pool.request("/elsewhere", [1], 5) == [1]
    assert server.opened == opened + 5
    comes(server, pool)
    settled(pool)
    (warning,) = [text for text in warnings_in(caplog) if "[mine]" in text and "key=" in text]
    for part in ("ws://127.0.0.1", "counts", "'id'", "reset", "configure", "pool"):
        assert part in warning
    assert "secret" not in warning
    other = make_pool(server, name="other")
    for _ in range(2):
        balanced_request(other)
    assert other.stats().reuses == 1


def test_connections_that_came_back_by_counts_before_are_not_lent_again(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_connections=3)
    leases = [pool.acquire("/") for _ in range(3)]
    for number, conn in enumerate(leases):
        conn.request({"id": number} if number == 0 else [number], 5)
        if number == 2:
            conn.request({"id": 3}, 5)
    for conn in leases:
        conn.release()
    with pool.acquire("/") as conn:
        conn.send({"id": 9, "say": ["me", 1]})
        assert [conn.recv(5)["id"], conn.recv(5)] == [9, 1]
    for number in range(10, 13):
        assert pool.request("/", {"id": number}, 5) == {"id": number}
    assert pool.stats().discards["counts alone"] >= 1
    with pool.acquire("/") as one, pool.acquire("/") as two:
        ids = {one.id, two.id}
        assert leases[1].id not in ids
        assert leases[2].id not in ids


def iterates(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"say": [1, 2, 3]})
        for message in conn:
            if message == 3:
                return


def fails(pool: ConnectionPool[Any]) -> None:
    with pytest.raises(KeyError), pool.acquire("/") as conn:
        conn.send({"say": [1, 2]})
        raise KeyError([conn.recv(5), conn.recv(5)])


def discards(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"say": [1, 2]})
        assert [conn.recv(5), conn.recv(5)] == [1, 2]
        conn.discard()


def steps(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"say": [1, 2]})
        assert [next(conn), next(conn)] == [1, 2]


def feeds(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn, ThreadPoolExecutor(1) as threads:
        got = threads.submit(lambda: next(iter(conn)))
        other = ConnectionPool(base_uri=conn.uri)
        other.close()
        wait_until(lambda: conn._iterated)
        conn.send_raw('{"say": [1, 2]}')
        assert got.result(5) == 1


@pytest.mark.parametrize("behaves", [iterates, fails, discards, steps, feeds])
def test_who_expects_more_is_sent_nothing_unasked(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, behaves: Any
) -> None:
    pool = make_pool(server, max_connections=1)
    behaves(pool)
    for _ in range(3):
        assert pool.request("/", [1], 5) == [1]
    settled(pool)
    assert pool.stats().reuses == 2
    assert warnings_in(caplog) == []


@pytest.mark.parametrize("given", [{"reuse": "quiet"}, {"reuse": "always"}, {"reset": lambda conn: None}])
def test_only_who_goes_by_counts_remembers(
    server: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, given: Any
) -> None:
    pool = make_pool(server, **given)
    more_came_than_went(server, pool)
    for _ in range(3):
        balanced_request(pool)
    assert pool.stats().reuses == 3
    assert warnings_in(caplog) == []


def test_pings_tickets_and_half_a_message_are_no_message(
    raw_server: MakeRaw, make_pool: MakePool, tls: Tls, caplog: pytest.LogCaptureFixture
) -> None:
    released, go_on = threading.Event(), threading.Event()

    def script(sock: Any) -> None:
        upgrade(sock)
        sock.sendall(frame(1, read_client_frame(sock).payload))
        assert released.wait(5)
        for _ in range(5):
            sock.sendall(frame(9, b"ping"))
            read_client_frame(sock)
        if not go_on.is_set():
            sock.sendall(frame(1, b'"half', fin=0))
            assert go_on.wait(5)
        answer_close(sock)

    server = raw_server(script, ssl_context=tls.server_context)
    pool = make_pool(server, manager_kwargs={"ssl_context": tls.client_context})
    assert pool.request("/", 1, 5) == 1
    released.set()
    wait_until(lambda: pool.stats().discards == {"unread while idle": 1})
    go_on.set()
    assert pool.request("/", 1, 5) == 1
    settled(pool)
    assert pool._ledger.known.unasked == {}
    assert warnings_in(caplog) == []


def test_what_is_remembered_is_bounded(echo: EchoServer, make_pool: MakePool, caplog: Any) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        entry, known = conn._entry, pool._ledger.known
        for number in range(MOST * 2):
            entry.key = f"ws://h/{number}"
            known.note_unasked(entry, "in this test")
            known.note_echo(entry.key)
        assert list(known.unasked) == list(known.echoing) == [f"ws://h/{n}" for n in range(MOST, MOST * 2)]
        entry.key = f"{echo.uri}/"
    settled(pool)
    assert len(warnings_in(caplog)) == MOST * 2


def test_threads_that_find_out_at_once_warn_once(echo: EchoServer, make_pool: MakePool, caplog: Any) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn, ThreadPoolExecutor(8) as threads:
        together = threading.Barrier(8)

        def finds(_number: int) -> None:
            together.wait()
            pool._ledger.known.note_unasked(conn._entry, "in this test")

        list(threads.map(finds, range(8)))
    settled(pool)
    assert len(warnings_in(caplog)) == 1


def test_a_pool_that_remembers_and_is_dropped_closes_itself(server: EchoServer) -> None:
    pool = ConnectionPool(ConnectionPoolConfig(max_connections=2), base_uri=server.uri)
    more_came_than_went(server, pool)
    pool.request("/", {"id": 1}, 5)
    pool.request("/elsewhere", {"id": 1}, 5)
    gone = weakref.ref(pool)
    gc.disable()
    try:
        del pool
        assert gone() is None  # without the collector: nothing that it has refers back to it
    finally:
        gc.enable()
    wait_until(lambda: server.open_now == 0)


def test_what_the_parent_knew_a_child_knows(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pool.acquire("/") as conn:
        pool._ledger.known.note_unasked(conn._entry, "in this test")
        pool._ledger.known.note_echo("ws://h/")
    child = KnownUris(pool._ledger.journal, "child")
    child.learn_from(pool._ledger.known)
    assert child.minds
    assert list(child.unasked) == [f"{echo.uri}/"]
    assert list(child.echoing) == ["ws://h/"]
