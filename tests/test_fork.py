"""os.fork() beside open connections: both sides work, and neither hears the other (DESIGN §4.8).

Also tests: `threads`.

Also tests: `forking`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from textwrap import dedent

import pytest

from tests import scripts
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer, RawServer, after_upgrade

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

START = """
import os, sys, threading, time, traceback, warnings
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.watchdog import die_if_stuck
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
uri, ids_uri = sys.argv[1], sys.argv[1] + "/ids"
pool = ConnectionPool(ConnectionPoolConfig(max_connections=4, acquire_timeout=10), base_uri=uri)

def in_child(work, leave=os._exit):
    '''Fork, do the work there, return how the child ended.'''
    pid = os.fork()
    if pid == 0:
        die_if_stuck(30)
        status = 3
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        leave(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def talk(conn, tag, rounds=50):
    for number in range(rounds):
        ident = f"{tag}-{number}"
        assert conn.request({"id": ident}, timeout=5)["id"] == ident
"""


def test_parent_and_child_both_work_and_hear_only_their_own(echo: EchoServer) -> None:
    script = """
    with pool.acquire("/ids") as conn:
        talk(conn, "before")
    lent = pool.acquire("/ids")
    idle = pool.acquire("/ids"); idle.release()
    conn_ids = {lent.id, idle.id}
    ready, go = os.pipe()

    def child():
        os.read(ready, 1)
        for _ in range(5):
            with pool.acquire("/ids") as conn:
                assert conn.id not in conn_ids
                talk(conn, "child")
        assert pool.stats().total_connections == 1
        pool.close()

    pid = os.fork()
    if pid == 0:
        die_if_stuck(30)
        try:
            child()
        except BaseException:
            traceback.print_exc()
            os._exit(3)
        os._exit(0)
    os.write(go, b"!")
    talk(lent, "parent")
    with pool.acquire("/ids") as conn:
        assert conn.id == idle.id
        talk(conn, "parent-2")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    talk(lent, "after")                    # the child's end ended nothing here
    lent.release()
    assert pool.stats().total_connections == 2
    pool.close()
    """
    scripts.run(START + _flat(script), echo.uri).check()
    assert echo.opened == 3


@pytest.mark.slow
@pytest.mark.parametrize("leave", ["os._exit", "sys.exit"])
def test_the_childs_end_touches_no_connection_of_the_parent(echo: EchoServer, leave: str) -> None:
    script = f"""
    lent, idle = pool.acquire("/ids"), pool.acquire("/ids")
    idle.release()
    pid = os.getpid()
    status = in_child(lambda: None, {leave})
    assert status == 0 and os.getpid() == pid
    print("forked"); sys.stdin.readline()
    talk(lent, "parent")
    lent.release()
    """
    seen: list[tuple[int, int]] = []
    with scripts.Script(START + _flat(script), echo.uri) as running:
        assert running.line() == "forked"
        seen.append((echo.open_now, echo.messages))
        running.say("go on")
    running.ended().check()
    assert seen == [(2, 0)]


def test_a_lease_of_the_parent_raises_in_the_child(echo: EchoServer) -> None:
    script = """
    from jetsocket import InvalidStateError, ConnectionClosedError
    lent = pool.acquire("/ids")
    def child():
        for use in (lambda: lent.send("x"), lambda: lent.recv(1), lambda: lent.ping(1), lent.recv):
            try:
                use()
            except (InvalidStateError, ConnectionClosedError):
                pass
            else:
                raise AssertionError("it did not raise")
        assert not lent.is_connected
        lent.release()
        lent.release()
        assert pool.stats().active_connections == 0
        held = [pool.acquire("/ids", timeout=2) for _ in range(4)]
    assert in_child(child) == 0
    talk(lent, "parent")
    """
    scripts.run(START + _flat(script), echo.uri).check()
    assert echo.messages == 50


def test_a_lease_that_another_thread_was_using_raises_in_the_child(echo: EchoServer) -> None:
    script = """
    from jetsocket import InvalidStateError, ConnectionClosedError
    from tests.servers import wait_until
    lent = pool.acquire("/silent")
    def read():
        try: lent.recv()
        except ConnectionClosedError: pass
    reader = threading.Thread(target=read, daemon=True); reader.start()
    wait_until(lambda: lent._entry.wire.readlock.locked())
    def child():
        for use in (lent.recv, lambda: lent.send("x"), lent.ping):
            try:
                use()                      # without a timeout: nobody would ever wake it
            except (InvalidStateError, ConnectionClosedError):
                pass
            else:
                raise AssertionError("it did not raise")
        lent.release()
        with pool.acquire("/ids") as conn:
            talk(conn, "child")
    assert in_child(child) == 0
    """
    scripts.run(START + _flat(script), echo.uri).check()


def test_an_unused_lease_of_the_parent_takes_no_connection_of_the_child(echo: EchoServer) -> None:
    script = """
    from jetsocket import ConnectionClosedError
    pool = ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=uri)
    pool.acquire("/ids").release()
    lent = pool.acquire("/ids")            # a reused one: if it is stale, its first send moves it
    def child():
        try:
            lent.send("x")
        except ConnectionClosedError as error:
            assert "fork" in str(error)
        else:
            raise AssertionError("it did not raise")
        assert pool.stats().total_connections == 0
        lent.release()
        with pool.acquire("/ids", timeout=2) as conn:
            talk(conn, "child")
    assert in_child(child) == 0
    talk(lent, "parent")
    """
    scripts.run(START + _flat(script), echo.uri).check()
    assert echo.most_open == 2  # one of the parent's, one of the child's


def test_a_child_keeps_no_connection_that_is_being_closed_to_make_room(
    echo: EchoServer, proxy: Callable[..., FaultProxy]
) -> None:
    script = """
    from tests.servers import open_sockets
    pool = ConnectionPool(ConnectionPoolConfig(max_connections=1), base_uri=uri)
    pool.acquire("/first").release()
    print("stall"); sys.stdin.readline()
    def acquire():
        pool.acquire("/second", timeout=10).release()
    thread = threading.Thread(target=acquire); thread.start()
    while not any(each.place == "closing" for each in pool.connections()): time.sleep(0.001)
    def child():
        assert open_sockets() == 0, open_sockets()
    assert in_child(child) == 0
    print("resume"); sys.stdin.readline()
    thread.join()
    pool.close()
    """
    through = proxy(echo)
    with scripts.Script(START + _flat(script), through.uri()) as running:
        assert running.line() == "stall"
        through.stall()
        running.say("go on")
        assert running.line() == "resume"
        through.resume()
        running.say("go on")
    running.ended().check()


def test_fork_while_other_threads_are_busy_in_the_pool(echo: EchoServer) -> None:
    script = """
    stop = threading.Event()
    trouble = []
    def work(tag):
        try:
            while not stop.is_set():
                with pool.acquire("/ids") as conn:
                    talk(conn, tag, 3)
                with pool.acquire(f"/ids/{tag}") as conn:
                    talk(conn, tag, 1)
        except BaseException as error:
            trouble.append(error)
    workers = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(8)]
    for worker in workers: worker.start()
    def child():
        with pool.acquire("/ids") as conn:
            talk(conn, f"child-{os.getpid()}", 5)
        assert [t.name for t in threading.enumerate() if "housekeeper" in t.name], "it has its own thread"
        pool.close()
    statuses = [in_child(child) for _ in range(12)]
    stop.set()
    for worker in workers: worker.join(10)
    assert statuses == [0] * 12, statuses
    assert not trouble, trouble
    pool.close()
    """
    scripts.run(START + _flat(script), echo.uri).check()
    assert echo.most_open <= 8  # four of the parent's, four of one child's


@pytest.mark.slow
def test_the_childs_thread_looks_after_its_connections() -> None:
    with EchoServer(ping_interval=0.3, ping_timeout=0.9) as server:
        script = """
        with pool.acquire("/") as conn: pass
        def child():
            with pool.acquire("/") as conn:
                first = conn.id
            time.sleep(2)
            with pool.acquire("/") as conn:
                assert conn.id == first and conn.request(1) == 1
            lease = pool.acquire("/"); del lease      # reclaimed by the child's own thread
            warnings.simplefilter("ignore", ResourceWarning)
            held = [pool.acquire("/", timeout=2) for _ in range(4)]
        assert in_child(child) == 0
        with pool.acquire("/") as conn:
            assert conn.request(1) == 1
        """
        scripts.run(
            START + "warnings.simplefilter('ignore', ResourceWarning)\n" + _flat(script), server.uri
        ).check()


def test_a_grandchild_works_too(echo: EchoServer) -> None:
    script = """
    def use():
        with pool.acquire("/ids") as conn: talk(conn, f"p{os.getpid()}", 5)
    def child():
        use()
        assert in_child(use) == 0
        use()
    use()
    assert in_child(child) == 0
    use()
    assert pool.stats().total_connections == 1
    """
    scripts.run(START + _flat(script), echo.uri).check()
    assert echo.opened == 3


def test_a_pool_closed_before_the_fork_is_closed_in_the_child(echo: EchoServer) -> None:
    script = """
    from jetsocket import PoolClosedError
    with pool.acquire("/ids"): pass
    pool.close()
    def child():
        assert pool.is_closed
        try: pool.acquire("/ids")
        except PoolClosedError: return
        raise AssertionError
    assert in_child(child, sys.exit) == 0
    """
    ended = scripts.run(START + _flat(script), echo.uri)
    ended.check()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_multiprocessing(echo: EchoServer, method: str) -> None:
    script = """
    import multiprocessing
    from tests.scripts import ask_ids
    with pool.acquire("/ids") as conn: talk(conn, "parent", 5)
    lent = pool.acquire("/ids")
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2) as processes:
        assert processes.map(ask_ids, [uri] * 6, chunksize=1) == [True] * 6
    workers = [context.Process(target=ask_ids, args=(uri,)) for _ in range(2)]
    for worker in workers: worker.start()
    for worker in workers: worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0]
    talk(lent, "parent", 5)
    lent.release()
    pool.close()
    """
    scripts.run(START + _flat(script), echo.uri, method).check()


def test_over_tls_the_session_stays_the_parents(echo_tls: EchoServer) -> None:
    script = """
    import ssl
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    pool = ConnectionPool(base_uri=uri, manager_kwargs={"ssl_context": context})
    lent = pool.acquire("/ids")
    talk(lent, "before", 3)
    def child():
        lent.release()
        with pool.acquire("/ids") as conn: talk(conn, "child", 5)
        pool.close()
    for leave in (os._exit, sys.exit):
        assert in_child(child, leave) == 0
    talk(lent, "after", 5)
    lent.release()
    pool.close()
    """
    scripts.run(START + _flat(script), echo_tls.uri).check()


def test_a_fork_that_runs_no_hooks_of_pythons(echo: EchoServer, echo_tls: EchoServer) -> None:
    """As that of uWSGI: the first thing a child uses finds out that it is one."""
    script = """
    import ctypes, ssl
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    config = ConnectionPoolConfig(max_connections=4, acquire_timeout=10)

    def refused(conn, use):
        try: getattr(conn, use)(*(["x"] if use == "send" else [1] if use == "recv" else []))
        except (ConnectionError, ValueError): pass
        else: raise AssertionError("the child used the parent's lease")

    def child(first):
        if first == "stats": assert pool.stats().total_connections == 0
        if first == "drain": assert pool.drain(0)
        if first == "close": pool.close()
        if first in ("send", "recv"): refused(lent, first)
        if first in ("release", "discard"): getattr(lent, first)()
        if first in ("drain", "close"): return
        with pool.acquire("/ids") as conn: talk(conn, "child", 5)
        assert pool.stats().total_connections == 1
        refused(unused, "send")

    for server in sys.argv[1:]:
        pool = ConnectionPool(config, base_uri=server, manager_kwargs={"ssl_context": context})
        lent, unused = pool.acquire("/ids"), pool.acquire("/ids")
        talk(lent, "before", 3)
        pool.acquire("/ids").release()
        for first in ("acquire", "stats", "drain", "close", "send", "recv", "release", "discard"):
            sys.setswitchinterval(100)     # who asks for the interpreter's lock at the fork is not there in
            pid = ctypes.PyDLL(None).fork()       # the child, which would hand it over, and wait for ever
            sys.setswitchinterval(0.005)
            if pid == 0:
                die_if_stuck(30)
                status = 3
                try:
                    child(first)
                    status = 0
                except BaseException:
                    traceback.print_exc()
                os._exit(status)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, (server, first)
            talk(lent, "after " + first, 3)
            with pool.acquire("/ids") as conn: talk(conn, "idle after " + first, 3)
        assert pool.stats().total_connections == 3
        talk(unused, "unused", 3)
        lent.release(); unused.release()
        pool.close()
    """
    scripts.run(START + _flat(script), echo.uri, echo_tls.uri).check()


INTERRUPTED = """
import itertools
sys.unraisablehook = lambda _: None      # CPython swallows what a hook raises, and tells it here
parent = os.getpid()

