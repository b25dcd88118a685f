"""Deadlines hold while a test suite stops the clock, or sets it."""

from __future__ import annotations

import threading
import time

import pytest

from jetsocket import clock
from tests.scripts import Script
from tests.servers import EchoServer, wait_until
from tests.sizes import pairs

FREEZERS = {
    "freezegun": "freezegun.freeze_time('2020-01-01')",
    "freezegun, ticking": "freezegun.freeze_time('2020-01-01', tick=True)",
    "freezegun, an hour a look": "freezegun.freeze_time('2020-01-01', auto_tick_seconds=3600)",
    "freezegun that spares no module": "freezegun.freeze_time('2020-01-01', ignore=[])",
    "time-machine": "time_machine.travel('2020-01-01', tick=False)",
    "time-machine, ticking": "time_machine.travel('2020-01-01')",
}

# os.times() is a clock that none of them replaces.
SCRIPT = """
import os
import sys
import time

uri, freezer, when = sys.argv[1:]
if when == "before":
    import jetsocket
if freezer.startswith("time_machine"):
    import time_machine
else:
    import freezegun
if "ignore=[]" in freezer:
    freezegun.config.configure(default_ignore_list=["_pytest."])

def took(operation, kind):
    start = os.times().elapsed
    try:
        operation()
    except kind as error:
        return os.times().elapsed - start, error
    raise AssertionError(f"no {kind.__name__}")

with eval(freezer):
    assert time.gmtime().tm_year == 2020 and time.time() < 1_600_000_000, "not frozen"
    import jetsocket

    config = jetsocket.ConnectionPoolConfig(
        max_connections=1, health_check_interval=0.2, max_idle_time=60.0, acquire_timeout=20.0
    )
    with jetsocket.ConnectionPool(config, base_uri=uri) as pool:
        # Neither at once, nor never:
        seconds, error = took(lambda: pool.request("/silent", {}, timeout=0.3), jetsocket.TimeoutError)
        assert 0.25 <= seconds, seconds
        assert pool.request("/late", {"delay": 0.4}, timeout=20) == {"delay": 0.4}
        with pool.acquire("/late") as conn:
            seconds, error = took(lambda: pool.acquire("/late", timeout=0.3), jetsocket.PoolExhaustedError)
            assert 0.25 <= seconds, seconds
            conn.send({"delay": 0.4})
            assert conn.recv(timeout=20) == {"delay": 0.4}
            seconds, error = took(lambda: conn.recv(timeout=0.3), jetsocket.TimeoutError)
            assert 0.25 <= seconds, seconds
            conn.discard()
        assert not pool.request("/late", {}, timeout=20)
        print("idle", flush=True)
        sys.stdin.readline()
        stats = pool.stats()
        assert stats.idle_connections == 1, stats
print("done")
"""


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize(("freezer", "when"), pairs(FREEZERS.values(), ["before", "inside"]))
def test_deadlines_hold_while_time_is_frozen(echo: EchoServer, freezer: str, when: str) -> None:
    """`when` jetsocket is imported: before the freeze, or while it lasts."""
    with Script(SCRIPT, echo.uri, freezer, when, fresh=True) as script:
        if script.line() == "idle":
            pings = echo.pings
            wait_until(lambda: echo.pings >= pings + 2, 10, "the housekeeper pings no more")
            script.say("go on")
        assert script.ended().check().out.endswith("done\n")


@pytest.mark.parametrize("seconds", [10**400, float("inf"), 1e300])
def test_a_deadline_is_no_later_than_locks_wait(seconds: float) -> None:
    lock = threading.Lock()
    assert lock.acquire(timeout=clock.deadline_in(seconds) - clock.monotonic())
    assert clock.deadline_in(-seconds) < clock.monotonic() < clock.deadline_in(60) < clock.monotonic() + 61


def test_the_clock_is_the_system_s() -> None:
    before = time.monotonic()
    between = clock.monotonic()
    assert before <= between <= time.monotonic()
