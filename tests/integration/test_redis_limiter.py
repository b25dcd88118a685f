"""RedisLimiter with pools, processes and a real Redis: what the server sees, whatever becomes of them.

The script alone: test_redis_script.py.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest

pytest.importorskip("redis")

from jetsocket import ConnectionError, ConnectionPool, PoolExhaustedError, clock
from jetsocket.contrib.redis import RedisLimiter, desk, line, link, session
from jetsocket.testing import check_limiter
from tests.awake import awake
from tests.contrib.redis.test_limiter import Owner, always, threads
from tests.faults.proxy import FaultProxy
from tests.integration.redis_workers import FleetCensus, FleetProcess, fleet_of
from tests.integration.redises import HAS_REDIS, RedisServer, redis_server
from tests.servers import LOCALHOST, EchoServer, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not HAS_REDIS, reason="needs redis-server"),
    pytest.mark.timeout(120),
]

LEASE = 2.0  # s, in most of these tests


@pytest.fixture(scope="module")
def module_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(module_redis: RedisServer) -> RedisServer:
    with module_redis.client() as client:
        client.flushall()
        client.config_resetstat()
    return module_redis


@pytest.fixture
def census() -> FleetCensus:
    return FleetCensus()


@pytest.fixture
def server(census: FleetCensus) -> Iterator[EchoServer]:
    with EchoServer(census) as server:
        yield server


def get(limiter: RedisLimiter, timeout: float = 5.0) -> Any:
    """A slot, also in a group's first second, and of a Redis that a busy machine makes slow."""
    until = awake() + timeout
    while True:
        try:
            token = limiter.acquire(timeout, always)
        except ConnectionError:
            if awake() > until:
                raise
            sleep(0.05)
            continue
        assert token is not None
        return token


class Bound:
    """A limiter with an owner that closes at once what is lost, and what is to be given up."""

    def __init__(self, where: Any, **options: Any) -> None:
        self.limiter = RedisLimiter(where, "fleet", **{"limit": 3, "lease": LEASE, **options})
        self.owner = Owner()
        self.limiter.bind(self.owner)

    def __enter__(self) -> Bound:
        return self

    def __exit__(self, *_: object) -> None:
        self.limiter.unbind(self.owner, 2.0)


# --- slots


def test_slots_are_shared_and_one_that_is_released_wakes_who_waits(redis: RedisServer) -> None:
    with Bound(redis.url) as one, Bound(redis.url) as two, ThreadPoolExecutor() as pool:
        tokens = [get(one.limiter), get(one.limiter), get(two.limiter)]
        assert len({token.fence for token in tokens}) == 3
        assert [token.fence for token in tokens] == sorted(token.fence for token in tokens)
        assert two.limiter.acquire(0, always) is None
        waiting = pool.submit(two.limiter.acquire, 10, always)
        wait_until(lambda: two.limiter.stats()["waiting"] == 1)
        start = awake()
        one.limiter.release(tokens[0])
        fourth = waiting.result(5)
        assert awake() - start < 0.5
        assert fourth.fence > tokens[2].fence
        wait_until(lambda: one.limiter.stats()["others"] == 2, 5)
        stats = one.limiter.stats()
        assert (stats["limit"], stats["held"], stats["away"]) == (3, 1, False)


def test_who_waits_leaves_in_time_and_leaves_nothing_behind(redis: RedisServer) -> None:
    with Bound(redis.url, limit=1) as one, Bound(redis.url, limit=1) as two:
        token = get(one.limiter)
        start, clock = awake(), monotonic()
        assert two.limiter.acquire(0.3, always) is None
        assert monotonic() - clock >= 0.29
        assert awake() - start < 1.0
        looks = iter([True, True, False])
        start = awake()
        assert two.limiter.acquire(30, lambda: next(looks)) is None
        assert awake() - start < 2
        with redis.client() as client:
            assert client.zcard("{js:fleet}:waiters") == 0
            one.limiter.release(token)
            assert client.zcard("{js:fleet}:leases") == 0


