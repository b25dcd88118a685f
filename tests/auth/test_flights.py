"""One value for many threads, got by one of them."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from itertools import pairwise
from time import monotonic
from typing import Any

import pytest

from jetsocket.auth.flights import Flights
from jetsocket.exceptions import HandshakeError, TimeoutError
from tests.crowds import crowd, errors
from tests.servers import wait_until


class Source:
    """Hands out numbers, once it may."""

    def __init__(self) -> None:
        self.calls = 0
        self.go_on = threading.Event()
        self.error: BaseException | None = None

    def __call__(self) -> int:
        self.calls += 1
        assert self.go_on.wait(5)
        if self.error is not None:
            raise self.error
        return self.calls


def waiting() -> int:
    """How many threads wait for another's flight."""
    stacks = [
        [frame.f_code for frame, _ in traceback.walk_stack(top)] for top in sys._current_frames().values()
    ]
    wait, get = threading.Event.wait.__code__, Flights.get.__code__
    return sum((wait, get) in pairwise(stack) for stack in stacks)


def in_a_crowd(flights: Flights[int], source: Source, count: int, **given: Any) -> list[Any]:
    def release() -> None:
        wait_until(lambda: waiting() == count - 1)
        source.go_on.set()

    opener = threading.Thread(target=release)
    opener.start()
    outcomes = crowd(count, lambda _: flights.get(given.get("is_good", bool), source, 5))
    opener.join()
    return outcomes


def test_one_gets_it_for_all() -> None:
    flights, source = Flights[int](), Source()
    outcomes = in_a_crowd(flights, source, 6)
    assert [each.value for each in outcomes] == [1] * 6
    assert source.calls == 1
    assert flights.get(bool, source, 5) == 1  # it is kept


def test_its_failure_is_told_to_all_a_copy_each_and_the_next_one_tries_again() -> None:
    flights, source = Flights[int](), Source()
    cause = OSError(5, "x")
    source.error = HandshakeError("no", 403)
    source.error.__cause__ = cause
    outcomes = in_a_crowd(flights, source, 6)
    failures = errors(outcomes)
    assert [(type(each), str(each), each.__cause__) for each in failures] == [
        (HandshakeError, "no", cause)
    ] * 6
    assert len({id(each) for each in failures}) == 6
    assert source.calls == 1
    source.error = None
    assert flights.get(bool, source, 5) == 2


def test_what_interrupts_it_concerns_its_own_thread_and_another_takes_over() -> None:
    flights, source = Flights[int](), Source()
    source.error = SystemExit()
    calls = []

    def fly() -> int:
        calls.append(None)
        if len(calls) == 1:
            return source()
        return 7

    def get(_number: int) -> Any:
        try:
            return flights.get(bool, fly, 5)
        except SystemExit:
            return "interrupted"

    def release() -> None:
        wait_until(lambda: waiting() == 3)
        source.go_on.set()

    opener = threading.Thread(target=release)
    opener.start()
    values = [each.value for each in crowd(4, get)]
    opener.join()
    assert sorted(map(str, values)) == ["7", "7", "7", "interrupted"]
    assert len(calls) == 2


def test_a_value_that_is_good_no_more_is_got_again() -> None:
    flights, source = Flights[int](), Source()
    source.go_on.set()
    assert flights.get(bool, source, 5) == 1
    assert flights.get(lambda value: value > 1, source, 5) == 2


def test_who_can_not_wait_that_long_is_told() -> None:
    flights, source = Flights[int](), Source()
    leader = threading.Thread(target=lambda: flights.get(bool, source, 5))
    leader.start()
    wait_until(lambda: source.calls)
    with pytest.raises(TimeoutError, match="another thread waits for the ticket still"):
        flights.get(bool, source, 0.02)
    source.go_on.set()
    leader.join()


def test_a_flight_that_does_not_land_is_not_waited_for_by_all_that_come() -> None:
    flights, source = Flights[int](), Source()
    leader = threading.Thread(target=lambda: flights.get(bool, source, 0.01))
    leader.start()
    wait_until(lambda: source.calls)
    wait_until(lambda: monotonic() > next(iter(flights._flights.values())).until)
    assert flights.get(bool, lambda: 42, 5) == 42
    source.go_on.set()
    leader.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_does_not_wait_for_its_parents_flight() -> None:
    flights, source = Flights[int](), Source()
    leader = threading.Thread(target=lambda: flights.get(bool, source, 5))
    leader.start()
    wait_until(lambda: source.calls)
    pid = os.fork()
    if not pid:
        try:
            os._exit(flights.get(bool, lambda: 42, 5))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42
    source.go_on.set()
    leader.join()
