"""What the pool promises: no foreign message, a hard cap, first come first served, one deadline.

Also tests: `lending`, `replacement`, `returning`, `assembly`, `pool_parts`, `callback_lease`.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import random
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest

import jetsocket
from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    ConnectionPoolConfig,
    DecodeError,
    HandshakeError,
    InvalidStateError,
    JetSocketError,
    PoolClosedError,
    PoolExhaustedError,
    TimeoutError,
    housekeeper,
)
from jetsocket.cooldown import backoff
from jetsocket.entry import Entry
from jetsocket.state.idle_queues import IdleQueue
from jetsocket.wire.websocket import WebSocket
from tests.awake import awake
from tests.books import state_of
from tests.conftest import Tls
from tests.servers import (
    Connection,
    EchoServer,
    HandmadeTls,
    RawServer,
    after_upgrade,
    answer,
    answer_close,
    frame,
    hold,
    read_client_frame,
    read_request,
    refusing_port,
    upgrade,
    upgrade_response,
    wait_until,
)
from tests.sizes import size

MakePool = Callable[..., ConnectionPool[Any]]
MakeServer = Callable[..., EchoServer]
MakeRaw = Callable[..., RawServer]

LEASES = size(1600, 20_000)
URIS = size(250, 10_000)


def in_line(pool: ConnectionPool[Any], count: int) -> None:
    """Wait until so many callers are in line."""
    wait_until(lambda: pool.stats().waiting == count)


# --- 1. no message ever reaches another borrower


class Borrower:
    """One of many threads that borrow well and badly; notes every message that is not its own."""

    def __init__(self, pool: ConnectionPool[Any], number: int, leases: int) -> None:
        self.pool, self.number, self.leases = pool, number, leases
        self.random = random.Random(number)
        self.foreign: list[Any] = []
        self.dirty = 0

    def run(self) -> None:
        for turn in range(self.leases):
            self.token = f"{self.number}/{turn}"
            manner = self.random.choices(
                [self.calls, self.pipelines, self.times_out, self.raises, self.leaves, self.listens],
                [60, 25, 4, 4, 4, 3],
            )[0]
            self.dirty += manner not in (self.calls, self.pipelines)
            try:
                with self.pool.acquire("/late", 30) as conn:
                    manner(conn)
            except ZeroDivisionError:
                pass

    def say(self, conn: Any, delay: float = 0.0) -> None:
        conn.send({"token": self.token, "delay": delay})

    def hear(self, conn: Any, timeout: float = 30) -> None:
        message = conn.recv(timeout)
        if message["token"] != self.token:
            self.foreign.append((self.token, message))

    def calls(self, conn: Any) -> None:
        self.say(conn)
        self.hear(conn)

    def pipelines(self, conn: Any) -> None:
        count = self.random.randint(2, 5)
        for _ in range(count):
            self.say(conn)
        for _ in range(count):
            self.hear(conn)

    def times_out(self, conn: Any) -> None:
        self.say(conn, 0.01)
        try:
            self.hear(conn, 0.001)
        except TimeoutError:
            return
        conn.discard()  # it came in time after all

    def raises(self, conn: Any) -> None:
        self.say(conn, self.random.choice([0, 0.005]))
        raise ZeroDivisionError

    def leaves(self, conn: Any) -> None:
        for _ in range(3):
            self.say(conn, self.random.choice([0, 0.005]))
        self.hear(conn)

    def listens(self, conn: Any) -> None:
        """Nothing was asked, so nothing may come."""
        with pytest.raises(TimeoutError):
            self.hear(conn, 0.002)


@pytest.mark.deep
def test_not_one_foreign_message_and_clean_connections_are_reused(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo, max_connections=8, acquire_timeout=30)
    borrowers = [Borrower(pool, number, LEASES // 16) for number in range(16)]
    with ThreadPoolExecutor(16) as threads:
        for done in [threads.submit(borrower.run) for borrower in borrowers]:
            done.result()
    assert [message for borrower in borrowers for message in borrower.foreign] == []
    dirty = sum(borrower.dirty for borrower in borrowers)
    stats = pool.stats()
    assert stats.acquires == LEASES // 16 * 16
    assert echo.opened <= dirty + 8  # a clean lease costs no connection
    assert stats.reuses >= stats.acquires - echo.opened
    assert echo.most_open <= 8


CLEAN, GONE = True, False


def sends_and_leaves(conn: Any) -> None:
    conn.send("1")


def times_out(conn: Any) -> None:
    with pytest.raises(TimeoutError):
        conn.recv(0.01)


def calls(conn: Any) -> None:
    assert conn.request("1", 5) == 1


def leaves_it_unread(conn: Any) -> None:
    conn.send("1")
    wait_until(lambda: conn.ping(5) and conn._entry.wire.unread)  # it has come, nobody has read it


@pytest.mark.parametrize(
    ("reuse", "path", "behaviour", "clean"),
    [
        ("balanced", "/", calls, CLEAN),
        ("balanced", "/silent", sends_and_leaves, GONE),
        ("balanced", "/silent", times_out, GONE),
        ("balanced", "/", leaves_it_unread, GONE),
        ("balanced", "/silent", lambda conn: None, CLEAN),
        ("quiet", "/", calls, CLEAN),
        ("quiet", "/silent", sends_and_leaves, CLEAN),
        ("quiet", "/silent", times_out, GONE),
        ("quiet", "/", leaves_it_unread, GONE),
        ("always", "/", calls, CLEAN),
        ("always", "/silent", sends_and_leaves, CLEAN),
        ("always", "/silent", times_out, CLEAN),
        ("always", "/", leaves_it_unread, CLEAN),
        ("always", "/", lambda conn: conn.discard(), GONE),
    ],
)
def test_reuse(
    echo: EchoServer, make_pool: MakePool, *, reuse: str, path: str, behaviour: Any, clean: bool
) -> None:
    pool = make_pool(echo, reuse=reuse)
    with pool.acquire(path) as conn:
        behaviour(conn)
        first = conn.id
    with pool.acquire(path) as conn:
        assert (conn.id == first) == clean


@pytest.mark.parametrize("reuse", ["balanced", "quiet"])
def test_an_exception_in_the_block_closes_it(echo: EchoServer, make_pool: MakePool, reuse: str) -> None:
    pool = make_pool(echo, reuse=reuse)
    for kind in (KeyError, KeyboardInterrupt, GeneratorExit):
        with pytest.raises(kind), pool.acquire("/") as conn:
            conn.request(1, 5)
            raise kind
        wait_until(lambda: echo.open_now == 0)
    assert pool.stats().discards == {"exception": 3}


def test_a_request_without_a_reply_in_time_counts_as_a_timeout(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    with pytest.raises(TimeoutError):
        pool.request("/silent", 1, timeout=0.5)
    assert pool.stats().discards == {"timeout": 1}


def test_always_survives_an_exception(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, reuse="always")
    with pytest.raises(KeyError), pool.acquire("/") as conn:
        first = conn.id
        raise KeyError
    with pool.acquire("/") as conn:
        assert conn.id == first


def test_always_hands_the_unread_on(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, reuse="always", max_connections=1)
    with pool.acquire("/push?count=20") as conn:
        got = [conn.recv(5)["push"] for _ in range(3)]
    with pool.acquire("/push?count=20") as conn:
        got += [conn.recv(5)["push"] for _ in range(17)]
    assert got == list(range(20))
    assert echo.opened == 1


def test_always_hands_a_half_read_message_on(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: Any) -> None:
        upgrade(sock)
        sock.sendall(frame(1, b'"ab', fin=0))
        read_client_frame(sock)
        sock.sendall(frame(0, b'cd"'))
        answer_close(sock)

    pool = make_pool(raw_server(script), reuse="always", max_connections=1)
    with pool.acquire("/") as conn, pytest.raises(TimeoutError):
        conn.recv(0.01)
    with pool.acquire("/") as conn:
        assert conn.request("go on", 5) == "abcd"
    assert pool.stats().reuses == 1


@pytest.mark.parametrize("reuse", ["balanced", "quiet"])
@pytest.mark.parametrize("when", ["lent", "idle"])
def test_a_late_reply_reaches_nobody(
    echo_server: MakeServer, make_pool: MakePool, reuse: str, when: str
) -> None:
    given_up = threading.Event()

    def late(conn: Connection) -> None:
        for message in conn:
            if "old" in json.loads(message):
                assert given_up.wait(10)
                given_up.clear()
            conn.send(message)

    server = echo_server(late)
    pool = make_pool(server, max_connections=1, reuse=reuse)
    for number in range(10):
        with pool.acquire("/") as conn:
            with pytest.raises(TimeoutError):
                conn.request({"old": number}, 0.01)
            if when == "lent":
                given_up.set()
                wait_until(lambda: not given_up.is_set())
        given_up.set()
        with pool.acquire("/") as conn:
            assert conn.request({"new": number}, 5) == {"new": number}
        given_up.clear()
    assert server.most_open == 1


@pytest.mark.parametrize("reuse", ["balanced", "quiet"])
def test_a_second_answer_reaches_nobody(echo: EchoServer, make_pool: MakePool, reuse: str) -> None:
    pool = make_pool(echo, max_connections=1, reuse=reuse)
    for number in range(30):
        with pool.acquire("/double") as conn:
            assert conn.request(number, 5) == number
            wait_until(lambda conn=conn: conn._entry.wire.look() and conn._entry.wire.unread)
    assert pool.stats().discards == {"unread": 30}


def answers_again_when_told(again: threading.Event) -> Callable[[Connection], None]:
    def handler(conn: Connection) -> None:
        message = conn.recv()
        conn.send(message)
        if json.loads(message) == "first":
            assert again.wait(5)
            conn.send(message)
            again.clear()
        for message in conn:
            conn.send(message)

    return handler


@pytest.mark.parametrize("reuse", ["balanced", "quiet"])
@pytest.mark.parametrize("when", ["idle", "lent"])
def test_a_second_answer_that_comes_later_reaches_nobody(
    echo_server: MakeServer, make_pool: MakePool, reuse: str, when: str
) -> None:
    again = threading.Event()
    server = echo_server(answers_again_when_told(again))
    pool = make_pool(server, max_connections=1, reuse=reuse)
    assert pool.request("/", '"first"', 5) == "first"
    if when == "idle":
        again.set()
        wait_until(lambda: not again.is_set())
    with pool.acquire("/") as conn:
        if when == "lent":  # after acquire, before its first use
            again.set()
            wait_until(lambda: not again.is_set())
        assert conn.request('"mine"', 5) == "mine"
    assert server.opened == 2
    assert server.most_open == 1
    assert pool.stats().discards.pop("unread while idle") == 1
    assert pool.stats().total_reconnects == 0  # nothing was lost


@pytest.mark.parametrize("seen_by", ["acquire", "housekeeper"])
def test_what_comes_while_an_unused_lease_is_out_reaches_nobody(
    echo_server: MakeServer, make_pool: MakePool, seen_by: str
) -> None:
    push, pushed = threading.Event(), threading.Event()

    def handler(conn: Connection) -> None:
        conn.send(conn.recv())
        if push.wait(5) and not pushed.is_set():
            conn.send("pushed")
            conn.ping().wait(5)  # the housekeeper has answered it, unless the lease is back before that
            pushed.set()
        for message in conn:
            conn.send(message)

    server = echo_server(handler)
    pool = make_pool(server, max_connections=1)
    assert pool.request("/", '"first"', 5) == "first"
    with pool.acquire("/") as conn:  # and nothing else
        push.set()
        if seen_by == "housekeeper":
            assert pushed.wait(5)
            wait_until(lambda: conn._entry.wire.unread)
        else:
            wait_until(lambda: conn._entry.wire._stream.waiting > 0 or conn._entry.wire.unread)
    assert pool.request("/", '"mine"', 5) == "mine"
    assert server.opened == 2
    discards = dict(pool.stats().discards)
    assert discards.pop("counts alone") == 1  # of the second connection: the URI is known now
    assert discards in ({"unread": 1}, {"unread while idle": 1})
    assert seen_by == "acquire" or discards == {"unread": 1}


def test_a_half_read_message_closes_it(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: Any) -> None:
        upgrade(sock)
        message = read_client_frame(sock).payload
        sock.sendall(frame(1, message) + frame(1, b'"beg', fin=0))
        answer_close(sock)

    server = raw_server(script)
    pool = make_pool(server, max_connections=1)
    for number in range(3):
        assert pool.request("/", number, 5) == number
    assert server.accepted == 3
    assert pool.stats().discards == {"half read": 3}


@pytest.mark.slow
@pytest.mark.parametrize("cut", [3, -1], ids=["within its head", "within its payload"])
@pytest.mark.parametrize("when", ["release", "idle", "acquire"])
def test_a_message_of_which_half_a_tls_record_has_come_reaches_nobody(
    raw_server: MakeRaw,
    make_pool: MakePool,
    tls: Tls,
    monkeypatch: pytest.MonkeyPatch,
    *,
    when: str,
    cut: int,
) -> None:
    if when == "acquire":
        monkeypatch.setattr("jetsocket.housekeeper.TICK", 60.0)
    released, half_sent, lent_again = threading.Event(), threading.Event(), threading.Event()

    def script(sock: Any) -> None:
        session: Any = HandmadeTls(sock, tls.server_context)
        upgrade(session)
        read_client_frame(session)
        reply, stray = session.seal(frame(1, b'"mine"')), session.seal(frame(1, b'"stray"'))
        if server.accepted == 1:
            sock.sendall(reply + (stray[:cut] if when == "release" else b""))
            assert released.wait(10)
            sock.sendall(stray[:cut] if when != "release" else b"")
            half_sent.set()
            assert lent_again.wait(10)
            sock.sendall(stray[cut:])
        else:
            sock.sendall(reply)
        hold(session)

    server = raw_server(script)
    uri = server.uri.replace("ws:", "wss:")
    pool = make_pool(uri, max_connections=1, manager_kwargs={"ssl_context": tls.client_context})
    assert pool.request("/", "?", 5) == "mine"
    released.set()
    assert half_sent.wait(5)
    if when == "idle":
        wait_until(lambda: pool.stats().discards)
    with pool.acquire("/") as conn:
        conn.send("?")
        lent_again.set()
        assert conn.recv(5) == "mine"
    assert server.accepted == 2
    assert pool.stats().discards == {"half read" if when == "release" else "unread while idle": 1}


@pytest.mark.parametrize("early", [True, False])
def test_a_greeting_counts_however_early_it_comes(
    raw_server: MakeRaw, make_pool: MakePool, early: bool
) -> None:
    lent = threading.Event()

    def script(sock: Any) -> None:
        request = read_request(sock)
        if early:  # in one piece with the upgrade
            sock.sendall(upgrade_response(request) + frame(1, b'"hello"'))
        else:
            sock.sendall(upgrade_response(request))
            assert lent.wait(5)
            sock.sendall(frame(1, b'"hello"'))
        sock.sendall(frame(1, read_client_frame(sock).payload))
        answer_close(sock)

    pool = make_pool(raw_server(script))
    with pool.acquire("/") as conn:
        lent.set()
        assert conn.recv(5) == "hello"
        assert conn.request(1, 5) == 1
    assert pool.stats().total_messages_received == 2
    assert pool.stats().discards == {"unbalanced": 1}


def test_credentials_keep_connections_apart(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    for user in ("alice:a", "bob:b", "alice:a"):
        assert pool.request(f"ws://{user}@{echo.host}:{echo.port}/", 1, 5) == 1
    assert echo.opened == 2


# --- callbacks


def test_configure_runs_once_and_counts_for_nobody(echo: EchoServer, make_pool: MakePool) -> None:
    seen: list[Any] = []

    def log_in(conn: Any) -> None:
        seen.append(conn.recv(5))
        conn.send({"login": "me"})
        seen.append(conn.recv(5))

    pool = make_pool(echo, configure=log_in)
    for number in range(3):
        assert pool.request("/greet", number, 5) == number
    assert seen == [{"hello": "/greet"}, {"login": "me"}]
    stats = pool.stats()
    assert (stats.total_messages_sent, stats.total_messages_received) == (3, 3)
    assert (stats.total_connections, stats.reuses) == (1, 2)


def fails(_conn: Any) -> None:
    raise KeyError("user code")


def waits(conn: Any) -> None:
    conn.recv()


def gives_up(conn: Any) -> None:
    conn.discard()


@pytest.mark.parametrize("configure", [fails, waits, gives_up])
def test_configure_that_fails_or_takes_too_long(
    echo: EchoServer, make_pool: MakePool, configure: Any
) -> None:
    late = configure is waits
    options = {"connect_timeout": 0.2 if late else 5.0}
    pool = make_pool(echo, max_connections=1, configure=configure, manager_kwargs=options)
    for _ in range(3):
        began = awake()
        with pytest.raises(TimeoutError if late else jetsocket.ConnectionError, match="configure") as raised:
            pool.acquire("/silent", 5)
        assert awake() - began < 2
        if isinstance(raised.value, TimeoutError):
            assert (raised.value.operation, raised.value.timeout) == ("configure", 0.2)
    wait_until(lambda: echo.open_now == 0)
    stats = pool.stats()
    assert (stats.active_connections, stats.idle_connections, stats.acquires) == (0, 0, 0)


def test_configure_that_gives_up_waiting_by_itself_has_failed(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, configure=lambda conn: conn.recv(0.01))
    with pytest.raises(jetsocket.ConnectionError, match="configure"):
        pool.acquire("/silent", 10)


def test_reset_makes_it_clean(echo: EchoServer, make_pool: MakePool) -> None:
    def swallow(conn: Any) -> None:
        conn.send("end")
        while conn.recv_raw(5) != "end":
            pass

    pool = make_pool(echo, max_connections=1, reset=swallow)
    for number in range(5):
        with pool.acquire("/") as conn:
            for _ in range(number):
                conn.send({"left": number})
    with pytest.raises(KeyError), pool.acquire("/") as conn:
        raise KeyError
    with pool.acquire("/") as conn:
        assert conn.request([1], 5) == [1]
    assert echo.opened == 1
    assert pool.stats().total_messages_sent == 1 + sum(range(5))


@pytest.mark.parametrize("reset", [fails, waits, gives_up])
def test_reset_that_fails_or_takes_too_long(
    echo: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture, reset: Any
) -> None:
    pool = make_pool(echo, max_connections=1, reset=reset, health_check_timeout=0.2)
    ids = set()
    for _ in range(3):
        conn = pool.acquire("/")
        calls(conn)
        ids.add(conn.id)
        began = awake()
        conn.release()
        assert awake() - began < 2
    assert len(ids) == 3
    assert pool.stats().discards == {"reset failed": 3}


def test_check_that_fails_closes_the_connection(echo: EchoServer, make_pool: MakePool) -> None:
    checked: list[int] = []

    def check(conn: Any) -> None:
        checked.append(conn.request(7, 5))
        if len(checked) == 2:
            raise KeyError("user code")

    pool = make_pool(echo, check=check, health_check_interval=0.1)
    pool.prewarm("/", 1)
    wait_until(lambda: echo.open_now == 0 and len(checked) == 2)
    assert echo.pings == 0
    assert pool.stats().total_messages_sent == 0
    assert pool.request("/", 1, 5) == 1


async def sends(conn: Any) -> None:
    conn.send("never")


class Sends:
    async def __call__(self, conn: Any) -> None:
        conn.send("never")


async def yields(conn: Any) -> Any:
    yield conn.send("never")


def generates(conn: Any) -> Any:
    yield conn.send("never")


@pytest.mark.parametrize("name", ["two\nlines", "\t", "\x1b[31mred", "\u202eturned", "half\ud800", "\x00"])
def test_a_name_is_fit_to_be_shown(name: str) -> None:
    """It goes into log lines, metrics, the page of status and files."""
    told = "^name must be printable, without line breaks and control characters, not"
    with pytest.raises(ValueError, match=told):
        ConnectionPool(name=name)
    with ConnectionPool(name="Börse 取引 🚀") as pool:
        assert pool.name == "Börse 取引 🚀"


@pytest.mark.parametrize("name", ["configure", "reset", "check"])
@pytest.mark.parametrize("callback", [sends, functools.partial(sends), Sends(), yields, generates])
def test_async_callbacks_are_refused(name: str, callback: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} must be an ordinary function"):
        ConnectionPool(**{name: callback})


@pytest.mark.filterwarnings("error")  # that a coroutine was never awaited
def test_a_callback_that_returns_an_awaitable_has_failed(
    echo: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    pool = make_pool(echo, configure=lambda conn: sends(conn))
    with pytest.raises(jetsocket.ConnectionError, match="configure") as raised:
        pool.acquire("/", 5)
    assert "ordinary function" in str(raised.value.__cause__)
    pool = make_pool(echo, reset=lambda conn: sends(conn))
    with pool.acquire("/") as conn:
        calls(conn)
    assert pool.stats().discards == {"reset failed": 1}
    pool = make_pool(echo, check=lambda conn: sends(conn), health_check_interval=0.1)
    pool.prewarm("/", 1)
    wait_until(lambda: pool.stats().discards == {"check failed": 1})
    assert echo.messages == 1
    gc.collect()


def test_a_lease_kept_from_a_callback_is_no_use(echo: EchoServer, make_pool: MakePool) -> None:
    kept: list[Any] = []
    pool = make_pool(echo, configure=kept.append, reset=kept.append)
    for _ in range(2):
        with pool.acquire("/") as conn:
            for other in kept:
                other.release()
                with pytest.raises(InvalidStateError):
                    other.send("foreign")
            calls(conn)
    assert len(kept) == 3
    assert echo.messages == 2


# --- 2. the cap


def test_fifty_uris_never_see_more_than_ten_connections(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=10)
    for turn in range(3):
        for number in range(50):
            with pool.acquire(f"/room/{number}") as conn:
                assert conn.request([turn, number], 5) == [turn, number]
    assert echo.most_open == 10
    assert echo.opened == 150
    assert pool.stats().discards == {"evicted": 140}
    assert pool.stats().idle_connections == 10


def test_the_cap_holds_for_many_threads(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=4, acquire_timeout=30)

    def work(number: int) -> None:
        rng = random.Random(number)
        for turn in range(25):
            with pool.acquire(f"/room/{rng.randrange(8)}") as conn:
                assert conn.request([number, turn], 10) == [number, turn]
                if rng.random() < 0.1:
                    conn.discard()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(work, range(12)))
    assert echo.most_open <= 4
    assert pool.stats().acquires == 300


def test_the_oldest_idle_of_another_uri_makes_room(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=3)
    ids = {}
    for path in ("/a", "/b", "/c", "/a"):
        with pool.acquire(path) as conn:
            calls(conn)
            ids[path] = conn.id
    pool.acquire("/d").release()  # /b has been idle for longest
    for path, stays in (("/a", True), ("/c", True)):
        with pool.acquire(path) as conn:
            assert (conn.id == ids[path]) == stays
    wait_until(lambda: echo.open_now == 3)
    assert sorted(c.request.path for c in echo.connections if c.request) == ["/a", "/c", "/d"]


def test_room_is_made_before_the_new_one_opens(
    raw_server: MakeRaw, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetsocket.opening._ROOM_PATIENCE", 5.0)  # the server's thread may be late
    order: list[str] = []

    def script(sock: Any) -> None:
        request = read_request(sock)
        order.append(f"open {request.target}")
        sock.sendall(upgrade_response(request))
        closing = read_client_frame(sock)
        order.append(f"close {request.target}")
        sock.sendall(frame(8, closing.payload))

    pool = make_pool(raw_server(script), max_connections=1)
    for path in ("/a", "/b", "/c"):
        pool.acquire(path).release()
    assert order[:5] == ["open /a", "close /a", "open /b", "close /b", "open /c"]


def test_a_neighbour_that_ignores_the_close_leaves_time_to_connect(
    echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool
) -> None:
    mute = raw_server(after_upgrade())
    pool = make_pool(mute, max_connections=1)
    for said_goodbye in (False, True):  # idle, or released a moment ago and closed since
        with pool.acquire("/") as conn:
            if said_goodbye:
                conn.discard()
        with pool.acquire(echo.uri_for("/"), 0.8) as conn:
            assert conn.request(1, 5) == 1
            wait_until(lambda: mute.open_now == 0)
    assert pool.stats().connect_errors == 0


@pytest.mark.slow
@pytest.mark.deep
def test_many_uris_leave_nothing_behind(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: Any) -> None:
        upgrade(sock)
        answer_close(sock)

    def alive() -> Counter[type]:
        gc.collect()
        return Counter(type(each) for each in gc.get_objects())

    before = alive()  # other tests' pools may not be gone yet
    pool = make_pool(raw_server(script), max_connections=4)
    for number in range(URIS):
        pool.acquire(f"/{number}").release()
    assert len(state_of(pool).idle.keys) == pool.stats().idle_connections == 4
    wait_until(lambda: max((alive() - before)[kind] for kind in (Entry, IdleQueue, WebSocket)) <= 8)


# --- 3. first come, first served


def turns_taken(pool: ConnectionPool[Any], seconds: float) -> list[int]:
    """How many turns each of 20 always hungry threads had."""
    turns = [0] * 20
    stop = threading.Event()

    def work(number: int) -> None:
        while not stop.is_set():
            with pool.acquire("/"):
                turns[number] += 1

    with ThreadPoolExecutor(20) as threads:
        working = [threads.submit(work, number) for number in range(20)]
        wait_until(lambda: all(turns), 20)  # the first ones run alone while the others still start
        before = list(turns)
        stop.wait(seconds)
        after = list(turns)
        stop.set()
        for done in working:
            done.result(30)
    return [late - early for early, late in zip(before, after, strict=True)]


@pytest.mark.deep
def test_twenty_hungry_threads_take_equal_turns(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=4, acquire_timeout=30)
    assert pool.prewarm("/", 4) == 4
    ratios: list[float] = []
    # On an overloaded machine a thread may not run for half a second though it holds a connection; that
    # is no matter of the line. A pool where callers barge in is off by a factor of 2,000, each time.
    while len(ratios) < 4 and min(ratios, default=9.0) > 1.1:
        had = turns_taken(pool, size(2, 5))
        assert min(had) > 30
        ratios.append(max(had) / min(had))
    assert min(ratios) <= 1.1, ratios
    assert max(ratios) < 2, ratios


@pytest.mark.parametrize("uris", [1, 3])
def test_callers_are_served_in_the_order_they_came(echo: EchoServer, make_pool: MakePool, uris: int) -> None:
    """Those of each URI, that is: a connection that comes back is another URI's only after a while."""
    pool = make_pool(echo, max_connections=1)
    order: list[int] = []

    def wait_for_turn(number: int) -> None:
        with pool.acquire(f"/{number % uris}"):
            order.append(number)

    with ThreadPoolExecutor(12) as threads, pool.acquire("/0") as first:
        for number in range(12):
            threads.submit(wait_for_turn, number)
            in_line(pool, number + 1)
        first.release()
    assert sorted(order) == list(range(12))
    for uri in range(uris):
        assert [number for number in order if number % uris == uri] == list(range(uri, 12, uris))


