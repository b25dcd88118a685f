"""What the one script is told and says: a `Call` as its arguments, an `Answer` of what came back.

The script itself is `script.lua`, which says what is kept in Redis.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DIGEST", "IDLE", "NEXT", "SOURCE", "Answer", "Call", "check_name", "inbox_of", "prefix_of"]

SOURCE = Path(__file__).with_name("script.lua").read_text(encoding="utf-8")
DIGEST = hashlib.sha1(SOURCE.encode(), usedforsecurity=False).hexdigest()
"""What Redis knows it by."""

IDLE = 1
"""A duty: others wait, so what is idle is given up."""

NEXT = 2
"""A duty: the next connection that comes back is given up, if none is idle."""

_KEYS = ("group", "leases", "held", "waiters", "members", "limits", "asked", "told")


def check_name(name: str) -> None:
    """Refuse what can't be the name of a group.

    Raises:
        TypeError: It is no str.
        ValueError: It is empty, or has braces or what can't be printed.
    """
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {name!r}")
    if not name or set(name) & set("{}") or not name.isprintable():
        raise ValueError(f"name must be printable, not empty, and without braces, not {name!r}")


def prefix_of(name: str) -> str:
    """What all keys of a group begin with; the braces put them on one node of a cluster."""
    return f"{{js:{name}}}:"


def inbox_of(name: str, process: str) -> str:
    """The key of the list in which a process gets its messages."""
    return f"{prefix_of(name)}in:{process}"


@dataclass(frozen=True)
class Call:
    """What a process says: see script.lua for each field. Times are in s here, and in ms there."""

    name: str
    process: str
    seq: int = 0
    lease: float = 10.0
    limit: int = 1
    turn: float = 1.0
    op: str = "sync"
    ask: int = 0
    want: int = 0
    epoch: str = ""
    whole: bool = False
    highest: int = 0
    label: str = ""
    renew: Sequence[str] = ()
    renews: bool = False  # all that the process has, if any; not sent
    give_back: Sequence[str] = ()

    def keys(self) -> list[str]:
        """The keys that are named to Redis."""
        prefix = prefix_of(self.name)
        names = [f"{prefix}{key}" for key in _KEYS]
        return [*names, f"{prefix}p:{self.process}", inbox_of(self.name, self.process)]

    def arguments(self) -> list[str | int]:
        """What the script is given besides its keys."""
        return [
            prefix_of(self.name),
            self.op,
            self.process,
            self.seq,
            round(self.lease * 1000),
            self.limit,
            round(self.turn * 1000),
            self.ask,
            self.want,
            self.epoch,
            int(self.whole),
            self.highest,
            self.label,
            len(self.renew),
            *self.renew,
            *self.give_back,
        ]


@dataclass(frozen=True)
class Answer:
    """What the script has said.

    Attributes:
        epoch: Which life of the group this is: another one after Redis has lost it.
        limit: The smallest limit of those who are alive.
        count: Leases in all.
        mine: Leases of this process.
        waiting: Processes that wait for one.
        granted: The token that this call's asking got; "" none.
        duty: 0, `IDLE` or `NEXT`.
        delay: In how many s that duty begins.
        grace: For how many s there are no grants yet.
        lost: Tokens that were to be renewed, and are not this process's any more.
        adopted: For each that had no slot: its token now; "" ask again later; "-" there is none.
    """

    epoch: str
    limit: int
    count: int
    mine: int
    waiting: int
    granted: str
    duty: int
    delay: float
    grace: float
    lost: tuple[str, ...]
    adopted: dict[str, str]

    @classmethod
    def of(cls, raw: Any) -> Answer:
        """An answer as Redis has sent it.

        Raises:
            OSError: The call was overtaken by a later one of the same process: as good as none.
        """
        told = _texts(raw)
        if told[0] != "ok":
            raise OSError("the script has had a later call of this process")
        return cls(
            epoch=told[1],
            limit=int(told[2]),
            count=int(told[3]),
            mine=int(told[4]),
            waiting=int(told[5]),
            granted=told[6],
            duty=int(told[7]),
            delay=int(told[8]) / 1000,
            grace=int(told[9]) / 1000,
            lost=tuple(told[10]),
            adopted=dict(zip(told[11][::2], told[11][1::2], strict=True)),
        )


def _texts(raw: Any) -> Any:
    """What Redis has sent, as text all through."""
    if isinstance(raw, list):
        return [_texts(each) for each in raw]
    return raw.decode() if isinstance(raw, bytes) else raw
