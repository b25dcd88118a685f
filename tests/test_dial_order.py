"""How many connections are to be opened, and which makes room: pure decisions; and the order to dial.

Also tests: `dial_limits`, `state/eviction`.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest

from jetsocket import ConnectionError
from jetsocket.cooldown import Trouble
from jetsocket.dial_limits import dials_allowed, pause_before_more
from jetsocket.dial_order import Dial
from jetsocket.state.eviction import CHECK_GRACE, GRACE, MOST_OVERTAKEN, room_allowed_at
from jetsocket.uris import parse


@pytest.mark.parametrize(
    ("more", "opening", "open_now", "most", "allowed"),
    [
        (3, 0, 0, None, 3),
        (3, 2, 0, None, 2),  # max_connecting is 4
        (9, 0, 50, None, 4),
        (1, 4, 0, None, 0),
        (9, 9, 0, None, 0),  # it was lowered
        (0, 0, 0, None, 0),
        (-2, 0, 0, None, 0),  # more are being opened than wait
        (3, 0, 0, 2, 2),
        (3, 1, 0, 2, 1),
        (3, 0, 2, 2, 0),
        (3, 0, 5, 2, 0),
    ],
)
def test_no_more_are_opened_than_are_needed_and_allowed(
    more: int, opening: int, open_now: int, most: int | None, allowed: int
) -> None:
    got = dials_allowed(more, opening=opening, open_now=open_now, most_opening=4, most=most)
    assert got == allowed


def room(**given: Any) -> float:
    usual = {"asked_at": 100.0, "overtaken": 0, "has_connection": True, "has_dial": False, "trouble": None}
    return room_allowed_at(**{**usual, **given})


@pytest.mark.parametrize(
    ("took", "comes_back", "pause"),
    [
        (0.001, False, 0.02),
        (0.001, True, 0.02),
        (0.1, False, 0.05),
        (0.1, True, 0.1),
        (2, False, 0.25),
        (2, True, 0.25),
    ],
)
def test_those_that_are_open_serve_the_line_before_more_are_opened(
    took: float, comes_back: bool, pause: float
) -> None:
    assert pause_before_more(took, comes_back=comes_back) == pause


def test_room_is_made_after_a_moment_in_line() -> None:
    assert room() == 100.0 + GRACE


def test_room_is_made_at_once_for_who_has_nothing_or_was_overtaken() -> None:
    assert room(has_connection=False) == 100.0
    assert room(overtaken=MOST_OVERTAKEN) == 100.0
    assert room(overtaken=MOST_OVERTAKEN - 1) == 100.0 + GRACE


def test_a_uri_whose_first_connection_is_being_opened_gets_no_second_slot() -> None:
    assert room(has_connection=False, has_dial=True) == float("inf")
    assert room(has_dial=True) == 100.0 + GRACE


def test_a_uri_in_trouble_waits_for_its_pause() -> None:
    trouble = Trouble(ConnectionError("refused"))
    trouble.next_eviction_at = 160.0
    assert room(has_connection=False, trouble=trouble) == 160.0
    trouble.next_eviction_at = 1.0
    assert room(has_connection=False, trouble=trouble) == 100.0


def test_a_check_deserves_its_end() -> None:
    assert room(has_connection=False, is_checked=True) == 100.0 + CHECK_GRACE


def dial() -> Dial:
    return Dial("ws://h/", parse("ws://h/"), "line", None)


def test_the_end_of_a_dial_wakes_all_who_wait_for_it() -> None:
    order, ended = dial(), list[bool]()
    threads = [threading.Thread(target=lambda: ended.append(order.wait(5))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert order.wait(0) is False
    order.end()
    order.end()
    for thread in threads:
        thread.join(5)
    assert ended == [True] * 3
    assert order.wait(0) is True


def test_a_dial_rests_between_its_attempts() -> None:
    order = dial()
    assert not order.rests
    order.attempts = 1
    assert order.rests
