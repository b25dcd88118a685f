"""What a pool may be made of: its arguments, but for those that check themselves; by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jetsocket.argument_checks import Check, out_of_range, runs_later, wrong_type
from jetsocket.config import ConnectionPoolConfig
from jetsocket.correlation.base import Correlation
from jetsocket.limits import Limiter
from jetsocket.quotas import Limiters, origin_of
from jetsocket.text import with_rule
from jetsocket.uris import parse

__all__ = ["ARGUMENT_CHECKS", "by_origin", "check_together"]


def _config(name: str, value: Any) -> ConnectionPoolConfig | None:
    if value is not None and not isinstance(value, ConnectionPoolConfig):
        raise TypeError(f"{name} must be a ConnectionPoolConfig, not {type(value).__name__}")
    return value


def _callback(name: str, value: Any) -> Any:
    if value is not None and not callable(value):
        raise wrong_type(name, value, "callable")
    if runs_later(value):
        raise wrong_type(name, value, "an ordinary function, not an async one or a generator")
    return value


def _name(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise wrong_type(name, value, "a str or None")
    if value is not None and not value.isprintable():  # it goes into lines of a log, labels, headings
        raise out_of_range(name, value, "printable, without line breaks and control characters")
    return value


def _correlation(name: str, value: Any) -> Correlation | None:
    if value is not None and not isinstance(value, Correlation):
        raise wrong_type(name, value, "a jetsocket.correlation.Correlation or None")
    return value


def _limiter(name: str, value: Any) -> Any:
    allowed = "a jetsocket.limits.Limiter, a mapping of them by origin, a callable that returns one, or None"
    if value is None or isinstance(value, Limiter):
        return value
    if isinstance(value, Mapping):
        for origin, limiter in value.items():
            _origin(name, origin)
            if not isinstance(limiter, Limiter):
                raise wrong_type(f"{name}[{origin!r}]", limiter, "a jetsocket.limits.Limiter")
        return value
    if isinstance(value, type) or not callable(value):
        raise wrong_type(name, value, allowed)
    return _callback(name, value)


def _origin(name: str, value: Any) -> str:
    """An origin as `quotas.origin_of` writes it.

    Raises:
        TypeError: The value is no str.
        ValueError: It is no origin.
    """
    if not isinstance(value, str):
        raise wrong_type(f"a key of {name}", value, "a str")
    target = parse(value)
    if target.resource != "/" or target.authorization is not None:
        told = f"{name}: {target.redacted!r} is no origin: give scheme, host and port, as 'wss://host'"
        raise ValueError(told)
    return origin_of(target)


def by_origin(limiters: Limiters) -> Limiters:
    """What was given as `limiter`, as `Quotas` wants it."""
    if not isinstance(limiters, Mapping):
        return limiters
    found: dict[str, Limiter] = {}
    for key, limiter in limiters.items():
        origin = _origin("limiter", key)
        if found.setdefault(origin, limiter) is not limiter:
            raise ValueError(f"limiter: {origin!r} is there twice, with different limiters")
    return found


ARGUMENT_CHECKS: Mapping[str, Check] = {
    "config": _config,
    "configure": _callback,
    "reset": _callback,
    "check": _callback,
    "on_push": _callback,
    "name": _name,
    "correlation": _correlation,
    "limiter": _limiter,
}


def check_together(config: ConnectionPoolConfig | None, correlation: object, on_push: object) -> None:
    """Refuse what needs a correlation where there is none.

    Raises:
        ValueError: There is none.
    """
    if correlation is not None:
        return
    if config is not None and config.max_in_flight > 1:
        told = "needs a correlation, which says which reply is whose"
        error = ValueError(f"max_in_flight={config.max_in_flight} {told}")
        raise with_rule(error, f"max_in_flight of more than 1 {told}")
    if on_push is not None:
        raise ValueError("on_push needs a correlation, which says what belongs to no request")
