"""Slots that are files: what one process holds of them, and what a fork makes of that.

**A slot is an exclusive `flock` of a file of its own.** Such a lock belongs to what `open` has made, not to
the process as those of `lockf` do: two limiters in one process exclude each other, and closing another
descriptor of the file frees nothing. It ends with the last copy of its descriptor, so with the process,
however that ends.

**A fork copies descriptors.** A child that kept them would keep the slots of a parent that is killed. So it
closes its copies at once, without unlocking, which would free what the parent holds. It closes all that is
open of these files, noted or not, for another thread may have been opening one while the process forked. Of a
fork that runs none of Python's hooks, the child does so when it first uses a limiter. And a slot that is
released is unlocked before it is closed: no copy keeps it.

**Who waits looks again and again**, after a pause of random length, for there is no lock of the kernel's that
one waits for with a time limit. Within a process, who releases a slot wakes who waits. That alone would keep
it there: a process that opens a connection whenever it has closed one would leave none to others. So who
waits holds a shared lock of the file that the slots have their names from. While anybody in another process
does, a free slot is not taken at once: all who want it look after a pause.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

from jetsocket.interrupts import is_alarm, suppress
from jetsocket.limits.call import Call
from jetsocket.process_id import PID, getpid

if sys.platform != "win32":
    import fcntl

File: TypeAlias = tuple[int, int]
"""Which file it is: device and inode."""

_LOOKS = 3  # at a lock that others hold for a moment
_HOW = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
_MODE = 0o666  # less the umask
_DESCRIPTORS = "/dev/fd"  # where most systems tell which are open


class Locked:
    """A descriptor that holds a lock.

    Attributes:
        fd: Its number.
        file: Of which file it is.
    """

    __slots__ = ("fd", "file")

    def __init__(self, fd: int, file: File) -> None:
        """It is locked."""
        self.fd = fd
        self.file = file

    def close(self) -> bool:
        """Unlock and close it; False: other code has closed it, and its number may be another file's."""
        if file_of(self.fd) != self.file:
            return False
        _unlock_and_close(self.fd)
        return True


class FileCall(Call):
    """One call of `acquire`.

    Attributes:
        limiter: Whose.
    """

    __slots__ = ("limiter",)

    def __init__(self, limiter: object) -> None:
        """It begins."""
        super().__init__()
        self.limiter = limiter


class FileSlot(Locked):
    """One slot that is out, which is its token.

    Attributes:
        number: Which one, from 0.
        call: The call of `acquire` that took it.
    """

    __slots__ = ("call", "number")

    def __init__(self, fd: int, file: File, number: int, call: FileCall) -> None:
        """It is locked."""
        super().__init__(fd, file)
        self.number = number
        self.call = call

    def __repr__(self) -> str:
        """Which one it is."""
        return f"<slot {self.number}>"


class Line:
    """The slots of one path, as one process uses them.

    Attributes:
        pid: The process.
        path: What the names of the files begin with.
        most: The largest limit that was asked for here.
        lock: Guards all below. With it, files are opened and locked, without waiting for their locks; no
            other lock of this process is taken.
        out: The slots that this process holds.
        others: How many were found to be held by others when one was last looked for.
        calls: Those that wait here, in the order in which they came.
        mark: Tells other processes that one waits here.
    """

    def __init__(self, pid: int, path: str) -> None:
        self.pid = pid
        self.path = path
        self.most = 0
        self.lock = threading.Lock()
        self.out: set[FileSlot] = set()
        self.others = 0
        self.calls: list[FileCall] = []
        self.mark: Locked | None = None

    def look(self, limit: int, call: FileCall) -> FileSlot | None:
        """Take a free slot, of the first `limit`, for a call."""
        with self.lock:
            self._set_mark()  # for it may have been impossible before
            held, others, slot = {slot.number for slot in self.out}, 0, None
            for number in range(limit):
                if number not in held:
                    if (slot := self._take(number, call)) is not None:
                        break
                    others += 1
            self.others = others
            return slot

    def _take(self, number: int, call: FileCall) -> FileSlot | None:
        assert self.lock.locked()
        path, slot = f"{self.path}.{number}", None
        for _ in range(_LOOKS):
            fd = os.open(path, _HOW, _MODE)
            try:
                if not lock_at_once(fd, fcntl.LOCK_EX):
                    return None
                file = file_of(fd)
                # Else it was removed meanwhile, and its name is another file's or none's: that one counts.
                if file is not None and file == file_of(path):
                    slot = FileSlot(fd, file, number, call)
                    self.out.add(slot)
                    return slot
            finally:
                if slot not in self.out:
                    _unlock_and_close(fd)
        raise OSError(errno.ESTALE, "something removes the files of a FileLimiter, or moves them", path)

    def release(self, slot: FileSlot) -> bool:
        """Free a slot, and wake a call that waits here; False: it was not out.

        Raises:
            OSError: Other code has closed its descriptor.
        """
        with self.lock:
            if slot not in self.out:
                return False
            self.out.discard(slot)
            was_ours = slot.close()
        if self.calls and not self.others_wait():
            for call in self.calls[:1]:
                call.wake()
        if not was_ours:
            told = f"other code has closed the file of slot {slot.number}, which has been free since then"
            raise OSError(errno.EBADF, told)
        return True

    def join(self, call: FileCall) -> None:
        """A call waits."""
        with self.lock:
            self.calls.append(call)
            self._set_mark()

    def leave(self, call: FileCall, slot: FileSlot | None) -> None:
        """A call ends with that slot; one that it has taken and does not go with is free."""
        with self.lock:
            if call in self.calls:
                self.calls.remove(call)
            for each in [each for each in self.out if slot is None and each.call is call]:
                self.out.discard(each)
                each.close()
            if not self.calls:
                self._remove_mark()

    @property
    def is_waited_for(self) -> bool:
        """Whether calls wait, here or in other processes: then a free slot is not for who comes just now."""
        return bool(self.calls) or self.others_wait()

    def others_wait(self) -> bool:
        """Whether calls wait in other processes, as far as can be told."""
        with self.lock:
            self._remove_mark()
            try:
                with opened(self.path) as fd:
                    # Another process may hold the lock for a moment, to find out the same.
                    return not any(lock_at_once(fd, fcntl.LOCK_EX) for _ in range(_LOOKS))
            finally:
                self._set_mark()

    def _set_mark(self) -> None:
        assert self.lock.locked()
        if not self.calls or self.mark is not None:
            return
        fd = os.open(self.path, _HOW, _MODE)
        try:
            # It is another's for a moment, perhaps, who looks whether there are any: then the next time.
            if lock_at_once(fd, fcntl.LOCK_SH) and (file := file_of(fd)) is not None:
                self.mark = Locked(fd, file)
        finally:
            if self.mark is None:
                _unlock_and_close(fd)

    def _remove_mark(self) -> None:
        assert self.lock.locked()
        mark, self.mark = self.mark, None
        if mark is not None:
            mark.close()


