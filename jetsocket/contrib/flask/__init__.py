"""Flask: pools made of an application's configuration, and `flask jetsocket`; needs the extra `flask`."""

from jetsocket.contrib.flask.extension import JetSocket
from jetsocket.contrib.flask.pools import Pools
from jetsocket.contrib.flask.status import status_blueprint

__all__ = ["JetSocket", "Pools", "status_blueprint"]
