"""The loggers of the package, silent unless the program configures logging."""

from __future__ import annotations

import logging

POOL_LOG = logging.getLogger("jetsocket.pool")
"""What a pool does."""

WIRE_LOG = logging.getLogger("jetsocket.wire")
"""What happens to a connection."""

logging.getLogger("jetsocket").addHandler(logging.NullHandler())

__all__ = ["POOL_LOG", "WIRE_LOG"]
