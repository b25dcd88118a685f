"""Exceptions between any two bytecodes: nothing is lost that does not come back (DESIGN §4.5).

`PyThreadState_SetAsyncExc` strikes threads at random, in whatever the pool is doing for them; Ctrl-C strikes
the main thread in every place where it can wait. The functions from `storm` on run in a process of their own.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import itertools
import json
import logging
import os
import random
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from types import FrameType
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig, PoolClosedError
from jetsocket.ledger import Ledger
from jetsocket.wire.dial import Dialing
from jetsocket.wire.stream import Stream
from jetsocket.wire.websocket import WebSocket
from tests import scripts
from tests.conftest import Tls
from tests.faults.conftest import Report
from tests.servers import EchoServer, open_fds, open_sockets, wait_until

ROW = "async exceptions"
CAP = 4
VICTIMS = 6  # more than there are connections: some stand in line
HEALED = 3.0  # s: two ticks of the housekeeper, and a busy machine
LONG_FORM = 20_000


# --- at each moment of one operation


class Strike:
    """A profile function that raises KeyboardInterrupt at the so-manieth call or return of `Dialing.open`."""

    def __init__(self, at: int) -> None:
        self.left = at
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: object) -> None:
        if not may_be_struck(frame):
            return
        self.left -= 1
        if self.left < 0:
            sys.setprofile(None)
            self.where = f"{event} {getattr(arg, '__name__', '')} in {frame.f_code} line {frame.f_lineno}"
            raise KeyboardInterrupt


def may_be_struck(frame: FrameType | None) -> bool:
    """In `Dialing.open`, but not while a pair of sockets is made: `socket.socketpair` itself can lose some."""
    while frame is not None and frame.f_code is not Dialing.open.__code__:
        ours = frame.f_code is Stream.__init__.__code__ and "sock" in frame.f_locals
        if frame.f_code.co_name == "socketpair" or (ours and frame.f_locals["sock"].family == socket.AF_UNIX):
            return False
        frame = frame.f_back
    return frame is not None


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_a_connect_that_is_struck_at_any_moment_leaves_no_socket(
    echo: EchoServer, echo_tls: EchoServer, tls: Tls, secure: bool
) -> None:
    server = echo_tls if secure else echo
    before = open_sockets()

    def whole_again() -> bool:
        return open_sockets() == before or bool(gc.collect() and False)  # selectors are cycles

    step = 7 if secure else 2  # dialling is the same, and then come the many moments of a TLS handshake
    for moment in itertools.count(random.randrange(step), step):
        wire, strike = WebSocket(), Strike(moment)
        sys.setprofile(strike)
        try:
            wire.connect(server.uri, timeout=5, ssl_context=tls.client_context, proxy=None)
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.setprofile(None)
            del wire
        wait_until(whole_again, HEALED, f"no socket is left after {strike.where}")
    assert moment > 50


@contextlib.contextmanager
def struck_in(name: str) -> Iterator[None]:
    """Raise KeyboardInterrupt in this thread when that function of the library is called, and swallow it."""
    pending = [True]

    def look(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name == name:
            sys.setprofile(None)
            pending.clear()
            raise KeyboardInterrupt

    sys.setprofile(look)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        sys.setprofile(None)
    assert not pending, f"{name}() was not called"


@pytest.mark.parametrize("step", ["dismiss", "claim", "close_all", "forget_closed"])
def test_a_pool_whose_close_was_interrupted_is_gone_once_it_is_dropped(echo: EchoServer, step: str) -> None:
    pool = ConnectionPool[Any](base_uri=echo.uri, name="half-closed")
    idle, lent = pool.acquire("/"), pool.acquire("/")
    idle.release()
    with struck_in(step):
        pool.close()
    lent.release()
    del pool, idle, lent
    gc.collect()  # tracebacks may make cycles
    wait_until(lambda: not [t for t in threading.enumerate() if "half-closed" in t.name], HEALED)
    gc.collect()  # its books and its thread know each other
    wait_until(lambda: echo.open_now == 0, HEALED)


@pytest.mark.parametrize("ending", ["close", "drain"])
def test_who_waits_is_woken_though_an_interrupt_kept_close_or_drain_from_it(
    echo: EchoServer, ending: str
) -> None:
    pool = ConnectionPool[Any](ConnectionPoolConfig(max_connections=1), base_uri=echo.uri)
    with ThreadPoolExecutor(1) as other, pool.acquire("/") as conn:
        waiting = other.submit(pool.acquire, "/", 20)
        wait_until(lambda: pool.stats().waiting == 1)
        with struck_in("wake_all"):
            getattr(pool, ending)()
        with pytest.raises(PoolClosedError):
            waiting.result(HEALED)
        conn.discard()
    pool.close()


def test_drain_ends_though_an_interrupt_struck_the_last_release(echo: EchoServer) -> None:
    with ConnectionPool[Any](base_uri=echo.uri) as pool, ThreadPoolExecutor(1) as other:
        conn = pool.acquire("/")
        draining = other.submit(pool.drain, 20)
        wait_until(lambda: pool._ledger.draining)
        with struck_in("_wake_drainers"):
            conn.release()
        assert draining.result(HEALED)


