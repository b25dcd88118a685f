"""A Flask app that asks a WebSocket server in every request."""

from __future__ import annotations

from typing import Any

from flask import Flask

from tests.integration.apps.shared import ask

application = Flask(__name__)


@application.get("/<ident>")
def view(ident: str) -> dict[str, Any]:
    return ask(ident)
