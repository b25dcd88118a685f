"""The whole pool against a real server, whatever happens in whatever order, with a clock that leaps."""

from __future__ import annotations

import gc
import itertools
import sys
import time
from http import HTTPStatus
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from websockets.http11 import Response

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.connection import PooledConnection
from jetsocket.exceptions import ConnectionClosedError, HandshakeError, PoolClosedError, PoolExhaustedError
from jetsocket.redacted_uris import redact
from tests.books import faults, state_of
from tests.servers import EchoServer, wait_until
from tests.sizes import size

PATHS = ("/a", "/b", "/c?x=1", "/late")
CAP = 3
IDLE_FOR, LIFETIME = 100.0, 1000.0
numbers = itertools.count()
EXAMPLES = size(10, 50)


class Clock:
    """Real time, and what was put on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


def refuse(conn: Any, request: Any) -> Response | None:
    """503 for one path; the server's other paths work."""
    return conn.respond(HTTPStatus.SERVICE_UNAVAILABLE, "later") if request.path == "/refused" else None


class PoolMachine(RuleBasedStateMachine):
    """Borrowers that do as they like; after each step, promises 1, 2 and 5 hold."""

    server: EchoServer
    clock: Clock

    def __init__(self) -> None:
        super().__init__()
        config = ConnectionPoolConfig(
            max_connections=CAP,
            max_idle_time=IDLE_FOR,
            max_lifetime=LIFETIME,
            health_check_interval=1e6,  # the clock leaps; pongs do not
            acquire_timeout=10.0,
        )
        self.pool: ConnectionPool[Any] = ConnectionPool(config, base_uri=self.server.uri, name="machine")
        self.leases: list[PooledConnection[Any]] = []
        self.ended: set[int] = set()  # ids of connections that the server has ended
        self.was_released: list[PooledConnection[Any]] = []
        self.acquired = 0

    def teardown(self) -> None:
        self.leases.clear()
        self.was_released.clear()
        self.pool.close()
        assert faults(self.pool) == []
        wait_until(lambda: self.server.open_now == 0, message="the server sees all of them go")

    # --- rules

    @rule(path=st.sampled_from(PATHS))
    def acquire(self, path: str) -> None:
        if self.pool.is_closed:
            with pytest.raises(PoolClosedError):
                self.pool.acquire(path)
        elif len(self.leases) == CAP:
            with pytest.raises(PoolExhaustedError) as caught:
                self.pool.acquire(path, timeout=0.01)
            assert caught.value.max_connections == CAP
        else:
            lease = self.pool.acquire(path)
            assert lease.uri == redact(self.server.uri + path)
            assert lease.id not in {other.id for other in self.leases}, "lent twice"
            assert lease.id not in self.ended, "lent though the server had ended it"
            self.leases.append(lease)
            self.acquired += 1
            self.call(lease)

    @precondition(lambda self: len(self.leases) < CAP and not self.pool.is_closed)
    @rule()
    def acquire_what_is_refused(self) -> None:
        with pytest.raises(HandshakeError) as caught:
            self.pool.acquire("/refused")
        assert caught.value.status_code == 503

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.leases))
        if self.pool.is_closed or lease.id in self.ended:
            with pytest.raises(ConnectionClosedError):
                lease.recv(timeout=5)
        else:
            self.call(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), owing=st.booleans())
    def release(self, data: st.DataObject, owing: bool) -> None:
        lease = self.pick(data)
        alive = not self.pool.is_closed and lease.id not in self.ended
        if owing and alive:
            lease.send({"number": -1, "delay": 0.05})  # the answer must reach nobody
        lease.release()
        lease.release()
        self.was_released.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        lease = self.pick(data)
        lease.discard()
        lease.release()

    @precondition(lambda self: self.leases and not self.pool.is_closed)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        lease = self.pick(data)
        del lease
        gc.collect()
        wait_until(
            lambda: self.pool.stats().active_connections == len(self.leases), message="it is reclaimed"
        )

    @precondition(lambda self: self.was_released)
    @rule(data=st.data())
    def use_what_was_released(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from(self.was_released))
        with pytest.raises(Exception, match="was released"):
            lease.send("too late")

    @precondition(lambda self: self.acquired and not self.pool.is_closed)
    @rule(abrupt=st.booleans())
    def the_server_ends_all(self, abrupt: bool) -> None:
        ids = {entry.id for entry in state_of(self.pool).open_entries()}
        self.wait_for_the_server()
        if abrupt:
            self.server.cut_all()
        else:
            self.server.close_all(1001)
        wait_until(lambda: self.server.open_now == 0)
        self.ended |= ids

    @precondition(lambda self: not self.pool.is_closed)
    @rule(seconds=st.sampled_from([1.0, IDLE_FOR + 1, LIFETIME + 1]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.ahead += seconds
        if seconds > IDLE_FOR:
            state_of(self.pool).doorbell.put("it is later than you think")
            wait_until(lambda: self.pool.stats().idle_connections == 0, message="idle ones are closed")
            lent = {lease.id for lease in self.leases} - self.ended
            wait_until(lambda: self.server.open_now == len(lent), message="and the server sees it")

    @precondition(lambda self: not self.pool.is_closed and self.acquired > 4)
    @rule()
    def close(self) -> None:
        self.pool.close()
        wait_until(lambda: self.server.open_now == 0)

    # --- invariants

    @invariant()
    def the_cap_is_hard_as_the_server_counts(self) -> None:
        assert self.server.most_open <= CAP
        stats = self.pool.stats()
        assert stats.active_connections + stats.idle_connections <= CAP

    @invariant()
    def permits_out_are_live_leases(self) -> None:
        out = 0 if self.pool.is_closed else len(self.leases)
        assert self.pool.stats().active_connections == out
        assert len(state_of(self.pool).lent) == out

    @invariant()
    def the_books_agree(self) -> None:
        assert faults(self.pool) == []

    # --- helpers

    def pick(self, data: st.DataObject) -> PooledConnection[Any]:
        return self.leases.pop(data.draw(st.integers(0, len(self.leases) - 1)))

    @staticmethod
    def call(lease: PooledConnection[Any]) -> None:
        number = next(numbers)
        assert lease.request({"number": number}, timeout=10) == {"number": number}

    def wait_for_the_server(self) -> None:
        """Neither side's threads may know yet of the connection that was opened last, or ended."""
        lost = sum(lease.id in self.ended for lease in self.leases)

        def agree() -> bool:
            stats = self.pool.stats()
            return self.server.open_now == stats.active_connections + stats.idle_connections - lost

        wait_until(agree)


@pytest.mark.deep
@pytest.mark.filterwarnings("ignore:a lease of pool 'machine' was dropped:ResourceWarning")
def test_the_promises_hold_whatever_happens_in_whatever_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    for name, module in list(sys.modules.items()):
        if name.startswith("jetsocket") and hasattr(module, "monotonic"):
            monkeypatch.setattr(module, "monotonic", clock)
    monkeypatch.setattr("jetsocket.housekeeper.TICK", 0.02)  # as much as possible in as little time
    with EchoServer(process_request=refuse) as server:
        PoolMachine.server, PoolMachine.clock = server, clock
        run_state_machine_as_test(
            PoolMachine,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=20,
                deadline=None,
                phases=[Phase.explicit, Phase.generate],  # real time: a failure shrunk would not come again
                suppress_health_check=list(HealthCheck),
            ),
        )
        assert 1 < server.most_open <= CAP
