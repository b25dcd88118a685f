"""Log lines that wait for a thread that may emit them.

A finalizer or signal handler may come anywhere: inside `logging`, inside the queue or file that a handler
writes to. A lease that comes back there and logged it would wait for a lock that its own thread holds. The
housekeeper must not be held up by a handler either. So what they have to say is only noted, and emitted by a
worker, or by the next caller that acquires.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from functools import lru_cache

from jetsocket.interrupts import is_alarm
from jetsocket.logs import POOL_LOG, WIRE_LOG
from jetsocket.patterns import pattern
from jetsocket.user_errors import exc_info_of

_MOST = 10_000  # lines kept; where no thread runs, none may ever come for them

# What a placeholder of a line is; other placeholders are no field.
_PLACEHOLDER = pattern(
    r"\[(?P<pool>%s)\]|connection (?P<connection>%[ds])"
    r"|(?:not kept|not reused| closed|acquire failed): (?P<reason>%s)"
    r"| (?:from|for|to|at) (?P<uri>%s)|%[^%]*?[a-z]"
)

_WHEN_AND_WHERE = (
    "created",
    "msecs",
    "relativeCreated",
    "thread",
    "threadName",
    "process",
    "processName",
    "taskName",  # since Python 3.12
)


class DeferredLog:
    """The lines of one pool. Takes no lock: its records are touched by calls that CPython makes atomic.

    Attributes:
        muted: Nothing is logged any more: the interpreter ends, and what handlers write to may be closed.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.muted = False
        self._records: deque[tuple[logging.Logger, logging.LogRecord]] = deque(maxlen=_MOST)

    @property
    def has_lines(self) -> bool:
        """Whether lines wait."""
        return bool(self._records)

    def note(self, level: int, text: str, *args: object, failure: BaseException | None = None) -> None:
        """Keep a line of the pool's; `failure` adds the traceback of what the user's code raised."""
        self._note(POOL_LOG, level, text, args, failure)

    def note_end(self, failure: Exception) -> None:
        """Keep how a connection ended."""
        self._note(WIRE_LOG, logging.DEBUG, "%s", (failure,), None)

    def _note(
        self,
        log: logging.Logger,
        level: int,
        text: str,
        args: tuple[object, ...],
        failure: BaseException | None,
    ) -> None:
        if self.muted or not log.isEnabledFor(level):
            return
        frame = sys._getframe(2)  # the one that has something to say
        code = frame.f_code
        info = None if failure is None else exc_info_of(failure)
        # Not by `makeRecord`: it calls the user's record factory, which may block.
        noted = logging.LogRecord(
            log.name, level, code.co_filename, frame.f_lineno, text, args, info, code.co_name
        )
        noted.__dict__.update(_fields_of(text, args))
        self._records.append((log, noted))

    def tell(self, text: str, *args: object) -> None:
        """Emit a DEBUG line of the pool's, behind those that wait; for a thread that the user called from."""
        if not self.muted and POOL_LOG.isEnabledFor(logging.DEBUG):
            self.emit()
            POOL_LOG.debug(text, *args, stacklevel=2, extra=_fields_of(text, args))

    def emit(self) -> None:
        """Emit what waits."""
        while self._records and not self.muted:
            try:
                log, noted = self._records.popleft()
            except IndexError as error:
                if is_alarm(error):
                    raise
                return  # another thread was faster
            log.handle(_made_by_factory(log, noted))


def _made_by_factory(log: logging.Logger, noted: logging.LogRecord) -> logging.LogRecord:
    """What the user's record factory makes of it, with the time and thread that it was noted in."""
    if logging.getLogRecordFactory() is logging.LogRecord:
        return noted
    record = log.makeRecord(
        noted.name,
        noted.levelno,
        noted.pathname,
        noted.lineno,
        str(noted.msg),
        noted.args or (),
        noted.exc_info,
        noted.funcName,
    )
    for name in _WHEN_AND_WHERE:
        if hasattr(noted, name):
            setattr(record, name, getattr(noted, name))
    record.__dict__.update(_fields_of(str(noted.msg), tuple(noted.args or ())))
    return record


def _fields_of(text: str, args: tuple[object, ...]) -> dict[str, object]:
    """What a line tells, for those who filter lines or write them as JSON."""
    fields: dict[str, object] = {}
    for name, value in zip(_names_in(text), args, strict=False):
        if name and (name != "jetsocket_uri" or str(value).startswith(("ws://", "wss://"))):
            fields.setdefault(name, value)
    return fields


@lru_cache
def _names_in(text: str) -> list[str]:
    """The field of each placeholder; "" for those that are none."""
    found = _PLACEHOLDER.finditer(text)
    return ["" if each.lastgroup is None else f"jetsocket_{each.lastgroup}" for each in found]


__all__ = ["DeferredLog"]
