"""Home Assistant: conversations from its documents, and what traps they hold."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, HomeAssistant, NewId
from jetsocket.exceptions import ReplyError
from tests.correlation.driver import Conversation, Opened
from tests.correlation.garbage import messages, nested, never_raises

HOME = HomeAssistant("ABCDEFGH")


def talk() -> Conversation:
    return Conversation(HOME)


def result(number: int, value: Any = None) -> dict[str, Any]:
    return {"id": number, "type": "result", "success": True, "result": value}


def event(number: int, **data: Any) -> dict[str, Any]:
    return {"id": number, "type": "event", "event": data}


# --- logging in


def test_the_server_asks_for_the_token() -> None:
    """https://developers.home-assistant.io/docs/api/websocket#authentication-phase"""
    conn = Opened(
        [{"type": "auth_required", "ha_version": "2021.5.3"}, {"type": "auth_ok", "ha_version": "2021.5.3"}]
    )
    HOME.configure(conn)
    assert conn.sent == [{"type": "auth", "access_token": "ABCDEFGH"}], "no id: none is taken by it"


def test_a_token_that_is_refused_is_named_and_not_shown() -> None:
    refused = {"type": "auth_invalid", "message": "Invalid token ABCDEFGH"}
    conn = Opened([{"type": "auth_required"}, refused])
    with pytest.raises(ReplyError, match=r"auth_invalid: Invalid token \*\*\*") as caught:
        HOME.configure(conn)
    assert caught.value.code == "auth_invalid"
    assert "ABCDEFGH" not in str(caught.value) + repr(caught.value.args) + repr(HOME)


def test_a_token_may_be_asked_for_each_time() -> None:
    tokens = iter(["first", "second"])
    home = HomeAssistant(lambda: next(tokens))
    for token in ("first", "second"):
        conn = Opened([{"type": "auth_required"}, {"type": "auth_ok"}])
        home.configure(conn)
        assert conn.sent == [{"type": "auth", "access_token": token}]


def test_a_server_that_trusts_this_network_asks_for_nothing() -> None:
    conn = Opened([{"type": "auth_ok", "ha_version": "0.1"}])
    HOME.configure(conn)
    assert conn.sent == []


@pytest.mark.parametrize("greeting", [None, 7, "hello", [], {"type": "hello"}, {"type": ["auth_ok"]}])
def test_any_other_greeting_is_an_error(greeting: Any) -> None:
    with pytest.raises(ReplyError, match="in place of auth_required"):
        HOME.configure(Opened([greeting]))


# --- commands


def test_a_command_and_its_result() -> None:
    conversation = talk()
    call = conversation.ask({"type": "get_config", "id": 19})
    assert conversation.out == [{"type": "get_config", "id": 1}]
    conversation.comes(result(1, {"version": "2021.5.3"}))
    assert call.result(HOME) == result(19, {"version": "2021.5.3"})


def test_ids_grow_whatever_the_callers_gave() -> None:
    conversation = talk()
    for number in (9, 3, 3):
        conversation.ask({"type": "ping", "id": number})
    assert [each["id"] for each in conversation.out] == [1, 2, 3]


def test_a_ping_is_answered_with_a_pong() -> None:
    conversation = talk()
    call = conversation.ask({"type": "ping"})
    conversation.comes({"id": 1, "type": "pong"})
    assert call.result(HOME) == {"id": 1, "type": "pong"}


def test_a_result_without_success_is_an_error() -> None:
    conversation = talk()
    call = conversation.ask({"type": "call_service"})
    said = {
        "code": "service_validation_error",
        "message": "Option 'custom' is not a supported mode.",
        "translation_key": "unsupported_mode",
    }
    conversation.comes({"id": 1, "type": "result", "success": False, "error": said})
    with pytest.raises(ReplyError, match="service_validation_error: Option 'custom'") as caught:
        call.result(HOME)
    assert caught.value.data == said


def test_several_messages_in_one_frame_are_taken_apart() -> None:
    """With `supported_features: {coalesce_messages: 1}`."""
    conversation = talk()
    first, second = conversation.ask({"type": "get_states"}), conversation.ask({"type": "get_config"})
    conversation.comes([result(2, {}), result(1, []), event(7)], [])
    assert first.result(HOME)["result"] == [] and second.result(HOME)["result"] == {}
    assert conversation.unasked == [event(7)]


def test_an_error_for_what_can_not_be_read_is_for_nobody() -> None:
    conversation = talk()
    call = conversation.ask({"type": "get_states"})
    conversation.comes({"id": None, "type": "result", "success": False, "error": {"code": "invalid_format"}})
    assert not call.done and len(conversation.unasked) == 1


@pytest.mark.parametrize("other", [True, "1", None, 1.5])
def test_a_key_is_strict(other: Any) -> None:
    assert HOME.key({"id": other, "type": "result"}) != 1


def test_what_was_sent_as_it_is_asks_for_its_id() -> None:
    assert HOME.asks({"id": 7, "type": "ping"}) == HOME.key({"id": 7, "type": "pong"}) == 7


@pytest.mark.parametrize(
    ("message", "error"), [("text", TypeError), ([], TypeError), ({}, ValueError), ({"type": 1}, ValueError)]
)
def test_what_is_no_command_is_a_wrong_argument(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        HOME.tag(message, NewId(1, "a"))


# --- subscriptions


def test_events_carry_the_id_of_the_command() -> None:
    conversation = talk()
    feed = conversation.subscribe({"type": "subscribe_events", "event_type": "state_changed"})
    conversation.comes(result(1), event(1, data=1), event(2, data=2))
    assert feed.pushes == [event(1, data=1)] and conversation.unasked == [event(2, data=2)]
    (call,) = conversation.unsubscribe(feed)
    assert conversation.out[-1] == {"id": 2, "type": "unsubscribe_events", "subscription": 1}
    conversation.comes(event(1, data=3), result(2))
    assert call.result(HOME) == result(2)
    assert conversation.dropped == [event(1, data=3)]


def test_events_before_the_result_are_not_lost() -> None:
    conversation = talk()
    feed = conversation.subscribe({"type": "subscribe_entities"})
    conversation.comes([event(1, a={}), result(1), event(1, c={})])
    assert feed.pushes == [event(1, a={}), event(1, c={})]


def test_an_event_is_no_reply_though_it_has_the_id_of_a_request() -> None:
    conversation = talk()
    call = conversation.ask({"type": "render_template", "template": "{{ 1 }}"})
    conversation.comes(event(1, result="1"), result(1))
    assert call.result(HOME) == result(1)


def test_a_subscription_that_is_refused_is_not_open() -> None:
    conversation = talk()
    feed = conversation.subscribe({"type": "subscribe_trigger"})
    conversation.comes({"id": 1, "type": "result", "success": False, "error": {"code": "invalid_format"}})
    assert isinstance(feed.error, ReplyError) and feed.error.code == "invalid_format"


# --- whatever may come


@pytest.mark.slow
@given(messages, st.sampled_from([({"type": "ping"}, {"type": "ping", "id": 1})]))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, asked: Any) -> None:
    never_raises(HOME, message, Asked(*asked, 1))
    HOME.unsubscribe("t", message)


@given(messages, messages)
def test_whatever_greets_is_an_error_of_ours_or_none(first: Any, second: Any) -> None:
    with contextlib.suppress(ReplyError):
        HOME.configure(Opened([first, second]))


def test_what_is_nested_deeply_is_no_trouble() -> None:
    never_raises(HOME, nested())
    never_raises(HOME, [nested()] * 3)
