"""Messages from stdin, one a line, over several connections at once; replies in the order of the lines."""

from __future__ import annotations

import queue
import threading
from typing import Any

from jetsocket.cli.asking import Asking
from jetsocket.cli.exits import OK, UsageError, outcome_of
from jetsocket.cli.output import PipeClosedError, Terminal
from jetsocket.cli.reading import chunks
from jetsocket.clock import monotonic
from jetsocket.exceptions import JetSocketError, PoolClosedError
from jetsocket.pool import ConnectionPool

__all__ = ["Lines"]

_LOOK = 0.25  # s between two looks whether the output is still read
_END: Any = object()


class _Line:
    """A line under way: its number, and what came of it so far."""

    def __init__(self, number: int, data: bytes) -> None:
        self.number, self.data = number, data
        self.replies: queue.SimpleQueue[Any] = queue.SimpleQueue()  # (reply, seconds), an error, at last _END


class Lines:
    """Has each line asked by one of several threads, and prints what comes, in order.

    One thread reads stdin, as many ask as there are connections, the main thread prints. So many lines are
    under way at most that neither a slow reply nor a long input fills the memory.
    """

    def __init__(
        self, pool: ConnectionPool[Any], asking: Asking, terminal: Terminal, connections: int
    ) -> None:
        """Ask so, over so many connections."""
        self._pool, self._asking, self._terminal = pool, asking, terminal
        self._work: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._in_order: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Semaphore(16 + 4 * connections)
        self._starting = threading.Lock()
        self._failure: BaseException | None = None
        self._most = connections
        self._threads: list[threading.Thread] = []

    def run(self, *, null: bool) -> int:
        """Until stdin ends; the exit code of the first line that failed.

        Raises:
            PipeClosedError: No one reads the output any more.
        """
        feeder = threading.Thread(target=self._feed, args=(null,), name="call-stdin", daemon=True)
        feeder.start()
        try:
            code = self._print_all()
            self._pool.clear()  # with 1000
        finally:
            self._pool.close()  # wakes those that wait for a reply
            with self._starting:
                self._most, threads = 0, list(self._threads)
            for _ in threads:
                self._work.put(_END)
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        return code

    def _feed(self, null: bool) -> None:
        try:
            for number, data in enumerate(chunks(self._terminal.streams.stdin, null=null), 1):
                self._room.acquire()
                line = _Line(number, data)
                self._work.put(line)
                self._in_order.put(line)
                self._start_another()
        except OSError as error:
            self._failure = error
        finally:
            self._in_order.put(_END)

    def _start_another(self) -> None:
        """As many threads as there are connections, but no more than there were lines."""
        with self._starting:
            if len(self._threads) < self._most:
                name = f"call-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._ask_all, name=name, daemon=True))
                self._threads[-1].start()

    def _ask_all(self) -> None:
        while (line := self._work.get()) is not _END:
            try:
                self._ask(line)
            except (JetSocketError, UsageError, TypeError, ValueError) as error:
                line.replies.put(error)
            except BaseException as error:
                self._failure = error
                raise
            finally:
                line.replies.put(_END)

    def _ask(self, line: _Line) -> None:
        message = self._asking.read_line(line.data)
        with self._pool.acquire(self._asking.uri) as conn:
            began = monotonic()
            for reply in self._asking.ask(conn, message):
                line.replies.put((reply, monotonic() - began))
                began = monotonic()

    def _print_all(self) -> int:
        code = OK
        while (line := self._next(self._in_order)) is not _END:
            while (came := self._next(line.replies)) is not _END:
                if isinstance(came, PoolClosedError):
                    continue
                if isinstance(came, Exception):
                    failed = self._terminal.fail(outcome_of(came), where=f"line {line.number}")
                    code = code or failed
                else:
                    reply, seconds = came
                    self._asking.show(self._terminal, reply, line=line.number, seconds=round(seconds, 6))
            self._room.release()
        return code

    def _next(self, source: queue.SimpleQueue[Any]) -> Any:
        while True:
            try:
                return source.get(timeout=_LOOK)
            except queue.Empty:
                if not self._terminal.is_read():
                    raise PipeClosedError from None
