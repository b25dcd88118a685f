"""Errors as a pool would raise them, for tests that make it: with plausible facts. Pure."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from jetsocket import (
    ConnectionClosedError,
    ConnectionError,
    ConnectionPoolConfig,
    DecodeError,
    HandshakeError,
    InvalidStateError,
    JetSocketError,
    MessageTooBigError,
    PoolClosedError,
    PoolExhaustedError,
    ProtocolError,
    ReplyError,
    SubscriptionOverflowError,
    TimeoutError,
)

_FAKE = "; FakePool.fail says so"


def exhausted(name: str, where: str, config: ConnectionPoolConfig) -> PoolExhaustedError:
    """A pool all of whose connections are lent."""
    cap = config.max_connections
    return PoolExhaustedError(
        f"pool {name!r} has no connection to {where} to lend: none within {config.acquire_timeout:g} s"
        f" ({cap} lent, 0 idle, 0 being opened, 0 waiting; max_connections={cap}){_FAKE}",
        max_connections=cap,
        timeout=config.acquire_timeout,
    )


def _handshake(where: str) -> HandshakeError:
    return HandshakeError(
        f"no WebSocket at {where}: the server refused with 503 Service Unavailable{_FAKE}",
        status_code=503,
        headers={"Content-Type": "text/plain"},
        body=b"Service Unavailable",
    )


def _reply(where: str) -> ReplyError:
    reply = {"error": {"code": -32000, "message": "Server error"}}
    return ReplyError(
        f"{where} answered with error -32000: Server error{_FAKE}", -32000, "Server error", reply=reply
    )


def _too_big(where: str) -> MessageTooBigError:
    limit = 64 * 1024 * 1024
    told = f"the server at {where} sent a message of {limit + 1} B, over max_message_size={limit} B{_FAKE}"
    return MessageTooBigError(told, limit=limit, size=limit + 1)


_MADE: dict[type[JetSocketError], Callable[[str], JetSocketError]] = {
    ConnectionError: lambda where: ConnectionError(
        f"cannot connect to {where}: connecting failed: Connection refused{_FAKE}"
    ),
    HandshakeError: _handshake,
    ConnectionClosedError: lambda where: ConnectionClosedError(
        f"the connection to {where} is over: the server closed the connection without a close frame{_FAKE}",
        1006,
    ),
    ProtocolError: lambda where: ProtocolError(
        f"the server at {where} sent a frame with reserved bits (RFC 6455 §5.2){_FAKE}", code=1002
    ),
    MessageTooBigError: _too_big,
    TimeoutError: lambda where: TimeoutError(
        f"cannot connect to {where} within 10 s: the time ran out{_FAKE}", operation="connect", timeout=10.0
    ),
    PoolExhaustedError: lambda where: exhausted("fake", where, ConnectionPoolConfig()),
    PoolClosedError: lambda where: PoolClosedError(f"the pool is closed: nothing is lent to {where}{_FAKE}"),
    InvalidStateError: lambda where: InvalidStateError(
        f"the lease of {where} was released{_FAKE}", current_state="released", required_states=("lent",)
    ),
    DecodeError: lambda where: DecodeError(
        f"text message of 1 characters from {where} could not be decoded: no valid JSON{_FAKE}", payload="{"
    ),
    SubscriptionOverflowError: lambda where: SubscriptionOverflowError(
        f"a subscription at {where} was read too slowly: 1 message is lost{_FAKE}", dropped=1
    ),
    ReplyError: _reply,
    JetSocketError: lambda where: JetSocketError(f"something failed at {where}{_FAKE}"),
}


def checked(error: Any) -> BaseException | type[BaseException]:
    """What `fail` is given: an exception or a class of one, such as a pool raises.

    Raises:
        TypeError: It is neither.
    """
    kind = error if isinstance(error, type) else type(error)
    if not issubclass(kind, BaseException):
        raise TypeError(f"fail takes an exception or a class of one, such as HandshakeError, not {error!r}")
    # What is no Exception, as KeyboardInterrupt, comes from outside, and may come at any time.
    if issubclass(kind, Exception) and not issubclass(kind, (JetSocketError, OSError)):
        raise TypeError(
            "fail takes what a pool raises: an error of jetsocket, an OSError, or an interrupt such as"
            f" KeyboardInterrupt, not {kind.__name__}"
        )
    given: BaseException | type[BaseException] = error
    return given


def made(error: BaseException | type[BaseException], where: str) -> BaseException:
    """An error to raise: a copy of what was given, or one of that class."""
    if isinstance(error, BaseException):
        again = copy.copy(error)  # each has its own traceback
        again.__cause__ = error.__cause__
        return again
    for kind in error.__mro__:
        if (make := _MADE.get(kind)) is not None:
            return make(where) if kind is error else error(str(make(where)))
    return error(f"something failed at {where}{_FAKE}")


__all__ = ["checked", "exhausted", "made"]
