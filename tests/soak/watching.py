"""What is looked at in the soaked process: descriptors, threads, memory, warnings, what was swallowed."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

from tests.servers import open_fds
from tests.soak.tally import KEPT, Struck

_OURS = frozenset(
    {"ConnectionPool", "PooledConnection", "Permit", "Entry", "WebSocket", "Stream", "Ledger", "Housekeeper"}
)


def figures() -> dict[str, int]:
    """Memory (B), descriptors, sockets and threads of this process."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    links = open_fds().values()
    return {
        "rss": pages * os.sysconf("SC_PAGE_SIZE"),
        "fds": len(links),
        "sockets": sum(link.startswith("socket:") for link in links),
        "threads": len(threading.enumerate()),
    }


def objects() -> Counter[str]:
    """The library's own objects that are still there, by class."""
    kinds = (type(thing) for thing in gc.get_objects())
    return Counter(k.__name__ for k in kinds if k.__name__ in _OURS and k.__module__.startswith("jetsocket"))


class Notes(logging.Handler):
    """What the library logs as a warning or worse, by kind. Without a lock, that a strike could keep shut."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: Counter[str] = Counter()
        self.errors: list[str] = []
        logging.getLogger("jetsocket").addHandler(self)

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        self.seen[str(record.msg)[:70]] += 1
        if record.levelno >= logging.ERROR and len(self.errors) < KEPT:
            trace = "".join(traceback.format_exception(*record.exc_info)) if record.exc_info else ""
            self.errors.append(f"{record.getMessage()}\n{trace}")


class Ears:
    """Hears what would be printed: warnings, and exceptions that nobody can catch."""

    def __init__(self) -> None:
        self.dropped = self.unclosed = self.swallowed = 0
        self.broken: list[str] = []
        warnings.simplefilter("always", ResourceWarning)
        warnings.filterwarnings("ignore", "This process", DeprecationWarning)
        warnings.showwarning = self._warn  # type: ignore[assignment]
        sys.unraisablehook = self._unraisable
        threading.excepthook = self._uncaught

    def _warn(self, message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if "was dropped without release" in str(message):
            self.dropped += 1
        elif category is ResourceWarning:
            self.unclosed += 1
        else:
            self._keep(f"{category.__name__}: {message}")

    def _unraisable(self, found: Any) -> None:
        if found.exc_type is Struck:
            self.swallowed += 1  # it struck in a finalizer, from where nothing can be raised
            return
        trace = traceback.format_exception(found.exc_type, found.exc_value, found.exc_traceback)
        self._keep(f"{found.err_msg} {found.object!r}\n{''.join(trace)}")

    def _uncaught(self, found: Any) -> None:
        if found.exc_type is not Struck:
            trace = traceback.format_exception(found.exc_type, found.exc_value, found.exc_traceback)
            self._keep("".join(trace))

    def _keep(self, text: str) -> None:
        if len(self.broken) < KEPT:
            self.broken.append(text)
