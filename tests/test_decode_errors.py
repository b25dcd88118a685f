"""What is told of a message that does not fit: names of its type, and nothing of the message."""

# No "from __future__ import annotations": pydantic and msgspec read the annotations of the classes below.
import dataclasses
import datetime
import traceback
from typing import Annotated, Any, Literal

import msgspec
import pydantic
import pytest
import typing_extensions

from jetsocket.exceptions import DecodeError
from jetsocket.messages import Codec

SECRET = "IBAN-DE-SECRET"
EVIL = f"{SECRET}\x1b[2J\r\n" + "x" * 5_000
KEY = msgspec.json.encode(EVIL).decode()


class Leg(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    price: float
    when: datetime.datetime | None = None


class Order(pydantic.BaseModel):
    legs: list[Leg] = []
    by_name: dict[str, Leg] = {}
    side: Literal["buy", "sell"] = "buy"
    amount: int | list[int] = 0
    limits: dict[int, int] = {}
    account: str = pydantic.Field("", alias="theAccount", max_length=3)

    @pydantic.field_validator("side")
    @classmethod
    def refuse(cls, value: str) -> str:
        if value == "sell":
            raise ValueError(f"no {EVIL}")
        return value


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    bones: int


class Owner(pydantic.BaseModel):
    pet: Annotated[Cat | Dog, pydantic.Field(discriminator="kind")]


class Node(pydantic.BaseModel):
    children: list["Node"] = []


class Raising(pydantic.BaseModel):
    price: float

    @pydantic.field_validator("price")
    @classmethod
    def fail(cls, value: float) -> float:
        raise pydantic_custom()


def pydantic_custom() -> Exception:
    from pydantic_core import PydanticCustomError

    return PydanticCustomError(EVIL, EVIL)  # type: ignore[arg-type]


class LegStruct(msgspec.Struct, forbid_unknown_fields=True):
    price: float
    when: datetime.datetime | None = None


class OrderStruct(msgspec.Struct, rename="camel"):
    legs: list[LegStruct] = []
    by_name: dict[str, LegStruct] = {}
    side: Literal["buy", "sell"] = "buy"
    limits: dict[int, int] = {}
    account: Annotated[str, msgspec.Meta(max_length=3)] = ""


class Quoting(msgspec.Struct):
    price: str

    def __post_init__(self) -> None:
        raise ValueError(f"Expected {self.price} - at `{self.price}`")


class StructNode(msgspec.Struct):
    children: "list[StructNode]" = []


@dataclasses.dataclass
class Plain:
    price: float
    names: dict[str, float]


class Typed(typing_extensions.TypedDict):
    price: float
    names: dict[str, float]


# The type, the message, and what is to be told.
MISFITS: list[tuple[Any, str, str]] = [
    (Order, '{"legs": [{"price": 1}, {"price": %s}]}', "legs.1.price: float_parsing"),
    (Order, '{"legs": [{"price": 1, %s: 1}]}', "legs.0.*: extra_forbidden"),
    (Order, '{"by_name": {%s: {}}}', "by_name.*.price: missing"),
    (Order, '{"by_name": {%s: {%s: 1, "price": 1}}}', "by_name.*.*: extra_forbidden"),
    (Order, '{"side": %s}', "side: literal_error"),
    (Order, '{"side": "sell"}', "side: value_error"),
    (Order, '{"amount": [%s]}', "amount.int: int_type, amount.list[int].0: int_parsing"),
    (Order, '{"limits": {%s: 1}}', "limits.*.[key]: int_parsing"),
    (Order, '{"theAccount": %s}', "theAccount: string_too_long"),
    (Owner, '{"pet": {"kind": "cat", "lives": %s}}', "pet.cat.lives: int_parsing"),
    (Owner, '{"pet": {"kind": %s}}', "pet: union_tag_invalid"),
    (Raising, '{"price": 1}', "price: value_error"),
    (Node, '{"children": %s}', "children: list_type"),
    (OrderStruct, '{"legs": [{"price": %s}]}', "Expected `float`, got `str` at `$.legs[0].price`"),
    (OrderStruct, '{"legs": [{"price": 1, %s: 1}]}', "a field that the type does not know at `$.legs[0]`"),
    (OrderStruct, '{"byName": {%s: {}}}', "missing required field `price` at `$.byName[...]`"),
    (OrderStruct, '{"side": %s}', "a value is not allowed at `$.side`"),
    (OrderStruct, '{"limits": {%s: 1}}', "Expected `int`, got `str` at `$.limits, in a key`"),
    (OrderStruct, '{"account": %s}', "Expected `str` of length <= 3 at `$.account`"),
    (OrderStruct, '{"legs": [{"price": 1, "when": %s}]}', "a value is not allowed at `$.legs[0].when`"),
    (Quoting, '{"price": %s}', "a value is not allowed at `$` (ValueError)"),
    (
        StructNode,
        '{"children": [{"children": %s}]}',
        "Expected `array`, got `str` at `$.children[0].children`",
    ),
    (Plain, '{"price": 1, "names": {%s: %s}}', "Expected `float`, got `str` at `$.names[...]`"),
    (Typed, '{"price": 1, "names": {%s: %s}}', "Expected `float`, got `str` at `$.names[...]`"),
]


def decode(message_type: Any, payload: str) -> DecodeError:
    with pytest.raises(DecodeError) as raised:
        Codec.for_options(None, None, message_type).decode(payload, uri="wss://h/p")
    return raised.value


@pytest.mark.parametrize(("message_type", "payload", "told"), MISFITS)
def test_a_misfit_is_told_by_names_of_the_type(message_type: Any, payload: str, told: str) -> None:
    error = decode(message_type, payload.replace("%s", KEY))
    assert told in str(error)
    shown = str(error) + "".join(traceback.format_exception(error)) + repr(error) + repr(error.__cause__)
    assert SECRET not in shown
    assert "\x1b" not in shown and "\r" not in shown
    assert len(str(error)) < 500
    assert str(error).isprintable()


def test_of_many_faults_the_first_are_told() -> None:
    error = decode(Order, f'{{"legs": [{", ".join(["{}"] * 10_000)}]}}')
    assert "legs.4.price: missing, and 9995 more" in str(error)


def test_the_way_to_a_fault_is_cut() -> None:
    assert "…: list_type" in str(decode(Node, '{"children": [' * 40 + '{"children": 1}' + "]}" * 40))
    assert "…`" in str(decode(StructNode, '{"children": [' * 40 + '{"children": 1}' + "]}" * 40))


def test_a_model_that_is_completed_later_is_understood() -> None:
    class Later(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(defer_build=True)
        price: float

    assert "price: float_parsing" in str(decode(Later, '{"price": "x"}'))
