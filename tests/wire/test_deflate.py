"""permessage-deflate: what is agreed on, that any peer understands what we send, and what a bad one costs."""

from __future__ import annotations

import itertools
import os
import random
import select
import socket
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from time import monotonic, perf_counter, thread_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.frames import Frame, Opcode

from jetsocket import ConnectionPool
from jetsocket.exceptions import (
    ConnectionClosedError,
    HandshakeError,
    MessageTooBigError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.wire.deflate import OFFER, Agreement, Deflater, Inflater, agree
from jetsocket.wire.websocket import WebSocket
from tests.servers import (
    Connection,
    EchoServer,
    RawServer,
    close_frame,
    frame,
    hold,
    read_client_frame,
    upgrade,
    wait_until,
)
from tests.sizes import pairs, size
from tests.wire.conftest import soon

RawFactory = Callable[..., RawServer]
EchoFactory = Callable[..., EchoServer]
PoolFactory = Callable[..., ConnectionPool[Any]]
Connect = Callable[..., WebSocket]

MIB = 1 << 20
TAIL = b"\x00\x00\xff\xff"
RSV1 = 4  # of the three reserved bits as `frame` takes them
CONTINUATION, TEXT, BINARY, PING, PONG = 0, 1, 2, 9, 10
EXTENSIONS = "Sec-WebSocket-Extensions"
AGREED = "permessage-deflate; server_max_window_bits=12"


@pytest.fixture
def connect() -> Iterator[Connect]:
    """Open connections that are closed at the end of the test."""
    opened: list[WebSocket] = []

    def open_one(uri: str, *, compress: bool = True, socket_options: Any = (), **options: Any) -> WebSocket:
        ws = WebSocket(**options)
        opened.append(ws)
        ws.connect(uri, timeout=5, compress=compress, socket_options=socket_options)
        return ws

    yield open_one
    for ws in opened:
        ws.shutdown()


def compressor(bits: int = 12, **options: Any) -> Callable[[bytes], bytes]:
    """Another one's compression, with context takeover."""
    stream = zlib.compressobj(wbits=-bits, **options)
    return lambda data: (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[: -len(TAIL)]


def decompressor(bits: int = 15) -> Callable[[bytes], bytes]:
    """Another one's decompression, with context takeover."""
    stream = zlib.decompressobj(wbits=-bits)
    return lambda data: stream.decompress(data + TAIL)


def compressed(data: bytes) -> bytes:
    return compressor()(data)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def serve(*chunks: bytes, params: str = AGREED, then: Callable[[socket.socket], Any] = hold) -> Any:
    """A script that agrees to compress, sends `chunks`, then does `then`."""

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, params)])
        for chunk in chunks:
            sock.sendall(chunk)
        then(sock)

    return script


class Closing:
    """Reads on until the client's close frame; `code` is what it said."""

    def __init__(self) -> None:
        self.code: int | None = None
        self.done = threading.Event()

    def __call__(self, sock: socket.socket) -> None:
        try:
            while (received := read_client_frame(sock)).opcode != 8:
                pass
            self.code = int.from_bytes(received.payload[:2], "big")
        finally:
            self.done.set()

    def wait(self) -> int | None:
        assert self.done.wait(5)
        return self.code


# --- what is agreed on


@pytest.mark.parametrize(
    ("header", "agreement"),
    [
        ("permessage-deflate", Agreement(False, False, 15, 12)),
        ("permessage-deflate; server_no_context_takeover", Agreement(True, False, 15, 12)),
        ("permessage-deflate; client_no_context_takeover", Agreement(False, True, 15, 12)),
        ("permessage-deflate; server_max_window_bits=12", Agreement(False, False, 12, 12)),
        ("permessage-deflate; server_max_window_bits=8", Agreement(False, False, 8, 12)),
        ("permessage-deflate; client_max_window_bits=8", Agreement(False, False, 15, 8)),
        ("permessage-deflate; client_max_window_bits=12", Agreement(False, False, 15, 12)),
        ("permessage-deflate; client_max_window_bits=15", Agreement(False, False, 15, 12)),
        ("permessage-deflate; client_max_window_bits=13", Agreement(False, False, 15, 12)),
        ("permessage-deflate; server_max_window_bits=13", Agreement(False, False, 13, 12)),
        ("permessage-deflate; server_max_window_bits=15", Agreement(False, False, 15, 12)),
        ('permessage-deflate; server_max_window_bits="10"', Agreement(False, False, 10, 12)),
        ('permessage-deflate; client_max_window_bits="9"', Agreement(False, False, 15, 9)),
        (
            "permessage-deflate;server_max_window_bits=9;client_max_window_bits=10"
            ";server_no_context_takeover;client_no_context_takeover",
            Agreement(True, True, 9, 10),
        ),
        (" \tpermessage-deflate \t;\tserver_max_window_bits = 11 ", Agreement(False, False, 11, 12)),
        (", permessage-deflate; server_max_window_bits=11 ,\t,", Agreement(False, False, 11, 12)),
    ],
)
def test_what_a_server_may_answer(header: str, agreement: Agreement) -> None:
    assert agree(header) == agreement