def test_a_place_in_line_is_not_lost_to_a_newcomer(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    with ThreadPoolExecutor(1) as threads:
        for _ in range(50):
            conn = pool.acquire("/")
            waiting = threads.submit(pool.acquire, "/")
            in_line(pool, 1)
            conn.release()
            with pytest.raises(PoolExhaustedError):
                pool.acquire("/", 0)  # it was promised to the other
            waiting.result(5).release()


# --- 4. one deadline


def test_a_pool_that_stays_exhausted(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=2, acquire_timeout=0.1)
    with ThreadPoolExecutor(1) as other, pool.acquire("/x", 5):
        held = other.submit(pool.acquire, "/x", 5).result(5)
        began = monotonic()
        with pytest.raises(PoolExhaustedError) as raised:
            other.submit(pool.acquire, "/a?key=secret").result(5)
        assert 0.1 <= monotonic() - began < 2
        error = raised.value
        assert (error.max_connections, error.timeout, error.waiting, error.idle) == (2, 0.1, 0, 0)
        for part in ("max_connections=2", "0.1 s", echo.uri_for("/a?key=***"), "acquire_timeout"):
            assert part in str(error)
        assert "secret" not in str(error)
        with pytest.raises(PoolExhaustedError) as raised:
            pool.acquire("/", 0.05)
        assert raised.value.timeout == 0.05
        held.release()
    assert pool.stats().timeouts == 2
    assert pool.stats().waiting == 0


def test_a_thread_that_holds_everything_is_told(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=2)
    with pool.acquire("/"), pool.acquire("/"):
        with pytest.raises(PoolExhaustedError, match="this very thread") as raised:
            pool.acquire("/", 0.01)
        assert re.search(
            r"very thread holds 2 of them .* test_a_thread_that_holds_everything_is_told.*test_pool\.py:\d+",
            str(raised.value),
        )
    with ThreadPoolExecutor(1) as other:
        held = [other.submit(pool.acquire, "/").result(5) for _ in range(2)]
        with pytest.raises(PoolExhaustedError) as raised:
            pool.acquire("/", 0.01)
        assert "very thread" not in str(raised.value)
        for conn in held:
            conn.release()


def test_no_time_waits_for_nothing(echo_server: MakeServer, make_pool: MakePool) -> None:
    """But it orders one for the next try, or a caller that polls would never get any."""
    refused = threading.Event()

    def not_before(_conn: Any, _request: Any) -> None:
        refused.wait(5)

    echo = echo_server(process_request=not_before)
    pool = make_pool(echo, max_connections=2)
    with pytest.raises(PoolExhaustedError, match="0 lent, 0 idle, 1 being opened") as raised:
        pool.acquire("/", 0)
    refused.set()
    assert "raise max_connections" not in str(raised.value)
    wait_until(lambda: pool.stats().idle_connections == 1)
    assert echo.opened == 1
    with pool.acquire("/", 0) as conn:
        calls(conn)
        with pytest.raises(PoolExhaustedError):
            pool.acquire("/", 0)
    wait_until(lambda: pool.stats().idle_connections == 2)
    echo.cut_all()
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/", 0)  # a dead one is not lent
    wait_until(lambda: pool.stats().idle_connections == 1)
    calls(pool.acquire("/", 0))
    assert echo.opened == 3


def test_max_waiting_refuses_at_once(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1, max_waiting=2, acquire_timeout=30)
    with ThreadPoolExecutor(2) as threads:
        with pool.acquire("/"):
            waiting = [threads.submit(pool.request, "/", number) for number in range(2)]
            in_line(pool, 2)
            began = monotonic()
            with pytest.raises(PoolExhaustedError, match="max_waiting=2") as raised:
                pool.acquire("/")
            assert monotonic() - began < 5
            assert raised.value.waiting == 2
        assert [each.result(5) for each in waiting] == [0, 1]


def test_max_waiting_zero_lends_what_is_free(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1, max_waiting=0)
    with pool.acquire("/"), pytest.raises(PoolExhaustedError, match="max_waiting=0"):
        pool.acquire("/")
    assert pool.request("/", 1, 5) == 1


def test_waiting_and_connecting_share_one_deadline(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: Any) -> None:
        if server.accepted == 1:
            upgrade(sock)
            answer_close(sock)
        else:
            sock.recv(1 << 16)
            sock.recv(1)  # never answers the upgrade

    server = raw_server(script)
    pool = make_pool(server, max_connections=1)
    conn = pool.acquire("/a")
    conn.discard()
    with ThreadPoolExecutor(1) as threads:
        began = monotonic()
        waiting = threads.submit(pool.acquire, "/b", 0.5)
        in_line(pool, 1)
        threading.Event().wait(0.3)
        conn.release()
        with pytest.raises(TimeoutError) as raised:
            waiting.result(10)
    assert 0.5 <= monotonic() - began < 2
    assert "/b" in str(raised.value)
    assert pool.stats().active_connections == 0


def test_a_failed_connect_gives_its_permit_back(make_pool: MakePool) -> None:
    with refusing_port() as port:
        pool = make_pool(f"ws://127.0.0.1:{port}", max_connections=1)
        for _ in range(5):
            with pytest.raises(jetsocket.ConnectionError, match=str(port)):
                pool.acquire("/", 5)
        assert pool.stats().connect_errors == 5
        assert pool.stats().total_connections == 0


def test_the_last_connect_error_is_told_to_those_who_wait(make_pool: MakePool) -> None:
    with refusing_port() as port:
        pool = make_pool(f"ws://127.0.0.1:{port}", max_connections=1)
        with pytest.raises(jetsocket.ConnectionError):
            pool.acquire("/", 5)
        with pytest.raises(PoolExhaustedError) as raised:
            pool.acquire("/", 0)
        assert isinstance(raised.value.last_connect_error, jetsocket.ConnectionError)


def test_a_connect_error_is_forgotten_when_the_next_connect_succeeds(
    echo: EchoServer, make_pool: MakePool
) -> None:
    pool = make_pool(echo, max_connections=1)
    with refusing_port() as port, pytest.raises(jetsocket.ConnectionError):
        pool.acquire(f"ws://127.0.0.1:{port}/", 5)
    with pool.acquire("/"), pytest.raises(PoolExhaustedError) as raised:
        pool.acquire("/", 0)
    assert raised.value.last_connect_error is None
    assert "attempt to connect" not in str(raised.value)


def test_connect_attempts(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: Any) -> None:
        (answer("503 Busy") if server.accepted < 3 else after_upgrade(then=answer_close))(sock)

    server = raw_server(script)
    pool = make_pool(server, manager_kwargs={"connect_attempts": 3})
    pool.acquire("/", 10).release()
    assert server.accepted == 3
    stats = pool.stats()
    assert (stats.connect_errors, stats.total_connections, stats.total_reconnects) == (2, 1, 0)


def test_connect_attempts_run_out(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(answer("503 Busy"))
    pool = make_pool(server, manager_kwargs={"connect_attempts": 2})
    with pytest.raises(HandshakeError) as raised:
        pool.acquire("/", 10)
    assert raised.value.status_code == 503
    assert server.accepted == 2


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_for_good_is_not_tried_again(raw_server: MakeRaw, make_pool: MakePool, status: int) -> None:
    server = raw_server(answer(f"{status} No"))
    pool = make_pool(server, manager_kwargs={"connect_attempts": 5})
    with pytest.raises(HandshakeError) as raised:
        pool.acquire("/", 10)
    assert raised.value.status_code == status
    assert server.accepted == 1


def test_a_failed_certificate_is_not_tried_again(echo_tls: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo_tls, manager_kwargs={"connect_attempts": 5})
    with pytest.raises(jetsocket.ConnectionError, match="certificate"):
        pool.acquire("/", 10)
    assert pool.stats().connect_errors == 1


def test_attempts_end_with_the_deadline(make_pool: MakePool) -> None:
    with refusing_port() as port:
        pool = make_pool(f"ws://127.0.0.1:{port}", manager_kwargs={"connect_attempts": 1000})
        began = awake()
        with pytest.raises((jetsocket.ConnectionError, TimeoutError), match="refused"):  # the cause is told
            pool.acquire("/", 0.5)
        assert awake() - began < 2


def test_an_attempt_without_time_tells_of_the_one_before(raw_server: MakeRaw, make_pool: MakePool) -> None:
    def script(sock: Any) -> None:
        if server.accepted == 1:
            answer("503 Busy")(sock)
        else:
            hold(sock)

    server = raw_server(script)
    pool = make_pool(server, manager_kwargs={"connect_attempts": 2})
    with pytest.raises(PoolExhaustedError, match=r"refused with 503.*wait longer") as raised:
        pool.acquire("/", 1)
    assert (raised.value.operation, raised.value.timeout) == ("acquire", 1)
    assert isinstance(raised.value.last_connect_error, HandshakeError)


@pytest.mark.slow
def test_a_timeout_is_told_as_it_was_given(
    echo: EchoServer, raw_server: MakeRaw, make_pool: MakePool
) -> None:
    late, mute = {"delay": 3}, raw_server(hold)
    hurried = make_pool(mute, manager_kwargs={"connect_timeout": 0.3})
    ready = make_pool(echo)
    ready.prewarm("/late", 1)
    for call, told in (
        (lambda: make_pool(mute).acquire("/", 0.3), "wait longer"),
        (lambda: make_pool(mute, acquire_timeout=0.3).acquire("/"), "wait longer"),
        (lambda: make_pool(mute, acquire_timeout=0.3).prewarm("/", 1), "allow more time"),
        (lambda: hurried.acquire("/", 5), "allow more time"),
        (lambda: make_pool(mute).request("/", 1, 0.3), "wait longer"),
        (lambda: ready.request("/late", late, 0.3), r"0\.3 s were given; allow more \(timeout"),
    ):
        with pytest.raises(TimeoutError, match=told) as raised:
            call()
        assert raised.value.timeout == 0.3


def test_backoff_grows_within_its_bounds() -> None:
    most = [backoff(attempt, 0.999999) for attempt in range(1, 12)]
    assert most == sorted(most)
    assert most[0] <= 0.1
    assert most[-1] <= 5.0
    assert backoff(3, 0.0) == 0.0
    assert backoff(10**6, 0.5) == 2.5


# --- prewarm, drain, lifetime, leaks, close


def test_prewarm(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=3)
    assert pool.prewarm("/a", 2) == 2
    assert pool.prewarm("/a", 2) == 0
    assert pool.prewarm("/b", 5) == 1  # nothing is closed to make room
    wait_until(lambda: echo.open_now == 3)
    stats = pool.stats()
    assert (stats.idle_connections, stats.acquires, stats.total_connections) == (3, 0, 3)
    with pool.acquire("/a", 0), pool.acquire("/a", 0), pool.acquire("/b", 0):
        assert pool.prewarm("/c", 1) == 0
    assert pool.stats().reuses == 0
    for bad in (-1, True, 1.0, "1"):
        with pytest.raises((TypeError, ValueError), match="count"):
            pool.prewarm("/a", bad)


def test_prewarm_of_a_server_that_refuses(raw_server: MakeRaw, make_pool: MakePool) -> None:
    pool = make_pool(raw_server(answer("403 No")), max_connections=2)
    for _ in range(3):
        with pytest.raises(HandshakeError):
            pool.prewarm("/", 2)
    assert pool.stats().idle_connections == 0


def test_drain(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    conn = pool.acquire("/")
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(pool.acquire, "/", 30) for _ in range(3)]
        in_line(pool, 3)
        assert not pool.drain(0.05)
        for each in waiting:
            with pytest.raises(PoolClosedError, match="drained"):
                each.result(5)
        with pytest.raises(PoolClosedError, match="drained"):
            pool.acquire("/")
        with pytest.raises(PoolClosedError):
            pool.prewarm("/", 1)
        calls(conn)  # who has one keeps it
        drained = threads.submit(pool.drain, 30)
        wait_until(drained.running)
        conn.release()
        assert drained.result(5)
    assert pool.drain(0)
    assert not pool.is_closed


def test_centuries_are_no_limit(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    conn = pool.acquire("/", 1e300)
    with ThreadPoolExecutor(3) as threads:
        readers = [threads.submit(conn.recv, 1e300) for _ in range(2)]  # the second one waits for the first
        drained = threads.submit(pool.drain, 1e300)
        wait_until(lambda: all(call.running() for call in [*readers, drained]))
        conn.send(1)
        conn.send(2)
        assert sorted(reader.result(5) for reader in readers) == [1, 2]
        conn.release()
        assert drained.result(5)


def test_nobody_in_line_slips_through_a_drain(echo: EchoServer, make_pool: MakePool) -> None:
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            pool = make_pool(echo, max_connections=1)
            conn = pool.acquire("/")
            waiting = [threads.submit(pool.acquire, "/", 30) for _ in range(8)]
            in_line(pool, 8)
            pool.drain(0)
            conn.release()
            for each in waiting:
                with pytest.raises(PoolClosedError):
                    each.result(5)
            assert pool.drain(1)
            pool.close()


def test_max_lifetime(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_lifetime=0.3, max_connections=2)
    pool.prewarm("/", 2)
    with pool.acquire("/") as conn:
        wait_until(lambda: pool.stats().discards == {"lifetime": 1})  # the idle one has gone
        calls(conn)  # the lent one stays till it is back
        first = conn.id

    def renewed() -> bool:
        with pool.acquire("/") as conn:
            return conn.id != first

    wait_until(renewed)
    assert pool.stats().discards["lifetime"] >= 2
    assert pool.stats().total_reconnects == 0


def test_max_idle_time(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_idle_time=0.2)
    pool.prewarm("/", 3)
    wait_until(lambda: echo.open_now == 0)
    wait_until(lambda: pool.stats().discards == {"idle": pool.stats().total_connections})
    assert pool.stats().idle_connections == 0
    wait_until(lambda: state_of(pool).idle.keys == [])


def test_max_idle_time_counts_at_acquire_too(
    echo: EchoServer, make_pool: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(housekeeper, "TICK", 30.0)  # it does not come by in this test
    pool = make_pool(echo, max_idle_time=0.2, max_connections=1)
    with pool.acquire("/") as conn:
        first, returned_at = conn.id, monotonic()
    wait_until(lambda: monotonic() > returned_at + 0.3)
    with pytest.raises(PoolExhaustedError):
        pool.acquire("/", 0)
    with pool.acquire("/") as conn:
        assert conn.id != first
    assert pool.stats().discards == {"idle": 1}
    assert pool.stats().total_reconnects == 0


@pytest.mark.slow
def test_a_leak_is_told_and_its_return(
    echo: EchoServer, make_pool: MakePool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "jetsocket.pool")
    pool = make_pool(echo, leak_threshold=0.1, name="orders")
    conn = pool.acquire("/")
    wait_until(lambda: caplog.records)
    told = caplog.records[0].getMessage()
    for part in ("[orders]", "leak", "0.1 s", "test_a_leak_is_told_and_its_return", 'pool.acquire("/")'):
        assert part in told
    conn.release()
    wait_until(lambda: len(caplog.records) == 2)
    assert re.search(r"\[orders\].* came back after [\d.]+ s", caplog.records[1].getMessage())


def test_five_waiters_hear_of_close_within_50_ms(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1, acquire_timeout=30)

    def wait_in_vain() -> float:
        with pytest.raises(PoolClosedError):
            pool.acquire("/")
        return awake()

    with pool.acquire("/") as conn, ThreadPoolExecutor(5) as threads:
        waiting = [threads.submit(wait_in_vain) for _ in range(5)]
        in_line(pool, 5)
        closed_at = awake()
        pool.close()
        assert max(each.result(5) - closed_at for each in waiting) < 0.05
        with pytest.raises(ConnectionClosedError):
            conn.recv(5)
    assert pool.is_closed


# --- other things said of the pool


def test_a_lease_of_another_pool_is_refused(echo: EchoServer, make_pool: MakePool) -> None:
    one, other = make_pool(echo), make_pool(echo)
    with one.acquire("/") as conn:
        with pytest.raises(ValueError, match="another pool"):
            other.release(conn)
        calls(conn)
        with pytest.raises(TypeError, match="acquire"):
            one.release("conn")  # type: ignore[arg-type]  # the point
    assert (one.stats().acquires, other.stats().acquires) == (1, 0)


def test_bad_arguments_cost_no_permit(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    for uri in ("http://h/", "ws://", "ws://h:0/", "ws://h/ x", "ws://h/\r\nX: y", "ws://h/#f"):
        with pytest.raises(ValueError, match=r"."):
            pool.acquire(uri)
    for uri in (None, b"/", 1):
        with pytest.raises(TypeError, match="uri_or_path"):
            pool.acquire(uri)  # type: ignore[arg-type]  # the point
    assert pool.request("/", 1, 5) == 1
    with pytest.raises(ValueError, match="base_uri"):
        ConnectionPool().acquire("/relative")


@pytest.mark.parametrize(
    "given",
    [
        {"config": {"max_connections": 3}},
        {"configure": "log_in"},
        {"reset": 1},
        {"check": object()},
        {"manager_kwargs": {"extra_header": {}}},
        {"base_uri": 7},
        {"name": 7},
    ],
)
def test_bad_pools_are_not_made(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        ConnectionPool(**given)


@pytest.mark.parametrize("size", [10**9, sys.maxsize, 10**30])
def test_a_pool_that_is_as_good_as_unlimited(echo: EchoServer, make_pool: MakePool, size: int) -> None:
    pool = make_pool(echo, max_connections=size)
    for number in range(3):
        assert pool.request("/", number, 5) == number
        pool.resize(size)  # which counts the slots anew, with all waiting for it
    assert pool.stats().total_connections == 1


def test_many_pools_and_names(echo: EchoServer, make_pool: MakePool) -> None:
    pools = [make_pool(echo), make_pool(echo), make_pool(echo, name="mine", max_connections=3)]
    assert len({pool.name for pool in pools}) == 3
    assert pools[2].name == "mine"
    with pools[2].acquire("/"):
        assert repr(pools[2]) == (
            f"ConnectionPool(name='mine', base_uri='{echo.uri}/', max_connections=3,"
            " active=1, idle=0, waiting=0, closed=False)"
        )
    assert pools[2].config == ConnectionPoolConfig(max_connections=3)


def test_a_pool_without_base_uri(echo: EchoServer) -> None:
    with ConnectionPool[Any]() as pool:
        assert pool.request(echo.uri_for("/x"), 1, 5) == 1
    with pytest.raises(PoolClosedError):
        pool.acquire(echo.uri_for("/x"))


def test_request_has_one_deadline(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo, max_connections=1)
    began = awake()
    with pytest.raises(TimeoutError):
        pool.request("/late", {"delay": 3}, 0.2)
    with pool.acquire("/"), pytest.raises(PoolExhaustedError):
        pool.request("/", 1, 0.1)
    assert awake() - began < 2
    assert pool.request("/late", {"n": 1}, 5) == {"n": 1}


def test_a_request_that_cannot_be_coded_costs_no_connection(echo: EchoServer, make_pool: MakePool) -> None:
    pool = make_pool(echo)
    assert pool.request("/", 1, 5) == 1
    with pytest.raises(TypeError):
        pool.request("/", object(), 5)
    with pytest.raises(DecodeError):
        pool.request("/", "no json", 5)
    with pytest.raises(UnicodeEncodeError):
        pool.request("/", "\ud800", 5)
    assert pool.request("/", 2, 5) == 2
    assert echo.opened == 1
    assert echo.messages == 3


def test_every_error_is_a_jetsocket_error(make_pool: MakePool) -> None:
    with refusing_port() as port, pytest.raises(JetSocketError) as raised:
        make_pool(f"ws://user:secret@127.0.0.1:{port}").acquire("/?token=secret", 5)
    assert "secret" not in str(raised.value)
