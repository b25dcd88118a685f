"""Mailboxes, and how the threads that wait at one connection take turns at its socket: leader and followers.

Each thread waits for something of its own: the reply to its request, the next push of its subscription. What
it waits for comes into its `Mailbox`. The first one that waits becomes the *leader*: it reads from the socket
and hands out what comes, to itself and to the others, the *followers*, who only wait for their mailbox. When
the leader has what it waits for, or gives up, it passes the lead on to the follower that came last: where
replies come in the order of the requests, that one leads for longest. So a reply costs its thread one waking
at most, and no connection needs a thread of its own.

What an exception of a signal handler strikes leaves no one behind: the lead is a `Turn`, over as soon as its
thread has left `Reading.wait`, whatever made it leave; a follower that was not told of that finds out by
itself.
"""

from __future__ import annotations

import sys
import threading
from abc import abstractmethod
from collections import deque
from types import CodeType
from typing import Any, Generic, TypeVar

from jetsocket.clock import monotonic
from jetsocket.exceptions import InvalidStateError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.uris import Target
from jetsocket.wire.reentry import is_below, reentered

M = TypeVar("M")

LOOK_AGAIN = 0.25
"""s after which a follower looks whether there is still a leader, and the leader whether it still waits."""

_NEVER = float("inf")


