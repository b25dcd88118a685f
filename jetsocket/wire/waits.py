"""Waiting, with a deadline: for descriptors to have something, and for queues."""

from __future__ import annotations

import queue
import select
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias, TypeVar

from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm, suppress

if sys.platform != "win32":
    import fcntl
    import termios

_T = TypeVar("_T")
Poll: TypeAlias = Callable[["float | None"], object]
"""Takes how long to wait (ms); true: there is something."""

_LONGEST_POLL = 3600.0  # s; poll() takes its milliseconds as a C int, which far deadlines overflow
_MANY = 256  # descriptors from which on epoll is worth one of its own
_TO_EPOLL = 20  # looks of which one goes to poll
_SELECT_AT_ONCE = 500  # descriptors; Windows' select() takes 512
_INT = struct.Struct("i")


def take(box: queue.SimpleQueue[_T], seconds: float) -> _T:
    """The next item of ``box``, waiting at most so many seconds for it.

    Raises:
        queue.Empty: None came.
    """
    if seconds > 0 and sys.version_info >= (3, 13):
        return box.get(timeout=seconds)
    try:
        # Before Python 3.13, get(timeout=...) of an empty queue may find its time over before it has begun
        # to wait, and then waits for ever: unless the queue has been found empty before.
        return box.get_nowait()
    except queue.Empty as error:
        if seconds <= 0 or is_alarm(error):
            raise
    return box.get(timeout=seconds)


class Watcher:
    """Tells which of many descriptors have something to read, without waiting.

    One thread at a time may call its methods. Where there is epoll, many are looked at with that: poll costs
    as much as is watched, and epoll as is ready. But it does not tell of a descriptor that was closed without
    being removed: poll is asked now and then.
    """

    def __init__(self) -> None:
        self._fds: set[int] = set()
        self._epoll: Any = None
        self._may_epoll = _may_epoll()
        self._looks = 0
        make_look, make_wait = _make_poll(), getattr(select, "poll", None)
        self._polls = []  # the first looks, the last waits; none on Windows
        if make_look is not None and make_wait is not None:
            self._polls = [make() for make in dict.fromkeys((make_look, make_wait))]

    def add(self, fd: int) -> None:
        """Watch ``fd`` from now on.

        Raises:
            ValueError: ``fd`` is negative, as that of a closed stream is.
        """
        if fd < 0:
            raise ValueError(f"cannot watch the descriptor of a closed stream ({fd})")
        self._fds.add(fd)
        for poll in self._polls:
            poll.register(fd, select.POLLIN)
        if self._epoll is not None:
            self._add_to_epoll([fd])

    def remove(self, fd: int) -> None:
        """Watch ``fd`` no longer; harmless if it was not watched."""
        if fd in self._fds:
            self._fds.discard(fd)
            for poll in self._polls:
                poll.unregister(fd)
            if self._epoll is not None:
                with suppress(OSError):  # it is closed, and gone from there; or its number is another's
                    self._epoll.unregister(fd)

    def ready(self, timeout: float = 0.0) -> list[int]:
        """The descriptors with data, an end, an error, or that were closed without being removed.

        Args:
            timeout: How long to wait for the first one (s).
        """
        if timeout <= 0 and len(self._fds) >= _MANY and self._may_epoll:
            self._looks += 1
            if self._looks % _TO_EPOLL and self._has_epoll():
                return [fd for fd, _ in self._epoll.poll(0, len(self._fds))]
        if self._polls:
            poll = self._polls[-1 if timeout > 0 else 0]
            return [fd for fd, _ in poll.poll(timeout * 1000)]
        fds = list(self._fds)
        groups = [fds[start : start + _SELECT_AT_ONCE] for start in range(0, len(fds), _SELECT_AT_ONCE)]
        return [fd for group in groups for fd in _select_readable(group, timeout / len(groups))]

    def _has_epoll(self) -> bool:
        if self._epoll is None:
            try:
                self._epoll = select.epoll()
            except OSError as error:  # no descriptor is free
                if is_alarm(error):
                    raise
                self._may_epoll = False
                return False
            self._add_to_epoll(self._fds)
        return self._epoll is not None

    def _add_to_epoll(self, fds: Iterable[int]) -> None:
        try:
            for fd in fds:
                self._epoll.register(fd, select.EPOLLIN)
        except OSError as error:  # one that is closed, or more than the system allows: poll does without
            if is_alarm(error):
                raise
            self._epoll, self._may_epoll = None, False


