"""Limiters as one pool uses them: which one counts for a URI, what it gave, and what it tells the pool.

A limiter may be shared with other pools, processes and hosts; what this pool has of it is its `Quota`, which
is also the pool as the limiter sees it (`jetsocket.limits.Owner`). It does not refer to the pool: a limiter
outlives the pools that use it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

from jetsocket.exceptions import ConnectionError
from jetsocket.limits import Limiter
from jetsocket.process_id import getpid
from jetsocket.text import MOST_SHOWN, printable
from jetsocket.uris import Target

ByOrigin: TypeAlias = Callable[[str], Limiter | None]
"""Which limiter counts for an origin, as "wss://stream.example.com"; None: there is none."""

Limiters: TypeAlias = Limiter | Mapping[str, Limiter] | ByOrigin
"""What a pool may be made with: one limiter for all that it opens, or one by origin."""

_END_PATIENCE = 1.0  # s that `unbind` may take
_MOST_ORIGINS = 10_000  # whose limiter is remembered


class Grant:
    """One slot of a limiter's, for one connection.

    Attributes:
        quota: Of which limiter.
        token: What it gave.
        is_back: Whether it was released; guarded by the quota's lock.
        is_lost: Whether it is another's now; guarded by the lock of the pool's state.
    """

    __slots__ = ("is_back", "is_lost", "quota", "token")

    def __init__(self, quota: Quota, token: Hashable) -> None:
        """It was given."""
        self.quota = quota
        self.token = token
        self.is_back = self.is_lost = False

    @property
    def fence(self) -> Any:
        """The number that grows with each grant of the limiter's; None: its tokens have none."""
        return getattr(self.token, "fence", None)


class Lost:
    """A note of the limiter's: the slot of a token is another's now."""

    def __init__(self, token: Hashable, reason: str) -> None:
        """As it was told."""
        self.token, self.reason = token, reason


class GiveUp:
    """A note of the limiter's: others wait for so many slots."""

    def __init__(self, slots: int, *, returned: bool) -> None:
        """As `Owner.give_up` was told."""
        self.slots, self.returned = slots, returned


class Quota:
    """A limiter, as one pool in one process uses it.

    Attributes:
        limiter: The limiter.
        notes: What it has told and the housekeeper has not read.
        is_full: Whether it had none when it was last asked; guarded by the lock of the pool's state, as all
            that follows.
        to_give_up: How many connections are to be closed when they come back.
        keep_again_at: When it is asked again for connections that are only to be kept (monotonic, s).
        keep_pause: How long that pause is (s).
        lost_early: Tokens that were reported lost before their grant was known to the state.
    """

    def __init__(self, limiter: Limiter, ring: Callable[[], object]) -> None:
        """Use that limiter; `ring` has the housekeeper read the notes."""
        self.limiter = limiter
        self.notes: deque[Lost | GiveUp] = deque()
        self.is_full = False
        self.to_give_up = 0
        self.keep_again_at = self.keep_pause = 0.0
        self.lost_early: list[Hashable] = []
        self._ring = ring
        self._pid = getpid()
        # Guards the three below and `Grant.is_back`. Nothing else is done with it held.
        self._lock = threading.Lock()
        self._in_use = 0  # calls of `acquire` that are under way, and grants that are out
        self._ends = self._is_unbound = False
        # Held while `bind` runs, so that no other thread calls `acquire` before it is done. No other lock is
        # taken with it but the limiter's own.
        self._binding = threading.Lock()
        self._is_bound = False

    @property
    def name(self) -> str:
        """What messages call the limiter: its own `name`, or its class's."""
        return name_of(self.limiter)

    # --- what the limiter calls -------------------------------------------------------------------------

    def lost(self, token: Hashable, reason: str) -> None:
        """See `Owner.lost`."""
        self.notes.append(Lost(token, reason))
        self._ring()

    def give_up(self, count: int = 1, *, returned: bool = False) -> None:
        """See `Owner.give_up`."""
        self.notes.append(GiveUp(count, returned=returned))
        self._ring()

    # --- what the pool calls, in threads that may wait ----------------------------------------------------

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Grant | None:
        """Ask the limiter for a slot; None: it has none within `timeout` (s), or the pool has ended.

        Raises:
            Exception: What the limiter raises.
        """
        with self._binding:
            if not self._is_bound:
                self.limiter.bind(self)
                self._is_bound = True
        with self._lock:
            if self._ends:
                return None
            self._in_use += 1
        token = None
        try:
            token = self.limiter.acquire(timeout, wanted)
        finally:
            if token is None:
                self._one_less()
        return None if token is None else Grant(self, token)

    def release(self, grant: Grant) -> None:
        """Give a grant back to the limiter, unless that was done.

        Raises:
            Exception: What the limiter raises.
        """
        with self._lock:
            if grant.is_back:
                return
            grant.is_back = True
        try:
            self.limiter.release(grant.token)
        finally:
            self._one_less()

    def _one_less(self) -> None:
        with self._lock:
            self._in_use -= 1
        self._unbind_at_last(_END_PATIENCE)

    def end(self, timeout: float = _END_PATIENCE, *, at_exit: bool = False) -> None:
        """The pool is closed: let go of the limiter as soon as it has got everything back.

        Args:
            timeout: s that it may take then.
            at_exit: The process ends: at once.
        """
        with self._lock:
            self._ends = True
            if at_exit:
                self._in_use = 0
        self._unbind_at_last(timeout)

    def _unbind_at_last(self, timeout: float) -> None:
        with self._lock:
            if not self._ends or self._in_use > 0 or not self._is_bound or self._is_unbound:
                return
            self._is_unbound = True
        if self._pid == getpid():  # else the user's code has forked, and this is the child
            self.limiter.unbind(self, timeout)


