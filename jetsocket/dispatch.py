"""One connection's messages: who reads what comes in, for all that wait, and what the end is for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

from jetsocket.clock import monotonic
from jetsocket.correlation.base import Asked
from jetsocket.correlation_calls import Matching, Part, Payload, strict
from jetsocket.exceptions import ConnectionError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.lock_watch import LockWatch
from jetsocket.pending_requests import MOST_NOTED, Request
from jetsocket.pushes import Pushes
from jetsocket.reading_turns import HOLDERS, LOOK_AGAIN, Mailbox, Turn
from jetsocket.sending import Sending
from jetsocket.uris import Target
from jetsocket.wire.link import not_held

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

HAS_ARRIVED: Final = object()
"""In place of a reply: what came is in the mailbox of its request."""

_PATIENCE = 1.0  # s that a borrower may read nothing before a worker looks what has come
_MUCH = 100  # messages
_AT_ONCE = 64  # frames that are taken off the wire to be handed out: the rest stays where it is counted
_new_part = tuple.__new__  # `Part(…)` goes through a function in Python


class Dispatcher(Sending):
    """One connection's messages, in and out (`Sending`); which goes to whom: `Routing`.

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

    # --- in --------------------------------------------------------------------------------------------

    def _read(self, box: Mailbox[Any], deadline: float) -> None:
        wire, read = self.wire, self.matching.read_one
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
                    if box.is_stranded:
                        return
                    continue
                except ConnectionError as error:
                    if is_alarm(error):
                        raise
                    self.fail(error)
                    return
                self.last_read = monotonic()
                if len(self._under_way) > 1:
                    wire.acknowledge()
                if read is not None and (self._hand_out_replies(queue, read) or box.has_mail):
                    continue
                self._take(queue)
            self._hand_out(box)

    def await_reply(  # noqa: PLR0912, PLR0915 - one function, as calls are most of what a reply costs
        self, request: Request, asked: Asked, deadline: float | None, now: float
    ) -> Any:
        """`wait` for the last reply to a request that has left, which is mostly what comes next.

        Where only one thread uses a connection, as of an exclusive lease, this is all of it: it leads, and
        looks at one frame. What is anything else stays where it is, for `wait`. So does a frame at which
        an exception strikes: that gives the request up, whose thread this is, and the reply is late.

        Args:
            request: This thread's own.
            asked: What it asks.
            deadline: Monotonic, s; None: no limit.
            now: Monotonic, s.

        Returns:
            The reply, if that is what the request returns; `HAS_ARRIVED`: what came is in its mailbox.

        Raises:
            TimeoutError: As `wait`, and so are the others.
        """
        wire, matching, turn, is_done = self.wire, self.matching, Turn(), True
        read, correlation = matching.read_one, matching.correlation
        try:
            leader = self._leader
            if not (leader is None or leader.is_over) or self.lock.locked():
                leader = self._lead(turn, None, "recv")
            else:  # the same without a call
                with self.lock:
                    leader = self._leader
                    if leader is None or leader.is_over:
                        self._leader = leader = turn
            if leader is turn and read and not (self._parts or self._held):
                until = now + LOOK_AGAIN
                if deadline is not None and deadline < until:
                    until = deadline
                queue = wire.await_queue(until, wire.holder)
                self.last_read = now
                take: Callable[[], Payload | None] = queue.popleft
                arrived: Iterator[Payload] = iter(take, None)
                for payload in arrived:  # no exception comes between the two: see `iteration`
                    is_done = False
                    try:
                        message = read(payload)
                        key = correlation.key(message)
                        if type(key) is not int and type(key) is not str and key is not None:
                            key = strict(key)
                        if self._under_way.get(key) is not request:
                            break
                        if matching.answers and correlation.answer(message) is not None:
                            break
                        is_last = self._count(message, asked)
                        is_result = is_last and asked.replies == 1 and matching.takes_last
                        if not is_result:
                            request.put(message, payload)
                        if not is_last:
                            is_done = True
                            break
                        self.answered[key] = self.tenancy  # as `_note_answered`, which forgets the oldest
                        request.payload = payload
                        request.is_ended = is_done = True
                        if self.given_up:  # another thread may be doing that at this moment
                            self.given_up.pop(key, None)
                        self._under_way.pop(key, None)
                        if len(self.answered) > 2 * MOST_NOTED:
                            self._note_answered(key)
                        return message if is_result else HAS_ARRIVED
                    finally:
                        if not is_done:
                            queue.appendleft(payload)
        except Exception as error:  # of the wire; the codec's or the correlation's, if a frame was taken
            is_known = not is_done or isinstance(error, (TimeoutError, ConnectionError, IndexError))
            if is_alarm(error, users_code=not is_done) or not is_known:
                raise  # else `wait` finds out, too, and does what is to be done
        finally:
            turn.is_over = True
            if self._followers:
                self._leave(turn, request)
        if not request.is_ended:
            self.wait(request, deadline, "recv")
        return HAS_ARRIVED

    def work(self) -> None:
        """`drain`, in a worker."""
        self.has_worker = False
        self.drain()

    def finish_ended(self) -> None:
        """Before a subscribe leaves: what has come of a topic that has ended is none of the new one's."""
        if self.topics.has_any_ended and not self.is_led:
            self.wire.look(quick=True)
            self.drain()

    def _read_what_is_there(self) -> None:
        while True:
            if queue := self.wire.lend_queue(self.wire.holder):
                self.last_read = monotonic()
                self._take(queue)
            if not (self._parts or self._is_due):
                break
            self._hand_out(None)
        if self.wire.failure is not None:
            self.fail(self.wire.failure)

    def _take(self, queue: deque[Payload]) -> None:
        """Read the first frames of a queue; whatever strikes, each is either in the queue or in `_parts`."""
        left = _AT_ONCE
        take: Callable[[], Payload | None] = queue.popleft
        arrived: Iterator[Payload] = iter(take, None)
        try:
            for payload in arrived:  # no exception comes between the two: see `iteration`
                try:
                    self._parts.extend(self.matching.parts(payload, self.subprotocol))
                except BaseException:
                    queue.appendleft(payload)
                    raise
                left -= 1
                if not (left and queue):
                    return
        except IndexError as error:  # the lease was released: what has come is not in this queue any more
            if is_alarm(error):
                raise

    def _hand_out_replies(  # noqa: PLR0912 - one function, as calls are most of what a reply costs
        self, queue: deque[Payload], read: Callable[[Payload], Any]
    ) -> bool:
        """Hand out the first frames of a queue as long as each is a reply that a request waits for.

        As nearly every one is; `_route` says what becomes of all others. Whatever strikes, each frame is
        in the queue, in `_parts`, or with its asker: see `iteration`.

        Returns:
            Whether that were all; False: the first other one is in `_parts` or, unread, in the queue.
        """
        correlation, answers, under_way = self.matching.correlation, self.matching.answers, self._under_way
        take: Callable[[], Payload | None] = queue.popleft
        arrived: Iterator[Payload] = iter(take, None)
        answered: list[Request] = []
        try:
            for payload in arrived:
                part: Part | None = None
                is_done = False
                try:
                    message = read(payload)
                    key = correlation.key(message)
                    if type(key) is not int and type(key) is not str and key is not None:
                        key = strict(key)
                    part = _new_part(Part, (payload, message))
                    request = under_way.get(key)
                    if (
                        request is None
                        or request.feed is not None
                        or not request.wants_all
                        or (answers and correlation.answer(message) is not None)
                    ):
                        return False
                    asked = request.asked
                    assert asked is not None
                    is_last = self._count(message, asked)
                    request.put(message, part)
                    if is_last:
                        request.payload = payload
                        self._note_answered(key)
                        request.is_ended = is_done = True
                        self.given_up.pop(key, None)  # as in `_answer`
                        under_way.pop(key, None)
                        answered.append(request)
                    is_done = True
                except Exception as error:  # the codec's, or the correlation's: `_route` gets it once more
                    if is_alarm(error, users_code=True):
                        raise
                    return False
                finally:
                    if not is_done:  # it is for `_take` or, read already, for `_hand_out`
                        back: deque[Any] = queue if part is None else self._parts
                        back.appendleft(payload if part is None else part)
                if not queue:
                    return True
        except IndexError as error:  # as in `_take`
            if is_alarm(error):
                raise
        finally:
            # All at once, and last: each that is woken wants to run, and would stop this thread half-way.
            for request in answered:
                request.ring()
        return True

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
        self.outbox.fail(error)


HOLDERS.add(Dispatcher.await_reply.__code__)

__all__ = ["HAS_ARRIVED", "Dispatcher"]
