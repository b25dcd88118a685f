"""The thread in which a fake server lives: an event loop of its own, and its connections.

Its clock is `jetsocket.clock`, which no test freezes. Imported when a server is started.
"""

from __future__ import annotations

import asyncio
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from jetsocket.clock import monotonic
from jetsocket.process_id import getpid
from jetsocket.testing.endpoint import Endpoint, Host

T = TypeVar("T")

LOCALHOST = "127.0.0.1"
_QUIET_TURNS = 8  # turns of the loop: a connection needs 5 from its TCP handshake to its first byte
_SETTLE_PATIENCE = 1.0  # s, for a client that never stops sending
_CALL_PATIENCE = 30.0  # s that the loop may take over anything it is asked


class _Loop(asyncio.SelectorEventLoop):
    """An event loop by a clock that tests don't freeze."""

    def time(self) -> float:
        return monotonic()


class Hub:
    """A listening socket, its connections, and their thread."""

    def __init__(
        self,
        host: Host,
        *,
        address: tuple[str, int] = (LOCALHOST, 0),
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Listen.

        Raises:
            OSError: The address is taken.
        """
        self._host = host
        self._process = getpid()
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._listener = socket.create_server(address, family=family)
        self.port: int = self._listener.getsockname()[1]
        self._ssl_context = ssl_context
        self.endpoints: set[Endpoint] = set()
        self._activity = 0
        self._loop = _Loop()
        self._loop.set_debug(False)  # with -X dev it would log that a busy machine is slow
        self._loop.set_exception_handler(self._note_failure)
        self.failures: list[BaseException] = []
        self._server: asyncio.AbstractServer | None = None
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"fake-server-{self.port}", daemon=True
        )
        self._thread.start()
        self.call(self._listen)

    async def _listen(self) -> None:
        self._server = await self._loop.create_server(self._new, sock=self._listener, ssl=self._ssl_context)

    def _new(self) -> Endpoint:
        endpoint = _Counted(self, self._host, self._loop)
        self.endpoints.add(endpoint)
        return endpoint

    def stirred(self) -> None:
        """Something has come."""
        self._activity += 1

    def _note_failure(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException) and not isinstance(error, OSError):  # a client may leave
            self.failures.append(error)

    # --- from other threads ----------------------------------------------------------------------------

    @property
    def is_here(self) -> bool:
        """Whether the calling thread is the loop's."""
        return threading.current_thread() is self._thread

    @property
    def is_elsewhere(self) -> bool:
        """Whether this is a fork of the process in which it lives: its loop does not run here."""
        return getpid() != self._process

    @property
    def is_over(self) -> bool:
        """Whether it was stopped, or runs in another process."""
        return self.is_elsewhere or self._loop.is_closed()

    def call(self, coroutine: Callable[[], Any]) -> Any:
        """Run a coroutine function in the loop, and wait for what it returns."""
        assert not self.is_here, "the loop can't wait for itself"
        return asyncio.run_coroutine_threadsafe(coroutine(), self._loop).result(_CALL_PATIENCE)

    def do(self, function: Callable[[], T]) -> T:
        """Call a function in the loop's thread."""
        if self.is_here:
            return function()

        async def run() -> T:
            return function()

        result: T = self.call(run)
        return result

    def settle(self) -> None:
        """Wait until what clients have sent so far has been read."""
        if not self.is_here and not self.is_over:
            self.call(self._settle)

    async def _settle(self) -> None:
        quiet, until = 0, monotonic() + _SETTLE_PATIENCE
        while quiet < _QUIET_TURNS and monotonic() < until:
            before = self._activity
            await asyncio.sleep(0)
            is_quiet = before == self._activity and not self._is_readable()
            quiet = quiet + 1 if is_quiet else 0

    def _is_readable(self) -> bool:
        """Whether bytes, or new connections, wait in the kernel."""
        numbers = [self._listener.fileno(), *(each.descriptor for each in self.endpoints)]
        open_now = [number for number in numbers if number >= 0]
        if hasattr(select, "poll"):
            poll = select.poll()
            for number in open_now:
                poll.register(number, select.POLLIN)
            return any(event & select.POLLIN for _, event in poll.poll(0))
        return bool(open_now and select.select(open_now, [], [], 0)[0])  # Windows

    def stop(self) -> None:
        """Close everything; returns when it is. Does nothing in a fork, whose parent has all of it."""
        if self.is_over:
            return
        try:
            self.call(self._stop)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_CALL_PATIENCE)
            self._loop.close()

    async def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
        tasks = [task for endpoint in self.endpoints for task in endpoint.tasks]
        for task in tasks:
            task.cancel()
        for endpoint in list(self.endpoints):
            endpoint.leave()
        await asyncio.sleep(0)
        for endpoint in list(self.endpoints):
            endpoint.abort()
        until = monotonic() + _SETTLE_PATIENCE
        while self.endpoints and monotonic() < until:
            await asyncio.sleep(0)
        if tasks:
            await asyncio.wait(tasks)


class _Counted(Endpoint):
    """An endpoint that its hub knows."""

    def __init__(self, hub: Hub, host: Host, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(host, loop)
        self._hub = hub

    def connection_made(self, transport: Any) -> None:
        self._hub.stirred()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._hub.stirred()
        super().data_received(data)

    def connection_lost(self, error: Exception | None) -> None:
        self._hub.stirred()
        self._hub.endpoints.discard(self)
        super().connection_lost(error)


__all__ = ["LOCALHOST", "Hub"]