def struck_at(name, strike):
    def look(frame, event, arg):
        if event == "call" and frame.f_code.co_name == name and os.getpid() != parent:
            sys.setprofile(None)
            strike()
    sys.setprofile(look)

def interrupt():
    raise KeyboardInterrupt
"""


def test_a_signal_that_comes_while_the_child_begins_anew(echo: EchoServer) -> None:
    """`multiprocessing`'s `start(); terminate()` with a handler that closes the pool, for one."""
    script = """
    STRIKES = {
        "interrupt": interrupt, "close": lambda: pool.close(), "release": lambda: lent.release()
    }
    STEPS = ("_after_fork_in_child", "disown", "_begin_anew", "_new_books", "rooms")
    for strike, step in itertools.product(STRIKES, STEPS):
        pool = ConnectionPool(base_uri=uri)
        idle, lent = pool.acquire("/ids"), pool.acquire("/ids")
        idle.release()

        def child():
            if not pool.is_closed:
                with pool.acquire("/ids") as conn: talk(conn, "child", 5)
                assert pool.stats().total_connections == 1
            pool.close()

        struck_at(step, STRIKES[strike])
        assert in_child(child) == 0, (strike, step)
        sys.setprofile(None)
        talk(lent, "after", 5)
        with pool.acquire("/ids") as conn:
            assert conn.id == idle.id
            talk(conn, "after", 5)
        lent.release()
        pool.close()
    """
    scripts.run(START + INTERRUPTED + _flat(script), echo.uri).check()


