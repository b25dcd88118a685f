"""The calls of a pool's limiters, by its openers and workers; no lock is held in any of them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jetsocket.clock import monotonic
from jetsocket.dial_order import Dial
from jetsocket.exceptions import ConnectionError
from jetsocket.interrupts import is_alarm
from jetsocket.process_id import getpid
from jetsocket.quotas import GiveUp, Grant, Quota
from jetsocket.state import State
from jetsocket.threads import Forked
from jetsocket.user_errors import as_it_is, told
from jetsocket.wire.redaction import raise_alone
from jetsocket.workers import Worker, run

_PATIENCE = 1.0  # s that a limiter may take beyond its timeout, for it may do I/O
_PAUSE = 0.05  # s between two questions to a limiter that has none, and says so too early


def quota_for(state: State, dial: Dial) -> Quota | None:
    """What the pool has of the limiter that counts for a dial; None: there is none.

    Raises:
        ConnectionError: The user's callable that says which has failed.
    """
    if state.quotas is None:
        return None
    try:
        return state.quotas.of(dial.target)
    except Exception as error:  # the user's code
        if is_alarm(error) or isinstance(error, ConnectionError):
            raise
        text = f"the callable that was given as limiter failed: {told(error)}"
        raise_alone(_failure(dial, text), as_it_is(error))


def get_grant(
    state: State, quota: Quota, dial: Dial, timeout: float, close_room: Callable[[Dial], object]
) -> bool:
    """Get what a dial needs of its limiter before it may begin.

    Args:
        state: The pool's.
        quota: What the pool has of that limiter.
        dial: The order.
        timeout: s that each question may wait, as long as the line wants it.
        close_room: Closes the connection that makes room for a dial.

    Returns:
        Whether the dial has it; False: the dial is over.

    Raises:
        ConnectionError: The limiter failed.
        Forked: This is a child, made by the limiter's own code.
    """
    while True:
        if not state.asks_limiter(dial, quota, monotonic() + _PATIENCE):
            return False
        if dial.room is not None and dial.room.grant is not None and dial.room.grant.quota is quota:
            close_room(dial)  # its slot of the limiter's, too, is this dial's then
        if dial.grant is not None:
            return True
        if (grant := _ask(state, quota, dial, 0.0)) is not None:
            return _take(state, dial, grant)
        follows = state.none_for(dial, quota)
        if follows == "over":
            return False
        if follows == "wait":
            return _wait(state, quota, dial, timeout)
        close_room(dial)


def _wait(state: State, quota: Quota, dial: Dial, timeout: float) -> bool:
    """Wait for a limiter that has none now, as long as a caller wants it."""
    while dial.is_wanted and state.asks_limiter(dial, quota, monotonic() + timeout + _PATIENCE):
        began = monotonic()
        if (grant := _ask(state, quota, dial, timeout)) is not None:
            return _take(state, dial, grant)
        dial.wait(began + _PAUSE - monotonic())
    state.drop_dial(dial)
    return False


def _take(state: State, dial: Dial, grant: Grant) -> bool:
    try:
        return state.got_grant(dial, grant)
    except BaseException:
        state.give_back(grant)
        raise


class Wanted:
    """Whether a dial is to wait for its limiter still; takes no lock, and never raises.

    Attributes:
        owner: What the limiter's `bind` got: which of its pools asks.
    """

    __slots__ = ("_dial", "owner")

    def __init__(self, dial: Dial, owner: Quota) -> None:
        """Ask for that dial."""
        self._dial = dial
        self.owner = owner

    def __call__(self) -> bool:
        """Say so."""
        return self._dial.is_wanted and not self._dial.is_over


def _ask(state: State, quota: Quota, dial: Dial, timeout: float) -> Grant | None:
    try:
        grant = quota.acquire(timeout, Wanted(dial, quota))
    except Exception as error:  # the user's code
        if state.pid != getpid():
            raise Forked from None
        if is_alarm(error) or isinstance(error, ConnectionError):
            raise
        text = f"the limiter {quota.name!r} failed: {told(error)}"
        raise_alone(_failure(dial, text), as_it_is(error))
    if state.pid != getpid():
        raise Forked
    return grant


def _failure(dial: Dial, text: str) -> ConnectionError:
    return ConnectionError(f"cannot connect to {dial.target.redacted}: {text}")


def release_late(state: State) -> None:
    """Give back what came too late for the housekeeper, which has ended with the pool; in an opener."""
    while (grant := _next(state)) is not None:
        run(partial(grant.quota.release, grant))


def release(state: State, worker: Worker) -> None:
    """Have a worker give limiters back what no connection has any more; for the housekeeper.

    Raises:
        RuntimeError: No thread can be started: in the next round.
    """
    while (grant := _next(state)) is not None:
        try:
            worker.submit(partial(grant.quota.release, grant))
        except RuntimeError:
            state.spent.appendleft(grant)
            raise


def _next(state: State) -> Grant | None:
    try:
        return state.spent.popleft()
    except IndexError as error:
        if is_alarm(error):
            raise
        return None  # another thread was faster


def end(state: State, worker: Worker) -> None:
    """The pool is closed: let go of its limiters, when they have got everything back; for the housekeeper."""
    if state.quotas is not None:
        for quota in state.quotas.all:
            worker.submit(quota.end)


def hear(state: State) -> None:
    """Do what limiters have asked for; for the housekeeper."""
    for quota in [] if state.quotas is None else state.quotas.all:
        while quota.notes:
            note = quota.notes.popleft()
            if isinstance(note, GiveUp):
                state.give_up(quota, note.slots, returned=note.returned)
            elif (entry := state.lose(quota, note.token)) is not None:
                entry.wire.cut(f"its slot was lost: {note.reason}")
                entry.wire.shutdown()
                state.slot_is_free(entry)


def leave(state: State, deadline: float) -> None:
    """The process ends: give limiters back what they gave, and let go of them, until then (monotonic, s).

    What a daemon thread is using just now is open until the process has ended, so its slot is not given back.
    """
    if state.quotas is None:
        return
    held = [entry.grant for entry in state.open_entries() if not entry.wire.connected]
    for grant in [*held, *list(state.spent)]:
        if grant is not None:
            run(partial(grant.quota.release, grant))
    for quota in state.quotas.all:
        run(partial(quota.end, max(0.0, deadline - monotonic()), at_exit=True))


__all__ = ["Wanted", "end", "get_grant", "hear", "leave", "quota_for", "release", "release_late"]
