"""The script of RedisLimiter on a real Redis: what it grants, to whom, and that it is never too much."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("redis")

from jetsocket.contrib.redis.member import NO, NOW, WAIT
from jetsocket.contrib.redis.script import DIGEST, IDLE, NEXT, Answer, Call, inbox_of, prefix_of
from tests.integration.redis_fleet import Fleet, Process, shuffle
from tests.integration.redises import HAS_REDIS, RedisServer, redis_server
from tests.sizes import size

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(not HAS_REDIS, reason="needs redis-server"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> Iterator[Any]:
    from redis import Redis

    with Redis(port=server.port) as client:
        client.flushall()
        yield client


@pytest.fixture
def fleet(redis: Any) -> Fleet:
    """A fleet whose first second is over."""
    return begun(redis)


def begun(redis: Any, **settings: Any) -> Fleet:
    fleet = Fleet(redis, **settings)
    first = fleet.add()
    first.call(renew=True)
    fleet.processes.clear()
    fleet.run(first.member.leave())
    fleet.move(1.0)
    return fleet


class Caller:
    """Says what a test wants, and remembers nothing but its number."""

    def __init__(self, fleet: Fleet, process: str, **usual: Any) -> None:
        self.fleet, self.process = fleet, process
        self.usual = {"name": "fleet", "limit": 10, "lease": 10.0, "turn": 1.0, **usual}
        self.seq = 0

    def __call__(self, **said: Any) -> Answer:
        self.seq += 1
        call = Call(**{"process": self.process, "seq": self.seq, **self.usual, **said})
        return Answer.of(self.fleet.run(call))

    def get(self, count: int) -> list[str]:
        """So many leases, at once."""
        granted = [self(ask=self.seq + 1, want=NOW).granted for _ in range(count)]
        assert all(granted)
        return granted

    def inbox(self) -> list[str]:
        key = inbox_of("fleet", self.process)
        told = [each.decode() for each in self.fleet.redis.lrange(key, 0, -1)]
        self.fleet.redis.delete(key)
        return told


def get_all(process: Process, count: int) -> None:
    """So many connections, at once."""
    process.wants += count
    for _ in range(count):
        process.call()
    assert process.wants == 0


def counts(fleet: Fleet) -> dict[str, int]:
    """How many leases each has, counted twice: they have to agree."""
    leases = [each.decode().split(":")[0] for each in fleet.redis.zrange("{js:fleet}:leases", 0, -1)]
    scores = fleet.redis.zrange("{js:fleet}:held", 0, -1, withscores=True)
    held = {process.decode(): int(score) for process, score in scores}
    assert held == {each: leases.count(each) for each in set(leases)}
    return held


def after_silence(fleet: Fleet, caller: Caller) -> None:
    """Nobody calls for longer than a lease, as when Redis is away; then that one does, and waits a second."""
    fleet.move(10.1)
    answer = caller(ask=1, want=NOW)
    assert answer.granted == "" and 0.9 < answer.grace <= 1.0
    fleet.move(1.0)


# --- grants


def test_an_empty_group_gives_no_grant_for_its_first_second(redis: Any) -> None:
    fleet = Fleet(redis)
    one = Caller(fleet, "a")
    answer = one(ask=1, want=NOW)
    assert (answer.granted, answer.count) == ("", 0)
    assert 0.9 < answer.grace <= 1.0
    fleet.move(0.8)
    assert one(ask=2, want=NOW).granted == ""
    fleet.move(0.3)
    assert one(ask=3, want=NOW).granted


def test_never_more_than_the_limit_and_fences_grow(fleet: Fleet) -> None:
    callers = [Caller(fleet, name) for name in "abc"]
    granted = [callers[turn % 3](ask=turn + 1, want=NOW).granted for turn in range(15)]
    fences = [int(each.rpartition(":")[2]) for each in granted if each]
    assert len(fences) == 10
    assert fences == sorted(set(fences))
    assert sum(counts(fleet).values()) == 10


def test_what_is_given_back_goes_to_who_waits_and_its_inbox_says_so(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(10)
    waiting = two(ask=7, want=WAIT)
    assert (waiting.granted, waiting.waiting) == ("", 1)
    one(give_back=[tokens[3]])
    (message,) = [each for each in two.inbox() if each.startswith("g")]
    kind, ask, token = message.split()
    assert (kind, ask) == ("g", "7")
    assert counts(fleet) == {"a": 9, "b": 1}
    assert two(ask=7, want=WAIT).granted == token  # also for one who has not read it


def test_a_lost_answer_is_given_again_with_the_same_fence(fleet: Fleet) -> None:
    one = Caller(fleet, "a")
    lost = one(ask=1, want=NOW).granted
    assert one(ask=1, want=WAIT).granted == lost
    assert one(ask=1, want=NO).granted == lost  # it is not another's to give back
    assert counts(fleet) == {"a": 1}
    assert one(ask=2, want=NOW).granted != lost


def test_a_call_that_comes_late_does_nothing(fleet: Fleet) -> None:
    one = Caller(fleet, "a")
    (token,) = one.get(1)
    one(give_back=[token])
    with pytest.raises(OSError, match="later call"):
        one(seq=1, renew=[token])
    assert counts(fleet) == {}


def test_the_same_call_twice_does_no_harm(fleet: Fleet) -> None:
    one = Caller(fleet, "a")
    first = one(seq=5, ask=1, want=NOW)
    again = one(seq=5, ask=1, want=NOW)
    assert first.granted == again.granted
    assert counts(fleet) == {"a": 1}


def test_who_holds_fewest_goes_first_then_by_ticket(fleet: Fleet) -> None:
    rich, mid, poor, late = (Caller(fleet, name) for name in ("rich", "mid", "poor", "late"))
    tokens = rich.get(6)
    mid.get(2)
    poor.get(1)
    late.get(1)
    for caller in (mid, poor, late):
        caller(ask=99, want=WAIT)
    order = []
    for token in tokens[:5]:
        before = counts(fleet)
        rich(give_back=[token])
        after = counts(fleet)
        got = [name for name in after if after[name] > before.get(name, 0)]
        order += got
        for caller in (mid, poor, late):
            if caller.process in got:
                caller(ask=100 + len(order), want=WAIT)
    assert order[:3] == [
        "poor",
        "late",
        "mid",
    ]  # the one with 2 has an older ticket than those who have 2 now
    assert sorted(order[3:]) == ["late", "poor"]


def test_one_who_asks_at_once_does_not_overtake(fleet: Fleet) -> None:
    one, two, three = (Caller(fleet, name) for name in "abc")
    tokens = one.get(10)
    two(ask=1, want=WAIT)
    one(give_back=tokens[:1])
    assert three(ask=1, want=NOW).granted == ""
    assert counts(fleet)["b"] == 1
    assert fleet.redis.zcard("{js:fleet}:waiters") == 0


def test_a_waiter_that_is_silent_for_half_a_lease_is_passed_over_and_keeps_its_ticket(fleet: Fleet) -> None:
    one, dead, alive = (Caller(fleet, name) for name in ("one", "dead", "alive"))
    tokens = one.get(10)
    dead(ask=1, want=WAIT)
    fleet.move(5.5)
    one(renew=tokens, renews=True)
    alive(ask=1, want=WAIT)
    one(give_back=tokens[:1])
    assert counts(fleet) == {"one": 9, "alive": 1}
    alive.inbox()
    dead(ask=1, want=WAIT)  # it was only slow
    alive(ask=2, want=WAIT)
    one(give_back=tokens[1:2])
    assert counts(fleet) == {"one": 8, "alive": 1, "dead": 1}


def test_a_dead_waiters_grant_ends_one_lease_after_its_last_call(fleet: Fleet) -> None:
    one, dead = Caller(fleet, "one"), Caller(fleet, "dead")
    tokens = one.get(10)
    dead(ask=1, want=WAIT)
    fleet.move(4.0)
    one(give_back=tokens[:1], renew=tokens[1:])
    assert counts(fleet) == {"one": 9, "dead": 1}
    fleet.move(5.9)
    one(renew=tokens[1:])
    assert counts(fleet) == {"one": 9, "dead": 1}
    fleet.move(0.2)
    one(renew=tokens[1:])
    assert counts(fleet) == {"one": 9}


# --- leases


def test_leases_end_unless_they_are_renewed(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(4)
    fleet.move(9.0)
    assert one(renew=tokens[:2]).lost == ()
    fleet.move(1.5)
    assert two().count == 2
    assert counts(fleet) == {"a": 2}


def test_one_that_is_not_there_is_taken_again_if_there_is_room_else_lost(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(4)
    after_silence(fleet, two)
    two.get(8)
    answer = one(renew=tokens)
    assert set(answer.lost) == set(tokens[2:])
    assert counts(fleet) == {"a": 2, "b": 8}


def test_a_count_that_redis_has_thrown_out_is_made_again(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(10)
    fleet.redis.delete("{js:fleet}:held")
    assert two(ask=1, want=WAIT).granted == ""
    assert one(renew=tokens).duty == NEXT  # it holds most
    assert counts(fleet) == {"a": 10}


def test_what_was_opened_without_a_slot_comes_before_all_who_wait(fleet: Fleet) -> None:
    """Those who open without one while Redis is away come back one after the other."""
    one, two, three = (Caller(fleet, name, limit=4) for name in "abc")
    assert one(renew=["a:u1", "a:u2"], whole=False).adopted["a:u1"].startswith("a:1")
    answer = three(ask=1, want=WAIT)
    assert answer.granted == "" and 0.9 < answer.grace <= 1.0
    fleet.move(0.5)
    assert two(renew=["b:u1", "b:u2"], whole=False).adopted["b:u1"].startswith("b:1")
    fleet.move(1.0)
    assert three(ask=1, want=WAIT).granted == ""
    assert counts(fleet) == {"a": 2, "b": 2}


def test_eight_thousand_leases_that_end_together(redis: Any) -> None:
    """`unpack` of so many fails for good: too many results."""
    fleet = begun(redis, limit=20_000)
    usual = {"limit": 20_000}
    one, two = Caller(fleet, "a", **usual), Caller(fleet, "b", **usual)
    tokens = [f"a:{number}" for number in range(9000)]
    assert one(renew=tokens).lost == ()
    assert counts(fleet) == {"a": 9000}
    fleet.move_redis(10.1)
    assert two().count == 0
    fleet.move(1.0)
    assert two(ask=1, want=NOW).count == 1
    assert counts(fleet) == {"b": 1}
    assert len(one(renew=tokens).lost) == 0
    assert one(give_back=tokens).count == 1


def test_when_redis_s_clock_goes_back_no_lease_is_longer_than_one(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    one.get(10)
    fleet.move_redis(-3600.0)
    assert two(ask=1, want=WAIT).granted == ""
    after_silence(fleet, two)
    assert two(ask=1, want=WAIT).granted
    assert counts(fleet) == {"b": 1}


def test_when_redis_s_clock_goes_forward_who_holds_takes_it_again(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(10)
    fleet.move_redis(3600.0)
    assert one(renew=tokens).lost == ()
    assert two(ask=1, want=NOW).granted == ""


# --- Redis has lost it all


def test_restarted_empty_no_lease_is_lost_and_none_too_many_given(fleet: Fleet) -> None:
    one, two, hungry = (Caller(fleet, name) for name in "abc")
    mine, others = one.get(5), two.get(5)
    epoch = one().epoch
    fleet.redis.flushall()
    answer = hungry(ask=1, want=WAIT, epoch=epoch)
    assert (answer.granted, answer.grace) == ("", 1.0)
    assert one(renew=mine, epoch=epoch).lost == ()
    fleet.move(0.7)
    assert hungry(ask=1, want=WAIT).granted == ""
    assert two(renew=others, epoch=epoch).lost == ()
    fleet.move(0.4)
    answer = hungry(ask=1, want=WAIT)
    assert (answer.granted, answer.count) == ("", 10)


def test_fences_grow_on_after_a_restart_also_when_the_clock_went_back(fleet: Fleet) -> None:
    one = Caller(fleet, "a")
    (token,) = one.get(1)
    highest = int(token.partition(":")[2]) + 10**12
    fleet.redis.flushall()
    one(highest=highest)
    fleet.move(1.1)
    (again,) = one.get(1)
    assert int(again.partition(":")[2]) > highest


@pytest.mark.parametrize("breaks", [True, False])
def test_after_a_fail_over_to_a_replica_that_lags(redis: Any, breaks: bool) -> None:
    """At most `limit` more, for a third of a lease; and the new master gives the fences of the lag again."""
    fleet = begun(redis, lease=9.0)
    one, two = fleet.add(), fleet.add()
    for each in (one, two):
        each.call(renew=True)
    replica = {key: redis.dump(key) for key in redis.scan_iter()}
    get_all(one, 10)
    redis.flushall()
    for key, dump in replica.items():
        redis.restore(key, 0, dump)
    get_all(two, 10)
    assert [token.fence for token in two.open] == [token.fence for token in one.open]
    if breaks:
        one.member.broke(fleet.clock.now)
    fleet.pass_time(0.2 if breaks else 3.2)
    assert (len(one.open), len(two.open), one.lost) == (0, 10, 10)
    assert fleet.most_open <= 20
    two.close(two.open[0])
    highest = max(token.fence or 0 for token in two.open)
    get_all(one, 1)
    assert one.open[0].fence == highest + 1


def test_flushed_under_standing_connections_it_waits_until_all_have_renewed(fleet: Fleet) -> None:
    one = Caller(fleet, "a")
    epoch = one().epoch
    fleet.redis.flushall()
    answer = one(ask=1, want=WAIT, epoch=epoch, whole=True)
    assert answer.grace == pytest.approx(10 / 3 + 1, abs=0.1)
    fleet.move(3.5)  # beside it, Redis's own time goes on
    assert one(ask=1, want=WAIT).granted == ""
    fleet.move(1.0)
    assert one(ask=1, want=WAIT).granted


def test_leases_that_were_evicted_count_as_a_restart(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(10)
    epoch = one().epoch
    fleet.redis.delete("{js:fleet}:leases", "{js:fleet}:held")
    answer = two(ask=1, want=NOW)
    assert (answer.granted, answer.grace) == ("", 1.0)
    assert answer.epoch != epoch
    assert one(renew=tokens).lost == ()
    assert counts(fleet) == {"a": 10}


def test_the_marker_of_a_group_lives_for_days_and_all_else_for_a_few_leases(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    one.get(10)
    two(ask=1, want=WAIT)
    left = {key.decode(): fleet.redis.pttl(key) / 1000 for key in fleet.redis.scan_iter()}
    assert left.pop("{js:fleet}:group") > 6 * 86400
    assert len(left) > 7
    assert all(0 < seconds <= 30 for seconds in left.values()), left
    assert all(key.startswith(prefix_of("fleet")) for key in left)


# --- who is to give up something


def test_who_waits_is_helped_by_the_one_that_holds_most_at_once_if_that_is_two_more(fleet: Fleet) -> None:
    rich, other, poor = (Caller(fleet, name) for name in ("rich", "other", "poor"))
    rich.get(6)
    other.get(4)
    poor(ask=1, want=WAIT)
    assert rich.inbox() == [f"u {NEXT} 0"]
    assert other.inbox() == [f"u {IDLE} 0"]
    answer = rich()
    assert (answer.duty, answer.delay) == (NEXT, 0)
    assert other().duty == IDLE


def test_one_more_is_kept_for_a_turn(fleet: Fleet) -> None:
    one, two, poor = (Caller(fleet, name, limit=2) for name in "abc")
    one.get(1)
    fleet.move(0.7)
    two.get(1)
    poor(ask=1, want=WAIT)
    (message,) = one.inbox()  # it has had it for longer
    assert message.startswith(f"u {NEXT} ")
    assert 200 < int(message.split()[2]) <= 300
    assert two.inbox() == [f"u {IDLE} 0"]
    fleet.move(0.4)
    assert (one().duty, one().delay) == (NEXT, 0)


def test_at_most_one_such_message_is_under_way_for_each_process(fleet: Fleet) -> None:
    rich = Caller(fleet, "rich")
    tokens = rich.get(10)
    waiters = [Caller(fleet, f"w{number}") for number in range(3)]
    for turn in range(4):
        for waiter in waiters:
            waiter(ask=1, want=WAIT)
        assert len(rich.inbox()) == (turn == 0)
    rich(give_back=tokens[:1])
    assert rich().duty == NEXT  # for the next one


def test_one_that_keeps_them_waiting_is_not_the_only_one_asked(fleet: Fleet) -> None:
    rich, other, poor = (Caller(fleet, name) for name in ("rich", "other", "poor"))
    rich.get(6)
    other.get(4)
    poor(ask=1, want=WAIT)
    other.inbox()
    fleet.move(1.1)
    poor(ask=1, want=WAIT)
    assert other.inbox() == [f"u {NEXT} 0"]


def test_a_poorer_one_that_comes_does_not_wait_for_the_turn_of_another(fleet: Fleet) -> None:
    rich, one, poorest = (Caller(fleet, name, limit=3) for name in ("rich", "one", "poorest"))
    rich.get(2)
    one.get(1)
    one(ask=9, want=WAIT)
    (message,) = rich.inbox()
    assert int(message.split()[2]) > 500
    poorest(ask=1, want=WAIT)
    assert rich.inbox() == [f"u {NEXT} 0"]


def test_when_nobody_waits_any_more_there_is_no_duty(fleet: Fleet) -> None:
    rich, poor = Caller(fleet, "rich"), Caller(fleet, "poor")
    rich.get(10)
    poor(ask=1, want=WAIT)
    assert rich().duty == NEXT
    poor(ask=1, want=NO)
    assert rich().duty == 0
    rich.inbox()
    poor(ask=2, want=WAIT)
    assert rich.inbox() == [f"u {NEXT} 0"]


def test_who_holds_as_few_gives_up_only_what_is_idle(fleet: Fleet) -> None:
    one, two, waits = (Caller(fleet, name, limit=3) for name in "abc")
    for caller in (one, two, waits):
        caller.get(1)
    fleet.move(5.0)
    waits(ask=9, want=WAIT)
    assert one.inbox() == two.inbox() == [f"u {IDLE} 0"]


# --- limits, names, ends


def test_the_smallest_limit_that_is_alive_counts(fleet: Fleet) -> None:
    large, small = Caller(fleet, "large", limit=10), Caller(fleet, "small", limit=3)
    tokens = large.get(3)
    assert small().limit == 3
    assert large(ask=99, want=NOW).granted == ""
    fleet.move(10.1)
    assert large(renew=tokens).limit == 10
    fleet.move(1.0)
    assert large(ask=100, want=NOW).granted


def test_what_is_more_than_a_smaller_limit_is_given_up(fleet: Fleet) -> None:
    large, small = Caller(fleet, "large", limit=10), Caller(fleet, "small", limit=8)
    tokens = large.get(10)
    small()
    assert large().duty == NEXT
    assert large(give_back=tokens[:1]).duty == NEXT
    assert large(give_back=tokens[1:2]).duty == 0
    assert counts(fleet) == {"large": 8}


def test_who_leaves_leaves_nothing(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b", limit=2)
    tokens = one.get(2)
    two(ask=1, want=WAIT)
    one(op="leave", give_back=tokens)
    assert counts(fleet) == {"b": 1}
    keys = [key.decode() for key in fleet.redis.scan_iter()]
    assert not [key for key in keys if key.endswith(":a")]
    assert fleet.redis.zscore("{js:fleet}:members", "a") is None


def test_what_ends_with_the_process_is_free_a_second_later(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a", limit=2), Caller(fleet, "b", limit=2)
    tokens = one.get(2)
    two(ask=1, want=WAIT)
    two.inbox()
    one(op="leave", renew=tokens[:1], give_back=tokens[1:])
    assert counts(fleet) == {"a": 1, "b": 1}
    two.inbox()
    two(ask=2, want=WAIT)
    one(op="leave", renew=tokens[:1])
    assert two.inbox() == ["w 0 1001"]
    fleet.move(1.1)
    two(ask=2, want=WAIT)
    assert counts(fleet) == {"b": 2}


def test_a_grant_on_its_way_is_given_back_by_who_leaves(fleet: Fleet) -> None:
    one = Caller(fleet, "a")
    assert one(ask=1, want=NOW).granted
    one(op="leave")
    assert counts(fleet) == {}


def test_one_that_is_forgotten_holds_nothing(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    tokens = one.get(4)
    two.get(3)
    assert fleet.run(Call(name="fleet", process="a", op="forget"))[11] == [b"freed", b"4"]
    assert counts(fleet) == {"b": 3}
    assert one(renew=tokens).lost == ()  # it lives, and there is room
    assert counts(fleet) == {"a": 4, "b": 3}


def test_who_forgets_a_process_lengthens_no_lease(redis: Any) -> None:
    fleet = begun(redis, lease=2.0)
    Caller(fleet, "a", lease=2.0).get(1)
    Caller(fleet, "a")(op="forget")
    assert redis.hget("{js:fleet}:group", "lease") == b"2000"


def test_what_is_open_without_a_slot_gets_one_if_there_is_room(fleet: Fleet) -> None:
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    two.get(9)
    answer = one(renew=["a:u1", "a:u2"])
    assert answer.adopted["a:u2"] == "-"
    assert answer.adopted["a:u1"].startswith("a:1")
    assert counts(fleet) == {"a": 1, "b": 9}
    assert fleet.redis.zscore("{js:fleet}:leases", answer.adopted["a:u1"]) is not None


def test_what_is_open_without_a_slot_waits_for_those_who_have_one(redis: Any) -> None:
    fleet = Fleet(redis)
    one, two = Caller(fleet, "a"), Caller(fleet, "b")
    assert one(renew=["a:u1"]).adopted == {"a:u1": ""}
    assert two(renew=[f"b:{number}" for number in range(10)]).lost == ()
    fleet.move(1.1)
    assert one(renew=["a:u1"]).adopted == {"a:u1": "-"}


def test_a_lost_answer_that_gave_slots_to_what_had_none_is_given_again(fleet: Fleet) -> None:
    one, three = Caller(fleet, "a", limit=3), Caller(fleet, "c", limit=3)
    one()
    first = one(renew=["a:u1", "a:u2"], renews=True)
    assert all(first.adopted.values())
    for _ in range(3):
        assert one(renew=["a:u1", "a:u2"], renews=True).adopted == first.adopted
    assert counts(fleet) == {"a": 2}
    # One was closed before its slot was known; of the other, the answer came at last.
    known = first.adopted["a:u2"]
    fourth = one(renew=[known, "a:u3"], renews=True)
    assert list(fourth.adopted) == ["a:u3"]
    assert set(fleet.redis.zrange("{js:fleet}:leases", 0, -1)) == {
        known.encode(),
        fourth.adopted["a:u3"].encode(),
    }
    one(renew=[known, fourth.adopted["a:u3"]], renews=True)
    assert counts(fleet) == {"a": 2}
    assert not fleet.redis.hexists("{js:fleet}:p:a", "adopted")
    fleet.move(1.0)
    assert len(three.get(1)) == 1


def test_redis_knows_it_by_its_digest(redis: Any) -> None:
    from jetsocket.contrib.redis.script import SOURCE

    assert redis.script_load(SOURCE) == DIGEST


# --- anything may happen


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_there_are_never_more_connections_than_the_limit(redis: Any, seed: int) -> None:
    choice = random.Random(seed)
    fleet = Fleet(redis, limit=choice.randint(2, 12))
    for _ in range(choice.randint(2, 8)):
        fleet.add()

    def check() -> None:
        assert fleet.open <= fleet.settings["limit"]

    for step in range(size(400, 4000)):
        shuffle(fleet, choice)
        check()
        if choice.random() < 0.3:
            fleet.pass_time(choice.choice([0.1, 0.3, 1.0]), check=check)
        if step % 100 == 50:
            for process in fleet.processes:  # of one that is cut off at the same time, none can know
                process.is_cut_off = False
            fleet.pass_time(0.3, check=check)
            fleet.flush(breaks=True)
            fleet.pass_time(1.0, check=check)
        if step % 100 == 70:
            redis.script_flush()
    assert fleet.most_open == fleet.settings["limit"]  # or it would have tested nothing
    for process in fleet.processes:
        process.is_cut_off, process.wants = False, 0
    fleet.pass_time(25.0, 0.2, check)
    alive = {process.member.id: len(process.open) for process in fleet.processes if not process.is_dead}
    assert counts(fleet) == {id_: count for id_, count in alive.items() if count}  # nothing is lost


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mode", ["closed", "open"])
@pytest.mark.parametrize("seed", range(4))
def test_after_a_stall_each_slot_is_that_of_an_open_connection(redis: Any, mode: str, seed: int) -> None:
    choice = random.Random(seed)
    fleet = begun(redis, limit=12, on_error=mode)
    for _ in range(4):
        fleet.add().wants = choice.randint(1, 3)
    fleet.pass_time(2.0)
    held = fleet.open
    assert held == sum(counts(fleet).values()) >= 4
    fleet.stall()
    for _ in range(choice.randint(12, 25)):
        fleet.pass_time(1.0, 0.25)
        one = choice.choice(fleet.processes)
        if one.open and choice.random() < 0.5:
            one.close(choice.choice(one.open))
            if mode == "open" and (token := one.member.unslotted()) is not None:
                one.open.append(token)
    fleet.thaw()
    fleet.pass_time(0.5)
    assert sum(counts(fleet).values()) == fleet.open == (held if mode == "open" else 0)
    assert all(token.state == "slotted" for one in fleet.processes for token in one.open)
    if mode == "open":
        assert sum(one.lost for one in fleet.processes) == 0


def test_processes_that_are_always_hungry_have_equal_turns(redis: Any) -> None:
    """8 processes, 10 slots: two have one more at any time, and it goes round."""
    fleet = begun(redis)
    processes = [fleet.add() for _ in range(8)]
    served = {process.member.id: 0.0 for process in processes}

    def work() -> None:
        for process in processes:
            process.wants = 8 - len(process.open)
            served[process.member.id] += len(process.open)
            if process.member.press._owes_next and process.open:  # one comes back, and is given up
                process.close(process.open[0])

    fleet.pass_time(5.0, 0.05, work)
    served = dict.fromkeys(served, 0.0)
    fleet.pass_time(20.0, 0.05, work)
    assert fleet.most_open == 10
    assert max(served.values()) / min(served.values()) <= 1.2, served
