"""`jetsocket listen`: what a server sends, until it or the user ends it."""

from __future__ import annotations

import argparse
import contextlib
import random
import ssl
import threading
from typing import Any

from jetsocket.cli.exits import OK, UsageError, close_outcome, outcome_of
from jetsocket.cli.interactive import Editor
from jetsocket.cli.output import PipeClosedError, Terminal, is_terminal
from jetsocket.cli.pools import opened
from jetsocket.cli.reading import chunks, from_argument, from_bytes
from jetsocket.cli.settings import manager_kwargs, only_uri
from jetsocket.clock import monotonic
from jetsocket.connection import PooledConnection
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    HandshakeError,
    InvalidStateError,
    JetSocketError,
    PoolClosedError,
    TimeoutError,
)
from jetsocket.pool import ConnectionPool

__all__ = ["is_worth_another_try", "pause", "run"]

_LOOK = 0.25  # s between two looks whether the output is still read
_LASTING = 10.0  # s after which a connection that ends was a good one
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # s


def run(options: argparse.Namespace, given: list[str], terminal: Terminal) -> int:
    """Do what the command line says.

    Args:
        options: What was given by name.
        given: The URI.
        terminal: Where to print.

    Returns:
        The exit code.
    """
    _, uri = only_uri("listen", given, "messages are given with --send")
    kwargs = manager_kwargs(options)
    from_stdin = "-" in options.send
    first = [from_argument(text, as_base64=options.base64) for text in options.send if text != "-"]
    with opened(uri, kwargs, options, reuse="always") as pool:
        listening = _Listening(pool, uri, options, terminal, first)
        stdin = terminal.streams.stdin
        if from_stdin:
            return listening.run(_Typist(listening, terminal, options))
        if is_terminal(stdin) and terminal.shows and not options.json:
            return Editor(listening, terminal, as_base64=options.base64).run()
        return listening.run()


