"""What a limiter is to a pool, and a pool to its limiter."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol


class Owner(Protocol):
    """A pool, as its limiter sees it: what a limiter may tell it.

    Both methods may be called by any thread, any number of times, with any lock of the limiter's held: they
    only leave a note, which the pool reads at once in a thread of its own.
    """

    def lost(self, token: Hashable, reason: str) -> None:
        """The slot of a token is not this pool's any more: its connection is closed now, idle or lent.

        Who uses it gets a ConnectionClosedError with code 1006 and "its slot was lost: " with the reason. If
        it is being opened, who waits for it gets another one, and no error.

        `Limiter.release` is called for the token then, as for any other.
        """

    def give_up(self, count: int = 1, *, returned: bool = False) -> None:
        """Others wait: close up to `count` idle connections of this limiter at once, the longest idle first.

        Args:
            count: 0 takes back what was asked for with `returned`.
            returned: For those that are not found idle, the next ones that come back are closed rather than
                handed to the pool's own line. They add up: who asks twice for one gets two.
        """


class Limiter:
    """A number of slots that several pools share: one for each connection that is open or being opened.

    Subclass it: `acquire` and `release` are needed, the rest does nothing by default. `__init__` need not be
    called. A name, for messages: the attribute `name`, or the class's.
    """

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        """Get one slot.

        Called by a thread of the pool before it dials, with no lock held; may do I/O. One thread for each
        pool at a time waits here.

        Args:
            timeout: s; 0 never blocks, though it may do I/O.
            wanted: Whether it is still wanted. To be asked at least once a second while waiting, to give up
                on False. It takes no lock for long and never raises. Its attribute `owner`, which what pools
                pass has, is what `bind` got: which of several pools asks.

        Returns:
            A token, unique among those that are out. None: no slot within the time, or it is not wanted any
            more.

        Raises:
            Exception: Whatever it is, it counts as a failed dial.
        """
        raise NotImplementedError

    def release(self, token: Hashable) -> None:
        """The connection of a token is closed: called exactly once for each token, also for one lost.

        By a thread of the pool that is neither a borrower's, the housekeeper's nor a finalizer; may do I/O.
        What it raises is logged.
        """
        raise NotImplementedError

    def bind(self, owner: Owner) -> None:
        """A pool begins to use this limiter: called before its first `acquire`.

        And again in a forked child, with another owner: there no token, thread or socket of the parent is to
        be touched.
        """

    def unbind(self, owner: Owner, timeout: float) -> None:
        """A pool is closed, and all its tokens were released.

        Args:
            owner: What `bind` got.
            timeout: s that it may take; at the end of the process 0.1 s, for everything.
        """

    def stats(self) -> Mapping[str, Any]:
        """Figures, for errors, the status page and metrics.

        Returns:
            By name, as far as they are known: `limit`, `held` (slots that this process holds), `others`
            (slots that other processes hold), `waiting`, `errors`, `lost`; and `note`, a text for errors
            that says what else is to be known.
        """
        return {}


__all__ = ["Limiter", "Owner"]
