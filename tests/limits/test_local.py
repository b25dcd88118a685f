"""`LocalLimiter`: several pools share its slots, who holds fewest goes first, and the others make room.

Also tests: `call`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
from collections import Counter
from collections.abc import Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.limits import LocalLimiter
from tests import scripts
from tests.awake import awake
from tests.servers import EchoServer, wait_until


class Pool:
    """A pool, as a limiter sees it: what it is asked for, and what it holds."""

    def __init__(self, limiter: LocalLimiter) -> None:
        self.limiter = limiter
        self.asked: list[tuple[int, bool]] = []
        self.held: list[Hashable] = []
        self.is_wanted = True
        limiter.bind(self)

    def lost(self, token: Hashable, reason: str) -> None:
        raise AssertionError(reason)

    def give_up(self, count: int = 1, *, returned: bool = False) -> None:
        self.asked.append((count, returned))

    @property
    def owes(self) -> int:
        """How many it is to close that come back, as pools count it."""
        owed = 0
        for count, returned in self.asked:
            owed = 0 if count == 0 else owed + count * returned
        return owed

    def acquire(self, timeout: float = 0.0) -> bool:
        def wanted() -> bool:
            return self.is_wanted

        wanted.owner = self  # type: ignore[attr-defined]  # a function has a dict
        token = self.limiter.acquire(timeout, wanted)
        if token is not None:
            self.held.append(token)
        return token is not None

    def release(self) -> None:
        self.limiter.release(self.held.pop())


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as executor:
        yield executor


def waiting(limiter: LocalLimiter) -> int:
    return int(limiter.stats()["waiting"])


def begin(threads: ThreadPoolExecutor, pool: Pool, timeout: float = 30.0) -> Future[bool]:
    """Have a pool wait."""
    before = waiting(pool.limiter)
    future = threads.submit(pool.acquire, timeout)
    wait_until(lambda: waiting(pool.limiter) > before)
    return future


def test_it_has_so_many_slots_for_all() -> None:
    limiter = LocalLimiter(3)
    one, two = Pool(limiter), Pool(limiter)
    assert [one.acquire(), two.acquire(), one.acquire()] == [True] * 3
    assert not one.acquire()
    assert not two.acquire()
    assert limiter.stats() == {"limit": 3, "held": 3, "others": 0, "waiting": 0, "errors": 0, "lost": 0}
    two.release()
    assert one.acquire()
    assert (limiter.limit, repr(limiter)) == (3, "LocalLimiter(3)")


def test_who_holds_fewest_goes_first_and_then_who_has_waited_longest(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(4)
    rich, poor, late = Pool(limiter), Pool(limiter), Pool(limiter)
    for _ in range(3):
        rich.acquire()
    poor.acquire()
    order: list[Pool] = []

    def wait(pool: Pool) -> None:
        pool.acquire(30)
        order.append(pool)

    futures = []
    for number, pool in enumerate((rich, poor, late), 1):
        futures.append(threads.submit(wait, pool))
        wait_until(lambda most=number: waiting(limiter) == most)
    other = Pool(limiter)
    futures.append(threads.submit(wait, other))
    wait_until(lambda: waiting(limiter) == 4)
    for done in range(1, 5):  # they hold 3, 1, 0 and 0
        (rich if len(rich.held) > 1 else poor).release()
        wait_until(lambda most=done: len(order) == most)
    assert order[:2] == [late, other]
    assert set(order[2:]) == {rich, poor}
    for future in futures:
        future.result(5)


def test_one_that_asks_again_stands_where_it_stood(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(1)
    holder, first, second = Pool(limiter), Pool(limiter), Pool(limiter)
    holder.acquire()
    early = threads.submit(first.acquire, 0.2)
    wait_until(lambda: waiting(limiter) == 1)
    later = begin(threads, second)
    assert early.result(5) is False
    again = begin(threads, first)
    holder.release()
    assert again.result(5)
    assert not later.done()
    first.release()
    assert later.result(5)


def test_a_release_wakes_who_waits_at_once(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(1)
    one, two = Pool(limiter), Pool(limiter)
    one.acquire()
    fastest = 1.0
    for _ in range(10):
        future = begin(threads, two)
        began = awake()
        one.release()
        assert future.result(5)
        fastest = min(fastest, awake() - began)
        two.release()
        one.acquire()
    assert fastest < 0.05  # by a look at the clock alone, it would be a quarter of a second


@pytest.mark.parametrize("timeout", [0.0, -1.0, 0.05, 0.4])
def test_timeouts_are_kept(timeout: float) -> None:
    limiter = LocalLimiter(1)
    one, two = Pool(limiter), Pool(limiter)
    one.acquire()
    began, clock = awake(), monotonic()
    assert not two.acquire(timeout)
    assert monotonic() - clock >= timeout
    assert awake() - began < max(0.0, timeout) + 0.5
    assert waiting(limiter) == 0


def test_it_is_asked_whether_one_is_wanted_still(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(1)
    one, two = Pool(limiter), Pool(limiter)
    one.acquire()
    future = begin(threads, two)
    two.is_wanted = False
    began = awake()
    assert future.result(5) is False
    assert awake() - began < 1.0
    one.release()
    assert limiter.stats()["held"] == 0


def test_others_are_asked_for_idle_connections_at_once_and_again(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(3)
    pools = [Pool(limiter) for _ in range(3)]
    empty, waiter = Pool(limiter), Pool(limiter)
    for pool in pools:
        pool.acquire()
    future = begin(threads, waiter, 1.3)
    assert [pool.asked[:1] for pool in pools] == [[(1, False)]] * 3
    assert future.result(5) is False
    assert all(2 <= len([each for each in pool.asked if each == (1, False)]) <= 4 for pool in pools)
    assert empty.asked == waiter.asked == []


def test_the_one_that_holds_most_is_to_close_the_next_that_comes_back(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(6)
    most, less, waiter = Pool(limiter), Pool(limiter), Pool(limiter)
    for _ in range(4):
        most.acquire()
    for _ in range(2):
        less.acquire()
    future = begin(threads, waiter)
    assert most.owes == 1
    assert (1, True) not in less.asked
    most.release()
    assert future.result(5)
    wait_until(lambda: most.owes == 0)  # no pool waits any more
    assert most.asked[-1] == (0, False)


def test_it_is_taken_back_when_nobody_waits_any_more(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(2)
    rich, other, waiter = Pool(limiter), Pool(limiter), Pool(limiter)
    rich.acquire()
    rich.acquire()
    for end in ("unwanted", "late", "unbound"):
        waiter.is_wanted = True
        future = begin(threads, waiter, 0.5 if end == "late" else 30)
        assert rich.owes == 1
        if end == "unwanted":
            waiter.is_wanted = False
        if end == "unbound":
            waiter.is_wanted = False
            limiter.unbind(waiter, 1.0)
        assert future.result(5) is False
        assert rich.owes == 0
    assert other.asked == []


@pytest.mark.slow
def test_one_that_holds_one_more_is_asked_after_a_turn(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(1, turn=0.6)
    one, two = Pool(limiter), Pool(limiter)
    one.acquire()
    future = begin(threads, two)
    began = monotonic()
    assert one.owes == 0
    wait_until(lambda: one.owes == 1)
    assert monotonic() - began > 0.3
    one.release()
    assert future.result(5)
    future = begin(threads, one)  # and round it goes
    assert two.owes == 0
    wait_until(lambda: two.owes == 1)
    two.release()
    assert future.result(5)


def test_one_that_holds_as_many_is_never_asked_for_what_is_in_use(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(2, turn=0.1)
    one, two = Pool(limiter), Pool(limiter)
    one.acquire()
    two.acquire()
    assert begin(threads, two, 0.8).result(5) is False
    assert (1, True) not in one.asked


def test_after_a_turn_the_next_one_is_asked_too(threads: ThreadPoolExecutor) -> None:
    """What the first one holds may be in use for hours."""
    limiter = LocalLimiter(7, turn=0.3)
    stuck, busy, poor, waiter = (Pool(limiter) for _ in range(4))
    for pool, count in ((stuck, 4), (busy, 2), (poor, 1)):
        for _ in range(count):
            pool.acquire()
    future = begin(threads, waiter)
    assert (stuck.owes, busy.owes) == (1, 0)
    wait_until(lambda: busy.owes == 1)
    assert stuck.owes == 1
    busy.release()
    assert future.result(5)
    wait_until(lambda: stuck.owes == 0)


def test_a_pool_that_comes_late_gets_its_share(threads: ThreadPoolExecutor) -> None:
    """Pools that always want one more end with as many each, a remainder goes round."""
    limiter, over = LocalLimiter(10, turn=0.2), threading.Event()
    turns: Counter[int] = Counter()

    class Hungry(Pool):
        def give_up(self, count: int = 1, *, returned: bool = False) -> None:
            super().give_up(count, returned=returned)
            if returned:
                threads.submit(self.release)

        def feed(self) -> None:
            while not over.is_set():
                if self.acquire(0.2):
                    turns[id(self)] += 1

    pools = [Hungry(limiter) for _ in range(3)]
    pools[0].is_wanted = True
    feeding = [threads.submit(pools[0].feed)]
    wait_until(lambda: len(pools[0].held) == 10)
    feeding += [threads.submit(pool.feed) for pool in pools[1:]]
    wait_until(lambda: sorted(len(pool.held) for pool in pools) == [3, 3, 4])
    had_four = set()

    def has_been_with_all() -> bool:
        had_four.update(id(pool) for pool in pools if len(pool.held) == 4)
        return len(had_four) == 3

    wait_until(has_been_with_all, 20)
    assert all(1 < len(pool.held) < 6 for pool in pools)
    over.set()
    for future in feeding:
        future.result(5)


def test_a_token_that_is_not_out_is_refused() -> None:
    limiter, other = LocalLimiter(2), LocalLimiter(2)
    pool, stranger = Pool(limiter), Pool(other)
    pool.acquire()
    stranger.acquire()
    token = pool.held[0]
    pool.release()
    for each in (token, stranger.held[0], object(), 1, ["unhashable"]):
        with pytest.raises(
            ValueError, match=r"is not out: it was released before, or LocalLimiter\(2\) never"
        ):
            limiter.release(each)  # type: ignore[arg-type]  # what is no token
    assert repr(token) == "<slot 1>"
    assert other.stats()["held"] == 1


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"limit": 0}, ValueError, "limit must be 1 or more, not 0"),
        ({"limit": "3"}, TypeError, "limit must be an int, not '3'"),
        ({"limit": True}, TypeError, "limit must be an int, not True"),
        ({"limit": 2.0}, TypeError, "limit must be an int"),
        ({"limit": 1, "turn": 0}, ValueError, "turn must be more than 0"),
        ({"limit": 1, "turn": None}, TypeError, "turn must be a number of seconds"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        LocalLimiter(**arguments)


def test_one_that_says_not_who_it_is_waits_in_the_order_in_which_it_came(
    threads: ThreadPoolExecutor,
) -> None:
    limiter = LocalLimiter(1)
    token = limiter.acquire(0, lambda: True)
    first = threads.submit(limiter.acquire, 30, lambda: True)
    wait_until(lambda: waiting(limiter) == 1)
    second = threads.submit(limiter.acquire, 30, lambda: True)
    wait_until(lambda: waiting(limiter) == 2)
    limiter.release(token)
    limiter.release(first.result(5))
    limiter.release(second.result(5))


class Struck(Exception):
    pass


def test_what_strikes_a_call_that_waits_costs_no_slot(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(1)
    pool = Pool(limiter)
    pool.acquire()
    asked = threading.Event()

    def struck() -> bool:
        if asked.is_set():
            pool.release()  # it is given to the call that is struck now
            raise Struck
        asked.set()
        return True

    with pytest.raises(Struck):
        limiter.acquire(30, struck)
    assert limiter.stats() == {"limit": 1, "held": 0, "others": 0, "waiting": 0, "errors": 0, "lost": 0}
    assert pool.acquire()


def test_a_slot_that_comes_at_the_last_moment_goes_to_the_next(threads: ThreadPoolExecutor) -> None:
    limiter = LocalLimiter(1)
    holder, ahead, behind = Pool(limiter), Pool(limiter), Pool(limiter)
    holder.acquire()
    next_one: list[Future[bool]] = []

    def wanted() -> bool:
        if not next_one:
            next_one.append(begin(threads, behind))
            return True
        holder.release()  # it is given to the call that asks
        return False

    wanted.owner = ahead  # type: ignore[attr-defined]  # a function has a dict
    assert limiter.acquire(30, wanted) is None
    assert next_one[0].result(5)


# --- with pools


@contextlib.contextmanager
def pools_to(server: EchoServer, limiter: LocalLimiter, count: int) -> Iterator[list[ConnectionPool[Any]]]:
    config = ConnectionPoolConfig(max_connections=20, acquire_timeout=10)
    with contextlib.ExitStack() as stack:
        made = [ConnectionPool[Any](config, base_uri=server.uri, limiter=limiter) for _ in range(count)]
        yield [stack.enter_context(pool) for pool in made]


def test_a_pool_gets_the_idle_connections_of_another(echo: EchoServer) -> None:
    limiter = LocalLimiter(4)
    with pools_to(echo, limiter, 2) as (rich, poor):
        rich.prewarm("/", 4)
        began = awake()
        held = [poor.acquire("/") for _ in range(4)]
        assert awake() - began < 2.0
        assert rich.stats().total_connections == 4
        for conn in held:
            conn.release()
        assert rich.request("/", 1) == 1
    wait_until(lambda: limiter.stats()["held"] == 0)
    assert echo.most_open <= 4


def test_hungry_pools_share_and_one_that_comes_late_is_served_soon(echo: EchoServer) -> None:
    limiter, over = LocalLimiter(6, turn=0.3), threading.Event()
    with pools_to(echo, limiter, 3) as pools, ThreadPoolExecutor(24) as crowd:
        turns = [0, 0, 0]

        def borrow(number: int) -> None:
            while not over.is_set():
                with pools[number].acquire("/") as conn:
                    conn.request(number, 5)
                    turns[number] += 1

        def hunger(number: int) -> list[Future[None]]:
            return [crowd.submit(borrow, number) for _ in range(8)]

        borrowing = hunger(0)
        wait_until(lambda: pools[0].stats().active_connections == 6)
        began = awake()
        borrowing += hunger(1)
        wait_until(lambda: turns[1] > 0)
        assert awake() - began < 2.0
        borrowing += hunger(2)
        wait_until(lambda: [pool.stats().total_connections > 1 for pool in pools] == [True] * 3)

        def is_shared() -> bool:
            held = Counter(slot.waiter.holder for slot in list(limiter._here().out))
            return sorted(held.values()) == [2, 2, 2]

        wait_until(is_shared, 20)
        over.set()
        for future in borrowing:
            future.result(20)
    wait_until(lambda: limiter.stats()["held"] == 0)
    assert echo.most_open <= 6


def test_more_pools_than_slots_take_turns(echo: EchoServer) -> None:
    limiter = LocalLimiter(1, turn=0.2)
    with pools_to(echo, limiter, 3) as pools, ThreadPoolExecutor(3) as crowd:

        def borrow(pool: ConnectionPool[Any]) -> int:
            for _ in range(5):
                for number in range(20):
                    assert pool.request("/", number, 20) == number
            return 5

        assert list(crowd.map(borrow, pools)) == [5, 5, 5]
    assert echo.most_open == 1


def test_a_pool_that_is_closed_or_dropped_leaves_nothing(echo: EchoServer) -> None:
    limiter = LocalLimiter(3)
    pool = ConnectionPool[Any](base_uri=echo.uri, limiter=limiter)
    assert pool.request("/", 1) == 1
    assert len(limiter._here()._holders) == 1
    pool.close()
    wait_until(lambda: not limiter._here()._holders)
    pool = ConnectionPool[Any](base_uri=echo.uri, limiter=limiter)
    assert pool.request("/", 1) == 1
    del pool
    gc.collect()
    wait_until(lambda: not limiter._here()._holders)
    assert limiter.stats()["held"] == 0


FORK = """
import os, sys, threading
from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.limits import LocalLimiter
from tests.limits.test_local import Pool
from tests.watchdog import die_if_stuck
limiter = LocalLimiter(2)
pool = Pool(limiter)
assert pool.acquire() and pool.acquire() and not pool.acquire()
held, let_go = threading.Event(), threading.Event()

