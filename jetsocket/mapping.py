"""Settings of a pool that stand beside others, under a prefix: read as a section, with text for values.

So `os.environ` keeps them, and Flask's configuration: ``JETSOCKET_BASE_URI``, ``JETSOCKET_MAX_CONNECTIONS``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_type_hints

from jetsocket.argument_checks import nearest
from jetsocket.config import ConnectionPoolConfig
from jetsocket.framework_settings import FIELDS, KEYS, OPTIONS, Reader
from jetsocket.interrupts import is_alarm

__all__ = ["arguments_of", "check_prefix"]

_KNOWN = (*(key for key in KEYS if key != "CONFIG"), *(field.upper() for field in FIELDS))
_TRUE, _FALSE, _NONE = ("true", "yes", "on", "1"), ("false", "no", "off", "0"), ("", "none", "null")


def arguments_of(config: Mapping[Any, Any], prefix: str, *, others: Iterable[str] = ()) -> dict[str, Any]:
    """Make the arguments of a pool.

    Args:
        config: The settings, and others. A ``str`` is read as what the field wants.
        prefix: What the keys begin with, without the underscore.
        others: What else there is behind that prefix, for someone else: an unknown key may be meant for it.

    Returns:
        Keyword arguments of `ConnectionPool`.

    Raises:
        TypeError: A key is unknown, or an argument is of the wrong type.
        ValueError: A value is refused, a path can't be imported, or the prefix is empty or ends with "_".
    """
    if not isinstance(config, Mapping):
        raise TypeError(f"config must be a mapping, not {type(config).__name__}")
    if not isinstance(prefix, str):
        raise TypeError(f"prefix must be a str, not {type(prefix).__name__}")
    check_prefix("prefix", prefix)
    start = f"{prefix}_"
    given: dict[str, Any] = {}
    figures: dict[str, Any] = {}
    for key, value in config.items():
        if not isinstance(key, str) or not key.startswith(start):
            continue
        name = key.removeprefix(start)
        if name not in _KNOWN:
            raise TypeError(f"{key} is unknown{_hint(start, name, others)}")
        if name.lower() in FIELDS:
            figures[name.lower()] = _figure(key, name.lower(), value)
        else:
            given[name] = _options(key, value) if name == "OPTIONS" else value
    if figures:
        given["CONFIG"] = figures
    reader = Reader(lambda key: start + key, lambda field: start + field.upper())
    arguments = reader.read(given)
    if reader.faults:
        raise reader.faults[0].error()
    return arguments


def check_prefix(name: str, prefix: str) -> None:
    """Refuse a prefix under which nothing would be found.

    Raises:
        ValueError: It is empty, or ends with an underscore.
    """
    if not prefix:
        raise ValueError(f"{name} must not be empty")
    if prefix.endswith("_"):
        raise ValueError(f"{name} must be without the underscore at its end: {prefix.rstrip('_')!r}")


def _hint(start: str, name: str, others: Iterable[str]) -> str:
    if name == "MANAGER_KWARGS":  # what the argument is called
        name = "OPTIONS"
    if name.lower() in OPTIONS:
        return f'; it belongs into {start}OPTIONS, as "{name.lower()}"'
    return nearest(start + name, (start + each for each in (*_KNOWN, *others)))


def _options(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError) as error:
        if is_alarm(error):
            raise
        read = None  # the error holds the text, so it goes no further
    if not isinstance(read, dict):
        raise ValueError(f"{key} must be a JSON object")
    return read


def _figure(key: str, field: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    wanted = get_type_hints(ConnectionPoolConfig)[field]
    kinds = get_args(wanted) or (wanted,)
    text = value.strip()
    if type(None) in kinds and text.lower() in _NONE:
        return None
    if bool in kinds:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError(f"{key} must be true or false")
        return text.lower() in _TRUE
    for kind, told in ((int, "an integer"), (float, "a number of seconds")):
        if kind not in kinds:
            continue
        try:
            return kind(text)
        except ValueError as error:
            if is_alarm(error):
                raise
        raise ValueError(f"{key} must be {told}")
    return text
