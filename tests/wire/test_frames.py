"""Frames and messages against an independent implementation (that of `websockets`), and against RFC 6455.

Also tests: `masking`, `message_reader`.
"""

from __future__ import annotations

import contextlib
import struct
import sys
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.speedups import apply_mask
from websockets.streams import StreamReader

from jetsocket.exceptions import MessageTooBigError, ProtocolError
from jetsocket.wire.close_codes import encode_close, parse_close
from jetsocket.wire.deflate import Agreement, Inflater
from jetsocket.wire.frames import encode_frame, parse_header
from jetsocket.wire.masking import fastest_mask, mask_in_python
from jetsocket.wire.message_reader import MessageReader
from tests.servers import close_frame, frame
from tests.sizes import size

LIMIT = 1 << 20
quick = settings(deadline=None, max_examples=size(30, 500))
every_mask = pytest.mark.parametrize("mask", [mask_in_python, apply_mask], ids=["Python", "C"])


def decode(data: bytes) -> list[Frame]:
    """What `websockets` reads, as a server, in the bytes of a client."""
    stream = StreamReader()
    stream.feed_data(data)
    frames = []
    while stream.buffer:
        parser = Frame.parse(stream.read_exact, mask=True)
        with pytest.raises(StopIteration) as done:
            next(parser)
        frames.append(done.value.value)
    return frames


# --- encoding

payloads = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([0, 1, 125, 126, 127, 3071, 3072, 3073, 65535, 65536, 70001]).flatmap(
        lambda size: st.binary(min_size=1, max_size=64).map(
            lambda seed: (seed * (size // len(seed) + 1))[:size]
        )
    ),
)
keys = st.binary(min_size=4, max_size=4)


@pytest.mark.deep
@quick
@given(
    opcode=st.sampled_from([0, 1, 2, 8, 9, 10]),
    payload=payloads,
    key=keys,
    fin=st.booleans(),
)
def test_an_independent_decoder_reads_what_we_encode(
    opcode: int, payload: bytes, key: bytes, fin: bool
) -> None:
    if opcode >= 8:
        payload, fin = payload[:125], True
    [read] = decode(encode_frame(opcode, payload, key, fin=fin))
    assert (read.opcode, bytes(read.data), read.fin) == (opcode, payload, fin)


def test_the_bit_of_a_compressed_message_is_the_first_reserved_one() -> None:
    plain, marked = (encode_frame(1, b"x", b"keys", rsv1=rsv1) for rsv1 in (False, True))
    assert marked == bytes([plain[0] | 0x40]) + plain[1:]


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, 2), (125, 2), (126, 4), (65535, 4), (65536, 10)],
)
def test_lengths_are_encoded_in_the_fewest_bytes(size: int, head: int) -> None:
    encoded = encode_frame(2, bytes(size), b"\0\0\0\0")
    assert len(encoded) == head + 4 + size
    assert encoded[1] & 0x80  # clients mask, RFC 6455 §5.3


@pytest.mark.deep
@quick
@given(payload=payloads, key=keys)
@every_mask
def test_masking_is_xor_whatever_the_size_and_undoes_itself(
    mask: Callable[[bytes, bytes], bytes], payload: bytes, key: bytes
) -> None:
    masked = mask(payload, key)
    assert masked == bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))
    assert mask(masked, key) == payload


@every_mask
def test_both_ways_of_masking_agree_where_they_meet(mask: Callable[[bytes, bytes], bytes]) -> None:
    for count in range(3066, 3080):
        payload, key = bytes(i * 7 & 255 for i in range(count)), b"\x00\xff\x5a\xa5"
        assert mask(payload, key) == bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def test_the_mask_in_c_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fastest_mask() is apply_mask
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    assert fastest_mask.__wrapped__() is mask_in_python


# --- parsing


