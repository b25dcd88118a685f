"""In debug, a view that leaves a connection lent is told of: only the garbage collector may give it back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from threading import current_thread, get_ident
from typing import Any
from weakref import WeakSet

from flask import Flask, has_request_context, request, request_started

from jetsocket import ConnectionInfo, ConnectionPool, LeaseInfo
from jetsocket.contrib.flask.pools import Pools
from jetsocket.events import Listener
from jetsocket.interrupts import is_alarm

__all__ = ["Leftovers"]

_LOG = logging.getLogger("jetsocket.contrib.flask")
_BEGUN = "jetsocket.begun"  # in the request's environ


class _Begun:
    """A request that has begun in debug.

    Attributes:
        thread: Which thread serves it.
        before: What was lent to that before.
    """

    def __init__(self, leases: Iterable[LeaseInfo]) -> None:
        self.thread = get_ident()
        self.before = {_identity(lease) for lease in leases}


class Leftovers:
    """Warns of leases that are still out when a request has ended, while the application is in debug."""

    def __init__(self, app: Flask, pools: Pools) -> None:
        """Look for them from now on."""
        self._pools = pools
        self._coroutines = _Coroutines()
        self._heard: WeakSet[ConnectionPool[Any]] = WeakSet()
        pools.on_made = self._hear
        request_started.connect(
            self._begin, app
        )  # it refers weakly; the application does not, so this lives on
        app.teardown_request(self._end)

    def _begin(self, sender: Flask, **_: Any) -> None:
        if sender.debug:
            request.environ[_BEGUN] = _Begun(self._lent_to(None))
            for pool in self._pools.made().values():
                self._hear(pool)

    def _hear(self, pool: ConnectionPool[Any]) -> None:
        """Have it noted which leases of that pool coroutines acquire, from the first request in debug on."""
        if has_request_context() and _BEGUN in request.environ and pool not in self._heard:
            self._heard.add(pool)
            pool.listen(self._coroutines)

    def _end(self, _error: BaseException | None = None) -> None:
        begun: _Begun | None = request.environ.get(_BEGUN)
        if begun is None or begun.thread != get_ident():  # a copy of its context has ended, in another thread
            return
        for lease in self._lent_to(begun):
            if _identity(lease) not in begun.before:
                _LOG.warning(
                    "The view %r (%s) has ended, and this is still lent: %s. Use `with`, or release() it.",
                    request.endpoint,
                    request.method,
                    lease,
                )

    def _lent_to(self, begun: _Begun | None) -> list[LeaseInfo]:
        """What is lent to this thread, or to a coroutine of that request."""
        name, lent_to = current_thread().name, self._coroutines.lent_to
        return [
            lease
            for pool in self._pools.made().values()
            for lease in pool.leases()
            if lease.thread == name or (begun is not None and lent_to.get(lease.id) is begun)
        ]


class _Coroutines(Listener):
    """Notes what an async view acquires: Flask runs it in another thread, and it ends with the view.

    What a thread of the view's own acquires is that thread's, though it may have the request's context.

    Attributes:
        lent_to: By the id of a connection, the request whose coroutine has, or had, it.
    """

    def __init__(self) -> None:
        self.lent_to: dict[int, _Begun | None] = {}

    def acquired(self, token: Any, info: ConnectionInfo, waited: float, reused: bool) -> None:
        self.lent_to.pop(info.id, None)
        if info.place == "lent" and has_request_context() and _is_coroutine():
            self.lent_to[info.id] = request.environ.get(_BEGUN)

    def closed(self, info: ConnectionInfo, reason: str) -> None:
        self.lent_to.pop(info.id, None)


def _is_coroutine() -> bool:
    """Whether an event loop runs in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError as error:
        if is_alarm(error):
            raise
        return False
    return True


def _identity(lease: LeaseInfo) -> tuple[int, str]:
    return lease.id, lease.where
