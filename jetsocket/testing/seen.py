"""What a fake server has seen: its connections and their messages, for tests to look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


class SeenConnection:
    """One connection as the fake server saw it, also one that it refused. Read only.

    Each look first waits until what the client has sent so far has been read.

    Attributes:
        path: The path, without the query.
        query: What stood behind the question mark.
        headers: Of the upgrade request; names are case-insensitive.
    """

    def __init__(self, path: str, query: str, headers: Mapping[str, str], settle: Callable[[], None]) -> None:
        """Note what was asked for."""
        self.path = path
        self.query = query
        self.headers = headers
        self._settle = settle
        self._messages: list[Any] = []
        self._status: int | None = None
        self._subprotocol: str | None = None
        self._close_code: int | None = None

    @property
    def status(self) -> int | None:
        """The HTTP status of the answer, 101 for a connection that was opened; None: not answered yet."""
        self._settle()
        return self._status

    @property
    def subprotocol(self) -> str | None:
        """The subprotocol that was agreed on."""
        return self._subprotocol

    @property
    def messages(self) -> list[Any]:
        """The decoded messages that came over it, in order."""
        self._settle()
        return list(self._messages)

    @property
    def close_code(self) -> int | None:
        """With what it was closed, by the side that was first; 1006: no close frame; None: it is open."""
        self._settle()
        return self._close_code

    def __repr__(self) -> str:
        state = f"status {self._status}" if self._status not in (None, 101) else "open"
        if self._close_code is not None:
            state = f"closed with {self._close_code}"
        return f"<connection to {self.path}, {state}, {len(self._messages)} messages>"


__all__ = ["SeenConnection"]
