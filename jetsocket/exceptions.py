"""The errors of jetsocket: one tree, every leaf with the figures a caller may want to act on.

``str(error)`` is the message and nothing else. ``args`` is the message and, behind it, the facts of the class
in the order in which its ``__init__`` takes them, all of them what JSON can carry: so a task queue that ships
``args`` and makes ``type(error)(*args)`` of them, as Celery's JSON result backend does, gets the same error.
Payloads, bodies and headers are attributes only: they may hold secrets, and what is in ``args`` gets to logs
and databases. ``pickle`` and ``copy`` keep all of it.
"""

from __future__ import annotations

import builtins
import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from jetsocket.interrupts import is_alarm
from jetsocket.text import printable

__all__ = [
    "ConnectionClosedError",
    "ConnectionError",
    "DecodeError",
    "HandshakeError",
    "InvalidStateError",
    "JetSocketError",
    "MessageTooBigError",
    "PoolClosedError",
    "PoolExhaustedError",
    "ProtocolError",
    "ReplyError",
    "SubscriptionOverflowError",
    "TimeoutError",
]

_NORMAL_CLOSES = (1000, 1001, 1005)


def _restored(kind: type[JetSocketError], args: tuple[Any, ...], state: dict[str, Any]) -> JetSocketError:
    """Make an error of what `__reduce__` has kept of one, without its ``__init__``, which asks for less."""
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    error.args = args
    return error


def _travels(value: object) -> bool:
    """Whether ``value`` survives pickling."""
    import pickle

    try:
        pickle.loads(pickle.dumps(value))
    except Exception as why:
        if is_alarm(why, users_code=True):
            raise
        return False  # a foreign class may raise anything
    return True


def _portable(error: BaseException) -> BaseException:
    """Return ``error`` if it survives pickling, else an error of ours that says the same."""
    return error if _travels(error) else JetSocketError(f"{type(error).__name__}: {error}")


def _as_fact(value: object) -> object:
    """A fact as it is in ``args``: what JSON can carry, and fit to be shown."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None  # which JSON has no word for: there was no limit
    if isinstance(value, JetSocketError):
        kind = next(kind for kind in type(value).__mro__ if kind.__module__ == __name__)
        return [kind.__name__, list(value.args)]
    if isinstance(value, BaseException):
        told = f"{type(value).__name__}; its text, which may quote anything, is not kept"
        return ["JetSocketError", [told]]
    return list(value) if isinstance(value, tuple) else value


def _of_fact(fact: BaseException | Sequence[Any] | None) -> BaseException | None:
    """The error that `_as_fact` has put into ``args``."""
    if fact is None or isinstance(fact, BaseException):
        return fact
    name, args = fact
    kind: type[JetSocketError] = globals()[name] if name in __all__ else JetSocketError
    return kind(*args)


def raise_copy(error: BaseException) -> NoReturn:
    """Raise a copy of an error that several threads get: of one object, they would share the traceback."""
    raise copy.copy(error) from error.__cause__


class JetSocketError(Exception):
    """The root: ``except JetSocketError`` catches everything this library raises on purpose.

    Wrong arguments are the exception: they are plain ``TypeError`` and ``ValueError``.
    """

    _facts: ClassVar[tuple[str, ...]] = ()  # attributes that follow the message in `args`
    _is_unsent = False  # whether not a byte has left of what was to be sent

    def __init__(self, message: str) -> None:
        """Keep the message.

        Args:
            message: What was tried, on which URI (redacted), which limit was hit, what to do about it.
        """
        super().__init__(message)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name in self._facts:  # also of an error that is completed later
            facts = (_as_fact(getattr(self, fact, None)) for fact in self._facts)
            self.args = (*self.args[:1], *facts)  # not str(self), which a subclass may word in its own way

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by arguments and attributes: these are more than ``args``."""
        return _restored, (type(self), self.args, self._state())

    def _state(self) -> dict[str, Any]:
        return dict(self.__dict__)


class ConnectionError(JetSocketError, builtins.ConnectionError):
    """A connection could not be opened, or broke. The socket's or TLS's own error is the ``__cause__``."""

    _is_final = False  # whether another attempt to connect would end the same way


