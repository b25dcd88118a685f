"""Exceptions between any two bytecodes: nothing is lost that does not come back (DESIGN §4.5).

`PyThreadState_SetAsyncExc` strikes threads at random, in whatever the pool is doing for them; Ctrl-C strikes
the main thread in every place where it can wait. The functions from `storm` on run in a process of their own.
"""

from __future__ import annotations

import _thread
import contextlib
import ctypes
import faulthandler
import gc
import itertools
import json
import logging
import os
import random
import select
import signal
import socket
import ssl
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionClosedError, ConnectionPool, ConnectionPoolConfig, PoolClosedError
from jetsocket.housekeeper import Housekeeper
from jetsocket.state.repair import Repair
from jetsocket.wire.dial import Dialing
from jetsocket.wire.stream import Stream
from jetsocket.wire.websocket import WebSocket
from tests import scripts
from tests.awake import awake
from tests.books import faults, state_of
from tests.conftest import Tls
from tests.faults.conftest import Report
from tests.servers import (
    LOCALHOST,
    EchoServer,
    RawServer,
    after_upgrade,
    hold,
    open_fds,
    open_sockets,
    refusing_port,
    upgrade,
    wait_until,
)
from tests.sizes import size

ROW = "async exceptions"
CAP = 4
VICTIMS = 6  # more than there are connections: some stand in line
LIBRARY = os.path.dirname(jetsocket.__file__)
HEALED = 4.0  # s: two rounds of the housekeeper, a dial that no caller waits for, a busy machine
LONG_FORM = 20_000
QUICK = 1e-5  # s between two switches of threads


# --- at random moments


@pytest.fixture
def three(tls: Tls, tmp_path: Path) -> Iterator[tuple[EchoServer, EchoServer, EchoServer, str]]:
    """A server over ws://, one over wss://, one for pools made in passing; what the second is trusted by."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(tls.ca.cert_pem.bytes())
    with EchoServer() as plain, EchoServer(ssl_context=tls.server_context) as secure, EchoServer() as other:
        yield plain, secure, other, str(trusted)


Three = tuple[EchoServer, EchoServer, EchoServer, str]


def strike_at_random(three: Three, strikes: int, batch: int, watchdog: float) -> dict[str, Any]:
    """Run `storm`, and see between two batches that the servers count what the pool believes to have."""
    plain, secure, other, trusted = three
    seed = os.environ.get("JETSOCKET_SEED") or str(random.randrange(1 << 32))
    script = "from tests.faults.test_async_exceptions import storm; storm(*sys.argv[1:])"
    args = (plain.uri, secure.uri, other.uri, trusted, str(strikes), str(batch), seed)
    with scripts.Script("import sys; " + script, *args, watchdog=watchdog, measured=False) as running:
        while line := running.line():
            told: dict[str, Any] = json.loads(line)
            assert "trouble" not in told, f"seed {seed}: {told['trouble']}\n{running.ended().err}"
            if "raised" in told:
                break
            wait_until(lambda: plain.open_now == told["plain"], HEALED, f"{told}, {plain.open_now} open")  # noqa: B023
            wait_until(lambda: secure.open_now == told["secure"], HEALED, f"{told}, {secure.open_now} open")  # noqa: B023
            wait_until(lambda: other.open_now == 0, HEALED, f"{told}, {other.open_now} of closed pools open")
            running.say("go on")
        ended = running.ended()
    assert ended.status == 0 and line, f"seed {seed}: {ended}"
    assert max(plain.most_open, secure.most_open) <= CAP
    return told


@pytest.mark.slow
def test_two_hundred_strikes_at_random_moments(three: Three) -> None:
    figures = strike_at_random(three, 200, 50, watchdog=50)
    assert figures["landed"] > 40  # the rest came when that thread was at its end, or starved


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_twenty_thousand_strikes_at_random_moments(three: Three, depth: float, report: Report) -> None:
    strikes = max(200, int(LONG_FORM * depth))
    figures = strike_at_random(three, strikes, 100, watchdog=60 + strikes / 25)
    report(ROW, **figures)
    assert figures["landed"] > strikes * 0.2


# --- at each moment of one operation


class Strike:
    """A profile function that raises KeyboardInterrupt at the so-manieth call or return of `Dialing.open`."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if not may_be_struck(frame):
            return
        self.left -= 1
        if self.left < 0:
            sys.setprofile(None)
            self.where = f"{event} {getattr(arg, '__name__', '')} in {frame.f_code} line {frame.f_lineno}"
            raise KeyboardInterrupt


