"""What a peer wrote is shown to nobody as it came.

A secret and control characters stand in every place that a peer can write to. Then all that is told of it is
searched: messages, reprs, args, log lines formatted with their tracebacks, warnings, and the formatted
traceback of every error that can be reached from the one that is raised.
"""

# No "from __future__ import annotations": pydantic and msgspec read the annotations of the classes below.
import base64
import contextlib
import gzip
import html
import json
import logging
import pickle
import socket
import traceback
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pydantic
import pytest
import typing_extensions

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.exceptions import JetSocketError
from tests import servers
from tests.servers import RawServer, close_frame, frame, wait_until

RawFactory = Callable[..., RawServer]
Act = Callable[[ConnectionPool[Any]], object]

# What the request has, and a server that echoes could have shown ...
TOKEN, HEADER, COOKIE = "s3cr3t-of-the-query", "s3cr3t-of-a-header", "s3cr3t-of-the-cookie"
USER, PASSWORD, SUBPROTOCOL = "s3cr3t-user", "s3cr3t-password", "s3cr3t-subprotocol"
PROXY_PASSWORD = "s3cr3t-of-the-proxy"
# ... and what a server has in its messages: of others, mostly.
MESSAGE = "IBAN-DE-s3cr3t-of-a-message"
SECRETS = [TOKEN, HEADER, COOKIE, USER, PASSWORD, SUBPROTOCOL, PROXY_PASSWORD, MESSAGE]
SECRETS += [
    base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(),
    base64.b64encode(f"{USER}:{PROXY_PASSWORD}".encode()).decode(),
]
ECHO = " ".join([TOKEN, HEADER, COOKIE, USER, PASSWORD, SUBPROTOCOL])
CONTROLS = "\x1b[2J\x07\x08\x7f\x9b31m"  # what a terminal obeys
LONG = "x" * 50_000
EVIL = f"{ECHO} {CONTROLS} {LONG}"
WIRE = EVIL.encode("latin-1")

PATH = f"/feed?token={TOKEN}"
OPTIONS: dict[str, Any] = {
    "extra_headers": {"X-Key": HEADER},
    "cookie": f"session={COOKIE}",
    "subprotocols": ["realtime", SUBPROTOCOL],
    "close_timeout": 0.1,
    "proxy": None,
}


# --- what is searched


def reachable(error: BaseException) -> list[BaseException]:
    """It and all behind it, also what a traceback would leave out."""
    found: list[BaseException] = []
    todo: list[Any] = [error]
    while todo:
        each = todo.pop()
        if each is None or any(each is other for other in found):
            continue
        found.append(each)
        todo += [each.__cause__, each.__context__, getattr(each, "last_connect_error", None)]
    return found


def check_text(text: str, *, lines: bool = False) -> None:
    for secret in SECRETS:
        assert secret not in text, f"it shows {secret}"
    assert all(char.isprintable() or (lines and char == "\n") for char in text), "it shows control characters"


def check_error(error: BaseException) -> None:
    for each in reachable(error):
        # Its own frames are of this test, whose lines name what is planted, though not by its value.
        check_text("".join(traceback.format_exception(each)), lines=True)
        check_text(str(each))
        check_text(repr(each))
        check_text(repr(each.args))
        check_text(repr(getattr(each, "headers", None)))
        assert len(str(each)) < 2000
    if isinstance(error, JetSocketError):
        copy = pickle.loads(pickle.dumps(error))
        check_text(str(copy) + repr(copy) + repr(copy.args))
        anew = type(error)(*json.loads(json.dumps(error.args)))
        check_text(str(anew) + repr(anew) + repr(anew.args))


