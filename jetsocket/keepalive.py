"""Keeping connections alive: reading where no borrower does, pings, pongs, checks, the end of what is dead.

All of it runs in the housekeeper's thread and waits for nothing; for `check` see `user_checks`.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections import deque
from typing import TYPE_CHECKING

from jetsocket.clean import stale
from jetsocket.clock import monotonic
from jetsocket.connection_states import CHECKING, IDLE
from jetsocket.entry import Entry
from jetsocket.state import State
from jetsocket.suspects import ping_after_sleep, ping_siblings
from jetsocket.user_checks import Check, Checking
from jetsocket.wire.waits import Watcher, waiting
from jetsocket.workers import Worker

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

_FEW = 64
_NEXT_ROUND = 0.001  # s from now, which is in another round
_BUDGET = 0.1  # s that a chore may spend on what comes, over all connections
_LITTLE = 4096  # B: as much as an honest server sends unasked, a ping above all


class Liveness:
    """What the housekeeper knows of the connections that it watches.

    Attributes:
        passed_over: Descriptors for which the last round had no time.
        has_suspects: Whether connections owed a pong in the last round.
        checking: Runs the user's `check`; None without one.
    """

    def __init__(self, state: State, checks: Worker, check: Check | None) -> None:
        """Watch the connections of that pool; `check` replaces the protocol's ping, and runs in `checks`."""
        self.state = state
        self.passed_over: set[int] = set()
        self.has_suspects = False
        self.checking = None if check is None else Checking(state, checks, check, self._retire)
        self._watcher = Watcher()
        self._watched: dict[int, Entry] = {}
        self._watch_version = -1
        # A heap: when which is to be looked after (monotonic, s), by its id and its descriptor.
        self._looks: list[tuple[float, int, int]] = []

    def listen(self) -> None:
        """Read what came where no borrower is reading: answer pings, notice ends and foreign messages.

        They take turns of one read each: of those that never stop sending there may be many.
        """
        self._sync_watcher()
        until = monotonic() + _BUDGET
        turns = deque(self._in_turn(self._watcher.ready()))
        unheard = len(turns)
        while turns:
            fd = turns.popleft()
            unheard -= 1
            if self._hear(self._watched.get(fd)):
                turns.append(fd)
            if monotonic() >= until:
                break
        self.passed_over = set(itertools.islice(turns, max(0, unheard)))
        for wire in self.state.unfinished.copy():
            self.state.unfinished.discard(wire)  # first: it may put itself there again
            wire.finish(until)

    def _in_turn(self, ready: list[int]) -> list[int]:
        """In which order they are heard: first where there is little to read, then who was passed over."""
        if len(ready) < 2:
            return ready
        return sorted(ready, key=lambda fd: (waiting(fd) > _LITTLE, fd not in self.passed_over))

    def _hear(self, entry: Entry | None) -> bool:
        """Read once from a connection that has something to read; True if there is more."""
        if entry is None or not entry.wire.tend(0.0):
            return False
        if entry.place in (IDLE, CHECKING):
            self.retire_if_stale(entry, -math.inf)
        return entry.wire.wants_reading

    def _sync_watcher(self) -> None:
        version = self.state.watch_version
        if version == self._watch_version:
            return
        # Not those that still shake hands: what comes there is not for us.
        wanted = {entry.wire.fileno(): entry for entry in self.state.open_entries() if entry.created}
        wanted.pop(-1, None)
        for fd in self._watched.keys() - wanted.keys():
            self._watcher.remove(fd)
        for fd, entry in wanted.items():
            if self._watched.get(fd) is not entry:
                self._watcher.remove(fd)
                self._watcher.add(fd)
                first_look = entry.wire.last_heard + self.state.config.health_check_interval
                heapq.heappush(self._looks, (first_look, entry.id, fd))
        self._watched = wanted
        if len(self._looks) > 2 * len(wanted) + _FEW:  # most are of connections that are gone
            self._looks = [
                look for look in self._looks if look[2] in wanted and wanted[look[2]].id == look[1]
            ]
            heapq.heapify(self._looks)
        self._watch_version = version

    def retire_if_stale(self, entry: Entry, now: float) -> None:
        """Take an idle connection out of service if it must not be lent; a lent one is its borrower's."""
        if (reason := stale(entry, self.state.config.reuse, now)) is not None:
            self._retire(entry, reason)

    def _retire(self, entry: Entry, reason: str) -> None:
        if self.state.retire_if_idle(entry, reason):
            self.state.known.note_idle(entry, reason)
            entry.wire.start_close(1001 if reason in ("idle", "lifetime") else 1000)
            self.state.log.note(
                logging.DEBUG, "[%s] connection %d closed: %s", self.state.name, entry.id, reason
            )

    def keep_alive(self) -> None:
        """Ping what has been silent for health_check_interval; end what owes a pong for too long."""
        now, looks = monotonic(), self._looks
        while looks and looks[0][0] <= now:
            _, number, fd = looks[0]
            next_look: float | None = now  # if this raises
            try:
                entry = self._watched.get(fd)
                next_look = None if entry is None or entry.id != number else self._look_after(entry, now)
            finally:
                if next_look is None:
                    heapq.heappop(looks)
                else:  # not again in this round
                    heapq.heapreplace(looks, (max(next_look, now + _NEXT_ROUND), number, fd))

    def _look_after(self, entry: Entry, now: float) -> float | None:
        """Do what is due for one connection; when to look again (monotonic, s), None: it is over."""
        config, wire = self.state.config, entry.wire
        if wire.is_over:
            return None  # its borrower has not noticed yet, or it is closing
        if (since := wire.ping_due_since) is not None:
            overdue_at = max(since, wire.last_heard) + config.health_check_timeout
            if now < overdue_at:  # it may come meanwhile
                return min(overdue_at, now + config.health_check_interval)
            if monotonic() < now + _BUDGET:  # the rest in the next round
                self._mind_the_pong(entry)
            return now
        if now - wire.last_heard < config.health_check_interval:
            return wire.last_heard + config.health_check_interval
        if not self._ask(entry):
            self._mind_the_stall(entry, now)
        if wire.ping_due_since is None:
            return now
        return now + min(config.health_check_timeout, config.health_check_interval)

    def _is_overdue(self, wire: WebSocket) -> bool:
        since = wire.ping_due_since
        if since is None:
            return False
        return monotonic() - max(since, wire.last_heard) >= self.state.config.health_check_timeout

    def _mind_the_pong(self, entry: Entry) -> None:
        """A pong is overdue: end the connection, unless it is this side that holds the ping or pong up."""
        wire = entry.wire
        looked = wire.tend(0.0)  # this thread may have been stopped since it listened, and the pong be there
        if wire.is_over or not self._is_overdue(wire):
            return
        taken, before = wire.bytes_taken, entry.taken_at_ping
        ping_waits = before < taken < wire.bytes_out  # behind a large message, and the server is at it
        if (looked and wire.has_backlog) or ping_waits:  # the pong may be behind what is not read yet
            entry.taken_at_ping = taken
            wire.last_heard = monotonic()
        else:
            self._give_up(entry, "no pong came")

    def _ask(self, entry: Entry) -> bool:
        """Ask whether the server is alive; False: not possible, because it takes nothing just now."""
        if entry.dispatcher is not None and (heartbeat := entry.dispatcher.matching.heartbeat) is not None:
            entry.wire.push_message(heartbeat)
        if self.checking is None:
            wire, out = entry.wire, entry.wire.bytes_out
            # Nothing has left since the last ping, which was answered: then the server has taken all of it.
            entry.taken_at_ping = out if out == entry.out_with_ping else wire.bytes_taken
            is_sent = wire.send_ping()
            entry.out_with_ping = wire.bytes_out if is_sent else -1
            return is_sent
        if not self.checking.is_stuck and self.state.take_for_check(entry):
            self.checking.submit(entry)
        return True

    def _mind_the_stall(self, entry: Entry, now: float) -> None:
        """A borrower's send is under way and leaves no room for a ping: then bytes must move instead."""
        taken = entry.wire.bytes_taken
        if entry.stalled_at_bytes != taken:
            entry.stalled_at_bytes, entry.stalled_since = taken, now
        elif now - entry.stalled_since >= self.state.config.health_check_timeout:
            self._give_up(entry, "the server took nothing")

    def _give_up(self, entry: Entry, why: str) -> None:
        """No sign of life for too long: end the connection, whichever borrower has it."""
        told = f"{why} within health_check_timeout={self.state.config.health_check_timeout:g} s"
        self._cut(entry, told)
        ping_siblings(self.state, entry)

    def _cut(self, entry: Entry, told: str) -> None:
        entry.wire.cut(told)
        self.state.log.note(logging.WARNING, "[%s] connection %d: %s", self.state.name, entry.id, told)
        if self.state.retire_if_idle(entry, "pong overdue"):
            entry.wire.shutdown()
            self.state.forget([entry])

    def hear_suspects(self) -> None:
        """Those that had to answer a ping before they are lent again: have they?"""
        now, suspects = monotonic(), self.state.suspects()
        for entry in suspects:
            wire = entry.wire
            if wire.is_over:
                self._retire(entry, "closed")
            elif wire.last_heard > entry.suspected_at:
                self.state.put_back(entry)
            elif self.checking is not None:
                if self.checking.is_stuck:
                    self._retire(entry, "check failed")  # there is no way to ask, and it may be dead
                    continue
                self.state.hand_to_check(entry)
                self.checking.submit(entry)
            elif now >= entry.answer_by:
                self._cut(entry, "no pong came in time, which it owed before it could be lent again")
            elif wire.ping_due_since is None:  # there was no room for it, or an exception struck its sender
                wire.send_ping()
        self.has_suspects = bool(suspects)

    def mind_sleep(self) -> None:
        """After a suspend of the machine, have each idle connection answer a ping before it is lent."""
        ping_after_sleep(self.state, self.state.slept)


__all__ = ["Liveness"]
