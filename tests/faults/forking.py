"""What test_forks.py runs in processes of their own: a storm of forks, and work for multiprocessing.

Every connection tells the server in a header which process opened it, and every message which process sent
it: so the server sees it if the two ever differ.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import ssl
import sys
import threading
import traceback
import warnings
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, NoReturn

from jetsocket import ConnectionPool, ConnectionPoolConfig, PoolClosedError, PooledConnection, housekeeper
from tests.books import faults
from tests.servers import open_fds, wait_until
from tests.watchdog import die_if_stuck

CAP = 4
AT_ONCE = 3  # children alive at a time
PATIENCE = 30.0  # s; generous, for any of it may run beside a busy machine's other work

Pool = ConnectionPool[Any]
_numbers = itertools.count()


def open_pool(uri: str, ca: str = "", cap: int = CAP, **fields: Any) -> Pool:
    """A pool whose connections say whose they are; `ca` is a file with the authority to trust."""
    options: dict[str, Any] = {
        "extra_headers": lambda: {"X-Pid": str(os.getpid())},
        "connect_timeout": PATIENCE,
    }
    if ca:
        options["ssl_context"] = ssl.create_default_context(cafile=ca)
    config = ConnectionPoolConfig(max_connections=cap, acquire_timeout=PATIENCE, **fields)
    return ConnectionPool(config, base_uri=uri, manager_kwargs=options)


def talk(conn: PooledConnection[Any], rounds: int = 3) -> None:
    """Ask, and insist on the very answer, from a connection of this very process."""
    for _ in range(rounds):
        me = str(os.getpid())
        ident = f"{me}-{threading.get_ident()}-{next(_numbers)}"
        assert conn.request({"id": ident, "pid": me}, timeout=PATIENCE) == {"id": ident, "pid": me}


# --- the storm


class End(Exception):
    """What a child ends with that is to end by an exception."""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    sys.excepthook = lambda *_: None  # its traceback is what everybody expects
    raise End


# How a child may end, and with which status.
ENDS: dict[str, tuple[Callable[[], object], int]] = {
    "os._exit": (lambda: os._exit(0), 0),
    "sys.exit": (lambda: sys.exit(0), 0),
    "exception": (_raise, 1),
    "SIGKILL": (_kill, -signal.SIGKILL),
    "exec": (lambda: os.execv("/bin/true", ["true"]), 0),
}


class Storm:
    """Threads that borrow, wait, connect and hold without end, while the process forks and forks."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.stop = threading.Event()
        self.calls = Counter[str]()
        self.trouble: list[str] = []
        works = [self.steady] * 3 + [self.wander] * 2 + [self.discard, self.hold, self.fork]
        self.threads = [threading.Thread(target=self.run, args=(work,)) for work in works]

    def run(self, work: Callable[[], None]) -> None:
        try:
            while not self.stop.is_set():
                work()
                self.calls[work.__name__] += 1
        except BaseException:
            self.trouble.append(traceback.format_exc())

    def steady(self) -> None:
        with self.pool.acquire("/") as conn:
            talk(conn)

    def wander(self) -> None:
        """Another path each time: at the cap, so the oldest idle connection has to make room."""
        with self.pool.acquire(f"/{random.randrange(50)}") as conn:
            talk(conn, 1)
        self.stop.wait(0.01)

    def discard(self) -> None:
        with self.pool.acquire("/") as conn:
            talk(conn, 1)
            conn.discard()
        self.stop.wait(0.01)

    def hold(self) -> None:
        """One lease from beginning to end: whatever children do, it is the same connection."""
        with self.pool.acquire("/") as conn:
            first = conn.id
            while not self.stop.wait(0.002):
                talk(conn, 1)
                assert conn.id == first

    def fork(self) -> None:
        """Fork in a thread, with a lease in hand."""
        with self.pool.acquire("/") as conn:
            talk(conn, 1)
            pid = os.fork()
            if pid == 0:
                _in_thread(self.pool)
            talk(conn, 1)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status == 0, f"a child of a thread ended with {status}"
        self.stop.wait(0.1)

    def __enter__(self) -> Storm:
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:  # in every child that leaves the block, too
        self.stop.set()
        for thread in self.threads:
            thread.join(PATIENCE)


def _in_thread(pool: Pool) -> NoReturn:
    status = 3
    try:
        _use(pool)
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)  # the stack below is a thread's: there is nowhere to return to


def _use(pool: Pool) -> PooledConnection[Any]:
    """In a child: use the pool, and leave one connection idle and one lent."""
    die_if_stuck(PATIENCE)
    with pool.acquire("/") as conn:
        talk(conn)
    other = pool.acquire("/another")
    talk(other)
    assert pool.stats().total_connections == 2
    other.release()
    lent = pool.acquire("/another")
    talk(lent)
    return lent


