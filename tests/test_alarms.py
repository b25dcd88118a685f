"""What a signal handler raises is told from what a call raises, wherever that could be caught (DESIGN §4.5).

The storm that strikes at random is in tests/faults/test_alarms.py; here alarms come at chosen moments.
"""

from __future__ import annotations

import ast
import builtins
import contextlib
import ctypes
import functools
import gc
import ipaddress
import itertools
import json
import os
import select
import signal
import socket
import ssl
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import jetsocket
from jetsocket import ConnectionPool
from jetsocket.interrupts import frames_from, is_alarm, raise_alarm_behind, suppress
from jetsocket.messages import Codec
from jetsocket.uris import parse
from jetsocket.wire.headers import Headers
from jetsocket.wire.proxy_environment import is_exempt, proxy_for
from tests.books import state_of
from tests.conftest import Tls
from tests.servers import EchoServer, RawServer, after_upgrade, hold, refusing_port, wait_until
from tests.sizes import pairs

PACKAGE = Path(jetsocket.__file__).parent


class Late(builtins.TimeoutError):
    """What a handler of the usual recipe raises."""


class Alarm(Exception):
    """None of the system's errors."""


class OfOurs(jetsocket.TimeoutError):
    """One that looks like the library's own."""

    def __init__(self, message: str) -> None:
        super().__init__(message, operation="mine", timeout=None)


class Ended(jetsocket.ConnectionClosedError):
    """Likewise."""


KINDS: list[Callable[[str], Exception]] = [
    builtins.TimeoutError,
    Late,
    OfOurs,
    Ended,
    OSError,
    ConnectionResetError,
    BlockingIOError,
    InterruptedError,
    Exception,
    ValueError,
    RuntimeError,
]


def raising(make: Callable[[str], BaseException]) -> Callable[[int, FrameType | None], None]:
    def handler(number: int, frame: FrameType | None) -> None:
        raise make("an alarm")

    return handler


@contextlib.contextmanager
def handled_by(handler: Any) -> Iterator[None]:
    """SIGUSR1 goes to that handler."""
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def strike() -> None:
    signal.raise_signal(signal.SIGUSR1)


# --- each clause asks


ASKING = {"is_alarm", "raise_alarm_behind", "self._fail of messages.py", "fail of messages.py"}
SWALLOW_NOTHING = {  # no handler raises these
    "ImportError",
    "PackageNotFoundError",
    "_Fault",
    "Forked",
    "StillOpenError",
    "Away",
    "NoScriptError",
}
# Where no signal handler ever runs: threads of the library's own, and finalizers, whose errors go nowhere.
IN_OTHER_THREADS = {
    "callback_lease.py: is_healthy",
    "on_push.py: _handle",
    *(f"opening.py: {name}" for name in ("start_threads", "_run", "_serve", "_park")),
    "threads.py: start",
    *(f"session.py: {name}" for name in ("_run", "_read_inbox", "_connect")),
    *(f"workers.py: {name}" for name in ("run", "submit", "_park")),
}
NOT_IN_USE = {"__main__.py", "housekeeper.py"}
APART = {"cli", "testing"}  # a program of its own, and what tests need: no part of a pool in use


def clauses(path: Path) -> Iterator[tuple[str, ast.ExceptHandler]]:
    """Each `except` clause of a module, and the function that it is in."""

    def walk(node: ast.AST, function: str) -> Iterator[tuple[str, ast.ExceptHandler]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ExceptHandler):
                yield function, child
            inner = child.name if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) else function
            yield from walk(child, inner)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), "")


def asks(clause: ast.ExceptHandler, module: str) -> bool:
    """Whether a clause asks for alarms, lets everything pass, or takes only what no handler raises."""
    called = {ast.unparse(node.func) for node in ast.walk(clause) if isinstance(node, ast.Call)}
    kinds = clause.type.elts if isinstance(clause.type, ast.Tuple) else [clause.type]
    names = {"" if kind is None else ast.unparse(kind) for kind in kinds}
    last = clause.body[-1]
    passes = isinstance(last, ast.Raise) and last.exc is None
    called |= {f"{name} of {module}" for name in called}
    return bool(called & ASKING) or passes or names <= SWALLOW_NOTHING


