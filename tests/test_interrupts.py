"""Ctrl-C and asynchronous exceptions at any moment: no permit is lost, nothing is stuck (DESIGN §4.5)."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PooledConnection
from jetsocket.correlation import JsonRpc
from jetsocket.returning import Returning
from tests import scripts
from tests.servers import EchoServer, refusing_port
from tests.sizes import size
from tests.wire.conftest import in_background

ROUNDS = size(120, 1000)

START = """
import ctypes, itertools, os, random, signal, sys, threading, time, warnings
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.books import faults, state_of
warnings.simplefilter("ignore", ResourceWarning)
CAP, PATIENCE = 4, 2.0    # two ticks of the housekeeper, and a busy machine
uri, rounds = sys.argv[1], int(sys.argv[2])
pool = ConnectionPool(ConnectionPoolConfig(max_connections=CAP, acquire_timeout=10), base_uri=uri)
paths = itertools.count()

def acquire():
    with pool.acquire("/"): pass

def connect():
    with pool.acquire(f"/{next(paths)}"): pass

def recv():
    with pool.acquire("/") as conn:
        for number in range(20):
            assert conn.request(number, timeout=5) == number

def dropped():
    pool.acquire("/")

def check(number, what):
    '''Every permit is back: all of them can be had at once, and each serves.'''
    held = []
    try:
        for _ in range(CAP):
            held.append(pool.acquire("/", timeout=PATIENCE))
        for conn in held:
            assert conn.request(number, timeout=PATIENCE) == number
    except BaseException as error:
        print(f"round {number}: after an interrupt in {what}: {error!r}", *faults(pool), sep="; ")
        os._exit(1)
    finally:
        for conn in held: conn.release()
"""

SIGINT = """
armed, struck = threading.Semaphore(0), threading.Event()
def strike():
    while True:
        armed.acquire()
        time.sleep(random.random() ** 2 * 0.004)
        struck.set()
        os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=strike, daemon=True).start()
interrupts = 0
for number in range(rounds):
    work = (acquire, connect, recv, dropped)[number % 4]
    struck.clear()
    armed.release()
    try:
        while not struck.is_set(): work()
        time.sleep(1)            # the signal is on its way
    except KeyboardInterrupt:
        interrupts += 1
    check(number, work.__name__)
pool.close()
print("interrupts", interrupts)
"""


@pytest.mark.deep
@pytest.mark.timeout(120)
def test_ctrl_c_at_random_moments(echo: EchoServer) -> None:
    ended = scripts.run(START + SIGINT, echo.uri, str(ROUNDS), watchdog=45 + ROUNDS / 20, measured=False)
    assert ended.status == 0, ended.out + ended.err
    # Those that struck in a finalizer are shown by Python itself and go no further.
    assert int(ended.out.split()[-1]) >= ROUNDS * 0.9
    assert echo.most_open <= 4


WAITING = """
held = [pool.acquire("/") for _ in range(CAP)]
for number in range(20):
    timer = threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT))
    try:
        timer.start()
        if number % 2: pool.acquire("/", timeout=5)
        else: held[0].recv(timeout=5)
        raise AssertionError("it did not wake")
    except KeyboardInterrupt: pass
    timer.join()
    assert pool.stats().waiting == 0
    if not number % 2:           # its connection is closed, or as good as before: the borrower may go on
        try: assert held[0].request(number, timeout=5) == number
        except Exception as error: raise SystemExit(f"round {number}: {error!r}")
for conn in held: conn.release()
check(0, "waiting")
print("ok")
"""


def test_ctrl_c_wakes_who_waits_in_line_or_for_a_message(echo: EchoServer) -> None:
    assert scripts.run(START + WAITING, echo.uri, "0", measured=False).check().out == "ok\n"


ASYNC = """
class Struck(BaseException): pass
def victim(work, began, ended):
    began.set()
    try:
        while True: work()
    except Struck: pass
    finally: ended.set()
