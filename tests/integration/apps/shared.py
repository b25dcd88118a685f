"""What the apps share: one pool, made when they are imported, and used before any worker is forked.

Every connection tells the server in a header which process opened it.
"""

from __future__ import annotations

import os
from typing import Any

from jetsocket import ConnectionPool, ConnectionPoolConfig
from tests.integration.apps.settings import CAP, URI_VARIABLE

POOL: ConnectionPool[Any] = ConnectionPool(
    ConnectionPoolConfig(max_connections=CAP, acquire_timeout=20),
    base_uri=os.environ[URI_VARIABLE],
    manager_kwargs={"extra_headers": lambda: {"X-Pid": str(os.getpid())}},
)


def ask(ident: str) -> dict[str, Any]:
    """Ask the server; whoever asked gets told who answered."""
    with POOL.acquire("/") as conn:
        reply = conn.request({"id": ident, "pid": str(os.getpid())}, timeout=20)
    return {**reply, "worker": str(os.getpid())}


# Where the module is imported, which is in the parent of all workers: one connection idle, one lent for ever.
LENT = POOL.acquire("/")
ask("at import")
