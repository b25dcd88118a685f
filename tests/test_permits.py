"""Permits: never more out than there are, first come first served, and what an accident lost comes back."""

from __future__ import annotations

import sys
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jetsocket.permits import Permit, Permits


def taken(permits: Permits, count: int) -> list[Permit]:
    """So many permits that are out."""
    out = [Permit() for _ in range(count)]
    assert all(permits.take(permit) for permit in out)
    return out


def in_line(permits: Permits, count: int) -> list[Permit]:
    """So many who wait."""
    waiting = [Permit() for _ in range(count)]
    for permit in waiting:
        assert not permits.take(permit)
        permits.join(permit)
    return waiting


def is_awake(permit: Permit) -> bool:
    assert permit.wake is not None
    return permit.wake.acquire(blocking=False)


def test_no_more_out_than_there_are() -> None:
    permits = Permits(3)
    first, *_ = taken(permits, 3)
    assert not permits.take(Permit())
    permits.give_back(first)
    assert not first.held
    taken(permits, 1)
    assert not permits.take(Permit())


def test_a_permit_that_comes_back_goes_to_whoever_waits_longest() -> None:
    permits = Permits(1)
    (holder,) = taken(permits, 1)
    waiting = in_line(permits, 3)
    for expected in waiting:
        permits.give_back(holder)
        assert permits.held == {expected}
        assert expected.held
        assert [is_awake(permit) for permit in waiting if permit in permits.line] == [False] * len(
            permits.line
        )
        assert is_awake(expected)
        holder = expected


def test_nobody_barges_past_a_line() -> None:
    permits = Permits(1)
    (holder,) = taken(permits, 1)
    (waiter,) = in_line(permits, 1)
    assert not permits.take(Permit())
    permits.give_back(holder)
    assert not permits.take(Permit())
    assert waiter.held


def test_one_who_left_the_line_is_passed_over() -> None:
    permits = Permits(1)
    (holder,) = taken(permits, 1)
    gone, stays = in_line(permits, 2)
    permits.leave(gone)
    permits.leave(gone)
    permits.give_back(holder)
    assert not gone.held
    assert stays.held


def test_giving_back_twice_makes_no_permit() -> None:
    permits = Permits(2)
    first, second = taken(permits, 2)
    permits.give_back(first)
    permits.give_back(first)
    taken(permits, 1)
    assert not permits.take(Permit())
    permits.give_back(second)


def test_the_semaphore_refuses_one_too_many() -> None:
    permits = Permits(1)
    (holder,) = taken(permits, 1)
    permits._semaphore.release()  # what cannot happen by this interface
    with pytest.raises(ValueError, match="released too many"):
        permits.give_back(holder)


def test_wake_all_wakes_everybody_and_grants_nothing() -> None:
    permits = Permits(1)
    taken(permits, 1)
    waiting = in_line(permits, 3)
    permits.wake_all()
    assert [is_awake(permit) for permit in waiting] == [True] * 3
    assert not any(permit.held for permit in waiting)


@pytest.mark.parametrize("lost", [1, 2])
def test_recount_finds_lost_permits_and_hands_them_to_the_line(lost: int) -> None:
    permits = Permits(2)
    for _ in range(lost):
        permits._semaphore.acquire(blocking=False)  # as by an interrupt before it was written down
    taken(permits, 2 - lost)
    waiting = in_line(permits, 1)
    assert permits.recount() == lost
    assert waiting[0].held
    assert len(permits.held) == 3 - lost
    assert permits.recount() == 0


def test_recount_finds_one_too_many() -> None:
    permits = Permits(2)
    taken(permits, 1)
    permits._semaphore.release()
    assert permits.recount() == -1
    taken(permits, 1)
    assert not permits.take(Permit())


def test_where_tells_file_line_and_function() -> None:
    frame = sys._getframe()
    permit = Permit((frame.f_code, frame.f_lasti))
    line = frame.f_lineno - 1
    assert permit.where() == (__file__, line, "test_where_tells_file_line_and_function")
    assert Permit().where() == ("<unknown>", 0, "<unknown>")


@given(st.integers(1, 3), st.lists(st.sampled_from(["come", "leave", "return"]), max_size=60))
def test_against_a_model(count: int, steps: list[str]) -> None:
    permits = Permits(count)
    out: deque[Permit] = deque()
    line: deque[Permit] = deque()
    for step in steps:
        if step == "come":
            permit = Permit()
            if permits.take(permit):
                assert not line
                out.append(permit)
            else:
                assert len(out) == count
                permits.join(permit)
                line.append(permit)
        elif step == "leave" and line:
            permits.leave(line.pop())
        elif step == "return" and out:
            permits.give_back(out.popleft())
            if line:
                out.append(line.popleft())
        assert permits.held == set(out)
        assert list(permits.line) == list(line)
        assert all(permit.held for permit in out)
        assert not any(permit.held for permit in line)
    assert permits.recount() == 0
