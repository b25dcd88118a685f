"""Ids at a path: conversations with exchanges from their documents, and what traps they hold."""

from __future__ import annotations

from collections.abc import Hashable
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation import Asked, ById, NewId
from jetsocket.exceptions import ReplyError
from tests.correlation.driver import Conversation
from tests.correlation.garbage import messages, nested, never_raises

BINANCE = ById("id")
BINANCE_STREAMS = ById(
    "id", topic_path="stream", sent_topic_path="params", unsubscribe={"method": "UNSUBSCRIBE"}
)
BYBIT = ById(
    "req_id",
    topic_path="topic",
    sent_topic_path="args",
    unsubscribe={"op": "unsubscribe"},
    as_text=True,
    heartbeat={"op": "ping"},
)
BYBIT_TRADE = ById("reqId", code_path="retCode", as_text=True)
KRAKEN = ById(
    "req_id",
    topic_path=("channel", "data.*.symbol"),
    ack_topic_path=("result.channel", "result.symbol"),
    sent_topic_path=("params.channel", "params.symbol"),
    unsubscribe={"method": "unsubscribe"},
)
OKX = ById(
    "id",
    topic_path=("arg.channel", "arg.instId"),
    ack_topic_path=("arg.channel", "arg.instId"),
    sent_topic_path=("args.*.channel", "args.*.instId"),
    unsubscribe={"op": "unsubscribe"},
    code_path="code",
    as_text=True,
    heartbeat="ping",
)
ALL = [BINANCE, BINANCE_STREAMS, BYBIT, BYBIT_TRADE, KRAKEN, OKX, ById("a.b.c", "d.e")]


# --- Binance


def test_a_mapping_that_is_no_dict_gets_its_own_id_back() -> None:
    own = MappingProxyType({"id": "mine", "op": "a"})
    assert ById("id").untag({"id": "1"}, own) == {"id": "mine"}
    nested = MappingProxyType({"args": [MappingProxyType({"id": 7})]})
    assert ById("args.0.id", "id").untag({"id": "1"}, nested) == {"id": 7}


def test_binance_answers_with_the_id() -> None:
    """https://developers.binance.com/docs/binance-spot-api-docs/web-socket-api"""
    conversation = Conversation(BINANCE)
    call = conversation.ask(
        {"id": "e2a85d9f-07a5-4f94-8d5f-789dc3deb097", "method": "order.place", "params": {}}
    )
    assert conversation.out == [{"id": "1", "method": "order.place", "params": {}}], "a text, as the caller's"
    conversation.comes({"id": "1", "status": 200, "result": {"orderId": 12510053279}})
    assert call.result(BINANCE)["id"] == "e2a85d9f-07a5-4f94-8d5f-789dc3deb097"


def test_binance_says_what_is_wrong() -> None:
    conversation = Conversation(BINANCE)
    call = conversation.ask({"method": "order.place"})
    said = {"code": -2010, "msg": "Account has insufficient balance for requested action."}
    conversation.comes({"id": 1, "status": 400, "error": said, "rateLimits": []})
    with pytest.raises(ReplyError, match="-2010: Account has insufficient") as caught:
        call.result(BINANCE)
    assert (caught.value.code, caught.value.data) == (-2010, said)


def test_binance_acknowledges_several_streams_with_null() -> None:
    """https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams"""
    conversation = Conversation(BINANCE_STREAMS)
    streams = ["btcusdt@aggTrade", "btcusdt@depth"]
    feed = conversation.subscribe({"method": "SUBSCRIBE", "params": streams})
    pushes = [{"stream": stream, "data": {"s": "BTCUSDT"}} for stream in streams]
    conversation.comes({"result": None, "id": 1}, *pushes, {"stream": "ethusdt@depth", "data": {}})
    assert feed.topics == streams and feed.pushes == pushes
    assert conversation.unasked == [{"stream": "ethusdt@depth", "data": {}}]
    conversation.unsubscribe(feed)
    assert conversation.out[1:] == [
        {"method": "UNSUBSCRIBE", "params": ["btcusdt@aggTrade"], "id": 2},
        {"method": "UNSUBSCRIBE", "params": ["btcusdt@depth"], "id": 3},
    ]


# --- Bybit


