"""One TLS connection, used by a sender, a reader and the housekeeper at once (DESIGN §4.6, §5).

A bare `SSLSocket` does not survive that. Here nothing may be lost, changed or out of order, while pings go
both ways and the server changes its keys and asks for ours to change (RFC 8446 §4.6.3).
"""

from __future__ import annotations

import _ssl
import ctypes
import itertools
import logging
import random
import ssl
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep
from types import FrameType
from typing import Any

import pytest

import jetsocket.housekeeper
from jetsocket import ConnectionPool
from tests.conftest import Tls
from tests.faults.conftest import Report
from tests.servers import Connection, EchoServer, wait_until

ROW = "one TLS connection"
RUNS, SECONDS = 10, 30.0
VERSIONS = [ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2]
PATIENCE = 20.0  # s, for one message on a busy machine

MakePool = Callable[..., ConnectionPool[Any]]


def payload(number: int) -> str:
    """The so-manieth message: from a few bytes to more than three TLS records."""
    return f"{number}:" + "abcdefgh" * (number * 7919 % 6500 if number % 3 else number % 50)


def echo_with_pauses(conn: Connection) -> None:
    """Send everything back, and pause now and then, so that the housekeeper has a reason to ping."""
    rest = monotonic() + 0.2
    for message in conn:
        if monotonic() > rest:
            conn.echo_server.stopping.wait(0.15)
            rest = monotonic() + 0.2
        conn.send(message)


