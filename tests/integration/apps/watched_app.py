"""A Flask app of several workers whose figures are told together: to Prometheus, and on the status page."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask, Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from jetsocket.contrib.flask import JetSocket, status_blueprint
from jetsocket.contrib.prometheus import instrument
from tests.integration.apps.settings import CAP, URI_VARIABLE

application = Flask(__name__)
application.config.update(
    JETSOCKET_BASE_URI=os.environ[URI_VARIABLE],
    JETSOCKET_MAX_CONNECTIONS=CAP,
    JETSOCKET_STATUS_DIR=os.environ["STATUS_DIR"],
)
jet = JetSocket(application)
instrument(jet.pool, multiprocess=True)
application.register_blueprint(status_blueprint(permission=lambda _environ: True), url_prefix="/pools")


@application.get("/ask")
def ask() -> dict[str, Any]:
    """Ask the server; the answer says which worker did."""
    return {"worker": jet.pool.request("/", {"id": 1, "pid": os.getpid()}, timeout=20)["pid"]}


@application.get("/metrics")
def metrics() -> Response:
    """What Prometheus gets."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # theirs
    return Response(generate_latest(registry), mimetype="text/plain")