def _child(pool: Pool, how: str) -> NoReturn:
    end, _ = ENDS[how]
    lent = _use(pool)
    end()
    raise AssertionError(f"{how} did not end it; {lent!r}")


def storm(uri: str, ca: str, forks: str) -> None:
    """Fork so many times; print what the parent saw."""
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    housekeeper.TICK = 0.005  # so that forks come in the middle of one
    statuses: list[tuple[str, int]] = []
    running: list[tuple[str, int]] = []
    with open_pool(uri, ca, health_check_interval=0.05) as pool, Storm(pool) as busy:
        wait_until(lambda: busy.trouble or busy.calls["steady"] > 20, PATIENCE)
        for _, how in zip(range(int(forks)), itertools.cycle(ENDS), strict=False):
            pid = os.fork()
            if pid == 0:
                _child(pool, how)
            running.append((how, pid))
            if len(running) == AT_ONCE:
                statuses.append(_reap(*running.pop(0)))
        statuses += [_reap(*child) for child in running]
        busy.__exit__()
        assert not busy.trouble, "\n".join(busy.trouble)
        assert [(how, status) for how, status in statuses if status != ENDS[how][1]] == []
        stats = pool.stats()
        assert faults(pool) == []
        told = {"reconnects": stats.total_reconnects, "discards": stats.discards, "calls": busy.calls}
        print(json.dumps({"pid": os.getpid(), "messages": stats.total_messages_received, **told}))


def _reap(how: str, pid: int) -> tuple[str, int]:
    return how, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


# --- one fork at a chosen moment


def in_child(work: Callable[[], object]) -> None:
    """Fork, do the work in the child, and insist that it ends well."""
    pid = os.fork()
    if pid == 0:
        leave_by(work)
    assert _reap("", pid) == ("", 0)


def leave_by(work: Callable[[], object]) -> NoReturn:
    """Do the last work of a child, and end it with what came of that: 0, or 3 and a traceback."""
    status = 3
    try:
        die_if_stuck(PATIENCE)
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def inherited() -> list[str]:
    """The sockets and the likes of them that this process has open."""
    return [link for link in open_fds().values() if link.startswith(("socket:", "anon_inode:[eventpoll]"))]


def _at_rest(thread: threading.Thread) -> Callable[[], bool]:
    """A condition: the thread has been at one place for so long that it waits there."""
    places: deque[tuple[object, int]] = deque(maxlen=100)

    def condition() -> bool:
        frame = sys._current_frames()[thread.ident or 0]
        places.append((frame.f_code, frame.f_lasti))
        return len(places) == places.maxlen and len(set(places)) == 1

    return condition


def fork_while_connecting(uri: str, other: str) -> None:
    """Fork while a thread is connecting to `uri`, where nothing ever answers; the child uses `other`."""
    warnings.filterwarnings("ignore", "This process", DeprecationWarning)
    before = set(inherited())
    pool = open_pool(other)
    lent = pool.acquire("/")
    pool.acquire("/").release()

    def connect() -> None:
        with contextlib.suppress(ConnectionError, TimeoutError, PoolClosedError):
            pool.acquire(uri)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    print("connecting", flush=True)
    sys.stdin.readline()  # the server has seen it
    wait_until(_at_rest(thread), PATIENCE)

    def child() -> None:
        assert set(inherited()) == before, "the child has descriptors of the parent's"
        with pool.acquire("/") as conn:
            talk(conn)

    in_child(child)
    assert thread.is_alive(), "the parent goes on connecting"
    talk(lent)
    pool.close()
    thread.join(PATIENCE)


# --- work for the processes of multiprocessing and concurrent.futures

_shared: list[Pool] = []


def shared_pool(uri: str) -> Pool:
    """The pool of this module: a forked process inherits it, used; any other makes its own."""
    if not _shared:
        _shared.append(open_pool(uri, cap=2))
    return _shared[0]


def ask(uri: str) -> tuple[int, int]:
    """Borrow from the module's pool; return who did it, and how many connections it took so far."""
    die_if_stuck(PATIENCE)
    pool = shared_pool(uri)
    with pool.acquire("/") as conn:
        talk(conn)
    return os.getpid(), pool.stats().total_connections


def fail(uri: str) -> None:
    """Raise an error of the library's in another process."""
    held = [shared_pool(uri).acquire("/") for _ in range(2)]
    try:
        shared_pool(uri).acquire("/", timeout=0.01)
    finally:
        for conn in held:
            conn.release()


def use_given(pool: Pool) -> None:
    """What no process can do that was not forked."""
    raise AssertionError(f"{pool!r} got here")