REFUSED = [
    # another extension, or more of them
    "x-webkit-deflate-frame",
    "permessage-bzip2",
    "Permessage-Deflate2",
    "permessage-deflate, permessage-deflate",
    "permessage-deflate; server_no_context_takeover, permessage-deflate",
    "permessage-deflate, x-other",
    # parameters nobody knows
    "permessage-deflate; mystery",
    "permessage-deflate; mystery=1",
    "permessage-deflate; server_max_window_bits=10; mystery",
    # one parameter twice
    "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
    "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
    "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
    "permessage-deflate; client_max_window_bits=10; client_max_window_bits=9",
    # bad values
    "permessage-deflate; server_no_context_takeover=true",
    "permessage-deflate; client_no_context_takeover=1",
    "permessage-deflate; server_max_window_bits",
    "permessage-deflate; client_max_window_bits",
    *(
        f"permessage-deflate; {side}_max_window_bits={bits}"
        for side in ("server", "client")
        for bits in ("7", "16", "08", "012", "+9", "-9", "9.0", "x", '""', "", "99999999999999999999")
    ),
    # not even the form
    "",
    ", ,",
    ";",
    "permessage-deflate;",
    "permessage-deflate; =9",
    "permessage-deflate server_no_context_takeover",
    'permessage-deflate; server_max_window_bits="9',
    "permessage-deflate; server_max_window_bits=\u0669",
]


@pytest.mark.parametrize("header", REFUSED)
def test_what_no_server_may_answer(header: str) -> None:
    with pytest.raises(ValueError, match=r"^it"):
        agree(header)


@pytest.mark.parametrize(
    "header",
    [
        "x" * 60_000,
        "permessage-deflate; " + "x" * 60_000,
        "permessage-deflate; server_max_window_bits=" + "1" * 60_000,
        "permessage-deflate" + " " * 60_000 + "!,",
        "permessage-deflate" + ";a" * 30_000 + " !",
        ", " * 30_000 + "permessage-deflate" + " ," * 30_000 + "!",
        ",".join(["permessage-deflate"] * 3_000),
    ],
)
def test_a_huge_answer_is_refused_in_few_words(header: str) -> None:
    begun = perf_counter()
    with pytest.raises(ValueError, match=r"^it") as caught:
        agree(header)
    assert len(str(caught.value)) < 300
    assert perf_counter() - begun < 2  # no search that goes back and forth


@pytest.mark.parametrize("header", REFUSED[:24:3])
def test_a_bad_answer_fails_the_handshake(connect: Connect, raw_server: RawFactory, header: str) -> None:
    server = raw_server(serve(params=header))
    with pytest.raises(HandshakeError, match="upgrade is not valid: it") as caught:
        connect(server.uri)
    assert caught.value.status_code == 101
    wait_until(lambda: not server.open_now)


def test_one_extension_in_two_lines_is_chosen_twice(connect: Connect, raw_server: RawFactory) -> None:
    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, "permessage-deflate"), (EXTENSIONS, "permessage-deflate")])
        hold(sock)

    with pytest.raises(HandshakeError, match="offered was permessage-deflate, once"):
        connect(raw_server(script).uri)


def test_nothing_may_be_chosen_when_nothing_was_offered(connect: Connect, raw_server: RawFactory) -> None:
    with pytest.raises(HandshakeError, match="not offered"):
        connect(raw_server(serve()).uri, compress=False)


def test_the_offer_is_one_header_and_only_when_wanted(make_pool: PoolFactory, echo: EchoServer) -> None:
    for options in ({}, {"compress": True}, {"compress": False}):
        with make_pool(echo, manager_kwargs=options).acquire("/") as conn:
            assert conn.request({"say": "hello"}) == {"say": "hello"}
    offers = [request.headers.get_all(EXTENSIONS) for request in echo.requests]
    assert offers == [[OFFER], [OFFER], []]
    assert OFFER == "permessage-deflate; client_max_window_bits"


def test_a_server_may_decline(connect: Connect, raw_server: RawFactory) -> None:
    got: list[tuple[int, bytes]] = []

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        received = read_client_frame(sock)
        got.append((received.rsv, received.payload))
        sock.sendall(frame(TEXT, received.payload))
        hold(sock)

    ws = connect(raw_server(script).uri)
    ws.send_message("a" * 1000)
    assert ws.recv_message(soon()) == "a" * 1000
    assert got == [(0, b"a" * 1000)]


def test_who_declined_must_not_compress(connect: Connect, raw_server: RawFactory) -> None:
    def script(sock: socket.socket) -> None:
        upgrade(sock)
        sock.sendall(frame(TEXT, compressed(b"hello"), rsv=RSV1))
        closing(sock)

    closing = Closing()
    ws = connect(raw_server(script).uri)
    with pytest.raises(ProtocolError, match="reserved bit"):
        ws.recv_message(soon())
    assert closing.wait() == 1002