def hold_the_lock():
    with limiter._here().lock:
        held.set()
        let_go.wait(20)

def child():
    assert limiter.stats()["held"] == 0
    try:
        limiter.release(pool.held[0])
    except ValueError:
        pass
    else:
        raise AssertionError("the parent's token")
    mine = Pool(limiter)
    assert mine.acquire() and mine.acquire() and not mine.acquire(0.05)
    mine.release()
    assert pool.asked == []      # it is the parent's

threading.Thread(target=hold_the_lock).start()
held.wait(20)
sys.setswitchinterval(100)       # see test_fork
pid = FORK()
sys.setswitchinterval(0.005)
if pid == 0:
    die_if_stuck(20)
    status = 3
    try:
        child()
        status = 0
    finally:
        os._exit(status)
let_go.set()
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
assert limiter.stats()["held"] == 2 and not pool.acquire(0.05)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
@pytest.mark.parametrize("fork", ["os.fork", "__import__('ctypes').PyDLL(None).fork"])
def test_a_forked_child_begins_with_all_slots(fork: str) -> None:
    """Though another thread held the lock; also of a fork that runs no hooks."""
    warned = "import warnings; warnings.filterwarnings('ignore', 'This process', DeprecationWarning)\n"
    scripts.run(warned + FORK.replace("FORK", fork)).check()
