"""jetsocket: a blocking, thread-safe WebSocket connection pool. Here are the public names, nothing else."""

import logging
from importlib.metadata import PackageNotFoundError, version

from jetsocket.config import ConnectionPoolConfig
from jetsocket.connection import PooledConnection
from jetsocket.exceptions import (
    ConnectionClosedError,
    ConnectionError,
    DecodeError,
    HandshakeError,
    InvalidStateError,
    JetSocketError,
    MessageTooBigError,
    PoolClosedError,
    PoolExhaustedError,
    ProtocolError,
    TimeoutError,
)
from jetsocket.info import ConnectionInfo, LeaseInfo
from jetsocket.pool import ConnectionPool
from jetsocket.stats import Histogram, PoolStats

__all__ = [
    "ConnectionClosedError",
    "ConnectionError",
    "ConnectionInfo",
    "ConnectionPool",
    "ConnectionPoolConfig",
    "DecodeError",
    "HandshakeError",
    "Histogram",
    "InvalidStateError",
    "JetSocketError",
    "LeaseInfo",
    "MessageTooBigError",
    "PoolClosedError",
    "PoolExhaustedError",
    "PoolStats",
    "PooledConnection",
    "ProtocolError",
    "TimeoutError",
]

try:
    __version__ = version("jetsocket")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"

logging.getLogger("jetsocket").addHandler(logging.NullHandler())
