"""The clock by which tests say that something is prompt."""

from __future__ import annotations

import os
from time import monotonic, sleep

import pytest

from tests.awake import awake


def test_what_sleeps_takes_its_time() -> None:
    began = awake()
    sleep(1.0)
    assert 0.001 < awake() - began < 1.5  # on a machine that is very busy, little of it counts


def test_it_stands_still_while_no_thread_gets_to_run() -> None:
    pytest.importorskip("gevent.monkey")  # which is to change nothing by being there
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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_it_goes_on_in_a_forked_child() -> None:
    awake()
    if (pid := os.fork()) == 0:
        sleep(0.2)  # the parent's thread would have woken long ago
        began = awake()
        sleep(0.5)
        os._exit(0 if awake() - began > 0.001 else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
