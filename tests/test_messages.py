"""Codecs: what goes out and comes in: JSON, the user's functions, models of pydantic and msgspec."""

# No "from __future__ import annotations": pydantic and msgspec read the annotations of the classes below.
import dataclasses
import enum
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any, TypedDict

import msgspec
import pydantic
import pytest
import typing_extensions
from hypothesis import example, given
from hypothesis import strategies as st

from jetsocket.exceptions import DecodeError
from jetsocket.messages import Codec, _json_reader, _loads


class Side(enum.Enum):
    BUY = "buy"


class StructTrade(msgspec.Struct):
    price: float
    side: Side = Side.BUY


class StrictStruct(msgspec.Struct, forbid_unknown_fields=True):
    price: float


class GrumpyStruct(msgspec.Struct):
    price: float

    def __post_init__(self) -> None:
        raise ValueError(f"SECRET {self.price}")


@dataclasses.dataclass
class DataTrade:
    price: float


class DictTrade(TypedDict):
    price: float


class ExtendedDictTrade(typing_extensions.TypedDict):
    price: float


class ModelTrade(pydantic.BaseModel):
    price: float


class GrumpyModel(pydantic.BaseModel):
    price: float

    @pydantic.field_validator("price")
    @classmethod
    def refuse(cls, value: float) -> float:
        raise ValueError("SECRET")


class BrokenModel(pydantic.BaseModel):
    price: float

    @pydantic.field_validator("price")
    @classmethod
    def fail(cls, value: float) -> float:
        raise KeyError("SECRET")


class NestedModel(pydantic.BaseModel):
    trades: list[ModelTrade]


@pydantic.dataclasses.dataclass
class CheckedDataTrade:
    price: float = pydantic.Field(gt=0)


JSON = Codec.for_options(None, None, None)


def _typed(message_type: Any) -> Codec[Any]:
    return Codec.for_options(None, None, message_type)


# --- JSON


@pytest.mark.parametrize(
    ("data", "payload"),
    [
        ("", ""),
        ("not json", "not json"),
        (b"", b""),
        (b"\xff", b"\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        ({"a": [1, None, True]}, '{"a": [1, null, true]}'),
        (["ü"], '["ü"]'),
        (None, "null"),
        (1.5, "1.5"),
    ],
)
def test_encode(data: object, payload: str | bytes) -> None:
    encoded = JSON.encode(data)
    assert encoded == payload
    assert type(encoded) is type(payload)


def test_what_json_cannot_say_is_refused() -> None:
    circular: list[object] = []
    circular.append(circular)
    with pytest.raises(ValueError, match="Circular"):
        JSON.encode(circular)
    with pytest.raises(TypeError, match="not JSON serializable"):
        JSON.encode({"a": object()})


@pytest.mark.parametrize(
    ("payload", "value"), [('{"a": 1}', {"a": 1}), (b"[1]", [1]), ("null", None), ('"ü"', "ü")]
)
def test_decode(payload: str | bytes, value: object) -> None:
    assert JSON.decode(payload) == value


@pytest.mark.parametrize(
    ("payload", "size"),
    [
        ("SECRET", "text message of 6 characters"),
        ("", "text message of 0 characters"),
        ('{"a": SECRET}', "text message of 13 characters"),
        (b"SECRET", "binary message of 6 bytes"),
        (b"\xff\xfe\xff", "binary message of 3 bytes"),
        ("9" * 5000, "text message of 5000 characters"),
    ],
)
def test_what_is_no_json_is_a_decode_error(payload: str | bytes, size: str) -> None:
    if payload == "9" * 5000 and not hasattr(sys, "get_int_max_str_digits"):
        pytest.skip("this Python has no limit on digits")
    with pytest.raises(DecodeError, match="no valid JSON") as raised:
        JSON.decode(payload)
    assert size in str(raised.value)
    assert "recv_raw()" in str(raised.value)
    assert "SECRET" not in str(raised.value)
    assert raised.value.payload == payload
    assert isinstance(raised.value.__cause__, ValueError)


def test_nesting_too_deep_is_a_decode_error() -> None:
    with pytest.raises(DecodeError) as raised:
        JSON.decode("[" * 500_000)
    assert isinstance(raised.value.__cause__, (RecursionError, ValueError))


def test_a_decode_error_names_the_uri() -> None:
    with pytest.raises(DecodeError, match=r"of 1 characters from wss://h/p could"):
        JSON.decode("x", uri="wss://h/p")


_JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text()),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(), inner, max_size=4)),
    max_leaves=10,
).filter(lambda value: not isinstance(value, str))


