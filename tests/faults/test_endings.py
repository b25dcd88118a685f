"""Ways to end that tests/test_exit.py does not have: all prompt, silent, and with a goodbye (DESIGN §4.7)."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import scripts
from tests.conftest import Tls
from tests.faults.conftest import Report
from tests.servers import Connection, EchoServer, RawServer, hold
from tests.test_exit import ENDED, IDLE, LENT, OPEN

ROW = "exit"

TERMINATED = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
WAITING = "threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()\n"


class Ending(NamedTuple):
    """A script, how it is to end, and whether its idle connections have time to say goodbye."""

    script: str
    status: int = 0
    goodbye: bool | None = True  # None: there may be time or not
    last_words: str = ""  # the last line on stderr; none at all if ""


ENDINGS = {
    "a thread that is no daemon ends last": Ending(
        """
def work():
    threading.main_thread().join()
    for number in range(100): assert pool.request('/', number) == number
    kept.append(pool.acquire('/'))
    print('end')
kept = []
threading.Thread(target=work).start()
""",
        goodbye=None,
    ),
    "a thread that connects by name when the main one has ended": Ending(
        """
def work():
    threading.main_thread().join()
    uri = sys.argv[1].replace('127.0.0.1', 'localhost')
    assert pool.request(uri, 7) == 7
    print('end')
threading.Thread(target=work).start()
"""
    ),
    "lent in threads that have ended": Ending(
        IDLE
        + """
kept = []
def borrow(): kept.append(pool.acquire('/'))
threads = [threading.Thread(target=borrow) for _ in range(2)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
        + ENDED,
        goodbye=None,
    ),
    "an executor that is not shut down": Ending(
        """
from concurrent.futures import ThreadPoolExecutor
threads = ThreadPoolExecutor(4)
assert list(threads.map(lambda number: pool.request('/', number), range(40))) == list(range(40))
"""
        + ENDED
    ),
    "work goes on in an executor": Ending(
        """
from concurrent.futures import ThreadPoolExecutor
threads = ThreadPoolExecutor(2)
jobs = [threads.submit(pool.request, '/', number) for number in range(100)]
jobs[-1].add_done_callback(lambda job: print('end'))
"""
    ),
    "an exception in a thread": Ending(
        IDLE
        + """
def fail():
    with pool.acquire('/other'): raise ZeroDivisionError('mine')
thread = threading.Thread(target=fail); thread.start(); thread.join()
"""
        + ENDED,
        last_words="ZeroDivisionError: mine",
    ),
    "sys.exit within the block": Ending(
        IDLE + ENDED + "with pool.acquire('/'): sys.exit(3)", status=3, goodbye=None
    ),
    "an exception out of the block": Ending(
        IDLE + ENDED + "with pool.acquire('/other'):\n    raise ZeroDivisionError('mine')",
        status=1,
        last_words="ZeroDivisionError: mine",
    ),
    "SIGTERM with a handler, in recv": Ending(TERMINATED + IDLE + LENT + WAITING + ENDED + "conn.recv()"),
    "SIGTERM with a handler, in line": Ending(
        TERMINATED + "held = [pool.acquire('/') for _ in range(2)]\n" + WAITING + ENDED + "pool.acquire('/')"
    ),
    "SIGHUP": Ending(
        IDLE + LENT + ENDED + "os.kill(os.getpid(), signal.SIGHUP)", status=-signal.SIGHUP, goodbye=False
    ),
    "os._exit": Ending(IDLE + LENT + ENDED + "os._exit(5)", status=5, goodbye=False),
    "an exec": Ending(
        IDLE + LENT + ENDED + "os.execv(sys.executable, [sys.executable, '-S', '-c', ''])", goodbye=False
    ),
    "stdin is closed": Ending("os.close(0)\n" + IDLE + LENT + ENDED),
    "used by an exit handler that is older than the library": Ending(
        "def late():\n    assert pool.request('/', 1) == 1\n    print('end')\n"
        + "early.append(late)\n"
        + IDLE
    ),
    "first used by an exit handler": Ending(
        "def late():\n    assert pool.request('/', 1) == 1\n    print('end')\natexit.register(late)\n",
        goodbye=None,
    ),
    "an exit handler that is stopped by an exception": Ending(
        IDLE + "def late():\n    with pool.acquire('/'): 1 / 0\natexit.register(late)\n" + ENDED,
        goodbye=None,
        last_words="ZeroDivisionError: division by zero",
    ),
    "draining in a daemon thread": Ending(
        IDLE
        + LENT
        + "threading.Thread(target=pool.drain, daemon=True).start()\n"
        + "while not state_of(pool).draining: time.sleep(0.001)\n"
        + ENDED,
        goodbye=None,
    ),
    "a daemon thread closes the pool just then": Ending(
        IDLE + LENT + "threading.Thread(target=pool.close, daemon=True).start()\n" + ENDED, goodbye=None
    ),
    "daemon threads connect without end": Ending(
        """
def work():
    while True:
        with pool.acquire(f'/{time.monotonic()}') as conn: conn.request(7)
for _ in range(3): threading.Thread(target=work, daemon=True).start()
while pool.stats().total_messages_received < 20: time.sleep(0.001)
"""
        + ENDED,
        goodbye=None,
    ),
}
# An exit handler that is registered before the library's runs after it.
EARLY = "import atexit\nearly = []\natexit.register(lambda: [each() for each in early])\n"
# The others' kind is in test_exit.py.
QUICK = {
    "a thread that connects by name when the main one has ended",
    "an executor that is not shut down",
    "an exception in a thread",
    "SIGTERM with a handler, in recv",
    "stdin is closed",
}