def test_hooks_of_others_that_run_before_ours_and_use_the_pool(echo: EchoServer) -> None:
    script = """
    import gc, os
    os.register_at_fork(after_in_child=lambda: early())
    """
    use = """
    lent = pool.acquire("/ids")
    pool.acquire("/ids").release()

    def borrows():
        with pool.acquire("/ids") as conn:
            talk(conn, "generator", 2)
            yield

    suspended = borrows()
    next(suspended)

    def early():
        global suspended
        suspended = None
        gc.collect()
        with pool.acquire("/ids") as conn: talk(conn, "early", 5)

    assert in_child(lambda: None) == 0
    talk(lent, "after", 5)
    next(suspended, None)
    assert pool.stats().discards == {}, pool.stats()
    lent.release()
    pool.close()
    """
    scripts.run(_flat(script) + START + _flat(use), echo.uri).check()


FORKS_IN_A_HANDLER = """
import signal
children = []

def fork(*_):
    children.append(os.fork())
    if children[-1] == 0:
        die_if_stuck(30)

def soon(pid=os.getpid()):
    threading.Timer(0.3, os.kill, (pid, signal.SIGUSR1)).start()

signal.signal(signal.SIGUSR1, fork)
"""


@pytest.mark.slow
def test_a_signal_handler_forks_while_the_main_thread_receives(echo: EchoServer) -> None:
    script = """
    conn = pool.acquire("/late")
    conn.send({"delay": 1})
    soon()
    try:
        answer = conn.recv(timeout=8)
    except BaseException as error:
        assert children[-1] == 0, "it is the child's error"
        answer = type(error).__name__, conn.is_connected
    if children[-1] == 0:
        good = answer == ("ConnectionClosedError", False)
        with pool.acquire("/ids") as other: talk(other, "child", 5)
        print("" if good else answer, end="")
        os._exit(0 if good else 3)
    assert answer == {"delay": 1}
    assert os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]) == 0
    conn.release()
    pool.close()
    """
    scripts.run(START + FORKS_IN_A_HANDLER + _flat(script), echo.uri).check()