strike = ctypes.pythonapi.PyThreadState_SetAsyncExc
healed = 0
for number in range(rounds):
    work = (acquire, connect, recv, dropped)[number % 4]
    began, ended = threading.Event(), threading.Event()
    thread = threading.Thread(target=victim, args=(work, began, ended)); thread.start()
    began.wait()
    time.sleep(random.random() ** 2 * 0.004)
    while thread.is_alive():      # one that struck in a finalizer goes no further
        strike(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
        thread.join(1)
    check(number, work.__name__)
    del thread
pool.close()
print("ok")
"""


@pytest.mark.deep
@pytest.mark.timeout(120)
def test_asynchronous_exceptions_in_worker_threads(echo: EchoServer) -> None:
    rounds = str(ROUNDS * 2 // 5)
    ended = scripts.run(START + ASYNC, echo.uri, rounds, watchdog=45 + ROUNDS / 20, measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err
    assert echo.most_open <= 4


IN_LINE = """
class Struck(BaseException): pass
outcomes = []
def victim():
    try:
        with pool.acquire("/", timeout=10): outcomes.append("got")
    except Struck: outcomes.append("struck")
strike = ctypes.pythonapi.PyThreadState_SetAsyncExc
for number in range(20):
    held = [pool.acquire("/") for _ in range(CAP)]
    threads = [threading.Thread(target=victim) for _ in range(6)]
    for thread in threads: thread.start()
    while pool.stats().waiting < 6: time.sleep(0.001)
    for thread in threads[::2]: strike(ctypes.c_ulong(thread.ident), ctypes.py_object(Struck))
    for conn in held: conn.release()   # three of the permits are handed to those who were struck
    del conn
    for thread in threads: thread.join(5); assert not thread.is_alive()
    check(number, "the line")
assert outcomes.count("struck") == 60 and outcomes.count("got") == 60, outcomes
print("ok")
"""


def test_those_who_are_struck_in_line_pass_their_turn_on(echo: EchoServer) -> None:
    ended = scripts.run(START + IN_LINE, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


HANDLER = """
from jetsocket import InvalidStateError, PoolExhaustedError, TimeoutError
mine = []
calls, refused = [0], [0]
def handler(signum, frame):
    calls[0] += 1
    while mine:
        pool.release(mine.pop())       # never refused
    for call in (pool.stats, lambda: pool.acquire("/", timeout=0.05).release()):
        try: call()
        except InvalidStateError: refused[0] += 1
        except (PoolExhaustedError, TimeoutError): pass
connect()                 # its imports are not to be interrupted by themselves
signal.setitimer(signal.ITIMER_REAL, 0)
signal.signal(signal.SIGALRM, handler)
while calls[0] < 100:
    signal.setitimer(signal.ITIMER_REAL, random.random() * 0.004 + 1e-6)
    with pool.acquire("/") as conn:
        mine.append(pool.acquire("/"))
        assert conn.request(1, timeout=5) == 1
    connect()
signal.setitimer(signal.ITIMER_REAL, 0)
while mine: mine.pop().release()
del conn
check(0, "a signal handler")
pool.close()
print("ok")
"""


@pytest.mark.slow
def test_a_signal_handler_may_call_the_pool_that_it_interrupts(echo: EchoServer) -> None:
    # Its SIGALRM is the watchdog's as well: here the test's own timeout has to do.
    ended = scripts.run(START + HANDLER, echo.uri, "0")
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


LOST = """
one = ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=uri)
struck = 0
def strike(frame, event, arg):
    global left
    if event == "call" and "jetsocket" in frame.f_code.co_filename:
        left -= 1
        if left < 0:
            sys.setprofile(None)
            raise KeyboardInterrupt
for number in range(120):
    left = number
    try:
        sys.setprofile(strike)
        one.acquire(sys.argv[3])
    except KeyboardInterrupt: struck += 1
    except ConnectionError: pass
    finally: sys.setprofile(None)
    if left >= 0: break
one.acquire("/", timeout=PATIENCE).release()
assert struck > 20, struck
one.close()
print("ok")
"""


@pytest.mark.slow
def test_what_is_lost_before_the_first_connection_is_found(echo: EchoServer) -> None:
    """A strike at each call of an acquire that fails: the one slot is there in the end."""
    with refusing_port() as port:
        ended = scripts.run(START + LOST, echo.uri, "0", f"ws://127.0.0.1:{port}/", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


STREAM = """
streams = ConnectionPool(ConnectionPoolConfig(reuse="always"), base_uri=uri)
def strike(frame, event, arg):
    if event == "call" and frame.f_code.co_name == "feed":
        sys.setprofile(None)
        raise KeyboardInterrupt
try:
    with streams.acquire("/") as conn:
        conn.send(1)
        sys.setprofile(strike)
        conn.recv(timeout=5)
except KeyboardInterrupt:
    pass
finally:
    sys.setprofile(None)
