"""Children made by os.fork() in the midst of everything: what they say, and how they end."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from jetsocket import JetSocketError

_PATIENCE = 60  # s that a child has before SIGALRM ends it
_FINE, _NAMED, _BROKEN = 0, 4, 5


class ChildError(Exception):
    """A child got one of the library's errors: `name`."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def in_child(work: Callable[[], None]) -> None:
    """Fork, do the work there, wait for its end.

    Raises:
        ChildError: It got a named error.
        AssertionError: It ended in any other way.
    """
    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_child(work, writes)
    os.close(writes)
    try:
        told = _read(reads)
    finally:
        os.close(reads)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status == _NAMED:
        raise ChildError(*told.split("\n", 1))
    assert status == _FINE, f"a forked child ended with {status}: {told or 'stuck'}"


def _be_child(work: Callable[[], None], writes: int) -> None:
    """Does not return: no `finally` of the parent's, no buffer and no lock of its streams is touched."""
    status = _BROKEN
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE)
        work()
        status = _FINE
    except JetSocketError as error:
        status = _NAMED
        os.write(writes, f"{type(error).__name__}\n{error}".encode())
    except BaseException:
        os.write(writes, traceback.format_exc().encode()[-4000:])
    finally:
        os._exit(status)


def _read(reads: int) -> str:
    told = b""
    while chunk := os.read(reads, 4096):
        told += chunk
    return told.decode(errors="replace")
