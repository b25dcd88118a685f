"""Whose reply is it? Told by ids, where messages carry them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import random
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionClosedError, ConnectionPool, DecodeError, TimeoutError
from tests.books import state_of
from tests.moments import changes_what_is_handled
from tests.servers import (
    Connection,
    EchoServer,
    RawServer,
    frame,
    read_client_frame,
    scripted,
    upgrade,
    wait_until,
)
from tests.sizes import size
from tests.wire.conftest import in_background

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]


@pytest.fixture
def server(echo_server: MakeServer) -> EchoServer:
    return echo_server(scripted)


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


TURNS = size(15, 60)


@pytest.mark.slow
@pytest.mark.deep
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
        for turn in range(TURNS):
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
    assert sum(own) == 32 * TURNS if tagged else sum(own) > 32 * TURNS * 0.9
    assert server.most_open <= 8
    if tagged:
        assert pool.stats().reuses > 32 * TURNS * 0.8
    else:
        assert pool.stats().reuses == 0  # counts alone speak for no connection


class Whims:
    """A server that answers late, twice, again after the next message, or never, and pushes in between."""

    def __init__(self) -> None:
        self.numbers = itertools.count()

    def __call__(self, conn: Connection) -> None:
        rng, owed = random.Random(next(self.numbers)), []
        for text in conn:
            whim = rng.random()
            if whim < 0.1:
                conn.send(json.dumps({"push": text}))
            if whim < 0.04:
                conn.echo_server.stopping.wait(0.03)
            if not 0.1 < whim < 0.13:
                conn.send(text)
            if 0.13 < whim < 0.17:
                conn.send(text)
            for again in owed:
                conn.send(again)
            owed = [text] if 0.17 < whim < 0.22 else []
            if 0.22 < whim < 0.27:
                conn.send(json.dumps({"push": text}))


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize("reuse", ["balanced", "quiet", "always"])
def test_whatever_a_server_does_and_borrowers_do_ids_keep_them_apart(
    echo_server: MakeServer, make_pool: MakePool, reuse: str
) -> None:
    server = echo_server(Whims())
    pool = make_pool(server, max_connections=4, acquire_timeout=30, reuse=reuse)
    foreign: list[Any] = []
    own = itertools.count()
    turns = size(40, 120)

    def work(worker: int) -> None:
        rng = random.Random(f"{worker} {reuse}")
        for turn in range(turns):
            asked = {f"{worker}/{turn}/{number}" for number in range(rng.choice([1, 1, 1, 3]))}
            with contextlib.suppress(TimeoutError, ZeroDivisionError), pool.acquire("/", 30) as conn:
                manner = rng.random()
                for number in sorted(asked):
                    if manner < 0.6:
                        got = [conn.request({"id": number}, 0.02)]
                        assert got == [{"id": number}]
                    else:
                        conn.send({"id": number})
                        got = []
                if manner > 0.8:
                    got = [conn.recv(0.02) for _ in asked]
                elif manner > 0.7:
                    raise ZeroDivisionError
                foreign.extend(reply for reply in got if "id" in reply and reply["id"] not in asked)
                next(own)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert foreign == []
    assert next(own) > 8 * turns / 2
    assert pool.stats().reuses > 8 * turns / 4


# --- a request and its id


def _leave_it_to_others(conn: Any) -> None:
    """A `reset` that lets the pool lend what has replies to come."""


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"reuse": "quiet"}, {"reset": _leave_it_to_others}])
@pytest.mark.parametrize("receive", ["request", "recv", "iterate"])
def test_a_late_answer_reaches_no_lease_without_ids(
    echo: EchoServer, make_pool: MakePool, options: dict[str, Any], receive: str
) -> None:
    pool = make_pool(echo, max_connections=1, **options)
    with pool.acquire("/late") as conn:
        conn.send({"id": 1, "delay": 0.3})
        first = conn.id
    with pool.acquire("/late") as conn:
        assert conn.id == first
        if receive == "request":
            assert conn.request({"mine": 1}, 5) == {"mine": 1}
        else:
            conn.send({"mine": 1})
            assert (conn.recv(5) if receive == "recv" else next(iter(conn))) == {"mine": 1}


def test_what_is_unread_goes_to_the_next_lease_with_reuse_always(
    server: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(server, max_connections=1, reuse="always")
    with pool.acquire("/late") as conn:
        conn.send({"id": 1, "delay": 0.2})
    with pool.acquire("/late") as conn:
        assert conn.recv(5)["id"] == 1


def test_an_answer_that_configure_did_not_wait_for_reaches_no_lease_without_ids(make_pool: MakePool) -> None:
    with EchoServer() as server:
        pool = make_pool(server, configure=lambda conn: conn.send({"id": "login"}))
        assert pool.request("/", {"mine": 1}, 5) == {"mine": 1}


def _after_a_push(conn: Connection) -> None:
    """Push once, then answer with what came."""
    for message in conn:
        conn.send('{"push": 1}')
        conn.send(message)


def test_large_ids_that_follow_each_other_are_told_apart(make_pool: MakePool) -> None:
    with EchoServer(_after_a_push) as pushing, make_pool(pushing).acquire("/") as conn:
        for number in range(2**60, 2**60 + 8):  # as snowflakes do
            assert conn.request({"id": number}, 5) == {"id": number}


@pytest.mark.parametrize(("sent", "answer"), [(7, "7.0"), (7.0, "7"), (100, "1.00e+02"), (-0.0, "0")])
def test_a_service_may_write_a_number_in_another_way(make_pool: MakePool, sent: float, answer: str) -> None:
    def handler(conn: Connection) -> None:
        for _ in conn:
            conn.send('{"push": 1}')
            conn.send(f'{{"id": {answer}, "ok": true}}')

    with EchoServer(handler) as server, make_pool(server).acquire("/") as conn:
        assert conn.request({"id": sent}, 5)["ok"]


@pytest.mark.parametrize("mark", ["\n ", "\ufeff"])
def test_a_reply_in_bytes_may_begin_with_blanks_or_a_mark(make_pool: MakePool, mark: str) -> None:
    def handler(conn: Connection) -> None:
        for message in conn:
            conn.send('{"push": 1}')
            conn.send(f"{mark}{message}".encode())

    with EchoServer(handler) as server, make_pool(server).acquire("/") as conn:
        assert conn.request({"id": 7}, 5) == {"id": 7}


def test_a_reply_in_text_with_a_byte_order_mark_is_found_too(make_pool: MakePool) -> None:
    def handler(conn: Connection) -> None:
        for message in conn:
            conn.send("\ufeff" + str(message))

    with EchoServer(handler) as server:
        with make_pool(server).acquire("/") as conn, pytest.raises(DecodeError, match="BOM"):
            conn.request({"id": 7}, 5)
        pool = make_pool(
            server, manager_kwargs={"deserializer": lambda text: json.loads(text.lstrip("\ufeff"))}
        )
        assert pool.request("/", {"id": 8}, 5) == {"id": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    "serializer",
    [
        lambda message: json.dumps({"envelope": message}),
        lambda message: b"{" + json.dumps(message).encode()[::-1],  # as good as encrypted
        lambda message: json.dumps(message | {"id": None}),
    ],
)
def test_the_id_that_counts_is_the_one_that_goes_out(make_pool: MakePool, serializer: Any) -> None:
    with EchoServer() as server:
        pool = make_pool(server, manager_kwargs={"serializer": serializer, "deserializer": lambda text: text})
        for number in range(3):  # no top-level id: the next message is the reply
            assert pool.request("/", {"id": number}, 5) == serializer({"id": number})
    with EchoServer(_after_a_push) as pushing:
        pool = make_pool(pushing, manager_kwargs={"serializer": lambda each: json.dumps({**each, "id": "a"})})
        assert pool.request("/", {"id": 7}, 5) == {"id": "a"}
        assert pool.request("/", {}, 5) == {"id": "a"}


@pytest.mark.parametrize("number", [7, "7", 1.5, -1, 0, "", 10**17])
@pytest.mark.parametrize("as_text", [False, True])
def test_a_request_gets_the_message_with_its_id_and_no_other(
    server: EchoServer, make_pool: MakePool, number: Any, as_text: bool
) -> None:
    strangers = [
        {"id": other} for other in (8, "8", True, None, [7], 1, 7.25, 2.5) if other != number or other is True
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


@pytest.mark.slow
def test_two_receivers_get_no_error_but_what_chance_gives_them(
    server: EchoServer, make_pool: MakePool
) -> None:
    stop = threading.Event()

    def receives(conn: Any) -> int:
        count = 0
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                conn.recv(0.01)
                count += 1
        return count

    pool = make_pool(server)
    with pool.acquire("/") as conn, ThreadPoolExecutor(1) as threads:
        receiving = threads.submit(receives, conn)
        answered = 0
        for number in range(200):
            with contextlib.suppress(TimeoutError):
                message = {"id": number, "say": [{"push": 1}, {"push": 2}, "me"]}
                assert conn.request(message, 0.05) == message
                answered += 1
        stop.set()
        assert receiving.result(10) > 0
        assert answered > 0


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
        conn.send({"id": 1, "say": []})
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


@pytest.mark.parametrize("others", [0, 1])
def test_an_id_that_came_back_twice_is_not_clean(
    server: EchoServer, make_pool: MakePool, others: int
) -> None:
    """As to a subscription: who stopped listening in the middle leaves the rest to come."""
    pool = make_pool(server)
    with pool.acquire("/") as conn:
        conn.send({"id": 1, "say": ["me", "me"]})
        for number in range(others):
            conn.send({"id": 2 + number})
        assert [conn.recv(5)["id"] for _ in range(2 + others)] == [1, 1, 2][: 2 + others]
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


@dataclasses.dataclass
class Reply:
    id: int
    result: int


def test_matching_comes_before_the_message_type(server: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(server, manager_kwargs={"message_type": Reply})
    with pool.acquire("/") as conn:
        message = {"id": 1, "say": [{"push": 1}, {"id": 1, "result": 2}]}
        assert conn.request(message, 5) == Reply(1, 2)
        with pytest.raises(DecodeError):
            conn.recv(5)
    assert pool.stats().discards == {}


def test_a_serializer_that_makes_no_json_leaves_counts(echo: EchoServer, make_pool: MakePool) -> None:
    options = {"serializer": lambda value: repr(value).encode("utf-16"), "deserializer": len}
    pool = make_pool(echo, manager_kwargs=options)
    for number in range(3):
        assert pool.request("/", {"id": number}, 5) > 0
    assert pool.stats().reuses == 2


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
    monkeypatch.setattr("jetsocket.exchange._ECHO_PATIENCE", 0.2)
    pool = make_pool(echo_server(drops_ids))
    with pytest.raises(TimeoutError, match=r"1 message came, none with id 7; .*match_ids=False") as raised:
        pool.request("/", {"id": 7}, timeout)
    assert raised.value.timeout == timeout  # with one set, no deadline changes
    assert ("0.2 s" if timeout is None else "0.6 s") in str(raised.value)


def test_where_ids_were_echoed_once_a_request_waits_for_ever(
    echo_server: MakeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.exchange._ECHO_PATIENCE", 0.05)

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


class Slow:
    """Echoes; where "slow" is in a message, only when told to, and pushes until then."""

    def __init__(self) -> None:
        self.go_on = threading.Event()

    def __call__(self, conn: Connection) -> None:
        for text in conn:
            if "slow" in text:
                while not (self.go_on.wait(0.01) or conn.echo_server.stopping.is_set()):
                    conn.send('{"push": 1}')
            conn.send(text)


def test_what_another_request_finds_out_meanwhile_counts(
    echo_server: MakeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.exchange._ECHO_PATIENCE", 0.5)
    slow = Slow()
    server = echo_server(slow)
    pool = make_pool(server)
    message = {"id": 1, "slow": True}
    asked = in_background(lambda: pool.request("/", message))
    wait_until(lambda: server.messages == 1)
    assert pool.request("/", {"id": 2}) == {"id": 2}
    with pytest.raises(FutureTimeout):
        asked.result(1)
    slow.go_on.set()
    assert asked.result(5) == message


def test_the_answer_to_another_message_of_the_lease_counts_as_an_echo(
    echo_server: MakeServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.exchange._ECHO_PATIENCE", 0.2)
    slow = Slow()
    pool = make_pool(echo_server(slow))
    with pool.acquire("/") as conn:
        conn.send({"id": 1})
        asked = in_background(lambda: conn.request({"id": 2, "slow": True}))
        with pytest.raises(FutureTimeout):
            asked.result(0.6)
        slow.go_on.set()
        assert asked.result(5) == {"id": 2, "slow": True}
        conn.discard()


def test_a_callback_is_not_told_of_times_that_it_did_not_have(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    told: list[TimeoutError] = []

    def ask(conn: Any) -> None:
        for use in (
            lambda: conn.request({"id": 1, "say": [{"push": 1}]}),
            lambda: conn.request({"id": 2, "say": [{"push": 1}]}, 60),
            lambda: conn.recv(60),
            lambda: conn.ping(60),
        ):
            try:
                use()
            except TimeoutError as error:
                told.append(error)
        raise told[0]

    server = echo_server(lambda conn: scripted(conn))
    pool = make_pool(server, configure=ask, manager_kwargs={"connect_timeout": 1.0})
    with pytest.raises(TimeoutError, match=r"configure\(\) had not ended .* within connect_timeout=1 s"):
        pool.acquire("/")
    assert "1 message came, none with id 1" in str(told[0])
    for error in told:
        assert "the time of the callback is over" in str(error)
        assert "60 s" not in str(error) and "10 s" not in str(error)
        assert error.timeout is None


def test_a_silent_service_is_waited_for(echo: EchoServer, make_pool: MakePool, monkeypatch: Any) -> None:
    monkeypatch.setattr("jetsocket.exchange._ECHO_PATIENCE", 0.01)
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
        with pytest.raises(TimeoutError, match="more messages than are kept unread") as raised:
            conn.request({"id": 1}, 30)
        assert "30 s" not in str(raised.value)  # it did not take that long
        assert conn.recv_raw(5) == "x" * 100_000


def floods_with(what: bytes) -> Callable[[socket.socket], None]:
    """Answers the first message, and the next one with `what`, as fast as it is taken, without end."""

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        sock.sendall(frame(1, read_client_frame(sock).payload))
        read_client_frame(sock)
        while True:
            sock.sendall(what * 2000)

    return script


@pytest.mark.slow
@pytest.mark.parametrize("what", [b'{"push": 1}', b'{"id": 1}'])
def test_a_request_ends_in_time_though_other_messages_come_without_end(
    raw_server: MakeRaw, make_pool: MakePool, what: bytes
) -> None:
    server = raw_server(floods_with(frame(1, what)))
    pool = make_pool(server, max_connections=1, manager_kwargs={"close_timeout": 0.1})
    assert pool.request("/", {"id": 1}, 5) == {"id": 1}
    with pool.acquire("/") as conn:
        began = monotonic()
        with pytest.raises(TimeoutError, match="messages came, none with id 2"):
            conn.request({"id": 2}, 0.5)
        assert monotonic() - began < 10  # it took a hundred seconds


@pytest.mark.slow
@pytest.mark.parametrize("receive", [lambda conn: conn.recv(0.5), next, list])
def test_a_lease_ends_where_answers_to_an_earlier_one_come_without_end(
    raw_server: MakeRaw, make_pool: MakePool, receive: Callable[[Any], Any]
) -> None:
    server = raw_server(floods_with(frame(1, b'{"id": 1}')))
    pool = make_pool(server, max_connections=1, manager_kwargs={"close_timeout": 0.1})
    assert pool.request("/", {"id": 1}, 5) == {"id": 1}
    with pool.acquire("/") as conn:
        conn.send({"id": 2})
        with pytest.raises(ConnectionClosedError, match="goes on and on answering"):
            receive(conn)
    assert pool.stats().discards == {"closed": 1}


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


@pytest.mark.parametrize("message", [{"id": "c"}, {"n": 3}])
def test_a_lease_that_moves_from_a_connection_that_owes_answers_is_accounted_on_the_new_one(
    echo_server: MakeServer, make_pool: MakePool, message: Any
) -> None:
    owed = []

    def answers_late(conn: Connection) -> None:
        for text in conn:
            if json.loads(text).get("id") in {"a", "b"}:
                owed.append(text)
            else:
                for each in [*owed, text]:
                    conn.send(each)

    server = echo_server(answers_late)
    pool = make_pool(server, max_connections=1, reuse="quiet")
    with pool.acquire("/") as conn:
        conn.send({"id": "a"})  # "quiet" keeps the connection, and it owes an answer
        wait_until(lambda: owed)
    with pool.acquire("/") as conn:
        first = conn.id
        server.cut_all()
        owed.clear()
        wait_until(lambda: conn._told().wire.tend() and not conn.is_connected)
        conn.send({"id": "b"})
        assert conn.id != first
        wait_until(lambda: owed)
    with pool.acquire("/") as conn:
        assert conn.id != first
        conn.send(message)
        assert conn.recv(5) == message
    assert pool.stats().discards["late reply"] == 1


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


# --- an exception that strikes a send, or a receive


class Alarm(Exception):
    """What a signal handler raises."""


class Late(TimeoutError):
    """One that looks like the library's own."""

    def __init__(self) -> None:
        super().__init__("late", operation="mine", timeout=None)