with streams.acquire("/") as conn:
    assert conn.request(2, timeout=5) == 2
streams.close()
print("ok")
"""


def test_a_stream_that_was_interrupted_while_bytes_were_taken_in_is_lent_to_nobody(echo: EchoServer) -> None:
    ended = scripts.run(START + STREAM, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


STRUCK_RETURN = """
def strike(frame, event, arg):
    if event == "return" and frame.f_code.co_name == "claim":
        sys.setprofile(None)
        raise KeyboardInterrupt
conn = pool.acquire("/")
try:
    sys.setprofile(strike)
    conn.release()
except KeyboardInterrupt as error:
    struck = error                       # and with it, its traceback and the lease
conn.release()
check(0, "a return")
pool.close()
print("ok")
"""


def test_a_return_that_was_struck_is_made_good_though_the_lease_is_kept(echo: EchoServer) -> None:
    ended = scripts.run(START + STRUCK_RETURN, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


STRUCK_ENTRY = """
def strike(frame, event, arg):
    if event == "call" and frame.f_code.co_name == function and "jetsocket" in frame.f_code.co_filename:
        sys.setprofile(None)
        raise KeyboardInterrupt
def released():
    conn = one.acquire("/")
    sys.setprofile(strike)
    conn.release()
def left():
    with one.acquire("/") as conn:
        sys.setprofile(strike)
for function, work in ("take_back", released), ("take_back", left):
    one = ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=uri)
    one.acquire("/").release()
    try: work()
    except KeyboardInterrupt: pass
    finally: sys.setprofile(None)
    one.acquire("/", timeout=PATIENCE).release()
    one.close()
print("ok")
"""


def test_a_return_that_was_struck_before_it_began_is_made_good_at_the_next_tick(echo: EchoServer) -> None:
    ended = scripts.run(START + STRUCK_ENTRY, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


@pytest.mark.parametrize("correlation", [None, JsonRpc()], ids=["plain", "correlated"])
@pytest.mark.parametrize("way", ["released", "dropped", "pool closed"])
def test_no_python_code_runs_when_a_lease_goes(
    echo: EchoServer, correlation: JsonRpc | None, way: str
) -> None:
    """What a signal handler raises in a finalizer disappears: CPython prints it, and goes on."""
    entered: list[str] = []

    def note(frame: FrameType, event: str, arg: object) -> None:
        if event == "call":
            entered.append(frame.f_code.co_name)

    config = ConnectionPoolConfig(max_connections=1)
    with (
        ConnectionPool[Any](config, base_uri=echo.uri, correlation=correlation) as pool,
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", ResourceWarning)
        conn = pool.acquire("/")
        if way == "released":
            conn.release()
            assert conn._borrower.lease is None, "the housekeeper would be woken each time"
        elif way == "pool closed":
            pool.close()
        sys.setprofile(note)
        del conn
        sys.setprofile(None)
        assert not entered
        if way != "pool closed":
            pool.acquire("/", timeout=2.0).release()


STRUCK_BEFORE_THE_CLAIM = """
from jetsocket.correlation import JsonRpc
def strike(frame, event, arg):
    if event == "call" and frame.f_code.co_name == "take_back":
        sys.setprofile(None)
        raise KeyboardInterrupt
kept = []
def released(one):
    kept.append(one.acquire("/"))
    sys.setprofile(strike)
    kept[-1].release()
def left(one):
    with one.acquire("/") as conn:
        kept.append(conn)
        sys.setprofile(strike)
for correlation in None, JsonRpc():
    for work in released, left:
        one = ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=uri, correlation=correlation)
        try: work(one)
        except KeyboardInterrupt: pass
        else: raise AssertionError("nothing was struck")
        finally: sys.setprofile(None)
        one.acquire("/", timeout=PATIENCE).release()
        kept[-1].release()
        one.acquire("/", timeout=0).release()
        one.close()
