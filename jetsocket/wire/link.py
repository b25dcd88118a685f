"""What a connection is made of: its locks, its fields, and how it fails.

What is done differently from websocket-client, and why, stands in the table in docs/how-it-works.md.

A connection has two locks. A method that takes one of them says so with `takes`; a method that needs it held
asserts that. Neither is waited for while the other is held.

- `readlock` guards everything that is read: the stream's reading side and `reader`. A reader holds it while
  it waits for the server; all others take it without waiting. With it, `lock` is taken without waiting, for
  the pongs and the close frame that what was read calls for.
- `lock` guards everything that is sent: the stream's writing side. It is held while a message goes out. A
  pong never waits for it: the thread that holds it sends the pongs that are due when done. With it,
  `readlock` is taken without waiting, as the process ends; and for a moment only after a failed send, for
  what came before it.

A signal handler or finalizer runs in the middle of whatever its thread does. If that holds the lock that the
handler needs, waiting would be waiting for itself: it gets an InvalidStateError.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Set
from types import CodeType, FrameType
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar

from jetsocket.clock import monotonic
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    InvalidStateError,
    TimeoutError,
    raise_copy,
)
from jetsocket.interrupts import frames_from, suppress
from jetsocket.logs import WIRE_LOG
from jetsocket.uris import Target
from jetsocket.wire import deflate
from jetsocket.wire.close_codes import ABNORMAL
from jetsocket.wire.message_reader import MessageReader
from jetsocket.wire.reentry import is_below, reentered
from jetsocket.wire.stream import Stream

LAST_LOOK = 0.05
"""s for taking in what is there, past a reader's deadline, by the way or while closing: a megabyte of empty
frames takes a second to parse, and other connections want tending, too."""

LITTLE = 16 * 1024
"""B that always are looked at: pings, a late reply, a close frame; more costs too much."""

_AT_FIRST = 0.002
"""s that a thread waits for a lock before it looks whether itself has it, further down on its stack."""

_LOOK_AGAIN = 0.5
"""s after which a thread that waits for a lock looks whether the connection is over."""

_LOOKS = 3
"""Such looks, after which a lock that shows no sign of a thread is taken for one that none holds."""

_LockName: TypeAlias = Literal["lock", "readlock"]
_Method = TypeVar("_Method", bound=Callable[..., Any])
_takers: dict[str, set[CodeType]] = {"lock": set(), "readlock": set()}


def takes(lock: _LockName) -> Callable[[_Method], _Method]:
    """Mark a method that takes this lock: its thread may hold it as long as that method is on the stack."""

    def mark(method: _Method) -> _Method:
        _takers[lock].add(method.__code__)
        return method

    return mark


class Ping:
    """A ping that waits for its pong."""

    __slots__ = ("answered", "round_trip", "sent_at")

    def __init__(self) -> None:
        """Sent now."""
        self.sent_at = monotonic()
        self.round_trip: float | None = None
        self.answered = threading.Lock()  # held until the pong is there; the thread that waits, waits for it
        self.answered.acquire()

    def is_answered(self) -> bool:
        """Whether its pong has come."""
        return self.round_trip is not None


def _log_end(failure: ConnectionError) -> None:
    WIRE_LOG.debug("%s", failure)


class Batch:
    """Messages that leave together.

    Attributes:
        has_left: Whether part of them may have been sent.
        left_at: When (monotonic, s).
    """

    __slots__ = ("has_left", "left_at")

    def __init__(self) -> None:
        """Not sent yet."""
        self.has_left = False
        self.left_at = 0.0


class Link:
    """The fields and locks of one connection, and how it ends in an error.

    Attributes:
        lock: Guards what is sent.
        readlock: Guards what is read.
        target: Where it leads; None before it is known.
        connected: Whether it is open, as far as is known.
        failure: Why it is over; None while it is not.
        holder: Who may use it now; an operation that names another is refused. None: no one in particular.
        messages_sent: Messages sent so far, one that is on its way out included.
        last_heard: When data or a due pong last came (monotonic, s).
        latency: Round trip of the last `measure_latency` (s).
        was_struck: Whether an exception has struck a thread as it waited for one of the locks.
        is_composing: Whether a thread is inside a send, however long making or deflating the message takes.
        waits_since: Since when a reader waits (monotonic, s); None: none does.
        stirred: Whether anything may have been read or sent since `at_rest` was last true; set before it is.
        unfinished: Where it puts itself when something that came could not be dealt with at once: a pong that
            the server does not take, or compressed messages too large to be inflated all at once. The thread
            that looks after many connections calls `finish` on those.
        tell_end: What is called with `failure` when it is set, anywhere, in a finalizer too; logs it.
        reader: Makes messages of what comes.
    """

    # What all begin with and few change stands here: it costs no time, and no memory.
    connected: bool = False
    latency: float | None = None
    waits_since: float | None = None
    was_struck: bool = False
    is_composing: bool = False
    unfinished: set[Any] | None = None
    tell_end: Callable[[ConnectionError], None] = staticmethod(_log_end)
    _deflater: deflate.Deflater | None = None  # guarded by `lock`
    _request: bytes = b""  # the upgrade's; what it has of secrets is not shown in what the server says
    _sent_before: Set[str] = frozenset()  # what was secret in requests that were redirected
    _close_sent: bool = False
    _reply_at: float | None = None  # when the server's close frame was seen
    _left_unread: bool = False  # whether the last look had to stop before the end
    _ahead: int = 0  # B read since a borrower last asked
    _drained: int = 0  # B thrown away since the close frame left
    _tended_by: int = 0  # the thread that is in `tend`
    _pushed_by: int = 0  # the thread that sends a ping or pong by the way
    _left_by: int = 0  # the thread that has taken leave

    def __init__(
        self, max_message_size: int, compression_threshold: int, max_frame_size: int | None = None
    ) -> None:
        """Prepare for a connection.

        Args:
            max_message_size: Limit of one incoming message, decompressed (B).
            compression_threshold: Messages of less than this (B) are sent as they are.
            max_frame_size: Longer messages (B, compressed) are sent in several frames; None: in one.
        """
        self.lock, self.readlock = threading.Lock(), threading.Lock()
        self.target: Target | None = None
        self.failure: ConnectionError | None = None
        self.holder: object = None
        self.messages_sent = 0
        self.last_heard = monotonic()
        self.stirred = True
        self.reader = MessageReader(max_message_size)
        self._max_message_size = max_message_size
        self._compression_threshold = compression_threshold
        self._max_frame_size = sys.maxsize if max_frame_size is None else max_frame_size
        self._keys: Iterator[bytes] = iter(())  # guarded by `lock`
        self._stream: Stream | None = None
        self._pings: dict[bytes, Ping] = {}
        self._reading = False  # True while bytes are between the socket and `reader`
        self._sending = False  # True while a frame, or a message of several, may be half on its way

    # --- what it tells ---------------------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended, by either side; `failure` says why."""
        return self.failure is not None

    @property
    def bytes_in(self) -> int:
        """B received, of the whole stream (TLS and the upgrade included)."""
        return 0 if self._stream is None else self._stream.bytes_in

    @property
    def bytes_out(self) -> int:
        """B sent, of the whole stream (TLS and the upgrade included)."""
        return 0 if self._stream is None else self._stream.bytes_out

    @property
    def blocked_since(self) -> float | None:
        """Since when a writer waits for the server to take more (monotonic, s); None: none does."""
        stream = self._stream
        return stream.blocked_since if stream is not None and self.lock.locked() and stream.unsent else None

    @property
    def bytes_taken(self) -> int:
        """B sent that have reached the other side, as far as the kernel tells; all of `bytes_out` at most."""
        return 0 if self._stream is None else self._stream.bytes_out - self._stream.untaken

    # --- errors ----------------------------------------------------------------------------------------

    def _lose(self, why: str, cause: BaseException | None = None) -> None:
        """Nothing will ever come or go again."""
        self._fail(self._closed(why, cause=cause))
        if self.lock.locked():  # in a send: the sender must not wait for the server to take it, nor a reader
            self._live_stream().abort()

    def _end(self, why: str, code: int = ABNORMAL, reason: str = "") -> None:
        """Note that it is over, and why, unless that was noted before."""
        self._fail(self.failure or self._closed(why, code, reason))

    def _fail(self, failure: ConnectionError) -> None:
        """Note the first reason why this connection is over."""
        if self.failure is None:
            self.failure = failure
            self.connected = False
            self.tell_end(failure)
        for ping in list(self._pings.values()):
            with suppress(RuntimeError):  # released already: the thread that waits is awake
                ping.answered.release()

    def raise_failure(self) -> NoReturn:
        """Tell why the connection is over, which it has to be."""
        assert self.failure is not None
        raise_copy(self.failure)

    def _closed(
        self, why: str, code: int = ABNORMAL, reason: str = "", cause: BaseException | None = None
    ) -> ConnectionClosedError:
        where = "the connection" if self.target is None else f"the connection to {self.target.redacted}"
        error = ConnectionClosedError(f"{where} is over: {why}", code=code, reason=reason)
        if cause is not None:
            # Without its traceback, whose frames lead back to this object: only the GC could end that cycle.
            error.__cause__ = cause.with_traceback(None)
        return error

    def acknowledge(self) -> None:
        """Have the server told what has come, at once: it may hold back its next message until then."""
        if (stream := self._stream) is not None:
            stream.acknowledge()

    def _live_stream(self) -> Stream:
        if self._stream is None:
            raise InvalidStateError("not connected; call connect() first", current_state="new")
        return self._stream

    def _wait_for(self, name: _LockName, deadline: float | None, operation: str) -> None:
        """Get that lock, which is not free, for the method that calls this."""
        if self._left_by == threading.get_ident():
            self.raise_failure()  # a hook or finalizer that runs after that: it would wait for itself
        lock = self.lock if name == "lock" else self.readlock
        was_over, patience, seen, looks = False, _AT_FIRST, self._signs(name), 0
        while True:  # in slices: an exception may have struck the thread that took it: that never lets go
            left = patience if deadline is None else max(0.0, deadline - monotonic())
            try:
                if lock.acquire(timeout=min(left, patience)):
                    return
            except BaseException:
                self.was_struck = True  # it may have got the lock before, and no one can tell
                raise
            # Only now: where many share a connection, the lock is nearly always free again before.
            if patience == _AT_FIRST and self._is_held_below(name, sys._getframe(2)):
                raise self._reentered(operation)
            patience = _LOOK_AGAIN
            seen, before = self._signs(name), seen
            looks = 0 if seen is None or seen != before else looks + 1
            if looks > _LOOKS and not self.is_in_use(
                name
            ):  # that very exception; on one that callers share, the housekeeper finds out
                self._fail(self._closed("an exception struck a thread in its use"))
                self._live_stream().abort()
            if was_over and self.failure is not None:
                self.raise_failure()
            was_over = self.failure is not None
            if deadline is not None and monotonic() >= deadline:
                raise self._late(operation, deadline)

    def is_in_use(self, name: _LockName) -> bool:
        """Whether a thread may hold that lock: it is in a method that takes it, and does not wait for it.

        Of greenlets it can't be known, and the answer is False.
        """
        return any(self._may_hold(name, frame) for frame in sys._current_frames().values())

    def _may_hold(self, name: _LockName, frame: FrameType) -> bool:
        waiting = Link._wait_for.__code__
        for below in frames_from(frame):
            is_ours = below.f_code is waiting or below.f_code in _takers[name]
            if is_ours and below.f_locals.get("self") is self:
                return below.f_code is not waiting
        return False

    def _signs(self, name: _LockName) -> tuple[int, int] | None:
        """What changes while the thread that holds a lock goes on; None: it says itself that it does."""
        if name == "lock":
            busy = self.is_composing or self._sending
            return None if busy else (self.bytes_out, self.messages_sent)
        return None if self.waits_since is not None else (self.bytes_in, self.reader.received)

    def _late(self, operation: str, deadline: float | None, why: str = "") -> TimeoutError:
        where = "" if self.target is None else f" at {self.target.redacted}"
        doing = {"recv": "no whole message came", "send": "the server takes no more", "ping": "no pong came"}
        told = why or f"{doing[operation]} in time"
        return TimeoutError(f"{told}{where}", operation=operation, timeout=None)

    def _flooded(self, operation: str, why: str) -> TimeoutError:
        """What to tell who would have to keep more messages unread than there is room for."""
        error = self._late(operation, None, why)
        error._ran_out = False
        return error

    def refuse_reentry(self, name: _LockName, operation: str) -> None:
        """Refuse an operation that would need that lock, which is not free, and is held by this very thread.

        To be asked before anything is sent or noted that a refusal half-way would leave behind.

        Raises:
            InvalidStateError: A signal handler or finalizer has interrupted code that holds the lock.
        """
        if self._is_held_below(name, sys._getframe(1)):
            raise self._reentered(operation)

    def _is_held_below(self, name: _LockName, frame: FrameType | None) -> bool:
        """Whether this very thread holds that lock, or waits for it, from that frame of its stack down."""
        return is_below(self, _takers[name], frame)

    def _is_inside(self) -> bool:
        """Whether this very thread uses this connection, below us on the stack."""
        frame = sys._getframe(2)
        return self._is_held_below("lock", frame) or self._is_held_below("readlock", frame)

    def _reentered(self, operation: str) -> InvalidStateError:
        """What to tell a finalizer or signal handler that would wait for its own thread."""
        where = "this connection" if self.target is None else f"the connection to {self.target.redacted}"
        return reentered(operation, where)


def not_held(target: Target | None) -> InvalidStateError:
    """What to tell a caller that uses a connection which was lent to it, and is not any more."""
    where = "" if target is None else f" to {target.redacted}"
    return InvalidStateError(
        f"this lease of a connection{where} was released; acquire a new one",
        current_state="released",
        required_states=["lent"],
    )
