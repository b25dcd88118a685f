"""ConnectionPool: the story of acquire and release, readable from top to bottom."""

from __future__ import annotations

import atexit
import builtins
import copy
import functools
import inspect
import itertools
import logging
import math
import os
import random
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from logging import DEBUG
from os import getpid
from types import FrameType, TracebackType
from typing import Any, Generic, NoReturn

from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig, Options, runs_later
from jetsocket.connection import PooledConnection, T, Terms, seconds
from jetsocket.entry import COUNTS_ALONE, Entry, key_of, stale, why_unclean
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    DecodeError,
    HandshakeError,
    PoolClosedError,
    PoolExhaustedError,
    TimeoutError,
)
from jetsocket.foreign import Misuse, as_told, exc_info_of, told
from jetsocket.housekeeper import Housekeeper, close_all, is_housekeeping, stack_of
from jetsocket.interrupts import is_alarm, raise_alarm_behind
from jetsocket.ledger import ABANDONED, STOP, Exhaustion, Ledger
from jetsocket.messages import Codec
from jetsocket.permits import Permit
from jetsocket.stats import PoolStats
from jetsocket.text import short_repr
from jetsocket.uris import Target, parse, resolve, same_origin
from jetsocket.wire.redaction import raise_alone
from jetsocket.wire.websocket import WebSocket

__all__ = ["ConnectionPool", "ConnectionPoolConfig", "PoolStats", "PooledConnection"]

Callback = Callable[[PooledConnection[Any]], object]

_log = logging.getLogger("jetsocket.pool")
_numbers = itertools.count(1)
_pools: set[weakref.ref[ConnectionPool[Any]]] = set()
_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()

_KNOWN_URIS, _MOST_KNOWN_URIS = 256, 65_536  # resolved URIs that a pool remembers, at least and at most
_LOOK_PATIENCE = 0.05  # s for looking at idle connections, whatever the acquire's deadline
_ROOM_PATIENCE = 1.0  # s that a connection has for its goodbye when its slot is wanted
_ROOM_SHARE = 0.25  # of what an acquire has left, at most: the rest is for connecting
_EXIT_PATIENCE = 0.1  # s, for all goodbyes together when the interpreter ends
_BACKOFF_FIRST, _BACKOFF_MOST = 0.1, 5.0  # s, before jitter
_NEVER_RETRIED = frozenset({401, 403, 404, 410})
_LIFETIME_JITTER = 0.1