print("ok")
"""


@pytest.mark.slow
def test_a_release_that_was_struck_before_its_claim_is_made_good_though_the_lease_is_kept(
    echo: EchoServer,
) -> None:
    ended = scripts.run(START + STRUCK_BEFORE_THE_CLAIM, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


STOPPED_BELOW = {"release": PooledConnection.release, "take_back": Returning.take_back}


@pytest.mark.slow
@pytest.mark.parametrize("where", STOPPED_BELOW)
def test_a_return_that_stops_for_a_while_was_not_struck(
    echo: EchoServer, make_pool: Callable[..., ConnectionPool[Any]], where: str
) -> None:
    """As on a busy machine, where the thread that returns has not its turn for so long."""
    pool = make_pool(echo)

    def stop(frame: FrameType, event: str, arg: object) -> None:
        if (
            event == "call"
            and frame.f_back is not None
            and frame.f_back.f_code is STOPPED_BELOW[where].__code__
        ):
            sys.setprofile(None)
            threading.Event().wait(1.0)  # s; a return that was struck is taken back by then

    def use() -> int:
        conn = pool.acquire("/")
        assert conn.request(1) == 1
        sys.setprofile(stop)
        conn.release()
        assert sys.getprofile() is None, "it stopped nowhere"
        return conn.id

    used = in_background(use).result(5)
    with pool.acquire("/") as conn:
        assert conn.id == used
    assert pool.stats().discards == {}


STRUCK_CLOSE = """
def strike(frame, event, arg):
    if event == "call" and frame.f_code.co_name == "close_all":
        sys.setprofile(None)
        raise KeyboardInterrupt
connect()
try:
    sys.setprofile(strike)
    pool.close(timeout=0.2)
except KeyboardInterrupt:
    pass
finally:
    sys.setprofile(None)
end = time.monotonic() + 5
while state_of(pool).entries and time.monotonic() < end: time.sleep(0.001)
assert not state_of(pool).entries
pool.close()
assert not [thread for thread in threading.enumerate() if thread.name.startswith("jetsocket")]
print("ok")
"""


def test_the_housekeeper_does_the_rest_of_a_close_that_was_interrupted(echo: EchoServer) -> None:
    ended = scripts.run(START + STRUCK_CLOSE, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


FALSELY_DEAD = """
keepers = lambda: [thread for thread in threading.enumerate() if "housekeeper" in thread.name]
def strike(frame, event, arg):
    if event == "c_return" and frame.f_code.co_name in ("is_alive", "_wait_for_tstate_lock"):
        sys.setprofile(None)
        raise KeyboardInterrupt
first = pool.acquire("/")
pool._lending.housekeeper._made_at -= 10         # it would be replaced at once, were it dead
try:
    sys.setprofile(strike)
    connect()
except KeyboardInterrupt:
    pass
finally:
    sys.setprofile(None)
connect()
assert len(keepers()) == 1, keepers()
first.release()
check(0, "a look at the thread")
pool.close()
end = time.monotonic() + 5
while keepers() and time.monotonic() < end: time.sleep(0.001)
assert not keepers(), keepers()
print("ok")
"""


def test_an_interrupt_makes_no_second_housekeeper(echo: EchoServer) -> None:
    """Thread.is_alive() takes a thread for dead if it is interrupted, up to Python 3.12."""
    ended = scripts.run(START + FALSELY_DEAD, echo.uri, "0", measured=False)
    assert (ended.status, ended.out) == (0, "ok\n"), ended.out + ended.err


IMPORTS = """
import sys, threading
from jetsocket import ConnectionPool
from jetsocket.correlation import ById

def work(uri):
    with ConnectionPool(base_uri=uri, name="plain") as pool:
        with pool.acquire("/") as conn:
            assert conn.request(1, timeout=5) == 1
        try:
            pool.acquire("ws://127.0.0.1:1/", timeout=2)
        except Exception as error:
            str(error)
        pool.prewarm("/", 2)
        repr(pool), str(pool.stats()), pool.leases(), pool.connections()
    with ConnectionPool(base_uri=uri, name="ids", correlation=ById("id")) as pool:
        pool.request("/", {"n": 1}, 5)

work(sys.argv[1])
found = set()

def look(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.startswith("<frozen importlib"):
        above = frame.f_back
        while above is not None and "importlib" in above.f_code.co_filename:
            above = above.f_back
        if above is not None:
            found.add(f"{above.f_code.co_filename}:{above.f_lineno} {above.f_code.co_name}")

threading.setprofile(look)
sys.setprofile(look)
work(sys.argv[1])
sys.setprofile(None)
print(sorted(found))
"""


def test_what_is_loaded_is_not_asked_for_again(echo: EchoServer) -> None:
    """An exception that strikes in the import system leaves a module's lock locked for every thread."""
    done = scripts.run(IMPORTS, echo.uri)
    assert (done.out.strip(), done.err) == ("[]", "")
