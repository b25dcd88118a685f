"""Alarms: exceptions that come from none of the calls they come out of, and how to tell them.

A signal handler runs between any two bytecodes of the main thread, and inside every system call of it that
waits. What it raises comes out of whatever was going on: the usual recipe for a time limit raises a
`TimeoutError` out of a `recv`, where it looks like the kernel's own. Code that catches what a system call or
a library may raise asks here first, and lets an alarm pass: it is the business of the code that has set it.

CPython hands a signal handler the frame that it interrupts, and the traceback of what it raises has its own
frame. Nothing else that is called from here gets one but trace functions, whose exceptions are alarms, too.
A handler that has thrown the frame away is known by its code, as long as it is installed.

Another thread can raise in this one, too (`PyThreadState_SetAsyncExc`). That has no frame of its own, but is
always a class called without arguments: no system call raises such a thing, nor a class that is not Python's.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # not in typeshed
import functools
import queue
import sys
from collections.abc import Iterator
from types import CodeType, FrameType, TracebackType
from typing import Any

__all__ = ["frames_from", "is_alarm", "raise_alarm_behind", "suppress"]

_US = "jetsocket"
_CO_VARARGS = 4  # inspect.CO_VARARGS
# What is between us and a C function: no handlers, and besides us where one without a frame may strike.
_WHERE = frozenset({_US, "queue", "selectors", "socket", "ssl", "threading"})
# Whose exceptions a call of ours, or of theirs, may raise.
_WHOSE = frozenset({_US, "gevent", "msgspec", "python_socks", "websocket"}) | sys.stdlib_module_names


def is_alarm(error: BaseException, *, users_code: bool = False) -> bool:
    """Whether an exception comes from a signal handler, not from the call that it came out of.

    To be asked in the `except` clause, for it looks at the traceback from there down. This costs nothing
    where nothing was raised, and for what a system call raised a fraction of a microsecond.

    Args:
        error: What was caught.
        users_code: A function of the user's was called, whose exceptions may look like anything: then what
            another thread has raised in this one is not told apart.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while (below := trace.tb_next) is not None:
        if _is_handler(below.tb_frame):
            return True
        trace = below
    return not users_code and _is_from_nowhere(error, trace)


def raise_alarm_behind(error: BaseException, *, users_code: bool = False) -> None:
    """Raise the alarm that has become an error of a library's that was called; return if there is none.

    To be called in the `except` clause, as `is_alarm`. Elsewhere, a caller has to delete what refers to the
    error, for its frame will be in the traceback.
    """
    alarm = _alarm_behind(error, set(frames_from(sys._getframe(1))), users_code)
    if alarm is None:
        return
    context = alarm.__context__
    try:
        raise alarm
    finally:
        alarm.__context__ = context  # not the library's error
        del alarm, context, error  # this frame is in the traceback: a cycle


def _alarm_behind(error: BaseException, above: set[FrameType], users_code: bool) -> BaseException | None:
    if is_alarm(error, users_code=users_code):
        return error
    seen = {id(error)}
    for refusal in _kept_by_pydantic(error):
        if is_alarm(refusal, users_code=users_code):
            return refusal
    hidden = _hidden_behind(error)
    # What is handled above us, in our callers, is in that chain as well: it has surfaced before.
    while hidden is not None and id(hidden) not in seen:
        trace = hidden.__traceback__
        if trace is not None and trace.tb_frame in above:
            return None
        if is_alarm(hidden, users_code=users_code):
            return hidden
        seen.add(id(hidden))
        hidden = _hidden_behind(hidden)
    return None


class suppress:  # as contextlib's
    """`contextlib.suppress`, but for alarms."""

    def __init__(self, *kinds: type[BaseException]) -> None:
        """Suppress exceptions of these kinds that come from the block itself."""
        self._kinds = kinds

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return isinstance(error, self._kinds) and not is_alarm(error)


def _hidden_behind(error: BaseException) -> BaseException | None:
    return error.__context__ if error.__cause__ is None else error.__cause__


def _kept_by_pydantic(error: Any) -> list[BaseException]:
    """What the user's validators raised: pydantic takes a ValueError for a refusal, and keeps it."""
    if _root(type(error).__module__) != "pydantic_core":
        return []
    faults = error.errors(include_url=False, include_input=False)
    kept = [fault.get("ctx", {}).get("error") for fault in faults]
    return [each for each in kept if isinstance(each, BaseException)]


def _is_handler(frame: FrameType) -> bool:
    """Whether a frame is that of a signal handler, or of a trace function."""
    if _root(frame.f_globals.get("__name__")) in _WHERE:
        return False
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & _CO_VARARGS)
    for name in code.co_varnames[:count]:
        given = frame.f_locals.get(name)
        if isinstance(given, FrameType):
            return True
        if type(given) is tuple and any(isinstance(each, FrameType) for each in given):
            return True
    return code in _handlers()


def _handlers() -> Iterator[CodeType]:
    """The code of all signal handlers that are installed now."""
    for number in range(1, _signal.NSIG):
        # The C function: Python's makes an enum of the answer, in a `try` that takes an alarm's ValueError.
        handler = _signal.getsignal(number)
        if not callable(handler):  # none, or one of the kernel's own
            continue
        while isinstance(handler, functools.partial):
            handler = handler.func
        handler = getattr(handler, "__func__", handler)
        code = getattr(handler, "__code__", None) or getattr(type(handler).__call__, "__code__", None)
        if code is not None:
            yield code


def _is_from_nowhere(error: BaseException, trace: TracebackType) -> bool:
    """Whether what was raised in the frame of `trace` is nothing that a call from there raises."""
    if error.args and type(error).__module__ == "builtins":
        return False  # nearly always
    if _root(trace.tb_frame.f_globals.get("__name__")) not in _WHERE:
        return False
    if not error.args:
        return not isinstance(error, (queue.Empty, StopIteration))
    return _root(type(error).__module__) not in _WHOSE


def _root(name: Any) -> str:
    return name.partition(".")[0] if isinstance(name, str) else ""


def frames_from(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of a stack from that one down; without the line numbers that `traceback` looks up."""
    while frame is not None:
        yield frame
        frame = frame.f_back
