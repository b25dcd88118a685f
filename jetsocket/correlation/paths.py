"""Dotted paths into messages: where an id stands, and which topics a message names."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from jetsocket.correlation.reading import index_of, key_of, with_member

__all__ = ["TopicPath", "look_up", "names_of"]

_MOST_TOPICS = 4096  # in one message
_MOST_DEPTH = 8  # of what names a topic
_EACH = "*"


def names_of(path: str, what: str) -> tuple[str, ...]:
    """The names on a dotted path.

    Raises:
        TypeError: It is no text.
        ValueError: It has an empty name.
    """
    if not isinstance(path, str):
        raise TypeError(f"{what} must be a dotted path such as 'params.id', not {type(path).__name__}")
    names = tuple(path.split("."))
    if not all(names):
        raise ValueError(f"{what} must be a dotted path such as 'params.id', not {path!r}")
    return names


def look_up(message: object, names: Sequence[str]) -> Any:
    """What stands there; None: nothing. A number is an index where there is a list."""
    for name in names:
        if isinstance(message, dict):
            message = message.get(name)
        elif isinstance(message, (list, tuple)):
            place = index_of(name)
            if place is None or place >= len(message):
                return None
            message = message[place]
        elif isinstance(message, Mapping):  # a caller's
            message = message.get(name)
        else:
            return None
    return message


class TopicPath:
    """Where messages name topics: one path, or several whose values together are one topic.

    A `*` stands for each member of a list. A path that ends at a list names each of what is in it. So
    ``("params.channel", "params.symbol")`` are two topics in
    ``{"params": {"channel": "ticker", "symbol": ["BTC/USD", "ETH/USD"]}}``.
    """

    def __init__(self, path: str | Sequence[str], what: str) -> None:
        """Read the paths.

        Args:
            path: One, or several.
            what: What they are, for errors.

        Raises:
            TypeError: They are no texts.
            ValueError: There is none, one has an empty name, or they go through different lists.
        """
        paths = [path] if isinstance(path, str) else list(path)
        if not paths:
            raise ValueError(f"{what} must be one dotted path or several, not {path!r}")
        self._is_one = isinstance(path, str)
        named = [names_of(each, what) for each in paths]
        lists = {names[: names.index(_EACH)] for names in named if _EACH in names}
        if len(lists) > 1 or any(names.count(_EACH) > 1 for names in named):
            raise ValueError(f"{what} can go through one list: one '*', the same for all, not {path!r}")
        self._list = next(iter(lists), None)
        self._parts = [
            (names[names.index(_EACH) + 1 :], True) if _EACH in names else (names, False) for names in named
        ]

    def topics(self, message: object) -> list[Hashable]:
        """The topics that a message names."""
        if self._list is None:
            return self._topics(message, message)
        each = look_up(message, self._list)
        found: dict[Hashable, None] = {}
        for inner in each[:_MOST_TOPICS] if isinstance(each, (list, tuple)) and each else (None,):
            found.update(dict.fromkeys(self._topics(message, inner)))
        return list(found)

    def _topics(self, message: object, inner: object) -> list[Hashable]:
        places = (look_up(inner if within else message, names) for names, within in self._parts)
        found = itertools.islice(itertools.product(*map(_alternatives, places)), _MOST_TOPICS)
        named = [each for each in found if any(part is not None for part in each)]
        return [each[0] for each in named] if self._is_one else list(named)

    def narrowed(self, message: Mapping[str, Any], topic: Hashable) -> dict[str, Any]:
        """A copy of `message` that names no other topic, as far as what it names stands in lists."""
        if self._list is not None:
            each = look_up(message, self._list)
            if not isinstance(each, (list, tuple)):
                return dict(message)
            return with_member(
                message, [one for one in each if topic in self._topics(message, one)], *self._list
            )
        copy = dict(message)
        wanted = (topic,) if self._is_one or not isinstance(topic, tuple) else topic
        for (names, _), part in zip(self._parts, wanted, strict=False):
            value = look_up(message, names)
            if isinstance(value, (list, tuple)):
                copy = with_member(copy, [one for one in value if _frozen(one) == part], *names)
        return copy


def _alternatives(value: object) -> list[Hashable]:
    return (
        [_frozen(each) for each in value[:_MOST_TOPICS]]
        if isinstance(value, (list, tuple))
        else [_frozen(value)]
    )


def _frozen(value: object, depth: int = 0) -> Hashable | None:
    """What can be hashed and compares as `value` does in JSON; None: no topic."""
    if depth > _MOST_DEPTH:
        return None
    if isinstance(value, dict):
        return frozenset((str(name), _frozen(each, depth + 1)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(each, depth + 1) for each in value)
    return ("bool", value) if isinstance(value, bool) else key_of(value)
