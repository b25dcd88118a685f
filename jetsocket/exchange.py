"""Sending and receiving over a lease: messages, requests and their replies, iteration, pings."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from jetsocket.clock import monotonic
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionClosedError, TimeoutError
from jetsocket.ids import Account, Key, SentIds, key_in
from jetsocket.interrupts import is_alarm
from jetsocket.iteration import iterate
from jetsocket.lease import Lease, T, seconds
from jetsocket.messages import payload_of
from jetsocket.wire.frames import BINARY, TEXT
from jetsocket.wire.waits import Patience

R = TypeVar("R")

_ECHO_PATIENCE = 10.0  # s for a service that has not yet been seen to send ids back, where no timeout is set
_MOST_LATE = 1024  # answers to earlier borrowers in one lease: with no message for it, no time limit holds


class Exchange(Lease[T]):
    """What goes over a connection while it is lent."""

    __slots__ = ()

    # --- sending ---------------------------------------------------------------------------------------

    def send(self, data: Any) -> None:
        """Send one message.

        Args:
            data: `str` goes out as a text message and `bytes` as a binary one, as they are; anything else
                through the serializer (JSON unless the pool was told otherwise).

        Raises:
            TypeError: The serializer can't take it; nothing was sent, and the connection is as it was.
            ValueError: Likewise.
            TimeoutError: The server did not take it within `send_timeout`.
            ConnectionClosedError: The connection has ended. The very first send of a lease is moved to
                another connection instead, if no byte of it has left.
            InvalidStateError: The lease was released.
        """
        terms = self._terms
        payload = terms.codec.encode(data)
        key = self._key_in(data, payload) if terms.match_ids else None
        self._send(payload, None, self._until(terms.send_timeout), terms.send_timeout, key)

    def send_raw(self, data: str | bytes, *, binary: bool | None = None) -> None:
        """Send one message as it is, without the serializer.

        Args:
            data: The payload.
            binary: True sends a binary message, False a text one; None goes by the type of `data`.

        Raises:
            TypeError: `data` is neither `str` nor `bytes`, or `binary` no bool.
            ValueError: `bytes` that are not UTF-8 can't go out as text.
            TimeoutError: As `send`.
            ConnectionClosedError: As `send`.
            InvalidStateError: The lease was released.
        """
        payload, text = payload_of(data, binary)
        terms, limit = self._terms, self._terms.send_timeout
        key = key_in(payload, payload, terms.codec.read_json) if terms.match_ids else None
        deadline = self._deadline if limit is None else self._until(limit)
        self._send(payload, text, deadline, limit, key)

    def _send(
        self,
        payload: str | bytes,
        text: bool | None,
        deadline: float | None,
        limit: float | None,
        key: Key | None,
    ) -> int | None:
        """Send a message whose id is `key`.

        Returns:
            How many messages had come before, if it is tagged: its answer carries the id. Else None.
        """
        if isinstance(payload, str):  # here, for what can't be encoded must not count as sent
            payload, text = payload.encode("utf-8"), text is not False
        if not self._sent:
            return self._send_first(payload, text, deadline, limit, key)
        entry = self._entry or self._current()
        since = None if key is None else self._note_asked(entry, key, payload)
        try:
            entry.wire.send_data(TEXT if text else BINARY, payload, deadline, self._borrower)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None
        return since

    def _key_in(self, message: object, payload: str | bytes) -> Key | None:
        codec = self._terms.codec
        return key_in(message, payload, codec.read_json, as_given=codec.as_given)

    def _note_asked(self, entry: Entry, key: Key, payload: str | bytes) -> int | None:
        """Note, before it can leave, that a message with this id does; returns what `_send` does."""
        if entry.wire.lock.locked():
            entry.wire.refuse_reentry("lock", "send")
        if (account := self._account) is None:
            if entry.ids is None:
                entry.ids = SentIds()
                self._terms.known.note_protocol(entry.key, payload)
            account = self._account = self._new_account(entry.ids)
        tagged = account.ask(key)
        self._watched = account
        return entry.wire.reader.received if tagged else None

    def _send_first(
        self,
        payload: str | bytes,
        text: bool | None,
        deadline: float | None,
        limit: float | None,
        key: Key | None,
    ) -> int | None:
        """`_send` as long as the lease may still move to another connection unnoticed, and once after it."""

        def leave(entry: Entry) -> int | None:
            since = None if key is None else self._note_asked(entry, key, payload)
            entry.wire.send_message(payload, deadline, self._borrower, text)
            return since

        return self._send_over(leave, deadline, limit)

    def _send_over(self, leave: Callable[[Entry], R], deadline: float | None, limit: float | None) -> R:
        """Send by `leave`; over another connection, if this one has ended and none of its messages has left.

        Args:
            leave: Sends over a connection.
            deadline: Monotonic, s; None: no limit.
            limit: What was given for it (s), for errors.

        Returns:
            What `leave` does.
        """
        while True:
            entry, shares = self._entry or self._current(), self._borrower.shares
            fresh = not self._touched and (entry.idle_since > 0 or shares) and self._deadline is None
            if fresh and not shares and not self._lender.is_fit_for_first_use(self):
                self._lender.move(self, entry, deadline)
                continue
            wire = entry.wire
            out = wire.bytes_out if fresh else 0
            if self._deadline is None and not self._iterated:
                self._note_what_came_first(entry)
            self._touched = True
            try:
                result = leave(entry)
                self._sent = True
                return result
            except TimeoutError as error:
                if is_alarm(error):
                    raise
                raise self._late(error, limit) from None
            except ConnectionClosedError as error:
                if not fresh or wire.bytes_out != out or is_alarm(error):
                    raise
                # Not a byte has left, and this borrower has neither sent nor received: nothing shows.
                self._touched = False
                self._lender.move(self, entry, deadline)

    def _note_what_came_first(self, entry: Entry) -> None:
        """A message that came before anything was sent was not asked for: a greeting, or what is pushed."""
        known, wire = self._terms.known, entry.wire
        if known.minds and wire.messages_sent == entry.sent:
            if not (entry.idle_since or self._touched):  # a new connection, at which no one has looked yet
                wire.look(quick=True)
            if wire.reader.received > entry.received:
                known.note_unasked(entry, "before anything was sent")

    # --- receiving -------------------------------------------------------------------------------------

    def recv(self, timeout: float | None = None) -> T:
        """Receive one message and decode it.

        Args:
            timeout: s for the whole message, however slowly it comes; 0 takes only what is there; None
                waits as long as `recv_timeout` says (for ever, unless set).

        Returns:
            What the deserializer makes of it (JSON unless the pool was told otherwise).

        Raises:
            DecodeError: The payload does not decode; it is in the error, and the connection is usable.
            TimeoutError: No whole message in time.
            ConnectionClosedError: The connection has ended, normally or not; `code` and `reason` say how.
            ProtocolError: The server broke RFC 6455.
            MessageTooBigError: The message is longer than `max_message_size`.
            InvalidStateError: The lease was released.
        """
        return self._decode(self.recv_raw(timeout))

    def recv_raw(self, timeout: float | None = None) -> str | bytes:
        """Receive one message as it is: `str` for text, `bytes` for binary.

        Args:
            timeout: As for `recv`.

        Raises:
            TimeoutError: As `recv`, and so are the others but `DecodeError`.
            ConnectionClosedError: As `recv`.
            ProtocolError: As `recv`.
            MessageTooBigError: As `recv`.
            InvalidStateError: As `recv`.
        """
        if timeout is None and self._watched is None and (queue := self._queue):
            try:
                return queue.popleft()  # it has come already: see `iterate`
            except IndexError as error:  # another thread was faster, or the lease was released
                if is_alarm(error):
                    raise
        limit = seconds(timeout, self._terms.recv_timeout)
        return self._recv(self._until(limit), limit)

    def _recv(self, deadline: float | None, limit: float | None) -> str | bytes:
        entry = self._entry or self._current()
        self._touched = True
        try:
            while True:
                if (account := self._watched) is not None:
                    account.taking = True
                payload = entry.wire.recv_message(deadline, self._borrower)
                if (account := self._watched) is None or self._admits(entry, account, payload):
                    break
        except TimeoutError as error:
            if is_alarm(error):
                raise
            if (account := self._account) is not None:
                account.taking = False
            raise self._late(error, limit) from None
        if not self._queue and entry.wire.reader.messages:  # more of them: a stream, perhaps
            self._queue = entry.wire.lend_queue(self._borrower)
        return payload

    def _admits(self, entry: Entry, account: Account, payload: str | bytes) -> bool:
        admitted = account.admits(payload)
        account.taking = False
        if account.late > _MOST_LATE:
            entry.wire.cut("the server goes on and on answering what earlier borrowers have asked")
        if account.echoed:
            self._terms.known.note_echo(entry.key)
        if account.is_done:
            self._watched = None
            if account.open:  # another thread has sent one meanwhile
                self._watched = account
        return admitted

    def _request(self, message: Any, deadline: float | None, limit: float | None) -> T:
        terms = self._terms
        payload = terms.codec.encode(message)
        key = self._key_in(message, payload) if terms.match_ids else None
        entry = self._entry
        if entry is not None and entry.wire.readlock.locked():  # by this thread, no reply could come
            entry.wire.refuse_reentry("readlock", "request")
        if deadline is None:
            since = self._send(payload, None, self._until(terms.send_timeout), terms.send_timeout, key)
            deadline, limit = self._until(terms.recv_timeout), terms.recv_timeout
        else:
            deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            since = self._send(payload, None, deadline, limit, key)
        sent_at = monotonic()
        if since is None or key is None:
            answer = self._recv(deadline, limit)
        else:
            answer = self._recv_answer(key, since, deadline, limit)
        if self._deadline is None:  # else it is a callback's
            terms.reply_time.add(monotonic() - sent_at)
        return self._decode(answer)

    def _recv_answer(self, key: Key, since: int, deadline: float | None, limit: float | None) -> str | bytes:
        """Receive the message that carries this id; `since`: how many had come before it was sent."""
        entry, account, known = self._entry or self._current(), self._account, self._terms.known
        assert account is not None, "an answer to what was not asked"
        wire, patience = entry.wire, None
        if deadline is None:
            patience = Patience(_ECHO_PATIENCE, lambda: account.echoed or entry.key in known.echoing)
        try:
            return wire.recv_answer(account.waits_for(key), since, deadline, self._borrower, patience)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            came = wire.reader.received - since
            if not came:
                raise self._late(error, limit) from None
            raise self._unanswered(
                error, key, came, limit, limit if patience is None else patience.seconds
            ) from None
        finally:
            if account.echoed:
                known.note_echo(entry.key)

    def __iter__(self) -> Iterator[T]:
        """Yield messages until the server closes normally (1000, 1001, or without a status code).

        Raises:
            ConnectionClosedError: At any other end.
            DecodeError: A payload does not decode; iterating again goes on behind it.
        """
        return iterate(self)

    def _await_queue(self) -> deque[str | bytes]:
        """Wait for a message, as `recv` does; for `iterate`."""
        entry = self._entry or self._current()
        self._touched = self._iterated = True
        limit = self._terms.recv_timeout
        try:
            return entry.wire.await_queue(self._until(limit), self._borrower)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None

    def _admit(self, payload: str | bytes) -> bool:
        entry, account = self._entry, self._watched
        return entry is None or account is None or self._admits(entry, account, payload)

    def _decoder(self) -> Callable[[str | bytes], T]:
        return self._terms.codec.decoder(self._told().target.redacted)

    def __next__(self) -> T:
        """Receive one message, as iterating does; StopIteration at a normal close.

        Raises:
            StopIteration: The server has closed normally (1000, 1001, or without a status code).
            ConnectionClosedError: At any other end.
            DecodeError: The payload does not decode.
        """
        self._iterated = True
        try:
            return self.recv()
        except ConnectionClosedError as error:
            if error.is_normal and not is_alarm(error):
                raise StopIteration from None
            raise

    # --- liveness --------------------------------------------------------------------------------------

    def ping(self, timeout: float | None = None) -> float:
        """Send a ping and wait for its pong (RFC 6455 §5.5.2); messages that come meanwhile are kept.

        Args:
            timeout: s; None: `recv_timeout`.

        Returns:
            The round trip (s).

        Raises:
            TimeoutError: No pong in time, or before more messages than are kept unread: `max_message_size` B
                and 1 MiB in all, each counted with 64 B of overhead.
            ConnectionClosedError: The connection has ended.
            InvalidStateError: The lease was released.
        """
        limit = seconds(timeout, self._terms.recv_timeout)
        entry = self._current()
        self._touched = True
        try:
            return entry.wire.measure_latency(self._until(limit), self._borrower)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None


__all__ = ["Exchange"]
