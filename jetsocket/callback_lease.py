"""The user's callbacks: `configure`, `reset` and `check` get a lease of their own, with one deadline."""

from __future__ import annotations

import builtins
import copy
import inspect
import logging
from collections.abc import Callable
from typing import Any

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.connection import Callback, PooledConnection
from jetsocket.correlated import CorrelatedConnection
from jetsocket.entry import Entry
from jetsocket.events import Events
from jetsocket.exceptions import ConnectionError, JetSocketError, TimeoutError
from jetsocket.interrupts import is_alarm
from jetsocket.lease import Lease, Lender, Terms, note_owed
from jetsocket.state import State
from jetsocket.user_errors import Misuse, as_told, told
from jetsocket.wire.redaction import raise_alone


class _NoState:
    events: Events | None = None


class NoLender:
    """What stands behind a callback's lease: releasing it does nothing, and it never moves.

    Attributes:
        state: No listener is told what callbacks do.
    """

    state = _NoState()

    def take_back(self, lease: Lease[Any], failed: bool) -> None:
        """The callback ends with its return."""

    def move(self, lease: Lease[Any], stale: Entry, deadline: float | None) -> None:
        """Never called: a lease with a deadline over all its operations does not move."""
        raise AssertionError("a callback's lease does not move")

    def is_fit_for_first_use(self, lease: Lease[Any]) -> bool:
        """Likewise."""
        return True


_NO_LENDER: Lender = NoLender()


def call_back(terms: Terms[Any], entry: Entry, callback: Callback, deadline: float) -> None:
    """Call back with a lease of its own, whose every operation ends at the deadline.

    Raises:
        TimeoutError: It took too long.
        ConnectionError: It asked to have the connection closed, or the connection has ended.
        TypeError: It has not run: what it returned is to be awaited.
        Exception: Whatever it raised.
    """
    kind = PooledConnection if terms.matching is None else CorrelatedConnection
    conn = kind(_NO_LENDER, Borrower(), terms, deadline)
    conn._borrower.lease = None  # it holds nothing that would have to come back
    conn._attach(entry)
    try:
        _refuse_awaitable(callback(conn))
    finally:
        conn._detach()
        note_owed(conn, entry)
        if entry.dispatcher is not None:
            entry.dispatcher.forget_lease()
    if monotonic() > deadline:
        name = getattr(callback, "__name__", repr(callback))
        raise TimeoutError(f"{name}() took too long", operation="callback", timeout=None)
    if conn._discarded:
        entry.wire.start_close(*conn._close_with)
    if conn._discarded or entry.wire.failure is not None:
        raise ConnectionError("the callback gave the connection up")


def configure(
    terms: Terms[Any], entry: Entry, callback: Callback, limit: float, who: str = "configure()"
) -> None:
    """Run `configure` on a new connection, within `limit` (s); `who` is what an error calls it.

    Raises:
        TimeoutError: It took too long.
        ConnectionError: It failed; the cause is kept.
    """
    deadline = monotonic() + limit
    try:
        call_back(terms, entry, callback, deadline)
    except Exception as error:  # whatever the user's code raises
        if is_alarm(error, users_code=True):
            raise
        is_late = isinstance(error, builtins.TimeoutError) and monotonic() >= deadline
        raise_alone(_not_configured(who, entry, error, limit if is_late else None), as_told(error))
    entry.forgive()


def checker(callback: Callback | None, state: State, terms: Terms[Any]) -> Callable[[Entry], bool] | None:
    """What a worker calls in place of a ping: whether the user's `check` finds the connection healthy."""
    if callback is None:
        return None

    def is_healthy(entry: Entry) -> bool:
        entry.count_from_here()
        try:
            call_back(terms, entry, callback, monotonic() + state.config.health_check_timeout)
        except Exception as error:  # noqa: BLE001  # the user's code; it is logged, and the connection closed
            text = "[%s] check() failed; connection %d is closed: %s"
            if not state.closed:  # then it was cut
                state.log.note(logging.WARNING, text, state.name, entry.id, told(error), failure=error)
            return False
        finally:
            entry.forgive()
        return True

    return is_healthy


def _not_configured(
    who: str, entry: Entry, error: Exception, limit: float | None
) -> ConnectionError | TimeoutError:
    where = f"on a new connection to {entry.target.redacted}"
    if limit is not None:
        text = f"{who} had not ended {where} within connect_timeout={limit:g} s; allow more time"
        return TimeoutError(text, operation="configure", timeout=limit)
    return ConnectionError(f"{who} failed {where}: {told(error)}; the cause of this error has its traceback")


def _refuse_awaitable(result: object) -> None:
    """A callback may be async without looking so: a lambda or a partial that calls an async function."""
    if inspect.isawaitable(result):
        if inspect.iscoroutine(result):
            result.close()  # or Python warns that it was never awaited
        raise Misuse(
            "the callback returned an awaitable, which is not awaited here; give an ordinary function that"
            " has done its work when it returns"
        )


def untraced(error: JetSocketError) -> JetSocketError:
    """A copy to be kept or raised elsewhere: without the traceback, whose frames would keep things alive."""
    made = copy.copy(error)
    made.__cause__ = error.__cause__
    made.__suppress_context__ = True
    return made


__all__ = ["call_back", "checker", "configure", "untraced"]
