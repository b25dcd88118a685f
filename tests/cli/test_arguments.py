"""Options stand anywhere, and their values are checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jetsocket.cli.arguments import count, count_from_0, parse, port, rate, seconds
from jetsocket.cli.exits import UsageError
from jetsocket.cli.parsers import build


@pytest.mark.parametrize(
    "arguments",
    [
        ["-n", "2", "URI", "a", "b"],
        ["URI", "-n", "2", "a", "b"],
        ["URI", "a", "-n2", "b"],
        ["URI", "a", "b", "--replies=2"],
        ["-n", "2", "--", "URI", "a", "b"],
        ["URI", "-n", "2", "--", "a", "b"],
    ],
)
def test_options_may_stand_anywhere(arguments: list[str]) -> None:
    options, others = parse(build()[1]["call"], arguments)
    assert (options.replies, others) == (2, ["URI", "a", "b"])


def test_what_begins_with_a_dash_stands_behind_two() -> None:
    parser = build()[1]["call"]
    assert parse(parser, ["URI", "-"])[1] == ["URI", "-"]
    assert parse(parser, ["URI", "--", "-1", "--json", "--"])[1] == ["URI", "-1", "--json", "--"]
    for wrong in (["URI", "-1"], ["URI", "--nope"], ["URI", "-x", "y"], ["--jso", "URI"]):
        with pytest.raises(UsageError, match="there is no option -"):
            parse(parser, wrong)


def test_q_is_the_rate_of_a_bench_and_quiet_elsewhere() -> None:
    commands = build()[1]
    assert parse(commands["bench"], ["-q", "50", "URI"])[0].rate == 50
    assert parse(commands["bench"], ["--quiet", "URI"])[0].quiet
    for name in ("call", "listen", "ping", "check"):
        assert parse(commands[name], ["-q", "URI"])[0].quiet


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (count, "1", 1), (count_from_0, "0", 0), (port, "65535", 65535), (rate, "0.5", 0.5),
        (seconds, "2", 2), (seconds, "0.5", 0.5), (seconds, ".5s", 0.5), (seconds, "200ms", 0.2),
        (seconds, "2m", 120), (seconds, "1h", 3600),
    ],
)  # fmt: skip
def test_values(read: Callable[[str], Any], text: str, value: float) -> None:
    assert read(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("option", "command", "text"),
    [
        *(("-n", "listen", text) for text in ("0", "-1", "x", "1.5", "", "¹", "9" * 13)),
        *(("-t", "call", text) for text in ("0", "-1", "nan", "inf", "1 s", "x", "", "1d", "9999999h")),
        *(("-q", "bench", text) for text in ("0", "x", "-1", "1e3", "9999999")),
        *(("--port", "serve", text) for text in ("65536", "-1", "http")),
    ],
)
def test_bad_values(option: str, command: str, text: str) -> None:
    with pytest.raises(UsageError, match=option):
        parse(
            build()[1][command],
            [f"{option}={text}" if option.startswith("--") else option, text][
                : 1 + (not option.startswith("--"))
            ],
        )
