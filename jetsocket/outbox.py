"""What waits to be sent over a connection that many threads share: one of them sends for all.

A thread puts its request into the `Outbox`. If no other one sends at that moment, it becomes the *sender*: it
makes the messages of all requests that wait, in order, and sends them in one go; again, as long as more have
come meanwhile. The others go straight to waiting for their replies. So a crowd costs few system calls, and no
thread waits for another one's.

- **What an exception strikes**: being the sender is a `Turn`, over as soon as its thread is out of
  `_send_batch`, whatever made it leave. A request stays in the outbox until it has left. Of those that are
  *stranded* (`Request.is_stranded`) the first is woken, and whoever waits finds out by itself.
- **What can't be made** is its own thread's to try, which so gets what the correlation or serializer raises.
- **Who gives up** before its request has left takes it out, and it is never sent.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Iterator
from threading import get_ident
from typing import TYPE_CHECKING

from jetsocket.exceptions import JetSocketError
from jetsocket.interrupts import is_alarm
from jetsocket.pending_requests import Request
from jetsocket.reading_turns import Turn
from jetsocket.wire.link import Batch

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

_AT_ONCE = 64 * 1024  # B from which on the next message is another batch's
_MOST_BATCHES = 16  # that a thread sends in one go: then it is another one's turn
_PAUSE = (
    50e-6  # s for threads that have just got their replies to ask again: it costs less than another write
)


class Messenger:
    """What an outbox needs of the connection whose it is."""

    wire: WebSocket

    @property
    @abstractmethod
    def is_waking(self) -> bool:
        """Whether a thread has its reply, and has not run since."""

    @abstractmethod
    def make(self, request: Request) -> tuple[int, bytes]:
        """Give a request its id, and expect its reply; returns opcode and data of what is to be sent."""

    @abstractmethod
    def unmake(self, request: Request) -> None:
        """Expect no reply: it has not left."""

    @abstractmethod
    def give_up(self, request: Request) -> None:
        """Wait for its reply no longer."""


class Outbox:
    """The requests of one connection that have not left, in the order in which they came.

    Every field is touched by single operations that CPython makes atomic.
    """

    def __init__(self, messenger: Messenger) -> None:
        """Send over its connection."""
        self._messenger = messenger
        self._waiting: deque[Request] = deque()
        self._sender: Turn | None = None

    @property
    def has_sender(self) -> bool:
        """Whether a thread sends at present."""
        sender = self._sender
        return sender is not None and not sender.is_over

    @property
    def is_mine(self) -> bool:
        """Whether this very thread sends, further down on its stack: a signal handler or finalizer asks."""
        sender = self._sender
        return sender is not None and not sender.is_over and sender.thread == get_ident()

    def put(self, request: Request) -> None:
        """Have a request sent: by `send`, which its thread calls next, or by another thread."""
        request.outbox = self
        self._waiting.append(request)

    def withdraw(self, request: Request) -> None:
        """It is not to be sent, or was."""
        try:
            self._waiting.remove(request)
        except ValueError as error:  # it is not there any more
            if is_alarm(error):
                raise
        request.outbox = None

    def fail(self, error: BaseException) -> None:
        """The connection has ended: so has what waits, each at once."""
        for request in self._waiting.copy():
            request.end(error)

    def send(self, own: Request, deadline: float | None) -> None:
        """Send what waits, unless another thread does.

        Args:
            own: The request of this thread.
            deadline: Monotonic, s.

        Raises:
            TimeoutError: The server takes no more, and `own` has not left.
            ConnectionError: The connection has ended, likewise.
            InvalidStateError: A signal handler or finalizer calls this that has interrupted a send.
            Exception: What the correlation's `tag` or the serializer raises over `own`; it was not sent.
        """
        try:
            for _ in range(_MOST_BATCHES):
                # The order counts: who has put something in looks after that whether there is a sender, and
                # the sender looks after its turn whether there is something.
                if not self._waiting or self.has_sender or not self._send_batch(own, deadline):
                    break
                if own.has_mail:
                    break
        except BaseException as error:
            has_left = own.outbox is None
            self.withdraw(own)
            if not has_left or not isinstance(error, JetSocketError) or is_alarm(error):
                raise  # else it was for others, who are the next to try
        finally:
            self._wake_next()

    def _wake_next(self) -> None:
        """Have the first that waits look whether it is to send."""
        try:
            if self._waiting and not self.has_sender:
                self._waiting[0].ring()
        except IndexError as error:  # another thread has taken it out
            if is_alarm(error):
                raise

    def _send_batch(self, own: Request, deadline: float | None) -> bool:
        """Send what waits together; False: there is nothing that this thread could send."""
        batch, made = Batch(), list[Request]()
        turn = self._sender = Turn()
        try:
            if self._messenger.is_waking:
                own.listen(_PAUSE)
            self._messenger.wire.send_together(
                batch, self._messages(own, batch, made), deadline, self._messenger
            )
            for request in made:
                self._let_go(request)
        except BaseException:
            if not batch.has_left:
                for request in made:
                    self._messenger.unmake(request)
            raise
        finally:
            turn.is_over = True
        return bool(made)

    def _messages(self, own: Request, batch: Batch, made: list[Request]) -> Iterator[tuple[int, bytes]]:
        """What is to be sent, made one by one."""
        size = 0
        for request in self._waiting.copy():
            if request.may_have_left:  # an exception has struck who sent it
                self._let_go(request)
            is_wanted = not (request.is_ended or request.is_cancelled) and request.outbox is self
            if not is_wanted or (request.is_refused and request is not own):
                continue
            try:
                opcode, data = self._messenger.make(request)
            except Exception as error:  # the user's, over a message of any form
                self._messenger.unmake(request)
                if request is own or is_alarm(error, users_code=True):
                    raise
                request.is_refused = True
                request.ring()
                continue
            request.batch = batch
            made.append(request)
            yield opcode, data
            size += len(data)
            if size >= _AT_ONCE:
                return

    def _let_go(self, request: Request) -> None:
        """It has left."""
        asked = request.asked
        self.withdraw(request)
        if asked is None or asked.key is None:
            request.end()  # no reply will come
        elif request.is_cancelled:
            self._messenger.give_up(request)


__all__ = ["Messenger", "Outbox"]
