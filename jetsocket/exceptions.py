"""The errors of jetsocket: one tree, every leaf with the figures a caller may want to act on.

``str(error)`` is the message and nothing else. Payloads, bodies and headers are attributes only: they may
hold secrets, and a message ends up in logs. All of them survive ``pickle`` and ``copy``, so that a task queue
can ship them between processes. One that ships the message only can make them anew of that.
"""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

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
    "TimeoutError",
]

_NORMAL_CLOSES = (1000, 1001)


def _blank(kind: type[JetSocketError], args: tuple[Any, ...]) -> JetSocketError:
    """Make an error without its ``__init__``, which wants more than ``args``; pickle fills in the rest."""
    error = kind.__new__(kind, *args)
    error.args = args
    return error


def _portable(error: BaseException) -> BaseException:
    """Return ``error`` if it survives pickling, else an error of ours that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001 - a foreign class may raise anything: it cannot travel, its text can
        return JetSocketError(f"{type(error).__name__}: {error}")
    return error


class JetSocketError(Exception):
    """The root: ``except JetSocketError`` catches everything this library raises on purpose.

    Wrong arguments are the exception: they are plain ``TypeError`` and ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        """Keep the message.

        Args:
            message: What was tried, on which URI (redacted), which limit was hit, what to do about it.
        """
        super().__init__(message)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by arguments and attributes; the default would call ``__init__`` without its keywords."""
        return _blank, (type(self), self.args), self._state()

    def _state(self) -> dict[str, Any]:
        return dict(self.__dict__)


class ConnectionError(JetSocketError, builtins.ConnectionError):
    """A connection could not be opened, or broke. The socket's or TLS's own error is the ``__cause__``."""


class HandshakeError(ConnectionError):
    """The server answered the HTTP upgrade with anything but a valid 101 (RFC 6455 §4.1, §4.2.2).

    Attributes:
        status_code: The HTTP status, or None if there was no readable one.
        headers: The response headers; empty if there were none.
        body: The beginning of the response body, bytes.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Keep the message and what the server said."""
        super().__init__(message)
        self.status_code = status_code
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self.body = body


class ConnectionClosedError(ConnectionError):
    """The connection is closed: by the peer, by this side, or by a loss that left no close frame (code 1006).

    Attributes:
        code: The close code (RFC 6455 §7.4).
        reason: The close reason the peer gave, or an empty string.
    """

    def __init__(self, message: str, *, code: int = 1006, reason: str = "") -> None:
        """Keep the message and the close."""
        super().__init__(message)
        self.code = code
        self.reason = reason

    @property
    def is_normal(self) -> bool:
        """True for the codes of an orderly end: 1000 (done) and 1001 (going away)."""
        return self.code in _NORMAL_CLOSES


class ProtocolError(ConnectionError):
    """The peer broke the WebSocket protocol, so the connection was failed (RFC 6455 §7.1.7).

    Attributes:
        code: The close code it was failed with (1002, 1007, …), or None if none was sent.
    """

    def __init__(self, message: str, *, code: int | None = None) -> None:
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

    code = 1009

    def __init__(self, message: str, *, limit: int = 0, size: int | None = None) -> None:
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

    def __init__(self, message: str, *, operation: str = "unknown", timeout: float | None = None) -> None:
        """Keep the message, the operation and the time it had."""
        super().__init__(message)
        self.operation = operation
        self.timeout = timeout


class PoolExhaustedError(JetSocketError):
    """No connection became free in time, or the line of waiting callers is full.

    Attributes:
        max_connections: The pool's cap.
        timeout: How long this acquire was allowed to wait, s.
        waiting: Callers in line when it gave up.
        idle: Idle connections when it gave up.
        last_connect_error: Why the last attempt to open a connection failed, if one did.
    """

    def __init__(
        self,
        message: str,
        *,
        max_connections: int = 0,
        timeout: float = 0.0,
        waiting: int = 0,
        idle: int = 0,
        last_connect_error: BaseException | None = None,
    ) -> None:
        """Keep the message and the pool's figures."""
        super().__init__(message)
        self.max_connections = max_connections
        self.timeout = timeout
        self.waiting = waiting
        self.idle = idle
        self.last_connect_error = last_connect_error

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

    def __init__(
        self, message: str, *, current_state: str = "unknown", required_states: Sequence[str] = ()
    ) -> None:
        """Keep the message and the states."""
        super().__init__(message)
        self.current_state = current_state
        self.required_states = tuple(required_states)


class DecodeError(JetSocketError):
    """A message arrived whole but the deserializer would not have it. The connection stays usable.

    Attributes:
        payload: The message as it came: ``str`` for text, ``bytes`` for binary.
    """

    def __init__(self, message: str, *, payload: str | bytes = "") -> None:
        """Keep the message and the payload."""
        super().__init__(message)
        self.payload = payload
