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
    entry = borrower.entry
    which = "?" if entry is None else f"{entry.id} to {entry.target.redacted}"
    told = f"it has been out for {out_for:.3g} s (leak_threshold={threshold:g} s)"
    state.log.note(
        logging.WARNING,
        "[%s] connection %s leaked: %s, acquired by thread %s at\n%s",
        state.name,
        which,
        told,
        borrower.thread_name,
        stack,
    )


def tell_end(state: State, borrower: Borrower, entry: Entry, reason: str) -> None:
    """Say that a connection came back of whose leak was warned; `reason`: what had become of its release."""
    text = "[%s] the leaked connection %d was taken back after %.3g s: its release was %s"
    state.log.note(logging.WARNING, text, state.name, entry.id, monotonic() - borrower.taken_at, reason)


def warn_of_drop(state: State, workers: Workers, borrower: Borrower, entry: Entry | None) -> None:
    """Warn, in the log and by a ResourceWarning, of a lease that nothing refers to any more."""
    file, line, function = borrower.where()
    which = "" if entry is None else f"connection {entry.id} to {entry.target.redacted}, "
    text = (
        f"a lease of pool {state.name!r} was dropped without release: {which}acquired by thread"
        f" {borrower.thread_name} in {function} ({file}:{line}); the connection is closed. Use"
        " `with pool.acquire(…) as conn:`"
    )
    state.log.note(logging.WARNING, "[%s] %s", state.name, text)
    # A warnings hook is the user's code: not in the housekeeper.
    if workers.log.backlog < _MOST_WARNINGS:  # else the hook, or a log handler, hangs
        workers.log.submit(partial(_warn, text, file, max(1, line)))


def _warn(text: str, file: str, line: int) -> None:
    """In a worker."""
    with suppress(ResourceWarning):  # with `-W error`; no caller is here to get it, and the log has its text
        warnings.warn_explicit(text, ResourceWarning, file, line)


__all__ = ["report", "tell_end", "warn_of_drop"]