class Told(logging.Handler):
    """Keeps every record as a file would show it."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.lines.append(logging.Formatter("%(message)s %(args)r").format(record))


@pytest.fixture
def told() -> Iterator[Told]:
    """All log lines of the test, searched at its end, and its warnings with them."""
    handler, log = Told(), logging.getLogger()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield handler
        assert handler.records, "nothing was logged"
        for line in handler.lines:
            check_text(line, lines=True)
        for record in handler.records:
            assert len(record.getMessage()) < 3000
            if record.exc_info and record.exc_info[1] is not None:
                check_error(record.exc_info[1])
        for warning in warned:
            check_text(str(warning.message), lines=True)
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def fails_quietly(server: RawServer, act: Act, *, config: Any = None, **given: Any) -> JetSocketError:
    """Do `act` with a pool on this server; it has to raise one of our errors, which is searched."""
    callbacks = {name: given.pop(name) for name in ("configure", "reset", "check") if name in given}
    base = server.uri.replace("://", f"://{USER}:{PASSWORD}@")
    with ConnectionPool(config, base_uri=base, manager_kwargs={**OPTIONS, **given}, **callbacks) as pool:
        with pytest.raises(JetSocketError) as caught:
            act(pool)
        check_text(repr(pool))
        check_text(str(pool.stats()), lines=True)
    check_error(caught.value)
    return caught.value


def acquire(pool: ConnectionPool[Any]) -> None:
    pool.acquire(PATH, timeout=5)


def receive(pool: ConnectionPool[Any]) -> None:
    with pool.acquire(PATH, timeout=5) as conn:
        try:
            conn.recv(5)
        finally:
            check_text(repr(conn) + conn.uri + repr(conn.response_headers))


# --- the upgrade


def response(status: bytes, *fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([b"HTTP/1.1 " + status, *fields, b"", body])


def upgraded(request: servers.Upgrade, *fields: bytes) -> bytes:
    own = [b"Upgrade: websocket", b"Connection: Upgrade"]
    accept = b"Sec-WebSocket-Accept: " + request.accept.encode()
    return response(b"101 Switching Protocols", *own, accept, *fields)


def clean(data: bytes) -> bytes:
    """Without what ends a head or a line of it."""
    return data.replace(b"\r", b"").replace(b"\n", b"")


VALUE = clean(ECHO.encode() + b" " + CONTROLS.encode("latin-1") + b" " + b"x" * 10_000)
NAME = TOKEN.encode()
HTML = b"<html><head><title>" + WIRE + b"</title>"
JSON = json.dumps({"error": {"message": EVIL}}).encode()
REFUSING: dict[str, Callable[[servers.Upgrade], bytes]] = {
    "a reason phrase": lambda _: response(b"403 " + VALUE),
    "a header's value": lambda _: response(b"403 No", b"X-Y: " + VALUE),
    "a header's name": lambda _: response(b"403 No", NAME + b": y"),
    "a header's name that is none": lambda _: response(b"403 No", NAME + b" \x1b: y"),
    "a header with a CR in its value": lambda _: response(b"403 No", NAME + b": a\rb"),
    "a header without a name": lambda _: response(b"403 No", VALUE),
    "a cookie": lambda _: response(b"403 No", b"Set-Cookie: sid=" + VALUE, body=b"sid=" + VALUE),
    "a body": lambda _: response(b"403 No", body=WIRE),
    "a body in lines": lambda _: response(b"403 No", body=CONTROLS.encode() + b"\r\n" + WIRE),
    "a body of HTML": lambda _: response(b"403 No", b"Content-Type: text/html", body=HTML),
    "a body of JSON": lambda _: response(b"400 No", b"Content-Type: application/json", body=JSON),
    "a body that is compressed": lambda _: response(
        b"403 No", b"Content-Encoding: gzip", body=gzip.compress(WIRE)
    ),
    "a body in chunks": lambda _: response(
        b"403 No", b"Transfer-Encoding: chunked", body=b"%x\r\n" % 60 + WIRE[:60] + b"\r\n0\r\n\r\n"
    ),
    "a body's charset": lambda _: response(b"403 No", b"Content-Type: text/plain; charset=" + VALUE),
    "a status line": lambda _: b"HTTP/1.1 " + VALUE + b"\r\n\r\n",
    "a status line's version": lambda _: b"HTTP/1." + VALUE + b"\r\n\r\n",
    "the first bytes": lambda _: WIRE,
    "a mail server's greeting": lambda _: b"220 " + VALUE + b" ESMTP\r\n",
    "Redis's error": lambda _: b"-ERR unknown command " + VALUE + b"\r\n",
    "the request itself": lambda request: request.raw,
    "half of the request": lambda request: request.raw[:30],
    "a redirect within the origin": lambda _: response(b"302 Found", b"Location: /" + NAME),
    "a redirect elsewhere": lambda _: response(b"302 Found", b"Location: ws://h/" + VALUE),
    "a redirect to a host": lambda _: response(b"302 Found", b"Location: ws://" + NAME + b"/"),
    "a redirect to a user": lambda _: response(b"302 Found", b"Location: ws://" + NAME + b":x@h/"),
    "a redirect to another scheme": lambda _: response(b"302 Found", b"Location: " + NAME + b"://h/"),
    "a redirect to a port": lambda _: response(b"302 Found", b"Location: ws://h:" + NAME + b"/"),
    "a redirect with a query": lambda _: response(b"302 Found", b"Location: //h/?q=" + MESSAGE.encode()),
    "Retry-After": lambda _: response(b"503 No", b"Retry-After: " + VALUE),
    "a subprotocol": lambda request: upgraded(request, b"Sec-WebSocket-Protocol: " + VALUE),
    "an extension": lambda request: upgraded(request, b"Sec-WebSocket-Extensions: " + VALUE),
    "an extension that looks well": lambda request: upgraded(
        request, b"Sec-WebSocket-Extensions: permessage-deflate; " + NAME + b"=" + HEADER.encode()
    ),
    "a window": lambda request: upgraded(
        request, b"Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=" + NAME
    ),
    "Upgrade": lambda _: response(b"101 Yes", b"Upgrade: " + VALUE, b"Connection: Upgrade"),
    "Connection": lambda _: response(b"101 Yes", b"Upgrade: websocket", b"Connection: " + VALUE),
    "Sec-WebSocket-Accept": lambda _: response(
        b"101 Yes", b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Accept: " + VALUE
    ),
    "Sec-WebSocket-Version": lambda _: response(b"426 No", b"Sec-WebSocket-Version: " + VALUE),
}


@pytest.mark.slow
@pytest.mark.parametrize("say", REFUSING.values(), ids=REFUSING)
def test_of_an_upgrade(raw_server: RawFactory, told: Told, say: Callable[[servers.Upgrade], bytes]) -> None:
    def script(sock: socket.socket) -> None:
        sock.sendall(say(servers.read_request(sock)))

    fails_quietly(raw_server(script), acquire, connect_attempts=2)


@pytest.mark.slow
@pytest.mark.parametrize("say", REFUSING.values(), ids=REFUSING)
def test_of_an_upgrade_that_an_exhausted_pool_remembers(
    raw_server: RawFactory, told: Told, say: Callable[[servers.Upgrade], bytes]
) -> None:
    calls: list[int] = []

    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        calls.append(1)
        if len(calls) == 2:
            sock.sendall(say(request))
            return
        sock.sendall(servers.upgrade_response(request, []))
        servers.hold(sock)

    def act(pool: ConnectionPool[Any]) -> None:
        with pool.acquire(PATH, timeout=5):
            with contextlib.suppress(JetSocketError):
                pool.acquire(PATH + "&other", timeout=5)
            with pool.acquire(PATH + "&other", timeout=5):
                pool.acquire(PATH, timeout=0.01)

    fails_quietly(raw_server(script), act, config=ConnectionPoolConfig(max_connections=2))


# --- frames


UTF8 = EVIL.encode("latin-1")  # which is no UTF-8
STREAMS: dict[str, bytes] = {
    "a close reason": close_frame(1011, (ECHO + CONTROLS).encode()[:123]),
    "a close reason that ends early": close_frame(1008, (HEADER + CONTROLS + MESSAGE[:0]).encode()),
    "a close reason that is no UTF-8": close_frame(1011, b"\xff" + MESSAGE.encode() + CONTROLS.encode()),
    "a close code that is none": close_frame(999, MESSAGE.encode()),
    "a close of one byte": frame(8, b"\x1b"),
    "text that is no UTF-8": frame(1, MESSAGE.encode() + b"\xff" + UTF8),
    "text that is no JSON": frame(1, (MESSAGE + CONTROLS + LONG).encode()),
    "binary that is no JSON": frame(2, MESSAGE.encode() + UTF8),
    "an opcode that is none": frame(3, MESSAGE.encode()),
    "a ping that is too long": frame(9, MESSAGE.encode() * 10),
    "a continuation of nothing": frame(0, MESSAGE.encode()),
    "a message that is too big": frame(1, declared_length=1 << 40) + MESSAGE.encode(),
    "a reserved bit": bytes([0xC1, len(MESSAGE)]) + MESSAGE.encode(),
    "no frame at all": MESSAGE.encode() + WIRE,
    "HTTP": b"HTTP/1.1 500 " + VALUE + b"\r\n\r\n",
    "nothing, and the end": b"",
}


@pytest.mark.slow
@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("act", [receive, lambda pool: list(leased(pool))], ids=["recv", "for"])
def test_of_frames(raw_server: RawFactory, told: Told, stream: bytes, act: Act) -> None:
    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        sock.sendall(stream)

    fails_quietly(raw_server(script), act)


def leased(pool: ConnectionPool[Any]) -> Iterator[Any]:
    with pool.acquire(PATH, timeout=5) as conn:
        yield from conn


def test_of_what_does_not_inflate(raw_server: RawFactory, told: Told) -> None:
    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        sock.sendall(servers.upgrade_response(request, [("Sec-WebSocket-Extensions", "permessage-deflate")]))
        sock.sendall(bytes([0xC1, len(MESSAGE)]) + MESSAGE.encode())
        servers.hold(sock)

    fails_quietly(raw_server(script), receive)


# --- messages


class Pydantic(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    account: int
    by_name: dict[str, int] = {}

    @pydantic.field_validator("account")
    @classmethod
    def refuse(cls, value: int) -> int:
        if value < 0:
            raise ValueError(MESSAGE + CONTROLS)
        return value


class Struct(msgspec.Struct, forbid_unknown_fields=True):
    account: int
    by_name: dict[str, int] = {}

    def __post_init__(self) -> None:
        if self.account < 0:
            raise ValueError(f"Expected {MESSAGE}{CONTROLS} - at `$.{MESSAGE}`")


class Typed(typing_extensions.TypedDict):
    account: int
    by_name: typing_extensions.NotRequired[dict[str, int] | None]


def reads_a_key(payload: Any) -> Any:
    return json.loads(payload)["missing " + MESSAGE]


def reads_an_int(payload: Any) -> Any:
    return [int(value) for value in json.loads(payload).values()]


def validates(payload: Any) -> Any:
    return Pydantic.model_validate_json(payload)


def chains(payload: Any) -> Any:
    try:
        return reads_an_int(payload)
    except ValueError as error:
        raise RuntimeError(payload) from error


DECODERS: dict[str, dict[str, Any]] = {
    "pydantic": {"message_type": Pydantic},
    "msgspec": {"message_type": Struct},
    "a TypedDict": {"message_type": Typed},
    "int": {"deserializer": int},
    "a KeyError": {"deserializer": reads_a_key},
    "a ValueError": {"deserializer": reads_an_int},
    "pydantic in a function": {"deserializer": validates},
    "a chain": {"deserializer": chains},
}
WRITTEN = MESSAGE + CONTROLS
MESSAGES = {
    "a value": json.dumps({"account": WRITTEN}),
    "a value that is long": json.dumps({"account": WRITTEN + LONG}),
    "a name": json.dumps({"account": WRITTEN, WRITTEN + LONG: 1}),
    "a key": json.dumps({"account": WRITTEN, "by_name": {WRITTEN: WRITTEN}}),
    "a value that a validator refuses": json.dumps({"account": -1, "by_name": WRITTEN, WRITTEN: WRITTEN}),
    "what is no JSON": WRITTEN + LONG,
    "half a JSON": json.dumps({"account": WRITTEN})[:-2],
}


@pytest.mark.slow
@pytest.mark.parametrize("options", DECODERS.values(), ids=DECODERS)
def test_of_messages(raw_server: RawFactory, told: Told, options: Any) -> None:
    def act(pool: ConnectionPool[Any]) -> None:
        with pool.acquire(PATH, timeout=5) as conn:
            for _ in range(len(MESSAGES) - 1):
                with pytest.raises(JetSocketError) as caught:
                    conn.recv(5)
                check_error(caught.value)
            conn.recv(5)

    came = [frame(1, message.encode()) for message in MESSAGES.values()]
    fails_quietly(raw_server(servers.after_upgrade(*came)), act, **options)


def raises_what_came(conn: Any) -> None:
    raise RuntimeError(conn.recv_raw(5))


def validates_what_came(conn: Any) -> None:
    Pydantic.model_validate_json(conn.recv_raw(5))


def counts_what_came(conn: Any) -> None:
    int(conn.recv_raw(5))


def decodes_what_came(conn: Any) -> None:
    conn.recv(5)


def is_closed_with_a_reason(conn: Any) -> None:
    for _ in range(2):
        conn.recv_raw(5)


CALLBACKS = [raises_what_came, validates_what_came, counts_what_came, is_closed_with_a_reason]
SENT = frame(1, MESSAGES["a value"].encode()) + close_frame(1011, (ECHO + CONTROLS).encode()[:123])


@pytest.mark.parametrize("callback", [*CALLBACKS, decodes_what_came])
def test_of_what_configure_raises(raw_server: RawFactory, told: Told, callback: Any) -> None:
    error = fails_quietly(
        raw_server(servers.after_upgrade(SENT)), acquire, configure=callback, message_type=Pydantic
    )
    assert "configure() failed" in str(error)
    assert callback.__name__ in "".join(traceback.format_exception(error))  # where is told


@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyError, ConnectionRefusedError])
def test_of_what_extra_headers_raises(raw_server: RawFactory, told: Told, kind: type[Exception]) -> None:
    def asks_for_a_token() -> dict[str, str]:
        try:
            raise ValueError(f"of the service that gives them: {EVIL}")
        except ValueError as error:
            raise kind(f"no token: {EVIL}") from error

    server = raw_server(servers.hold)
    error = fails_quietly(server, acquire, extra_headers=asks_for_a_token)
    assert f"raised {kind.__name__} in asks_for_a_token" in str(error)
    assert "asks_for_a_token" in "".join(traceback.format_exception(error.__cause__))  # where is told


@pytest.mark.slow
@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("name", ["reset", "check"])
def test_of_what_reset_and_check_raise(raw_server: RawFactory, told: Told, name: str, callback: Any) -> None:
    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        servers.read_client_frame(sock)
        sock.sendall(SENT)
        servers.hold(sock)

    def asks(conn: Any) -> None:
        conn.send_raw("now")
        callback(conn)

    config = ConnectionPoolConfig(health_check_interval=0.1, health_check_timeout=5.0)
    base = raw_server(script).uri.replace("://", f"://{USER}:{PASSWORD}@")
    with ConnectionPool(config, base_uri=base, manager_kwargs=OPTIONS, **{name: asks}) as pool:
        pool.acquire(PATH, timeout=5).release()
        wait_until(lambda: pool.stats().discards == {f"{name} failed": 1})
        wait_until(lambda: any(f"{name}() failed" in line for line in told.lines))
    line = next(line for line in told.lines if f"{name}() failed" in line)
    assert callback.__name__ in line


def test_of_what_comes_unasked_and_late(raw_server: RawFactory, told: Told) -> None:
    def script(sock: socket.socket) -> None:
        servers.upgrade(sock)
        sock.sendall(frame(1, MESSAGES["a value"].encode()) * 3)
        servers.hold(sock)

    def act(pool: ConnectionPool[Any]) -> None:
        for _ in range(2):
            with pool.acquire(PATH, timeout=5) as conn:
                conn.recv_raw(5)
        with pool.acquire(PATH, timeout=5) as conn:
            conn.request({"id": "some-id"}, timeout=0.3)

    fails_quietly(raw_server(script), act)


QUOTED = 's3cr/et"o&fö/a<he/ader'  # in pieces that are too short to be found each by itself
QUOTING: dict[str, str] = {
    "JSON": json.dumps(QUOTED),
    "JSON of PHP's": json.dumps(QUOTED).replace("/", "\\/"),
    "JSON without escapes": json.dumps(QUOTED, ensure_ascii=False),
    "HTML": html.escape(QUOTED),
    "HTML with plain quotes": html.escape(QUOTED, quote=False),
    "a URI": urllib.parse.quote(QUOTED, safe=""),
}


@pytest.mark.slow
@pytest.mark.parametrize("quoted", QUOTING.values(), ids=QUOTING)
@pytest.mark.parametrize(
    "place", ["a reason phrase", "a body", "a body of JSON", "a close reason", "a greeting"]
)
def test_of_what_is_quoted_in_another_way_than_it_was_sent(
    raw_server: RawFactory, told: Told, quoted: str, place: str
) -> None:
    def script(sock: socket.socket) -> None:
        request = servers.read_request(sock)
        said = quoted.encode()
        sock.sendall({
            "a reason phrase": response(b"403 you sent " + quoted.encode("latin-1")),
            "a body": response(b"403 No", body=b"you sent " + said),
            "a body of JSON": response(b"403 No", body=b'{"sent": "' + said.strip(b'"') + b'"}'),
            "a close reason": servers.upgrade_response(request) + close_frame(1011, b"you sent " + said),
            "a greeting": b"-ERR you sent " + said + b"\r\n",
        }[place])  # fmt: skip

    error = fails_quietly(raw_server(script), receive, extra_headers={"X-Key": QUOTED})
    for shown in ["".join(traceback.format_exception(error)), *told.lines]:
        assert "s3cr" not in shown and "orum" not in shown


# --- proxies


# All that it has been told of what is secret.
SEEN = f"{USER}:{PROXY_PASSWORD} {SECRETS[-1]} {CONTROLS} ".encode("latin-1") + b"x" * 10_000
PROXIES: dict[str, bytes] = {
    "a reason phrase": b"HTTP/1.1 503 " + SEEN + b"\r\n\r\n",
    "a refusal of the login": b"HTTP/1.1 407 " + SEEN + b"\r\nX-Y: " + SEEN + b"\r\n\r\n" + SEEN,
    "a body": b"HTTP/1.1 502 Bad Gateway\r\n\r\n" + SEEN,
    "no HTTP": SEEN,
    "a status line": b"HTTP/1.1 " + SEEN + b"\r\n\r\n",
    "more than its answer": b"HTTP/1.1 200 OK\r\n\r\n" + SEEN,
}


@pytest.mark.parametrize("quoted", QUOTING.values(), ids=QUOTING)
def test_of_a_proxy_that_quotes_the_password(raw_server: RawFactory, told: Told, quoted: str) -> None:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(b"HTTP/1.1 503 you sent " + quoted.encode() + b"\r\n\r\n")

    proxy = f"http://user:{urllib.parse.quote(QUOTED, safe='')}@127.0.0.1:{raw_server(script).port}"
    error = fails_quietly(raw_server(servers.hold), acquire, proxy=proxy)
    for shown in ["".join(traceback.format_exception(error)), *told.lines]:
        assert "s3cr" not in shown and "orum" not in shown


@pytest.mark.parametrize("answer", PROXIES.values(), ids=PROXIES)
def test_of_a_proxy(raw_server: RawFactory, told: Told, answer: bytes) -> None:
    def script(sock: socket.socket) -> None:
        servers.read_request(sock)
        sock.sendall(answer)

    proxy = f"http://{USER}:{PROXY_PASSWORD}@127.0.0.1:{raw_server(script).port}"
    fails_quietly(raw_server(servers.hold), acquire, proxy=proxy)
