"""ConnectionPool: the story of acquire and release, readable from top to bottom."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from sys import _getframe
from threading import current_thread, get_ident
from types import TracebackType
from typing import Any

from jetsocket.assembly import Assembly
from jetsocket.borrower import Borrower, Site
from jetsocket.clock import monotonic
from jetsocket.connection import PooledConnection
from jetsocket.exceptions import ConnectionClosedError, DecodeError
from jetsocket.interrupts import is_alarm
from jetsocket.lease import T, seconds
from jetsocket.process_id import PID
from jetsocket.sharing import Sharing
from jetsocket.subscription import Subscription
from jetsocket.subscription_queue import Overflow
from jetsocket.text import short_repr, told_as
from jetsocket.threads import Forked, stack_of

__all__ = ["ConnectionPool"]


class ConnectionPool(Sharing[T]):
    """A bounded set of open WebSocket connections, lent to one borrower at a time. Thread-safe.

    A connection is reused only if it is clean; see `ConnectionPoolConfig.reuse`. Use the pool as a
    context manager, or call `close`; one that is referred to no more closes itself.

    Example:
        >>> with ConnectionPool(base_uri="wss://stream.example.com") as pool:
        ...     with pool.acquire("/ws/btcusdt") as conn:
        ...         conn.send({"subscribe": "trades"})
        ...         for msg in conn:
        ...             process(msg)
    """

    # --- acquire ---------------------------------------------------------------------------------------

    def acquire(self, uri_or_path: str, timeout: float | None = None) -> PooledConnection[T]:
        """Borrow a connection: the most recently used idle one to that URI, or a new one.

        A thread of the pool opens it; this one only waits, for that or for one that comes back, whichever is
        first. Callers are served in the order they came.

        Args:
            uri_or_path: A ws:// or wss:// URI, or a path relative to `base_uri`.
            timeout: s for waiting and connecting together; `acquire_timeout` if None. 0 never blocks: a
                live idle connection or PoolExhaustedError.

        Returns:
            A lease, usable at once; `with` releases it at the end.

        Raises:
            PoolExhaustedError: None within `timeout`, or max_waiting callers are in line already.
            PoolClosedError: The pool is closed or drained, or was while waiting.
            TimeoutError: The server could not be reached within `connect_timeout`, or `configure` took
                longer, and no connection to it is open.
            HandshakeError: The server refused, and no connection to it is open.
            ConnectionError: The server could not be reached, or `configure` failed, likewise.
            ValueError: The URI is not one, or is relative without `base_uri`.
            TypeError: An argument has the wrong type.
            InvalidStateError: Called from a finalizer or signal handler that interrupted the pool itself.
        """
        lending, config = self._lending, self._config
        if lending.state.pid != PID[0]:
            lending = self._begin_anew()
        borrower = Borrower()
        try:
            known = self._targets[uri_or_path]
        except (KeyError, TypeError) as error:  # it is new, or no str
            if is_alarm(error):
                raise
            known = None
        borrower.target, borrower.key = known or self._target(uri_or_path)
        borrower.limit = limit = config.acquire_timeout if timeout is None else _limit(timeout)
        try:
            frame = _getframe(1)
            borrower.site = (frame.f_code, frame.f_lasti)
            if config.leak_threshold is not None:
                borrower.stack, borrower.known_name = stack_of(frame), current_thread().name
        except ValueError as error:  # this thread, or greenlet, began with our method
            if is_alarm(error):
                raise
        borrower.thread = get_ident()
        borrower.asked_at = borrower.taken_at = now = monotonic()
        # The lease first: from here on, whatever strikes this thread, what it holds comes back when it goes.
        lease = self._lease(lending, borrower, lending.terms, None, self)
        try:
            if lending.state.events is None:
                lending.lend(lease, now + limit)
            else:
                lending.tell_asked(borrower)
                lending.lend(lease, now + limit)
                lending.tell_acquired(borrower)
        except Forked:  # while it waited or opened one; and in this child, the pool is empty
            return self.acquire(uri_or_path, max(0.0, borrower.asked_at + borrower.limit - monotonic()))
        except BaseException as error:
            lending.fail(borrower, error)
            raise
        return lease

    def release(self, conn: PooledConnection[T]) -> None:
        """Give a connection back; a lease that was released before is left alone.

        Args:
            conn: A lease of this pool.

        Raises:
            TypeError: `conn` is not a lease.
            ValueError: It is another pool's.
        """
        if not isinstance(conn, PooledConnection):
            raise TypeError(f"release takes what acquire returned, not {type(conn).__name__}")
        if conn._pool is not self:
            raise ValueError(f"{conn!r} is a lease of another pool; release it there, or call its release()")
        conn.release()

    # --- in one call -----------------------------------------------------------------------------------

    def request(
        self, uri_or_path: str, message: Any, timeout: float | None = None, *, idempotent: bool = False
    ) -> T:
        """Acquire, send, receive the reply (see `PooledConnection.request`), release.

        Args:
            uri_or_path: As for `acquire`.
            message: As for `PooledConnection.send`.
            timeout: s for all of it together; None: `acquire_timeout`, `send_timeout` and `recv_timeout`
                apply one after the other.
            idempotent: The message may be processed more than once: if the connection ends after part of
                it has left and before the reply, it is sent again on another one. After that, once more
                for each that had been idle, too (what cut one off may have cut off all), and on new ones
                up to `connect_attempts` times: a server that ends may accept and close for a while.

        Returns:
            The decoded reply.

        Raises:
            PoolExhaustedError: As `acquire`, and so are PoolClosedError, HandshakeError and ConnectionError.
            TimeoutError: No reply in time.
            ConnectionClosedError: The connection ended before the reply.
            DecodeError: The reply does not decode.
            TypeError: The message can't be serialized; nothing was sent.
        """
        limit = seconds(timeout, None)
        deadline = None if limit is None else monotonic() + limit
        site = _site()
        for tries in itertools.count(1):
            with self._obtain(uri_or_path, limit if tries == 1 else _left(deadline), site) as conn:
                try:
                    if conn._lender.state.events is None:
                        return conn._request(message, deadline, limit)
                    return conn._request_told(message, deadline, limit)
                except ConnectionClosedError as error:
                    if is_alarm(error):
                        raise
                    was_idle = conn._told().created < conn._borrower.asked_at
                    again = self._config.max_connections if was_idle else self._options.connect_attempts - 1
                    if not idempotent or tries > max(1, again):
                        raise
                except (DecodeError, TypeError, ValueError) as error:
                    if not is_alarm(error, users_code=True):
                        conn.release()  # all was read, or nothing sent: the connection is not to blame
                    raise
        raise AssertionError("one of the tries returns or raises")

    def _obtain(
        self, uri_or_path: str, timeout: float | None, site: Site | None, *, subscriber: bool = False
    ) -> PooledConnection[T]:
        """A lease for a request or a subscription: where the pool shares connections, a place on one."""
        if self._config.max_in_flight == 1:
            conn = self.acquire(uri_or_path, timeout)
        else:
            limit = self._config.acquire_timeout if timeout is None else timeout
            conn = self._share(uri_or_path, limit, subscriber=subscriber)
        conn._borrower.site = site
        return conn

    # --- what is pushed --------------------------------------------------------------------------------

    def subscribe(
        self,
        uri_or_path: str,
        message: Any,
        *,
        timeout: float | None = None,
        max_queue: int = 1000,
        overflow: Overflow = "error",
        reconnect: bool = False,
        on_reconnect: Callable[[Subscription[T]], object] | None = None,
    ) -> Subscription[T]:
        """Subscribe to what a server pushes, on a connection that the subscription keeps until its end.

        Args:
            uri_or_path: As for `acquire`.
            message: What subscribes; None: the server sends without being asked. See
                `PooledConnection.subscribe`, for `max_queue` and `overflow`, too.
            timeout: s until the server has confirmed it; None: `acquire_timeout` and `recv_timeout`.
            max_queue: Messages that wait to be read.
            overflow: What happens to one more.
            reconnect: Subscribe anew when the server or the network has ended the connection, after a pause
                with full jitter. What was pushed meanwhile is lost: `on_reconnect` is called, and
                `Subscription.reconnects` counts.
            on_reconnect: Called with the subscription each time, in the thread that reads it.

        Returns:
            An iterator over what is pushed; a context manager that unsubscribes.

        Raises:
            PoolExhaustedError: As `acquire`, and so are PoolClosedError, HandshakeError and ConnectionError.
            ReplyError: As `PooledConnection.subscribe`, and so are TimeoutError, ValueError and TypeError.
        """
        from jetsocket.resubscribing import Resubscribing  # loaded with the pool

        limit = seconds(timeout, None)
        site = _site()

        def open_once(deadline: float | None) -> Subscription[T]:
            conn = self._obtain(uri_or_path, _left(deadline), site, subscriber=True)
            try:
                opened = conn.subscribe(
                    message, timeout=_left(deadline), max_queue=max_queue, overflow=overflow
                )
                opened._own_lease(reopen if reconnect else None, on_reconnect)
            except BaseException:
                conn.release()
                raise
            if self._lending.state.draining:  # it began meanwhile, and has ended the others
                opened._end()
            return opened

        reopen = Resubscribing(self._begin_anew().state, open_once, self._target(uri_or_path)[0].redacted)
        return open_once(None if limit is None else monotonic() + limit)

    # --- how many connections --------------------------------------------------------------------------

    def prewarm(self, uri_or_path: str, count: int, *, keep: bool = False) -> int:
        """Open connections ahead of their borrowers, side by side, until `count` are idle for that URI.

        Never opens past `max_connections`, at most `max_connecting` at once, and closes no other connection
        to make room.

        Args:
            uri_or_path: As for `acquire`.
            count: How many are to be idle.
            keep: Hold that number open from now on: they are exempt from `max_idle_time`, and replaced before
                `max_lifetime` ends them; one that is lost is opened again, after a pause if that fails. They
                still make room for a waiting caller. 0 ends it.

        Returns:
            How many were opened now.

        Raises:
            TypeError: `count` is not an int, or `keep` not a bool.
            ValueError: `count` is negative.
            ConnectionError: The server could not be reached; what was opened stays.
            HandshakeError: The server refused; likewise.
            TimeoutError: The connections took longer than `acquire_timeout` together; likewise.
            PoolClosedError: The pool is closed or drained, or was meanwhile.
        """
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count must be an int, not {short_repr(count)}")
        if count < 0:
            raise ValueError(f"count must be 0 or more, not {short_repr(count)}")
        if not isinstance(keep, bool):
            raise TypeError(f"keep must be True or False, not {keep!r}")
        lending = self._begin_anew()
        target, key = self._target(uri_or_path)
        return lending.prewarm(target, key, count, keep=keep)

    def clear(self, uri_or_path: str | None = None) -> int:
        """Close idle connections now, and those that are lent or being opened when they come back.

        After a change of credentials or of the server, so that no connection from before it is lent again.

        Args:
            uri_or_path: Whose; None: all.

        Returns:
            How many idle ones were closed.

        Raises:
            TypeError: The URI is not a str.
            ValueError: It is not one, or is relative without `base_uri`.
        """
        lending = self._begin_anew()
        return lending.clear(None if uri_or_path is None else self._target(uri_or_path)[1])

    def resize(self, max_connections: int) -> None:
        """Have another cap from now on; connections above it are closed, lent ones when they come back.

        Args:
            max_connections: 1 or more.

        Raises:
            TypeError: Not an int.
            ValueError: Less than 1.
        """
        config = replace(self._config, max_connections=max_connections)
        self._begin_anew().state.resize(self._in_use(config))
        self._config = config

    # --- ending ----------------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> bool:
        """Give no more leases and wait for those that are out; callers in line get PoolClosedError.

        Subscriptions end: who iterates over one leaves the loop, and unsubscribes.

        Args:
            timeout: s; None waits for ever.

        Returns:
            Whether all came back in time; not if `close` has cut them meanwhile. Call `close` then, or to cut
            the rest.

        Raises:
            TypeError: `timeout` is not a number.
            ValueError: `timeout` is negative.
        """
        limit = seconds(timeout, None)
        state = self._begin_anew().state
        waiter = state.drain()
        for entry in state.open_entries():
            if entry.dispatcher is not None:
                entry.dispatcher.topics.end_all()
        if waiter is None:
            return True
        try:
            returned = waiter.acquire(timeout=-1 if limit is None else limit)
        finally:
            state.stop_draining(waiter)
        return returned and not state.cut

    def close(self, timeout: float | None = None) -> None:
        """Close the pool. The second time does nothing, or what the first was kept from by a Ctrl-C.

        All who wait get PoolClosedError at once; idle connections are closed side by side; connections
        that are lent are cut, and their borrowers get ConnectionClosedError.

        Args:
            timeout: s for all closing handshakes together; `close_timeout` if None.

        Raises:
            TypeError: `timeout` is not a number.
            ValueError: `timeout` is negative.
            InvalidStateError: Called from a finalizer or signal handler that interrupted the pool itself.
        """
        limit = seconds(timeout, self._options.close_timeout)
        lending = self._begin_anew()
        try:
            again, self._half_closed = self._half_closed, False
            lending.close(self._options.close_timeout if limit is None else limit, again=again)
        except BaseException:
            self._half_closed = True
            raise

    def __enter__(self) -> ConnectionPool[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


told_as("ConnectionPool", Assembly, Sharing)


def _site() -> Site | None:
    """Where the method that calls this was called; None: nowhere, a thread began with it."""
    try:
        frame = _getframe(2)
    except ValueError as error:
        if is_alarm(error):
            raise
        return None
    return frame.f_code, frame.f_lasti


def _limit(timeout: float) -> float:
    limit = seconds(timeout, None)
    return math.inf if limit is None else limit


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())
