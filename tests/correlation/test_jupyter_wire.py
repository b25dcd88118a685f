"""How Jupyter's messages go over the wire: both binary forms, built by hand as the document has them."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetsocket.correlation.jupyter_wire import pack_default, pack_v1, unpack_binary, unpack_v1
from jetsocket.exceptions import DecodeError

MESSAGE: dict[str, Any] = {
    "channel": "shell",
    "header": {"msg_id": "1", "msg_type": "execute_request"},
    "parent_header": {},
    "metadata": {"é": "ü"},
    "content": {"code": "print('ñ')"},
    "buffers": [b"\x00\x01", b"", b"{}"],
}
JSON = [b'{"msg_id": "1"}', b"{}", b"{}", '{"text": "ñ"}'.encode()]


def v1(parts: list[bytes], *, number: int | None = None) -> bytes:
    """As https://jupyter-server.readthedocs.io/en/latest/developers/websocket-protocols.html has it."""
    number = len(parts) + 1 if number is None else number
    at = 8 * (1 + len(parts) + 1)
    offsets = [at + sum(map(len, parts[:index])) for index in range(len(parts) + 1)]
    return (
        number.to_bytes(8, "little")
        + b"".join(each.to_bytes(8, "little") for each in offsets)
        + b"".join(parts)
    )


def binary(parts: list[bytes]) -> bytes:
    at = 4 * (1 + len(parts))
    offsets = [at + sum(map(len, parts[:index])) for index in range(len(parts))]
    return struct.pack(f">{1 + len(parts)}I", len(parts), *offsets) + b"".join(parts)


def test_a_v1_message_is_read_as_the_document_has_it() -> None:
    assert unpack_v1(v1([b"iopub", *JSON, b"one", b""])) == {
        "channel": "iopub",
        "header": {"msg_id": "1"},
        "parent_header": {},
        "metadata": {},
        "content": {"text": "ñ"},
        "buffers": [b"one", b""],
    }


def test_a_v1_message_is_written_as_the_document_has_it() -> None:
    payload = pack_v1(MESSAGE)
    parts = [
        b"shell",
        *(json.dumps(MESSAGE[name], ensure_ascii=False).encode() for name in list(MESSAGE)[1:5]),
    ]
    assert payload == v1([*parts, *MESSAGE["buffers"]])
    assert int.from_bytes(payload[:8], "little") == 9, "channel, four parts, three buffers, and the end"


def test_a_binary_message_of_the_default_protocol_has_its_integers_the_other_way_round() -> None:
    text = json.dumps({"channel": "iopub", "header": {}}).encode()
    payload = binary([text, b"one", b""])
    assert unpack_binary(payload) == {"channel": "iopub", "header": {}, "buffers": [b"one", b""]}
    written = pack_default(MESSAGE)
    plain = {name: MESSAGE[name] for name in list(MESSAGE)[:5]}
    assert written == binary([json.dumps(plain, ensure_ascii=False).encode(), *MESSAGE["buffers"]])


def test_without_buffers_the_default_protocol_is_json() -> None:
    written = pack_default({**MESSAGE, "buffers": []})
    assert isinstance(written, str) and json.loads(written) == {
        name: MESSAGE[name] for name in list(MESSAGE)[:5]
    }


objects = st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=3)
PARTS = {
    "channel": st.text(max_size=10),
    "header": objects,
    "parent_header": objects,
    "metadata": objects,
    "content": objects,
    "buffers": st.lists(st.binary(max_size=20), max_size=4),
}


@given(st.fixed_dictionaries(PARTS))
def test_what_is_written_is_read(message: dict[str, Any]) -> None:
    assert unpack_v1(pack_v1(message)) == message
    written = pack_default(message)
    if isinstance(written, bytes):
        assert unpack_binary(written) == message


@pytest.mark.parametrize("kind", [bytearray, memoryview])
def test_buffers_may_be_of_any_kind_of_bytes(kind: Any) -> None:
    message = {**MESSAGE, "buffers": [kind(b"abc")]}
    assert unpack_v1(pack_v1(message))["buffers"] == [b"abc"]


GOOD = v1([b"iopub", *JSON])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00" * 8,
        b"\xff" * 8,
        b"\xff" * 4096,
        GOOD[:-1],
        GOOD[:40],
        GOOD[:8] + GOOD[16:24] + GOOD[8:16] + GOOD[24:],
        v1([b"iopub"]),
        v1([b"iopub", *JSON[:3]]),
        v1([b"\xff", *JSON]),
        v1([b"iopub", b"{", *JSON[1:]]),
        v1([b"iopub", *JSON[:3], b'{"a": "\xff"}']),
        v1([b"iopub", *JSON[:3], b"[" * 100_000]),
        v1([b"iopub", *JSON], number=2**63),
        (6).to_bytes(8, "little") + bytes(48),
    ],
)
def test_a_broken_v1_message_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError, match=f"binary message of {len(payload)} bytes") as caught:
        unpack_v1(payload)
    assert caught.value.payload == payload
    assert caught.value.__cause__ is None and caught.value.__context__ is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\x00\x00\x00\x00",
        b"\xff\xff\xff\xff",
        binary([b"{}"])[:-3],
        binary([b"[]"]),
        binary([b"{"]),
        binary([b"[" * 100_000]),
        struct.pack(">3I", 2, 12, 4),
    ],
)
def test_a_broken_binary_message_is_a_decode_error(payload: bytes) -> None:
    with pytest.raises(DecodeError, match="default protocol"):
        unpack_binary(payload)


@given(st.binary(max_size=200))
def test_whatever_comes_is_a_message_or_a_decode_error(payload: bytes) -> None:
    for unpack in (unpack_v1, unpack_binary):
        try:
            message = unpack(payload)
        except DecodeError:
            continue
        assert isinstance(message, dict)


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 255))
def test_a_message_with_one_wrong_byte_is_a_message_or_a_decode_error(index: int, byte: int) -> None:
    try:
        message = unpack_v1(GOOD[:index] + bytes([byte]) + GOOD[index + 1 :])
    except DecodeError:
        return
    assert isinstance(message, dict)
