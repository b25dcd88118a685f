"""Idle queues: last in first out by URI, removal by name, one age order over all, and nothing left behind."""

from __future__ import annotations

import queue
import threading
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from jetsocket.entry import Entry
from jetsocket.idle import Idle, IdleQueue, Shared
from jetsocket.uris import parse
from jetsocket.wire.websocket import WebSocket


def entry(name: str = "a") -> Entry:
    return Entry(parse(f"ws://h/{name}"), WebSocket(), float("inf"))


def none_idle() -> Idle:
    return Idle(Shared(threading.Lock()))


def opened(idle: Idle, *names: str) -> list[Entry]:
    entries = [entry(name) for name in names]
    for each in entries:
        idle.count_open(each.key, 1)
    return entries


def take_oldest(idle: Idle) -> Entry | None:
    oldest = next(iter(idle), None)
    if oldest is not None:
        assert idle.remove(oldest)
    return oldest


def test_it_is_a_queue() -> None:
    line = IdleQueue(Shared(threading.Lock()))
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
    idle = none_idle()
    entries = opened(idle, "a", "a", "a")
    for each in entries:
        idle.put(each)
    key = entries[0].key
    assert idle.count(key) == 3
    assert [idle.take(key) for _ in range(4)] == [*reversed(entries), None]


def test_uris_do_not_mix() -> None:
    idle = none_idle()
    a, b = opened(idle, "a", "b")
    idle.put(a)
    assert idle.take(b.key) is None
    assert idle.take("ws://h/unknown") is None
    assert idle.take(a.key) is a


def test_the_oldest_of_all_uris_makes_room() -> None:
    idle = none_idle()
    entries = opened(idle, "a", "b", "a", "c")
    for each in entries:
        idle.put(each)
    assert list(idle) == entries
    taken = idle.take(entries[0].key)  # the younger one of the two
    assert taken is entries[2]
    idle.put(taken)  # used just now
    assert [take_oldest(idle) for _ in range(5)] == [entries[0], entries[1], entries[3], entries[2], None]


def test_whoever_removes_it_owns_it() -> None:
    idle = none_idle()
    a, b = opened(idle, "a", "a")
    idle.put(a)
    idle.put(b)
    assert idle.remove(a)
    assert not idle.remove(a)
    assert a not in idle
    assert b in idle
    assert idle.take(a.key) is b
    assert len(idle) == 0


def test_the_queue_goes_with_its_last_connection() -> None:
    idle = none_idle()
    a, b = opened(idle, "a", "a")
    idle.put(a)
    assert idle.keys == [a.key]
    idle.take(a.key)
    idle.count_open(a.key, -1)
    assert idle.keys == [b.key]  # lent ones count
    idle.count_open(b.key, -1)
    assert idle.keys == []
    assert idle.count(b.key) == 0


def test_ten_thousand_uris_leave_nothing_behind() -> None:
    idle = none_idle()
    for number in range(10_000):
        (each,) = opened(idle, str(number))
        idle.put(each)
        if len(idle) > 10:
            oldest = take_oldest(idle)
            assert oldest is not None
            idle.count_open(oldest.key, -1)
    assert len(idle.keys) == len(idle) == 10


@given(
    st.lists(st.tuples(st.sampled_from(["put", "take", "oldest", "remove"]), st.integers(0, 5)), max_size=80)
)
def test_against_a_model(steps: list[tuple[str, int]]) -> None:
    idle = none_idle()
    entries = opened(idle, "a", "a", "a", "b", "b", "c")
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
            got = take_oldest(idle)
            assert got is (model[0] if model else None)
            model = model[1:]
        elif step == "remove":
            assert idle.remove(each) == (each in model)
            model = [other for other in model if other is not each]
        assert list(idle) == model
        assert len(idle) == len(model)
        for key in idle.keys:
            assert idle.count(key) == sum(other.key == key for other in model)


def test_one_that_is_put_back_stands_where_it_stood() -> None:
    idle = none_idle()
    entries = opened(idle, "a", "b", "a")
    for number, each in enumerate(entries):
        each.idle_since = float(number)
        idle.put(each)
    assert idle.remove(entries[0])
    idle.put_back(entries[0])
    assert list(idle) == entries
    assert idle.take(entries[0].key) is entries[2]


def test_the_queues_of_a_pool_share_what_is_large() -> None:
    """500 B each, beside that: with a mutex and three Conditions of their own they took 3,330 B."""
    shared, count = Shared(threading.Lock()), 1000
    entries = [entry() for _ in range(count)]
    queues: list[IdleQueue | None] = [None] * count
    IdleQueue(shared).put_nowait(entries[0])  # what the class has, once
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number, each in enumerate(entries):
            queues[number] = made = IdleQueue(shared)
            made.put_nowait(each)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / count <= 500
