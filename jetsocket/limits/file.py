"""One cap over the processes of one host."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Hashable, Mapping
from typing import Any

from jetsocket.argument_checks import int_from, wrong_type
from jetsocket.clock import deadline_in, monotonic
from jetsocket.interrupts import is_alarm
from jetsocket.limits.base import Limiter, Owner
from jetsocket.limits.slot_files import FileCall, FileSlot, Line, lock_at_once, opened, process
from jetsocket.process_id import PID
from jetsocket.text import short_repr

if sys.platform != "win32":
    import fcntl

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.025, 0.075  # s between two looks for a free slot
_REST = 20  # times what a look took, at least: of hundreds of slots, it takes milliseconds
_MOST_PAUSE = 0.75  # s, whatever it took


class FileLimiter(Limiter):
    """A number of connections that all processes of one host may have open together.

    They name the same path, in a directory that is there and that they may write to. Beside it a file for
    each slot is made, `PATH.0`, `PATH.1` and so on. All are empty and stay: one that is removed while its
    slot is in use is made again by the next process, and the slot is given twice.

    A slot is free again as soon as its process is gone, killed or not. No process is asked to give up a
    connection: who waits gets what others close.

    Attributes:
        name: The path.
    """

    def __init__(self, path: str | os.PathLike[str], limit: int) -> None:
        """Make one, for the pools of this process; several on one path share its slots, too.

        Args:
            path: Of the files: a name that is not there yet, or was made by this class. Links are followed.
            limit: Connections, 1 or more. A process with a smaller one uses the first slots only, so there
                are never more connections than the largest one says.

        Raises:
            TypeError: An argument is of the wrong type.
            ValueError: `limit` is less than 1, or `path` is none of a file.
            OSError: No file can be made there, or none can be locked; as the system says.
            NotImplementedError: The system has no `flock`: it is Windows.
        """
        if sys.platform == "win32":
            raise NotImplementedError("FileLimiter needs flock, which Windows does not have")
        self._limit = int_from(1)("limit", limit)
        given: Any = path
        if not isinstance(given, (str, os.PathLike)) or not isinstance(os.fspath(given), str):
            raise wrong_type("path", given, "a str or a path")
        if not os.fspath(path):
            raise ValueError("path must not be empty")
        self._path = self.name = os.path.realpath(path)  # now: the process may go to another directory
        self._errors = 0
        try:
            for each in (self._path, f"{self._path}.0"):
                with opened(each) as fd:
                    if not stat.S_ISREG(os.fstat(fd).st_mode):
                        raise ValueError(f"path must be a file's, and {each!r} is something else")
                    if each == self._path:
                        lock_at_once(fd, fcntl.LOCK_SH)  # there are file systems without such locks
        except OSError as error:
            if is_alarm(error):
                raise
            told = f"a FileLimiter cannot keep its slots there: {error.strerror}"
            raise OSError(error.errno, told, error.filename or self._path) from error
        self._line = process().line(self._path, self._limit)

    @property
    def limit(self) -> int:
        """How many slots there are for this process."""
        return self._limit

    def __repr__(self) -> str:
        """As it is made."""
        return f"{type(self).__name__}({self._path!r}, {self._limit})"

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        """See `Limiter.acquire`.

        Raises:
            OSError: A file cannot be opened or locked.
        """
        line, call, slot = self._here(), FileCall(self), None
        deadline = deadline_in(timeout)
        try:
            if not line.is_waited_for:
                slot = line.look(self._limit, call)
            if slot is None and timeout > 0:
                line.join(call)
                took = 0.0
                while line.pid == PID[0] and (left := deadline - monotonic()) > 0 and wanted():
                    call.wait(min(left, _pause(took)))
                    began = monotonic()
                    if line.pid == PID[0] and (slot := line.look(self._limit, call)) is not None:
                        break
                    took = monotonic() - began
            return slot
        except OSError as error:
            if not is_alarm(error):
                self._errors += 1
            raise
        finally:
            if line.pid == PID[0]:  # else another greenlet has forked, and this is the child
                line.leave(call, slot)

    def release(self, token: Hashable) -> None:
        """See `Limiter.release`.

        Raises:
            ValueError: The token is not out: it was released before, or is another limiter's.
            OSError: Other code has closed the slot's file, and so freed the slot before.
        """
        if not (isinstance(token, FileSlot) and token.call.limiter is self and self._here().release(token)):
            raise ValueError(
                f"{short_repr(token)} is not out: it was released before, or {self!r} never gave it"
            )

    def bind(self, owner: Owner) -> None:
        """See `Limiter.bind`."""
        self._here()

    def stats(self) -> Mapping[str, Any]:
        """Figures of this process.

        Returns:
            `limit`; `held` and `waiting` of all limiters on this path; `others`: slots that other processes
            were found to hold when one was last looked for; `errors`: calls of `acquire` that raised; `lost`,
            which is 0.
        """
        line = self._here()
        told = {"limit": self._limit, "held": len(line.out), "others": line.others}
        return {**told, "waiting": len(line.calls), "errors": self._errors, "lost": 0}

    def _here(self) -> Line:
        """What there is in this process."""
        if self._line.pid != PID[0]:
            self._line = process().line(self._path, self._limit)
        return self._line


def _pause(took: float) -> float:
    """How long to wait before the next look (s), if the last one took so long (s)."""
    chance = int.from_bytes(os.urandom(4), "big") / 2**32  # not by `random`: a fork copies its state
    pause = _SHORTEST_PAUSE + chance * (_LONGEST_PAUSE - _SHORTEST_PAUSE)
    return max(pause, min(_REST * took * (1.0 + chance), _MOST_PAUSE))


__all__ = ["FileLimiter"]
