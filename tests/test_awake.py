"""The clock by which tests say that something is prompt."""

from __future__ import annotations

from time import monotonic, sleep

from tests.awake import awake


def test_what_sleeps_takes_its_time() -> None:
    began = awake()
    for _ in range(3):
        sleep(0.1)
    assert awake() - began > 0.15  # on a busy machine it wakes late from each, which does not count


def test_it_stands_still_while_no_thread_gets_to_run() -> None:
    awake()
    sleep(0.01)
    began, began_awake = monotonic(), awake()
    while monotonic() - began < 0.3:
        sum(range(3_000_000))  # one call, so no other thread of Python's runs meanwhile
    took, took_awake = monotonic() - began, awake() - began_awake
    assert took_awake < took / 2


def test_it_never_goes_back() -> None:
    seen = [awake() for _ in range(1000)]
    assert seen == sorted(seen)