class ConnectionPool(Generic[T]):
    """A bounded set of open WebSocket connections, lent to one borrower at a time. Thread-safe.

    A connection is reused only if it is clean; see `ConnectionPoolConfig.reuse`. Use the pool as a
    context manager, or call `close`; one that nobody refers to any more closes itself.

    Example:
        >>> with ConnectionPool(base_uri="wss://stream.example.com") as pool:
        ...     with pool.acquire("/ws/btcusdt") as conn:
        ...         conn.send({"subscribe": "trades"})
        ...         for msg in conn:
        ...             process(msg)
    """

    def __init__(
        self,
        config: ConnectionPoolConfig | None = None,
        *,
        base_uri: str | None = None,
        manager_kwargs: Mapping[str, Any] | None = None,
        configure: Callback | None = None,
        reset: Callback | None = None,
        check: Callback | None = None,
        name: str | None = None,
    ) -> None:
        """Make a pool. Nothing is opened yet.

        Args:
            config: Sizes and times; the defaults if None.
            base_uri: What paths given to `acquire` are relative to.
            manager_kwargs: How connections are made; see the table in docs/usage.md.
            configure: Called once with each new connection, before its first borrower: log in, swallow a
                greeting. Within the acquire's deadline. What it sends and receives counts for nobody, so
                it must read every reply it asks for: the first borrower would take it for theirs.
            reset: Called with each connection that is released. If it returns, the connection is kept,
                whatever the rule says of the lease; not if something is unread then. Within
                health_check_timeout.
            check: Called with a connection that has been idle for health_check_interval, in place of a
                ping, for servers that answer none; lent ones are not pinged then. Within
                health_check_timeout.
                Any of these three raising, or taking too long, means: close this connection, never lend it.
            name: For log lines and threads.

        Raises:
            TypeError: An argument or a key of `manager_kwargs` is unknown or of the wrong type.
            ValueError: A value is out of range, or `base_uri` is no WebSocket URI.
            ImportError: `message_type` or a SOCKS proxy needs an extra that is not installed.
        """
        if config is not None and not isinstance(config, ConnectionPoolConfig):
            raise TypeError(f"config must be a ConnectionPoolConfig, not {type(config).__name__}")
        for label, callback in (("configure", configure), ("reset", reset), ("check", check)):
            if callback is not None and not callable(callback):
                raise TypeError(f"{label} must be callable, not {callback!r}")
            if runs_later(callback):
                raise TypeError(
                    f"{label} must be an ordinary function, not an async one or a generator: {callback!r}"
                )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a str or None, not {name!r}")
        self._config = config if config is not None else ConnectionPoolConfig()
        self._options = Options.from_kwargs(manager_kwargs)
        self._base = None if base_uri is None else parse(base_uri)
        self._name = name if name is not None else f"pool-{next(_numbers)}"
        self._codec: Codec[T] = Codec.for_options(
            self._options.serializer, self._options.deserializer, self._options.message_type
        )
        self._configure, self._reset, self._check = configure, reset, check
        self._max_idle_time = self._config.max_idle_time
        # Resolving costs as much as borrowing.
        known = min(max(_KNOWN_URIS, self._config.max_connections), _MOST_KNOWN_URIS)
        self._resolve = functools.lru_cache(known)(functools.partial(_resolve, base=self._base))
        self._ledger, self._terms = self._new_books()
        self._housekeeper: Housekeeper | None = None
        self._books_of: dict[int, tuple[Ledger, Terms[T]]] = {}  # by process, while one of them begins anew
        self._half_closed = False  # an exception struck in `close`
        _pools.add(weakref.ref(self, _pools.discard))

    def _new_books(self) -> tuple[Ledger, Terms[T]]:
        ledger = Ledger(self._config, self._name, self._options.close_timeout)
        _ledgers.add(ledger)
        options, config = self._options, self._config
        ledger.known.minds = config.reuse == "balanced" and self._reset is None
        terms = Terms(
            self._codec,
            ledger.doorbell,
            options.send_timeout,
            options.recv_timeout,
            config.match_ids,
            ledger.known,
        )
        return ledger, terms

    # --- acquire ---------------------------------------------------------------------------------------

    def acquire(self, uri_or_path: str, timeout: float | None = None) -> PooledConnection[T]:
        """Borrow a connection: the most recently used idle one to that URI, or a new one.

        Callers are served in the order they came.

        Args:
            uri_or_path: A ws:// or wss:// URI, or a path relative to `base_uri`.
            timeout: s for waiting and connecting together; `acquire_timeout` if None. 0 never blocks: a
                live idle connection or PoolExhaustedError.

        Returns:
            A lease, usable at once; `with` releases it at the end.

        Raises:
            PoolExhaustedError: No permit within `timeout`, or max_waiting callers are in line already.
            PoolClosedError: The pool is closed or drained, or was while waiting.
            TimeoutError: The server could not be reached in what was left of `timeout`, or `configure` took
                longer.
            HandshakeError: The server refused.
            ConnectionError: The server could not be reached, or `configure` failed.
            ValueError: The URI is not one, or is relative without `base_uri`.
            TypeError: An argument has the wrong type.
            InvalidStateError: Called from a finalizer or signal handler that interrupted the pool itself.
        """
        if self._ledger.pid != getpid():
            self._begin_anew()
        target, key = self._target(uri_or_path)
        limit = self._config.acquire_timeout if timeout is None else seconds(timeout, None)
        lease = self._new_lease(sys._getframe().f_back)
        permit = lease._permit
        permit.limit = math.inf if limit is None else limit
        deadline = permit.asked_at + permit.limit
        try:
            entry = self._admit(permit, target, key, deadline)
            if entry is None:
                entry = self._open(permit, target, deadline)
            self._lend(lease, entry)
        except BaseException as error:
            self._give_up(permit, error)
            self._tell_of_close(error)
            raise
        return lease

    def _target(self, uri_or_path: str) -> tuple[Target, str]:
        if not isinstance(uri_or_path, str):
            raise TypeError(f"uri_or_path must be a str, not {type(uri_or_path).__name__}")
        return self._resolve(uri_or_path)

    def _new_lease(self, frame: FrameType | None) -> PooledConnection[T]:
        """A lease for whoever runs in `frame`; None: this thread, or greenlet, began with our method."""
        stack = stack_of(frame) if self._config.leak_threshold is not None else None
        permit = Permit(None if frame is None else (frame.f_code, frame.f_lasti), stack)
        # The lease first: from here on, whatever strikes this thread, its finalizer gives back what it holds.
        return PooledConnection(self, permit, self._terms)

    def _admit(self, permit: Permit, target: Target, key: str, deadline: float) -> Entry | None:
        """Get a permit, and an idle connection that is fit to be lent; None: a new one is to be opened."""
        ledger, now = self._ledger, permit.asked_at
        entry = ledger.enter(permit, key, deadline > now)
        while not permit.held:
            self._wait_in_line(permit, target, deadline)
            now = monotonic()
            if ledger is self._ledger:
                entry = ledger.take_idle(permit, key)
            else:  # forked meanwhile, and this is the child: its pool is empty
                ledger = self._ledger
                entry = ledger.enter(permit, key, deadline > now)
        while entry is not None:
            why = self._look_at(entry, now)
            if why is None:
                permit.taken_at = now
                return entry
            self._part_with(permit, entry, why)
            if monotonic() >= max(deadline, now + _LOOK_PATIENCE):  # the others may send as much as this one
                break
            entry = ledger.take_idle(permit, key)
        if deadline <= permit.asked_at:
            raise self._exhausted(permit, target)
        return None

    def _look_at(self, entry: Entry, now: float) -> str | None:
        """Why an idle connection that is ours must not be lent; None if it may."""
        # The housekeeper would close it, but comes by only now and then.
        fresh = now - entry.idle_since < self._max_idle_time
        counted = entry.by_counts and self._ledger.known.relies_on_counts(entry)
        if fresh and not counted and now < entry.expires and entry.wire.at_rest():
            return None  # `stale` would say the same, and nearly always does
        quick = self._config.reuse != "always"  # then it does not matter how much is unread
        why = stale(entry, self._config.reuse, now) if entry.wire.look(quick=quick) else "in use"
        if why is None and counted:
            return COUNTS_ALONE
        return why if why is not None or fresh else "idle"

    def _part_with(self, permit: Permit, entry: Entry, why: str) -> None:
        """Take a connection out of service that was found stale; the permit stays."""
        self._ledger.known.note_idle(entry, why)
        permit.gone = self._hang_up(entry.wire)
        self._ledger.swap(permit, why)
        self._ledger.journal.tell("[%s] connection %d not reused: %s", self._name, entry.id, why)

    @staticmethod
    def _hang_up(wire: WebSocket, code: int = 1000, reason: str = "") -> bool:
        """Send a close frame without waiting; True if the connection is closed by that."""
        wire.start_close(code, reason)
        gone = wire.poll_close()
        if gone:
            wire.shutdown()
        return gone

    def _wait_in_line(self, permit: Permit, target: Target, deadline: float) -> None:
        if permit.wake is not None:
            ledger = self._ledger
            self._ensure_housekeeper()  # an interrupt may have lost the permit that is waited for
            permit.wake.acquire(timeout=_for_a_lock(deadline))
            if permit.held or ledger is not self._ledger or ledger.leave_line(permit):
                return
            if self._ledger.closed or self._ledger.draining:
                raise self._ledger.closed_error()
        raise self._exhausted(permit, target)

    def _lend(self, lease: PooledConnection[T], entry: Entry) -> None:
        permit, ledger, uses = lease._permit, self._ledger, entry.uses
        if uses:  # what comes unasked on a new one counts, however early it came
            entry.count_from_here()
        permit.reused = uses > 0
        entry.uses = uses + 1
        lease._attach(entry)
        permit.lent = True
        ledger.lent.add(permit)
        if ledger.closed:
            entry.wire.cut("the pool was closed")
            raise ledger.closed_error()
        if ledger.returned:
            ledger.settle()
        if _log.isEnabledFor(DEBUG):
            how = "reused" if uses else "opened"
            ledger.journal.tell(
                "[%s] connection %d %s for %s", self._name, entry.id, how, entry.target.redacted
            )

    def _give_up(self, permit: Permit, error: BaseException) -> None:
        """An acquire failed: close what it was about to get and return its permit."""
        ledger = self._ledger
        if not isinstance(error, Exception) or is_alarm(error):
            ledger.suspect = True
        permit.claimed = True
        permit.lent = False
        ledger.lent.discard(permit)
        self._shut(permit)
        permit.reason, permit.gone = "connect failed", True
        ledger.give_back(permit)
        if not isinstance(error, (PoolExhaustedError, PoolClosedError)):
            ledger.journal.tell("[%s] acquire failed: %s", self._name, type(error).__name__)

    @staticmethod
    def _shut(permit: Permit) -> None:
        """Close what hangs on a permit, and let nobody use it any more."""
        for entry in (permit.entry, permit.room):
            if entry is not None:
                entry.wire.holder = None
                entry.wire.shutdown()

    def _tell_of_close(self, error: BaseException) -> None:
        """Raise PoolClosedError in place of what `close` has made of connecting."""
        if not isinstance(error, (ConnectionError, TimeoutError)) or is_alarm(error):
            return
        if self._ledger.closed:
            raise self._ledger.closed_error() from error

    # --- opening a connection --------------------------------------------------------------------------

    def _open(self, permit: Permit, target: Target, deadline: float) -> Entry:
        """Open a new connection, after closing another one if the pool is at its cap."""
        entry = self._new_entry(target)
        self._ledger.open_slot(permit, entry)
        if permit.room is not None:
            self._clear(permit.room, deadline)
            self._ledger.room_made(permit)
        self._establish(permit, entry, deadline)
        return entry

    def _establish(self, permit: Permit, entry: Entry, deadline: float) -> None:
        """Connect what has its slot, and prepare it for its first borrower."""
        self._connect(permit, entry, deadline)
        entry.created = permit.taken_at = monotonic()
        if self._configure is not None:
            self._prepare(permit, entry, self._configure, deadline)
        self._ledger.opened(entry)
        self._ensure_housekeeper()
        permit.taken_at = monotonic()

    def _new_entry(self, target: Target) -> Entry:
        return Entry(target, self._new_wire(), self._expiry())

    def _new_wire(self) -> WebSocket:
        wire = WebSocket(
            max_message_size=self._options.max_message_size,
            max_frame_size=self._options.max_frame_size,
            compression_threshold=self._options.compression_threshold,
        )
        wire.unfinished = self._ledger.unfinished
        wire.tell_end = self._ledger.journal.note_end
        return wire

    def _expiry(self) -> float:
        lifetime = self._config.max_lifetime
        if lifetime is None:
            return float("inf")
        return monotonic() + lifetime * (1.0 - random.random() * _LIFETIME_JITTER)

    def _clear(self, room: Entry, deadline: float) -> None:
        """Close a connection whose slot is wanted: the server is to see it go before the new one comes."""
        now, patience = monotonic(), min(_ROOM_PATIENCE, self._options.close_timeout)
        until = now + min(patience, _ROOM_SHARE * max(0.0, deadline - now))
        if room.close_by:  # it has been saying goodbye for a while already
            until = min(until, room.close_by - self._options.close_timeout + patience)
        room.wire.start_close()
        room.wire.finish_close(until)
        self._ledger.journal.tell("[%s] connection %d made room", self._name, room.id)

    def _connect(self, permit: Permit, entry: Entry, deadline: float) -> None:
        """Connect, with as many attempts as the options and the deadline allow."""
        attempts = self._options.connect_attempts
        earlier: ConnectionError | TimeoutError | None = None
        for attempt in range(1, attempts + 1):
            try:
                self._connect_once(permit, entry, deadline)
                return
            except (ConnectionError, TimeoutError) as error:
                if is_alarm(error):
                    raise
                failure = copy.copy(error)  # a copy has no traceback to keep things alive
                self._ledger.open_failed(failure)
                delay = pause_after(error, attempt, random.random())
                last = attempt == attempts or self._ledger.closed or monotonic() + delay >= deadline
                if last or not worth_retrying(error):
                    if earlier is not None and isinstance(error, TimeoutError):
                        raise _after_another(error, earlier) from error
                    raise
                self._pause(permit, delay)
                entry.wire, earlier = self._new_wire(), failure

    def _connect_once(self, permit: Permit, entry: Entry, deadline: float) -> None:
        if self._ledger.closed:  # after entry.wire was set: whoever closes sees either us or it
            raise self._ledger.closed_error()
        options, target = self._options, entry.target
        ours = self._base is None or options.cross_origin_headers or same_origin(self._base, target)
        until = monotonic() + options.connect_timeout
        limit = options.connect_timeout if until < deadline else permit.limit
        try:
            entry.wire.connect(
                target,
                deadline=min(deadline, until),
                header=options.headers() if ours else (),
                cookie=options.cookie if ours else None,
                origin=options.origin,
                subprotocols=options.subprotocols,
                compress=options.compress,
                ssl_context=options.ssl_context,  # for ws, too: a redirect may lead to wss
                proxy=options.proxy,
                unix=options.unix if ours else None,
                socket_options=options.socket_options,
                server_hostname=options.server_hostname if ours else None,
                source_address=options.source_address,
                max_redirects=options.max_redirects,
            )
        except TimeoutError as error:
            if is_alarm(error):
                raise
            error.timeout = limit  # as it was given, not what of it was left
            raise

    def _pause(self, permit: Permit, delay: float) -> None:
        """Wait between two attempts; `close` ends it."""
        wake = threading.Lock()
        wake.acquire()
        permit.wake = wake
        if not self._ledger.closed:
            wake.acquire(timeout=min(threading.TIMEOUT_MAX, max(0.0, delay)))

    def _prepare(self, permit: Permit, entry: Entry, callback: Callback, deadline: float) -> None:
        """Run `configure` on a new connection.

        Raises:
            TimeoutError: It took too long.
            ConnectionError: It failed; the cause is kept.
        """
        try:
            self._call_back(entry, callback, deadline)
        except Exception as error:  # whatever the user's code raises
            if is_alarm(error, users_code=True):
                raise
            is_late = isinstance(error, builtins.TimeoutError) and monotonic() >= deadline
            raise_alone(self._not_configured(entry, error, permit.limit if is_late else None), as_told(error))
        entry.forgive()

    def _not_configured(
        self, entry: Entry, error: Exception, limit: float | None
    ) -> ConnectionError | TimeoutError:
        failure = _configure_failed(entry.target, error, limit)
        self._ledger.open_failed(copy.copy(failure))
        return failure

    def _call_back(self, entry: Entry, callback: Callback, deadline: float) -> None:
        """Call back with a lease of its own, whose every operation ends at the deadline.

        Raises:
            TimeoutError: It took too long.
            ConnectionError: It asked to have the connection closed, or the connection has ended.
            TypeError: It has not run: what it returned is to be awaited.
            Exception: Whatever it raised.
        """
        token = Permit()
        token.claimed = True  # it holds nothing that could be lost
        conn = PooledConnection(self, token, self._terms, deadline)
        conn._attach(entry)
        try:
            _refuse_awaitable(callback(conn))
        finally:
            conn._detach()
            self._note_owed(conn, entry)
        if monotonic() > deadline:
            name = getattr(callback, "__name__", repr(callback))
            raise TimeoutError(f"{name}() took too long", operation="callback", timeout=None)
        if conn.discarded:
            entry.wire.start_close(*conn._close_with)
        if conn.discarded or entry.wire.failure is not None:
            raise ConnectionError("the callback gave the connection up")

    def _ensure_housekeeper(self) -> None:
        keeper = self._housekeeper
        if keeper is not None and keeper.ledger is self._ledger and keeper.is_alive:
            return
        if sys.is_finalizing():
            return  # up to Python 3.11, start() would wait for ever for a thread that never runs
        check = _checker(weakref.ref(self)) if self._check is not None else None
        candidate = Housekeeper(self._ledger, check)
        if self._ledger.appoint(candidate):
            self._housekeeper = candidate
            try:
                candidate.start()
            except (KeyError, RuntimeError) as error:
                raise_alarm_behind(
                    error
                )  # that has struck in start(), which loses its count then: a KeyError
                if isinstance(error, KeyError) or threading.main_thread().is_alive():
                    raise
                # Since Python 3.12 no thread starts once the main one has ended: others do without then.
                self._ledger.journal.tell(
                    "[%s] no thread for the housekeeper while the interpreter ends", self._name
                )

    # --- release ---------------------------------------------------------------------------------------

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

    def take_back(self, lease: PooledConnection[Any], *, failed: bool) -> None:
        """Return a lease: what `release()` and leaving the `with` block do.

        Args:
            lease: One of this pool.
            failed: Whether an exception left the borrower's block.
        """
        permit, ledger = lease._permit, self._ledger
        try:
            if not ledger.claim(permit):
                if ledger.closed:  # then close() has claimed them all
                    lease._detach()
                return
        except BaseException:
            ledger.suspect = True  # it may be claimed: the housekeeper will find it
            raise
        permit.reason = "interrupted"  # unless we get further
        try:
            entry = lease._detach()
            now = monotonic()
            permit.lent_for = now - permit.taken_at or 1e-9
            if entry is not None:
                permit.reason = self._why_unclean(lease, entry, failed, now)
                if permit.reason is not None:
                    permit.gone = self._hang_up(entry.wire, *lease._close_with)
            moving = permit.entry
            if moving is not None and moving is not entry:  # another thread is in `replace`
                moving.wire.shutdown()
                permit.gone = True
        except BaseException:
            ledger.suspect = True
            permit.reason = "interrupted"
            raise
        finally:
            ledger.give_back(permit)
        if permit.reason is not None and entry is not None:
            text = "[%s] connection %d not kept: %s"
            ledger.journal.note(DEBUG, text, self._name, entry.id, permit.reason)
        if permit.warned:
            text = "[%s] the leaked connection came back after %.3g s"
            ledger.journal.note(logging.WARNING, text, self._name, permit.lent_for)

    def _why_unclean(
        self, lease: PooledConnection[Any], entry: Entry, failed: bool, now: float
    ) -> str | None:
        wire, account, known = entry.wire, lease._account, self._ledger.known
        tagged = 0 if account is None else account.tagged
        sent = wire.messages_sent - entry.sent
        if (
            sent == wire.reader.received - entry.received
            and (account is None or account.is_settled)
            and not (failed or lease.discarded or lease.timed_out)
            and self._reset is None
            and now < entry.expires
            and wire.at_rest()
            and (sent == tagged or entry.key not in known.unasked)
        ):
            entry.by_counts = entry.by_counts or sent != tagged
            return None  # `why_unclean` would say the same, and nearly always does
        if not wire.look(quick=self._config.reuse != "always") or wire.is_sending():
            wire.cut("it was released while another thread used it")
            return "in use"
        sent = wire.messages_sent - entry.sent
        received = wire.messages_received - entry.received
        if received > sent and not (failed or lease.discarded or lease._iterated):
            known.note_unasked(entry, "as more messages came than went")
        reason = why_unclean(
            self._config.reuse,
            alive=wire.failure is None,
            half_sent=wire.half_sent,
            discarded=lease.discarded,
            failed=failed,
            timed_out=lease.timed_out,
            half_read=wire.half_read,
            unread=wire.unread,
            sent=sent - tagged,
            received=received if account is None else received - account.answered - account.late,
            tagged=tagged,
            unanswered=account is not None and bool(account.open),
            late=account is not None and account.late > 0,
            again=account is not None and account.again,
            unasked=entry.key in known.unasked,
        )
        entry.by_counts = entry.by_counts or sent != tagged
        self._note_owed(lease, entry)
        if self._reset is not None and reason not in ("discarded", "closed", "half sent"):
            reason = self._why_not_reset(entry, self._reset)
        if reason is None and now >= entry.expires:
            return "lifetime"
        return reason

    def _note_owed(self, lease: PooledConnection[Any], entry: Entry) -> None:
        """Let later leases look at what comes, if an id of this one is still to come back."""
        account, ids = lease._account, entry.ids
        if account is not None and account.open and ids is not None:
            ids.owes = self._config.reuse != "always"  # then what is unread is the next borrower's

    def _why_not_reset(self, entry: Entry, reset: Callback) -> str | None:
        if self._ledger.interrupted() or is_housekeeping():
            return "dropped"  # this is a finalizer, above the pool's own code: no place for a user's callback
        entry.count_from_here()
        try:
            self._call_back(entry, reset, monotonic() + self._config.health_check_timeout)
        except Exception as error:  # the user's code; it is logged, and the connection closed
            if is_alarm(error, users_code=True):
                raise
            text = "[%s] reset() failed; connection %d is closed: %s"
            args = (self._name, entry.id, told(error))
            self._ledger.journal.note(logging.WARNING, text, *args, failure=error)
            return "reset failed"
        finally:
            entry.forgive()
        return None

    # --- a stale connection costs the borrower nothing -------------------------------------------------

    def fit_for_first_use(self, lease: PooledConnection[Any]) -> bool:
        """Whether one that was idle is still as clean as it was when it was lent, before its first use."""
        entry = lease._entry
        return entry is not None and self._look_at(entry, float("-inf")) in (None, "in use")

    def replace(self, lease: PooledConnection[Any], stale: Entry, deadline: float | None) -> None:
        """Give an unused lease another connection, for one that ended before its first use.

        Raises:
            ConnectionClosedError: Another thread uses the lease already, or it is the parent process's.
            InvalidStateError: Another thread has released the lease.
            PoolClosedError: The pool is closed.
            TimeoutError: No other connection in time.
            ConnectionError: No other connection to be had.
        """
        self._begin_anew()
        permit = lease._permit
        if permit.entry is not stale or permit not in self._ledger.lent:
            raise ConnectionClosedError(
                f"the connection to {stale.target.redacted} has ended, and the lease was not moved to"
                " another: another thread uses it, or it was lent before a fork",
                code=1006,
            )
        now, limit = monotonic(), self._config.acquire_timeout
        permit.limit = limit if deadline is None else min(limit, deadline - now)
        until = now + permit.limit
        taken_at = permit.taken_at
        stale.wire.holder = None
        self._part_with(permit, stale, self._look_at(stale, float("-inf")) or "closed")
        entry = self._moved_to(lease, stale, until)
        if entry.uses:
            entry.count_from_here()
        permit.reused, permit.taken_at = entry.uses > 0, taken_at
        entry.uses += 1
        lease._attach(entry)
        if self._ledger.closed:
            entry.wire.cut("the pool was closed")
        if is_claimed(permit) and lease._detach() is entry:  # released by another thread meanwhile
            entry.wire.shutdown()
        self._ledger.journal.tell("[%s] moved from connection %d to %d", self._name, stale.id, entry.id)

    def _moved_to(self, lease: PooledConnection[Any], stale: Entry, until: float) -> Entry:
        permit = lease._permit
        try:
            return self._next_fit(permit, stale.key) or self._open(permit, stale.target, until)
        except BaseException as error:
            lease._detach()  # from what has ended: it stays without a connection until it is released
            self._abandon(permit)
            if permit.claimed and isinstance(error, ConnectionError) and not is_alarm(error):
                lease._current()  # whoever released it has cut the connection that was being opened
            raise

    def _abandon(self, permit: Permit) -> None:
        """Close what a permit that stays out was about to get; its slot is free again."""
        self._shut(permit)
        permit.room, permit.gone = None, True
        self._ledger.swap(permit, "connect failed")

    def _next_fit(self, permit: Permit, key: str) -> Entry | None:
        while (entry := self._ledger.take_idle(permit, key)) is not None:
            why = self._look_at(entry, monotonic())
            if why is None:
                return entry
            self._part_with(permit, entry, why)
        return None

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
                it has left and before the reply, it is sent again on another one, and on a third if the
                second had been idle, too, and so on: what cut one off may have cut off all.

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
        for tries in itertools.count(1):
            with self.acquire(uri_or_path, limit if tries == 1 else _left(deadline)) as conn:
                try:
                    return conn._request(message, deadline, limit)
                except ConnectionClosedError as error:
                    if is_alarm(error):
                        raise
                    was_idle = conn._told().created < conn._permit.asked_at
                    if not idempotent or tries > (self._config.max_connections if was_idle else 1):
                        raise
                except (DecodeError, TypeError, ValueError) as error:
                    if not is_alarm(error, users_code=True):
                        conn.release()  # all was read, or nothing sent: the connection is not to blame
                    raise
        raise AssertionError("one of the tries returns or raises")

    def prewarm(self, uri_or_path: str, count: int) -> int:
        """Open connections ahead of their borrowers, until `count` are idle for that URI.

        Never opens past `max_connections` and closes no other connection to make room. One after the other,
        all within one `acquire_timeout`.

        Args:
            uri_or_path: As for `acquire`.
            count: How many are to be idle.

        Returns:
            How many were opened.

        Raises:
            TypeError: `count` is not an int.
            ValueError: `count` is negative.
            ConnectionError: The server could not be reached; what was opened before stays.
            HandshakeError: The server refused; likewise.
            TimeoutError: The connections together took longer than `acquire_timeout`; likewise.
            PoolClosedError: The pool is closed or drained, or was meanwhile.
        """
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"count must be an int, not {short_repr(count)}")
        if count < 0:
            raise ValueError(f"count must be 0 or more, not {short_repr(count)}")
        self._begin_anew()
        caller = sys._getframe().f_back
        target, key = self._target(uri_or_path)
        deadline = monotonic() + self._config.acquire_timeout
        opened = 0
        while self._ledger.idle_count(key) < count and self._warm_one(target, deadline, caller):
            opened += 1
        return opened

    def _warm_one(self, target: Target, deadline: float, frame: FrameType | None) -> bool:
        """Open one more, if there is a free permit and a free slot."""
        lease = self._new_lease(frame)
        permit = lease._permit
        permit.limit = self._config.acquire_timeout
        try:
            entry = self._new_entry(target)
            if not self._ledger.enter_for_new(permit, entry):
                permit.claimed = True
                return False
            self._establish(permit, entry, deadline)
        except BaseException as error:
            self._give_up(permit, error)
            self._tell_of_close(error)
            raise
        permit.claimed = True
        self._ledger.give_back(permit)
        return True

    # --- ending ----------------------------------------------------------------------------------------

    def drain(self, timeout: float | None = None) -> bool:
        """Give no more leases and wait for those that are out; callers in line get PoolClosedError.

        An acquire that is connecting already counts as out: it gets its lease, which is waited for.

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
        self._begin_anew()
        waiter = self._ledger.drain()
        if waiter is None:
            return True
        waiter.acquire(timeout=-1 if limit is None else limit)
        return not (self._ledger.cut or self._ledger.permits.held)

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
        self._begin_anew()
        try:
            self._close(self._options.close_timeout if limit is None else limit)
        except BaseException:
            self._half_closed = True
            raise

    def _close(self, limit: float) -> None:
        ledger = self._ledger
        taken = ledger.close(again=self._half_closed)
        if taken is None:
            return
        self._half_closed = False
        idle, out = taken
        for entry in out:
            entry.wire.dismiss("the pool was closed")
        for permit in ledger.lent.copy():  # the leases hold nothing any more, and may never be released
            if ledger.claim(permit):
                permit.reason, permit.gone = "pool closed", True
                permit.lent_for = max(1e-9, monotonic() - permit.taken_at)
                ledger.give_back(permit)
        for entry in idle:
            entry.close_by = monotonic() + limit  # of an interrupted close() the housekeeper does the rest
        close_all(idle, limit)
        ledger.forget_closed(idle)
        ledger.journal.note(DEBUG, "[%s] closed", self._name)
        ledger.doorbell.put(STOP)
        keeper, self._housekeeper = self._housekeeper, None
        if keeper is not None and keeper.ledger is ledger and not keeper.is_this_thread:
            keeper.join(_ROOM_PATIENCE)

    def _leave(self, deadline: float) -> None:
        """When the interpreter ends: say goodbye on each connection that nobody is using just now.

        Nobody is woken and nothing is refused: a daemon thread would have time to print the error.
        """
        self._begin_anew()
        ledger = self._ledger
        ledger.journal.muted = True
        if not ledger.entries:
            return
        lent = [permit.entry for permit in ledger.out() if permit.entry is not None]
        entries = [entry for entry in lent if entry.wire.take_leave()]
        close_all(
            [*ledger.say_goodbye(), *ledger.idle_too_long(math.inf), *entries],
            max(0.0, deadline - monotonic()),
        )

    def __enter__(self) -> ConnectionPool[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # No lock and no I/O: the housekeeper closes what is left. Without one, nothing is open.
        ledger = getattr(self, "_ledger", None)
        # It is there yet when close() was interrupted, too: then it has not been told to stop.
        if ledger is not None and not (ledger.closed and self._housekeeper is None):
            ledger.doorbell.put(ABANDONED)

    def __reduce__(self) -> NoReturn:
        # A copy would share the connections, and close them with its own end.
        raise TypeError(
            f"pool {self._name!r} can't be pickled or copied: its connections are this process's. Make a pool"
            " in each process, in a module imported there; one made before a fork works after it, too"
        )

    # --- what it is ------------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """The pool's figures at this moment.

        Raises:
            InvalidStateError: Called from a finalizer or signal handler that interrupted the pool itself.
        """
        self._begin_anew()
        return self._ledger.stats()

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._ledger.closed

    @property
    def config(self) -> ConnectionPoolConfig:
        """What the pool was made with."""
        return self._config

    @property
    def name(self) -> str:
        """What log lines and threads call it."""
        return self._name

    def __repr__(self) -> str:
        stats = self.stats()
        return (
            f"ConnectionPool(name={self._name!r}, max_connections={self._config.max_connections}, "
            f"active={stats.active_connections}, idle={stats.idle_connections}, closed={self.is_closed})"
        )

    # --- errors ----------------------------------------------------------------------------------------

    def _exhausted(self, permit: Permit, target: Target) -> PoolExhaustedError:
        figures = self._ledger.exhaustion(permit)
        return PoolExhaustedError(
            exhaustion_text(self._name, target.redacted, why_exhausted(permit, self._config), figures),
            max_connections=self._config.max_connections,
            timeout=permit.limit,
            waiting=figures.waiting,
            idle=figures.idle,
            last_connect_error=figures.last_connect_error,
        )

    # --- fork ------------------------------------------------------------------------------------------

    def _begin_anew(self) -> None:
        """In a forked child, begin with empty books: the connections and the thread are the parent's.

        Called by the hook below, and by whatever uses the books, for the hook may not have run (uWSGI's fork
        runs none), may have been interrupted, or be preceded by others'. So several threads may be here, and
        a signal handler that interrupts one: all assign the same, what is compared last.
        """
        pid, old = getpid(), self._ledger
        if old.pid == pid:
            return
        old.disown()
        new = self._new_books()
        new[0].closed, new[0].draining = old.closed, old.draining
        new[0].known.learn_from(old.known)
        ledger, self._terms = self._books_of.setdefault(pid, new)
        self._ledger = ledger
        for other in [other for other in list(self._books_of) if other != pid]:
            self._books_of.pop(other, None)


def is_claimed(permit: Permit) -> bool:
    """Whether another thread is returning this permit by now."""
    return permit.claimed


def _refuse_awaitable(result: object) -> None:
    """A callback may be async without looking so: a lambda or a partial that calls an async function."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that nobody awaited it
        raise Misuse(
            "the callback returned an awaitable, which nobody awaits; give an ordinary function that has"
            " done its work when it returns"
        )


