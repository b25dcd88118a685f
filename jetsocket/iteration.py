"""Iterating over what comes on a lease: all that is parsed goes out before the socket is looked at again.

The wire parses some hundred short messages out of one read. They wait in a queue, which is lent to the
loop: each is taken from it by a single call, without a lock and without asking whose turn it is. That is
safe because the queue is the lease's only as long as the lease is held. At release the wire *recalls* it:
what is left moves to another queue, and the one that was lent is empty for good. So a loop that goes on
after its lease was released, by its own body or by another thread, finds nothing, asks the wire for more, and
is told that the lease is gone. Two threads that iterate get each message once, for the same reason.

What an exception of a signal handler strikes here loses no message. CPython runs handlers where a Python
function begins, behind calls, and where a loop jumps back. `for payload in arrived` takes a message and names
it without such a place in between, and so does `payload = None; yield message` let go of it. Wherever the
exception comes in between, the message has a name, and goes back to where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias, TypeVar

from jetsocket.exceptions import ConnectionClosedError, DecodeError
from jetsocket.ids import Account
from jetsocket.interrupts import is_alarm

__all__ = ["Source", "iterate", "iterate_slowly"]

Payload: TypeAlias = str | bytes
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Source(Protocol[T_co]):
    """What is iterated over: a lease.

    Attributes:
        _watched: What it asked with ids; None: no message has to be looked at.
    """

    _watched: Account | None

    def _await_queue(self) -> deque[Payload]:
        """Wait for a message; the queue that it is in."""

    def _admit(self, payload: Payload) -> bool:
        """Whether a message is this borrower's."""

    def _decoder(self) -> Callable[[Payload], T_co]:
        """What decodes a message, raising DecodeError."""

    def _decode(self, payload: Payload) -> T_co:
        """Decode a message that `_admit` has looked at."""


def iterate(source: Source[T]) -> Iterator[T]:
    """Yield the decoded messages of a lease up to a normal close; see `PooledConnection.__iter__`."""
    decode = source._decoder()
    while True:
        try:
            queue = source._await_queue()
        except ConnectionClosedError as error:
            if error.is_normal and not is_alarm(error):
                return
            raise
        payload: Payload | None = None  # what was taken and is not handed over
        outside = False  # whether the loop's body runs
        take: Callable[[], Payload | None] = queue.popleft
        arrived: Iterator[Payload] = iter(
            take, None
        )  # None never comes; the queue ends before, or is recalled
        try:
            for payload in arrived:
                if source._watched is None:
                    message = decode(payload)
                elif source._admit(payload):
                    message = source._decode(payload)
                else:
                    payload = None  # noqa: PLW2901 - it goes to no borrower
                    continue
                payload, outside = None, True  # noqa: PLW2901 - from here on it is the borrower's
                yield message
                outside = False
                if not queue:
                    break
        except BaseException as error:
            if payload is not None:
                if not isinstance(error, DecodeError) or is_alarm(error):
                    queue.appendleft(payload)
            elif type(error) is IndexError and not outside and not is_alarm(error):
                continue  # another thread took the last one, or the queue was recalled
            raise


def iterate_slowly(recv: Callable[[], T]) -> Iterator[T]:
    """Yield what `recv` returns, up to a normal close."""
    while True:
        try:
            message = recv()
        except ConnectionClosedError as error:
            if error.is_normal and not is_alarm(error):
                return
            raise
        yield message
