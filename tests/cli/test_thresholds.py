"""`--fail-if`: what it takes, what it refuses, and when it fails."""

from __future__ import annotations

import pytest

from jetsocket.cli.exits import UsageError
from jetsocket.cli.figures import Latencies
from jetsocket.cli.thresholds import Figures, read

FIGURES = Figures(200, 4, 120.0, Latencies(0.001, 0.004, 0.003, 0.008, 0.02, 0.05, 0.2))


@pytest.mark.parametrize(
    "text",
    [
        "min>900us", "avg>3ms", "p50>2.5ms", "p90>7ms", "p95>19ms", "p99>49ms", "max>0.1s", "max<1s",
        " p99 > 49 ms ", "errors>3", "errors<5", "errors>1%", "errors>1.9%", "rate<121", "rate>100.5",
    ],
)  # fmt: skip
def test_one_that_fails(text: str) -> None:
    told = read(text).failed(FIGURES)
    assert told is not None and told.startswith(text.strip())


@pytest.mark.parametrize(
    "text",
    [
        "min<1ms",
        "min>1ms",
        "p99>50ms",
        "p99>1s",
        "max<200ms",
        "errors>4",
        "errors<4",
        "errors>2%",
        "rate<120",
    ],
)
def test_one_that_does_not_fail(text: str) -> None:
    assert read(text).failed(FIGURES) is None


@pytest.mark.parametrize(
    "text",
    [
        "", "p99", "p99>", ">50ms", "p99>50", "p99=50ms", "p99>=50ms", "p99>-1ms", "p98>1ms", "p99>50m",
        "p99>50 ns", "p99>nan", "p99>1e3ms", "errors>1ms", "errors>101%", "errors>%", "rate>1%", "rate>1s",
        "latency>1ms", "p99>1ms p50>1ms", "p99>1ms\n",
    ],
)  # fmt: skip
def test_one_that_is_none(text: str) -> None:
    if text.endswith("\n"):
        assert read(text).text == "p99>1ms"  # blanks around it are no matter
        return
    with pytest.raises(UsageError, match="--fail-if") as caught:
        read(text)
    assert "p99>50ms" in caught.value.remedy


def test_where_nothing_was_replied_to_a_latency_fails() -> None:
    nothing = Figures(3, 3, 0.0, None)
    assert read("p99<1ms").failed(nothing) == "p99<1ms: no request had a reply"
    assert read("errors>99%").failed(nothing) == "errors>99%: errors is 100 %"


def test_where_nothing_was_asked_all_of_it_failed() -> None:
    assert read("errors>1%").failed(Figures(0, 0, 0.0, None)) is not None
