"""Servers for the tests, real ones: one that behaves (`EchoServer`), one that is scripted (`RawServer`).

Both listen on an ephemeral port of 127.0.0.1, count what they see, and close everything they opened
when their `with` block ends. Importing this module needs `websockets`, not the library under test.
"""

from __future__ import annotations

import _ssl
import base64
import contextlib
import ctypes
import errno
import hashlib
import json
import os
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

# Bound here, so that a test that replaces the clock does not change how long a test waits.
from time import sleep
from typing import Any
from urllib.parse import parse_qs, urlsplit

from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as ServerRequest
from websockets.protocol import State
from websockets.sync.server import Server, ServerConnection, serve

from tests.awake import awake

LOCALHOST = "127.0.0.1"
GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 §1.3


# --- waiting and counting


def wait_until(condition: Callable[[], Any], timeout: float = 5.0, message: str = "") -> Any:
    """Wait until `condition()` is true and return its value; fail the test after `timeout` seconds.

    Those do not count in which this process wants to run and does not get to, see `awake`.
    """
    deadline = awake() + timeout
    while not (value := condition()):
        if awake() > deadline:
            what = message or getattr(condition, "__name__", "the condition")
            raise AssertionError(f"not within {timeout} s: {what} (last value: {value!r})")
        sleep(0.002)
    return value