@given(_JSON_VALUES)
def test_json_comes_back_as_it_went(value: object) -> None:
    payload = JSON.encode(value)
    assert isinstance(payload, str)
    assert JSON.decode(payload) == value
    assert JSON.decode(payload.encode("utf-8", "surrogatepass")) == value


# Anything, and what is nearly JSON.
_PAYLOADS = st.one_of(
    st.text(max_size=20),
    st.binary(max_size=20),
    st.from_regex(r"-?\d{1,30}(\.\d{1,30})?([eE][+-]?\d{1,4})?", fullmatch=True),
    st.from_regex(r'"(\\u[0-9a-fA-F]{4}|\\.|[^"]){0,8}"', fullmatch=True),
    st.from_regex(r'\{("[ab]": ?[0-9.e-]{1,9},? ?){0,4}\}', fullmatch=True),
    _JSON_VALUES.map(lambda value: json.dumps(value).encode("utf-16")),
    st.floats().map(json.dumps),
)


def _outcome(read: Callable[[Any], object], payload: str | bytes) -> str:
    try:
        return repr(read(payload))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"


@given(_PAYLOADS)
@example('{"a": 1, "a": 2}')
@example("NaN")
@example(" 1 ")
@example("1 2")
@example("\ufeff1")
@example('[-Infinity, 1e400, -0, -0.0, 123456789012345678901234567890, "\\ud800"]')
@example(b'"\xed\xa0\x80"')
@example(b"\xef\xbb\xbf1")
def test_with_and_without_the_extra_json_reads_the_same(payload: str | bytes) -> None:
    assert _outcome(_json_reader(), payload) == _outcome(json.loads, payload)
    assert _outcome(_loads, payload) == _outcome(json.loads, payload)


def test_json_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _json_reader() is not _loads
    monkeypatch.setitem(sys.modules, "msgspec", None)
    assert _json_reader() is _loads


@given(st.one_of(st.text(), st.binary()))
def test_any_payload_is_a_value_or_a_decode_error(payload: str | bytes) -> None:
    for codec in (JSON, _typed(StructTrade), _typed(ModelTrade)):
        refused = payload
        try:
            codec.decode(payload)
        except DecodeError as error:
            refused = error.payload
        assert refused == payload


# --- the user's functions


@pytest.mark.parametrize("payload", ["text", b"binary"])
def test_a_serializer_chooses_text_or_binary(payload: str | bytes) -> None:
    codec = Codec.for_options(lambda _data: payload, None, None)
    assert codec.encode({"a": 1}) == payload
    assert codec.encode("as it is") == "as it is"
    assert codec.decode("[1]") == [1]


@pytest.mark.parametrize("wrong", [None, 1, bytearray(b"x"), {"a": 1}])
def test_a_serializer_returns_str_or_bytes(wrong: Any) -> None:
    codec = Codec.for_options(lambda _data: wrong, None, None)
    with pytest.raises(TypeError, match=f"must return str .* not {type(wrong).__name__}; nothing was sent"):
        codec.encode({"a": 1})


def test_errors_of_a_serializer_come_through() -> None:
    codec = Codec.for_options(_fail, None, None)
    with pytest.raises(KeyError, match="SECRET"):
        codec.encode({"a": 1})


