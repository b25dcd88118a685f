"""Celery: a pool is warm when a worker's first task comes, and each process closes it when it ends.

A pool made in a module works in Celery without any of this, before and after a fork. What is missing then:
Celery ends its children without what Python runs at exit, so their connections break off without a close
frame; and the first task of each child waits for a connection.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

try:
    from celery import Celery, current_app, signals
    from celery.concurrency.prefork import TaskPool as Prefork
    from celery.concurrency.solo import TaskPool as Solo
except ImportError as error:
    raise ImportError('jetsocket.contrib.celery needs Celery: pip install "jetsocket[celery]"') from error

from jetsocket import ConnectionPool, JetSocketError, PoolClosedError
from jetsocket.interrupts import is_alarm

__all__ = ["setup"]

_LOG = logging.getLogger("jetsocket.celery")


def setup(
    app: Celery, pool: ConnectionPool[Any], *, prewarm: Mapping[str, int] | None = None, timeout: float = 1.0
) -> None:
    """Have the workers of an app open connections when they start, and close them when they end.

    To be called once, where the pool is made: in a module that the worker imports. Works with prefork, solo,
    threads and gevent; under prefork each child has connections of its own, and the parent opens none.

    Args:
        app: Whose workers.
        pool: Theirs, used by the app's tasks.
        prewarm: How many connections are to be open to which URI or path, in each process that runs tasks,
            when it begins. They are opened beside its start, not in it, for Celery kills a child that takes
            4 s to start; what fails is logged.
        timeout: s that the closing handshakes may take when a process ends.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: A number of connections, or `timeout`, is negative; or a path is none of the pool's.
    """
    if not isinstance(app, Celery):
        raise TypeError(f"app must be a celery.Celery, not {app!r}")
    if not isinstance(pool, ConnectionPool):
        raise TypeError(f"pool must be a ConnectionPool, not {type(pool).__name__}")
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be 0 s or more, not {timeout!r}")
    wanted = _checked(prewarm)
    for where in wanted:
        pool.prewarm(where, 0)  # opens nothing, and refuses what is no path of its

    def process_begins(**_: object) -> None:  # a child of prefork, or the process of solo
        if app is _current():
            _beside(pool, wanted)

    def worker_is_ready(sender: Any = None, **_: object) -> None:  # threads, gevent, eventlet
        task_pool = getattr(sender, "pool", None)
        is_ours = getattr(sender, "app", app) is app
        if is_ours and task_pool is not None and not isinstance(task_pool, (Prefork, Solo)):
            _beside(pool, wanted)

    def process_ends(**_: object) -> None:
        if app is _current():
            pool.close(timeout)

    def worker_ends(sender: Any = None, **_: object) -> None:
        if getattr(sender, "app", app) is app:
            pool.close(timeout)

    handlers: list[tuple[Any, Callable[..., None]]] = [
        (signals.worker_process_shutdown, process_ends),
        (signals.worker_shutdown, worker_ends),
    ]
    if wanted:
        handlers += [(signals.worker_process_init, process_begins), (signals.worker_ready, worker_is_ready)]
    for signal, handler in handlers:
        signal.connect(handler, weak=False, dispatch_uid=f"jetsocket:{handler.__name__}:{id(app)}:{id(pool)}")


def _current() -> Celery:
    """The app whose worker this process is."""
    return current_app._get_current_object()


def _checked(prewarm: Mapping[str, int] | None) -> dict[str, int]:
    if prewarm is None:
        return {}
    if not isinstance(prewarm, Mapping):
        raise TypeError(f"prewarm must map paths to numbers of connections, not {prewarm!r}")
    for where, count in prewarm.items():
        if not isinstance(where, str) or isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"prewarm must map paths to numbers of connections, not {where!r} to {count!r}")
        if count < 0:
            raise ValueError(f"prewarm[{where!r}] must be 0 or more, not {count}")
    return dict(prewarm)


def _beside(pool: ConnectionPool[Any], wanted: Mapping[str, int]) -> None:
    """Open what is wanted in a thread of its own."""
    threading.Thread(
        target=_open, args=(pool, wanted), name=f"jetsocket-prewarm-{pool.name}", daemon=True
    ).start()


def _open(pool: ConnectionPool[Any], wanted: Mapping[str, int]) -> None:
    for where, count in wanted.items():
        try:
            pool.prewarm(where, count)
        except (JetSocketError, ValueError) as error:
            if is_alarm(error):
                raise
            if isinstance(error, PoolClosedError):
                return  # this process ends before it was ready
            _LOG.warning("[%s] prewarm failed: %s", pool.name, error)
