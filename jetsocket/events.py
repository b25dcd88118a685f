"""What a pool does, told to listeners as it happens: for metrics, traces and status pages.

A listener is told in the thread that does it, without a lock. What happens in the housekeeper, or inside a
garbage collection (which may have interrupted the listener itself, with a lock of its own held), waits for a
worker instead. What a listener does with a pool while it is told something is told to no listener.
"""

from __future__ import annotations

import gc
import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from jetsocket.argument_checks import runs_later
from jetsocket.deferred_log import DeferredLog
from jetsocket.interrupts import is_alarm
from jetsocket.threads import is_housekeeping
from jetsocket.user_errors import told

if TYPE_CHECKING:
    from jetsocket.entry import Entry
    from jetsocket.info import ConnectionInfo

__all__ = ["EndOfRequest", "Events", "Listener", "Marks", "check", "untold"]

Marks: TypeAlias = list[Any]
"""What each listener returned when something began, in the order in which they were attached."""

EndOfRequest: TypeAlias = Callable[[BaseException | None], None]
"""Tells listeners how a request has ended: with that error, or None."""

_MOST_PENDING = 10_000  # events kept for a worker; where no thread runs, none may ever come for them


class Listener:
    """Is told what a pool does, of which it overrides what it wants; attached by `ConnectionPool.listen`.

    Called in the thread that does it, without a lock, so it may be slow only as far as its pool may. What it
    raises is logged, and changes nothing. `info` is a ConnectionInfo, URIs are redacted, times are in s. A
    listener that refers to its pool keeps it from being closed when nothing else does.
    """

    def acquiring(self, uri: str) -> Any:
        """A caller asks for a connection.

        Returns:
            Anything: handed to `acquired` or `refused` of the same acquire, and to `connecting`.
        """

    def acquired(self, token: Any, info: ConnectionInfo, waited: float, reused: bool) -> None:
        """It has got one.

        Args:
            token: What `acquiring` returned.
            info: The connection.
            waited: For how long it had to wait (s).
            reused: Whether the connection had another borrower before.
        """

    def refused(self, token: Any, error: BaseException) -> None:
        """It gets that error instead, be it the pool's, or one that has struck the caller's thread."""

    def released(self, info: ConnectionInfo, used: float, reason: str | None) -> None:
        """A lease has ended.

        Args:
            info: The connection; of one that is shared, others may use it still.
            used: For how long it was lent (s).
            reason: Why it is not lent again, as `PoolStats.discards` names it; None: it is.
        """

    def connecting(self, uri: str, tokens: Sequence[Any]) -> Any:
        """A connection is about to be opened, by a thread of the pool; once for each attempt.

        Args:
            uri: Where to.
            tokens: What this listener's `acquiring` returned for each caller in line for that URI, the first
                one first; empty for `prewarm`.

        Returns:
            Anything: handed to `connected` or `connect_failed` of the same attempt.
        """

    def connected(self, token: Any, info: ConnectionInfo) -> None:
        """It is open, and `configure` has returned; `token` is what `connecting` returned."""

    def connect_failed(self, token: Any, error: BaseException) -> None:
        """It could not be opened; `token` is what `connecting` returned."""

    def closed(self, info: ConnectionInfo, reason: str) -> None:
        """A connection that was open is closed, for that reason, as `PoolStats.discards` names it."""

    def requesting(self, info: ConnectionInfo, message: Any) -> Any:
        """A request is about to be sent: one of `request`, `request_many` or `stream`.

        Args:
            info: The connection.
            message: As the caller gave it; not to be changed.

        Returns:
            Anything: handed to `rewriting` and `replied` of the same request.
        """

    def rewriting(self, token: Any, message: Any) -> Any:
        """What is to be sent in its place, which must ask the same; None: the message as it is.

        Args:
            token: What `requesting` returned.
            message: As the caller gave it, or another listener has rewritten it; not to be changed itself.
        """

    def replied(self, token: Any, error: BaseException | None) -> None:
        """It has its reply, or that error; `token` is what `requesting` returned.

        Of `request_many`, when its turn has come to be told; of `stream`, when the last reply has been read,
        or the caller has stopped reading.
        """


_TOLD = tuple(name for name, value in vars(Listener).items() if not name.startswith("_") and callable(value))


class _Here(threading.local):
    """What is known of this thread. A default of the class is found ten times as fast as by `getattr`."""

    is_told = False


_here = _Here()
_collector: int | None = None  # the thread that is inside a garbage collection


def _note_collection(phase: str, _info: dict[str, int]) -> None:
    global _collector  # noqa: PLW0603  # the collector is the process's, too
    _collector = threading.get_ident() if phase == "start" else None