def test_a_deserializer_gets_the_payload_as_it_came() -> None:
    codec = Codec.for_options(None, lambda payload: [payload], None)
    assert codec.decode("x") == ["x"]
    assert codec.decode(b"\xff") == [b"\xff"]


def test_errors_of_a_deserializer_become_decode_errors() -> None:
    codec = Codec.for_options(None, _fail, None)
    with pytest.raises(DecodeError, match="the deserializer raised KeyError") as raised:
        codec.decode("x")
    assert "SECRET" not in str(raised.value)
    assert isinstance(raised.value.__cause__, KeyError)


def test_a_decode_error_of_a_deserializer_passes() -> None:
    own = DecodeError("my words", payload="mine")

    def refuse(_payload: str | bytes) -> None:
        raise own

    with pytest.raises(DecodeError) as raised:
        Codec.for_options(None, refuse, None).decode("x")
    assert raised.value is own


def test_an_interrupt_in_a_deserializer_is_no_decode_error() -> None:
    def interrupt(_payload: str | bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Codec.for_options(None, interrupt, None).decode("x")


def _fail(_data: object) -> Any:
    raise KeyError("SECRET")


# --- message types


@pytest.mark.parametrize(
    ("message_type", "value"),
    [
        (StructTrade, StructTrade(1.5)),
        (DataTrade, DataTrade(1.5)),
        (DictTrade, {"price": 1.5}),
        (ExtendedDictTrade, {"price": 1.5}),
        (ModelTrade, ModelTrade(price=1.5)),
        (CheckedDataTrade, CheckedDataTrade(price=1.5)),
    ],
)
def test_message_types_come_back_as_they_went(message_type: Any, value: object) -> None:
    codec = _typed(message_type)
    payload = codec.encode(value)
    assert isinstance(payload, str)
    for arrived in (codec.decode(payload), codec.decode(payload.encode())):
        assert arrived == value
        assert type(arrived) is type(value)


@pytest.mark.parametrize(
    "message_type", [StructTrade, DataTrade, DictTrade, ExtendedDictTrade, ModelTrade, CheckedDataTrade]
)
@pytest.mark.parametrize("payload", ['{"price": "SECRET"}', '{"other": 1}'])
def test_a_message_that_does_not_fit_names_the_field(message_type: Any, payload: str) -> None:
    with pytest.raises(DecodeError, match="price") as raised:
        _typed(message_type).decode(payload)
    assert "SECRET" not in str(raised.value)
    assert raised.value.payload == payload
    assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    ("message_type", "payload", "said"),
    [
        (StructTrade, '{"price": 1, "side": "SECRET"}', r"a value is not allowed at `\$\.side`"),
        (GrumpyStruct, '{"price": 1}', r"a value is not allowed at `\$` \(ValueError\)"),
        (StrictStruct, '{"price": 1, "more": "SECRET"}', r"a field that the type does not know at `\$`"),
        (GrumpyModel, '{"price": 1}', "price: value_error"),
        (NestedModel, '{"trades": [{"price": 1}, {"price": "SECRET"}]}', r"trades\.1\.price: float_parsing"),
        (BrokenModel, '{"price": 1}', "the deserializer raised KeyError"),
        (CheckedDataTrade, '{"price": -1}', "price: greater_than"),
        (StructTrade, "SECRET", "no valid JSON"),
        (ModelTrade, "SECRET", "message: json_invalid"),
        (ModelTrade, "[1]", "message: model_type"),
    ],
)
def test_what_is_said_of_a_message_that_does_not_fit(message_type: Any, payload: str, said: str) -> None:
    with pytest.raises(DecodeError, match=said) as raised:
        _typed(message_type).decode(payload)
    assert "SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("message_type", "data", "payload"),
    [
        (StructTrade, {"q": [StructTrade(1.0)]}, {"q": [{"price": 1.0, "side": "buy"}]}),
        (StructTrade, DataTrade(2.0), {"price": 2.0}),
        (DataTrade, {"q": DataTrade(1.0)}, {"q": {"price": 1.0}}),
        (ModelTrade, {"q": ModelTrade(price=1.0)}, {"q": {"price": 1.0}}),
        (ModelTrade, NestedModel(trades=[ModelTrade(price=1.0)]), {"trades": [{"price": 1.0}]}),
        (ModelTrade, DataTrade(2.0), {"price": 2.0}),
        (ModelTrade, {"plain": "ü"}, {"plain": "ü"}),
    ],
)
def test_requests_may_be_other_values_than_the_message_type(
    message_type: Any, data: Any, payload: Any
) -> None:
    encoded = _typed(message_type).encode(data)
    assert isinstance(encoded, str)
    assert json.loads(encoded) == payload


