"""Fixtures for all tests: servers, certificates, the fault proxy, and a look for leaked threads."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import gc
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import HealthCheck, settings

from tests.books import faults
from tests.faults.proxy import FaultProxy
from tests.servers import LOCALHOST, EchoServer, RawServer, Script, SerialSSLSocket, wait_until
from tests.sizes import size

# How long an example takes is up to whatever else this machine does.
settings.register_profile(
    "jetsocket",
    deadline=None,
    max_examples=size(25, 200),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("jetsocket")

# A shell script's background ignores Ctrl-C, and so would all that the tests send SIGINT to.
signal.signal(signal.SIGINT, signal.default_int_handler)


STUCK = 30.0  # s after a test's timeout, or after the last test: what still runs says where, and dies
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_stderr] = os.dup(2)  # the real one: later pytest puts a file in its place
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        faulthandler.register(signal.SIGTERM, file=config.stash[_stderr], chain=True)  # what it waited for


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End the process if the exception of a timeout was lost: where a finalizer runs, it is only printed."""
    marker = item.get_closest_marker("timeout")
    seconds = float(marker.args[0] if marker else item.config.getini("timeout"))
    _watch(item.config, time.monotonic() + seconds + STUCK)
    return (yield)


_watched = pytest.StashKey[float]()
SLACK = 10.0  # s: each setting of the dump's clock starts a thread, so it is set for some tests at once


def _watch(config: pytest.Config, until: float) -> None:
    if not until <= config.stash.get(_watched, 0.0) <= until + SLACK:
        config.stash[_watched] = until + SLACK
        seconds = until + SLACK - time.monotonic()
        faulthandler.dump_traceback_later(seconds, exit=True, file=config.stash[_stderr])


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process if the interpreter's end hangs."""
    faulthandler.dump_traceback_later(STUCK, exit=True, file=config.stash[_stderr])


