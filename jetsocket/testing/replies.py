"""Whose reply a recorded message is: by a pool's correlation, or by the field `id` without one. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from jetsocket.correlation.base import Correlation, NewId
from jetsocket.correlation_calls import strict
from jetsocket.testing.payloads import Payload, decoded, payload_of

_ID = "id"


class Replies:
    """What a correlation says of messages; whatever it raises over one, that message has no id."""

    def __init__(self, correlation: Correlation | None) -> None:
        """Ask this correlation; None: look at `id`."""
        self._correlation = correlation

    # --- payloads --------------------------------------------------------------------------------------

    def read(self, payload: Payload, subprotocol: str | None) -> Any:
        """What a message says."""
        if self._correlation is not None:
            try:
                message = self._correlation.decode(payload, subprotocol)
            except Exception:  # noqa: BLE001  # the user's correlation, over whatever came
                message = None
            if message is not None:
                return message
        return decoded(payload)

    def write(self, message: Any, subprotocol: str | None) -> Payload:
        """The payload of a message, which `read` has read and something may have changed."""
        if self._correlation is not None:
            payload = self._correlation.encode(message, subprotocol)
            if payload is not None:
                return payload
        return payload_of(message)

    # --- ids -------------------------------------------------------------------------------------------

    def asked(self, message: Any) -> Hashable | None:
        """Which reply a request expects; None: none that could be told."""
        return self._key(message, is_request=True)

    def answered(self, message: Any) -> Hashable | None:
        """Which request a message may answer; None: none."""
        return self._key(message, is_request=False)

    def _key(self, message: Any, *, is_request: bool) -> Hashable | None:
        correlation = self._correlation
        if correlation is None:
            found = message.get(_ID) if isinstance(message, dict) else None
            return strict(found) if isinstance(found, (str, int, float)) else None
        try:
            key = correlation.asks(message) if is_request else correlation.key(message)
            hash(key)
        except Exception:  # noqa: BLE001  # likewise
            return None
        return None if key is None else strict(key)

    def numbered(self, request: Any, number: int) -> Any:
        """A request as it is kept: with a number for the id that the pool has drawn."""
        if self._correlation is None or self.asked(request) is None:
            return request
        try:
            return self._correlation.tag(request, NewId(number, str(number)))[0]
        except (TypeError, ValueError):
            return request

    def without_id(self, request: Any) -> Any:
        """A request as it is compared."""
        if self._correlation is not None:
            return self.numbered(request, 0)
        if isinstance(request, dict):
            return {name: value for name, value in request.items() if name != _ID}
        return request

    def addressed(self, reply: Any, request: Any) -> Any:
        """A reply with the id of that request."""
        if self._correlation is not None:
            try:
                return self._correlation.untag(reply, request)
            except Exception:  # noqa: BLE001  # likewise
                return reply
        if isinstance(reply, dict) and isinstance(request, dict) and _ID in reply and _ID in request:
            return {**reply, _ID: request[_ID]}
        return reply


__all__ = ["Replies"]
