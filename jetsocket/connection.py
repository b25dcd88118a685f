"""PooledConnection: the lease, what a borrower holds of a connection."""

from __future__ import annotations

from types import TracebackType

from jetsocket.exchange import Exchange
from jetsocket.lease import T
from jetsocket.wire.close_codes import check_sendable
from jetsocket.wire.link import not_held


class PooledConnection(Exchange[T]):
    """One connection of a pool, lent to one borrower until it is released.

    A fresh object for each acquire: once released it can touch nothing any more. It is a context manager
    (leaving it releases) and an iterator over the messages that come. One thread may send while another
    receives. A lease that is dropped without release is found by the garbage collector: the connection is
    closed, and a ResourceWarning tells where it was acquired.

    Example:
        >>> with pool.acquire("/ws/btcusdt") as conn:
        ...     conn.send({"subscribe": "trades"})
        ...     reply = conn.recv()
    """

    __slots__ = ()

    # --- giving back -----------------------------------------------------------------------------------

    def release(self) -> None:
        """Give the connection back. The second time does nothing."""
        self._lender.take_back(self, False)

    def discard(self, code: int = 1000, reason: str = "") -> None:
        """Have the connection closed at release, whatever its state: after a subscription, or in doubt.

        Args:
            code: What the server is told, if nothing has ended the connection before: 1000, or 3000 to 4999,
                which are for libraries and applications (RFC 6455 §7.4.2).
            reason: Text for the server's log, at most 123 B of UTF-8.

        Raises:
            TypeError: `code` is not an int, or `reason` not a str.
            ValueError: Another code, or a reason that is too long.
            InvalidStateError: The lease was released: the connection may have another borrower by now.
        """
        check_sendable(code, reason)
        if self._is_released:
            raise not_held(self._told().target)
        self._close_with = (int(code), reason)
        self._discarded = True

    def __enter__(self) -> PooledConnection[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lender.take_back(self, kind is not None)


__all__ = ["PooledConnection"]
