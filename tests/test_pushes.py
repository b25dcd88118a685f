"""The queue to `on_push`: bounded, the oldest go first, and it wakes the housekeeper once."""

from __future__ import annotations

from jetsocket.pushes import Pushes


def test_the_bell_rings_when_there_is_something_again() -> None:
    rings: list[int] = []
    pushes = Pushes(lambda: rings.append(1))
    pushes.add((None, 1))
    pushes.add((None, 2))
    assert len(rings) == 1
    pushes.waiting.clear()
    pushes.add((None, 3))
    assert len(rings) == 2


def test_the_oldest_go_and_are_counted() -> None:
    pushes = Pushes(lambda: None, most=3)
    for number in range(5):
        pushes.add((None, number))
    assert [number for _, number in pushes.waiting] == [2, 3, 4]
    assert pushes.lost == 2


def test_without_on_push_nothing_is_kept() -> None:
    pushes = Pushes(None)
    pushes.add((None, 1))
    assert not pushes.waiting
    assert pushes.lost == 0