def test_websockets_and_we_agree(connect: Connect, echo_server: EchoFactory) -> None:
    server = echo_server(compression="deflate")
    ws = connect(server.uri)
    assert ws.response_headers[EXTENSIONS].startswith("permessage-deflate")
    for message in ("short", "long " * 1000, b"\x00\x01" * 500, "", b"", "ü" * 40_000):
        ws.send_message(message)
        assert ws.recv_message(soon()) == message
    assert ws.bytes_in < 5_000 and ws.bytes_out < 5_000  # 86 KB went each way


@pytest.mark.slow
@pytest.mark.deep
@pytest.mark.parametrize(("server_bits", "client_bits"), pairs([None, *range(9, 16)], [None, *range(8, 16)]))
def test_every_window_that_websockets_chooses(
    connect: Connect, echo_server: EchoFactory, server_bits: int | None, client_bits: int | None
) -> None:
    far = noise(10_000)
    chosen = [f"server_max_window_bits={server_bits}"] * (server_bits is not None)
    chosen += [f"client_max_window_bits={client_bits}"] * (client_bits is not None)
    for forgets in itertools.product([False, True], repeat=2):
        factory = ServerPerMessageDeflateFactory(*forgets, server_bits, client_bits)
        ws = connect(echo_server(extensions=[factory]).uri)
        said = ws.response_headers[EXTENSIONS]
        assert [name in said for name in ("server_no_context", "client_no_context")] == [*forgets]
        assert all(bits in said for bits in chosen)
        for message in (far, "near " * 500, far, far, b"", "near " * 500):
            ws.send_message(message)
            assert ws.recv_message(soon()) == message
        ws.close()


# --- both directions against others' implementations

payloads = st.one_of(
    st.binary(max_size=300),
    st.builds(lambda unit, times: unit * times, st.binary(max_size=40), st.integers(0, 400)),
    st.builds(noise, st.integers(0, 20_000), st.integers(0, 3)),
)
conversations = st.lists(payloads, max_size=8)
window_bits = st.integers(9, 15)


def client_agreement(bits: int, forgets: bool) -> Agreement:
    return Agreement(client_no_context_takeover=forgets, client_max_window_bits=bits)


def server_agreement(bits: int, forgets: bool) -> Agreement:
    return Agreement(server_no_context_takeover=forgets, server_max_window_bits=bits)


@pytest.mark.deep
@settings(max_examples=size(20, 300), deadline=None)
@given(conversations, window_bits, st.booleans())
def test_zlib_understands_what_we_compress(messages: list[bytes], bits: int, forgets: bool) -> None:
    deflater = Deflater(client_agreement(bits, forgets), 0)
    inflate = decompressor(bits)  # a window of no more than agreed on
    for message in messages:
        if forgets:
            inflate = decompressor(bits)
        assert inflate(deflater.deflate(message)) == message


@pytest.mark.deep
@settings(max_examples=size(20, 300), deadline=None)
@given(conversations, window_bits, st.booleans())
def test_we_understand_what_zlib_compresses(messages: list[bytes], bits: int, forgets: bool) -> None:
    inflater = Inflater(server_agreement(bits, forgets), MIB)
    deflate = compressor(bits)
    for message in messages:
        if forgets:
            deflate = compressor(bits)
        assert inflater.inflate(deflate(message)) == message


@pytest.mark.deep
@settings(max_examples=size(20, 300), deadline=None)
@given(conversations, window_bits, st.booleans(), st.integers(1, 9), st.sampled_from([1, 5, 9]))
def test_we_understand_websockets(
    messages: list[bytes], bits: int, forgets: bool, level: int, memory: int
) -> None:
    theirs = PerMessageDeflate(False, forgets, 15, bits, {"level": level, "memLevel": memory})
    inflater = Inflater(server_agreement(bits, forgets), MIB)
    for message in messages:
        sent = theirs.encode(Frame(Opcode.BINARY, message))
        assert sent.rsv1
        assert inflater.inflate(bytes(sent.data)) == message


@pytest.mark.deep
@settings(max_examples=size(20, 300), deadline=None)
@given(conversations, window_bits, st.booleans())
def test_websockets_understands_us(messages: list[bytes], bits: int, forgets: bool) -> None:
    theirs = PerMessageDeflate(forgets, False, bits, 15)
    deflater = Deflater(client_agreement(bits, forgets), 0)
    for message in messages:
        sent = Frame(Opcode.BINARY, deflater.deflate(message), rsv1=True)
        assert bytes(theirs.decode(sent).data) == message


@pytest.mark.deep
@settings(max_examples=size(13, 200), deadline=None)
@given(st.lists(st.tuples(payloads, st.booleans()), max_size=8), st.booleans())
def test_what_was_not_sent_is_never_referred_to(messages: list[tuple[bytes, bool]], forgets: bool) -> None:
    deflater = Deflater(client_agreement(12, forgets), 0)
    inflate = decompressor(12)
    for message, arrives in messages:
        sent = deflater.deflate(message)
        if not arrives:
            deflater.forget()
        else:
            if forgets:
                inflate = decompressor(12)
            assert inflate(sent) == message


