"""Which process this is: asked at every use of a connection, for a fork may run no hook (uWSGI's runs none).

A system call each time would be a twentieth of what lending costs. So, where the kernel can, it tells a
forked child: a page of memory that holds the process's id is full of zeros there (`MADV_WIPEONFORK`, since
Linux 4.14).
"""

from __future__ import annotations

import mmap
import os
import sys
from typing import Protocol

from jetsocket.interrupts import is_alarm

__all__ = ["PID", "getpid"]

_WIPE_ON_FORK = 18


class Cell(Protocol):
    """Something that holds a number."""

    def __getitem__(self, index: int, /) -> int:
        """The number, with index 0."""


class System:
    """What asks the system each time."""

    def __getitem__(self, index: int, /) -> int:
        """This process's id."""
        return os.getpid()


def _page() -> memoryview | None:
    """A number that a forked child finds to be 0; None where there is no such thing."""
    if sys.platform != "linux":
        return None
    page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        page.madvise(_WIPE_ON_FORK)
    except OSError as error:  # an old kernel
        if is_alarm(error):
            raise
        return None
    return memoryview(page).cast("q")


_page_of_pid = _page()
PID: Cell = System() if _page_of_pid is None else _page_of_pid
"""`PID[0]` is the id of this process; 0 in one that was forked, until `getpid` is called there."""


def getpid() -> int:
    """The id of this process, which `PID` tells from now on."""
    pid = os.getpid()
    if _page_of_pid is not None:
        _page_of_pid[0] = pid
    return pid


getpid()