@pytest.fixture
def codes() -> Iterator[tuple[EchoServer, list[int | None]]]:
    """A server, and the close codes that it was told, one for each connection that has ended."""
    told: list[int | None] = []

    def note(conn: Connection) -> None:
        for message in conn:
            conn.send(message)
        told.append(conn.close_code)

    with EchoServer(note) as server:
        yield server, told


def quick_or_soak(names: Any) -> list[Any]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.soak]) for name in names]


@pytest.mark.slow
@pytest.mark.parametrize("name", quick_or_soak(ENDINGS))
def test_the_end_is_prompt_and_silent(
    codes: tuple[EchoServer, list[int | None]], name: str, report: Report
) -> None:
    server, told = codes
    ending = ENDINGS[name]
    ended = scripts.run_promptly(EARLY + OPEN + ending.script, server.uri)
    assert ended.out == "end\n", ended
    assert ended.status == ending.status, ended
    if ending.last_words:
        assert ended.err.splitlines()[-1] == ending.last_words
        assert ended.err.count("Traceback") == 1
    else:
        assert ended.err == ""
    assert ended.took < scripts.PROMPT
    server.stop()
    if ending.goodbye is not None:
        assert (1001 in told) is ending.goodbye, told
    report(ROW, **{name.replace(" ", "_").replace(",", ""): f"{ended.took * 1000:.0f} ms"})


@pytest.mark.parametrize("options", [("-X", "dev"), ("-W", "error")], ids=" ".join)
@pytest.mark.parametrize("name", ["lent in threads that have ended", "an executor that is not shut down"])
@pytest.mark.soak
def test_the_same_with_options_of_python(
    codes: tuple[EchoServer, list[int | None]], name: str, options: tuple[str, ...]
) -> None:
    ended = scripts.run_promptly(EARLY + OPEN + ENDINGS[name].script, codes[0].uri, options=options)
    assert ended.check().took < scripts.PROMPT + 0.2  # -X dev itself is slow


CONNECTING = """
threading.Thread(target=pool.acquire, args=('/',), daemon=True).start()
def where():
    frames = list(sys._current_frames().values())
    while frames:
        frame = frames.pop()
        while frame is not None:
            yield frame.f_code.co_name
            frame = frame.f_back
while not {'start_tls', 'upgrade', 'connect'} & set(where()): time.sleep(0.001)
time.sleep(0.05)
"""


