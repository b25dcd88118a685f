"""One attempt to connect: to a server, or to what a test has put in its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jetsocket.clock import deadline_in
from jetsocket.seams import Seam, address_for
from jetsocket.uris import Target

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket


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


__all__ = ["connect"]
