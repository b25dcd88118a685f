"""Under gevent's monkey patching: greenlets in the place of threads (DESIGN §4.8)."""

from __future__ import annotations

import pytest

from tests import scripts
from tests.servers import EchoServer

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


def go(script: str, server: EchoServer) -> None:
    # gevent hides its hub from threading's bookkeeping; what it prints at exit would be shown here.
    assert scripts.run(START + script + "\nprint('ok')\n", server.uri, watchdog=25).check().out == "ok\n"


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


def test_exit_with_a_pool_open(echo: EchoServer) -> None:
    go(
        "pool = make()\nconn = pool.acquire('/')\npool.acquire('/').release()\nassert conn.request(1) == 1\n",
        echo,
    )