def may_be_struck(frame: FrameType | None) -> bool:
    """In `Dialing.open`, but not while a pair of sockets is made: `socketpair` itself can lose one."""
    while frame is not None and frame.f_code is not Dialing.open.__code__:
        ours = frame.f_code is Stream.__init__.__code__ and "sock" in frame.f_locals
        if frame.f_code.co_name == "socketpair" or (ours and frame.f_locals["sock"].family == socket.AF_UNIX):
            return False
        frame = frame.f_back
    return frame is not None


@pytest.mark.deep
@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_connect_that_is_struck_at_any_moment_leaves_no_socket(
    echo: EchoServer, echo_tls: EchoServer, tls: Tls, secure: bool
) -> None:
    server = echo_tls if secure else echo
    before = open_sockets()

    def whole_again() -> bool:
        return open_sockets() == before or bool(gc.collect() and False)  # selectors are cycles

    step = (
        size(41, 17) if secure else size(7, 3)
    )  # dialling is the same, and then come the many moments of a TLS handshake
    for moment in itertools.count(random.randrange(step), step):
        wire, strike = WebSocket(), Strike(moment)
        sys.setprofile(strike)
        try:
            wire.connect(server.uri, timeout=5, ssl_context=tls.client_context, proxy=None)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
            del wire
        wait_until(whole_again, HEALED, f"no socket is left after {strike.where}")
    assert moment > 50


def test_a_connect_that_is_struck_locks_nobody_out(echo_tls: EchoServer, tls: Tls) -> None:
    """Whatever all TLS sessions of the process share must not stay locked; here at each of its moments."""

    def connect() -> None:
        wire = WebSocket()
        wire.connect(echo_tls.uri, timeout=HEALED, ssl_context=tls.client_context, proxy=None)
        wire.shutdown()

    class InEnroll(Strike):
        def __call__(self, frame: FrameType, event: str, arg: object) -> None:
            above: FrameType | None = frame
            while above is not None and above.f_code.co_name != "enroll":
                above = above.f_back
            if above is not None:
                super().__call__(frame, event, arg)

    for moment in itertools.count():
        sys.setprofile(InEnroll(moment))
        try:
            connect()
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
        other = threading.Thread(target=connect, daemon=True)
        other.start()
        other.join(HEALED)
        assert not other.is_alive(), f"struck at moment {moment}"
    assert moment > 1