def test_bybit_takes_texts_and_acknowledges_once() -> None:
    """https://bybit-exchange.github.io/docs/v5/ws/connect"""
    conversation = Conversation(BYBIT)
    feed = conversation.subscribe({"op": "subscribe", "args": ["orderbook.1.BTCUSDT", "tickers.ETHUSDT"]})
    assert conversation.out[0]["req_id"] == "1"
    push = {"topic": "tickers.ETHUSDT", "type": "snapshot", "ts": 1, "data": {}}
    conversation.comes(
        push, {"success": True, "ret_msg": "", "conn_id": "2324d924", "req_id": "1", "op": "subscribe"}
    )
    assert feed.pushes == [push]
    conversation.unsubscribe(feed)
    assert [each["args"] for each in conversation.out[1:]] == [["orderbook.1.BTCUSDT"], ["tickers.ETHUSDT"]]
    assert [each["op"] for each in conversation.out[1:]] == ["unsubscribe", "unsubscribe"]
    assert BYBIT.heartbeat == {"op": "ping"}


def test_bybit_refuses_without_success() -> None:
    conversation = Conversation(BYBIT)
    feed = conversation.subscribe({"op": "subscribe", "args": ["nope"]})
    conversation.comes({"success": False, "ret_msg": "Invalid topic", "conn_id": "2324d924", "req_id": "1"})
    assert isinstance(feed.error, ReplyError) and feed.error.message == "Invalid topic"


def test_bybit_s_orders_have_a_code() -> None:
    """https://bybit-exchange.github.io/docs/v5/websocket/trade/guideline"""
    conversation = Conversation(BYBIT_TRADE)
    good, bad = conversation.ask({"op": "order.create"}), conversation.ask({"op": "order.create"})
    conversation.comes(
        {"reqId": "2", "retCode": 10001, "retMsg": "Parameter error", "op": "order.create", "data": {}},
        {"reqId": "1", "retCode": 0, "retMsg": "OK", "op": "order.create", "data": {"orderId": "x"}},
    )
    assert good.result(BYBIT_TRADE)["data"] == {"orderId": "x"}
    with pytest.raises(ReplyError, match="10001: Parameter error"):
        bad.result(BYBIT_TRADE)


# --- Kraken


def kraken_ack(symbol: str, number: int = 1) -> dict[str, Any]:
    result = {"channel": "ticker", "snapshot": True, "symbol": symbol}
    return {"method": "subscribe", "req_id": number, "result": result, "success": True}


def test_kraken_acknowledges_each_symbol() -> None:
    """https://docs.kraken.com/api/docs/websocket-v2/ticker"""
    conversation = Conversation(KRAKEN)
    symbols = ["BTC/USD", "ETH/USD", "SOL/USD"]
    feed = conversation.subscribe({"method": "subscribe", "params": {"channel": "ticker", "symbol": symbols}})
    push = {"channel": "ticker", "type": "snapshot", "data": [{"symbol": "ETH/USD"}, {"symbol": "BTC/USD"}]}
    conversation.comes(kraken_ack("ETH/USD"), push, kraken_ack("BTC/USD"))
    assert feed.topics == [], "one is still to be acknowledged"
    conversation.comes(kraken_ack("SOL/USD"))
    assert feed.topics == [("ticker", symbol) for symbol in symbols]
    assert feed.pushes == [push], "once, though it names two of them"
    other = {"channel": "ticker", "type": "update", "data": [{"symbol": "XRP/USD"}]}
    conversation.comes(other, {"channel": "heartbeat"})
    assert conversation.unasked == [other, {"channel": "heartbeat"}]
    conversation.unsubscribe(feed)
    assert conversation.out[1:] == [
        {"method": "unsubscribe", "params": {"channel": "ticker", "symbol": [symbol]}, "req_id": number}
        for number, symbol in enumerate(symbols, 2)
    ]


def test_kraken_s_unsubscribe_is_acknowledged_once() -> None:
    conversation = Conversation(KRAKEN)
    sent = {"method": "subscribe", "params": {"channel": "ticker", "symbol": ["BTC/USD", "ETH/USD"]}}
    call = conversation.ask(KRAKEN.unsubscribe(("ticker", "ETH/USD"), sent))
    conversation.comes(kraken_ack("ETH/USD"))
    assert call.done


def test_an_error_ends_a_subscribe_that_would_be_acknowledged_more_often() -> None:
    conversation = Conversation(KRAKEN)
    feed = conversation.subscribe(
        {"method": "subscribe", "params": {"channel": "ticker", "symbol": ["BTC/USD", "XX/YY"]}}
    )
    refused = {
        "error": "Currency pair not supported XX/YY",
        "method": "subscribe",
        "success": False,
        "req_id": 1,
    }
    conversation.comes(kraken_ack("BTC/USD"), refused)
    assert isinstance(feed.error, ReplyError) and feed.error.message == "Currency pair not supported XX/YY"


