"""What is counted in a soak, and the exceptions that are its own."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

KEPT = 20  # texts of a kind that are kept


class Struck(BaseException):
    """What strikes a thread from outside, at any moment."""


class OnPurpose(Exception):
    """What a borrower raises in its `with` block."""


class ForeignReplyError(Exception):
    """A borrower received what was not for it."""


@dataclass
class Tally:
    """What one thread counted; nobody else writes to it."""

    made: int = 0
    answered: int = 0
    replies: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    foreign: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    inherited: int = 0
    """Sockets that forked children had of their parent"""
    overrun: float = 0.0
    answered_at: float = 0.0

    def add(self, other: Tally) -> None:
        """Add another thread's, which has ended."""
        self.made += other.made
        self.answered += other.answered
        self.replies += other.replies
        self.failed += other.failed
        self.actions += other.actions
        self.foreign += other.foreign
        self.broken += other.broken[: max(0, KEPT - len(self.broken))]
        self.inherited += other.inherited
        self.overrun = max(self.overrun, other.overrun)
        self.answered_at = max(self.answered_at, other.answered_at)


@dataclass
class Failure:
    """An error of an ordinary call, which only trouble of the server's or the pool's end may explain."""

    began: float
    ended: float
    text: str
