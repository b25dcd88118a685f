"""The settings of one pool as frameworks keep them, a *section*: read, checked, made a pool's arguments.

Django and Flask write it ``{"BASE_URI": …, "CONFIG": {…}, "OPTIONS": {…}, "CORRELATION": …}``. What
is wrong with it is a `Fault` of one of five kinds, for checks that tell them apart. None shows a value, for
settings hold secrets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from typing import Any, Literal, TypeAlias

from jetsocket.argument_checks import nearest, wrong_type
from jetsocket.config import ConnectionPoolConfig
from jetsocket.interrupts import is_alarm
from jetsocket.manager_kwargs import Options, check_option_name
from jetsocket.messages import Codec
from jetsocket.pool_arguments import ARGUMENT_CHECKS, check_together
from jetsocket.text import printable, rule_of
from jetsocket.uris import parse

__all__ = ["FIELDS", "KEYS", "OPTIONS", "Fault", "Reader", "read_section", "section_arguments"]

Kind: TypeAlias = Literal["key", "config", "options", "value", "path"]

_BY_PATH = ("CORRELATION", "LIMITER", "CONFIGURE", "RESET", "CHECK", "ON_PUSH")
_MADE = ("CORRELATION", "LIMITER")  # of a class, one is made

KEYS = ("BASE_URI", "CONFIG", "OPTIONS", *_BY_PATH, "NAME")
"""What a section may hold."""
FIELDS = tuple(field.name for field in fields(ConnectionPoolConfig))
"""What its CONFIG may hold."""
OPTIONS = tuple(field.name for field in fields(Options))
"""What its OPTIONS may hold."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with a setting.

    Attributes:
        kind: "key": unknown in the section; "config": unknown in CONFIG; "options": unknown in OPTIONS, or it
            has moved elsewhere; "value": a value is refused; "path": a dotted path can't be imported.
        message: What is wrong and where, without a value.
        cause: What was raised, if that was an import or user's code.
    """

    kind: Kind
    message: str
    cause: BaseException | None = None

    def error(self) -> TypeError | ValueError:
        """The exception that says it: an unknown key is a TypeError, all else a ValueError."""
        error = (ValueError if self.kind in ("value", "path") else TypeError)(self.message)
        error.__cause__ = self.cause
        return error


def section_arguments(section: Any, where: str = "", *, name: str | None = None) -> dict[str, Any]:
    """Make the arguments of a pool of a section.

    Args:
        section: The settings.
        where: What the section is called, for messages: ``JETSOCKET["default"]``.
        name: The pool's name, unless NAME says another.

    Returns:
        Keyword arguments of `ConnectionPool`.

    Raises:
        TypeError: A key is unknown.
        ValueError: A value is refused, or a path can't be imported.
    """
    arguments, faults = read_section(section, where, name=name)
    if faults:
        raise faults[0].error()
    return arguments


def read_section(
    section: Any, where: str = "", *, name: str | None = None
) -> tuple[dict[str, Any], list[Fault]]:
    """Make the arguments of a pool of a section, and say all that is wrong with it.

    Args:
        section: The settings.
        where: What the section is called, for messages: ``JETSOCKET["default"]``.
        name: The pool's name, unless NAME says another.

    Returns:
        Keyword arguments of `ConnectionPool`, which are of use if there are no faults; and the faults.
    """
    where = printable(where)  # it has an alias in it
    if not isinstance(section, Mapping):
        return {}, [Fault("value", rule_of(wrong_type(where or "a section", section, "a mapping")))]

    def label(key: str) -> str:
        return f'{where}["{key}"]' if where else key

    reader = Reader(label)
    for key in section:
        if not isinstance(key, str):
            told = f"{where or 'a section'}: a key must be a str, not {type(key).__name__}"
            reader.faults.append(Fault("key", told))
        elif key not in KEYS:
            reader.faults.append(Fault("key", f"{label(key)} is unknown{_section_hint(key)}"))
    arguments = reader.read({key: section[key] for key in KEYS if key in section})
    if name is not None and "name" not in arguments:
        arguments["name"] = name
        refusal = _refusal(partial(ARGUMENT_CHECKS["name"], f"{where or 'a section'}: the pool's name", name))
        reader.faults += [] if refusal is None else [Fault("value", refusal)]
    return arguments, reader.faults


def _section_hint(key: str) -> str:
    if key.lower() in FIELDS:
        return f'; it belongs into CONFIG, as "{key.lower()}"'
    if key.lower() in OPTIONS:
        return f'; it belongs into OPTIONS, as "{key.lower()}"'
    if key.lower() == "manager_kwargs":  # what the argument is called
        key = "OPTIONS"
    return nearest(key, KEYS) or f"; known are {', '.join(KEYS)}"


class Reader:
    """Reads the settings of one pool, and keeps what is wrong with them.

    Attributes:
        faults: All that was found.
    """

    def __init__(self, label: Callable[[str], str], field_label: Callable[[str], str] | None = None) -> None:
        """Make one.

        Args:
            label: What a key is called in messages.
            field_label: What a field of CONFIG is called there.
        """
        self.faults: list[Fault] = []
        self._label = label
        self._field_label = field_label or (lambda field: f'{label("CONFIG")}["{field}"]')

    def read(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Make the arguments of a pool.

        Args:
            given: Settings, all of whose keys are known.
        """
        arguments: dict[str, Any] = {}
        if given.get("BASE_URI") is not None:
            arguments["base_uri"] = uri = given["BASE_URI"]
            self._note(_refusal(partial(parse, uri)), f"{self._label('BASE_URI')}: ")
        if "CONFIG" in given:
            arguments["config"] = self._config(given["CONFIG"])
        if "OPTIONS" in given:
            arguments["manager_kwargs"] = self._options(given["OPTIONS"])
        for key in (*_BY_PATH, "NAME"):
            if given.get(key) is not None:
                arguments[key.lower()] = self._argument(key, given[key])
        if not self.faults:
            config, correlation, on_push = map(arguments.get, ("config", "correlation", "on_push"))
            shared = _refusal(partial(check_together, config, correlation, None))
            self._note(shared, f"{self._field_label('max_in_flight')}: ")
            pushed = _refusal(partial(check_together, None, correlation, on_push))
            self._note(pushed, f"{self._label('ON_PUSH')}: ")
        return arguments

    def _note(self, refusal: str | None, before: str = "") -> bool:
        if refusal is not None:
            self.faults.append(Fault("value", before + refusal))
        return refusal is None

    def _config(self, given: Any) -> ConnectionPoolConfig | None:
        if given is None or isinstance(given, ConnectionPoolConfig):
            return given
        label = self._label("CONFIG")
        if not isinstance(given, Mapping):
            self._note(rule_of(wrong_type(label, given, "a mapping")))
            return None
        right: dict[str, Any] = {}
        for field, value in given.items():
            if field not in FIELDS:
                self.faults.append(Fault("config", self._unknown_field(field)))
                continue
            refusal = _refusal(partial(ConnectionPoolConfig, **{field: value}))
            if refusal is not None:
                refusal = refusal.replace(f"ConnectionPoolConfig.{field}", self._field_label(field))
            if self._note(refusal):
                right[field] = value
        return ConnectionPoolConfig(**right)

    def _unknown_field(self, field: object) -> str:
        if not isinstance(field, str):
            return f"{self._label('CONFIG')}: a key must be a str, not {type(field).__name__}"
        hint = nearest(field, FIELDS) or f"; known are {', '.join(FIELDS)}"
        if field.lower() in OPTIONS:
            hint = "; it belongs into OPTIONS"
        elif field.upper() in KEYS:
            hint = f"; {field.upper()} stands beside CONFIG, not in it"
        return f"{self._field_label(field)} is unknown{hint}"

    def _options(self, given: Any) -> Mapping[str, Any] | None:
        label = self._label("OPTIONS")
        if given is None:
            return None
        if not isinstance(given, Mapping):
            self._note(rule_of(wrong_type(label, given, "a mapping")))
            return None
        found = len(self.faults)
        for key, value in given.items():
            unknown = _refusal(partial(check_option_name, key))
            if unknown is None:
                refusal = _refusal(partial(Options.from_kwargs, {key: value}))
                self._note(refusal and refusal.replace("manager_kwargs", label))
            elif key in FIELDS:
                self.faults.append(Fault("options", f'{label}["{key}"] is unknown; it belongs into CONFIG'))
            else:
                self.faults.append(Fault("options", unknown.replace("manager_kwargs", label)))
        if len(self.faults) == found:  # each is right by itself; and together?
            refusal = _refusal(partial(Options.from_kwargs, given))
            if self._note(refusal and refusal.replace("manager_kwargs", label)):
                options = Options.from_kwargs(given)
                codec = options.serializer, options.deserializer, options.message_type
                self._note(_refusal(partial(Codec.for_options, *codec)), f"{label}: ")
        return given

    def _argument(self, key: str, given: Any) -> Any:
        """What is given, or a dotted path names; of a class, where an object is wanted, one is made."""
        label, found = self._label(key), len(self.faults)
        if key == "LIMITER" and isinstance(given, Mapping):  # by origin
            value: Any = {origin: self._object(label, key, each) for origin, each in given.items()}
        else:
            value = self._object(label, key, given)
        if len(self.faults) > found:
            return None
        self._note(_refusal(partial(ARGUMENT_CHECKS[key.lower()], label, value)))
        return value

    def _object(self, label: str, key: str, given: Any) -> Any:
        """What a dotted path names, made of it if it is a class; None, and a fault, if that fails."""
        value = given
        try:
            if isinstance(given, str) and key in _BY_PATH:
                value = _imported(given)
        except Exception as error:  # the user's module runs, and may raise anything
            if is_alarm(error, users_code=True):
                raise
            why = str(error) if isinstance(error, ImportError) else f"it raises {type(error).__name__}"
            self.faults.append(Fault("path", f"{label} can't be imported: {why}", error))
            return None
        try:
            if isinstance(value, type) and key in _MADE:
                value = value()
        except Exception as error:  # the user's class
            if is_alarm(error, users_code=True):
                raise
            why = f"calling {value.__name__} without arguments raises {type(error).__name__}"
            self.faults.append(Fault("value", f"{label}: {why}; make the object yourself", error))
            return None
        return value


def _refusal(check: Callable[[], object]) -> str | None:
    """What a check says against a value, without the value; None: nothing. The error itself is dropped."""
    try:
        check()
    except (TypeError, ValueError, ImportError) as error:
        if is_alarm(error):
            raise
        return rule_of(error)
    return None


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    if not module or not all(part.isidentifier() for part in path.split(".")):
        raise ImportError("it must be a dotted path, such as package.module.name")
    try:
        home = import_module(module)
    except ModuleNotFoundError as error:
        if (
            is_alarm(error, users_code=True)
            or error.name is None
            or not f"{module}.".startswith(f"{error.name}.")
        ):
            raise
        raise ImportError("there is no such module") from error
    try:
        return getattr(home, name)
    except AttributeError as error:
        if is_alarm(error, users_code=True):
            raise
        raise ImportError(f"there is no such name in its module{nearest(name, dir(home))}") from error
