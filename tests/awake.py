"""A clock for what has to be prompt: it stands still while this process wants to run, and does not get to.

Beside other work on the machine everything takes longer, and no test may fail for that. A thread that does
nothing but sleep for a moment at a time tells by how much too late it wakes; what waits for something else (a
timeout, a tick of half a second) takes as long by this clock as by any other.
"""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic, sleep

_STEP = 0.005  # s
_USUAL = 0.0005  # s that it wakes too late on any machine
_KEEP = 10.0  # s without a question, after which the thread ends


class _Metronome:
    """Takes no lock that anybody waits for: a signal handler may ask, too."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Begin anew."""
        self._starting = threading.Lock()
        self._runs = False
        self._asked = 0.0
        self._told = (0.0, 0.0)  # s lost in all, and when it is to wake: both of one step

    def awake(self) -> float:
        """Now (s), without what was lost."""
        self._asked = monotonic()
        if not self._runs and self._starting.acquire(blocking=False):
            try:
                if not self._runs:
                    self._start()
            finally:
                self._starting.release()
        lost, due = self._told
        now = monotonic()  # in this order, or this clock might go back a little
        return now - lost - max(0.0, now - due - _USUAL)

    def _start(self) -> None:
        self._told = (self._told[0], monotonic() + _STEP)
        self._runs = True
        try:
            threading.Thread(target=self._run, name="awake", daemon=True).start()
        except BaseException:
            self._runs = False
            raise

    def _run(self) -> None:
        while monotonic() < self._asked + _KEEP:
            lost, due = self._told
            sleep(max(0.0, due - monotonic()))
            now = monotonic()
            self._told = (lost + max(0.0, now - due - _USUAL), now + _STEP)
        self._runs = False


_metronome = _Metronome()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_metronome.begin)  # the thread is not there


def awake() -> float:
    """Now (s), for differences. Among greenlets, which there is no thread to look after, as `monotonic`."""
    monkey = sys.modules.get("gevent.monkey")  # which may be there, and have replaced nothing
    if monkey is not None and monkey.is_module_patched("threading"):
        return monotonic()
    return _metronome.awake()