@pytest.mark.slow
def test_a_signal_handler_forks_while_the_main_thread_stands_in_line(echo: EchoServer) -> None:
    """In the child, nobody holds a permit: whoever waited for one has it at once."""
    script = """
    lent = [pool.acquire("/ids") for _ in range(4)]
    threading.Timer(1.0, lambda: lent[0].release()).start()
    soon()
    with pool.acquire("/ids", timeout=9) as conn:
        talk(conn, "woken", 5)
        if children[-1] == 0:
            os._exit(0 if pool.stats().total_connections == 1 else 3)
    assert os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]) == 0
    for conn in lent[1:]: talk(conn, "after", 5); conn.release()
    pool.close()
    """
    scripts.run(START + FORKS_IN_A_HANDLER + _flat(script), echo.uri).check()


@pytest.mark.slow
def test_a_fork_in_a_callback(echo: EchoServer) -> None:
    """The child may use the pool there, and ends with the thread that it is; the parent goes on."""
    script = """
    CALLBACKS = {
        "headers": dict(manager_kwargs={"extra_headers": lambda: fork() or {}}),
        "headers fail": dict(manager_kwargs={"extra_headers": lambda: fork() or [1]}),
        "headers exit": dict(manager_kwargs={"extra_headers": lambda: fork() or sys.exit()}),
        "configure": dict(configure=lambda conn: fork()),
        "configure fails": dict(configure=lambda conn: fork() or 1 / 0),
        "check": dict(check=lambda conn: fork()),
    }
    CONFIG = ConnectionPoolConfig(max_connections=1, health_check_interval=0.2)
    def fork():
        if not pids:
            pids.append(os.fork())
            if pids == [0]:
                die_if_stuck(30)
                if uses_pool:
                    with pool.acquire("/ids") as conn: talk(conn, "child", 5)
                    assert pool.stats().total_connections == 1
                    print("the child's own", flush=True)
                    os._exit(0)      # it has threads of its own by now
    for callback, given in CALLBACKS.items():
        fails = callback.endswith(("fail", "fails", "exit"))
        for uses_pool in (False,) if fails else (False, True):
            pids = []
            pool = ConnectionPool(CONFIG, base_uri=uri, **given)
            failed = 0
            for number in range(3):
                try:
                    with pool.acquire("/ids", timeout=5) as conn: talk(conn, "parent", 5)
                except ConnectionError:
                    failed += 1
            while not pids: time.sleep(0.001)
            assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 0, callback
            assert failed == 3 * fails, (callback, failed)
            if not fails:
                with pool.acquire("/ids", timeout=5) as conn: talk(conn, "parent", 5)
            pool.close()
    """
    ended = scripts.run(START + _flat(script), echo.uri).check()
    assert ended.out == "the child's own\n" * 3


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_child_keeps_no_connection_of_a_pool_that_was_dropped(raw_server: Callable[..., RawServer]) -> None:
    """It still says goodbye, to a server that does not answer."""
    server = raw_server(after_upgrade())
    script = """
    import gc, stat
    def sockets():
        return sum(stat.S_ISSOCK(os.fstat(int(fd)).st_mode) for fd in os.listdir("/proc/self/fd")
                   if os.path.exists(f"/proc/self/fd/{fd}"))
    before = sockets()
    pool.acquire("/").release()
    del pool; gc.collect()
    assert sockets() == before + 1
    def child():
        assert sockets() == before, sockets()
    assert in_child(child) == 0
    """
    scripts.run(START + _flat(script), server.uri).check()


def test_a_lease_of_the_parents_is_released_though_a_thread_held_the_lock_at_the_fork(
    echo: EchoServer,
) -> None:
    """The thread is not there in the child, and will never let go."""
    script = """
    pool.acquire("/ids").release()
    lent = pool.acquire("/ids")
    state, held, go = pool._lending.state, threading.Event(), threading.Event()

    def hold():
        with state.lock:
            held.set()
            go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    assert in_child(lent.release) == 0
    go.set()
    thread.join(10)
    lent.release()
    pool.close()
    """
    scripts.run(START + _flat(script), echo.uri).check()


def _flat(script: str) -> str:
    return dedent(script)
