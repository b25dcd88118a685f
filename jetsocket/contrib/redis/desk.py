"""What the threads of one process share: its books under one lock, and calls of the script, one at a time."""

from __future__ import annotations

import logging
import threading
from collections import deque

from jetsocket.clock import with_sleep
from jetsocket.contrib.redis.link import FAILURES, Link, LostError, Source, here
from jetsocket.contrib.redis.member import NO, NOW, WAIT, Member
from jetsocket.contrib.redis.press import CLOSE_IDLE, CLOSE_NEXT, TAKE_BACK
from jetsocket.contrib.redis.script import Answer
from jetsocket.contrib.redis.tokens import Outcome, Settings
from jetsocket.interrupts import is_alarm
from jetsocket.limits import Owner
from jetsocket.text import printable

__all__ = ["COME_BACK", "LOG", "Away", "Desk"]

LOG = logging.getLogger("jetsocket.redis")
COME_BACK = 0.5
"""s in which who has waited in vain may come back to its place in line."""


class Away(Exception):
    """Redis does not answer. Never leaves the package."""


class Desk:
    """The books of a process, and the connection on which it calls the script.

    Attributes:
        lock: Guards the books and all that is below.
        changed: Of that lock: tells those who wait in line.
        member: The books.
        line: Those who wait, in the order of coming.
        left_at: When the line became empty, if those who left may come back; 0: they won't.
        owners: The pools.
        is_over: This process has left the group, or is about to.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        """Connect to nothing yet."""
        self.settings = settings
        self.source = source
        self.lock = threading.Lock()
        self.changed = threading.Condition(self.lock)
        self.member = Member(settings)
        self.line: deque[object] = deque()
        self.left_at = 0.0
        self.owners: list[Owner] = []
        self.is_over = False
        self._link = Link(source, settings.patience)
        self._calling = threading.Lock()  # one call at a time; guards the link
        self._next_asked = 0  # which owner is asked to close what is idle

    @property
    def is_connected(self) -> bool:
        """Whether a call would not have to connect first."""
        return self._link.is_open

    def call(
        self,
        *,
        renew: bool = False,
        now_or_never: bool = False,
        patience: float | None = None,
        probes: bool = False,
        again: bool = True,
    ) -> None:
        """Call the script once, and do what follows from its answer.

        Args:
            renew: All leases are renewed.
            now_or_never: A slot is wanted at once, or not.
            patience: s for the answer, if not as usual.
            probes: Redis is asked though it is away.
            again: Whether to connect anew, which may take long, if the connection is lost.

        Raises:
            Away: Redis does not answer.
        """
        patience = self.settings.patience if patience is None else patience
        if not self._calling.acquire(timeout=patience if self._link.is_open else 3 * patience):
            raise Away
        try:
            with self.lock:
                if self.is_over or (self.member.away is not None and not probes):
                    raise Away
                want = self._want(now_or_never)
                sent = with_sleep()
                call = self.member.call(sent, renew=renew, want=want, label=here())
            try:
                answer = Answer.of(self._link.run(call, patience, again=again))
            except FAILURES as error:
                if is_alarm(error):
                    raise
                if not again and isinstance(error, LostError):
                    with self.lock:  # it broke, which says nothing of Redis: the connector finds out
                        self.member.broke(with_sleep())
                else:
                    self.note_away(error)
                raise Away from None
            with self.lock:
                outcome = self.member.answered(call, answer, sent, with_sleep())
                self.changed.notify_all()
        finally:
            self._calling.release()
        self.do(outcome)

    def try_call(self) -> None:
        """Say what is to be said now; if Redis is away, it is said when it is back."""
        try:
            self.call()
        except Away:
            LOG.debug("%s: said later", self.settings.name)

    def _want(self, now_or_never: bool) -> int:
        if self.line or (self.member.asking and with_sleep() < self.left_at + COME_BACK):
            return WAIT
        if now_or_never:
            return NOW
        self.member.return_unwanted()
        return NO

    def note_away(self, error: BaseException) -> None:
        """Redis does not answer, for that reason."""
        why = printable(str(error)) or type(error).__name__
        with self.lock:
            is_news = self.member.failed(why, with_sleep())
            self.changed.notify_all()
        if is_news:
            told = (self.settings.name, self.source, why, self.settings.on_error)
            LOG.warning("%s: %s does not answer (%s); on_error is %r", *told)

    def do(self, outcome: Outcome) -> None:
        """Tell the pools, and the log; with no lock held."""
        name = self.settings.name
        if outcome.is_back:
            LOG.info("%s: %s answers again", name, self.source)
        if outcome.limits is not None:
            told = "%s: a process with limit=%d is in this group, and the smallest counts; here it is %d"
            LOG.warning(told, name, *outcome.limits)
        with self.lock:
            owners = self.member.by_use(self.owners)
        for token, why in outcome.lost:
            LOG.warning("%s: slot %s is lost: %s", name, token.fence, why)
            for owner in owners if token.owner is None else [token.owner]:
                owner.lost(token, why)
        if owners:
            for each in outcome.pressing:
                self._press(owners, each)
            if outcome.unslotted:
                owners[0].give_up(outcome.unslotted, returned=True)

    def _press(self, owners: list[Owner], what: str) -> None:
        """Have something closed for those who wait, mostly by the pool that has most."""
        if what == CLOSE_IDLE:
            owners[self._next_asked % len(owners)].give_up(1)
            self._next_asked += 1
        elif what == CLOSE_NEXT:
            owners[0].give_up(1, returned=True)
        elif what == TAKE_BACK:
            for owner in owners:
                owner.give_up(0, returned=True)

    def say_goodbye(self, timeout: float) -> None:
        """Give back everything with one call, and disconnect; within `timeout` s."""
        until = with_sleep() + timeout
        if not self._calling.acquire(timeout=max(0.0, timeout)):
            return  # Redis does not answer: the leases end by themselves
        try:
            with self.lock:
                call, is_away = self.member.leave(), self.member.away is not None
            if self._link.is_open and not is_away:
                self._link.run(call, max(0.01, min(until - with_sleep(), self.settings.patience)))
        except FAILURES as error:
            if is_alarm(error):
                raise
            LOG.debug("%s: the leases end by themselves: %s", self.settings.name, error)
        finally:
            self._link.close()
            self._calling.release()

    def disown(self) -> None:
        """In a forked child: close its copy of the parent's connection."""
        self.is_over = True
        self._link.close()
