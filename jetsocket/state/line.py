"""The line: the callers that wait for a connection, first come, first served for each URI.

Whose turn it is between URIs is decided by `Planning._served_by`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from jetsocket.borrower import Borrower


class Line:
    """Who waits. The caller of each method holds the lock of the pool's state.

    A caller whose lease is gone (an exception struck its thread) is skipped, and leaves when it would be
    served.
    """

    def __init__(self) -> None:
        """Begin empty."""
        self.order: OrderedDict[Borrower, None] = OrderedDict()
        self._by_key: dict[str, OrderedDict[Borrower, None]] = {}
        self._sharers: dict[str, int] = {}  # how many of them may share a connection

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[Borrower]:
        """From the one that came first."""
        return iter(list(self.order))

    def __contains__(self, borrower: Borrower) -> bool:
        return borrower in self.order

    def count(self, key: str) -> int:
        """How many wait for that URI."""
        waiting = self._by_key.get(key)
        return 0 if waiting is None else len(waiting)

    @property
    def keys(self) -> list[str]:
        """The URIs that callers wait for."""
        return list(self._by_key)

    def join(self, borrower: Borrower) -> None:
        """Stand in line, at the end."""
        if borrower.shares and borrower not in self.order:
            self._sharers[borrower.key] = self._sharers.get(borrower.key, 0) + 1
        self.order[borrower] = None
        self._by_key.setdefault(borrower.key, OrderedDict())[borrower] = None

    def rejoin(self, borrower: Borrower) -> None:
        """Stand in line again, where it stood by the time it asked."""
        self.join(borrower)
        for line in (self.order, self._by_key[borrower.key]):
            for later in [other for other in line if other.asked_at > borrower.asked_at]:
                line.move_to_end(later)

    def leave(self, borrower: Borrower) -> bool:
        """Leave the line; False when it was not in it."""
        if borrower not in self.order:
            return False
        waiting = self._by_key.get(borrower.key)
        if waiting is not None:
            waiting.pop(borrower, None)
            if not waiting:
                del self._by_key[borrower.key]
        del self.order[borrower]
        if borrower.shares:
            self._sharers[borrower.key] -= 1
            if not self._sharers[borrower.key]:
                del self._sharers[borrower.key]
        return True

    def first(self, key: str) -> Borrower | None:
        """The first that waits for that URI; None when none does."""
        waiting = self._by_key.get(key)
        while waiting:
            borrower = next(iter(waiting))
            if not borrower.is_dropped:
                return borrower
            self.leave(borrower)
            waiting = self._by_key.get(key)
        return None

    def first_sharer(self, key: str) -> Borrower | None:
        """The first that waits for that URI and may share a connection; None when none does."""
        for borrower in list(self._by_key.get(key, ())) if self._sharers.get(key) else ():
            if borrower.shares:
                if not borrower.is_dropped:
                    return borrower
                self.leave(borrower)
        return None

    def exclusive(self, key: str) -> int:
        """How many wait for a connection of their own to that URI."""
        return self.count(key) - self._sharers.get(key, 0)

    def connections_needed(self, key: str, max_in_flight: int) -> int:
        """How many connections those that wait for that URI need, if so many may share one."""
        sharers = self._sharers.get(key, 0)
        return self.count(key) - sharers + -(-sharers // max_in_flight)

    def heads(self) -> list[Borrower]:
        """The first of each URI, the one that came first before the others."""
        if len(self._by_key) == 1:
            (key,) = self._by_key
            head = self.first(key)
            return [] if head is None else [head]
        firsts = [head for key in list(self._by_key) if (head := self.first(key)) is not None]
        return sorted(firsts, key=lambda head: head.asked_at)

    @property
    def has_others(self) -> bool:
        """Whether callers of more than one URI wait."""
        return len(self._by_key) > 1

    def all(self, key: str) -> list[Borrower]:
        """All that wait for that URI, from the one that came first."""
        return list(self._by_key.get(key, ()))

    def rebuild(self) -> None:
        """Derive the lines of the URIs from the order of all, after an exception struck half-way.

        Another may strike here: only when all is made does it take the place of what there was.
        """
        anew = Line()
        for borrower in self.order:
            if borrower.entry is None and borrower.error is None:
                anew.join(borrower)
        self._by_key, self._sharers, self.order = anew._by_key, anew._sharers, anew.order


__all__ = ["Line"]
