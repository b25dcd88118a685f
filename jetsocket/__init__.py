"""jetsocket: a blocking, thread-safe WebSocket connection pool. Here are the public names, nothing else."""

from jetsocket.lazy_names import lazy_names

__version__ = "0.1.0"

TYPE_CHECKING = False  # type checkers take it for typing's, which takes longer to import than all of this

if TYPE_CHECKING:
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
    from jetsocket.histogram import Histogram
    from jetsocket.info import ConnectionInfo, LeaseInfo
    from jetsocket.pool import ConnectionPool
    from jetsocket.stats import PoolStats
    from jetsocket.subscription import Subscription
else:  # or every name would be known to type checkers
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "jetsocket.config": ["ConnectionPoolConfig"],
            "jetsocket.connection": ["PooledConnection"],
            "jetsocket.contrib.jupyter": ["load_ipython_extension", "unload_ipython_extension"],
            "jetsocket.exceptions": [
                "ConnectionClosedError",
                "ConnectionError",
                "DecodeError",
                "HandshakeError",
                "InvalidStateError",
                "JetSocketError",
                "MessageTooBigError",
                "PoolClosedError",
                "PoolExhaustedError",
                "ProtocolError",
                "ReplyError",
                "SubscriptionOverflowError",
                "TimeoutError",
            ],
            "jetsocket.histogram": ["Histogram"],
            "jetsocket.info": ["ConnectionInfo", "LeaseInfo"],
            "jetsocket.pool": ["ConnectionPool"],
            "jetsocket.stats": ["PoolStats"],
            "jetsocket.subscription": ["Subscription"],
        },
        modules=["correlation", "events", "exceptions", "limits"],
    )

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
