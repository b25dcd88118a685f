"""OBS: conversations from obs-websocket's protocol, and what traps they hold."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, NewId, Obs
from jetsocket.correlation.obs import authentication
from jetsocket.exceptions import ReplyError
from tests.correlation.driver import Conversation, Opened
from tests.correlation.garbage import messages, nested, never_raises

OBS = Obs()
ALL = 0b1111_1111_1111
SALT, CHALLENGE = (
    "lM1GncleQOaCu9lT1yeUZhFYnqhsLLP1G5lAGo3ixaI=",
    "+IxH4CnCiqpX1rM9scsNynZzbOe4KhDeYcTNS3PDaeY=",
)
HELLO = {"op": 0, "d": {"obsWebSocketVersion": "5.5.2", "rpcVersion": 1}}
GUARDED = {"op": 0, "d": {**HELLO["d"], "authentication": {"challenge": CHALLENGE, "salt": SALT}}}  # type: ignore[dict-item]  # it is one
IDENTIFIED = {"op": 2, "d": {"negotiatedRpcVersion": 1}}


def talk() -> Conversation:
    return Conversation(OBS)


def response(request: Any, **more: Any) -> dict[str, Any]:
    status = {"result": True, "code": 100}
    return {"op": 7, "d": {"requestType": "T", "requestId": request, "requestStatus": status, **more}}


def event(intent: Any, kind: str = "StudioModeStateChanged") -> dict[str, Any]:
    return {"op": 5, "d": {"eventType": kind, "eventIntent": intent, "eventData": {}}}


# --- the greeting


def test_a_connection_says_hello_and_is_identified() -> None:
    conn = Opened([HELLO, IDENTIFIED])
    OBS.configure(conn)
    assert conn.sent == [{"op": 1, "d": {"rpcVersion": 1, "eventSubscriptions": ALL}}]


def test_the_password_answers_a_challenge() -> None:
    """The example of the protocol: its identify message is for this salt, this challenge, this password."""
    conn = Opened([GUARDED, IDENTIFIED])
    Obs("supersecretpassword", event_subscriptions=33).configure(conn)
    proof = "1Ct943GAT+6YQUUX47Ia/ncufilbe6+oD6lY+5kaCu4="
    assert authentication("supersecretpassword", SALT, CHALLENGE) == proof
    assert conn.sent == [{"op": 1, "d": {"rpcVersion": 1, "eventSubscriptions": 33, "authentication": proof}}]


def test_a_password_that_is_not_wanted_is_not_sent() -> None:
    conn = Opened([HELLO, IDENTIFIED])
    Obs("secret").configure(conn)
    assert "authentication" not in conn.sent[0]["d"]


def test_a_server_that_wants_a_password_says_so() -> None:
    with pytest.raises(ReplyError, match=r"wants a password: Obs\(password\)"):
        OBS.configure(Opened([GUARDED]))


@pytest.mark.parametrize("greeting", [None, 7, [], {}, {"op": 2}, {"op": False}, {"op": "0"}, {"op": None}])
def test_any_other_greeting_is_an_error(greeting: Any) -> None:
    with pytest.raises(ReplyError, match="in place of hello"):
        OBS.configure(Opened([greeting]))


def test_anything_but_identified_is_an_error() -> None:
    with pytest.raises(ReplyError, match="in place of identified"):
        OBS.configure(Opened([HELLO, event(1)]))


def test_the_subprotocol_is_json() -> None:
    assert OBS.subprotocols == ("obswebsocket.json",)


# --- requests


def test_a_request_and_its_response() -> None:
    conversation = talk()
    asked = {
        "requestType": "SetCurrentProgramScene",
        "requestId": "mine",
        "requestData": {"sceneName": "Scene 12"},
    }
    call = conversation.ask({"op": 6, "d": asked})
    assert conversation.out == [{"op": 6, "d": {**asked, "requestId": "c0ffee1"}}]
    conversation.comes(event(4), response("c0ffee1"))
    assert call.result(OBS) == response("mine")
    assert conversation.unasked == [event(4)]


def test_a_d_alone_is_a_request() -> None:
    conversation = talk()
    call = conversation.ask({"requestType": "GetVersion", "requestId": "mine"})
    assert conversation.out == [{"op": 6, "d": {"requestType": "GetVersion", "requestId": "c0ffee1"}}]
    conversation.comes(response("c0ffee1"))
    assert call.result(OBS) == response("mine")


def test_a_request_that_fails_is_an_error() -> None:
    conversation = talk()
    call = conversation.ask({"requestType": "SetCurrentProgramScene"})
    status = {"result": False, "code": 608, "comment": "Parameter: sceneName"}
    conversation.comes(response("c0ffee1", requestStatus=status))
    with pytest.raises(ReplyError, match="608: Parameter: sceneName") as caught:
        call.result(OBS)
    assert (caught.value.code, caught.value.data) == (608, status)


def test_a_batch_is_one_request_and_its_failures_are_in_it() -> None:
    conversation = talk()
    requests = [{"requestType": "GetVersion", "requestId": "a"}, {"requestType": "Sleep"}]
    call = conversation.ask({"requests": requests, "haltOnFailure": True})
    assert conversation.out == [
        {"op": 8, "d": {"requests": requests, "haltOnFailure": True, "requestId": "c0ffee1"}}
    ]
    failed = {"requestType": "GetVersion", "requestStatus": {"result": False, "code": 204}}
    conversation.comes({"op": 9, "d": {"requestId": "c0ffee1", "results": [failed]}})
    assert call.result(OBS)["d"]["results"] == [failed]


def test_a_reidentify_is_answered_without_an_id() -> None:
    conversation = talk()
    call = conversation.ask({"op": 3, "d": {"eventSubscriptions": 0}})
    assert call.result(OBS) is None, "no reply can be told"
    conversation.comes(IDENTIFIED)
    assert conversation.unasked == [IDENTIFIED]


@pytest.mark.parametrize("other", [True, 1, None, "C0FFEE1"])
def test_a_key_is_strict(other: Any) -> None:
    assert OBS.key(response(other)) != OBS.key(response("c0ffee1"))
    assert OBS.key(response("1")) != OBS.key(response(1))


@pytest.mark.parametrize("op", [True, "7", 7.5, None, 6])
def test_what_is_no_response_is_nobody_s(op: Any) -> None:
    assert OBS.key({**response("x"), "op": op}) is None


def test_what_was_sent_as_it_is_asks_for_its_id() -> None:
    assert OBS.asks({"op": 6, "d": {"requestId": "x"}}) == OBS.key(response("x")) == "x"
    assert OBS.asks({"op": 3, "d": {}}) is None


@pytest.mark.parametrize(
    ("message", "error"), [("text", TypeError), ([], TypeError), ({}, ValueError), ({"d": {}}, ValueError)]
)
def test_what_is_no_request_is_a_wrong_argument(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        OBS.tag(message, NewId(1, "a"))


# --- subscriptions


def test_categories_are_subscribed_by_their_bits() -> None:
    conversation = talk()
    meters = 1 << 16
    feed = conversation.subscribe({"op": 3, "d": {"eventSubscriptions": meters | 1}})
    assert feed.topics == [1, meters], "open at once: the answer has no id"
    conversation.comes(IDENTIFIED, event(meters, "InputVolumeMeters"), event(1), event(4))
    assert feed.pushes == [event(meters, "InputVolumeMeters"), event(1)]
    assert conversation.unasked == [IDENTIFIED, event(4)]
    conversation.unsubscribe(feed)
    assert conversation.out[-1] == {"op": 3, "d": {"eventSubscriptions": ALL}}, "what it began with"


def test_the_end_of_a_subscription_restores_what_the_connection_began_with() -> None:
    assert Obs(event_subscriptions=0).unsubscribe(1, {"op": 3}) == {"op": 3, "d": {"eventSubscriptions": 0}}


def test_a_reidentify_without_categories_subscribes_to_nothing() -> None:
    """It leaves them as they are."""
    assert OBS.topic_of({"op": 3, "d": {}}, None) is None


# --- whatever may come

ASKED = [
    ({"requestType": "T"}, {"op": 6, "d": {}}),
    ({"op": 3}, {"op": 3, "d": {"eventSubscriptions": 1 << 700}}),
]


@given(messages, st.sampled_from(ASKED))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, asked: Any) -> None:
    never_raises(OBS, message, Asked(*asked, 1))
    OBS.unsubscribe("t", message)


@pytest.mark.slow
@given(messages, messages)
def test_whatever_greets_is_an_error_of_ours_or_none(salt: Any, message: Any) -> None:
    hello = {"op": 0, "d": {"authentication": salt}}
    for greetings in ([message, IDENTIFIED], [hello, message]):
        with contextlib.suppress(ReplyError):
            Obs("secret").configure(Opened(greetings))


def test_what_is_nested_deeply_is_no_trouble() -> None:
    never_raises(OBS, nested())
    never_raises(OBS, {"op": 7, "d": nested()})
