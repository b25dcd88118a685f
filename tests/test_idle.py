"""Idle queues: last in first out by URI, removal by name, one age order over all, and nothing left behind."""

from __future__ import annotations

import queue

from hypothesis import given
from hypothesis import strategies as st

from jetsocket.entry import Entry
from jetsocket.idle import IdleConnections, IdleQueue
from jetsocket.uris import parse
from jetsocket.wire.websocket import WebSocket


def entry(name: str = "a") -> Entry:
    return Entry(parse(f"ws://h/{name}"), WebSocket(), float("inf"))


def enrolled(idle: IdleConnections, *names: str) -> list[Entry]:
    entries = [entry(name) for name in names]
    for each in entries:
        idle.enroll(each)
    return entries


def test_it_is_a_queue() -> None:
    line = IdleQueue()
    assert isinstance(line, queue.Queue)
    first, second, third = entry(), entry(), entry()
    for each in (first, second, third):
        line.put_nowait(each)
    assert line.qsize() == 3
    assert line.remove(second)
    assert not line.remove(second)
    assert line.get_nowait() is third
    assert line.get_nowait() is first
    assert line.empty()


def test_the_most_recently_used_comes_first() -> None:
    idle = IdleConnections()
    entries = enrolled(idle, "a", "a", "a")
    for each in entries:
        idle.put(each)
    key = entries[0].key
    assert idle.count(key) == 3
    assert [idle.take(key) for _ in range(4)] == [*reversed(entries), None]


def test_uris_do_not_mix() -> None:
    idle = IdleConnections()
    a, b = enrolled(idle, "a", "b")
    idle.put(a)
    assert idle.take(b.key) is None
    assert idle.take("ws://h/unknown") is None
    assert idle.take(a.key) is a


def test_the_oldest_of_all_uris_makes_room() -> None:
    idle = IdleConnections()
    entries = enrolled(idle, "a", "b", "a", "c")
    for each in entries:
        idle.put(each)
    assert list(idle) == entries
    taken = idle.take(entries[0].key)  # the younger one of the two
    assert taken is entries[2]
    idle.put(taken)  # used just now
    assert [idle.take_oldest() for _ in range(5)] == [entries[0], entries[1], entries[3], entries[2], None]


def test_whoever_removes_it_owns_it() -> None:
    idle = IdleConnections()
    a, b = enrolled(idle, "a", "a")
    idle.put(a)
    idle.put(b)
    assert idle.remove(a)
    assert not idle.remove(a)
    assert a not in idle
    assert b in idle
    assert idle.take(a.key) is b
    assert len(idle) == 0


def test_the_queue_goes_with_its_last_connection() -> None:
    idle = IdleConnections()
    a, b = enrolled(idle, "a", "a")
    idle.put(a)
    assert idle.keys == [a.key]
    idle.take(a.key)
    idle.strike(a)
    assert idle.keys == [b.key]  # lent ones count
    idle.strike(b)
    assert idle.keys == []
    idle.strike(b)
    assert idle.count(b.key) == 0


def test_ten_thousand_uris_leave_nothing_behind() -> None:
    idle = IdleConnections()
    for number in range(10_000):
        (each,) = enrolled(idle, str(number))
        idle.put(each)
        if len(idle) > 10:
            oldest = idle.take_oldest()
            assert oldest is not None
            idle.strike(oldest)
    assert len(idle.keys) == len(idle) == 10


@given(
    st.lists(st.tuples(st.sampled_from(["put", "take", "oldest", "remove"]), st.integers(0, 5)), max_size=80)
)
def test_against_a_model(steps: list[tuple[str, int]]) -> None:
    idle = IdleConnections()
    entries = enrolled(idle, "a", "a", "a", "b", "b", "c")
    model: list[Entry] = []  # by age
    for step, number in steps:
        each = entries[number]
        same = [other for other in model if other.key == each.key]
        if step == "put" and each not in model:
            idle.put(each)
            model.append(each)
        elif step == "take":
            got = idle.take(each.key)
            assert got is (same[-1] if same else None)
            model = [other for other in model if other is not got]
        elif step == "oldest":
            got = idle.take_oldest()
            assert got is (model[0] if model else None)
            model = model[1:]
        elif step == "remove":
            assert idle.remove(each) == (each in model)
            model = [other for other in model if other is not each]
        assert list(idle) == model
        assert len(idle) == len(model)
        for key in idle.keys:
            assert idle.count(key) == sum(other.key == key for other in model)
