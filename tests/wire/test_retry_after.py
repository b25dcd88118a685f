"""Retry-After (RFC 9110 §10.2.3): read, told, and honoured between attempts to connect."""

from __future__ import annotations

import copy
import email.utils
import json
import math
import pickle
import socket
import threading
import time
from collections.abc import Callable
from time import monotonic
from typing import Any

import pytest

from jetsocket import ConnectionPool
from jetsocket.exceptions import HandshakeError, PoolClosedError
from jetsocket.wire.retry_after import MOST, seconds_until
from tests import servers
from tests.servers import RawServer, answer, wait_until

MakePool = Callable[..., ConnectionPool[Any]]
MakeRaw = Callable[..., RawServer]

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"  # RFC 9110 §5.6.7, in its three forms
SAME = ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"]
BEFORE = "Sun, 06 Nov 1994 08:49:07 GMT"


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0),
        ("7", 7.0),
        ("007", 7.0),
        ("1.5", 1.5),
        ("3.", 3.0),
        ("99999999999", MOST),
        ("9" * 60_000, MOST),
        (DATE, 30.0),
        (SAME[0], 30.0),
        (SAME[1], 30.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", MOST),
    ],
)
def test_what_is_read(value: str, seconds: float) -> None:
    assert seconds_until([value], BEFORE) == seconds


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-5",
        "+5",
        "1e3",
        "0x10",
        "inf",
        "nan",
        "5 s",
        "5, 6",
        "\u0665",
        "soon",
        "Sun, 06 Nov 1994",
        "Sun, 99 Nov 1994 08:49:37 GMT",
        "Sun, 06 Nov 99999999 08:49:37 GMT",
        "Sun, 06 Nov 1994 08:49:37 +99999999999",
        "," * 60,
        "x" * 60_000,
    ],
)
def test_what_is_none(value: str) -> None:
    assert seconds_until([value], BEFORE) is None


def test_none_at_all_and_several() -> None:
    assert seconds_until([]) is None
    assert seconds_until(["soon", "3", "2"]) == 3.0


@pytest.mark.parametrize("now", ["", "soon", "Sun, 99 Nov 1994 08:49:37 GMT"])
def test_without_the_server_s_clock_ours_is_asked(now: str) -> None:
    told = seconds_until([email.utils.formatdate(time.time() + 100, usegmt=True)], now)
    assert told is not None and 90 < told <= 100


# --- over sockets


def refusing(times: int, *headers: tuple[str, str], status: str = "503 Busy") -> servers.Script:
    """Refuse so often, then serve; `at` of the script is when it was asked."""
    at: list[float] = []

    def script(sock: socket.socket) -> None:
        at.append(monotonic())
        if len(at) <= times:
            answer(status, headers, b"later")(sock)
        else:
            servers.upgrade(sock)
            servers.answer_close(sock)

    script.at = at  # type: ignore[attr-defined]
    return script


def pauses(script: Any) -> list[float]:
    return [later - earlier for earlier, later in zip(script.at, script.at[1:], strict=False)]


@pytest.mark.slow
@pytest.mark.parametrize("status", ["503 Busy", "429 Too Many Requests"])
@pytest.mark.parametrize(
    ("header", "told"),
    [
        ([("Retry-After", "1")], 1.0),
        ([("Retry-After", "0.6")], 0.6),
        ([("Retry-After", DATE), ("Date", DATE.replace("37", "36"))], 1.0),
    ],
)
def test_it_is_honoured(
    raw_server: MakeRaw, make_pool: MakePool, header: list[tuple[str, str]], told: float, status: str
) -> None:
    script = refusing(1, *header, status=status)
    pool = make_pool(raw_server(script), manager_kwargs={"connect_attempts": 3})
    pool.acquire("/", 10).release()
    (pause,) = pauses(script)
    assert pause >= told - 0.01
    assert pool.stats().connect_errors == 1