class KeyUpdates:
    """Changes the keys of a server's connections, and counts the clients' changes that come in reply."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.asked = self.answered = 0
        self._openssl = ctypes.CDLL(_ssl.__file__).SSL_key_update
        self._openssl.argtypes = [ctypes.c_void_p, ctypes.c_int]
        # For debugging only, says CPython; nothing else tells of such a message.
        context._msg_callback = self._note  # type: ignore[attr-defined]

    def _note(self, conn: Any, direction: str, *record: Any) -> None:
        _version, _content, message, _data = record
        self.answered += direction == "read" and getattr(message, "name", "") == "KEY_UPDATE"

    def ask(self, conn: Connection) -> None:
        """Have the next record that the server sends carry a change of keys, and ask for the client's."""
        sock: Any = conn.socket
        with sock._serial:
            if sock._sslobj is None:
                return
            # struct PySSLSocket: the object's head, a weak reference, SSL *
            at = id(sock._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
            self.asked += self._openssl(ctypes.c_void_p.from_address(at).value, 1)


def converse(pool: ConnectionPool[Any], server: EchoServer, keys: KeyUpdates | None, seconds: float) -> int:
    """Send and receive at once for so long, and until a ping has come.

    Returns:
        How many messages went and came back as they were.
    """
    over = threading.Event()

    def send() -> int:
        end = monotonic() + seconds
        for number in itertools.count():
            now = monotonic()
            if now > end + PATIENCE or (now > end and server.pings):
                conn.send_raw("over")
                return number
            conn.send_raw(payload(number))
            if random.random() < 0.1:
                sleep(random.random() * 0.005)
        raise AssertionError("it never comes here")

    def change_keys() -> None:
        while keys is not None and not over.wait(0.02):
            for each in server.connections:
                keys.ask(each)

    with pool.acquire("/") as conn, ThreadPoolExecutor(2) as others:
        id_before = conn.id
        changing, sending = others.submit(change_keys), others.submit(send)
        try:
            came = 0
            while (message := conn.recv_raw(timeout=PATIENCE)) != "over":
                assert message == payload(came)
                came += 1
            assert came == sending.result(PATIENCE)
        finally:
            over.set()
        changing.result(PATIENCE)
        assert conn.id == id_before
    return came


def one_run(
    tls: Tls, make_pool: MakePool, version: ssl.TLSVersion, seconds: float
) -> tuple[int, int, KeyUpdates | None]:
    """Messages, pings that the server got, and changes of keys, in one conversation of so many seconds."""
    context = tls.issue("127.0.0.1")
    context.minimum_version = context.maximum_version = version
    keys = KeyUpdates(context) if version is ssl.TLSVersion.TLSv1_3 else None
    with EchoServer(
        echo_with_pauses, ssl_context=context, ping_interval=0.05, ping_timeout=PATIENCE
    ) as server:
        pool = make_pool(
            server,
            health_check_interval=0.05,
            health_check_timeout=PATIENCE,
            manager_kwargs={"ssl_context": tls.client_context},
        )
        came = converse(pool, server, keys, seconds)
        with pool.acquire("/") as conn:
            assert conn.request(came, timeout=PATIENCE) == came
            assert conn._entry.wire._stream._tls.version == version.name.replace("_", ".")
        assert server.opened == 1, f"not lent again: {pool.stats().discards}"
        if keys is not None:
            assert keys.asked > 0
            wait_until(lambda: keys.answered > 0, message="the client has changed its keys")
        pool.close()
        return came, server.pings, keys


@pytest.fixture(autouse=True)
def no_complaint(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A restless housekeeper, and not a word from the library."""
    monkeypatch.setattr(jetsocket.housekeeper, "TICK", 0.02)
    with caplog.at_level(logging.WARNING, logger="jetsocket"):
        yield
    assert not [record for record in caplog.records if record.name.startswith("jetsocket")]


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_sender_a_reader_and_pings_at_once(
    tls: Tls, make_pool: MakePool, version: ssl.TLSVersion, report: Report
) -> None:
    came, pings, keys = one_run(tls, make_pool, version, seconds=1.5)
    assert came > 20 and pings > 0
    report(f"{ROW}, {version.name}", messages=came, pings=pings, key_updates=keys.answered if keys else 0)


def test_a_ping_under_way_while_the_lease_comes_back_costs_no_connection(
    echo: EchoServer, make_pool: MakePool
) -> None:
    under_way, go_on = threading.Event(), threading.Event()

    def pause_in_write(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and frame.f_code.co_name == "write_now":
            sys.setprofile(None)
            under_way.set()
            go_on.wait(5)

    def ping() -> bool:
        sys.setprofile(pause_in_write)
        return wire.send_ping()

    pool = make_pool(echo)
    conn = pool.acquire("/")
    wire = conn._entry.wire
    with ThreadPoolExecutor(1) as other:
        sent = other.submit(ping)
        assert under_way.wait(5)
        threading.Timer(0.05, go_on.set).start()
        conn.release()
        assert sent.result(5)
    assert pool.stats().discards == {}
    with pool.acquire("/") as again:
        assert again.id == conn.id


def test_a_server_that_changes_keys_costs_no_connection(tls: Tls, make_pool: MakePool) -> None:
    context = tls.issue("127.0.0.1")
    keys = KeyUpdates(context)

    def echo_with_new_keys(conn: Connection) -> None:
        for message in conn:
            keys.ask(conn)
            conn.send(message)

    with EchoServer(echo_with_new_keys, ssl_context=context) as server:
        pool = make_pool(server, manager_kwargs={"ssl_context": tls.client_context})
        for _ in range(5):
            with pool.acquire("/") as conn:
                for number in range(4):
                    conn.send(number)
                # What is to be said to all of these goes out with the next message, or never.
                assert [conn.recv(timeout=PATIENCE) for _ in range(4)] == [0, 1, 2, 3]
        assert pool.stats().discards == {}
        assert keys.answered >= 4
        pool.close()


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_long_runs(tls: Tls, make_pool: MakePool, depth: float, report: Report) -> None:
    messages = pings = updates = 0
    for run in range(RUNS):
        version = VERSIONS[run % 3 == 2]  # three of them over TLS 1.2
        came, pinged, keys = one_run(tls, make_pool, version, max(1.0, SECONDS * depth))
        messages, pings = messages + came, pings + pinged
        updates += keys.answered if keys is not None else 0
    report(ROW, runs=RUNS, messages=messages, pings=pings, key_updates=updates, lost=0, bad_record_mac=0)
