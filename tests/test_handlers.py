"""Signal handlers that use the very lease which the interrupted code is using: an error at once, or success.

A handler of SIGALRM runs in the middle of what the main thread does. What it needs may be held by the code
that it has interrupted, which goes on only when the handler is over: to wait for it is to wait for ever.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionClosedError, ConnectionPool, InvalidStateError, TimeoutError
from jetsocket.connection import PooledConnection
from jetsocket.wire.websocket import WebSocket
from tests.conftest import Tls
from tests.servers import RawServer, after_upgrade, frame, read_client_frame, wait_until
from tests.sizes import pairs

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="no signals for one thread here")

Lease = PooledConnection[Any]
Use = Callable[[Lease], Any]
RawFactory = Callable[..., RawServer]
SOON = 2.0  # s; far from the 20 s that the interrupted operations may take

RECEIVING: dict[str, Use] = {
    "recv": lambda conn: conn.recv(),
    "recv_in_time": lambda conn: conn.recv(timeout=10),
    "recv_raw": lambda conn: conn.recv_raw(),
    "iterate": lambda conn: next(iter(conn)),
    "next": lambda conn: next(conn),
}
ASKING: dict[str, Use] = {
    "request": lambda conn: conn.request("question"),
    "request_with_an_id": lambda conn: conn.request({"id": 1}),
    "request_in_time": lambda conn: conn.request({"id": 1}, timeout=10),
    "ping": lambda conn: conn.ping(),
    "ping_in_time": lambda conn: conn.ping(timeout=10),
}
SENDING: dict[str, Use] = {
    "send": lambda conn: conn.send("from the handler"),
    "send_with_an_id": lambda conn: conn.send({"id": 1}),
    "send_raw": lambda conn: conn.send_raw(b"from the handler"),
}


SCHEMES = ["ws", "wss"]


def each(*kinds: dict[str, Use]) -> Any:
    uses = {name: use for kind in kinds for name, use in kind.items()}
    return pytest.mark.parametrize("use", list(uses.values()), ids=list(uses))


def each_over(*kinds: dict[str, Use]) -> Callable[[Any], Any]:
    """Each of these uses, over ws or wss; over both in the long form."""
    uses = [(name, use) for kind in kinds for name, use in kind.items()]
    given = [pytest.param(use, way, id=f"{name}-{way}") for (name, use), way in pairs(uses, SCHEMES)]
    parametrize = pytest.mark.parametrize(("use", "lend"), given, indirect=["lend"])
    return lambda test: pytest.mark.deep(parametrize(test))


class Handler:
    """Handles SIGALRM by one use of the library, in the main thread, once `ready` is true of what it does.

    Attributes:
        outcome: What came of that use: what it returned or raised.
        took: How long it took (s); None: it did not run.
    """

    def __init__(self, use: Callable[[], Any], ready: Callable[[], Any]) -> None:
        self._use, self._ready = use, ready
        self._began: float | None = None
        self.outcome: Any = None
        self.took: float | None = None

    def __enter__(self) -> Handler:
        self._before = signal.signal(signal.SIGALRM, self.handle)
        self._alarm = threading.Thread(target=self._strike, args=(threading.get_ident(),), daemon=True)
        self._alarm.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._alarm.join(10)
        signal.signal(signal.SIGALRM, self._before)

    def _strike(self, main: int) -> None:
        wait_until(self._ready, 10)
        while self._began is None:  # one that comes just before a system call is heard of only after it
            signal.pthread_kill(main, signal.SIGALRM)
            time.sleep(0.01)

    def handle(self, *_: object) -> None:
        """Handle the signal."""
        if self._began is not None:
            # A second one; or the watchdog of the tests, which uses this signal, too.
            assert monotonic() < self._began + 30, "this hangs"
            return
        self._began = monotonic()
        try:
            self.outcome = self._use()
        except Exception as error:
            self.outcome = error
        self.took = monotonic() - self._began

    @property
    def is_refused(self) -> bool:
        """Whether it was told at once that this can't be done here."""
        error = self.outcome
        refused = isinstance(error, InvalidStateError) and error.current_state == "busy"
        return refused and self.took is not None and self.took < SOON


@pytest.fixture(params=SCHEMES)
def lend(request: pytest.FixtureRequest, raw_server: RawFactory, tls: Tls, make_pool: Any) -> Iterator[Any]:
    """A factory of leases of a server that runs this script behind the upgrade: `lend(script)`."""
    with contextlib.ExitStack() as stack:

        def lend(script: Callable[[socket.socket], None]) -> Lease:
            context = tls.server_context if request.param == "wss" else None
            server = raw_server(after_upgrade(then=script), ssl_context=context)
            pool: ConnectionPool[Any] = make_pool(
                server, manager_kwargs={"ssl_context": tls.client_context, "close_timeout": 1.0}
            )
            conn = stack.enter_context(pool.acquire("/"))
            stack.callback(wire(conn).cut, "the test is over")  # most of these servers answer no close frame
            return conn

        yield lend