class Quotas:
    """The limiters of one pool in one process.

    `_lock` guards the two dictionaries while they change; they are read without it. No other lock is taken
    with it, and no code of the user's runs.
    """

    def __init__(self, limiters: Limiters, ring: Callable[[], object]) -> None:
        """Use these, as `check_limiters` has found them right."""
        self._ring = ring
        self._lock = threading.Lock()
        self._by_limiter: dict[int, Quota] = {}
        self._by_origin: dict[str, Quota | None] = {}
        self._only: Quota | None = None
        self._ask: ByOrigin | None = None
        if isinstance(limiters, Limiter):
            self._only = self._quota(limiters)
        elif isinstance(limiters, Mapping):
            self._by_origin = {origin: self._quota(limiter) for origin, limiter in limiters.items()}
        else:
            self._ask = limiters

    def _quota(self, limiter: Limiter) -> Quota:
        return self._by_limiter.setdefault(id(limiter), Quota(limiter, self._ring))

    def known(self, target: Target | None) -> Quota | None:
        """Which one counts for a URI, as far as is known without asking the user's callable."""
        if self._only is not None or target is None:
            return self._only
        return self._by_origin.get(origin_of(target))

    def of(self, target: Target) -> Quota | None:
        """Which one counts for a URI; None: there is none. May call the user's callable.

        Raises:
            ConnectionError: That one returned something else.
            Exception: What that one raises.
        """
        if self._ask is None:
            return self.known(target)
        origin = origin_of(target)
        if origin in self._by_origin:
            return self._by_origin[origin]
        limiter: Any = self._ask(origin)
        if limiter is not None and not isinstance(limiter, Limiter):
            told = f"the callable that was given as limiter returned {type(limiter).__name__} for {origin}"
            raise ConnectionError(f"{told}, not a jetsocket.limits.Limiter or None")
        with self._lock:
            if len(self._by_origin) >= _MOST_ORIGINS:
                self._by_origin.clear()
            quota = None if limiter is None else self._quota(limiter)
            return self._by_origin.setdefault(origin, quota)

    @property
    def all(self) -> list[Quota]:
        """All that are known."""
        return list(self._by_limiter.values())


def name_of(limiter: Limiter) -> str:
    """What messages call a limiter."""
    name = getattr(limiter, "name", None)
    # On one line, and in UTF-8: that of a file's path may be neither.
    return printable(name, 5 * MOST_SHOWN) if isinstance(name, str) and name else type(limiter).__name__


def origin_of(target: Target) -> str:
    """Scheme, host and port of a URI, no port if it is the scheme's own (RFC 6454 §6.2)."""
    return f"{target.scheme}://{target.host_header}"


__all__ = ["ByOrigin", "GiveUp", "Grant", "Limiters", "Lost", "Quota", "Quotas", "name_of", "origin_of"]
