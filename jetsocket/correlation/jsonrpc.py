"""JSON-RPC 2.0: calls, batches, and the ways in which services push over it."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from jetsocket.correlation.base import Asked, Correlation, NewId, Topics
from jetsocket.correlation.reading import (
    key_of,
    member,
    needs_object,
    put_back,
    reply_error,
    text_of,
    with_member,
)
from jetsocket.exceptions import ReplyError

__all__ = ["JsonRpc"]

_SUBSCRIBE = re.compile("subscribe|Subscribe")
_MEMBER = re.compile(r"(?s:(.+))\[([0-9]{1,9})\]")  # a call of a batch: the id of the batch, its place there
_OUR_TEST = "jetsocket-test"  # the id under which Deribit is told that we are there


class _Batch(NamedTuple):
    """The key of a batch: an id of ours, or the ids of one that was sent as it is."""

    ids: Hashable


class JsonRpc(Correlation):
    """JSON-RPC 2.0 (https://www.jsonrpc.org/specification) over WebSocket.

    For Ethereum nodes and what speaks as they do
    (https://geth.ethereum.org/docs/interacting-with-geth/rpc/pubsub), Solana
    (https://solana.com/docs/rpc/websocket), Deribit (https://docs.deribit.com), Substrate, aria2
    (https://aria2.github.io/manual/en/html/aria2c.html#json-rpc-over-websocket) and others::

        with ConnectionPool(base_uri="wss://node.example.com", correlation=JsonRpc()) as pool:
            head = pool.request("/", {"method": "eth_blockNumber", "params": []})["result"]
            with pool.subscribe("/", {"method": "eth_subscribe", "params": ["newHeads"]}) as heads:
                for head in heads:
                    print(head["params"]["result"]["number"])

    - **Calls**: `"jsonrpc": "2.0"` is added where it is missing, and the id is a number of ours. What is
      requested is a call, with an id or without; a notification goes out through `send`.
    - **Batches**: a list of calls is one request, and its result the list of the replies in the order of the
      calls, errors among them: look at each. Members without an id are notifications and stay so. The reply
      may be one array, in any order, or a reply for each; an array is the whole reply, even if a call is
      missing in it (geth answers a batch that is too large so). Ids in a batch are texts of ours; not every
      service takes batches (Deribit does not).
    - **Errors** raise `ReplyError`. One with the id null is for no asker: it may be the answer to a request
      which the caller has given up long since. It goes to `on_push`.
    - **The server's own requests** carry ids of the server's, which may equal ours: a message with a `method`
      and without a result is never a reply.
    - **Subscriptions**: the topic is `params.subscription` of a notification and the result of the call that
      subscribed (Ethereum, Solana, Substrate), or `params.channel` and the list of channels (Deribit). The
      method that ends one is named after the one that began it: `eth_unsubscribe`, `accountUnsubscribe`,
      `public/unsubscribe`, `chain_unsubscribeNewHeads`. Where it is not, say so::

          JsonRpc(unsubscribe={"author_submitAndWatchExtrinsic": "author_unwatchExtrinsic"})

      A notification with `params.error` ends its subscription (Substrate). Solana ends a `signatureSubscribe`
      after its one notification without a word; unsubscribing from it is then answered with an error.
    - Deribit's `test_request` (`public/set_heartbeat`) is answered, and the reply to that dropped.
    """

    def __init__(self, *, unsubscribe: Mapping[str, str] | None = None) -> None:
        """Make one for any number of pools.

        Args:
            unsubscribe: For each method that subscribes, the one that ends it; for those that are not named
                after it.
        """
        self._unsubscribe = dict(unsubscribe or {})

    # --- requests

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Give a call our id, or each call of a batch one."""
        if isinstance(message, (list, tuple)):
            return _tag_batch(message, new_id)
        call = message if type(message) is dict else needs_object(message, "a JSON-RPC call")
        number = new_id.number
        if type(call.get("method")) is str:  # nearly always
            return {"jsonrpc": "2.0", **call, "id": number}, number
        if "method" not in call and ("result" in call or "error" in call):
            return message, None  # the reply to a request of the server's
        return {**_checked(call), "id": number}, number

    def asks(self, message: Any) -> Hashable | None:
        """The id of a call that is sent as it is."""
        if isinstance(message, list):
            ids = frozenset(key_of(each["id"]) for each in message if _is_call(each)) - {None}
            return _Batch(ids) if ids else None
        return _key(message["id"]) if _is_call(message) else None

    def split(self, message: Any) -> Iterable[Any]:
        """The messages in an array: the replies to one batch stay together."""
        if isinstance(message, dict):
            return () if message.get("id") == _OUR_TEST else (message,)
        return _split(message) if isinstance(message, list) and message else (message,)

    def key(self, message: Any) -> Hashable | None:
        """The id of a reply, or the batch to which it belongs."""
        if isinstance(message, dict):
            value = message.get("id")
            if type(value) is int and "method" not in message:  # nearly always
                return value
            return _key(value) if _is_reply(message) else None
        if isinstance(message, list):
            keys = [_key(each["id"]) for each in message if _is_reply(each)]
            batch = next((key for key in keys if isinstance(key, _Batch)), None)
            ids = frozenset(keys) - {None}
            return batch or (_Batch(ids) if ids else None)
        return None

    def is_last(self, message: Any, asked: Asked) -> bool:
        """A batch may be answered one by one."""
        if not isinstance(asked.sent, list) or isinstance(message, list):
            return True
        answered: set[Hashable] = asked.notes.setdefault("answered", set())
        answered.add(key_of(member(message, "id")))
        return len(answered) >= sum(_is_call(each) for each in asked.sent)

    def error(self, message: Any) -> ReplyError | None:
        """What stands under `error` of a reply or, of the end of a subscription, under `params.error`.

        Not of a call in a batch: that is for the caller to see, beside the results of the others.
        """
        if not isinstance(message, dict):
            return None
        found = message.get("error")
        if found is None and "method" in message and self.is_end(message):
            found = message["params"]["error"]
        if found is None or found is False:  # JSON-RPC 1.0 has both, result and error, one of them null
            return None
        if _place(message) is not None:
            return None
        if isinstance(found, dict):
            return reply_error(found.get("code"), found.get("message"), data=found.get("data"), reply=message)
        return reply_error(None, found, data=found, reply=message)

    def result(self, replies: Sequence[Any], asked: Asked) -> Any:
        """The reply; of a batch, all of them in the order of its calls."""
        if not isinstance(asked.sent, list):
            return replies[-1]
        placed: dict[int, Any] = {}
        others = []
        for reply in _flat(replies):
            place = _place(reply)
            if place is None:
                others.append(reply)
            else:
                placed.setdefault(place, reply)
        return [placed[place] for place in sorted(placed)] + others

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's ids back, in each member of a batch its own."""
        if type(message) is dict and message.get("id") is None:  # nearly always
            return reply
        if not isinstance(message, (list, tuple)):
            return put_back(reply, message, "id")
        if isinstance(reply, list):
            return [self.untag(each, message) for each in reply]
        place = _place(reply)
        if place is None or place >= len(message):
            return reply
        return with_member(reply, member(message[place], "id"), "id")

    # --- subscriptions

    def topic(self, message: Any) -> Topics:
        """The subscription or channel that a notification names."""
        if not isinstance(message, dict) or message.get("id") is not None or "method" not in message:
            return None
        subscription = key_of(member(message, "params", "subscription"))
        if subscription is None and message["method"] == "subscription":
            return key_of(member(message, "params", "channel"))
        return subscription

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """The id, or the list of channels, that is the result of subscribing."""
        result = member(reply, "result")
        if isinstance(result, list):
            return [topic for topic in map(key_of, result) if topic is not None]
        return key_of(result)

    def is_end(self, message: Any) -> bool:
        """A notification that carries an error and no result ends its subscription (Substrate)."""
        if self.topic(message) is None:
            return False
        params: dict[str, Any] = message["params"]
        return "error" in params and "result" not in params

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """The call that ends it, named after the one that began it."""
        method = text_of(member(sent, "method"))
        ends = self._unsubscribe.get(method)
        if ends is None:
            found = list(_SUBSCRIBE.finditer(method))
            if not found:
                return None
            name = "unsubscribe" if found[-1].group() == "subscribe" else "Unsubscribe"
            ends = method[: found[-1].start()] + name + method[found[-1].end() :]
        channels = member(sent, "params", "channels") is not None
        return {"jsonrpc": "2.0", "method": ends, "params": {"channels": [topic]} if channels else [topic]}

    def answer(self, message: Any) -> Any | None:
        """Deribit asks for a sign of life, and refuses a call without an id."""
        if not isinstance(message, dict) or message.get("method") != "heartbeat":
            return None
        if member(message, "params", "type") != "test_request":
            return None
        return {"jsonrpc": "2.0", "id": _OUR_TEST, "method": "public/test", "params": {}}


def _checked(call: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(call.get("method"), str):
        raise ValueError("a JSON-RPC call names its method, a text")
    return {"jsonrpc": "2.0", **call}


def _tag_batch(batch: Sequence[Any], new_id: NewId) -> tuple[list[Any], Hashable | None]:
    if not batch:
        raise ValueError("a JSON-RPC batch has one call at least: an empty one is answered without an id")
    sent = []
    for place, each in enumerate(batch):
        call = _checked(needs_object(each, "a call in a JSON-RPC batch"))
        sent.append({**call, "id": f"{new_id.text}[{place}]"} if "id" in call else call)
    return sent, _Batch(new_id.text) if any("id" in each for each in sent) else None


def _is_call(message: object) -> bool:
    return isinstance(message, dict) and "method" in message and message.get("id") is not None


def _is_reply(message: object) -> bool:
    """Whether this is a reply that can be told by its id."""
    if not isinstance(message, dict) or message.get("id") is None:
        return False
    return "method" not in message or "result" in message or "error" in message


def _key(value: object) -> Hashable | None:
    if isinstance(value, str) and value.endswith("]"):
        found = _MEMBER.fullmatch(value)
        if found is not None:
            return _Batch(found[1])
    return key_of(value)


def _place(reply: object) -> int | None:
    """Where in its batch the call stands that this replies to."""
    value = member(reply, "id")
    found = _MEMBER.fullmatch(value) if isinstance(value, str) else None
    return int(found[2]) if found else None


def _flat(replies: Sequence[Any]) -> Iterator[Any]:
    for reply in replies:
        yield from reply if isinstance(reply, list) else (reply,)


def _split(members: list[Any]) -> Iterator[Any]:
    """What is no reply goes alone; replies stay together, those to each batch of ours among themselves."""
    batches: dict[Hashable, list[Any]] = {}
    nameless = []  # errors with the id null
    for each in members:
        if _is_reply(each):
            key = _key(each["id"])
            batches.setdefault(key if isinstance(key, _Batch) else None, []).append(each)
        elif isinstance(each, dict) and "method" not in each and "error" in each:
            nameless.append(each)
        else:
            yield each
    if len(batches) == 1:
        batches[next(iter(batches))] += nameless
        nameless = []
    yield from batches.values()
    yield from nameless
