"""What is remembered of a pool of this process: its figures, once a second, and its last errors."""

from __future__ import annotations

import os
import time
import weakref
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from jetsocket import ConnectionInfo, ConnectionPool, PoolStats, ReplyError
from jetsocket.events import Listener

SERIES = ("open", "idle", "lent", "waiting", "opening")
SLOTS = 300  # s that are remembered, a figure each
_MOST_ERRORS = 20
_MOST_SHOWN = 400  # characters of an error
_NOT_OPEN = ("opening", "closing", "gone")

Figures: TypeAlias = tuple[int, ...]
"""A number for each of `SERIES`."""


def figures(connections: Sequence[ConnectionInfo], stats: PoolStats) -> Figures:
    """How many connections are where, and how many callers wait."""
    places = Counter(str(each.place) for each in connections)
    is_open = sum(count for place, count in places.items() if place not in _NOT_OPEN)
    return is_open, places["idle"], places["lent"] + places["shared"], stats.waiting, places["opening"]


class Watch(Listener):
    """What is remembered of one pool, which it does not refer to. A forked child begins with nothing."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        self._forget()

    def _forget(self) -> None:
        self._samples: deque[tuple[int, Figures]] = deque(maxlen=SLOTS)
        self._errors: deque[tuple[float, str, str]] = deque(maxlen=_MOST_ERRORS)
        self._pid = os.getpid()

    def _forget_the_parents(self) -> None:
        if self._pid != os.getpid():
            self._forget()

    @staticmethod
    def of(pool: ConnectionPool[Any]) -> Watch:
        """What is remembered of that pool; from the first such call on, it is told of its errors."""
        watch = _watches.get(pool)
        if watch is None:
            new = Watch()
            watch = _watches.setdefault(pool, new)
            if watch is new:
                pool.listen(watch)
        return watch

    # --- figures ---------------------------------------------------------------------------------------

    def sample(self, pool: ConnectionPool[Any], now: float) -> None:
        """Remember its figures at that time (s since the epoch)."""
        self._forget_the_parents()
        self._samples.append((int(now), figures(pool.connections(), pool.stats())))

    def history(self) -> dict[str, Any]:
        """For each of `SERIES` a number a second, None where none is known; `until`: when the last was."""
        self._forget_the_parents()
        by_second = dict(self._samples.copy())
        until = max(by_second, default=0)
        begin = max(min(by_second, default=1), until - SLOTS + 1)
        rows = [by_second.get(second) for second in range(begin, until + 1)]
        history: dict[str, Any] = {"until": until}
        for place, name in enumerate(SERIES):
            history[name] = [None if row is None else row[place] for row in rows]
        return history

    # --- errors ----------------------------------------------------------------------------------------

    def refused(self, token: Any, error: BaseException) -> None:
        """A caller got no connection."""
        self._note("acquire", error)

    def connect_failed(self, token: Any, error: BaseException) -> None:
        """A connection could not be opened."""
        self._note("connect", error)

    def replied(self, token: Any, error: BaseException | None) -> None:
        """A request has ended."""
        if error is not None:
            self._note("request", error)

    def _note(self, doing: str, error: BaseException) -> None:
        self._forget_the_parents()
        self._errors.append((time.time(), doing, told(error)))

    def errors(self) -> list[dict[str, Any]]:
        """The last ones, the newest first; those that say the same one after the other are one, counted."""
        self._forget_the_parents()
        return _counted(reversed(self._errors.copy()))


def _counted(errors: Iterable[tuple[float, str, str]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for at, doing, text in errors:
        if rows and (rows[-1]["doing"], rows[-1]["text"]) == (doing, text):
            rows[-1]["count"] += 1
        else:
            rows.append({"at": round(at, 3), "doing": doing, "text": text, "count": 1})
    return rows


def told(error: BaseException) -> str:
    """An error's type; its text only where that is this package's, and says nothing of what was sent."""
    kind = type(error)
    if isinstance(error, ReplyError) and isinstance(error.code, int):
        return f"{kind.__name__}: code {error.code}"
    is_ours = kind.__module__.partition(".")[0] == "jetsocket" and not isinstance(error, ReplyError)
    said = f"{kind.__name__}: {error}" if is_ours else kind.__name__
    said = "".join(char if char.isprintable() else " " for char in said)
    return said if len(said) <= _MOST_SHOWN else f"{said[: _MOST_SHOWN - 1]}…"


_watches: weakref.WeakKeyDictionary[ConnectionPool[Any], Watch] = weakref.WeakKeyDictionary()