def _configure_failed(
    target: Target, error: Exception, limit: float | None
) -> ConnectionError | TimeoutError:
    """What to tell of a `configure` that raised, or had not ended within the acquire's `limit`."""
    where = f"on a new connection to {target.redacted}"
    if limit is None:
        return ConnectionError(
            f"configure() failed {where}: {told(error)}; the cause of this error has its traceback"
        )
    late = f"configure() had not ended {where} when the {limit:g} s of the acquire were over; allow more time"
    return TimeoutError(late, operation="configure", timeout=limit)


def _after_another(error: TimeoutError, earlier: BaseException) -> TimeoutError:
    """The error of an attempt that ran out of time, which may be no more than what was left for it."""
    text = f"{error}; the attempt before failed: {earlier}"
    return TimeoutError(text, operation=error.operation, timeout=error.timeout)


def worth_retrying(error: BaseException) -> bool:
    """Whether a second attempt to connect may go better."""
    if isinstance(error, HandshakeError) and error.status_code in _NEVER_RETRIED:
        return False
    if isinstance(error, ConnectionError) and error._is_final:
        return False
    return not isinstance(error.__cause__, ssl.SSLCertVerificationError)


def backoff(attempt: int, jitter: float) -> float:
    """How long to wait (s) after the so-manieth failed attempt: exponential, with full jitter in [0, 1)."""
    doublings = min(attempt - 1, 10)  # more would be more than the most, and one day too much for a float
    return float(min(_BACKOFF_MOST, _BACKOFF_FIRST * 2**doublings) * jitter)


