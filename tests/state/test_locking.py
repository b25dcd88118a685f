"""How a step is made: one at a time, refused where it would wait for itself, rebuilt when it was struck."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from jetsocket import InvalidStateError, PoolClosedError
from jetsocket.borrower import Borrower
from jetsocket.state.locking import BUSY, CALM, Steps, step


class Counter(Steps):
    """A state of two numbers that agree, but in the middle of a step."""

    def __init__(self) -> None:
        super().__init__("counter")
        self.left = self.right = 0
        self.booked: list[Borrower] = []
        self.rebuilt = 0
        self.refuses: BaseException | None = None

    def _condition(self) -> int:
        return CALM

    def _rebuild(self) -> None:
        self.rebuilt += 1
        self.right = self.left

    def _book(self, borrower: Borrower) -> None:
        if self.refuses is not None:
            raise self.refuses
        self.booked.append(borrower)

    @step
    def count(self, meanwhile: Callable[[], object] = int) -> tuple[int, int]:
        """Count one, and do something in the middle."""
        assert self.lock.locked()
        self.left += 1
        meanwhile()
        self.right += 1
        return self.left, self.right

    @step
    def look(self) -> tuple[int, int]:
        return self.left, self.right


def struck() -> None:
    raise KeyboardInterrupt


def test_a_step_returns_what_its_method_does() -> None:
    counter = Counter()
    assert [counter.count(), counter.count()] == [(1, 1), (2, 2)]
    assert (counter.rebuilt, counter.condition) == (0, CALM)
    assert Counter.count.__doc__ == "Count one, and do something in the middle."


def test_what_was_struck_is_rebuilt_by_the_next_step() -> None:
    counter = Counter()
    with pytest.raises(KeyboardInterrupt):
        counter.count(struck)
    assert (counter.left, counter.right) == (1, 0)
    assert counter.look() == (1, 1)
    assert counter.rebuilt == 1
    assert counter.look() == (1, 1)
    assert counter.rebuilt == 1


@pytest.mark.parametrize("refusal", [PoolClosedError("closed"), InvalidStateError("no")])
def test_a_refusal_is_no_strike(refusal: Exception) -> None:
    counter = Counter()

    def refuse() -> None:
        raise refusal

    with pytest.raises(type(refusal)):
        counter.count(refuse)
    counter.look()
    assert counter.rebuilt == 0


def test_a_step_within_a_step_is_refused_and_not_waited_for() -> None:
    counter, other = Counter(), Counter()
    told: list[str] = []

    def reenter() -> None:
        for each in (counter, other):  # what holds the other one may wait for us
            try:
                each.look()
            except InvalidStateError as error:
                told.append(str(error))

    with other.lock:
        assert counter.count(reenter) == (1, 1)
    assert len(told) == 2
    assert all("only release() can be called from there" in text for text in told)
    assert counter.is_interrupted() is False
    seen: list[bool] = []
    counter.count(lambda: seen.append(other.is_interrupted()))
    assert seen == [True]


def test_a_step_of_another_state_that_is_free_may_be_made_inside_one() -> None:
    counter, other = Counter(), Counter()
    assert counter.count(other.count) == (1, 1)
    assert other.look() == (1, 1)


def test_what_comes_back_inside_a_step_is_booked_on_the_way_out() -> None:
    counter, borrower = Counter(), Borrower()
    seen: list[int] = []

    def finalizer() -> None:
        counter.come_back(borrower)
        seen.append(len(counter.booked))

    counter.count(finalizer)
    assert seen == [0]
    assert counter.booked == [borrower]


def test_a_step_that_is_struck_books_what_came_back_meanwhile() -> None:
    counter, borrower = Counter(), Borrower()

    def finalizer() -> None:
        counter.come_back(borrower)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        counter.count(finalizer)
    assert counter.booked == [borrower]
    assert (counter.left, counter.right) == (1, 1)  # rebuilt before it was booked


def test_what_comes_back_while_another_thread_is_inside_is_booked_by_that_thread() -> None:
    counter, borrower = Counter(), Borrower()
    inside, go_on = threading.Event(), threading.Event()

    def stay() -> None:
        inside.set()
        assert go_on.wait(5)

    holder = threading.Thread(target=counter.count, args=(stay,))
    holder.start()
    assert inside.wait(5)
    counter.come_back(borrower)  # would hang here if it waited
    assert counter.booked == []
    go_on.set()
    holder.join(5)
    assert counter.booked == [borrower]


def test_what_came_back_is_booked_before_anything_else_is_done() -> None:
    counter, borrower = Counter(), Borrower()
    with counter.lock:  # held by a thread that has looked for the last time
        counter.come_back(borrower)
    assert counter.booked == []
    counter.look()
    assert counter.booked == [borrower]


def test_one_that_can_not_be_booked_is_not_tried_for_ever() -> None:
    counter, borrower = Counter(), Borrower()
    counter.refuses = ValueError("a bug")
    with pytest.raises(ValueError, match="a bug"):
        counter.come_back(borrower)
    counter.refuses = None
    counter.look()
    assert counter.booked == []
    assert counter.rebuilt == 1


def test_one_whose_booking_was_struck_is_booked_again() -> None:
    counter, borrower = Counter(), Borrower()
    counter.refuses = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        counter.come_back(borrower)
    counter.refuses = None
    counter.settle()
    assert counter.booked == [borrower]
    assert counter.rebuilt == 1


def test_returns_from_many_threads_at_once_are_all_booked() -> None:
    counter = Counter()

    def borrow() -> None:
        for _ in range(500):
            counter.come_back(Borrower())
            counter.count()

    threads = [threading.Thread(target=borrow) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    # No thread is left that could book anything: it must have been done.
    assert not counter.returned
    assert len(counter.booked) == 3000
    assert counter.look() == (3000, 3000)
    assert counter.condition in (CALM, BUSY)