def test_context_is_taken_over_unless_agreed_otherwise() -> None:
    message = noise(1000)
    for forgets in (False, True):
        deflater = Deflater(client_agreement(12, forgets), 0)
        first, second = deflater.deflate(message), deflater.deflate(message)
        assert (second == first) if forgets else (len(second) < 50)
    repeat = compressor()
    first, second = repeat(message), repeat(message)
    assert len(second) < 50
    inflater = Inflater(server_agreement(12, False), MIB)
    assert inflater.inflate(first) == inflater.inflate(second) == message
    inflater = Inflater(server_agreement(12, True), MIB)
    assert inflater.inflate(first) == message
    with pytest.raises(ProtocolError):  # it said that it would not
        inflater.inflate(second)


def test_a_window_of_256_B_is_read_and_nothing_is_compressed_for_one(
    connect: Connect, raw_server: RawFactory
) -> None:
    got: list[tuple[int, bytes]] = []

    def script(sock: socket.socket) -> None:
        upgrade(
            sock, [(EXTENSIONS, "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8")]
        )
        deflate = compressor(9)  # zlib makes none of 8, but nothing as short as this refers further back
        for _ in range(2):
            sock.sendall(frame(TEXT, deflate(b"abc" * 30), rsv=RSV1))
        received = read_client_frame(sock)
        got.append((received.rsv, received.payload))
        sock.sendall(frame(TEXT, b"done"))
        hold(sock)

    ws = connect(raw_server(script).uri)
    assert [ws.recv_message(soon()) for _ in range(2)] == ["abc" * 30] * 2
    ws.send_message("x" * 5000)
    assert ws.recv_message(soon()) == "done"
    assert got == [(0, b"x" * 5000)]


# --- frames


def test_fragments_of_a_compressed_message_with_control_frames_between(
    connect: Connect, raw_server: RawFactory
) -> None:
    text = "fragments, " * 50
    pongs: list[bytes] = []
    deflate = compressor()

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        for _ in range(2):
            data = deflate(text.encode())
            sock.sendall(frame(TEXT, data[:1], fin=0, rsv=RSV1) + frame(PING, b"between"))
            pongs.append(read_client_frame(sock).payload)
            sock.sendall(frame(CONTINUATION, b"", fin=0) + frame(PONG, b"unasked"))
            sock.sendall(frame(CONTINUATION, data[1:9], fin=0) + frame(CONTINUATION, data[9:], fin=0))
            sock.sendall(frame(CONTINUATION, b""))
        sock.sendall(frame(BINARY, b"plain", fin=0) + frame(CONTINUATION, b", in two"))
        hold(sock)

    ws = connect(raw_server(script).uri)
    assert [ws.recv_message(soon()) for _ in range(3)] == [text, text, b"plain, in two"]
    assert pongs == [b"between"] * 2


def test_compressed_frames_that_come_byte_by_byte(connect: Connect, raw_server: RawFactory) -> None:
    deflate = compressor()
    data = b"".join(frame(TEXT, deflate(b"drop by drop" * 9), rsv=RSV1) for _ in range(3))
    server = raw_server(serve(*(bytes([byte]) for byte in data)))
    ws = connect(server.uri)
    assert [ws.recv_message(soon()) for _ in range(3)] == ["drop by drop" * 9] * 3


@pytest.mark.parametrize(
    "bad",
    [
        frame(TEXT, b"a", fin=0) + frame(CONTINUATION, b"b", rsv=RSV1),
        frame(TEXT, compressed(b"a"), fin=0, rsv=RSV1) + frame(CONTINUATION, b"b", rsv=RSV1),
        frame(PING, b"", rsv=RSV1),
        frame(PONG, b"", rsv=RSV1),
        frame(8, b"\x03\xe8", rsv=RSV1),
        frame(TEXT, compressed(b"a"), rsv=RSV1 | 2),
        frame(TEXT, compressed(b"a"), rsv=RSV1 | 1),
        frame(TEXT, b"a", rsv=2),
        frame(3, b"a", rsv=RSV1),
        frame(TEXT, compressed(b"a"), fin=0, rsv=RSV1) + frame(TEXT, compressed(b"a"), rsv=RSV1),
    ],
    ids=["rest", "compressed rest", "ping", "pong", "close", "rsv2", "rsv3", "rsv2 only", "opcode", "begun"],
)
def test_the_compression_bit_where_it_must_not_be(
    connect: Connect, raw_server: RawFactory, bad: bytes
) -> None:
    closing = Closing()
    ws = connect(raw_server(serve(bad, then=closing)).uri)
    with pytest.raises(ProtocolError) as caught:
        ws.recv_message(soon())
    assert caught.value.code == 1002
    assert closing.wait() == 1002


