"""Browsers: conversations in CDP and in WebDriver BiDi, and what traps they hold."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, Cdp, NewId
from jetsocket.exceptions import ReplyError
from tests.correlation.driver import Conversation
from tests.correlation.garbage import messages, nested, never_raises

CDP = Cdp()


def talk() -> Conversation:
    return Conversation(CDP)


# --- commands


def test_a_command_and_its_reply() -> None:
    """https://chromedevtools.github.io/devtools-protocol/#endpoints"""
    conversation = talk()
    call = conversation.ask({"method": "Target.createTarget", "params": {"url": "about:blank"}})
    assert conversation.out == [{"id": 1, "method": "Target.createTarget", "params": {"url": "about:blank"}}]
    conversation.comes({"id": 1, "result": {"targetId": "6F1B"}})
    assert call.result(CDP) == {"id": 1, "result": {"targetId": "6F1B"}}


def test_the_caller_s_id_comes_back_and_may_be_any() -> None:
    conversation = talk()
    call = conversation.ask({"id": "mine", "method": "Browser.getVersion"})
    assert conversation.out[0]["id"] == 1, "Chromium takes only numbers"
    conversation.comes({"id": 1, "result": {}})
    assert call.result(CDP) == {"id": "mine", "result": {}}


def test_sessions_share_the_ids_of_their_connection() -> None:
    conversation = talk()
    first = conversation.ask({"method": "Runtime.evaluate", "sessionId": "A"})
    second = conversation.ask({"method": "Runtime.evaluate", "sessionId": "B"})
    conversation.comes(
        {"id": 2, "result": {"b": 1}, "sessionId": "B"}, {"id": 1, "result": {}, "sessionId": "A"}
    )
    assert first.result(CDP)["sessionId"] == "A"
    assert second.result(CDP)["sessionId"] == "B"


def test_a_reply_without_a_session_id_is_told_by_its_id_alone() -> None:
    conversation = talk()
    call = conversation.ask({"method": "Runtime.evaluate", "sessionId": "A"})
    gone = {"code": -32001, "message": "Session with given id not found."}
    conversation.comes({"error": gone, "id": 1})
    with pytest.raises(ReplyError, match="-32001: Session with given id not found"):
        call.result(CDP)


def test_a_command_to_a_session_that_is_being_closed_is_left_alone() -> None:
    """Chromium does not answer it; the others go on, and what comes after all is late."""
    conversation = talk()
    lost = conversation.ask({"method": "Runtime.evaluate", "sessionId": "A"})
    close = conversation.ask({"method": "Target.closeTarget", "params": {"targetId": "6F1B"}})
    gone = {"method": "Target.detachedFromTarget", "params": {"sessionId": "A", "targetId": "6F1B"}}
    conversation.comes({"id": 2, "result": {"success": True}}, gone)
    assert close.done and not lost.done
    conversation.give_up(lost)
    conversation.comes({"id": 1, "result": {}, "sessionId": "A"})
    assert conversation.late == [{"id": 1, "result": {}, "sessionId": "A"}]


def test_an_error_without_an_id_is_for_no_asker() -> None:
    conversation = talk()
    call = conversation.ask({"method": "Browser.getVersion"})
    no_asker = {"error": {"code": -32600, "message": "Message must have integer 'id' property"}}
    conversation.comes(no_asker, {**no_asker, "id": None})
    assert not call.done and len(conversation.unasked) == 2


def test_an_error_has_data() -> None:
    error = CDP.error(
        {"id": 1, "error": {"code": -32602, "message": "Invalid parameters", "data": "url: string"}}
    )
    assert error is not None and (error.code, error.data) == (-32602, "url: string")


@pytest.mark.parametrize("other", [True, "1", None, 1.5])
def test_a_key_is_strict(other: Any) -> None:
    assert CDP.key({"id": other, "result": {}}) != 1


def test_what_was_sent_as_it_is_asks_for_its_id() -> None:
    assert CDP.asks({"id": 7, "method": "Browser.getVersion"}) == CDP.key({"id": 7, "result": {}}) == 7
    assert CDP.asks({"method": "Browser.getVersion"}) is None


