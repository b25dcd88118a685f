"""A slot of the group's as this process knows it, what the limiter was given, and what is to be done next."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from jetsocket.limits import Owner

__all__ = ["NEVER", "Outcome", "Settings", "Token", "fence_of"]

NEVER = math.inf


@dataclass(frozen=True)
class Settings:
    """What a `RedisLimiter` was given; times in s.

    Attributes:
        share: How many connections this process may have while Redis is away; None: `on_error` isn't "local".
    """

    name: str
    limit: int
    lease: float
    turn: float
    on_error: str
    share: int | None

    @property
    def margin(self) -> float:
        """How long before its lease ends a connection is closed."""
        return min(1.0, self.lease / 10)

    @property
    def patience(self) -> float:
        """How long an answer of Redis's may take."""
        return min(1.0, self.lease / 4)


class Token:
    """One slot.

    Attributes:
        fence: A number that grows from grant to grant, in the whole group; None: it was given without a slot,
            while Redis was away.
    """

    __slots__ = ("fence", "lease", "owner", "refused_at", "state", "until")

    def __init__(self, lease: str, fence: int | None, until: float) -> None:
        """A slot that Redis knows by `lease`, and which ends at `until` unless it is renewed."""
        self.fence = fence
        self.lease = lease  # what Redis knows it by
        self.until = until
        self.state = "slotless" if fence is None else "slotted"  # or "ended", "lost", "released"
        self.refused_at: float | None = None  # when Redis has said that there is no slot for it
        self.owner: Owner | None = None

    def __repr__(self) -> str:
        return f"<slot {self.fence if self.fence is not None else 'of none'}: {self.state}>"


@dataclass
class Outcome:
    """What is to be done now, with no lock held.

    Attributes:
        lost: Tokens whose connections are to be closed, and why.
        pressing: What owners are to be told, of those that `Press` says.
        unslotted: How many connections without a slot are to be given up as they become idle.
        is_back: Redis answers again.
        limits: The smallest limit in the group and this process's, when it is to be said that they differ.
    """

    lost: list[tuple[Token, str]] = field(default_factory=list)
    pressing: list[str] = field(default_factory=list)
    unslotted: int = 0
    is_back: bool = False
    limits: tuple[int, int] | None = None


def fence_of(lease: str) -> int:
    """The fence of a token as Redis knows it."""
    return int(lease.rpartition(":")[2])
