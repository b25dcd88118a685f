"""Asynchronous exceptions: a striker lets one victim after the other work and strikes it at some moment."""

from __future__ import annotations

import ctypes
import threading
import time
from random import Random

from tests.soak.plan import of_thread
from tests.soak.tally import Struck, Tally
from tests.soak.workers import Worker
from tests.soak.world import Slot

_PATIENCE = 1.0  # s that a victim's calls have
_PAUSE = 0.005  # s after an error
_BETWEEN = 2.0  # s after which one who lives is struck again: a finalizer has swallowed the last one


class Striker(threading.Thread):
    """One at a time; `struck` is how many calls were ended by a strike."""

    def __init__(self, number: int, slots: list[Slot], seed: int, stopping: threading.Event) -> None:
        super().__init__(name=f"striker-{number}")
        self._slots, self._stopping = slots, stopping
        self._rng = of_thread(seed, self.name)
        self.tally = Tally()
        self.struck = self.strikes = 0
        self.failed: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._strike_one()
        except BaseException as error:
            self.failed = error

    def _strike_one(self) -> None:
        name, rng = f"{self.name}.{self.strikes}", self._rng
        worker = Worker(name, rng.choice(self._slots), Random(rng.random()), _PATIENCE)
        worker.may_fork = False  # what others do around a fork is not made for this: `logging` holds a lock
        began, ended = threading.Event(), threading.Event()
        thread = threading.Thread(target=_suffer, args=(worker, began, ended), name=name)
        thread.start()
        began.wait()
        time.sleep(rng.random() ** 2 * 0.05)
        while not ended.is_set():
            self.strikes += 1
            ident = ctypes.c_ulong(thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(Struck))
            ended.wait(_BETWEEN)
        thread.join()
        self._add(worker.tally)

    def _add(self, tally: Tally) -> None:
        unfinished = tally.made - tally.answered - sum(tally.failed.values())
        if unfinished not in (0, 1):
            tally.broken.append(f"{unfinished} calls of one victim came to no end")
        self.struck += unfinished
        self.tally.add(tally)


def _suffer(worker: Worker, began: threading.Event, ended: threading.Event) -> None:
    """Work until struck."""
    try:
        began.set()
        while True:
            if not worker.once():
                ended.wait(_PAUSE)
    except Struck:
        pass
    finally:
        ended.set()
