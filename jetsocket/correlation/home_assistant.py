"""Home Assistant's WebSocket API."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

from jetsocket.correlation.base import Correlation, NewId, Opened, Topics
from jetsocket.correlation.reading import key_of, member, needs_object, put_back, reply_error, unexpected
from jetsocket.exceptions import ReplyError

__all__ = ["HomeAssistant"]


class HomeAssistant(Correlation):
    """Home Assistant's WebSocket API (https://developers.home-assistant.io/docs/api/websocket).

    ::

        home = HomeAssistant("a long-lived access token")
        with ConnectionPool(base_uri="ws://homeassistant.local:8123", correlation=home) as pool:
            states = pool.request("/api/websocket", {"type": "get_states"})["result"]
            changes = {"type": "subscribe_events", "event_type": "state_changed"}
            with pool.subscribe("/api/websocket", changes) as events:
                for event in events:
                    print(event["event"]["data"]["entity_id"])

    - **Logging in**: the server speaks first. A token that it refuses is a `ReplyError` with the code
      "auth_invalid", which is what opening a connection fails with.
    - **Ids** grow with each command on a connection, or the server answers "id_reuse".
    - **Several messages in one frame** (`supported_features` with `coalesce_messages`) are taken apart.
    - **Events** carry the id of the command that subscribed, of whatever kind (`subscribe_events`,
      `subscribe_trigger`, `render_template`, …), and may come before its result. `unsubscribe_events` ends
      all.
    - A result without success is a `ReplyError`, whose `data` is the server's error object, translations
      included.
    """

    def __init__(self, access_token: str | Callable[[], str]) -> None:
        """Make one for any number of pools.

        Args:
            access_token: A long-lived one, or what returns one that is valid now: it is asked for each new
                connection.
        """
        self._access_token = access_token

    def configure(self, conn: Opened) -> None:
        """Go through the authentication phase.

        Raises:
            ReplyError: The token is not valid ("auth_invalid"), or the server speaks something else.
        """
        token = self._access_token() if callable(self._access_token) else self._access_token
        greeting = conn.recv()
        if member(greeting, "type") == "auth_required":
            conn.send({"type": "auth", "access_token": token})
            greeting = conn.recv()
        if member(greeting, "type") == "auth_invalid":
            raise reply_error("auth_invalid", greeting.get("message"), reply=greeting, secrets=[token])
        if member(greeting, "type") != "auth_ok":
            raise unexpected(greeting, "auth_required or auth_ok")

    def split(self, message: Any) -> Iterable[Any]:
        """The messages of a frame that carries several."""
        return message if isinstance(message, list) else (message,)

    def tag(self, message: Any, new_id: NewId) -> tuple[Any, Hashable | None]:
        """Give a command our id."""
        command = needs_object(message, "a command")
        if not isinstance(command.get("type"), str):
            raise ValueError("a command names its type, a text")
        return {**command, "id": new_id.number}, new_id.number

    def asks(self, message: Any) -> Hashable | None:
        """The id of a command that is sent as it is."""
        return key_of(member(message, "id"))

    def key(self, message: Any) -> Hashable | None:
        """The id of a result, or of a pong."""
        return key_of(message.get("id")) if member(message, "type") in ("result", "pong") else None

    def error(self, message: Any) -> ReplyError | None:
        """A result without success."""
        if member(message, "type") != "result" or message.get("success") is not False:
            return None
        found = message.get("error")
        return reply_error(member(found, "code"), member(found, "message"), data=found, reply=message)

    def untag(self, reply: Any, message: Any) -> Any:
        """Put the caller's id back."""
        return put_back(reply, message, "id")

    def topic(self, message: Any) -> Topics:
        """The id of the command that an event belongs to."""
        return key_of(message.get("id")) if member(message, "type") == "event" else None

    def topic_of(self, sent: Any, reply: Any) -> Topics:
        """The id of the command, once it has a result."""
        return None if reply is None else key_of(member(sent, "id"))

    def unsubscribe(self, topic: Hashable, sent: Any) -> Any | None:
        """The one command that ends every kind of subscription."""
        return {"type": "unsubscribe_events", "subscription": topic}
