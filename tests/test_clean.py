"""The clean rule, over every combination of its facts, against the rule said in another way."""

from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest

from jetsocket.clean import Reuse, why_stale, why_unclean

MODES: tuple[Reuse, ...] = get_args(Reuse)
FACTS = ("alive", "half_sent", "discarded", "failed", "timed_out", "half_read", "unread")
COUNTS = [(0, 0), (1, 1), (7, 7), (1, 0), (0, 1), (2, 1), (1, 2)]
CLEAN: dict[str, Any] = {
    "alive": True,
    **dict.fromkeys(FACTS[1:], False),
    "sent": 1,
    "received": 1,
}


def forbidden(mode: Reuse, facts: dict[str, bool], sent: int, received: int) -> set[str]:
    """What speaks against lending again, said the other way round: each mode names what it minds."""
    nobody_can_use_it = {"half_sent", "discarded"}
    quiet_minds = nobody_can_use_it | {"failed", "timed_out", "half_read", "unread"}
    minds = {"always": nobody_can_use_it, "quiet": quiet_minds, "balanced": quiet_minds}[mode]
    against = {fact for fact in minds if facts[fact]}
    if not facts["alive"]:
        against.add("dead")
    if mode == "balanced" and received - sent:
        against.add("counts")
    return against


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sent_received", COUNTS)
def test_truth_table(mode: Reuse, sent_received: tuple[int, int]) -> None:
    sent, received = sent_received
    for values in itertools.product([False, True], repeat=len(FACTS)):
        facts = dict(zip(FACTS, values, strict=True))
        reason = why_unclean(mode, **facts, sent=sent, received=received)
        assert (reason is None) == (not forbidden(mode, facts, sent, received)), (mode, facts, reason)


@pytest.mark.parametrize("mode", MODES)
def test_truth_table_of_ids(mode: Reuse) -> None:
    """Ids prove what they cover, counts speak for the rest; with late replies it is clean in no mode."""
    names = ("unanswered", "late", "again", "unasked")
    for (sent, received), tagged in itertools.product(COUNTS, (0, 1, 5)):
        for values in itertools.product([False, True], repeat=len(names)):
            facts = dict(zip(names, values, strict=True))
            reason = why_unclean(
                mode, **{**CLEAN, "sent": sent, "received": received}, tagged=tagged, **facts
            )
            proven = tagged > 0 and sent == 0
            counted = sent == received and not (sent > 0 and facts["unasked"])
            balanced = not (facts["unanswered"] or facts["again"]) and (proven or counted)
            clean = not facts["late"] and (mode != "balanced" or balanced)
            assert (reason is None) == clean, (mode, sent, received, tagged, facts, reason)


@pytest.mark.parametrize("mode", MODES)
def test_a_clean_one_is_clean_in_every_mode(mode: Reuse) -> None:
    assert why_unclean(mode, **CLEAN) is None


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"discarded": True}, "discarded"),
        ({"alive": False}, "closed"),
        ({"half_sent": True}, "half sent"),
        ({"failed": True}, "exception"),
        ({"timed_out": True}, "timeout"),
        ({"half_read": True}, "half read"),
        ({"unread": True}, "unread"),
        ({"sent": 2}, "unbalanced"),
        ({"received": 2}, "unbalanced"),
        ({"late": True}, "late reply"),
        ({"unanswered": True}, "unanswered"),
        ({"again": True}, "answered twice"),
        ({"unasked": True}, "counts alone"),
    ],
)
def test_each_fault_alone_has_its_own_reason(facts: dict[str, Any], reason: str) -> None:
    assert why_unclean("balanced", **{**CLEAN, **facts}) == reason


def test_a_timeout_that_left_the_block_is_a_timeout() -> None:
    assert why_unclean("balanced", **{**CLEAN, "failed": True, "timed_out": True}) == "timeout"


@pytest.mark.parametrize("mode", MODES)
def test_truth_table_of_idle_connections(mode: Reuse) -> None:
    names = ("alive", "half_sent", "half_read", "unread", "expired")
    for values in itertools.product([False, True], repeat=len(names)):
        facts = dict(zip(names, values, strict=True))
        minds = ["half_sent", "expired"] + ([] if mode == "always" else ["half_read", "unread"])
        fit = facts["alive"] and not any(facts[name] for name in minds)
        assert (why_stale(mode, **facts) is None) == fit, (mode, facts)
