"""Log lines that wait for a thread that may emit them.

A finalizer or signal handler may come anywhere: inside `logging`, inside the queue or file that a handler
writes to. A lease that comes back there and tells of it would wait for a lock that its own thread holds. So
what a return has to tell is only noted, and emitted by the housekeeper, or by the next who acquires.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Callable

from jetsocket.foreign import exc_info_of
from jetsocket.interrupts import is_alarm

_MOST = 10_000  # lines kept; without a housekeeper, nobody may ever come

_pool_log = logging.getLogger("jetsocket.pool")
_wire_log = logging.getLogger("jetsocket.wire")


class Journal:
    """The lines of one pool. Takes no lock: its records are touched by calls that CPython makes atomic.

    Attributes:
        muted: Nothing is told any more: the interpreter ends, and what handlers write to may be closed.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        """Begin empty; `wake` is called when there is a warning, and may run anywhere."""
        self.muted = False
        self._wake = wake
        self._records: deque[tuple[logging.Logger, logging.LogRecord]] = deque(maxlen=_MOST)

    def note(self, level: int, text: str, *args: object, failure: BaseException | None = None) -> None:
        """Keep a line of the pool's; `failure` adds the traceback of what the user's code raised."""
        self._note(_pool_log, level, text, args, failure)

    def note_end(self, failure: Exception) -> None:
        """Keep how a connection ended."""
        self._note(_wire_log, logging.DEBUG, "%s", (failure,), None)

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
        frame = sys._getframe(2)  # whoever tells
        code = frame.f_code
        info = None if failure is None else exc_info_of(failure)
        record = log.makeRecord(
            log.name, level, code.co_filename, frame.f_lineno, text, args, info, code.co_name
        )
        self._records.append((log, record))
        if level >= logging.WARNING:
            self._wake()

    def tell(self, text: str, *args: object) -> None:
        """Emit a DEBUG line of the pool's, behind those that wait; not to be called from a return."""
        if not self.muted and _pool_log.isEnabledFor(logging.DEBUG):
            self.emit()
            _pool_log.debug(text, *args, stacklevel=2)

    def emit(self) -> None:
        """Emit what waits."""
        while self._records and not self.muted:
            try:
                log, record = self._records.popleft()
            except IndexError as error:
                if is_alarm(error):
                    raise
                return  # another thread was faster
            log.handle(record)


__all__ = ["Journal"]
