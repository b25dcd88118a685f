"""Many callers on one connection: each request told by its id; one of those that wait reads for all."""

from __future__ import annotations

from sys import _getframe
from threading import current_thread, get_ident

from jetsocket.assembly import Assembly
from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.connection import PooledConnection
from jetsocket.lease import T
from jetsocket.process_id import PID
from jetsocket.threads import Forked, stack_of


class Sharing(Assembly[T]):
    """How a request, or a subscription, gets its place on a connection that others may use, too."""

    def _share(self, uri_or_path: str, limit: float, *, subscriber: bool = False) -> PooledConnection[T]:
        """`acquire` of a place: on the fullest connection that has one free, on an idle one, or on a new one.

        Args:
            uri_or_path: As for `ConnectionPool.acquire`.
            limit: s for all of it.
            subscriber: Whether it is for a subscription: that takes no place of `max_in_flight`.

        Raises:
            PoolExhaustedError: As `ConnectionPool.acquire`, and so are all others.
        """
        lending = self._lending
        if lending.state.pid != PID[0]:
            lending = self._begin_anew()
        borrower = Borrower()
        borrower.shares, borrower.is_subscriber = True, subscriber
        borrower.target, borrower.key = self._targets.get(uri_or_path) or self._target(uri_or_path)
        borrower.limit, borrower.thread = limit, get_ident()
        if self._config.leak_threshold is not None:
            borrower.stack, borrower.known_name = stack_of(_getframe(1)), current_thread().name
        borrower.asked_at = borrower.taken_at = monotonic()
        # The lease first: from here on, whatever strikes this thread, what it holds comes back when it goes.
        lease = self._lease(lending, borrower, lending.terms, None, self)
        try:
            if lending.state.events is None:
                lending.share(lease, borrower.asked_at + limit)
            else:
                lending.tell_asked(borrower)
                lending.share(lease, borrower.asked_at + limit)
                lending.tell_acquired(borrower)
        except Forked:  # while it waited or opened one; and in this child, the pool is empty
            left = max(0.0, borrower.asked_at + limit - monotonic())
            return self._share(uri_or_path, left, subscriber=subscriber)
        except BaseException as error:
            lending.fail(borrower, error)
            raise
        return lease


__all__ = ["Sharing"]