def open_fds() -> dict[int, str]:
    """What every open file descriptor of this process points at (Linux only)."""
    links = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor of the listing itself is gone by now
            links[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return links


def open_sockets() -> int:
    """How many sockets this process has open, the servers' own included."""
    return sum(link.startswith("socket:") for link in open_fds().values())


@contextlib.contextmanager
def refusing_port() -> Iterator[int]:
    """A port of 127.0.0.1 that refuses every connection for as long as the block runs."""
    with socket.socket() as reserved:
        reserved.bind((LOCALHOST, 0))  # bound, never listening
        yield reserved.getsockname()[1]


# --- a well-behaved server


class SerialSSLSocket(ssl.SSLSocket):
    """One call into OpenSSL at a time: `websockets` reads in one thread and sends in another.

    CPython's `SSLSocket` breaks the session when both happen at once, which would look
    like a fault of what is under test.
    """

    @property
    def _serial(self) -> Any:
        return self.__dict__.setdefault("serial", threading.RLock())

    def recv(self, *args: Any) -> bytes:
        while True:
            with self._serial:
                timeout = self.gettimeout()
                if timeout == 0:
                    return super().recv(*args)
                # Even a readable socket may hold no data yet (half a record, a session ticket), and
                # whoever waited for it with the lock held would keep the other thread from sending.
                self.settimeout(0)
                try:
                    return super().recv(*args)
                except ssl.SSLWantReadError:
                    pass
                finally:
                    self.settimeout(timeout)
            if not _readable(self, timeout):
                raise TimeoutError("timed out")

    def send(self, *args: Any) -> int:
        with self._serial:
            return super().send(*args)

    def settimeout(self, value: float | None) -> None:
        with self._serial:  # not while recv() has its own
            super().settimeout(value)

    def accept(self) -> Any:
        """Go on when a client was reset before its handshake; at an error the server would end."""
        while True:
            bare, address = socket.socket.accept(self)
            try:
                bare.getpeername()  # else wrapping it fails, and leaves it open
                wrapped = self.context.wrap_socket(bare, server_side=True, do_handshake_on_connect=False)
                return wrapped, address
            except OSError:
                bare.close()
            while not _readable(self, 0.05):  # an OSError once this one is closed
                pass


def _readable(sock: socket.socket, timeout: float | None) -> bool:
    """Wait until there is something to read; False when there is nothing within `timeout` seconds."""
    if sock.fileno() == -1:
        raise OSError(errno.EBADF, "the socket is closed")
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    return bool(poller.poll(None if timeout is None else timeout * 1000))


class Connection(ServerConnection):
    """One connection as the server sees it; `echo_server` is the server it belongs to."""

    echo_server: EchoServer

    def handshake(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().handshake(*args, **kwargs)
        finally:
            if self.protocol.state is not State.OPEN:
                self.echo_server._forget(self)

    def recv(self, *args: Any, **kwargs: Any) -> Any:
        message = super().recv(*args, **kwargs)
        self.echo_server._count_message()
        return message

    def process_event(self, event: Any) -> None:
        if isinstance(event, Frame) and event.opcode is Opcode.PING:
            self.echo_server._count_ping()
        super().process_event(event)

    @property
    def is_open(self) -> bool:
        """Whether neither side has begun to close, by the protocol's state and by the kernel's."""
        return self.protocol.state in (State.CONNECTING, State.OPEN) and _established(self.socket)

    def cut(self) -> None:
        """Drop the TCP connection without a closing handshake."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


def _established(sock: socket.socket) -> bool:
    """Whether the kernel has seen no FIN or RST on this TCP connection, without reading from it."""
    tcp_info = getattr(socket, "TCP_INFO", None)
    if tcp_info is None:
        return sock.fileno() != -1
    try:
        return sock.getsockopt(socket.IPPROTO_TCP, tcp_info, 1) == b"\x01"  # TCP_ESTABLISHED
    except OSError:
        return False


Handler = Callable[[Connection], None]


def echo(conn: Connection) -> None:
    """Send every message back as it is."""
    for message in conn:
        conn.send(message)


def late(conn: Connection) -> None:
    """Send every message back after the seconds it asks for: `{"delay": 0.2, ...}`."""
    for message in conn:
        conn.echo_server.stopping.wait(float(json.loads(message).get("delay", 0)))
        conn.send(message)


def push(conn: Connection) -> None:
    """Send `?count=` numbered messages unasked (endless), one in `?every=` s (0.01), then be silent."""
    query = _query(conn)
    count, every = int(query.get("count", 1 << 62)), float(query.get("every", 0.01))
    for number in range(count):
        conn.send(json.dumps({"push": number}))
        if conn.echo_server.stopping.wait(every):
            return
    silent(conn)


def silent(conn: Connection) -> None:
    """Read everything and answer nothing."""
    for _ in conn:
        pass


def double(conn: Connection) -> None:
    """Answer every message twice."""
    for message in conn:
        conn.send(message)
        conn.send(message)


def ids(conn: Connection) -> None:
    """Answer the JSON message `{"id": n, ...}` with `{"id": n, "result": <the message>}`."""
    for message in conn:
        request = json.loads(message)
        conn.send(json.dumps({"id": request["id"], "result": request}))


def scripted(conn: Connection) -> None:
    """Answer each message with what it asks for: all of its `say`, in which "me" stands for itself."""
    for text in conn:
        message = json.loads(text)
        say = message.get("say", ["me"]) if isinstance(message, dict) else ["me"]
        for each in say:
            conn.send(text if each == "me" else json.dumps(each))


def greet(conn: Connection) -> None:
    """Say hello first, then echo."""
    conn.send(json.dumps({"hello": conn.request.path if conn.request else ""}))
    echo(conn)


def close(conn: Connection) -> None:
    """Close after the first message, with `?code=` (1000) and `?reason=`."""
    query = _query(conn)
    conn.recv()
    conn.close(int(query.get("code", 1000)), query.get("reason", ""))


def close_with(code: int = 1000, reason: str = "", *, after: int = 1) -> Handler:
    """A handler that echoes `after` messages, then closes with `code` and `reason`."""

    def handler(conn: Connection) -> None:
        for _ in range(after):
            conn.send(conn.recv())
        conn.close(code, reason)

    return handler


def _query(conn: Connection) -> dict[str, str]:
    assert conn.request is not None
    return {key: values[0] for key, values in parse_qs(urlsplit(conn.request.path).query).items()}


# By the first segment of the path: /late, /push?count=3, /ids/7. Any other path echoes.
HANDLERS: dict[str, Handler] = {
    handler.__name__: handler for handler in (echo, late, push, silent, double, ids, greet, close)
}


class EchoServer:
    """The threaded server of `websockets` on 127.0.0.1, with counts of what it sees.

    Args:
        handler: Serves every connection; without one, the path chooses from `HANDLERS`.
        ssl_context: Serve wss:// with it.
        ping_interval, ping_timeout: Seconds; the server sends no pings by default.
        subprotocols, process_request, **options: As for `websockets.sync.server.serve`.

    Attributes:
        opened: Connections whose upgrade was accepted, ever; counted before the client can know of it.
        most_open: The most that were open at one moment.
        messages: Messages received.
        pings: Pings received; one may be counted a moment after its pong arrived.
        requests: Every upgrade request in order (`.path`, `.headers`).
        stopping: Set while the server stops; handlers that wait should wait on it.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        ping_interval: float | None = None,
        ping_timeout: float | None = None,
        **options: Any,
    ) -> None:
        self.handler = handler
        self.opened = self.most_open = self.messages = self.pings = 0
        self.requests: list[ServerRequest] = []
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[Connection, threading.Thread] = {}
        self._server: Server | None = None
        self._acceptor: threading.Thread | None = None
        self._ssl_context = ssl_context
        if ssl_context is not None:
            ssl_context.sslsocket_class = SerialSSLSocket
        self._process_response = options.pop("process_response", None)
        self._options = {
            "ping_interval": ping_interval,
            "ping_timeout": ping_timeout,
            "compression": None,
            "max_size": 128 << 20,
            "open_timeout": 3,
            "close_timeout": 1,
            **options,
        }
        # Bound but not listening: keeps the port ours while the server is stopped.
        self._reserved = socket.socket()
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((LOCALHOST, 0))
        self.host = LOCALHOST
        self.port: int = self._reserved.getsockname()[1]

    # --- addresses and counts

    @property
    def uri(self) -> str:
        """`ws://127.0.0.1:port`, or wss:// with TLS."""
        return f"{'ws' if self._ssl_context is None else 'wss'}://{self.host}:{self.port}"

    def uri_for(self, path: str) -> str:
        """The URI of a path on this server."""
        return f"{self.uri}/{path.lstrip('/')}"

    @property
    def connections(self) -> list[Connection]:
        """The connections that are open now, in the order they opened."""
        with self._lock:
            tracked = list(self._connections)
        return [conn for conn in tracked if conn.is_open]

    @property
    def open_now(self) -> int:
        """How many connections are open now: a client's close frame, FIN or RST counts at once."""
        return len(self.connections)

    @property
    def paths(self) -> list[str]:
        """The request target of every connection ever opened, in order."""
        return [request.path for request in list(self.requests)]

    def _count_message(self) -> None:
        with self._lock:
            self.messages += 1

    def _count_ping(self) -> None:
        with self._lock:
            self.pings += 1

    # --- starting and stopping

    def start(self) -> EchoServer:
        """Listen; `restart()` is another name for it, on the same port with the counts going on."""
        if self._server is not None:
            raise RuntimeError("the server is running already")
        self.stopping.clear()
        self._server = serve(
            self._serve_connection,
            self.host,
            self.port,
            ssl=self._ssl_context,
            create_connection=self._create_connection,
            process_response=self._answer,
            **self._options,
        )
        self._acceptor = threading.Thread(target=self._server.serve_forever, name="echo-acceptor")
        self._acceptor.start()
        return self

    restart = start

    def stop(self, *, abrupt: bool = False) -> None:
        """Close every connection (1001, or cut when `abrupt`), stop listening, wait for all handlers."""
        if self._server is None or self._acceptor is None:
            return
        self.stopping.set()
        with self._lock:
            tracked = dict(self._connections)
        self._end(list(tracked), abrupt)
        self._server.shutdown()
        self._acceptor.join()
        for thread in tracked.values():
            thread.join(10)
        for name in ("shutdown_watcher", "shutdown_notifier"):
            end: object = getattr(self._server, name, None)
            if isinstance(end, int):  # before version 17, websockets leaves its pipe open
                os.close(end)
        self._server = self._acceptor = None

    def close_all(self, code: int = 1001, reason: str = "") -> None:
        """Close every open connection side by side, with a closing handshake."""
        self._end(self.connections, abrupt=False, code=code, reason=reason)

    def cut_all(self) -> None:
        """Drop every open TCP connection without a closing handshake."""
        self._end(self.connections, abrupt=True)

    def broadcast(self, message: str | bytes) -> None:
        """Send a message that nobody asked for on every open connection."""
        for conn in self.connections:
            with contextlib.suppress(ConnectionClosed):
                conn.send(message)

    def _end(self, connections: list[Connection], abrupt: bool, code: int = 1001, reason: str = "") -> None:
        if not connections:
            return
        if abrupt:
            for conn in connections:
                conn.cut()
            return
        opened = [conn for conn in connections if conn.protocol.state is State.OPEN]
        with ThreadPoolExecutor(len(connections)) as closers:
            list(closers.map(lambda conn: conn.close(code, reason), opened))

    def __enter__(self) -> EchoServer:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        self._reserved.close()

    # --- serving

    def _create_connection(self, *args: Any, **kwargs: Any) -> Connection:
        conn = Connection(*args, **kwargs)
        conn.echo_server = self
        return conn

    def _answer(self, conn: ServerConnection, request: ServerRequest, response: Any) -> Any:
        """Count a connection before its 101 leaves, in the thread that will serve it."""
        assert isinstance(conn, Connection)
        changed = self._process_response and self._process_response(conn, request, response)
        with self._lock:
            if (changed or response).status_code == 101 and not self.stopping.is_set():
                self._connections[conn] = threading.current_thread()
                self.opened += 1
                self.requests.append(request)
                self.most_open = max(self.most_open, sum(other.is_open for other in self._connections))
        return changed

    def _forget(self, conn: Connection) -> None:
        with self._lock:
            self._connections.pop(conn, None)

    def _serve_connection(self, conn: ServerConnection) -> None:
        assert isinstance(conn, Connection) and conn.request is not None
        if conn not in self._connections:
            return  # it came while the server stops; websockets closes it
        try:
            with contextlib.suppress(ConnectionClosed):
                self._choose(conn.request.path)(conn)
                conn.close()
        finally:
            self._forget(conn)

    def _choose(self, path: str) -> Handler:
        if self.handler is not None:
            return self.handler
        return HANDLERS.get(urlsplit(path).path.strip("/").split("/")[0], echo)


# --- a server that does what a script says


@dataclass
class Upgrade:
    """An HTTP request as it arrived."""

    raw: bytes
    method: str
    target: str
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case

    @property
    def accept(self) -> str:
        """The Sec-WebSocket-Accept that answers this request (RFC 6455 §4.2.2)."""
        return accept_for(self.headers.get("sec-websocket-key", ""))


def accept_for(key: str) -> str:
    """The Sec-WebSocket-Accept that answers a key (RFC 6455 §4.2.2)."""
    return base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()


@dataclass
class ClientFrame:
    """A frame as a client sent it, its payload unmasked."""

    fin: int
    rsv: int
    opcode: int
    masked: bool
    payload: bytes


def read_exactly(sock: socket.socket, size: int) -> bytes:
    """Read `size` bytes; EOFError when the peer closes before."""
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            raise EOFError(f"the peer closed after {len(data)} of {size} bytes")
        data += chunk
    return data


def read_request(sock: socket.socket) -> Upgrade:
    """Read an HTTP request head, and not one byte more."""
    raw = b""
    while not raw.endswith(b"\r\n\r\n"):
        raw += read_exactly(sock, 1)
    first, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ", 2)
    pairs = (line.split(":", 1) for line in lines)
    return Upgrade(raw, method, target, {name.lower(): value.strip() for name, value in pairs})


def response(status: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> bytes:
    """An HTTP response: `response("401 Unauthorized", [("X-Why", "token")], b"no")`."""
    lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def upgrade_response(
    request: Upgrade, headers: Iterable[tuple[str, str]] = (), accept: str | None = None
) -> bytes:
    """The 101 answer to `request`, with extra headers or another Sec-WebSocket-Accept."""
    own = [("Upgrade", "websocket"), ("Connection", "Upgrade")]
    own.append(("Sec-WebSocket-Accept", request.accept if accept is None else accept))
    return response("101 Switching Protocols", [*own, *headers])


def upgrade(
    sock: socket.socket, headers: Iterable[tuple[str, str]] = (), accept: str | None = None
) -> Upgrade:
    """Do the server's side of the opening handshake and return the request."""
    request = read_request(sock)
    sock.sendall(upgrade_response(request, headers, accept))
    return request


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: int = 1,
    rsv: int = 0,
    masked: bool = False,
    declared_length: int | None = None,
) -> bytes:
    """A frame, valid or not: reserved bits (0-7), a mask, a length that is a lie (RFC 6455 §5.2)."""
    length = len(payload) if declared_length is None else declared_length
    mask_bit = 0x80 if masked else 0
    head = bytes([fin << 7 | rsv << 4 | opcode])
    if length < 126:
        head += bytes([mask_bit | length])
    elif length < 1 << 16:
        head += struct.pack("!BH", mask_bit | 126, length)
    else:
        head += struct.pack("!BQ", mask_bit | 127, length)
    return head + (_mask(payload) if masked else payload)


def _mask(payload: bytes, key: bytes = b"\x01\x02\x03\x04") -> bytes:
    return key + bytes(byte ^ key[i % 4] for i, byte in enumerate(payload))


def close_frame(code: int = 1000, reason: bytes = b"") -> bytes:
    """A close frame with a code, valid or not."""
    return frame(8, struct.pack("!H", code) + reason)


def read_client_frame(sock: socket.socket) -> ClientFrame:
    """Read one frame from a client; EOFError when it closes instead."""
    first, second = read_exactly(sock, 2)
    length = second & 0x7F
    if length == 126:
        (length,) = struct.unpack("!H", read_exactly(sock, 2))
    elif length == 127:
        (length,) = struct.unpack("!Q", read_exactly(sock, 8))
    masked = bool(second & 0x80)
    key = read_exactly(sock, 4) if masked else b"\0\0\0\0"
    payload = read_exactly(sock, length)
    if masked:
        payload = _mask(payload, key)[4:]
    return ClientFrame(first >> 7, first >> 4 & 7, first & 15, masked, payload)


def hold(sock: socket.socket) -> None:
    """Keep the connection and say nothing, until the peer closes or the server stops."""
    while sock.recv(65536):
        pass


def echo_bytes(sock: socket.socket) -> None:
    """Send back what comes, until the peer closes; no upgrade."""
    while data := sock.recv(65536):
        sock.sendall(data)


def answer_close(sock: socket.socket) -> None:
    """Read frames until the client closes, and answer its close frame in kind."""
    while (received := read_client_frame(sock)).opcode != 8:
        pass
    sock.sendall(frame(8, received.payload))


def reset(sock: socket.socket) -> None:
    """Close with a TCP RST instead of a FIN."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def drip(sock: socket.socket, data: bytes, every: float, size: int = 1) -> None:
    """Send `data` in pieces of `size` bytes, one per `every` seconds, until the peer has had enough."""
    for start in range(0, len(data), size):
        sock.sendall(data[start : start + size])
        sleep(every)


class HandmadeTls:
    """The server's side of TLS over a plain socket, for scripts that choose what ciphertext leaves, when.

    It stands in for a socket where a script reads and sends.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        self.sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._drive(self.session.do_handshake)

    def seal(self, data: bytes = b"") -> bytes:
        """`data` as one TLS record, behind whatever else is to be sent; nothing is sent."""
        if data:
            self.session.write(data)
        return self._outgoing.read()

    def sendall(self, data: bytes) -> None:
        self.sock.sendall(self.seal(data))

    def recv(self, size: int) -> bytes:
        return self._drive(lambda: self.session.read(size))

    def call(self, function: str, *args: int) -> int:
        """Call a function of OpenSSL's that Python does not have; its first argument is the session."""
        found = getattr(ctypes.CDLL(_ssl.__file__), function)
        found.argtypes = [ctypes.c_void_p, *[ctypes.c_int] * len(args)]
        # struct PySSLSocket: the object's head, a weak reference, SSL *
        session: Any = self.session
        at = id(session._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
        return int(found(ctypes.c_void_p.from_address(at).value, *args))

    def ask_for_new_keys(self) -> bytes:
        """A record that asks for the peer's KeyUpdate (TLS 1.3); nothing is sent."""
        self.call("SSL_key_update", 1)
        self.session.do_handshake()
        return self.seal()

    def ask_to_renegotiate(self) -> None:
        """Send a HelloRequest (TLS 1.2)."""
        self.call("SSL_renegotiate")
        self._drive(self.session.do_handshake)

    def renegotiate(self) -> None:
        """Wait for the handshake that was asked for; the peer sends nothing else meanwhile."""

        def read_on() -> None:
            with contextlib.suppress(ssl.SSLWantReadError):
                self.session.read(1)
            if self.call("SSL_renegotiate_pending"):
                raise ssl.SSLWantReadError

        self._drive(read_on)

    def _drive(self, step: Callable[[], Any]) -> Any:
        """Do a step of OpenSSL's, however often it has to read for it."""
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.sock.sendall(self.seal())
                received = self.sock.recv(65536)
                if not received:
                    raise EOFError("the peer closed") from None
                self._incoming.write(received)
            finally:
                self.sock.sendall(self.seal())


Script = Callable[[socket.socket], None]


def answer(status: str, headers: Iterable[tuple[str, str]] = (), body: bytes = b"") -> Script:
    """A script that answers the upgrade with `status`, then closes."""
    listed = list(headers)

    def script(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(response(status, listed, body))

    return script


def after_upgrade(*chunks: bytes, then: Script = hold) -> Script:
    """A script that upgrades, sends `chunks`, then does `then` (holds the connection by default)."""

    def script(sock: socket.socket) -> None:
        upgrade(sock)
        for chunk in chunks:
            sock.sendall(chunk)
        then(sock)

    return script


class RawServer:
    """A TCP server on 127.0.0.1 that runs `script(sock)` for each connection, in a thread of its own.

    The socket is closed when the script returns. That the peer left (OSError, EOFError) ends a script
    quietly; any other error of a script fails the test at the end of the `with` block.

    Args:
        script: What to do with a connection.
        ssl_context: Do the TLS handshake before the script.
        receive_buffer: B that the kernel keeps of what a script does not read, about. A script must not set
            that itself: what comes then may exceed it, the kernel drops that, with what it acknowledges, and
            both sides wait for longer and longer to try again.

    Attributes:
        accepted: Connections accepted, ever.
    """

    def __init__(
        self,
        script: Script,
        *,
        ssl_context: ssl.SSLContext | None = None,
        receive_buffer: int | None = None,
    ) -> None:
        self.script = script
        self.accepted = 0
        self.errors: list[BaseException] = []
        self._ssl_context = ssl_context
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._stopped = False
        self._listener = socket.create_server((LOCALHOST, 0))
        if receive_buffer is not None:  # what is accepted has it from the beginning
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.host = LOCALHOST
        self.port: int = self._listener.getsockname()[1]

    @property
    def uri(self) -> str:
        """`ws://127.0.0.1:port`, or wss:// with TLS."""
        return f"{'ws' if self._ssl_context is None else 'wss'}://{self.host}:{self.port}"

    def uri_for(self, path: str) -> str:
        """The URI of a path on this server."""
        return f"{self.uri}/{path.lstrip('/')}"

    @property
    def open_now(self) -> int:
        """Connections whose script has not returned yet."""
        return len(self._sockets)

    def __enter__(self) -> RawServer:
        self._spawn(self._accept_all)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
        if self.errors and exc_info[0] is None:
            raise AssertionError(f"a server script failed: {self.errors[0]!r}") from self.errors[0]

    def stop(self) -> None:
        """Stop listening, cut every connection and wait for the scripts."""
        with self._lock:
            self._stopped = True
            for sock in self._sockets:
                self._cut(sock)
        with contextlib.suppress(OSError):  # wakes accept(), which sees that it is over
            socket.create_connection((self.host, self.port), 1).close()
        for thread in self._threads:  # the acceptor first: after it, no thread is added
            thread.join(10)
        self._listener.close()

    @staticmethod
    def _cut(sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=f"raw-server-{self.port}")
        self._threads.append(thread)
        thread.start()

    def _accept_all(self) -> None:
        while True:
            sock, _ = self._listener.accept()
            with self._lock:
                if self._stopped:
                    sock.close()
                    return
                self._sockets.add(sock)
                self.accepted += 1
            self._spawn(self._run, sock)

    def _run(self, sock: socket.socket) -> None:
        bare = sock
        try:
            with contextlib.suppress(OSError, EOFError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if self._ssl_context is not None:
                    sock = self._wrap(sock, self._ssl_context)
                self.script(sock)
        except BaseException as error:  # shown to the test, by __exit__
            self.errors.append(error)
        finally:
            sock.close()
            with self._lock:
                self._sockets -= {bare, sock}

    def _wrap(self, bare: socket.socket, context: ssl.SSLContext) -> socket.socket:
        """Swap the bare socket for its TLS one under the lock, so that `stop` can always cut it."""
        with self._lock:
            wrapped = context.wrap_socket(bare, server_side=True, do_handshake_on_connect=False)
            self._sockets = self._sockets - {bare} | {wrapped}
        try:
            wrapped.do_handshake()
        except BaseException:
            wrapped.close()
            with self._lock:
                self._sockets.discard(wrapped)
            raise
        return wrapped