def test_a_grant_that_nobody_takes_any_more_goes_on_to_others(redis: RedisServer) -> None:
    with Bound(redis.url, limit=1) as one, Bound(redis.url, limit=1) as two:
        token = get(one.limiter)
        assert two.limiter.acquire(0.2, always) is None  # its place is kept for a moment
        one.limiter.release(token)
        get(one.limiter, 5)


def test_who_waits_again_at_once_keeps_its_ticket(redis: RedisServer) -> None:
    with Bound(redis.url, limit=1) as one, Bound(redis.url, limit=1) as two:
        get(one.limiter)
        assert two.limiter.acquire(0.1, always) is None
        with redis.client() as client:
            before = client.zrange("{js:fleet}:waiters", 0, -1, withscores=True)
            assert two.limiter.acquire(0.1, always) is None
            assert client.zrange("{js:fleet}:waiters", 0, -1, withscores=True) == before != []


def test_several_pools_of_a_process_have_one_line(redis: RedisServer) -> None:
    with Bound(redis.url, limit=2) as one, ThreadPoolExecutor() as pool:
        other = Owner()
        one.limiter.bind(other)
        tokens = [get(one.limiter), get(one.limiter)]
        waiting = [pool.submit(one.limiter.acquire, 10, always) for _ in range(2)]
        wait_until(lambda: other.asked, 5)  # the other pools give up what is idle
        for token in tokens:
            one.limiter.release(token)
        assert len({each.result(5) for each in waiting}) == 2
        assert one.limiter.stats()["held"] == 2
        one.limiter.unbind(other, 1)
        assert one.limiter.stats()["held"] == 2


def test_who_waits_makes_others_give_up(redis: RedisServer) -> None:
    with Bound(redis.url) as rich, Bound(redis.url) as poor, ThreadPoolExecutor() as pool:
        tokens = [get(rich.limiter) for _ in range(3)]
        waiting = pool.submit(poor.limiter.acquire, 10, always)
        wait_until(lambda: (1, True) in rich.owner.asked, 5)  # at once: it holds three more
        rich.owner.asked.clear()
        rich.limiter.release(tokens.pop())
        assert waiting.result(5) is not None
        assert (0, True) in rich.owner.asked
        waiting = pool.submit(poor.limiter.acquire, 10, always)
        wait_until(lambda: (1, True) in rich.owner.asked, 5)  # one more: after its turn
        rich.limiter.release(tokens.pop())
        assert waiting.result(5) is not None


def test_it_keeps_the_rules_of_limiters(redis: RedisServer) -> None:
    get_first = RedisLimiter(redis.url, "fleet", limit=3, lease=LEASE)
    get_first.release(get(get_first))  # the first second of the group is over
    check_limiter(lambda: RedisLimiter(redis.url, "fleet", limit=3, lease=LEASE), limit=3)


# --- commands


def test_idle_and_in_use_it_costs_two_commands_every_third_of_a_lease(
    redis: RedisServer, server: EchoServer
) -> None:
    limiter = RedisLimiter(redis.url, "fleet", limit=5, lease=3.0)
    with ConnectionPool[Any](
        base_uri=server.uri, limiter=limiter, manager_kwargs={"extra_headers": {"X-Pid": "1"}}
    ) as pool:

        def work(seconds: float) -> int:
            before, until = redis.calls() + redis.calls("blpop"), awake() + seconds
            while awake() < until:
                with pool.acquire("/") as conn:
                    conn.request({"id": 1, "pid": "1"})
            return redis.calls() + redis.calls("blpop") - before

        work(0.2)
        before = redis.calls() + redis.calls("blpop")
        sleep(6)
        idle = redis.calls() + redis.calls("blpop") - before
        busy = work(6)
        assert 10 <= idle <= 16
        assert abs(busy - idle) <= 3, (busy, idle)
        assert len(server.requests) == 1


def test_a_script_that_redis_has_forgotten_is_sent_again(redis: RedisServer) -> None:
    with Bound(redis.url) as one, redis.client() as client:
        get(one.limiter)
        client.script_flush()
        get(one.limiter)
        assert redis.calls("eval") >= 1
        assert one.limiter.stats()["errors"] == 0