@pytest.mark.parametrize("message_type", [StructTrade, ModelTrade])
def test_unserialisable_values_are_refused_with_a_message_type(message_type: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        _typed(message_type).encode({"a": object()})


def test_a_serializer_wins_over_the_message_type() -> None:
    codec = Codec.for_options(lambda _data: b"mine", None, StructTrade)
    assert codec.encode(StructTrade(1.0)) == b"mine"
    assert codec.decode('{"price": 1}') == StructTrade(1.0)


@pytest.mark.parametrize(
    "wrong", [5, "Trade", int, dict, list[int], StructTrade(1.0), ModelTrade(price=1), object]
)
def test_an_unsupported_message_type_is_refused(wrong: object) -> None:
    with pytest.raises(TypeError, match=r"message_type must be .* give a deserializer"):
        _typed(wrong)


# --- which library is needed


def test_pydantic_reads_dataclasses_and_typeddicts_without_msgspec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    codec = _typed(DataTrade)
    assert codec.decode(codec.encode(DataTrade(1.5))) == DataTrade(1.5)
    with pytest.raises(DecodeError, match="price: float_parsing"):
        codec.decode('{"price": "x"}')
    assert _typed(ExtendedDictTrade).decode('{"price": 1}') == {"price": 1.0}


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="pydantic reads every TypedDict from Python 3.12 on")
def test_a_typeddict_that_pydantic_cannot_read_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    with pytest.raises(TypeError, match=r"DictTrade cannot be read by pydantic: .*typing_extensions"):
        _typed(DictTrade)


def test_without_both_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "msgspec", None)
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(ImportError, match=r'DataTrade needs msgspec: pip install "jetsocket\[msgspec\]"'):
        _typed(DataTrade)


def test_nothing_is_imported_that_is_not_needed() -> None:
    script = (
        "import sys; from jetsocket.messages import Codec; Codec.for_options(None, None, None).decode('1');"
        "sys.exit('pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], timeout=30, check=False).returncode == 0


def test_a_codec_may_be_put_together_by_hand() -> None:
    def describe(error: Exception) -> str:
        return f"because of {type(error).__name__}"

    codec = Codec(str, int, describe)
    assert codec.encode(5) == "5"
    assert codec.decode("5") == 5
    with pytest.raises(DecodeError, match="because of ValueError"):
        codec.decode("x")


@pytest.mark.parametrize("deserialize", [None, str, json.loads, len])
@pytest.mark.parametrize("payload", ["1", '"ä"', b"[2]", "", b"\xff"])
def test_a_decoder_makes_of_many_messages_what_decode_makes_of_each(
    deserialize: Callable[[Any], Any] | None, payload: str | bytes
) -> None:
    codec = Codec.for_options(None, deserialize, None)

    def outcome(decode: Callable[[str | bytes], Any]) -> Any:
        try:
            return decode(payload)
        except DecodeError as error:
            return str(error), error.payload

    one_by_one = outcome(lambda payload: codec.decode(payload, uri="ws://there"))
    assert outcome(codec.decoder("ws://there")) == one_by_one
