"""What a pool does with its limiters: who waits for them, who gets what they give, what they may ask for.

Also tests: `limiter_calls`.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any, NamedTuple

import pytest

from jetsocket import ConnectionClosedError, ConnectionPool, ConnectionPoolConfig, PoolExhaustedError
from jetsocket.exceptions import ConnectionError, PoolClosedError
from jetsocket.limits import Limiter, LocalLimiter, Owner
from jetsocket.quotas import Quota, origin_of
from jetsocket.uris import parse
from tests.awake import awake
from tests.books import faults, state_of
from tests.servers import EchoServer, RawServer, wait_until


class Token(NamedTuple):
    fence: int


class Recording(Limiter):
    """A limiter in memory that notes what is asked of it."""

    name = "account"

    def __init__(self, most: int) -> None:
        self.most = most
        self.given = 0
        self.out: set[Hashable] = set()
        self.asked: list[float] = []
        self.waiting = 0
        self.most_waiting = 0
        self.owners: list[Owner] = []
        self.unbound: list[Owner] = []
        self.changed = threading.Condition()

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        with self.changed:
            assert self.owners
            self.asked.append(timeout)
            assert getattr(wanted, "owner", None) in self.owners
            self.waiting += timeout > 0
            self.most_waiting = max(self.waiting, self.most_waiting)
            try:
                until = monotonic() + timeout
                while len(self.out) >= self.most:
                    left = until - monotonic()
                    if left <= 0 or not wanted() or (not self.changed.wait(min(left, 0.02)) and left <= 0):
                        return None
            finally:
                self.waiting -= timeout > 0
            self.given += 1
            token = Token(self.given)
            self.out.add(token)
            return token

    def release(self, token: Hashable) -> None:
        with self.changed:
            self.out.remove(token)  # KeyError the second time
            self.changed.notify_all()

    def bind(self, owner: Owner) -> None:
        self.owners.append(owner)

    def unbind(self, owner: Owner, timeout: float) -> None:
        self.unbound.append(owner)

    def stats(self) -> Mapping[str, Any]:
        return {"limit": self.most, "held": len(self.out), "others": 7}


@pytest.fixture(autouse=True)
def no_thread_fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", told.append)
    yield
    assert told == []


def pool_to(server: EchoServer | RawServer, limiter: Any, **fields: Any) -> ConnectionPool[Any]:
    return ConnectionPool(ConnectionPoolConfig(**fields), base_uri=server.uri, limiter=limiter)


def test_it_is_asked_at_once_first_and_then_for_a_connect_timeout_each_time(echo: EchoServer) -> None:
    limiter = Recording(1)
    with (
        pool_to(echo, limiter) as holds,
        ConnectionPool[Any](
            base_uri=echo.uri, limiter=limiter, manager_kwargs={"connect_timeout": 0.3}
        ) as waits,
        ThreadPoolExecutor(1) as threads,
    ):
        conn = holds.acquire("/")
        assert limiter.asked == [0]
        waiting = threads.submit(waits.request, "/", 1, 10)
        wait_until(lambda: len(limiter.asked) >= 4)
        assert limiter.asked[:4] == [0, 0, 0.3, 0.3]
        assert waits.stats().waiting == 1
        assert waits.stats().connecting == 0
        conn.discard()
        conn.release()
        assert waiting.result(5) == 1
    wait_until(lambda: len(limiter.unbound) == 2)
    assert set(limiter.owners) == set(limiter.unbound)
    assert echo.most_open == 1


def test_one_opener_waits_however_many_callers_do(echo: EchoServer) -> None:
    limiter = Recording(0)
    with pool_to(echo, limiter, max_connections=8) as pool, ThreadPoolExecutor(12) as threads:
        waiting = [threads.submit(pool.request, f"/{number % 3}", number, 10) for number in range(12)]
        wait_until(lambda: pool.stats().waiting == 12 and limiter.waiting == 1)
        limiter.most = 2
        assert [each.result(10) for each in waiting] == list(range(12))
        assert limiter.most_waiting == 1
        assert faults(pool) == []
        pool.clear()
        wait_until(lambda: not limiter.out)
        limiter.most = 5
        assert pool.prewarm("/", 5) == 5  # more than one is asked for when there is room
    assert echo.most_open <= 5


def test_a_returned_connection_serves_who_waits_for_the_limiter(echo: EchoServer) -> None:
    limiter = Recording(1)
    with pool_to(echo, limiter) as pool, ThreadPoolExecutor(1) as threads:
        conn = pool.acquire("/")
        waiting = threads.submit(pool.request, "/", 1, 10)
        wait_until(lambda: limiter.waiting == 1)
        conn.release()
        assert waiting.result(5) == 1
        wait_until(lambda: limiter.waiting == 0)  # no caller wants it any more
        assert limiter.given == 1


def test_another_uri_gets_the_slot_of_an_idle_one_without_a_question(echo: EchoServer) -> None:
    limiter = Recording(2)
    with pool_to(echo, limiter, max_connections=5) as pool:
        for number in range(6):  # more than the limit: each evicts the one idle for longest
            assert pool.request(f"/{number}", number, 5) == number
        assert limiter.given == 2
        assert len(limiter.out) == 2
        assert faults(pool) == []
    assert echo.most_open == 2


def test_at_a_full_pool_what_makes_room_brings_its_slot_along(echo: EchoServer) -> None:
    limiter = Recording(1)
    with pool_to(echo, limiter, max_connections=1) as pool:
        pool.request("/a", 1, 5)
        limiter.most = 0
        for number in range(5):
            assert pool.request(f"/{number}", number, 5) == number
        assert (limiter.given, limiter.asked) == (1, [0])
        assert faults(pool) == []
    assert echo.most_open == 1


@pytest.mark.parametrize("cap", [1, 4])
def test_what_ends_for_another_reason_gives_its_slot_back(echo: EchoServer, cap: int) -> None:
    """Though its own pool wants it: who has waited for longest may be another pool, or another process."""
    limiter = Recording(1)
    with pool_to(echo, limiter, max_connections=cap) as pool, ThreadPoolExecutor(1) as threads:
        for turn in range(1, 11):
            conn = pool.acquire("/", 5)
            waiting = threads.submit(pool.request, "/", turn, 10)
            wait_until(lambda: pool.stats().waiting == 1)
            conn.discard()
            conn.release()
            assert waiting.result(10) == turn
            assert limiter.given == turn + 1  # the first has that of the turn before
        assert faults(pool) == []


@pytest.mark.slow
def test_two_uris_starve_neither_each_other_nor_another_pool(echo: EchoServer) -> None:
    limiter = Recording(3)
    with pool_to(echo, limiter) as one, pool_to(echo, limiter) as other, ThreadPoolExecutor(8) as threads:
        until = monotonic() + 2.0

        def call(pool: ConnectionPool[Any], path: str) -> int:
            calls = 0
            while monotonic() < until:
                with pool.acquire(path, 10) as conn:
                    conn.request(calls, 5)
                calls += 1
            return calls

        # The other has one from the beginning: this limiter asks no pool to give up.
        other.request("/", 0, 5)
        work = [threads.submit(call, one, f"/{number % 2}") for number in range(6)]
        work += [threads.submit(call, other, "/") for _ in range(2)]
        assert min(each.result(20) for each in work) > 5
        assert faults(one) == faults(other) == []
    assert echo.most_open <= 3


def test_another_service_is_opened_while_one_is_waited_for(echo: EchoServer) -> None:
    full = Recording(0)
    with EchoServer() as free:
        origin = origin_of(parse(echo.uri))
        pool = ConnectionPool[Any](
            ConnectionPoolConfig(max_connections=1, max_connecting=1), limiter={origin: full}
        )
        with pool, ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(pool.request, echo.uri, 1, 10)
            wait_until(lambda: full.waiting == 1)
            assert pool.request(free.uri, 2, 5) == 2  # with the pool's only slot
            full.most = 1
            assert waiting.result(10) == 1
            assert faults(pool) == []


def test_a_full_limiter_has_no_other_service_evicted_in_vain(echo: EchoServer) -> None:
    full = Recording(0)
    with EchoServer() as free:
        limiters = {origin_of(parse(echo.uri)): full}
        with ConnectionPool[Any](ConnectionPoolConfig(max_connections=2), limiter=limiters) as pool:
            pool.prewarm(free.uri, 2)
            for _ in range(3):
                with pytest.raises(PoolExhaustedError):
                    pool.acquire(echo.uri, 0.2)
            assert free.opened - len(pool.connections()) <= 1
            full.most = 1
            assert pool.request(echo.uri, 1, 5) == 1


def test_which_limiter_counts_is_told_by_origin(echo: EchoServer) -> None:
    asked: list[str] = []
    one = Recording(1)

    def choose(origin: str) -> Limiter | None:
        asked.append(origin)
        return one if origin == origin_of(parse(echo.uri)) else None

    with EchoServer() as other, ConnectionPool[Any](limiter=choose) as pool:
        pool.prewarm(other.uri, 3)
        pool.request(echo.uri + "/a", 1, 5)
        pool.request(echo.uri + "/b", 1, 5)
        assert asked == [origin_of(parse(other.uri)), origin_of(parse(echo.uri))]
        assert len(one.out) == 1
        assert pool.limits() == {"account": {"limit": 1, "held": 1, "others": 7}}


def fails(_origin: str) -> Limiter:
    raise LookupError("no such account")


@pytest.mark.parametrize(
    ("choose", "told"),
    [
        (fails, "given as limiter failed: LookupError in fails"),
        (lambda _: 7, "given as limiter returned int"),
    ],
)
def test_a_callable_that_fails_is_a_failed_dial(echo: EchoServer, choose: Any, told: str) -> None:
    with ConnectionPool[Any](limiter=choose) as pool:
        with pytest.raises(ConnectionError, match=told) as caught:
            pool.acquire(echo.uri, 5)
        assert choose is not fails or isinstance(caught.value.__cause__, LookupError)


@pytest.mark.parametrize(
    ("limiter", "error", "told"),
    [
        (object(), TypeError, "limiter must be a jetsocket.limits.Limiter, a mapping"),
        (Recording, TypeError, "limiter must be a jetsocket.limits.Limiter, a mapping"),
        ({"wss://a.example": 7}, TypeError, "must be a jetsocket.limits.Limiter, not 7"),
        ({7: Recording(1)}, TypeError, "a key of limiter must be a str"),
        ({"wss://a.example/path": Recording(1)}, ValueError, "is no origin"),
        ({"https://a.example": Recording(1)}, ValueError, "wss://"),
        ({"wss://a.example:443": Recording(1), "wss://A.example": Recording(1)}, ValueError, "twice"),
    ],
)
def test_what_can_be_no_limiter_is_refused(limiter: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        ConnectionPool(limiter=limiter)


def test_the_name_of_a_limiter_is_shown_on_one_line() -> None:
    """It goes into messages, metrics and the page of status, and may be any file's path."""
    limiter = LocalLimiter(2)
    limiter.name = "/run/two\nlines\udcff"  # type: ignore[attr-defined]  # it needs none
    assert Quota(limiter, lambda: None).name == "/run/two lines?"


