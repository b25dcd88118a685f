"""Idle queues: last in first out by URI, removal by name, one age order over all, and nothing left behind."""

from __future__ import annotations

import queue
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.entry import Entry
from jetsocket.state.idle_queues import Idle, IdleQueue, Shared
from jetsocket.uris import parse
from jetsocket.wire.websocket import WebSocket


def entry(name: str = "a") -> Entry:
    return Entry(parse(f"ws://h/{name}"), WebSocket())


def new() -> Idle:
    return Idle(Shared(threading.Lock()))


def opened(idle: Idle, *names: str) -> list[Entry]:
    entries = [entry(name) for name in names]
    for each in entries:
        idle.count_open(each.key, 1)
    return entries


def test_it_is_a_queue() -> None:
    mutex = threading.Lock()
    line = IdleQueue(Shared(mutex))
    assert isinstance(line, queue.Queue)
    first, second, third = entry(), entry(), entry()
    for each in (first, second, third):
        line.put_nowait(each)
    with mutex:  # those that wait take it
        assert line.get_nowait() is third
    assert line.qsize() == 2
    assert line.remove(second)
    assert not line.remove(second)
    assert line.get(timeout=1) is first
    assert line.empty()


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


def test_the_most_recently_used_comes_first() -> None:
    idle = new()
    entries = opened(idle, "a", "a", "a")
    for each in entries:
        idle.put(each)
    key = entries[0].key
    assert idle.count(key) == 3
    assert [idle.take(key) for _ in range(4)] == [*reversed(entries), None]


def test_uris_do_not_mix() -> None:
    idle = new()
    a, b = opened(idle, "a", "b")
    idle.put(a)
    assert idle.take(b.key) is None
    assert idle.take("ws://h/unknown") is None
    assert idle.take(a.key) is a


def test_they_are_ordered_by_age_whatever_their_uri() -> None:
    idle = new()
    entries = opened(idle, "a", "b", "a", "c")
    for each in entries:
        idle.put(each)
    assert list(idle) == entries
    taken = idle.take(entries[0].key)  # the younger one of the two
    assert taken is entries[2]
    idle.put(taken)  # used just now
    assert list(idle) == [entries[0], entries[1], entries[3], entries[2]]


def test_one_that_is_put_back_keeps_its_age() -> None:
    idle = new()
    entries = opened(idle, "a", "b", "a", "a")
    for age, each in enumerate(entries):
        each.idle_since = float(age)
        idle.put(each)
    assert idle.remove(entries[0])
    idle.put_back(entries[0])
    assert list(idle) == entries
    assert idle.take(entries[0].key) is entries[3]


def test_what_is_removed_is_there_for_no_other() -> None:
    idle = new()
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
    idle = new()
    a, b = opened(idle, "a", "a")
    idle.put(a)
    assert (idle.keys, idle.open(a.key)) == ([a.key], 2)
    idle.take(a.key)
    idle.count_open(a.key, -1)
    assert idle.keys == [b.key]  # lent ones count
    idle.count_opening(b.key, 1)
    idle.count_open(b.key, -1)
    assert (idle.keys, idle.open(b.key), idle.opening(b.key)) == ([b.key], 0, 1)  # and those being opened
    idle.count_opening(b.key, -1)
    assert idle.keys == []
    assert (idle.count(b.key), idle.open(b.key), idle.opening(b.key)) == (0, 0, 0)


@pytest.mark.slow
def test_ten_thousand_uris_leave_nothing_behind() -> None:
    idle = new()
    for number in range(10_000):
        (each,) = opened(idle, str(number))
        idle.put(each)
        if len(idle) > 10:
            oldest = next(iter(idle))
            assert idle.remove(oldest)
            idle.count_open(oldest.key, -1)
    assert len(idle.keys) == len(idle) == 10


def test_rebuilt_it_says_what_the_places_say() -> None:
    idle = new()
    entries = opened(idle, "a", "b", "a")
    for age, each in enumerate(entries):
        each.move("lent")
        each.idle_since = -float(age)
        if each is not entries[1]:
            each.move("idle")
    idle.rebuild(["ws://h/c"], entries)
    assert list(idle) == [entries[2], entries[0]]
    assert [idle.open(f"ws://h/{name}") for name in "abc"] == [2, 1, 0]
    assert [idle.opening(f"ws://h/{name}") for name in "abc"] == [0, 0, 1]


@given(st.lists(st.tuples(st.sampled_from(["put", "take", "remove"]), st.integers(0, 5)), max_size=80))
def test_against_a_model(steps: list[tuple[str, int]]) -> None:
    idle = new()
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
        elif step == "remove":
            assert idle.remove(each) == (each in model)
            model = [other for other in model if other is not each]
        assert list(idle) == model
        assert len(idle) == len(model)
        for key in idle.keys:
            assert idle.count(key) == sum(other.key == key for other in model)
