"""A Flask app with a `JetSocket`, whose pool is used before any worker is forked."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask

from jetsocket.contrib.flask import JetSocket
from tests.integration.apps.settings import CAP, URI_VARIABLE

application = Flask(__name__)
application.config.update(
    JETSOCKET_BASE_URI=os.environ[URI_VARIABLE],
    JETSOCKET_MAX_CONNECTIONS=CAP,
    JETSOCKET_ACQUIRE_TIMEOUT=20,
    JETSOCKET_OPTIONS={"extra_headers": lambda: {"X-Pid": str(os.getpid())}},
)
jet = JetSocket(application)


@application.get("/<ident>")
def view(ident: str) -> dict[str, Any]:
    """Ask the server; whoever asked gets told who answered."""
    with jet.pool.acquire("/") as conn:
        reply = conn.request({"id": ident, "pid": str(os.getpid())}, timeout=20)
    return {**reply, "worker": str(os.getpid())}


# Where the module is imported, which is in the parent of all workers: one connection idle, one lent for ever.
LENT = jet.pool.acquire("/")
view("at import")
