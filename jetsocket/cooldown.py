"""How long to wait before a URI is dialled again whose last dial failed. Decisions, and their record.

Pure, but for `chance`.
"""

from __future__ import annotations

import os
import ssl
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from jetsocket.exceptions import ConnectionError, HandshakeError

if TYPE_CHECKING:
    from jetsocket.dial_order import Dial

_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 5.0  # s, before jitter
_COOLDOWN_MOST = 60.0  # s
_EVICTION_FIRST, _EVICTION_MOST = 1.0, 60.0  # s
_MOST_DOUBLINGS = 10  # more would be past the most, and one day too much for a float
_NEVER_RETRIED = frozenset({401, 403, 404, 410})
_MOST_KEPT = 1024  # URIs
_MOST_KEPT_CHARACTERS = 1 << 20  # of all their keys together


def is_worth_retrying(error: BaseException) -> bool:
    """Whether a second attempt to connect may go better."""
    if isinstance(error, HandshakeError) and error.status_code in _NEVER_RETRIED:
        return False
    if isinstance(error, ConnectionError) and error._is_final:
        return False
    return not isinstance(error.__cause__, ssl.SSLCertVerificationError)


def chance() -> float:
    """A number in [0, 1), from the system: `random` would take longer to import than all of this."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def backoff(failures: int, jitter: float, retry_after: float | None = None) -> float:
    """How long to wait (s) after so many failures in a row, at least one.

    Args:
        failures: 1 or more.
        jitter: In [0, 1): full jitter.
        retry_after: What the server asked for (s), if it did.
    """
    if retry_after is not None:
        return retry_after
    doublings = min(failures - 1, _MOST_DOUBLINGS)
    return float(min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**doublings) * jitter)


def cooldown(first: float, failures: int, jitter: float, retry_after: float | None = None) -> float:
    """For how long acquires fail at once (s): `first`, doubled at each further failure, with jitter.

    Args:
        first: `connect_cooldown`; 0: not at all.
        failures: 1 or more.
        jitter: In [0, 1): takes off up to a tenth.
        retry_after: What the server asked for (s), if it did: never shorter than that.
    """
    if first <= 0:
        return 0.0
    most = max(first, _COOLDOWN_MOST)
    lasts = min(most, first * 2 ** min(failures - 1, _MOST_DOUBLINGS)) * (1.0 - jitter / 10)
    return float(max(lasts, retry_after or 0.0))


def eviction_pause(evictions: int) -> float:
    """How long (s) a URI has to wait before it takes another slot of a healthy one.

    Args:
        evictions: How many it has taken in a row for dials that failed, 1 or more.
    """
    return float(min(_EVICTION_MOST, _EVICTION_FIRST * 2 ** min(evictions - 1, _MOST_DOUBLINGS)))


class Trouble:
    """A URI whose last dial failed.

    Attributes:
        failures: Rounds of dials that failed in a row; those that ran side by side count as one.
        evictions: Rounds of those that had another URI's connection closed for them.
        failed_at: When the last one failed (monotonic, s).
        error: Why.
        beside: Other dials that were under way when the time of this one was over: theirs will be, too.
        next_dial_at: Not before is it dialled again for callers who wait while a connection to it is open, or
            for a number of connections that is to be kept (monotonic, s).
        refuse_until: Until then acquires fail at once (monotonic, s).
        next_eviction_at: Not before may it take the slot of another URI's connection (monotonic, s).
    """

    __slots__ = (
        "beside",
        "error",
        "evictions",
        "failed_at",
        "failures",
        "next_dial_at",
        "next_eviction_at",
        "refuse_until",
    )

    def __init__(self, error: BaseException) -> None:
        """Begin with no failure counted."""
        self.failures = self.evictions = 0
        self.failed_at = 0.0
        self.beside: tuple[Dial, ...] = ()
        self.error = error
        self.next_dial_at = self.refuse_until = self.next_eviction_at = 0.0


class Troubles:
    """The URIs whose last dial failed; of very many, the latest. The caller holds the pool's lock."""

    def __init__(self, first_cooldown: float, random: Callable[[], float]) -> None:
        """Begin with none."""
        self._first_cooldown = first_cooldown
        self._random = random
        self._by_key: OrderedDict[str, Trouble] = OrderedDict()

    def of(self, key: str) -> Trouble | None:
        """What is known of that URI; None: its last dial, if there was one, succeeded."""
        return self._by_key.get(key)

    def forget(self, key: str) -> None:
        """A dial has succeeded."""
        self._by_key.pop(key, None)

    def count_eviction(self, key: str, now: float) -> None:
        """Another URI's connection is closed for a dial, which may end without having begun."""
        if (found := self._by_key.get(key)) is not None:
            found.evictions += 1
            found.next_eviction_at = now + eviction_pause(found.evictions)

    def note(
        self,
        key: str,
        error: BaseException,
        *,
        began: float,
        now: float,
        retry_after: float | None,
        has_evicted: bool = False,
    ) -> Trouble:
        """A dial that was ordered then has failed for good; another URI's connection made room, perhaps.

        Only what it has cost others makes it wait before it may cost them again: while a server is restarted,
        dials that had a free slot fail by the dozen.
        """
        found = self._by_key.get(key)
        if found is None:
            found = self._by_key[key] = Trouble(error)
            self._forget_some()
        self._by_key.move_to_end(key)
        if began >= found.failed_at:  # else it ran beside one that was counted
            found.failures += 1
        if has_evicted:
            found.evictions = found.evictions or 1  # nothing was known when it was ordered
            found.next_eviction_at = now + eviction_pause(found.evictions)
        found.failed_at, found.error = now, error
        pause = backoff(found.failures, self._random(), retry_after)
        found.next_dial_at = max(found.next_dial_at, now + pause)
        lasts = cooldown(self._first_cooldown, found.failures, self._random(), retry_after)
        found.refuse_until = max(found.refuse_until, now + lasts) if lasts else 0.0
        return found

    def _forget_some(self) -> None:
        characters = sum(map(len, self._by_key))
        while len(self._by_key) > 1 and (
            len(self._by_key) > _MOST_KEPT or characters > _MOST_KEPT_CHARACTERS
        ):
            key, _ = self._by_key.popitem(last=False)
            characters -= len(key)


__all__ = ["Trouble", "Troubles", "backoff", "cooldown", "eviction_pause"]
