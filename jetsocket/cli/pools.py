"""The pool behind a command, and the correlations by their names."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from jetsocket.cli.exits import UsageError
from jetsocket.config import ConnectionPoolConfig
from jetsocket.correlation import (
    ById,
    Cdp,
    Correlation,
    GraphQLTransportWs,
    HomeAssistant,
    JsonRpc,
    Jupyter,
    Obs,
)
from jetsocket.pool import ConnectionPool

__all__ = ["CORRELATIONS", "correlation_of", "opened"]

_TOKEN = "JETSOCKET_TOKEN"
CORRELATIONS = ("jsonrpc", "cdp", "graphql", "jupyter", "home-assistant", "obs", "id:PATH")
"""What `--correlation` takes."""


@contextmanager
def opened(
    uri: str,
    kwargs: dict[str, Any],
    options: argparse.Namespace,
    *,
    connections: int = 1,
    reuse: Literal["balanced", "quiet", "always"] = "balanced",
    correlation: Correlation | None = None,
) -> Iterator[ConnectionPool[Any]]:
    """A pool for one command; nothing is dialled yet. A command that does not break off closes with 1000."""
    config = ConnectionPoolConfig(
        max_connections=connections,
        max_connecting=max(8, connections),
        # A dial may take its time twice, for `configure`; its own error says more than that none came.
        acquire_timeout=2 * options.connect_timeout + 5,
        reuse=reuse,
        match_ids=False,
    )
    with ConnectionPool(
        config, base_uri=uri, manager_kwargs=kwargs, correlation=correlation, name="terminal"
    ) as pool:
        yield pool
        if not pool.is_closed:
            pool.clear()  # with 1000; a pool that is closed goes away (1001)


def correlation_of(name: str) -> Correlation:
    """The correlation of that name; a secret that it needs is in the environment, as JETSOCKET_TOKEN.

    Raises:
        UsageError: There is none of that name, or the secret is missing.
    """
    plain = {"jsonrpc": JsonRpc, "cdp": Cdp, "jupyter": Jupyter}
    token = os.environ.get(_TOKEN)
    if name in plain:
        made: Correlation = plain[name]()
        return made
    if name.startswith("id:") and name != "id:":
        try:
            return ById(name.removeprefix("id:"))
        except ValueError as error:
            raise UsageError(f"--correlation {name}: {error}") from error
    if name == "graphql":
        return GraphQLTransportWs(None if token is None else {"Authorization": f"Bearer {token}"})
    if name == "obs":
        return Obs(token)
    if name == "home-assistant":
        if token is None:
            raise UsageError(f"--correlation {name} needs an access token", f"put it into {_TOKEN}")
        return HomeAssistant(token)
    raise UsageError(f"there is no correlation {name!r}", f"known are {', '.join(CORRELATIONS)}")
