"""The line: first come, first served for each URI; those whose lease is gone are skipped."""

from __future__ import annotations

import random
import weakref

from hypothesis import given
from hypothesis import strategies as st

from jetsocket.borrower import Borrower
from jetsocket.state.line import Line


class Lease:
    pass


def caller(key: str = "a", asked_at: float | None = None) -> Borrower:
    made = Borrower()
    made.key = key
    if asked_at is not None:
        made.asked_at = asked_at
    return made


def test_who_came_first_is_first_for_each_uri() -> None:
    line = Line()
    callers = [caller(key, float(number)) for number, key in enumerate("abab")]
    for each in callers:
        line.join(each)
    assert (line.first("a"), line.first("b"), line.first("c")) == (callers[0], callers[1], None)
    assert (line.count("a"), line.count("b"), line.count("c")) == (2, 2, 0)
    assert line.heads() == callers[:2]
    assert line.has_others
    assert line.leave(callers[0])
    assert not line.leave(callers[0])
    assert line.first("a") is callers[2]
    assert line.heads() == [callers[1], callers[2]]


def test_who_returns_to_it_stands_where_it_stood() -> None:
    line = Line()
    callers = [caller("ab"[number % 2], float(number)) for number in range(6)]
    for each in callers[:2] + callers[3:]:
        line.join(each)
    line.rejoin(callers[2])
    assert list(line) == callers
    assert line.all("a") == callers[::2]


def test_one_whose_lease_is_gone_is_skipped_and_leaves() -> None:
    line, lease = Line(), Lease()
    gone, waits = caller(), caller()
    gone.lease = weakref.ref(lease)
    line.join(gone)
    line.join(waits)
    assert line.first("a") is gone
    del lease
    assert line.first("a") is waits
    assert gone not in line
    line.leave(waits)
    assert line.first("a") is None
    assert (len(line), line.heads(), line.keys) == (0, [], [])


def test_rebuilt_it_holds_those_who_have_not_been_told() -> None:
    line = Line()
    served, refused, first, second = callers = [caller() for _ in range(4)]
    for each in callers:
        line.join(each)
    served.entry, refused.error = object(), ValueError()  # type: ignore[assignment]
    del line._by_key["a"]  # an exception has struck
    line.rebuild()
    assert list(line) == line.all("a") == [first, second]


@given(
    st.lists(
        st.tuples(st.sampled_from(["join", "leave", "rejoin"]), st.sampled_from("abc"), st.integers(0, 9)),
        max_size=60,
    )
)
def test_against_a_model(steps: list[tuple[str, str, int]]) -> None:
    line, model = Line(), list[Borrower]()
    out: list[Borrower] = []
    rnd = random.Random(0)
    for clock, (what, key, number) in enumerate(steps):
        if what == "join":
            model.append(caller(key, float(clock)))
            line.join(model[-1])
        elif what == "leave" and model:
            out.append(model.pop(number % len(model)))
            assert line.leave(out[-1])
        elif what == "rejoin" and out:
            back = out.pop(rnd.randrange(len(out)))
            model = sorted([*model, back], key=lambda each: each.asked_at)
            line.rejoin(back)
        assert list(line) == model
        for each in "abc":
            mine = [other for other in model if other.key == each]
            assert line.all(each) == mine
            assert line.first(each) is (mine[0] if mine else None)
        firsts = {each.key: each for each in reversed(model)}
        assert line.heads() == sorted(firsts.values(), key=lambda each: each.asked_at)
