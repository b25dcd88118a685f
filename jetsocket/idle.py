"""Idle connections: a `queue.Queue` per URI, last in, first out, and their common order by age."""

from __future__ import annotations

import queue
from collections import OrderedDict
from collections.abc import Iterable, Iterator

from jetsocket.entry import Entry


class IdleQueue(queue.Queue[Entry]):
    """The idle connections to one URI: the most recently used comes out first, and any by name.

    Made of the hooks that `queue.Queue` documents for subclasses.

    Attributes:
        members: How many open connections to this URI there are, lent ones included.
    """

    def _init(self, maxsize: int) -> None:
        self.queue: dict[Entry, None] = {}
        self.members = 0

    def _qsize(self) -> int:
        return len(self.queue)

    def _put(self, item: Entry) -> None:
        self.queue[item] = None

    def _get(self) -> Entry:
        return self.queue.popitem()[0]

    # The following do without the queue's own mutex: the ledger's lock is held anyway, and an interrupt
    # could leave that mutex locked for ever.

    put_nowait = _put
    get_nowait = _get

    def remove(self, entry: Entry) -> bool:
        """Take out that very entry; False when it is not there."""
        if entry not in self.queue:
            return False
        del self.queue[entry]
        return True


class IdleConnections:
    """The idle queues of a pool. Has no lock of its own: every call is made under the ledger's lock.

    Whoever takes an entry out owns it; that is the only way to own one.
    """

    def __init__(self) -> None:
        """Begin with none."""
        self._queues: dict[str, IdleQueue] = {}
        self._by_age: OrderedDict[Entry, None] = OrderedDict()  # the one idle for longest first

    @classmethod
    def of(cls, entries: Iterable[Entry], idle: Iterable[Entry]) -> IdleConnections:
        """Those `entries`, of which some are `idle`, the one idle for longest first."""
        made = cls()
        for entry in entries:
            made.enroll(entry)
        for entry in idle:
            made.put(entry)
        return made

    def __len__(self) -> int:
        return len(self._by_age)

    def __iter__(self) -> Iterator[Entry]:
        """From the one idle for longest to the one just returned."""
        return iter(self._by_age)

    def __contains__(self, entry: Entry) -> bool:
        return entry in self._by_age

    @property
    def keys(self) -> list[str]:
        """The keys that have an open connection, idle or lent."""
        return list(self._queues)

    def count(self, key: str) -> int:
        """How many are idle under this key."""
        found = self._queues.get(key)
        return 0 if found is None else len(found.queue)

    def enroll(self, entry: Entry) -> None:
        """An open connection to that URI exists: keep a queue for it."""
        found = self._queues.get(entry.key)
        if found is None:
            found = self._queues[entry.key] = IdleQueue()
        found.members += 1

    def strike(self, entry: Entry) -> None:
        """That connection is no more; with the last one of its URI the queue goes, too."""
        found = self._queues.get(entry.key)
        if found is not None:
            found.members -= 1
            if found.members <= 0:
                del self._queues[entry.key]

    def put(self, entry: Entry) -> None:
        """Let it wait for the next borrower."""
        self._queues[entry.key].put_nowait(entry)
        self._by_age[entry] = None

    def put_back(self, entry: Entry) -> None:
        """Let it wait again in the place that it was taken from: before those that came back later."""
        self.put(entry)
        for later in [other for other in self._by_age if other.idle_since > entry.idle_since]:
            self.remove(later)
            self.put(later)

    def take(self, key: str) -> Entry | None:
        """The most recently used one under this key; None when there is none."""
        found = self._queues.get(key)
        if found is None or not found.queue:
            return None
        entry = found.get_nowait()
        self._by_age.pop(entry, None)
        return entry

    def remove(self, entry: Entry) -> bool:
        """Take out that very entry; False when somebody else has taken it."""
        if entry not in self._by_age:
            return False
        del self._by_age[entry]
        found = self._queues.get(entry.key)
        return found is not None and found.remove(entry)

    def take_oldest(self) -> Entry | None:
        """The one that has been idle for longest, of whatever URI; None when none is idle."""
        for entry in self._by_age:
            self.remove(entry)
            return entry
        return None
