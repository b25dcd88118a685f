"""One cap over the connections of many processes and hosts, kept in Redis; needs the extra `redis`.

`script` and `script.lua`: what is kept in Redis, and changed there in one step. `member`, `press`, `tokens`:
what one process holds, and what follows from what it is told, with no I/O. `desk`, `line`, `session`: its
calls, its openers, its thread. `link`: connections to Redis.
"""

try:
    import redis as _redis  # noqa: F401 - said here once, by name, if it is missing
except ImportError as error:
    raise ImportError('jetsocket.contrib.redis needs redis: pip install "jetsocket[redis]"') from error

from jetsocket.contrib.redis.fleet import FleetStatus, ProcessStatus, forget, status
from jetsocket.contrib.redis.limiter import RedisLimiter

__all__ = ["FleetStatus", "ProcessStatus", "RedisLimiter", "forget", "status"]
