"""The one thread of a process that looks at the pools once a second.

It begins with the first board that is added in this process, so never before a fork on behalf of the child,
and ends with the last board.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
import weakref
from typing import Protocol

from jetsocket.interrupts import is_alarm

_log = logging.getLogger("jetsocket.status")

_PERIOD = 1.0  # s

# Errors are logged as text: who keeps a record would keep its frames, and so what is sampled.


class Board(Protocol):
    """What is sampled."""

    def sample(self, now: float) -> bool:
        """Look at the pools; `now` is in s since the epoch; False: there will be nothing to look at."""

    def ended(self) -> None:
        """It is sampled no more, until it is added again."""


class Sampler:
    """The thread and what it samples, of one process."""

    def __init__(self, pid: int) -> None:
        """Sample nothing yet; that process is this one."""
        self.pid = pid
        self._lock = threading.Lock()  # guards what follows; no other lock is taken with it
        self._boards: weakref.WeakSet[Board] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._wakes: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._failures_seen: set[type] = set()

    def add(self, board: Board) -> bool:
        """Sample this one, too, from now on.

        Never waits: an acquire calls it, which a finalizer may do whose thread is in here at that moment.

        Returns:
            Whether it is sampled; False where another thread adds one just now, or none can be started.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if board not in self._boards:
                self._boards.add(board)
                weakref.finalize(board, self._wakes.put, None).atexit = False
            if self._thread is None or not self._thread.is_alive():
                self._thread = self._start()
            return self._thread is not None
        finally:
            self._lock.release()

    def _start(self) -> threading.Thread | None:
        thread = threading.Thread(target=self._run, name="jetsocket-status", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system's limit, or the interpreter ends
            if is_alarm(error):
                raise
            _log.error("pools are not sampled: %s", str(error))
            return None
        return thread

    def _run(self) -> None:
        while self._sample():
            try:
                # To the middle of the next second, so that each has its figure.
                self._wakes.get(timeout=_PERIOD + 0.5 - time.time() % 1)
            except queue.Empty as error:
                if is_alarm(error):
                    raise
                continue
        # A greenlet of the parent's lives on in a forked child, where `threading` knows it no more.
        while self.pid != os.getpid():
            queue.SimpleQueue[None]().get()

    def _sample(self) -> bool:
        """Look at all boards; whether there are any."""
        if self.pid != os.getpid():
            return False
        with self._lock:
            boards = list(self._boards)
        while boards:
            self._look_at(boards.pop())  # and keep none: one that is referred to no more is not sampled
        with self._lock:
            if not self._boards:
                self._thread = None
            return self._thread is not None

    def _look_at(self, board: Board) -> None:
        try:
            if board.sample(time.time()):
                return
        except Exception as error:  # a mapping is the user's, a directory the system's
            if is_alarm(error):
                raise
            self._tell_of(error)
            return
        with self._lock:
            self._boards.discard(board)
        board.ended()

    def _tell_of(self, error: Exception) -> None:
        if type(error) not in self._failures_seen:
            self._failures_seen.add(type(error))
            _log.error("pools are not sampled (said once for each kind of error): %s", repr(error))


_samplers: dict[int, Sampler] = {}


def begin(board: Board) -> bool:
    """Have the thread of this process sample that board, which it does not keep; see `Sampler.add`."""
    pid = os.getpid()
    sampler = _samplers.get(pid)
    if sampler is None:
        for other in list(_samplers):  # of a process that this one was forked from
            _samplers.pop(other, None)
        sampler = _samplers.setdefault(pid, Sampler(pid))
    return sampler.add(board)