def test_a_limiter_that_raises_is_a_failed_dial(echo: EchoServer) -> None:
    class Away(Recording):
        def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
            raise OSError("its server is away")

    with pool_to(echo, Away(1)) as pool:
        began = awake()
        with pytest.raises(
            ConnectionError, match="the limiter 'account' failed: OSError in acquire"
        ) as caught:
            pool.acquire("/", 30)
        assert awake() - began < 5
        assert isinstance(caught.value.__cause__, OSError)
        assert str(caught.value.__cause__) == "its server is away"
        assert pool.stats().connect_errors == 1
        assert faults(pool) == []


def test_one_that_raises_while_it_is_waited_for_fails_those_who_wait(echo: EchoServer) -> None:
    class Dying(Recording):
        def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
            if timeout == 0:
                return super().acquire(timeout, wanted)
            raise ConnectionError("the limiter's own words")

    with pool_to(echo, Dying(0)) as pool:
        with pytest.raises(ConnectionError, match=r"^the limiter's own words$"):
            pool.acquire("/", 30)
        assert faults(pool) == []


def test_a_full_one_is_told_at_the_deadline(echo: EchoServer) -> None:
    with pool_to(echo, Recording(0)) as pool, pytest.raises(PoolExhaustedError) as caught:
        pool.acquire("/", 0.3)
    told = str(caught.value)
    assert (
        "the limiter 'account' has no slot: its limit is 0, 0 of its slots are held by this process" in told
    )
    assert "7 by others" in told
    assert "raise max_connections" not in told


