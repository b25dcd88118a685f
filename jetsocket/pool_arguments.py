"""What a pool may be made of: its arguments, but for those that check themselves; by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jetsocket.argument_checks import Check, runs_later, wrong_type
from jetsocket.config import ConnectionPoolConfig
from jetsocket.correlation.base import Correlation
from jetsocket.limits import Limiter
from jetsocket.text import with_rule

__all__ = ["ARGUMENT_CHECKS", "check_together"]


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
    return value


def _correlation(name: str, value: Any) -> Correlation | None:
    if value is not None and not isinstance(value, Correlation):
        raise wrong_type(name, value, "a jetsocket.correlation.Correlation or None")
    return value


def _limiter(name: str, value: Any) -> Limiter | None:
    if value is not None and not isinstance(value, Limiter):
        raise wrong_type(name, value, "a jetsocket.limits.Limiter or None")
    return value


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
