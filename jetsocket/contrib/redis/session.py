"""What a limiter is in one process: its thread, its connections to Redis, and the end of both.

The thread waits for messages on one connection, and calls the script on the other every third of a lease.
Openers and what releases call it there themselves. While Redis is away, a second thread tries to reach it: to
connect may take as long as a resolver likes, and the first one has to see that leases end.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from jetsocket.clock import with_sleep
from jetsocket.contrib.redis import line
from jetsocket.contrib.redis.desk import COME_BACK, LOG, Away, Desk
from jetsocket.contrib.redis.link import FAILURES, Link, Source
from jetsocket.contrib.redis.script import inbox_of
from jetsocket.contrib.redis.tokens import Outcome, Settings, Token
from jetsocket.limits import Owner

__all__ = ["Session"]

_SLICE = 0.25  # s; after a suspend of the machine, the thread sees after so long that leases have ended
_QUICK = 0.3  # s for an answer when a lease has ended already


class Session:
    """A limiter in this process.

    Attributes:
        pid: The process.
        is_ending: The process ends: what is released goes back with the last call.
    """

    def __init__(self, settings: Settings, source: Source) -> None:
        """Connect to nothing yet, and start nothing."""
        self.pid = os.getpid()
        self.is_ending = False
        self._settings = settings
        self._desk = Desk(settings, source)
        self._inbox = Link(
            source, settings.patience
        )  # the thread's own, or the connector's while there is one
        self._thread: threading.Thread | None = None
        self._connector: threading.Thread | None = None
        self._starting = threading.Lock()  # guards the thread, and who ends it
        self._has_left = False
        self._over = threading.Event()

    # --- for the limiter

    @property
    def owners(self) -> int:
        """How many pools use it."""
        with self._desk.lock:
            return len(self._desk.owners)

    def bind(self, owner: Owner) -> None:
        """One more pool uses it."""
        with self._desk.lock:
            self._desk.owners.append(owner)

    def unbind(self, owner: Owner) -> bool:
        """One pool uses it no more; returns whether that was the last."""
        with self._desk.lock:
            self._desk.owners = [each for each in self._desk.owners if each is not owner]
            return not self._desk.owners

    def take(self, owner: Owner | None) -> Token | None:
        """A slot at once, or none; see `line.take`."""
        self._ensure_thread()
        return line.take(self._desk, owner)

    def wait(self, until: float, wanted: Callable[[], bool], owner: Owner | None) -> Token | None:
        """A slot before `until`, or none; see `line.wait`."""
        self._ensure_thread()
        return line.wait(self._desk, until, wanted, owner)

    def release(self, token: Token) -> None:
        """The connection of a token is closed.

        Raises:
            ValueError: It was released before.
        """
        desk = self._desk
        with desk.lock:
            if not token.lease.startswith(desk.member.id):
                return  # of a parent, or of a time before this process left the group
            is_due = desk.member.release(token)
            outcome = Outcome(pressing=desk.member.press.released())
            is_away = desk.member.away is not None
            desk.changed.notify_all()
        desk.do(outcome)
        if is_due and not is_away and not self.is_ending:
            desk.try_call()

    def stats(self) -> dict[str, Any]:
        """Figures."""
        with self._desk.lock:
            return self._desk.member.stats()

    # --- the thread

    def _ensure_thread(self) -> None:
        """See that the thread runs."""
        if self._thread is not None and self._thread.is_alive():
            return
        with self._starting:
            if self._has_left or (self._thread is not None and self._thread.is_alive()):
                return
            name = f"jetsocket-redis-{self._settings.name}"
            self._thread = threading.Thread(target=self._run, name=name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while not self._is_over():
            try:
                self._end_leases()
                reads = self._is_connected()
                self._say_what_is_due()
                if reads:
                    self._read_inbox()
                else:
                    self._over.wait(self._rest())
            except Away:
                continue  # the connector is started, and this goes by what is in the books
            except Exception:  # noqa: BLE001 - if this thread ended, no lease would
                LOG.exception("%s: the limiter's thread goes on", self._settings.name)
                self._over.wait(_SLICE)
        self._inbox.close()
        self.leave(self._settings.patience)  # if the limiter was dropped, no other does

    def _is_over(self) -> bool:
        return self._desk.is_over

    def _rest(self) -> float:
        """For how long (s) nothing has to be done."""
        with self._desk.lock:
            member = self._desk.member
            due = member.next_due() if self._can_call() else member.first_end()
            return max(0.005, min(_SLICE, due - with_sleep()))

    def _can_call(self) -> bool:
        """Whether a call goes out at once. To connect is not this thread's business."""
        return self._desk.is_connected and self._desk.member.away is None

    def _end_leases(self) -> None:
        now = with_sleep()
        with self._desk.lock:
            is_late = self._desk.member.away is None and self._desk.member.is_overdue(now)
        try:
            if is_late and self._desk.is_connected:  # we were stopped: grants not taken are ours still
                self._desk.call(renew=True, patience=min(_QUICK, self._settings.patience), again=False)
        finally:
            with self._desk.lock:
                outcome = self._desk.member.end_leases(with_sleep())
            self._desk.do(outcome)

    def _say_what_is_due(self) -> None:
        with self._desk.lock:
            member, now = self._desk.member, with_sleep()
            is_left = (
                bool(self._desk.left_at) and not self._desk.line and now >= self._desk.left_at + COME_BACK
            )
            is_due = member.is_call_due(now) or (is_left and (member.asking or bool(member.granted)))
            renews, ends = now >= member.renew_at, member.first_end()
            is_due = is_due and self._can_call()
        if is_due:
            self._desk.call(
                renew=renews, patience=max(0.01, min(self._settings.patience, ends - now)), again=False
            )

    def _read_inbox(self) -> None:
        inbox = inbox_of(self._settings.name, self._desk.member.id)
        try:
            text = self._inbox.next_message(inbox, self._settings.lease / 3, self._rest())
        except FAILURES as error:
            LOG.debug("%s: the inbox is lost: %s", self._settings.name, error)
            with self._desk.lock:
                self._desk.member.broke(with_sleep())
            return
        if text is not None:
            with self._desk.lock:
                outcome = self._desk.member.message(text, with_sleep())
                self._desk.changed.notify_all()
            self._desk.do(outcome)

    def _is_connected(self) -> bool:
        """Whether both connections are there; else a thread of its own sees to it."""
        connector = self._connector
        if connector is not None:
            if connector.is_alive():
                return False
            self._connector = None
        with self._desk.lock:
            can_call = self._can_call()
        if can_call and self._inbox.is_open:
            return True
        name = f"jetsocket-redis-{self._settings.name}-connects"
        self._connector = threading.Thread(target=self._connect, name=name, daemon=True)
        self._connector.start()
        return False

    def _connect(self) -> None:
        """Reach Redis, say at once what is held, since one that began anew waits for that; open the inbox."""
        while not self._is_over():
            try:
                self._desk.call(renew=True, probes=True)
                self._inbox.open()
                if self._is_over():  # the thread has closed it already
                    self._inbox.close()
                return
            except Away:
                self._over.wait(_SLICE)
            except FAILURES as error:
                self._desk.note_away(error)
                self._over.wait(_SLICE)

    # --- the end

    def leave(self, timeout: float) -> None:
        """Give back everything, and end the thread; within `timeout` s."""
        until = with_sleep() + timeout
        with self._starting:
            has_left, self._has_left = self._has_left, True
            thread = self._thread
        if has_left:
            return
        self._desk.is_over = True
        self._over.set()
        with self._desk.lock:
            self._desk.changed.notify_all()
        self._desk.say_goodbye(timeout)
        if thread is not None and thread is not threading.current_thread():
            thread.join(max(0.0, min(2 * _SLICE, until - with_sleep())))

    def drop(self) -> None:
        """The limiter is gone: the thread leaves the group. For a finalizer, so it takes no lock."""
        self._desk.is_over = True

    def disown(self) -> None:
        """In a forked child: close its copies of the parent's connections."""
        self._desk.disown()
        self._inbox.close()