def test_a_request_that_is_no_subscribe_has_one_reply() -> None:
    conversation = Conversation(KRAKEN)
    call = conversation.ask({"method": "add_order", "params": {"symbol": ["BTC/USD", "ETH/USD"]}})
    conversation.comes({"method": "add_order", "req_id": 1, "result": {"order_id": "x"}, "success": True})
    assert call.result(KRAKEN)["result"] == {"order_id": "x"}


# --- OKX


def test_okx_acknowledges_each_channel() -> None:
    """https://www.okx.com/docs-v5/en/#overview-websocket-subscribe"""
    conversation = Conversation(OKX)
    args = [{"channel": "tickers", "instId": "LTC-USD"}, {"channel": "candle1m", "instId": "LTC-USD"}]
    feed = conversation.subscribe({"id": "1512", "op": "subscribe", "args": args})
    assert conversation.out[0]["id"] == "1"
    acks = [{"id": "1", "event": "subscribe", "arg": arg, "connId": "accb8e21"} for arg in args]
    push = {"arg": {**args[0], "uid": "77982378738415879"}, "data": [{}]}
    conversation.comes(acks[1], push, acks[0])
    assert feed.topics == [("tickers", "LTC-USD"), ("candle1m", "LTC-USD")]
    assert feed.pushes == [push], "its arg has more members than the one that was subscribed"
    assert conversation.unasked == []
    conversation.unsubscribe(feed)
    assert [each["args"] for each in conversation.out[1:]] == [[args[0]], [args[1]]]
    assert {each["op"] for each in conversation.out[1:]} == {"unsubscribe"}


def test_okx_names_an_error_as_an_event() -> None:
    conversation = Conversation(OKX)
    feed = conversation.subscribe({"op": "subscribe", "args": [{"channel": "nope", "instId": "LTC-USD"}]})
    conversation.comes(
        {"id": "1", "event": "error", "code": "60012", "msg": "Invalid request", "connId": "a4d3ae55"}
    )
    assert isinstance(feed.error, ReplyError)
    assert (feed.error.code, feed.error.message) == ("60012", "Invalid request")


def test_okx_s_orders_have_a_code() -> None:
    conversation = Conversation(OKX)
    good, bad = (
        conversation.ask({"op": "order", "args": [{}]}),
        conversation.ask({"op": "order", "args": [{}]}),
    )
    conversation.comes(
        {"id": "1", "op": "order", "data": [{"sCode": "0"}], "code": "0", "msg": ""},
        {"id": "2", "op": "order", "data": [{"sCode": "51008"}], "code": "1", "msg": ""},
    )
    assert good.result(OKX)["code"] == "0"
    with pytest.raises(ReplyError) as caught:
        bad.result(OKX)
    assert caught.value.code == "1" and caught.value.reply["data"] == [{"sCode": "51008"}]


def test_okx_wants_a_text_as_a_sign_of_life() -> None:
    assert OKX.heartbeat == "ping"


# --- ids


def test_paths_may_differ_and_lead_inside() -> None:
    nested_ids = ById("header.id", "meta.for")
    conversation = Conversation(nested_ids)
    first = conversation.ask({"header": {"id": 5, "kind": "a"}})
    second = conversation.ask({"kind": "b"})
    assert conversation.out == [{"header": {"id": 1, "kind": "a"}}, {"kind": "b", "header": {"id": 2}}]
    conversation.comes({"meta": {"for": 2}, "header": {"id": 1}}, {"meta": {"for": 1}})
    assert first.result(nested_ids) == {"meta": {"for": 5}}
    assert second.result(nested_ids) == {"meta": {"for": 2}, "header": {"id": 1}}


@pytest.mark.parametrize("sequence", [list, tuple])
def test_paths_may_lead_through_lists(sequence: Any) -> None:
    listed = ById("args.1.id", "0")
    conversation = Conversation(listed)
    message = {"op": "q", "args": sequence([{"id": "x"}, {"id": "mine", "n": 7}])}
    request = conversation.ask(message)
    assert conversation.out == [{"op": "q", "args": [{"id": "x"}, {"id": "1", "n": 7}]}]
    assert message == {"op": "q", "args": sequence([{"id": "x"}, {"id": "mine", "n": 7}])}
    assert listed.asks(message) == "mine"
    conversation.comes(["1", {"price": 3}])
    assert request.result(listed) == ["mine", {"price": 3}]


def test_an_id_has_a_place_in_the_list_to_which_its_path_leads() -> None:
    with pytest.raises(ValueError, match="a path leads to '1' of a list that has 1 members"):
        Conversation(ById("args.1.id")).ask({"args": [{"id": 7}]})
    with pytest.raises(ValueError, match="a path leads to 'id' of a list"):
        Conversation(ById("args.id")).ask({"args": [7]})


