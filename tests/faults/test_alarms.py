"""Signal handlers that raise, at any moment: what they raise surfaces as itself (DESIGN §4.5).

The usual recipe for a time limit: `signal.setitimer`, and a handler that raises a `TimeoutError`. It strikes
between any two bytecodes, and in every system call that waits. The functions from `storm` on run in a process
of their own.
"""

from __future__ import annotations

import builtins
import contextlib
import faulthandler
import functools
import itertools
import json
import os
import queue
import random
import signal
import socket
import ssl
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests import scripts
from tests.books import faults
from tests.conftest import Tls
from tests.faults.conftest import Report
from tests.servers import EchoServer, refusing_port

ROW = "alarms"
CAP = 4
HEALED = 3.0  # s: two ticks of the housekeeper, and a busy machine
LONG_FORM = 20_000
CHECKED_AFTER = 25  # alarms


class Late(builtins.TimeoutError):
    """What a handler of the usual recipe raises."""


class Broken(OSError):
    """Any other of the system's errors."""


class Plain(Exception):
    """None of them."""


class OfOurs(jetsocket.TimeoutError):
    """One that looks like the library's own."""

    def __init__(self, message: str) -> None:
        super().__init__(message, operation="mine", timeout=None)


class Ended(jetsocket.ConnectionClosedError):
    """Likewise."""


KINDS: dict[str, Callable[[str], BaseException]] = {
    "TimeoutError": builtins.TimeoutError,
    "Late": Late,
    "Broken": Broken,
    "Plain": Plain,
    "Exception": Exception,
    "ValueError": ValueError,
    "OfOurs": OfOurs,
    "Ended": Ended,
    "KeyboardInterrupt": KeyboardInterrupt,
    "ConnectionResetError": ConnectionResetError,
    "BlockingIOError": BlockingIOError,
    "InterruptedError": InterruptedError,
    "SSLWantReadError": ssl.SSLWantReadError,
    "RuntimeError": RuntimeError,
    "LookupError": LookupError,
    "IndexError": IndexError,
    "Empty": queue.Empty,
    "JetSocketError": jetsocket.JetSocketError,
    "PoolClosedError": jetsocket.PoolClosedError,
    "DecodeError": lambda told: jetsocket.DecodeError(told, payload=""),
}


# --- at random moments


