"""JSON-RPC: conversations from the specification and the services' documents, and what traps they hold."""

from __future__ import annotations

import random
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, JsonRpc, NewId
from jetsocket.exceptions import ReplyError
from tests.correlation.driver import Conversation
from tests.correlation.garbage import messages, nested, never_raises

RPC = JsonRpc()


def talk() -> Conversation:
    return Conversation(RPC)


# --- calls


def test_a_call_and_its_reply() -> None:
    """https://www.jsonrpc.org/specification#examples: positional parameters."""
    conversation = talk()
    call = conversation.ask({"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1})
    assert conversation.out == [{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}]
    conversation.comes({"jsonrpc": "2.0", "result": 19, "id": 1})
    assert call.result(RPC) == {"jsonrpc": "2.0", "result": 19, "id": 1}


def test_the_version_is_added_and_the_id_is_ours() -> None:
    conversation = talk()
    conversation.ask({"method": "eth_blockNumber", "params": []})
    conversation.ask({"method": "eth_blockNumber", "id": "mine"})
    assert conversation.out == [
        {"jsonrpc": "2.0", "method": "eth_blockNumber", "params": [], "id": 1},
        {"jsonrpc": "2.0", "method": "eth_blockNumber", "id": 2},
    ]


def test_a_version_that_is_there_stays() -> None:
    assert RPC.tag({"jsonrpc": "1.0", "method": "m"}, NewId(1, "a"))[0]["jsonrpc"] == "1.0"


def test_callers_with_the_same_id_get_their_own_replies_and_their_own_id_back() -> None:
    conversation = talk()
    first = conversation.ask({"method": "a", "id": 1})
    second = conversation.ask({"method": "b", "id": 1})
    third = conversation.ask({"method": "c", "id": "1"})
    for call in random.Random(0).sample(conversation.out, 3):
        conversation.comes({"jsonrpc": "2.0", "id": call["id"], "result": call["method"]})
    assert first.result(RPC) == {"jsonrpc": "2.0", "id": 1, "result": "a"}
    assert second.result(RPC) == {"jsonrpc": "2.0", "id": 1, "result": "b"}
    assert third.result(RPC) == {"jsonrpc": "2.0", "id": "1", "result": "c"}


def test_a_mapping_that_is_no_dict_gets_its_own_id_back() -> None:
    own = MappingProxyType({"id": "mine", "method": "a"})
    assert RPC.untag({"id": 1, "result": 2}, own) == {"id": "mine", "result": 2}
    (sent,), _ = RPC.tag([own], NewId(1, "a"))
    assert RPC.untag([{"id": sent["id"], "result": 2}], [own]) == [{"id": "mine", "result": 2}]


def test_a_reply_keeps_its_id_where_the_caller_gave_none() -> None:
    reply = {"jsonrpc": "2.0", "id": 7, "result": 1}
    assert RPC.untag(reply, {"method": "m"}) == reply
    assert RPC.untag(reply, {"method": "m", "id": None}) == reply


def test_putting_an_id_back_leaves_the_reply_as_it_is() -> None:
    reply = {"id": 7, "result": 1}
    assert RPC.untag(reply, {"id": 1}) == {"id": 1, "result": 1}
    assert reply == {"id": 7, "result": 1}


@pytest.mark.parametrize("other", [True, "1", 1.5, None, [1], {"a": 1}])
def test_a_key_is_strict(other: Any) -> None:
    assert RPC.key({"id": other, "result": 0}) != 1
    conversation = talk()
    call = conversation.ask({"method": "m"})
    conversation.comes({"id": other, "result": 0})
    assert not call.done
    assert conversation.unasked == [{"id": other, "result": 0}]


def test_one_is_one_as_a_fraction_too() -> None:
    """7 and 7.0 are one number in JSON, and some services answer the one to the other."""
    assert RPC.key({"id": 7.0, "result": 0}) == RPC.key({"id": 7, "result": 0}) == 7


def test_a_late_reply_is_nobody_else_s() -> None:
    conversation = talk()
    call = conversation.ask({"method": "slow", "id": 1})
    conversation.give_up(call)
    again = conversation.ask({"method": "fast", "id": 1})
    conversation.comes({"id": 1, "result": "slow"}, {"id": 2, "result": "fast"})
    assert again.result(RPC) == {"id": 1, "result": "fast"}
    assert conversation.late == [{"id": 1, "result": "slow"}]


def test_a_reply_that_comes_twice_is_asked_for_once() -> None:
    conversation = talk()
    call = conversation.ask({"method": "m"})
    conversation.comes({"id": 1, "result": 1}, {"id": 1, "result": 2})
    assert call.result(RPC)["result"] == 1
    assert conversation.unasked == [{"id": 1, "result": 2}]


# --- errors


def test_an_error_is_raised_with_all_that_the_server_said() -> None:
    """https://www.jsonrpc.org/specification#examples: non-existent method."""
    conversation = talk()
    call = conversation.ask({"jsonrpc": "2.0", "method": "foobar", "id": "1"})
    said = {"code": -32601, "message": "Method not found", "data": {"method": "foobar"}}
    conversation.comes({"jsonrpc": "2.0", "error": said, "id": 1})
    with pytest.raises(ReplyError, match="-32601: Method not found") as caught:
        call.result(RPC)
    assert (caught.value.code, caught.value.message) == (-32601, "Method not found")
    assert caught.value.data == {"method": "foobar"}
    assert caught.value.reply == {"jsonrpc": "2.0", "error": said, "id": 1}


def test_an_error_with_the_id_null_is_for_nobody() -> None:
    """It may answer what a caller has given up: no other request is failed by it."""
    conversation = talk()
    call = conversation.ask({"method": "m"})
    no_asker = {"jsonrpc": "2.0", "error": {"code": -32700, "message": "Parse error"}, "id": None}
    conversation.comes(no_asker)
    assert not call.done
    assert conversation.unasked == [no_asker]


def test_json_rpc_1_has_a_result_and_an_error_in_every_reply() -> None:
    assert RPC.error({"id": 1, "result": 1, "error": None}) is None
    assert RPC.error({"id": 1, "result": 1, "error": False}) is None
    error = RPC.error({"id": 1, "result": None, "error": "no"})
    assert isinstance(error, ReplyError) and (error.code, error.message) == (None, "no")


# --- what the server sends by itself


def test_a_request_of_the_server_s_with_our_id_is_no_reply() -> None:
    conversation = talk()
    call = conversation.ask({"method": "m"})
    request = {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}
    conversation.comes(request)
    assert not call.done
    assert conversation.unasked == [request]


def test_a_reply_to_a_request_of_the_server_s_goes_out_as_it_is() -> None:
    conversation = talk()
    call = conversation.ask({"jsonrpc": "2.0", "id": 1, "result": "pong"})
    assert conversation.out == [{"jsonrpc": "2.0", "id": 1, "result": "pong"}]
    assert call.done and call.result(RPC) is None


def test_a_reply_that_names_its_method_is_a_reply() -> None:
    assert RPC.key({"id": 1, "method": "m", "result": 1}) == 1


def test_aria2_notifies_without_being_asked() -> None:
    """https://aria2.github.io/manual/en/html/aria2c.html#notifications"""
    conversation = talk()
    call = conversation.ask({"method": "aria2.addUri", "params": [["http://example.com"]]})
    started = {"jsonrpc": "2.0", "method": "aria2.onDownloadStart", "params": [{"gid": "2089b05ecca3d829"}]}
    conversation.comes(started, {"id": 1, "jsonrpc": "2.0", "result": "2089b05ecca3d829"})
    assert call.result(RPC)["result"] == "2089b05ecca3d829"
    assert conversation.unasked == [started]


def test_an_array_of_notifications_is_taken_apart() -> None:
    conversation = talk()
    first = {"jsonrpc": "2.0", "method": "a", "params": {}}
    second = {"jsonrpc": "2.0", "method": "b", "params": {}}
    conversation.comes([first, second])
    assert conversation.unasked == [first, second]


# --- batches


BATCH: list[Any] = [
    {"jsonrpc": "2.0", "method": "sum", "params": [1, 2, 4], "id": "1"},
    {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
    {"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": "2"},
    {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
    {"jsonrpc": "2.0", "method": "get_data", "id": 9},
]
"""https://www.jsonrpc.org/specification#examples: rpc call batch."""


def answers(sent: list[Any]) -> list[Any]:
    """The server's replies to `BATCH`, as the specification has them."""
    said: list[dict[str, Any]] = [
        {"result": 7},
        {"result": 19},
        {"error": {"code": -32601, "message": "Method not found"}},
        {"result": ["hello", 5]},
    ]
    calls = [call for call in sent if "id" in call]
    return [{"jsonrpc": "2.0", **each, "id": call["id"]} for each, call in zip(said, calls, strict=True)]


def replied() -> list[Any]:
    return answers([call for call in BATCH if "id" in call])


@pytest.mark.parametrize("seed", range(5))
def test_a_batch_is_one_request_whatever_the_order_of_its_reply(seed: int) -> None:
    conversation = talk()
    call = conversation.ask(BATCH)
    (sent,) = conversation.out
    reply = answers(sent)
    conversation.comes(random.Random(seed).sample(reply, len(reply)))
    assert call.result(RPC) == replied()


def test_a_batch_may_be_answered_one_by_one() -> None:
    conversation = talk()
    call = conversation.ask(BATCH)
    reply = answers(conversation.out[0])
    for each in reversed(reply):
        assert not call.done
        conversation.comes(each)
    assert call.result(RPC) == replied()


def test_an_error_in_a_batch_is_for_the_caller_to_see() -> None:
    assert RPC.error({"id": "c0ffee1[0]", "error": {"code": 1, "message": "no"}}) is None
    assert RPC.error([{"id": "c0ffee1[0]", "error": {"code": 1, "message": "no"}}]) is None
    assert RPC.error({"id": "mine[x]", "error": {"code": 1, "message": "no"}}) is not None


def test_notifications_of_a_batch_stay_what_they_are() -> None:
    conversation = talk()
    conversation.ask(BATCH)
    (sent,) = conversation.out
    assert [("id" in call) for call in sent] == [True, False, True, True, True]
    assert len({call["id"] for call in sent if "id" in call}) == 4


def test_a_batch_of_notifications_has_no_reply() -> None:
    conversation = talk()
    call = conversation.ask([{"method": "a"}, {"method": "b"}])
    assert conversation.out == [[{"jsonrpc": "2.0", "method": "a"}, {"jsonrpc": "2.0", "method": "b"}]]
    assert call.done and call.result(RPC) is None


def test_an_array_is_the_whole_reply_though_calls_are_missing() -> None:
    """geth answers a batch that is too large with one error, with the id of its first call."""
    conversation = talk()
    call = conversation.ask(BATCH)
    first = conversation.out[0][0]["id"]
    conversation.comes(
        [{"jsonrpc": "2.0", "id": first, "error": {"code": -32600, "message": "batch too large"}}]
    )
    (reply,) = call.result(RPC)
    assert reply == {"jsonrpc": "2.0", "id": "1", "error": {"code": -32600, "message": "batch too large"}}


def test_an_error_without_an_id_in_a_batch_s_reply_is_a_part_of_it() -> None:
    conversation = talk()
    call = conversation.ask(BATCH)
    nameless = {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None}
    conversation.comes([nameless, *answers(conversation.out[0])])
    assert call.result(RPC) == [*replied(), nameless]


def test_two_batches_in_one_array_are_two_replies() -> None:
    conversation = talk()
    first = conversation.ask([{"method": "a", "id": 1}])
    second = conversation.ask([{"method": "b", "id": 1}, {"method": "c", "id": 2}])
    ids = [call["id"] for sent in conversation.out for call in sent]
    conversation.comes([{"id": each, "result": each} for each in reversed(ids)])
    assert first.result(RPC) == [{"id": 1, "result": ids[0]}]
    assert second.result(RPC) == [{"id": 1, "result": ids[1]}, {"id": 2, "result": ids[2]}]


def test_a_notification_in_a_batch_s_reply_is_pushed() -> None:
    conversation = talk()
    call = conversation.ask([{"method": "a", "id": 1}])
    push = {"jsonrpc": "2.0", "method": "n", "params": {}}
    conversation.comes([push, {"id": conversation.out[0][0]["id"], "result": 1}])
    assert call.result(RPC) == [{"id": 1, "result": 1}]
    assert conversation.unasked == [push]


def test_the_first_of_two_replies_to_one_call_of_a_batch_counts() -> None:
    conversation = talk()
    call = conversation.ask([{"method": "a", "id": 1}, {"method": "b", "id": 2}])
    one, two = (each["id"] for each in conversation.out[0])
    conversation.comes({"id": one, "result": "a"}, {"id": one, "result": "again"})
    assert not call.done
    conversation.comes({"id": two, "result": "b"})
    assert [each["result"] for each in call.result(RPC)] == ["a", "b"]


def test_a_call_of_a_batch_with_the_id_null_gets_it_back() -> None:
    conversation = talk()
    call = conversation.ask([{"method": "a", "id": None}])
    conversation.comes([{"id": conversation.out[0][0]["id"], "result": 1}])
    assert call.result(RPC) == [{"id": None, "result": 1}]


def test_a_batch_that_was_sent_as_it_is_asks_for_an_array_with_its_ids() -> None:
    sent = [{"method": "a", "id": 1}, {"method": "b"}, {"method": "c", "id": "x"}]
    reply = [{"id": "x", "result": 1}, {"id": 1, "result": 2}]
    assert list(RPC.split(reply)) == [reply]
    assert RPC.asks(sent) == RPC.key(reply) is not None
    assert RPC.key([{"id": "x", "result": 1}]) != RPC.asks(sent)


def test_a_call_that_was_sent_as_it_is_asks_for_its_id() -> None:
    assert RPC.asks({"method": "a", "id": "x"}) == RPC.key({"result": 1, "id": "x"}) == "x"
    assert RPC.asks({"method": "a"}) is None
    assert RPC.asks({"id": 1, "result": 2}) is None, "a reply of ours to the server expects none"


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("text", TypeError),
        (None, TypeError),
        (b"raw", TypeError),
        (7, TypeError),
        ([1], TypeError),
        ([[]], TypeError),
        ([], ValueError),
        ({}, ValueError),
        ({"id": 1}, ValueError),
        ({"method": None}, ValueError),
        ([{"id": 1}], ValueError),
    ],
)
def test_what_is_no_call_is_a_wrong_argument(message: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        RPC.tag(message, NewId(1, "a"))


# --- subscriptions


def test_ethereum_pushes_what_was_subscribed() -> None:
    """https://geth.ethereum.org/docs/interacting-with-geth/rpc/pubsub"""
    conversation = talk()
    heads = conversation.subscribe({"method": "eth_subscribe", "params": ["newHeads"]})
    topic = "0x9cef478923ff08bf67fde6c64013158d"
    push = {
        "jsonrpc": "2.0",
        "method": "eth_subscription",
        "params": {"subscription": topic, "result": {"number": "0x1b4"}},
    }
    conversation.comes(push, {"id": 1, "jsonrpc": "2.0", "result": topic}, push)
    assert heads.topics == [topic]
    assert heads.pushes == [push, push], "one came before the reply that names the topic"
    (call,) = conversation.unsubscribe(heads)
    assert conversation.out[-1] == {"jsonrpc": "2.0", "id": 2, "method": "eth_unsubscribe", "params": [topic]}
    conversation.comes(push, {"jsonrpc": "2.0", "id": 2, "result": True})
    assert call.result(RPC)["result"] is True
    assert conversation.dropped == [push] and conversation.unasked == []


def test_solana_s_subscriptions_are_numbers_and_zero_is_one() -> None:
    """https://solana.com/docs/rpc/websocket/accountsubscribe"""
    conversation = talk()
    account = conversation.subscribe(
        {"method": "accountSubscribe", "params": ["CM78CPUeXjn8o3yroDHxUtKsZZgoy4GPkPPXfouKNH12"]}
    )
    push = {
        "jsonrpc": "2.0",
        "method": "accountNotification",
        "params": {"result": {"context": {"slot": 5199307}}, "subscription": 0},
    }
    conversation.comes({"jsonrpc": "2.0", "result": 0, "id": 1}, push)
    other = {**push, "params": {"subscription": False}}
    conversation.comes(other)
    assert account.pushes == [push] and conversation.unasked == [other]
    conversation.unsubscribe(account)
    assert conversation.out[-1] == {"jsonrpc": "2.0", "id": 2, "method": "accountUnsubscribe", "params": [0]}


def test_solana_ends_a_signature_s_subscription_without_a_word() -> None:
    """https://solana.com/docs/rpc/websocket/signaturesubscribe: after its one notification."""
    conversation = talk()
    feed = conversation.subscribe({"method": "signatureSubscribe", "params": ["2EanSSkn5cjv9DVKik5gtBkN"]})
    push = {
        "jsonrpc": "2.0",
        "method": "signatureNotification",
        "params": {"result": {"context": {"slot": 5207624}, "value": {"err": None}}, "subscription": 24006},
    }
    conversation.comes({"jsonrpc": "2.0", "result": 24006, "id": 1}, push)
    assert feed.pushes == [push] and not feed.ended, "the notification is not lost"
    (call,) = conversation.unsubscribe(feed)
    gone = {"code": -32602, "message": "Invalid subscription id."}
    conversation.comes({"jsonrpc": "2.0", "error": gone, "id": 2})
    assert isinstance(call.error, ReplyError)


def test_deribit_subscribes_to_several_channels_at_once() -> None:
    """https://docs.deribit.com/articles/notifications"""
    conversation = talk()
    channels = ["deribit_price_index.btc_usd", "trades.BTC-PERPETUAL.raw"]
    feed = conversation.subscribe({"method": "public/subscribe", "params": {"channels": channels}})
    pushes = [
        {
            "jsonrpc": "2.0",
            "method": "subscription",
            "params": {"channel": channel, "data": {"price": 6521.17}},
        }
        for channel in channels
    ]
    conversation.comes({"jsonrpc": "2.0", "id": 1, "result": channels}, *pushes)
    assert feed.topics == channels and feed.pushes == pushes
    conversation.unsubscribe(feed)
    assert [each["method"] for each in conversation.out[1:]] == ["public/unsubscribe"] * 2
    assert [each["params"] for each in conversation.out[1:]] == [{"channels": [each]} for each in channels]


def test_deribit_opens_only_what_it_lists() -> None:
    reply = {"id": 1, "result": ["trades.BTC-PERPETUAL.raw"]}
    sent = {"method": "private/subscribe", "params": {"channels": ["trades.BTC-PERPETUAL.raw", "no.such"]}}
    assert RPC.topic_of(sent, reply) == ["trades.BTC-PERPETUAL.raw"]
    assert RPC.unsubscribe("x", sent)["method"] == "private/unsubscribe"  # type: ignore[index]  # it is a dict


def test_deribit_s_test_request_is_answered_and_the_reply_to_that_dropped() -> None:
    """https://docs.deribit.com/api-reference/session-management/public-set_heartbeat; calls need an id."""
    conversation = talk()
    conversation.comes(
        {"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}},
        {"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}},
    )
    (answer,) = conversation.out
    assert answer["method"] == "public/test" and answer["id"] is not None
    conversation.comes({"jsonrpc": "2.0", "id": answer["id"], "result": {"version": "1.2.26"}})
    assert [each["params"]["type"] for each in conversation.unasked] == ["heartbeat"]


@pytest.mark.parametrize(
    ("subscribe", "unsubscribe"),
    [
        ("eth_subscribe", "eth_unsubscribe"),
        ("public/subscribe", "public/unsubscribe"),
        ("signatureSubscribe", "signatureUnsubscribe"),
        ("chain_subscribeNewHeads", "chain_unsubscribeNewHeads"),
        ("state_subscribeStorage", "state_unsubscribeStorage"),
        ("subscribe", "unsubscribe"),
    ],
)
def test_what_ends_a_subscription_is_named_after_what_began_it(subscribe: str, unsubscribe: str) -> None:
    assert RPC.unsubscribe("0x1", {"method": subscribe}) == {
        "jsonrpc": "2.0",
        "method": unsubscribe,
        "params": ["0x1"],
    }


def test_what_ends_a_subscription_can_be_told() -> None:
    rpc = JsonRpc(unsubscribe={"author_submitAndWatchExtrinsic": "author_unwatchExtrinsic"})
    ends = rpc.unsubscribe("0x1", {"method": "author_submitAndWatchExtrinsic"})
    assert ends is not None and ends["method"] == "author_unwatchExtrinsic"
    assert RPC.unsubscribe("0x1", {"method": "author_submitAndWatchExtrinsic"}) is None


def test_a_subscription_that_is_refused_is_not_open() -> None:
    conversation = talk()
    feed = conversation.subscribe({"method": "eth_subscribe", "params": ["nope"]})
    conversation.comes({"id": 1, "error": {"code": -32000, "message": "no such subscription"}})
    assert feed.ended and isinstance(feed.error, ReplyError) and feed.error.code == -32000


def test_substrate_ends_a_subscription_with_an_error() -> None:
    conversation = talk()
    feed = conversation.subscribe({"method": "state_subscribeStorage", "params": [[]]})
    push = {"jsonrpc": "2.0", "method": "state_storage", "params": {"subscription": "a", "result": {}}}
    end = {"jsonrpc": "2.0", "method": "state_storage", "params": {"subscription": "a", "error": "too slow"}}
    conversation.comes({"id": 1, "result": "a"}, push, end)
    assert feed.pushes == [push] and feed.ended
    assert isinstance(feed.error, ReplyError) and feed.error.message == "too slow"


def test_a_result_with_an_error_in_it_ends_nothing() -> None:
    assert not RPC.is_end({"method": "x", "params": {"subscription": 1, "result": {}, "error": None}})


# --- whatever may come

ASKED = [
    ({"method": "m"}, {"jsonrpc": "2.0", "method": "m", "id": 1}),
    (BATCH, RPC.tag(BATCH, NewId(1, "c0ffee1"))[0]),
    ({"method": "public/subscribe"}, {"method": "public/subscribe", "id": 1}),
]


@given(messages, st.sampled_from(ASKED))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, asked: Any) -> None:
    never_raises(RPC, message, Asked(*asked, 1))
    RPC.unsubscribe("t", message)


def test_what_is_nested_deeply_or_huge_is_no_trouble() -> None:
    never_raises(RPC, nested())
    never_raises(RPC, [nested()] * 3)
    never_raises(RPC, {"id": "[" * 1_000_000 + "]", "result": 0})
    never_raises(RPC, [{"id": number, "result": 0} for number in range(10_000)])


@given(st.lists(st.dictionaries(st.sampled_from(["id", "params"]), st.integers() | st.text()), min_size=1))
def test_any_batch_comes_back_with_the_caller_s_ids(calls: list[dict[str, Any]]) -> None:
    batch = [{**call, "method": "m"} for call in calls]
    conversation = talk()
    call = conversation.ask(batch)
    wanted = [each["id"] for each in batch if "id" in each]
    reply = [{"id": each["id"], "result": each["id"]} for each in conversation.out[0] if "id" in each]
    if reply:
        conversation.comes(reply[::-1])
        assert [each["id"] for each in call.result(RPC)] == wanted
    else:
        assert call.result(RPC) is None
