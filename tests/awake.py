"""A clock for what has to be prompt: it stands still while this process wants to run, and does not get to.

Beside other work on the machine everything takes longer, and no test may fail for that. A thread that does
nothing but sleep for 2 ms at a time tells by how much too late it wakes; what waits for something else (a
timeout, a tick of half a second) takes as long by this clock as by any other.
"""

from __future__ import annotations

import threading
from time import monotonic, sleep

_STEP = 0.002  # s
_USUAL = 0.0005  # s that it wakes too late on any machine
_KEEP = 10.0  # s without a question, after which the thread ends


class _Metronome:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = False
        self._asked = 0.0
        self._told = (0.0, 0.0)  # s lost in all, and when it is to wake: both of one step

    def awake(self) -> float:
        """Now (s), without what was lost."""
        with self._lock:
            self._asked = now = monotonic()
            if not self._runs:
                self._runs = True
                self._told = (self._told[0], now + _STEP)
                threading.Thread(target=self._run, name="awake", daemon=True).start()
        lost, due = self._told
        now = monotonic()  # in this order, or this clock might go back a little
        return now - lost - max(0.0, now - due - _USUAL)

    def _run(self) -> None:
        while True:
            lost, due = self._told
            sleep(max(0.0, due - monotonic()))
            now = monotonic()
            with self._lock:
                if now > self._asked + _KEEP:
                    self._runs = False
                    return
            self._told = (lost + max(0.0, now - due - _USUAL), now + _STEP)


_metronome = _Metronome()


def awake() -> float:
    """Now (s), for differences."""
    return _metronome.awake()