@pytest.mark.parametrize(
    "payload",
    [
        b"\xff\xff\xff",  # a reserved type of block
        b"\x05\xff",
        b"\x01\x05\x00\x00\x00hello",  # a stored block whose length is not what its complement says
        compressor(15)(noise(20_000) * 2)[20_000:],  # refers to what never came
        b"\xf3\x48\xcd\xc9\xc9\x07\x00hello",  # a last block, and data behind it
    ],
    ids=["type", "codes", "length", "history", "behind"],
)
def test_what_does_not_decompress(connect: Connect, raw_server: RawFactory, payload: bytes) -> None:
    closing = Closing()
    first = frame(TEXT, b"before")
    ws = connect(raw_server(serve(first, frame(BINARY, payload, rsv=RSV1), then=closing)).uri)
    assert ws.recv_message(soon()) == "before"
    with pytest.raises(ProtocolError, match="does not decompress") as caught:
        ws.recv_message(soon())
    assert caught.value.code == 1007
    assert closing.wait() == 1007


def test_text_that_is_not_utf8_once_decompressed(connect: Connect, raw_server: RawFactory) -> None:
    closing = Closing()
    ws = connect(raw_server(serve(frame(TEXT, compressed(b"ab\xff"), rsv=RSV1), then=closing)).uri)
    with pytest.raises(ProtocolError, match="UTF-8"):
        ws.recv_message(soon())
    assert closing.wait() == 1007


def test_a_last_block_ends_the_context_and_not_the_connection(
    connect: Connect, raw_server: RawFactory
) -> None:
    def finished(data: bytes, end: bytes) -> bytes:
        stream = zlib.compressobj(wbits=-12)
        return frame(TEXT, stream.compress(data) + stream.flush() + end, rsv=RSV1)

    messages = [
        frame(TEXT, bytes.fromhex("f348cdc9c9070000"), rsv=RSV1),  # the example of RFC 7692 §7.2.3.4
        finished(b"one " * 100, b"\x00"),
        finished(b"two " * 100, b""),
        frame(TEXT, compressed(b"three " * 100), rsv=RSV1),
    ]
    ws = connect(raw_server(serve(*messages)).uri)
    expected = ["Hello", "one " * 100, "two " * 100, "three " * 100]
    assert [ws.recv_message(soon()) for _ in range(4)] == expected


@pytest.mark.parametrize("bits", range(8, 16))
def test_what_a_server_says_of_its_window_is_not_relied_on(
    connect: Connect, raw_server: RawFactory, bits: int
) -> None:
    """There are servers that agree to a small window and refer to all of the 32 KiB that they have."""
    message, again = noise(20_000), compressor(bits=15)
    params = f"permessage-deflate; server_max_window_bits={bits}"
    server = raw_server(serve(*(frame(BINARY, again(message), rsv=RSV1) for _ in range(3)), params=params))
    ws = connect(server.uri)
    for _ in range(3):
        assert ws.recv_message(soon()) == message
    assert ws.bytes_in < 2 * len(message)  # it did refer to the one before


def test_examples_of_the_rfc() -> None:
    inflater = Inflater(Agreement(), 100)
    for payload in ("f248cdc9c90700", "f200110000", "000500faff48656c6c6f00", "f248050000 00ffff cac9c90700"):
        assert inflater.inflate(bytes.fromhex(payload)) == b"Hello"  # §7.2.3.1, .2, .3 and .5
    assert inflater.inflate(b"\x00") == b""  # §7.2.3.6


def test_empty_messages_keep_the_context(connect: Connect, raw_server: RawFactory) -> None:
    deflate, inflate = compressor(), decompressor()
    got: list[bytes] = []

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        for data in (b"again " * 30, b"", b"", b"again " * 30):
            sock.sendall(frame(TEXT, deflate(data), rsv=RSV1))
            sock.sendall(frame(BINARY, b"", rsv=RSV1))  # nothing at all: not what it should be, but plain
            got.append(inflate(read_client_frame(sock).payload))
        hold(sock)

    ws = connect(raw_server(script).uri, compression_threshold=0)
    for text in ("again " * 30, "", "", "again " * 30):
        assert [ws.recv_message(soon()), ws.recv_message(soon())] == [text, b""]
        ws.send_message(text)
    wait_until(lambda: len(got) == 4)
    assert got == [b"again " * 30, b"", b"", b"again " * 30]


# --- what is compressed


@pytest.mark.parametrize(
    ("options", "compressed_from"),
    [({}, 128), ({"compression_threshold": 0}, 0), ({"compression_threshold": 1000}, 1000)],
)
def test_short_messages_go_as_they_are(
    make_pool: PoolFactory, raw_server: RawFactory, options: dict[str, int], compressed_from: int
) -> None:
    got: list[tuple[int, int, bytes]] = []
    inflate = decompressor()

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        while (received := read_client_frame(sock)).opcode != 8:
            payload = inflate(received.payload) if received.rsv else received.payload
            got.append((received.rsv, received.opcode, payload))
            sock.sendall(frame(received.opcode, payload))
        sock.sendall(close_frame())

    pool = make_pool(raw_server(script), manager_kwargs=options)
    sizes = [0, 1, 127, 128, 129, 999, 1000, 5000]
    with pool.acquire("/") as conn:
        for size in sizes:
            for message in ("x" * size, b"x" * size):
                conn.send_raw(message)
                assert conn.recv_raw(5) == message
    expected = [
        (RSV1 if size >= compressed_from else 0, opcode, b"x" * size)
        for size in sizes
        for opcode in (TEXT, BINARY)
    ]
    assert got == expected