@st.composite
def conversations(draw: Any) -> tuple[list[str | bytes], list[bytes], bytes]:
    """Messages, the pongs between them, and the bytes a server would send for all that."""
    messages = draw(st.lists(st.one_of(st.text(max_size=300), st.binary(max_size=300), payloads), max_size=6))
    pongs: list[bytes] = []
    data = bytearray()
    for message in messages:
        raw = message.encode() if isinstance(message, str) else message
        cuts = sorted(draw(st.lists(st.integers(0, len(raw)), max_size=4)))
        edges = [0, *cuts, len(raw)]
        for number, (start, end) in enumerate(pairwise(edges)):
            opcode = Opcode.CONT if number else Opcode.TEXT if isinstance(message, str) else Opcode.BINARY
            data += Frame(opcode, raw[start:end], fin=number == len(edges) - 2).serialize(mask=False)
            if draw(st.booleans()):
                pongs.append(draw(st.binary(max_size=125)))
                data += Frame(Opcode.PONG, pongs[-1]).serialize(mask=False)
    return messages, pongs, bytes(data)


@pytest.mark.deep
@quick
@given(conversation=conversations(), data=st.data())
def test_any_split_of_the_stream_gives_the_same_messages(
    conversation: tuple[list[str | bytes], list[bytes], bytes], data: Any
) -> None:
    messages, pongs, stream = conversation
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = MessageReader(LIMIT)
    for start, end in pairwise([0, *cuts, len(stream)]):
        reader.feed(stream[start:end])
    assert list(reader.messages) == messages
    assert list(map(type, reader.messages)) == list(map(type, messages))
    assert reader.received == len(messages)
    assert list(reader.pongs) == pongs[-16:]
    assert not reader.mid_message
    assert reader.close is None


@pytest.mark.deep
@settings(deadline=None, max_examples=size(15, 200))
@given(conversation=conversations())
def test_byte_by_byte_too(conversation: tuple[list[str | bytes], list[bytes], bytes]) -> None:
    messages, _, stream = conversation
    reader = MessageReader(LIMIT)
    for i in range(min(len(stream), 3000)):
        reader.feed(stream[i : i + 1])
    reader.feed(stream[3000:])
    assert list(reader.messages) == messages
    assert reader.received == len(messages)


@pytest.mark.deep
@settings(deadline=None, max_examples=size(100, 2000))
@given(noise=st.binary(max_size=400))
def test_noise_is_a_named_error_or_nothing_and_never_anything_else(noise: bytes) -> None:
    with contextlib.suppress(ProtocolError, MessageTooBigError):
        MessageReader(1000).feed(noise)


@pytest.mark.deep
@settings(deadline=None, max_examples=size(40, 1000))
@given(noise=st.binary(max_size=120))
def test_noise_means_the_same_in_one_piece_and_byte_by_byte(noise: bytes) -> None:
    def read(chunks: list[bytes]) -> tuple[Any, ...]:
        reader, error = MessageReader(1000), None
        try:
            for chunk in chunks:
                reader.feed(chunk)
        except (ProtocolError, MessageTooBigError) as caught:
            error = (type(caught), caught.code)
        return list(reader.messages), reader.received, list(reader.pongs), reader.close, error

    assert read([noise]) == read([noise[i : i + 1] for i in range(len(noise))])


def numbered_pings(start: int, stop: int) -> bytes:
    return b"".join(frame(9, b"%d" % number) for number in range(start, stop))


def taken(reader: MessageReader) -> list[int]:
    """The numbers of the pings that wait, which are answered by that."""
    numbers = [int(payload) for payload in reader.pings]
    reader.pings.clear()
    return numbers


@pytest.mark.parametrize("step", [1, 1 << 20], ids=["dripped", "whole"])
def test_each_ping_of_a_burst_waits_for_its_answer(step: int) -> None:
    reader, data = MessageReader(LIMIT), numbered_pings(0, 64)
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
    assert taken(reader) == [*range(64)]


def test_beyond_a_burst_the_latest_ping_counts() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(numbered_pings(0, 1000))
    assert taken(reader) == [*range(63), 999]
    reader.feed(numbered_pings(0, 1000))  # it goes on: one for each read
    assert taken(reader) == [999]
    reader.feed(numbered_pings(0, 1))
    reader.feed(numbered_pings(0, 10))  # it is over
    assert taken(reader) == [0, *range(10)]


