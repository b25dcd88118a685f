"""OBS Studio, by obs-websocket 5."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Hashable, Sequence
from typing import Any

from jetsocket.correlation.base import Correlation, NewId, Opened, Topics
from jetsocket.correlation.reading import (
    key_of,
    member,
    needs_object,
    put_back,
    reply_error,
    text_of,
    unexpected,
    with_member,
)
from jetsocket.exceptions import ReplyError

__all__ = ["Obs"]

_HELLO, _IDENTIFY, _IDENTIFIED, _REIDENTIFY = 0, 1, 2, 3
_EVENT = 5
_REQUEST, _RESPONSE, _BATCH, _BATCH_RESPONSE = 6, 7, 8, 9
_RPC_VERSION = 1
_ALL = 0b1111_1111_1111  # EventSubscription::All: every category but those of high volume
_BITS = 32


class Obs(Correlation):
    """OBS Studio, by obs-websocket 5.

    The specification is https://github.com/obsproject/obs-websocket/blob/master/docs/generated/protocol.md. A
    request is the whole message (`{"op": 6, "d": {…}}`) or its `d` alone::

        with ConnectionPool(base_uri="ws://127.0.0.1:4455", correlation=Obs("password")) as pool:
            scenes = pool.request("/", {"requestType": "GetSceneList"})["d"]["responseData"]["scenes"]
            meters = {"op": 3, "d": {"eventSubscriptions": 1 << 16}}
            with pool.subscribe("/", meters) as events:
                for event in events:
                    print(event["d"]["eventData"])

    - **Logging in**: the server says hello first; a connection is usable once it is identified. A server that
      wants a password is a `ReplyError` where there is none; at a wrong one it closes the connection (4009).
    - **Requests** that fail raise `ReplyError` with the status code and its comment. A batch (`{"op": 8, …}`,
      or a `d` with `requests`) is one request: what failed in it stands in its results.
    - **Reidentify** is answered without an id, so `request` returns None once it is sent; the answer goes to
      `on_push`.
    - **Subscriptions** are to categories of events (`eventIntent`), by a Reidentify with their bits. A
      connection has one set of them, and the last Reidentify replaces it: two subscriptions on one connection
      have to name the same. At the end it gets back what it began with. That is every category but those of
      high volume, unless told otherwise; `subscribe` without a message gets these.
    """

    subprotocols: Sequence[str] = ("obswebsocket.json",)

    def __init__(self, password: str | None = None, *, event_subscriptions: int = _ALL) -> None:
        """Make one for any number of pools.

        Args:
            password: The server's, if it wants one.
            event_subscriptions: The categories of events that each connection begins with, as a bit mask; 0
                for none.
        """
        self._password = password
        self._event_subscriptions = event_subscriptions

    def configure(self, conn: Opened) -> None:
        """Wait for hello, identify, and wait for that to be accepted.

        Raises:
            ReplyError: The server wants a password and there is none, or it says something else.
        """
        hello = conn.recv()
        if _op(hello) != _HELLO:
            raise unexpected(hello, "hello (op 0)")
        said: dict[str, Any] = {"rpcVersion": _RPC_VERSION, "eventSubscriptions": self._event_subscriptions}
        asked = member(hello, "d", "authentication")
        if asked is not None:
            if self._password is None:
                raise ReplyError("the server wants a password: Obs(password)", reply=hello)
            salt, challenge = text_of(member(asked, "salt")), text_of(member(asked, "challenge"))
            said["authentication"] = authentication(self._password, salt, challenge)
        conn.send({"op": _IDENTIFY, "d": said})
        identified = conn.recv()
        if _op(identified) != _IDENTIFIED:
            raise unexpected(identified, "identified (op 2)")

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Give a request, or a batch, our id."""
        given = needs_object(message, "a request")
        if "op" not in given:
            if not ("requestType" in given or "requests" in given):
                raise ValueError("a request has an 'op', or is a 'd' with a 'requestType' or 'requests'")
            given = {"op": _REQUEST if "requestType" in given else _BATCH, "d": given}
        if given["op"] not in (_REQUEST, _BATCH):
            return message, None
        return with_member(given, new_id.text, "d", "requestId"), new_id.text

    def asks(self, message: Any) -> Hashable | None:
        """The id of a request that is sent as it is."""
        return key_of(member(message, "d", "requestId")) if _op(message) in (_REQUEST, _BATCH) else None

    def key(self, message: Any) -> Hashable | None:
        """The id of a response."""
        if _op(message) not in (_RESPONSE, _BATCH_RESPONSE):
            return None
        return key_of(member(message, "d", "requestId"))

    def error(self, message: Any) -> ReplyError | None:
        """A status that is no success."""
        status = member(message, "d", "requestStatus")
        if _op(message) != _RESPONSE or member(status, "result") is not False:
            return None
        return reply_error(status.get("code"), status.get("comment"), data=status, reply=message)

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's id back."""
        whole = message if member(message, "op") is not None else {"d": message}
        return put_back(reply, whole, "d", "requestId")

    def topic(self, message: Any) -> Topics:
        """The category of an event."""
        return key_of(member(message, "d", "eventIntent")) if _op(message) == _EVENT else None

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """The categories that a Reidentify names, at once."""
        if _op(sent) != _REIDENTIFY:
            return None
        mask = key_of(member(sent, "d", "eventSubscriptions"))
        return [1 << bit for bit in range(_BITS) if mask & 1 << bit] if isinstance(mask, int) else None

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """A Reidentify with the categories that the connection began with."""
        return {"op": _REIDENTIFY, "d": {"eventSubscriptions": self._event_subscriptions}}


def _op(message: object) -> int | None:
    op = key_of(member(message, "op"))
    return op if isinstance(op, int) else None


def authentication(password: str, salt: str, challenge: str) -> str:
    """What proves that we know the password."""
    secret = _digest(password + salt)
    return _digest(secret + challenge)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