def test_a_slot_that_is_lost_ends_its_connection_idle_or_lent(echo: EchoServer) -> None:
    limiter = Recording(3)
    with pool_to(echo, limiter) as pool, ThreadPoolExecutor(1) as threads:
        with pool.acquire("/") as idle, pool.acquire("/") as lent:
            idle_token, lent_token = Token(idle.fence), Token(lent.fence)
            idle.release()
            receiving = threads.submit(lent.recv, 10)
            limiter.owners[0].lost(lent_token, "not renewed")
            limiter.owners[0].lost(idle_token, "not renewed")
            with pytest.raises(ConnectionClosedError, match="its slot was lost: not renewed") as caught:
                receiving.result(5)
            assert caught.value.code == 1006
            wait_until(lambda: echo.open_now == 0 and not limiter.out)  # though the lease is held
            limiter.owners[0].lost(lent_token, "again")  # and one that is unknown
        with pool.acquire("/") as conn:
            assert conn.request(1, 5) == 1
            assert conn.fence == 3
        assert faults(pool) == []
        assert pool.stats().discards["slot lost"] == 1


def test_a_slot_that_is_lost_before_its_connection_is_open_is_not_used(echo: EchoServer) -> None:
    class Forgetful(Recording):
        def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
            token = super().acquire(timeout, wanted)
            if token == Token(1):
                self.owners[0].lost(token, "at once")
                wait_until(lambda: not state_of(pool).quotas.all[0].notes)  # type: ignore[union-attr]  # it has
            return token

    limiter = Forgetful(1)
    with pool_to(echo, limiter) as pool:
        with pool.acquire("/", 5) as conn:
            assert conn.fence == 2
        assert faults(pool) == []
    wait_until(lambda: not limiter.out)
    assert echo.opened == 1