def pause_after(error: BaseException, attempt: int, jitter: float) -> float:
    """How long to wait (s) after the so-manieth attempt: `backoff`, or for as long as the server has told."""
    told = error.retry_after if isinstance(error, HandshakeError) else None
    return max(backoff(attempt, jitter), told or 0.0)


def why_exhausted(permit: Permit, config: ConnectionPoolConfig) -> str:
    """Which limit an acquire ran into that got no connection."""
    if permit.held:
        return "none that is idle, and timeout=0 opens no new one"
    if permit.wake is None and permit.limit > 0:
        return f"no place in line, max_waiting={config.max_waiting} callers wait already"
    all_out = f"all of max_connections={config.max_connections} are out or being opened"
    return f"none within {permit.limit:g} s, {all_out}"


def exhaustion_text(name: str, where: str, why: str, figures: Exhaustion) -> str:
    """What to tell a caller for whom there was no connection."""
    text = (
        f"pool {name!r} has no connection to {where} to lend: {why}"
        f" ({figures.idle} idle, {figures.waiting} waiting)"
    )
    if figures.own:
        file, line, function = figures.own[0].where()
        text += (
            f"; {len(figures.own)} of them are held by this very thread (one acquired in {function},"
            f" {file}:{line}), which can't release them while it waits"
        )
    if figures.last_connect_error is not None:
        text += f"; the last attempt to connect failed: {figures.last_connect_error}"
    return text + ". Release sooner, raise max_connections, or wait longer (acquire_timeout)"