@pytest.fixture
def scenery(tls: Tls, tmp_path: Path) -> Iterator[list[str]]:
    """Servers over ws:// and wss:// at 127.0.0.1 and ::1, one that refuses, and what TLS is trusted by."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(tls.ca.cert_pem.bytes())
    with contextlib.ExitStack() as stack:
        servers = [EchoServer(ssl_context=context) for context in (None, tls.server_context)]
        for context in (None, tls.server_context):
            server = EchoServer(ssl_context=context, family=socket.AF_INET6)
            server.host = "::1"
            servers.append(server)
        ports = [str(stack.enter_context(server).port) for server in servers]
        yield [*ports, str(stack.enter_context(refusing_port())), str(trusted)]


def alarms_at_random(scenery: list[str], alarms: int, kinds: str, watchdog: float) -> dict[str, Any]:
    seed = os.environ.get("JETSOCKET_SEED") or str(random.randrange(1 << 32))
    script = "import sys; from tests.faults.test_alarms import storm; storm(*sys.argv[1:])"
    args = (*scenery, str(alarms), kinds, seed, str(watchdog))
    ended = scripts.run(script, *args, watchdog=watchdog, measured=False)
    assert ended.status == 0, f"seed {seed}: {ended.out}\n{ended.err}"
    told: dict[str, Any] = json.loads(ended.out.splitlines()[-1])
    assert not told["trouble"], f"seed {seed}: {json.dumps(told, indent=1)}"
    assert told["surfaced"] + told["swallowed_by_cpython"] == told["raised"] == alarms
    assert told["swallowed_by_cpython"] <= alarms * 0.02
    return told


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param("Late Broken Plain", id="usual", marks=pytest.mark.soak),
        pytest.param(" ".join(KINDS), id="all"),
    ],
)
def test_two_hundred_alarms_at_random_moments(scenery: list[str], kinds: str) -> None:
    alarms_at_random(scenery, 200, kinds, watchdog=50)


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_twenty_thousand_alarms_at_random_moments(scenery: list[str], depth: float, report: Report) -> None:
    alarms = max(1000, int(LONG_FORM * depth))
    figures = alarms_at_random(scenery, alarms, " ".join(KINDS), watchdog=120 + alarms / 20)
    report(ROW, **{name: figure for name, figure in figures.items() if name != "trouble"})


# --- the storm, in a process of its own


class Scene:
    """The pools that are interrupted, and what is done with them."""

    def __init__(self, ports: list[str], refusing: str, trusted: str) -> None:
        plain, secure, plain6, secure6 = ports
        self.bases = [
            f"ws://127.0.0.1:{plain}",
            f"wss://127.0.0.1:{secure}",
            f"ws://localhost:{plain}",
            f"wss://localhost:{secure}",
            f"ws://[::1]:{plain6}",
            f"wss://[::1]:{secure6}",
        ]
        self.refusing = f"ws://127.0.0.1:{refusing}/"
        self.options = {"ssl_context": ssl.create_default_context(cafile=trusted), "close_timeout": 1.0}
        self.pool = ConnectionPool[Any](
            ConnectionPoolConfig(max_connections=CAP, acquire_timeout=20),
            base_uri=self.bases[0],
            manager_kwargs={**self.options, "connect_attempts": 3},
        )
        self.with_callbacks = ConnectionPool[Any](
            ConnectionPoolConfig(max_connections=2, acquire_timeout=20),
            base_uri=self.bases[0],
            manager_kwargs={
                **self.options,
                "connect_attempts": 3,
                "extra_headers": lambda: {"X-Made": json.dumps([1])},
                "serializer": lambda value: json.dumps(value),
                "deserializer": lambda text: json.loads(text),
            },
            configure=lambda conn: self._talk(conn, 2),
            reset=lambda conn: self._talk(conn, 2),
        )
        self.numbers = itertools.count()
        self.large = "x" * 300_000
        # Each with about how long it takes (s), for the alarm is to come in the middle.
        self.works: list[tuple[Callable[[str], None], float]] = [
            (self.reuse, 0.0003),
            (self.talk, 0.003),
            (self.talk_at_length, 0.01),
            (self.request, 0.001),
            (self.connect, 0.005),
            (self.connect, 0.005),
            (self.refused, 0.02),
            (self.callbacks, 0.006),
            (self.wait, 0.02),
            (self.ping, 0.001),
            (self.prewarm, 0.006),
            (self.iterate, 0.003),
            (self.discard, 0.002),
            (self.pool_of_its_own, 0.01),
        ]

    def reuse(self, base: str) -> None:
        self.pool.acquire(base).release()

    def talk(self, base: str) -> None:
        with self.pool.acquire(base) as conn:
            self._talk(conn, 5)

    def _talk(self, conn: Any, times: int) -> None:
        for _ in range(times):
            number = next(self.numbers)
            conn.send(number)
            answer = conn.recv(timeout=10)
            assert answer == number, f"{answer} came for {number}"

    def talk_at_length(self, base: str) -> None:
        with self.pool.acquire(base) as conn:
            conn.send_raw(self.large)
            assert len(conn.recv_raw(timeout=10)) == len(self.large)

    def request(self, base: str) -> None:
        number = next(self.numbers)
        answer = self.pool.request(base, number, timeout=10, idempotent=True)
        assert answer == number, f"{answer} came for {number}"

    def connect(self, base: str) -> None:
        with self.pool.acquire(f"{base}/{next(self.numbers)}"):
            pass

    def refused(self, base: str) -> None:
        try:
            self.pool.acquire(self.refusing)
        except jetsocket.ConnectionError as error:
            if type(error) is not jetsocket.ConnectionError or "refused" not in str(error):
                raise

    def callbacks(self, base: str) -> None:
        with self.with_callbacks.acquire(f"{base}/{next(self.numbers) % 3}") as conn:
            self._talk(conn, 1)

    def wait(self, base: str) -> None:
        try:
            with self.pool.acquire(f"{base}/silent") as conn:
                conn.recv(timeout=0.02)
        except jetsocket.TimeoutError as error:
            if type(error) is not jetsocket.TimeoutError:
                raise

    def ping(self, base: str) -> None:
        with self.pool.acquire(base) as conn:
            conn.ping(10)

    def prewarm(self, base: str) -> None:
        self.pool.prewarm(f"{base}/{next(self.numbers) % 3}", 2)

    def iterate(self, base: str) -> None:
        with self.pool.acquire(f"{base}/push?count=3&every=0") as conn:
            for _ in zip(range(3), conn, strict=False):
                pass

    def discard(self, base: str) -> None:
        with self.pool.acquire(base) as conn:
            conn.discard()

    def pool_of_its_own(self, base: str) -> None:
        config = ConnectionPoolConfig(max_connections=2)
        with ConnectionPool[Any](config, base_uri=base, manager_kwargs=self.options) as mine:
            conn = mine.acquire("/")
            assert conn.request(1, timeout=10) == 1
            other = mine.acquire("/")
            conn.release()
            other.discard()
            other.release()
            mine.drain(10)


class Alarm:
    """A signal handler that raises, once, and remembers what and where."""

    def __init__(self, make: Callable[[str], BaseException], told: str) -> None:
        self._make = make
        self._told = told
        self.raised: BaseException | None = None
        self.where = ""

    def __call__(self, number: int, frame: FrameType | None) -> None:
        stack = traceback.extract_stack(frame, 12)
        self.where = " < ".join(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in reversed(stack))
        self.raised = self._make(self._told)
        raise self.raised


def storm(*given: str) -> None:
    """Let so many alarms strike, one after the other, and compare what surfaces with what was raised."""
    *ports, refusing, trusted, alarms, kinds, seed, watchdog = given
    chance = random.Random(int(seed))
    faulthandler.dump_traceback_later(float(watchdog) - 5, exit=True)  # SIGALRM is taken
    warnings.simplefilter("ignore", ResourceWarning)
    unraisable: list[BaseException | None] = []
    sys.unraisablehook = lambda told: unraisable.append(told.exc_value)
    scene = Scene(ports, refusing, trusted)
    for (work, _), base in itertools.product(scene.works, scene.bases):
        work(base)  # imports and caches are not what is to be struck
    signal.setitimer(signal.ITIMER_REAL, 0)
    swallowed, trouble = [], []
    names = itertools.cycle(kinds.split())
    for number in range(int(alarms)):
        name = next(names)
        alarm = Alarm(KINDS[name], f"alarm {number}")
        (work, usual), base = chance.choice(scene.works), chance.choice(scene.bases)
        surfaced: BaseException | None = None
        signal.signal(signal.SIGALRM, alarm)
        try:
            work_until_struck(functools.partial(work, base), alarm, chance.random() * usual * 1.5 + 1e-6)
        except BaseException as error:
            surfaced = error
        signal.setitimer(signal.ITIMER_REAL, 0)
        if surfaced is not alarm.raised:
            if alarm.raised is not None and is_excused(alarm, surfaced, unraisable):
                swallowed.append(alarm.where)
            else:
                trouble.append(f"{name} in {work.__name__} at {alarm.where}: {surfaced!r}")
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        surfaced = alarm.raised = None  # and with it, its traceback and the leases in there
        unraisable.clear()
        if number % CHECKED_AFTER == 0:
            trouble += settle(scene)
    trouble += settle(scene)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    scene.pool.close()
    scene.with_callbacks.close()
    raised = int(alarms)
    print(
        json.dumps(
            {
                "raised": raised,
                "surfaced": raised - len(swallowed) - len(trouble),
                "swallowed_by_cpython": len(swallowed),
                "where": swallowed,
                "trouble": trouble,
            }
        )
    )


def work_until_struck(work: Callable[[], None], alarm: Alarm, seconds: float) -> None:
    """In a function of its own: Python 3.13 has jumps in a `try` block that it does not guard."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    while alarm.raised is None:
        work()


def is_excused(alarm: Alarm, surfaced: BaseException | None, unraisable: list[BaseException | None]) -> bool:
    """Whether CPython itself swallowed it: in a finalizer, in the codec of host names, in an import."""
    if any(each is alarm.raised for each in unraisable):
        return True
    if surfaced is not None and surfaced.__cause__ is alarm.raised:
        return "idna" in str(surfaced)
    return surfaced is None and "importlib" in alarm.where


def settle(scene: Scene) -> list[str]:
    """Every permit is back: all connections can be had at once, and each serves."""
    end = monotonic() + HEALED
    trouble = []
    for pool, count in ((scene.pool, CAP), (scene.with_callbacks, 2)):
        try:
            with contextlib.ExitStack() as stack:
                left = max(0.1, end - monotonic())
                held = [stack.enter_context(pool.acquire("/", timeout=left)) for _ in range(count)]
                for number, conn in enumerate(held):
                    assert conn.request(number, timeout=HEALED) == number
        except Exception as error:
            trouble.append(f"not whole again: {error!r}; {faults(pool)}")
    return trouble
