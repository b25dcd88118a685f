"""Where in a test something was made: for reports. Pure, but for a look at the stack."""

from __future__ import annotations

import os
import sys
from types import FrameType

_HERE = os.path.dirname(os.path.abspath(__file__))


def caller() -> str:
    """File and line of the nearest caller that is not of this package."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and os.path.dirname(os.path.abspath(frame.f_code.co_filename)) == _HERE:
        frame = frame.f_back
    if frame is None:
        return "?"
    return f"{short(frame.f_code.co_filename)}:{frame.f_lineno}"


def short(path: str) -> str:
    """A path as it is shown: from the current directory, if it is below that."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on another drive
        return path
    return path if relative.startswith(os.pardir) else relative


__all__ = ["caller", "short"]