def test_every_except_clause_lets_alarms_pass() -> None:
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.name in NOT_IN_USE or path.parent.name in APART:
            continue
        for function, clause in clauses(path):
            found += 1
            told = f"{path.name}:{clause.lineno}: an except clause in {function}() that swallows alarms"
            assert asks(clause, path.name) or f"{path.name}: {function}" in IN_OTHER_THREADS, told
        source = path.read_text(encoding="utf-8")
        assert "with contextlib.suppress" not in source, f"{path.name} swallows alarms"
    assert found > 50


@pytest.mark.slow
def test_patterns_are_compiled_at_import_where_no_alarm_can_come() -> None:
    """To `re`, an IndexError out of an iteration is its end: half a pattern would be compiled, and kept."""
    for path in sorted(PACKAGE.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(source)):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if path.parent.name not in APART and name.startswith("re."):
                assert name in ("re.compile", "re.escape"), f"{path.name}: {name} compiles at its first call"


# --- telling one from the other


def caught(call: Callable[[], object]) -> tuple[BaseException, bool]:
    try:
        call()
    except BaseException as error:
        return error, is_alarm(error)
    raise AssertionError("nothing was raised")


def test_what_a_system_call_raises_is_none() -> None:
    with socket.socket() as sock, refusing_port() as port:
        sock.setblocking(False)
        for call in (
            functools.partial(sock.recv, 1),
            functools.partial(sock.connect, ("127.0.0.1", port)),
            functools.partial(socket.inet_pton, socket.AF_INET, "name"),
            functools.partial(socket.getaddrinfo, "name.invalid", 1, flags=socket.AI_NUMERICHOST),
            functools.partial(
                ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO()).read, 1
            ),
            functools.partial(ipaddress.ip_address, "name"),
            functools.partial(json.loads, "{"),
            functools.partial(int, "x"),
        ):
            assert caught(call)[1] is False, call
        # With frames of Python's below ours.
        assert caught(functools.partial(socket.create_connection, ("127.0.0.1", port), 5))[1] is False


@pytest.mark.parametrize("make", KINDS)
def test_what_a_handler_raises_is_one_whatever_its_class(make: Callable[[str], BaseException]) -> None:
    with handled_by(raising(make)):
        assert caught(strike)[1]


def in_a_call_that_waits() -> None:
    """Wait in a system call, and be interrupted there."""
    read, write = os.pipe()
    main = threading.main_thread().ident
    assert main is not None
    timer = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
    timer.start()
    try:
        select.select([read], [], [], 10)
    finally:
        timer.join()
        os.close(read)
        os.close(write)


class Callable_:
    def __call__(self, number: int, frame: FrameType | None) -> None:
        raise Late

    def method(self, number: int, frame: FrameType | None) -> None:
        raise Late


def taking_anything(*args: object) -> None:
    raise Late


def by_name(extra: object, *, number: int = 0) -> Callable[..., None]:
    @functools.wraps(taking_anything)
    def wrapped(*args: object, **kwargs: object) -> None:
        taking_anything()

    return wrapped


def throwing_the_frame_away(number: int, frame: FrameType | None) -> None:
    frame = None
    raise Late(frame)


