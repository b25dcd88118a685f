"""Real half-open TCP: the other end of the cable in a network namespace of its own, and the cable pulled."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.link import INTERVAL, TIMEOUT

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
PROBE = "ip link set lo up && ip link add near type veth peer name far && exec unshare --net true"
SLACK = 5.0  # s, for a busy machine

Facts = dict[str, Any]


@pytest.fixture(scope="module")
def namespace() -> list[str]:
    """What a command begins with that runs in a network namespace of its own."""
    for program, package in (("unshare", "util-linux"), ("ip", "iproute2")):
        if shutil.which(program, path=ENVIRONMENT["PATH"]) is None:
            pytest.skip(f"needs {program} (Debian: {package})")
    told = ""
    for prefix in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        tried = subprocess.run(
            [*prefix, "sh", "-c", PROBE],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        if tried.returncode == 0:
            return prefix
        told = tried.stderr.strip()
    pytest.skip(f"network namespaces with a veth pair are not permitted here: {told}")


def play(namespace: list[str], scenario: str, *args: str, timeout: float = 55.0) -> Facts:
    """Run a scenario of `link` between two namespaces; what it saw."""
    command = [*namespace, sys.executable, "-m", "tests.integration.link", scenario, *args]
    ended = subprocess.run(
        command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout + ended.stderr
    facts: Facts = json.loads(ended.stdout)
    return facts


@pytest.fixture(scope="module")
def silence(namespace: list[str]) -> Facts:
    """What happened when the cable was pulled while somebody read, sent, connected, or nobody did."""
    return play(namespace, "silence")


@pytest.mark.parametrize("who", ["reader", "writer"])
def test_blocked_without_a_deadline(silence: Facts, who: str) -> None:
    seen = silence[who]
    assert seen["error"] == "ConnectionClosedError"
    assert f"within health_check_timeout={TIMEOUT:g} s" in seen["told"]
    assert seen["after"] < INTERVAL + TIMEOUT + SLACK


def test_idle_connections_are_found_by_their_missing_pong(silence: Facts) -> None:
    assert silence["idle"]["error"] is None
    assert silence["idle"]["after"] < INTERVAL + TIMEOUT + SLACK
    assert silence["discards"] == {"pong overdue": 2}


@pytest.mark.parametrize(
    ("who", "error", "operation"),
    [
        ("timed reader", "TimeoutError", "recv"),
        ("borrower", "TimeoutError", "recv"),
        ("opener", "PoolExhaustedError", "acquire"),
    ],
)
def test_a_deadline_of_the_callers(silence: Facts, who: str, error: str, operation: str) -> None:
    seen = silence[who]
    assert (seen["error"], seen["operation"]) == (error, operation)
    assert 0.6 < seen["after"] < 0.7 + SLACK


def test_giving_back_what_is_cut_off_holds_nobody(silence: Facts) -> None:
    assert silence["slowest release"] < 1.0


def test_all_is_well_when_the_cable_is_back(silence: Facts) -> None:
    assert silence["stuck"] == 0
    assert set(silence["whole"].values()) == {True}
    assert silence["sockets_kept"] == 0


def test_a_moment_without_the_cable_is_no_loss(namespace: list[str]) -> None:
    assert play(namespace, "moment") == {"answer": [2], "same": True, "opened": 1}


def test_half_open_connections(namespace: list[str]) -> None:
    """The server has forgotten them. Pings find out in time; who sends before that is told."""
    seen = play(namespace, "forgotten")
    assert seen["pinged"]["error"] is None
    assert seen["lent"]["error"] == "ConnectionClosedError"
    assert "ConnectionResetError" in seen["lent"]["cause"]
    assert seen["idempotent"]["error"] is None
    assert seen["whole"] == {"plain": True, "pinged": True}


def test_without_a_network_of_our_own(namespace: list[str]) -> None:
    """The near end is down: the kernel knows, and acquire says so at once."""
    seen = play(namespace, "unplugged_here")
    assert seen["opener"]["error"] == "ConnectionError"
    assert "Network is unreachable" in seen["opener"]["told"]
    assert seen["opener"]["after"] < SLACK
    assert seen["whole"]


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_a_loose_contact(
    namespace: list[str],
    depth: float,
    report: Callable[..., None],
) -> None:
    seconds, seed = max(5.0, 60 * depth), random.randrange(1 << 16)
    print(f"seed {seed}")
    seen = play(namespace, "flapping", str(seconds), str(seed), timeout=seconds + 60)
    assert (seen["stuck"], seen["wrong"], seen["whole"]) == (0, [], True)
    assert seen["slowest"] < 2 * SLACK  # for all of acquire, send and receive 1 s was given
    figures = {name: seen[name] for name in ("pulled", "answered", "opened")}
    slowest = round(seen["slowest"], 2)
    report("network: loose contact", seed=seed, **figures, slowest_s=slowest, foreign=0, **seen["errors"])
