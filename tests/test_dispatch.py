"""Each message of a connection to its asker: what came twice, late, too early, or as something else.

Also tests: `routing`, `sending`.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    DecodeError,
    InvalidStateError,
    ReplyError,
    TimeoutError,
)
from jetsocket.correlation import Asked, NewId
from jetsocket.correlation_calls import Part
from jetsocket.dispatch import Dispatcher
from jetsocket.pending_requests import Request
from jetsocket.sending import MOST_GIVEN_UP
from jetsocket.subscription_queue import Feed
from jetsocket.wire.websocket import WebSocket
from tests import service_fixtures
from tests.servers import Connection, EchoServer, wait_until
from tests.services import MakePool, Plain, Service

server = service_fixtures.server
MakeServer = Callable[..., EchoServer]
LIBRARY = os.path.dirname(jetsocket.__file__)


@pytest.fixture
def pool(server: EchoServer, make_pool: MakePool) -> ConnectionPool[Any]:
    return make_pool(server, correlation=Plain(), max_connections=1)


def dispatcher(conn: Any) -> Dispatcher:
    found = conn._entry.dispatcher
    assert isinstance(found, Dispatcher)
    return found


def part(message: Any) -> Part:
    return Part(None, message)


def hand_out(where: Dispatcher, *messages: Any) -> None:
    where._parts.extend(part(message) for message in messages)
    where._hand_out(None)


def sent(conn: Any, message: Any, feed: Feed | None = None) -> Request:
    """A request that has left, and whose reply no thread waits for."""
    request = Request(feed)
    dispatcher(conn).send(request, message, None, conn._borrower)
    assert request.asked is not None
    return request


# --- replies


def test_an_id_that_is_not_quite_the_same_answers_no_one(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        request = sent(conn, {"do": "never"})
        hand_out(dispatcher(conn), {"id": True}, {"id": "1"}, {"id": [1]}, {"id": None}, {})
        assert not request.has_mail
        hand_out(dispatcher(conn), {"id": 1.0})
        assert request.has_mail


def test_all_replies_to_a_request_that_was_given_up_are_late(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        with pytest.raises(TimeoutError):
            conn.request({"do": "never"}, 0.05)
        where = dispatcher(conn)
        hand_out(where, {"id": 1, "part": 1}, {"id": 1, "part": 2})
        assert len(where.given_up) == 1
        hand_out(where, {"id": 1})
        assert where.given_up == {}
        assert (where.late_replies, where.unasked) == (3, 0)


def test_what_is_answered_while_it_is_given_up_does_not_count_as_open(pool: ConnectionPool[Any]) -> None:
    """The last reply is handed out while the thread that asked is about to leave, in either order."""
    with pool.acquire("/") as conn:
        where = dispatcher(conn)

        class Meanwhile(dict[Any, Any]):
            """Another thread does something just before this one strikes the request off."""

            def pop(self, *args: Any) -> Any:
                others, where._under_way = where._under_way, dict(self)
                meanwhile()
                where._under_way = others
                return super().pop(*args)

        request = sent(conn, {"do": "never"})
        where._under_way = Meanwhile(where._under_way)
        meanwhile: Callable[[], None] = lambda: hand_out(where, {"id": 1})  # noqa: E731  # it changes below
        where.give_up(request)
        assert (request.is_ended, where.given_up, where.in_flight) == (True, {}, 0)

        where._under_way = {}
        other = sent(conn, {"do": "never"})
        where._under_way = Meanwhile(where._under_way)
        meanwhile = lambda: where.give_up(other)  # noqa: E731  # likewise
        hand_out(where, {"id": 2})
        assert (other.is_ended, where.given_up, where.in_flight) == (True, {}, 0)
        where._under_way = {}
        assert conn.request({"n": 1}, 5)["n"] == 1


class Joined(Plain):
    """A request returns which parts have come."""

    def result(self, replies: Sequence[Any], asked: Asked) -> Any:
        return [reply.get("part", "last") for reply in replies]


def test_of_several_replies_the_one_that_a_worker_has_handed_out_counts(
    server: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may do so just before the thread that asked begins to read."""
    as_it_is = Dispatcher.await_reply

    def late(where: Dispatcher, request: Request, *args: Any) -> Any:
        hand_out(where, {"id": 2, "part": 1})
        return as_it_is(where, request, *args)

    with make_pool(server, correlation=Joined()).acquire("/") as conn:
        assert conn.request({"do": "echo"}, 5) == ["last"]
        monkeypatch.setattr(Dispatcher, "await_reply", late)
        assert conn.request({"do": "echo"}, 5) == [1, "last"]