def wire(conn: Lease) -> Any:
    assert conn._entry is not None
    return conn._entry.wire


def is_receiving(conn: Lease) -> Callable[[], Any]:
    return lambda: wire(conn).readlock.locked() and wire(conn).waits_since is not None


def is_stuck_in_send(conn: Lease) -> Callable[[], Any]:
    return lambda: wire(conn).lock.locked() and wire(conn)._stream.unsent


class Server:
    """Answers when it is told to, and reads only then."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def answer(self, sock: socket.socket) -> None:
        """Send one message when told to, then hold."""
        assert self.go.wait(20)
        sock.sendall(frame(1, b'"from the server"'))
        while sock.recv(65536):
            pass

    def greet_and_read_late(self, sock: socket.socket) -> None:
        """Send one message, and read nothing before it is told to."""
        sock.sendall(frame(1, b'"from the server"'))
        assert self.go.wait(20)
        while sock.recv(1 << 20):
            pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.go.set()


HUGE = "x" * (16 << 20)  # more than any kernel takes


# --- what would wait for the interrupted code is refused


@each_over(RECEIVING, ASKING)
def test_within_recv(lend: Any, server: Server, use: Use) -> None:
    conn = lend(server.answer)

    def handle() -> None:
        try:
            use(conn)
        finally:
            server.go.set()

    with Handler(handle, is_receiving(conn)) as handler:
        assert conn.recv(timeout=20) == "from the server"
    assert handler.is_refused, handler.outcome
    assert wire(conn).messages_sent == 0, "a refused request has not left"


@pytest.mark.slow
@each_over(SENDING, ASKING)
def test_within_a_send_that_is_stuck(lend: Any, server: Server, use: Use) -> None:
    conn = lend(server.greet_and_read_late)

    def handle() -> None:
        try:
            use(conn)
        finally:
            server.go.set()

    with Handler(handle, is_stuck_in_send(conn)) as handler:
        conn.send(HUGE)
    assert handler.is_refused, handler.outcome
    assert wire(conn).messages_sent == 1
    assert conn.recv(timeout=5) == "from the server"


@each_over(RECEIVING, ASKING)
def test_within_a_ping(lend: Any, server: Server, use: Use) -> None:
    def pong_when_told(sock: socket.socket) -> None:
        ping = read_client_frame(sock)
        assert server.go.wait(20)
        sock.sendall(frame(10, ping.payload))
        while sock.recv(65536):
            pass

    conn = lend(pong_when_told)

    def handle() -> None:
        try:
            use(conn)
        finally:
            server.go.set()

    with Handler(handle, is_receiving(conn)) as handler:
        assert conn.ping(timeout=20) < 20
    assert handler.is_refused, handler.outcome


def test_the_error_says_what_to_do(lend: Any, server: Server) -> None:
    conn = lend(server.answer)

    def handle() -> None:
        try:
            conn.recv()
        finally:
            server.go.set()

    with Handler(handle, is_receiving(conn)) as handler:
        conn.recv(timeout=20)
    assert "signal handler" in str(handler.outcome)
    assert "use another connection" in str(handler.outcome)


def test_a_refusal_that_leaves_the_handler_surfaces_as_itself(lend: Any, server: Server) -> None:
    class Raising(Handler):
        def handle(self, *_: object) -> None:
            super().handle()
            error, self.outcome = self.outcome, None
            if error is not None:
                raise error

    conn = lend(server.answer)
    with Raising(conn.recv, is_receiving(conn)), pytest.raises(InvalidStateError, match="signal handler"):
        conn.recv(timeout=20)
    server.go.set()
    assert conn.recv(timeout=5) == "from the server"


# --- what does not, succeeds


@each_over(SENDING)
def test_a_send_within_recv(lend: Any, use: Use) -> None:
    def answer_one(sock: socket.socket) -> None:
        read_client_frame(sock)
        sock.sendall(frame(1, b'"from the server"'))
        while sock.recv(65536):
            pass

    conn = lend(answer_one)
    with Handler(lambda: use(conn), is_receiving(conn)) as handler:
        assert conn.recv(timeout=20) == "from the server"
    assert handler.outcome is None


@pytest.mark.slow
@each_over(RECEIVING)
def test_a_receive_within_a_send_that_is_stuck(lend: Any, server: Server, use: Use) -> None:
    conn = lend(server.greet_and_read_late)
    messages = []

    def handle() -> None:
        try:
            messages.append(use(conn))
        finally:
            server.go.set()

    with Handler(handle, is_stuck_in_send(conn)) as handler:
        conn.send(HUGE)
    assert handler.outcome is None
    assert str(messages[0]).strip('"') == "from the server"


@pytest.mark.slow
def test_a_lock_that_another_thread_holds_is_waited_for(lend: Any, server: Server) -> None:
    """The main thread sends, another one receives: the handler's receive is no wait for itself."""
    conn = lend(server.greet_and_read_late)
    assert conn.recv(timeout=5) == "from the server"
    done = threading.Event()

    def read() -> None:
        with contextlib.suppress(TimeoutError):
            conn.recv(timeout=0.5)
        done.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    wait_until(wire(conn).readlock.locked)

    def handle() -> None:
        try:
            conn.recv(timeout=1.0)
        finally:
            server.go.set()

    with Handler(handle, is_stuck_in_send(conn)) as handler:
        conn.send(HUGE)
    reader.join(10)
    assert isinstance(handler.outcome, TimeoutError)
    assert done.is_set()


