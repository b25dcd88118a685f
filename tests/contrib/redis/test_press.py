"""What a process closes while others wait."""

from __future__ import annotations

import pytest

pytest.importorskip("redis")

from jetsocket.contrib.redis.press import CLOSE_IDLE, CLOSE_NEXT, TAKE_BACK, Press
from jetsocket.contrib.redis.script import IDLE, NEXT


def test_what_is_idle_is_closed_at_once_and_looked_for_again_at_growing_pauses() -> None:
    press, now, pauses = Press(), 100.0, []
    for _ in range(6):
        assert press.told(IDLE, 0, now) == [CLOSE_IDLE]
        assert press.check_at is not None
        pauses.append(round(press.check_at - now, 3))
        now = press.check_at
    assert pauses == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_an_answer_that_comes_while_one_is_being_closed_closes_no_second_one() -> None:
    press = Press()
    assert press.told(IDLE, 0, 100.0) == [CLOSE_IDLE]
    assert press.told(IDLE, 0, 100.05) == []
    assert press.told(IDLE, 0, 100.1) == [CLOSE_IDLE]


def test_the_next_that_comes_back_is_closed_once_however_often_it_is_said() -> None:
    press = Press()
    assert press.told(NEXT, 0, 100.0) == [CLOSE_NEXT]
    assert press.told(NEXT, 0, 101.0) == []
    assert press.check_at == 102.0
    assert press.released() == [TAKE_BACK]  # it was that one, or another: what more, Redis says
    assert press.released() == []
    assert press.told(NEXT, 0, 101.0) == [CLOSE_NEXT]


def test_one_that_is_due_later_is_asked_for_again_then() -> None:
    press = Press()
    assert press.told(NEXT, 0.7, 100.0) == [CLOSE_IDLE]
    assert press.check_at == 100.7
    assert press.told(NEXT, 0, 100.7) == [CLOSE_NEXT]


def test_when_nobody_waits_nothing_is_closed_any_more() -> None:
    press = Press()
    press.told(NEXT, 0, 100.0)
    assert press.told(0, 0, 100.1) == [TAKE_BACK]
    assert press.check_at is None
    assert press.told(0, 0, 100.2) == []
    press.told(IDLE, 0, 101.0)
    assert press.told(0, 0, 101.1) == []
    assert press.told(IDLE, 0, 102.0) == [CLOSE_IDLE]
    assert press.check_at == 102.1  # the pauses begin anew


def test_a_duty_that_becomes_less_takes_back_what_was_asked() -> None:
    press = Press()
    press.told(NEXT, 0, 100.0)
    assert press.told(IDLE, 0, 101.0) == [TAKE_BACK, CLOSE_IDLE]