def test_a_message_is_as_long_as_its_bytes(connect: Connect, raw_server: RawFactory) -> None:
    got: list[int] = []

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        got.extend(read_client_frame(sock).rsv for _ in range(2))

    ws = connect(raw_server(script).uri)
    ws.send_message("ü" * 63)  # 126 B
    ws.send_message("ü" * 64)  # 128 B
    wait_until(lambda: len(got) == 2)
    assert got == [0, RSV1]


def test_control_frames_are_not_compressed(connect: Connect, raw_server: RawFactory) -> None:
    got: list[tuple[int, int]] = []

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        sock.sendall(frame(PING, b"p" * 125))
        while True:
            received = read_client_frame(sock)
            got.append((received.opcode, received.rsv))
            if received.opcode == PING:
                sock.sendall(frame(PONG, received.payload))
            elif received.opcode == 8:
                sock.sendall(frame(8, received.payload))
                return

    ws = connect(raw_server(script).uri, compression_threshold=0)
    assert ws.measure_latency(soon()) < 5
    ws.close(1000, "r" * 123)
    wait_until(lambda: len(got) == 3)
    assert sorted(got) == [(8, 0), (PING, 0), (PONG, 0)]


@pytest.mark.slow
def test_a_send_that_came_to_nothing_is_forgotten(connect: Connect, raw_server: RawFactory) -> None:
    full = threading.Event()
    got: list[bytes] = []

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        assert full.wait(30)
        inflate = decompressor(12)
        while not got or got[-1] != b"end":
            received = read_client_frame(sock)
            if received.opcode == BINARY:
                got.append(inflate(received.payload) if received.rsv else received.payload)
        hold(sock)

    server = raw_server(script, receive_buffer=4096)
    ws = connect(server.uri, socket_options=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)])
    ws.send_message(noise(200))
    while ws.send_ping() or select.select([], [ws], [], 0.5)[1]:  # until the kernel takes no more
        pass
    sent, came_to_nothing = [noise(200)], 0
    while came_to_nothing < 2:
        try:
            ws.send_message(noise(500, 2), soon(0.05))
        except TimeoutError:
            came_to_nothing += 1
        else:  # the kernel has got rid of something meanwhile
            sent.append(noise(500, 2))
    assert not ws.is_over  # nothing of it has left
    full.set()
    for message in (noise(500, 2), noise(500, 2), b"end"):  # what did not arrive must not be referred to
        ws.send_message(message, soon())
        sent.append(message)
    wait_until(lambda: len(got) == len(sent))
    assert got == sent