def _may_epoll() -> bool:
    """Whether there is epoll; not gevent's, under which there is none."""
    return hasattr(select, "epoll") and "gevent.monkey" not in sys.modules


def waiting(fd: int) -> int:
    """How many B the kernel holds to be read from ``fd``; 0 where it does not tell."""
    return ask_kernel(fd, "FIONREAD")


def ask_kernel(fd: int, what: str) -> int:
    """What the kernel tells of ``fd``, by the name of the request (ioctl); 0 where it does not."""
    if sys.platform == "win32":
        return 0
    if fd < 0 or not hasattr(termios, what):
        return 0
    try:
        return int(_INT.unpack(fcntl.ioctl(fd, getattr(termios, what), bytes(_INT.size)))[0])
    except OSError as error:
        if is_alarm(error):
            raise
        return 0  # closed meanwhile, or a system that answers this for terminals alone


def _select_readable(fds: list[int], timeout: float = 0.0) -> list[int]:
    try:
        readable, _, failed = select.select(fds, [], fds, timeout)
    except (OSError, ValueError) as error:
        if is_alarm(error):
            raise
        if len(fds) == 1:  # one that is closed spoils the call for all: ask one by one
            return fds
        return [ready for fd in fds for ready in _select_readable([fd])]
    return list({*readable, *failed})


def _make_poll() -> Callable[[], select.poll] | None:
    """`select.poll` itself: gevent's lets others run even with a timeout of 0, and fails in its hub."""
    make = getattr(select, "poll", None)  # not on Windows
    monkey = sys.modules.get("gevent.monkey")
    return make if make is None or monkey is None else monkey.get_original("select", "poll")


def pollers(fd: int, *, writing: bool) -> tuple[Poll, Poll]:
    """Two functions that tell whether ``fd`` is ready or has failed: one looks, the other waits so many ms.

    Not re-entrant, as poll objects are not: two for the reader, two for the writer. Without gevent, they are
    the same.
    """
    make_look, make_wait = _make_poll(), getattr(select, "poll", None)
    if make_look is None or make_wait is None:
        lists = ([], [fd], [fd]) if writing else ([fd], [], [fd])

        def ask(ms: float | None) -> bool:
            return any(select.select(*lists, None if ms is None else ms / 1000))

        return ask, ask
    look = _registered(make_look(), fd, writing)
    return look, look if make_look is make_wait else _registered(make_wait(), fd, writing)


def _registered(poll: select.poll, fd: int, writing: bool) -> Poll:
    poll.register(fd, select.POLLOUT if writing else select.POLLIN)
    return poll.poll


def wait_for(poll: Poll, deadline: float | None) -> bool:
    """Wait until ``poll`` has something; False: the deadline passed. None waits for ever."""
    if deadline is None:
        return bool(poll(None))
    while (remaining := deadline - monotonic()) > 0:
        if poll(min(remaining, _LONGEST_POLL) * 1000):
            return True
    return False


__all__ = ["Poll", "Watcher", "ask_kernel", "pollers", "take", "wait_for", "waiting"]


class Patience:
    """How long to wait for what may never come, unless it turns out meanwhile that it will.

    Attributes:
        seconds: From `begin` on.
        until: When it is over (monotonic, s); None before it has begun, and when there is hope.
    """

    __slots__ = ("_is_hopeful", "seconds", "until")

    def __init__(self, seconds: float, is_hopeful: Callable[[], bool]) -> None:
        """Have so much of it, as long as `is_hopeful` says no; it is asked at the start and the end."""
        self.seconds = seconds
        self.until: float | None = None
        self._is_hopeful = is_hopeful

    def begin(self) -> None:
        """Begin, unless it has begun or there is hope."""
        if self.until is None and not self._is_hopeful():
            self.until = monotonic() + self.seconds

    def is_over(self) -> bool:
        """The time has passed: whether that is the end; False: there is hope."""
        if self._is_hopeful():
            self.until = None
        return self.until is not None
