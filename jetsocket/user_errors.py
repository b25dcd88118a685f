"""What the user's code raised, as it may be told: in messages, log lines and tracebacks.

Its text may quote what the server sent: ``int("…")`` does, and so does pydantic. So what is told of it is its
type, where it was raised, and the frames of its traceback, which show lines of code and no values. Only the
errors of this package keep their text: user code that wants its own text shown raises one of these.
"""

from __future__ import annotations

import copy
import os
from types import FrameType, TracebackType
from typing import NoReturn

from jetsocket.exceptions import ConnectionError, JetSocketError
from jetsocket.wire.redaction import as_cause, raise_alone

__all__ = ["Misuse", "as_it_is", "as_told", "exc_info_of", "place_in", "place_of", "raise_as_cause", "told"]

_PACKAGE = os.path.dirname(__file__) + os.sep
_OTHERS = (_PACKAGE, os.path.dirname(os.__file__) + os.sep, "<frozen ")


class Misuse(TypeError):
    """What this package says of the user's code in its own words."""


def told(error: BaseException) -> str:
    """An error's type and the place in the user's code; its text if that is of this package."""
    place = place_of(error)
    name = type(error).__name__ + (f" in {place}" if place else "")
    return f"{name}: {error}" if isinstance(error, (JetSocketError, Misuse)) else name


def place_of(error: BaseException) -> str:
    """Function, file and line of the user's code that raised it, or called what did; "" if none did."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not _is_others(code.co_filename):
            place = f"{code.co_name} ({os.path.basename(code.co_filename)}:{trace.tb_lineno})"
        trace = trace.tb_next
    return place


def place_in(frame: FrameType | None) -> str:
    """Function, file and line of the user's code that a thread is in, or that called what it is in; or ""."""
    while frame is not None:
        if not _is_others(frame.f_code.co_filename):
            return f"{frame.f_code.co_name} ({os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno})"
        frame = frame.f_back
    return ""


def _is_others(file: str) -> bool:
    """Whether a file is of this package, the standard library, or another library."""
    return file.startswith(_OTHERS) or "site-packages" in file


def as_told(error: BaseException, text: str = "") -> BaseException:
    """A stand-in for an error, to be a `__cause__` or to be logged, with the frames of the user's code.

    Args:
        error: What the user's code raised.
        text: What to say in place of its text.
    """
    trace = _of_the_user(error.__traceback__)
    if isinstance(error, JetSocketError):
        stand_in: BaseException = copy.copy(error)  # without a chain
    elif isinstance(error, Misuse):
        stand_in = TypeError(str(error))
    elif isinstance(error, OSError) and error.errno is not None and not text:
        stand_in = as_cause(error, text=os.strerror(error.errno) if error.errno > 0 else "")
    else:
        stand_in = as_cause(error, text=text)
    return stand_in.with_traceback(trace)


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """What a log record takes as its `exc_info`, without the text of the error."""
    stand_in = as_told(error)
    return type(stand_in), stand_in, stand_in.__traceback__


def raise_as_cause(error: BaseException, what: str) -> NoReturn:
    """Raise that the user's code has failed; its error is the cause as it is, but for the frames of ours.

    Args:
        error: What it raised.
        what: What was called.

    Raises:
        ConnectionError: Always.
    """
    failure = ConnectionError(f"{what} raised {told(error)}; the cause of this error has its traceback")
    raise_alone(failure, as_it_is(error))


def as_it_is(error: BaseException) -> BaseException:
    """What the user's code raised, to be a `__cause__`: itself, but for the frames of ours that called it."""
    return error.with_traceback(_of_the_user(error.__traceback__))


def _of_the_user(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback behind the frames of this package that called the user's code."""
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        trace = trace.tb_next
    return trace