def test_threads_that_send_on_one_connection_keep_its_context_in_order(
    make_pool: PoolFactory, raw_server: RawFactory
) -> None:
    got: list[bytes] = []

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        inflate = decompressor(12)
        while (received := read_client_frame(sock)).opcode != 8:
            got.append(inflate(received.payload))

    with make_pool(raw_server(script)).acquire("/") as conn:
        texts = [f"thread {number} says so. " * 20 for number in range(4)]
        senders = [
            threading.Thread(target=lambda text=text: [conn.send_raw(text) for _ in range(100)])
            for text in texts
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(20)
        wait_until(lambda: len(got) == 400)
        conn.discard()
    assert sorted(got) == sorted(text.encode() for text in texts for _ in range(100))


# --- bombs, sizes and memory


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("pieces", [1, 5])
def test_a_bomb_stops_at_the_limit(
    connect: Connect, raw_server: RawFactory, opcode: int, pieces: int
) -> None:
    closing = Closing()
    data = compressed(bytes(5 * MIB))
    size = -(-len(data) // pieces)
    bomb = b"".join(
        frame(
            CONTINUATION if start else opcode,
            data[start : start + size],
            fin=int(start + size >= len(data)),
            rsv=0 if start else RSV1,
        )
        for start in range(0, len(data), size)
    )
    go = threading.Event()

    def script(sock: socket.socket) -> None:
        upgrade(sock, [(EXTENSIONS, AGREED)])
        assert go.wait(10)
        sock.sendall(bomb)
        closing(sock)

    ws = connect(raw_server(script).uri, max_message_size=MIB)
    tracemalloc.start()
    try:
        go.set()
        with pytest.raises(MessageTooBigError, match="max_message_size=1048576 B") as caught:
            ws.recv_message(soon())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.limit == MIB
    assert peak < 1.5 * MIB
    assert closing.wait() == 1009


def test_a_bomb_costs_only_its_connection(make_pool: PoolFactory, raw_server: RawFactory) -> None:
    closing = Closing()
    server = raw_server(serve(frame(TEXT, compressed(bytes(5 * MIB)), rsv=RSV1), then=closing))
    pool = make_pool(server, manager_kwargs={"max_message_size": MIB})
    with pool.acquire("/") as conn, pytest.raises(MessageTooBigError):
        conn.recv_raw(5)
    assert closing.wait() == 1009
    assert pool.stats().idle_connections == 0


@pytest.mark.parametrize("content", [bytes, os.urandom], ids=["zeros", "noise"])
@pytest.mark.parametrize("limit", [1, 100, 65_536, 65_537, MIB])
def test_the_limit_is_of_the_message_not_of_what_came(
    connect: Connect, raw_server: RawFactory, content: Callable[[int], bytes], limit: int
) -> None:
    deflate = compressor()
    fits, too_big = content(limit), content(limit + 1)
    chunks = [frame(BINARY, deflate(data), rsv=RSV1) for data in (fits, b"", fits, too_big)]
    ws = connect(raw_server(serve(*chunks)).uri, max_message_size=limit)
    assert [ws.recv_message(soon()) for _ in range(3)] == [fits, b"", fits]
    with pytest.raises(MessageTooBigError):
        ws.recv_message(soon())


def test_a_compressed_message_far_over_the_limit_is_refused_at_its_head(
    connect: Connect, raw_server: RawFactory
) -> None:
    closing = Closing()
    head = frame(BINARY, b"", rsv=RSV1, declared_length=1 << 40)
    ws = connect(raw_server(serve(head, then=closing)).uri, max_message_size=MIB)
    with pytest.raises(MessageTooBigError):
        ws.recv_message(soon())
    assert closing.wait() == 1009


@pytest.mark.slow
def test_bombs_that_nobody_reads_are_left_to_the_kernel(connect: Connect, raw_server: RawFactory) -> None:
    count = 60
    deflate = compressor()
    chunks = [frame(BINARY, deflate(bytes(MIB)), rsv=RSV1) for _ in range(count)]
    sent = threading.Event()

    def then(sock: socket.socket) -> None:
        sent.set()
        hold(sock)

    ws = connect(raw_server(serve(*chunks, then=then)).uri)
    assert sent.wait(10)  # some 60 KB
    for _ in range(20):
        ws.tend()
    assert 1 <= ws.messages_received <= 4  # the last read of the handshake made one, and those after it one
    for _ in range(count):
        assert len(ws.recv_message(soon())) == MIB


def bombs(count: int) -> list[bytes]:
    """Messages of 1 MiB, each of another byte, in frames of 1 KiB."""
    deflate = compressor()
    return [frame(BINARY, deflate(bytes([n]) * MIB), rsv=RSV1) for n in range(count)]


@pytest.mark.slow
def test_what_one_read_brought_is_inflated_as_it_is_taken(connect: Connect, raw_server: RawFactory) -> None:
    count = 55
    read = b"".join(bombs(count))
    assert len(read) < 65536
    go = threading.Event()
    ws = connect(raw_server(serve(then=lambda sock: (go.wait(10) and sock.sendall(read)) or hold(sock))).uri)
    expected = bytearray(MIB)
    tracemalloc.start()
    try:
        go.set()
        for n in range(count):
            expected[:] = bytes([n]) * MIB
            assert ws.recv_message(soon(20)) == expected
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert not ws.unread and not ws.half_read


def test_what_stands_behind_a_bomb_is_seen_when_that_is_taken(
    connect: Connect, raw_server: RawFactory
) -> None:
    seen: list[tuple[int, bytes]] = []

    def read_all(sock: socket.socket) -> None:
        while True:
            got = read_client_frame(sock)
            seen.append((got.opcode, got.payload))

    first, second, third = bombs(3)
    stream = first + frame(PING, b"?") + second + third + close_frame(4001, b"bye")
    ws = connect(raw_server(serve(stream, then=read_all)).uri)
    assert [ws.recv_message(soon())[:1] for _ in range(3)] == [b"\0", b"\1", b"\2"]
    with pytest.raises(ConnectionClosedError) as caught:
        ws.recv_message(soon())
    assert (caught.value.code, caught.value.reason) == (4001, "bye")
    wait_until(lambda: len(seen) == 2)
    assert seen == [(PONG, b"?"), (8, b"\x0f\xa1")]


def test_a_fault_behind_a_bomb_comes_after_it(connect: Connect, raw_server: RawFactory) -> None:
    ws = connect(raw_server(serve(b"".join(bombs(2)) + frame(3))).uri)
    assert [ws.recv_message(soon())[:1] for _ in range(2)] == [b"\0", b"\1"]
    with pytest.raises(ProtocolError):
        ws.recv_message(soon())


def test_a_message_in_pieces_between_bombs(connect: Connect, raw_server: RawFactory) -> None:
    """The read that ends a large message may bring others, and half of one more."""
    deflate = compressor()
    large = noise(2 * MIB)
    packed = deflate(large)
    stream = frame(BINARY, packed[:-10], fin=0, rsv=RSV1) + frame(0, packed[-10:])
    small = frame(TEXT, deflate(b"small"), rsv=RSV1)
    go = threading.Event()

    def then(sock: socket.socket) -> None:
        assert go.wait(10)
        sock.sendall(small[3:])
        hold(sock)

    ws = connect(raw_server(serve(stream + small + small[:3], then=then)).uri)
    assert ws.recv_message(soon()) == large
    assert ws.recv_message(soon()) == "small"
    wait_until(lambda: ws.tend() and ws.half_read)
    go.set()
    assert ws.recv_message(soon()) == "small"


def test_a_goodbye_behind_bombs_that_nobody_takes_is_heard(connect: Connect, raw_server: RawFactory) -> None:
    ws = connect(raw_server(serve(b"".join(bombs(3)) + close_frame(1000))).uri)
    wait_until(lambda: ws.tend() and ws.messages_received)
    begun = monotonic()
    ws.close(timeout=20)
    assert monotonic() - begun < 10


@pytest.mark.slow
def test_a_ping_among_bombs_does_not_take_them_all_in(connect: Connect, raw_server: RawFactory) -> None:
    """What comes before the pong is kept, so no more of it than of anything else."""
    ws = connect(raw_server(serve(*bombs(60))).uri, max_message_size=MIB)
    with pytest.raises(TimeoutError):
        ws.measure_latency(soon(20))
    assert ws.messages_received <= 5


def test_inflating_takes_time_in_proportion_to_the_size() -> None:
    def took(size: int) -> float:
        payload = compressor(level=1)(noise(size))  # does not compress: as much comes in as goes out
        times = []
        for _ in range(3):
            inflater = Inflater(server_agreement(12, False), 64 * MIB)
            begun = thread_time()  # other programs' time is not ours
            assert len(inflater.inflate(payload)) == size
            times.append(thread_time() - begun)
        return min(times)

    assert took(8 * MIB) < 24 * took(MIB)  # 8 is linear, 64 quadratic


def many_connections(
    server: RawServer, compress: bool, count: int, say: bytes
) -> tuple[int, list[WebSocket]]:
    """Bytes that each of `count` idle connections keeps, after one message each way."""
    connections = []

    def open_one() -> None:
        ws = WebSocket()
        ws.connect(server.uri, timeout=5, compress=compress)
        connections.append(ws)
        if say:
            ws.send_message(say)
            assert ws.recv_message(soon()) == say
        ws.send_message(b"x")  # too short to compress: what was sent last is alike in both

    open_one()  # what is kept once for all is not theirs
    tracemalloc.start()
    try:
        for _ in range(count):
            open_one()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return kept // count, connections


@pytest.mark.slow
@pytest.mark.parametrize(
    ("params", "say", "most"),
    [
        (AGREED, b"", 4 * 1024),
        (AGREED, b"idle " * 2000, 90 * 1024),
        ("permessage-deflate", b"idle " * 2000, 90 * 1024),
        (f"{AGREED}; server_no_context_takeover", b"idle " * 2000, 50 * 1024),
    ],
    ids=["unused", "a small window", "any window", "server forgets"],
)
def test_what_an_idle_compressed_connection_costs(
    raw_server: RawFactory, params: str, say: bytes, most: int
) -> None:
    def script(sock: socket.socket) -> None:
        request = upgrade(sock, [(EXTENSIONS, params)] if compress else [])
        assert (EXTENSIONS.lower() in request.headers) == compress
        if say:
            read_client_frame(sock)
            sock.sendall(answer)
        hold(sock)

    kept: dict[bool, int] = {}
    count = 25 if say else 80  # the less each costs, the more blurs it
    for compress in (False, True):
        # The script answers with what was made before: the server's own memory must not count.
        answer = frame(BINARY, compressed(say), rsv=RSV1) if compress else frame(BINARY, say)
        kept[compress], connections = many_connections(raw_server(script), compress, count, say)
        for ws in connections:
            ws.shutdown()
    assert kept[True] - kept[False] < most


# --- over the pool


def test_a_reused_connection_keeps_its_context(make_pool: PoolFactory, echo_server: EchoFactory) -> None:
    server = echo_server(compression="deflate")
    pool = make_pool(server)
    message = {"text": noise(1000).hex()}
    for _ in range(5):
        with pool.acquire("/") as conn:
            assert conn.request(message) == message
    assert server.opened == 1
    assert pool.stats().bytes_received < 2 * 2000 and pool.stats().bytes_sent < 2 * 2000  # of 10,000


def test_a_compressed_connection_that_is_closed_says_why(
    make_pool: PoolFactory, echo_server: EchoFactory
) -> None:
    def handler(conn: Connection) -> None:
        conn.send("x" * 1000)
        conn.close(4001, "compressed, and closed")

    with make_pool(echo_server(handler, compression="deflate")).acquire("/") as lease:
        assert lease.recv_raw(5) == "x" * 1000
        with pytest.raises(ConnectionClosedError) as caught:
            lease.recv_raw(5)
    assert (caught.value.code, caught.value.reason) == (4001, "compressed, and closed")
