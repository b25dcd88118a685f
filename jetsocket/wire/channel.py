"""An open WebSocket connection: all that it is and does, over a stream.

By ideas, each in a file of its own, from the bottom: `link` (fields, locks, errors), `outgoing`, `own_pings`,
`closing`, `incoming`. Here is what a connection tells of itself, and `measure_latency`, which needs them all.
"""

from __future__ import annotations

import os

from jetsocket.clock import monotonic
from jetsocket.interrupts import is_alarm
from jetsocket.wire.frames import PING
from jetsocket.wire.incoming import READ_AHEAD, Incoming
from jetsocket.wire.link import Ping, not_held, takes
from jetsocket.wire.own_pings import PING_SIZE
from jetsocket.wire.stream import Stream

_TOO_MUCH = "no pong came before more messages than are kept unread (receive them first)"


class Channel(Incoming):
    """One connection, once it is open; every operation has one deadline.

    Safe with one thread sending, one receiving and one looking after it, over TLS too. How it is opened is a
    subclass's business, which sets `target`, `_stream` and `connected`. Its attributes are those of `Link`.
    """

    def fileno(self) -> int:
        """The socket's file descriptor, -1 without one."""
        return -1 if self._stream is None else self._stream.fileno()

    def at_rest(self) -> bool:
        """Whether it is certainly as a connection should be that is not in use. Never waits, reads nothing.

        That is: open, with nothing to read, nothing unread, nothing half-way in either direction, and no
        thread inside. False may only mean that it can't be told this way: `look`, and ask one by one.
        """
        stream, reader = self._stream, self.reader
        if stream is None or self.failure is not None:
            return False
        self.stirred = False  # before the look: who stirs it from here on says so
        try:
            came = self._has_begun(stream) if stream.look is None else stream.look(0)
        except RuntimeError as error:  # another thread that has the same lease looks at this very moment
            if is_alarm(error):
                raise
            came = True
        # All this after the look: a thread that took in what was there before is inside, or has left it here.
        if (
            came
            or self.readlock.locked()
            or self.lock.locked()
            or reader.messages
            or reader.rest
            or reader.kind
            or self._reading
            or self._sending
            or stream.unsent
            or stream.broken
        ):
            self.stirred = True
            return False
        return True

    def stays_at_rest(self) -> bool:
        """Whether it is certainly as it was when `at_rest` was last true; for one that was not used since.

        Costs half of that. A thread that has taken in what was there before the look has stirred it first.
        """
        look = None if self._stream is None else self._stream.look
        try:
            return look is not None and not (look(0) or self.stirred or self.failure)
        except RuntimeError as error:  # as in `at_rest`
            if is_alarm(error):
                raise
            return False

    @takes("readlock")
    def _has_begun(self, stream: Stream) -> bool:
        """Whether there is something to read; True also if that can't be told, as a reader is inside."""
        if not self.readlock.acquire(blocking=False):
            return True
        try:
            return stream.has_begun()
        finally:
            self.readlock.release()

    @property
    def messages_received(self) -> int:
        """Messages received so far, whether read or not."""
        return self.reader.received

    @property
    def unread(self) -> bool:
        """Whether a whole message waits to be read, or bytes wait that were not looked at."""
        return bool(self.reader.messages) or self._left_unread

    @property
    def has_backlog(self) -> bool:
        """Whether the last look had to stop before the end."""
        return self._left_unread

    @property
    def wants_reading(self) -> bool:
        """Whether the last look had to stop before the end, and another one would find more."""
        return self._left_unread and self._ahead < READ_AHEAD and self.failure is None

    @property
    def half_read(self) -> bool:
        """Whether part of a message (or of a TLS record) has come, or bytes were lost to an interrupt."""
        stream = self._stream
        return self.reader.mid_message or self._reading or (stream is not None and stream.half_read)

    def measure_latency(self, deadline: float | None = None, holder: object = None) -> float:
        """Send a ping and wait for its pong; messages that come meanwhile are kept for `recv_message`.

        Returns:
            The round trip (s).

        Raises:
            TimeoutError: No pong by the deadline, or before more messages than are kept unread: what one of
                the longest takes, and 1 MiB.
            ConnectionClosedError: The connection has ended.
            InvalidStateError: `holder` is not who may use it, or a signal handler calls this that has
                interrupted what it would wait for.
        """
        if self.readlock.locked():  # nearly never; the pong of a ping that had left could not be awaited
            self.refuse_reentry("readlock", "ping")
        payload = os.urandom(PING_SIZE)
        ping = Ping()

        def begin(ping: Ping) -> tuple[int, bytes]:
            ping.sent_at = monotonic()  # its pong is not due while it waits for another's long message
            self._pings[payload] = ping
            return PING, payload

        try:
            self.send_data(PING, payload, deadline, holder, begin, ping)
            self._await_pong(ping, deadline, holder)
        finally:
            self._pings.pop(payload, None)
        assert ping.round_trip is not None
        self.latency = ping.round_trip
        return ping.round_trip

    @takes("readlock")
    def _await_pong(self, ping: Ping, deadline: float | None, holder: object) -> None:
        # All that comes meanwhile has to be kept, so a stream can't be read for ever.
        enough = self._taken_in + READ_AHEAD + self._max_message_size
        while not ping.is_answered():
            if self.readlock.acquire(blocking=False):
                try:
                    if ping.is_answered():
                        return
                    if self.is_over:
                        self.raise_failure()
                    if holder is not self.holder:  # released by another thread: what comes is for the next
                        raise not_held(self.target)
                    in_time = self._fill(deadline)
                    full = self._taken_in >= enough
                    if not ping.is_answered() and not self.is_over:
                        if full:
                            raise self._flooded("ping", _TOO_MUCH)
                        if not in_time:
                            raise self._late("ping", deadline)
                finally:
                    self.readlock.release()
            elif deadline is not None and monotonic() >= deadline:
                raise self._late("ping", deadline)
            else:
                # Another thread reads and will see the pong; it may also stop reading before that.
                ping.answered.acquire(timeout=0.05)