@contextlib.contextmanager
def struck_in(name: str) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread when that function of the library is called, and swallow it."""
    pending = [True]

    def look(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name == name:
            sys.setprofile(None)
            pending.clear()
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    assert not pending, f"{name}() was not called"


@pytest.mark.parametrize("step", ["dismiss", "claim", "close_all", "forget"])
def test_a_pool_whose_close_was_interrupted_is_gone_once_it_is_dropped(echo: EchoServer, step: str) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri, name="half-closed")
    idle, lent = pool.acquire("/"), pool.acquire("/")
    idle.release()
    with struck_in(step):
        pool.close()
    lent.release()
    del pool, idle, lent
    gc.collect()  # tracebacks may make cycles
    wait_until(lambda: not [t for t in threading.enumerate() if "half-closed" in t.name], HEALED)
    gc.collect()  # its books and its thread know each other
    wait_until(lambda: echo.open_now == 0, HEALED)


@pytest.mark.parametrize("step", ["close", "_turn_away_the_line", "dismiss", "claim", "close_all", "forget"])
def test_closing_again_does_what_an_interrupt_kept_the_first_from(echo: EchoServer, step: str) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri, name="closed-again")
    idle, lent = pool.acquire("/"), pool.acquire("/")
    idle.release()
    with struck_in(step):
        pool.close()
    pool.close()
    assert not [t for t in threading.enumerate() if "closed-again" in t.name]
    wait_until(lambda: echo.open_now == 0, HEALED)
    stats = pool.stats()
    assert (pool.is_closed, stats.active_connections, stats.idle_connections) == (True, 0, 0)
    with pytest.raises(ConnectionClosedError, match="the pool was closed"):
        lent.recv(timeout=HEALED)
    pool.close()


@pytest.mark.parametrize("ending", ["close", "drain"])
def test_who_waits_is_woken_though_an_interrupt_kept_close_or_drain_from_it(
    echo: EchoServer, ending: str
) -> None:
    pool = ConnectionPool[Any](ConnectionPoolConfig(max_connections=1), base_uri=echo.uri)
    with ThreadPoolExecutor(1) as other, pool.acquire("/") as conn:
        waiting = other.submit(pool.acquire, "/", 20)
        wait_until(lambda: pool.stats().waiting == 1)
        with struck_in("_turn_away_the_line"):
            getattr(pool, ending)()
        with pytest.raises(PoolClosedError):
            waiting.result(HEALED)
        conn.discard()
    pool.close()


def test_drain_ends_though_an_interrupt_struck_the_last_release(echo: EchoServer) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool, ThreadPoolExecutor(1) as other:
        conn = pool.acquire("/")
        draining = other.submit(pool.drain, 20)
        wait_until(lambda: state_of(pool).draining)
        with struck_in("_wake_drainers"):
            conn.release()
        assert draining.result(HEALED)


# --- Ctrl-C, wherever the main thread can wait


def sit(sock: socket.socket) -> None:
    """Do the upgrade, then read nothing, until the client is gone."""
    upgrade(sock)
    poller = select.poll()
    poller.register(sock, select.POLLRDHUP)
    poller.poll()


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that answers no attempt to connect: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server((LOCALHOST, 0), backlog=0))
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.settimeout(0.1)
            with contextlib.suppress(TimeoutError):
                filler.connect(listener.getsockname())
        yield f"ws://{LOCALHOST}:{listener.getsockname()[1]}"


@pytest.mark.slow
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "secure", [pytest.param(False, id="ws"), pytest.param(True, id="wss", marks=pytest.mark.soak)]
)
def test_ctrl_c_surfaces_in_a_second_wherever_the_main_thread_waits(
    tls: Tls, tmp_path: Path, black_hole: str, secure: bool, report: Report
) -> None:
    context = tls.server_context if secure else None
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(tls.ca.cert_pem.bytes())
    with (
        EchoServer(ssl_context=context) as echo,
        RawServer(hold) as mute,
        RawServer(after_upgrade(), ssl_context=context) as silent,
        RawServer(sit, ssl_context=context) as deaf,
        refusing_port() as port,
    ):
        uris = {
            "echo": echo.uri,
            "mute": mute.uri if not secure else mute.uri.replace("ws:", "wss:"),
            "silent": silent.uri,
            "deaf": deaf.uri,
            "hole": black_hole,
            "nobody": f"ws://{LOCALHOST}:{port}",
            "unknown": "ws://a-name.invalid",
        }
        script = "import sys; from tests.faults.test_async_exceptions import ctrl_c; ctrl_c(*sys.argv[1:])"
        ended = scripts.run(script, json.dumps(uris), str(trusted), measured=False, watchdog=100).check()
        wait_until(lambda: echo.open_now == 0)
    took = json.loads(ended.out)
    assert len(took) == len(PLACES)
    late = {place: seconds for place, seconds in took.items() if seconds > 1.0}
    assert not late, "a busy machine is late in one place perhaps, not in many"
    report("Ctrl-C", places=len(took), slowest_ms=round(max(took.values()) * 1000, 1))


class Blocked:
    """What the main thread waits in: a pool of two connections, and where to connect to."""

    def __init__(self, uris: dict[str, str], context: ssl.SSLContext) -> None:
        self.uris = uris
        self.context = context
        self.pools: list[ConnectionPool[Any]] = []

    def pool(self, base: str = "echo", callbacks: dict[str, Any] | None = None, **options: Any) -> Any:
        options = {"ssl_context": self.context, "close_timeout": 0.1, **options}
        config = ConnectionPoolConfig(max_connections=2, acquire_timeout=30)
        self.pools.append(
            ConnectionPool(config, base_uri=self.uris[base], manager_kwargs=options, **(callbacks or {}))
        )
        return self.pools[-1]

    def connect(self, base: str) -> None:
        self.pool(base, connect_timeout=2).acquire("/")

    def connect_to_an_unknown_name(self) -> None:
        over, real = threading.Event(), socket.getaddrinfo

        def hang(*args: Any, **kwargs: Any) -> Any:
            over.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "too late")

        socket.getaddrinfo = hang
        try:
            self.connect("unknown")
        finally:
            over.set()
            socket.getaddrinfo = real

    def backoff(self) -> None:
        self.pool("nobody", connect_attempts=1000).acquire("/")

    def prewarm(self) -> None:
        self.pool("mute", connect_timeout=2).prewarm("/", 2)

    def line(self) -> None:
        pool = self.pool()
        with pool.acquire("/"), pool.acquire("/"):
            pool.acquire("/")

    def room(self) -> None:
        pool = self.pool("silent", close_timeout=30)
        for conn in [pool.acquire("/") for _ in range(2)]:
            conn.release()
        pool.acquire("/other")

    def recv(self) -> None:
        with self.pool().acquire("/") as conn:
            conn.recv()

    def iterate(self) -> None:
        with self.pool().acquire("/") as conn:
            for _ in conn:
                pass

    def request(self) -> None:
        with self.pool("silent").acquire("/") as conn:
            conn.request(1)

    def request_of_the_pool(self) -> None:
        self.pool("silent").request("/", 1)

    def send(self) -> None:
        with self.pool("deaf").acquire("/") as conn:
            conn.send(b"x" * (32 << 20))

    def send_behind_another(self) -> None:
        with self.pool("deaf").acquire("/") as conn:
            other = threading.Thread(target=self.send_in_vain, args=(conn,))
            other.start()
            wait_until(lambda: conn._entry.wire.lock.locked())
            try:
                conn.send(b"x")
            finally:
                conn._entry.wire.cut("the test goes on")
                other.join()

    def send_in_vain(self, conn: Any) -> None:
        with contextlib.suppress(ConnectionClosedError):
            conn.send(b"x" * (32 << 20))

    def ping(self) -> None:
        with self.pool("silent").acquire("/") as conn:
            conn.ping()

    def configure(self) -> None:
        self.pool("silent", {"configure": self.wait_for_the_silent}, connect_timeout=2).acquire("/")

    def reset(self) -> None:
        self.pool("silent", {"reset": self.wait_for_the_silent}).acquire("/").release()

    def wait_for_the_silent(self, conn: Any) -> None:
        if conn.uri.startswith(self.uris["silent"]):
            conn.recv()

    def drain(self) -> None:
        pool = self.pool()
        with pool.acquire("/"):
            pool.drain()

    def close(self) -> None:
        pool = self.pool("silent", close_timeout=30)
        pool.acquire("/").release()
        pool.close()


# Where the main thread waits.
PLACES: dict[str, Callable[[Blocked], None]] = {
    "a name look-up": Blocked.connect_to_an_unknown_name,
    "TCP": lambda blocked: blocked.connect("hole"),
    "TLS handshake, or upgrade": lambda blocked: blocked.connect("mute"),
    "between two attempts": Blocked.backoff,
    "prewarm": Blocked.prewarm,
    "in line": Blocked.line,
    "making room": Blocked.room,
    "recv": Blocked.recv,
    "iteration": Blocked.iterate,
    "request": Blocked.request,
    "request of the pool": Blocked.request_of_the_pool,
    "send": Blocked.send,
    "send, behind another": Blocked.send_behind_another,
    "ping": Blocked.ping,
    "configure": Blocked.configure,
    "reset": Blocked.reset,
    "drain": Blocked.drain,
    "close": Blocked.close,
}


def ctrl_c(given: str, trusted: str) -> None:
    """In a process of its own: be interrupted in each of the places, and see that nothing is lost."""
    uris, context = json.loads(given), ssl.create_default_context(cafile=trusted)
    before = open_sockets()
    took = {}
    for place, wait in PLACES.items():
        blocked, sent = Blocked(uris, context), []
        interrupter = threading.Thread(target=interrupt_who_waits, args=(sent,))
        interrupter.start()
        try:
            wait(blocked)
            raise AssertionError(f"{place}: it did not wait")
        except KeyboardInterrupt:
            took[place] = awake() - sent[0]
        interrupter.join()
        for pool in blocked.pools:
            all_is_back(place, pool, uris["echo"])
        blocked.pools.clear()
        wait_until(lambda: gc.collect() >= 0 and open_sockets() == before, HEALED, f"{place}: sockets")
    tell(**took)


def all_is_back(place: str, pool: ConnectionPool[Any], uri: str) -> None:
    """The pool can lend as many connections as ever, or is closed; and it ends without delay."""
    if not (pool.is_closed or state_of(pool).draining):
        with contextlib.ExitStack() as stack:
            for conn in [stack.enter_context(pool.acquire(uri, timeout=HEALED)) for _ in range(2)]:
                conn.release()
    wait_until(lambda: not state_of(pool).lent, HEALED, f"{place}: leases")
    assert not faults(pool), f"{place}: {faults(pool)}"
    pool.close(timeout=0.2)


def interrupt_who_waits(sent: list[float]) -> None:
    """Send SIGINT as soon as the main thread stands still in the library."""
    wait_for_standstill()
    sent.append(awake())
    os.kill(os.getpid(), signal.SIGINT)


def wait_for_standstill() -> None:
    """Return when the main thread waits in a function of the library."""
    main = threading.main_thread().ident
    last, still = None, 0
    while still < 10:
        sleep(0.01)
        frame = sys._current_frames()[main]  # type: ignore[index]
        now = (frame.f_lasti, frame.f_code)  # not the frame: a wait in a loop is a new call each time
        files = {each.f_code.co_filename for each, _ in traceback.walk_stack(frame)}
        inside = any(file.startswith(LIBRARY) for file in files)
        still = still + 1 if now == last and inside else 0
        last = now
        del frame


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="the exception strikes who it is for")
@pytest.mark.timeout(30)
def test_a_strike_at_the_birth_of_the_housekeeper_holds_up_no_borrower(
    echo: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until a new thread runs, CPython takes it for the one that starts it, and ends it at its birth."""
    start, strikes, served = _thread.start_new_thread, iter([Struck]), []

    def start_and_strike(*args: Any) -> int:
        started: int = start(*args)
        if threading.current_thread() is borrower:
            for error in strikes:
                ident = ctypes.c_ulong(threading.get_ident())
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ident, ctypes.py_object(error))
        return started

    def borrow() -> None:
        with pool.acquire("/", 10) as conn:
            served.append(conn.request(1, 5))

    interval = sys.getswitchinterval()
    monkeypatch.setattr(sys, "unraisablehook", lambda told: None)
    monkeypatch.setattr(threading, "excepthook", lambda told: None)
    monkeypatch.setattr(_thread, "start_new_thread", start_and_strike)
    monkeypatch.setattr(threading, "_start_new_thread", start_and_strike)
    with ConnectionPool[Any](base_uri=echo.uri) as pool:
        borrower = threading.Thread(target=borrow, daemon=True)
        sys.setswitchinterval(5)  # the new one does not run before the strike
        try:
            borrower.start()
            borrower.join(15)
        finally:
            sys.setswitchinterval(interval)
        assert not borrower.is_alive()
        assert served in ([1], [])  # [] where it struck the borrower after all
        assert pool.request("/", 2, 5) == 2


