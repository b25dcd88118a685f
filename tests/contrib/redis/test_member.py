"""The books of one process: leases and their ends, askings, what goes back; no Redis, and any clock.

Also tests: `tokens`.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

pytest.importorskip("redis")

from jetsocket.contrib.redis.member import NO, NOW, WAIT, Member
from jetsocket.contrib.redis.script import Answer, Call
from jetsocket.contrib.redis.tokens import Outcome, Settings, Token


def settings(**changed: Any) -> Settings:
    usual: dict[str, Any] = {"name": "n", "limit": 10, "lease": 10.0, "turn": 1.0, "on_error": "closed"}
    return Settings(**{**usual, "share": None, **changed})


def answer(**changed: Any) -> Answer:
    usual: dict[str, Any] = {"epoch": "1", "limit": 10, "count": 0, "mine": 0, "waiting": 0, "granted": ""}
    usual |= {"duty": 0, "delay": 0.0, "grace": 0.0, "lost": (), "adopted": {}}
    return Answer(**{**usual, **changed})


def tell(member: Member, now: float, *, want: int = NO, renew: bool = False, **said: Any) -> Outcome:
    """One call that is answered at once."""
    call = member.call(now, renew=renew, want=want)
    return member.answered(call, answer(**said), now, now)


def granted(member: Member, now: float, number: int) -> Token:
    tell(member, now, want=NOW, granted=f"{member.id}:{number}")
    return member.granted.popleft()


# --- leases


def test_a_lease_is_reckoned_from_before_the_call_was_sent() -> None:
    member = Member(settings())
    call = member.call(100.0, renew=False, want=NOW)
    member.answered(call, answer(granted=f"{member.id}:5"), sent=100.0, now=103.0)
    (token,) = member.granted
    assert (token.fence, token.until) == (5, 110.0)
    call = member.call(104.0, renew=True, want=NO)
    assert call.renew == (f"{member.id}:5",)
    member.answered(call, answer(), sent=104.0, now=108.0)
    assert token.until == 114.0


def test_a_connection_is_closed_before_its_lease_ends() -> None:
    member = Member(settings())
    token = granted(member, 100.0, 1)
    assert member.first_end() == 109.0
    assert not member.end_leases(108.9).lost
    ((lost, why),) = member.end_leases(109.0).lost
    assert lost is token
    assert why == "its lease ended unrenewed"
    assert member.stats()["lost"] == 1


def test_what_has_ended_goes_back_once_it_is_closed_for_redis_may_renew_it_late() -> None:
    member = Member(settings())
    token = granted(member, 100.0, 1)
    tell(member, 100.0, want=NOW, granted=f"{member.id}:2")  # no opener takes it
    member.end_leases(109.0)
    assert member.call(109.1, renew=True, want=NO).give_back == (f"{member.id}:2",)
    assert member.release(token)
    assert member.call(109.2, renew=True, want=NO).give_back == (f"{member.id}:2", f"{member.id}:1")
    with pytest.raises(ValueError, match="released before"):
        member.release(token)


def test_leases_are_renewed_every_third_and_after_a_failure_soon() -> None:
    member = Member(settings())
    assert member.is_call_due(0.0)
    tell(member, 100.0, renew=True)
    assert not member.is_call_due(103.3)
    assert member.is_call_due(103.4)
    tell(member, 103.0)  # one that renews nothing puts nothing off
    assert member.is_call_due(103.4)
    assert member.failed("refused", 103.4)
    assert not member.failed("refused", 103.5)  # no news
    assert member.away == "refused"
    assert not member.is_call_due(103.7)
    assert member.is_call_due(103.8)


def test_what_another_process_has_is_lost() -> None:
    member = Member(settings())
    token = granted(member, 100.0, 1)
    outcome = tell(member, 103.0, renew=True, lost=(f"{member.id}:1",))
    assert [(each, why) for each, why in outcome.lost] == [
        (token, "its lease ended unrenewed, and another process has it")
    ]
    assert repr(token) == "<slot 1: lost>"


def test_what_is_released_goes_back_until_redis_has_said_so() -> None:
    member = Member(settings())
    token = granted(member, 100.0, 1)
    assert member.release(token)
    with pytest.raises(ValueError, match="released before"):
        member.release(token)
    assert member.call(101.0, renew=False, want=NO).give_back == (f"{member.id}:1",)  # no answer
    call = member.call(102.0, renew=True, want=NO)
    assert (call.give_back, call.renew) == ((f"{member.id}:1",), ())
    member.answered(call, answer(), 102.0, 102.0)
    assert member.call(103.0, renew=True, want=NO).give_back == ()


# --- asking


def test_one_id_is_kept_until_it_is_answered() -> None:
    member = Member(settings())
    first = member.call(100.0, renew=False, want=NOW)
    member.failed("no answer", 101.0)
    again = member.call(102.0, renew=False, want=WAIT)
    assert (first.ask, again.ask) == (1, 1)
    assert again.seq > first.seq
    member.answered(again, answer(granted=f"{member.id}:3"), 102.0, 102.0)
    assert not member.asking
    assert member.call(103.0, renew=False, want=NOW).ask == 2


def test_now_or_never_is_answered_by_never() -> None:
    member = Member(settings())
    tell(member, 100.0, want=NOW)
    assert not member.asking


def test_a_grant_in_the_inbox_is_as_old_as_the_last_call_that_was_told_to_wait() -> None:
    member = Member(settings())
    tell(member, 100.0, want=WAIT)
    tell(member, 103.0, want=WAIT)
    member.message(f"g 1 {member.id}:8", 105.0)
    (token,) = member.granted
    assert token.until == 113.0


def test_a_grant_may_be_read_before_the_answer_to_the_call_that_asked() -> None:
    member = Member(settings())
    call = member.call(100.0, renew=False, want=WAIT)
    member.message(f"g 1 {member.id}:8", 100.2)
    member.answered(call, answer(), 100.0, 100.3)  # "wait" was said before
    (token,) = member.granted
    assert token.until == 110.0
    assert not member.asking


def test_a_grant_that_comes_twice_is_one() -> None:
    member = Member(settings())
    call = member.call(100.0, renew=False, want=WAIT)
    member.message(f"g 1 {member.id}:8", 100.2)
    member.answered(call, answer(granted=f"{member.id}:8"), 100.0, 100.3)
    assert len(member.granted) == 1
    member.message(f"g 1 {member.id}:8", 100.4)
    assert len(member.granted) == 1
    member.release(member.granted.popleft())
    call = member.call(100.5, renew=False, want=NO)
    member.message(f"g 1 {member.id}:8", 100.6)
    assert not member.granted


def test_a_grant_that_lay_in_the_inbox_while_this_process_was_stopped_goes_back() -> None:
    member = Member(settings())
    tell(member, 100.0, want=WAIT)
    member.message(f"g 1 {member.id}:8", 109.5)
    assert not member.granted
    call = member.call(109.6, renew=True, want=WAIT)
    assert (call.ask, call.give_back) == (1, (f"{member.id}:8",))


def test_a_grant_whose_connection_is_closed_already_goes_back_again() -> None:
    member = Member(settings())
    call = member.call(100.0, renew=False, want=WAIT)
    member.message(f"g 1 {member.id}:8", 100.1)
    member.release(member.granted.popleft())
    tell(member, 100.2)  # it is given back by another thread meanwhile
    member.answered(call, answer(granted=f"{member.id}:8"), 100.0, 100.3)
    assert member.call(100.4, renew=False, want=NO).give_back == (f"{member.id}:8",)


def test_what_nobody_takes_goes_back() -> None:
    member = Member(settings())
    tell(member, 100.0, want=WAIT)
    member.message(f"g 1 {member.id}:8", 100.1)
    assert member.return_unwanted()
    assert not member.return_unwanted()
    assert member.call(100.2, renew=False, want=NO).give_back == (f"{member.id}:8",)


def test_in_the_first_second_of_a_group_it_asks_again_when_that_is_over() -> None:
    member = Member(settings())
    tell(member, 100.0, want=WAIT, renew=True, grace=0.6)
    assert not member.is_call_due(100.5)
    assert member.is_call_due(100.7)


# --- what Redis is told of its own past


def test_redis_is_told_which_life_of_the_group_is_known_and_whether_the_connection_held() -> None:
    member = Member(settings())
    call = member.call(100.0, renew=True, want=NO)
    assert (call.epoch, call.whole, call.highest) == ("", False, 0)
    member.answered(call, answer(epoch="7"), 100.0, 100.0)
    granted(member, 100.0, 12)
    call = member.call(101.0, renew=True, want=NO)
    assert (call.epoch, call.whole, call.highest) == ("1", True, 12)
    member.broke(102.0)
    assert member.is_call_due(102.0)
    assert not member.call(102.0, renew=True, want=NO).whole
    tell(member, 102.0, renew=True)
    assert member.call(103.0, renew=True, want=NO).whole


def test_a_smaller_limit_of_another_is_said_once() -> None:
    member = Member(settings())
    assert tell(member, 100.0).limits is None
    assert tell(member, 101.0, limit=6).limits == (6, 10)
    assert tell(member, 102.0, limit=6).limits is None
    assert tell(member, 103.0, limit=10).limits is None
    assert tell(member, 104.0, limit=6).limits == (6, 10)


def test_what_it_got_since_the_last_answer_is_not_another_s_any_more() -> None:
    member = Member(settings(limit=3))
    tell(member, 100.0, want=WAIT, limit=3, count=3, mine=0, waiting=1)
    assert member.stats()["others"] == 3
    member.message(f"g 1 {member.id}:7", 100.5)
    assert (member.stats()["held"], member.stats()["others"]) == (1, 2)
    tell(member, 101.0, limit=2, count=3, mine=1)  # one too many for a smaller limit that has come
    assert (member.stats()["held"], member.stats()["others"]) == (1, 2)


def test_the_last_call_gives_back_what_is_closed_and_names_what_ends_with_the_process() -> None:
    member = Member(settings())
    kept, given = granted(member, 100.0, 1), granted(member, 100.0, 2)
    tell(member, 100.0, want=NOW, granted=f"{member.id}:3")  # no opener has taken it
    member.release(given)
    call = member.leave()
    assert call.op == "leave"
    assert call.renew == (kept.lease,)
    assert set(call.give_back) == {given.lease, f"{member.id}:3"}


def test_who_waits_may_be_told_when_to_call_again() -> None:
    member = Member(settings())
    tell(member, 100.0, want=WAIT, renew=True)
    member.message("w 0 1001", 100.5)
    assert not member.is_call_due(101.5)
    assert member.is_call_due(101.502)


# --- Redis away


def test_closed_nothing_is_given_without_redis() -> None:
    member = Member(settings())
    member.failed("refused", 100.0)
    assert member.unslotted() is None


def test_open_there_is_no_limit_without_redis_and_what_has_a_slot_stays() -> None:
    member = Member(settings(on_error="open"))
    token = granted(member, 100.0, 1)
    member.failed("refused", 100.0)
    more = [member.unslotted() for _ in range(50)]
    assert all(each is not None and each.fence is None for each in more)
    assert not member.end_leases(109.5).lost
    assert (token.state, token.until) == ("slotless", math.inf)
    assert member.call(109.6, renew=True, want=NO).give_back == (f"{member.id}:1",)
    assert (member.stats()["held"], member.stats()["without_slot"]) == (0, 51)


def test_local_each_process_has_its_share_without_redis() -> None:
    member = Member(settings(on_error="local", share=2))
    tokens = [granted(member, 100.0, number) for number in range(3)]
    member.failed("refused", 100.0)
    assert member.unslotted() is None
    ((lost, _),) = member.end_leases(109.5).lost  # when its lease ends, not before
    assert lost in tokens
    member.release(lost)
    for token in tokens:
        if token is not lost:
            member.release(token)
    assert [member.unslotted() is not None for _ in range(3)] == [True, True, False]


def without_slots(count: int, **changed: Any) -> tuple[Member, list[Token]]:
    member = Member(settings(on_error="open", **changed))
    member.failed("refused", 100.0)
    tokens = [member.unslotted() for _ in range(count)]
    return member, [token for token in tokens if token is not None]


def test_when_redis_is_back_what_has_no_slot_gets_one_and_its_fence() -> None:
    member, (one, two) = without_slots(2)
    call = member.call(101.0, renew=True, want=NO)
    assert call.renew == (f"{member.id}:u1", f"{member.id}:u2")
    adopted = {f"{member.id}:u1": f"{member.id}:77", f"{member.id}:u2": ""}
    outcome = member.answered(call, answer(adopted=adopted, grace=0.5), 101.0, 101.0)
    assert outcome.is_back
    assert (one.fence, one.state, one.until) == (77, "slotted", 111.0)
    assert two.state == "slotless"
    assert member.is_call_due(101.6)  # again when the first second is over
    assert set(member.call(101.6, renew=True, want=NO).renew) == {f"{member.id}:77", f"{member.id}:u2"}


def test_what_gets_no_slot_is_closed_idle_at_once_and_lent_after_one_lease() -> None:
    member, (one, two) = without_slots(2)
    refused = {f"{member.id}:u1": "-", f"{member.id}:u2": "-"}
    outcome = tell(member, 101.0, renew=True, adopted=refused, lost=tuple(refused))
    assert outcome.unslotted == 2
    assert not outcome.lost
    assert tell(member, 104.0, renew=True, adopted=refused, lost=tuple(refused)).unslotted == 0
    assert not member.end_leases(110.9).lost
    assert {each for each, _ in member.end_leases(111.0).lost} == {one, two}


def test_one_that_is_closed_leaves_its_slot_to_one_that_has_none() -> None:
    member, (one,) = without_slots(1)
    slotted = granted(member, 101.0, 5)
    tell(member, 101.0, renew=True, adopted={f"{member.id}:u1": "-"}, lost=(f"{member.id}:u1",))
    assert not member.release(slotted)  # Redis needs not be told
    assert (one.fence, one.state) == (5, "slotted")
    assert member.call(102.0, renew=True, want=NO).renew == (f"{member.id}:5",)
    assert not member.end_leases(105.0).lost


def test_a_slot_for_one_that_is_closed_meanwhile_goes_back() -> None:
    member, (one,) = without_slots(1)
    call = member.call(101.0, renew=True, want=NO)
    assert not member.release(one)
    member.answered(call, answer(adopted={f"{member.id}:u1": f"{member.id}:9"}), 101.0, 101.0)
    assert member.call(102.0, renew=True, want=NO).give_back == (f"{member.id}:9",)


def test_a_process_that_was_stopped_finds_that_its_leases_have_ended() -> None:
    member = Member(settings())
    granted(member, 100.0, 1)
    assert not member.is_overdue(109.9)
    assert member.is_overdue(110.0)


def test_ids_of_processes_differ() -> None:
    assert len({Member(settings()).id for _ in range(100)}) == 100
    assert all(isinstance(Member(settings()).call(0.0, renew=True, want=NO), Call) for _ in range(2))
