"""Moments at which no exception can come, for tests whose trace functions raise at each bytecode."""

from __future__ import annotations

import dis
from types import FrameType

PUSH, COPY, POP = (dis.opmap.get(name) for name in ("PUSH_EXC_INFO", "COPY", "POP_EXCEPT"))


def changes_what_is_handled(frame: FrameType) -> bool:
    """Whether the next bytecode begins or ends the handling of an exception.

    CPython runs no signal handler there, and would not clean up after one: what a trace function raises there
    the thread takes for handled ever after: it is the context of all that it raises later.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    if at < 0 or PUSH is None:  # nothing has run yet; or before 3.11, whose blocks undo themselves
        return False
    return code[at] in (PUSH, POP) or (code[at] == COPY and code[at + 2] == POP)