def test_between_each_two(raw_server: MakeRaw, make_pool: MakePool) -> None:
    script = refusing(3, ("Retry-After", "0.4"))
    make_pool(raw_server(script), manager_kwargs={"connect_attempts": 4}).acquire("/", 10).release()
    assert len(pauses(script)) == 3
    assert all(pause >= 0.39 for pause in pauses(script))


@pytest.mark.parametrize("value", ["0", "-5", "soon", "Sun, 06 Nov 1994 08:49:37 GMT", ""])
def test_one_that_says_nothing_leaves_the_backoff(
    raw_server: MakeRaw, make_pool: MakePool, value: str
) -> None:
    script = refusing(1, ("Retry-After", value))
    make_pool(raw_server(script), manager_kwargs={"connect_attempts": 2}).acquire("/", 5).release()
    assert len(pauses(script)) == 1


@pytest.mark.parametrize(
    ("value", "told"), [("60", 60.0), ("9" * 40, MOST), (DATE.replace("1994", "9999"), MOST)]
)
def test_beyond_the_deadline_there_is_no_further_attempt(
    raw_server: MakeRaw, make_pool: MakePool, value: str, told: float
) -> None:
    server = raw_server(refusing(9, ("Retry-After", value)))
    pool = make_pool(server, manager_kwargs={"connect_attempts": 5})
    begun = monotonic()
    with pytest.raises(HandshakeError, match="503") as caught:
        pool.acquire("/", 8)
    assert monotonic() - begun < 5  # it did not wait to be told the same
    assert server.accepted == 1
    assert caught.value.retry_after == told
    assert caught.value.status_code == 503
    assert caught.value.headers["retry-after"] == value


def test_refusals_for_good_stay_so(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(refusing(9, ("Retry-After", "0"), status="403 No"))
    with pytest.raises(HandshakeError) as caught:
        make_pool(server, manager_kwargs={"connect_attempts": 5}).acquire("/", 5)
    assert caught.value.retry_after == 0.0
    assert server.accepted == 1


def test_with_one_attempt_it_is_told(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(refusing(9, ("Retry-After", "2")))
    with pytest.raises(HandshakeError, match="it asks for 2 s of patience") as caught:
        make_pool(server).acquire("/", 5)
    assert caught.value.retry_after == 2.0
    assert server.accepted == 1


def test_a_redirect_that_is_not_followed_has_one_too(raw_server: MakeRaw, make_pool: MakePool) -> None:
    headers = [("Retry-After", "2"), ("Location", "ws://elsewhere.example/")]
    server = raw_server(answer("307 Busy", headers))
    with pytest.raises(HandshakeError, match="another origin") as caught:
        make_pool(server).acquire("/", 5)
    assert caught.value.retry_after == 2.0


def test_a_refusal_without_one_has_none(raw_server: MakeRaw, make_pool: MakePool) -> None:
    with pytest.raises(HandshakeError) as caught:
        make_pool(raw_server(refusing(9))).acquire("/", 5)
    assert caught.value.retry_after is None
    assert "patience" not in str(caught.value)


def test_close_ends_the_waiting(raw_server: MakeRaw, make_pool: MakePool) -> None:
    server = raw_server(refusing(9, ("Retry-After", "30")))
    kwargs = {"connect_attempts": 5, "connect_timeout": 60.0}  # a longer pause would end the dial
    pool = make_pool(server, manager_kwargs=kwargs)
    caught: list[BaseException] = []

    def borrow() -> None:
        try:
            pool.acquire("/", math.inf)
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=borrow)
    thread.start()
    wait_until(lambda: pool.stats().connect_errors == 1)
    pool.close()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(caught[0], PoolClosedError)


def test_it_travels(raw_server: MakeRaw, make_pool: MakePool) -> None:
    with pytest.raises(HandshakeError) as caught:
        make_pool(raw_server(refusing(9, ("Retry-After", "2")))).acquire("/", 5)
    error = caught.value
    anew = HandshakeError(*json.loads(json.dumps(error.args)))
    for arrived in (copy.copy(error), pickle.loads(pickle.dumps(error)), anew):
        assert (arrived.status_code, arrived.retry_after) == (503, 2.0)
