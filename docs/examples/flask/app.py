"""A Flask application that asks a JSON-RPC service: up to 32 requests at a time over 4 connections."""

from flask import Flask

from jetsocket import JetSocketError
from jetsocket.contrib.flask import JetSocket

jet = JetSocket()


def create_app(config=None):
    """Make the application, as `flask run`, gunicorn and the tests do."""
    app = Flask(__name__)
    app.config.update(
        JETSOCKET_BASE_URI="ws://localhost:8765",
        JETSOCKET_CORRELATION="jetsocket.correlation.JsonRpc",
        JETSOCKET_MAX_CONNECTIONS=4,
        JETSOCKET_MAX_IN_FLIGHT=8,
    )
    app.config.from_prefixed_env()  # FLASK_JETSOCKET_BASE_URI, FLASK_JETSOCKET_MAX_CONNECTIONS, …
    app.config.update(config or {})
    jet.init_app(app)

    @app.get("/height/<int:block>")
    def height(block):
        reply = jet.pool.request("/", {"method": "height", "params": [block]}, timeout=2.0)
        return {"height": reply["result"]}

    @app.errorhandler(JetSocketError)
    def unavailable(error):
        app.logger.warning("The service does not answer: %s", error)
        return {"error": "the service does not answer"}, 503

    return app
