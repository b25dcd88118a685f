"""Children made by os.fork() in the midst of everything: what they say, and how they end."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable

from jetsocket import JetSocketError
from tests.servers import open_fds

_PATIENCE = 60  # s that a child has before SIGALRM ends it


class ChildError(Exception):
    """A child got one of the library's errors: `name`."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


def in_child(work: Callable[[], None]) -> int:
    """Fork, do the work there, wait for its end.

    Returns:
        How many of the parent's sockets the child had inherited.

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
        text = _read(reads)
    finally:
        os.close(reads)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    told = json.loads(text or "{}")
    if "error" in told:
        raise ChildError(*told["error"])
    assert status == 0 and "inherited" in told, f"a forked child ended with {status}: {told or 'stuck'}"
    inherited: int = told["inherited"]
    return inherited


def _be_child(work: Callable[[], None], writes: int) -> None:
    """Does not return: no `finally` of the parent's, no buffer and no lock of its streams is touched."""
    told: dict[str, object] = {}
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_PATIENCE)
        inherited = _close_inherited()
        work()
        told["inherited"] = inherited
    except JetSocketError as error:
        told["error"] = type(error).__name__, str(error)
    except BaseException:
        told["broken"] = traceback.format_exc()[-3000:]
    finally:
        os.write(writes, json.dumps(told).encode())
        os._exit(0)


def _close_inherited() -> int:
    """Close what is left of the parent's sockets, of threads that were just connecting; how many there were.

    The library has closed what it knew of. Here they would keep connections open that the parent gives up.
    """
    left = [fd for fd, link in open_fds().items() if link.startswith("socket:")]
    for fd in left:
        os.close(fd)
    return len(left)


def _read(reads: int) -> str:
    told = b""
    while chunk := os.read(reads, 4096):
        told += chunk
    return told.decode()
