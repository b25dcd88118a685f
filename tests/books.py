"""What is wrong in the state of a pool: nothing, ever, if the library is right."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from jetsocket import ConnectionPool
from jetsocket.state import State


def state_of(pool: ConnectionPool[Any]) -> State:
    """The state of a pool, for tests that can't see from outside what they are about."""
    return pool._lending.state


def faults(pool: ConnectionPool[Any]) -> list[str]:
    """What is wrong in the state of a pool; what is half-way in a step counts for nothing."""
    state = state_of(pool)
    state.settle()
    with state.lock:
        return list(faults_in(state))


def faults_in(state: State) -> Iterator[str]:  # noqa: PLR0912  # one fact a line
    """The same of a state whose lock is held, or that no thread uses."""
    cap, entries, dials = state.config.max_connections, state.entries, state.dials
    used = len(entries) + sum(dial.has_slot for dial in dials)
    free = state.slots._value  # type: ignore[attr-defined]  # typeshed hides it
    if used - state.owed + free != cap:
        yield f"{used} slots used, {state.owed} owed, {free} free, the cap is {cap}"
    if used > cap + state.owed:
        yield f"{used} connections, the cap is {cap}"
    for entry in entries:
        if (entry in state.idle) != (entry.place == "idle"):
            yield f"{entry} and the idle queues disagree"
        if (entry in state.closing) != (entry.place == "closing"):
            yield f"{entry} and the list of those that are closing disagree"
        if entry.place == "lent" and (entry.borrower is None or entry.borrower.entry is not entry):
            yield f"{entry} has no borrower"
        if entry.place == "opening" and not any(dial.entry is entry for dial in dials):
            yield f"{entry} has no dial"
        if entry.place == "gone":
            yield f"{entry} has a slot still"
        if entry.wanted_by is not None and entry.wanted_by.room is not entry:
            yield f"{entry} makes room for a dial that does not know"
        if entry.wanted_by is not None and entry.wanted_by not in dials:
            yield f"{entry} makes room for a dial that is over"
        if entry.place == "idle" and state.line.count(entry.key):
            yield f"{entry} is idle while callers wait for it"
        if entry.place == "shared" and (
            not entry.sharers or any(sharer.entry is not entry for sharer in entry.sharers)
        ):
            yield f"{entry} is shared by those that don't know"
        if entry.requests != sum(not sharer.is_subscriber for sharer in entry.sharers):
            yield f"{entry} counts its requests wrong"
    for dial in dials:
        if dial.is_over:
            yield f"a dial to {dial.target.redacted} is over, and is in the list of those that are not"
    for borrower in state.lent:
        held = borrower.entry
        if held is None or not (held.borrower is borrower or borrower in held.sharers):
            yield "a borrower has nothing"
    for borrower in state.line:
        if borrower.entry is not None or borrower.error is not None:
            yield "a caller waits though it has been told"
    open_now = Counter(
        entry.key for entry in entries if entry.place in ("idle", "lent", "shared", "checking")
    )
    opening = Counter(dial.key for dial in dials)
    for key in {*open_now, *opening, *state.idle.keys}:
        if (state.idle.open(key), state.idle.opening(key)) != (open_now[key], opening[key]):
            yield "the queues and the entries disagree"
    if sum(state.idle.count(key) for key in state.idle.keys) != len(state.idle):
        yield "the queues and the order by age disagree"


__all__ = ["faults", "faults_in", "state_of"]
