"""What a pool has found out about the servers behind its URIs: which echo ids, which send unasked.

Where anything came that nothing had asked for, counts prove nothing: a message that is pushed while a request
is under way stands in for the reply, which the next borrower gets. So such a URI is remembered, and told of
once. No lock is needed: each call touches the dicts by single operations that CPython makes atomic.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from jetsocket.deferred_log import DeferredLog
from jetsocket.entry import Entry
from jetsocket.interrupts import suppress

UNREAD_WHILE_IDLE = "unread while idle"
COUNTS_ALONE = "counts alone"

_FOR_JSON_RPC = ". These are JSON-RPC messages: correlation=JsonRpc() tells replies from what is pushed"

MOST = 1024
"""URIs that are remembered."""

MOST_CHARACTERS = 1 << 20
"""Characters of all of them together: a URI may have megabytes."""


class Remembered:
    """What is known of URIs, with a limit of their number and of all their characters together.

    Of more, those that were found first are forgotten. Takes no lock.

    Attributes:
        items: By URI or key. Read and written directly; `added` is to be told of each new one.
        most: How many.
    """

    def __init__(self, most: int = MOST) -> None:
        """Remember so many at most."""
        self.items: dict[str, Any] = {}
        self.most = most
        self._characters = 0  # about: another thread may add at the same time

    def added(self, key: str) -> None:
        """One more is remembered; forgets others, or that very one if it is longer than all may be."""
        if len(key) > MOST_CHARACTERS:
            self.items.pop(key, None)
            return
        self._characters += len(key)
        if len(self.items) > self.most or self._characters > MOST_CHARACTERS:
            with suppress(RuntimeError, StopIteration):  # another thread was here at the same time
                self._forget_some()

    def _forget_some(self) -> None:
        items = self.items
        self._characters = sum(map(len, items.copy()))
        enough = MOST_CHARACTERS
        if self._characters > MOST_CHARACTERS:
            enough = MOST_CHARACTERS * 3 // 4  # or it would be so each time
        while len(items) > self.most or self._characters > enough:
            key = next(iter(items))
            items.pop(key, None)
            self._characters -= len(key)


class KnownUris:
    """What one pool knows. It refers to no pool and no connection.

    Attributes:
        minds: Whether what comes unasked matters: only where connections are reused by counts.
        unasked: The keys of URIs on which something came unasked.
        echoing: The keys of URIs where a message has carried an id that was sent.
    """

    def __init__(self, log: DeferredLog, name: str) -> None:
        """Know nothing yet; warnings go to `log`, in the name of the pool."""
        self._log = log
        self._name = name
        self.minds = False
        self._unasked, self._echoing, self._json_rpc = Remembered(), Remembered(), Remembered()
        self._unreadable = Remembered()
        self.unasked: dict[str, object] = self._unasked.items
        self.echoing: dict[str, object] = self._echoing.items

    def learn_from(self, other: KnownUris) -> None:
        """Know what another one does: the parent process's, in a forked child."""
        self.minds = other.minds
        self.unasked.update(other.unasked.copy())
        self.echoing.update(other.echoing.copy())

    def relies_on_counts(self, entry: Entry) -> bool:
        """Whether only counts speak for an idle connection, and they prove nothing there."""
        return entry.by_counts and entry.key in self.unasked

    def note_echo(self, key: str) -> None:
        """Remember that replies there carry the ids of their requests."""
        if key not in self.echoing:
            self.echoing[key] = None
            self._echoing.added(key)

    def note_protocol(self, key: str, payload: str | bytes) -> None:
        """Look at the first message with an id that a connection is sent: it may name its protocol."""
        named = '"jsonrpc"' in payload if isinstance(payload, str) else b'"jsonrpc"' in payload
        if named and key not in self._json_rpc.items:
            self._json_rpc.items[key] = None
            self._json_rpc.added(key)

    def note_unreadable(self, uri: str, why: Callable[[], str]) -> None:
        """Warn, the first time, that a message came from there which can't be read, and was for no lease.

        Args:
            uri: As it may be shown.
            why: Tells it.
        """
        token = object()
        if self._unreadable.items.setdefault(uri, token) is not token:
            return
        self._unreadable.added(uri)
        text = (
            "[%s] a message from %s can't be read, so that it is for no request, and is dropped: %s. Others"
            " are only counted (unasked_messages). See what the deserializer, or the correlation's decode and"
            " split, make of what this server sends"
        )
        self._log.note(logging.WARNING, text, self._name, uri, why())

    def note_idle(self, entry: Entry, why: str) -> None:
        """Look at an idle connection that is about to be closed for `why`; the caller owns it."""
        if self.minds and why == UNREAD_WHILE_IDLE:
            if not entry.wire.reader.messages:
                entry.wire.tend(0.0)  # a look at an acquire stops before it reads much
            if entry.wire.reader.messages:  # whole ones, and not the beginning of what may be none
                self.note_unasked(entry, "while the connection was idle")

    def note_unasked(self, entry: Entry, when: str) -> None:
        """Remember that something came unasked there; warn the first time."""
        token = object()
        if not self.minds or self.unasked.setdefault(entry.key, token) is not token:
            return
        self._unasked.added(entry.key)
        self._log.note(
            logging.WARNING,
            "[%s] a message that nothing had asked for came from %s, %s. Where that happens, as many messages"
            " may come as went, and the next borrower still get this one's reply: connections to it are no"
            " longer reused by counts alone. Give each request an id of its own ({'id': …}, if replies"
            " carry it, too), or the pool a reset, or use one pool for requests and another for what is"
            " pushed. A greeting is for configure to receive%s",
            self._name,
            entry.target.redacted,
            when,
            _FOR_JSON_RPC if entry.key in self._json_rpc.items else "",
        )


__all__ = ["MOST", "MOST_CHARACTERS", "KnownUris", "Remembered"]