@pytest.mark.parametrize("most", [1, 10])
def test_a_slot_that_is_lost_while_its_connection_is_opened_costs_the_caller_no_error(most: int) -> None:
    """Another one is opened for it, and the dial that was broken off is no failure."""
    limiter, config = Recording(1), ConnectionPoolConfig(max_connections=most)
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as threads:
        server.settimeout(10)
        uri = f"ws://127.0.0.1:{server.getsockname()[1]}"
        with ConnectionPool[Any](config, base_uri=uri, limiter=limiter) as pool:
            acquiring = threads.submit(pool.acquire, "/", 20)
            with server.accept()[0] as first:
                first.settimeout(10)
                assert first.recv(9999)
                limiter.owners[0].lost(Token(1), "not renewed")
                assert first.recv(1) == b""
                with server.accept()[0] as second:
                    second.settimeout(10)
                    assert second.recv(9999)
                    assert limiter.out == {Token(2)}
                    assert not acquiring.done()
                    assert pool.stats().connect_errors == 0
                    wait_until(lambda: not faults(pool))
                    pool.close(0)
                    assert isinstance(acquiring.exception(10), PoolClosedError)
    wait_until(lambda: not limiter.out)


def test_what_is_told_to_be_lost_after_its_release_is_no_matter_for_an_equal_token(echo: EchoServer) -> None:
    class OneToken(Recording):
        def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
            return None if super().acquire(timeout, wanted) is None else "the one"

        def release(self, token: Hashable) -> None:
            super().release(next(iter(self.out)))

    limiter = OneToken(1)
    with pool_to(echo, limiter) as pool:
        pool.request("/", 1, 5)
        limiter.owners[0].lost("the one", "not renewed")
        wait_until(lambda: not limiter.out)
        for _ in range(3):
            limiter.owners[0].lost("the one", "not renewed")
        wait_until(lambda: not state_of(pool).quotas.all[0].notes)  # type: ignore[union-attr]  # it has
        pool.request("/", 1, 5)
        assert limiter.given == 2
        assert faults(pool) == []


