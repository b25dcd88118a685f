"""GraphQL over WebSocket: conversations from the protocol, and what traps they hold."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, GraphQLTransportWs, NewId
from jetsocket.exceptions import ReplyError
from tests.correlation.driver import Conversation, Opened
from tests.correlation.garbage import messages, nested, never_raises

GRAPHQL = GraphQLTransportWs()
QUERY = {"query": "{ hero { name } }"}
FEED = {"query": "subscription { reviews { stars } }"}


def talk() -> Conversation:
    return Conversation(GRAPHQL)


def next_of(operation: Any, **payload: Any) -> dict[str, Any]:
    return {"id": operation, "type": "next", "payload": payload}


# --- the greeting


def test_the_subprotocol_is_offered() -> None:
    assert GRAPHQL.subprotocols == ("graphql-transport-ws",)


def test_a_connection_is_initialised_and_acknowledged() -> None:
    conn = Opened([{"type": "connection_ack", "payload": {"a": 1}}])
    GRAPHQL.configure(conn)
    assert conn.sent == [{"type": "connection_init"}]


def test_a_payload_goes_out_with_it() -> None:
    conn = Opened([{"type": "connection_ack"}])
    GraphQLTransportWs({"authorization": "Bearer x"}).configure(conn)
    assert conn.sent == [{"type": "connection_init", "payload": {"authorization": "Bearer x"}}]


def test_a_payload_may_be_asked_for_each_time() -> None:
    numbers = itertools.count()
    graphql = GraphQLTransportWs(lambda: {"token": next(numbers)})
    for number in range(2):
        conn = Opened([{"type": "connection_ack"}])
        graphql.configure(conn)
        assert conn.sent[0]["payload"] == {"token": number}


def test_pings_before_the_acknowledgement_are_answered() -> None:
    conn = Opened(
        [
            {"type": "ping"},
            {"type": "pong"},
            {"type": "ping", "payload": {"n": 1}},
            {"type": "connection_ack"},
        ]
    )
    GRAPHQL.configure(conn)
    assert conn.sent[1:] == [{"type": "pong"}, {"type": "pong", "payload": {"n": 1}}]


def test_a_server_that_only_pings_is_not_waited_for_for_ever() -> None:
    with pytest.raises(ReplyError, match="in place of connection_ack"):
        GRAPHQL.configure(Opened(itertools.repeat({"type": "ping"})))


@pytest.mark.parametrize(
    "message", [None, 7, [], {"type": "error"}, {"type": "connection_error"}, {"type": {}}]
)
def test_anything_else_in_place_of_the_acknowledgement_is_an_error(message: Any) -> None:
    with pytest.raises(ReplyError, match="in place of connection_ack"):
        GRAPHQL.configure(Opened([message]))


# --- operations


def test_a_query_is_answered_with_next_and_complete() -> None:
    conversation = talk()
    call = conversation.ask({"id": "mine", "type": "subscribe", "payload": QUERY})
    (sent,) = conversation.out
    assert sent == {"id": "c0ffee1", "type": "subscribe", "payload": QUERY}
    conversation.comes(next_of("c0ffee1", data={"hero": {"name": "R2-D2"}}))
    assert not call.done
    conversation.comes({"id": "c0ffee1", "type": "complete"})
    assert call.result(GRAPHQL) == next_of("mine", data={"hero": {"name": "R2-D2"}})
    assert call.asked.replies == 2


def test_a_payload_alone_is_an_operation() -> None:
    conversation = talk()
    call = conversation.ask(QUERY)
    assert conversation.out == [{"id": "c0ffee1", "type": "subscribe", "payload": QUERY}]
    conversation.comes(next_of("c0ffee1", data={}), {"id": "c0ffee1", "type": "complete"})
    assert call.result(GRAPHQL) == next_of("c0ffee1", data={})


def test_the_last_of_several_results_is_the_result() -> None:
    conversation = talk()
    call = conversation.ask(QUERY)
    conversation.comes(
        next_of("c0ffee1", n=1), next_of("c0ffee1", n=2), {"id": "c0ffee1", "type": "complete"}
    )
    assert call.result(GRAPHQL)["payload"] == {"n": 2}
    assert [each["type"] for each in call.replies] == ["next", "next", "complete"]


def test_an_operation_may_complete_without_a_result() -> None:
    conversation = talk()
    call = conversation.ask(QUERY)
    conversation.comes({"id": "c0ffee1", "type": "complete"})
    assert call.result(GRAPHQL) == {"id": "c0ffee1", "type": "complete"}


def test_an_error_ends_an_operation_and_no_complete_follows() -> None:
    conversation = talk()
    call = conversation.ask(QUERY)
    errors = [
        {"message": "Cannot query field", "extensions": {"code": "GRAPHQL_VALIDATION_FAILED"}},
        {"message": "another"},
    ]
    conversation.comes({"id": "c0ffee1", "type": "error", "payload": errors})
    with pytest.raises(ReplyError, match="GRAPHQL_VALIDATION_FAILED: Cannot query field") as caught:
        call.result(GRAPHQL)
    assert caught.value.data == errors


def test_a_result_with_errors_is_a_result() -> None:
    """Partial data: null where the error was."""
    conversation = talk()
    call = conversation.ask(QUERY)
    conversation.comes(next_of("c0ffee1", data={"hero": None}, errors=[{"message": "no"}]))
    conversation.comes({"id": "c0ffee1", "type": "complete"})
    assert call.result(GRAPHQL)["payload"]["errors"] == [{"message": "no"}]


def test_operations_are_interleaved() -> None:
    conversation = talk()
    first, second = conversation.ask(QUERY), conversation.ask(QUERY)
    one, two = (each["id"] for each in conversation.out)
    conversation.comes(
        next_of(two, n=2), next_of(one, n=1), {"id": two, "type": "complete"}, {"id": one, "type": "complete"}
    )
    assert first.result(GRAPHQL)["payload"] == {"n": 1}
    assert second.result(GRAPHQL)["payload"] == {"n": 2}


def test_no_id_is_used_twice() -> None:
    """A server closes the connection over one that is in use (4409)."""
    conversation = talk()
    for _ in range(3):
        conversation.ask({"id": "same", "type": "subscribe", "payload": QUERY})
    assert len({each["id"] for each in conversation.out}) == 3


@pytest.mark.parametrize("kind", ["complete", "ping", "pong", "connection_init"])
def test_what_has_no_reply_goes_out_as_it_is(kind: str) -> None:
    conversation = talk()
    call = conversation.ask({"id": "x", "type": kind})
    assert conversation.out == [{"id": "x", "type": kind}]
    assert call.result(GRAPHQL) is None


@pytest.mark.parametrize(
    ("message", "error"),
    [("text", TypeError), ([], TypeError), ({}, ValueError), ({"type": "start"}, ValueError)],
)
def test_what_is_no_operation_is_a_wrong_argument(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        GRAPHQL.tag(message, NewId(1, "a"))


def test_what_was_sent_as_it_is_asks_for_its_id() -> None:
    assert GRAPHQL.asks({"id": "x", "type": "subscribe"}) == GRAPHQL.key({"id": "x", "type": "next"}) == "x"
    assert GRAPHQL.asks({"id": "x", "type": "complete"}) is None


def test_a_key_is_strict() -> None:
    assert GRAPHQL.key({"id": 1, "type": "next"}) != GRAPHQL.key({"id": "1", "type": "next"})
    assert GRAPHQL.key({"id": True, "type": "next"}) is None


# --- pings


def test_pings_are_answered_inside_the_protocol() -> None:
    conversation = talk()
    conversation.comes(
        {"type": "ping"}, {"type": "ping", "payload": {"t": 1}}, {"type": "ping", "payload": None}
    )
    assert conversation.out == [{"type": "pong"}, {"type": "pong", "payload": {"t": 1}}, {"type": "pong"}]
    assert conversation.unasked == []


def test_pongs_that_nobody_asked_for_are_dropped() -> None:
    conversation = talk()
    conversation.comes({"type": "pong"}, {"type": "pong", "payload": {}})
    assert conversation.unasked == []


# --- subscriptions


def test_a_subscription_is_open_at_once_and_ended_without_a_reply() -> None:
    conversation = talk()
    feed = conversation.subscribe(FEED)
    assert feed.topics == ["c0ffee1"], "no reply is waited for"
    conversation.comes(next_of("c0ffee1", n=1), next_of("c0ffee1", n=2))
    assert [each["payload"] for each in feed.pushes] == [{"n": 1}, {"n": 2}]
    (call,) = conversation.unsubscribe(feed)
    assert conversation.out[-1] == {"id": "c0ffee1", "type": "complete"}, "the id of what it ends"
    assert call.done
    conversation.comes(next_of("c0ffee1", n=3), {"id": "c0ffee1", "type": "complete"})
    assert len(conversation.dropped) == 2 and conversation.unasked == []


def test_an_operation_that_was_given_up_is_completed() -> None:
    sent, key = GRAPHQL.tag(FEED, NewId(1, "c0ffee"))
    assert GRAPHQL.cancel(Asked(FEED, sent, key)) == {"id": "c0ffee", "type": "complete"}


def test_the_server_completes_a_subscription() -> None:
    conversation = talk()
    feed = conversation.subscribe(FEED)
    conversation.comes(next_of("c0ffee1", n=1), {"id": "c0ffee1", "type": "complete"})
    assert len(feed.pushes) == 1 and feed.ended and feed.error is None


def test_the_server_ends_a_subscription_with_an_error() -> None:
    conversation = talk()
    feed = conversation.subscribe(FEED)
    conversation.comes({"id": "c0ffee1", "type": "error", "payload": [{"message": "no rights"}]})
    assert feed.ended and isinstance(feed.error, ReplyError) and feed.error.message == "no rights"


def test_messages_of_an_operation_that_is_over_are_nobody_s() -> None:
    conversation = talk()
    call = conversation.ask(QUERY)
    conversation.comes({"id": "c0ffee1", "type": "complete"}, next_of("c0ffee1"), next_of("unknown"))
    assert call.done and len(conversation.unasked) == 2


# --- whatever may come

ASKED = [(QUERY, {"id": "x", "type": "subscribe", "payload": QUERY}), ({"type": "ping"}, {"type": "ping"})]


@given(messages, st.sampled_from(ASKED))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, asked: Any) -> None:
    never_raises(GRAPHQL, message, Asked(*asked, 1))
    GRAPHQL.unsubscribe("t", message)


@given(messages)
def test_whatever_greets_is_an_error_of_ours_or_none(message: Any) -> None:
    with contextlib.suppress(ReplyError):
        GRAPHQL.configure(Opened([message, {"type": "connection_ack"}]))


def test_what_is_nested_deeply_is_no_trouble() -> None:
    never_raises(GRAPHQL, nested())
    never_raises(GRAPHQL, {"type": "error", "id": "x", "payload": nested()})
