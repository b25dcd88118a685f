"""What is asked for and has not come."""

from __future__ import annotations

import pytest

from jetsocket.pending_requests import Request, remember


def test_a_request_waits_for_its_last_reply_and_a_stream_for_each() -> None:
    request, stream = Request(), Request()
    stream.wants_all = False
    for each in (request, stream):
        assert not each.has_mail
        each.put("part", object())
    assert (request.has_mail, stream.has_mail) == (False, True)
    request.end()
    assert request.has_mail


def test_a_reply_that_is_handed_out_again_is_there_once() -> None:
    request, mark = Request(), object()
    request.put(1, mark)
    request.arrived.clear()  # a stream has taken it
    request.put(1, mark)
    assert not request.arrived
    request.put(1, object())
    assert list(request.arrived) == [1]


def test_of_many_keys_the_oldest_are_one_that_never_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetsocket.pending_requests.MOST_KEYS", 3)
    keys: dict[object, None] = {}
    for number in range(20):
        remember(keys, number)
    assert len(keys) == 3
    assert {18, 19} <= keys.keys()
    for number in range(20):
        keys.pop(number, None)
    assert len(keys) == 1  # what was forgotten is still asked for
