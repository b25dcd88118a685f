"""Under gevent's monkey patching: greenlets in the place of threads (DESIGN §4.8)."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from tests import scripts
from tests.servers import EchoServer, RawServer, hold, upgrade

pytest.importorskip("gevent")

START = """
from gevent import monkey
monkey.patch_all()
import sys, time
import gevent
from jetsocket import (ConnectionClosedError, ConnectionPool, ConnectionPoolConfig, PoolClosedError,
                       PoolExhaustedError, TimeoutError)
uri = sys.argv[1]
def make(size=4, **fields):
    return ConnectionPool(ConnectionPoolConfig(max_connections=size, **fields), base_uri=uri)
"""


def go(script: str, server: EchoServer | RawServer) -> None:
    # gevent hides its hub from threading's bookkeeping; what it prints at exit would be shown here.
    assert scripts.run(START + script + "\nprint('ok')\n", server.uri, fresh=True).check().out == "ok\n"


def test_fifty_greenlets_share_four_connections(echo: EchoServer) -> None:
    go(
        """
pool = make()
def work(number):
    for turn in range(10):
        with pool.acquire("/ids", timeout=10) as conn:
            assert conn.request({"id": f"{number}-{turn}"}, timeout=5)["id"] == f"{number}-{turn}"
greenlets = [gevent.spawn(work, n) for n in range(50)]
gevent.joinall(greenlets, timeout=20, raise_error=True)
assert all(g.successful() for g in greenlets)
assert pool.stats().acquires == 500 and pool.stats().total_connections <= 4, pool.stats()
pool.close()
""",
        echo,
    )
    assert echo.most_open <= 4


@pytest.mark.slow
def test_greenlets_wait_side_by_side_and_time_out(echo: EchoServer) -> None:
    go(
        """
pool = make(2)
held = [pool.acquire("/silent") for _ in range(2)]
def in_line():
    try: pool.acquire("/silent", timeout=0.3)
    except PoolExhaustedError: return "exhausted"
def in_recv(conn):
    try: conn.recv(timeout=0.3)
    except TimeoutError: return "timeout"
start = time.monotonic()
waiting = [gevent.spawn(in_line) for _ in range(20)] + [gevent.spawn(in_recv, conn) for conn in held]
gevent.joinall(waiting, timeout=10)
assert [g.value for g in waiting] == ["exhausted"] * 20 + ["timeout"] * 2, [g.value for g in waiting]
assert time.monotonic() - start < 2, "they blocked each other"
for conn in held: conn.release()
pool.close()
""",
        echo,
    )


@pytest.mark.slow
def test_closing_wakes_waiters_and_readers(echo: EchoServer) -> None:
    go(
        """
pool = make(2)
held = [pool.acquire("/silent") for _ in range(2)]
def outcome(call):
    try: call()
    except Exception as error: return type(error).__name__
waiting = [gevent.spawn(outcome, lambda: pool.acquire("/", timeout=20)) for _ in range(5)]
reading = gevent.spawn(outcome, held[0].recv)
while pool.stats().waiting < 5: gevent.sleep(0.001)
start = time.monotonic()
pool.close()
gevent.joinall([*waiting, reading], timeout=5)
assert time.monotonic() - start < 1
assert {g.value for g in waiting} == {"PoolClosedError"}, [g.value for g in waiting]
assert reading.value == "ConnectionClosedError", reading.value
""",
        echo,
    )


@pytest.mark.slow
def test_killed_greenlets_give_their_permits_back(echo: EchoServer) -> None:
    go(
        """
pool = make(3)
def use():
    with pool.acquire("/silent", timeout=10) as conn: conn.recv()
for _ in range(20):
    greenlets = [gevent.spawn(use) for _ in range(6)]
    gevent.sleep(0.005)
    gevent.killall(greenlets, timeout=5)
held = [pool.acquire("/silent", timeout=10) for _ in range(3)]
for conn in held: conn.release()
pool.close()
""",
        echo,
    )
    assert echo.most_open <= 3


@pytest.mark.slow
def test_the_housekeeper_answers_pings_and_reclaims() -> None:
    with EchoServer(ping_interval=0.3, ping_timeout=1.5) as server:
        go(
            """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
pool = make(1)
with pool.acquire("/") as conn: first = conn.id
gevent.sleep(2.5)
with pool.acquire("/") as conn:
    assert conn.id == first and conn.request(1, timeout=5) == 1
