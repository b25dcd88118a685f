"""Exit without close(): prompt and silent, whatever the pool is doing (DESIGN §4.7)."""

from __future__ import annotations

import signal
from textwrap import dedent
from typing import Any

import pytest

from tests import scripts
from tests.servers import EchoServer, RawServer, after_upgrade, wait_until

OPEN = """
import atexit, os, signal, sys, threading, time
from jetsocket import ConnectionPool, ConnectionPoolConfig
pool = ConnectionPool(ConnectionPoolConfig(max_connections=2, acquire_timeout=30), base_uri=sys.argv[1])
"""
IDLE = "with pool.acquire('/') as conn: assert conn.request(7) == 7\n"
LENT = "conn = pool.acquire('/'); assert conn.request(7) == 7\n"
EXHAUSTED = "held = [pool.acquire('/') for _ in range(2)]\n"
ENDED = "print('end')\n"

ENDINGS = {
    "never used": "",
    "idle": IDLE,
    "lent": LENT,
    "closed": IDLE + "pool.close()\n",
    "many pools": IDLE
    + "pools = [ConnectionPool(base_uri=sys.argv[1]) for _ in range(10)]\n"
    + "for each in pools:\n    with each.acquire('/'): pass\n",
    "lent in a suspended generator": "def stream():\n    with pool.acquire('/') as conn: yield conn\n"
    "suspended = stream(); next(suspended)\n",
    "sys.exit": IDLE + LENT + ENDED + "sys.exit(0)\n",
    "used in atexit": IDLE
    + "def late():\n    with pool.acquire('/') as conn: assert conn.request(7) == 7\n    print('end')\n"
    + "atexit.register(late)\n",
    "closed in atexit": IDLE + "atexit.register(pool.close)\n",
    "a daemon thread in recv": """
conn = pool.acquire('/')
reader = threading.Thread(target=conn.recv, daemon=True); reader.start()
while not conn._entry.wire.readlock.locked(): time.sleep(0.001)
""",
    "daemon threads in line": EXHAUSTED
    + """
for _ in range(5): threading.Thread(target=pool.acquire, args=('/',), daemon=True).start()
while pool.stats().waiting < 5: time.sleep(0.001)
""",
    "daemon threads at work": """
def work():
    while True:
        with pool.acquire('/') as conn: conn.request(7)
for _ in range(4): threading.Thread(target=work, daemon=True).start()
while pool.stats().total_messages_received < 50: time.sleep(0.001)
""",
    "a cycle": "class Node: pass\nnode = Node(); node.self = node; node.pool = pool\n"
    + LENT
    + "node.conn = conn\n"
    "del pool, conn, node\n",
    "pools are made meanwhile": IDLE
    + """
others = [ConnectionPool() for _ in range(10)]
def meanwhile(frame, event, arg):           # as another thread might, between any two steps
    sys.setprofile(None)
    others.append(ConnectionPool())
    if len(others) < 30: sys.setprofile(meanwhile)
atexit.register(sys.setprofile, meanwhile)  # called just before the library's own
""",
    "a debug log to a closed stream": "import logging\nstream = open(os.devnull, 'w')\n"
    + "logging.basicConfig(level=logging.DEBUG, stream=stream)\n"
    + IDLE
    + LENT
    + "stream.close()\n",
    "a module global dies late": LENT + "sys.modules['keeper'] = conn\n",
}


