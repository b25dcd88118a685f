"""Of what the user's code raised, its type, its place and its frames are told, not its text."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from jetsocket.exceptions import ConnectionClosedError, DecodeError
from jetsocket.messages import Codec
from jetsocket.user_errors import Misuse, as_told, exc_info_of, told

SECRET = "s3cr3t of a message"
PAYLOAD = "9xyz"


def fails(_payload: Any) -> Any:
    return int(SECRET)


def fails_deeper(payload: Any) -> Any:
    try:
        return fails(payload)
    except ValueError as error:
        raise KeyError(SECRET) from error


def raised_by(function: Callable[[Any], Any]) -> Exception:
    try:
        function("")
    except Exception as error:
        return error
    raise AssertionError("it raised nothing")


def test_type_and_place_are_told() -> None:
    assert told(raised_by(fails)).startswith("ValueError in fails (test_user_errors.py:")
    assert told(raised_by(fails_deeper)).startswith("KeyError in fails_deeper (test_user_errors.py:")
    assert told(ValueError(SECRET)) == "ValueError"


def test_errors_of_this_package_keep_their_text_and_facts() -> None:
    closed = ConnectionClosedError("it is over", code=1011)
    assert told(closed) == "ConnectionClosedError: it is over"
    stand_in = as_told(closed)
    assert isinstance(stand_in, ConnectionClosedError)
    assert stand_in is not closed and stand_in.code == 1011
    assert str(as_told(Misuse("in our words"))) == "in our words"


def test_the_frames_are_kept_and_the_texts_are_not() -> None:
    for info in map(exc_info_of, map(raised_by, (fails, fails_deeper))):
        shown = "".join(traceback.format_exception(*info))
        assert SECRET not in shown
        assert ("in fails" in shown and "return int(SECRET)" in shown) or "raise KeyError(SECRET)" in shown
        assert info[1].__cause__ is info[1].__context__ is None


def test_of_the_system_s_errors_the_system_s_text_is_told() -> None:
    stand_in = as_told(OSError(errno.ECONNREFUSED, SECRET))
    assert isinstance(stand_in, ConnectionRefusedError)
    assert SECRET not in str(stand_in) and "refused" in str(stand_in)


@pytest.mark.parametrize("deserializer", [fails, fails_deeper, int])
def test_what_a_deserializer_raises_is_told_without_its_text(deserializer: Any) -> None:
    with pytest.raises(DecodeError, match=r"the deserializer raised (ValueError|KeyError)") as raised:
        Codec.for_options(None, deserializer, None).decode(PAYLOAD)
    error = raised.value
    assert error.__context__ is None and error.__cause__ is not None
    shown = "".join(traceback.format_exception(error))
    assert SECRET not in shown and PAYLOAD not in shown
    if deserializer is not int:
        assert "raise KeyError(SECRET)" in shown or "return int(SECRET)" in shown
        assert f" in {deserializer.__name__} (test_user_errors.py:" in str(error)


def test_what_led_to_a_deserializer_s_own_decode_error_is_told_without_its_text() -> None:
    def says_it_itself(payload: Any) -> Any:
        try:
            return fails(payload)
        except ValueError:
            raise DecodeError("my words", payload=payload) from None

    def chains(payload: Any) -> Any:
        try:
            return fails(payload)
        except ValueError as error:
            raise DecodeError("my words", payload=payload) from error

    for deserializer, chained in ((says_it_itself, False), (chains, True)):
        with pytest.raises(DecodeError, match="my words") as raised:
            Codec.for_options(None, deserializer, None).decode("x")
        assert isinstance(raised.value.__cause__, ValueError) is chained
        assert raised.value.__context__ is None
        assert SECRET not in "".join(traceback.format_exception(raised.value))