class _Listening:
    """Connections, one after the other, and what comes over them.

    Attributes:
        ended: Set when nothing more will be sent.
        code: The exit code, if it ends well.
    """

    def __init__(
        self,
        pool: ConnectionPool[Any],
        uri: str,
        options: argparse.Namespace,
        terminal: Terminal,
        first: list[str | bytes],
    ) -> None:
        self._pool, self._uri, self._terminal, self._first = pool, uri, terminal, first
        self._left: int | None = options.messages
        self._duration: float | None = options.duration
        # Anew from the first connection on; until then it says how long to try again.
        self._until = None if options.duration is None else monotonic() + options.duration
        self._reconnects: bool = options.reconnect
        self._lock = threading.Lock()
        self._conn: PooledConnection[Any] | None = None
        self._connected = threading.Event()
        self.ended = threading.Event()
        self.code = OK

    def run(self, typist: _Typist | None = None) -> int:
        """Until the end; the exit code."""
        if typist is not None:
            typist.start()
        attempt, connected = 0, False
        try:
            while True:
                since = monotonic()
                try:
                    with self._pool.acquire(self._uri, self._patience() if connected else None) as conn:
                        since = monotonic()
                        if not connected and self._until and self._duration is not None:
                            self._until = since + self._duration
                        connected = True
                        return self._listen(conn)
                except PoolClosedError:
                    return self.code  # `stop`
                except JetSocketError as error:
                    if self._is_over() and connected:
                        return self.code
                    if not self._reconnects or not is_worth_another_try(error):
                        return self._conclude(error)
                    # One that accepts and closes at once is no better than one that refuses.
                    attempt = 1 if monotonic() - since >= _LASTING else attempt + 1
                    if not self._wait(error, attempt):
                        return self.code if connected else self._conclude(error)
        finally:
            self.ended.set()

    def stop(self) -> None:
        """For another thread: be over, with a close frame."""
        self._until = 0.0
        with self._lock:
            is_connected = self._conn is not None
        if not is_connected:  # else who listens sees that the time is over, and closes with 1000
            self._pool.close()

    def send(self, message: str | bytes) -> None:
        """For another thread: send over the connection that is there, or the next one."""
        while not self.ended.is_set():
            with self._lock:
                conn = self._conn
            if conn is None:
                self._connected.wait(_LOOK)
                continue
            try:
                conn.send_raw(message)
            except (ConnectionError, InvalidStateError):
                if not self._reconnects:
                    return  # who listens is told why
                self._connected.clear()
                self._connected.wait(_LOOK)
            else:
                return

    def _listen(self, conn: PooledConnection[Any]) -> int:
        self._terminal.detail(f"connected to {conn.uri}")
        for message in self._first:
            conn.send_raw(message)
        with self._lock:
            self._conn = conn
        self._connected.set()
        try:
            while True:
                if self._is_over():
                    return self.code
                payload = self._next(conn)
                if payload is None:
                    return self.code
                self._terminal.message(payload)
                if self._left is not None:
                    self._left -= 1
        finally:
            with self._lock:
                self._conn = None
            self._connected.clear()

    def _next(self, conn: PooledConnection[Any]) -> str | bytes | None:
        """The next message; None: it is over."""
        while True:
            left = _LOOK if self._until is None else min(_LOOK, self._until - monotonic())
            try:
                return conn.recv_raw(max(0.0, left))
            except TimeoutError:
                if self._is_over():
                    return None
                if not self._terminal.is_read():
                    raise PipeClosedError from None

    def _is_over(self) -> bool:
        return self._left == 0 or (self._until is not None and monotonic() >= self._until)

    def _patience(self) -> float | None:
        return None if self._until is None else max(0.05, self._until - monotonic())

    def _wait(self, error: JetSocketError, attempt: int) -> bool:
        """Pause before the next attempt; False: the time is over."""
        asked = error.retry_after if isinstance(error, HandshakeError) else None
        seconds = pause(attempt, asked, random.random())
        self._terminal.note(f"{outcome_of(error).cause}; connecting again in {seconds:.1f} s", "yellow")
        until = monotonic() + seconds
        while (left := until - monotonic()) > 0:
            if self._is_over():
                return False
            if not self._terminal.is_read():
                raise PipeClosedError
            self.ended.wait(min(left, _LOOK))
        return not self._is_over()

    def _conclude(self, error: JetSocketError) -> int:
        if isinstance(error, ConnectionClosedError):
            if error.is_normal:
                said = f": {error.reason}" if error.reason else ""
                self._terminal.detail(f"the server closed the connection with {error.code}{said}")
                return self.code
            return self._terminal.fail(close_outcome(error.code, error.args[2]))
        return self._terminal.fail(outcome_of(error))


class _Typist:
    """Sends what comes on stdin, in a thread of its own."""

    def __init__(self, listening: _Listening, terminal: Terminal, options: argparse.Namespace) -> None:
        self._listening, self._terminal, self._options = listening, terminal, options
        self._stdin = terminal.streams.stdin

    def start(self) -> None:
        threading.Thread(target=self._send_all, name="listen-stdin", daemon=True).start()

    def _send_all(self) -> None:
        try:
            for number, data in enumerate(chunks(self._stdin, null=self._options.null), 1):
                try:
                    self._listening.send(from_bytes(data, as_base64=self._options.base64))
                except UsageError as error:
                    self._fail(error, f"line {number}")
        except OSError as error:
            self._fail(error, "stdin")

    def _fail(self, error: Exception, where: str) -> None:
        with contextlib.suppress(PipeClosedError):  # who listens finds that out
            self._listening.code = self._terminal.fail(outcome_of(error), where=where)


def is_worth_another_try(error: JetSocketError) -> bool:
    """Whether to connect again: not after a refusal with 4xx, nor a certificate that is not trusted."""
    if isinstance(error, HandshakeError):
        return error.status_code is None or not 400 <= error.status_code < 500
    return isinstance(error, (ConnectionError, TimeoutError)) and not isinstance(
        error.__cause__, ssl.SSLCertVerificationError
    )


def pause(attempt: int, asked: float | None, chance: float) -> float:
    """How long to wait (s): longer each time, at random so that not all come at once, or as the server asks.

    Args:
        attempt: How many have failed in a row, 1 or more.
        asked: What Retry-After says (s).
        chance: From 0 to 1.
    """
    longest: float = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(attempt - 1, 10))
    return max(asked or 0.0, 0.1 + chance * longest)
