"""Connections to Redis: those of a limiter's own, made as a client's or a URL's would be.

Each is used by one thread at a time, has a limit for every answer, and tries nothing a second time by itself.
Only what redis-py documents of its `Connection` is used, so that 5.0 does as well as the newest.
"""

from __future__ import annotations

import inspect
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from redis import ConnectionPool, Redis, RedisCluster
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection
from redis.exceptions import ConnectionError as LostError
from redis.exceptions import NoScriptError, RedisClusterException, RedisError
from redis.retry import Retry

from jetsocket.clock import monotonic, with_sleep
from jetsocket.contrib.redis.script import DIGEST, SOURCE, Call
from jetsocket.interrupts import is_alarm

__all__ = ["FAILURES", "Link", "LostError", "Source", "here"]

FAILURES = (RedisError, RedisClusterException, OSError)
"""What a use of a link may raise: Redis is not there, is busy, or refuses. Then the link is closed."""

# Of a client's own settings, these are not taken over: they are about commands, pools and retries.
_NOT_TAKEN = frozenset({"max_connections", "cache", "cache_config", "event_dispatcher", "parser_class"})
_NOT_TAKEN_PREFIXES = ("maint", "orig_", "oss_", "himport")


class Source:
    """Where a limiter's connections go: what makes one more, and what it is called in messages.

    Args:
        client_or_url: A URL as `redis.Redis.from_url` takes it; or a `Redis`, also one that a `Sentinel` has
            made, or a `RedisCluster`.
        key: A key of the group, which says to which node of a cluster.

    Raises:
        TypeError: It is none of these.
        ValueError: It is no such URL.
    """

    def __init__(self, client_or_url: Any, key: str) -> None:
        self._key = key
        self._cluster: RedisCluster | None = None
        self._pool: ConnectionPool | None = None
        if isinstance(client_or_url, str):
            self._pool = ConnectionPool.from_url(client_or_url)
        elif isinstance(client_or_url, RedisCluster):
            self._cluster = client_or_url
        elif isinstance(client_or_url, Redis):
            self._pool = client_or_url.connection_pool
        else:
            told = (
                f"client_or_url must be a URL, a redis.Redis or a redis.RedisCluster, not {client_or_url!r}"
            )
            raise TypeError(told)

    def __str__(self) -> str:
        """The address, without credentials."""
        if self._cluster is not None:
            return "the Redis cluster"
        assert self._pool is not None
        known: Mapping[str, Any] = self._pool.connection_kwargs
        service = getattr(self._pool, "service_name", None)
        if service is not None:
            return f"Redis {service!r}, which Sentinel knows"
        if "path" in known:
            return f"Redis at {known['path']}"
        return f"Redis at {known.get('host', 'localhost')}:{known.get('port', 6379)}"

    def make(self, timeout: float) -> Any:
        """One more connection, not connected yet.

        Args:
            timeout: s for it to connect, and for each answer.

        Raises:
            RedisError, RedisClusterException, OSError: A cluster can't say which node it is.
        """
        pool = self._pool if self._cluster is None else self._pool_of_node(self._cluster)
        assert pool is not None
        settings = {
            name: value
            for name, value in pool.connection_kwargs.items()
            if name not in _NOT_TAKEN and not name.startswith(_NOT_TAKEN_PREFIXES)
        }
        settings.update(
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            retry_on_timeout=False,
            retry_on_error=[],
            health_check_interval=0,
            decode_responses=False,
            encoding="utf-8",
            protocol=2,  # nothing comes unasked
        )
        known = inspect.signature(AbstractConnection).parameters
        names = ("driver_info",) if "driver_info" in known else ("lib_name", "lib_version")
        for name in ("driver_info", "lib_name", "lib_version"):  # of a command that may not be allowed
            settings.pop(name, None)
        settings.update(dict.fromkeys(names))
        return pool.connection_class(**settings)

    def _pool_of_node(self, cluster: RedisCluster) -> ConnectionPool:
        node = cluster.get_node_from_key(self._key)  # type: ignore[no-untyped-call]  # it has no types
        if node is None:
            raise RedisClusterException(f"no node of the cluster has the key {self._key}")
        pool: ConnectionPool = cluster.get_redis_connection(node).connection_pool
        return pool

    def look_again(self) -> None:
        """A connection has failed: find out anew which node of a cluster it is.

        Raises:
            RedisError, RedisClusterException, OSError: That can't be known now.
        """
        if self._cluster is not None:
            self._cluster.nodes_manager.initialize()


