"""The pools of a project: read from ``settings.JETSOCKET`` when they are first asked for, and then kept."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from jetsocket import ConnectionPool
from jetsocket.contrib.status import publish
from jetsocket.events import Listener
from jetsocket.framework_settings import section_arguments

try:
    from django.conf import settings
    from django.core.signals import setting_changed
    from django.utils.connection import ConnectionProxy
except ImportError as error:
    raise ImportError('jetsocket.contrib.django needs Django: pip install "jetsocket[django]"') from error

__all__ = ["Pools", "label", "pool", "pools", "sections"]


class Pools(Mapping[str, ConnectionPool[Any]]):
    """The pools of ``settings.JETSOCKET`` by alias; each is made when first looked up, once a process.

    All threads share it. Django's own `BaseConnectionHandler` keeps a connection for each thread, and closes
    it at the end of the request: that is what a pool is there to avoid.
    """

    def __init__(self) -> None:
        """Be there; nothing is read yet."""
        self._made: dict[str, tuple[Any, ConnectionPool[Any]]] = {}  # with the settings that they are of
        self._listeners: list[Listener] = []

    def __getitem__(self, alias: str) -> ConnectionPool[Any]:
        """The pool of that alias.

        Raises:
            KeyError: There is none.
            TypeError: A setting is unknown.
            ValueError: One is refused, or a path can't be imported.
        """
        made = self._made.get(alias)
        if made is not None:
            return made[1]
        section = self._section(alias)
        fresh: ConnectionPool[Any] = ConnectionPool(**section_arguments(section, label(alias), name=alias))
        for listener in self._listeners:
            fresh.listen(listener)
        # No lock, which a fork might copy while another thread holds it: of two made at once, one is kept.
        kept = self._made.setdefault(alias, (_as_it_is(section), fresh))[1]
        if kept is not fresh:
            fresh.close()
        elif (directory := getattr(settings, "JETSOCKET_STATUS_DIR", None)) is not None:
            publish(kept, directory)
        return kept

    def __reduce__(self) -> str:
        return "pools"  # a copy is itself; unpickled, it is that of the process

    def __iter__(self) -> Iterator[str]:
        return iter(sections())

    def __len__(self) -> int:
        return len(sections())

    def settings(self, alias: str) -> dict[str, Any]:
        """The arguments that the pool of that alias is made with; errors as for a look-up."""
        return section_arguments(self._section(alias), label(alias), name=alias)

    def made(self) -> dict[str, ConnectionPool[Any]]:
        """Those that are made already."""
        return {alias: pool for alias, (_section, pool) in list(self._made.items())}

    def listen(self, listener: Listener) -> None:
        """Have a listener told what all of them do, those too that are made later."""
        self._listeners.append(listener)
        for made in self.made().values():
            made.listen(listener)

    def listen_once(self, listener: Listener) -> None:
        """`listen`, unless it is told already."""
        if listener not in self._listeners:
            self.listen(listener)

    def close_all(self, *, but: Collection[str] = ()) -> None:
        """Close those that are made. The next look-up makes another, of the settings as they are then.

        Args:
            but: Aliases of those that are kept.
        """
        for alias in list(self._made):
            if alias not in but:
                self._close(alias)

    def close_changed(self) -> None:
        """Close those whose settings are others by now."""
        found = getattr(settings, "JETSOCKET", {})
        now = found if isinstance(found, Mapping) else {}
        for alias, (section, _pool) in list(self._made.items()):
            if alias not in now or _as_it_is(now[alias]) != section:
                self._close(alias)

    def _close(self, alias: str) -> None:
        made = self._made.pop(alias, None)
        if made is not None:  # no other thread closes it, too
            made[1].close()

    def _section(self, alias: str) -> Any:
        known = sections()
        if alias not in known:
            told = ", ".join(map(repr, known)) or "none"
            raise KeyError(f"settings.JETSOCKET has no pool {alias!r}; known are {told}")
        return known[alias]


def _as_it_is(section: Any) -> Any:
    """A copy of a section and of the mappings in it, which may be changed in place."""
    if not isinstance(section, Mapping):
        return section
    return {key: dict(value) if isinstance(value, Mapping) else value for key, value in section.items()}


def sections() -> Mapping[str, Any]:
    """The settings of all pools, by alias.

    Raises:
        ValueError: They are no mapping of names.
    """
    found = getattr(settings, "JETSOCKET", {})
    if not isinstance(found, Mapping) or not all(isinstance(alias, str) for alias in found):
        raise ValueError("settings.JETSOCKET must be a mapping of names to the settings of a pool")
    return found


def label(alias: str) -> str:
    """What the settings of a pool are called in messages."""
    return f'JETSOCKET["{alias}"]'


pools = Pools()
"""All pools of this project."""


class _Default(ConnectionProxy):  # type: ignore[misc]  # Django has no types
    """Stands for a pool of `pools`. A copy is itself; unpickled, it stands for the one of that process."""

    def __getattr__(self, name: str) -> Any:
        # What tools look for on any object (`__wrapped__`) makes no pool; and one without fields, as a copy
        # begins, does not look for them without end.
        if name.startswith("_") and not hasattr(ConnectionPool, name):
            return object.__getattribute__(self, name)  # raises what is usual
        return super().__getattr__(name)

    def __reduce__(self) -> str:
        return "pool"


pool: Any = _Default(pools, "default")
"""Stands for ``pools["default"]``, whatever the settings are at that moment."""


def _settings_changed(*, setting: str, **_: object) -> None:
    if setting == "JETSOCKET":
        pools.close_changed()
    elif setting == "JETSOCKET_STATUS_DIR":  # into which a pool writes from its beginning on
        pools.close_all()


setting_changed.connect(_settings_changed, dispatch_uid="jetsocket")
