"""What does not fit in a message, told by names of its type only.

pydantic and msgspec say where a fault is by the names on the way to it. Some of these are of the message: the
keys of a dict, a field that there is none of. Only those are shown that stand in the type; for each other
there is a ``*``. The texts of both libraries may quote the message; what is told is pydantic's code for the
fault, and of msgspec's texts those that are made of types.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from jetsocket.text import printable

__all__ = ["describe_msgspec", "describe_pydantic"]

_MOST_FAULTS = 5  # that are told of one message
_MOST_NAMES = 10  # on the way to a fault: the first of them
_MOST_TOLD = 100  # characters of one name
_LIBRARY_NAMES = frozenset({"[key]"})
_WORDS = re.compile(r"[\w-]+")
_LABEL = re.compile(r"[\w\-\[\](){},.:'=> ]+")  # of a member of a union, as "list[int]"
_CODE = re.compile(r"[a-z0-9_]{1,50}")

# The texts of msgspec that are made of types and of the type's own names.
_MSGSPEC_TYPES = re.compile(r"(Expected [^\r\n]*|Object missing required field [^\r\n]*)")
_MSGSPEC_UNKNOWN = "Object contains unknown field "
_MSGSPEC_PLACE = re.compile(r" - at `([^`]*)`(?: in `([^`]*)`)?$")
_MSGSPEC_STEP = re.compile(r"\.([^.\[]*)|(\[\.\.\.\]|\[\d+\])")
_MSGSPEC_SYNTAX = re.compile(
    r"JSON is malformed: ([\w ,:'\"{}\[\]-]{1,60} \(byte \d+\))|Input data was (truncated)"
)


class _Names:
    """The names in a message type; looked up when the first message does not fit."""

    def __init__(self, find: Callable[[], Iterator[str]]) -> None:
        self._find = find
        self._found: frozenset[str] | None = None

    def shown(self, name: str) -> str:
        """A name if it is of the type, "*" if it is not."""
        if self._found is None:
            self._found = _LIBRARY_NAMES.union(self._find())
        is_own = name in self._found or (
            _LABEL.fullmatch(name) and all(word in self._found for word in _WORDS.findall(name))
        )
        return printable(name, _MOST_TOLD) if name and is_own else "*"


# --- pydantic


def describe_pydantic(adapter: Any) -> Callable[[Exception], str]:
    """Make a function that tells what an error of this TypeAdapter means; "" if it is not pydantic's."""
    import pydantic

    names = _Names(lambda: _strings(adapter.core_schema, set()))

    def describe(error: Exception) -> str:
        if not isinstance(error, pydantic.ValidationError):
            return ""
        faults = error.errors(include_url=False, include_context=False, include_input=False)
        told = [f"{_place(names, fault['loc'])}: {_code(fault['type'])}" for fault in faults[:_MOST_FAULTS]]
        more = len(faults) - len(told)
        return ", ".join([*told, f"and {more} more"] if more else told)

    return describe


def _place(names: _Names, loc: tuple[int | str, ...]) -> str:
    steps = [str(step) if isinstance(step, int) else names.shown(step) for step in loc[:_MOST_NAMES]]
    return ".".join([*steps, "…"] if len(loc) > len(steps) else steps) or "message"


def _code(kind: str) -> str:
    return kind if _CODE.fullmatch(kind) else "value_error"  # a validator's own may be anything


def _strings(schema: object, seen: set[int]) -> Iterator[str]:
    """All strings in pydantic's schema of a type, and the names of its classes and functions."""
    todo = [schema]
    while todo:
        each = todo.pop()
        if isinstance(each, str):
            yield each
            continue
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            todo += [*each.keys(), *each.values()]
        elif isinstance(each, (list, tuple, set, frozenset)):
            todo += each
        elif isinstance(each, type) or callable(each):
            yield getattr(each, "__name__", "")


# --- msgspec


def describe_msgspec(kind: Any) -> Callable[[Exception], str]:
    """Make a function that tells what an error of msgspec's decoder of this type means."""
    import msgspec

    names = _Names(lambda: _encoded_names(msgspec.inspect.type_info(kind)))

    def describe(error: Exception) -> str:
        text = str(error)
        if not isinstance(error, msgspec.ValidationError):
            syntax = _MSGSPEC_SYNTAX.fullmatch(text)
            return f"no valid JSON: {syntax[1] or syntax[2]}" if syntax else "no valid JSON"
        place = _MSGSPEC_PLACE.search(text)
        at = f" at `{_path(names, place)}`" if place else " at `$`"
        text = text[: place.start()] if place else text
        if error.__cause__ is not None:  # what a `__post_init__` raised, in the user's words
            return f"a value is not allowed{at} ({type(error.__cause__).__name__})"
        if text.startswith(_MSGSPEC_UNKNOWN):
            return f"it has a field that the type does not know{at}"
        return f"{printable(text)}{at}" if _MSGSPEC_TYPES.fullmatch(text) else f"a value is not allowed{at}"

    return describe


def _path(names: _Names, place: re.Match[str]) -> str:
    path = place[1] if place[2] is None else place[2]
    steps = [
        f".{names.shown(name)}" if name else index
        for name, index in _MSGSPEC_STEP.findall(path.removeprefix("$"))
    ]
    shown = "$" + "".join(steps[:_MOST_NAMES]) + ("…" if len(steps) > _MOST_NAMES else "")
    return shown if place[2] is None else f"{shown}, in a key"


def _encoded_names(info: object) -> Iterator[str]:
    """The names of all fields in msgspec's description of a type, as they are in a message."""
    todo, seen = [info], set[int]()
    while todo:
        each = todo.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, (list, tuple)):
            todo += each
        elif hasattr(each, "__struct_fields__"):
            yield getattr(each, "encode_name", "")
            yield str(getattr(each, "tag_field", ""))
            todo += [getattr(each, name) for name in each.__struct_fields__]