class Link:
    """One connection to Redis, made when it is needed, and again after it has failed."""

    def __init__(self, source: Source, timeout: float) -> None:
        """Where to, and the limit (s) to connect in."""
        self._source = source
        self._timeout = timeout
        self._connection: Any = None
        self._has_failed = False
        self._owes, self._due = False, 0.0  # whether a message is waited for, and until when

    @property
    def is_open(self) -> bool:
        """Whether it is connected, as far as is known."""
        return self._connection is not None

    def open(self) -> None:
        """Connect, if it is not.

        Raises:
            RedisError, RedisClusterException, OSError: That failed.
        """
        if self._connection is not None:
            return
        if self._has_failed:
            self._source.look_again()
        made = self._source.make(self._timeout)
        try:
            made.connect()
        except BaseException:
            self._has_failed = True
            made.disconnect()
            raise
        self._has_failed = False
        self._connection = made

    def run(self, call: Call, timeout: float, *, again: bool = False) -> Any:
        """Run the script, and return what it says.

        Args:
            call: What it is told.
            timeout: s for the answer.
            again: Whether to say it once more on a new connection, where one turns out to be lost. The same
                call does no harm a second time. To connect may take long.

        Raises:
            RedisError, RedisClusterException, OSError: There was no answer, or Redis refuses. The connection
                is closed.
        """
        keys = call.keys()
        arguments: list[Any] = [len(keys), *keys, *call.arguments()]
        if again:
            try:
                return self._run(arguments, timeout)
            except (LostError, OSError) as error:
                if is_alarm(error) or isinstance(error, TimeoutError):
                    raise
        return self._run(arguments, timeout)

    def _run(self, arguments: list[Any], timeout: float) -> Any:
        try:
            self.open()
            try:
                return self._ask(timeout, "EVALSHA", DIGEST, *arguments)
            except NoScriptError:  # restarted, flushed, or another server: this also makes it known
                return self._ask(timeout, "EVAL", SOURCE, *arguments)
        except BaseException:  # an alarm, too, leaves it with an answer that is to come
            self.close()
            raise

    def ask(self, timeout: float, *command: Any) -> Any:
        """Run any command, and return what Redis says.

        Raises:
            RedisError, RedisClusterException, OSError: There was no answer, or Redis refuses. The connection
                is closed.
        """
        try:
            self.open()
            return self._ask(timeout, *command)
        except BaseException:
            self.close()
            raise

    def _ask(self, timeout: float, *command: Any) -> Any:
        until = monotonic() + timeout
        connection = self._connection
        assert connection is not None
        connection.send_command(*command)
        if not connection.can_read(max(0.0, until - monotonic())):
            raise TimeoutError(f"no answer within {timeout:g} s")
        return connection.read_response()

    def next_message(self, inbox: str, every: float, timeout: float) -> str | None:
        """Wait for the next message of an inbox; Redis is asked again `every` s.

        Raises:
            RedisError, RedisClusterException, OSError: The connection is lost, and closed.
        """
        try:
            self.open()
            connection = self._connection
            assert connection is not None
            if not self._owes:
                connection.send_command("BLPOP", inbox, f"{every:.3f}")
                self._owes, self._due = True, with_sleep() + every + self._timeout
            if not connection.can_read(timeout):
                if with_sleep() > self._due:
                    raise TimeoutError("the inbox does not answer")
                return None
            self._owes = False
            told: Sequence[bytes] | None = connection.read_response()
            return None if told is None else told[1].decode()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; in a forked child, only its copy."""
        connection, self._connection = self._connection, None
        self._owes, self._has_failed = False, True
        if connection is not None:
            connection.disconnect()


def here() -> str:
    """Which process this is, for people."""
    return f"{socket.gethostname()}:{os.getpid()}"
