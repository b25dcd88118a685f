"""Percentiles, and how times are written."""

from __future__ import annotations

import random

import pytest

from jetsocket.cli.figures import Latencies, percentile, shown_time, summary


def test_a_percentile_is_one_that_was_measured() -> None:
    times = [number / 100 for number in range(1, 101)]
    random.shuffle(times)
    figures = summary(times)
    assert figures is not None
    assert figures._replace(avg=0) == Latencies(0.01, 0, 0.5, 0.9, 0.95, 0.99, 1.0)
    assert figures.avg == pytest.approx(0.505)


def test_of_one_and_of_none() -> None:
    assert summary([0.25]) == Latencies(*[0.25] * 7)
    assert summary([]) is None


@pytest.mark.parametrize(("share", "value"), [(0, 1), (33, 1), (34, 2), (66, 2), (67, 3), (100, 3)])
def test_nearest_rank(share: float, value: int) -> None:
    assert percentile([1, 2, 3], share) == value


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0.00 us"),
        (0.000_000_5, "0.50 us"),
        (0.000_095_04, "95.0 us"),
        (0.000_999_8, "1.00 ms"),
        (0.012_34, "12.3 ms"),
        (0.123_4, "123 ms"),
        (0.999_9, "1.00 s"),
        (75, "75.0 s"),
        (1234, "1234 s"),
    ],
)
def test_times_have_three_digits_and_a_unit(seconds: float, shown: str) -> None:
    assert shown_time(seconds) == shown
