"""The state of a pool: its slots, its connections, who has which, who waits. One lock guards all of it.

Begin with `locking`: how a step is made, and what may strike it. `fields` says what there is, `slots` gives
back what was taken, `moves` is what steps are made of; on top of it stand `eviction`, `planning` (what is
dialled for whom) and `repair` (what an exception left half-done). The steps themselves stand by who makes
them: `dialling` (openers), `housekeeping` (the housekeeper), `borrowing` (callers); in `fast_path` are the
two that nearly every lease is made of. `line` and `idle_queues` are lists of it.
"""

from jetsocket.state.borrowing import Answer, Exhaustion, State

__all__ = ["Answer", "Exhaustion", "State"]
