"""Regular expressions that are compiled when they are first used: many a program needs few of them."""

from __future__ import annotations

import re
from typing import Any, AnyStr, cast

__all__ = ["pattern"]


def pattern(text: AnyStr) -> re.Pattern[AnyStr]:
    """As `re.compile`, but later: to compile all of ours would take as long as a third of our imports."""
    return cast("re.Pattern[AnyStr]", _Later(text))


class _Later:
    """Stands for a compiled pattern; what is asked of it once, it has by itself from then on."""

    def __init__(self, text: str | bytes) -> None:
        self._text = text

    def __getattr__(self, name: str) -> Any:
        value = getattr(re.compile(self._text), name)
        setattr(self, name, value)
        return value