class Mailbox(Generic[M]):
    """Where what one asker waits for arrives.

    Written by the thread that leads, and by who ends it; read by the asker. Every field is touched by single
    operations that CPython makes atomic.

    Attributes:
        arrived: What has come and was not taken yet.
        is_ended: Whether nothing more will come.
        error: Why not, if that is no orderly end.
        is_for_one: Whether one thread at a time waits here.
    """

    __slots__ = ("__weakref__", "_bell", "arrived", "error", "is_ended")
    is_for_one = False

    def __init__(self) -> None:
        """Begin empty."""
        self.arrived: deque[M] = deque()
        self.is_ended = False
        self.error: BaseException | None = None
        self._bell: threading.Lock | None = None
        self.hang_bell()

    @property
    def has_mail(self) -> bool:
        """Whether waiting is over."""
        return bool(self.arrived) or self.is_ended

    @property
    def is_stranded(self) -> bool:
        """Whether nothing can come, as what asks for it was not sent, and no thread is about to."""
        return False

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; `error` says why."""
        if not self.is_ended:
            self.error = error
            self.is_ended = True
        self.ring()

    def hang_bell(self) -> threading.Lock:
        """Let `ring` be heard from now on; what came before, its thread is to look for after this."""
        bell = threading.Lock()
        bell.acquire()
        self._bell = bell
        return bell

    def ring(self) -> None:
        """Wake the thread that waits."""
        bell = self._bell
        if bell is not None and bell.locked():
            try:
                bell.release()
            except RuntimeError as error:  # another thread has just done so
                if is_alarm(error):
                    raise

    def listen(self, timeout: float) -> None:
        """Wait until `ring`, at most so long (s)."""
        bell = self._bell
        if bell is None:
            bell = self.hang_bell()
            if self.has_mail:
                return
        bell.acquire(timeout=min(max(0.0, timeout), threading.TIMEOUT_MAX))


class Turn:
    """One stay of a thread in `Reading.wait`, or in what does the same.

    Attributes:
        thread: Its identity.
        is_over: Whether it has left.
    """

    __slots__ = ("is_over", "thread")

    def __init__(self) -> None:
        """Of this thread."""
        self.thread = threading.get_ident()
        self.is_over = False


class Reading:
    """The leader and the followers of one connection.

    `lock` guards who becomes the leader; it is held for microseconds, without I/O, without user code, and no
    other lock is taken with it. To follow and to leave takes none: a follower enters itself before it looks
    whether there is a leader, and who leaves looks for followers once its turn is over.
    """

    def __init__(self) -> None:
        """No thread waits yet."""
        self.lock = threading.Lock()
        self._leader: Turn | None = None
        self._followers: dict[Turn, Mailbox[Any]] = {}  # in the order in which they came

    @property
    @abstractmethod
    def target(self) -> Target:
        """Where the connection leads."""

    @abstractmethod
    def _read(self, box: Mailbox[Any], deadline: float) -> None:
        """Read and hand out what comes until something is in that mailbox; only the leader calls this.

        Raises:
            TimeoutError: Nothing was by the deadline (monotonic, s).
            ConnectionError: The connection has ended; all mailboxes were told.
        """

    @abstractmethod
    def _send_for(self, box: Mailbox[Any], deadline: float) -> None:
        """Send what a stranded mailbox waits for; not called by the leader, which must not wait for that."""

    @property
    def is_led(self) -> bool:
        """Whether a thread reads at present."""
        leader = self._leader
        return leader is not None and not leader.is_over

    @property
    def is_waking(self) -> bool:
        """Whether a follower has what it waits for, and its thread has not run since."""
        return any(box.has_mail for box in list(self._followers.values()))

    def wait(self, box: Mailbox[Any], deadline: float | None, operation: str) -> None:
        """Wait until something is in a mailbox, or it is ended; read for all, if no other thread does.

        Args:
            box: The caller's own.
            deadline: Monotonic, s; None: no limit. One that has passed takes what is there.
            operation: What the caller does, for the error.

        Raises:
            TimeoutError: Nothing came by the deadline.
            ConnectionError: The connection has ended, and this thread has found out.
            InvalidStateError: A signal handler or finalizer has interrupted the thread that reads.
        """
        until = _NEVER if deadline is None else deadline
        turn = Turn()
        try:
            while not (box.is_ended or box.has_mail):
                if box.is_stranded:
                    turn.is_over = True
                    self._leave(turn, box)
                    self._send_for(box, until)
                    turn = Turn()
                    continue
                leader = self._lead(turn, box, operation)
                if leader is turn:
                    self._read(box, until)
                    continue
                if leader.thread == turn.thread:
                    raise self._reentered(operation)
                left = until - monotonic()
                if left <= 0:
                    raise self.late(operation)
                if not box.has_mail:  # it may have come before there was a bell
                    box.listen(min(left, LOOK_AGAIN))
        finally:
            turn.is_over = True
            self._leave(turn, box)

    def refuse_reentry(self, operation: str) -> None:
        """Refuse what this very thread could not wait for, as it reads for all further down on its stack.

        Raises:
            InvalidStateError: A signal handler or finalizer has interrupted it there.
        """
        leader = self._leader
        if leader is not None and not leader.is_over and leader.thread == threading.get_ident():
            raise self._reentered(operation)

    def drain(self) -> None:
        """Hand out what has come, without waiting; a thread that reads does it anyway."""
        box: Mailbox[Any] = Mailbox()
        turn = Turn()
        try:
            if self._lead(turn, None, "dispatch") is turn:
                self._read_what_is_there()
        finally:
            turn.is_over = True
            self._leave(turn, box)

    @abstractmethod
    def _read_what_is_there(self) -> None:
        """`_read` without waiting, and for no one in particular."""

    def _lead(self, turn: Turn, box: Mailbox[Any] | None, operation: str) -> Turn:
        """Become the leader, or a follower of the one there is; returns who leads."""
        followers = self._followers
        while True:
            leader = self._leader
            if leader is None or leader.is_over:
                if self.lock.locked() and self._holds_lock():
                    raise self._reentered(operation)
                with self.lock:
                    leader = self._leader
                    if leader is None or leader.is_over:
                        self._leader = leader = turn
            if leader is turn:
                if followers:
                    followers.pop(turn, None)
                return turn
            if box is None or turn in followers:
                return leader
            if box._bell is None:
                box.hang_bell()
            followers[turn] = box  # and only now look whether there is a leader

    def _leave(self, turn: Turn, box: Mailbox[Any]) -> None:
        """Wait no longer, and pass the lead on; that turn is over."""
        followers = self._followers
        if followers:
            followers.pop(turn, None)
            if not self.is_led and (heir := self._heir()) is not None:
                heir.ring()
        if not box.is_for_one and box.has_mail:  # of several that wait there, another may take the rest
            box.ring()

    def _heir(self) -> Mailbox[Any] | None:
        """Who is to lead: who came last, of those that still wait."""
        waiting = list(self._followers.values())
        return next((box for box in reversed(waiting) if not box.has_mail), None)

    def _holds_lock(self) -> bool:
        """Whether this very thread holds `lock`, further down on its stack: waiting would be for itself."""
        return is_below(self, HOLDERS, sys._getframe(2))

    def late(self, operation: str) -> TimeoutError:
        """What to tell a thread for which nothing came in time, or that could not even ask for it."""
        told = "the server takes no more" if operation == "send" else "nothing came"
        told = f"{told} in time at {self.target.redacted}"
        return TimeoutError(told, operation=operation, timeout=None)

    def _reentered(self, operation: str) -> InvalidStateError:
        return reentered(operation, f"the connection to {self.target.redacted}")


HOLDERS: set[CodeType] = {Reading._lead.__code__}
"""The methods that take `Reading.lock`; one of `Dispatcher` does, too."""

__all__ = ["HOLDERS", "LOOK_AGAIN", "Mailbox", "Reading", "Turn"]
