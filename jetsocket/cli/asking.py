"""How a message is asked over a connection, and how its replies are shown: as they are, or by their ids."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from jetsocket.cli.exits import UsageError
from jetsocket.cli.output import Terminal
from jetsocket.cli.reading import from_bytes
from jetsocket.connection import PooledConnection
from jetsocket.correlation import Correlation, JsonRpc

__all__ = ["Asking", "Correlated", "JsonRpcCall", "Raw"]


class Asking(ABC):
    """One way to ask.

    Attributes:
        uri: Where to.
        correlation: What the pool has to know of replies; None: nothing.
    """

    correlation: Correlation | None = None

    def __init__(self, uri: str, timeout: float) -> None:
        """Ask there, and wait so long (s) for each reply."""
        self.uri = uri
        self._timeout = timeout

    @abstractmethod
    def read(self, payload: str | bytes) -> Any:
        """The message that a payload is, as it was given.

        Raises:
            UsageError: It is none.
        """

    def read_line(self, line: bytes) -> Any:
        """The message that a line of stdin is; as `read`."""
        return self.read(from_bytes(line, as_base64=False))

    @abstractmethod
    def ask(self, conn: PooledConnection[Any], message: Any) -> Iterator[Any]:
        """Send a message, and yield its replies."""

    @abstractmethod
    def show(self, terminal: Terminal, reply: Any, **facts: Any) -> None:
        """Print a reply."""


class Raw(Asking):
    """Messages as they are; what comes next is the reply."""

    def __init__(self, uri: str, timeout: float, replies: int, *, as_base64: bool = False) -> None:
        """Wait for so many replies to each message."""
        super().__init__(uri, timeout)
        self._replies, self._base64 = replies, as_base64

    def read(self, payload: str | bytes) -> Any:
        """As it is."""
        return payload

    def read_line(self, line: bytes) -> Any:
        """Text, or what the base64 says."""
        return from_bytes(line, as_base64=self._base64)

    def ask(self, conn: PooledConnection[Any], message: Any) -> Iterator[Any]:
        """Without a message, the server speaks first."""
        if message is not None:
            conn.send_raw(message)
        for _ in range(self._replies):
            yield conn.recv_raw(self._timeout)

    def show(self, terminal: Terminal, reply: Any, **facts: Any) -> None:
        """As it came."""
        terminal.message(reply, **facts)


class Correlated(Asking):
    """JSON messages of a protocol that tells whose a reply is."""

    def __init__(
        self, uri: str, timeout: float, correlation: Correlation, *, sends_only: bool = False
    ) -> None:
        """By that correlation; with `sends_only`, no reply is awaited."""
        super().__init__(uri, timeout)
        self.correlation = correlation
        self._sends_only = sends_only

    def read(self, payload: str | bytes) -> Any:
        """Of JSON."""
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"with --correlation, a message has to be JSON: {error}") from error

    def ask(self, conn: PooledConnection[Any], message: Any) -> Iterator[Any]:
        """Its reply, whatever else comes."""
        if self._sends_only:
            conn.send(message)
        else:
            yield conn.request(message, self._timeout)

    def show(self, terminal: Terminal, reply: Any, **facts: Any) -> None:
        """As JSON."""
        terminal.value(reply, **facts)


class JsonRpcCall(Correlated):
    """Calls of one JSON-RPC method."""

    def __init__(self, uri: str, timeout: float, method: str, *, sends_only: bool = False) -> None:
        """Of that method; with `sends_only` they are notifications."""
        super().__init__(uri, timeout, JsonRpc(), sends_only=sends_only)
        self._method = method

    def call(self, params: list[Any]) -> dict[str, Any]:
        """The call with these arguments."""
        message = {"method": self._method, "params": params}
        return {"jsonrpc": "2.0", **message} if self._sends_only else message

    def read(self, payload: str | bytes) -> Any:
        """A line is an array of arguments, or one argument."""
        try:
            value = json.loads(payload)
        except (ValueError, RecursionError):
            value = payload
        return self.call(value if isinstance(value, list) else [value])

    def show(self, terminal: Terminal, reply: Any, **facts: Any) -> None:
        """Its result."""
        terminal.value(reply["result"] if isinstance(reply, dict) and "result" in reply else reply, **facts)