# --- Redis is restarted, stalled, cut off


def test_restarted_empty_costs_no_connection_and_gives_none_too_many(tmp_path: Path) -> None:
    with (
        redis_server(tmp_path) as redis,
        Bound(redis.url, lease=6.0) as one,
        Bound(redis.url, lease=6.0) as two,
    ):
        tokens = [get(one.limiter), get(one.limiter), get(two.limiter)]
        redis.restart()
        with redis.client() as client:
            wait_until(lambda: client.zcard("{js:fleet}:leases") == 3, 5, "all leases are taken again")
            wait_until(lambda: not (one.limiter.stats()["away"] or two.limiter.stats()["away"]), 5)
            wait_until(lambda: len(threads()) == 2, 5, "both have their inboxes again")
            assert two.limiter.acquire(1.5, always) is None
            assert client.zcard("{js:fleet}:leases") == 3
        assert not one.owner.lost_tokens
        assert not two.owner.lost_tokens
        one.limiter.release(tokens[0])
        assert get(two.limiter).fence > max(token.fence for token in tokens)


def test_flushed_costs_no_connection_and_gives_none_too_many(redis: RedisServer) -> None:
    with Bound(redis.url) as one, Bound(redis.url) as two, ThreadPoolExecutor() as pool:
        for _ in range(3):
            get(one.limiter)
        assert two.limiter.acquire(0, always) is None
        with redis.client() as client:
            client.flushall()
            waiting = pool.submit(two.limiter.acquire, LEASE + 2, always)
            wait_until(lambda: client.zcard("{js:fleet}:leases") == 3, 5)
            assert waiting.result(10) is None
            assert client.zcard("{js:fleet}:leases") == 3
        assert not one.owner.lost_tokens


@pytest.mark.parametrize("fault", ["stall", "black_hole"])
def test_cut_off_connections_are_closed_before_others_get_their_slots(redis: RedisServer, fault: str) -> None:
    with (
        FaultProxy(LOCALHOST, redis.port) as proxy,
        Bound(f"redis://{LOCALHOST}:{proxy.port}") as cut,
        Bound(redis.url) as other,
        ThreadPoolExecutor() as pool,
    ):
        for _ in range(3):
            get(cut.limiter)
        getattr(proxy, fault)()
        waiting = pool.submit(other.limiter.acquire, 20, always)
        assert waiting.result(20) is not None
        assert len(cut.owner.lost_tokens) == 3  # it knew before
        told = {reason for _, reason in cut.owner.lost_tokens}
        assert told == {"its lease ended unrenewed"}
        for token, _ in cut.owner.lost_tokens:
            cut.limiter.release(token)
        proxy.resume()
        wait_until(lambda: not cut.limiter.stats()["away"], 10)
        get(cut.limiter)
        assert cut.limiter.stats()["lost"] == 3


def test_connections_to_redis_that_break_are_made_anew(redis: RedisServer) -> None:
    with (
        FaultProxy(LOCALHOST, redis.port) as proxy,
        Bound(f"redis://{LOCALHOST}:{proxy.port}") as one,
    ):
        get(one.limiter)
        for fault in (proxy.cut, proxy.reset) * 3:
            fault()
            one.limiter.release(get(one.limiter))
            wait_until(lambda: len(threads()) == 1, 5)
        assert not one.owner.lost_tokens


def test_open_what_was_opened_without_a_slot_gets_one_or_is_given_up(tmp_path: Path) -> None:
    with redis_server(tmp_path) as redis, Bound(redis.url, on_error="open") as one:
        first = get(one.limiter)
        redis.stop()
        more = [get(one.limiter) for _ in range(4)]
        assert {token.fence for token in more} == {None}
        sleep(LEASE)
        assert first.state == "slotless"
        redis.start()
        wait_until(lambda: sum(token.fence is not None for token in [first, *more]) >= 3, 10)
        wait_until(lambda: (2, True) in one.owner.asked, 5)
        wait_until(lambda: len(one.owner.lost_tokens) == 2, 10)  # those were lent, and for one lease
        assert one.limiter.stats()["held"] == 3