# OpenSSL frees its locks as the process ends; a thread that was at it would be a segmentation fault.
LOADING = """
import ssl, jetsocket.wire.tls
jetsocket.wire.tls._GATE_PATIENCE = 20.0  # on a busy machine, the thread comes back late from its sleep
create = ssl.create_default_context
def slow():
    sys.stdout.write('in\\n')
    time.sleep(0.3)
    sys.stdout.write('out\\n')
    return create()
ssl.create_default_context = slow
inside = threading.Thread(target=pool.acquire, args=('/',), daemon=True)
inside.start()
while 'slow' not in where(): time.sleep(0.001)
"""


FORKED = """
import warnings
warnings.simplefilter('ignore')  # threads beside a fork
pid = os.fork()
if not pid: os._exit(0)
print('end')
os.waitpid(pid, 0)
os._exit(0)
"""


@pytest.mark.slow
@pytest.mark.parametrize("ending", [ENDED, FORKED], ids=["exit", "fork"])
def test_the_exit_and_a_fork_wait_for_who_reads_authorities(ending: str) -> None:
    with RawServer(hold) as mute:
        where = CONNECTING[CONNECTING.index("def where") : CONNECTING.index("while not {")]
        script = OPEN + where + LOADING + ending
        ended = scripts.run(script, mute.uri.replace("ws:", "wss:")).check()
    words = ended.out.split()
    assert sorted(words) == ["end", "in", "out"]
    assert ending == ENDED or words == ["in", "out", "end"]  # what a child has is what its parent had


def test_a_tls_handshake_under_way_does_not_hold_the_exit_up() -> None:
    with RawServer(hold) as mute:
        ended = scripts.run_promptly(OPEN + CONNECTING + ENDED, mute.uri.replace("ws:", "wss:"))
    assert ended.check().took < scripts.PROMPT


def test_over_tls_the_server_hears_a_goodbye_too(tls: Tls, tmp_path: Path) -> None:
    told: list[int | None] = []

    def note(conn: Connection) -> None:
        for message in conn:
            conn.send(message)
        told.append(conn.close_code)

    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(tls.ca.cert_pem.bytes())
    script = (
        OPEN
        + "import ssl\ncontext = ssl.create_default_context(cafile=sys.argv[2])\n"
        + "pool = ConnectionPool(base_uri=sys.argv[1], manager_kwargs={'ssl_context': context})\n"
        + IDLE
        + ENDED
    )
    with EchoServer(note, ssl_context=tls.server_context) as server:
        ended = scripts.run_promptly(script, server.uri, str(trusted))
    assert ended.check().took < scripts.PROMPT
    assert set(told) == {1001}


# --- children of multiprocessing, which end by os._exit

CHILDREN = """
import multiprocessing
from tests.scripts import leave_open
context = multiprocessing.get_context(sys.argv[2])
"""
WAYS = {
    "join": CHILDREN
    + IDLE
    + """
children = context.Pool(2)
assert sorted(children.map(leave_open, [sys.argv[1]] * 4)) == [7] * 4
children.close(); children.join()
print('end')
""",
    "terminate": CHILDREN
    + IDLE
    + """
with context.Pool(2) as children:
    assert sorted(children.map(leave_open, [sys.argv[1]] * 4)) == [7] * 4
print('end')
""",
    "process": CHILDREN
    + IDLE
    + LENT
    + """
child = context.Process(target=leave_open, args=(sys.argv[1],)); child.start(); child.join()
assert child.exitcode == 0
assert conn.request(7) == 7
print('end')
""",
}
METHODS = ["fork", "spawn", "forkserver"]
QUICK_CHILDREN = {("fork", "terminate"), ("fork", "process")}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="fork and forkserver")
@pytest.mark.parametrize(
    ("method", "way"),
    [
        pytest.param(method, way, marks=[] if (method, way) in QUICK_CHILDREN else [pytest.mark.soak])
        for method in METHODS
        for way in WAYS
    ],
)
def test_children_of_multiprocessing_end_promptly_and_in_silence(
    echo: EchoServer, method: str, way: str
) -> None:
    ended = scripts.run_promptly(OPEN + WAYS[way], echo.uri, method)
    assert ended.check().out == "end\n"
    assert ended.took < scripts.PROMPT