def test_pings_that_are_never_answered_take_bounded_memory_and_the_latest_is_kept() -> None:
    reader = MessageReader(LIMIT)
    for number in range(10_000):
        reader.feed(numbered_pings(number, number + 1))
    assert len(reader.pings) <= 64
    assert taken(reader)[-1] == 9_999


def test_a_control_frame_within_a_message_does_not_disturb_it() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(frame(1, b"hel", fin=0) + frame(9, b"?"))
    assert reader.mid_message
    assert not reader.messages
    reader.feed(frame(0, b"lo"))
    assert list(reader.messages) == ["hello"]
    assert not reader.mid_message


def test_half_a_frame_head_is_the_middle_of_a_message() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(b"\x81")
    assert reader.mid_message


def test_a_character_split_between_fragments_is_whole_again() -> None:
    reader = MessageReader(LIMIT)
    raw = "€".encode()
    reader.feed(frame(1, raw[:1], fin=0) + frame(0, raw[1:2], fin=0) + frame(0, raw[2:]))
    assert list(reader.messages) == ["€"]


def test_empty_messages_are_messages() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(frame(1) + frame(2) + frame(1, fin=0) + frame(0))
    assert list(reader.messages) == ["", b"", ""]


def test_some_fragments_without_payload_are_no_fault() -> None:
    reader, empty = MessageReader(LIMIT), frame(0, fin=0)
    for _ in range(3):  # each message counts for itself
        reader.feed(frame(1, fin=0) + empty * 999 + frame(0))
        reader.feed(frame(1, fin=0) + (frame(0, b"x", fin=0) + empty) * 3000 + empty * 900 + frame(0, b"y"))
    assert list(reader.messages) == ["", "x" * 3000 + "y"] * 3


def test_when_only_frames_count_nothing_is_inflated() -> None:
    reader = MessageReader(LIMIT)
    reader.inflater = Inflater(Agreement(), LIMIT)
    reader.frames_only = True
    reader.feed(frame(1, b"not deflate at all", rsv=4) + frame(2, b"x") + close_frame(1000))
    assert reader.close == (1000, "")
    assert reader.inflater.inflated == 0


def test_nothing_is_read_behind_a_close_frame() -> None:
    reader = MessageReader(LIMIT)
    reader.feed(frame(1, b"a") + close_frame(1001, b"bye") + frame(1, b"b"))
    reader.feed(frame(1, b"c"))
    assert list(reader.messages) == ["a"]
    assert reader.close == (1001, "bye")


# --- faults

