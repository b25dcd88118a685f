"""PooledConnection: the lease, what a borrower holds of a connection."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Protocol, cast

from jetsocket.clock import monotonic
from jetsocket.entry import Entry
from jetsocket.exceptions import ConnectionClosedError, TimeoutError
from jetsocket.ids import Account, Key, SentIds, key_in, shown
from jetsocket.interrupts import is_alarm
from jetsocket.iteration import iterate
from jetsocket.known_uris import KnownUris
from jetsocket.messages import Codec
from jetsocket.permits import Permit
from jetsocket.text import short_repr
from jetsocket.wire.channel import not_held

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # which type checkers bring along; nothing has to be installed

    T = TypeVar("T", default=Any)  # so that a pool without message_type needs no annotation
else:
    from typing import TypeVar

    T = TypeVar("T")


_ECHO_PATIENCE = 10.0  # s for a service that has not yet been seen to send ids back, where no timeout is set
_MAX_REASON = 123  # B, beside the code (RFC 6455 §5.5)


class Lender(Protocol):
    """What a lease needs of its pool."""

    def take_back(self, lease: PooledConnection[Any], *, failed: bool) -> None:
        """Return the lease; harmless if somebody did before."""

    def replace(self, lease: PooledConnection[Any], stale: Entry, deadline: float | None) -> None:
        """Give the lease another connection for one that has ended before it was used."""

    def fit_for_first_use(self, lease: PooledConnection[Any]) -> bool:
        """Whether a connection that was idle, not yet used by this borrower, is still clean."""


@dataclass(frozen=True)
class Terms(Generic[T]):
    """What all leases of a pool have in common.

    Attributes:
        codec: Between values and payloads.
        doorbell: Where a finalizer leaves the permit of a lease that was dropped.
        send_timeout: s for a send; None: no limit.
        recv_timeout: s for a receive that names none; None: no limit.
        match_ids: Whether replies are told by the ids of what they answer.
        known: What was found out about the URIs.
    """

    codec: Codec[T]
    doorbell: SimpleQueue[Any]
    send_timeout: float | None
    recv_timeout: float | None
    match_ids: bool
    known: KnownUris


def seconds(timeout: float | None, default: float | None, *, name: str = "timeout") -> float | None:
    """Check a timeout (s) that a caller gave.

    Raises:
        TypeError: It is not a number.
        ValueError: It is negative or NaN.
    """
    if timeout is None:
        return default
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {short_repr(timeout)}")
    if timeout >= threading.TIMEOUT_MAX:
        return None  # centuries, which locks refuse to wait
    if not timeout >= 0:  # NaN, too; an int may be too large for a float
        raise ValueError(f"{name} must be 0 s or more, not {short_repr(timeout)}")
    return float(timeout)


def _raw(data: object) -> str | bytes:
    if isinstance(data, (str, bytes)):
        return data
    if isinstance(data, (bytearray, memoryview)):
        return bytes(data)
    raise TypeError(f"send_raw takes str or bytes, not {type(data).__name__}; send() serializes")


def _check_close(code: object, reason: object) -> None:
    if isinstance(code, bool) or not isinstance(code, int):
        raise TypeError(f"code must be an int, not {short_repr(code)}")
    if not isinstance(reason, str):
        raise TypeError(f"reason must be a str, not {type(reason).__name__}")
    if code != 1000 and not 3000 <= code <= 4999:
        raise ValueError(f"code must be 1000, or 3000 to 4999, not {short_repr(code)} (RFC 6455 §7.4)")
    try:
        size = len(reason.encode("utf-8"))
    except UnicodeEncodeError as error:
        if is_alarm(error):
            raise
        raise ValueError(f"reason must have a form in UTF-8: {error.reason}") from None
    if size > _MAX_REASON:
        raise ValueError(f"reason must be at most {_MAX_REASON} B of UTF-8, not {size} (RFC 6455 §5.5)")


class PooledConnection(Generic[T]):
    """One connection of a pool, lent to one borrower until it is released.

    A fresh object for each acquire: once released it can touch nothing any more. It is a context manager
    (leaving it releases) and an iterator over the messages that come. One thread may send while another
    receives. A lease that is dropped without release is found by the garbage collector: the connection is
    closed, and a ResourceWarning tells where it was acquired.

    Example:
        >>> with pool.acquire("/ws/btcusdt") as conn:
        ...     conn.send({"subscribe": "trades"})
        ...     reply = conn.recv()
    """

    __slots__ = (
        "__weakref__",
        "_account",
        "_close_with",
        "_deadline",
        "_entry",
        "_iterated",
        "_permit",
        "_pool",
        "_queue",
        "_sent",
        "_shown",
        "_terms",
        "_touched",
        "_watched",
        "discarded",
        "timed_out",
    )

    def __init__(
        self,
        pool: Lender,
        permit: Permit,
        terms: Terms[T],
        deadline: float | None = None,
    ) -> None:
        """Made by `ConnectionPool.acquire`; there is no other way to get one."""
        self._terms = terms
        self._permit = permit
        self._pool = pool
        self._entry: Entry | None = None
        self._shown: Entry | None = None  # what the properties tell of, after release too
        self._deadline = deadline  # over all operations together, for callbacks
        self._touched = False  # whether the borrower has sent or received
        self._sent = False  # whether the borrower has sent
        self._queue: deque[str | bytes] | None = None  # where what has come may be taken from, see `iterate`
        self._account: Account | None = None  # of what was sent with ids; None: nothing
        self._watched: Account | None = None  # the same, as long as what comes has to be looked at
        self.timed_out = False
        self._iterated = False
        self.discarded = False
        self._close_with = (1000, "")  # code and reason, if it is closed at release
        permit.lease = weakref.ref(self)

    # --- what the pool does with it --------------------------------------------------------------------

    def _attach(self, entry: Entry) -> None:
        """Begin to use this connection."""
        entry.wire.holder = self._permit
        self._entry = self._shown = entry
        if entry.ids is not None and entry.ids.owes and self._deadline is None:
            self._account = self._watched = self._new_account(entry.ids)  # a callback gets whatever comes

    def _detach(self) -> Entry | None:
        """Let go; operations under way finish, later ones are refused."""
        entry, self._entry = self._entry, None
        if entry is not None and entry.wire.holder is self._permit:
            entry.wire.holder = None
            entry.wire.recall_queue()
        return entry

    def __del__(self) -> None:
        # No lock, no I/O, nothing that could wait: the housekeeper does the rest.
        try:
            permit = self._permit
        except AttributeError:  # an interrupt struck before it was set
            return
        if not permit.claimed:
            self._terms.doorbell.put(permit)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a lease can't be pickled or copied: its connection has one borrower at a time")

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
        payload = data if type(data) is str or type(data) is bytes else _raw(data)
        text = None
        if binary is not None:
            if not isinstance(binary, bool):
                raise TypeError(f"binary must be True, False or None, not {binary!r}")
            text = not binary
            if text and isinstance(payload, bytes):
                payload.decode("utf-8")  # anything else as text would end the connection (RFC 6455 §8.1)
        terms, limit = self._terms, self._terms.send_timeout
        key = key_in(payload, payload, terms.codec.read_json) if terms.match_ids else None
        self._send(payload, text, self._until(limit), limit, key)

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
        if type(payload) is str:  # here, for what can't be encoded must not count as sent
            payload, text = payload.encode("utf-8"), text is not False
        if not self._sent:
            return self._send_first(payload, text, deadline, limit, key)
        entry = self._entry or self._current()
        since = None if key is None else self._ask(entry, key)
        try:
            entry.wire.send_message(payload, deadline, self._permit, text)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None
        return since

    def _key_in(self, message: object, payload: str | bytes) -> Key | None:
        codec = self._terms.codec
        return key_in(message, payload, codec.read_json, as_given=codec.as_given)

    def _new_account(self, sent: SentIds) -> Account:
        codec = self._terms.codec
        return Account(sent, codec.read_json, keep=codec.is_json)

    def _ask(self, entry: Entry, key: Key) -> int | None:
        """Note, before it can leave, that a message with this id does; returns what `_send` does."""
        if (account := self._account) is None:
            if entry.ids is None:
                entry.ids = SentIds()
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
        while True:
            entry = self._entry or self._current()
            fresh = not self._touched and entry.idle_since > 0 and self._deadline is None
            if fresh and not self._pool.fit_for_first_use(self):
                self._pool.replace(self, entry, deadline)
                continue
            wire = entry.wire
            out = wire.bytes_out if fresh else 0
            if self._deadline is None and not self._iterated:
                self._note_what_came_first(entry)
            self._touched = True
            since = None if key is None else self._ask(entry, key)
            try:
                wire.send_message(payload, deadline, self._permit, text)
                self._sent = True
                return since
            except TimeoutError as error:
                if is_alarm(error):
                    raise
                raise self._late(error, limit) from None
            except ConnectionClosedError as error:
                if not fresh or wire.bytes_out != out or is_alarm(error):
                    raise
                # Not a byte has left, and this borrower has neither sent nor received: nobody will notice.
                self._touched = False
                self._account = self._watched = None  # its ids have been sent on the other connection
                self._pool.replace(self, entry, deadline)

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
                payload = entry.wire.recv_message(deadline, self._permit)
                account = self._watched
                if account is None or self._admits(entry, account, payload):
                    break
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None
        if not self._queue and entry.wire.reader.messages:  # more of them: a stream, perhaps
            self._queue = entry.wire.lend_queue(self._permit)
        return payload

    def _admits(self, entry: Entry, account: Account, payload: str | bytes) -> bool:
        admitted = account.admits(payload)
        if account.answered:
            self._terms.known.note_echo(entry.key)
        if account.is_done:
            self._watched = None
            if account.open:  # another thread has sent one meanwhile
                self._watched = account
        return admitted

    def request(self, message: Any, timeout: float | None = None) -> T:
        """Send a message and receive its reply, within one deadline.

        The reply to a JSON object with an `id` that this connection was not sent a moment ago is the message
        with the same `id`; what comes before it stays for `recv`. The reply to anything else, and with
        `match_ids=False`, is the next message.

        Args:
            message: As for `send`.
            timeout: s for both together; None: `send_timeout` and `recv_timeout` apply. Without any of them,
                a service that sends messages and has never sent an id back is waited for for 10 s.

        Returns:
            The decoded reply.

        Raises:
            TimeoutError: No reply in time, or before more messages than are kept unread (see `ping`). It may
                still come: the connection will not be lent again.
            ConnectionClosedError: The connection has ended.
            DecodeError: The reply does not decode.
            InvalidStateError: The lease was released.
        """
        limit = seconds(timeout, None)
        return self._request(message, None if limit is None else monotonic() + limit, limit)

    def _request(self, message: Any, deadline: float | None, limit: float | None) -> T:
        terms = self._terms
        payload = terms.codec.encode(message)
        key = self._key_in(message, payload) if terms.match_ids else None
        if deadline is None:
            since = self._send(payload, None, self._until(terms.send_timeout), terms.send_timeout, key)
            deadline, limit = self._until(terms.recv_timeout), terms.recv_timeout
        else:
            deadline = deadline if self._deadline is None else min(deadline, self._deadline)
            since = self._send(payload, None, deadline, limit, key)
        if since is None or key is None:
            return self._decode(self._recv(deadline, limit))
        return self._decode(self._recv_answer(key, since, deadline, limit))

    def _recv_answer(self, key: Key, since: int, deadline: float | None, limit: float | None) -> str | bytes:
        """Receive the message that carries this id; `since`: how many had come before it was sent."""
        entry, account, known = self._entry or self._current(), self._account, self._terms.known
        assert account is not None, "an answer to what was not asked"
        patience = None if deadline is not None or entry.key in known.echoing else _ECHO_PATIENCE
        wire = entry.wire
        try:
            answer = wire.recv_answer(account.waits_for(key), since, deadline, self._permit, patience)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            came = wire.reader.received - since
            if not came:
                raise self._late(error, limit) from None
            raise self._unanswered(error, key, came, limit) from None
        known.note_echo(entry.key)
        return answer

    def _unanswered(self, error: TimeoutError, key: Key, came: int, limit: float | None) -> TimeoutError:
        self.timed_out = True
        messages = "1 message" if came == 1 else f"{came} messages"
        waited = f"{_ECHO_PATIENCE if limit is None else limit:g}"
        return TimeoutError(
            f"{error}: {messages} came, none with id {shown(key)}; if this service does not echo ids:"
            f" match_ids=False (waited for {waited} s)",
            operation=error.operation,
            timeout=limit,
        )

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
            return entry.wire.await_queue(self._until(limit), self._permit)
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
            return entry.wire.measure_latency(self._until(limit), self._permit)
        except TimeoutError as error:
            if is_alarm(error):
                raise
            raise self._late(error, limit) from None

    # --- giving back -----------------------------------------------------------------------------------

    def release(self) -> None:
        """Give the connection back. The second time does nothing."""
        self._pool.take_back(self, failed=False)

    def discard(self, code: int = 1000, reason: str = "") -> None:
        """Have the connection closed at release, whatever its state: after a subscription, or in doubt.

        Args:
            code: What the server is told, if nothing has ended the connection before: 1000, or 3000 to 4999,
                which are for libraries and applications (RFC 6455 §7.4.2).
            reason: Text for the server's log, at most 123 B of UTF-8.

        Raises:
            TypeError: `code` is not an int, or `reason` not a str.
            ValueError: Another code, or a reason that is too long.
            InvalidStateError: The lease was released: the connection may have another borrower by now.
        """
        _check_close(code, reason)
        if self._is_released:
            raise not_held(self._told().target)
        self._close_with = (int(code), reason)
        self.discarded = True

    def __enter__(self) -> PooledConnection[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.take_back(self, failed=kind is not None)

    # --- what it is ------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        """Identifies the connection, not the lease: the same number is the same connection."""
        return self._told().id

    @property
    def uri(self) -> str:
        """The URI it is connected to, to be shown: without credentials, and each value of a query as ``***``.

        So it is none to acquire another connection with, if it has a query.
        """
        return self._told().target.redacted

    @property
    def is_connected(self) -> bool:
        """Whether the lease is held and neither side is known to have ended the connection."""
        entry = self._entry
        return entry is not None and entry.wire.failure is None

    @property
    def latency_ms(self) -> float | None:
        """Round trip of the last `ping` on this connection (ms); None before the first."""
        latency = self._told().wire.latency
        return None if latency is None else latency * 1000.0

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that the server chose (RFC 6455 §1.9), None for none."""
        return self._told().wire.getsubprotocol()

    @property
    def response_headers(self) -> Mapping[str, str]:
        """The headers of the server's upgrade response; names are case-insensitive."""
        return self._told().wire.response_headers

    def __repr__(self) -> str:
        entry = self._shown
        if entry is None:
            return "<PooledConnection>"
        state = "released" if self._is_released else "connected" if self.is_connected else "closed"
        return f"<PooledConnection {entry.id} {state} {entry.target.redacted}>"

    # --- helpers ---------------------------------------------------------------------------------------

    @property
    def _is_released(self) -> bool:
        return self._entry is None and self._permit.claimed  # without the latter, it could not be moved

    def _current(self) -> Entry:
        """The connection.

        Raises:
            InvalidStateError: The lease was released.
            ConnectionError: It has none: the last one has ended, and there was no other to move to.
        """
        entry = self._entry
        if entry is not None:
            return entry
        wire = self._told().wire
        if wire.failure is None or self._is_released:
            raise not_held(self._told().target)
        wire.raise_failure()

    def _told(self) -> Entry:
        assert self._shown is not None, "a lease that nobody has got yet"
        return self._shown

    def _decode(self, payload: str | bytes) -> T:
        codec, account = self._terms.codec, self._account
        if account is not None:
            parsed, account.parsed = account.parsed, None
            if parsed is not None and parsed[0] is payload:
                return cast("T", parsed[1])  # what the deserializer would make of it once more
        return codec.decode(payload, uri=self._told().target.redacted)

    def _until(self, timeout: float | None) -> float | None:
        if timeout is None:
            return self._deadline
        deadline = monotonic() + timeout
        return deadline if self._deadline is None else min(deadline, self._deadline)

    def _late(self, error: TimeoutError, limit: float | None) -> TimeoutError:
        self.timed_out = True
        told = str(error)
        if limit is not None:
            option = "send_timeout" if error.operation == "send" else "recv_timeout"
            told += f": {limit:g} s were given; allow more (timeout, or {option})"
        return TimeoutError(told, operation=error.operation, timeout=limit)


__all__ = ["Lender", "PooledConnection", "seconds"]
