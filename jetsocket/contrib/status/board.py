"""Boards: which pools are shown together, and where this process says what they do."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from jetsocket import ConnectionPool
from jetsocket.contrib.status import sampler
from jetsocket.contrib.status.directory import Directory, this_process
from jetsocket.contrib.status.reports import Report, of_worker, text
from jetsocket.contrib.status.watching import Watch
from jetsocket.events import Listener

Given: TypeAlias = "Mapping[str, ConnectionPool[Any]] | Iterable[ConnectionPool[Any]] | ConnectionPool[Any]"


class Source:
    """Pools that are to be shown. A mapping is kept, and read again each time; pools are not kept."""

    def __init__(self, pools: Given) -> None:
        """Those.

        Raises:
            TypeError: They are no pools.
        """
        self._mapping: Mapping[str, ConnectionPool[Any]] | None = None
        self._pools: list[weakref.ref[ConnectionPool[Any]]] = []
        if isinstance(pools, Mapping):
            self._mapping = pools
        else:
            given = [pools] if isinstance(pools, ConnectionPool) else list(_iterable(pools))
            self._pools = [weakref.ref(_pool(each)) for each in given]
        self.items()

    @property
    def is_over(self) -> bool:
        """Whether there is no pool that lends anything, and never will be."""
        return self._mapping is None and all(pool is None or pool.is_closed for pool in map(_of, self._pools))

    def items(self) -> list[tuple[str, ConnectionPool[Any]]]:
        """Name, fit to be shown, and pool of each that is there now.

        Raises:
            TypeError: The mapping has something else in it.
        """
        if self._mapping is not None:
            return [(text(str(name)), _pool(pool)) for name, pool in list(self._mapping.items())]
        return [(text(pool.name), pool) for ref in self._pools if (pool := ref()) is not None]


def _of(ref: weakref.ref[ConnectionPool[Any]]) -> ConnectionPool[Any] | None:
    return ref()


def _iterable(pools: Any) -> Iterable[Any]:
    if isinstance(pools, (str, bytes)) or not isinstance(pools, Iterable):
        raise TypeError(f"pools must be pools, or a mapping of names to pools, not {type(pools).__name__}")
    return pools


def _pool(pool: object) -> ConnectionPool[Any]:
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"pools must be ConnectionPools, not {type(pool).__name__}")
    return pool


class Board:
    """Pools that are shown together: those of one application, or all of a process that share a directory."""

    def __init__(self, directory: Directory | None = None) -> None:
        """Show none yet; say what they do in that directory."""
        self.directory = directory
        self._sources: list[Callable[[], Source | None]] = []
        self._listens_to: weakref.WeakSet[ConnectionPool[Any]] = weakref.WeakSet()
        self._begun_in = 0  # which process

    def add(self, source: Source, *, keep: bool) -> None:
        """Show these, too, for as long as the source is referred to, or for ever."""
        self._sources = self._live_sources()
        self._sources.append((lambda: source) if keep else weakref.ref(source))
        self.attend()

    def _live_sources(self) -> list[Callable[[], Source | None]]:
        return [each for each in self._sources if (source := each()) is not None and not source.is_over]

    def pools(self) -> dict[str, ConnectionPool[Any]]:
        """Those that are there now; where two have one name, the second has a number behind it."""
        found: dict[str, ConnectionPool[Any]] = {}
        seen = set()
        for each in list(self._sources):
            source = each()
            for name, pool in source.items() if source is not None else []:
                if id(pool) not in seen:
                    seen.add(id(pool))
                    found[_free(name, found)] = pool
        return found

    def attend(self) -> dict[str, ConnectionPool[Any]]:
        """Where there is a directory, be told when one of the pools is used; the pools."""
        pools = self.pools()
        if self.directory is not None:
            for pool in pools.values():
                if pool not in self._listens_to:
                    self._listens_to.add(pool)
                    pool.listen(_Starter(self))
        return pools

    def begin(self) -> None:
        """Have the pools sampled from now on, in this process."""
        if self._begun_in != os.getpid() and sampler.begin(self):
            self._begun_in = os.getpid()

    def show(self) -> Report:
        """What is to be told of this process, which samples from now on."""
        if self._begun_in != os.getpid():
            for pool in self.pools().values():
                Watch.of(pool).sample(pool, time.time())  # or the page would have no figure at first
        self.begin()
        return of_worker(this_process(), self.attend(), time.time())

    def sample(self, now: float) -> bool:
        """Remember the figures of the pools, and write them where other workers can read them.

        Returns:
            Whether there is anything to be sampled in future.

        Raises:
            OSError: They can't be written.
        """
        pools = self.attend()
        for pool in pools.values():
            Watch.of(pool).sample(pool, now)
        if self.directory is not None:
            if not self._live_sources():
                self.directory.remove()
                return False
            wanted = self.directory.is_asked_to_clear()
            for name, pool in pools.items():
                if name == wanted:
                    pool.clear()
            self.directory.write(of_worker(this_process(), pools, now))
        return True

    def ended(self) -> None:
        """It is not sampled any more."""
        self._begun_in = 0


def _free(name: str, taken: Mapping[str, Any]) -> str:
    names = (name if count == 1 else f"{name} ({count})" for count in range(1, len(taken) + 2))
    return next(each for each in names if each not in taken)


class _Starter(Listener):
    """Begins to sample at the first acquire in a process. Keeps neither pool nor board."""

    def __init__(self, board: Board) -> None:
        self._board = weakref.ref(board)

    def acquiring(self, uri: str) -> None:
        board = self._board()
        if board is not None:
            board.begin()


_shared: dict[str, Board] = {}


def board_for(directory: str | os.PathLike[str] | None) -> Board:
    """A board of one's own, or the one of all that use that directory in this process."""
    if directory is None:
        return Board()
    path = os.path.realpath(directory)
    return _shared.get(path) or _shared.setdefault(path, Board(Directory(path)))


def publish(pools: Given, directory: str | os.PathLike[str]) -> None:
    """Have this process write there, once a second, what its pools do: for `app` and `read` in any process.

    A thread does it, which begins at the first acquire of one of them in this process: not before a fork on
    behalf of the child. May be called again, with further pools.

    Args:
        pools: A mapping of names to pools, which is kept and read again each second, so it may grow; or
            pools, by their own names, which are not kept: one that nothing else refers to closes itself.
        directory: Where; made when it is first used, for this user only.

    Raises:
        TypeError: They are no pools.
    """
    board_for(directory).add(Source(pools), keep=True)
