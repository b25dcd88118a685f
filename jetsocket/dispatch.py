"""One connection's messages: requests on their way out, and who reads what comes in, for all that wait.

A request that was given up is never answered by another's reply: the ids on the wire are always ours, each
used once on a connection.
"""

from __future__ import annotations

import itertools
import uuid
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from jetsocket.askers import Askers
from jetsocket.clock import monotonic
from jetsocket.correlation import NewId
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.lock_watch import LockWatch
from jetsocket.mailbox import LOOK_AGAIN, Mailbox
from jetsocket.matching import Matching, Payload
from jetsocket.pending import Request, Risk, note, remember
from jetsocket.pushes import Pushes
from jetsocket.uris import Target
from jetsocket.wire.link import not_held
from jetsocket.wire.websocket import WebSocket

MOST_GIVEN_UP = 1024
"""Requests that were given up and not answered yet, beyond which a connection is closed."""

_MAY_COME = "a request with the id of this message may still be answered"
_APART = 2**30  # the first number of ours behind an id that a lease has chosen: those mostly are small
_PATIENCE = 1.0  # s that a borrower may read nothing before a worker looks what has come
_MUCH = 100  # messages


class Dispatcher(Askers):
    """One connection's messages, out and in; which goes to whom: `Askers`.

    Attributes:
        locks: Tells whether a strike has left the connection locked.
        has_worker: Whether a worker is about to hand out what has come.
        last_read: When a thread last handed out what came (monotonic, s).
    """

    def __init__(self, wire: WebSocket, target: Target, matching: Matching, pushes: Pushes) -> None:
        """Nothing was asked yet."""
        super().__init__(wire, target, matching, pushes)
        self.locks, self.has_worker = LockWatch(wire), False
        self.last_read = monotonic()
        self._numbers, self._is_apart = itertools.count(1), False
        self._prefix = uuid.uuid4().hex

    @property
    def wants_worker(self) -> bool:
        """Whether something has come that no thread hands out: a worker is to do so.

        Of a lent connection, once its borrower has not read for a while; and once much waits for it, the
        rest stays where it is counted, in the wire.
        """
        has_some = self.wire.reader.messages or self._parts or self._is_due
        if self.has_worker or self.is_led or not has_some:
            return False
        if self.wire.holder in (None, self):
            return True
        if monotonic() - self.last_read < _PATIENCE:
            return False
        boxes = [*self._under_way.values(), self.raw]  # of a stream's replies, many may wait
        return all(box is None or len(box.arrived) < _MUCH for box in boxes)

    # --- out -------------------------------------------------------------------------------------------

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
        matching = self.matching

        def make() -> str | bytes:
            while True:
                number = next(self._numbers)
                asked = matching.tag(message, NewId(number, f"{self._prefix}-{number}"))
                if asked.key is None or asked.key not in self.raw_keys:
                    break
            payload = matching.encode(asked.sent, self.subprotocol)
            self._leaves(request, asked, number)
            if asked.key is not None and not request.is_open:
                self._under_way[asked.key] = request
            return payload

        try:
            self.wire.send_made(make, deadline, holder)
        except BaseException:
            self.give_up(request)
            raise

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

    def give_up(self, request: Request) -> None:
        """Wait for its replies no longer; those that come are late."""
        asked = request.asked
        self._end_subscribe(request)
        if asked is None or asked.key is None or self._under_way.get(asked.key) is not request:
            return
        self.given_up[asked.key] = asked
        self._under_way.pop(asked.key, None)
        if request.is_ended and request.error is None:  # the last reply came while we did that
            self.given_up.pop(asked.key, None)
        else:
            self._cancel(asked.key, asked)
        if len(self.given_up) > MOST_GIVEN_UP:
            self.wire.cut(f"more than {MOST_GIVEN_UP} requests were given up, and no reply to them came")

    # --- in --------------------------------------------------------------------------------------------

    def _read(self, box: Mailbox[Any], deadline: float) -> None:
        wire = self.wire
        while not box.has_mail:
            if not (self._parts or self._is_due):
                now = monotonic()
                try:
                    # In slices: another thread may end the mailbox, and the socket knows nothing of that.
                    queue = wire.await_queue(min(deadline, now + LOOK_AGAIN), wire.holder)
                except TimeoutError as error:
                    if is_alarm(error) or now >= deadline - LOOK_AGAIN:
                        raise
                    if wire.failure is not None:  # and the thread that holds `readlock` was struck
                        self.fail(wire.failure)
                        return
                    continue
                except ConnectionError as error:
                    if is_alarm(error):
                        raise
                    self.fail(error)
                    return
                self._take(queue)
            self._hand_out(box)

    def work(self) -> None:
        """`drain`, in a worker."""
        self.has_worker = False
        self.drain()

    def _read_what_is_there(self) -> None:
        while True:
            if queue := self.wire.lend_queue(self.wire.holder):
                self._take(queue)
            if not (self._parts or self._is_due):
                break
            self._hand_out(None)
        if self.wire.failure is not None:
            self.fail(self.wire.failure)

    def _take(self, queue: deque[Payload]) -> None:
        """Read the first frame of a queue; whatever strikes, it is either in the queue or in `_parts`."""
        self.last_read = monotonic()
        take: Callable[[], Payload | None] = queue.popleft
        arrived: Iterator[Payload] = iter(take, None)
        try:
            for payload in arrived:  # no exception comes between the two: see `iteration`
                try:
                    self._parts.extend(self.matching.parts(payload, self.subprotocol))
                except BaseException:
                    queue.appendleft(payload)
                    raise
                return
        except IndexError as error:  # the lease was released: what has come is not in this queue any more
            if is_alarm(error):
                raise

    # --- the end ---------------------------------------------------------------------------------------

    @property
    def is_settled(self) -> bool:
        """Whether it is certainly as a connection should be that another lease may have."""
        return self.raw is None and not self._under_way and self.topics.is_empty and self.topics.can_be_ended

    def forget_lease(self) -> None:
        """A lease is over: what it still waits for is late, and what comes is not its own."""
        raw, self.raw, self.raw_asked = self.raw, None, {}
        if raw is not None:
            raw.end(not_held(self.target))
        for request in list(self._under_way.values()):
            self.give_up(request)
            request.end(not_held(self.target))

    def fail(self, error: BaseException) -> None:
        """The connection has ended: so have all who wait for something from it, each at once."""
        for box in [*list(self._under_way.values()), *self.topics.all(), *([self.raw] if self.raw else [])]:
            box.end(error)
        self._under_way.clear()


__all__ = ["MOST_GIVEN_UP", "Dispatcher"]
