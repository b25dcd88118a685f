"""`RedisLimiter`: one cap over the connections of many processes and hosts.

Written in `docs/fleet.md`: the algorithm, why it never gives too many, and what no lease can promise.
"""

from __future__ import annotations

import atexit
import os
import weakref
from collections.abc import Callable, Hashable, Mapping
from typing import Any, Literal

import jetsocket.pool  # noqa: F401 - what it registers for the exit has to be there before ours
from jetsocket.clock import deadline_in, monotonic, with_sleep
from jetsocket.contrib.redis.link import Source
from jetsocket.contrib.redis.script import check_name, prefix_of
from jetsocket.contrib.redis.session import Session
from jetsocket.contrib.redis.tokens import Settings, Token
from jetsocket.limits import Limiter, Owner

__all__ = ["RedisLimiter"]

_AT_EXIT = 0.1  # s
_MODES = ("closed", "open", "local")
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


class RedisLimiter(Limiter):
    """A number of slots that all processes share which name the same group on the same Redis.

    Each open connection has one. Reusing a connection costs no command: a process renews the leases of all
    its connections every third of `lease`. Where others wait, it closes what is idle, and who holds most
    gives up some of its connections as they come back.

    Attributes:
        name: The group's name.

    Example:
        >>> limiter = RedisLimiter("redis://localhost", "binance", limit=20)
        >>> pool = ConnectionPool(base_uri="wss://stream.example.com", limiter=limiter)
    """

    def __init__(
        self,
        client_or_url: Any,
        name: str,
        *,
        limit: int,
        lease: float = 10.0,
        on_error: Literal["closed", "open", "local"] = "closed",
        expected_processes: int | None = None,
        turn: float = 1.0,
    ) -> None:
        """Connects to nothing yet.

        Args:
            client_or_url: Where Redis is: a URL as `redis.Redis.from_url` takes it, a `redis.Redis` (also one
                that a `Sentinel` has made) or a `redis.RedisCluster`. Of a client, the address, TLS and
                credentials are used, for connections of the limiter's own.
            name: What the group is called: its keys in Redis are `{js:NAME}:*`.
            limit: How many connections all processes together may have open. Where processes differ, the
                smallest counts that is in use.
            lease: s after which the slots of a process that was killed are free again. A process that is cut
                off from Redis closes its connections before that, or does what `on_error` says.
            on_error: What a process does while Redis is away. "closed": it opens no new connections, and
                closes each one whose lease has ended. "open": it goes on as if there were no limit. "local":
                it has at most `limit` divided by `expected_processes`, and at least 1.
            expected_processes: With "local": how many processes there are.
            turn: s that a process may keep one connection more than one that waits has.

        Raises:
            TypeError: An argument has the wrong type.
            ValueError: An argument is out of its range, or `client_or_url` is no URL of a Redis.
        """
        check_name(name)
        _check_count("limit", limit)
        _check_seconds("lease", lease, 1.0)
        _check_seconds("turn", turn, 0.01)
        if on_error not in _MODES:
            raise ValueError(f"on_error must be one of {', '.join(_MODES)}, not {on_error!r}")
        if (on_error == "local") != (expected_processes is not None):
            raise ValueError('on_error="local" and expected_processes are only given together')
        share = None
        if expected_processes is not None:
            _check_count("expected_processes", expected_processes)
            share = max(1, limit // expected_processes)
        self.name = name
        self._source = Source(client_or_url, prefix_of(name))
        self._settings = Settings(name, limit, float(lease), float(turn), on_error, share)
        self._by_process: dict[int, Session] = {}
        weakref.finalize(self, _drop, self._by_process).atexit = False

    def __repr__(self) -> str:
        return f"<RedisLimiter {self.name!r}: {self._settings.limit} slots, {self._source}>"

    def _session(self) -> Session:
        """That of this process; a forked child begins anew."""
        pid = os.getpid()
        session = self._by_process.get(pid)
        if session is None:
            for other in list(self._by_process):
                parents = self._by_process.pop(other, None)
                if parents is not None:
                    parents.disown()
            # In one step: two threads may come at once, and no lock of the parent's is to be touched here.
            session = self._by_process.setdefault(pid, Session(self._settings, self._source))
            _sessions.add(session)
        return session

    def bind(self, owner: Owner) -> None:
        """A pool begins to use this limiter."""
        self._session().bind(owner)

    def unbind(self, owner: Owner, timeout: float) -> None:
        """A pool is closed. With the last one, this process leaves the group."""
        session = self._by_process.get(os.getpid())
        if session is not None and session.unbind(owner):
            self._by_process.pop(session.pid, None)
            session.leave(timeout)

    def acquire(self, timeout: float, wanted: Callable[[], bool]) -> Hashable | None:
        """Get one slot; see `Limiter.acquire`.

        Raises:
            ConnectionError: Redis does not answer, and `on_error` is "closed".
        """
        session = self._session()
        owner = getattr(wanted, "owner", None)
        if timeout <= 0:
            return session.take(owner)
        return session.wait(with_sleep() + (deadline_in(timeout) - monotonic()), wanted, owner)

    def release(self, token: Hashable) -> None:
        """The connection of a token is closed.

        Raises:
            TypeError: It is no token of a RedisLimiter's.
            ValueError: It was released before.
        """
        if not isinstance(token, Token):
            raise TypeError(f"{token!r} is no token of a RedisLimiter's")
        session = self._by_process.get(os.getpid())
        if session is not None:
            session.release(token)

    def stats(self) -> Mapping[str, Any]:
        """Figures of this process, and of the others as of the last answer from Redis.

        Returns:
            `limit`: the smallest in the group. `held`: slots of this process. `others`: those of other
            processes. `waiting`: processes that wait. `errors`: calls that Redis did not answer. `lost`:
            slots that were lost. `grants`: slots ever got. `without_slot`: connections opened without one
            while Redis was away. `away`: whether it is away. `note`: what follows from that, in words.
        """
        return self._session().stats()


def _drop(sessions: dict[int, Session]) -> None:
    for session in list(sessions.values()):
        session.drop()


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be 1 or more, not {value}")


def _check_seconds(name: str, value: object, least: float) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not least <= value <= 86400:
        raise ValueError(f"{name} must be from {least:g} s to a day, not {value!r}")


@atexit.register  # after that of the pools, which therefore comes later
def _leave_at_exit() -> None:
    """Give back the slots of limiters that no pool uses; pools see to theirs, with one call for all."""
    for session in list(_sessions):
        if session.pid == os.getpid():
            session.is_ending = True
            if not session.owners:
                session.leave(_AT_EXIT)