del conn
pool.acquire("/")                     # dropped
pool.acquire("/", timeout=5).release()
pool.close()
""",
            server,
        )


@pytest.mark.slow
def test_exit_with_a_pool_open(echo: EchoServer) -> None:
    go(
        "pool = make()\nconn = pool.acquire('/')\npool.acquire('/').release()\nassert conn.request(1) == 1\n",
        echo,
    )


@pytest.mark.slow
def test_greenlets_that_begin_with_a_method_of_the_pool(echo: EchoServer) -> None:
    go(
        """
pool = make(4, leak_threshold=5.0)
assert gevent.spawn(pool.prewarm, "/", 2).get(timeout=5) == 2
leases = [gevent.spawn(pool.acquire, "/"), gevent.spawn_later(0.01, pool.acquire, "/")]
for greenlet in leases:
    with greenlet.get(timeout=5) as conn: assert conn.request(1, timeout=5) == 1
assert pool.stats().total_connections == 2
pool.close()
""",
        echo,
    )


@pytest.mark.slow
def test_release_in_the_hub_and_in_a_signal_handler(echo: EchoServer) -> None:
    """Nothing may block there, not even for a moment: looking at a socket must not."""
    go(
        """
import gc, signal, threading
pool = make(4)
def borrows():
    with pool.acquire("/") as conn:
        assert conn.request(1, timeout=5) == 1
        yield
def suspended():
    generator = borrows()
    next(generator)
    return generator
hub = gevent.get_hub()

lease = pool.acquire("/")
hub.loop.run_callback(lease.release)
gevent.sleep(0.1)

cycle = [suspended()]; cycle.append(cycle)
del cycle
hub.loop.run_callback(gc.collect)
gevent.sleep(0.1)

lease = pool.acquire("/")
signal.signal(signal.SIGALRM, lambda *_: lease.release())
signal.setitimer(signal.ITIMER_REAL, 0.1)
gevent.sleep(0.5)

stats = pool.stats()
assert stats.active_connections == 0, stats
assert set(stats.discards) <= {"exception"}, stats      # that is GeneratorExit
with pool.acquire("/") as conn: assert conn.request(2, timeout=5) == 2
pool.close()
""",
        echo,
    )


@pytest.mark.slow
def test_a_forked_child_can_wait_for_all_its_greenlets(echo: EchoServer) -> None:
    """The parent's housekeeper is a greenlet, and lives on in the child."""
    go(
        """
import os
pool = make(2)
pool.acquire("/").release()
pid = gevent.os.fork()
if pid == 0:
    with pool.acquire("/") as conn: assert conn.request(1, timeout=5) == 1
    pool.close()
    os._exit(0 if gevent.wait(timeout=30) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
assert code == 0, code
pool.close()
""",
        echo,
    )


@pytest.mark.slow
def test_who_waits_in_line_goes_on_in_a_forked_child(echo: EchoServer) -> None:
    go(
        """
import os
pool = make(1)
lent = pool.acquire("/")
waiting = gevent.spawn(pool.acquire, "/", 8)
while not pool.stats().waiting: gevent.sleep(0.01)
pid = gevent.os.fork()
if pid == 0:
    with waiting.get(timeout=5) as conn: assert conn.request(1, timeout=5) == 1
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
lent.release()
with waiting.get(timeout=5) as conn: assert conn.request(2, timeout=5) == 2
pool.close()
""",
        echo,
    )


@pytest.mark.slow
def test_an_order_of_the_parents_opens_nothing_in_the_child(
    raw_server: Callable[..., RawServer],
) -> None:
    """Its opener is a greenlet, and lives on there: it waits for a connection to close that makes room."""

    def mute_at_the_end(sock: socket.socket) -> None:
        upgrade(sock)
        hold(sock)  # it answers no close frame

    server = raw_server(mute_at_the_end)
    go(
        """
import os
pool = make(1)
pool.acquire("/").release()
acquiring = gevent.spawn(pool.acquire, "/other", 8)
while not any(each.place == "closing" for each in pool.connections()): gevent.sleep(0.001)
pid = gevent.os.fork()
if pid == 0:
    acquiring.kill(block=False)
    gevent.sleep(0.8)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
acquiring.get(timeout=5).release()
pool.close(timeout=0.1)
""",
        server,
    )
    assert server.accepted == 2