def test_what_answers_a_request_again_is_for_no_later_lease(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    """Nor is what follows the last reply to what an earlier lease has sent itself."""
    with pool.acquire("/") as conn:
        assert conn.request({"n": "first"}, 5)["n"] == "first"  # with the id 1
        conn.send({"id": 7, "n": "first"})
        assert conn.recv(5)["n"] == "first"
    again = [{"id": 1, "n": "again"}, {"id": 7, "n": "again"}]
    with pool.acquire("/") as conn:
        conn.send({"id": 8})
        assert conn.recv(5) == {"id": 8}
        hand_out(dispatcher(conn), *again, {"note": 1})
        assert conn.recv(5) == {"note": 1}
        assert dispatcher(conn).unasked == 2
    with pool.acquire("/") as conn, conn.subscribe(None) as feed:
        hand_out(dispatcher(conn), *again, {"note": 2})
        assert feed.get(5) == {"note": 2}
    assert server.opened == 1
    with pool.acquire("/") as conn:
        conn.send({"id": 1, "n": "by hand"})  # over another connection
        assert conn.recv(5)["n"] == "by hand"
        assert conn.request({"n": 1}, 5)["id"] == 2**30
    assert server.opened == 2
    with pool.acquire("/") as conn:
        conn.send({"id": 9})
        with pytest.raises(ValueError, match="another id"):
            conn.send({"id": 2**30})
        assert conn.recv(5) == {"id": 9}
        assert conn.request({"n": 1}, 5)["id"] == 2**30 + 1
        conn.send({"id": 2**30 + 1})  # what it has asked itself
        assert conn.recv(5) == {"id": 2**30 + 1}


def test_of_what_was_answered_the_last_keys_are_remembered(
    pool: ConnectionPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("routing", "dispatch"):
        monkeypatch.setattr(f"jetsocket.{module}.MOST_NOTED", 5)
    with pool.acquire("/") as conn:
        where = dispatcher(conn)
        for number in range(1, 40):
            assert conn.request({"n": number}, 5)["n"] == number
            assert len(where.answered) <= 10
            assert list(where.answered)[-5:] == list(range(max(1, number - 4), number + 1))


class Struck(BaseException):
    pass


@pytest.mark.parametrize("kind", ["reply", "push", "held", "raw"])
def test_what_is_handed_out_once_more_after_a_strike_reaches_none_a_second_time(
    pool: ConnectionPool[Any], kind: str
) -> None:
    class Striking(deque[Part]):
        struck = False

        def popleft(self) -> Part:
            if not self.struck:
                self.struck = True
                raise Struck
            return super().popleft()

    with pool.acquire("/") as conn:
        where = dispatcher(conn)
        request, message = sent(conn, {"do": "never"}), {"note": 1}
        if kind == "held":
            where._subscribing[request] = None
        elif kind == "raw":
            conn.send({"do": "never"})
        where._parts = Striking()
        with pytest.raises(Struck):
            hand_out(where, {"id": 1} if kind == "reply" else message)
        where._hand_out(None)
        counts = (len(request.arrived), where.unasked, len(where._held), where.raw and len(where.raw.arrived))
        expected = {"reply": (1, 0, 0, None), "push": (0, 1, 0, None), "held": (0, 0, 1, None)}
        assert counts == expected.get(kind, (0, 0, 0, 1))
        where._end_subscribe(request)
        where._hand_out(None)
        assert where.unasked == (kind in ("push", "held"))
        conn.discard()


def test_a_strike_behind_a_reply_leaves_no_request_under_way(pool: ConnectionPool[Any]) -> None:
    class Striking(dict[Any, Any]):
        def pop(self, *args: Any) -> Any:
            where._under_way = dict(self)
            raise Struck

    with pool.acquire("/") as conn:
        where = dispatcher(conn)
        request = sent(conn, {"do": "never"})
        where._under_way = Striking(where._under_way)
        with pytest.raises(Struck):
            hand_out(where, {"id": 1})
        where._hand_out(None)
        where.give_up(request)  # as its thread does, whatever it got
        assert (len(request.arrived), where.in_flight, where.given_up, where.unasked) == (1, 0, {}, 0)


def count_events(call: Callable[[], object], strike_at: int) -> int:
    """At how many places an exception may strike `call`: where a function begins, and behind each call."""
    left = strike_at

    def profile(frame: FrameType, event: str, arg: object) -> None:
        nonlocal left
        if event != "c_call" and frame.f_code.co_filename.startswith(LIBRARY):
            left -= 1
            if left < 0:
                sys.setprofile(None)
                raise Struck

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return strike_at - left


@pytest.mark.slow
@pytest.mark.parametrize("ids", [(1, 2), (2, 1)], ids=["own first", "own last"])
def test_whatever_strikes_as_replies_are_handed_out_each_reaches_its_asker_once(
    pool: ConnectionPool[Any], ids: tuple[int, int]
) -> None:
    """At each call and return of the way that nearly every reply takes, which knows no second try."""
    strike_at, events, push = 0, 1, '{"note": 1}'
    while strike_at < events:
        with pool.acquire("/") as conn:
            where, strike_at = dispatcher(conn), strike_at + 1
            unasked = where.unasked
            own, other = (sent(conn, {"do": "never"}) for _ in range(2))
            assert own.asked is not None
            assert other.asked is not None
            keys = {1: own.asked.key, 2: other.asked.key}
            frames = deque[str | bytes]([*(f'{{"id": {keys[each]}}}' for each in ids), push])
            read = where.matching.read_one
            assert read is not None
            try:
                count_events(lambda: where._hand_out_replies(frames, read), strike_at)  # noqa: B023
                events = strike_at
            except Struck:
                events = strike_at + 1
            where.give_up(own)  # as its thread does, whatever it got
            where._take(frames)
            where._hand_out(None)
            got = [len(each.arrived) for each in (own, other)]
            assert got in ([1, 1], [0, 1]), f"at {strike_at}: {got}"
            assert other.is_ended
            where.give_up(other)
            rest = (
                where.in_flight,
                where.given_up,
                where.unasked - unasked,
                list(where._parts),
                list(frames),
            )
            assert rest == (0, {}, 1, [], []), f"at {strike_at}: {rest}"
            conn.discard()
    assert strike_at > 20


def test_whatever_strikes_a_request_of_a_lease_nothing_of_it_is_left(
    server: EchoServer, pool: ConnectionPool[Any]
) -> None:
    """At each call and return of its whole way: its reply is late then, and no other one's."""
    strike_at, events, went_on = 0, 1, 0
    while strike_at < events:
        with pool.acquire("/") as conn:
            where, strike_at = dispatcher(conn), strike_at + 1
            assert conn.request({"n": 0}, 5)["n"] == 0
            late, messages = where.late_replies, server.messages
            try:
                count_events(lambda: conn.request({"n": 1}, 5), strike_at)
                events = strike_at
            except Struck:
                events = strike_at + 1
            assert where.in_flight == 0, f"at {strike_at}"
            waits, wire = len(where.given_up), where.wire
            if wire.lock.locked() or wire.readlock.locked():  # struck as it had just got it: see `lock_watch`
                conn.discard()
                continue
            try:
                assert conn.request({"n": 2}, 5)["n"] == 2, f"at {strike_at}"
            except ConnectionClosedError as error:  # it struck between the socket and what takes in
                assert "interrupted half-way" in str(error)  # noqa: PT017
                continue
            went_on += 1
            assert where.is_settled, f"at {strike_at}"
            late, has_left = where.late_replies - late, server.messages - messages == 2
            assert late == (waits if has_left else 0), f"at {strike_at}"
            assert (where.unasked, where._parts) == (0, deque()), f"at {strike_at}"
    assert went_on > 50


def test_what_is_pushed_before_a_reply_is_handed_out_in_order(
    server: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed: list[Any] = []
    pool = make_pool(server, correlation=Plain(), on_push=lambda uri, message: pushed.append(message["n"]))
    with pool.acquire("/") as conn:
        for turn in range(3):
            say = [{"n": 2 * turn}, {"n": 2 * turn + 1}]
            assert conn.request({"do": "push", "say": say, "n": turn}, 5)["n"] == turn
    wait_until(lambda: pushed == list(range(6)), message=str(pushed))


def test_too_many_that_were_given_up_end_the_connection(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        where = dispatcher(conn)
        for _ in range(MOST_GIVEN_UP):
            where.give_up(sent(conn, {"do": "never"}))
        assert conn.request({"n": 1}, 5)["n"] == 1
        where.give_up(sent(conn, {"do": "never"}))
        with pytest.raises(ConnectionClosedError, match="given up"):
            conn.request({"n": 1}, 5)


def test_what_could_not_be_sent_is_not_waited_for(
    pool: ConnectionPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server takes no more, and not a byte of the request has left: no reply to it comes."""

    def write(self: WebSocket, *_args: Any, **_names: Any) -> None:
        raise TimeoutError("it takes no more", operation="send")

    with pool.acquire("/") as conn:
        assert conn.request({"n": 1}, 5)["n"] == 1
        where = dispatcher(conn)
        with monkeypatch.context() as patched:
            patched.setattr(WebSocket, "_write", write)
            asks = (conn.request, conn.stream, conn.subscribe, lambda each: conn.request_many([each])[0])
            for ask in asks:
                if ask is asks[-1]:
                    assert isinstance(ask({"n": 2}), TimeoutError)
                else:
                    with pytest.raises(TimeoutError):
                        ask({"n": 2})
                assert (where.given_up, where.in_flight) == ({}, 0)
        assert conn.request({"n": 3}, 5)["n"] == 3
        with pytest.raises(TimeoutError):
            conn.request({"do": "never"}, 0.01)
        assert len(where.given_up) == 1
    assert pool.stats().total_connections == 1


def test_a_lease_that_is_released_ends_the_waiting_of_its_other_threads(pool: ConnectionPool[Any]) -> None:
    conn, ended = pool.acquire("/"), list[BaseException]()

    def ask() -> None:
        with pytest.raises(InvalidStateError) as raised:
            conn.request({"do": "never"})
        ended.append(raised.value)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_until(lambda: pool.stats().in_flight == 3)
    conn.release()
    for thread in threads:
        thread.join(10)
    assert len(ended) == 3


@pytest.mark.parametrize("broken", ["key", "is_last", "topic", "answer"])
@pytest.mark.parametrize("raised", [ReplyError("x"), DecodeError("x"), KeyError("x")])
def test_whatever_a_correlation_raises_costs_only_that_message(
    server: EchoServer, make_pool: MakePool, broken: str, raised: Exception
) -> None:
    """An error of ours, too: else each who reads after that would get it."""

    def fail(self: Any, message: Any, *rest: Any) -> Any:
        if "bad" in str(message):
            raise raised
        return getattr(Plain, broken)(self, message, *rest)

    pool = make_pool(server, correlation=type("Broken", (Plain,), {broken: fail})())
    say = [{"note": "bad", "id": 1}] if broken == "is_last" else ["bad"]
    for number in range(2):
        assert pool.request("/", {"do": "push", "say": say, "n": number}, 5)["n"] == number
    assert server.opened == 1


# --- by oneself


@pytest.mark.parametrize("max_in_flight", [1, 8])
def test_a_reply_over_which_a_correlation_raises_does_not_count(
    server: EchoServer, make_pool: MakePool, max_in_flight: int
) -> None:
    counted: list[int] = []

    class Choosy(Plain):
        def is_last(self, message: Any, asked: Asked) -> bool:
            if message.get("part") == 0:
                raise ValueError
            counted.append(asked.replies)
            return super().is_last(message, asked)

    pool = make_pool(server, correlation=Choosy(), max_connections=1, max_in_flight=max_in_flight)
    assert "part" not in pool.request("/", {"do": "parts", "parts": 3}, 5)
    with pool.acquire("/") as conn:
        request = sent(conn, {"do": "never"})
        assert request.asked is not None
        dispatcher(conn).give_up(request)
        key = request.asked.key
        hand_out(dispatcher(conn), {"id": key, "part": 0}, {"id": key, "part": 1}, {"id": key})
    assert counted == [1, 2, 3, 1, 2]
    assert pool.stats().late_replies == 2


def test_a_message_whose_id_is_still_to_be_answered_to_another_goes_over_another_connection(
    server: EchoServer, make_pool: MakePool
) -> None:
    """Or the late reply would reach it."""
    pool = make_pool(server, correlation=Plain(), max_connections=1)
    with pool.acquire("/") as conn, pytest.raises(TimeoutError):
        conn.request({"do": "late", "after": 0.3, "n": "first"}, 0.05)
    with pool.acquire("/") as conn:
        conn.send({"id": 1, "n": "second"})
        assert conn.recv(5)["n"] == "second"
    assert server.opened == 2
    with pool.acquire("/") as conn:
        conn.send({"n": 1})
        with pytest.raises(TimeoutError):
            conn.request({"do": "never", "n": "third"}, 0.05)
        with pytest.raises(ValueError, match="another id"):
            conn.send({"id": 2**30})  # where ours go on behind an id that a lease has chosen
        conn.recv(5)


def test_no_request_gets_an_id_that_a_lease_has_sent(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        for number in (1, 2, 4):
            conn.send({"id": number, "do": "never"})
        assert [conn.request({"n": 0}, 5)["id"] for _ in range(3)] == [2**30 + n for n in range(3)]
        conn.send({"id": 2**30 + 3, "do": "never"})
        assert conn.request({"n": 0}, 5)["id"] == 2**30 + 4


def test_what_a_lease_receives_comes_in_order_and_is_bounded(
    pool: ConnectionPool[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.routing._MOST_RAW", 5)
    with pool.acquire("/") as conn:
        conn.send({"id": 100, "do": "push", "say": [{"note": n} for n in range(7)]})
        assert conn.request({"n": 1}, 5)["n"] == 1  # reads all that comes before it
        assert [conn.recv(5).get("note") for _ in range(6)] == [0, 1, 2, 3, 4, None]
        assert dispatcher(conn).unasked == 2


def test_what_cannot_be_read_is_for_the_one_who_sends_by_himself(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        conn.send({"n": 1})
        dispatcher(conn)._parts.extend(dispatcher(conn).matching.parts("{", None))
        dispatcher(conn)._hand_out(None)
        with pytest.raises(DecodeError) as raised:
            conn.recv(5)
        assert raised.value.payload == "{"
        assert conn.recv(5) == {"n": 1}


def test_a_frame_of_several_messages_is_several(server: EchoServer, make_pool: MakePool) -> None:
    class Split(Plain):
        def split(self, message: Any) -> Any:
            return message if isinstance(message, list) else (message,)

    pool = make_pool(server, correlation=Split())
    with pool.acquire("/") as conn:
        conn.send({"id": 9, "do": "push", "say": [[{"note": 1}, {"id": 2**30, "n": "mine"}, {"note": 2}]]})
        assert conn.request({"do": "never"}, 5)["n"] == "mine"
        assert [conn.recv(5), conn.recv_raw(5)] == [{"note": 1}, '{"note": 2}']
        assert conn.recv(5)["id"] == 9


# --- subscriptions


def test_what_comes_while_two_subscribe_is_held_until_both_are_done(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        where = dispatcher(conn)
        feeds = [Feed(10, "error", "x") for _ in range(2)]
        message = {"do": "subscribe"}
        requests = [sent(conn, {**message, "topic": f"t{n}"}, feeds[n]) for n in range(2)]
        where._read_what_is_there()
        for request in requests:  # once more, in case the replies had come
            where.topics.close(request.feed or feeds[0])
            where._under_way[request.asked.key if request.asked else 0] = request
            where._subscribing[request] = None
            request.is_ended = False
        keys = [request.asked.key for request in requests if request.asked]
        hand_out(where, {"topic": "t1", "n": 1}, {"topic": "t0", "n": 2}, {"note": 3})
        assert where.unasked == 0
        hand_out(where, {"id": keys[0], "opened": "t0"}, {"topic": "t0", "n": 4})
        assert [each["n"] for each in feeds[0].arrived] == [2, 4]  # in order
        where.give_up(requests[1])  # its thread is interrupted; only who reads hands out
        assert where.unasked == 0
        hand_out(where)
        assert where.unasked == 2
        for feed in feeds:
            where.topics.close(feed)
        conn.discard()


def test_topics_of_a_reply_that_cannot_be_told_fail_the_subscribe(
    server: EchoServer, make_pool: MakePool
) -> None:
    class Broken(Plain):
        def topic_of(self, sent: Any, reply: Any) -> Any:
            return None if reply is None else reply["no such thing"]

    pool = make_pool(server, correlation=Broken(), max_connections=1)
    with pytest.raises(KeyError, match="no such thing"):
        pool.subscribe("/", {"do": "subscribe", "topic": "t"})
    assert pool.stats().discards == {"subscribed": 1}


def test_a_message_without_a_reply_that_names_no_topic_subscribes_to_nothing(
    pool: ConnectionPool[Any],
) -> None:
    with pytest.raises(ValueError, match="names no topic"):
        pool.subscribe("/", {"do": "notify"})


def test_several_topics_are_one_subscription(server: EchoServer, make_pool: MakePool) -> None:
    class Two(Plain):
        def topic_of(self, sent: Any, reply: Any) -> Any:
            return ["a", "b"] if sent.get("do") == "listen" else None

        def topic(self, message: Any) -> Any:
            return message.get("topics")

    pool = make_pool(server, correlation=Two())
    with pool.acquire("/") as conn, conn.subscribe({"do": "listen"}) as subscription:
        assert subscription.topic == ["a", "b"]
        say = [{"topics": ["a", "b"], "n": 1}, {"topics": ["b"], "n": 2}, {"topics": ["c"], "n": 3}]
        conn.request({"do": "push", "say": say}, 5)
        assert [subscription.get(0)["n"], subscription.get(0)["n"]] == [1, 2]
        with pytest.raises(TimeoutError):
            subscription.get(0)


class Confirmed(Plain):
    """The reply to each subscribe names its topic."""

    def topic_of(self, sent: Any, reply: Any) -> Any:
        return None if reply is None else reply["opened"]


def test_the_end_of_an_old_subscription_is_none_of_one_that_is_under_way(
    server: EchoServer, make_pool: MakePool
) -> None:
    """The server has ended the one before it confirmed the other, of the same topic."""

    with make_pool(server, correlation=Confirmed()).acquire("/") as conn:
        where = dispatcher(conn)
        feeds = [Feed(10, "error", "ws://h/") for _ in range(2)]
        old, new = (sent(conn, {"do": "never"}, feed).asked for feed in feeds)
        assert old is not None
        assert new is not None
        hand_out(where, {"id": old.key, "opened": "a"}, {"topic": "a", "n": 1})
        hand_out(where, {"topic": "a", "end": True}, {"topic": "a", "n": 2})
        assert [feed.is_ended for feed in feeds] == [True, False]
        hand_out(where, {"id": new.key, "opened": "a"}, {"topic": "a", "n": 3})
        got = [[each["n"] for each in feed.arrived] for feed in feeds]
        assert (got, feeds[1].is_ended, where.unasked) == ([[1], [1, 2, 3]], False, 0)
        conn.discard()


def books(conn: Connection) -> None:
    """What was subscribed so often comes before each confirmation; and what ends it is confirmed."""
    times: dict[str, int] = {}
    for text in conn:
        message = json.loads(text)
        topic, reply = message["topic"], {"id": message["id"]}
        if message["do"] == "subscribe":
            times[topic] = times.get(topic, 0) + 1
            conn.send(json.dumps({"topic": topic, "n": times[topic]}))
            reply["opened"] = topic
        conn.send(json.dumps(reply))


def test_what_comes_before_the_reply_is_not_lost_where_the_topic_was_subscribed_before(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(books), correlation=Plain(), max_connections=1)
    message = {"do": "subscribe", "topic": "book"}
    for n in range(1, 4):
        with pool.subscribe("/", message, timeout=5) as book:
            assert book.get(5) == {"topic": "book", "n": n}
    with pool.acquire("/") as conn:
        for n in range(4, 7):
            with conn.subscribe(message, timeout=5) as book:
                assert book.get(5) == {"topic": "book", "n": n}
    assert (pool.stats().total_connections, pool.stats().unasked_messages) == (1, 0)


def test_what_comes_before_the_reply_is_not_lost_where_another_subscription_has_the_topic(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(books), correlation=Plain(), max_in_flight=8)
    message = {"do": "subscribe", "topic": "book"}
    with pool.subscribe("/", message, timeout=5) as first, pool.subscribe("/", message, timeout=5) as second:
        assert [first.get(5)["n"], first.get(5)["n"], second.get(5)["n"]] == [1, 2, 2]
        for each in (first, second):
            with pytest.raises(TimeoutError):
                each.get(0)
    assert pool.stats().total_connections == 1


class Unconfirmed(Plain):
    """What ends a subscription has no reply."""

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Any]:
        return (dict(message), None) if message["do"] == "unsubscribe" else super().tag(message, new_id)


def stragglers(conn: Connection) -> None:
    """What was subscribed first pushes until what ends it is read, which takes a while, and comes late."""
    old = None
    for text in conn:
        message = json.loads(text)
        if message["do"] == "subscribe":
            if old is not None:
                conn.send(json.dumps({"topic": "book", "n": old}))
            old = message["id"]
            conn.send(json.dumps({"id": old, "opened": "book"}))
            conn.send(json.dumps({"topic": "book", "n": old}))


def test_what_an_old_subscription_pushes_until_the_server_has_read_its_end_is_none_of_the_next(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo_server(stragglers), correlation=Unconfirmed(), max_connections=1)
    for n in (1, 2, 3):
        with (
            pool.acquire("/") as conn,
            conn.subscribe({"do": "subscribe", "topic": "book"}, timeout=5) as book,
        ):
            assert book.get(5)["n"] == (1, 3, 5)[n - 1]
    assert pool.stats().total_connections == 1


def test_what_has_ended_is_dropped_where_another_topic_is_subscribed(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        where, feed = dispatcher(conn), Feed(10, "error", "ws://h/")
        where.topics.open(old := Feed(10, "error", "ws://h/"), ["old"])
        where.topics.close(old)
        request = sent(conn, {"do": "never", "topic": "new"}, feed)
        where._subscribing[request] = None
        hand_out(where, {"topic": "old", "n": 1}, {"topic": "old", "end": True}, {"topic": "new", "n": 2})
        where.topics.open(feed, ["new"])
        where._end_subscribe(request)
        hand_out(where)
        assert ([each["n"] for each in feed.arrived], where.unasked) == ([2], 0)
        conn.discard()


def test_what_came_before_a_topic_is_subscribed_anew_is_none_of_it(
    echo_server: MakeServer, make_pool: MakePool
) -> None:
    message = {"do": "subscribe", "topic": "book"}
    with make_pool(echo_server(books), correlation=Plain()).acquire("/") as conn:
        for n in (1, 2, 3):
            with conn.subscribe(message, timeout=5) as book:
                assert book.get(5)["n"] == n
            dispatcher(conn)._parts.append(part({"topic": "book", "n": "late"}))  # read, and not handed out


def test_whatever_strikes_as_a_subscription_opens_what_came_before_reaches_it_once(
    server: EchoServer, make_pool: MakePool
) -> None:
    with make_pool(server, correlation=Confirmed()).acquire("/") as conn:
        where, strike_at = dispatcher(conn), 0
        while True:
            feed, other = (Feed(10, "error", "ws://h/") for _ in range(2))
            where.topics.open(other, ["a"])
            asked = sent(conn, {"do": "never"}, feed).asked
            assert asked is not None
            where._parts.extend(map(part, [{"topic": "a", "n": 1}, {"topic": "a", "n": 2}]))
            where._parts.append(part({"id": asked.key, "opened": "a"}))
            try:
                count = count_events(lambda: where._hand_out(None), strike_at)
            except Struck:
                count = strike_at + 1
                where._hand_out(None)
            got = [[each["n"] for each in box.arrived] for box in (other, feed)]
            assert (strike_at, got, feed.early) == (strike_at, [[1, 2], [1, 2]], {})
            for each in (feed, other):
                where.topics.close(each)
            if count <= strike_at:
                break
            strike_at += 1
        assert strike_at > 20
        conn.discard()


def test_equal_messages_of_a_feed_all_come(server: EchoServer, make_pool: MakePool) -> None:
    for correlation in (None, Plain()):
        pool = make_pool(server, correlation=correlation)
        with pool.subscribe("/", None) as subscription:
            for text in ("1", "1", "null", "null", "true", "true"):
                server.broadcast(text)
            got = [subscription.get(5) for _ in range(6)]
            assert got == [1, 1, None, None, True, True]
        pool.close()


# --- who reads what no one waits for


def test_a_worker_takes_no_more_of_a_stream_than_a_hundred_that_wait(pool: ConnectionPool[Any]) -> None:
    with pool.acquire("/") as conn:
        where = dispatcher(conn)
        stream = sent(conn, {"do": "never"})
        stream.wants_all = False
        where.last_read = 0.0
        where._parts.append(part({"id": 1, "part": 0}))
        assert where.wants_worker
        stream.arrived.extend(range(100))
        assert not where.wants_worker


# --- what takes long


class Slow(Service):
    def run(self) -> None:
        threading.Event().wait(1.6)
        self.say({"hello": 1})
        super().run()


@pytest.mark.slow
def test_a_greeting_that_takes_its_time_is_waited_for(
    echo_server: Callable[..., EchoServer], make_pool: MakePool
) -> None:
    got: list[Any] = []
    slow = echo_server(lambda conn: Slow(conn).run())
    pool = make_pool(slow, correlation=Plain(), configure=lambda conn: got.append(conn.recv()))
    assert pool.request("/", {"n": 1}, 10)["n"] == 1
    assert got == [{"hello": 1}]
    assert slow.opened == 1


@pytest.mark.slow
def test_a_message_that_takes_its_time_to_be_made_is_sent(server: EchoServer, make_pool: MakePool) -> None:
    def serialize(message: Any) -> str:
        threading.Event().wait(1.6)
        return '{"id": %d}' % message["id"]  # noqa: UP031  # of one number

    pool = make_pool(server, correlation=Plain(), manager_kwargs={"serializer": serialize})
    assert pool.request("/", {"n": 1}, 10) == {"id": 1}
    assert server.opened == 1