@pytest.mark.parametrize("other", [True, "1", None, 1.5, [1]])
def test_a_key_is_strict(other: Any) -> None:
    assert BINANCE.key({"id": other}) != 1


def test_a_number_is_no_text() -> None:
    conversation = Conversation(BYBIT)
    call = conversation.ask({"op": "auth"})
    conversation.comes({"req_id": 1, "success": True})
    assert not call.done


def test_what_was_sent_as_it_is_asks_for_its_id() -> None:
    both = ById("header.id", "meta.for")
    assert both.asks({"header": {"id": 7}}) == both.key({"meta": {"for": 7}}) == 7
    assert BINANCE.asks({"method": "ping"}) is None


def test_a_reply_without_an_id_gets_none() -> None:
    assert BINANCE.untag({"result": 1}, {"id": 7}) == {"result": 1}


@pytest.mark.parametrize(
    "reply", [{"id": 1, "error": None}, {"id": 1, "error": False}, {"id": 1, "error": ""}]
)
def test_an_error_that_is_none_is_none(reply: Any) -> None:
    assert BINANCE.error(reply) is None


def test_zero_is_an_error_s_code_of_success_in_whatever_form() -> None:
    by_id = ById("id", code_path="c")
    assert [by_id.error({"c": code}) for code in (0, "0", 200, None, 0.0)] == [None] * 5
    assert all(by_id.error({"c": code}) for code in (1, "1", 404, -1, "51000"))


# --- subscriptions


def test_without_paths_there_are_no_subscriptions() -> None:
    assert BINANCE.topic({"stream": "x"}) is None
    assert BINANCE.topic_of({"params": ["x"]}, {"id": 1}) is None
    assert BINANCE.unsubscribe("x", {"params": ["x"]}) is None


def test_the_reply_may_name_the_topic() -> None:
    by_id = ById("id", topic_path="sub", ack_topic_path="result.sub")
    assert by_id.topic_of({"id": 1}, None) is None
    assert by_id.topic_of({"id": 1}, {"id": 1, "result": {"sub": "s-7"}}) == ["s-7"]


def test_what_ends_a_subscription_may_be_a_function() -> None:
    def end(topic: Hashable, sent: Any) -> Any:
        return {"stop": topic, "was": sent["op"]}

    assert ById("id", unsubscribe=end).unsubscribe("t", {"op": "start"}) == {"stop": "t", "was": "start"}


def test_what_subscribed_stays_as_it_is() -> None:
    sent = {"method": "SUBSCRIBE", "params": ["a", "b"], "id": 1}
    BINANCE_STREAMS.unsubscribe("a", sent)
    assert sent == {"method": "SUBSCRIBE", "params": ["a", "b"], "id": 1}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"request_path": ""}, ValueError),
        ({"request_path": None}, TypeError),
        ({"request_path": "a", "reply_path": "a..b"}, ValueError),
        ({"request_path": "a", "topic_path": []}, ValueError),
        ({"request_path": "a", "code_path": ""}, ValueError),
        ({"request_path": "a", "unsubscribe": "UNSUBSCRIBE"}, TypeError),
        ({"request_path": "a", "unsubscribe": {"": 1}}, ValueError),
    ],
)
def test_what_can_not_be_followed_is_refused_at_once(arguments: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        ById(**arguments)


@pytest.mark.parametrize("message", ["ping", [], None, 7])
def test_what_is_no_object_is_a_wrong_argument(message: Any) -> None:
    with pytest.raises(TypeError):
        BINANCE.tag(message, NewId(1, "a"))


# --- whatever may come

SENT = {
    "id": 1,
    "req_id": 1,
    "params": {"channel": "t", "symbol": ["A", "B"]},
    "args": [{"channel": "c"}, "t", 7],
}


@given(messages, st.sampled_from(ALL))
def test_whatever_comes_is_looked_at_without_an_exception(message: Any, by_id: ById) -> None:
    never_raises(by_id, message, Asked({"id": 7}, SENT, 1))


@given(st.dictionaries(st.sampled_from(["params", "args", "id", "a"]), messages), st.sampled_from(ALL))
def test_whatever_was_sent_can_be_ended(sent: Any, by_id: ById) -> None:
    topics = by_id.topic_of(sent, {})
    for topic in topics if isinstance(topics, list) else ():
        by_id.unsubscribe(topic, sent)


def test_what_is_nested_deeply_is_no_trouble() -> None:
    for by_id in ALL:
        never_raises(by_id, nested(), Asked({}, nested(), 1))
        never_raises(by_id, {"arg": nested(), "stream": nested(), "topic": nested(), "data": [nested()]})
