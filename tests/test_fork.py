"""os.fork() beside open connections: both sides work, and neither hears the other (DESIGN §4.8)."""

from __future__ import annotations

import os
from collections.abc import Callable
from textwrap import dedent

import pytest

from tests import scripts
from tests.faults.proxy import FaultProxy
from tests.servers import EchoServer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")

START = """
import os, sys, threading, time, traceback, warnings
from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.scripts import die_if_stuck
warnings.filterwarnings("ignore", "This process", DeprecationWarning)
uri, ids_uri = sys.argv[1], sys.argv[1] + "/ids"
pool = ConnectionPool(ConnectionPoolConfig(max_connections=4, acquire_timeout=10), base_uri=uri)

def in_child(work, leave=os._exit):
    '''Fork, do the work there, return how the child ended.'''
    pid = os.fork()
    if pid == 0:
        die_if_stuck(10)
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
        die_if_stuck(10)
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
    while not any(permit.room for permit in pool._ledger.permits.held.copy()): time.sleep(0.001)
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
    statuses = [in_child(child) for _ in range(40)]
    stop.set()
    for worker in workers: worker.join(10)
    assert statuses == [0] * 40, statuses
    assert not trouble, trouble
    pool.close()
    """
    scripts.run(START + _flat(script), echo.uri).check()
    assert echo.most_open <= 8  # four of the parent's, four of one child's


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
    for worker in workers: worker.join(10)
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


def _flat(script: str) -> str:
    return dedent(script)
