"""How long to wait after a dial has failed: pure decisions, and what is remembered of each URI."""

from __future__ import annotations

import pytest

from jetsocket import ConnectionError, TimeoutError
from jetsocket.cooldown import Troubles, backoff, cooldown, eviction_pause

ALMOST_1 = 0.999999


def test_backoff_grows_within_its_bounds() -> None:
    most = [backoff(failures, ALMOST_1) for failures in range(1, 12)]
    assert most == sorted(most)
    assert most[0] <= 0.1
    assert most[-1] <= 5.0
    assert backoff(3, 0.0) == 0.0  # full jitter
    assert backoff(10**6, 0.5) == 2.5
    assert backoff(3, 0.5, retry_after=7.0) == 7.0


def test_a_cooldown_doubles_up_to_a_minute_with_a_little_jitter() -> None:
    assert [cooldown(1.0, failures, 0.0) for failures in (1, 2, 3, 7, 10**6)] == [1, 2, 4, 60, 60]
    assert cooldown(10.0, 1, ALMOST_1) == pytest.approx(9.0, abs=0.01)
    assert cooldown(100.0, 5, 0.0) == 100.0  # what was asked for is not shortened
    assert cooldown(1.0, 1, 0.5, retry_after=30.0) == 30.0
    assert cooldown(0.0, 5, 0.0, retry_after=30.0) == 0.0  # it was not asked for


def test_evictions_pause_for_a_second_doubled_up_to_a_minute() -> None:
    assert [eviction_pause(failures) for failures in (1, 2, 3, 7, 10**6)] == [1, 2, 4, 60, 60]


def troubles(first_cooldown: float = 0.0) -> Troubles:
    return Troubles(first_cooldown, lambda: 0.5)


def test_dials_that_ran_side_by_side_count_as_one() -> None:
    known = troubles()
    error = ConnectionError("refused")
    for _ in range(8):
        trouble = known.note("a", error, began=10.0, now=11.0, retry_after=None, has_evicted=True)
    assert trouble.failures == 1
    assert trouble.next_eviction_at == 12.0
    known.count_eviction("a", 11.5)
    assert trouble.next_eviction_at == 13.5
    assert known.note("a", error, began=11.5, now=12.0, retry_after=None, has_evicted=True).failures == 2
    assert trouble.next_eviction_at == 14.0
    known.count_eviction("b", 11.5)
    assert known.of("b") is None


def test_dials_that_cost_no_other_uri_a_connection_put_off_none_that_does() -> None:
    """While a server is restarted they fail by the dozen; its callers would wait for a minute afterwards."""
    known = troubles()
    for number in range(10):
        trouble = known.note(
            "a", ConnectionError("refused"), began=number + 0.5, now=number + 1.0, retry_after=None
        )
    assert trouble.failures == 10
    assert trouble.next_eviction_at == 0.0
    known.note("a", ConnectionError("refused"), began=20.0, now=21.0, retry_after=None, has_evicted=True)
    assert trouble.next_eviction_at == 22.0


def test_the_longest_pause_of_a_round_counts() -> None:
    known = troubles()
    known.note("a", ConnectionError("busy"), began=0.5, now=1.0, retry_after=5.0)
    trouble = known.note(
        "a", TimeoutError("late", operation="connect", timeout=1.0), began=0.5, now=2.0, retry_after=None
    )
    assert trouble.next_dial_at == 6.0
    assert "late" in str(trouble.error)


def test_without_a_cooldown_nothing_is_refused() -> None:
    trouble = troubles().note("a", ConnectionError("refused"), began=0.5, now=1.0, retry_after=9.0)
    assert trouble.refuse_until == 0.0
    trouble = troubles(4.0).note("a", ConnectionError("refused"), began=0.5, now=1.0, retry_after=None)
    assert trouble.refuse_until == 1.0 + 4.0 * 0.95


def test_a_success_forgets_it() -> None:
    known = troubles()
    known.note("a", ConnectionError("refused"), began=0.5, now=1.0, retry_after=None)
    known.forget("a")
    assert known.of("a") is None
    assert known.note("a", ConnectionError("refused"), began=2.0, now=3.0, retry_after=None).failures == 1


def test_of_very_many_the_latest_are_known() -> None:
    known = troubles()
    for number in range(2000):
        known.note(f"u{number}", ConnectionError("x"), began=0.0, now=1.0, retry_after=None)
    assert known.of("u0") is None
    assert known.of("u1999") is not None
    assert sum(known.of(f"u{number}") is not None for number in range(2000)) == 1024
    known = troubles()
    for number in range(8):
        known.note(str(number) * 300_000, ConnectionError("x"), began=0.0, now=1.0, retry_after=None)
    assert [known.of(str(number) * 300_000) is not None for number in range(8)] == [False] * 5 + [True] * 3
