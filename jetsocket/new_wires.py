"""The wires of a pool's connections, before they are dialled; the next one is made while an opener waits."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jetsocket.exceptions import ConnectionError
from jetsocket.interrupts import is_alarm
from jetsocket.manager_kwargs import Options
from jetsocket.wire.upgrade_request import Requests

if TYPE_CHECKING:
    from jetsocket.wire.websocket import WebSocket


class NewWires:
    """Makes the wires of one pool, as its options say.

    Making one takes a thirtieth of a connect. An opener that has sent its request has nothing to do until the
    server answers: it makes one for the dial that comes next, so that a caller need not wait for that.
    """

    def __init__(
        self, options: Options, unfinished: set[Any], tell_end: Callable[[ConnectionError], None]
    ) -> None:
        """Make them with those options; for the rest see `Link`."""
        from jetsocket.wire.websocket import WebSocket  # by who makes a pool: it takes a while

        self._new = WebSocket
        self._options = options
        self._unfinished = unfinished
        self._tell_end = tell_end
        self._requests = Requests()
        self._ahead: deque[WebSocket] = deque(maxlen=1)  # of two that openers make at once, one is dropped

    def take(self) -> WebSocket:
        """One that no other dial has."""
        try:
            return self._ahead.pop()
        except IndexError as error:
            if is_alarm(error):
                raise
            return self._make()

    def make_ahead(self) -> None:
        """Make the next one, unless there is one."""
        if not self._ahead:
            self._ahead.append(self._make())

    def _make(self) -> WebSocket:
        wire = self._new(
            max_message_size=self._options.max_message_size,
            max_frame_size=self._options.max_frame_size,
            compression_threshold=self._options.compression_threshold,
        )
        wire.unfinished = self._unfinished
        wire.tell_end = self._tell_end
        wire.requests = self._requests
        return wire


__all__ = ["NewWires"]