# --- close


@pytest.mark.parametrize("operation", ["recv", "ping", "request"])
def test_close_within_a_receive(lend: Any, server: Server, operation: str) -> None:
    conn = lend(server.greet_and_read_late)
    assert conn.recv(timeout=5) == "from the server"
    pool, link = conn._pool, wire(conn)
    uses: dict[str, Use] = {
        "recv": lambda conn: conn.recv(timeout=20),
        "ping": lambda conn: conn.ping(timeout=20),
        "request": lambda conn: conn.request("question", timeout=20),
    }
    waited = link.waits_since
    with (
        Handler(pool.close, lambda: link.readlock.locked() and link.waits_since != waited) as handler,
        pytest.raises(ConnectionClosedError),
    ):
        uses[operation](conn)
    assert handler.outcome is None
    assert handler.took is not None
    assert handler.took < SOON
    assert link.is_over


def test_close_within_a_send_that_is_stuck(lend: Any, server: Server) -> None:
    conn = lend(server.greet_and_read_late)
    pool = conn._pool
    with Handler(pool.close, is_stuck_in_send(conn)) as handler, pytest.raises(ConnectionClosedError):
        conn.send(HUGE)
    assert handler.outcome is None
    assert handler.took is not None
    assert handler.took < SOON


def test_the_wire_alone_closes_within_its_own_recv(raw_server: RawFactory, server: Server) -> None:
    """Its close() waits for the server's close frame, which only the interrupted code may read."""
    ws = WebSocket()
    ws.connect(raw_server(after_upgrade(then=server.answer)).uri, timeout=5)
    try:
        with (
            Handler(lambda: ws.close(timeout=10), lambda: ws.readlock.locked() and ws.waits_since) as handler,
            pytest.raises(ConnectionClosedError),
        ):
            ws.recv_message(monotonic() + 20)
        assert handler.outcome is None
        assert handler.took is not None
        assert handler.took < SOON
    finally:
        ws.shutdown()


# --- within a TLS session


class Struck:
    """A TLS session within whose calls a signal comes."""

    def __init__(self, session: Any, call: str) -> None:
        self._session, self._call = session, call

    def __getattr__(self, name: str) -> Any:
        if name == self._call:
            self._call = ""
            signal.raise_signal(signal.SIGALRM)
        return getattr(self._session, name)


@pytest.fixture
def lent_over_tls(raw_server: RawFactory, tls: Tls, make_pool: Any) -> Iterator[Lease]:
    """A lease of an echo server, with 0 on its way back."""

    def echo_all(sock: socket.socket) -> None:
        while (sent := read_client_frame(sock)).opcode == 1:
            sock.sendall(frame(1, sent.payload))

    server = raw_server(after_upgrade(then=echo_all), ssl_context=tls.server_context)
    with make_pool(server, manager_kwargs={"ssl_context": tls.client_context}).acquire("/") as conn:
        conn.send(0)
        wait_until(wire(conn)._stream.readable_now)
        yield conn


@contextlib.contextmanager
def struck_within(conn: Lease, call: str, use: Use) -> Iterator[Handler]:
    """`use` runs in a handler within that call of the connection's TLS session."""
    session = wire(conn)._stream._tls
    handler = Handler(lambda: use(conn), lambda: False)
    before = signal.signal(signal.SIGALRM, handler.handle)
    session._session = Struck(session._session, call)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGALRM, before)


@each(SENDING)
def test_a_send_while_a_tls_record_is_read(lent_over_tls: Lease, use: Use) -> None:
    conn = lent_over_tls
    with struck_within(conn, "read", use) as handler:
        assert conn.recv(timeout=5) == 0
    assert handler.is_refused, handler.outcome
    assert conn.request(1, timeout=5) == 1


@each(RECEIVING)
def test_a_receive_while_a_tls_record_is_written(lent_over_tls: Lease, use: Use) -> None:
    conn = lent_over_tls
    with struck_within(conn, "write", use) as handler:
        conn.send(1)
    assert handler.is_refused, handler.outcome
    assert [conn.recv(timeout=5), conn.recv(timeout=5)] == [0, 1]