def uninstalling_itself(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    raise Late


def raising_deeper(number: int, frame: FrameType | None) -> None:
    socket.inet_pton(socket.AF_INET, "no address")  # the same error as is_ip would expect


@pytest.mark.parametrize(
    "handler",
    [
        Callable_(),
        Callable_().method,
        taking_anything,
        by_name(1),
        functools.partial(functools.partial(lambda extra, *args: taking_anything(), 1)),
        throwing_the_frame_away,
        uninstalling_itself,
        raising_deeper,
        lambda number, frame: int("x"),
        lambda number, frame: next(iter(()), None) or (_ for _ in ()).throw(Late()),
    ],
)
@pytest.mark.parametrize("call", [strike, in_a_call_that_waits])
def test_handlers_of_every_make_are_known(handler: Any, call: Callable[[], None]) -> None:
    with handled_by(handler):
        assert caught(call)[1]


def test_a_function_that_was_called_is_no_handler() -> None:
    def of_the_user(text: str, *, strict: bool = True) -> None:
        raise builtins.TimeoutError("its own")

    with handled_by(raising(Late)):
        error, alarm = caught(functools.partial(of_the_user, "x"))
    assert not alarm
    assert not is_alarm(error, users_code=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # those in finalizers
@pytest.mark.parametrize("kind", [builtins.TimeoutError, Late, OSError, ConnectionResetError, Alarm])
def test_what_another_thread_raises_in_this_one_surfaces_too(
    echo: EchoServer, kind: type[BaseException]
) -> None:
    """It has no frame of its own, but comes without arguments, or of a class that no call of ours raises."""
    surfaced: list[BaseException] = []

    def victim() -> None:
        try:
            began.set()
            while True:
                pool.request("/", {"id": next(numbers)}, timeout=10, idempotent=True)
        except BaseException as error:
            surfaced.append(error)

    numbers, rounds, began = itertools.count(), 20, threading.Event()
    with ConnectionPool[Any](base_uri=echo.uri, manager_kwargs={"connect_attempts": 3}) as pool:
        if sys.version_info < (3, 12):
            # Until a new thread runs, CPython takes it for the one that starts it, and what is raised in that
            # one ends the new one: it would not surface. So the housekeeper is started before.
            pool.request("/", {"id": next(numbers)}, timeout=10)
        for _ in range(rounds):
            began.clear()
            thread = threading.Thread(target=victim)
            thread.start()
            began.wait()
            while thread.is_alive():  # one that strikes in a finalizer goes no further
                set_exception(thread, kind)
                thread.join(1)
    assert [type(error) for error in surfaced] == [kind] * rounds


def set_exception(thread: threading.Thread, kind: type[BaseException]) -> None:
    assert thread.ident is not None
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(kind))


def test_suppress_lets_alarms_pass_and_nothing_else() -> None:
    with suppress(OSError):
        raise OSError(1, "of the block")
    with pytest.raises(KeyError), suppress(OSError):
        raise KeyError("of another kind")
    with handled_by(raising(OSError)), pytest.raises(OSError, match="an alarm"), suppress(OSError):
        strike()


def test_an_alarm_behind_the_error_of_a_library_is_raised_itself() -> None:
    def library() -> None:
        try:
            strike()
        except ValueError as error:
            raise ipaddress.AddressValueError("no address") from error

    with handled_by(raising(ValueError)), pytest.raises(ValueError, match="an alarm") as found:
        try:
            library()
        except ValueError as error:
            raise_alarm_behind(error)
            raise
    assert type(found.value) is ValueError
    assert not isinstance(found.value.__context__, ipaddress.AddressValueError)


class Striking(str):
    """A name that an alarm strikes while it is looked up."""

    def lower(self) -> str:
        strike()
        return super().lower()


def test_a_key_error_of_a_handler_is_not_taken_for_a_missing_header() -> None:
    with handled_by(raising(KeyError)), pytest.raises(KeyError, match="an alarm"):
        Headers([("a", "1")]).get(Striking("A"))


def test_a_key_error_of_a_handler_is_not_taken_for_a_missing_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encode = os.environ.encodekey  # type: ignore[attr-defined]  # typeshed does not know it

    def struck(name: str) -> bytes:
        strike()
        return bytes(encode(name))

    monkeypatch.setenv("https_proxy", "p:1")  # or one look at all of them is all there is
    target = parse("ws://svc.test/")
    for look in (lambda: is_exempt(target), lambda: proxy_for(target, True)):
        with handled_by(raising(KeyError)), monkeypatch.context() as patched:
            patched.setattr(os.environ, "encodekey", struck)
            with pytest.raises(KeyError, match="an alarm"):
                look()


def test_an_alarm_that_was_handled_above_is_not_raised_again() -> None:
    def work() -> str:
        try:
            int("x")
        except ValueError as error:
            raise_alarm_behind(error)  # in whose chain it is
            return "an error of its own"
        return ""

    with handled_by(raising(Late)):
        try:
            strike()
        except Late:
            assert work() == "an error of its own"


# --- in the pool, at chosen moments


@pytest.fixture
def alarm() -> Iterator[Callable[..., None]]:
    """Have SIGUSR1 raise that; sent as soon as the main thread waits in a function of that name."""
    senders: list[threading.Thread] = []
    over = threading.Event()

    def send(within: str) -> None:
        last, still = None, 0
        while still < 4 and not over.wait(0.005):
            stack = list(frames_from(sys._current_frames().get(threading.main_thread().ident or 0)))
            now = (id(stack[0]), stack[0].f_lasti)
            names = {frame.f_code.co_name for frame in stack}
            still = still + 1 if now == last and within in names else 0
            last = now
            del stack
        if still:
            os.kill(os.getpid(), signal.SIGUSR1)

    def arm(make: Callable[[str], BaseException], within: str) -> None:
        signal.signal(signal.SIGUSR1, raising(make))
        senders.append(threading.Thread(target=send, args=(within,)))
        senders[-1].start()

    before = signal.getsignal(signal.SIGUSR1)
    yield arm
    over.set()
    for sender in senders:
        sender.join()
    signal.signal(signal.SIGUSR1, before)


def surfaces(call: Callable[[], object], make: Callable[[str], BaseException]) -> None:
    """The alarm comes out of the call as it was raised, and is nobody's cause."""
    with pytest.raises(BaseException, match="an alarm") as found:
        call()
    error = found.value
    assert type(error) is make, repr(error)
    assert error.__cause__ is None


@pytest.mark.parametrize("make", KINDS)
def test_an_alarm_in_a_connect_is_neither_retried_nor_counted(
    alarm: Callable[..., None], make: Callable[[str], BaseException]
) -> None:
    opened: list[socket.socket] = []

    def mute(sock: socket.socket) -> None:
        opened.append(sock)
        hold(sock)

    with (
        RawServer(mute) as server,
        ConnectionPool[Any](
            base_uri=server.uri, manager_kwargs={"connect_attempts": 3, "close_timeout": 0.1}
        ) as pool,
    ):
        alarm(make, "wait")
        surfaces(lambda: pool.acquire("/"), make)
        assert len(opened) <= 1  # by the thread that dials, which no alarm reaches
        assert pool.stats().connect_errors == 0
        wait_until(lambda: not state_of(pool).lent)


@pytest.mark.slow
@pytest.mark.parametrize("make", KINDS)
def test_an_alarm_in_a_request_is_not_sent_again(
    alarm: Callable[..., None], make: Callable[[str], BaseException]
) -> None:
    with (
        RawServer(after_upgrade()) as server,
        ConnectionPool[Any](base_uri=server.uri, manager_kwargs={"close_timeout": 0.1}) as pool,
    ):
        alarm(make, "wait_readable")
        surfaces(lambda: pool.request("/", {"id": 1}, timeout=10, idempotent=True), make)
        stats = pool.stats()
        assert (stats.total_connections, stats.active_connections, stats.idle_connections) == (1, 0, 0)


@pytest.mark.deep
@pytest.mark.parametrize(("make", "secure"), pairs(KINDS, [False, True]))
def test_an_alarm_in_recv_leaves_the_lease_as_it_was(
    alarm: Callable[..., None], make: Callable[[str], BaseException], secure: bool, tls: Tls
) -> None:
    options = {"ssl_context": tls.client_context}
    with (
        EchoServer(ssl_context=tls.server_context if secure else None) as server,
        ConnectionPool[Any](base_uri=server.uri, manager_kwargs=options) as pool,
        pool.acquire("/") as conn,
    ):
        alarm(make, "wait_readable")
        surfaces(lambda: conn.recv(timeout=10), make)
        assert conn.request(1, timeout=5) == 1


CALLBACKS = ["configure", "reset", "deserializer", "serializer", "extra_headers"]


@pytest.mark.deep
@pytest.mark.parametrize(("make", "callback"), pairs(KINDS, CALLBACKS))
def test_an_alarm_in_a_function_of_the_users_surfaces(
    make: Callable[[str], BaseException], callback: str, echo: EchoServer
) -> None:
    armed = [False]

    def function(*args: Any) -> Any:
        if armed[0]:
            strike()
        return {"configure": None, "reset": None, "extra_headers": {}}.get(callback, "1")

    given: dict[str, Any] = {callback: function}
    if callback not in ("configure", "reset"):
        given = {"manager_kwargs": {callback: function, "connect_attempts": 3}}
    with handled_by(raising(make)), ConnectionPool[Any](base_uri=echo.uri, **given) as pool:
        armed[0] = True
        surfaces(lambda: pool.request("/", [1], timeout=5), make)
        assert pool.stats().connect_errors == 0
        armed[0] = False
        wait_until(lambda: not state_of(pool).lent)
        assert pool.request("/", [1], timeout=5) is not None


def validated() -> list[tuple[str, Any]]:
    """Message types whose own code runs at each message."""
    types: list[tuple[str, Any]] = []
    with contextlib.suppress(ImportError):
        import pydantic

        class Model(pydantic.BaseModel):
            number: int

            @pydantic.field_validator("number")
            @classmethod
            def check(cls, number: int) -> int:
                strike()
                return number

        types.append(("pydantic", Model))
    with contextlib.suppress(ImportError):
        import msgspec

        class Struct(msgspec.Struct):
            number: int

            def __post_init__(self) -> None:
                strike()

        types.append(("msgspec", Struct))
    return types


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in validated()])
def test_an_alarm_in_a_message_type_surfaces(make: Callable[[str], BaseException], kind: Any) -> None:
    """Both libraries take a ValueError out of the type's own code for its refusal of the message."""
    codec = Codec.for_options(None, None, kind)
    with handled_by(raising(make)):
        surfaces(lambda: codec.decode('{"number": 1}'), make)


