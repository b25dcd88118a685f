"""What a pool is made of, in each process: checked arguments and parts; and what it tells of itself."""

from __future__ import annotations

import atexit
import itertools
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, cast

from jetsocket.borrower import Borrower
from jetsocket.clock import monotonic
from jetsocket.config import ConnectionPoolConfig
from jetsocket.connection import Callback, PooledConnection
from jetsocket.correlation.base import Correlation
from jetsocket.correlation_calls import Matching
from jetsocket.entry import key_of
from jetsocket.events import Listener, check
from jetsocket.known_uris import Remembered
from jetsocket.lease import T
from jetsocket.messages import Codec
from jetsocket.process_id import getpid
from jetsocket.pushes import OnPush
from jetsocket.quotas import Limiters
from jetsocket.text import public_names
from jetsocket.uris import Target, parse, resolve

if TYPE_CHECKING:
    from jetsocket.info import ConnectionInfo, LeaseInfo
    from jetsocket.shutdown import Ending
    from jetsocket.stats import PoolStats

P = TypeVar("P", bound="Assembly[Any]")

_numbers = itertools.count(1)

_KNOWN_URIS, _MOST_KNOWN_URIS = 256, 65_536  # resolved URIs that a pool remembers, at least and at most


class Assembly(Generic[T]):
    """A pool without the story: its parts, its figures, and a new beginning in a forked child."""

    def __init__(
        self,
        config: ConnectionPoolConfig | None = None,
        *,
        base_uri: str | None = None,
        manager_kwargs: Mapping[str, Any] | None = None,
        configure: Callback | None = None,
        reset: Callback | None = None,
        check: Callback | None = None,
        name: str | None = None,
        correlation: Correlation | None = None,
        on_push: OnPush[T] | None = None,
        limiter: Limiters | None = None,
    ) -> None:
        """Make a pool. Nothing is opened yet.

        Args:
            config: Sizes and times; the defaults if None.
            base_uri: What paths given to `acquire` are relative to.
            manager_kwargs: How connections are made; see the table in docs/options.md.
            configure: Called once with each new connection, before its first borrower: log in, swallow a
                greeting. In a thread of the pool, within one connect_timeout. What it sends and receives
                counts for no borrower, so it must read every reply it asks for: the first borrower would take
                it for theirs.
            reset: Called with each connection that is released. If it returns, the connection is kept,
                whatever the rule says of the lease; not if something is unread then. Within
                health_check_timeout.
            check: Called with a connection that has been idle for health_check_interval, in place of a
                ping, for servers that answer none; lent ones are not pinged then. Within
                health_check_timeout.
                Any of these three raising, or taking too long, means: close this connection, never lend it.
            name: For log lines, metrics and threads: printable, so no line breaks or control characters.
            correlation: Which reply belongs to which request, where messages carry ids of some kind; see
                `jetsocket.correlation`. Connections are reused by ids alone then, whatever `reuse` says.
            on_push: Called with the URI (redacted) and each message that belongs to no request and no
                subscription, in a thread of the pool, in order for each connection; what it returns, if not
                None, is sent back there. Needs a correlation.
            limiter: A cap over several pools, processes or hosts, see `jetsocket.limits`: one for all that
                the pool opens, or by origin: a mapping (``{"wss://a.example": limiter}``; others are opened
                without), or a callable, asked once for each origin, that returns a limiter or None.

        Raises:
            TypeError: An argument or a key of `manager_kwargs` is unknown or of the wrong type.
            ValueError: A value is out of range, or `base_uri` is no WebSocket URI.
            ImportError: `message_type` or a SOCKS proxy needs an extra that is not installed.
        """
        from jetsocket.manager_kwargs import Options
        from jetsocket.notebook import Made, note_made  # who imports the class alone has no use for these
        from jetsocket.pool_arguments import ARGUMENT_CHECKS, by_origin, check_together
        from jetsocket.pool_parts import inner_side
        from jetsocket.testing_seam import Seam

        for label, argument in (
            ("config", config),
            ("configure", configure),
            ("reset", reset),
            ("check", check),
            ("on_push", on_push),
            ("name", name),
            ("correlation", correlation),
            ("limiter", limiter),
        ):
            ARGUMENT_CHECKS[label](label, argument)
        check_together(config, correlation, on_push)
        self._config = config if config is not None else ConnectionPoolConfig()
        self._options = Options.from_kwargs(manager_kwargs)
        self._base = None if base_uri is None else parse(base_uri)
        self._name = name if name is not None else f"pool-{next(_numbers)}"
        self._codec: Codec[T] = Codec.for_options(
            self._options.serializer, self._options.deserializer, self._options.message_type
        )
        self._configure, self._reset, self._check = configure, reset, check
        self._limiters = None if limiter is None else by_origin(limiter)
        self._resolved = Remembered()
        self._targets: dict[str, tuple[Target, str]] = (
            self._resolved.items
        )  # resolving costs as borrowing does
        self._matching = None if correlation is None else Matching(correlation, self._codec)
        self._seam = Seam(correlation)
        self._on_push = on_push
        self._lease: type[PooledConnection[T]] = PooledConnection if correlation is None else _correlated()
        self._lending = inner_side(self)
        self._lendings: dict[int, Ending] = {}  # by process, while one of them begins anew
        self._half_closed = False  # an exception struck in `close`
        note_made(cast("Made", self), is_named=name is not None)

    @classmethod
    def from_mapping(cls: type[P], config: Mapping[str, Any], prefix: str, **kwargs: Any) -> P:
        """Make a pool of settings: of `os.environ`, or of a framework's configuration.

        Read are the keys that begin with the prefix and one underscore: with "JETSOCKET", these are
        ``JETSOCKET_BASE_URI``, ``JETSOCKET_MAX_CONNECTIONS`` and so on for each field of
        `ConnectionPoolConfig`, ``JETSOCKET_OPTIONS`` (`manager_kwargs`), ``_CORRELATION``, ``_LIMITER``,
        ``_CONFIGURE``, ``_RESET``, ``_CHECK``, ``_ON_PUSH`` (objects or their dotted paths) and ``_NAME``.
        Of two prefixes, neither may begin the other.

        Args:
            config: The settings. A ``str`` is read as what the field wants: a number, true or false, JSON.
            prefix: What the keys begin with, without the underscore.
            **kwargs: As for the pool itself; they go before what the settings say.

        Returns:
            A pool of the class that this was called on.

        Raises:
            TypeError: A key is unknown (with the nearest known one), or `kwargs` are wrong.
            ValueError: A value is refused. The message names the key and shows no value: it may be secret.
        """
        from jetsocket.mapping import arguments_of  # not loaded by pools without

        return cls(**{**arguments_of(config, prefix), **kwargs})

    def _in_use(self, config: ConnectionPoolConfig) -> ConnectionPoolConfig:
        """The configuration by which the pool works: a correlation takes the place of counting."""
        return config if self._matching is None else replace(config, reuse="always", match_ids=False)

    def _target(self, uri_or_path: str) -> tuple[Target, str]:
        if not isinstance(uri_or_path, str):
            raise TypeError(f"uri_or_path must be a str, not {type(uri_or_path).__name__}")
        target = resolve(uri_or_path, self._base)
        found = target, key_of(target)
        self._resolved.most = min(max(_KNOWN_URIS, self._config.max_connections), _MOST_KNOWN_URIS)
        self._targets[uri_or_path] = found
        self._resolved.added(uri_or_path)
        return found

    def __del__(self) -> None:
        # No lock and no I/O.
        lending = getattr(self, "_lending", None)
        if lending is not None:
            lending.abandon()

    def __reduce__(self) -> NoReturn:
        # A copy would share the connections, and close them with its own end.
        raise TypeError(
            f"pool {self._name!r} can't be pickled or copied: its connections are this process's. Make a pool"
            " in each process, in a module imported there; one made before a fork works after it, too"
        )

    # --- what it is ------------------------------------------------------------------------------------

    def stats(self) -> PoolStats:
        """The pool's figures at this moment.

        Raises:
            InvalidStateError: Called from a finalizer or signal handler that interrupted the pool itself.
        """
        return self._begin_anew().state.stats()

    def leases(self) -> list[LeaseInfo]:
        """What is lent now: to which thread, for how long, acquired where, doing what; the longest first."""
        from jetsocket.info import lease_info

        now = monotonic()
        borrowers = sorted(self._borrowers(), key=lambda each: each.taken_at)
        return [info for each in borrowers if (info := lease_info(each, now)) is not None]

    def _borrowers(self) -> list[Borrower]:
        """Who holds connections, as of now."""
        return list(self._begin_anew().state.lent)

    def connections(self) -> list[ConnectionInfo]:
        """All connections of the pool, in whatever place, the oldest first."""
        from jetsocket.info import connection_info

        now = monotonic()
        entries = sorted(self._begin_anew().state.open_entries(), key=lambda entry: entry.id)
        return [connection_info(entry, now) for entry in entries]

    def limits(self) -> dict[str, Mapping[str, Any]]:
        """What the pool's limiters say of themselves, by their names.

        Returns:
            For each, its `Limiter.stats()`: its limit, how many slots this process holds, and so on. Of those
            that a callable returns, the ones that it has returned so far.
        """
        quotas = self._begin_anew().state.quotas
        told: dict[str, Mapping[str, Any]] = {}
        for quota in [] if quotas is None else quotas.all:
            name, number = quota.name, 1
            while name in told:  # two without a name of their own
                number += 1
                name = f"{quota.name} ({number})"
            told[name] = quota.limiter.stats()
        return told

    def listen(self, listener: Listener) -> None:
        """Have a listener told what the pool does from now on; see `jetsocket.events`.

        Args:
            listener: One that overrides what it wants to hear of. It stays until the end of the pool.

        Raises:
            TypeError: It is no `jetsocket.events.Listener`, or one of its methods is an async one.
        """
        check(listener)
        self._begin_anew().state.listen(listener)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._lending.state.closed

    @property
    def config(self) -> ConnectionPoolConfig:
        """What the pool was made with; after `resize`, a copy with the new cap."""
        return self._config

    @property
    def base_uri(self) -> str | None:
        """What paths are relative to, without secrets; None: full URIs alone can be asked for."""
        return None if self._base is None else self._base.redacted

    @property
    def correlation(self) -> Correlation | None:
        """What tells which reply is whose; None: it goes by ids and counts."""
        return None if self._matching is None else self._matching.correlation

    @property
    def name(self) -> str:
        """What log lines and threads call it."""
        return self._name

    def __dir__(self) -> list[str]:
        return public_names(super().__dir__())

    def __repr__(self) -> str:
        stats = self.stats()
        base = "" if self._base is None else f"base_uri={self._base.redacted!r}, "
        return (
            f"ConnectionPool(name={self._name!r}, {base}max_connections={self._config.max_connections}, "
            f"active={stats.active_connections}, idle={stats.idle_connections}, waiting={stats.waiting}, "
            f"closed={self.is_closed})"
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures of now, and who holds connections."""
        from jetsocket.html_tables import grid, table  # few programs show anything

        stats = self.stats()
        base = [] if self._base is None else [("base URI", self._base.redacted)]
        now = [
            ("state", "closed" if self.is_closed else "open"),
            ("lent", stats.active_connections),
            ("idle", stats.idle_connections),
            ("being opened", stats.connecting),
            ("most", self._config.max_connections),
            ("callers waiting", stats.waiting),
            ("acquires", stats.acquires),
            ("of these reused", stats.reuses),
        ]
        names = ("id", "URI", "for", "by thread", "acquired in", "doing")
        held = [(i.id, i.uri, f"{i.age:.3g} s", i.thread, i.where, i.doing) for i in self.leases()]
        return table(f"ConnectionPool {self._name}", [*base, *now]) + grid("Lent", names, held)

    # --- fork ------------------------------------------------------------------------------------------

    def _begin_anew(self) -> Ending:
        """In a forked child, begin with an empty state: the connections and threads are the parent's.

        Called by the hook in `shutdown`, and by each method that uses the state, for the hook may not have
        run (uWSGI's fork runs none), may have been interrupted, or be preceded by others'. So several threads
        may be here, and a signal handler that interrupts one: all assign the same, what is compared last.
        """
        pid, old = getpid(), self._lending
        if old.state.pid == pid:
            return old
        from jetsocket.pool_parts import inner_side_in_child  # loaded with the pool

        new = inner_side_in_child(self, old)
        self._lending = lending = self._lendings.setdefault(pid, new)
        for other in [other for other in list(self._lendings) if other != pid]:
            self._lendings.pop(other, None)
        return lending


def _correlated() -> type[PooledConnection[Any]]:
    from jetsocket.correlated import CorrelatedConnection  # not loaded by pools without

    return CorrelatedConnection


def _close_at_exit() -> None:
    if "jetsocket.shutdown" in sys.modules:  # else no pool was made
        from jetsocket.shutdown import close_at_exit

        close_at_exit()


atexit.register(_close_at_exit)  # so early that what programs register runs before it

__all__ = ["Assembly"]
