"""What the inner side of a pool is made of, in each process: its state, its threads, and what they know.

Loaded when a pool is made: who imports the class, for a type hint or a view that is never called, has no use
for it, and it is half of the package.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from jetsocket import forking
from jetsocket.callback_lease import checker
from jetsocket.housekeeper import PUSHES
from jetsocket.lease import Terms
from jetsocket.opening import Opening
from jetsocket.pushes import Pushes
from jetsocket.quotas import Quotas
from jetsocket.shutdown import Ending
from jetsocket.state import State
from jetsocket.state.slots import LIMITERS

if TYPE_CHECKING:
    from jetsocket.assembly import Assembly

_WANTED_LATER = ("jetsocket.info", "jetsocket.resubscribing", "jetsocket.stats")

for _module in _WANTED_LATER:  # now: where they are wanted, there are locks
    import_module(_module)


def inner_side(pool: Assembly[Any]) -> Ending:
    """Make the inner side of a pool, in this process. It does not refer to the pool."""
    options, config = pool._options, pool._in_use(pool._config)
    state = State(config, pool._name, options.close_timeout)
    forking.register(pool, state)
    if pool._limiters is not None:
        state.quotas = Quotas(pool._limiters, partial(state.doorbell.put, LIMITERS))
    state.known.minds = config.reuse == "balanced" and pool._reset is None
    terms = Terms(
        pool._codec,
        state.doorbell,
        state.known,
        state.totals.reply_time,
        send_timeout=options.send_timeout,
        recv_timeout=options.recv_timeout,
        close_timeout=options.close_timeout,
        match_ids=config.match_ids,
        hands_on=config.reuse == "always",
        matching=pool._matching,
        pushes=Pushes(
            None if pool._on_push is None else partial(state.doorbell.put, PUSHES),
            note_unreadable=state.known.note_unreadable,
        ),
    )
    opening = Opening(state, options, pool._base, terms, on_open=pool._configure, seam=pool._seam)
    return Ending(
        state,
        terms,
        opening,
        reset=pool._reset,
        check=checker(pool._check, state, terms),
        on_push=pool._on_push,
    )


def inner_side_in_child(pool: Assembly[Any], old: Ending) -> Ending:
    """Make the one of a forked child, and let go of the parent's."""
    forking.disown(old.state)
    new = inner_side(pool)
    new.state.end_as(old.state)
    new.state.listen_as(old.state)
    new.state.known.learn_from(old.state.known)
    return new


__all__ = ["inner_side", "inner_side_in_child"]