def test_redis_that_was_away_is_told_of_what_was_released_meanwhile(redis: RedisServer) -> None:
    with (
        FaultProxy(LOCALHOST, redis.port) as proxy,
        Bound(f"redis://{LOCALHOST}:{proxy.port}", lease=10.0) as one,
        redis.client() as client,
    ):
        tokens = [get(one.limiter) for _ in range(3)]
        proxy.black_hole()
        start = awake()
        for token in tokens:
            one.limiter.release(token)
        assert awake() - start < 3
        assert client.zcard("{js:fleet}:leases") == 3
        proxy.resume()
        proxy.cut()
        wait_until(lambda: client.zcard("{js:fleet}:leases") == 0, 10)


# --- processes, as the server sees them


def test_never_more_than_the_limit_in_a_calm_fleet(
    redis: RedisServer, server: EchoServer, census: FleetCensus
) -> None:
    with fleet_of(3, server.uri, redis.url, limiter={"limit": 4}) as fleet:
        wait_until(lambda: len({owner for _, owner in list(census.served)}) == 3, 10)
        census.forget_most()
        sleep(5)
        assert all(each.end("close") == 0 for each in fleet)
    assert census.most_open == 4
    assert census.foreign == []
    with redis.client() as client:
        assert not list(client.scan_iter("*leases")) and not list(client.scan_iter("*members"))


@pytest.mark.parametrize("way", ["close", "exit", "kill"])
def test_slots_of_a_process_that_ends_are_free(
    redis: RedisServer, server: EchoServer, census: FleetCensus, way: str
) -> None:
    with fleet_of(1, server.uri, redis.url, limiter={"limit": 4}) as (first,):
        wait_until(lambda: census.open_now == 4, 10)
        late = FleetProcess(server.uri, redis.url, limiter={"limit": 4})
        try:
            wait_until(lambda: census.by_process[late.pid] >= 2, 10)
            start = awake()
            if way == "kill":
                first.kill()
            else:
                assert first.end(way) == 0
            wait_until(lambda: census.by_process[late.pid] == 4, 10)
            took = awake() - start
        finally:
            late.clean()
    # What a thread was using when it exited may be open for a second more.
    assert took < {"close": 1.5, "exit": 2.5, "kill": LEASE + 1}[way]
    assert census.most_open == 4
    assert census.foreign == []


def test_a_fork_begins_anew(redis: RedisServer, server: EchoServer, census: FleetCensus) -> None:
    with fleet_of(1, server.uri, redis.url, limiter={"limit": 4}, threads=2) as (parent,):
        wait_until(lambda: len(census.served) > 20, 10)
        parent.tell("fork")
        assert parent.line() == "child"
        wait_until(lambda: len({owner for _, owner in list(census.served)}) == 2, 10)
        before = census.turns(0, 1e18)[parent.pid]
        wait_until(lambda: census.turns(0, 1e18)[parent.pid] > before + 20, 10)
        assert parent.stats()["met"].get("foreign", 0) == 0
        assert parent.stats()["limiter"]["lost"] == 0
    assert census.most_open <= 4
    assert census.foreign == []


def test_a_process_that_was_stopped_for_longer_than_its_lease(
    redis: RedisServer, server: EchoServer, census: FleetCensus
) -> None:
    with fleet_of(2, server.uri, redis.url, limiter={"limit": 4}) as (one, two):
        wait_until(lambda: census.by_process == {one.pid: 2, two.pid: 2}, 10)
        census.forget_most()
        one.signal(signal.SIGSTOP)
        wait_until(lambda: census.by_process[two.pid] == 4, 10)
        assert census.most_open <= 4 + 2  # at most what it held more
        one.signal(signal.SIGCONT)
        start = awake()
        wait_until(lambda: census.open_now <= 4, 5)
        assert awake() - start < 1.0
        census.forget_most()
        wait_until(lambda: census.by_process == {one.pid: 2, two.pid: 2}, 10)
        sleep(1)
        assert census.most_open <= 4


