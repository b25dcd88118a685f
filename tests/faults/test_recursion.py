"""A RecursionError at each of the last depths before the limit loses no slot; it needs no signal."""

from __future__ import annotations

import contextlib
import gc
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.awake import awake
from tests.books import faults
from tests.servers import EchoServer, wait_until
from tests.sizes import LONG

CAP = 2
DEPTHS = 60
THIRD = range(8 + random.randrange(3), DEPTHS, 3)
TRIED = list(range(DEPTHS)) if LONG else [*range(8), *THIRD]  # in the short form another third each time
HEALED = 3.0  # s: less than one on a machine that is not busy


def at_the_limit(left: int, work: Callable[[], object]) -> BaseException | None:
    """Call `work` with so many frames left before the limit; return what it raised."""
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1  # type: ignore[assignment]

    def descend(frames: int) -> object:
        return work() if frames <= 0 else descend(frames - 1)

    try:
        descend(sys.getrecursionlimit() - depth - left - 2)
    except RecursionError as error:
        return error
    return None


def ran_in_us(error: BaseException) -> bool:
    """Whether a line of the library had run in the call that raised this."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals["__name__"].startswith("jetsocket."):
            return True
        trace = trace.tb_next
    return False


@pytest.fixture
def new_pool(echo: EchoServer) -> Iterator[Callable[[], ConnectionPool[Any]]]:
    """Makes pools with an idle connection: one for each depth, so that all heal at the same time."""
    config = ConnectionPoolConfig(max_connections=CAP, acquire_timeout=20.0)
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.simplefilter("ignore", ResourceWarning)

        def new() -> ConnectionPool[Any]:
            pool = stack.enter_context(ConnectionPool[Any](config, base_uri=echo.uri))
            pool.request("/", 1)
            return pool

        yield new


def all_can_be_had(pool: ConnectionPool[Any], left: int) -> None:
    began = awake()
    held = [pool.acquire("/") for _ in range(CAP)]
    assert awake() - began < HEALED, f"with {left} frames left"
    for conn in held:
        assert conn.request(left, 5) == left
        conn.release()
    wait_until(lambda: not faults(pool), HEALED, f"{faults(pool)} with {left} frames left")


# A finalizer that has no frame left is told by Python itself, and found by the housekeeper.
@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "what", ["acquire", "acquire and drop", "release", "release twice", "request", "block"]
)
def test_no_slot_is_lost_at_any_depth(new_pool: Callable[[], ConnectionPool[Any]], what: str) -> None:
    raised = 0
    tried: list[tuple[ConnectionPool[Any], list[Any]]] = []
    for left in TRIED:
        pool = new_pool()
        kept: list[Any] = []
        tried.append((pool, kept))
        if what == "acquire":
            struck = at_the_limit(left, lambda kept=kept, pool=pool: kept.append(pool.acquire("/", 5)))
            for conn in kept:
                conn.release()
        elif what == "acquire and drop":
            struck = at_the_limit(left, lambda pool=pool: pool.acquire("/", 5) and None)
        elif what == "request":
            struck = at_the_limit(left, lambda pool=pool: pool.request("/", 1, 5))
        elif what == "block":

            def in_a_block(pool: ConnectionPool[Any] = pool) -> None:
                with pool.acquire("/", 5) as conn:
                    conn.send(1)

            struck = at_the_limit(left, in_a_block)
        else:  # the lease is kept while the slot comes back
            kept.append(pool.acquire("/"))
            struck = at_the_limit(left, kept[0].release)
            if what == "release twice":
                kept[0].release()
        raised += struck is not None
        if what == "release" and struck is not None and not ran_in_us(struck):
            kept[0].release()  # the call itself was struck
    gc.collect()
    for left, (pool, _) in zip(TRIED, tried, strict=True):
        all_can_be_had(pool, left)
    assert raised >= 2  # the release of an unused lease is two calls deep


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_closing_at_any_depth_closes_in_the_end(echo: EchoServer) -> None:
    for left in range(0, DEPTHS, 3):
        pool = ConnectionPool[Any](ConnectionPoolConfig(max_connections=CAP), base_uri=echo.uri)
        pool.request("/", 1)
        at_the_limit(left, pool.close)
        pool.close()
        wait_until(lambda: echo.open_now == 0, HEALED, f"with {left} frames left")