FINALIZER = """
class Late:
    def __init__(self):
        self.pool = ConnectionPool(base_uri=sys.argv[1])
        self.by_name = sys.argv[1].replace('127.0.0.1', 'localhost')
    def __del__(self):
        %s
late = [Late() for _ in range(5)]
"""
FINALIZERS = {
    "closes": FINALIZER % "self.pool.close()" + "for each in late: each.pool.request('/', 1)\n",
    "uses": FINALIZER % "assert self.pool.request('/', 1) == 1" + "late[0].pool.request('/', 1)\n",
    "uses first": FINALIZER % "assert self.pool.request('/', 1) == 1",
    "looks up": FINALIZER % "assert self.pool.request(self.by_name, 1) == 1",
    "is a generator that holds the pool": """
def stream():
    with ConnectionPool(base_uri=sys.argv[1]) as pool, pool.acquire('/') as conn:
        while True: yield conn.request(1)
suspended = stream(); next(suspended)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_exit_is_prompt_and_silent(echo: EchoServer, ending: str) -> None:
    ended = scripts.run_promptly(
        OPEN + ENDINGS[ending] + ("" if "print('end')" in ENDINGS[ending] else ENDED), echo.uri
    )
    assert ended.check().out == "end\n"
    assert ended.took < scripts.PROMPT


@pytest.mark.slow
@pytest.mark.parametrize("finalizer", FINALIZERS)
def test_a_finalizer_that_uses_a_pool_while_the_interpreter_ends(echo: EchoServer, finalizer: str) -> None:
    ended = scripts.run_promptly(OPEN + FINALIZERS[finalizer] + ENDED, echo.uri)
    assert ended.check().out == "end\n"
    assert ended.took < scripts.PROMPT


@pytest.mark.slow
@pytest.mark.parametrize("options", [("-X", "dev"), ("-W", "error"), ("-W", "always")], ids=" ".join)
def test_no_resource_warning_for_pools_that_are_open_at_exit(
    echo: EchoServer, options: tuple[str, ...]
) -> None:
    ended = scripts.run_promptly(OPEN + IDLE + LENT + ENDED, echo.uri, options=options)
    assert ended.check().took < scripts.PROMPT + 0.2  # -X dev itself is slow


def test_an_unhandled_exception_prints_itself_only(echo: EchoServer) -> None:
    ended = scripts.run_promptly(OPEN + IDLE + LENT + ENDED + "raise ZeroDivisionError('mine')", echo.uri)
    assert ended.status == 1
    assert ended.err.splitlines()[-1] == "ZeroDivisionError: mine"
    assert ended.err.count("Traceback") == 1 and "Exception ignored" not in ended.err
    assert ended.took < scripts.PROMPT


def test_sigterm_ends_it_at_once(echo: EchoServer) -> None:
    ended = scripts.run_promptly(
        OPEN + IDLE + LENT + ENDED + "os.kill(os.getpid(), signal.SIGTERM)", echo.uri
    )
    assert (ended.status, ended.err) == (-signal.SIGTERM, "")
    assert ended.took < scripts.PROMPT


def test_ctrl_c_in_recv_ends_it_at_once(echo: EchoServer) -> None:
    script = (
        OPEN
        + LENT
        + ENDED
        + "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()\nconn.recv()"
    )
    ended = scripts.run_promptly(script, echo.uri)
    assert ended.err.splitlines()[-1] == "KeyboardInterrupt"
    assert ended.err.count("Traceback") == 1 and "Exception ignored" not in ended.err
    assert ended.took < scripts.PROMPT + 0.05


def test_a_server_that_answers_no_close_does_not_hold_the_exit_up() -> None:
    with RawServer(after_upgrade()) as silent:
        script = (
            OPEN + "held = [pool.acquire('/') for _ in range(2)]\nfor each in held: each.release()\n" + ENDED
        )
        assert scripts.run_promptly(script, silent.uri).check().took < scripts.PROMPT


def test_a_black_hole_does_not_hold_the_exit_up() -> None:
    with RawServer(lambda sock: [None for _ in iter(lambda: sock.recv(1024), b"")] and None) as hole:
        script = OPEN + (
            "threading.Thread(target=pool.acquire, args=('/',), daemon=True).start()\n"
            "while not pool.connections(): time.sleep(0.001)\ntime.sleep(0.05)\n"
        )
        assert scripts.run_promptly(script + ENDED, hole.uri).check().took < scripts.PROMPT


BORROWERS = {
    "idle": (IDLE, 1),
    "lent": (LENT, 1),
    "a thread that has ended": (
        "held = []\n"
        "thread = threading.Thread(target=lambda: held.append(pool.acquire('/')))\n"
        "thread.start(); thread.join()\n",
        1,
    ),
    "an executor": (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "threads = ThreadPoolExecutor(2)\n"
        "held = list(threads.map(pool.acquire, ['/'] * 2))\n",
        2,
    ),
    "a daemon thread that uses it once more": (
        """
ready = threading.Event()
def work():
    conn = pool.acquire('/')
    ready.set()
    left.wait()
    conn.request(1)
left = threading.Event()
threading.Thread(target=work, daemon=True).start(); ready.wait()
from jetsocket.shutdown import Ending
leave = Ending.leave
Ending.leave = lambda *given: (leave(*given), left.set(), time.sleep(0.05))
""",
        1,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("borrower", BORROWERS)
def test_the_server_hears_a_goodbye_at_exit(borrower: str) -> None:
    codes: list[int | None] = []

    def note(conn: Any) -> None:
        for message in conn:
            conn.send(message)
        codes.append(conn.close_code)

    script, count = BORROWERS[borrower]
    with EchoServer(note) as server:
        scripts.run(OPEN + script + ENDED, server.uri).check()
        wait_until(lambda: len(codes) == count)
    assert codes == [1001] * count


def test_the_goodbye_comes_after_what_a_program_registers_behind_its_imports(echo: EchoServer) -> None:
    """Before its pool is made, too: such a handler finds its connection idle, as all along."""
    script = """
import atexit, sys
from jetsocket import ConnectionPool
atexit.register(lambda: print(pool.request('/', 8), pool.stats().reuses))
pool = ConnectionPool(base_uri=sys.argv[1])
pool.request('/', 7)
"""
    assert scripts.run(script, echo.uri).check().out.split() == ["8", "1"]
    assert echo.opened == 1


def test_a_lease_that_is_used_after_the_goodbye_tells_so(echo: EchoServer) -> None:
    script = """
import atexit
def late():
    for use in (lambda: conn.send(1), lambda: conn.recv(), lambda: conn.ping()):
        try: use()
        except ConnectionError as error: print(error.args[0].rpartition(": ")[2])
    conn.release(); pool.close()
atexit.register(late)       # before the library is imported: it runs behind the library's own
"""
    ended = scripts.run_promptly(script + OPEN + LENT + "conn.request(1)\n", echo.uri)
    assert ended.check().out.splitlines() == ["the process ends"] * 3


def test_a_hook_that_runs_after_we_took_leave_gets_an_error(echo: EchoServer) -> None:
    """Registered before jetsocket was imported, or a finalizer of a module."""
    script = """
    import atexit
    def late():
        uses = lambda conn: conn.send("bye"), lambda conn: conn.recv(), lambda conn: conn.ping(1)
        for conn, use in zip(conns, (*uses, lambda conn: conn.request(1))):
            try: use(conn)
            except ConnectionError as error: print(type(error).__name__)
            conn.release()
    atexit.register(late)
    import sys
    from jetsocket import ConnectionPool
    pool = ConnectionPool(base_uri=sys.argv[1])
    conns = [pool.acquire("/") for _ in range(4)]
    """
    assert scripts.run(dedent(script), echo.uri).check().out == "ConnectionClosedError\n" * 4
