"""Looking into messages that may have any shape: nothing here raises for what a server sent."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from jetsocket.exceptions import ReplyError
from jetsocket.ids import key_of
from jetsocket.text import printable
from jetsocket.wire.redaction import hide

__all__ = [
    "code_of",
    "index_of",
    "key_of",
    "member",
    "needs_object",
    "put_back",
    "reply_error",
    "text_of",
    "topics_of",
    "unexpected",
    "with_member",
    "with_value",
]

_LARGEST = 2**63
_LONGEST_INDEX = 10  # digits


def member(message: object, *names: str) -> Any:
    """What stands under these names, one within the other; None where there is nothing, or no object."""
    for name in names:
        if not isinstance(message, dict) and not isinstance(message, Mapping):  # the latter may be a caller's
            return None
        message = message.get(name)
    return message


def with_member(message: Mapping[str, Any], value: object, *names: str) -> dict[str, Any]:
    """A copy of `message` with `value` under these names; what is not on that way is shared with it.

    A number is an index where there is a list.

    Raises:
        ValueError: There is a list that has no such member.
    """
    name, *within = names
    copy = dict(message)
    if within:
        value = with_value(copy.get(name), value, within)
    copy[name] = value
    return copy


def _with_item(items: Sequence[Any], value: object, *names: str) -> list[Any]:
    """`with_value` of a list."""
    name, *within = names
    place = index_of(name)
    if place is None or place >= len(items):
        raise ValueError(f"a path leads to {name!r} of a list that has {len(items)} members")
    copy = list(items)
    copy[place] = with_value(copy[place], value, within) if within else value
    return copy


def with_value(inner: object, value: object, names: Sequence[str]) -> Any:
    """`with_member` of an object, or of a list, at whose index the first name stands."""
    if isinstance(inner, (list, tuple)):
        return _with_item(inner, value, *names)
    return with_member(inner if isinstance(inner, Mapping) else {}, value, *names)


def index_of(name: str) -> int | None:
    """The index in a list that a name on a path is; None: it is none."""
    return int(name) if name.isdecimal() and len(name) < _LONGEST_INDEX else None


def needs_object(message: object, what: str) -> Mapping[str, Any]:
    """`message`, if it is an object that can carry an id.

    Raises:
        TypeError: It is not.
    """
    if type(message) is dict or isinstance(message, Mapping):
        return message
    raise TypeError(f"{what} is a dict, not {type(message).__name__}; send() sends anything as it is")


def text_of(value: object) -> str:
    """`value` if it is text, else ""."""
    return value if isinstance(value, str) else ""


def code_of(value: object) -> int | str | None:
    """What stands for the code of an error; None if it is none."""
    key = key_of(value)
    if isinstance(key, tuple) or (
        isinstance(key, int) and abs(key) >= _LARGEST
    ):  # Python refuses to write it
        return None
    return key


def reply_error(
    code: object = None,
    message: object = None,
    *,
    data: Any = None,
    reply: Any = None,
    secrets: Iterable[str] = (),
) -> ReplyError:
    """The error that a server's reply is.

    Args:
        code: What stands for its code.
        message: What stands for its text.
        data: What else it said.
        reply: The whole reply.
        secrets: What its text may repeat and is not to be kept.
    """
    known, said = code_of(code), hide(text_of(message), secrets)
    shown = [printable(str(each)) for each in (known, said) if each not in (None, "")]
    told = ": ".join(shown) or "without a text"
    return ReplyError(f"the server answered with an error: {told}", known, said, data=data, reply=reply)


def topics_of(topics: Hashable | Iterable[Hashable] | None) -> list[Hashable]:
    """What `Correlation.topic` and `topic_of` return, as a list: what can be hashed is one topic.

    An iterator can be, and is several all the same.
    """
    if topics is None:
        return []
    if isinstance(topics, (list, set, Iterator)):
        return list(topics)
    return [topics]  # type: ignore[list-item]  # it can be hashed, by the rule


def put_back(reply: object, message: object, *path: str) -> Any:
    """A copy of `reply` with the id that the caller gave at `path`; `reply` itself where it gave none."""
    if not isinstance(reply, dict):
        return reply
    given = member(message, *path)
    return reply if given is None else with_member(reply, given, *path)


def unexpected(message: object, awaited: str) -> ReplyError:
    """The error of a greeting that is not as the protocol says."""
    kind = member(message, "type")
    shown = (
        f"a message of type {printable(kind)!r}" if isinstance(kind, str) else f"a {type(message).__name__}"
    )
    return ReplyError(f"the server sent {shown} in place of {awaited}", reply=message)
