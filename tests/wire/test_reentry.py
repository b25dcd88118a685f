"""Who is below on the stack; what a signal handler is told that would wait for itself."""

from __future__ import annotations

import sys

from jetsocket import InvalidStateError
from jetsocket.wire.reentry import is_below, reentered


class Owner:
    def takes(self, other: object) -> tuple[bool, bool]:
        methods = {Owner.takes.__code__}
        here = sys._getframe()
        return is_below(self, methods, here), is_below(other, methods, here)

    def calls(self) -> bool:
        return is_below(self, {Owner.takes.__code__}, sys._getframe())


def test_only_the_object_whose_method_runs_is_below() -> None:
    assert Owner().takes(Owner()) == (True, False)
    assert not Owner().calls()


def test_the_refusal_names_what_was_called_and_what_to_do() -> None:
    error = reentered("recv", "the connection to ws://h/")
    assert isinstance(error, InvalidStateError)
    assert error.current_state == "busy"
    assert str(error).startswith("recv was called from a signal handler")
    assert "ws://h/; let it set a flag" in str(error)
