"""Fixtures for the tests that talk to `services.service`.

A module names those that it wants: `server, pool = service_fixtures.server, service_fixtures.pool`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from jetsocket import ConnectionPool
from tests.servers import EchoServer
from tests.services import MakePool, Plain, service


@pytest.fixture
def server(echo_server: Callable[..., EchoServer]) -> EchoServer:
    """The service, running."""
    return echo_server(service)


@pytest.fixture
def pool(server: EchoServer, make_pool: MakePool) -> ConnectionPool[Any]:
    """Two connections to it."""
    return make_pool(server, correlation=Plain(), max_connections=2)
