"""Ids: which message answers which, where messages are JSON objects that carry one.

A message that is sent is *tagged* if it has an `id` that its connection was not sent a moment ago. Its answer
is the message that carries the same id, whatever came in between. Nothing here does I/O or takes a lock.

Ids compare as JSON means them: 7 is not "7", and neither `true` nor `null` is one; 7, 7.0 and 0.7e1 are one
number, and each is what some service answers to the others. An integer beyond 2**53 comes back as what is
left of it where numbers are doubles (RFC 8259 §6), as in JavaScript: 1732866392123456789 is answered with
1732866392123456800. So such a number, if it was not sent itself, answers the one that it may be left of.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

from jetsocket.interrupts import is_alarm
from jetsocket.patterns import pattern

REMEMBERED = 256
"""Ids that are remembered of what a connection was sent."""

_MOST_TEXT = 4096  # characters of a text of the caller's that are parsed, and of an id
_MOST_STALE = 64  # ids kept beyond that until they are thrown away all together
_MOST_OPEN = 65_536  # ids of a lease that may be on their way; what is sent beyond that is untagged
_EXACT = 2**53
_MARK = "\ufeff"
_OBJECT = pattern(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\{")

Payload: TypeAlias = str | bytes
Key: TypeAlias = str | int | tuple[str, float]
"""An id, in a form in which those that differ in type never compare equal."""
Read: TypeAlias = Callable[[Payload], Any]


def key_of(value: object) -> Key | None:
    """The key of what stands under `id`; None: that is no id."""
    if type(value) is int:
        return value
    if type(value) is str:
        return value if len(value) <= _MOST_TEXT else None
    if type(value) is bool:
        return None
    if isinstance(value, float):
        number = float.__float__(value)
        if not math.isfinite(number):
            return None
        return int(number) if number.is_integer() else ("float", number)
    if isinstance(value, str):  # an enum's member, say: JSON writes the plain value of each
        return key_of(str.__str__(value))
    return int.__int__(value) if isinstance(value, int) else None


def _rounded(key: Key | None) -> float | None:
    """What is left of a large integer in a double; None: it is none, or too large for one."""
    if type(key) is not int or -_EXACT < key < _EXACT:
        return None
    try:
        return float(key)
    except OverflowError as error:
        if is_alarm(error):
            raise
        return None


def shown(key: Key) -> str:
    """An id as an error names it, cut if it is long."""
    text = repr(key[1] if isinstance(key, tuple) else key)
    return text if len(text) <= 64 else f"{text[:60]}…"


def key_in(message: object, payload: Payload, read: Read, *, as_given: bool = True) -> Key | None:
    """The id in a message of the caller's, None if it has none.

    Args:
        message: What the caller gave: a dict is looked at as it is, text up to 4 KiB is parsed.
        payload: What goes out for it.
        read: Parses JSON.
        as_given: Whether the payload of a dict is that dict in JSON. What a serializer of the user's makes of
            one may be anything: an envelope around it, with another id, or encrypted. Then it is parsed.
    """
    if isinstance(message, dict):
        if as_given:
            return key_of(dict.get(message, "id"))
        has_id = '"id"' in payload if isinstance(payload, str) else b'"id"' in payload
        found = object_in(payload, read) if has_id else None
    elif isinstance(message, str) and ('"id"' in message or "\\" in message) and len(message) <= _MOST_TEXT:
        found = object_in(message, read)
    else:
        return None
    return None if found is None else key_of(found.get("id"))


def object_in(payload: Payload, read: Read) -> dict[str, Any] | None:
    """The JSON object that a payload is, if it may have an `id`; never raises for what a server sent."""
    if isinstance(payload, str):
        if '"id"' not in payload and "\\" not in payload:  # it may also be written as "\u0069d"
            return None
        if payload[:1] == _MARK:  # some write it in front of any text (RFC 8259 §8.1)
            payload = payload[1:]
    elif not _OBJECT.match(payload) or (b'"id"' not in payload and b"\\" not in payload):
        return None
    try:
        value = read(payload)
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        return None  # no JSON, or nested too deeply to tell
    return value if type(value) is dict else None


class SentIds:
    """The last 256 ids that one connection was sent, by all of its borrowers.

    Attributes:
        count: How many messages with an id it was sent.
        owes: Whether it was kept, or configured, though an id was still to come back: so that each lease has
            to look at what comes, be it by ids or not.
    """

    __slots__ = ("_last", "_left_of", "count", "owes")

    def __init__(self) -> None:
        """Begin with none."""
        self.count = 0
        self.owes = False
        self._last: dict[Key, int] = {}  # twice the number, and one more if it was tagged: half the memory
        self._left_of: dict[float, Key] = {}  # the last of those that look alike where numbers are doubles

    def note(self, key: Key, *, tagged: bool = True) -> bool:
        """Remember that a message with this id is about to leave; whether it was not among the last.

        Args:
            key: The id.
            tagged: Whether its answer can be told by it, if it was not among the last.
        """
        self.count = count = self.count + 1
        fresh = self._last.get(key, 0) // 2 < max(1, count - REMEMBERED)
        self._last[key] = 2 * count + (fresh and tagged)
        if (rounded := _rounded(key)) is not None:
            self._left_of[rounded] = key
        if len(self._last) >= REMEMBERED + _MOST_STALE:
            oldest = 2 * (count - REMEMBERED + 1)
            self._last = {each: told for each, told in list(self._last.items()) if told >= oldest}
            self._left_of = {left: each for left, each in list(self._left_of.items()) if each in self._last}
        return fresh

    def has(self, key: Key) -> bool:
        """Whether this very id was sent lately."""
        return self._last.get(key, 0) // 2 > max(0, self.count - REMEMBERED)

    def last(self, key: Key) -> tuple[int, bool] | None:
        """When this id was last sent (a number that grows), and whether tagged; None: not lately."""
        told = self._last.get(key, 0)
        if not told and (rounded := _rounded(key)) is not None:
            alike = self._left_of.get(rounded)
            told = 0 if alike is None else self._last.get(alike, 0)
        number, tagged = divmod(told, 2)
        return (number, bool(tagged)) if number > max(0, self.count - REMEMBERED) else None


class Account:
    """What one lease has asked with ids, and what came back.

    Attributes:
        open: The ids that have not come back.
        tagged: Tagged messages sent.
        answered: How many of them were answered.
        late: Answers that came to what earlier borrowers of the connection had asked.
        again: Whether an id came back twice: what else will?
        echoed: Whether any message carried an id that the connection was sent.
        taking: Whether a message may have been taken and not looked at: an interrupt leaves it like that.
        parsed: The last payload that was looked at, and its value, if that is what the borrower gets: so that
            it need not be parsed twice.
    """

    __slots__ = (
        "_before",
        "_behind",
        "_keep",
        "_left_of",
        "_read",
        "_sent",
        "again",
        "answered",
        "echoed",
        "late",
        "open",
        "parsed",
        "tagged",
        "taking",
    )

    def __init__(self, sent: SentIds, read: Read, *, keep: bool = False) -> None:
        """Begin a lease.

        Args:
            sent: What its connection was sent.
            read: Parses JSON.
            keep: Whether to keep what was `parsed`.
        """
        self._keep = keep
        self._sent = sent
        self._before = sent.count
        self._behind = 0  # messages looked at since the last id came back
        self._read = read
        self.open: set[Key] = set()
        self._left_of: dict[float, set[Key]] = {}  # those of `open` that look alike where numbers are doubles
        self.tagged = self.answered = self.late = 0
        self.again = self.echoed = self.taking = False
        self.parsed: tuple[Payload, Any] | None = None

    @property
    def is_settled(self) -> bool:
        """Whether each id came back, once, and nothing came for earlier borrowers, as far as can be told."""
        return not (self.open or self.late or self.again or self.taking)

    @property
    def is_done(self) -> bool:
        """Whether what comes need not be looked at, until an id is sent: a stream, say, would pay for it.

        That is when all ids are back and one came a second time, so that it is known that more may; or none
        did within the next 256 messages. Never where an earlier lease's may still come back.
        """
        return not (self.open or self._sent.owes) and (self.again or self._behind >= REMEMBERED)

    def ask(self, key: Key) -> bool:
        """Note that a message with this id is about to leave.

        Returns:
            Whether it is tagged. It is not if its id is among the last that the connection was sent: then
            there is no telling which message an answer is for.
        """
        may_be = key not in self.open and len(self.open) < _MOST_OPEN
        if not (self._sent.note(key, tagged=may_be) and may_be):
            return False
        self.open.add(key)
        if (rounded := _rounded(key)) is not None:
            self._left_of.setdefault(rounded, set()).add(key)
        self.tagged += 1
        return True

    def admits(self, payload: Payload) -> bool:
        """Look at a message that goes to the borrower; False: it is for an earlier one, and to be dropped.

        Also when all ids are back, until `is_done`: one that comes a second time says that more may.
        """
        if self.is_done:
            return True
        if not self.open:
            self._behind += 1
        key = self._key_in(payload)
        if key in self.open:
            self._answered(key)
            return True
        return key is None or not self._is_late(key)

    def waits_for(self, wanted: Key) -> Callable[[Payload], bool | None]:
        """What says of a message whether it is the answer (True), to be dropped (False) or to stay (None)."""

        def judge(payload: Payload) -> bool | None:
            key = self._key_in(payload)
            if key == wanted:
                self._answered(wanted)
                return True
            if key in self.open:
                self.echoed = True
                return None
            return False if key is not None and self._is_late(key) else None

        return judge

    def _answered(self, key: Key | None) -> None:
        if key is not None:
            self._behind = 0
            self.echoed = True
            self.answered += 1  # first: an interrupt must not leave it for an answer to something untagged
            self.open.discard(key)
            if (rounded := _rounded(key)) is not None:
                self._left_of.get(rounded, set()).discard(key)

    def _is_late(self, key: Key) -> bool:
        """Count an answer to what an earlier borrower asked; note one that is the second in this lease."""
        last = self._sent.last(key)
        if last is None:
            return False
        self.echoed = True
        number, tagged = last
        if number <= self._before:
            self.late += 1
            return True
        self.again = self.again or tagged
        return False

    def _key_in(self, payload: Payload) -> Key | None:
        value = object_in(payload, self._read)
        if value is None:
            return None
        if self._keep and payload[:1] != _MARK:
            self.parsed = (payload, value)
        key = key_of(value.get("id"))
        return key if key is None or key in self.open else self._may_be_left_of(key)

    def _may_be_left_of(self, key: Key) -> Key:
        """The id on its way that this one is left of, where numbers are doubles; if there is none, itself."""
        if (rounded := _rounded(key)) is None or self._sent.has(key):
            return key
        alike = list(self._left_of.get(rounded, ()))
        return alike[0] if len(alike) == 1 else key


__all__ = ["REMEMBERED", "Account", "Key", "SentIds", "key_in", "key_of", "object_in", "shown"]