def test_a_process_that_was_stopped_for_less_than_its_lease_loses_nothing(
    redis: RedisServer, server: EchoServer, census: FleetCensus
) -> None:
    with fleet_of(2, server.uri, redis.url, limiter={"limit": 4, "lease": 6.0}) as (one, two):
        wait_until(lambda: census.by_process == {one.pid: 2, two.pid: 2}, 10)
        one.signal(signal.SIGSTOP)
        sleep(2)
        one.signal(signal.SIGCONT)
        sleep(1)
        assert one.stats()["limiter"]["lost"] == 0
    assert census.most_open <= 4


@pytest.mark.parametrize("what", ["freeze", "restart"])
def test_a_fleet_whose_redis_stalls_or_is_restarted(
    tmp_path: Path, server: EchoServer, census: FleetCensus, what: str
) -> None:
    with redis_server(tmp_path) as redis, fleet_of(3, server.uri, redis.url, limiter={"limit": 4}) as fleet:
        wait_until(lambda: len(census.by_process) == 3, 10)
        census.forget_most()
        if what == "freeze":
            redis.freeze()
            sleep(LEASE * 2)
            assert census.open_now == 0
            redis.thaw()
        else:
            for _ in range(3):
                redis.restart()
                sleep(1.5)
        before = len(census.served)
        wait_until(lambda: len(census.served) > before + 100, 20)
        sleep(2)
        lost = [each.stats()["limiter"]["lost"] for each in fleet]
    assert census.most_open <= 4
    assert census.foreign == []
    if what == "restart":
        assert sum(lost) == 0


@pytest.mark.parametrize("mode", ["closed", "open"])
def test_what_a_redis_that_stalled_runs_late_takes_no_slot(tmp_path: Path, mode: Any) -> None:
    """It runs all that it was sent meanwhile: renewals of what is closed, and askings again and again."""
    lease = 4.0
    with (
        redis_server(tmp_path) as redis,
        Bound(redis.url, limit=4, lease=lease, on_error=mode) as one,
        Bound(redis.url, limit=4, lease=lease, on_error=mode) as other,
    ):
        both = (one, other)
        for bound in both:
            for _ in range(2):
                get(bound.limiter)
        redis.freeze()
        sleep(2 * lease)
        assert sum(len(each.owner.lost_tokens) for each in both) == (4 if mode == "closed" else 0)
        redis.thaw()
        start = awake()
        for bound in both:
            for token, _ in bound.owner.lost_tokens:
                bound.limiter.release(token)
        if mode == "closed":
            for bound in both:
                get(bound.limiter)
                get(bound.limiter)
        wait_until(lambda: all(each.limiter.stats()["held"] == 2 for each in both), lease)
        assert awake() - start < lease - 0.5  # they do not wait for the end of what ran late
        sleep(1.0)
        assert [each.limiter.stats()["lost"] for each in both] == [2 if mode == "closed" else 0] * 2
        with redis.client() as client:
            assert client.zcard("{js:fleet}:leases") == 4


def test_at_redis_s_clock_forward_each_takes_its_slots_again(redis: RedisServer, server: EchoServer) -> None:
    with Bound(redis.url) as one, redis.client() as client:
        for _ in range(3):
            get(one.limiter)
        for key in ("leases", "members"):  # as if two leases had gone by in a moment
            for each, score in client.zrange(f"{{js:fleet}}:{key}", 0, -1, withscores=True):
                client.zadd(f"{{js:fleet}}:{key}", {each: score - 2000 * LEASE})
        with Bound(redis.url) as other:
            other.limiter.acquire(0, always)
        sleep(LEASE / 3 + 0.5)
        assert one.limiter.stats()["held"] + len(one.owner.lost_tokens) == 3
        assert client.zcard("{js:fleet}:leases") <= 3


