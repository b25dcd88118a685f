"""What is fit to be shown: of what a peer said, of a value, of an object's names."""

from __future__ import annotations

from collections.abc import Iterable
from types import FunctionType
from typing import TypeVar

from jetsocket.interrupts import is_alarm

__all__ = ["MOST_SHOWN", "printable", "public_names", "rule_of", "short_repr", "told_as", "with_rule"]

E = TypeVar("E", bound=Exception)

MOST_SHOWN = 200
"""Characters of what a peer said that go into a message."""


def printable(text: str, most: int = MOST_SHOWN) -> str:
    """`text` on one line, at most so many characters, none of which moves a cursor or turns the writing."""
    if len(text) > most:
        text = text[: most - 1] + "…"
    return "".join(char if char.isprintable() else " " if char.isspace() else "?" for char in text)


def short_repr(value: object, most: int = 5 * MOST_SHOWN) -> str:
    """The repr of what the user gave, cut; also of an int with more digits than Python writes."""
    try:
        return printable(repr(value), most)
    except ValueError as error:  # sys.set_int_max_str_digits
        if is_alarm(error, users_code=True):
            raise
        return f"{'a negative' if isinstance(value, int) and value < 0 else 'an'} int of thousands of digits"


def public_names(names: Iterable[str]) -> list[str]:
    """Those without the private ones: what `dir()` and completion in a notebook are to show."""
    return [name for name in names if not name.startswith("_") or name.endswith("__")]


def told_as(name: str, *rooms: type) -> None:
    """Have errors of arguments name the class that users know: not the room that a method stands in."""
    for room in rooms:
        for attribute in vars(room).values():
            function = getattr(attribute, "__func__", attribute)  # of a class method
            if isinstance(function, FunctionType):
                function.__qualname__ = f"{name}.{function.__name__}"


def with_rule(error: E, rule: str) -> E:
    """Keep with an error that shows a value what `rule_of` is to say of it."""
    vars(error)["_rule"] = rule
    return error


def rule_of(error: BaseException) -> str:
    """What an error of a value says, without the value."""
    return str(vars(error).get("_rule", error))