class StrikeAt:
    """A trace function that raises at the so-manieth step within the library.

    A step is a bytecode, or a line where Python (from 3.12 on) tells of bytecodes only now and then.
    """

    def __init__(self, left: int, kind: type[Exception]) -> None:
        self.left = left
        self.kind = kind

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        if event == "call":
            frame.f_trace_opcodes = True
            return self if frame.f_code.co_filename.startswith(PACKAGE) else None
        if event in ("opcode", "line", "return") and not changes_what_is_handled(frame):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise self.kind
        return self


PACKAGE = str(Path(jetsocket.__file__).parent)


STRIDE = size(7, 1)
"""Of so many steps one is struck. It begins anywhere: one run after the other comes to all."""


@pytest.mark.deep
@pytest.mark.slow
@pytest.mark.parametrize(("tagged", "kind"), [(False, Alarm), (True, Alarm), (False, Late)])
def test_whatever_strikes_a_send_the_next_borrower_gets_its_own_reply(
    echo_server: MakeServer, make_pool: MakePool, tagged: bool, kind: type[Exception]
) -> None:
    """Wherever a handler's exception comes, the borrower catching it: the message has left or not."""
    gate = threading.Event()

    def answers_when_told(conn: Connection) -> None:
        for text in conn:
            assert gate.wait(10)
            conn.send(text)

    pool = make_pool(echo_server(answers_when_told), max_connections=1)
    for step in itertools.count(random.randint(1, STRIDE), STRIDE):
        first, second = ({"id": f"{which} {step}"} if tagged else [which, step] for which in "ab")
        gate.clear()
        conn = pool.acquire("/", 5)
        struck = StrikeAt(step, kind)
        sys.settrace(struck)
        try:
            conn.send(first)
        except kind:
            pass
        finally:
            sys.settrace(None)
        conn.release()
        with pool.acquire("/", 5) as conn:
            conn.send(second)
            gate.set()
            assert conn.recv(5) == second, f"struck at step {step}"
        if struck.left > 0:
            break
    assert step > 100


