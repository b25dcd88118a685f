"""Limiters: a cap over several pools, processes or hosts; none by default. Here are the public names."""

from jetsocket.lazy_names import lazy_names

TYPE_CHECKING = False  # type checkers take it for typing's

if TYPE_CHECKING:
    from jetsocket.limits.base import Limiter, Owner
    from jetsocket.limits.file import FileLimiter
    from jetsocket.limits.local import LocalLimiter
else:
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "jetsocket.limits.base": ["Limiter", "Owner"],
            "jetsocket.limits.file": ["FileLimiter"],
            "jetsocket.limits.local": ["LocalLimiter"],
        },
    )

__all__ = ["FileLimiter", "Limiter", "LocalLimiter", "Owner"]