def test_those_that_are_idle_are_given_up_at_once_the_longest_idle_first(echo: EchoServer) -> None:
    limiter = Recording(3)
    with pool_to(echo, limiter) as pool:
        held = [pool.acquire("/") for _ in range(3)]
        fences = [conn.fence for conn in held]
        for conn in held:
            conn.release()
        limiter.owners[0].give_up(2)
        wait_until(lambda: len(limiter.out) == 1)
        with pool.acquire("/") as conn:
            assert conn.fence == fences[2]
        limiter.owners[0].give_up(5)
        wait_until(lambda: not limiter.out)
        with pool.acquire("/") as conn:  # nothing is remembered of the other four
            conn.request(1, 5)
        assert len(pool.connections()) == 1


def test_what_comes_back_is_given_up_rather_than_handed_on(echo: EchoServer) -> None:
    limiter = Recording(2)
    with pool_to(echo, limiter) as pool, ThreadPoolExecutor(1) as threads:
        one, two = pool.acquire("/"), pool.acquire("/")
        limiter.owners[0].give_up(1, returned=True)
        wait_until(lambda: state_of(pool).to_give_up == 1)
        limiter.most = 1  # another has taken it
        waiting = threads.submit(pool.request, "/", 1, 10)
        wait_until(lambda: limiter.waiting == 1)
        one.release()
        wait_until(lambda: len(limiter.out) == 1)
        assert not waiting.done()
        two.release()  # it was one: this one is handed on
        assert waiting.result(5) == 1
        assert pool.stats().discards["given up"] == 1

        limiter.owners[0].give_up(3, returned=True)
        wait_until(lambda: not limiter.out)
        limiter.most = 2
        with pool.acquire("/") as conn:
            limiter.owners[0].give_up(1, returned=True)
            wait_until(lambda: state_of(pool).to_give_up == 1)
            limiter.owners[0].give_up(0)
            wait_until(lambda: state_of(pool).to_give_up == 0)
            conn.request(1, 5)
        assert pool.stats().idle_connections == 1
        assert faults(pool) == []


@pytest.mark.slow
def test_what_is_only_kept_yields_and_comes_back(echo: EchoServer) -> None:
    limiter = Recording(3)
    with pool_to(echo, limiter) as pool:
        assert pool.prewarm("/", 3, keep=True) == 3
        limiter.most = 0
        for _ in range(8):  # as one who waits for some seconds asks
            limiter.owners[0].give_up(3)
        wait_until(lambda: not limiter.out)
        limiter.most = 3
        limiter.owners[0].give_up(0)
        wait_until(lambda: len(limiter.out) == 3, 15)


