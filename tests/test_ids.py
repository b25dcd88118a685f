"""Ids: what counts as one, when a message is tagged, and what a lease's account makes of what comes."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.ids import REMEMBERED, Account, SentIds, key_in, key_of, shown
from jetsocket.messages import Codec

read = Codec.for_options(None, None, None).read_json


class Number(enum.IntEnum):
    SEVEN = 7


class Name(str, enum.Enum):
    SEVEN = "7"


# --- what is an id


@pytest.mark.parametrize("value", [0, 7, -1, 2**53, 10**400, "", "7", "x" * 4096, 1.5, -0.5, 1e300])
def test_an_id_has_a_key_that_equals_itself_alone(value: Any) -> None:
    assert key_of(value) == key_of(json.loads(json.dumps(value))) is not None


@pytest.mark.parametrize(
    "value", [None, True, False, math.nan, math.inf, -math.inf, [], [1], {}, b"7", object(), "x" * 4097]
)
def test_all_else_is_none(value: Any) -> None:
    assert key_of(value) is None


def test_ids_of_different_types_are_different() -> None:
    alike = [1, "1", 1.5, 7, "7", 7.5]
    assert len({key_of(value) for value in alike}) == len(alike)
    assert key_of(Number.SEVEN) == 7
    assert key_of(Name.SEVEN) == "7"
    assert type(key_of(Number.SEVEN)) is int
    assert type(key_of(Name.SEVEN)) is str


def test_a_number_is_the_same_however_it_is_written() -> None:
    for alike in (["7", "7.0", "70e-1", "0.7e1"], ["100", "1e2", "1E+2"], ["0", "-0", "-0.0", "0e5"]):
        assert len({key_of(json.loads(value)) for value in alike}) == 1
    assert key_of(2**53) != key_of(2**53 - 1)
    assert key_of(10**20) == key_of(1e20)


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        (1732866392123456789, "1732866392123456800"),  # as node answers it
        (1732866392123456789, "1.7328663921234568e+18"),  # as PHP does
        (1732866392123456789, "1732866392123456768"),  # as printf("%.0f") writes it
        (2**53 + 1, "9007199254740992"),
        (-(2**53) - 1, "-9007199254740992"),
    ],
)
def test_an_integer_that_a_double_cannot_hold_is_answered_by_what_it_becomes(sent: int, written: str) -> None:
    ids = SentIds()
    account = Account(ids, json.loads)
    assert account.ask(sent)
    assert account.admits(f'{{"id": {written}}}')
    assert account.is_settled
    assert not Account(ids, json.loads).admits(f'{{"id": {written}}}')  # late, in the next lease


def test_large_integers_that_differ_are_tagged_each_and_answer_their_own_requests_only() -> None:
    first = 2**60
    ids = SentIds()
    account = Account(ids, json.loads)
    assert all(account.ask(first + number) for number in range(4))
    assert account.admits(f'{{"id": {first + 2}}}')
    assert account.open == {first, first + 1, first + 3}
    assert account.admits(f'{{"id": {first + 9}}}')  # what is left of which, there is no telling
    assert account.open == {first, first + 1, first + 3}
    later = Account(ids, json.loads)
    assert later.ask(first + 9)
    assert not later.admits(f'{{"id": {first + 1}}}')  # late: it was sent itself
    assert later.open == {first + 9}


def test_a_large_number_that_is_pushed_is_no_answer_to_an_empty_id() -> None:
    sent = SentIds()
    assert Account(sent, read).ask("")
    later = Account(sent, read)
    assert later.ask("x")
    assert later.admits(json.dumps({"id": 2**60}))
    assert not later.admits('{"id": ""}')
    assert (later.late, later.open) == (1, {"x"})


def test_what_is_shown_of_an_id_is_short() -> None:
    assert [shown(key) for key in (7, "7", key_of(1.5), "x" * 100) if key is not None] == [
        "7",
        "'7'",
        "1.5",
        "'" + "x" * 59 + "…",
    ]


# --- which messages carry one


@pytest.mark.parametrize(
    ("message", "key"),
    [
        ({"id": 7}, 7),
        ({"id": "7", "method": "m"}, "7"),
        (OrderedDict(id=7), 7),
        ({Name.SEVEN: 1, "id": 2}, 2),
        ('{"id": 7}', 7),
        (' \n{"method": "m", "id": "7"} ', "7"),
        ('{"\\u0069d": 7}', 7),
        ('{"id": 1, "id": 2}', 2),
        ('{"id": 7, "pad": "' + "x" * 4000 + '"}', 7),
        ({}, None),
        ({"id": None}, None),
        ({"id": True}, None),
        ({"id": math.nan}, None),
        ({"params": {"id": 7}}, None),
        (defaultdict(lambda: 7), None),
        ([{"id": 7}], None),
        ('[{"id": 7}]', None),
        ('{"params": {"id": 7}}', None),
        ('{"id": null}', None),
        ('{"id": NaN}', None),
        ('{"id": 7', None),
        ('{"id": 7, "pad": "' + "x" * 4096 + '"}', None),
        ('{"id":' * 600, None),
        ('"id"', None),
        ("id", None),
        ("", None),
        (b'{"id": 7}', None),
        (7, None),
        (None, None),
    ],
)
def test_the_id_of_a_message_that_is_sent(message: Any, key: Any) -> None:
    payload = Codec.for_options(None, None, None).encode(message)
    assert key_in(message, payload, read) == key


def test_a_dict_that_goes_out_as_no_json_object_has_no_id() -> None:
    assert key_in({"id": 7}, b"\x81\xa2id\x07", read, as_given=False) is None  # MessagePack
    assert key_in({"id": 7}, "<id>7</id>", read, as_given=False) is None
    assert key_in({"id": 7}, b'{"id":7}', read, as_given=False) == 7  # orjson


# --- the last ids that a connection was sent


def test_the_last_256_are_remembered() -> None:
    sent = SentIds()
    for number in range(1000):
        sent.note(number, tagged=True)
    assert [number for number in range(1000) if sent.last(number)] == list(range(1000 - REMEMBERED, 1000))
    assert not sent.note(999)
    assert sent.last(999) == (1001, False)
    assert sent.note(0, tagged=False)
    assert sent.last(0) == (1002, False)


@given(st.lists(st.integers(0, 600), max_size=1500))
def test_what_is_remembered_is_what_was_sent_last(numbers: list[int]) -> None:
    sent = SentIds()
    for place, number in enumerate(numbers):
        assert sent.note(number) == (number not in numbers[max(0, place - REMEMBERED) : place])
    assert {number for number in range(601) if sent.last(number)} == set(numbers[-REMEMBERED:])
    assert len(sent._last) < REMEMBERED * 1.5


# --- the account of a lease


def say(**fields: Any) -> str:
    return json.dumps(fields)


def test_each_id_comes_back_once_in_any_order() -> None:
    account = Account(SentIds(), read)
    assert all(account.ask(number) for number in range(5))
    for number in (3, 1, 4, 0):
        assert account.admits(say(id=number))
        assert not account.is_settled
    assert account.admits(say(push=1))
    assert account.admits("no json")
    assert account.admits(say(id="2"))
    assert account.admits(say(id=True))
    assert account.admits(say(id=2))
    assert account.is_settled
    assert (account.tagged, account.answered) == (5, 5)


def test_an_id_that_was_sent_lately_is_untagged() -> None:
    sent = SentIds()
    first = Account(sent, read)
    assert [first.ask(1), first.ask(1), first.ask("1"), first.ask(2)] == [True, False, True, True]
    assert [Account(sent, read).ask(1), Account(sent, read).ask(3)] == [False, True]
    for number in range(1000, 1000 + REMEMBERED):
        assert Account(sent, read).ask(number)
    assert Account(sent, read).ask(2)


def test_an_open_id_is_remembered_however_many_came_after_it() -> None:
    account = Account(SentIds(), read)
    assert all(account.ask(number) for number in range(REMEMBERED * 3))
    assert not account.ask(0)
    for number in range(REMEMBERED * 3):
        assert account.admits(say(id=number))
    assert account.answered == REMEMBERED * 3
    assert account.is_settled


def test_an_answer_to_what_an_earlier_lease_asked_is_for_nobody() -> None:
    sent = SentIds()
    Account(sent, read).ask(1)
    account = Account(sent, read)
    account.ask(2)
    assert not account.admits(say(id=1))
    judge = account.waits_for(2)
    assert [judge(say(id=1)), judge(say(id=9)), judge(say(push=1)), judge(say(id=2))] == [
        False,
        None,
        None,
        True,
    ]
    assert account.late == 2
    assert account.answered == 1
    assert not account.is_settled


def test_a_second_answer_within_the_lease_stays_with_it() -> None:
    account = Account(SentIds(), read)
    account.ask(1)
    account.ask(2)
    assert account.admits(say(id=1))
    assert account.admits(say(id=1))
    assert account.admits(say(id=2))
    assert account.again
    assert not account.is_settled


def test_a_second_answer_is_noticed_though_nothing_is_open() -> None:
    sent = SentIds()
    account = Account(sent, read, keep=True)
    account.ask(1)
    assert account.admits(say(id=1))
    assert account.parsed == (say(id=1), {"id": 1})
    assert account.is_settled
    assert account.admits(say(push=1))
    assert account.is_settled
    assert account.admits(say(id=1))
    assert not account.is_settled
    account.parsed = None
    assert account.admits(say(id=1))
    assert account.parsed is None  # it is known: what comes costs nothing any more
    later = Account(sent, read)
    later.ask(2)
    assert later.admits(say(id=2))
    assert not later.admits(say(id=1))


def test_messages_far_behind_the_last_answer_are_not_looked_at() -> None:
    parsed: list[Any] = []

    def reading(payload: str | bytes) -> Any:
        parsed.append(payload)
        return read(payload)

    account = Account(SentIds(), reading)
    for number in (1, 2):
        account.ask(number)
        for _ in range(2 * REMEMBERED):  # as long as it takes
            assert account.admits(say(id="pushed"))
            assert not account.is_done
        assert account.admits(say(id=number))
        parsed.clear()
        for _ in range(2 * REMEMBERED):
            assert account.is_done == (len(parsed) == REMEMBERED)
            assert account.admits(say(id="pushed"))
        assert len(parsed) == REMEMBERED
    assert account.is_settled


def test_they_are_where_an_earlier_answer_may_still_come() -> None:
    sent = SentIds()
    Account(sent, read).ask(1)
    sent.owes = True
    account = Account(sent, read)
    account.ask(2)
    for _ in range(2):
        assert account.admits(say(id=2))
    assert account.again
    for _ in range(2 * REMEMBERED):
        assert account.admits(say(id="pushed"))
    assert not account.is_done
    assert not account.admits(say(id=1))
    assert account.late == 1


def test_two_answers_to_an_id_that_was_sent_twice_are_no_second_answer() -> None:
    account = Account(SentIds(), read)
    assert account.ask(1)
    assert not account.ask(1)
    assert account.ask(2)
    for number in (1, 1, 2):
        assert account.admits(say(id=number))
    assert account.is_settled
    assert account.answered == 2


@pytest.mark.parametrize("reply", [b'{"id": 1}', b'{"id":1,"x":"\xc3\xbc"}'])
def test_json_in_a_binary_message_is_looked_at_too(reply: bytes) -> None:
    account = Account(SentIds(), read)
    account.ask(1)
    assert account.waits_for(1)(reply)


@pytest.mark.parametrize(
    "reply",
    [
        "[" * 200_000 + '"id"' + "]" * 200_000,
        '{"id":' * 200_000,
        '{"id": 1' + "0" * 5000 + "}",
        '{"id": 1',
        '{"id": "\ud800"}',
        b'{"id": "\xff"}',
        b"{\x00i\x00d\x00",
        "",
        b"",
    ],
    ids=lambda reply: f"{reply[:9]!r} and {len(reply)}",
)
def test_whatever_comes_raises_nothing(reply: str | bytes) -> None:
    account = Account(SentIds(), read)
    account.ask(1)
    assert account.waits_for(1)(reply) is None
    assert account.admits(reply)
    assert sys.getrecursionlimit() < 200_000
