"""Idle connections: a `queue.Queue` per URI, last in, first out, and their common order by age.

The queues of a pool have one mutex, which is the lock of the pool's state, and one set of Conditions.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jetsocket.entry import Entry

if TYPE_CHECKING:
    _Queue = queue.Queue[Entry]
else:  # the standard library's under gevent, too: its replacement's attributes can't be shared
    _gevent = sys.modules.get("gevent.monkey")
    _Queue = queue.Queue if _gevent is None else _gevent.get_original("queue", "Queue")


class Shared:
    """What all idle queues of a pool share: the mutex, and the Conditions that `queue.Queue` makes of it."""

    __slots__ = ("all_tasks_done", "mutex", "not_empty", "not_full")

    def __init__(self, mutex: threading.Lock) -> None:
        """Share this mutex."""
        self.mutex = mutex
        self.not_empty = threading.Condition(mutex)
        self.not_full = threading.Condition(mutex)
        self.all_tasks_done = threading.Condition(mutex)


class IdleQueue(_Queue):
    """The idle connections to one URI: the most recently used comes out first, and any by name.

    Made of the hooks that `queue.Queue` documents for subclasses. Its methods that do not wait take no mutex:
    the caller holds it, for it is the lock of the pool's state.

    Attributes:
        open: How many connections to this URI are open, lent ones included, those that are closing not.
        opening: How many are being opened.
        paced_until: Until when no more are opened for callers in line (monotonic, s), as those that were
            opened may serve them all.
        took_last: What the last dial took that callers in line stood behind (s).
    """

    # What `queue.Queue.__init__` sets and nothing changes, `is_shutdown` since Python 3.13. With an attribute
    # more of its own each took 100 B more on Python 3.10.
    is_shutdown = False
    maxsize = 0

    def __init__(self, shared: Shared) -> None:
        """Begin empty."""
        self.mutex = shared.mutex
        self.not_empty = shared.not_empty
        self.not_full = shared.not_full
        self.all_tasks_done = shared.all_tasks_done
        self.unfinished_tasks = 0
        self.open = self.opening = 0
        self.paced_until = self.took_last = 0.0
        self._init(0)

    def _init(self, maxsize: int) -> None:
        self.queue: dict[Entry, None] = {}

    def _qsize(self) -> int:
        return len(self.queue)

    def _put(self, item: Entry) -> None:
        self.queue[item] = None

    def _get(self) -> Entry:
        return self.queue.popitem()[0]

    put_nowait = _put
    get_nowait = _get

    def remove(self, entry: Entry) -> bool:
        """Take out that very entry; False when it is not there."""
        if entry not in self.queue:
            return False
        del self.queue[entry]
        return True


class Idle:
    """The idle queues of a pool. The caller of each method holds the lock of the pool's state.

    Attributes:
        queues: By key.
        by_age: All that are idle, the one idle for longest first.
    """

    def __init__(self, shared: Shared) -> None:
        """Begin with none."""
        self._shared = shared
        self.queues: dict[str, IdleQueue] = {}
        self.by_age: dict[Entry, None] = {}

    def __len__(self) -> int:
        return len(self.by_age)

    def __iter__(self) -> Iterator[Entry]:
        """From the one idle for longest to the one just returned."""
        return iter(self.by_age)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self.by_age

    @property
    def keys(self) -> list[str]:
        """The keys that have a connection, open or being opened."""
        return list(self.queues)

    def count(self, key: str) -> int:
        """How many are idle under this key."""
        found = self.queues.get(key)
        return 0 if found is None else len(found.queue)

    def open(self, key: str) -> int:
        """How many connections under this key are open and not closing, lent ones included."""
        found = self.queues.get(key)
        return 0 if found is None else found.open

    def opening(self, key: str) -> int:
        """How many under this key are being opened."""
        found = self.queues.get(key)
        return 0 if found is None else found.opening

    def count_open(self, key: str, by: int) -> None:
        """One more is open (1), or one less (-1); with the last one of its URI the queue goes, too."""
        found = self._of(key)
        found.open += by
        self._drop_if_unused(key, found)

    def count_opening(self, key: str, by: int, *, opened: bool = False) -> None:
        """One more is being opened (1), or one less (-1): it is open, and about to be counted as that."""
        found = self._of(key)
        found.opening += by
        if not opened:
            self._drop_if_unused(key, found)

    def paced_until(self, key: str) -> float:
        """Until when no more are opened under this key, for now (monotonic, s)."""
        found = self.queues.get(key)
        return 0.0 if found is None else found.paced_until

    def pace(self, key: str, until: float, took: float | None = None) -> None:
        """Open no more under this key until then (monotonic, s; 0.0: any time); `took`: the last dial (s)."""
        if (found := self.queues.get(key)) is not None:
            found.paced_until = until
            if took is not None:
                found.took_last = took

    def took_last(self, key: str) -> float:
        """What the last dial under this key took (s), as far as it was told."""
        found = self.queues.get(key)
        return 0.0 if found is None else found.took_last

    def _of(self, key: str) -> IdleQueue:
        found = self.queues.get(key)
        if found is None:
            found = self.queues[key] = IdleQueue(self._shared)
        return found

    def _drop_if_unused(self, key: str, found: IdleQueue) -> None:
        if found.open <= 0 and found.opening <= 0:
            del self.queues[key]

    def put(self, entry: Entry) -> None:
        """Let it wait for the next borrower."""
        self._of(entry.key).put_nowait(entry)
        self.by_age[entry] = None

    def put_back(self, entry: Entry) -> None:
        """Let it wait again in the place that it was taken from: before those that came back later."""
        self.put(entry)
        for later in [other for other in self.by_age if other.idle_since > entry.idle_since]:
            self.remove(later)
            self.put(later)

    def take(self, key: str) -> Entry | None:
        """The most recently used one under this key; None when there is none."""
        found = self.queues.get(key)
        if found is None or not found.queue:
            return None
        entry = found.get_nowait()
        self.by_age.pop(entry, None)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Take out that very entry; False when another has taken it."""
        if entry not in self.by_age:
            return False
        del self.by_age[entry]
        found = self.queues.get(entry.key)
        return found is not None and found.remove(entry)

    def rebuild(self, opening: Iterable[str], others: Iterable[Entry]) -> None:
        """Derive everything from the places of the entries, after an exception struck half-way."""
        self.queues, self.by_age = {}, {}
        for key in opening:
            self.count_opening(key, 1)
        idle = []
        for entry in others:
            self.count_open(entry.key, 1)
            if entry.place == "idle":
                idle.append(entry)
        for entry in sorted(idle, key=lambda each: each.idle_since):
            self.put(entry)


__all__ = ["Idle", "IdleQueue", "Shared"]