def _are_compiled() -> bool:
    """Whether the last of the tests has been collected here before, by this Python."""
    last = Path(__file__).parent / "wire" / "__pycache__"
    return any(last.glob(f"test_websocket.{sys.implementation.cache_tag}-pytest-*.pyc"))


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Iterator[None]:
    """Where nothing is compiled yet, one worker does it, and the others wait for that."""
    if not hasattr(session.config, "workerinput") or sys.dont_write_bytecode or _are_compiled():
        return (yield)
    with Path(__file__).open(encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _are_compiled():
            return (yield)
    return (yield)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not even read what `-m` leaves out as a whole: each worker would."""
    is_left_out = "not integration" in config.option.markexpr
    return True if is_left_out and collection_path == Path(__file__).parent / "integration" else None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what makes examples of its own as deep; the first case of a slow test stays in the short form."""
    seen = set()
    for item in items:
        if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
            item.add_marker("deep")
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
            name = item.nodeid.partition("[")[0]
            if name not in seen:
                item.own_markers = [marker for marker in item.own_markers if marker.name != "slow"]
            seen.add(name)


def pytest_collection_finish() -> None:
    """Spare the garbage collector what pytest keeps for thousands of tests: many of them call it."""
    gc.collect()
    gc.freeze()


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """Name what has an address for a name by what it is: tests that run side by side must agree on names."""
    if " at 0x" not in repr(val):
        return None
    return str(getattr(val, "__qualname__", type(val).__qualname__))


class Tls:
    """A certificate authority made for this run, and contexts that trust it and nothing else."""

    def __init__(self) -> None:
        self.ca = trustme.CA()
        self.server_context = self.issue(LOCALHOST, "::1", "localhost")
        self.client_context = self.trusting()
        # For clients of `websockets`: they read and send at once, which the stock SSLSocket does not survive.
        self.serial_client_context = self.trusting()
        self.serial_client_context.sslsocket_class = SerialSSLSocket

    def trusting(self) -> ssl.SSLContext:
        """A context for clients that trusts this authority."""
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context

    def issue(self, *names: str) -> ssl.SSLContext:
        """A server context with a certificate for these host names or addresses."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*names).configure_cert(context)
        return context


@pytest.fixture
def no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No proxy of this machine's environment, for tests that set their own."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "request_method"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture(scope="session")
def tls() -> Tls:
    """Contexts for both sides of TLS on 127.0.0.1: `.server_context`, `.client_context`, `.issue(name)`."""
    return Tls()


@pytest.fixture
def echo() -> Iterator[EchoServer]:
    """A running EchoServer over ws://."""
    with EchoServer() as server:
        yield server


@pytest.fixture
def echo_tls(tls: Tls) -> Iterator[EchoServer]:
    """A running EchoServer over wss://; `tls.client_context` trusts it."""
    with EchoServer(ssl_context=tls.server_context) as server:
        yield server


@pytest.fixture
def echo_server() -> Iterator[Callable[..., EchoServer]]:
    """A factory of running EchoServers: `echo_server(handler, ping_interval=1)`."""
    with contextlib.ExitStack() as stack:

        def make(*args: Any, **kwargs: Any) -> EchoServer:
            return stack.enter_context(EchoServer(*args, **kwargs))

        yield make


@pytest.fixture
def raw_server() -> Iterator[Callable[..., RawServer]]:
    """A factory of running RawServers: `raw_server(script)`."""
    with contextlib.ExitStack() as stack:

        def make(script: Script, **kwargs: Any) -> RawServer:
            return stack.enter_context(RawServer(script, **kwargs))

        yield make


@pytest.fixture
def proxy() -> Iterator[Callable[..., FaultProxy]]:
    """A factory of running FaultProxies in front of a server: `proxy(echo)`."""
    with contextlib.ExitStack() as stack:

        def make(server: EchoServer | RawServer) -> FaultProxy:
            return stack.enter_context(FaultProxy(server.host, server.port, scheme=server.uri.split(":")[0]))

        yield make


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Any]]:
    """A factory of pools: `make_pool(echo, reset=…, manager_kwargs={…}, max_connections=2)`.

    Names that ConnectionPool does not know are fields of its config. At the end every pool's books must be
    in order; then it is closed.
    """
    from jetsocket import ConnectionPool, ConnectionPoolConfig

    pools: list[ConnectionPool[Any]] = []

    def make(server: EchoServer | RawServer | str, **given: Any) -> ConnectionPool[Any]:
        own = set(signature(ConnectionPool).parameters) & given.keys()
        options = {key: given.pop(key) for key in own}
        uri = server if isinstance(server, str) else server.uri
        pools.append(ConnectionPool(ConnectionPoolConfig(**given), base_uri=uri, **options))
        return pools[-1]

    yield make
    try:
        assert [fault for pool in pools for fault in faults(pool)] == []
    finally:
        for pool in pools:
            pool.close(timeout=1)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call":
        item.stash[FAILED] = report.failed
    return report


FAILED = pytest.StashKey[bool]()
GRACE = 2.0  # s that a closed or forgotten pool's thread has to end


@pytest.fixture(autouse=True)
def no_leaked_threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a non-daemon thread, or a thread of the library, behind, or an exception."""
    before = set(threading.enumerate())
    yield
    left = sys.exc_info()[1]
    assert left is None, f"{left!r} is taken for handled still, see tests/moments.py"
    if request.node.stash.get(FAILED, False):
        return  # its traceback may keep a pool alive, and says more

    def leaked() -> list[threading.Thread]:
        new = [thread for thread in threading.enumerate() if thread not in before]
        return [thread for thread in new if not thread.daemon or thread.name.startswith("jetsocket")]

    if leaked():
        gc.collect()  # a pool in a reference cycle closes itself when it is found
        wait_until(lambda: not leaked(), GRACE, f"the threads {leaked()} end")
