"""Limiters: a cap over several pools, processes or hosts. The interface that openers use; none by default."""

from __future__ import annotations

from collections.abc import Callable, Hashable


class Limiter:
    """A number of connections that several pools share. Subclass it: `acquire` and `release`."""

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        """Get the right to open one connection.

        Called by a thread of the pool before it dials, with no lock held; may do I/O.

        Args:
            timeout: s; 0 never blocks.
            wanted: Whether it is still wanted; to be asked at least once a second while waiting.

        Returns:
            A token, unique among those that are out; None: none within the time, or not wanted any more.
        """
        raise NotImplementedError

    def release(self, token: Hashable) -> None:
        """That connection is closed: called exactly once for each token.

        By a thread of the pool that is neither a borrower's, the housekeeper's nor a finalizer; may do I/O.
        What it raises is logged.
        """
        raise NotImplementedError


__all__ = ["Limiter"]