class Events:
    """The listeners of one pool, each told in turn. Immutable, but for what waits for a worker.

    Attributes:
        listeners: In the order in which they were attached.
        wants_requests: Whether one of them is told of requests.
        info_of: Makes what they are told of a connection, of its entry and the time (monotonic, s).
    """

    def __init__(self, listeners: tuple[Listener, ...], log: DeferredLog, pool: str) -> None:
        """Tell those listeners; what they raise goes to that log, by the name of that pool."""
        from jetsocket.info import connection_info  # it is there since the pool was made

        self.info_of: Callable[[Entry, float], ConnectionInfo] = connection_info
        if _note_collection not in gc.callbacks:
            gc.callbacks.append(_note_collection)
        self.listeners = listeners
        self._log = log
        self._pool = pool
        self._failures_seen: set[tuple[int, str, type]] = set()
        self._pending: deque[Callable[[], None]] = deque(maxlen=_MOST_PENDING)
        self._told = {name: _overriding(listeners, name) for name in _TOLD}
        self.wants_requests = any(self._told[name] for name in ("requesting", "rewriting", "replied"))

    def with_one_more(self, listener: Listener) -> Events:
        """The same, and that listener."""
        more = Events((*self.listeners, listener), self._log, self._pool)
        more._pending = self._pending
        return more

    @property
    def has_pending(self) -> bool:
        """Whether events wait for a worker."""
        return bool(self._pending)

    def wants(self, name: str) -> bool:
        """Whether one of them is told of that."""
        return bool(self._told[name])

    # --- what begins and ends --------------------------------------------------------------------------

    def begin(self, name: str, *args: Any) -> Marks | None:
        """Tell that something begins; what to give to `end`, None if it is told to no listener."""
        if _is_inside_a_listener():
            return None
        marks: Marks = [None] * len(self.listeners)
        for place, method in self._told[name]:
            marks[place] = self._call(name, method, args)
        return marks

    def begin_connecting(self, uri: str, line: Sequence[Marks | None]) -> Marks:
        """`begin` of an attempt to open a connection for the callers whose marks those are."""
        marks: Marks = [None] * len(self.listeners)
        for place, method in self._told["connecting"]:
            tokens = [each[place] for each in line if each is not None and place < len(each)]
            marks[place] = self._call("connecting", method, (uri, tokens))
        return marks

    def end(self, name: str, marks: Marks, *args: Any) -> None:
        """Tell how it ended to those that were told that it began."""
        for place, method in self._told[name]:
            if place < len(marks):
                self._call(name, method, (marks[place], *args))

    def rewritten(self, marks: Marks, message: Any) -> Any:
        """What those that were told of a request make of its message."""
        for place, method in self._told["rewriting"]:
            if place < len(marks):
                new = self._call("rewriting", method, (marks[place], message))
                message = message if new is None else new
        return message

    def begin_request(self, info: ConnectionInfo, message: Any) -> tuple[EndOfRequest, Any]:
        """Tell that a request is about to be sent: what is to be told its end, and what is to be sent."""
        marks = self.begin("requesting", info, message)
        if marks is None:
            return untold, message
        return partial(self._end_request, marks), self.rewritten(marks, message)

    def _end_request(self, marks: Marks, error: BaseException | None) -> None:
        if _must_wait():  # the collector has found a stream that was left
            self._pending.append(partial(self.end, "replied", marks, error))
        else:
            self.end("replied", marks, error)

    # --- what happens ----------------------------------------------------------------------------------

    def tell(self, name: str, make: Callable[[], tuple[Any, ...]]) -> None:
        """Tell what has happened, here if it may be, or by a worker; `make` makes what is told of it."""
        if not self._told[name]:
            return
        if _must_wait() or _is_inside_a_listener():
            self.note(name, make)
        else:
            self._tell(name, make)

    def note(self, name: str, make: Callable[[], tuple[Any, ...]]) -> None:
        """Have a worker tell what has happened; one call that CPython does not interrupt."""
        if self._told[name]:
            self._pending.append(partial(self._tell, name, make))

    def emit(self) -> None:
        """Tell what waits."""
        while self._pending:
            try:
                tell = self._pending.popleft()
            except IndexError as error:
                if is_alarm(error):
                    raise
                return  # another thread was faster
            tell()

    def _tell(self, name: str, make: Callable[[], tuple[Any, ...]]) -> None:
        args = make()
        for _place, method in self._told[name]:
            self._call(name, method, args)

    def _call(self, name: str, method: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        before = _here.is_told
        try:
            _here.is_told = True
            return method(*args)
        except (Exception, SystemExit) as error:
            if is_alarm(error, users_code=True):
                raise
            self._tell_of(error, name, method)
            return None
        finally:
            _here.is_told = before

    def _tell_of(self, error: BaseException, name: str, method: Callable[..., Any]) -> None:
        """Log what a listener raised, once for each kind."""
        listener = getattr(method, "__self__", method)
        kind = id(listener), name, type(error)
        if kind in self._failures_seen:
            return
        self._failures_seen.add(kind)
        text = "[%s] listener %s.%s() raised %s: it is lost, and further ones of its kind are not logged"
        label = type(listener).__name__
        self._log.note(logging.ERROR, text, self._pool, label, name, told(error), failure=error)


def untold(_error: BaseException | None) -> None:
    """The end of a request that no listener was told of."""


def _must_wait() -> bool:
    """Whether no listener may be told anything in this thread just now."""
    return is_housekeeping() or threading.get_ident() == _collector


def _is_inside_a_listener() -> bool:
    """Whether this thread is inside a listener, which does something with a pool."""
    if not _here.is_told:
        return False
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is Events._call.__code__:
            return True
    _here.is_told = False  # an exception has struck at its end
    return False


def check(listener: object) -> None:
    """Refuse what is no listener.

    Raises:
        TypeError: It is none, or one of its methods returns before it has run.
    """
    if not isinstance(listener, Listener):
        raise TypeError(f"listener must be a jetsocket.events.Listener, not {listener!r}")
    for name in _TOLD:
        method = getattr(listener, name)
        if not callable(method):
            raise TypeError(f"{type(listener).__name__}.{name} must be callable, not {method!r}")
        if runs_later(method):
            raise TypeError(
                f"{type(listener).__name__}.{name} must be an ordinary function, not an async one or a"
                " generator"
            )


def _overriding(listeners: tuple[Listener, ...], name: str) -> list[tuple[int, Callable[..., Any]]]:
    """The places and methods of those that want to hear of it."""
    methods = [(place, getattr(listener, name)) for place, listener in enumerate(listeners)]
    return [each for each in methods if getattr(each[1], "__func__", each[1]) is not getattr(Listener, name)]
