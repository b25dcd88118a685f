"""What a fake server answers: rules for any message, and scripts for one connection each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from jetsocket.testing.actions import (
    Action,
    Callback,
    Close,
    Delay,
    Drop,
    Reply,
    checked_close,
    checked_push,
    duration,
    kept,
    number,
)
from jetsocket.testing.matching import described, matches
from jetsocket.testing.payloads import Payload

_NONE_LEFT = object()


class Rule:
    """What is done about the messages that match; made by `FakeServer.on`.

    Its actions run in the order in which they are chained.
    """

    def __init__(self, matcher: Any, path: str | None, made_at: str) -> None:
        """Begin without an action: a message that matches is answered with nothing."""
        self._matcher = matcher
        self._path = path
        self._made_at = made_at
        self._actions: list[Action | _Each] = []
        self._times: int | None = None
        self._is_optional = False
        self._hits = 0

    # --- what is done ----------------------------------------------------------------------------------

    def reply(self, value: Any) -> Rule:
        """Send a value: `str` as text, bytes as binary, anything else as JSON.

        The request's id is put into a dict that has none.

        Raises:
            TypeError: It can't be sent.
        """
        self._actions.append(Reply(kept(value)))
        return self

    def reply_each(self, values: Iterable[Any]) -> Rule:
        """Reply to the first message with the first value, to the next with the next; then match no more."""
        if isinstance(values, (str, bytes, dict)):
            raise TypeError(f"reply_each takes several replies, such as a list, not {values!r}")
        self._actions.append(_Each(values))
        return self

    def callback(self, function: Callable[[Any], Any]) -> Rule:
        """Reply with what `function(message)` returns; None: nothing.

        It is called in a thread of its own, for one message of a connection after the other. What it raises
        fails the test, and closes the connection with 1011.
        """
        if not callable(function):
            raise TypeError(f"callback takes a function of the message, not {function!r}")
        self._actions.append(Callback(function, self._made_at))
        return self

    def push(self, message: Any, every: float | None = None, count: int | None = None) -> Rule:
        """Send something that is no reply: no id is put in.

        Args:
            message: What to send.
            every: s from one to the next, the first at once.
            count: How often; None: until the connection ends, or once if there is no `every`.
        """
        self._actions.append(checked_push(message, every, count))
        return self

    def delay(self, seconds: float) -> Rule:
        """Hold up the actions that are chained after it, of this message only (s)."""
        self._actions.append(Delay(duration(seconds, "delay")))
        return self

    def silence(self) -> Rule:
        """Answer nothing."""
        return self

    def drop(self) -> Rule:
        """Reset TCP, without a close frame."""
        self._actions.append(Drop())
        return self

    def close(self, code: int = 1000, reason: str = "") -> Rule:
        """Close the connection.

        Raises:
            ValueError: A code that must not be sent.
        """
        self._actions.append(checked_close(code, reason))
        return self

    # --- how often -------------------------------------------------------------------------------------

    def times(self, count: int) -> Rule:
        """Match so many messages: no more, and no fewer."""
        self._times = number(count, "times")
        return self

    def optional(self) -> Rule:
        """It need not match anything."""
        self._is_optional = True
        return self

    # --- for the server --------------------------------------------------------------------------------

    @property
    def used_up(self) -> str:
        """Why it matches no more; an empty string if it does."""
        if self._times is not None and self._hits >= self._times:
            return f"times({self._times})"
        if any(isinstance(each, _Each) and each.is_over for each in self._actions):
            return "all of reply_each were given"
        return ""

    @property
    def lacking(self) -> str:
        """What it was not called for, though it had to be; an empty string if it was."""
        if self._is_optional or self._hits >= (1 if self._times is None else self._times):
            return ""
        if self._times is None:
            return "was never matched"
        return f"was matched {self._hits} of {self._times} times"

    @property
    def hits(self) -> int:
        """How many messages have matched."""
        return self._hits

    def fits(self, path: str) -> bool:
        """Whether it is for connections to that path."""
        return self._path is None or self._path == path

    def matches(self, message: Any, payload: Payload) -> bool:
        """Whether the message is what it waits for, used up or not; what the matcher raises comes out."""
        return matches(self._matcher, message, payload)

    def take(self) -> list[Action]:
        """Count a message, and say what is done about it."""
        self._hits += 1
        return [each.next() if isinstance(each, _Each) else each for each in self._actions]

    @property
    def matcher(self) -> Any:
        """What it waits for."""
        return self._matcher

    @property
    def told(self) -> str:
        """What it is and where it was made, for reports."""
        where = "" if self._path is None else f", path={self._path!r}"
        return f"on({described(self._matcher)}{where}), made at {self._made_at}"

    def __repr__(self) -> str:
        return f"<{self.told}, matched {self._hits} times>"


class _Each:
    """Values, given one after the other; taken one ahead, for there may be endlessly many."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values: Iterator[Any] = iter(values)
        self._next = next(self._values, _NONE_LEFT)
        if self._next is _NONE_LEFT:
            raise ValueError("reply_each got no replies")
        self._next = kept(self._next)

    @property
    def is_over(self) -> bool:
        return self._next is _NONE_LEFT

    def next(self) -> Reply:
        value, self._next = self._next, next(self._values, _NONE_LEFT)
        if self._next is not _NONE_LEFT:
            self._next = kept(self._next)
        return Reply(value)