BAD_UTF8 = [b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe2\x82"]
FAULTS = {
    "reserved bit 1": (frame(1, b"x", rsv=4), 1002),
    "reserved bit 2": (frame(1, b"x", rsv=2), 1002),
    "reserved bit 3": (frame(2, b"x", rsv=1), 1002),
    "reserved bit in a ping": (frame(9, b"", rsv=4), 1002),
    "masked text": (frame(1, b"x", masked=True), 1002),
    "masked ping": (frame(9, b"x", masked=True), 1002),
    **{f"opcode {opcode}": (frame(opcode, b"x"), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "fragmented ping": (frame(9, b"x", fin=0), 1002),
    "fragmented pong": (frame(10, b"x", fin=0), 1002),
    "fragmented close": (frame(8, b"\x03\xe8", fin=0), 1002),
    "long ping": (frame(9, bytes(126)), 1002),
    "long close": (frame(8, b"\x03\xe8" + bytes(124)), 1002),
    "ping of 64 KiB": (frame(9, bytes(65536)), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "fragments without payload": (frame(1, b"x", fin=0) + frame(0, fin=0) * 1001, 1008),
    "a message that begins with fragments without payload": (
        frame(2, fin=0) + frame(0, fin=0) * 1000,
        1008,
    ),
    "fragments of which every third carries one byte": (
        frame(2, fin=0) + (frame(0, fin=0) * 2 + frame(0, b"x", fin=0)) * 1002,
        1008,
    ),
    "final continuation twice": (frame(1, b"a", fin=0) + frame(0, b"b") + frame(0, b"c"), 1002),
    "text within a text": (frame(1, b"a", fin=0) + frame(1, b"b"), 1002),
    "binary within a text": (frame(1, b"a", fin=0) + frame(2, b"b"), 1002),
    "length of 2**63": (b"\x82\x7f" + struct.pack("!Q", 1 << 63), 1002),
    "close of one byte": (frame(8, b"\x03"), 1002),
    **{
        f"close code {code}": (close_frame(code), 1002)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535)
    },
    **{f"text {bad.hex()}": (frame(1, bad), 1007) for bad in BAD_UTF8},
    **{
        f"text {bad.hex()} in fragments": (
            frame(1, b"ok" + bad[:1], fin=0) + frame(0, bad[1:], fin=0) + frame(0),
            1007,
        )
        for bad in BAD_UTF8
    },
}


@pytest.mark.parametrize(("stream", "code"), FAULTS.values(), ids=FAULTS)
def test_every_fault_is_a_protocol_error_with_its_code(stream: bytes, code: int) -> None:
    data = frame(1, b"before") + stream
    for step in (1, 1 << 20):  # dripped, and whole
        reader = MessageReader(LIMIT)
        with pytest.raises(ProtocolError) as caught:
            for start in range(0, len(data), step):
                reader.feed(data[start : start + step])
        assert caught.value.code == code
        assert reader.messages[0] == "before"
        assert reader.broken


@pytest.mark.parametrize("bad", BAD_UTF8)
def test_a_close_reason_that_is_not_utf8_is_a_fault(bad: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        MessageReader(LIMIT).feed(close_frame(1000, bad))
    assert caught.value.code == 1007


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 4999]
)
def test_close_codes_that_may_be_sent_are_understood(code: int) -> None:
    assert parse_close(struct.pack("!H", code) + "schön".encode()) == (code, "schön")


def test_a_close_without_a_code() -> None:
    assert parse_close(b"") == (1005, "")


@pytest.mark.deep
@quick
@given(code=st.integers(3000, 4999), reason=st.text(max_size=200))
def test_a_close_we_encode_fits_a_control_frame_and_reads_back(code: int, reason: str) -> None:
    payload = encode_close(code, reason)
    assert len(payload) <= 125
    read_code, read_reason = parse_close(payload)
    assert read_code == code
    assert reason.startswith(read_reason)
    if len(reason.encode()) <= 123:
        assert read_reason == reason


# --- limits


def test_a_message_of_exactly_the_limit_passes() -> None:
    reader = MessageReader(1000)
    reader.feed(frame(2, bytes(1000)) + frame(2, bytes(600), fin=0) + frame(0, bytes(400)))
    assert list(map(len, reader.messages)) == [1000, 1000]


@pytest.mark.parametrize(
    ("stream", "size"),
    [
        (frame(2, declared_length=1001), 1001),
        (frame(2, declared_length=10_000_000_000), 10_000_000_000),
        (frame(1, bytes(600), fin=0) + frame(0, declared_length=401), 1001),
        (frame(2, b"x", fin=0) + b"\x80\x7f" + struct.pack("!Q", (1 << 63) - 1), 1 << 63),
    ],
)
def test_too_big_is_told_from_the_head_alone(stream: bytes, size: int) -> None:
    with pytest.raises(MessageTooBigError) as caught:
        MessageReader(1000).feed(stream)
    assert (caught.value.limit, caught.value.size) == (1000, size)


def test_the_limit_holds_for_short_messages_too() -> None:
    reader = MessageReader(5)
    reader.feed(frame(1, b"12345") + frame(9, b"a ping may be longer"))
    with pytest.raises(MessageTooBigError):
        reader.feed(frame(1, b"123456"))
    assert list(reader.messages) == ["12345"]


@pytest.mark.parametrize("declared", [0, 125, 126, 65535, 65536, (1 << 63) - 1])
def test_a_head_is_read_only_when_it_is_all_there(declared: int) -> None:
    whole = frame(2, declared_length=declared)
    for end in range(len(whole)):
        assert parse_header(whole[:end], 0) is None
    header = parse_header(b"??" + whole, 2)
    assert header is not None
    assert (header.fin, header.compressed, header.opcode) == (True, False, 2)
    assert (header.length, header.size) == (declared, len(whole))
