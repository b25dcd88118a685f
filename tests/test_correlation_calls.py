"""What a correlation says of messages: keys, frames of several messages, outcomes, and what it raises."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from jetsocket import ReplyError, TimeoutError
from jetsocket.correlation import Asked, Correlation, NewId
from jetsocket.correlation_calls import UNREADABLE, Matching, SeveralError, each_topic, strict
from jetsocket.messages import Codec

CODEC = Codec.for_options(None, None, None)


def matching(**methods: Callable[..., Any] | object) -> Matching:
    return Matching(type("Given", (Correlation,), methods)(), CODEC)


# --- keys


@pytest.mark.parametrize("other", [True, "1", b"1", (1,), 1.5, 2])
def test_a_key_is_another_than_what_only_looks_like_it(other: Any) -> None:
    assert strict(1) != strict(other)
    assert strict((1, "a")) != strict((other, "a"))
    assert hash(strict(other)) is not None


def test_numbers_that_json_does_not_tell_apart_are_one() -> None:
    assert strict(7) == strict(7.0)
    assert strict(("a", 7)) == strict(("a", 7.0))
    assert strict(float("inf")) != strict(10**400)
    assert strict(True) == strict(True) != strict(False)  # it is about equality
    assert strict(None) is None


def test_topics_are_one_or_several() -> None:
    assert each_topic(None) == []
    assert each_topic("abc") == ["abc"]
    assert each_topic((1, "a")) == [(1, "a")]
    assert each_topic([1, True]) == [1, strict(True)]
    assert each_topic(iter("ab")) == ["a", "b"]
    assert set(each_topic({1, 2})) == {1, 2}


def test_what_cannot_be_hashed_is_an_error_where_it_is_looked_up() -> None:
    with pytest.raises(TypeError):
        hash(strict([1]))  # type: ignore[arg-type]  # on purpose


# --- out


def test_a_request_is_tagged_and_its_key_is_strict() -> None:
    given = matching(tag=lambda self, message, new_id: ({**message, "id": new_id.number}, True))
    asked = given.tag({"a": 1}, NewId(3, "x"))
    assert (asked.message, asked.sent, asked.key) == ({"a": 1}, {"a": 1, "id": 3}, strict(True))
    assert matching().tag("x", NewId(1, "x")).key is None


def fail(*_: Any) -> Any:
    raise RuntimeError("on purpose")


def test_what_asks_raises_is_no_key() -> None:
    assert matching(asks=fail).asks({}) is None
    assert matching(asks=lambda self, message: [1]).asks({}) is None
    assert matching(asks=lambda self, message: 1.0).asks({}) == 1


def test_encode_must_give_a_payload() -> None:
    assert matching(encode=lambda self, message, _: b"x").encode(1, None) == b"x"
    assert matching(encode=lambda self, message, _: None).encode([1], None) == "[1]"
    with pytest.raises(TypeError, match=r"Given\.encode"):
        matching(encode=lambda self, message, _: 7).encode(1, None)


# --- in


def test_a_frame_is_one_message_or_several() -> None:
    def split(self: Any, message: Any) -> Iterable[Any]:
        return message if isinstance(message, list) else (message,)

    given = matching(split=split)
    assert [(part.payload, part.message) for part in given.parts("7", None)] == [("7", 7)]
    assert [(part.payload, part.message) for part in given.parts("[1, 2]", None)] == [(None, 1), (None, 2)]
    assert given.parts("[]", None) == []
    assert [part.payload for part in given.parts("[1]", None)] == [None]  # it is not the frame


def test_a_frame_that_is_not_one_message_is_not_read_as_one() -> None:
    """Whatever `split` returns that is not plainly the message itself: then `parts` is asked."""

    def split(self: Any, message: Any) -> Iterable[Any]:
        kinds: dict[str, Iterable[Any]] = {
            "list": [message],
            "none": (),
            "two": (message, message),
            "copy": (dict(message),),
            "iterator": iter((message,)),
        }
        return kinds.get(message["kind"], (message,))

    read_one = matching(split=split).read_one
    assert read_one is not None
    assert read_one('{"kind": "itself"}') == {"kind": "itself"}
    for kind in ("list", "none", "two", "copy", "iterator"):
        with pytest.raises(SeveralError):
            read_one(f'{{"kind": "{kind}"}}')
    assert matching(decode=fail).read_one is None
    assert matching(encode=fail).write is None


def test_the_text_of_a_dict_is_what_encode_makes_of_it() -> None:
    message, codec = {"a": "ü", "b": [1, None]}, Codec.for_options(None, None, None)
    write = Matching(Correlation(), codec).write
    assert write is not None
    assert write(message) == codec.encode(message)
    for own in (lambda data: b"x", json.dumps):  # whatever it returns
        assert Matching(Correlation(), Codec.for_options(own, None, None)).write is None


def test_what_cannot_be_read_is_kept_as_it_came() -> None:
    for given in (matching(), matching(split=fail), matching(decode=fail)):
        (part,) = given.parts("{", None)
        assert part.payload == "{"
        assert part.message is UNREADABLE
    assert matching().read("{", None) is None
    assert matching().read("[1]", None) == [1]


def test_decode_may_leave_it_to_the_codec() -> None:
    def decode(self: Any, payload: Any, subprotocol: Any) -> Any:
        return (subprotocol, payload) if payload == "mine" else None

    given = matching(decode=decode)
    assert given.parts("mine", "v1")[0].message == ("v1", "mine")
    assert given.parts("1", "v1")[0].message == 1


# --- outcomes


def test_the_outcome_is_the_result_with_the_callers_id() -> None:
    given = matching(
        result=lambda self, replies, asked: sum(replies), untag=lambda self, reply, message: (reply, message)
    )
    assert given.outcome([1, 2], Asked("mine", "sent", 1)) == (3, "mine")


def test_an_error_of_any_reply_is_raised_and_one_of_another_class_wrapped() -> None:
    refused, late = ReplyError("no", reply=1), TimeoutError("x", operation="recv", timeout=None)
    given = matching(error=lambda self, message: {1: refused, 2: late}.get(message))
    with pytest.raises(ReplyError) as raised:
        given.outcome([1, 0], Asked("mine", "sent", 1))
    assert raised.value is refused
    with pytest.raises(ReplyError) as wrapped:
        given.outcome([0, 2], Asked("mine", "sent", 1))
    assert wrapped.value.__cause__ is late
    assert wrapped.value.reply == 2


def test_an_error_shows_the_reply_with_the_callers_id() -> None:
    def untag(self: Any, reply: Any, message: Any) -> Any:
        return {**reply, "id": message["id"]}

    def error(self: Any, message: Any) -> Any:
        if "plain" in message:
            return ReplyError("no", reply="another")
        return ReplyError("no", reply=message) if "no" in message else TimeoutError("x", operation="recv")

    asked, given = Asked({"id": "mine"}, {"id": 7}, 7), matching(untag=untag, error=error)
    came = {"id": 7, "no": 1}
    with pytest.raises(ReplyError) as failed:
        given.outcome([came], asked)
    for raised in (given.error_in(came, asked), failed.value):
        assert raised is not None
        assert (raised.reply, came) == ({"id": "mine", "no": 1}, {"id": 7, "no": 1})
    assert given.error_in({"id": 7}, asked).reply == {"id": "mine"}  # type: ignore[union-attr]  # it is one
    assert given.error_in({"id": 7, "plain": 1}, asked).reply == "another"  # type: ignore[union-attr]  # likewise
    assert given.error_in(came).reply is came  # type: ignore[union-attr]  # likewise


def test_an_error_whose_id_can_not_be_put_back_shows_the_reply_as_it_came() -> None:
    given = matching(
        untag=lambda self, reply, message: reply["nothing"], error=lambda self, it: ReplyError("no", reply=it)
    )
    with pytest.raises(ReplyError) as raised:
        given.outcome([{"id": 7}], Asked({"id": 1}, {"id": 7}, 7))
    assert raised.value.reply == {"id": 7}