@pytest.mark.slow
def test_at_the_cap_what_is_kept_is_replaced_after_its_end(echo: EchoServer) -> None:
    limiter = Recording(2)
    with pool_to(echo, limiter, max_lifetime=1.0) as pool:
        assert pool.prewarm("/", 2, keep=True) == 2
        wait_until(lambda: echo.opened >= 6, 15)
        assert faults(pool) == []
    assert echo.most_open == 2


def test_prewarm_opens_what_the_limiter_has(echo: EchoServer) -> None:
    limiter = Recording(2)
    config = ConnectionPoolConfig(acquire_timeout=0.5)
    with ConnectionPool[Any](config, base_uri=echo.uri, limiter=limiter) as pool:
        assert pool.prewarm("/", 4) == 2
        wait_until(lambda: limiter.waiting == 0)
        assert faults(pool) == []
        limiter.most = 5
        assert pool.prewarm("/", 4) == 2


def test_a_pool_that_is_dropped_lets_go_of_its_limiter(echo: EchoServer) -> None:
    limiter = Recording(3)
    pool = pool_to(echo, limiter)
    pool.request("/", 1, 5)
    del pool
    wait_until(lambda: limiter.unbound == limiter.owners)
    assert not limiter.out


def test_one_that_never_opens_anything_binds_nothing(echo: EchoServer) -> None:
    limiter = Recording(3)
    with pool_to(echo, limiter) as pool, pytest.raises(PoolExhaustedError):
        limiter.most = 0
        pool.acquire("/", 0.05)
    wait_until(lambda: limiter.unbound == limiter.owners and len(limiter.owners) == 1)
    untouched = Recording(1)
    pool_to(echo, untouched).close()
    assert untouched.owners == []


def run(script: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_binds_anew_and_releases_nothing_of_its_parents(echo: EchoServer) -> None:
    script = f"""
import os, sys
sys.path.insert(0, {str(os.getcwd())!r})
from jetsocket import ConnectionPool
from tests.test_quotas import Recording
limiter = Recording(3)
pool = ConnectionPool(base_uri={echo.uri!r}, limiter=limiter)
pool.prewarm("/", 2)
parents = set(limiter.out)
child = os.fork()
if child == 0:
    assert pool.request("/", 1, 5) == 1
    assert len(limiter.owners) == 2, limiter.owners
    assert limiter.out > parents and len(limiter.out) == 3
    pool.unbind = limiter.unbind = lambda owner, timeout: None
    pool.close()
    assert limiter.out == parents, limiter.out
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert pool.request("/", 1, 5) == 1
assert limiter.out == parents
print("ended well")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.stdout == "ended well\n", done.stderr


@pytest.mark.slow
def test_at_the_end_of_the_process_all_comes_back(echo: EchoServer) -> None:
    script = f"""
import sys
sys.path.insert(0, {str(os.getcwd())!r})
from jetsocket import ConnectionPool
from tests.test_quotas import Recording
class Told(Recording):
    def unbind(self, owner, timeout):
        assert timeout <= 0.1
        print(len(self.out), "left", flush=True)
pool = ConnectionPool(base_uri={echo.uri!r}, limiter=Told(3))
pool.prewarm("/", 2)
lease = pool.acquire("/")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False
    )
    assert (done.stdout, done.stderr) == ("0 left\n", "")


def test_a_limiter_that_hangs_costs_its_callers_a_connect_timeout(echo: EchoServer) -> None:
    go_on = threading.Event()

    class Hanging(Recording):
        def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
            if timeout:
                go_on.wait(30)
            return None

    limiter = Hanging(0)
    with ConnectionPool[Any](
        base_uri=echo.uri, limiter=limiter, manager_kwargs={"connect_timeout": 0.2}
    ) as pool:
        with pytest.raises((ConnectionError, TimeoutError), match="hangs"):
            pool.acquire("/", 20)
        assert faults(pool) == []
        go_on.set()
        wait_until(lambda: not state_of(pool).left_behind)