def answers_with_the_next(conn: Connection) -> None:
    """Answers each message when the next one comes; those with an id but that of `configure` at once."""
    owed = ""
    for text in conn:
        if owed:
            conn.send(owed)
        owed, message = "", json.loads(text)
        if isinstance(message, dict) and message["id"] != "of configure":
            conn.send(text)
        else:
            owed = text


class StrikeAtCall(StrikeAt):
    """Raises at the so-manieth call of a function of the library's."""

    def __call__(self, frame: FrameType, event: str, _arg: object) -> Any:
        if frame.f_code.co_filename.startswith(PACKAGE):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                raise self.kind


@pytest.mark.slow
@pytest.mark.parametrize("make", [lambda conn: conn.recv, lambda conn: iter(conn).__next__])
@pytest.mark.parametrize("came", ["a late answer", "an answer"])
def test_whatever_strikes_a_receive_the_next_borrower_gets_its_own_reply(
    echo_server: MakeServer, make_pool: MakePool, came: str, make: Callable[[Any], Callable[[], Any]]
) -> None:
    """What came with an id, and was lost to a handler's exception, is not taken for an answer to another."""
    pool = make_pool(
        echo_server(answers_with_the_next),
        max_connections=1,
        configure=lambda conn: conn.send({"id": "of configure"}) if came == "a late answer" else None,
        manager_kwargs={"recv_timeout": 0.05},
    )
    for step in itertools.count(1):
        conn = pool.acquire("/", 5)
        if came == "an answer":
            conn.send({"id": f"a {step}"})
        conn.send(["has no id, and its reply is to come", step])
        wait_until(lambda conn=conn: conn._told().wire.tend() and conn._told().wire.unread)  # type: ignore[misc]  # mypy can't infer it
        receive, struck = make(conn), StrikeAtCall(step, Alarm)
        sys.settrace(struck)
        try:
            with contextlib.suppress(TimeoutError, Alarm):
                receive()
        finally:
            sys.settrace(None)
        conn.release()
        with pool.acquire("/", 5) as conn:
            conn.send({"id": f"b {step}"})
            assert conn.recv(5) == {"id": f"b {step}"}, f"struck at step {step}"
        state_of(pool).known.unasked.clear()  # or counts would not be believed any more
        if struck.left > 0:
            break
    assert step > 20
