"""The table of places: where a connection may go, and that the library goes all those ways and no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from jetsocket import ConnectionPool, connection_states
from jetsocket.connection_states import GONE, MOVES, OPENING, Place
from jetsocket.entry import Entry
from tests.servers import EchoServer, wait_until


def test_it_names_each_place_once() -> None:
    assert set(MOVES) == set(get_args(Place))
    assert {
        value for name, value in vars(connection_states).items() if name.isupper() and name != "MOVES"
    } == set(MOVES)


def test_no_connection_opens_twice_or_comes_back_from_its_end() -> None:
    assert all(OPENING not in targets for targets in MOVES.values())
    assert MOVES[GONE] == frozenset()
    assert {place for place, targets in MOVES.items() if GONE in targets} == {"opening", "closing"}


@pytest.mark.parametrize("start", MOVES)
def test_from_wherever_it_is_its_end_can_be_reached(start: Place) -> None:
    reached = {start}
    while more := {target for place in reached for target in MOVES[place]} - reached:
        reached |= more
    assert GONE in reached


def test_a_life_goes_through_the_places(
    echo: EchoServer, make_pool: Callable[..., ConnectionPool[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    went: list[tuple[Place, Place]] = []
    move = Entry.move

    def note(entry: Entry, to: Place) -> None:
        went.append((entry.place, to))
        move(entry, to)

    monkeypatch.setattr(Entry, "move", note)
    pool = make_pool(echo, max_connections=1)
    with pool.acquire("/") as conn:
        assert [info.place for info in pool.connections()] == ["lent"]
        conn.request(1, timeout=5)
    assert [info.place for info in pool.connections()] == ["idle"]
    pool.clear()
    wait_until(lambda: pool.connections() == [])
    assert went[0] == ("opening", "lent")
    assert went[-2:] == [("idle", "closing"), ("closing", "gone")]
    assert all(to in MOVES[place] for place, to in went)
