"""What a thread is to the pool: a housekeeper's, which nothing may hold up, or another."""

from __future__ import annotations

import _thread
import sys
import threading
import traceback
from collections.abc import Collection
from queue import SimpleQueue
from types import CodeType, FrameType

from jetsocket.process_id import getpid

_START_PATIENCE = 1.0  # s


class _Here(threading.local):
    """What is known of this thread. A default of the class is found ten times as fast as by `getattr`."""

    keeps_house = False


_here = _Here()


def keep_house() -> None:
    """Mark this thread as a housekeeper's."""
    _here.keeps_house = True


def is_housekeeping() -> bool:
    """Whether this thread is a housekeeper's, of whatever pool."""
    return _here.keeps_house


def start_for_a_borrower(thread: threading.Thread) -> None:
    """Start a thread from one that another may raise an exception in (`PyThreadState_SetAsyncExc`).

    Before Python 3.12, an exception that comes while a thread is being started may end the new one at its
    birth, which `Thread.start` waits for without a limit. So there a second thread starts it, and does the
    waiting.

    Raises:
        RuntimeError: The thread was not started: there are too many, or an exception has struck.
    """
    if sys.version_info >= (3, 12):
        thread.start()
        return
    failures: list[BaseException] = []
    is_done = threading.Lock()
    is_done.acquire()

    def start() -> None:
        try:
            thread.start()
        except (RuntimeError, MemoryError) as error:  # the system's limit
            failures.append(error)
        finally:
            is_done.release()

    _thread.start_new_thread(start, ())
    if not is_done.acquire(timeout=_START_PATIENCE):
        raise RuntimeError("the thread that was to start another has not begun")
    if failures:
        raise RuntimeError(f"can't start new thread: {failures[0]}") from failures[0]


class Forked(Exception):
    """This is a forked child: what was waited for or under way is the parent's. Never leaves the package."""


def rest_if_forked(pid: int) -> None:
    """Never return in a forked child, where a greenlet of the parent's threads lives on.

    `threading` has forgotten it there, and its end would fail. It waits for nothing that comes, so it holds
    up no `gevent.wait()`. The thread that has forked is the child's main thread: its end is the child's.
    """
    if pid != getpid() and threading.current_thread() is not threading.main_thread():
        SimpleQueue[None]().get()


def frame_in(thread: int) -> FrameType | None:
    """What a thread with that identity runs now; None if there is none, or it is a greenlet's."""
    return sys._current_frames().get(thread)


def is_in(thread: int, functions: Collection[CodeType]) -> bool:
    """Whether a thread is in one of these functions; also if that can't be known, of a greenlet."""
    if frame_in(threading.get_ident()) is None:
        return True  # identities are greenlets' here
    frame = frame_in(thread)
    while frame is not None and frame.f_code not in functions:
        frame = frame.f_back
    return frame is not None


def stack_of(frame: FrameType | None) -> traceback.StackSummary:
    """The stack down to `frame`; source lines are read only when it is shown."""
    frames = [] if frame is None else list(traceback.walk_stack(frame))
    return traceback.StackSummary.extract(iter(reversed(frames)), lookup_lines=False)


__all__ = [
    "Forked",
    "frame_in",
    "is_housekeeping",
    "is_in",
    "keep_house",
    "rest_if_forked",
    "stack_of",
    "start_for_a_borrower",
]
