# PYTHON_ARGCOMPLETE_OK
"""The console script, from its first line to its last: Ctrl-C shows no traceback while it loads or ends.

So this module imports little, and what it runs is imported where an interrupt is caught.
"""

from __future__ import annotations

import signal

__all__ = ["console"]

_INTERRUPTED = 130


def console() -> int:
    """What `jetsocket` and `python -m jetsocket` do; the exit code."""
    try:
        from jetsocket.cli.main import guarded

        return guarded()
    except KeyboardInterrupt:
        return _INTERRUPTED
    finally:
        # All is said. Python itself would show where it was, should one more Ctrl-C come as it ends.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
