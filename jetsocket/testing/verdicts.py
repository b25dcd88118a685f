"""What is wrong at the end of a test: texts for an AssertionError. Pure."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from jetsocket.testing.matching import differences, size_of
from jetsocket.testing.payloads import Payload, shown
from jetsocket.testing.places import short
from jetsocket.testing.rules import Rule, Script

_MOST_SHOWN = 20  # messages in a report
_INDENT = "\n    "


@dataclass
class Problem:
    """One thing that is wrong.

    Attributes:
        text: What, and what to do about it.
        error: What the test's own code raised, if that is it.
    """

    text: str
    error: BaseException | None = field(default=None, repr=False)


def unexpected(
    message: Any, payload: Payload, path: str, rules: Iterable[Rule], script: Script | None
) -> Problem:
    """A message that no rule matches."""
    lines = [f"a message came to {path} that no rule matches: {shown(message)}"]
    awaited = None if script is None else script.awaited
    if script is not None and awaited is not None:
        lines.append(f"the script waits for {awaited.told}: {script.told}")
        lines += differences(awaited.matcher, message, payload)
    else:
        lines += _nearest(message, payload, path, list(rules))
    lines.append(
        "it was answered with close 1011; FakeServer(assert_all_expected=False) permits it, and"
        " @pytest.mark.jetsocket(assert_all_expected=False) for the fixtures"
    )
    return Problem(_INDENT.join(lines))


def _nearest(message: Any, payload: Payload, path: str, rules: list[Rule]) -> list[str]:
    if not rules:
        return ["there is no rule; make one with server.on(...)"]
    judged = [(_distance(rule, message, payload, path), number) for number, rule in enumerate(rules)]
    rule = rules[min(judged)[1]]
    found = differences(rule.matcher, message, payload)
    lines = [f"nearest rule: {rule.told}", *found]
    if not found and not rule.fits(path):
        lines.append(f"it matches, but it is for another path than {path}")
    elif not found and rule.used_up:
        lines.append(f"it matches, but it is used up: {rule.used_up}")
    elif not rule.fits(path):
        lines.append(f"and it is for another path than {path}")
    return lines


def _distance(rule: Rule, message: Any, payload: Payload, path: str) -> tuple[float, bool]:
    wrong = len(differences(rule.matcher, message, payload)) / 2
    return (wrong / size_of(rule.matcher), not rule.fits(path))


def raised(what: str, error: BaseException, made_at: str) -> Problem:
    """A callback or matcher of the test's has raised."""
    said = "".join(traceback.format_exception_only(type(error), error)).strip()
    where = ""
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        where = f", at {short(frames[-1].filename)}:{frames[-1].lineno}"
    return Problem(f"{what} raised {said}{where}; made at {made_at}", error)


def unreached(rules: Iterable[Rule], scripts: Iterable[Script], refusals: Iterable[str]) -> list[Problem]:
    """Rules, steps and refusals that were never reached."""
    permit = (
        "; optional() permits it for a rule, FakeServer(assert_all_called=False) for all,"
        " @pytest.mark.jetsocket(assert_all_called=False) for the fixtures"
    )
    found = [f"{rule.told}: {rule.lacking}" for rule in rules if rule.lacking]
    found += [f"{script.told}: {script.lacking}" for script in scripts if script.lacking]
    found += [f"{refusal}: no connection came" for refusal in refusals]
    return [Problem(text + permit) for text in found]


def told(where: str, problems: list[Problem]) -> str:
    """The text of the verdict."""
    if len(problems) == 1:
        return f"{where}: {problems[0].text}"
    items = "\n".join(f"{number}. {problem.text}" for number, problem in enumerate(problems, 1))
    return f"{where}: {len(problems)} problems\n{items}"


def verdict(where: str, problems: list[Problem]) -> AssertionError:
    """The error of a test; its cause is what the test's own code raised, if it did."""
    error = AssertionError(told(where, problems))
    error.__cause__ = next((problem.error for problem in problems if problem.error is not None), None)
    return error


def what_came(messages: list[Any]) -> str:
    """The messages that did come."""
    if not messages:
        return "nothing came"
    lines = [shown(message) for message in messages[:_MOST_SHOWN]]
    if len(messages) > _MOST_SHOWN:
        lines.append(f"… and {len(messages) - _MOST_SHOWN} more")
    return _INDENT.join(["what came:", *lines])


def add_note(error: BaseException, text: str) -> None:
    """Add a text to an error that is on its way; shown by pytest, and by Python since 3.11."""
    error.__dict__.setdefault("__notes__", []).append(text)


__all__ = ["Problem", "add_note", "raised", "told", "unexpected", "unreached", "verdict", "what_came"]
