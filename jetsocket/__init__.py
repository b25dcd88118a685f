"""jetsocket: a blocking, thread-safe WebSocket connection pool. Here are the public names, nothing else."""

import logging
from typing import TYPE_CHECKING

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
    ReplyError,
    SubscriptionOverflowError,
    TimeoutError,
)
from jetsocket.info import ConnectionInfo, LeaseInfo
from jetsocket.pool import ConnectionPool
from jetsocket.stats import Histogram, PoolStats
from jetsocket.subscription import Subscription

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
    "ReplyError",
    "Subscription",
    "SubscriptionOverflowError",
    "TimeoutError",
]

__version__: str

if not TYPE_CHECKING:  # or every name would be known to type checkers

    def __getattr__(name: str) -> str:
        """Look up the version when it is asked for: reading metadata is slow."""
        if name != "__version__":
            raise AttributeError(f"module 'jetsocket' has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("jetsocket")
        except PackageNotFoundError:  # run from a checkout that is not installed
            return "0+unknown"


logging.getLogger("jetsocket").addHandler(logging.NullHandler())
