"""The process that is soaked: pools, threads, strikes, forks. Each second it says what it counted, as JSON.

Only this process is looked at for sockets, threads and memory: server, proxies and display are elsewhere.
On stdin it hears of "trouble" of the server, when that is "over", and that all is "calm" for the last look;
each with the time at which it was said.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import signal
import ssl
import sys
import threading
from collections.abc import Iterable
from time import monotonic
from typing import Any

from tests.servers import open_fds, wait_until
from tests.soak import plan
from tests.soak.strikes import Striker
from tests.soak.tally import Tally
from tests.soak.watching import Ears, Notes, figures, objects
from tests.soak.workers import Worker
from tests.soak.world import Janitor, Judge, Slot, Windows

_PATIENCE, _SHORT = 15.0, 3.0  # s that a call has: where only the server fails, and through bad weather
_STRIKERS = 2
_LAST_PATIENCE = 10.0  # s for each of the last calls
_JOIN = 60.0  # s in which every thread must have come to its end
_SETTLE = 10.0  # s until what is left in the end is what stays


class People:
    """Everybody who does something, and the sum of what they counted."""

    def __init__(self, slots: list[Slot], seed: int, stopping: threading.Event) -> None:
        self.workers: list[Worker] = []
        self._threads: list[threading.Thread] = []
        for slot in slots:
            for number in range(slot.kind.threads):
                name = f"{slot.kind.name}-{number}"
                patience = _SHORT if slot.kind.proxied else _PATIENCE
                worker = Worker(name, slot, plan.of_thread(seed, name), patience)
                self.workers.append(worker)
                self._threads.append(threading.Thread(target=worker.work, args=(stopping,), name=name))
        self.strikers = [Striker(number, slots, seed, stopping) for number in range(_STRIKERS)]
        self.janitor = Janitor(slots, plan.of_thread(seed, "janitor"), stopping)
        self._threads += [*self.strikers, self.janitor]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def join(self) -> list[str]:
        """Wait for their ends; the names of those who are stuck, whose stacks go to stderr."""
        deadline = monotonic() + _JOIN
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            faulthandler.dump_traceback(all_threads=True)
        return stuck

    def tally(self) -> Tally:
        total = Tally()
        for one in [*self.workers, *self.strikers]:
            total.add(one.tally)
        return total

    def failures(self) -> Iterable[str]:
        """Of the strikers and the janitor themselves."""
        for person in [*self.strikers, self.janitor]:
            if person.failed is not None:
                yield f"{person.name}: {person.failed!r}"


class Soak:
    """One run."""

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told
        self._stopping, self._calm = threading.Event(), threading.Event()
        self._outages = Windows()
        self._ears, self._notes = Ears(), Notes()
        self._answers: list[float] = []
        self._memory: list[tuple[float, int]] = []

    def run(self) -> dict[str, Any]:
        context = ssl.create_default_context(cafile=self._told["authority"])
        threading.Thread(target=self._listen, daemon=True, name="ears").start()
        self._warm_up(context)
        start = figures()
        result = self._live(context)
        settled = self._settle(start)
        result["broken"] += self._ears.broken + self._notes.errors
        return result | {
            "start": start,
            "end": figures(),
            "left": [*sorted(open_fds().values()), *(thread.name for thread in threading.enumerate())],
            "settled": settled,
            "objects": dict(objects()),
            "memory": self._memory,
            "dropped": self._ears.dropped,
            "unclosed": self._ears.unclosed,
            "swallowed": self._ears.swallowed,
            "logged": dict(self._notes.seen),
        }

    def _listen(self) -> None:
        for line in sys.stdin:
            word, at = line.split()
            if word == "trouble":
                self._outages.begin(float(at))
            elif word == "over":
                self._outages.end(float(at))
            elif word == "calm":
                self._calm.set()
        self._stopping.set()
        self._calm.set()

    def _slots(self, context: ssl.SSLContext) -> list[Slot]:
        return [Slot(kind, tuple(self._told["bases"][kind.name]), context) for kind in plan.KINDS]

    def _warm_up(self, context: ssl.SSLContext) -> None:
        """Have everything imported and cached that stays for good."""
        # A strike could keep the lock of this cache of `logging` shut, and every fork waits for it.
        for name in [name for name in logging.root.manager.loggerDict if name.startswith("jetsocket")]:
            for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
                logging.getLogger(name).isEnabledFor(level)
        for slot in self._slots(context):
            for secure in (False, True):
                step = plan.Step("request", secure, "/warm", 0, 1, 0.0, False)
                Worker("warm", slot, plan.of_thread(0, "warm"), _PATIENCE).request(step)
            slot.close()
        del slot
        gc.collect()

    def _live(self, context: ssl.SSLContext) -> dict[str, Any]:
        slots = self._slots(context)
        judge = Judge(slots, self._outages)
        people = People(slots, self._told["seed"], self._stopping)
        began = monotonic()
        self._answers.append(began)
        people.start()
        while not self._stopping.wait(min(1.0, max(0.0, began + self._told["seconds"] - monotonic()))):
            self._look(people, judge, monotonic() - began)
            if monotonic() - began >= self._told["seconds"]:
                break
        self._stopping.set()
        stuck = people.join()
        self._look(people, judge, monotonic() - began)
        say({"phase": "ending"})
        self._calm.wait()
        gc.collect()
        lent = {slot.kind.name: [slot.lend_all(_LAST_PATIENCE), slot.kind.cap] for slot in slots}
        for slot in slots:
            slot.close()
        self._look(people, judge, monotonic() - began, final=True)
        return self._result(slots, people, judge) | {"lent": lent, "stuck": stuck}

    def _look(self, people: People, judge: Judge, at: float, *, final: bool = False) -> None:
        for worker in people.workers:
            judge.hear(worker.slot, worker.failures)
        judge.judge(final=final)
        tally, seen = people.tally(), figures()
        self._answers.append(max(w.tally.answered_at for w in people.workers))
        self._memory.append((round(at, 1), seen["rss"]))
        say(
            {
                "phase": "soak",
                "at": round(at, 1),
                "made": tally.made,
                "answered": tally.answered,
                "failed": dict(tally.failed),
                "foreign": len(tally.foreign),
                "broken": len(tally.broken) + len(judge.unexplained) + len(self._ears.broken),
                "struck": sum(striker.struck for striker in people.strikers),
                **seen,
            }
        )

    def _result(self, slots: list[Slot], people: People, judge: Judge) -> dict[str, Any]:
        tally = people.tally()
        return {
            "made": tally.made,
            "answered": tally.answered,
            "replies": tally.replies,
            "failed": dict(tally.failed),
            "actions": dict(tally.actions),
            "foreign": tally.foreign,
            "struck": sum(striker.struck for striker in people.strikers),
            "strikes": sum(striker.strikes for striker in people.strikers),
            "inherited": tally.inherited,
            "overrun": max(worker.tally.overrun for worker in people.workers),
            "pause": self._outages.longest_outside(self._answers),
            "unexplained": judge.unexplained,
            "broken": [*tally.broken, *(text for slot in slots for text in slot.broken), *people.failures()],
            "ends": sum_of(slot.ends for slot in slots),
            "discards": {slot.kind.name: dict(slot.discards) for slot in slots},
            "pools": {slot.kind.name: dict(slot.totals) for slot in slots},
            "longest_close": max(slot.longest_close for slot in slots),
            "forgotten": sum(slot.still_forgotten() for slot in slots),
            "collections": people.janitor.collections,
        }

    @staticmethod
    def _settle(start: dict[str, int]) -> bool:
        """Wait until there are no more sockets and threads than at the start; whether that came to pass."""

        def flat() -> bool:
            gc.collect()
            now = figures()
            return all(now[name] <= start[name] for name in ("fds", "threads")) and not objects()

        try:
            wait_until(flat, _SETTLE)
        except AssertionError:
            faulthandler.dump_traceback(all_threads=True)
            return False
        return True


def sum_of(counters: Iterable[dict[str, int]]) -> dict[str, int]:
    total: dict[str, int] = {}
    for counter in counters:
        for name, number in counter.items():
            total[name] = total.get(name, 0) + number
    return total


def say(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    faulthandler.register(signal.SIGUSR1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started it says when it is over
    say({"phase": "ended", "result": Soak(json.loads(sys.argv[1])).run()})


if __name__ == "__main__":
    main()
