"""One process of a group: what it holds, asks for and is to say next. No I/O, no lock, no clock of its own.

`Session` calls it with its lock held, tells it the time (CLOCK_BOOTTIME, s), and does what it answers.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from typing import Any

from jetsocket.contrib.redis.press import Press
from jetsocket.contrib.redis.script import Answer, Call
from jetsocket.contrib.redis.tokens import NEVER, Outcome, Settings, Token, fence_of
from jetsocket.limits import Owner

__all__ = ["NO", "NOW", "WAIT", "Member"]

NO, WAIT, NOW = 0, 1, 2  # what a call wants

_RETRY = 0.25  # s

_TAKEN = "its lease ended unrenewed, and another process has it"
_UNRENEWED = "its lease ended unrenewed"
_NO_ROOM = "it was opened without one while Redis was away, and there is none for it"


class Member:
    """The books of one process.

    Attributes:
        id: What the group knows it by; of os.urandom, for a fork copies the state of `random`.
        away: Why Redis does not answer; None: it does, or has not been asked.
        granted: Tokens that no opener has taken yet.
        renew_at: When the leases are to be renewed.
        asking: Whether the group knows, or may know, that a slot is wanted.
    """

    def __init__(self, settings: Settings) -> None:
        """Hold nothing."""
        self.settings = settings
        self.id = os.urandom(8).hex()
        self.away: str | None = None
        self.granted: deque[Token] = deque()
        self.renew_at = 0.0
        self.asking = False
        self.press = Press()
        self.errors = self.lost = self.grants = 0
        self._out: dict[str, Token] = {}  # by lease
        self._give_back: dict[str, None] = {}
        self._seq = self._ask = self._unslotted = 0
        self._ask_from = NEVER  # a grant for this asking can't be older
        self._epoch, self._whole, self._highest = "", False, 0
        self._last: Answer | None = None
        self._limit_told = settings.limit
        self._refused = 0  # of those without a slot

    # --- calls

    def call(self, now: float, *, renew: bool, want: int, label: str = "") -> Call:
        """What is said next.

        Args:
            now: A time before it is sent.
            renew: Whether all leases are renewed, and slots asked for what has none.
            want: `NO` withdraws an asking that is open; `WAIT`; `NOW`: now or never.
            label: What people are to know of this process.
        """
        if want != NO and not self.asking:
            self.asking, self._ask_from = True, now
            self._ask += 1
        return self._made(
            ask=self._ask if self.asking else 0,
            want=want,
            label=label,
            renew=tuple(self._out) if renew else (),
            renews=renew,
            give_back=tuple(self._give_back),
        )

    def leave(self) -> Call:
        """The last call. What is open still, in use by a thread while the interpreter ends, ends with it."""
        self.return_unwanted()
        self.asking = False
        renew = tuple(token.lease for token in self._out.values() if token.state == "slotted")
        return self._made(op="leave", renew=renew, give_back=tuple(self._give_back))

    def _made(self, **said: Any) -> Call:
        self._seq += 1
        settings = self.settings
        return Call(
            name=settings.name,
            process=self.id,
            seq=self._seq,
            lease=settings.lease,
            limit=settings.limit,
            turn=settings.turn,
            epoch=self._epoch,
            whole=self._whole,
            highest=self._highest,
            **said,
        )

    def answered(self, call: Call, answer: Answer, sent: float, now: float) -> Outcome:
        """What follows from an answer.

        Args:
            call: What was said.
            answer: What the script has answered.
            sent: A time before the call was sent: leases are reckoned from there.
            now: The time.
        """
        outcome = Outcome(is_back=self.away is not None)
        self.away = None
        self._epoch, self._whole, self._last = answer.epoch, True, answer
        for lease in call.give_back:
            self._give_back.pop(lease, None)
        self._renewed(call, answer, sent, now, outcome)
        self._asked(call, answer, sent)
        outcome.pressing += self.press.told(answer.duty, answer.delay, now)
        if answer.limit != self._limit_told:
            self._limit_told = answer.limit
            if answer.limit != self.settings.limit:
                outcome.limits = (answer.limit, self.settings.limit)
        self._plan(call, answer, sent, now)
        return outcome

    def _plan(self, call: Call, answer: Answer, sent: float, now: float) -> None:
        """When to renew again; sooner, if there are no grants yet, and an opener waits for one."""
        if call.renews:
            self.renew_at = sent + self.settings.lease / 3
        slotless = any(token.state == "slotless" for token in self._out.values())
        if answer.grace > 0 and (self.asking or slotless):
            self.renew_at = min(self.renew_at, now + answer.grace + 0.001)

    def _renewed(self, call: Call, answer: Answer, sent: float, now: float, outcome: Outcome) -> None:
        until, lost = sent + self.settings.lease, frozenset(answer.lost)
        for lease in call.renew:
            token, verdict = self._out.get(lease), answer.adopted.get(lease)
            if verdict is not None:
                self._adopted(lease, verdict, until, now)
            elif token is None:
                continue  # given back meanwhile
            elif lease in lost:
                self._lose(token, _TAKEN, outcome)
            else:
                token.until = until
        refused = sum(token.refused_at is not None for token in self._out.values())
        outcome.unslotted = max(0, refused - self._refused)
        self._refused = refused

    def _adopted(self, asked: str, verdict: str, until: float, now: float) -> None:
        """Redis has said whether there is a slot for one that had none."""
        token = self._out.get(asked)
        has_slot = verdict not in ("", "-")
        if token is None or token.state != "slotless":
            if has_slot:  # closed meanwhile, or served by one that was closed
                self._give_back[verdict] = None
        elif has_slot:
            self._slot(token, verdict, until)
        elif verdict == "-" and token.refused_at is None:
            token.refused_at = now

    def _slot(self, token: Token, lease: str, until: float) -> None:
        del self._out[token.lease]
        token.lease, token.until, token.fence = lease, until, fence_of(lease)
        token.state, token.refused_at = "slotted", None
        self._highest = max(self._highest, token.fence)
        self._out[lease] = token

    def _asked(self, call: Call, answer: Answer, sent: float) -> None:
        is_open = self.asking and call.ask == self._ask
        until = sent + self.settings.lease
        if answer.granted:
            if is_open:
                self._grant(answer.granted, until)
            elif answer.granted in self._out:
                self._out[answer.granted].until = until
            else:  # it came by the inbox, and is closed already
                self._give_back[answer.granted] = None
        elif is_open and call.want == WAIT:
            self._ask_from = sent
        elif is_open:
            self.asking = False

    def _grant(self, lease: str, until: float) -> None:
        token = Token(lease, fence_of(lease), until)
        self._highest = max(self._highest, fence_of(lease))
        self.asking = False
        self.grants += 1
        self._out[lease] = token
        self.granted.append(token)

    def message(self, text: str, now: float) -> Outcome:
        """What follows from a message in the inbox."""
        outcome = Outcome()
        kind, first, second = text.split(" ")
        if kind == "w":
            self.renew_at = min(self.renew_at, now + int(second) / 1000)
        elif kind == "u":
            outcome.pressing = self.press.told(int(first), int(second) / 1000, now)
        elif self.asking and int(first) == self._ask:
            until = self._ask_from + self.settings.lease
            if now < until - self.settings.margin:
                self._grant(second, until)
            else:  # it lay there while this process was stopped
                self._give_back[second] = None
        return outcome

    def failed(self, why: str, now: float) -> bool:
        """Redis does not answer; returns whether that is news."""
        is_news = self.away is None
        self.away, self._whole = why, False
        self.errors += 1
        self.renew_at = now + _RETRY
        return is_news

    def broke(self, now: float) -> None:
        """The connection of the inbox is lost: Redis may have begun anew, and is told first what is held."""
        self._whole, self.renew_at = False, now

    # --- tokens

    def unslotted(self) -> Token | None:
        """A token without a slot, while Redis is away; None: `on_error` allows none, or no more."""
        share = self.settings.share
        if self.settings.on_error == "closed" or (share is not None and len(self._out) >= share):
            return None
        self._unslotted += 1
        token = Token(f"{self.id}:u{self._unslotted}", None, NEVER)
        self._out[token.lease] = token
        return token

    def release(self, token: Token) -> bool:
        """A connection is closed; returns whether Redis is to be told.

        Raises:
            ValueError: It was released before.
        """
        if token.state == "released":
            raise ValueError(f"{token!r} was released before")
        state, token.state = token.state, "released"
        if state == "ended":
            self._give_back[token.lease] = None
            return True
        if state != "lost":
            del self._out[token.lease]
        if state != "slotted":
            return False
        for other in self._out.values():
            if other.refused_at is not None:  # its slot serves one that has none
                self._slot(other, token.lease, token.until)
                return False
        self._give_back[token.lease] = None
        return True

    def return_unwanted(self) -> bool:
        """No opener takes what was granted: it goes back. Returns whether there was something."""
        had = bool(self.granted)
        while self.granted:
            self.release(self.granted.popleft())
        return had

    def end_leases(self, now: float) -> Outcome:
        """What can't be kept open any longer."""
        outcome, margin = Outcome(), self.settings.margin
        for token in list(self._out.values()):
            if token.state == "slotted" and token.until - margin <= now:
                if not self._keeps_without_slot(token):
                    self._end(token, outcome)
            elif token.refused_at is not None and token.refused_at + self.settings.lease <= now:
                self._lose(token, _NO_ROOM, outcome)
        return outcome

    def _keeps_without_slot(self, token: Token) -> bool:
        settings = self.settings
        if self.away is None or settings.on_error == "closed":
            return False
        slotless = sum(other.state == "slotless" for other in self._out.values())
        if settings.share is not None and slotless >= settings.share:
            return False
        del self._out[token.lease]
        self._give_back[token.lease] = None
        self._unslotted += 1
        token.state, token.lease, token.until = "slotless", f"{self.id}:u{self._unslotted}", NEVER
        self._out[token.lease] = token
        return True

    def _end(self, token: Token, outcome: Outcome) -> None:
        """Its lease is over. Redis, which may renew it by a call that it runs late, is told of the end."""
        if token in self.granted:
            self._give_back[token.lease] = None
        self._lose(token, _UNRENEWED, outcome)
        token.state = "ended"

    def _lose(self, token: Token, why: str, outcome: Outcome) -> None:
        if token in self.granted:
            self.granted.remove(token)  # no opener has it
        else:
            outcome.lost.append((token, why))
        del self._out[token.lease]
        token.state, token.refused_at = "lost", None
        self.lost += 1

    def is_overdue(self, now: float) -> bool:
        """Whether a lease has ended already: this process was stopped, or its machine suspended."""
        return any(token.until <= now for token in self._out.values())

    @property
    def owes(self) -> bool:
        """Whether Redis has not been told of something that is given back."""
        return bool(self._give_back)

    # --- what is due, and what is told

    def next_due(self) -> float:
        """When the next call is due, or a lease ends."""
        check = self.press.check_at
        return min(self.renew_at, NEVER if check is None else check, self.first_end())

    def first_end(self) -> float:
        """When the first connection has to be closed, unless its lease is renewed."""
        margin, lease = self.settings.margin, self.settings.lease
        ends = (token.until - margin for token in self._out.values() if token.state == "slotted")
        refusals = (each.refused_at + lease for each in self._out.values() if each.refused_at is not None)
        return min(*ends, *refusals, NEVER, NEVER)

    def is_call_due(self, now: float) -> bool:
        """Whether Redis is to be called now."""
        check = self.press.check_at
        return now >= self.renew_at or (self.away is None and check is not None and now >= check)

    def by_use(self, owners: Iterable[Owner]) -> list[Owner]:
        """Owners, those who hold most first."""
        counts = {id(owner): 0 for owner in owners}
        for token in self._out.values():
            if token.owner is not None and id(token.owner) in counts:
                counts[id(token.owner)] += 1
        return sorted(owners, key=lambda owner: -counts[id(owner)])

    def _others(self) -> int:
        """Slots of others as of the last answer, less what must have become this process's since."""
        last = self._last
        if last is None:
            return 0
        held = sum(token.state == "slotted" for token in self._out.values())
        return max(0, min(last.count - last.mine, max(last.limit, last.count) - held))

    def stats(self) -> dict[str, Any]:
        """Figures; of others, as of the last answer."""
        last, settings = self._last, self.settings
        slotless = sum(token.state == "slotless" for token in self._out.values())
        note = ""
        if self.away is not None:
            allowed = "none" if settings.on_error == "closed" else "any number"
            allowed = allowed if settings.share is None else str(settings.share)
            note = (
                f"Redis does not answer ({self.away}): on_error={settings.on_error!r} allows this process"
                f" {allowed} without it, and {slotless} are open so"
            )
        return {
            "limit": self.settings.limit if last is None else last.limit,
            "held": len(self._out) - slotless,
            "others": self._others(),
            "waiting": 0 if last is None else last.waiting,
            "errors": self.errors,
            "lost": self.lost,
            "grants": self.grants,
            "without_slot": slotless,
            "away": self.away is not None,
            "note": note,
        }