class Marker:
    """What a frame holds: a lease, say."""


@pytest.mark.parametrize("make", [Late, ValueError])
@pytest.mark.parametrize("kind", [pytest.param(kind, id=name) for name, kind in [("", None), *validated()]])
def test_an_alarm_in_the_codec_keeps_nothing_alive(make: Callable[[str], Exception], kind: Any) -> None:
    codec = Codec.for_options(None, None if kind else lambda payload: strike(), kind)

    def work() -> weakref.ref[Marker]:
        marker = Marker()
        ref = weakref.ref(marker)
        try:
            codec.decode('{"number": 1}')
        except make:
            return ref
        raise AssertionError("the alarm vanished")

    gc.disable()  # the frames of a traceback that refers to itself would wait for it
    try:
        with handled_by(raising(make)):
            assert work()() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("make", KINDS)
def test_what_a_function_of_the_users_raises_itself_is_told_as_ever(
    make: Callable[[str], BaseException], echo: EchoServer
) -> None:
    def fail(conn: Any) -> None:
        raise make("its own")

    with (
        handled_by(raising(Late)),
        ConnectionPool[Any](base_uri=echo.uri, configure=fail) as pool,
        pytest.raises(jetsocket.ConnectionError, match=r"configure\(\) failed"),
    ):
        pool.acquire("/")
