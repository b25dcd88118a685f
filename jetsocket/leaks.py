"""Leaks: leases that are out for longer than `leak_threshold`, and those that were dropped without release.

What a warning says of each. Who finds them, and takes back what they held, is the housekeeper.
"""

from __future__ import annotations

import logging
import warnings
from functools import partial

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.entry import Entry
from jetsocket.interrupts import suppress
from jetsocket.state import State
from jetsocket.workers import Workers

_LEAKED = "[%s] connection %d to %s leaked: %s, acquired by thread %s at\n%s"
_LEAKED_BARE = "[%s] a lease that has no connection any more leaked: %s, acquired by thread %s at\n%s"
_DROPPED = (
    "[%s] a lease of pool %r was dropped without release: connection %d to %s, acquired by thread %s in %s"
    " (%s:%d); the connection is closed. Use `with pool.acquire(…) as conn:`"
)
_DROPPED_BARE = (
    "[%s] a lease of pool %r was dropped without release: acquired by thread %s in %s (%s:%d); the connection"
    " is closed. Use `with pool.acquire(…) as conn:`"
)
_MOST_WARNINGS = 1000  # that wait for the user's warnings hook


def report(state: State) -> None:
    """Warn of leases that have been out for leak_threshold, once each."""
    threshold = state.config.leak_threshold
    if threshold is None:
        return
    now = monotonic()
    for borrower in list(state.lent):
        if not borrower.warned and now - borrower.taken_at >= threshold:
            borrower.warned = True
            _warn_of_leak(state, borrower, now - borrower.taken_at, threshold)


def _warn_of_leak(state: State, borrower: Borrower, out_for: float, threshold: float) -> None:
    stack = "" if borrower.stack is None else "".join(borrower.stack.format())
    told = f"it has been out for {out_for:.3g} s (leak_threshold={threshold:g} s)"
    text, which = _about(borrower.entry, _LEAKED, _LEAKED_BARE)
    state.log.note(logging.WARNING, text, state.name, *which, told, borrower.thread_name, stack)


def _about(entry: Entry | None, text: str, bare: str) -> tuple[str, tuple[object, ...]]:
    """A line, and what it says of the connection: with these, a record of it has its fields."""
    return (bare, ()) if entry is None else (text, (entry.id, entry.target.redacted))


def tell_end(state: State, borrower: Borrower, entry: Entry, reason: str) -> None:
    """Say that a connection came back of whose leak was warned; `reason`: what had become of its release."""
    text = "[%s] the leaked connection %d was taken back after %.3g s: its release was %s"
    state.log.note(logging.WARNING, text, state.name, entry.id, monotonic() - borrower.taken_at, reason)


def warn_of_drop(state: State, workers: Workers, borrower: Borrower, entry: Entry | None) -> None:
    """Warn, in the log and by a ResourceWarning, of a lease that nothing refers to any more."""
    file, line, function = borrower.where()
    text, which = _about(entry, _DROPPED, _DROPPED_BARE)
    told = state.name, *which, borrower.thread_name, function, file, line
    state.log.note(logging.WARNING, text, state.name, *told)
    text = text.partition("] ")[2] % told
    # A warnings hook is the user's code: not in the housekeeper.
    if workers.log.backlog < _MOST_WARNINGS:  # else the hook, or a log handler, hangs
        workers.log.submit(partial(_warn, text, file, max(1, line)))


def _warn(text: str, file: str, line: int) -> None:
    """In a worker."""
    with suppress(ResourceWarning):  # with `-W error`; no caller is here to get it, and the log has its text
        warnings.warn_explicit(text, ResourceWarning, file, line)


__all__ = ["report", "tell_end", "warn_of_drop"]
