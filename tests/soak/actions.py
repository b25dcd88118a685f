"""What the threads of a soak do with a pool: one small story each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from jetsocket import (
    ConnectionClosedError,
    ConnectionPool,
    DecodeError,
    InvalidStateError,
    JetSocketError,
    MessageTooBigError,
    PooledConnection,
)
from tests.soak.children import in_child
from tests.soak.plan import Kind, Step
from tests.soak.tally import ForeignReplyError, OnPurpose, Tally

if TYPE_CHECKING:
    from tests.soak.world import Slot


class Actions:
    """The steps of a plan: a method for each name in `plan.ORDINARY`.

    A step that returns was answered; one that raises has failed.
    """

    def __init__(self, name: str, slot: Slot, patience: float) -> None:
        self.name = name
        self.slot = slot
        self.patience = patience
        self.may_fork = True
        self.tally = Tally()
        self._numbers = itertools.count(1)

    # --- the smallest steps

    @property
    def kind(self) -> Kind:
        return self.slot.kind

    @property
    def pool(self) -> ConnectionPool[Any]:
        return self.slot.pool

    def acquire(self, step: Step, timeout: float | None = None) -> PooledConnection[Any]:
        limit = self.patience if timeout is None else timeout
        return self.timed(limit, self.pool.acquire, self.slot.uri(step), limit)

    def timed(self, limit: float, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call, and note by how much (s) it outlasted its deadline."""
        began = monotonic()
        try:
            return call(*args, **kwargs)
        finally:
            self.tally.overrun = max(self.tally.overrun, monotonic() - began - limit)

    def message(self, step: Step, do: str = "echo", **more: Any) -> dict[str, Any]:
        ident = f"{self.name}.{next(self._numbers)}"
        return {"id": ident, "do": do, "pad": "p" * step.size, **more}

    def check(self, asked: dict[str, Any], reply: Any) -> None:
        """Every reply must be one's own."""
        self.tally.replies += 1
        if not isinstance(reply, dict) or reply.get("id") != asked["id"]:
            self.tally.foreign.append(f"{asked['id']} received {reply!r:.200} in a {self.kind.name} pool")
            raise ForeignReplyError

    def ask(self, conn: PooledConnection[Any], asked: dict[str, Any]) -> Any:
        reply = self.timed(self.patience, conn.request, asked, timeout=self.patience)
        self.check(asked, reply)
        return reply

    # --- the steps

    def request(self, step: Step, **options: Any) -> None:
        asked = self.message(step)
        reply = self.timed(
            self.patience, self.pool.request, self.slot.uri(step), asked, self.patience, **options
        )
        self.check(asked, reply)

    def idempotent(self, step: Step) -> None:
        self.request(step, idempotent=True)

    def talk(self, step: Step) -> None:
        with self.acquire(step) as conn:
            for _ in range(step.count):
                self.ask(conn, self.message(step))

    def late(self, step: Step) -> None:
        with self.acquire(step) as conn:
            self.ask(conn, self.message(step, "late", delay=step.delay))

    def stream(self, step: Step) -> None:
        asked = self.message(step, "stream", count=step.count)
        wanted = step.count // 2 if step.coin else step.count
        with self.acquire(step) as conn:
            conn.send(asked)
            for number in range(wanted):
                reply = self.timed(self.patience, conn.recv, self.patience)
                self.check(asked, reply)
                assert reply["number"] == number, f"message {reply['number']} in place of {number}"
            if wanted == 1 or (wanted < step.count and self.kind.config.get("reuse") == "quiet"):
                conn.discard()  # what is still to come looks like nothing to any pool: docs/limits.md

    def iterate(self, step: Step) -> None:
        asked = self.message(step, "stream", count=step.count)
        with self.acquire(step) as conn:
            conn.send(asked)
            conn.send(self.message(step, "close", code=1000))
            count = 0
            for reply in conn:
                self.check(asked, reply)
                count += 1
        if count < step.count:  # a server that leaves (1001) ends it as well, as normally as 1000
            raise ConnectionClosedError(f"{count} of {step.count} messages came", code=1001)

    def fire(self, step: Step) -> None:
        with self.acquire(step) as conn:
            for _ in range(step.count):
                conn.send(self.message(step, "nothing"))
            if step.coin:
                conn.discard()

    def drop(self, step: Step) -> None:
        conn = self.acquire(step)
        self.ask(conn, self.message(step))

    def cycle(self, step: Step) -> None:
        ring: list[Any] = [self.acquire(step)]
        ring.append(ring)
        self.ask(ring[0], self.message(step))

    def generator(self, step: Step) -> None:
        def suspended() -> Iterator[PooledConnection[Any]]:
            with self.acquire(step) as conn:
                yield conn

        ring: list[Any] = [suspended()]
        ring.append(ring)
        self.ask(next(ring[0]), self.message(step))

    def raises(self, step: Step) -> None:
        with self.acquire(step) as conn:
            if step.coin:
                conn.send(self.message(step, "late", delay=step.delay))
            raise OnPurpose

    def timeout(self, step: Step) -> None:
        asked = self.message(step, "late", delay=step.delay)
        with self.acquire(step) as conn:
            try:
                self.check(asked, conn.request(asked, timeout=step.delay / 2))
            except TimeoutError:
                if step.coin:
                    raise

    def twice(self, step: Step) -> None:
        with self.acquire(step) as conn:
            self.ask(conn, self.message(step, "twice"))

    def closed(self, step: Step) -> None:
        with self.acquire(step) as conn:
            self.ask(conn, self.message(step, "close", code=1011))

    def cut(self, step: Step) -> None:
        with self.acquire(step) as conn:
            self.ask(conn, self.message(step, "cut"))

    def garbage(self, step: Step) -> None:
        with self.acquire(step) as conn:
            try:
                self.ask(conn, self.message(step, "garbage"))
            except DecodeError:
                self.tally.replies += 1
            self.ask(conn, self.message(step))

    def big(self, step: Step) -> None:
        size = 40_000 if step.coin else 200_000
        with self.acquire(step) as conn:
            try:
                reply = self.ask(conn, self.message(step, "big", size=size))
            except MessageTooBigError:
                assert size > self.kind.limit, "too big, though it is not"
            else:
                assert len(reply["pad"]) == size and size <= self.kind.limit, "longer than the limit"

    def impatient(self, step: Step) -> None:
        with self.acquire(step, step.delay / 4) as conn:
            self.ask(conn, self.message(step))

    def at_once(self, step: Step) -> None:
        with self.acquire(step, 0) as conn:
            self.ask(conn, self.message(step))

    def ping(self, step: Step) -> None:
        with self.acquire(step) as conn:
            self.timed(self.patience, conn.ping, self.patience)
            self.ask(conn, self.message(step))

    def misuse(self, step: Step) -> None:
        conn = self.acquire(step)
        try:
            self.ask(conn, self.message(step))
        finally:
            conn.release()
            conn.release()
        for use in (lambda: conn.send("x"), lambda: conn.recv(1)):
            try:
                use()
            except InvalidStateError:
                continue
            raise AssertionError("a lease could be used after its release")

    def prewarm(self, step: Step) -> None:
        self.pool.prewarm(self.slot.uri(step), 2)

    def stats(self, step: Step) -> None:
        stats = self.pool.stats()
        assert stats.active_connections + stats.idle_connections <= self.kind.cap, f"too many: {stats}"
        assert repr(self.pool)

    def fork(self, step: Step) -> None:
        """A child that uses the pool; here, a connection lent meanwhile stays as it was."""
        if not self.may_fork:
            return self.talk(step)
        with self.acquire(step) as conn:
            self.tally.inherited += in_child(lambda: self.as_child(step, conn))
            self.ask(conn, self.message(step))

    def as_child(self, step: Step, lent: PooledConnection[Any]) -> None:
        self.name += "-child"
        plain = step._replace(secure=False)  # a lock inside OpenSSL may have been held at the fork
        for _ in range(3):
            self.talk(plain)
        try:
            lent.send("x")
        except (InvalidStateError, JetSocketError):
            return
        raise AssertionError("the parent's lease could be used in the child")
