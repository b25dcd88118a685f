"""What is told of leases and connections: by whom, for how long, from where, doing what; and no secret."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.clock import monotonic
from tests.servers import EchoServer, RawServer, after_upgrade, wait_until

MakePool = Callable[..., ConnectionPool[Any]]
MakeRaw = Callable[..., RawServer]


def test_a_lease_says_whose_it_is(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with ThreadPoolExecutor(1, thread_name_prefix="borrower") as threads:
        first = threads.submit(pool.acquire, "/?token=secret").result(5)
        second = pool.acquire("/")
        [elder, younger] = pool.leases()
        assert (elder.id, younger.id) == (first.id, second.id)
        assert elder.uri == echo.uri_for("/?token=***")
        assert elder.thread.startswith("borrower")
        assert younger.thread == threading.current_thread().name
        assert elder.age >= younger.age >= 0
        assert "test_a_lease_says_whose_it_is" in younger.where
        assert f"{__file__}:" in younger.where
        assert elder.doing == younger.doing == "in your code"
        assert "secret" not in str(pool.leases())
        first.release()
    assert [each.id for each in pool.leases()] == [second.id]
    second.release()
    assert pool.leases() == []


def test_the_name_of_a_thread_that_has_ended_is_told_as_such(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    held: list[Any] = []
    thread = threading.Thread(target=lambda: held.append(pool.acquire("/")), name="gone")
    thread.start()
    thread.join(5)
    [lease] = pool.leases()
    assert "has ended" in lease.thread
    held.pop().release()


def test_what_a_borrower_waits_for_is_told(
    raw_server: MakeRaw, make_pool: MakePool, request: pytest.FixtureRequest
) -> None:
    is_over = threading.Event()
    request.addfinalizer(is_over.set)

    def never_read(_: socket.socket) -> None:
        is_over.wait(30)

    pool = make_pool(raw_server(after_upgrade(then=never_read)))
    with ThreadPoolExecutor(2) as threads, pool.acquire("/") as conn:
        waiting = threads.submit(conn.recv)
        wait_until(lambda: pool.leases()[0].doing.startswith("in recv for "))
        sending = threads.submit(conn.send_raw, b"x" * (64 << 20))  # no one reads it
        wait_until(lambda: re.fullmatch(r"in send for \S+ s and in recv for \S+ s", pool.leases()[0].doing))
        assert f"acquired in {test_what_a_borrower_waits_for_is_told.__name__}" in str(pool.leases()[0])
        pool.close()
        for each in (waiting, sending):
            assert each.exception(5) is not None


def test_a_borrower_that_waits_no_more_is_in_its_own_code(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, health_check_interval=0.01)  # so that the housekeeper is often in it, too
    with pool.acquire("/") as conn:
        with pytest.raises(TimeoutError):
            conn.recv(timeout=0.05)
        conn.request(1, 5)
        until = monotonic() + 0.3
        while monotonic() < until:
            assert pool.leases()[0].doing == "in your code"


def test_connections_are_told_in_whatever_place(
    echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool
) -> None:
    pool = make_pool(echo)
    assert pool.connections() == []
    with pool.acquire("/a") as lent:
        pool.acquire("/b?key=secret").release()
        lent.ping(5)
        first, second = pool.connections()
        assert (first.id, first.place, first.uses) == (lent.id, "lent", 1)
        assert (second.place, second.uses, second.uri) == ("idle", 1, echo.uri_for("/b?key=***"))
        assert first.age >= second.age > 0
        assert first.latency is not None and first.latency == pytest.approx(lent.latency_ms / 1000)
        assert second.latency is None
    mute = make_pool(raw_server(lambda sock: sock.recv(1 << 16) and sock.recv(1)))
    with ThreadPoolExecutor(1) as threads:
        acquiring = threads.submit(mute.acquire, "/", 20)
        [info] = wait_until(mute.connections)
        assert (info.place, info.age, info.uses, info.latency) == ("opening", 0.0, 0, None)
        mute.close()
        assert acquiring.exception(5) is not None
