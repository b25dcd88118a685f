"""What comes in: messages for a reader, and the look at what is there."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable

from jetsocket.clock import monotonic
from jetsocket.exceptions import InvalidStateError, MessageTooBigError, ProtocolError
from jetsocket.interrupts import is_alarm
from jetsocket.wire.closing import Closing
from jetsocket.wire.link import LAST_LOOK, LITTLE, not_held, takes
from jetsocket.wire.reentry import ReentryError
from jetsocket.wire.stream import Stream
from jetsocket.wire.waits import Patience

READ_AHEAD = 1024 * 1024
"""B that are read for a borrower who does not."""

_TOO_MANY = "no reply came before more messages than are kept unread (receive them first)"
_PER_MESSAGE = 64  # B that a message takes besides its payload
_TEND_PATIENCE = 1.0  # s


class Incoming(Closing):
    """The receiving half of a connection; `readlock` guards it."""

    @takes("readlock")
    def recv_message(self, deadline: float | None = None, holder: object = None) -> str | bytes:
        """Receive one whole message, however slowly it comes.

        Args:
            deadline: Monotonic time; None waits for ever. One that has passed takes only what is there.
            holder: Who asks.

        Returns:
            `str` for a text message, `bytes` for a binary one.

        Raises:
            TimeoutError: No whole message by the deadline; what has come of one is kept for the next call.
            ConnectionClosedError: The connection has ended, by either side.
            ProtocolError: The server broke RFC 6455.
            MessageTooBigError: The message is longer than max_message_size.
            InvalidStateError: `holder` is not who may use it, or a signal handler calls this that has
                interrupted what it would wait for.
        """
        if not self.readlock.acquire(blocking=False):
            self._wait_for("readlock", deadline, "recv")
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            return self._read_message(deadline)
        finally:
            self.readlock.release()

    @takes("readlock")
    def await_queue(self, deadline: float | None = None, holder: object = None) -> deque[str | bytes]:
        """Wait until there is a message; as `recv_message`, but the caller takes it, and what else is there.

        Returns:
            The queue of messages. It is the caller's to take from, without a lock, until `recall_queue`.
        """
        if not self.readlock.acquire(blocking=False):
            self._wait_for("readlock", deadline, "recv")
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            reader = self.reader
            if not reader.messages:
                self._await_message(deadline)
            # As `_lend`, which need not be asked if it is lent already: first the queue, then the holder.
            queue = reader.messages if reader.lent else self._lend(holder)
            if queue is None or holder is not self.holder:
                raise not_held(self.target)
            return queue
        finally:
            self.readlock.release()

    @takes("readlock")
    def lend_queue(self, holder: object = None) -> deque[str | bytes] | None:
        """What `await_queue` returns, without waiting; None when that is not possible."""
        if not self.readlock.acquire(blocking=False):
            return None
        try:
            return self._lend(holder)
        finally:
            self.readlock.release()

    def _lend(self, holder: object) -> deque[str | bytes] | None:
        was_lent = self.reader.lent
        queue = self.reader.lend()
        # Only now: who takes the connection from its holder recalls, after that, what is lent by then.
        if holder is self.holder:
            return queue
        self.reader.lent = was_lent
        return None

    def recall_queue(self) -> None:
        """End what `await_queue` has allowed: what has not been taken is unread. For any thread, any time."""
        self.reader.recall()

    @takes("readlock")
    def recv_answer(
        self,
        judge: Callable[[str | bytes], bool | None],
        since: int,
        deadline: float | None = None,
        holder: object = None,
        patience: Patience | None = None,
    ) -> str | bytes:
        """Receive the one message that is wanted; what comes before it stays for `recv_message`, in order.

        Args:
            judge: Says of a message: it is the one (True), to be dropped (False), to stay (None).
            since: What `reader.received` was before the question left: what came earlier answers it not.
            deadline: As for `recv_message`, and so is `holder`.
            holder: Who asks.
            patience: In place of a deadline; begins with the first message that is not wanted.

        Raises:
            TimeoutError: Not by the deadline, or not before more messages than are kept unread.
            ConnectionClosedError: As `recv_message`, and so are the others.
        """
        if not self.readlock.acquire(blocking=False):
            self._wait_for("readlock", deadline, "recv")
        try:
            if holder is not self.holder:
                raise not_held(self.target)
            return self._find_message(judge, since, deadline, patience)
        finally:
            self.readlock.release()

    def _await_message(self, deadline: float | None) -> None:
        while not self.reader.messages:
            self._ahead = 0
            if self.failure is not None:
                self.raise_failure()
            if not self._fill(deadline) and not self.reader.messages and not self.is_over:
                raise self._late("recv", deadline)

    def _read_message(self, deadline: float | None) -> str | bytes:
        while True:
            self._await_message(deadline)
            try:
                return self.reader.messages.popleft()
            except IndexError as error:  # another thread has taken it from the queue
                if is_alarm(error):
                    raise

    def _find_message(
        self,
        judge: Callable[[str | bytes], bool | None],
        since: int,
        deadline: float | None,
        patience: Patience | None,
    ) -> str | bytes:
        self.reader.recall()  # nothing may be taken meanwhile
        messages = self.reader.messages
        kept = max(0, len(messages) - (self.reader.received - since))
        enough, is_late = self._taken_in + READ_AHEAD + self._max_message_size, False
        while True:
            wanted = None
            try:
                while kept < len(messages):
                    message = messages[kept]
                    wanted = judge(message)
                    if wanted is None:
                        kept += 1
                        if patience is not None:
                            patience.begin()
                        continue
                    del messages[kept]  # there it is still: what is read meanwhile comes behind it
                    if wanted:
                        return message
            except IndexError as error:  # another thread takes messages, too
                if is_alarm(error):
                    raise
                if wanted:
                    return message
                kept = min(kept, len(messages))
                continue
            self._ahead = 0
            if self.failure is not None:
                self.raise_failure()
            if self._taken_in >= enough:
                raise self._flooded("recv", _TOO_MANY)
            if is_late:  # what came until then has been looked at: in a flood, more always comes
                raise self._late("recv", deadline, "no reply came in time")
            in_time = self._fill(deadline if patience is None else patience.until)
            is_late = not in_time and (patience is None or patience.is_over())

    def _fill(self, deadline: float | None) -> bool:
        """Wait for bytes and take them in; after the deadline take in what is there, and return False."""
        assert self.readlock.locked(), "the caller holds `readlock`"
        self.waits_since = monotonic()
        try:
            there = self.reader.paused or self._live_stream().wait_readable(deadline)
        finally:
            self.waits_since = None
        if there:
            self._read_once()
            return True
        self.read_available()
        return False

    def _read_once(self) -> bool:
        """Take in what there is now, without waiting; False when there was nothing."""
        assert self.readlock.locked(), "the caller holds `readlock`"
        if self._reading:  # an interrupt struck here before: bytes are lost, no telling how many
            self._lose("reading was interrupted half-way")
        if self.failure is not None:
            return False
        self.stirred = self._reading = True
        data: bytes | None = None
        try:
            paused = self.reader.paused  # then the rest of the last read comes first
            stream = self._live_stream()
            data = b"" if paused else stream.read_now()
            if stream.has_replies:
                self._flush()
            if data or paused:
                self._feed(data or b"")
            elif data is not None:
                self._lose("the server closed the connection without a close frame")
        except OSError as error:
            if is_alarm(error):
                raise
            if isinstance(error, ReentryError):  # nothing was read
                self._reading = False
                raise self._reentered("recv") from None
            self._lose(f"the connection was lost: {error}", error)
        self._reading = False
        return data is not None and not self.is_over

    def _feed(self, data: bytes) -> None:
        assert self.readlock.locked(), "the caller holds `readlock`"
        reader = self.reader
        frames = reader.data_frames
        try:
            reader.feed(data)
        except (ProtocolError, MessageTooBigError) as error:
            if is_alarm(error):
                raise
            if reader.pings:  # they came before the fault
                self.answer_ping()
            self._refuse(error)
        if data and reader.data_frames != frames:
            self.last_heard = monotonic()
        if reader.pongs:
            self._match_pongs()
        if reader.pings:  # before a close is: each came before it, and wants its pong (RFC 6455 §5.5.2)
            self.answer_ping()
        if reader.close is not None:
            self._closed_by_server(*reader.close)
        if reader.paused:
            self._put_off()

    def read_available(self, until: float | None = None, *, quick: bool = False) -> None:
        """Take in what is there, without waiting; the caller holds `readlock`.

        Reads at most 1 MiB ahead of a borrower who does not read, each message counted with 64 B of overhead:
        the rest is left to TCP's flow control. What is left counts as unread.

        Args:
            until: Begin no read after that (monotonic, s) once 16 KiB have come; None: 50 ms from now.
            quick: As for `look`.
        """
        assert self.readlock.locked(), "the caller holds `readlock`"
        if self._reading:  # before others get it: with reuse="always" no one else would notice
            self._lose("reading was interrupted half-way")
        stream, paused = self._stream, self.reader.paused
        if stream is not None and self.failure is None and not paused and not stream.readable_now():
            self._left_unread = False  # nearly always: at each acquire and release
            return
        self._left_unread = True
        if quick and stream is not None and stream.waiting > LITTLE:
            return
        if not self.reader.holds_data:
            self._ahead = 0  # nothing is kept: it was pings, and a year of them must not add up
        until, enough = monotonic() + LAST_LOOK if until is None else until, self._ahead + LITTLE
        has_more = stream is not None  # that was seen above
        while self._ahead < READ_AHEAD and self.failure is None:
            before = self._taken_in
            if not (has_more or self._has_more(self._live_stream())) or not self._read_once():
                self._left_unread = False
                return
            has_more = False
            self._ahead += self._taken_in - before
            # Not for the time alone: the system may have let this thread wait for long.
            if self._ahead >= enough and monotonic() >= until:
                break
        if self.failure is None and not self._has_more(self._live_stream()):
            self._left_unread = False

    def _has_more(self, stream: Stream) -> bool:
        return self.reader.paused or stream.readable_now()

    @takes("readlock")
    def tend(self, until: float | None = None) -> bool:
        """Do what a reader does by the way (answer pings, notice a close), unless another thread is reading.

        Args:
            until: As for `read_available`.

        Returns:
            False when one is.
        """
        self._tended_by = threading.get_ident()  # for longer than the lock is held: see `_outlast_tend`
        try:
            if not self.readlock.acquire(blocking=False):
                return False
            try:
                return self._look(until)
            finally:
                self.readlock.release()
        finally:
            self._tended_by = 0

    @takes("readlock")
    def look(self, *, quick: bool = False) -> bool:
        """Take in what is there, without waiting, but for another thread's `tend`.

        Args:
            quick: More than 16 KiB need not be taken in: that so much is unread says all.

        Returns:
            False when a reader is inside: another thread, or this one, interrupted by a finalizer.
        """
        if not self.readlock.acquire(blocking=False) and not self._outlast_tend():
            return False
        try:
            return self._look(0.0 if quick else None, quick=quick)
        finally:
            self.readlock.release()

    def _look(self, until: float | None, *, quick: bool = False) -> bool:
        """`read_available`; False for a finalizer that has interrupted a send within TLS."""
        try:
            self.read_available(until, quick=quick)
        except InvalidStateError as error:
            if is_alarm(error):
                raise
            return False
        return True

    @takes("readlock")
    def _outlast_tend(self) -> bool:
        """Get `readlock` after another thread's `tend`; False if it is a reader's, or this very thread's."""
        tended_by = self._tended_by
        if tended_by == threading.get_ident():
            return False
        # `tend` never waits for anything, so it is over at once; or it was, before we asked whose it is.
        return self.readlock.acquire(timeout=_TEND_PATIENCE if tended_by else 0.0)

    def finish(self, until: float = math.inf) -> None:
        """Go on with what was left `unfinished`, without waiting; if that is in vain, it is there again.

        Args:
            until: Inflate nothing after that (monotonic, s).
        """
        if self.reader.paused:  # of this the socket does not tell: it was taken from there
            if monotonic() < until:
                self.tend(0.0)
            else:
                self._put_off()
        self._flush()
        if self.reader.pings:
            self.answer_ping()

    @property
    def _taken_in(self) -> int:
        """B of memory that what came would take, had none of it been read."""
        inflated = 0 if self.reader.inflater is None else self.reader.inflater.inflated
        return self.bytes_in + inflated + _PER_MESSAGE * self.reader.received