# --- the storm, in a process of its own


class Struck(BaseException):
    """What strikes."""


class Count(logging.Handler):
    """How often something had to be healed, by what the library itself says or does."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.rebuilt = self.found = 0
        self.other: list[str] = []
        logging.getLogger("jetsocket").addHandler(self)
        rebuild, take_back = Repair._rebuild, Housekeeper._take_back

        def counting_rebuild(state: Repair) -> None:
            self.rebuilt += 1
            rebuild(state)

        def counting_take_back(keeper: Housekeeper, borrower: Any, reason: str) -> None:
            self.found += 1
            take_back(keeper, borrower, reason)

        Repair._rebuild = counting_rebuild  # type: ignore[method-assign]  # it is counted
        Housekeeper._take_back = counting_take_back  # type: ignore[method-assign]  # likewise

    def emit(self, record: logging.LogRecord) -> None:
        if "was dropped without release" not in record.getMessage():
            self.other.append(record.getMessage())


class Scene:
    """The pool that is struck, what is done with it, and the gate that lets nobody begin anything new."""

    def __init__(self, plain: str, secure: str, other: str, trusted: str) -> None:
        self.context = ssl.create_default_context(cafile=trusted)
        self.pool: ConnectionPool[Any] = ConnectionPool(
            ConnectionPoolConfig(max_connections=CAP, acquire_timeout=20),
            base_uri=plain,
            manager_kwargs={"ssl_context": self.context, "close_timeout": 1.0},
        )
        self.plain, self.secure, self.other = plain, secure, other
        self.numbers = itertools.count()
        # A bare lock taken by `with`: an Event's own lock could be lost to a strike.
        self.gate = threading.Lock()
        self.trouble: list[str] = []
        self.alien: set[str] = set()
        self.lost_in_pairs = 0
        self.works: list[Callable[[], None]] = [
            self.reuse,
            self.talk,
            self.talk_over_tls,
            self.connect,
            self.connect_over_tls,
            self.request,
            self.ping,
            self.prewarm,
            self.iterate,
            self.drop,
            self.release_twice,
            self.pool_of_its_own,
        ]

    def reuse(self) -> None:
        with self.pool.acquire("/"):
            pass

    def talk(self) -> None:
        self._talk("/")

    def talk_over_tls(self) -> None:
        self._talk(self.secure)

    def _talk(self, uri: str) -> None:
        with self.pool.acquire(uri) as conn:
            for _ in range(5):
                number = next(self.numbers)
                conn.send(number)
                answer = conn.recv(timeout=10)
                assert answer == number, f"{answer} came for {number}"

    def connect(self) -> None:
        with self.pool.acquire(f"/{next(self.numbers)}"):
            pass

    def connect_over_tls(self) -> None:
        with self.pool.acquire(f"{self.secure}/{next(self.numbers)}"):
            pass

    def request(self) -> None:
        number = next(self.numbers)
        answer = self.pool.request("/", number, timeout=10)
        assert answer == number, f"{answer} came for {number}"

    def ping(self) -> None:
        with self.pool.acquire("/") as conn:
            conn.ping(10)

    def prewarm(self) -> None:
        self.pool.prewarm(f"/{next(self.numbers) % 3}", 2)

    def iterate(self) -> None:
        with self.pool.acquire("/push?count=3&every=0") as conn:
            for _ in zip(range(3), conn, strict=False):
                pass

    def drop(self) -> None:
        self.pool.acquire("/")

    def release_twice(self) -> None:
        conn = self.pool.acquire("/")
        conn.release()
        conn.release()
        self.pool.stats()

    def pool_of_its_own(self) -> None:
        with ConnectionPool[Any](ConnectionPoolConfig(max_connections=1), base_uri=self.other) as mine:
            conn = mine.acquire("/")
            assert conn.request(1, timeout=10) == 1
            conn.release()
            mine.drain(10)


class Victim(threading.Thread):
    """Does this and that with the pool, over and over, and does not mind being struck."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(daemon=True)
        self.scene = scene
        self.landed = 0
        self.at_work = False
        self.doing = ""
        self.chance = random.Random(random.random())
        self.done_for = False

    @property
    def is_fit(self) -> bool:
        return self.is_alive() and not self.done_for

    def run(self) -> None:
        while True:
            try:
                self.toil()
            except Struck:  # a strike just here ends the thread, and another takes its place
                self.landed += 1

    def toil(self) -> None:
        while True:
            self.at_work = False
            with self.scene.gate:
                self.at_work = True
            work = self.chance.choice(self.scene.works)
            self.doing = work.__name__
            try:
                work()
            except Exception as error:  # one strike must not show in another thread's work
                self.scene.trouble.append(f"{self.doing}: {error!r}")


