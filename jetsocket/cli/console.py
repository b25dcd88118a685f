# PYTHON_ARGCOMPLETE_OK
"""The console script, from its first line to its last: Ctrl-C shows no traceback while it loads or ends.

So this module imports little, and what it runs is imported where an interrupt is caught.
"""

from __future__ import annotations

import os
import signal
from types import FrameType

__all__ = ["console"]

_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def console() -> int:
    """What `jetsocket` and `python -m jetsocket` do; the exit code."""
    try:
        from jetsocket.cli.main import guarded

        return guarded()
    except KeyboardInterrupt as interrupt:
        code: int = getattr(interrupt, "exit", _CODES[signal.SIGINT])
        return code
    finally:
        # All is said. Python itself would show where it was, should one more signal come as it ends.
        for each in _CODES:
            signal.signal(each, _leave)
        # With `python -m`, Python ends by SIGINT if an interrupt has ever left the exec() of a text, as
        # dataclasses do when they are made, wherever it was caught. The next exec() makes it forget that.
        exec("")


def _leave(signum: int, frame: FrameType | None) -> None:
    os._exit(_CODES[signal.Signals(signum)])