def test_a_machine_that_was_suspended_for_longer_than_its_lease(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own clock, which counts that, jumps; and Redis has given its slots to others meanwhile."""
    with Bound(redis.url, lease=10.0) as one, Bound(redis.url, lease=10.0) as other, redis.client() as client:
        tokens = [get(one.limiter) for _ in range(3)]
        for key in ("leases", "members"):
            for each, score in client.zrange(f"{{js:fleet}}:{key}", 0, -1, withscores=True):
                client.zadd(f"{{js:fleet}}:{key}", {each: score - 11_000})
        for _ in range(3):
            get(other.limiter)
        for module in (desk, line, link, session):
            monkeypatch.setattr(module, "with_sleep", lambda: clock.with_sleep() + 11)
        start = awake()
        wait_until(lambda: len(one.owner.lost_tokens) == 3, 5)
        assert awake() - start < 1.0
        assert {token for token, _ in one.owner.lost_tokens} == set(tokens)


def test_a_machine_that_was_suspended_keeps_what_nobody_has_taken(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bound(redis.url, lease=10.0) as one:
        for _ in range(3):
            get(one.limiter)
        for module in (desk, line, link, session):
            monkeypatch.setattr(module, "with_sleep", lambda: clock.with_sleep() + 11)
        calls = redis.calls()
        wait_until(lambda: redis.calls() > calls, 5)
        sleep(0.5)
        assert one.owner.lost_tokens == []
        assert one.limiter.stats()["held"] == 3


def test_a_late_comer_has_its_first_turn_within_a_second(
    redis: RedisServer, server: EchoServer, census: FleetCensus
) -> None:
    with fleet_of(3, server.uri, redis.url, limiter={"limit": 4, "lease": 10.0}) as fleet:
        wait_until(lambda: len(census.by_process) == 3, 10)
        sleep(2)
        late = FleetProcess(server.uri, redis.url, limiter={"limit": 4, "lease": 10.0})
        fleet.append(late)
        start = awake()
        wait_until(lambda: census.turns(0, 1e18)[late.pid] > 0, 10)
        assert awake() - start < 1.0
    assert census.most_open <= 4


def test_a_full_fleet_says_who_holds_what(redis: RedisServer, server: EchoServer) -> None:
    with (
        Bound(redis.url, limit=2) as other,
        ConnectionPool[Any](base_uri=server.uri, limiter=RedisLimiter(redis.url, "fleet", limit=2)) as pool,
    ):
        get(other.limiter)
        get(other.limiter)
        with pytest.raises(PoolExhaustedError) as failed:
            pool.acquire("/", 1.0)
        told = str(failed.value)
        assert "'fleet'" in told
        assert "its limit is 2" in told
        assert "2 by others" in told or "others" in told, told


def test_a_warning_says_that_another_has_a_smaller_limit(redis: RedisServer, caplog: Any) -> None:
    with Bound(redis.url, limit=3) as one, Bound(redis.url, limit=2) as two:
        get(one.limiter)
        get(two.limiter)
        wait_until(lambda: one.limiter.stats()["limit"] == 2, 5)
        assert one.limiter.acquire(0, always) is None
        sleep(LEASE / 2)
        warnings = [each.getMessage() for each in caplog.records if "smallest" in each.getMessage()]
        assert warnings == [
            "fleet: a process with limit=2 is in this group, and the smallest counts; here it is 3"
        ]


def test_without_a_pool_it_leaves_at_exit(redis: RedisServer) -> None:
    program = (
        "import sys; from jetsocket.contrib.redis import RedisLimiter\n"
        f"limiter = RedisLimiter({redis.url!r}, 'fleet', limit=3)\n"
        "print(limiter.acquire(5, lambda: True).fence)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 0
    assert done.stderr == ""
    with redis.client() as client:
        assert client.zcard("{js:fleet}:leases") == 0


def test_no_thread_is_left(redis: RedisServer) -> None:
    with Bound(redis.url) as one:
        get(one.limiter)
        assert len(threads()) <= 2  # the second one connects
        wait_until(lambda: len(threads()) == 1, 5)
    wait_until(lambda: not threads(), 5)
