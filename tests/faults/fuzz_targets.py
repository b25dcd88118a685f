"""What the fuzzers aim at: functions of bytes that end well whatever the bytes, or say what broke.

Hypothesis gives them bytes that mean something (test_fuzz.py), atheris those that lead to new paths through
the code (fuzz_atheris.py). None of them may raise; the errors that the library names are part of its answer.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Any

from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    HandshakeError,
    MessageTooBigError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.uris import parse
from jetsocket.wire.deflate import Agreement, Inflater, agree, longest
from jetsocket.wire.headers import Headers, parse_head
from jetsocket.wire.message_reader import _MADE_AT_ONCE as MADE_AT_ONCE
from jetsocket.wire.message_reader import PING_BURST, MessageReader
from jetsocket.wire.redirects import follow
from jetsocket.wire.upgrade_answer import accept_for, check_upgrade
from jetsocket.wire.websocket import WebSocket

NAMED = (HandshakeError, ConnectionClosedError, ProtocolError, MessageTooBigError, ConnectionError)
LIMITS = (0, 1, 125, 1000, 70_000)  # B, of a message
LATE = 8.0  # s: far beyond the deadline given to connect and recv
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


# --- frames


def frames(data: bytes) -> None:
    """Read a stream whole and split: the first byte says how it is read, the second where it is split."""
    if len(data) < 2:
        return
    limit = LIMITS[data[0] % len(LIMITS)]
    stream = data[2:]
    step = data[1] % 7 + 1 if data[1] < 128 else data[1]
    pieces = [stream[start : start + step] for start in range(0, len(stream), step)]
    check_frames([stream], pieces, limit=limit, compressed=data[0] >= 128)


def check_frames(*splits: Sequence[bytes], limit: int, compressed: bool) -> dict[str, Any]:
    """However the same stream is split, the same comes of it; return that."""
    outcomes = [read(pieces, limit, compressed) for pieces in splits]
    if compressed:
        outcomes.append(read(splits[-1], limit, compressed, hasty=True))
    assert all(outcome == outcomes[0] for outcome in outcomes), outcomes
    return outcomes[0]


def read(pieces: Sequence[bytes], limit: int, compressed: bool, *, hasty: bool = False) -> dict[str, Any]:
    """What a reader makes of a stream, a borrower taking all messages whenever some have come.

    A `hasty` reader pauses behind each frame, as if what came before had inflated to a mebibyte.
    """
    reader = MessageReader(limit)
    if compressed:
        reader.inflater = Inflater(Agreement(server_max_window_bits=12), limit)
    messages: list[str | bytes] = []
    error = None
    try:
        for piece in pieces:
            reader._made = MADE_AT_ONCE if hasty else 0
            reader.feed(piece)
            messages += take(reader, limit)
            while reader.paused:
                reader._made = MADE_AT_ONCE if hasty else 0
                reader.feed(b"")
                messages += take(reader, limit)
    except (ProtocolError, MessageTooBigError) as caught:
        messages += take(reader, limit)
        assert reader.broken
        error = (type(caught), caught.code)
    assert reader.received == len(messages)
    return {
        "messages": messages,
        "pings": list(reader.pings),
        "pongs": list(reader.pongs),
        "close": reader.close,
        "error": error,
        "mid_message": error is None and reader.close is None and reader.mid_message,
    }


def take(reader: MessageReader, limit: int) -> list[str | bytes]:
    """Take what is whole; what is kept of the rest must be within bounds."""
    taken = list(reader.messages)
    reader.messages.clear()
    for message in taken:
        assert len(message.encode() if isinstance(message, str) else message) <= limit
    assert len(reader._pieces) <= longest(limit)
    # Behind a close or a fault nothing is read, and what came behind a bomb is read when that was taken.
    over = reader.close is not None or reader.broken
    assert len(reader.rest) <= 2 + 125 or over or reader.paused
    assert len(reader.pongs) <= 16 and len(reader.pings) <= PING_BURST
    return taken


# --- the upgrade


def head(data: bytes) -> None:
    """Read a response head with all that is asked of it; only ValueError may come of it."""
    with contextlib.suppress(ValueError):
        _, _, headers = parse_head(data)
        check_head(headers)


def check_head(headers: Headers) -> None:
    fields = dict(headers)
    assert len(fields) == len(headers)
    assert not any(re.search("[\r\n\0]", text) for field in fields.items() for text in field)
    asked = ("sec-websocket-protocol", "sec-websocket-extensions", "location")
    protocol, extensions, location = (headers.get(name) for name in asked)
    with contextlib.suppress(ValueError):
        chosen = check_upgrade(headers, accept_for(KEY), ["chat", "super"], compress=extensions is not None)
        assert chosen == ((protocol or "").strip(" \t,") or None) and chosen in (None, "chat", "super")
    if extensions is not None:
        with contextlib.suppress(ValueError):
            check_agreement(agree(extensions))
    if location is not None:
        target = parse("wss://h:8443/a")
        with contextlib.suppress(ValueError):
            assert follow(target, location).origin == target.origin


class Answering:
    """A server on a Unix socket that answers one request after another with the bytes it was told.

    `{accept}` in them becomes the proof of the request's key. It closes after the answer, or holds the
    connection until the client lets go.
    """

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.path = str(Path(self._directory.name) / "s")
        self.answer = b""
        self.holds = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, name="answering", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with sock, contextlib.suppress(OSError):
                sock.settimeout(LATE)
                if not self._answer(sock):
                    return

    def _answer(self, sock: socket.socket) -> bool:
        request = b""
        while b"\r\n\r\n" not in request:
            more = sock.recv(4096)
            if not more:
                return bool(request)  # nothing at all was asked: it is `close` who came
            request += more
        key = re.search(rb"Sec-WebSocket-Key: *(\S+)", request)
        assert key is not None
        accept = base64.b64encode(hashlib.sha1(key[1] + GUID).digest())
        sock.sendall(self.answer.replace(b"{accept}", accept))
        if not self.holds:
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass
        return True

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self._thread.join(LATE)
        self._listener.close()
        self._directory.cleanup()


_servers: list[Answering] = []


def upgrade(data: bytes) -> None:
    """Connect to a server that answers with these bytes, and read what comes behind its head."""
    if not _servers:
        _servers.append(Answering())
    check_upgrade_over_socket(_servers[0], data)


def check_upgrade_over_socket(server: Answering, answer: bytes, *, timeout: float = 2.0) -> str:
    """Return how it ended; only named errors may come, and in time."""
    server.answer = answer
    ws = WebSocket(max_message_size=70_000)
    begun = monotonic()
    options: dict[str, Any] = {"subprotocols": ["chat"], "compress": True, "max_redirects": 2}
    try:
        ws.connect("ws://localhost/path", timeout=timeout, unix=server.path, **options)
        dict(ws.response_headers)
        while True:
            message = ws.recv_message(monotonic() + timeout)
            assert len(message.encode() if isinstance(message, str) else message) <= 70_000
    except (*NAMED, TimeoutError) as error:
        ended = error
    finally:
        ws.shutdown()
    assert type(ended) in (*NAMED, TimeoutError), ended  # exactly: none of the wire's own kinds
    assert str(ended).isprintable()
    assert monotonic() - begun < LATE
    return type(ended).__name__


# --- compression


def deflate(data: bytes) -> None:
    """Negotiate with what stands before the first NUL, and inflate what stands behind, piece by piece."""
    header, _, payload = data.partition(b"\0")
    agreement = Agreement()
    with contextlib.suppress(ValueError):
        agreement = agree(header.decode("latin-1"))
        check_agreement(agreement)
    inflate(payload.split(b"\0\0\xff"), agreement, LIMITS[len(header) % len(LIMITS)])


def check_agreement(agreement: Agreement) -> None:
    assert 8 <= agreement.server_max_window_bits <= 15
    assert 8 <= agreement.client_max_window_bits <= 12


def inflate(payloads: Sequence[bytes], agreement: Agreement, limit: int) -> int:
    """Inflate messages one after the other; return how many were good."""
    inflater = Inflater(agreement, limit)
    good = 0
    with contextlib.suppress(ProtocolError, MessageTooBigError):
        for payload in payloads:
            assert len(inflater.inflate(payload)) <= limit
            good += 1
    return good


TARGETS = {"frames": frames, "head": head, "upgrade": upgrade, "deflate": deflate}