@pytest.mark.parametrize(
    ("message", "error"),
    [("text", TypeError), ([], TypeError), ({}, ValueError), ({"method": 1}, ValueError)],
)
def test_what_is_no_command_is_a_wrong_argument(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        CDP.tag(message, NewId(1, "a"))


# --- subscriptions in CDP


def test_a_domain_is_subscribed_in_its_session() -> None:
    conversation = talk()
    feed = conversation.subscribe({"method": "Network.enable", "sessionId": "A"})
    event = {"method": "Network.requestWillBeSent", "params": {"requestId": "1"}, "sessionId": "A"}
    elsewhere = [
        {**event, "sessionId": "B"},
        {"method": "Network.requestWillBeSent", "params": {}},
        {"method": "Page.loadEventFired", "params": {}, "sessionId": "A"},
    ]
    conversation.comes({"id": 1, "result": {}, "sessionId": "A"}, event, *elsewhere)
    assert feed.pushes == [event]
    assert conversation.unasked == elsewhere
    conversation.unsubscribe(feed)
    assert conversation.out[-1] == {"id": 2, "method": "Network.disable", "params": {}, "sessionId": "A"}
    conversation.comes(event, {"id": 2, "result": {}})
    assert conversation.dropped == [event]


def test_events_before_the_reply_are_not_lost() -> None:
    """`Runtime.enable` sends an executionContextCreated for each that exists, and then its reply."""
    conversation = talk()
    feed = conversation.subscribe({"method": "Runtime.enable"})
    event = {"method": "Runtime.executionContextCreated", "params": {"context": {"id": 1}}}
    conversation.comes(event, {"id": 1, "result": {}})
    assert feed.pushes == [event]


def test_a_domain_that_can_not_be_enabled_is_an_error() -> None:
    conversation = talk()
    feed = conversation.subscribe({"method": "Nope.enable"})
    conversation.comes({"id": 1, "error": {"code": -32601, "message": "'Nope.enable' wasn't found"}})
    assert isinstance(feed.error, ReplyError)


def test_discovering_targets_ends_with_discovering_none() -> None:
    conversation = talk()
    feed = conversation.subscribe({"method": "Target.setDiscoverTargets", "params": {"discover": True}})
    created = {"method": "Target.targetCreated", "params": {"targetInfo": {"targetId": "6F1B"}}}
    attached = {"method": "Target.attachedToTarget", "params": {"sessionId": "A"}}
    conversation.comes({"id": 1, "result": {}}, created, attached)
    assert feed.pushes == [created]
    ends = CDP.unsubscribe(feed.topics[0], feed.sent)
    assert ends == {"method": "Target.setDiscoverTargets", "params": {"discover": False}}


def test_a_screencast_and_its_page_are_two_subscriptions() -> None:
    conversation = talk()
    page = conversation.subscribe({"method": "Page.enable", "sessionId": "A"})
    cast = conversation.subscribe({"method": "Page.startScreencast", "sessionId": "A"})
    frame = {"method": "Page.screencastFrame", "params": {"sessionId": 1}, "sessionId": "A"}
    loaded = {"method": "Page.loadEventFired", "params": {}, "sessionId": "A"}
    conversation.comes({"id": 1, "result": {}}, {"id": 2, "result": {}}, frame, loaded)
    assert page.pushes == [frame, loaded] and cast.pushes == [frame]
    assert not set(page.topics) & set(cast.topics), "the end of the one is not that of the other"
    assert CDP.unsubscribe(cast.topics[0], cast.sent) == {
        "method": "Page.stopScreencast",
        "params": {},
        "sessionId": "A",
    }


def test_tracing_ends_by_another_name() -> None:
    assert CDP.topic_of({"method": "Tracing.start"}, {"result": {}}) == ("", "Tracing")
    assert CDP.unsubscribe(("", "Tracing"), {"method": "Tracing.start"}) == {
        "method": "Tracing.end",
        "params": {},
    }


def test_what_has_no_opposite_ends_with_the_connection() -> None:
    sent = {"method": "Browser.setDownloadBehavior", "params": {"eventsEnabled": True}}
    assert CDP.topic_of(sent, {"result": {}}) == ("", "Browser")
    assert CDP.unsubscribe(("", "Browser"), sent) is None


def test_attaching_ends_in_the_protocol_in_which_it_began() -> None:
    """A browser takes only `flatten`, at the end too."""
    sent = {"method": "Target.setAutoAttach", "params": {"autoAttach": True, "flatten": True, "filter": []}}
    assert CDP.unsubscribe(("", "Target.attachedToTarget"), sent) == {
        "method": "Target.setAutoAttach",
        "params": {"autoAttach": False, "waitForDebuggerOnStart": False, "flatten": True},
    }


def test_what_ends_a_subscription_can_be_changed_by_no_asker() -> None:
    sent = {"method": "Target.setAutoAttach", "params": {"autoAttach": True}}
    first = CDP.unsubscribe(("", "Target.attachedToTarget"), sent)
    assert first is not None
    first["params"]["autoAttach"] = 7
    assert CDP.unsubscribe(("", "Target.attachedToTarget"), sent) == {
        "method": "Target.setAutoAttach",
        "params": {"autoAttach": False, "waitForDebuggerOnStart": False},
    }


# --- WebDriver BiDi


def test_bidi_answers_with_a_type() -> None:
    """https://w3c.github.io/webdriver-bidi/#protocol-definition"""
    conversation = talk()
    good = conversation.ask({"method": "session.status", "params": {}})
    bad = conversation.ask({"method": "browsingContext.navigate", "params": {"context": "x", "url": "y"}})
    conversation.comes(
        {"type": "error", "id": 2, "error": "no such frame", "message": "not found", "stacktrace": "at …"},
        {"type": "success", "id": 1, "result": {"ready": True, "message": ""}},
        {"type": "error", "id": None, "error": "invalid argument", "message": "no JSON"},
    )
    assert good.result(CDP) == {"type": "success", "id": 1, "result": {"ready": True, "message": ""}}
    with pytest.raises(ReplyError, match="no such frame: not found") as caught:
        bad.result(CDP)
    assert (caught.value.code, caught.value.data) == ("no such frame", "at …")
    assert [each["error"] for each in conversation.unasked] == ["invalid argument"]


def test_bidi_subscribes_to_events_and_modules() -> None:
    conversation = talk()
    events = ["log.entryAdded", "network", "goog:cdp"]
    feed = conversation.subscribe({"method": "session.subscribe", "params": {"events": events}})
    names = ["log.entryAdded", "network.beforeRequestSent", "goog:cdp.Network.dataReceived", "script.message"]
    pushes = [{"type": "event", "method": name, "params": {}} for name in names]
    conversation.comes({"type": "success", "id": 1, "result": {"subscription": "5e1d"}}, *pushes)
    assert feed.pushes == pushes[:3] and conversation.unasked == pushes[3:]
    conversation.unsubscribe(feed)
    assert conversation.out[1:] == [
        {"id": number, "method": "session.unsubscribe", "params": {"events": [event]}}
        for number, event in enumerate(events, 2)
    ]


@pytest.mark.parametrize("limit", ["contexts", "userContexts"])
def test_bidi_ends_a_limited_subscription_with_the_connection(limit: str) -> None:
    sent = {"method": "session.subscribe", "params": {"events": ["log.entryAdded"], limit: ["c"]}}
    assert CDP.unsubscribe("log.entryAdded", sent) is None


# --- whatever may come

ASKED = [
    ({"method": "Network.enable"}, {"method": "Network.enable", "id": 1}),
    ({"method": "session.subscribe"}, {"method": "session.subscribe", "id": 1}),
    ({"method": "Page.startScreencast"}, {"method": "Page.startScreencast", "sessionId": 7}),
]


@given(messages, st.sampled_from(ASKED))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, asked: Any) -> None:
    never_raises(CDP, message, Asked(*asked, 1))
    CDP.unsubscribe("t", message)


def test_what_is_nested_deeply_or_huge_is_no_trouble() -> None:
    never_raises(CDP, nested())
    never_raises(CDP, {"type": "event", "method": "." * 1_000_000})
    never_raises(CDP, {"method": "." * 1_000_000})
