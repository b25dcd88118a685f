"""JetSocket: what an application's code holds; which pool it means is the current application's business."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

try:  # before all else of the package needs it
    from flask import Flask, current_app, has_app_context
except ImportError as error:
    raise ImportError('jetsocket.contrib.flask needs Flask: pip install "jetsocket[flask]"') from error

from jetsocket import ConnectionPool
from jetsocket.contrib.flask.command import group
from jetsocket.contrib.flask.leftovers import Leftovers
from jetsocket.contrib.flask.pools import DEFAULT_PREFIX, PLAIN, Pools
from jetsocket.mapping import check_prefix

__all__ = ["JetSocket"]


class JetSocket:
    """The pools of a Flask application, made of its configuration when they are first used.

    Each process has its own, for all of its threads.

    Example:
        >>> jet = JetSocket()
        >>> def create_app():
        ...     app = Flask(__name__)
        ...     app.config["JETSOCKET_BASE_URI"] = "wss://node.example.com"
        ...     jet.init_app(app)
        ...     return app
        >>> @blueprint.get("/height")
        ... def height():
        ...     return jet.pool.request("/rpc", {"id": 1, "method": "get_height"}, timeout=2.0)
    """

    def __init__(self, app: Flask | None = None, config_prefix: str = DEFAULT_PREFIX) -> None:
        """Be there for an application, or for those that `init_app` is called with.

        Args:
            app: The application.
            config_prefix: What its keys in the configuration begin with, without the underscore.

        Raises:
            TypeError: `config_prefix` is not a str.
            ValueError: It is empty, or ends with an underscore.
        """
        if not isinstance(config_prefix, str):
            raise TypeError(f"config_prefix must be a str, not {type(config_prefix).__name__}")
        check_prefix("config_prefix", config_prefix)
        self._prefix = config_prefix
        self._apps: WeakSet[Flask] = WeakSet()
        if app is not None:
            self.init_app(app)

    def init_app(self, app: Flask) -> None:
        """Serve that application. Nothing is read or opened before the first use of a pool.

        Args:
            app: The application.
        """
        pools = app.extensions.get("jetsocket")
        if pools is None:
            pools = Pools(app.config)
            Leftovers(app, pools)  # refused once the application serves; then nothing is there by half
            app.cli.add_command(group)
            app.extensions["jetsocket"] = pools
        pools.add(self._prefix)
        self._apps.add(app)

    @property
    def pool(self) -> ConnectionPool[Any]:
        """The pool of the current application, or of the only one there is.

        Raises:
            RuntimeError: No application is current, and there is none or several; or `init_app` was not
                called with the one that is.
            KeyError: Only pools with names are configured.
            TypeError: A setting is unknown.
            ValueError: One is refused.
        """
        return self[PLAIN]

    def __getitem__(self, name: str) -> ConnectionPool[Any]:
        """The pool of that name in ``JETSOCKET_POOLS``; of which application, and its errors, as `pool`."""
        return self._pools().pool(self._prefix, name)

    def close_all(self) -> None:
        """Close all pools of that application. The next use makes another, of the configuration of then.

        Raises:
            RuntimeError: As for `pool`.
        """
        self._pools().close_all()

    def _pools(self) -> Pools:
        pools: Pools = self._app().extensions["jetsocket"]
        return pools

    def _app(self) -> Flask:
        if has_app_context():
            app: Flask = current_app._get_current_object()  # type: ignore[attr-defined]  # of the proxy
            if app not in self._apps:
                raise RuntimeError(f"call init_app with {app!r} first: this JetSocket does not serve it")
            return app
        apps = list(self._apps)
        if len(apps) == 1:
            return apps[0]
        told = f"serves {len(apps)} applications" if apps else "serves no application yet: call init_app"
        raise RuntimeError(
            f"no application is current, and this JetSocket {told}. Use `with app.app_context():`"
        )

    def __repr__(self) -> str:
        return f"JetSocket(config_prefix={self._prefix!r})"
