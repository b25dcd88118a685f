"""Workers: daemon threads that run what may block or is the user's, so that the housekeeper never does.

One queue and one thread a kind (for checks up to three), so that none holds up another kind. They are started
by the housekeeper when there is work, and end when they have had none for a while.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeAlias

from jetsocket.clock import monotonic
from jetsocket.process_id import getpid
from jetsocket.threads import frame_in, rest_if_forked
from jetsocket.user_errors import place_in
from jetsocket.wire.waits import take

Job: TypeAlias = Callable[[], object]

MOST_CHECKS = 3
"""Threads that run the user's `check`."""

_PARK = 5.0  # s without work, after which a thread ends


def run(job: Job) -> None:
    """Run what is the user's: whatever it raises, SystemExit too, is told, and costs no thread."""
    try:
        job()
    except BaseException as error:  # noqa: BLE001  # a log handler's costs its line, no more
        told = (*sys.exc_info(), threading.current_thread())
        try:
            if isinstance(error, SystemExit) and threading.excepthook is threading.__excepthook__:
                sys.excepthook(type(error), error, error.__traceback__)  # of that, the other says nothing
            else:
                threading.excepthook(threading.ExceptHookArgs(told))  # as if it had ended the thread
        except BaseException:  # noqa: BLE001  # the user's hook; `threading` does the same with it
            sys.__excepthook__(*sys.exc_info())


class Run:
    """What is the user's and under way, in this thread.

    Attributes:
        thread: Its identity.
        began_at: Since when (monotonic, s).
        hangs: Whether it was given up.
    """

    __slots__ = ("began_at", "hangs", "thread")

    def __init__(self) -> None:
        """It begins now."""
        self.thread = threading.get_ident()
        self.began_at = monotonic()
        self.hangs = False

    @property
    def place(self) -> str:
        """In which place of the user's code it is now, to be told; "" if that is not known."""
        place = place_in(frame_in(self.thread))
        return f" in {place}" if place else ""


class Worker:
    """The threads and the queue of one kind of work.

    `_lock` guards the fields below; only a list and two counters are touched under it, and no other lock is
    taken.
    """

    def __init__(self, name: str, most: int = 1) -> None:
        """Have at most so many threads of that name."""
        self._name = name
        self._most = most
        self._lock = threading.Lock()
        self._jobs: deque[Job] = deque()
        self._running = self._parked = 0
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._stopping = False
        self._threads: list[threading.Thread] = []

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        with self._lock:
            return not self._jobs and self._running == self._parked

    @property
    def backlog(self) -> int:
        """How many jobs wait for a thread."""
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        """Have this run soon; for the housekeeper alone, for it may start a thread.

        Raises:
            RuntimeError: No thread could be started, and none runs; the job was not taken.
        """
        with self._lock:
            self._jobs.append(job)
            wants_thread = self._parked < len(self._jobs) and self._running < self._most
            self._running += wants_thread
        if not wants_thread:
            self._wake.put(None)
            return
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        try:
            thread.start()
        except RuntimeError:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._jobs.remove(job)
                    raise
            return
        self._threads = [each for each in self._threads if each.is_alive()]
        self._threads.append(thread)

    def replace_one(self) -> None:
        """One of the threads hangs: allow one more, until that one is back; for the housekeeper alone.

        Raises:
            RuntimeError: As `submit`.
        """
        with self._lock:
            self._most += 1
        self.submit(_nothing)  # what waits may need it

    def one_is_back(self) -> None:
        """That thread does not hang any more."""
        with self._lock:
            self._most -= 1

    def _run(self) -> None:
        pid = getpid()
        self._serve(pid)
        rest_if_forked(pid)

    def _serve(self, pid: int) -> None:
        while pid == getpid():  # else the user's code has forked, and this is the child
            with self._lock:
                job = self._jobs.popleft() if self._jobs else None
                if job is None:
                    if self._stopping:
                        self._running -= 1
                        return
                    self._parked += 1
            if job is None:
                if not self._park():
                    return
                continue
            run(job)
            del job

    def _park(self) -> bool:
        """Wait for work; False: there was none for long, and the thread is to end."""
        try:
            take(self._wake, _PARK)
            ended = False
        except Empty:
            ended = True
        with self._lock:
            self._parked -= 1
            if ended and not self._jobs:
                self._running -= 1
                return False
        return True

    def stop(self, deadline: float) -> None:
        """Let the threads end when the queue is empty; wait for that until then (monotonic, s)."""
        with self._lock:
            self._stopping = True
        threads = self._threads
        for _ in threads:
            self._wake.put(None)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - monotonic()))


def _nothing() -> None:
    """Wake a thread."""


class Workers:
    """The workers of one pool."""

    def __init__(self, pool: str) -> None:
        """None runs yet."""
        self.log = Worker(f"jetsocket-log-{pool}")
        self.checks = Worker(f"jetsocket-check-{pool}", most=MOST_CHECKS)
        self.limiter = Worker(f"jetsocket-limiter-{pool}")
        self.dispatch = Worker(f"jetsocket-dispatch-{pool}")
        self.push = Worker(f"jetsocket-push-{pool}")

    def stop(self, deadline: float) -> None:
        """Empty the queues, at most until then (monotonic, s), and let the threads end."""
        for worker in (self.log, self.checks, self.limiter, self.dispatch, self.push):
            worker.stop(deadline)


__all__ = ["MOST_CHECKS", "Job", "Run", "Worker", "Workers", "run"]
