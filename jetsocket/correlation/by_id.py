"""Any protocol whose requests and replies carry an id at a place that a path names."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

from jetsocket.correlation.base import Asked, Correlation, NewId, Topics
from jetsocket.correlation.paths import TopicPath, look_up, names_of
from jetsocket.correlation.reading import key_of, member, needs_object, reply_error, with_member, with_value
from jetsocket.exceptions import ReplyError

__all__ = ["ById"]

Paths: TypeAlias = str | Sequence[str]
_SUCCESS: tuple[Hashable, ...] = (0, 200, "0", "00000", "200")


class ById(Correlation):
    """Any protocol whose requests and replies carry an id; paths say where.

    ::

        binance = ById("id")  # https://developers.binance.com/docs/binance-spot-api-docs/web-socket-api
        with ConnectionPool(base_uri="wss://ws-api.binance.com:443", correlation=binance) as pool:
            time = pool.request("/ws-api/v3", {"method": "time"})["result"]["serverTime"]

    With subscriptions, for Binance's streams at `/stream`, Bybit, Kraken and OKX::

        # https://developers.binance.com/docs/binance-spot-api-docs/web-socket-streams
        ById("id", topic_path="stream", sent_topic_path="params", unsubscribe={"method": "UNSUBSCRIBE"})

        # https://bybit-exchange.github.io/docs/v5/ws/connect
        ById(
            "req_id",
            topic_path="topic",
            sent_topic_path="args",
            unsubscribe={"op": "unsubscribe"},
            as_text=True,
            heartbeat={"op": "ping"},
        )

        # https://docs.kraken.com/api/docs/guides/spot-ws-intro
        ById(
            "req_id",
            topic_path=("channel", "data.*.symbol"),
            ack_topic_path=("result.channel", "result.symbol"),
            sent_topic_path=("params.channel", "params.symbol"),
            unsubscribe={"method": "unsubscribe"},
        )

        # https://www.okx.com/docs-v5/en/#overview-websocket
        ById(
            "id",
            topic_path=("arg.channel", "arg.instId"),
            ack_topic_path=("arg.channel", "arg.instId"),
            sent_topic_path=("args.*.channel", "args.*.instId"),
            unsubscribe={"op": "unsubscribe"},
            code_path="code",
            as_text=True,
            heartbeat="ping",
        )

    - **One subscribe that is acknowledged several times**, once for each topic (OKX, Kraken), is under way
      until all have come. At an error it is over: a `ReplyError`.
    - **An error** is a reply whose `error` is there and neither null nor false, whose `success` is false,
      whose `event` is "error", or whose code (at `code_path`) is none of success. For other services,
      override `error`.
    - **A reply is told by its id alone.** Where pushes carry an id of another kind at the same place,
      override `key`. Ids compare strictly: "7" is not 7.
    """

    def __init__(
        self,
        request_path: str,
        reply_path: str | None = None,
        *,
        topic_path: Paths | None = None,
        ack_topic_path: Paths | None = None,
        unsubscribe: Callable[[Hashable, Any], Any] | Mapping[str, Any] | None = None,
        sent_topic_path: Paths | None = None,
        code_path: str | None = None,
        as_text: bool = False,
        heartbeat: Any = None,
    ) -> None:
        """Make one for any number of pools.

        A path is dotted: "params.id"; a number is one member of a list: "args.0.id". In those of topics, `*`
        is each member of a list, and a list at the end stands for each of what is in it. Several paths
        together name one topic.

        Args:
            request_path: Where a request carries its id.
            reply_path: Where a reply does; None: at the same place.
            topic_path: Where a push names its topic.
            ack_topic_path: Where the reply to a subscribe names the topic that it opens. With
                `sent_topic_path`, such replies are counted until all topics are named.
            unsubscribe: What ends a subscription: a function of the topic and of the message that subscribed;
                or what differs from that message, by path: `{"op": "unsubscribe"}`. Of a message with several
                topics, only the one that ends is named.
            sent_topic_path: Where the message that subscribes names its topics.
            code_path: Where a reply carries a code; 0, "0", "00000", 200 and none at all are success.
            as_text: Whether ids are texts ("7"). They are, too, where the caller's own is.
            heartbeat: A message for services that want one (see `Correlation`).

        Raises:
            TypeError: No path, or an `unsubscribe` that is neither a function nor a mapping.
            ValueError: A path with an empty name, or with several lists.
        """
        self._request = names_of(request_path, "request_path")
        # The one name of both paths, as of most protocols; None: there are more.
        self._reply = self._request if reply_path is None else names_of(reply_path, "reply_path")
        self._name = self._request[0] if len(self._request) == 1 and self._reply == self._request else None
        self._topic = None if topic_path is None else TopicPath(topic_path, "topic_path")
        self._ack = None if ack_topic_path is None else TopicPath(ack_topic_path, "ack_topic_path")
        self._sent = None if sent_topic_path is None else TopicPath(sent_topic_path, "sent_topic_path")
        self._code = None if code_path is None else names_of(code_path, "code_path")
        self._as_text = as_text
        self._changes = _changes(unsubscribe)
        self._make_end = unsubscribe if callable(unsubscribe) else None
        self.heartbeat = heartbeat

    # --- requests

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Give a request our id."""
        name = self._name
        request = message if type(message) is dict else needs_object(message, "a request")
        old = look_up(message, self._request) if name is None else request.get(name)
        given = str(new_id.number) if self._as_text or isinstance(old, str) else new_id.number
        if name is None:
            return with_member(request, given, *self._request), given
        return {**request, name: given}, given

    def asks(self, message: Any) -> Hashable | None:
        """The id of a request that is sent as it is."""
        return key_of(look_up(message, self._request))

    def key(self, message: Any) -> Hashable | None:
        """The id of a reply."""
        if self._name is None or type(message) is not dict:
            return key_of(look_up(message, self._reply))
        found = message.get(self._name)
        return found if type(found) is int else key_of(found)

    def is_last(self, message: Any, asked: Asked) -> bool:
        """A subscribe may be acknowledged once for each topic."""
        if self._ack is None or self._sent is None or self.error(message) is not None:
            return True
        named = len(self._ack.topics(message))
        if not named:
            return True
        acknowledged: int = asked.notes.get("acknowledged", 0) + named
        asked.notes["acknowledged"] = acknowledged
        return acknowledged >= len(self._sent.topics(asked.sent))

    def error(self, message: Any) -> ReplyError | None:
        """What the usual signs say is an error."""
        if not isinstance(message, dict):
            return None
        if self._code is None and not ("error" in message or "success" in message or "event" in message):
            return None  # nearly always
        found = message.get("error")
        code = None if self._code is None else key_of(look_up(message, self._code))
        if found is None or found is False or found == "":
            said = message.get("success") is False or message.get("event") == "error"
            if not said and (code is None or code in _SUCCESS):
                return None
            found = message
        text = found if isinstance(found, str) else _first(found, "message", "msg", "ret_msg", "retMsg")
        number = code if code not in (None, *_SUCCESS) else _first(found, "code", "retCode", "ret_code")
        return reply_error(number, text, data=None if found is message else found, reply=message)

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's id back."""
        if self._name is not None and type(message) is dict:  # nearly always
            given = message.get(self._name)
        else:
            given = look_up(message, self._request)
        if given is None or look_up(reply, self._reply) is None:
            return reply
        return with_value(reply, given, self._reply)

    # --- subscriptions

    def topic(self, message: Any) -> Topics:
        """What stands at `topic_path`."""
        return None if self._topic is None else self._topic.topics(message) or None

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """What stands at `sent_topic_path` or, without that, at `ack_topic_path`; once there is a reply."""
        if reply is None:
            return None
        if self._sent is not None:
            return self._sent.topics(sent) or None
        return None if self._ack is None else self._ack.topics(reply) or None

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """What `unsubscribe` says."""
        if self._make_end is not None:
            return self._make_end(topic, sent)
        if not self._changes:
            return None
        message = dict(sent) if self._sent is None else self._sent.narrowed(sent, topic)
        for names, value in self._changes:
            message = with_member(message, value, *names)
        return message


def _changes(unsubscribe: object) -> list[tuple[tuple[str, ...], Any]]:
    if unsubscribe is None or callable(unsubscribe):
        return []
    if not isinstance(unsubscribe, Mapping):
        raise TypeError(f"unsubscribe must be a function or a mapping, not {type(unsubscribe).__name__}")
    return [(names_of(path, "a key of unsubscribe"), value) for path, value in unsubscribe.items()]


def _first(message: object, *names: str) -> Any:
    return next((value for name in names if (value := member(message, name)) is not None), None)