def _resolve(uri_or_path: str, base: Target | None) -> tuple[Target, str]:
    target = resolve(uri_or_path, base)
    return target, key_of(target)


def _for_a_lock(deadline: float) -> float:
    """What is left until the deadline, as `Lock.acquire` takes it (s)."""
    return min(threading.TIMEOUT_MAX, max(0.0, deadline - monotonic()))


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - monotonic())


def _checker(pool: weakref.ref[ConnectionPool[Any]]) -> Callable[[Entry], bool]:
    """What the housekeeper calls in place of a ping; holds no strong reference to the pool."""

    def check(entry: Entry) -> bool:
        owner = pool()
        if owner is None or owner._check is None:
            return False
        entry.count_from_here()
        try:
            owner._call_back(entry, owner._check, monotonic() + owner._config.health_check_timeout)
        except Exception as error:  # noqa: BLE001  # the user's code; it is logged, and the connection closed
            text = "[%s] check() failed; connection %d is closed: %s"
            _log.warning(text, owner._name, entry.id, told(error), exc_info=exc_info_of(error))
            return False
        finally:
            entry.forgive()
        return True

    return check


def _all_pools() -> list[ConnectionPool[Any]]:
    # No WeakSet: others may make pools meanwhile. CPython copies a plain set in one go.
    return [pool for ref in list(_pools) if (pool := ref()) is not None]


def _after_fork_in_child() -> None:
    for ledger in list(_ledgers):  # also those of pools that were dropped and still say goodbye
        if ledger.pid != getpid():
            ledger.disown()
    for pool in _all_pools():
        pool._begin_anew()


def _close_at_exit() -> None:
    deadline = monotonic() + _EXIT_PATIENCE
    for pool in _all_pools():
        pool._leave(deadline)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_close_at_exit)