def never_end(told: Any) -> None:
    """Keep a thread that was struck outside `toil`: the next strike would hit whoever got its identity."""
    told.thread.done_for = True
    told.exc_value.__context__ = None  # an earlier strike's, whose frames may have a lease
    grave = threading.Lock()
    grave.acquire()
    grave.acquire()


def strike(victim: Victim, error: type[BaseException] | None) -> None:
    what = ctypes.py_object(error) if error is not None else None
    assert victim.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(victim.ident), what)


def storm(*given: str) -> None:
    """Strike so many times; after each batch all that was struck has to be whole again."""
    *scenery, strikes, batch, seed = given
    random.seed(int(seed))
    sys.setswitchinterval(QUICK)  # or strikes would only fall where a thread waits
    warnings.simplefilter("ignore", ResourceWarning)
    # A strike outside `toil`, or in a finalizer, goes no further.
    threading.excepthook, sys.unraisablehook = never_end, lambda told: None
    scene, count = Scene(*scenery), Count()
    for work in scene.works:  # imports and caches are not what is to be struck
        work()
    settle(scene)
    scene.alien.update(strangers(scene).values())
    victims = [Victim(scene) for _ in range(VICTIMS)]
    scene.gate.acquire()
    for victim in victims:
        victim.start()
    landed, slowest, left = 0, 0.0, int(strikes)
    while left > 0:
        scene.gate.release()
        for _ in range(min(left, int(batch))):
            sleep(random.random() ** 2 * 0.004)
            at = random.randrange(VICTIMS)
            if not victims[at].is_fit:
                landed += victims[at].landed + 1
                victims[at] = Victim(scene)
                victims[at].start()
            strike(victims[at], Struck)
        left -= int(batch)
        scene.gate.acquire()
        try:
            slowest = max(slowest, check(scene, victims))
        except BaseException as error:
            faulthandler.dump_traceback()
            tell(trouble=f"{error!r}; {scene.trouble}; {faults(scene.pool)}; {count.other}")
            os._exit(1)
    landed += sum(victim.landed for victim in victims)
    scene.pool.close()
    tell(
        raised=int(strikes),
        landed=landed,
        steps_rebuilt=count.rebuilt,
        leases_found=count.found,
        slots_lost=0,
        sockets_lost_by_cpython=scene.lost_in_pairs,
        slowest_s=round(slowest, 2),
    )
    os._exit(0)  # the victims never end


