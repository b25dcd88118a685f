"""A process that hangs shows where, and dies.

Imports next to nothing: some hundred scripts import it first.
"""

from __future__ import annotations

import faulthandler
import signal


def die_if_stuck(seconds: float) -> None:
    """Show all stacks and end if this process takes longer than that; a forked child has to say so anew."""
    # Not dump_traceback_later: a forked child would wait for the parent's watchdog thread for ever.
    faulthandler.register(signal.SIGALRM, chain=True)
    signal.setitimer(signal.ITIMER_REAL, seconds)
