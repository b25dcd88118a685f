"""The status page as a blueprint: what the pools of the application do, for those who may see it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from flask import Blueprint, Flask, current_app, request
from werkzeug.wrappers import Response

from jetsocket import ConnectionPool
from jetsocket.contrib.flask.pools import DEFAULT_PREFIX, Pools
from jetsocket.interrupts import is_alarm

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

__all__ = ["status_blueprint"]

_LOG = logging.getLogger("jetsocket.contrib.flask")
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]  # which of them, the page says itself


def status_blueprint(
    name: str = "jetsocket_status",
    *,
    permission: Callable[[dict[str, Any]], bool] | None = None,
    clear: bool = False,
    directory: str | os.PathLike[str] | None = None,
) -> Blueprint:
    """Make a blueprint that shows what the pools of the application do; see `jetsocket.contrib.status.app`.

    Args:
        name: The blueprint's.
        permission: Asked at each request, in its context, with the WSGI environ; only True lets it in.
            Without it, the page is closed.
        clear: Have buttons that close connections.
        directory: Show all workers that write there; None: ``JETSOCKET_STATUS_DIR``, if that is configured.

    Returns:
        The blueprint, to be registered with a `url_prefix`.

    Raises:
        TypeError: An argument is of the wrong type.
    """
    from jetsocket.contrib import status  # not loaded without the page

    status.app(
        {}, permission=permission, clear=clear
    )  # refuses what is wrong now, and not at the first request
    pages: WeakKeyDictionary[Flask, WSGIApplication] = WeakKeyDictionary()

    def page_of(app: Flask) -> WSGIApplication:
        found = pages.get(app)
        if found is None:
            pools = _pools_of(app)
            where = directory if directory is not None else app.config.get(f"{DEFAULT_PREFIX}_STATUS_DIR")
            lets_in = None if permission is None else _Permission(permission, pools)
            made = status.app(_Made(pools), permission=lets_in, clear=clear, directory=where)
            found = pages.setdefault(app, made)
        return found

    def show(rest: str = "") -> Response:
        app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # of the proxy
        return Response.from_app(page_of(app), _mounted(request.environ, rest))

    blueprint = Blueprint(name, __name__)
    for rule in ("/", "/<path:rest>"):
        blueprint.add_url_rule(
            rule, "show", show, methods=_METHODS, strict_slashes=False, provide_automatic_options=False
        )
    return blueprint


def _pools_of(app: Flask) -> Pools:
    pools = app.extensions.get("jetsocket")
    if not isinstance(pools, Pools):
        raise RuntimeError(f"{app!r} has no pools to show: call init_app of a JetSocket with it")
    return pools


def _mounted(environ: Mapping[str, Any], rest: str) -> dict[str, Any]:
    """The environ of an application that is mounted where the blueprint is."""
    path: str = environ.get("PATH_INFO", "")
    inner = "/" + rest.encode().decode("latin-1") if rest else "/" if path.endswith("/") else ""
    return {
        **environ,
        "SCRIPT_NAME": environ.get("SCRIPT_NAME", "") + path.removesuffix(inner),
        "PATH_INFO": inner,
    }


class _Made(Mapping[str, ConnectionPool[Any]]):
    """Those pools that are made: who looks at them once a second makes none."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    def __getitem__(self, name: str) -> ConnectionPool[Any]:
        return self._pools.made()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._pools.made())

    def __len__(self) -> int:
        return len(self._pools.made())


class _Permission:
    """Lets in whom the user's function lets in; for them, pools that are not in use yet are shown, too."""

    def __init__(self, function: Callable[[dict[str, Any]], bool], pools: Pools) -> None:
        self._function = function
        self._pools = pools

    def __call__(self, environ: dict[str, Any]) -> bool:
        answer = self._function(environ)
        if answer is True:
            self._make_all()
        return answer

    def _make_all(self) -> None:
        try:
            for name in self._pools:
                self._pools[name]
        except (TypeError, ValueError) as error:  # of the settings: the page shows the others
            if is_alarm(error):
                raise
            # As text: who keeps the record would keep the error's frames, and with them the application.
            _LOG.error("a pool is not shown: %s", str(error))
