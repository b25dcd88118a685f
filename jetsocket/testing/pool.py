"""FakePool: a real pool over a fake server, which fails when a test wants it to."""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig
from jetsocket.lease import T
from jetsocket.redacted_uris import redact
from jetsocket.testing.actions import number
from jetsocket.testing.failures import checked, exhausted, made
from jetsocket.testing.server import FakeServer

_STRUCK = ("acquire", "request", "subscribe")


class FakePool(ConnectionPool[T]):
    """A `ConnectionPool` over a `FakeServer`, which also fails on demand.

    Attributes:
        server: The server: the one that was given, or its own.

    Example:
        >>> with FakePool() as pool:
        ...     pool.server.on("ping").reply("pong")
        ...     pool.fail(HandshakeError)
    """

    server: FakeServer

    def __init__(
        self, server: FakeServer | None = None, config: ConnectionPoolConfig | None = None, **kwargs: Any
    ) -> None:
        """Make a pool.

        Args:
            server: Whose connections it lends. None: one of its own; that, and one that is not started yet,
                it starts and ends.
            config: As for `ConnectionPool`.
            **kwargs: Likewise. `base_uri` is the server's if it is not given, and its certificate is trusted.
        """
        if server is not None and not isinstance(server, FakeServer):
            raise TypeError(f"server must be a FakeServer or None, not {server!r}")
        self._failures: list[list[Any]] = []  # what is raised, and how often still; None: for ever
        self._exhausted = False
        self._failing = threading.Lock()
        self.server = FakeServer() if server is None else server
        self._owns_server = not self.server.is_started
        if self._owns_server:
            self.server.start()
        try:
            kwargs.setdefault("base_uri", self.server.uri)
            if self.server.speaks_tls:
                given = kwargs.get("manager_kwargs") or {}
                kwargs["manager_kwargs"] = {"ssl_context": self.server.ssl_context, **given}
            super().__init__(config, **kwargs)
        except BaseException:
            if self._owns_server:
                self.server.stop()
            raise

    # --- failing ---------------------------------------------------------------------------------------

    def fail(self, error: BaseException | type[BaseException], *, times: int | None = 1) -> None:
        """Raise an error at the next acquire, request or subscribe; several come one after the other.

        Args:
            error: What to raise: an error of the library, an OSError, or an interrupt such as
                KeyboardInterrupt. A class of the library's gets plausible facts.
            times: How often; None: until `restore`.

        Raises:
            TypeError: It is no exception, or one that no pool raises.
        """
        if times is not None:
            number(times, "times", least=1)
        with self._failing:
            self._failures.append([checked(error), times])
            self._strike()

    def exhaust(self) -> None:
        """Raise PoolExhaustedError at each acquire, request and subscribe, at once, until `restore`."""
        with self._failing:
            self._exhausted = True
            self._strike()

    def restore(self) -> None:
        """End `exhaust` and `fail`."""
        with self._failing:
            self._exhausted = False
            self._failures.clear()
            self._heal()

    def _strike(self) -> None:
        # On the instance, and only while it fails: else the pool's own methods run, as in production, and
        # name the caller's line where they tell of leases.
        for name in _STRUCK:
            vars(self)[name] = _Struck(self, name)

    def _heal(self) -> None:
        for name in _STRUCK:
            vars(self).pop(name, None)

    def _raise_next(self, where: str) -> None:
        with self._failing:
            if self._exhausted:
                raise exhausted(self.name, where, self.config)
            if not self._failures:
                return
            failure = self._failures[0]
            if failure[1] is not None:
                failure[1] -= 1
                if not failure[1]:
                    self._failures.pop(0)
                    if not self._failures:
                        self._heal()
        raise made(failure[0], where)

    # --- its end ---------------------------------------------------------------------------------------

    def close(self, timeout: float | None = None) -> None:
        """Close the pool, and its own server if it has one.

        Raises:
            AssertionError: Its own server found something wrong, and no test that pytest runs is told of it.
        """
        super().close(timeout)
        if not self._owns_server:
            return
        if (
            self.server.is_judged
        ):  # then the code under test may close its pool without an error of the test's
            self.server.stop()
        else:
            self.server.close()

    def __enter__(self) -> FakePool[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().close()
        if self._owns_server:
            self.server.__exit__(kind, error, trace)


class _Struck:
    """A method of a pool that fails before it does anything."""

    def __init__(self, pool: FakePool[Any], name: str) -> None:
        self._pool = pool
        self._name = name

    def __call__(self, uri_or_path: str, *args: Any, **kwargs: Any) -> Any:
        self._pool._raise_next(redact(uri_or_path))
        return getattr(ConnectionPool, self._name)(self._pool, uri_or_path, *args, **kwargs)


__all__ = ["FakePool"]
