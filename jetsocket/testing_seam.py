"""Where `jetsocket.testing` gets between a pool and the network.

A table for the whole process says which origins are dialled elsewhere; each pool has a `Seam` of its own.
Both are empty but in tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from jetsocket.clock import deadline_in
from jetsocket.correlation.base import Correlation
from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket

Reaches: TypeAlias = "Callable[[Callable[[bytes], object]], WebSocket]"
"""Connects to the real server, and tells what was sent to it."""

Address: TypeAlias = tuple[str, int]
"""IP address and port."""

Origin: TypeAlias = tuple[str, str, int]

_elsewhere: dict[Origin, Address] = {}
_lock = threading.Lock()


def divert(origin: Origin, address: Address) -> None:
    """Have an origin dialled at that address from now on, by every pool: without DNS, proxy and TLS.

    Raises:
        ValueError: It is diverted already.
    """
    with _lock:
        if origin in _elsewhere:
            scheme, host, port = origin
            raise ValueError(f"{scheme}://{host}:{port} is answered by another FakeServer already")
        _elsewhere[origin] = address


def restore(origin: Origin) -> None:
    """End `divert`."""
    with _lock:
        _elsewhere.pop(origin, None)


def address_for(target: Target) -> Address | None:
    """Where to dial in place of a target's own host; None: there is no such place."""
    return _elsewhere.get(target.origin) if _elsewhere else None


class Detour(NamedTuple):
    """Where one new connection goes in place of its server.

    Attributes:
        address: What is dialled.
        headers: What is sent besides, to be known there.
    """

    address: Address
    headers: Sequence[tuple[str, str]] = ()


class Seam:
    """What stands between one pool and its servers.

    Attributes:
        correlation: The pool's.
        detour: Asked before each dial, with the target and a function that connects to the real one (which
            tells the head of the request that was sent there, of a refused one, too); what it raises, the
            dial raises. None, nearly always: nothing is between.
    """

    __slots__ = ("correlation", "detour")

    def __init__(self, correlation: Correlation | None) -> None:
        """Nothing is between."""
        self.correlation = correlation
        self.detour: Callable[[Target, Reaches], Detour] | None = None


def connect(
    seam: Seam, wire: WebSocket, new: Callable[[], WebSocket], time: float, /, target: Target, **options: Any
) -> None:
    """Connect a wire, by the detour that a test has made if there is one.

    Args:
        seam: The pool's.
        wire: A new one.
        new: Makes another, to the real server, if the detour asks for that; it has `time`, from then.
        time: s.
        target: Where to.
        **options: As for `WebSocket.connect`.

    Raises:
        TimeoutError: Not in time.
        ConnectionError: It failed; and whatever else `WebSocket.connect` raises.
    """
    if seam.detour is None:
        wire.connect(target, dialled_at=address_for, **options)
        return

    def connect_to_it(learn: Callable[[bytes], object]) -> WebSocket:
        another = new()
        try:
            another.connect(target, dialled_at=address_for, **{**options, "deadline": deadline_in(time)})
        finally:
            learn(another._request)
        return another

    detour = seam.detour(target, connect_to_it)
    header = [*options.pop("header"), *detour.headers]
    wire.connect(target, dialled_at=lambda _: detour.address, header=header, **options)


def seam_of(pool: Any) -> Seam:
    """The seam of a pool."""
    seam = pool._seam
    assert isinstance(seam, Seam)
    return seam


__all__ = ["Address", "Detour", "Origin", "Reaches", "Seam", "address_for", "divert", "restore", "seam_of"]
