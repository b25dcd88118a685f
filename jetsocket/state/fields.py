"""The fields of a pool's state."""

from __future__ import annotations

import os
import threading
import weakref
from abc import abstractmethod
from collections import deque
from queue import SimpleQueue
from typing import TYPE_CHECKING

from jetsocket.borrower import Borrower
from jetsocket.clock import slept
from jetsocket.config import ConnectionPoolConfig
from jetsocket.cooldown import Troubles, chance
from jetsocket.counting import Totals
from jetsocket.deferred_log import DeferredLog
from jetsocket.dial_order import Dial
from jetsocket.entry import Entry
from jetsocket.events import Events
from jetsocket.exceptions import PoolClosedError
from jetsocket.known_uris import KnownUris
from jetsocket.state.idle_queues import Idle, Shared
from jetsocket.state.line import Line
from jetsocket.state.locking import BUSY, CALM, Steps
from jetsocket.uris import Target
from jetsocket.wire.channel import Channel

if TYPE_CHECKING:
    from jetsocket.housekeeper import Housekeeper
    from jetsocket.quotas import Grant, Quota, Quotas

NEVER = float("inf")

TICK = 0.5
"""s between two rounds of the housekeeper."""


class Fields(Steps):
    """What all steps read and write, each under the lock unless it says otherwise.

    Attributes:
        pid: The process it is of.
        pool: The pool that it is of, which it does not keep alive; None: of no pool.
        slots: The right of a connection to exist: one for each entry, and for each dial that is about to
            begin.
        owed: Slots that connections still have though `resize` has taken them away.
        entries: All connections that have a slot, whatever their place.
        idle: Those that are idle, by URI and by age.
        closing: Those that are closing.
        line: Who waits.
        lent: The borrowers that have a connection. The return of a lease is claimed by removing it from here,
            in one call without the lock.
        shared: The connections that are shared, by key.
        dials: The orders to open a connection that are not over.
        resting: Those of which an attempt has failed, and the next one is to come.
        queued: Those that no opener has taken up.
        left_behind: Those that ended before their thread came back from them; see `stuck_threads`.
        troubles: The URIs whose last dial failed.
        floors: How many connections are to be kept open, by key, as `prewarm(keep=True)` asked.
        closed: No more leases, ever.
        draining: No more leases; those that are out may come back.
        cut: Whether `close` found leases out.
        slept: For how long the machine had slept since it was started, when that was last looked at (s).
        has_dispatchers: Whether the pool has a correlation.
        has_check: Whether the user's `check` takes the place of pings, which the server may not answer.
        watch_version: Changes whenever the set of open connections does.
        plan_at: When the line is to be looked at again (monotonic, s), by the housekeeper.
        doorbell: Wakes the housekeeper.
        log: What is to be logged, by a thread that may.
        known: What was found out about the URIs; touched without the lock.
        quotas: The limiters that count for the pool; None: it has none.
        asking: The one dial for each limiter that waits for it; it counts as being opened for no URI.
        to_give_up: How many connections are to be closed when they come back, as limiters asked for.
        spent: What limiters gave, and no connection has any more; the same may be there twice.
        unfinished: Connections that the housekeeper is to go on with; see `Channel.unfinished`.
        events: Who is told what the pool does; None: no listener is attached.
    """

    def __init__(self, config: ConnectionPoolConfig, name: str, close_timeout: float) -> None:
        """Begin with all slots free and no connection."""
        super().__init__(name)
        self.pid = os.getpid()
        self.pool: weakref.ref[object] | None = None
        self.config = config
        self.close_timeout = close_timeout
        self.slots = threading.BoundedSemaphore(config.max_connections)
        self.owed = 0
        self.entries: set[Entry] = set()
        self.idle = Idle(Shared(self.lock))
        self.closing: dict[Entry, None] = {}
        self.line = Line()
        self.lent: dict[Borrower, None] = {}
        self.shared: dict[str, dict[Entry, None]] = {}
        self.dials: dict[Dial, None] = {}
        self.resting: set[Dial] = set()
        self.queued: deque[Dial] = deque()
        self.left_behind: dict[Dial, None] = {}
        self.troubles = Troubles(config.connect_cooldown, chance)
        self.floors: dict[str, tuple[Target, int]] = {}
        self.closed = self.draining = self.cut = False
        self.slept = slept()
        self.has_check = self.has_dispatchers = False
        self.watch_version = 0
        self.plan_at = NEVER
        self.doorbell: SimpleQueue[object] = SimpleQueue()
        self.log = DeferredLog()
        self.known = KnownUris(self.log, name)
        self.unfinished: set[Channel] = set()
        self.events: Events | None = None
        self.last_connect_error: BaseException | None = None
        self.parked = self.starting = 0  # openers that wait for an order, and those that are being started
        self.wake_opener: SimpleQueue[None] = SimpleQueue()
        self.quotas: Quotas | None = None
        self.asking: dict[Quota, Dial] = {}
        self.to_give_up = 0
        self.spent: deque[Grant] = deque()
        self.totals = Totals()
        self._drain_waiters: list[threading.Lock] = []
        self._housekeeper: Housekeeper | None = None

    def _condition(self) -> int:
        if self.asking:
            self._see_who_is_wanted()
        return BUSY if self.draining or self.owed or self.to_give_up or self.line.order else CALM

    def end_as(self, other: Fields) -> None:
        """Begin closed or drained, if another one is."""
        self.closed, self.draining = other.closed, other.draining
        self.condition = self._condition()

    @abstractmethod
    def _see_who_is_wanted(self) -> None:
        """Tell the dials that wait for limiters whether their callers still do."""

    def closed_error(self) -> PoolClosedError:
        """What to tell a caller once there are no leases any more."""
        what = "closed" if self.closed else "drained"
        return PoolClosedError(f"pool {self.name!r} is {what}: it gives no more leases; make a new pool")


__all__ = ["NEVER", "TICK", "Fields"]
