"""GraphQL over WebSocket, by the protocol graphql-transport-ws."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

from jetsocket.correlation.base import Asked, Correlation, NewId, Opened, Topics
from jetsocket.correlation.reading import (
    key_of,
    member,
    needs_object,
    put_back,
    reply_error,
    text_of,
    unexpected,
)
from jetsocket.exceptions import ReplyError

__all__ = ["GraphQLTransportWs"]

_OF_OPERATION = ("next", "error", "complete")
_ENDS = ("error", "complete")
_WITHOUT_REPLY = ("complete", "connection_init", "ping", "pong")
_MOST_BEFORE_ACK = 1000  # messages; a server that pings for ever never acknowledges


class GraphQLTransportWs(Correlation):
    """GraphQL over WebSocket (https://github.com/enisdenjo/graphql-ws/blob/master/PROTOCOL.md).

    The subprotocol is `graphql-transport-ws`, not the older `graphql-ws`. An operation is the whole message
    (`{"type": "subscribe", "payload": {…}}`) or its payload alone::

        graphql = GraphQLTransportWs({"authorization": "Bearer …"})
        with ConnectionPool(base_uri="wss://api.example.com", correlation=graphql) as pool:
            answer = pool.request("/graphql", {"query": "{ hero { name } }"})["payload"]["data"]
            with pool.subscribe("/graphql", {"query": "subscription { reviews { stars } }"}) as reviews:
                for review in reviews:
                    print(review["payload"]["data"])

    - **A request** is answered with `next` and `complete`; its result is the last `next`, each comes from
      `stream`. A `next` whose payload has `errors` may have data as well, and is returned.
    - **A request that was given up**, or whose `stream` was left, is ended at the server by `complete`.
    - **An `error`** ends the operation and raises `ReplyError`: with the text of the first of its errors,
      `extensions.code` if there is one, and all of them in `data`.
    - **Subscribing has no reply**: a subscription is open at once. The server ends it with `complete`, at
      which iteration ends, or `error`, which is raised. Ending it here sends `complete`, which has no reply
      either;
      what is still on its way is dropped.
    - **Ids** are texts, never used twice: a server closes the connection over one that is in use.
    - **Pings** of the server's are answered, those before its acknowledgement too; its pongs are dropped.
    """

    subprotocols: Sequence[str] = ("graphql-transport-ws",)

    def __init__(self, payload: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None) -> None:
        """Make one for any number of pools.

        Args:
            payload: What goes out with `connection_init`, such as a token; or what returns it: it is asked
                for each new connection.
        """
        self._payload = payload

    def configure(self, conn: Opened) -> None:
        """Send `connection_init`, and wait for its acknowledgement.

        Raises:
            ReplyError: The server sends something else. One that refuses closes the connection.
        """
        payload = self._payload() if callable(self._payload) else self._payload
        conn.send({"type": "connection_init"} | ({} if payload is None else {"payload": payload}))
        for _ in range(_MOST_BEFORE_ACK):
            message = conn.recv()
            kind = member(message, "type")
            if kind == "connection_ack":
                return
            pong = self.answer(message)
            if pong is not None:
                conn.send(pong)
            elif kind != "pong":
                raise unexpected(message, "connection_ack")
        raise unexpected(message, "connection_ack")

    def split(self, message: Any) -> Iterable[Any]:
        """The message, unless it is a pong: servers may send those unasked."""
        return () if member(message, "type") == "pong" else (message,)

    def answer(self, message: Any) -> Any | None:
        """A pong for the server's ping, with its payload."""
        if member(message, "type") != "ping":
            return None
        payload = message.get("payload")
        return {"type": "pong"} | ({} if payload is None else {"payload": payload})

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Give an operation our id."""
        operation = needs_object(message, "an operation")
        if "type" not in operation and "query" in operation:
            return {"id": new_id.text, "type": "subscribe", "payload": message}, new_id.text
        if operation.get("type") in _WITHOUT_REPLY:
            return message, None
        if operation.get("type") != "subscribe":
            raise ValueError("an operation has the type 'subscribe', or is a payload with a 'query'")
        return {**operation, "id": new_id.text}, new_id.text

    def asks(self, message: Any) -> Hashable | None:
        """The id of an operation that is sent as it is."""
        return key_of(message.get("id")) if member(message, "type") == "subscribe" else None

    def key(self, message: Any) -> Hashable | None:
        """The id of the operation that a message belongs to."""
        return key_of(message.get("id")) if _is_of_operation(message) else None

    def is_last(self, message: Any, asked: Asked) -> bool:
        """`error` and `complete` end an operation; never both come."""
        return self.is_end(message)

    def error(self, message: Any) -> ReplyError | None:
        """The errors that an operation ended with."""
        if member(message, "type") != "error":
            return None
        errors = message.get("payload")
        first = errors[0] if isinstance(errors, list) and errors else errors
        code = member(first, "extensions", "code")
        return reply_error(code, member(first, "message"), data=errors, reply=message)

    def result(self, replies: Sequence[Any], asked: Asked) -> Any:
        """The last `next`; of an operation without any, its end."""
        results = [reply for reply in replies if member(reply, "type") == "next"]
        return results[-1] if results else replies[-1]

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's id back."""
        return put_back(reply, message, "id") if member(message, "type") == "subscribe" else reply

    def cancel(self, asked: Asked) -> Any | None:
        """`complete`, as for a subscription: a stream that was left may have no end."""
        return {"id": asked.sent["id"], "type": "complete"}

    def topic(self, message: Any) -> Topics:
        """The id of the operation that a message belongs to."""
        return self.key(message)

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """The id of the operation, at once."""
        return key_of(sent.get("id")) if member(sent, "type") == "subscribe" else None

    def is_end(self, message: Any) -> bool:
        """Whether an operation is over."""
        return _is_of_operation(message) and message["type"] in _ENDS

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """`complete`, to which there is no reply."""
        return {"id": topic, "type": "complete"}


def _is_of_operation(message: object) -> bool:
    return text_of(member(message, "type")) in _OF_OPERATION