class _Process:
    """All lines of one process.

    Attributes:
        pid: The process.
        lock: Guards the two below.
        lines: By path. They stay, as the files do.
        is_clean: Whether nothing of the parent's is left.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.lock = threading.Lock()
        self.lines: dict[str, Line] = {}
        self.is_clean = False

    def line(self, path: str, limit: int) -> Line:
        """That of a path, for one more limiter."""
        with self.lock:
            line = self.lines.get(path)
            if line is None:
                line = self.lines[path] = Line(self.pid, path)
            line.most = max(line.most, limit)
            return line

    def clean(self) -> None:
        """Close what a forked child has of its parent's descriptors."""
        with self.lock:
            if self.is_clean:
                return
            parents = [each for each in list(_processes.values()) if each is not self]
            lines = [line for each in parents for line in list(each.lines.values())]
            if lines:
                _close_copies(lines)
            for each in parents:
                _processes.pop(each.pid, None)
            self.is_clean = True


_processes: dict[int, _Process] = {}
"""One, but in a forked child at first. Changed in single calls: a lock might be the parent's, and held."""


def process() -> _Process:
    """All that there is in this process."""
    pid = PID[0] or getpid()
    found = _processes.get(pid) or _processes.setdefault(pid, _Process(pid))
    if not found.is_clean:
        found.clean()
    return found


def _close_copies(lines: list[Line]) -> None:
    """In a forked child: close all that is open of the files of those lines, which are the parent's."""
    files, fds = set[File | None](), set[int]()
    for line in lines:
        files.update(file_of(f"{line.path}.{number}") for number in range(line.most))
        files.add(file_of(line.path))
        for locked in [*line.out, *([line.mark] if line.mark else [])]:  # also one whose file was removed
            files.add(locked.file)
            fds.add(locked.fd)
    files.discard(None)
    with suppress(OSError):
        fds.update(map(int, os.listdir(_DESCRIPTORS)))
    for fd in fds:
        if file_of(fd) in files:  # else its number is another file's by now
            with suppress(OSError):
                os.close(fd)


def file_of(place: int | str) -> File | None:
    """Which file a descriptor or a name is of; None: it is of none."""
    try:
        found = os.stat(place)
    except OSError as error:
        if is_alarm(error):
            raise
        return None
    return found.st_dev, found.st_ino


@contextmanager
def opened(path: str) -> Iterator[int]:
    """A descriptor of a file, for a moment."""
    fd = os.open(path, _HOW, _MODE)
    try:
        yield fd
    finally:
        _unlock_and_close(fd)


def lock_at_once(fd: int, how: int) -> bool:
    """Lock a file, if that can be done at once."""
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
    except BlockingIOError as error:
        if is_alarm(error):
            raise
        return False
    return True


def _unlock_and_close(fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_UN)  # a forked child may have a copy
    finally:
        os.close(fd)


def _after_fork_in_child() -> None:
    if _processes:
        process()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)

__all__ = ["FileCall", "FileSlot", "Line", "lock_at_once", "opened", "process"]