def tell(**figures: Any) -> None:
    print(json.dumps(figures), flush=True)


def come_to_rest(victims: list[Victim]) -> None:
    """Wait until no victim is at work."""

    def at_work() -> list[str]:
        return [victim.doing for victim in victims if victim.at_work and victim.is_fit]

    wait_until(lambda: not at_work(), 30, "all come to rest")
    assert not at_work(), f"all come to rest: {at_work()}"


def check(scene: Scene, victims: list[Victim]) -> float:
    """Everything is back, in how many seconds; raises if not."""
    come_to_rest(victims)
    for victim in victims:
        if victim.is_fit:
            strike(victim, None)  # what has not struck yet never will
    assert not scene.trouble, scene.trouble
    start = monotonic()
    settle(scene)
    took = monotonic() - start
    pool = scene.pool
    wait_until(lambda: no_strangers(scene), HEALED, "no socket is open that the pool does not know")
    wait_until(lambda: len(keepers()) <= 1, HEALED, "closed and forgotten pools have no thread")
    assert not faults(pool)
    wires = [entry.wire for entry in state_of(pool).open_entries()]
    wait_until(
        lambda: not any(w.lock.locked() or w.readlock.locked() for w in wires), HEALED, "no lock is stuck"
    )
    hosts = [entry.target.secure for entry in state_of(pool).open_entries() if not entry.wire.is_over]
    tell(plain=hosts.count(False), secure=hosts.count(True))
    assert sys.stdin.readline() == "go on\n"
    return took


def settle(scene: Scene) -> None:
    """Every permit is back: all connections can be had at once, and each serves."""
    gc.collect()
    with contextlib.ExitStack() as stack:
        held = [stack.enter_context(scene.pool.acquire("/", timeout=HEALED)) for _ in range(CAP)]
        for number, conn in enumerate(held):
            assert conn.request(number, timeout=HEALED) == number


def strangers(scene: Scene) -> dict[int, str]:
    """The sockets of this process that are neither the pool's nor known to be lost."""
    gc.collect()
    known = {entry.wire.fileno() for entry in state_of(scene.pool).open_entries()}
    return {
        fd: what
        for fd, what in open_fds().items()
        if what.startswith("socket:") and fd not in known and what not in scene.alien
    }


def no_strangers(scene: Scene) -> bool:
    """Whether the pool knows every socket but those that `socket.socketpair` has lost, which are counted."""
    for fd, what in strangers(scene).items():
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as copy:
            if copy.family == socket.AF_UNIX:
                scene.alien.add(what)
                scene.lost_in_pairs += 1
    return not strangers(scene)


def keepers() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.is_alive() and t.name.startswith("jetsocket-housekeeper")]
