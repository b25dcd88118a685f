"""A subscription that is opened anew: the pauses, and what ends them."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from jetsocket import ConnectionClosedError, ConnectionPoolConfig, PoolClosedError, ReplyError, TimeoutError
from jetsocket.clock import monotonic
from jetsocket.resubscribing import Resubscribing
from jetsocket.state import State
from tests.servers import wait_until


class Lost:
    """The subscription that was."""

    is_over = False


class Server:
    """Refuses so often, then opens."""

    def __init__(self, *outcomes: Any) -> None:
        self.outcomes = list(outcomes)
        self.tries = 0

    def __call__(self, deadline: float | None) -> Any:
        self.tries += 1
        outcome = self.outcomes.pop(0) if self.outcomes else "open"
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


@pytest.fixture
def state() -> State:
    return State(ConnectionPoolConfig(), "state", 1.0)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The failures before each pause; none lasts."""
    asked: list[int] = []

    def backoff(failures: int, share: float, retry_after: float | None) -> float:
        assert 0 <= share < 1
        asked.append(failures)
        return 0.0 if retry_after is None else retry_after

    monkeypatch.setattr("jetsocket.resubscribing.backoff", backoff)
    return asked


def anew(state: State, server: Server, deadline: float | None = None, lost: Any = None) -> Any:
    return Resubscribing(state, server, "ws://h/")(Lost() if lost is None else lost, deadline)


def test_it_tries_until_it_is_open_with_pauses_that_grow(state: State, pauses: list[int]) -> None:
    gone = ConnectionClosedError("gone", code=1006, reason="")
    server = Server(gone, TimeoutError("x", operation="connect", timeout=1.0), gone)
    assert anew(state, server) == "open"
    assert (server.tries, pauses) == (4, [1, 2, 3])


@pytest.mark.parametrize("error", [ReplyError("no"), ValueError("x")])
def test_what_a_pause_does_not_heal_comes_out(state: State, pauses: list[int], error: Exception) -> None:
    with pytest.raises(type(error)):
        anew(state, Server(error))
    assert pauses == []


def test_a_deadline_that_a_pause_would_pass_ends_it_at_once(state: State) -> None:
    gone = ConnectionClosedError("gone", code=1006, reason="")
    gone.retry_after = 60.0  # type: ignore[attr-defined]  # of a HandshakeError
    with pytest.raises(TimeoutError, match="not opened anew") as raised:
        anew(state, Server(gone), monotonic() + 5)
    assert raised.value.__cause__ is gone


@pytest.mark.parametrize("what", ["closed", "over"])
def test_the_end_of_the_pool_or_the_subscription_ends_the_pause(state: State, what: str) -> None:
    gone = ConnectionClosedError("gone", code=1006, reason="")
    gone.retry_after = 60.0  # type: ignore[attr-defined]  # likewise
    server, lost = Server(gone, PoolClosedError("closed")), Lost()
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(anew(state, server, lost=lost))
        except PoolClosedError:
            ended.append("closed")

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(lambda: server.tries == 1)
    if what == "closed":
        state.close()
    else:
        lost.is_over = True
    thread.join(10)
    # The pool itself says that it is closed; what has ended is not opened once more.
    assert (ended, server.tries) == ((["closed"], 2) if what == "closed" else ([None], 1))
