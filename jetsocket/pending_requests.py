"""What is asked for and has not come: the mailbox of a request, and keys of what was sent as it is."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from typing import Any, Final, Literal, Protocol, TypeAlias

from jetsocket.correlation.base import Asked
from jetsocket.interrupts import suppress
from jetsocket.reading_turns import Mailbox
from jetsocket.subscription_queue import Feed
from jetsocket.wire.link import Batch

MOST_KEYS = 4096
"""Keys of what a lease has sent as it is, beyond which the oldest are not remembered one by one."""

Risk: TypeAlias = Literal["moved", "refused", "taken"]
"""What becomes of a message sent as it is, with the key of a request whose reply may still come."""

MOST_NOTED = 1024
"""Keys that were used on a connection, beyond which the oldest are forgotten."""

_OTHERS: Final = object()  # stands for the keys that are not remembered one by one


class Queue(Protocol):
    """Where a request waits to be sent."""

    @property
    def has_sender(self) -> bool:
        """Whether a thread sends at present."""


class Request(Mailbox[Any]):
    """A request under way: its replies arrive here.

    Attributes:
        asked: What was asked; set when it leaves.
        number: Grows in the order in which a connection's messages leave; 0 before.
        feed: The subscription that it opens; None: none.
        is_open: Whether that is open already, as it leaves: no reply is waited for.
        ends: The topic that it ends at the server; None: none.
        wants_all: Whether its thread waits for the last reply; False: for each.
        message: What is asked, if it waits in an outbox.
        outbox: Where it waits to be sent; None: nowhere, or not any more.
        batch: With what it leaves, or has left; None before.
        is_refused: Whether it could not be made by the thread that sends for all: its own is to try.
        is_cancelled: Whether its thread has gone before it left.
        owner: The borrower whose it is, if it shares the connection; None also for a subscription's.
        payload: The frame of the last reply, if that was all there was in it; None: not known.
    """

    __slots__ = (
        "_last",
        "asked",
        "batch",
        "ends",
        "feed",
        "is_cancelled",
        "is_open",
        "is_refused",
        "message",
        "number",
        "outbox",
        "owner",
        "payload",
        "wants_all",
    )
    is_for_one = True

    def __init__(self, feed: Feed | None = None, ends: Hashable | None = None, message: Any = None) -> None:
        """Not sent yet; without a bell, since who asks mostly reads the reply itself."""
        self.arrived = deque()  # as `Mailbox.__init__`
        self.error = self._bell = None
        self.asked: Asked | None = None
        self.outbox: Queue | None = None
        self.batch: Batch | None = None
        self.payload: str | bytes | None = None
        self.owner: object = None
        self._last: object = None
        self.feed, self.ends, self.message = feed, ends, message
        self.number = 0
        self.wants_all = True
        self.is_ended = self.is_open = self.is_refused = self.is_cancelled = False

    @property
    def is_stranded(self) -> bool:
        """Whether it was not sent, and no thread is about to."""
        outbox = self.outbox
        return outbox is not None and not outbox.has_sender

    @property
    def may_have_left(self) -> bool:
        """Whether part of it may have been sent."""
        return self.batch is not None and self.batch.has_left

    @property
    def has_mail(self) -> bool:
        """Whether waiting is over."""
        return self.is_ended or (bool(self.arrived) and not self.wants_all)

    def put(self, message: Any, mark: object) -> None:
        """Add a reply; one with the same mark is there already, and is handed out again after a strike."""
        if self._last is not mark:
            self.arrived += (message,)  # no call: no exception comes between this and the next line
            self._last = mark


def remember(keys: dict[Hashable, None], key: Hashable) -> None:
    """Add a key; of many, the oldest are one that never comes back."""
    keys[key] = None
    with suppress(RuntimeError, StopIteration):  # another thread takes one out at the same time
        while len(keys) > MOST_KEYS:
            keys.pop(next(iter(keys)), None)
            keys[_OTHERS] = None


def note(keys: dict[Hashable, int], key: Hashable, value: int) -> None:
    """Add a key, as the latest; of many, the oldest are forgotten."""
    keys.pop(key, None)
    keys[key] = value
    if len(keys) > MOST_NOTED:
        with suppress(RuntimeError, StopIteration):  # another thread does so at the same time
            keys.pop(next(iter(keys)), None)


__all__ = ["MOST_KEYS", "MOST_NOTED", "Queue", "Request", "Risk", "note", "remember"]