class HandshakeError(ConnectionError):
    """The server answered the HTTP upgrade with anything but a valid 101 (RFC 6455 §4.1, §4.2.2).

    Or the service that gives out the tickets for it refused one; the message says who did.

    Attributes:
        status_code: The HTTP status, or None if there was no readable one.
        headers: The response headers; empty if there were none.
        retry_after: When the server wants to be asked again, s from then (Retry-After, RFC 9110 §10.2.3), be
            it as a number or a date; None if it did not say.
        body: The beginning of the response body, bytes. Neither headers nor body are in ``args``.
    """

    _facts = ("status_code", "retry_after")

    def __init__(
        self,
        message: str,
        status_code: int | None = None,
        retry_after: float | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Keep the message and what the server said."""
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self.body = body


class ConnectionClosedError(ConnectionError):
    """The connection is closed: by the peer, by this side, or by a loss that left no close frame (code 1006).

    Attributes:
        code: The close code (RFC 6455 §7.4).
        reason: The close reason as the peer gave it, or an empty string; in ``args`` it is fit to be shown.
    """

    _facts = ("code", "reason")

    def __init__(self, message: str, code: int = 1006, reason: str = "") -> None:
        """Keep the message and the close."""
        super().__init__(message)
        self.code = code
        self.reason = reason

    @property
    def is_normal(self) -> bool:
        """True for an orderly end: 1000 (done), 1001 (going away), or a close frame without a code (1005)."""
        return self.code in _NORMAL_CLOSES


class ProtocolError(ConnectionError):
    """The peer broke the WebSocket protocol, so the connection was failed (RFC 6455 §7.1.7).

    Attributes:
        code: The close code it was failed with (1002, 1007, …), or None if none was sent.
    """

    _facts = ("code",)

    def __init__(self, message: str, code: int | None = None) -> None:
        """Keep the message and the close code."""
        super().__init__(message)
        self.code = code


class MessageTooBigError(ConnectionError):
    """A message is larger than ``max_message_size``; the connection was failed with 1009.

    Attributes:
        code: Always 1009 (RFC 6455 §7.4.1).
        limit: The limit, bytes.
        size: The size declared or reached, bytes; None if not known.
    """

    _facts = ("limit", "size")
    code = 1009

    def __init__(self, message: str, limit: int = 0, size: int | None = None) -> None:
        """Keep the message and the sizes."""
        super().__init__(message)
        self.limit = limit
        self.size = size


class TimeoutError(JetSocketError, builtins.TimeoutError):
    """An operation did not end within its deadline.

    Attributes:
        operation: What timed out: "connect", "configure", "send", "recv", "ping", …
        timeout: The time it had, s; None if not known.
    """

    _facts: ClassVar[tuple[str, ...]] = ("operation", "timeout")
    _ran_out = True  # of time; False: of room for messages that came meanwhile

    def __init__(self, message: str, operation: str = "unknown", timeout: float | None = None) -> None:
        """Keep the message, the operation and the time it had."""
        super().__init__(message)
        self.operation = operation
        self.timeout = timeout


class PoolExhaustedError(TimeoutError):
    """No connection was to be had in time, or the line of waiting callers is full.

    Attributes:
        operation: Always "acquire".
        max_connections: The pool's cap.
        timeout: How long this acquire was allowed to wait, s; None: for ever.
        waiting: Callers in line when it gave up.
        idle: Idle connections when it gave up.
        last_connect_error: Why the last attempt to open a connection failed, if one did.
        connecting: Connections that were being opened.
        holders: The three leases that were out for longest, a sentence each.
    """

    _facts = (
        "max_connections",
        "timeout",
        "waiting",
        "idle",
        "last_connect_error",
        "connecting",
        "holders",
    )

    def __init__(  # noqa: PLR0917 - `args` holds them in this order
        self,
        message: str,
        max_connections: int = 0,
        timeout: float | None = 0.0,
        waiting: int = 0,
        idle: int = 0,
        last_connect_error: BaseException | Sequence[Any] | None = None,
        connecting: int = 0,
        holders: Sequence[str] = (),
    ) -> None:
        """Keep the message and the pool's figures; `last_connect_error` may be as it is in ``args``."""
        super().__init__(message, operation="acquire", timeout=timeout)
        self.max_connections = max_connections
        self.waiting = waiting
        self.idle = idle
        self.last_connect_error = _of_fact(last_connect_error)
        self.connecting = connecting
        self.holders = tuple(holders)

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        if self.last_connect_error is not None:
            state["last_connect_error"] = _portable(self.last_connect_error)
        return state


class PoolClosedError(JetSocketError):
    """The pool is closed, or draining: it lends nothing any more."""


class InvalidStateError(JetSocketError):
    """A call that the object's state does not allow, such as sending on a released lease.

    Attributes:
        current_state: The state it is in.
        required_states: The states in which the call is allowed.
    """

    _facts = ("current_state", "required_states")

    def __init__(
        self, message: str, current_state: str = "unknown", required_states: Sequence[str] = ()
    ) -> None:
        """Keep the message and the states."""
        super().__init__(message)
        self.current_state = current_state
        self.required_states = tuple(required_states)


class DecodeError(JetSocketError):
    """A message arrived whole but the deserializer would not have it. The connection stays usable.

    Attributes:
        payload: The message as it came: ``str`` for text, ``bytes`` for binary. It is not in ``args``:
            empty in an error that was made of these.
    """

    def __init__(self, message: str, *, payload: str | bytes = "") -> None:
        """Keep the message and the payload."""
        super().__init__(message)
        self.payload = payload


class SubscriptionOverflowError(JetSocketError):
    """A subscription's queue was full: what it was pushed was not read in time, and its rest is lost.

    Attributes:
        dropped: How many messages are known to be lost.
    """

    _facts = ("dropped",)

    def __init__(self, message: str, dropped: int = 0) -> None:
        """Keep the message and how many were lost."""
        super().__init__(message)
        self.dropped = dropped


class ReplyError(JetSocketError):
    """A request was answered, and the answer is an error. The connection stays usable.

    Attributes:
        code: The protocol's code of this error: -32601 in JSON-RPC, "not_found" in Home Assistant; None if it
            gave none.
        message: What the server said, as it said it; in ``args`` it is fit to be shown.
        data: What else it said: JSON-RPC's `data`, GraphQL's list of errors; None if there was nothing.
        reply: The whole reply, with the caller's own id. Neither `data` nor `reply` are in ``args``, and what
            of them can't be pickled is None in a copy.
    """

    _facts = ("code", "message")

    def __init__(
        self,
        text: str,
        code: int | str | None = None,
        message: str | None = None,
        *,
        data: Any = None,
        reply: Any = None,
    ) -> None:
        """Keep what the error says, and what the server said; without a `message` of the server's, `text`."""
        super().__init__(text)
        self.code = code
        self.message = text if message is None else message
        self.data = data
        self.reply = reply

    def _state(self) -> dict[str, Any]:
        state = super()._state()
        return state | {name: None for name in ("data", "reply") if not _travels(state[name])}
