"""The whole pool under gevent's monkey patching: crowds of greenlets, struck and killed in any call."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests import scripts
from tests.conftest import Tls
from tests.faults.census import Census
from tests.faults.conftest import Report
from tests.faults.test_forks import authority
from tests.servers import EchoServer, wait_until

pytest.importorskip("gevent")

START = "from gevent import monkey\nmonkey.patch_all()\nimport sys\nfrom tests.faults import greenlets\n"
CAP = 8

# gevent goes on with the parent's greenlets in a forked child, where `threading` has forgotten them: of any
# thread that runs at a fork, gevent tells this at its end.
THREAD_OF_THE_PARENT = re.compile(
    r"\n?Traceback \(most recent call last\):\n(?:  .*\n)*?    self\._delete\(\)\n(?:  .*\n)*?"
    r"    +del _active\[get_ident\(\)\]\n(?:  .*\n)*KeyError: \d+\n.* failed with KeyError\n\n?"
)


def go(work: str, *args: str, watchdog: float = 40) -> scripts.Ended:
    """Run one of the functions of `greenlets`; it must end well, silently, and at once."""
    script = f"{START}greenlets.{work}(*sys.argv[1:])\nprint()\n"
    ended = scripts.run(script, *args, watchdog=watchdog, fresh=True)
    ended.err = THREAD_OF_THE_PARENT.sub("", ended.err)
    assert ended.check().took < 5  # test_exit.py has the tight bound
    return ended


def check_crowd(report: Report, seconds: float, greenlets: int, ca: str = "", context: Any = None) -> None:
    with EchoServer(Census(), ssl_context=context) as server:
        ended = go("crowd", server.uri, ca, str(seconds), str(greenlets), "1", watchdog=seconds + 50)
        wait_until(lambda: server.open_now == 0, 10)
        census = server.handler
        assert isinstance(census, Census)
        assert max(census.most_open.values()) <= CAP
    told: dict[str, Any] = json.loads(ended.out.splitlines()[0])
    killed = told["calls"].pop("killed")
    assert told["calls"]["ask"] > greenlets / 4
    report(
        "gevent",
        scheme=server.uri.split(":")[0],
        seconds=seconds,
        greenlets=greenlets,
        calls=sum(told["calls"].values()),
        struck=told["calls"]["struck"],
        killed=killed,
        errors=json.dumps(told["errors"]),
        foreign=0,
    )


@pytest.mark.slow
def test_two_hundred_greenlets_on_eight_connections(report: Report) -> None:
    check_crowd(report, 1.0, 200)


@pytest.mark.soak
@pytest.mark.timeout(200)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_two_hundred_greenlets_for_long(
    scheme: str, tls: Tls, tmp_path: Path, depth: float, report: Report
) -> None:
    secure = (authority(tls, tmp_path), tls.server_context) if scheme == "wss" else ()
    check_crowd(report, max(2.0, 30 * depth), 200, *secure)


@pytest.mark.slow
def test_greenlets_are_drained() -> None:
    with EchoServer() as server:
        go("drain", server.uri)


@pytest.mark.slow
def test_greenlets_meet_their_deadlines_side_by_side() -> None:
    with EchoServer(Census()) as server:
        go("deadlines", server.uri)


@pytest.mark.soak
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_the_housekeeper_as_a_greenlet(scheme: str, tls: Tls, tmp_path: Path) -> None:
    context = tls.server_context if scheme == "wss" else None
    with EchoServer(Census(), ssl_context=context, ping_interval=0.3, ping_timeout=0.9) as server:
        go("pinged", server.uri, authority(tls, tmp_path) if context else "")


def check_forks(count: int, report: Report, ca: str = "", context: Any = None) -> None:
    with EchoServer(Census(), ssl_context=context) as server:
        ended = go("forks", server.uri, ca, str(count), watchdog=150)
        wait_until(lambda: server.open_now == 0, 10)
        census = server.handler
        assert isinstance(census, Census)
        assert census.foreign == []
        assert max(census.most_open.values()) <= CAP
        assert json.loads(ended.out.splitlines()[0])["calls"]["ask"] > 0
    report("fork under gevent", forks=count, connections=server.opened, messages=server.messages, foreign=0)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_forks_among_greenlets(report: Report) -> None:
    check_forks(4, report)


@pytest.mark.soak
@pytest.mark.timeout(200)
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_many_forks_among_greenlets(
    scheme: str, tls: Tls, tmp_path: Path, depth: float, report: Report
) -> None:
    secure = (authority(tls, tmp_path), tls.server_context) if scheme == "wss" else ()
    check_forks(max(5, round(100 * depth)), report, *secure)