class Script:
    """An ordered conversation with one connection; made by `FakeServer.script`."""

    def __init__(self, path: str | None, made_at: str) -> None:
        """Begin without a step."""
        self._path = path
        self._made_at = made_at
        self._steps: list[Step] = []
        self._done = 0
        self.has_begun = False

    def expect(self, matcher: Any) -> Script:
        """Wait for a message that matches, as for `FakeServer.on`."""
        return self._add(Step(f"expect({described(matcher)})", matcher=matcher))

    def send(self, value: Any) -> Script:
        """Send a value. What follows an `expect` is its reply: the request's id is put in."""
        follows = bool(self._steps) and self._steps[-1].action is None
        action = Reply(kept(value)) if follows else checked_push(value, None, None)
        return self._add(Step(f"send({value!r})", action=action))

    def close(self, code: int = 1000, reason: str = "") -> Script:
        """Close the connection; nothing can follow."""
        return self._add(Step(f"close({code})", action=checked_close(code, reason)))

    def _add(self, step: Step) -> Script:
        if self._steps and isinstance(self._steps[-1].action, Close):
            raise ValueError("the script has closed the connection: nothing can follow")
        self._steps.append(step)
        return self

    # --- for the server --------------------------------------------------------------------------------

    def fits(self, path: str) -> bool:
        """Whether a new connection to that path is the one that it waits for."""
        return not self.has_begun and (self._path is None or self._path == path)

    @property
    def awaited(self) -> Step | None:
        """What it waits for; None: it is over, or has something to do."""
        step = self._steps[self._done] if self._done < len(self._steps) else None
        return step if step is not None and step.action is None else None

    def take(self) -> list[Action]:
        """What is to be done up to the next `expect`, as done."""
        found = []
        while self._done < len(self._steps) and (action := self._steps[self._done].action) is not None:
            found.append(action)
            self._done += 1
        return found

    def advance(self) -> None:
        """What it waited for has come."""
        assert self.awaited is not None
        self._done += 1

    @property
    def lacking(self) -> str:
        """What was not reached; an empty string if it is over."""
        if self._done == len(self._steps):
            return ""
        step = (
            f"step {self._done + 1} of {len(self._steps)}, {self._steps[self._done].told}, was never reached"
        )
        return step if self.has_begun else f"no connection came; {step}"

    @property
    def told(self) -> str:
        """What it is and where it was made, for reports."""
        where = "" if self._path is None else repr(self._path)
        return f"script({where}), made at {self._made_at}"

    def __repr__(self) -> str:
        return f"<{self.told}, {self._done} of {len(self._steps)} steps done>"


class Step:
    """One step of a script: something to wait for, or something to do."""

    def __init__(self, told: str, *, matcher: Any = None, action: Action | None = None) -> None:
        """Wait for `matcher` if there is no action."""
        self.told = told
        self.matcher = matcher
        self.action = action


__all__ = ["Rule", "Script", "Step"]
