"""What goes out with a correlation: requests with ids of ours, each remembered until its reply has come.

A request that was given up is never answered by another's reply: the ids on the wire are always ours, each
used once on a connection.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Container, Hashable
from typing import TYPE_CHECKING, Any

from jetsocket.correlation.base import Asked, NewId
from jetsocket.correlation_calls import Matching, strict
from jetsocket.exceptions import TimeoutError
from jetsocket.outbox import Messenger, Outbox
from jetsocket.pending_requests import Request, Risk, note, remember
from jetsocket.pushes import Pushes
from jetsocket.reading_turns import Mailbox
from jetsocket.routing import Routing
from jetsocket.uris import Target
from jetsocket.wire.frames import BINARY, TEXT

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

MOST_GIVEN_UP = 1024
"""Requests that were given up and not answered yet, beyond which a connection is closed."""

_new = object.__new__
_MAY_COME = "a request with the id of this message may still be answered"
_APART = 2**30  # the first number of ours behind an id that a lease has chosen: those mostly are small


class Sending(Routing, Messenger):
    """The sending half of `Dispatcher`.

    Attributes:
        outbox: The requests that wait to be sent, of the threads that share the connection.
    """

    def __init__(self, wire: WebSocket, target: Target, matching: Matching, pushes: Pushes) -> None:
        """Nothing was asked yet."""
        super().__init__(wire, target, matching, pushes)
        self.outbox = Outbox(self)
        self._numbers, self._is_apart = itertools.count(1), False
        self._prefix = os.urandom(16).hex()

    def send(self, request: Request, message: Any, deadline: float | None, holder: object) -> None:
        """Send a request with an id of ours; when this returns, it has left.

        Args:
            request: Gets `asked`; its key is None if no reply will come.
            message: The caller's, which is not changed.
            deadline: Monotonic, s.
            holder: Who may use the connection.

        Raises:
            JetSocketError: As `WebSocket.send_made`.
            StillOpenError: It would end a topic that another subscription has; nothing was sent.
            Exception: What the correlation's `tag` or the serializer raises; nothing was sent.
        """
        request.message = message
        try:
            self.wire.send_data(TEXT, b"", deadline, holder, self.make, request)
        except BaseException as error:
            self.give_up(request, is_unsent=isinstance(error, TimeoutError) and error._is_unsent)
            raise

    def post(self, request: Request, deadline: float | None) -> None:
        """Send a request over a connection that others use, too, or let a thread do so that sends already.

        Args:
            request: With its `message`. If no reply comes, its key is None, and it ends as it leaves.
            deadline: Monotonic, s.

        Raises:
            JetSocketError: As `Outbox.send`, and so are others.
        """
        if self.outbox.is_mine:
            raise self._reentered("request")
        self.outbox.put(request)
        self.outbox.send(request, deadline)

    def _send_for(self, box: Mailbox[Any], deadline: float) -> None:
        assert isinstance(box, Request), "no other mailbox is stranded"
        self.outbox.send(box, deadline)

    def make(self, request: Request) -> tuple[int, bytes]:
        """Give a request its id, and expect its reply; returns opcode and data of what is to be sent."""
        matching, message, write = self.matching, request.message, self.matching.write
        while True:
            number = next(self._numbers)
            new_id = _new(NewId)  # `NewId(…)` goes through a function in Python
            new_id.number, new_id._prefix, new_id._text = number, self._prefix, None
            sent, key = matching.correlation.tag(message, new_id)
            if type(key) is not int and type(key) is not str and key is not None:
                key = strict(key)
            if key is None or key not in self.raw_keys:
                break
        asked = _new(Asked)  # likewise
        asked.message, asked.sent, asked.key, asked.replies, asked.notes = message, sent, key, 0, {}
        if write is not None and type(sent) is dict:  # nearly always
            opcode, data = TEXT, write(sent).encode("utf-8")
        else:
            payload = matching.encode(sent, self.subprotocol)
            opcode, data = (TEXT, payload.encode("utf-8")) if isinstance(payload, str) else (BINARY, payload)
        if request.ends is not None or request.feed is not None:
            self._leaves(request, asked, number)
        else:
            request.asked, request.number = asked, number
        if key is not None and not request.is_open:
            self._under_way[key] = request
        return opcode, data

    def unmake(self, request: Request) -> None:
        """Expect no reply: it has not left."""
        asked = request.asked
        if asked is not None and self._under_way.get(asked.key) is request:
            self._under_way.pop(asked.key, None)

    def send_as_is(
        self,
        message: Any,
        payload: str | bytes,
        text: bool | None,
        deadline: float | None,
        holder: object,
        *,
        risk: Risk = "refused",
    ) -> None:
        """Send a lease's own message; what comes back for it, or has no other asker, is for `raw`."""
        key = self.matching.asks(message)
        if key is not None:
            if risk != "taken" and self._may_come(key):
                if risk == "refused":
                    raise ValueError(f"{_MAY_COME} at {self.target.redacted}; take another id")
                self.wire.cut(_MAY_COME)  # and the lease moves to another connection
            note(self.raw_keys, key, self.tenancy)
            remember(self.raw_asked, key)
            if not self._is_apart:
                self._is_apart, self._numbers = True, itertools.count(_APART)
        self.wire.send_message(payload, deadline, holder, text)

    def _may_come(self, key: Hashable) -> bool:
        """Whether a reply with that key may come that is for another than who sends it now, as it is."""
        return (
            key in self.given_up
            or key in self._under_way
            or key in self.cancelled
            or self.answered.get(key, self.tenancy) < self.tenancy  # once more: some servers answer twice
        )

    def forget_struck(self, sharers: Container[object]) -> None:
        """Give up what those asked who have left: an exception has struck them as they gave it up.

        For the housekeeper: no code of the correlation's is run.
        """
        for request in list(self._under_way.values()):
            if request.owner is not None and request.owner not in sharers:
                self.give_up(request, cancels=False)

    def give_up(self, request: Request, *, cancels: bool = True, is_unsent: bool = False) -> None:
        """Wait for its replies no longer; those that come are late.

        Args:
            request: May be one that has its replies.
            cancels: Whether the server is to be told, which needs the correlation.
            is_unsent: Not a byte of it has left: none comes.
        """
        if is_unsent:
            self.unmake(request)
        if request.outbox is not None:
            # The order counts: who sends it at this moment looks after that whether it still is to.
            request.is_cancelled = True
            self.outbox.withdraw(request)
            if not request.may_have_left:
                return
        asked = request.asked
        if request.feed is not None:
            self._end_subscribe(request)
        if asked is None or asked.key is None or self._under_way.get(asked.key) is not request:
            return
        self.given_up[asked.key] = asked
        self._under_way.pop(asked.key, None)
        if request.is_ended and request.error is None:  # the last reply came while we did that
            self.given_up.pop(asked.key, None)
        elif cancels:
            self._cancel(asked.key, asked)
        if len(self.given_up) > MOST_GIVEN_UP:
            self.wire.cut(f"more than {MOST_GIVEN_UP} requests were given up, and no reply to them came")


__all__ = ["MOST_GIVEN_UP", "Sending"]
