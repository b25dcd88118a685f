"""The verdict: what fails a test, what it says, and whom it never overrules.

Also tests: `verdicts`, `rules`, `actions`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jetsocket import ConnectionClosedError, ConnectionPool
from jetsocket.testing import ANY, FakeServer
from jetsocket.testing.places import short

HERE = re.escape(short(__file__))


def ask(server: FakeServer, message: Any, path: str = "/", count: int = 1) -> Any:
    """What the code under test does, which swallows its own error."""
    with ConnectionPool(base_uri=server.uri) as pool:
        try:
            return [pool.request(path, message, timeout=5) for _ in range(count)][-1]
        except ConnectionClosedError as error:
            return error


def verdict_of(use: Callable[[FakeServer], Any], **options: Any) -> str:
    with pytest.raises(AssertionError) as caught, FakeServer(**options) as server:
        use(server)
    return str(caught.value)


def test_a_message_that_no_rule_matches_is_closed_at_once_and_told() -> None:
    def use(server: FakeServer) -> None:
        server.on({"method": "other"}).optional()
        server.on({"method": "height", "params": [1, ANY]}).optional()
        error = ask(server, {"id": 1, "method": "heigth", "params": [1, 2]})
        assert (error.code, error.reason) == (1011, "no rule of the test matches this message")

    text = verdict_of(use)
    assert re.fullmatch(
        r"FakeServer at port \d+: a message came to / that no rule matches:"
        r' {"id": 1, "method": "heigth", "params": \[1, 2\]}\n'
        rf"    nearest rule: on\({{'method': 'height', 'params': \[1, ANY\]}}\), made at {HERE}:\d+\n"
        r"    - method: 'height'\n    \+ method: 'heigth'\n"
        r"    it was answered with close 1011; FakeServer\(assert_all_expected=False\) permits it, and"
        r" @pytest.mark.jetsocket\(assert_all_expected=False\) for the fixtures",
        text,
    )


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda server: None, "there is no rule"),
        (
            lambda server: server.on("x", path="/rpc").optional(),
            "it matches, but it is for another path than /",
        ),
        (lambda server: server.on("x").times(0), r"it matches, but it is used up: times\(0\)"),
        (lambda server: server.script("/").expect("y"), r"the script waits for expect\('y'\): script\('/'\)"),
        (lambda server: server.on(re.compile("y"), path="/p").optional(), r"- re.compile\('y'\)\n"),
    ],
)
def test_why_no_rule_matches(make: Callable[[FakeServer], Any], told: str) -> None:
    def use(server: FakeServer) -> None:
        make(server)
        ask(server, "x")

    assert re.search(told, verdict_of(use))


def test_reply_each_says_that_it_is_used_up() -> None:
    def use(server: FakeServer) -> None:
        server.on("x").reply_each([1, 2])
        ask(server, "x", count=3)

    assert "it is used up: all of reply_each were given" in verdict_of(use)


def test_both_kinds_of_strictness_can_be_switched_off() -> None:
    with FakeServer(assert_all_expected=False) as server, ConnectionPool(base_uri=server.uri) as pool:
        with pool.acquire("/") as conn:
            conn.send("x")
        server.assert_received("x")
    with FakeServer(assert_all_called=False) as server:
        server.on("x").times(3)
        server.script().expect("y")
        server.reject_once()


def test_what_was_never_reached() -> None:
    def use(server: FakeServer) -> None:
        server.on("a", path="/a").reply(1)
        server.on("b").reply(1).times(2)
        server.on("c").reply(1).optional()
        server.on("d").reply_each([1, 2])
        server.script("/feed").send(1)
        server.script("/").expect("x").send(2).expect("y")
        server.reject_once(429)
        with ConnectionPool(base_uri=server.uri, manager_kwargs={"connect_attempts": 1}) as pool:
            with pytest.raises(Exception, match="429"):
                pool.acquire("/")
            server.reject_once(500)
            server._refusals.clear()
            for message in ("x", "b", "d"):
                assert pool.request("/", message)
            server.reject_once(418)

    text = verdict_of(use)
    items = re.findall(
        rf"^\d\. (.*?), made at {HERE}:\d+: (.*?); optional\(\) permits it", text, re.MULTILINE
    )
    assert items == [
        ("on('a', path='/a')", "was never matched"),
        ("on('b')", "was matched 1 of 2 times"),
        ("script('/feed')", "no connection came; step 1 of 1, send(1), was never reached"),
        ("script('/')", "step 3 of 3, expect('y'), was never reached"),
        ("reject_once(418)", "no connection came"),
    ]
    assert text.startswith("FakeServer at port") and "5 problems\n1. " in text
    assert (
        "FakeServer(assert_all_called=False)" in text
        and "@pytest.mark.jetsocket(assert_all_called=False)" in text
    )


def test_times_permits_no_more() -> None:
    def use(server: FakeServer) -> None:
        server.on("x").reply(1).times(2)
        ask(server, "x", count=3)

    assert "times(2)" in verdict_of(use)
    with FakeServer() as server:
        server.on("x").reply(1).times(2).optional()
        assert ask(server, "x") == 1


def raising(message: Any) -> Any:
    raise KeyError(f"no {message}")


def endless() -> Iterator[Any]:
    yield 1
    raise ZeroDivisionError("out of values")


@pytest.mark.parametrize(
    ("make", "kind", "told"),
    [
        (
            lambda server: server.on(ANY).callback(raising),
            KeyError,
            r"a callback raised KeyError: 'no x', at ",
        ),
        (lambda server: server.on(ANY).callback(lambda m: {1}), TypeError, "a callback raised TypeError: "),
        (lambda server: server.on(raising).optional(), KeyError, "a matcher raised KeyError"),
        (
            lambda server: server.script().expect(raising) and server.on(ANY).reply(2),
            KeyError,
            "a matcher raised KeyError",
        ),
        (
            lambda server: server.on(ANY).reply_each(endless()),
            ZeroDivisionError,
            "reply_each raised ZeroDivisionError",
        ),
    ],
)
def test_what_the_tests_own_code_raised(make: Callable[[FakeServer], Any], kind: type, told: str) -> None:
    with pytest.raises(AssertionError, match=told) as caught, FakeServer(assert_all_expected=False) as server:
        make(server)
        with ConnectionPool(base_uri=server.uri) as pool, pool.acquire("/") as conn:
            conn.send("x")
    assert isinstance(caught.value.__cause__, kind)
    assert re.search(rf"made at .*{HERE}:\d+", str(caught.value))


def test_a_callback_that_raises_closes_the_connection() -> None:
    with pytest.raises(AssertionError), FakeServer() as server:
        server.on(ANY).callback(raising)
        error = ask(server, "x")
        assert (error.code, error.reason) == (1011, "a callback of the test raised")


def test_the_verdict_waits_for_what_was_sent_and_for_callbacks() -> None:
    for _ in range(10):
        with ConnectionPool[Any]() as pool:
            with pytest.raises(AssertionError, match="no rule matches"), FakeServer() as server:
                conn = pool.acquire(server.uri)
                conn.send("x")
            conn.release()
    begun = threading.Event()

    def late(message: Any) -> None:
        begun.set()
        threading.Event().wait(0.05)
        raise ValueError("late")

    with pytest.raises(AssertionError, match="late"), FakeServer() as server, ConnectionPool[Any]() as pool:
        server.on(ANY).callback(late)
        with pool.acquire(server.uri) as conn:
            conn.send("x")
            begun.wait(5)


def test_an_error_of_the_body_is_never_replaced() -> None:
    with pytest.raises(ZeroDivisionError) as caught, FakeServer() as server:
        server.on("x")
        raise ZeroDivisionError
    (note,) = caught.value.__notes__
    assert "was never matched" in note


def test_everything_is_told_once() -> None:
    server = FakeServer().start()
    server.on("x")
    with pytest.raises(AssertionError, match="never matched"):
        server.close()
    server.close()
    assert server.verdict() is None


def test_a_fault_of_the_server_itself_is_told() -> None:
    with pytest.raises(AssertionError, match="the server raised ZeroDivisionError"), FakeServer() as server:

        async def broken(endpoint: Any) -> None:
            raise ZeroDivisionError

        server._upgrade = broken  # type: ignore[method-assign]  # no rule of a test can do that
        with ConnectionPool(base_uri=server.uri) as pool, pytest.raises(Exception, match="within"):
            pool.acquire("/", timeout=0.05)


@pytest.mark.parametrize(
    ("make", "error", "told"),
    [
        (lambda rule: rule.reply({1}), TypeError, "set"),
        (lambda rule: rule.reply_each("ab"), TypeError, "several replies"),
        (lambda rule: rule.reply_each([]), ValueError, "no replies"),
        (lambda rule: rule.delay(-1), ValueError, "delay must be 0 or more"),
        (lambda rule: rule.delay("1"), TypeError, "delay must be a number"),
        (lambda rule: rule.delay(float("inf")), ValueError, "delay"),
        (lambda rule: rule.push("x", every=True), TypeError, "every"),
        (lambda rule: rule.push("x", count=0), ValueError, "count must be 1 or more"),
        (lambda rule: rule.close(1006), ValueError, "no close frame can say 1006"),
        (lambda rule: rule.close(999), ValueError, "no close frame"),
        (lambda rule: rule.close(1000, "x" * 124), ValueError, "123 B"),
        (lambda rule: rule.close("1000"), TypeError, "code"),
        (lambda rule: rule.close(1000, 1), TypeError, "reason"),
        (lambda rule: rule.callback("x"), TypeError, "function"),
        (lambda rule: rule.times(-1), ValueError, "times"),
        (lambda rule: rule.times(1.0), TypeError, "times"),
    ],
)
def test_a_rule_is_checked_when_it_is_made(make: Callable[[Any], Any], error: type, told: str) -> None:
    with pytest.raises(error, match=told):
        make(FakeServer().on(ANY))


def test_rules_and_scripts_say_what_they_are() -> None:
    server = FakeServer()
    assert re.fullmatch(rf"<on\(ANY\), made at {HERE}:\d+, matched 0 times>", repr(server.on(ANY)))
    script = server.script("/x").expect(1).close()
    assert re.fullmatch(rf"<script\('/x'\), made at {HERE}:\d+, 0 of 2 steps done>", repr(script))
