"""FakePool: a pool like any other, until a test wants it to fail.

Also tests: `failures`.
"""

from __future__ import annotations

import threading
import traceback
from typing import Any

import pytest

import jetsocket
from jetsocket import (
    ConnectionPool,
    ConnectionPoolConfig,
    HandshakeError,
    PoolClosedError,
    PoolExhaustedError,
)
from jetsocket.correlation import JsonRpc
from jetsocket.testing import ANY, FakePool, FakeServer

ERRORS = [getattr(jetsocket, name) for name in jetsocket.__all__ if name.endswith("Error")]


def test_it_is_a_pool_over_a_server_of_its_own() -> None:
    with FakePool[Any](config=ConnectionPoolConfig(max_connections=2), name="fake") as pool:
        assert isinstance(pool, ConnectionPool) and pool.config.max_connections == 2 and pool.name == "fake"
        pool.server.on("x").reply(7)
        assert pool.request("/", "x") == 7
        with pool.acquire("/") as conn:
            assert "test_pool.py" in str(pool.leases()[0])
            assert conn.is_connected
        assert pool.stats().acquires == 2
    assert pool.is_closed and pool.server.is_over


def test_it_may_have_the_server_of_another() -> None:
    with FakeServer(tls=True) as server:
        with FakePool[Any](server, base_uri=server.url_for("/v1/")) as pool:
            server.on(ANY, path="/v1/x").reply(1)
            assert pool.request("x", "y") == 1
        assert not server.is_over
    unstarted = FakeServer()
    with FakePool[Any](unstarted, correlation=JsonRpc()) as pool:
        unstarted.on(ANY).reply({"result": 3})
        assert pool.request("/", {"method": "m"})["result"] == 3
    assert unstarted.is_over


def test_every_error_of_the_library_can_be_raised() -> None:
    assert len(ERRORS) == 13
    with FakePool[Any]() as pool:
        for kind in ERRORS:
            pool.fail(kind)
            with pytest.raises(kind, match="FakePool") as caught:
                pool.acquire("/x?token=s3cret")
            assert type(caught.value) is kind and "s3cret" not in str(caught.value)
        facts = {kind.__name__: kind for kind in ERRORS}
        pool.fail(facts["HandshakeError"])
        with pytest.raises(HandshakeError) as handshake:
            pool.acquire("/")
        assert handshake.value.status_code == 503 and handshake.value.body
        pool.fail(facts["ReplyError"])
        with pytest.raises(jetsocket.ReplyError) as reply:
            pool.request("/", "x")
        assert (reply.value.code, reply.value.message) == (-32000, "Server error")
        pool.acquire("/").release()  # it is not a failing pool
        assert pool.stats().acquires == 1


def test_an_error_of_ones_own_so_many_times() -> None:
    class Own(HandshakeError):
        pass

    with FakePool[Any]() as pool:
        pool.server.on("x").reply(1)
        pool.fail(HandshakeError("slow down", status_code=429), times=2)
        pool.fail(Own)
        pool.fail(OSError("any"), times=1)
        seen = []
        for _ in range(2):
            with pytest.raises(HandshakeError, match="slow down") as caught:
                pool.request("/", "x")
            seen.append(caught.value)
        assert seen[0] is not seen[1] and seen[1].status_code == 429
        assert len(traceback.extract_tb(seen[0].__traceback__)) == len(
            traceback.extract_tb(seen[1].__traceback__)
        )
        with pytest.raises(Own):
            pool.subscribe("/", None)
        with pytest.raises(OSError, match="any"):
            pool.acquire("/")
        assert pool.request("/", "x") == 1
        pool.fail(HandshakeError, times=None)
        for _ in range(3):
            with pytest.raises(HandshakeError):
                pool.acquire("/")
        pool.restore()
        pool.acquire("/").release()


def test_an_exhausted_pool_says_so_at_once_until_it_is_restored() -> None:
    with FakePool[Any](config=ConnectionPoolConfig(max_connections=3)) as pool:
        pool.acquire("/").release()
        pool.exhaust()
        for call in (
            lambda: pool.acquire("/"),
            lambda: pool.request("/", 1),
            lambda: pool.subscribe("/", None),
        ):
            with pytest.raises(PoolExhaustedError) as caught:
                call()
            assert (caught.value.max_connections, caught.value.operation) == (3, "acquire")
        pool.restore()
        pool.acquire("/").release()
        assert pool.stats().acquires == 2


def test_threads_share_what_fails() -> None:
    with FakePool[Any]() as pool:
        pool.fail(HandshakeError, times=5)
        failed: list[Any] = []

        def borrow() -> None:
            try:
                pool.acquire("/").release()
            except HandshakeError as error:
                failed.append(error)

        threads = [threading.Thread(target=borrow) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(failed) == 5 and pool.stats().acquires == 3


def test_a_closed_one_is_closed() -> None:
    pool = FakePool[Any]()
    pool.close()
    pool.close()
    with pytest.raises(PoolClosedError):
        pool.acquire("/")


def test_arguments_are_checked() -> None:
    with pytest.raises(TypeError, match="FakeServer or None"):
        FakePool("ws://x")  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError):
        FakePool(unknown=1)
    with FakePool[Any]() as pool:
        for error in ("HandshakeError", str, None):
            with pytest.raises(TypeError, match="an exception or a class"):
                pool.fail(error)  # type: ignore[arg-type]  # likewise
        for never in (ValueError, ValueError("x"), Exception, KeyError):
            with pytest.raises(TypeError, match=r"fail takes what a pool raises: .*, not "):
                pool.fail(never)
        for possible in (OSError, ConnectionResetError, KeyboardInterrupt):
            pool.fail(possible)
            with pytest.raises(possible):
                pool.acquire("/")
        with pytest.raises(ValueError, match="times"):
            pool.fail(HandshakeError, times=0)


def test_an_error_of_the_body_keeps_its_place() -> None:
    with pytest.raises(ZeroDivisionError) as caught, FakePool[Any]() as pool:
        pool.server.on("x")
        raise ZeroDivisionError
    assert "never matched" in caught.value.__notes__[0]
